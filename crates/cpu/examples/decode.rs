//! Greedy decoding of a GGUF model from token ids, with the speed of prompt and generation.
//!
//! `decode MODEL.gguf --ids 1,2,3 [--n 32] [--threads 2] [--prompt 512] [--depth 2048] [--repeat 3] [--kv q8_0]
//! [--ops] [--lora ADAPTER]`; `--prompt` feeds
//! so many tokens made up from the ids instead of the ids themselves, `--depth` generates behind so many tokens, most of them
//! copies of one block of the cache (for its speed, not for its sense), and `--ops` prints the time of each kind of op.

use quarrel_cpu::{Cpu, CpuOptions, KvType};
use quarrel_formats::Source;
use quarrel_ir::{BLOCK_TOKENS, Device, Limits, Prepared, Program, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::{lora, weights};
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Instant;

/// Tokens of a prompt that are fed in one step.
const STEP: usize = 512;

struct Args {
    model: String,
    ids: Vec<u32>,
    n: usize,
    threads: Option<usize>,
    prompt: usize,
    depth: usize,
    repeat: usize,
    kv: KvType,
    ops: bool,
    lora: Option<String>,
}

fn args() -> Result<Args, Box<dyn Error>> {
    let mut a = Args {
        model: String::new(),
        ids: vec![1],
        n: 32,
        threads: None,
        prompt: 0,
        depth: 0,
        repeat: 1,
        kv: KvType::F16,
        ops: false,
        lora: None,
    };
    let mut it = std::env::args().skip(1);
    while let Some(arg) = it.next() {
        let mut value = || it.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--ids" => a.ids = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--n" => a.n = value()?.parse()?,
            "--threads" => a.threads = Some(value()?.parse()?),
            "--prompt" => a.prompt = value()?.parse()?,
            "--depth" => a.depth = value()?.parse()?,
            "--repeat" => a.repeat = value()?.parse()?,
            "--kv" => {
                let name = value()?;
                let kind = KvType::ALL.into_iter().find(|k| k.name() == name);
                a.kv = kind.ok_or(format!("{name} is no type of a cache"))?;
            }
            "--ops" => a.ops = true,
            "--lora" => a.lora = Some(value()?),
            _ => a.model = arg,
        }
    }
    if a.depth > 0 {
        a.prompt = BLOCK_TOKENS;
    }
    if a.prompt > 0 {
        a.ids = a.ids.iter().copied().cycle().take(a.prompt).collect();
    }
    Ok(a)
}

fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let args = args()?;
    let source = Source::open(&args.model)?;
    let spec = quarrel_model::spec(&source)?;
    let program = decoder(&spec, &Options::default());
    let mut cpu = Cpu::new(CpuOptions { threads: args.threads, kv: args.kv, ..CpuOptions::default() })?;
    let ids = weights::load(&source, &spec, &program, &mut cpu, |_| ())?;
    let depth = args.depth.max(args.ids.len());
    let tokens = depth + args.n;
    let limits = Limits { rows: STEP, outputs: 1, kv_blocks: tokens.div_ceil(BLOCK_TOKENS) };
    let prepared = cpu.prepare(program.clone(), &ids, limits)?;
    let adapter = match &args.lora {
        None => None,
        Some(path) => {
            let parts = lora::read(&Source::open_adapter(path)?)?.parts(&spec, &program, 1.0)?;
            Some(cpu.load_adapter(prepared, &parts)?)
        }
    };
    println!(
        "{}; {} threads; ready after {:.3} s",
        cpu.info().description,
        cpu.info().threads,
        start.elapsed().as_secs_f64()
    );

    let blocks: Vec<u32> = (0..limits.kv_blocks as u32).collect();
    let mut logits = vec![0.0; spec.vocab as usize];
    for _ in 0..args.repeat {
        let feed = |cpu: &mut Cpu, at: usize, tokens: &[u32], outputs: &[u32]| {
            let seq = SeqStep { adapter, ..SeqStep::new(tokens.len(), at, &blocks) };
            cpu.run(prepared, &StepInputs::new(tokens, &[seq], outputs))
        };
        cpu.profile(args.ops)?;
        let clock = Instant::now();
        for (i, part) in args.ids.chunks(STEP).enumerate() {
            let last = [part.len() as u32 - 1];
            let ends = i * STEP + part.len() == args.ids.len();
            feed(&mut cpu, i * STEP, part, if ends { &last } else { &[] })?;
        }
        cpu.read(prepared, Readout::Logits(0), &mut logits)?;
        let prompt = clock.elapsed().as_secs_f64();
        if args.ops {
            table("prompt", prompt, &cpu, prepared, &program)?;
        }
        let copies: Vec<(u32, u32)> =
            (1..depth.div_ceil(BLOCK_TOKENS) as u32).map(|b| (0, b)).filter(|_| args.depth > 0).collect();
        cpu.copy_blocks(prepared, &copies)?;
        let mut out = vec![best(&logits)];
        let first = start.elapsed().as_secs_f64();
        cpu.profile(args.ops)?;
        let clock = Instant::now();
        for i in 0..args.n.saturating_sub(1) {
            feed(&mut cpu, depth + i, &out[i..], &[0])?;
            cpu.read(prepared, Readout::Logits(0), &mut logits)?;
            out.push(best(&logits));
        }
        let decode = clock.elapsed().as_secs_f64();
        if args.ops {
            table("decode", decode, &cpu, prepared, &program)?;
        }
        println!("{}", out.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
        println!(
            "prompt {} tokens {:.1}/s; decode {:.1}/s; first token {first:.3} s after start; {:.1} MB",
            args.ids.len(),
            args.ids.len() as f64 / prompt,
            (out.len() - 1) as f64 / decode,
            cpu.memory() as f64 / 1e6
        );
    }
    Ok(())
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b }) as u32
}

/// Where `seconds` went: each kind of op, the barriers, and the rest, which is outside the tape.
fn table(
    title: &str,
    seconds: f64,
    cpu: &Cpu,
    prepared: Prepared,
    program: &Program,
) -> Result<(), Box<dyn Error>> {
    let mut kinds: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (node, t) in program.ops.iter().zip(cpu.timings(prepared)?) {
        let name = match &node.op {
            quarrel_ir::Op::MatMul { weight, .. } => {
                let name = &program.weights[weight.0 as usize].parts[0].name;
                format!("matmul {}", name.split('.').nth(2).unwrap_or(name))
            }
            op => op.name().to_string(),
        };
        let sum = kinds.entry(name).or_default();
        *sum = (sum.0 + t.busy_ns, sum.1 + t.wait_ns);
    }
    let share = |ns: f64| 100.0 * ns / (1e9 * seconds);
    let (mut busy, mut wait) = (0.0, 0.0);
    for (name, (b, w)) in kinds {
        (busy, wait) = (busy + b as f64, wait + w as f64);
        println!(
            "{title} {name:24} {:9.3} ms {:5.1} %, wait {:4.1} %",
            b as f64 / 1e6,
            share(b as f64),
            share(w as f64)
        );
    }
    println!("{title}: barriers {:.1} %, outside the tape {:.1} %", share(wait), 100.0 - share(busy + wait));
    Ok(())
}
