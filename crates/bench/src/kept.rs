//! Lists in files of the user's cache: what was measured once and need not be again.

use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// Entries that a file keeps; the oldest go first.
const KEPT: usize = 32;

/// What a file holds; nothing if it cannot be read.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Writes the last entries.
pub(crate) fn save<T: Serialize>(path: &Path, known: &[T]) -> Result<()> {
    let file = |what, source| Error::File { what, path: path.into(), source };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|e| file("create the directory of", e))?;
    }
    let known = &known[known.len().saturating_sub(KEPT)..];
    let text = serde_json::to_string_pretty(known).map_err(|e| file("write", e.into()))?;
    // Another process may read at any time, so the file appears whole.
    let whole = path.with_extension(format!("json.{}", std::process::id()));
    fs::write(&whole, text).map_err(|e| file("write", e))?;
    fs::rename(&whole, path).map_err(|e| file("write", e))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
