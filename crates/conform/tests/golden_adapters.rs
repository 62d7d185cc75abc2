//! Adapters against the logits that `peft` computed for them in float32: PEFT's directory and llama.cpp's GGUF file, each on
//! the safetensors and on the GGUF of its model, where heads lie in another order (`goldens/make_adapters.py` made them).

use quarrel_conform::compare;
use quarrel_cpu::{Cpu, CpuOptions};
use quarrel_engine::{Engine, LoadOptions};
use quarrel_formats::Source;
use quarrel_ir::reference::Reference;
use quarrel_ir::{Device, Limits, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::{lora, weights};
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Golden {
    model: String,
    gguf: bool,
}

#[derive(serde::Deserialize)]
struct Model {
    vocab_size: usize,
    prompts: Vec<Vec<u32>>,
}

fn json<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Logits of every row of every prompt, all prompts with the adapter in one step; then the same without it.
fn run(
    device: &mut dyn Device,
    model: &Path,
    adapter: &Path,
    fuse: bool,
    prompts: &[Vec<u32>],
) -> [Vec<f32>; 2] {
    let source = Source::open(model).unwrap();
    let spec = quarrel_model::spec(&source).unwrap();
    let program = decoder(&spec, &Options { fuse, ..Options::default() });
    let weights = weights::load(&source, &spec, &program, device, |_| {}).unwrap();
    let rows = prompts.iter().map(Vec::len).sum();
    let vocab = spec.vocab as usize;
    let limits = Limits { rows, outputs: rows, kv_blocks: 8 };
    let lora = lora::read(&Source::open_adapter(adapter).unwrap()).unwrap();
    let parts = lora.parts(&spec, &program, 1.0).unwrap();
    let prepared = device.prepare(program, &weights, limits).unwrap();
    let handle = device.load_adapter(prepared, &parts).unwrap();
    let tokens = prompts.concat();
    let outputs: Vec<u32> = (0..rows as u32).collect();
    let blocks: Vec<Vec<u32>> = vec![vec![0], vec![1, 2], vec![3, 4, 5]];
    [Some(handle), None].map(|adapter| {
        let seq = |(p, b): (&Vec<u32>, _)| SeqStep { adapter, ..SeqStep::new(p.len(), 0, b) };
        let seqs: Vec<_> = prompts.iter().zip(blocks.iter().map(Vec::as_slice)).map(seq).collect();
        device.run(prepared, &StepInputs::new(&tokens, &seqs, &outputs)).unwrap();
        let mut logits = vec![0.0; rows * vocab];
        for (i, row) in logits.chunks_exact_mut(vocab).enumerate() {
            device.read(prepared, Readout::Logits(i), row).unwrap();
        }
        logits
    })
}

fn check(make: &dyn Fn() -> Box<dyn Device>, kl_max: f64, diff_max: f32) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    let mut dirs: Vec<_> =
        std::fs::read_dir(goldens.join("adapters")).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 4, "golden adapters are missing");
    for dir in dirs {
        let golden: Golden = json(dir.join("golden.json"));
        let base = goldens.join("tiny").join(&golden.model);
        let model: Model = json(base.join("golden.json"));
        let want = compare::floats(&dir.join("logits.bin"));
        let adapters = std::iter::once(dir.clone()).chain(golden.gguf.then(|| dir.join("adapter.gguf")));
        for adapter in adapters {
            for file in ["model.safetensors", "model.gguf"] {
                for fuse in [true, false] {
                    let at = format!("{} on {}/{file}, fused {fuse}", adapter.display(), golden.model);
                    let [got, plain] = run(make().as_mut(), &base.join(file), &adapter, fuse, &model.prompts);
                    let kl = compare::mean_kl(&want, &got, model.vocab_size);
                    let diff = compare::max_abs_diff(&want, &got);
                    assert!(kl < kl_max && diff < diff_max, "{at}: KL {kl:e}, largest difference {diff:e}");
                    let change = compare::mean_kl(&want, &plain, model.vocab_size);
                    assert!(change > 0.1, "{at}: without the adapter KL {change:e}");
                }
            }
        }
    }
}

#[test]
fn reference_equals_peft() {
    check(&|| Box::new(Reference::default()), 1e-6, 2e-3);
}

#[test]
fn cpu_equals_peft() {
    let options = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    check(&|| Box::new(Cpu::new(options).unwrap()), 1e-3, 0.1);
}

/// The files of two adapters, and none, by way of a running engine.
#[test]
fn an_engine_loads_adapters_from_files_while_it_runs() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens");
    let base = goldens.join("tiny/llama3");
    let model: Model = json(base.join("golden.json"));
    let source = Source::open(base.join("model.gguf")).unwrap();
    let device = Box::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap());
    let loaded = Engine::load(&source, device, &LoadOptions::default(), |_| (), |_| ()).unwrap();
    let handle = loaded.handle;
    let prompt = model.prompts[0].clone();
    let plain = handle.logits(prompt.clone()).unwrap();
    // The row after the first prompt.
    let row = (prompt.len() - 1) * model.vocab_size..prompt.len() * model.vocab_size;
    for (name, file) in [("llama3-rslora", "adapter.gguf"), ("llama3-head", "")] {
        let dir = goldens.join("adapters").join(name);
        let info = handle.load_adapter(name, dir.join(file), 1.0).unwrap();
        assert_eq!((info.name.as_str(), info.uses), (name, 0));
        let off = handle.load_adapter("off", dir.join(file), 0.0).unwrap();
        assert_eq!(off.bytes, info.bytes);
        let want = &compare::floats(&dir.join("logits.bin"))[row.clone()];
        let got = handle.logits_with(prompt.clone(), Some(name)).unwrap();
        let diff = compare::max_abs_diff(want, &got);
        assert!(diff < 0.1, "{name}: {diff:e}");
        assert!(handle.logits_with(prompt.clone(), Some("off")).unwrap() == plain, "a scale of 0");
        handle.unload_adapter("off").unwrap();
    }
    let e = handle.load_adapter("g", goldens.join("adapters/gemma3"), 1.0).unwrap_err().to_string();
    assert!(e.contains("use the adapter with the model that it was trained on"), "{e}");
    let e = handle.load_adapter("llama3-head", goldens.join("adapters/llama3-head"), 1.0).unwrap_err();
    assert!(e.to_string().contains("is loaded already"), "{e}");
    let e = handle.load_adapter("x", base.join("model.gguf"), 1.0).unwrap_err().to_string();
    assert!(e.contains("general.type"), "{e}");
}
