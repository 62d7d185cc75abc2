//! Tiny encoders with random weights against the hidden states that `transformers` computed for them in float32, from
//! safetensors and from GGUF (`goldens/make_embed.py` and `make_t5.py` made them); and all-MiniLM-L6-v2, from text to vectors.
//!
//! Its weights are too large to commit: `cargo xtask fixtures` fetches them, and without them that test fails.

use quarrel_conform::compare;
use quarrel_cpu::{Cpu, CpuOptions, KvType};
use quarrel_engine::{EmbedRequest, Engine, LoadOptions};
use quarrel_formats::Source;
use quarrel_ir::reference::Reference;
use quarrel_ir::{Device, Limits, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use quarrel_text::{Ends, Special, Tokenizer};
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Golden {
    dim: usize,
    safetensors: Vec<String>,
    gguf: Vec<String>,
    prompts: Vec<Vec<u32>>,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/embed")
}

/// All prompts in one step, then each alone: the hidden states, which must be the same bits.
fn run(device: &mut dyn Device, path: &Path, prompts: &[Vec<u32>], fuse: bool) -> Vec<f32> {
    let source = Source::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let spec = quarrel_model::spec(&source).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let program = decoder(&spec, &Options { fuse, ..Options::default() });
    assert!(program.looks_ahead() && program.logits.is_none());
    let hidden = program.hidden.unwrap();
    let weights = quarrel_model::weights::load(&source, &spec, &program, device, |_| {}).unwrap();
    let prepared =
        device.prepare(program, &weights, Limits { rows: 200, outputs: 1, kv_blocks: 48 }).unwrap();
    // None in order.
    let blocks: Vec<Vec<u32>> = (0..4u32).map(|s| (0..12).map(|b| s * 12 + b * 5 % 12).collect()).collect();
    let tokens = prompts.concat();
    let seqs: Vec<SeqStep> =
        prompts.iter().zip(&blocks).map(|(p, blocks)| SeqStep::new(p.len(), 0, blocks)).collect();
    let mut read = |tokens: &[u32], seqs: &[SeqStep]| {
        device.run(prepared, &StepInputs::new(tokens, seqs, &[])).unwrap();
        let mut rows = vec![0.0; tokens.len() * hidden.cols as usize];
        device.read(prepared, Readout::View(hidden), &mut rows).unwrap();
        rows
    };
    let together = read(&tokens, &seqs);
    let alone: Vec<f32> = prompts.iter().zip(&seqs).flat_map(|(p, s)| read(p, &[*s])).collect();
    let same = together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(same, "{}: company changes the bits", path.display());
    together
}

/// Models, how many files they have in all, and by how much any number may differ with keys and values in f32 and in f16.
const MODELS: [(&[&str], usize, [f32; 2]); 2] =
    [(&["bert", "nomic"], 3, [2e-5, 1e-2]), (&["t5encoder", "umt5encoder"], 4, [5e-5, 2e-2])];

fn check(make: &dyn Fn() -> Box<dyn Device>, names: &[&str], files: usize, bound: f32) {
    let mut seen = 0;
    for name in names {
        let dir = goldens().join(name);
        let golden: Golden =
            serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap();
        let want = compare::floats(&dir.join("hidden.bin"));
        assert_eq!(want.len(), golden.prompts.concat().len() * golden.dim);
        for file in golden.safetensors.iter().chain(&golden.gguf) {
            for fuse in [false, true] {
                let got = run(make().as_mut(), &dir.join(file), &golden.prompts, fuse);
                let diff = compare::max_abs_diff(&want, &got);
                assert!(diff < bound, "{name}/{file}, fused {fuse}: largest difference {diff:e}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 2 * files);
}

#[test]
fn reference_equals_transformers() {
    for (names, files, [bound, _]) in MODELS {
        check(&|| Box::new(Reference::default()), names, files, bound);
    }
}

#[test]
fn cpu_equals_transformers() {
    let cpu = |threads, kv| {
        move || -> Box<dyn Device> {
            let options = CpuOptions { threads: Some(threads), kv, poison: true, ..CpuOptions::default() };
            Box::new(Cpu::new(options).unwrap())
        }
    };
    for (names, files, [single, half]) in MODELS {
        check(&cpu(2, KvType::F32), names, files, single);
        check(&cpu(3, KvType::F16), names, files, half);
    }
}

#[derive(serde::Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn minilm_embeds_texts_as_transformers_does() {
    let fixtures = std::env::var_os("QUARREL_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fixtures"), PathBuf::from);
    let dir = fixtures.join("all-MiniLM-L6-v2");
    assert!(dir.exists(), "{} is missing: run `cargo xtask fixtures` first", dir.display());
    let texts: Vec<Text> =
        serde_json::from_str(&std::fs::read_to_string(goldens().join("minilm.json")).unwrap()).unwrap();
    let want = compare::floats(&goldens().join("minilm.bin"));
    let config = std::fs::read(dir.join("tokenizer_config.json")).ok();
    let json = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&json, config.as_deref()).unwrap();
    let source = Source::open(&dir).unwrap();
    let cpu = Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    let model = Engine::load(&source, Box::new(cpu), &LoadOptions::default(), |_| {}, |_| {}).unwrap();
    let embed = |text: &Text| {
        let ids = tokenizer.encode(&text.text, Special::Plain, Ends::Model).unwrap();
        assert_eq!(ids, text.ids, "{:?}", text.text);
        model.handle.embed(EmbedRequest::new(ids)).unwrap()
    };
    let open: Vec<_> = texts.iter().map(embed).collect();
    let together: Vec<Vec<f32>> = open.into_iter().map(|e| e.wait().unwrap().vectors.remove(0)).collect();
    let mut seen = 0;
    for ((text, got), want) in texts.iter().zip(&together).zip(want.chunks_exact(384)) {
        let cosine: f64 = got.iter().zip(want).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!(1.0 - cosine < 1e-6, "{:?}: cosine {cosine}", text.text);
        let alone = embed(text).wait().unwrap().vectors.remove(0);
        assert!(alone.iter().zip(got).all(|(a, b)| a.to_bits() == b.to_bits()), "{:?}", text.text);
        seen += 1;
    }
    assert_eq!(seen, 7);
}
