//! Tiny models with random weights against the logits that `transformers` computed for them in float32:
//! from safetensors and from GGUF, whole prompts and token by token (`goldens/make_tiny.py` and `make_families.py` made them).

use quarrel_conform::compare;
use quarrel_cpu::{Cpu, CpuOptions};
use quarrel_formats::Source;
use quarrel_ir::reference::Reference;
use quarrel_ir::{Device, Limits, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Golden {
    vocab_size: usize,
    safetensors: Vec<String>,
    gguf: Vec<String>,
    prompts: Vec<Vec<u32>>,
    greedy: Vec<Vec<u32>>,
    /// The context to serve each prompt with, where rotations depend on it.
    #[serde(default)]
    contexts: Vec<u32>,
}

struct Case {
    dir: PathBuf,
    golden: Golden,
    /// Per prompt, `[positions * vocab]`.
    logits: Vec<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/tiny");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 10, "golden models are missing");
    dirs.into_iter()
        .map(|dir| {
            let text = std::fs::read_to_string(dir.join("golden.json")).unwrap();
            let golden: Golden = serde_json::from_str(&text).unwrap();
            let mut all = compare::floats(&dir.join("logits.bin")).into_iter();
            let logits = golden
                .prompts
                .iter()
                .map(|p| all.by_ref().take(p.len() * golden.vocab_size).collect())
                .collect();
            assert!(all.next().is_none(), "{}: logits.bin is longer than the prompts", dir.display());
            Case { dir, golden, logits }
        })
        .collect()
}

/// The files of a case that hold the whole model: the folder for safetensors, the first part of a GGUF.
fn sources(case: &Case) -> Vec<PathBuf> {
    let hf = (!case.golden.safetensors.is_empty()).then(|| case.dir.clone());
    // A folder with both kinds would be ambiguous to open; its configuration is named instead.
    let hf = hf.map(|dir| match case.golden.safetensors.as_slice() {
        [one] => dir.join(one),
        _ => dir.join("model.safetensors.index.json"),
    });
    hf.into_iter().chain(case.golden.gguf.first().map(|f| case.dir.join(f))).collect()
}

/// Logits of every position, with the prompt cut into steps of `chunk` tokens, then `greedy` continuations.
fn run(
    device: &mut dyn Device,
    path: &Path,
    (context, fuse): (Option<u32>, bool),
    prompt: &[u32],
    chunk: usize,
    more: usize,
) -> Result<(Vec<f32>, Vec<u32>), Box<dyn std::error::Error>> {
    let source = Source::open(path)?;
    let spec = quarrel_model::spec(&source)?;
    let program = decoder(&spec, &Options { context, fuse, ..Options::default() });
    let weights = quarrel_model::weights::load(&source, &spec, &program, device, |_| {})?;
    let limits = Limits { rows: 64, outputs: 64, kv_blocks: 8 };
    let prepared = device.prepare(program, &weights, limits)?;
    let blocks = [3, 0, 7, 1, 2, 4, 5, 6];
    let vocab = spec.vocab as usize;
    let mut logits = Vec::new();
    let mut tokens = prompt.to_vec();
    let mut start = 0;
    while start < prompt.len() + more {
        let rows = if start < prompt.len() { chunk.min(prompt.len() - start) } else { 1 };
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let seqs = [SeqStep::new(rows, start, &blocks)];
        let step = StepInputs::new(&tokens[start..start + rows], &seqs, &outputs);
        device.run(prepared, &step)?;
        let mut row = vec![0.0; vocab];
        for i in 0..rows {
            device.read(prepared, Readout::Logits(i), &mut row)?;
            if start < prompt.len() {
                logits.extend_from_slice(&row);
            }
        }
        start += rows;
        if start >= prompt.len() {
            tokens.push(compare::argmax(&row) as u32);
        }
    }
    Ok((logits, tokens.split_off(prompt.len())))
}

fn check(make: &dyn Fn() -> Box<dyn Device>, kl_max: f64, diff_max: f32) {
    let mut problems = Vec::new();
    for case in cases() {
        for path in sources(&case) {
            let prompts = case.golden.prompts.iter().zip(&case.logits).zip(&case.golden.greedy);
            for (i, ((prompt, want), greedy)) in prompts.enumerate() {
                for chunk in [prompt.len(), 1, 7] {
                    let more = if chunk == 1 { greedy.len().saturating_sub(1) } else { 0 };
                    let context = case.golden.contexts.get(i).copied();
                    let at = format!("{}, {} tokens, chunks of {chunk}", path.display(), prompt.len());
                    let (got, next) = match run(make().as_mut(), &path, (context, true), prompt, chunk, more)
                    {
                        Ok(ran) => ran,
                        Err(e) => {
                            problems.push(format!("{at}: {e}"));
                            continue;
                        }
                    };
                    let kl = compare::mean_kl(want, &got, case.golden.vocab_size);
                    let diff = compare::max_abs_diff(want, &got);
                    if !(kl < kl_max && diff < diff_max) {
                        problems.push(format!("{at}: KL {kl:e}, largest difference {diff:e}"));
                    }
                    if chunk == 1 && !greedy.is_empty() && next != *greedy {
                        problems.push(format!("{at}: greedy {next:?} and not {greedy:?}"));
                    }
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} differ:\n{}", problems.len(), problems.join("\n"));
}

fn reference() -> Box<dyn Device> {
    Box::new(Reference::default())
}

fn cpu() -> Box<dyn Device> {
    Box::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap())
}

#[test]
fn reference_equals_transformers() {
    check(&reference, 1e-6, 2e-3);
}

#[test]
fn cpu_equals_transformers() {
    check(&cpu, 1e-3, 0.1);
}

/// A tape of every family says the same whether it is fused or not, to the bit.
#[test]
fn fusion_changes_no_bits() {
    for case in cases() {
        for path in sources(&case) {
            let (prompt, context) = (&case.golden.prompts[1], case.golden.contexts.get(1).copied());
            for make in [reference, cpu] {
                let of = |fuse| run(make().as_mut(), &path, (context, fuse), prompt, 6, 0).unwrap().0;
                let (plain, fused) = (of(false), of(true));
                let same = plain.iter().zip(&fused).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}, {}", path.display(), make().info().name);
            }
        }
    }
}

/// Each golden proves a row of the table, and each golden that a row names is there.
#[test]
fn goldens_are_those_of_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    let named: Vec<&str> = quarrel_model::arch::all().flat_map(|a| a.goldens.iter().copied()).collect();
    for name in &named {
        let places = [
            format!("tiny/{name}/golden.json"),
            format!("encdec/{name}/golden.json"),
            format!("embed/{name}"),
            format!("embed/{name}.json"),
        ];
        assert!(places.iter().any(|p| root.join(p).exists()), "no golden {name}");
    }
    for dir in std::fs::read_dir(root.join("tiny")).unwrap() {
        let name = dir.unwrap().file_name();
        assert!(named.iter().any(|n| name == **n), "{} is nobody's golden", name.display());
    }
}
