//! From an opened model to a running engine: specification, Program, weights, thread.

use crate::{DraftConfig, DraftModel, Engine, EngineConfig, Error, Handle, Result};
use quarrel_formats::Source;
use quarrel_ir::Device;
use quarrel_model::{ModelSpec, decoder, weights};
use sha2::{Digest as _, Sha256};

/// The longest context that is taken without being asked for. KV blocks are reserved for the whole context, but a CPU's
/// pages come into being as they are written, so a long default costs address space only; 32,768 keeps that to a few GB for
/// an 8B model.
pub const CONTEXT_DEFAULT_MAX: usize = 32_768;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Longest sequence in tokens; `None` is the model's own context, at most [`CONTEXT_DEFAULT_MAX`]. More than the model
    /// was trained for is allowed when asked for.
    pub context: Option<usize>,
    /// Apply the fusion rewrites to the Program.
    pub fuse: bool,
    /// Keep the hidden states of all tokens, so that a decoder makes embeddings too; an encoder always does.
    pub hidden: bool,
    /// Of a model whose encoder reads the prompt the encoder alone, which makes embeddings and no answers.
    pub encoder: bool,
    /// Numbers of layers after which there are logits too, for [`crate::Dola`]: they are computed in each step, for all.
    pub exits: Vec<u32>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { context: None, fuse: true, hidden: false, encoder: false, exits: Vec::new() }
    }
}

/// A model that runs.
pub struct Loaded {
    /// The engine.
    pub handle: Handle,
    /// What it runs.
    pub spec: ModelSpec,
}

/// What tells a model from all others: names, types, shapes, and of each tensor's bytes the first, middle and last 4 KiB. All
/// of them would take longer than computing a prompt, and no training leaves so many of them as they were.
pub fn identity(source: &Source) -> [u8; 32] {
    const PART: usize = 4096;
    let mut hash = Sha256::new();
    let mut tensors: Vec<_> = source.tensors().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    for t in tensors {
        hash.update(format!("{} {:?} {:?}\n", t.name, t.dtype, t.shape));
        let n = t.data.len();
        for at in [0, n / 2, n.saturating_sub(PART)] {
            hash.update(&t.data[at..n.min(at + PART)]);
        }
    }
    if let Some(metadata) = source.metadata() {
        // Among others the angles of the rotations.
        metadata.iter().for_each(|(key, value)| hash.update(format!("{key} {value:?}\n")));
    }
    source.config().into_iter().for_each(|c| hash.update(c.to_string()));
    hash.finalize().into()
}

/// Most exits of an engine.
const EXITS_MAX: usize = 32;

/// Refuses a model whose decoder answers an encoder, where one is to guess for another.
fn one_stack(spec: ModelSpec) -> Result<ModelSpec> {
    match spec.source {
        None => Ok(spec),
        Some(_) => Err(Error::Unsuited {
            what: "a draft model",
            why: "this one answers a source, which a draft has none of",
        }),
    }
}

fn check_exits(exits: &[u32], spec: &ModelSpec) -> Result<()> {
    let fault = |value: String, range| Err(Error::Field { field: "exits", value, range });
    if exits.len() > EXITS_MAX {
        return fault(format!("{} layers", exits.len()), "32 layers at most");
    }
    match exits.iter().find(|e| **e as usize > spec.layers.len()) {
        Some(e) => fault(e.to_string(), "at most the number of the model's layers"),
        None if exits.is_empty() || spec.arch.causal => Ok(()),
        None => fault("given".into(), "left out: this model is an encoder and has no logits"),
    }
}

impl Engine {
    /// Loads the weights of `source` into `device` and starts an engine. `configure` may change the sizes that follow from
    /// the options; `progress` is called with the bytes of each weight taken in.
    pub fn load(
        source: &Source,
        device: Box<dyn Device>,
        options: &LoadOptions,
        configure: impl FnOnce(&mut EngineConfig),
        progress: impl FnMut(u64),
    ) -> Result<Loaded> {
        Engine::load_with_draft(source, device, options, None, configure, progress)
    }

    /// [`Engine::load`] with a draft model; see [`Engine::start_with_draft`].
    pub fn load_with_draft(
        source: &Source,
        mut device: Box<dyn Device>,
        options: &LoadOptions,
        draft: Option<DraftModel>,
        configure: impl FnOnce(&mut EngineConfig),
        progress: impl FnMut(u64),
    ) -> Result<Loaded> {
        let spec = quarrel_model::spec(source)?.to_run(options.encoder);
        check_exits(&options.exits, &spec)?;
        let context = options.context.unwrap_or((spec.context as usize).min(CONTEXT_DEFAULT_MAX));
        let mut config = EngineConfig::new(context);
        if !spec.arch.causal || spec.source.is_some() {
            config.step_tokens = config.step_tokens.max(context);
        }
        configure(&mut config);
        config.exits = options.exits.len();
        if config.disk_cache.is_some() && config.identity.is_none() {
            config.identity = Some(identity(source));
        }
        let context = u32::try_from(config.context).ok();
        let (fuse, hidden, exits) = (options.fuse, options.hidden, options.exits.clone());
        let program = decoder::decoder(&spec, &decoder::Options { fuse, hidden, exits, context });
        let loaded = weights::load(source, &spec, &program, &mut *device, progress)?;
        let handle = Engine::start_model(device, program, &loaded, config, draft, Some(spec.clone()))?;
        Ok(Loaded { handle, spec })
    }
}

impl DraftModel {
    /// Loads the weights of `source` into `device`.
    pub fn load(source: &Source, device: Box<dyn Device>, config: DraftConfig) -> Result<DraftModel> {
        DraftModel::load_spec(source, &one_stack(quarrel_model::spec(source)?)?, device, config)
    }

    /// The first `layers` layers of a model as a model of its own, with the last norm and the head after them: an early exit.
    /// It guesses for the whole model, or is its amateur, as the premature layer of DoLa (Chuang et al. 2024) is.
    pub fn load_exit(
        source: &Source,
        layers: usize,
        device: Box<dyn Device>,
        config: DraftConfig,
    ) -> Result<DraftModel> {
        DraftModel::load_spec(source, &DraftModel::exit_spec(source, layers)?, device, config)
    }

    /// What [`Self::load_exit`] loads.
    pub fn exit_spec(source: &Source, layers: usize) -> Result<ModelSpec> {
        let mut spec = one_stack(quarrel_model::spec(source)?)?;
        if layers == 0 || layers > spec.layers.len() {
            let (field, value) = ("exit_layers", layers.to_string());
            return Err(Error::Field { field, value, range: "1 to the number of the model's layers" });
        }
        spec.layers.truncate(layers);
        Ok(spec)
    }

    fn load_spec(
        source: &Source,
        spec: &ModelSpec,
        mut device: Box<dyn Device>,
        config: DraftConfig,
    ) -> Result<DraftModel> {
        let options = decoder::Options { context: u32::try_from(config.context).ok(), ..Default::default() };
        let program = decoder::decoder(spec, &options);
        let loaded = weights::load(source, spec, &program, &mut *device, |_| {})?;
        DraftModel::new(device, program, &loaded, config)
    }
}
