//! `quarrel bench`: what the machine can do and how much of it a model gets. The measuring is `quarrel-bench`'s.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quarrel_bench::child::{Child, Line};
use quarrel_bench::kv::{self, KvWork};
use quarrel_bench::load::{self, LoadWork, Slo};
use quarrel_bench::plan::{Peak, Plan};
use quarrel_bench::{
    Case, KV_ELEMENT_BYTES, Machine, ModelInfo, Rates, Report, Session, Turn, Wish, Work, against, check,
    latency, ops, plot, text,
};
use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_engine::{Engine, EngineConfig, Event, LoadOptions, Request, Sampling};
use quarrel_formats::Source;
use quarrel_hub::Config;
use quarrel_ir::{BLOCK_TOKENS, Device};
use quarrel_model::ModelSpec;

use quarrel_runtime::devices::{Chosen, Place};
use quarrel_runtime::memory::GPU_STEP_TOKENS;
use quarrel_runtime::process;
use quarrel_runtime::prompt as chat_format;

use crate::args::{Bench, BenchChild, EngineArgs, Kv};
use crate::failure::Interrupted;
use crate::interrupt::Answering;
use crate::render::{self, Out, Parts};
use crate::session;
use crate::{input, instructions, interrupt, models};

/// The question of a process that is started to see how long its first token takes.
const QUESTION: &str = "What is the capital of France?";

pub(crate) fn run(mut args: Bench) -> Result<()> {
    args.model = args.model.or_named(args.target.take());
    if let Some(kind) = args.child {
        return child(&args, kind);
    }
    interrupt::install()?;
    if args.speculate {
        return super::bench_speculate::run(&args);
    }
    if args.kv {
        return caches(&args);
    }
    if args.serve {
        return serve(&args);
    }
    let local = models::resolve(&args.model)?;
    let source = quarrel_runtime::open_source(&local.path)?;
    let bench = Prepared::new(&args, &shown(&local.name), &local.path, source)?;
    let report = bench.measure(&args).map_err(|e| match e.downcast_ref() {
        Some(quarrel_bench::Error::Stopped) => Interrupted.into(),
        _ => e,
    })?;
    let mut out = Out::new();
    match args.json {
        true => out.json(&report)?,
        false => out.text(&text::report(&report))?,
    }
    match &bench.baseline {
        Some(baseline) => verdict(baseline, &report),
        None => Ok(()),
    }
}

/// A model's name, of a path its last part: reports are kept and shown to others.
fn shown(name: &str) -> String {
    let path = Path::new(name);
    let file = path.file_name().filter(|_| path.exists()).map(|f| f.to_string_lossy().into_owned());
    file.unwrap_or_else(|| name.to_string())
}

/// The text on which types of the cache are compared, where none is given.
const ALICE: &str = include_str!("bench/alice.txt");

/// `--kv`: the types of the cache.
fn caches(args: &Bench) -> Result<()> {
    let text = args.file.as_deref().map(input::text_file).transpose()?;
    let opened = session::open(&args.model)?;
    let spec = quarrel_model::spec(&opened.source)?;
    let mut ids = chat_format::encode_prompt(&opened.tokenizer, text.as_deref().unwrap_or(ALICE))?;
    let context = spec.context as usize;
    if ids.len() > context {
        ids.truncate(context);
        render::note(format!("the model's context is {context} tokens, so the text ends there"));
    }
    let decode = args.decode.map_or(32, |n| n as usize).max(1);
    let depth = match args.depth.as_ref().and_then(|d| d.iter().max()) {
        Some(depth) => *depth as usize,
        None => context.saturating_sub(decode).min(4096),
    };
    let work = KvWork { ids, depth, decode, repeat: args.repeat as usize };
    let (isa, _) = instructions::choose(args.isa, args.fresh);
    let bar = render::steps(u64::from(args.repeat) + 2, "types of the cache");
    let name = shown(&opened.local.name);
    let report = kv::compare(&opened.source, &spec, (&name, &work), threads(args)?, isa, &mut |_| {
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    let mut out = Out::new();
    match args.json {
        true => out.json(&report),
        false => Ok(out.text(&kv::text(&report))?),
    }
}

/// `--serve`: the engine under load.
fn serve(args: &Bench) -> Result<()> {
    let local = models::resolve(&args.model)?;
    let source = quarrel_runtime::open_source(&local.path)?;
    let spec = quarrel_model::spec(&source)?;
    let l = &args.load;
    let work = LoadWork {
        prompt: args.prompt.map_or(100, |n| n as usize).max(1),
        answer: args.decode.map_or(128, |n| n as usize).max(1),
        streams: l.streams.0.clone(),
        rounds: args.repeat as usize,
        rates: l.rates.iter().flatten().map(|r| f64::from(*r)).collect(),
        seconds: l.seconds.into(),
        slo: Slo { ttft_ms: l.slo_ttft_ms.into(), itl_ms: l.slo_itl_ms.into() },
        long_prompt: l.long_prompt as usize,
        soak: l.soak as usize,
        seed: l.seed,
        vocab: spec.vocab as usize,
    };
    let name = shown(&local.name);
    let model = ModelInfo::new(&name, &source, &spec);
    let (chosen, note) = Chosen::new(args.device, model.weight_bytes as usize, args.deterministic)?;
    note.iter().for_each(render::note);
    let (isa, place) = match &chosen {
        Chosen::Cpu => {
            let (isa, _) = instructions::choose(args.isa, args.fresh);
            (isa, format!("{} threads with {isa}", threads(args)?))
        }
        Chosen::Cuda { caps, .. } => (Isa::PORTABLE, caps.name.clone()),
    };
    let cpu = CpuOptions { threads: Some(threads(args)?), isa: Some(isa), ..CpuOptions::default() };
    let device = chosen.start(cpu, KvType::default())?;
    let load = LoadOptions { context: Some(work.longest()), ..LoadOptions::default() };
    let most = work.most_streams();
    let configure = |c: &mut EngineConfig| {
        (c.max_running, c.step_outputs) = (most, most.max(c.step_outputs));
        c.max_queue = c.max_queue.max(most);
        c.kv_blocks = Some(work.cache_tokens().div_ceil(BLOCK_TOKENS) + 2 * most);
        c.target_itl = l.target_itl_ms.map(|ms| Duration::from_secs_f32(ms / 1e3));
        if chosen != Chosen::Cpu {
            c.step_tokens = c.step_tokens.max(GPU_STEP_TOKENS);
        }
        c.step_tokens = c.step_tokens.max(most + 1);
    };
    let loaded = Engine::load(&source, device, &load, configure, |_| ())?;
    let bar = render::steps(work.parts() as u64, "starting");
    let mut report = load::load(
        &loaded.handle,
        &work,
        (&name, &place),
        process::rss_bytes,
        interrupt::stopped,
        &mut |what| {
            bar.set_message(what.to_string());
            bar.inc(1);
        },
    )
    .map_err(|e| match e {
        quarrel_bench::Error::Stopped => Interrupted.into(),
        e => anyhow::Error::from(e),
    })?;
    bar.finish_and_clear();
    report.peak_rss_bytes = process::peak_rss_bytes();
    let mut out = Out::new();
    match args.json {
        true => out.json(&report),
        false => Ok(out.text(&load::text(&report))?),
    }
}

/// Everything checked that can be before a clock runs.
struct Prepared {
    source: Source,
    spec: ModelSpec,
    work: Work,
    threads: usize,
    isa: Isa,
    chosen: Chosen,
    model: ModelInfo,
    machine: Machine,
    baseline: Option<Report>,
    rival: Option<against::Llama>,
    child: Child,
}

impl Prepared {
    fn new(args: &Bench, name: &str, path: &Path, source: Source) -> Result<Prepared> {
        if source.tensors().len() == 0 {
            bail!("{name} is a vocabulary without weights; there is nothing to measure");
        }
        let spec = quarrel_model::spec(&source)?;
        let mut work = work(args, &spec)?;
        let model = ModelInfo::new(name, &source, &spec);
        let (chosen, note) = Chosen::new(args.device, model.weight_bytes as usize, args.deterministic)?;
        note.iter().for_each(render::note);
        let on_cpu = chosen == Chosen::Cpu;
        if on_cpu {
            work.check_memory(&spec, model.weight_bytes, KV_ELEMENT_BYTES)?;
        } else {
            work.step = GPU_STEP;
        }
        let threads = threads(args)?;
        let (isa, scores) = match on_cpu {
            true => instructions::choose(args.isa, args.fresh),
            false => (Isa::PORTABLE, Default::default()),
        };
        let baseline = args.check.as_deref().map(check::read).transpose()?;
        if let Some(baseline) = &baseline {
            let here = match &chosen {
                Chosen::Cpu => Machine::fingerprint(threads, isa),
                Chosen::Cuda { caps, .. } => gpu_machine(caps, quarrel_cuda::Peaks::default()),
            };
            check::comparable(baseline, &here, &model)?;
            check::same_work(baseline, &work)?;
        }
        if let Some(plot) = &args.plot {
            let inputs = source.paths().iter().map(|p| p.as_ref()).chain(args.check.as_deref());
            check_writable(plot, inputs)?;
        }
        let rival = match args.against {
            Some(_) if source.metadata().is_none() => bail!("{name} is no GGUF file, which llama.cpp needs"),
            Some(_) => {
                let set = std::env::var_os("QUARREL_PYTHON").filter(|p| !p.is_empty()).map(PathBuf::from);
                let python = args.python.clone().or(set).unwrap_or("python3".into());
                Some(against::Llama::find(&python, interrupt::stopped)?)
            }
            None => None,
        };
        let cache = Config::from_env().ok().map(|c| c.home);
        let machine = match &chosen {
            Chosen::Cpu => {
                let note = || render::note("measuring the peaks of this machine");
                let mut machine = Machine::new(cache.as_deref(), threads, isa, args.fresh, note)?;
                machine.isa_scores = scores;
                machine
            }
            Chosen::Cuda { ordinal, caps, .. } => gpu_machine(caps, quarrel_cuda::peaks(*ordinal)?),
        };
        let child = own_child(&work, threads, isa, path)?;
        Ok(Prepared { source, spec, work, threads, isa, chosen, model, machine, baseline, rival, child })
    }

    fn start(&self) -> Result<Box<dyn Device>> {
        let cpu = CpuOptions { threads: Some(self.threads), isa: Some(self.isa), ..CpuOptions::default() };
        self.chosen.start(cpu, KvType::default())
    }

    /// Whether fresh processes are measured too.
    fn processes(&self, args: &Bench) -> bool {
        !args.speeds_only && self.chosen == Chosen::Cpu
    }

    fn measure(&self, args: &Bench) -> Result<Report> {
        let work = &self.work;
        let cases = work.cases();
        let profiled: Vec<Case> = cases.iter().copied().filter(|c| is_profiled(*c, args)).collect();
        let mut plan = self.plan(args, &cases, &profiled);
        let bar = Parts::new(plan.parts() as u64, "starting");
        let start = Instant::now();
        let mut progress = |what: &str| {
            let (done, left) = plan.begin(start.elapsed().as_secs_f64());
            bar.begin(what, done, left);
        };
        // Fresh processes first, while this one holds no weights. Ctrl-C ends them before it ends us.
        let stop = Answering::begin();
        let (mut startup, mut memory) = (None, None);
        if self.processes(args) {
            startup = Some(self.child.start_up(work.repeat, &mut progress)?);
            let tokens = (work.prompt.max(1) + work.decode.max(1)) as u64;
            let kv = tokens.next_multiple_of(16) * self.model.kv_bytes_per_token;
            memory = self.child.memory(self.model.weight_bytes, kv, &mut progress)?;
        }
        let compared = match &self.rival {
            Some(rival) => {
                let file = self.source.paths().first().context("the model has no file")?;
                Some(rival.compare(&self.child, file, work, self.threads, &mut progress)?)
            }
            None => None,
        };
        if stop.stopped() {
            return Err(Interrupted.into());
        }
        drop(stop);
        progress("loading");
        let mut session = Session::new(&self.source, &self.spec, work, self.start()?)?;
        let (turns, comparison) = match compared {
            Some((turns, comparison)) => (turns, Some(comparison)),
            None => (
                (0..work.repeat).map(|_| turn(&mut session, work, &mut progress)).collect::<Result<_>>()?,
                None,
            ),
        };
        let mut report = Report::new(self.machine.clone(), self.model.clone(), work, &session, &turns);
        (report.startup, report.memory, report.against) = (startup, memory, comparison);
        let mut phases = Vec::new();
        for case in profiled {
            phases.push(ops::profile(&mut session, case, &self.machine.peaks, &mut progress)?);
        }
        if args.ops {
            let shown = |p: &&ops::Phase| p.sequences.is_none() || args.batch.is_some();
            report.ops = phases.iter().filter(shown).cloned().collect();
        }
        if let Some(path) = &args.plot {
            let drawn = plot::svg(&report, &phases);
            fs::write(path, drawn).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if !args.speeds_only {
            report.latency = latency(session, work, &mut progress)?;
        }
        bar.finish();
        Ok(report)
    }

    /// What `measure` tells of, in its order.
    fn plan(&self, args: &Bench, cases: &[Case], profiled: &[Case]) -> Plan {
        let peak = Peak::new(&self.spec, &self.model, &self.machine.peaks);
        let seconds = |cases: &[Case]| cases.iter().map(|c| peak.case(*c)).sum::<f64>();
        let (repeat, mut parts) = (self.work.repeat, Vec::new());
        let alone = |c: &&Case| matches!(c, Case::Prompt(_) | Case::Decode { depth: 0, .. });
        let request = cases.iter().filter(alone).map(|c| peak.case(*c)).sum::<f64>();
        if self.processes(args) {
            parts.resize(repeat + 1, peak.load());
            parts.push(peak.load() + request);
        }
        let rounds = match self.rival {
            Some(_) => [peak.load() + seconds(cases)].repeat(2 * repeat),
            None => cases.iter().map(|c| peak.case(*c)).collect::<Vec<_>>().repeat(repeat),
        };
        let load = [peak.load()];
        parts.extend(if self.rival.is_some() { [&rounds[..], &load] } else { [&load, &rounds[..]] }.concat());
        parts.extend(profiled.iter().map(|c| peak.case(*c)));
        if !args.speeds_only && self.work.prompt + self.work.decode > 0 {
            parts.resize(parts.len() + repeat + 1, request);
        }
        Plan::new(parts)
    }
}

/// The tables are of the prompt and of decoding from nothing, the plot is of the batches too.
fn is_profiled(case: Case, args: &Bench) -> bool {
    match case {
        Case::Prompt(_) | Case::Decode { depth: 0, .. } => args.ops || args.plot.is_some(),
        Case::Decode { .. } => false,
        // All of them are many; those that were asked for are few.
        Case::Batch { .. } => args.plot.is_some() || (args.ops && args.batch.is_some()),
    }
}

/// Prompt tokens of a step on a GPU.
const GPU_STEP: usize = 4096;

/// A GPU as the machine of a report: its matrix units do products of quantised weights too.
fn gpu_machine(caps: &quarrel_cuda::Caps, peaks: quarrel_cuda::Peaks) -> Machine {
    let matrix = peaks.matrix_flops_per_s / 1e9;
    let rates = Rates {
        read_gb_per_s: peaks.read_bytes_per_s / 1e9,
        int8_gop_per_s: matrix,
        f32_gflop_per_s: matrix,
    };
    let (memory, cache) = (caps.memory as u64, u64::from(caps.l2));
    Machine::gpu(&caps.name, &format!("sm_{}", caps.sm), caps.multiprocessors as usize, memory, cache, rates)
}

/// Refuses a file that cannot be written or that is read here, before minutes are spent; leaves nothing behind.
fn check_writable<'a>(path: &Path, mut inputs: impl Iterator<Item = &'a Path>) -> Result<()> {
    let same = |input: &Path| input.canonicalize().ok().is_some_and(|i| path.canonicalize().ok() == Some(i));
    if let Some(input) = inputs.find(|i| same(i)) {
        bail!("--plot would overwrite {}, which is read here; name another file", input.display());
    }
    let existed = path.symlink_metadata().is_ok();
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if !existed {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn work(args: &Bench, spec: &ModelSpec) -> Result<Work> {
    let wish = Wish {
        prompt: args.prompt.map(|n| n as usize),
        decode: args.decode.map(|n| n as usize),
        depths: args.depth.as_ref().map(|d| d.iter().map(|n| *n as usize).collect()),
        batch: args.batch.as_ref().map(|b| b.0.clone()),
        batch_depth: args.batch_depth as usize,
        repeat: args.repeat as usize,
    };
    let (work, notes) = Work::new(&wish, spec.context as usize)?;
    if args.child.is_none() {
        notes.iter().for_each(render::note);
    }
    Ok(work)
}

/// The threads that are asked for, or one for each core. More than there are processors would measure the scheduler.
fn threads(args: &Bench) -> Result<usize> {
    let processors = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    if let Some(n) = args.threads.map(usize::from).filter(|n| *n > processors) {
        bail!("--threads {n} is more than the {processors} processors that this process may use");
    }
    let options = CpuOptions { threads: args.threads.map(usize::from), ..CpuOptions::default() };
    Ok(Cpu::new(options).context("cannot start the CPU device")?.info().threads)
}

fn turn(session: &mut Session, work: &Work, progress: &mut dyn FnMut(&str)) -> Result<Turn> {
    let mut seconds = Vec::new();
    for case in work.cases() {
        progress(&case.name());
        seconds.push(session.time(case)?);
    }
    Ok(Turn { seconds })
}

/// This program on the same model and work.
fn own_child(work: &Work, threads: usize, isa: Isa, path: &Path) -> Result<Child> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    let list = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let batch = if work.batch.is_empty() { "none".into() } else { list(&work.batch) };
    let mut args: Vec<OsString> = ["bench", "--offline", "--quiet"].map(OsString::from).to_vec();
    args.extend(["--model".into(), path.into_os_string()]);
    for (flag, value) in [
        ("--threads", threads.to_string()),
        ("--isa", isa.to_string()),
        ("--prompt", work.prompt.to_string()),
        ("--decode", work.decode.to_string()),
        ("--batch", batch),
        ("--batch-depth", work.batch_depth.to_string()),
    ] {
        args.extend([flag.into(), value.into()]);
    }
    if !work.depths.is_empty() {
        args.extend(["--depth".into(), list(&work.depths).into()]);
    }
    args.push("--child".into());
    Ok(Child { exe, args, stop: interrupt::stopped })
}

/// What a process does that was started to be measured.
fn child(args: &Bench, kind: BenchChild) -> Result<()> {
    quarrel_bench::child::end_with_parent();
    let mut out = Out::new();
    if kind == BenchChild::Turn {
        let source = quarrel_runtime::open_source(&models::resolve(&args.model)?.path)?;
        let spec = quarrel_model::spec(&source)?;
        let work = work(args, &spec)?;
        let (isa, _) = instructions::choose(args.isa, false);
        let cpu = CpuOptions { threads: Some(threads(args)?), isa: Some(isa), ..CpuOptions::default() };
        let device = Chosen::Cpu.start(cpu, KvType::default())?;
        let mut session = Session::new(&source, &spec, &work, device)?;
        return out.json(&Line::Turn(turn(&mut session, &work, &mut |_| ())?));
    }
    let opened = session::open(&args.model)?;
    let prompt = args.prompt.unwrap_or(0).max(1) as usize;
    let answer = args.decode.unwrap_or(0).max(1);
    let (ids, max_tokens) = match (kind, &opened.template) {
        (BenchChild::Memory, _) => (vec![0; prompt], answer),
        (_, Some(t)) => {
            let question = [chat_format::message("user", QUESTION)];
            (chat_format::encode_chat(&opened.tokenizer, t, &question)?, 1)
        }
        (_, None) => (chat_format::encode_prompt(&opened.tokenizer, QUESTION)?, 1),
    };
    let engine = EngineArgs {
        ctx: None,
        threads: args.threads,
        memory_budget: None,
        kv: Some(Kv::F16),
        device: Place::Cpu,
        deterministic: false,
        isa: args.isa,
    };
    let running = session::load(&opened, &engine, None)?;
    let request = Request {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..Request::new(ids)
    };
    let mut told = false;
    for event in running.handle.submit(request).map_err(|e| running.explain(e))? {
        match event {
            Event::Token { id, .. } if !told => {
                told = true;
                out.json(&Line::FirstToken(id))?;
            }
            Event::Failed(e) => return Err(running.explain(e)),
            _ => {}
        }
    }
    match process::peak_rss_bytes() {
        Some(bytes) => out.json(&Line::PeakRss(bytes)),
        None => Ok(()),
    }
}

/// Says what became slower, and fails if anything did.
fn verdict(baseline: &Report, report: &Report) -> Result<()> {
    let verdict = check::compare(baseline, report)?;
    if !verdict.missing.is_empty() {
        render::note(format!("not measured now, though the baseline has it: {}", verdict.missing.join(", ")));
    }
    for line in &verdict.regressions {
        render::error(line);
    }
    match verdict.regressions.len() {
        0 => {
            render::note(format!("no regression: {} figures compared with the baseline", verdict.compared));
            Ok(())
        }
        n => bail!("{n} of {} figures are worse than the baseline beyond the noise", verdict.compared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_takes_no_file_that_is_read_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (model, plot) = (dir.path().join("m.gguf"), dir.path().join("a.svg"));
        fs::write(&model, "weights").unwrap();
        let e = check_writable(&dir.path().join("./m.gguf"), [&*model].into_iter()).unwrap_err();
        assert!(e.to_string().contains("would overwrite"), "{e}");
        check_writable(&plot, [&*model].into_iter()).unwrap();
        assert!(!plot.exists() && fs::read(&model).unwrap() == b"weights");
    }
}
