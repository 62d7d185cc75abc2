//! Tiny models with random weights against the logits that `transformers` computed for them in float32:
//! from safetensors and from GGUF, whole prompts and token by token (`goldens/make_tiny.py` made them).

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
            let bytes = std::fs::read(dir.join("logits.bin")).unwrap();
            let mut all = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
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
    prompt: &[u32],
    chunk: usize,
    more: usize,
) -> (Vec<f32>, Vec<u32>) {
    let source = Source::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let spec = quarrel_model::spec(&source).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let program = decoder(&spec, &Options::default());
    let weights = quarrel_model::weights::load(&source, &spec, &program, device, |_| {}).unwrap();
    let limits = Limits { rows: 64, outputs: 64, kv_blocks: 8 };
    let prepared = device.prepare(program, &weights, limits).unwrap();
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
        device.run(prepared, &step).unwrap();
        let mut row = vec![0.0; vocab];
        for i in 0..rows {
            device.read(prepared, Readout::Logits(i), &mut row).unwrap();
            if start < prompt.len() {
                logits.extend_from_slice(&row);
            }
        }
        start += rows;
        if start >= prompt.len() {
            tokens.push(compare::argmax(&row) as u32);
        }
    }
    (logits, tokens.split_off(prompt.len()))
}

fn check(make: &dyn Fn() -> Box<dyn Device>, kl_max: f64, diff_max: f32) {
    for case in cases() {
        for path in sources(&case) {
            let prompts = case.golden.prompts.iter().zip(&case.logits).zip(&case.golden.greedy);
            for ((prompt, want), greedy) in prompts {
                for chunk in [prompt.len(), 1, 7] {
                    let more = if chunk == 1 { greedy.len() - 1 } else { 0 };
                    let (got, next) = run(make().as_mut(), &path, prompt, chunk, more);
                    let at = format!("{}, {} tokens, chunks of {chunk}", path.display(), prompt.len());
                    let kl = compare::mean_kl(want, &got, case.golden.vocab_size);
                    let diff = compare::max_abs_diff(want, &got);
                    assert!(kl < kl_max && diff < diff_max, "{at}: KL {kl:e}, largest difference {diff:e}");
                    if chunk == 1 {
                        assert_eq!(next, *greedy, "{at}: greedy continuation");
                    }
                }
            }
        }
    }
}

#[test]
fn reference_equals_transformers() {
    check(&|| Box::new(Reference::default()), 1e-6, 2e-3);
}

#[test]
fn cpu_equals_transformers() {
    check(
        &|| Box::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap()),
        1e-3,
        0.1,
    );
}
