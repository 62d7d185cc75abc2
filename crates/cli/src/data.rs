//! Where what users made is kept: conversations and keys.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The folder that was asked for, or the system's place for a user's data.
pub(crate) fn data_dir(asked: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = asked {
        return Ok(dir);
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_DATA_HOME")
        .or_else(|| set("LOCALAPPDATA"))
        .or_else(|| set("HOME").map(|h| h.join(".local/share")))
        .context(
            "no folder for user data is known (HOME is not set); name one with --data, or give --no-store",
        )?;
    Ok(base.join("quarrel"))
}
