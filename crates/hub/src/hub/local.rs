//! Models at paths that the user gave.

use std::path::{Path, PathBuf};

use super::suggest::near;
use super::{LocalModel, Store};
use crate::cache::read_dir;
use crate::error::{Candidate, Error, Result};
use crate::quant;

/// A model at a path: a file, or a directory with `config.json`, or a directory with one GGUF.
pub(super) fn local_path(path: &Path) -> Result<LocalModel> {
    let bad = |why: &str| Error::BadPath { path: path.into(), why: why.into() };
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(bad(&missing(path))),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let file = if meta.is_dir() { in_directory(path)? } else { path.to_path_buf() };
    let size = std::fs::metadata(&file).map_err(|e| Error::io("open", &file, e))?.len();
    if size == 0 {
        return Err(bad("the file is empty"));
    }
    Ok(LocalModel {
        name: file.display().to_string(),
        store: Store::Path,
        source: file.display().to_string(),
        digest: None,
        size,
        precision: file.file_name().and_then(|n| quant::in_name(&n.to_string_lossy())),
        licence: None,
        template: None,
        system: None,
        params: None,
        substitute_for: None,
        notes: Vec::new(),
        path: file,
    })
}

fn missing(path: &Path) -> String {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        return format!("no such file, and no directory {}", dir.display());
    }
    let there = read_dir(dir).unwrap_or_default();
    let names: Vec<_> = there.iter().filter_map(|p| p.file_name()?.to_str()).collect();
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    match &near(&wanted, names.into_iter())[..] {
        [] => "no such file".into(),
        like => format!("no such file; {} has {}", dir.display(), like.join(" and ")),
    }
}

fn in_directory(dir: &Path) -> Result<PathBuf> {
    if dir.join("config.json").is_file() {
        return Ok(dir.into());
    }
    let later_part = |p: &Path| {
        let name = p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        name.rsplit_once("-of-").is_some_and(|(head, _)| {
            head.rsplit('-').next().is_some_and(|n| n.trim_start_matches('0') != "1")
        })
    };
    let ggufs: Vec<_> = read_dir(dir)?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && !later_part(p))
        .collect();
    match &ggufs[..] {
        [one] => Ok(one.clone()),
        [] => Err(Error::BadPath {
            path: dir.into(),
            why: "the directory has neither config.json nor a .gguf file".into(),
        }),
        many => Err(Error::Ambiguous {
            name: dir.display().to_string(),
            candidates: many
                .iter()
                .map(|p| Candidate {
                    name: p.display().to_string(),
                    detail: std::fs::metadata(p).map_or(String::new(), |m| quant::human_bytes(m.len())),
                })
                .collect(),
        }),
    }
}
