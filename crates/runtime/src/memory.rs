//! What a model will need of this machine's memory, before its weights are read, and the sizes chosen to fit.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quarrel_cpu::{CpuOptions, KvType, Stored, footprint, state_bytes};
use quarrel_engine::memory::{Fitted, Need, fit};
use quarrel_engine::{CONTEXT_DEFAULT_MAX, DraftConfig, DraftModel, EngineConfig};
use quarrel_formats::Source;
use quarrel_hub::human_bytes;
use quarrel_ir::{BLOCK_TOKENS, Device, Limits, Program};
use quarrel_model::{ModelSpec, decoder, weights};

use crate::devices::{Chosen, cuda_kv};
use crate::load::EngineOptions;
use crate::{Opened, Talk, process};

/// What the program still takes between reading a header and answering: code that has not run yet, stacks, small buffers.
pub const PROGRAM_LATER: usize = 4 << 20;

/// The part of a budget that is kept back, because a plan is right within a few percent and a budget is a promise: 1 / 40.
const RESERVE: u64 = 40;

/// How a model will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Sequences at once, each with a cache of full length.
    pub batch: usize,
    /// Rows of logits in a step.
    pub outputs: usize,
    /// Tokens guessed ahead in a step.
    pub guesses: usize,
    /// Room in the cache of all sequences together.
    pub pool: Pool,
    /// Blocks of the cache beside it, for beams that branch off.
    pub spare: usize,
}

/// Tokens in the cache of all sequences together; a context's at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Every sequence has its full length.
    Full,
    /// 1,024 for each sequence, but no more than fit into half of the free memory. The prefix cache fills what is not in use,
    /// so a larger pool is memory that is taken for good.
    Fits,
    /// So many.
    Tokens(usize),
}

impl Use {
    /// One conversation.
    pub const ONE: Use = Use { batch: 1, outputs: 1, guesses: 0, pool: Pool::Full, spare: 0 };
    /// One text, each of whose tokens is scored.
    pub const SCORE: Use = Use { batch: 1, outputs: 64, ..Use::ONE };
}

/// What a model computes, and how its weights are stored.
struct Planned {
    program: Program,
    stored: Vec<Vec<Stored>>,
}

impl Planned {
    fn new(source: &Source, spec: &ModelSpec, options: &decoder::Options) -> Result<Planned> {
        let mut program = decoder::decoder(spec, options);
        program.choose(quarrel_ir::candidates::COUNT); // as the engine does
        let stored = weights::headers(source, spec, &program)?
            .into_iter()
            .map(|w| w.into_iter().map(|(dtype, bytes, mapped)| Stored { dtype, bytes, mapped }).collect())
            .collect();
        Ok(Planned { program, stored })
    }
}

/// The memory of a model with given sizes.
pub struct Planner {
    model: Planned,
    /// The model that guesses for it.
    draft: Option<Planned>,
    /// What it is.
    pub spec: ModelSpec,
    /// The CPU but for the cache's type.
    options: CpuOptions,
    /// Where it will be computed.
    pub chosen: Chosen,
    /// Why not where it might have been.
    note: Option<String>,
    /// Bytes of this process without weights.
    pub program_bytes: usize,
}

impl Planner {
    /// Reads the header; the process as it is now counts as the program.
    pub fn new(opened: &Opened, args: &EngineOptions) -> Result<Planner> {
        let spec = quarrel_model::spec(&opened.source)?.to_run(args.encoder);
        let exits = args.exits.as_ref().map_or_else(Vec::new, |e| e.layers(&spec));
        let options = decoder::Options { hidden: args.embeddings, exits, ..decoder::Options::default() };
        let model = Planned::new(&opened.source, &spec, &options)?;
        let bytes = model.stored.iter().flatten().map(|s| s.bytes).sum();
        let (chosen, note) = Chosen::new(args.device, bytes, args.deterministic)?;
        let program_bytes = process::rss_bytes().unwrap_or(32 << 20) as usize + PROGRAM_LATER;
        let options =
            CpuOptions { threads: args.threads.map(usize::from), isa: args.isa, ..CpuOptions::default() };
        Ok(Planner { model, draft: None, spec, options, chosen, note, program_bytes })
    }

    /// Counts the model that guesses for this one, too: `draft`, or its own first layers.
    pub fn with_draft(self, opened: &Opened, draft: Option<&Opened>, layers: Option<u32>) -> Result<Planner> {
        let (source, spec) = match (draft, layers) {
            (Some(draft), _) => (&draft.source, quarrel_model::spec(&draft.source)?),
            (None, Some(n)) => (&opened.source, DraftModel::exit_spec(&opened.source, n as usize)?),
            (None, None) => return Ok(self),
        };
        let draft = Some(Planned::new(source, &spec, &decoder::Options::default())?);
        Ok(Planner { draft, ..self })
    }

    /// Starts the device.
    pub fn start(&self, kv: KvType) -> Result<Box<dyn Device>> {
        self.chosen.start(self.options, kv)
    }

    /// Bytes of the device's memory by part, for the sizes of an engine, without a draft model's.
    pub fn parts(&self, config: &EngineConfig, kv: KvType) -> quarrel_engine::Result<Vec<Part>> {
        let limits = Limits {
            rows: config.step_tokens,
            outputs: config.step_outputs,
            kv_blocks: config.kv_blocks.unwrap_or(config.context.div_ceil(BLOCK_TOKENS)),
        };
        let mut parts = self.parts_of(&self.model, &limits, config.max_running, kv)?;
        let each = state_bytes(&self.model.program);
        if self.chosen == Chosen::Cpu && each > 0 {
            let copies = config.snapshots(each) * each; // at most `snapshot_bytes`
            parts.push(Part::new(Kind::Working, "snapshots", "copies of states, all taken", copies));
        }
        Ok(parts)
    }

    fn parts_of(
        &self,
        Planned { program, stored }: &Planned,
        limits: &Limits,
        max_running: usize,
        kv: KvType,
    ) -> quarrel_engine::Result<Vec<Part>> {
        let Chosen::Cuda { caps, deterministic, .. } = &self.chosen else {
            let f = footprint(program, stored, limits, &CpuOptions { kv, ..self.options })?;
            let mut parts = vec![
                Part::new(Kind::Weights, "weights_packed", "weights, packed", f.packed),
                Part::new(Kind::Weights, "weights_mapped", "weights, mapped", f.mapped),
                Part::new(Kind::Weights, "weights_f32", "vectors, as f32", f.vectors),
                Part::new(Kind::Kv, "kv", "KV cache, when full", f.kv),
                Part::new(Kind::Working, "tables", "embedding rows in use", f.tables),
                Part::new(Kind::Working, "activations", "activations", f.activations),
                Part::new(Kind::Working, "logits", "logits", f.logits),
                Part::new(Kind::Working, "prepared", "prepared activations", f.prepared),
                Part::new(Kind::Working, "scratch", "scratch of the threads", f.scratch),
            ];
            let states = state_bytes(program).saturating_mul(max_running);
            if states > 0 {
                parts.push(Part::new(Kind::Working, "states", "states of the sequences", states));
            }
            return Ok(parts);
        };
        let types: Vec<Vec<_>> = stored.iter().map(|w| w.iter().map(|s| s.dtype).collect()).collect();
        let kv = cuda_kv(kv).unwrap_or_default(); // others were refused before
        let f = quarrel_cuda::footprint(program, &types, limits, caps, kv, *deterministic)?;
        Ok(vec![
            Part::new(Kind::Weights, "weights", "weights", f.weights),
            Part::new(Kind::Weights, "tables", "embedding table beside its matrix", f.tables),
            Part::new(Kind::Kv, "kv", "KV cache", f.kv),
            Part::new(Kind::Working, "activations", "activations", f.activations),
            Part::new(Kind::Working, "logits", "logits", f.logits),
            Part::new(Kind::Working, "scratch", "scratch of the kernels", f.scratch),
        ])
    }

    fn need(&self, config: &EngineConfig, kv: KvType) -> quarrel_engine::Result<Need> {
        let mut parts = self.parts(config, kv)?;
        if let Some(draft) = &self.draft {
            parts.extend(self.parts_of(draft, &DraftConfig::beside(config).limits(), 0, kv)?);
        }
        let of = |kind| parts.iter().filter(|p| p.kind == kind).map(|p| p.bytes).sum();
        // What a GPU's driver takes for itself is gone from the free memory already.
        let program = if self.chosen == Chosen::Cpu { self.program_bytes } else { 0 };
        Ok(Need { weights: of(Kind::Weights), kv: of(Kind::Kv), working: of(Kind::Working), program })
    }

    /// Bytes that may be taken where the model is computed.
    fn available(&self) -> Option<usize> {
        match &self.chosen {
            Chosen::Cpu => available(),
            Chosen::Cuda { free, .. } => Some(*free),
        }
    }
}

/// What a part of the memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Weights,
    Kv,
    Working,
}

/// A part of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    kind: Kind,
    /// For programs.
    pub id: &'static str,
    /// For people.
    pub name: &'static str,
    /// How much.
    pub bytes: usize,
}

impl Part {
    fn new(kind: Kind, id: &'static str, name: &'static str, bytes: usize) -> Part {
        Part { kind, id, name, bytes }
    }
}

/// Bytes of copies of states for each sequence that may run, where they are more than what one is given.
const SNAPSHOT_BYTES_EACH: usize = 64 << 20;

/// Tokens of a step on a GPU: its products want many rows at once.
pub const GPU_STEP_TOKENS: usize = 2048;

/// The sizes and the options of the device.
pub type Sizes = Fitted<KvType>;

/// Chooses the sizes: those asked for, or smaller ones where a budget wants it. Refuses what cannot work here.
pub fn sizes(
    opened: &Opened,
    planner: &Planner,
    args: &EngineOptions,
    usage: Use,
    talk: Talk,
) -> Result<Sizes> {
    let trained = planner.spec.context as usize;
    let own = opened.local.params.as_ref().and_then(|p| p.get("num_ctx")?.as_u64()).map(|n| n as usize);
    let context = args
        .ctx
        .map(|c| c as usize)
        .or(own.map(|c| c.min(trained)))
        .unwrap_or(trained.min(CONTEXT_DEFAULT_MAX))
        .max(2);
    // A table of positions has no more of them.
    let context = match planner.model.program.positions() {
        Some(most) if context > most => {
            (talk.note)(&format!("{} has a context of {most} tokens and no more", opened.local.name));
            most
        }
        _ => context,
    };
    let mut config = EngineConfig::new(context);
    config.max_running = usage.batch;
    config.guesses = usage.guesses;
    config.step_outputs = usage.outputs.max(usage.batch) + usage.guesses;
    if planner.chosen != Chosen::Cpu {
        args.kv.map(cuda_kv).transpose()?;
        config.step_tokens = config.step_tokens.max(GPU_STEP_TOKENS);
    }
    if let Some(note) = &planner.note {
        (talk.note)(note);
    }
    config.step_tokens = config.step_tokens.min(context.saturating_mul(usage.batch)).max(usage.batch + 1);
    config.states = !planner.model.program.states.is_empty();
    config.snapshot_bytes = match args.state_cache {
        Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        None => config.snapshot_bytes.max(usage.batch.saturating_mul(SNAPSHOT_BYTES_EACH)),
    };
    // An encoder's texts are whole in a step; short ones share it.
    config.whole = planner.model.program.looks_ahead();
    if config.whole || planner.model.program.source_ops() > 0 {
        config.step_tokens = EngineConfig::new(context).step_tokens.max(context).max(usage.batch + 1);
    }
    if usage.batch > 1 {
        let full = context.saturating_mul(usage.batch);
        let tokens = match usage.pool {
            Pool::Full => full,
            Pool::Tokens(n) => n,
            Pool::Fits => {
                let one = planner.need(&config, kv_types(args.kv, &planner.chosen)[0])?;
                let room = planner.available().map_or(full, |free| {
                    let rest = (free / 2).saturating_sub(one.total() - one.kv);
                    rest / (one.kv / context).max(1)
                });
                room.min(full).min(usage.batch.saturating_mul(1024))
            }
        };
        config.kv_blocks = Some(tokens.max(context).div_ceil(BLOCK_TOKENS) + usage.spare);
    }
    let kv = kv_types(args.kv, &planner.chosen);
    let need = |config: &EngineConfig, kv| planner.need(config, kv);
    let asked = need(&config, kv[0])?;
    if let Some(budget) = args.memory_budget {
        let usable = usize::try_from(budget - budget / RESERVE)?;
        let fitted = fit(&config, &kv, args.ctx.is_some(), usable, need).with_context(|| {
            let budget = human_bytes(budget);
            format!("{} does not fit into {budget}, a fortieth of it kept back", opened.local.name)
        })?;
        if (&fitted.config, fitted.kv) != (&config, kv[0]) {
            let copies = human_bytes(fitted.config.snapshot_bytes as u64);
            let copies =
                if config.states { format!(", copies of states up to {copies}") } else { String::new() };
            (talk.note)(&format!(
                "to fit {} into {}: context {}, {} at once, steps of {} tokens, cache in {}{copies}; needs {}",
                opened.local.name,
                human_bytes(budget),
                fitted.config.context,
                fitted.config.max_running,
                fitted.config.step_tokens,
                fitted.kv.name(),
                human_bytes(fitted.need.total() as u64)
            ));
        }
        return Ok(fitted);
    }
    let fitted = Fitted { config, kv: kv[0], need: asked };
    if let Some(available) = planner.available() {
        check_available(&fitted, args.ctx.is_some(), available, talk, need)
            .with_context(|| format!("{} does not fit into this machine's free memory", opened.local.name))?;
    }
    Ok(fitted)
}

/// The type asked for, or the default, and those that a budget may make of it. Without a word about it precision may go down
/// to 4 bits; f32, which is for comparisons, becomes the default; any other type that was asked for stays.
fn kv_types(asked: Option<KvType>, chosen: &Chosen) -> Vec<KvType> {
    match asked {
        None if *chosen != Chosen::Cpu => vec![KvType::F16],
        None => vec![KvType::F16, KvType::Q8_0, KvType::Q4_0],
        Some(KvType::F32) => vec![KvType::F32, KvType::F16],
        Some(kv) => vec![kv],
    }
}

/// Without a budget: what can never fit is refused; a cache that will not fit when it is full is only mentioned, because it
/// grows with use.
fn check_available(
    asked: &Sizes,
    fixed: bool,
    available: usize,
    talk: Talk,
    need: impl Fn(&EngineConfig, KvType) -> quarrel_engine::Result<Need>,
) -> Result<()> {
    if asked.need.total() <= available {
        return Ok(());
    }
    let one = EngineConfig { max_running: 1, step_outputs: 1, ..asked.config.clone() };
    fit(&one, &[asked.kv], fixed, available, need)
        .context("choose a smaller model or less context (--ctx, --memory-budget)")?;
    (talk.note)(&format!(
        "a full context of {} tokens needs {}, and {} are free; --memory-budget chooses sizes that fit",
        asked.config.context,
        human_bytes(asked.need.total() as u64),
        human_bytes(available as u64)
    ));
    Ok(())
}

/// Bytes that this process may still take before the system kills or swaps: of the machine, and of every control group
/// around the process. File pages that can be dropped count as free. What the process has already counts too.
fn available() -> Option<usize> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo".into()).and_then(|t| meminfo_available(&t));
    let group = read("/proc/self/cgroup".into()).map(|t| cgroup_dirs(&t)).unwrap_or_default();
    let groups = group.iter().filter_map(|dir| {
        let number = |name: &str| read(dir.join(name)).and_then(|t| t.trim().parse::<u64>().ok());
        let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
        let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
        let stat = read(dir.join("memory.stat")).unwrap_or_default();
        Some(limit.saturating_sub(used.saturating_sub(file_pages(&stat))))
    });
    let free = machine.into_iter().chain(groups).min()?;
    usize::try_from(free.saturating_add(process::rss_bytes().unwrap_or(0))).ok()
}

/// `MemAvailable` of /proc/meminfo.
fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The directories of the process's control group and of those around it, versions 1 and 2.
fn cgroup_dirs(text: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut dirs = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => root.to_path_buf(),
            c if c.split(',').any(|c| c == "memory") => root.join("memory"),
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        dirs.extend(path.ancestors().map(|p| root.join(p)));
    }
    dirs
}

/// Bytes of file pages in a `memory.stat`.
fn file_pages(text: &str) -> u64 {
    let of = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
    ["inactive_file ", "active_file "].into_iter().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_of_the_cache_that_was_asked_for_is_kept() {
        assert_eq!(kv_types(None, &Chosen::Cpu), [KvType::F16, KvType::Q8_0, KvType::Q4_0]);
        assert_eq!(kv_types(Some(KvType::F32), &Chosen::Cpu), [KvType::F32, KvType::F16]);
        for kv in [KvType::F16, KvType::BF16, KvType::Q8_0, KvType::Q4_0] {
            assert_eq!(kv_types(Some(kv), &Chosen::Cpu), [kv]);
        }
    }

    #[test]
    fn what_the_system_says_is_free() {
        assert_eq!(meminfo_available("MemTotal: 10 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo_available("MemTotal: 10 kB\n"), None);
        let dirs = |t: &str| cgroup_dirs(t).iter().map(|d| d.display().to_string()).collect::<Vec<_>>();
        assert_eq!(dirs("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup/"]);
        assert_eq!(dirs("3:cpu:/x\n2:memory:/x\n"), ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory/"]);
        assert_eq!(file_pages("anon 5\ninactive_file 3\nactive_file 4\n"), 7);
    }

    #[test]
    fn a_model_too_large_is_refused_and_a_context_too_large_is_not() {
        let need = |c: &EngineConfig, _| {
            Ok(Need { weights: 1000, kv: c.context, working: c.step_tokens, program: 0 })
        };
        let asked = |context| {
            let config = EngineConfig { max_running: 1, step_outputs: 1, ..EngineConfig::new(context) };
            Fitted { need: need(&config, KvType::F16).unwrap(), config, kv: KvType::F16 }
        };
        for (context, fixed, available, fine) in [
            (4096, false, 10_000, true),
            (4096, false, 2000, true),
            (4096, true, 2000, false),
            (4096, false, 1500, false),
        ] {
            let got = check_available(
                &asked(context),
                fixed,
                available,
                Talk { note: |_| {}, detail: |_| {} },
                need,
            );
            assert_eq!(got.is_ok(), fine, "{context} {fixed} {available}");
            if let Err(e) = got {
                assert!(format!("{e:#}").contains("weights 0.0 MB"), "{e:#}");
            }
        }
    }
}
