//! What is on this machine: list, show, verify, remove.

use std::path::PathBuf;

use super::suggest::near;
use super::{Hub, LocalModel, Options, Outcome, Store};
use crate::cache::Removed;
use crate::catalog::Variant;
use crate::digest::Digest;
use crate::error::{Candidate, Error, Result};
use crate::name::{ModelRef, Name};
use crate::progress::Progress;
use crate::quant;

/// One model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What to type for it.
    pub name: String,
    /// Whose directory it is in.
    pub store: Store,
    /// Bytes on disk.
    pub size: u64,
    /// The digest of its weights, where known without reading them.
    pub digest: Option<Digest>,
    /// Its precision, where known.
    pub precision: Option<String>,
    /// Where it came from.
    pub source: String,
    /// The file or directory to open.
    pub path: PathBuf,
}

/// What is known of a name without fetching anything.
#[derive(Debug, Clone)]
pub struct Info {
    /// The model on this machine, when it is here.
    pub here: Option<LocalModel>,
    /// What the catalog says of it.
    pub catalog: Option<CatalogInfo>,
}

/// A catalog entry, for a person.
#[derive(Debug, Clone)]
pub struct CatalogInfo {
    /// The exact name.
    pub name: String,
    /// One line on the family.
    pub about: String,
    /// The licence of the weights.
    pub licence: String,
    /// The variant: its other tags, precision, size, digest and sources.
    pub variant: Variant,
}

impl From<LocalModel> for Entry {
    fn from(m: LocalModel) -> Entry {
        Entry {
            name: m.name,
            store: m.store,
            size: m.size,
            digest: m.digest,
            precision: m.precision,
            source: m.source,
            path: m.path,
        }
    }
}

impl Hub {
    /// Every model on this machine that a name can reach: ours, then those of Ollama's stores, then those of the Hugging
    /// Face cache. A damaged or unusable one of another program's store is left out; [`Hub::show`] says what is wrong.
    ///
    /// # Errors
    /// When one of our own manifests cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        for m in self.cache.manifests()? {
            let mut weights = m.weights();
            let first = weights.next();
            all.push(Entry {
                name: m.full_name(),
                store: Store::Quarrel,
                size: m.size(),
                digest: first.map(|f| f.digest).filter(|_| weights.next().is_none()),
                precision: m.precision.clone(),
                path: first.map(|f| self.cache.blob(&f.digest)).unwrap_or_default(),
                source: m.source.clone(),
            });
        }
        for store in &self.config.ollama {
            for model in store.models().unwrap_or_default() {
                all.extend(store.open(&model).ok().map(Entry::from));
            }
        }
        for cached in self.hf.models().unwrap_or_default() {
            all.extend(cached.local().ok().map(Entry::from));
        }
        Ok(all)
    }

    /// What is known of a name. Uses nothing but this machine.
    ///
    /// # Errors
    /// When neither this machine nor the catalog knows it, or it is damaged, or it could be several things.
    pub fn show(&self, text: &str) -> Result<Info> {
        let catalog = match ModelRef::parse(text)? {
            ModelRef::Name(name) => self.config.catalog.find(&name).and_then(|(model, variant)| {
                let variant = variant?.clone();
                Some(CatalogInfo {
                    name: format!("{}:{}", model.name, variant.tag()),
                    about: model.about.clone(),
                    licence: model.licence.clone(),
                    variant,
                })
            }),
            _ => None,
        };
        let here = match self.resolve(text, Options { offline: true, ..Options::default() }, &mut ()) {
            Ok(Outcome::Ready(model)) => Some(model),
            Ok(Outcome::Substitute { .. }) | Err(Error::Offline { .. }) => None,
            Err(e) => return Err(e),
        };
        match (&here, &catalog) {
            (None, None) => Err(self.unknown(text)),
            _ => Ok(Info { here, catalog }),
        }
    }

    /// Hashes every file of a model that is on this machine.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first wrong file, with what became of it; or as for [`Hub::show`].
    pub fn verify(&self, text: &str, progress: &mut dyn Progress) -> Result<LocalModel> {
        let model = self.show(text)?.here.ok_or_else(|| self.unknown(text))?;
        if model.store == Store::Quarrel {
            let manifest = self.cache.manifests()?.into_iter().find(|m| m.full_name() == model.name);
            self.cache.verify(&manifest.ok_or_else(|| self.unknown(text))?, progress)?;
            return Ok(model);
        }
        progress.start(Some(model.size), &format!("checking {}", model.name));
        let outcome = self.verify_elsewhere(&model, progress);
        progress.finish();
        outcome.map(|()| model)
    }

    fn verify_elsewhere(&self, model: &LocalModel, progress: &mut dyn Progress) -> Result<()> {
        let seen = |n| progress.advance(n);
        match (model.store, ModelRef::parse(&model.name)) {
            (Store::Ollama, Ok(ModelRef::Name(name))) => {
                for store in self.config.ollama.iter().filter(|s| model.path.starts_with(s.root())) {
                    if let Some(found) = store.find(&name)?.first() {
                        return store.verify(found, seen);
                    }
                }
                Err(self.unknown(&model.name))
            }
            (Store::HuggingFace, Ok(ModelRef::Hf(what))) => match self.hf.find(&what)? {
                Some(cached) => cached.verify(seen),
                None => Err(self.unknown(&model.name)),
            },
            _ => Err(Error::Unsupported {
                what: format!("checking {}", model.name),
                why: "nobody has said what its digest should be".into(),
            }),
        }
    }

    /// Removes a model from our cache, or one that was named with `hf:` from the Hugging Face cache. Blobs that other
    /// models use stay.
    ///
    /// # Errors
    /// [`Error::NotOurs`] for a path or a model of an Ollama store; [`Error::Ambiguous`] when several fit.
    pub fn remove(&self, text: &str) -> Result<Removed> {
        match ModelRef::parse(text)? {
            ModelRef::Path(path) => Err(Error::NotOurs(format!(
                "{} is your own file, not one of the cache; remove it with rm",
                path.display()
            ))),
            ModelRef::Hf(what) => {
                let cached = self.hf.find(&what)?.ok_or_else(|| self.unknown(text))?;
                let bytes = cached.remove()?;
                Ok(Removed { names: vec![cached.what.to_string()], bytes, kept: 0 })
            }
            ModelRef::Wheel(what) => match self.cache.manifest(&what.to_string(), "")? {
                Some(manifest) => self.cache.remove(&manifest),
                None => Err(self.unknown(text)),
            },
            ModelRef::Name(name) => self.remove_name(&name),
        }
    }

    fn remove_name(&self, name: &Name) -> Result<Removed> {
        let variant = self.config.catalog.find(name).and_then(|(_, v)| v);
        let family = name.family();
        let fits = |tag: &str| match &name.tag {
            Some(wanted) => tag.eq_ignore_ascii_case(wanted) || variant.is_some_and(|v| v.has_tag(tag)),
            None => true,
        };
        let all = self.cache.manifests()?;
        let found: Vec<_> =
            all.iter().filter(|m| m.name.eq_ignore_ascii_case(&family) && fits(&m.tag)).collect();
        match found[..] {
            [one] => return self.cache.remove(one),
            [] => {}
            _ => {
                let candidate = |m: &&crate::cache::Manifest| Candidate {
                    name: m.full_name(),
                    detail: quant::human_bytes(m.size()),
                };
                let candidates = found.iter().map(candidate).collect();
                return Err(Error::Ambiguous { name: name.to_string(), candidates });
            }
        }
        for store in &self.config.ollama {
            if let Some(theirs) = store.find(name).unwrap_or_default().first() {
                return Err(Error::NotOurs(format!(
                    "`{}` belongs to Ollama's store at {}; remove it with `ollama rm {}`",
                    theirs.name,
                    store.root().display(),
                    theirs.name
                )));
            }
        }
        // A catalog name may be here through the shared Hugging Face cache.
        if let Ok(Info { here: Some(model), .. }) = self.show(&name.to_string())
            && model.store == Store::HuggingFace
        {
            return Err(Error::NotOurs(format!(
                "`{name}` is in the Hugging Face cache, which other programs share; to remove it there, name it: {}",
                model.name
            )));
        }
        Err(self.unknown(&name.to_string()))
    }

    fn unknown(&self, text: &str) -> Error {
        let here = self.list().unwrap_or_default();
        let known = here
            .iter()
            .map(|e| e.name.as_str())
            .chain(self.config.catalog.models.iter().map(|m| m.name.as_str()));
        Error::NoSuchModel { name: text.into(), suggestions: near(text, known) }
    }
}
