//! From an opened model to an engine that runs it, with sizes that fit.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use quarrel_cpu::{Isa, KvType};
use quarrel_engine::{DiskCache, DraftConfig, DraftModel, Engine, EngineConfig, Handle, LoadOptions};
use quarrel_model::ModelSpec;

use crate::devices::Place;
use crate::memory::{self, Planner, Use};
use crate::{Embeddings, Exits, Opened, Talk};

/// How a model is held and computed; what is not said is chosen.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Where to compute.
    pub device: Place,
    /// The same bytes whatever the load, on a GPU too; the CPU always gives them.
    pub deterministic: bool,
    /// Tokens of context, prompt and answer together; else the model's, at most 32,768.
    pub ctx: Option<u32>,
    /// Threads; else one for each physical core.
    pub threads: Option<u16>,
    /// Most bytes to take.
    pub memory_budget: Option<u64>,
    /// Type of the KV cache; else f16.
    pub kv: Option<KvType>,
    /// The processor's instructions; else what the CPU device detects.
    pub isa: Option<Isa>,
    /// Longest step while somebody waits for a token.
    pub target_itl: Option<Duration>,
    /// Bytes of memory for blocks of the cache that the device has no room for.
    pub host_cache: u64,
    /// Where the prefix cache survives the process.
    pub disk_cache: Option<DiskCache>,
    /// Most bytes of copies of states, of a model that has them; else 256 MiB, or 64 MiB for each sequence if that is more.
    pub state_cache: Option<u64>,
    /// Keep the hidden states, so that a decoder makes embeddings too.
    pub embeddings: bool,
    /// Of a model whose encoder reads the prompt the encoder alone, for embeddings and no answers.
    pub encoder: bool,
    /// Layers after which there are logits too, to contrast with.
    pub exits: Option<Exits>,
    /// The model's own first layers take the place of a draft model.
    pub exit_layers: Option<u32>,
}

/// The engine of a model.
pub struct Running {
    /// The engine.
    pub handle: Handle,
    /// What it runs.
    pub spec: ModelSpec,
    /// Context that the model was trained for, in tokens.
    pub trained: usize,
    /// How it makes embeddings.
    pub embeddings: Embeddings,
    /// How long it took to load.
    pub load: Duration,
}

/// A model that guesses for another: see [`Opened::drafted_by`].
#[derive(Clone, Copy)]
pub struct Draft<'a>(&'a Opened);

impl Opened {
    /// Loads the weights, with the sizes that options and memory allow. `extra` bytes of the budget are kept for what is
    /// loaded later, `draft` is a smaller model that guesses tokens ahead, and `progress` gets the bytes of each weight.
    pub fn load(
        &self,
        options: &EngineOptions,
        usage: Use,
        draft: Option<Draft>,
        extra: u64,
        talk: Talk,
        progress: impl FnMut(u64),
    ) -> Result<Running> {
        let started = Instant::now();
        let memory_budget = options.memory_budget.map(|b| b.saturating_sub(extra));
        let options = &EngineOptions { memory_budget, ..options.clone() };
        let draft = draft.map(|d| d.0);
        let planner = Planner::new(self, options)?.with_draft(self, draft, options.exit_layers)?;
        let sizes = memory::sizes(self, &planner, options, usage, talk)?;
        let trained = planner.spec.context as usize;
        let context = sizes.config.context;
        if context > trained {
            (talk.note)(&format!(
                "a context of {context} tokens is more than the {trained} the model was trained for"
            ));
        }
        let device = planner.start(sizes.kv)?;
        let beside = DraftConfig::beside(&sizes.config);
        let draft = match (draft, options.exit_layers) {
            (Some(draft), _) => Some(DraftModel::load(&draft.source, planner.start(sizes.kv)?, beside)?),
            (None, Some(layers)) => {
                let device = planner.start(sizes.kv)?;
                Some(DraftModel::load_exit(&self.source, layers as usize, device, beside)?)
            }
            (None, None) => None,
        };
        let info = device.info();
        let cores = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
        if info.threads > cores {
            (talk.note)(&format!("{} threads on {cores} processors are slower than {cores}", info.threads));
        }
        (talk.detail)(&format!("device {} ({}), {} threads", info.name, info.description, info.threads));
        let exits = options.exits.as_ref().map_or_else(Vec::new, |e| e.layers(&planner.spec));
        let load = LoadOptions {
            context: Some(context),
            hidden: options.embeddings,
            encoder: options.encoder,
            exits,
            ..LoadOptions::default()
        };
        let has_states = sizes.config.states;
        let configure = |c: &mut EngineConfig| {
            *c = sizes.config;
            c.target_itl = options.target_itl;
            c.host_cache = usize::try_from(options.host_cache).unwrap_or(usize::MAX);
            c.disk_cache.clone_from(&options.disk_cache);
        };
        let loaded = Engine::load_with_draft(&self.source, device, &load, draft, configure, progress)?;
        let handle = loaded.handle;
        if !handle.info().tiers && (options.host_cache > 0 || options.disk_cache.is_some()) {
            (talk.note)(&format!(
                "host-cache and disk-cache hold nothing of {}: {}",
                self.local.name,
                match has_states {
                    true => "its sequences have states, which stay on the device (state-cache)",
                    false => "no prefixes of its texts are shared",
                }
            ));
        }
        (talk.detail)(&format!(
            "context {} tokens, {} in memory, loaded in {:.2} s",
            handle.info().context,
            quarrel_hub::human_bytes(handle.info().device_bytes as u64),
            started.elapsed().as_secs_f64()
        ));
        let embeddings = self.embeddings(context)?;
        Ok(Running { handle, spec: loaded.spec, trained, embeddings, load: started.elapsed() })
    }

    /// Whether it makes vectors of texts and no tokens.
    pub fn is_encoder(&self) -> Result<bool> {
        Ok(!quarrel_model::spec(&self.source)?.arch.causal)
    }

    /// Whether its encoder reads the prompt, and its decoder answers it.
    pub fn reads_source(&self) -> bool {
        quarrel_model::reads_source(&self.source)
    }

    /// A smaller model as one that guesses for this one: its tokens must be this one's.
    pub fn drafted_by<'a>(&self, draft: &'a Opened) -> Result<Draft<'a>> {
        let (a, b) = (&self.tokenizer, &draft.tokenizer);
        let differs =
            |id: &u32| !matches!((a.token_bytes(*id), b.token_bytes(*id)), (Ok(a), Ok(b)) if a == b);
        let size = a.vocab_size();
        let (name, ours) = (&draft.local.name, &self.local.name);
        if size != b.vocab_size() {
            bail!("{name} cannot guess for {ours}: it has {} tokens instead of {size}", b.vocab_size());
        }
        match (0..size as u32).find(differs) {
            Some(id) => bail!("{name} cannot guess for {ours}: token {id} is another"),
            None => Ok(Draft(draft)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarrel_hub::{LocalModel, Store};
    use std::sync::Mutex;

    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

    /// Memory below the device holds nothing of a model with states, nor of one that shares no prefixes.
    #[test]
    fn caches_that_hold_nothing_are_told_of() {
        let note = |line: &str| SAID.lock().unwrap().push(line.to_string());
        let talk = Talk { note, detail: |_| {} };
        let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/../conform/goldens/");
        for (model, host_cache, told) in [
            ("tiny/granitehybrid/model.gguf", 1 << 20, Some("have states")),
            ("tiny/granitehybrid/model.gguf", 0, None),
            ("encdec/t5/model.gguf", 1 << 20, Some("no prefixes")),
            ("tiny/smollm2/model.gguf", 1 << 20, None),
        ] {
            let local = LocalModel {
                path: format!("{goldens}{model}").into(),
                name: model.into(),
                store: Store::Path,
                source: model.into(),
                digest: None,
                size: 0,
                precision: None,
                licence: None,
                template: None,
                system: None,
                params: None,
                substitute_for: None,
                notes: Vec::new(),
            };
            let opened = Opened::new(local, talk).unwrap();
            SAID.lock().unwrap().clear();
            let options = EngineOptions {
                ctx: Some(64),
                threads: Some(1),
                host_cache,
                state_cache: Some(1 << 20),
                ..EngineOptions::default()
            };
            let running = opened.load(&options, Use::ONE, None, 0, talk, |_| {}).unwrap();
            assert_eq!(running.handle.info().tiers, model.contains("smollm2"), "{model}");
            let said = SAID.lock().unwrap().iter().find(|l| l.contains("host-cache")).cloned();
            assert_eq!(said.is_some(), told.is_some(), "{model}: {said:?}");
            assert!(said.is_none_or(|s| told.is_some_and(|t| s.contains(t))), "{model}");
        }
    }
}
