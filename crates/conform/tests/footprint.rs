//! What `footprint` computes from a file's header is what the CPU device holds afterwards, part by part, and the working
//! memory that it counts is not exceeded.

use quarrel_cpu::{Cpu, CpuOptions, Footprint, KvType, Stored, footprint, state_bytes};
use quarrel_formats::Source;
use quarrel_ir::{BLOCK_TOKENS, Device, Limits, SeqStep, StepInputs};
use quarrel_model::{decoder, weights};
use std::path::{Path, PathBuf};

/// Loads a model, fills its cache, and compares.
fn check(path: &Path, fuse: bool, kv: KvType) {
    let name = path.display();
    let source = Source::open(path).unwrap_or_else(|e| panic!("{e}"));
    let spec = quarrel_model::spec(&source).unwrap();
    let program = decoder::decoder(&spec, &decoder::Options { fuse, ..decoder::Options::default() });
    let stored: Vec<Vec<Stored>> = weights::headers(&source, &spec, &program)
        .unwrap()
        .into_iter()
        .map(|w| w.into_iter().map(|(dtype, bytes, mapped)| Stored { dtype, bytes, mapped }).collect())
        .collect();
    let limits = Limits { rows: 48, outputs: 3, kv_blocks: 3 };
    let options = CpuOptions { threads: Some(2), kv, ..CpuOptions::default() };
    let planned = footprint(&program, &stored, &limits, &options).unwrap();

    let mut cpu = Cpu::new(options).unwrap();
    let loaded = weights::load(&source, &spec, &program, &mut cpu, |_| {}).unwrap();
    let prepared = cpu.prepare(program.clone(), &loaded, limits).unwrap();
    assert_eq!(cpu.footprint().kv, 0, "{name}: a cache that nobody has used");
    let tokens: Vec<u32> = (0..(limits.kv_blocks * BLOCK_TOKENS) as u32).map(|i| i % 7).collect();
    let seq = SeqStep::new(tokens.len(), 0, &[0, 1, 2]);
    cpu.run(prepared, &StepInputs::new(&tokens, &[seq], &[47])).unwrap();
    // The one sequence that has run may have states, which are planned by sequence.
    let held = Footprint { kv: planned.kv + state_bytes(&program), ..planned };
    assert_eq!(cpu.footprint(), held, "{name}, fused {fuse}, {kv:?}");
    assert_eq!(cpu.memory(), held.total(), "{name}");
    assert!(planned.weights() > 0 && planned.kv > 0 && planned.logits > 0 && planned.working() > 0);

    // More of anything never takes less, and each part follows its own limit.
    let more = |l: Limits| footprint(&program, &stored, &l, &options).unwrap();
    let kv = more(Limits { kv_blocks: 6, ..limits });
    assert_eq!(
        (kv.kv, kv.weights(), kv.activations),
        (2 * planned.kv, planned.weights(), planned.activations)
    );
    let logits = more(Limits { outputs: 6, ..limits });
    assert_eq!(logits.logits, 2 * planned.logits);
    assert!(more(Limits { rows: 96, ..limits }).activations > planned.activations);
    assert!(footprint(&program, &stored, &Limits { kv_blocks: usize::MAX, ..limits }, &options).is_err());
    assert!(footprint(&program, &stored[1..], &limits, &options).is_err());
}

#[test]
fn tiny_models_hold_what_was_planned() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/tiny");
    let mut seen = 0;
    for dir in std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()) {
        for file in
            ["model.gguf", "model.safetensors", "model.safetensors.index.json", "model-00001-of-00003.gguf"]
        {
            let path = dir.join(file);
            if path.exists() {
                check(&path, true, KvType::F16);
                check(&path, false, KvType::F32);
                check(&path, true, KvType::Q4_0);
                seen += 1;
            }
        }
    }
    assert!(seen >= 15, "golden models are missing");
}

#[test]
fn real_models_hold_what_was_planned() {
    let dir = std::env::var_os("QUARREL_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fixtures"), PathBuf::from);
    for file in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let path = dir.join(file);
        assert!(path.exists(), "{} is missing: run `cargo xtask fixtures` first", path.display());
        KvType::ALL.into_iter().for_each(|kv| check(&path, true, kv));
    }
}
