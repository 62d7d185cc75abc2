//! Every op of the CUDA device against the reference, on a GPU: `cargo run --release -p quarrel-cuda --example conform -- [GOLDENS]`.
//!
//! Prints a line for each group of cases with its largest error, and every case that fails; exits with 1 if one does. Values are
//! poisoned with NaN before each step, and inputs are drawn anew for each case (`--seed N` for another draw). `--only TEXT` runs the groups with that in their names. GOLDENS is the folder
//! of the tiny golden models, `crates/conform/goldens/tiny`.

use quarrel_conform::cases::{self, ACTIVATIONS, Case, Heads, Mixture};
use quarrel_conform::compare;
use quarrel_conform::random::{Rng, tensor};
use quarrel_conform::rig::{Part, Rig, Sizes};
use quarrel_conform::tiny::{self, Family};
use quarrel_cuda::{Cuda, CudaOptions, KvType};
use quarrel_formats::{DType, Source};
use quarrel_ir::reference::Reference;
use quarrel_ir::{
    Activation, Device, Error, Gate, Growth, KvCopy, Limits, Op, Readout, Result, RopeStyle, RouteSpec,
    Scoring, SeqStep, StepInputs, Stop,
};
use quarrel_model::decoder::{Options, decoder};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// How the device ends a refusal of a whole family.
const ELSEWHERE: &str = "(--device cpu)";

/// Failed cases of a group that are told one by one.
const FAILURES_TOLD: usize = 40;

/// Poisoned, each value kept.
const TEST: CudaOptions = CudaOptions {
    ordinal: 0,
    kv: KvType::F16,
    deterministic: false,
    keep_values: true,
    poison: true,
    no_graphs: false,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seed =
        args.iter().position(|a| a == "--seed").and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(1);
    let goldens = args.iter().find(|a| Path::new(a).is_dir());
    let only = args.iter().position(|a| a == "--only").and_then(|i| args.get(i + 1).cloned());
    let mut report = Report { only, ..Report::default() };
    match Cuda::new(TEST) {
        Ok(gpu) => println!("{}", gpu.info().description),
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    }
    ops(&mut report, seed);
    report.group("decode graphs against plain launches", |g| graphs(g, seed));
    report.group("rows do not change each other (deterministic)", |g| invariance(g, seed));
    report.group("copies of rows and blocks, saved blocks, stop", |g| cache(g, seed));
    for family in [Family::Llama, Family::Gemma] {
        report.group(&format!("tiny models, {family:?}"), |g| tiny_models(g, family, seed));
    }
    match goldens {
        Some(dir) => report.group("golden models of transformers", |g| golden_models(g, Path::new(dir))),
        None => println!("(no folder of golden models was given)"),
    }
    println!("{} cases, {} failed", report.cases, report.failed);
    if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Report {
    /// Of the groups those whose names have this in them.
    only: Option<String>,
    cases: usize,
    failed: usize,
}

/// The cases of a group.
#[derive(Default)]
struct Group {
    cases: usize,
    failed: usize,
    worst: f64,
    at: String,
}

impl Report {
    fn group(&mut self, name: &str, run: impl FnOnce(&mut Group)) {
        if self.only.as_ref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        let (start, mut group) = (Instant::now(), Group::default());
        run(&mut group);
        self.cases += group.cases;
        self.failed += group.failed;
        let Group { cases, failed, worst, at } = group;
        let verdict = if failed == 0 { "ok  " } else { "FAIL" };
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{verdict} {name}: {cases} cases, {failed} failed, largest error {worst:.2e} ({at}) {seconds:.1} s"
        );
    }
}

impl Group {
    fn note(&mut self, name: &str, error: f64, bound: f64) {
        self.cases += 1;
        if error > self.worst || self.at.is_empty() {
            (self.worst, self.at) = (error, name.to_string());
        }
        if error.is_nan() || error > bound {
            self.failed += 1;
            if self.failed <= FAILURES_TOLD {
                println!("  FAILED {name}: error {error:.3e}, bound {bound:.1e}");
            }
        }
    }

    fn check(&mut self, name: &str, what: Result<bool>) {
        match what {
            Ok(true) => self.note(name, 0.0, 0.0),
            Ok(false) => self.note(name, f64::INFINITY, 0.0),
            Err(e) => self.broken(name, &e),
        }
    }

    fn broken(&mut self, name: &str, e: &Error) {
        self.cases += 1;
        self.failed += 1;
        if self.failed <= FAILURES_TOLD {
            println!("  FAILED {name}: {e}");
        }
    }

    /// Against the reference in one step.
    fn case(&mut self, case: &Case, options: CudaOptions, bound: f64) {
        let run = || {
            let want = case.run(&mut Reference::default(), &[case.rows])?;
            Ok((case.run(&mut Cuda::new(options)?, &[case.rows])?, want))
        };
        match run() {
            Ok((got, want)) => self.note(&case.name, case.error(&got, &want), bound),
            Err(e) => self.broken(&case.name, &e),
        }
    }
}

/// The bound of a product: of the plain kernel, or of one that rounds its input, as those of many rows do: from 9 on, with
/// matrices in bf16 from 5 on.
fn product_bound(case: &Case, deterministic: bool) -> f64 {
    let few = match deterministic {
        true => usize::MAX,
        false if case.name.starts_with("BF16") => 4,
        false => 8,
    };
    match case.quantized {
        _ if case.rows > few => 6e-3,
        true => 6e-4,
        false => 4e-4,
    }
}

fn ops(report: &mut Report, seed: u64) {
    let rng = &mut Rng(seed);
    let plain = CudaOptions { deterministic: true, ..TEST };
    report.group("products, deterministic", |g| {
        for case in cases::products(rng) {
            g.case(&case, plain, product_bound(&case, true));
        }
    });
    report.group("products, chosen kernel", |g| {
        let mut all = cases::products(rng);
        for dtype in cases::weight_types() {
            for (out, cols) in [(72, 256), (160, 768)] {
                for rows in [1, 2, 3, 8, 9, 33, 70, 130, 260] {
                    all.push(cases::product(dtype, out, cols, rows, rng));
                }
            }
        }
        for (case, want) in all.iter().zip(references(&all)) {
            let got = case.run(&mut Cuda::new(TEST).expect("the GPU of before"), &[case.rows]);
            match got.and_then(|got| Ok((got, want?))) {
                Ok((got, want)) => {
                    g.note(&case.name, case.error(&got, &want), product_bound(case, false));
                }
                Err(e) => g.broken(&case.name, &e),
            }
        }
    });
    report.group("lookups", |g| {
        for case in cases::lookups(rng) {
            g.case(&case, TEST, 1e-6);
        }
    });
    for (what, options) in [("deterministic", plain), ("chosen", TEST)] {
        report.group(&format!("feed-forward blocks, unfused and fused, {what} kernel"), |g| {
            for (dtype, cols) in [(DType::F32, 96), (DType::BF16, 256), (DType::Q8_0, 96), (DType::Q4_K, 256)]
            {
                for rows in [1, 2, 7, 33, 64] {
                    for act in ACTIVATIONS {
                        let mut case = cases::feed_forward(dtype, cols, rows, act, rng);
                        // Three products after each other, with a gate between.
                        let bound = 2.0 * product_bound(&case, options.deterministic);
                        g.case(&case, options, bound);
                        case.program = quarrel_ir::fuse::fuse(&case.program);
                        g.case(&case, options, bound);
                    }
                }
            }
        });
    }
    report.group("norms", |g| {
        for case in cases::norms(rng) {
            g.case(&case, TEST, 1e-5);
        }
    });
    report.group("elementwise ops", |g| {
        for case in cases::elementwise(rng) {
            g.case(&case, TEST, 2e-5);
        }
    });
    report.group("norms of heads with gains of their own, clipping", |g| {
        for case in cases::head_norms(rng).into_iter().chain(cases::clips()) {
            g.case(&case, TEST, 1e-5);
        }
    });
    report.group("mixtures of experts", |g| mixtures(g, rng));
    report.group("candidates", |g| {
        for case in cases::candidates(rng) {
            g.case(&case, TEST, 2e-6);
        }
    });
    report.group("gates at extremes", |g| {
        for case in cases::extremes() {
            g.case(&case, TEST, 2e-6);
        }
    });
    for (kv, bound) in [(KvType::F32, 2e-5), (KvType::F16, 2e-3), (KvType::BF16, 1.2e-2)] {
        report.group(&format!("attention, cache in {}", kv.name()), |g| {
            let options = CudaOptions { kv, ..TEST };
            let mut all = cases::attention(rng);
            let long =
                Heads { heads: 8, kv_heads: 2, head_dim: 64, rot_dims: 64, window: None, softcap: None };
            all.push(cases::attend(long, RopeStyle::Neox, 700, rng));
            for (head_dim, heads, kv_heads, window) in [
                (64, 9, 3, None),
                (80, 4, 4, Some(100)),
                (96, 16, 2, None),
                (128, 12, 4, Some(65)),
                (256, 4, 1, None),
            ] {
                let h = Heads { heads, kv_heads, head_dim, rot_dims: head_dim, window, softcap: None };
                all.push(cases::attend(h, RopeStyle::Neox, 333, rng));
            }
            let window = Heads {
                heads: 10,
                kv_heads: 1,
                head_dim: 128,
                rot_dims: 64,
                window: Some(300),
                softcap: Some(20.0),
            };
            all.push(cases::attend(window, RopeStyle::Interleaved, 600, rng));
            all.extend(biased(rng));
            for case in all {
                g.case(&case, options, bound);
                g.case(&case, CudaOptions { deterministic: true, ..options }, bound);
                let parts = || {
                    let want = case.run(&mut Reference::default(), &[case.rows])?;
                    Ok((case.run(&mut Cuda::new(options)?, &[17, 3, case.rows - 20])?, want))
                };
                match parts() {
                    Ok((got, want)) => {
                        g.note(&format!("{} in parts", case.name), case.error(&got, &want), bound)
                    }
                    Err(e) => g.broken(&case.name, &e),
                }
                let chunked = || {
                    let options = CudaOptions { deterministic: true, ..options };
                    let rows = case.rows;
                    let whole = case.run(&mut Cuda::new(options)?, &[rows])?;
                    let mut same = true;
                    for chunks in [vec![1; rows], vec![33, 1, 16, rows - 50]] {
                        same &= same_bits(&whole, &case.run(&mut Cuda::new(options)?, &chunks)?);
                    }
                    Ok(same)
                };
                g.check(&format!("{} in chunks", case.name), chunked());
            }
        });
    }
}

/// Attention with ALiBi, sinks and windows that begin at multiples of their size; rotations that grow and that leave first columns out.
fn biased(rng: &mut Rng) -> Vec<Case> {
    let mut all = cases::biased_attention(rng);
    for (heads, kv_heads, head_dim, window, chunked, rows) in [
        (12, 4, 128, None, false, 333),
        (6, 6, 96, Some(50), false, 200),
        (64, 8, 64, Some(128), false, 300),
        (4, 1, 256, Some(64), true, 200),
        (8, 2, 64, Some(100), true, 700),
        (5, 5, 40, Some(33), true, 90),
    ] {
        for (alibi, sinks) in [(Some(8.0), false), (None, true), (None, false)] {
            let rot_dims = head_dim / 2;
            let shape = Heads { heads, kv_heads, head_dim, rot_dims, window, softcap: None };
            let mut case = cases::attend(shape, RopeStyle::Neox, rows, rng);
            let weight = sinks.then(|| case.program.weight("sinks", 1, heads));
            if sinks {
                case.tensors.insert("sinks".into(), tensor("sinks", DType::F32, &[heads as usize], 2.0, rng));
            }
            if chunked {
                case.program.ropes[0].growth = Some(Growth { tokens: 32.0, by: 0.3, ahead: 1.0 });
                case.program.ropes[0].first = head_dim / 4;
            }
            for node in &mut case.program.ops {
                if let Op::Attend { spec, .. } = &mut node.op {
                    (spec.alibi, spec.sinks, spec.chunked) = (alibi.filter(|_| !chunked), weight, chunked);
                }
            }
            case.program.check().expect("a case of this list");
            case.name = format!("{}, alibi {alibi:?}, sinks {sinks}, chunked {chunked}", case.name);
            all.push(case);
        }
    }
    all
}

/// Mixtures: every type in tiles and not, few rows and many, experts of several types; chosen kernels, and the deterministic ones, whose bits
/// must not depend on the rows of a step.
fn mixtures(g: &mut Group, rng: &mut Rng) {
    let mut all: Vec<(Case, usize)> = cases::mixtures(rng).into_iter().map(|c| (c, 8)).collect();
    all.extend(cases::blocks(rng).into_iter().map(|c| (c, 1)));
    let plain = RouteSpec { used: 2, scoring: Scoring::Softmax, groups: None, normalize: true, scale: 1.0 };
    let silu = Some(Gate::Plain(Activation::Silu));
    let clamped = Some(Gate::Clamped { alpha: 1.702, limit: 1.0 });
    for dtype in cases::weight_types() {
        let unit = dtype.block_len().max(32) as u32;
        for (ff, experts, used, gate, biased, rows) in [
            (unit, 8, 3, silu, false, [1, 3, 40]),
            (2 * unit, 4, 2, clamped, true, [2, 60, 300]),
            (unit + if dtype.block_len() == 1 { 8 } else { 0 }, 40, 2, silu, true, [1, 4, 37]),
        ] {
            let m = Mixture { cols: 2 * unit, ff, experts, spec: RouteSpec { used, ..plain }, gate, biased };
            // Types without tiles are slow here, and alike.
            let few =
                if matches!(dtype, DType::F16 | DType::Q8_0 | DType::Q4_K | DType::MXFP4) { 3 } else { 2 };
            for rows in rows.into_iter().take(few) {
                all.push((cases::mixture(dtype, m, rows, rng), used as usize));
            }
        }
    }
    // Gates and ups of two types, and a last expert of another one.
    for rows in [1, 5, 70] {
        let m = Mixture { cols: 256, ff: 256, experts: 5, spec: plain, gate: clamped, biased: true };
        let mut case = cases::mixture(DType::Q4_K, m, rows, rng);
        for (name, dtype) in
            (0..5).map(|e| (format!("up.{e}"), DType::Q6_K)).chain([("gate.4".into(), DType::IQ2_S)])
        {
            case.tensors.insert(name.clone(), tensor(&name, dtype, &[256, 256], 0.2, rng));
        }
        case.name = format!("{} of several types", case.name);
        all.push((case, 2));
    }
    let (cases, used): (Vec<Case>, Vec<usize>) = all.into_iter().unzip();
    let wants = references(&cases);
    for ((case, used), want) in cases.iter().zip(used).zip(wants) {
        let Ok(want) = want else {
            g.check(&case.name, Ok(false));
            continue;
        };
        for deterministic in [false, true] {
            let options = CudaOptions { deterministic, ..TEST };
            let run = |chunks: &[usize]| case.run(&mut Cuda::new(options)?, chunks);
            // Three products after each other; those of many rows round their input.
            let bound = if case.rows * used > 16 && !deterministic { 1.2e-2 } else { 1.8e-3 };
            let name = format!("{}, deterministic {deterministic}", case.name);
            let whole = match run(&[case.rows]) {
                Ok(whole) => whole,
                Err(e) => {
                    g.broken(&name, &e);
                    continue;
                }
            };
            g.note(&name, case.error(&whole, &want), bound);
            if deterministic && case.rows > 1 {
                let half = [case.rows / 2, case.rows - case.rows / 2];
                g.check(&format!("{name}, in two steps"), run(&half).map(|got| same_bits(&whole, &got)));
            }
        }
    }
}

/// The reference's results, on all processors.
fn references(cases: &[Case]) -> Vec<Result<Vec<f32>>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((i, case)) = Some(next.fetch_add(1, Relaxed)).and_then(|i| Some((i, cases.get(i)?))) {
            let result = case.run(&mut Reference::default(), &[case.rows]);
            done.lock().expect("no thread panics with it").push((i, result));
        }
    };
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(work);
        }
    });
    let mut done = done.into_inner().expect("no thread panics with it");
    done.sort_by_key(|d| d.0);
    done.into_iter().map(|d| d.1).collect()
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn tiny_file(family: Family, dtype: DType, seed: u64) -> (tempfile::TempDir, Source) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("tiny.gguf");
    tiny::write_gguf(&path, family, dtype, seed);
    (dir, Source::open(&path).expect("the file just written"))
}

/// Logits of every position of one sequence, in steps of `chunks`.
fn logits(device: &mut dyn Device, source: &Source, tokens: &[u32], chunks: &[usize]) -> Result<Vec<f32>> {
    logits_of(device, source, &Options::default(), tokens, chunks)
}

fn logits_of(
    device: &mut dyn Device,
    source: &Source,
    options: &Options,
    tokens: &[u32],
    chunks: &[usize],
) -> Result<Vec<f32>> {
    let spec = quarrel_model::spec(source).expect("a model of this test");
    let program = quarrel_ir::fuse::fuse(&decoder(&spec, options));
    let weights = quarrel_model::weights::load(source, &spec, &program, device, |_| {})
        .map_err(|e| Error::Step(e.to_string()))?;
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(16) as u32).rev().collect();
    let rows = chunks.iter().copied().max().unwrap_or(1);
    let limits = Limits { rows, outputs: rows, kv_blocks: blocks.len() };
    let prepared = device.prepare(program, &weights, limits)?;
    let vocab = spec.vocab as usize;
    let (mut out, mut start) = (Vec::new(), 0);
    for &rows in chunks {
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let seqs = [SeqStep::new(rows, start, &blocks)];
        device.run(prepared, &StepInputs::new(&tokens[start..start + rows], &seqs, &outputs))?;
        for i in 0..rows {
            let at = out.len();
            out.resize(at + vocab, 0.0);
            device.read(prepared, Readout::Logits(i), &mut out[at..])?;
        }
        start += rows;
    }
    Ok(out)
}

fn tokens(n: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.below(vocab) as u32).collect()
}

fn graphs(g: &mut Group, seed: u64) {
    for dtype in [DType::F16, DType::Q4_K] {
        let (_dir, source) = tiny_file(Family::Llama, dtype, seed);
        let tokens = tokens(40, tiny::VOCAB, seed);
        for chunks in [vec![1; 40], vec![4; 10], vec![20, 20], vec![8; 5]] {
            let run = |no_graphs| {
                let options = CudaOptions { no_graphs, poison: false, keep_values: false, ..TEST };
                logits(&mut Cuda::new(options)?, &source, &tokens, &chunks)
            };
            let both = run(false).and_then(|a| Ok(same_bits(&a, &run(true)?)));
            g.check(&format!("{dtype} in steps of {}", chunks[0]), both);
        }
    }
}

/// The bits of a row among others are those of the row alone, in whatever step.
fn invariance(g: &mut Group, seed: u64) {
    for (dtype, family) in
        [(DType::Q4_K, Family::Llama), (DType::BF16, Family::Gemma), (DType::Q8_0, Family::Llama)]
    {
        let (_dir, source) = tiny_file(family, dtype, seed);
        let tokens = tokens(300, tiny::VOCAB, seed);
        let run = |chunks: Vec<usize>| {
            let options = CudaOptions { deterministic: true, ..TEST };
            logits(&mut Cuda::new(options)?, &source, &tokens, &chunks)
        };
        match run(vec![300]) {
            Err(e) => g.broken("one step", &e),
            Ok(whole) => {
                for chunks in [vec![1; 300], vec![100, 7, 64, 2, 127], vec![33, 267]] {
                    let same = run(chunks.clone()).map(|other| same_bits(&whole, &other));
                    g.check(&format!("{dtype} {family:?} in steps of {}..", chunks[0]), same);
                }
            }
        }
    }
}

fn cache(g: &mut Group, seed: u64) {
    let h = Heads { heads: 4, kv_heads: 2, head_dim: 64, rot_dims: 64, window: None, softcap: None };
    let case = cases::attend(h, RopeStyle::Neox, 64, &mut Rng(seed));
    let options = CudaOptions { deterministic: true, ..TEST };
    let rig = || {
        let device = Box::new(Cuda::new(options).expect("the GPU of before"));
        Rig::new(device, &case.program, &case.tensors, Sizes { rows: 64, seqs: 3, tokens: 64 })
    };
    let t: Vec<u32> = (0..64).map(Case::token).collect();
    let part = |seq, start, end: usize| Part { seq, start, tokens: &t[start..end] };
    let mut one = rig();
    one.step(&[part(0, 0, 40)], &[]);
    let want = one.step(&[part(0, 40, 50)], &[]);
    one.step(&[part(0, 0, 40)], &[]);
    one.fork(0, 1);
    g.check("a forked sequence goes on alike", Ok(one.step(&[part(1, 40, 50)], &[]) == want));
    // Rows 0..20 of sequence 0 are stored in sequence 2 too, which goes on from there.
    let mut two = rig();
    two.step(&[part(2, 0, 32)], &[]);
    let more = two.step(&[part(2, 32, 40)], &[]);
    let mut three = rig();
    three.step(&[part(2, 0, 20)], &[]);
    let copies: Vec<KvCopy> = (0..12).map(|row| KvCopy { row, seq: 1 }).collect();
    let parts = [part(0, 20, 32), part(2, 32, 33)];
    let first = three.step_with(&parts, &[], &copies, None);
    let rest = three.step(&[part(2, 33, 40)], &[]);
    let same = first.map(|first| first[12] == more[0] && rest[..] == more[1..]);
    // Sequence 0 has no tokens before 20 in this rig, so only what sequence 2 reads is compared.
    g.check("rows stored in two sequences", same);
    let stop = || true;
    let stopped = matches!(three.step_with(&parts, &[], &[], Some(Stop(&stop))), Err(Error::Stopped));
    g.check("a step that nobody wants", Ok(stopped));
    g.check("saved and loaded blocks", saved_blocks(options, &case));
}

fn saved_blocks(options: CudaOptions, case: &Case) -> Result<bool> {
    let mut device = Cuda::new(options)?;
    let limits = Limits { rows: 64, outputs: 64, kv_blocks: 8 };
    let prepared = quarrel_conform::prepare(&mut device, &case.program, &case.tensors, limits)?;
    let tokens: Vec<u32> = (0..33).map(Case::token).collect();
    let view = case.program.logits.expect("cases have logits");
    let go = |device: &mut Cuda, blocks: &[u32], from: usize, to: usize| {
        let seqs = [SeqStep::new(to - from, from, blocks)];
        device.run(prepared, &StepInputs::new(&tokens[from..to], &seqs, &[]))?;
        let mut out = vec![0.0; (to - from) * view.cols as usize];
        device.read(prepared, Readout::View(view), &mut out)?;
        Ok::<_, Error>(out)
    };
    go(&mut device, &[0, 1, 2], 0, 32)?;
    let want = go(&mut device, &[0, 1, 2], 32, 33)?;
    let mut bytes = vec![0; device.block_bytes(prepared)];
    for (from, to) in [(0, 5), (1, 6)] {
        device.save_block(prepared, from, &mut bytes)?;
        device.load_block(prepared, to, &bytes)?;
    }
    let refused =
        device.load_block(prepared, 8, &bytes).is_err() && device.save_block(prepared, 0, &mut []).is_err();
    Ok(refused && same_bits(&want, &go(&mut device, &[5, 6, 7], 32, 33)?))
}

fn tiny_models(g: &mut Group, family: Family, seed: u64) {
    for dtype in [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q8_0,
        DType::Q4_K,
        DType::Q6_K,
        // Not types without an encoder: random blocks of IQ4_XS reach 8, and such a model magnifies any rounding.
    ] {
        let (_dir, source) = tiny_file(family, dtype, seed);
        let tokens = tokens(200, tiny::VOCAB, seed + 1);
        let run = || {
            let want = logits(&mut Reference::default(), &source, &tokens, &[200])?;
            let mut worst = 0.0f64;
            for (options, chunks) in [
                (TEST, vec![200]),
                (TEST, vec![100, 64, 7, 1, 1, 1, 8, 18]),
                (CudaOptions { deterministic: true, ..TEST }, vec![150, 50]),
            ] {
                // Random blocks make models that are not smooth: 16 bits in the cache would hide what is looked for.
                let options = CudaOptions { kv: KvType::F32, ..options };
                let got = logits(&mut Cuda::new(options)?, &source, &tokens, &chunks)?;
                let kl = compare::mean_kl(&want, &got, tiny::VOCAB);
                worst = worst.max(if kl.is_nan() { f64::INFINITY } else { kl });
            }
            Ok(worst)
        };
        match run() {
            Ok(kl) => g.note(&format!("{dtype}: KL"), kl, 1e-4),
            Err(e) => g.broken(dtype.name(), &e),
        }
    }
}

#[derive(serde::Deserialize)]
struct Golden {
    vocab_size: usize,
    safetensors: Vec<String>,
    gguf: Vec<String>,
    prompts: Vec<Vec<u32>>,
    /// The context of each prompt, where rotations depend on it.
    #[serde(default)]
    contexts: Vec<u32>,
}

fn golden_models(g: &mut Group, root: &Path) {
    let mut dirs: Vec<_> =
        std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()).collect();
    dirs.sort();
    if dirs.is_empty() {
        g.check("goldens", Ok(false));
    }
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for dir in dirs {
        let text = std::fs::read_to_string(dir.join("golden.json")).expect("a golden's description");
        let golden: Golden = serde_json::from_str(&text).expect("a golden's description");
        let bytes = std::fs::read(dir.join("logits.bin")).expect("a golden's logits");
        let mut all = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let hf = golden.safetensors.first().map(|one| match golden.safetensors.len() {
            1 => dir.join(one),
            _ => dir.join("model.safetensors.index.json"),
        });
        let paths: Vec<_> = hf.into_iter().chain(golden.gguf.first().map(|f| dir.join(f))).collect();
        for (i, prompt) in golden.prompts.iter().enumerate() {
            let options = Options { context: golden.contexts.get(i).copied(), ..Options::default() };
            let want: Vec<f32> = all.by_ref().take(prompt.len() * golden.vocab_size).collect();
            for path in &paths {
                let source = Source::open(path).expect("a golden model");
                let plain = CudaOptions { deterministic: true, ..TEST };
                for (chunk, device) in
                    [(prompt.len(), TEST), (1, TEST), (7, TEST), (prompt.len(), plain), (7, plain)]
                {
                    let mut chunks = vec![chunk; prompt.len() / chunk];
                    chunks.extend((prompt.len() % chunk != 0).then_some(prompt.len() % chunk));
                    let got = Cuda::new(device)
                        .and_then(|mut c| logits_of(&mut c, &source, &options, prompt, &chunks));
                    let what = if device.deterministic { ", deterministic" } else { "" };
                    let name = format!("{}, chunks of {chunk}{what}: KL", path.display());
                    match got {
                        Ok(got) => g.note(&name, compare::mean_kl(&want, &got, golden.vocab_size), 1e-3),
                        // What the device says that it does not do is no failure, and is told.
                        Err(Error::Device { why, .. }) if why.ends_with(ELSEWHERE) => {
                            let families = refused.entry(why).or_default();
                            let family = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                            if families.last() != Some(&family) {
                                families.push(family);
                            }
                        }
                        Err(e) => g.broken(&name, &e),
                    }
                }
            }
        }
    }
    for (why, families) in refused {
        println!("  refused, {why}: {}", families.join(", "));
    }
}
