//! An Ollama store on this machine: `manifests/HOST/NAMESPACE/NAME/TAG` and `blobs/sha256-HEX`. Only ever read.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Image, MANIFEST_BYTES_MAX, licence_line, precision};
use crate::cache::{Role, read_dir, read_small};
use crate::digest::{Digest, digest_file};
use crate::error::{Error, Result};
use crate::hub::{LocalModel, SIDE_TEXT_BYTES_MAX, Store, parse_params};
use crate::name::Name;

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OllamaStore {
    root: PathBuf,
}

/// A model in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InStore {
    /// Its name, with everything written out.
    pub name: Name,
    manifest: PathBuf,
}

impl OllamaStore {
    /// The store at `root` (the directory that has `manifests` and `blobs`).
    pub fn new(root: impl Into<PathBuf>) -> OllamaStore {
        OllamaStore { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every model in it.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn models(&self) -> Result<Vec<InStore>> {
        let mut all = Vec::new();
        for host in read_dir(&self.root.join("manifests"))? {
            for namespace in read_dir(&host)? {
                for model in read_dir(&namespace)? {
                    for tag in read_dir(&model)? {
                        let part = |p: &Path| p.file_name()?.to_str().map(str::to_string);
                        let parts = (part(&host), part(&namespace), part(&model), part(&tag));
                        let (Some(h), Some(n), Some(m), Some(t)) = parts else { continue };
                        // What does not parse as a name (.DS_Store, half-written files) is no model.
                        if let Ok(name) = Name::parse(&format!("{h}/{n}/{m}:{t}")) {
                            all.push(InStore { name, manifest: tag });
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    /// The models of this name, of any tag when it has none.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn find(&self, name: &Name) -> Result<Vec<InStore>> {
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let matches = |n: &Name| {
            same(n.host(), name.host())
                && same(n.namespace(), name.namespace())
                && same(&n.model, &name.model)
                && name.tag.as_ref().is_none_or(|t| same(t, n.tag()))
        };
        Ok(self.models()?.into_iter().filter(|m| matches(&m.name)).collect())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let dash = self.root.join("blobs").join(format!("sha256-{}", digest.hex()));
        let colon = self.root.join("blobs").join(format!("sha256:{}", digest.hex())); // as old versions wrote it
        if !dash.exists() && colon.exists() { colon } else { dash }
    }

    fn image(&self, model: &InStore) -> Result<Image> {
        let what = format!("{} in Ollama's store ({})", model.name, model.manifest.display());
        let text = read_small(&model.manifest, MANIFEST_BYTES_MAX)?
            .ok_or_else(|| Error::malformed(&what, "it was removed just now"))?;
        Image::parse(&text, &what)
    }

    /// Opens a model in place. Sizes are checked; digests are not, [`OllamaStore::verify`] does that.
    ///
    /// # Errors
    /// When a file is missing or has the wrong size, or the model needs what this engine does not do.
    pub fn open(&self, model: &InStore) -> Result<LocalModel> {
        let image = self.image(model)?;
        let again = || format!("run `ollama pull {}` again", model.name);
        let mut size = 0;
        for layer in &image.layers {
            let path = self.blob(&layer.digest);
            let found = match fs::metadata(&path) {
                Ok(meta) => format!("{} bytes", meta.len()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => "no file".into(),
                Err(e) => return Err(Error::io("read", &path, e)),
            };
            let expected = format!("{} bytes", layer.size);
            if found != expected {
                let what = format!("{} of {} in Ollama's store", path.display(), model.name);
                return Err(Error::Corrupt { what, expected, found, after: again() });
            }
            size += layer.size;
        }
        let text = |role: Role| -> Result<Option<String>> {
            match image.layers.iter().find(|l| l.role == role) {
                Some(layer) => read_small(&self.blob(&layer.digest), SIDE_TEXT_BYTES_MAX),
                None => Ok(None),
            }
        };
        let config = match &image.config {
            Some((digest, _)) => read_small(&self.blob(digest), MANIFEST_BYTES_MAX)?,
            None => None,
        };
        let name = model.name.to_string();
        Ok(LocalModel {
            path: self.blob(&image.weights().digest),
            store: Store::Ollama,
            source: format!("Ollama's store at {}", self.root.display()),
            digest: Some(image.weights().digest),
            size,
            precision: config.as_deref().and_then(precision),
            licence: text(Role::Licence)?.as_deref().and_then(licence_line),
            template: text(Role::Template)?,
            system: text(Role::System)?,
            params: text(Role::Params)?.map(|t| parse_params(&t, &name)).transpose()?,
            substitute_for: None,
            notes: image.notes,
            name,
        })
    }

    /// Hashes the files of a model. Nothing is removed: the store is another program's.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first file that is wrong.
    pub fn verify(&self, model: &InStore, mut seen: impl FnMut(u64)) -> Result<()> {
        for layer in self.image(model)?.layers {
            let path = self.blob(&layer.digest);
            let found = digest_file(&path, Some(&layer.digest), &mut seen)?;
            if found != layer.digest {
                let what = format!("{} of {} in Ollama's store", path.display(), model.name);
                let after = format!("run `ollama pull {}` again", model.name);
                return Err(Error::corrupt_digest(what, &layer.digest, &found, &after));
            }
        }
        Ok(())
    }
}
