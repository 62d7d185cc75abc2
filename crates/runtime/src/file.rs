//! Small JSON files beside a model.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Largest file that is read, in bytes.
const BYTES_MAX: u64 = 64 << 20;

/// Its bytes.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|f| f.take(BYTES_MAX + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > BYTES_MAX {
        bail!("{} is longer than {} MiB, which no such file is", path.display(), BYTES_MAX >> 20);
    }
    Ok(bytes)
}

/// Its value.
pub(crate) fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&bytes(path)?).with_context(|| format!("{} is not JSON", path.display()))
}
