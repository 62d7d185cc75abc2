//! `--lora`: an adapter's file, how strongly it works, and what `inspect` says of one.

use std::path::{Path, PathBuf};

use anyhow::Result;
use quarrel_engine::Handle;
use quarrel_formats::Source;
use quarrel_hub::human_bytes;
use quarrel_model::lora;

use crate::render;

/// What requests call the adapter of `--lora`.
const NAME: &str = "lora";

/// An adapter to answer with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lora {
    path: PathBuf,
    scale: f32,
}

/// `PATH` or `PATH=SCALE`.
pub(crate) fn parse(text: &str) -> Result<Lora, String> {
    let (path, scale) = match text.rsplit_once('=') {
        // A file's name may have the sign too.
        Some((path, scale)) if !Path::new(text).exists() => {
            let number = scale.parse::<f32>().ok().filter(|s| s.is_finite());
            (path, number.ok_or_else(|| format!("the scale {scale:?} is not a number"))?)
        }
        _ => (text, 1.0),
    };
    if path.is_empty() {
        return Err("a path is needed".into());
    }
    Ok(Lora { path: path.into(), scale })
}

impl Lora {
    /// Bytes that it will take; an error if it is no adapter, before a model is loaded for it.
    pub(crate) fn bytes(&self) -> Result<u64> {
        Ok(4 * lora::read(&Source::open_adapter(&self.path)?)?.parameters() as u64)
    }

    /// Loads it and gives the name that requests choose it by.
    pub(crate) fn load(&self, handle: &Handle) -> Result<String> {
        let info = handle.load_adapter(NAME, &self.path, self.scale)?;
        render::detail(format!(
            "adapter {}: rank {}, {} matrices, {}",
            info.path,
            span(info.rank),
            info.targets,
            human_bytes(info.bytes as u64)
        ));
        Ok(info.name)
    }
}

/// Opens a path that is an adapter's directory.
pub(crate) fn directory(path: &str) -> Option<Result<Source>> {
    let path = Path::new(path);
    let is = path.join("adapter_config.json").is_file() && !path.join("config.json").exists();
    is.then(|| Ok(Source::open_adapter(path)?))
}

/// One line on what an adapter is; nothing of a model.
pub(crate) fn describe(source: &Source) -> Result<Option<String>> {
    if !lora::is_adapter(source) {
        return Ok(None);
    }
    let lora = lora::read(source)?;
    let arch = lora.arch.map(|a| format!(" for {}", a.gguf)).unwrap_or_default();
    let base = lora.base.as_ref().map(|b| format!(", trained on {b}")).unwrap_or_default();
    let scales = lora.targets.iter().map(|t| t.scale);
    let (low, high) = scales.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), s| (l.min(s), h.max(s)));
    let scale = if low == high { format!("{low}") } else { format!("{low} to {high}") };
    Ok(Some(format!(
        "LoRA adapter ({}){arch}{base}: rank {}, scale {scale}, {} matrices; use it with --lora beside its model",
        lora.format,
        span(lora.ranks()),
        lora.targets.len()
    )))
}

fn span((low, high): (usize, usize)) -> String {
    if low == high { low.to_string() } else { format!("{low} to {high}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_and_without_a_scale() {
        let lora = |path: &str, scale| Ok(Lora { path: path.into(), scale });
        assert_eq!(parse("a/b.gguf"), lora("a/b.gguf", 1.0));
        assert_eq!(parse("a/b.gguf=0.5"), lora("a/b.gguf", 0.5));
        assert_eq!(parse("a=b=-2"), lora("a=b", -2.0));
        for wrong in ["a=b", "a=", "=1", "", "a=inf", "a=NaN"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("x=y");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(parse(odd.to_str().unwrap()), lora(odd.to_str().unwrap(), 1.0));
    }
}
