//! What is on this machine: list, show, remove, verify.

use std::path::PathBuf;

use super::{Hub, Store};
use crate::cache::Removed;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// One model on this machine.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What to type for it.
    pub name: String,
    /// Whose directory it is in.
    pub store: Store,
    /// Bytes on disk.
    pub size: u64,
    /// The digest of its weights, where known.
    pub digest: Option<Digest>,
    /// Its precision, where known.
    pub precision: Option<String>,
    /// Where it came from.
    pub source: String,
    /// The file or directory.
    pub path: PathBuf,
}

/// What is known of a name.
#[derive(Debug, Clone)]
pub struct Info {
    /// The models on this machine that have it.
    pub here: Vec<Entry>,
}

impl Hub {
    /// Every model on this machine that a name can reach, ours first.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let ours = self.cache.manifests()?.into_iter().map(|m| Entry {
            name: m.full_name(),
            store: Store::Quarrel,
            size: m.size(),
            digest: m.weights().next().map(|f| f.digest),
            precision: m.precision.clone(),
            path: m.weights().next().map(|f| self.cache.blob(&f.digest)).unwrap_or_default(),
            source: m.source.clone(),
        });
        Ok(ours.collect())
    }

    /// Removes a model of ours.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove(&self, name: &str) -> Result<Removed> {
        match self.cache.manifests()?.into_iter().find(|m| m.full_name() == name) {
            Some(manifest) => self.cache.remove(&manifest),
            None => Err(Error::NoSuchModel { name: name.into(), suggestions: Vec::new() }),
        }
    }
}
