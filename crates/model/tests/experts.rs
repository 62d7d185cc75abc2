//! Models with experts and latents: their tapes, what a file may not say, and that experts are the same however a file stores them.

use quarrel_formats::{Source, Tensor};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::{ModelSpec, weights};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/tiny").join(name)
}

fn open(path: &Path) -> Result<(Source, ModelSpec), String> {
    let source = Source::open(path).map_err(|e| e.to_string())?;
    let spec = quarrel_model::spec(&source).map_err(|e| e.to_string())?;
    Ok((source, spec))
}

/// A golden's safetensors with settings changed.
fn changed(name: &str, settings: &[(&str, Value)]) -> Result<ModelSpec, String> {
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(golden(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    settings.iter().for_each(|(k, v)| config[*k] = v.clone());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden(name).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    open(&dir.path().join("model.safetensors")).map(|m| m.1)
}

#[test]
fn tapes_of_sparse_and_latent_layers_are_as_pinned() {
    for name in ["qwen2moe", "deepseek-v3", "llama4", "gpt-oss"] {
        let (_, spec) = open(&golden(name).join("model.safetensors")).unwrap();
        let program = decoder(&spec, &Options::default());
        program.check().unwrap();
        insta::assert_snapshot!(name, program.to_string());
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    for (name, key, value, says) in [
        ("mixtral", "num_experts_per_tok", json!(9), "9 of 4 experts"),
        ("mixtral", "num_experts_per_tok", json!(0), "0 of 4 experts"),
        ("mixtral", "num_local_experts", json!(null), "block_sparse_moe"),
        ("llama4", "num_experts_per_tok", json!(2), "one at a time"),
        ("deepseek-v3", "scoring_func", json!("tanh"), "scoring_func"),
        ("deepseek-v3", "topk_group", json!(9), "9 of 4 groups"),
        ("deepseek-v3", "n_group", json!(3), "of 3 groups"),
        ("deepseek-v3", "kv_lora_rank", json!(0), "kv_lora_rank"),
        ("deepseek-v3", "v_head_dim", json!(1u64 << 31), "v_head_dim"),
        ("deepseek-v3", "routed_scaling_factor", json!("much"), "routed_scaling_factor"),
    ] {
        let error = changed(name, &[(key, value)]).unwrap_err();
        assert!(error.contains(says), "{name}, {key}: {error}");
    }
}

#[test]
fn sizes_that_contradict_the_tensors_are_errors_when_they_are_loaded() {
    for (name, key, value) in [
        ("deepseek-v3", "kv_lora_rank", json!(15)),
        ("deepseek-v3", "qk_nope_head_dim", json!(11)),
        ("granitemoe", "num_local_experts", json!(5)),
        ("gpt-oss", "num_local_experts", json!(5)),
        ("llama4", "num_local_experts", json!(5)),
    ] {
        let Ok(spec) = changed(name, &[(key, value)]) else { continue };
        let (source, _) = open(&golden(name).join("model.safetensors")).unwrap();
        let program = decoder(&spec, &Options::default());
        let fits = |decl: &quarrel_ir::WeightDecl| {
            let parts: Result<Vec<Tensor>, _> =
                decl.parts.iter().map(|p| weights::tensor(&source, &spec, &p.name)).collect();
            parts.is_ok_and(|parts| quarrel_ir::HostWeight { parts }.check(decl).is_ok())
        };
        assert!(!program.weights.iter().all(fits), "{name}, {key}");
    }
}

/// Every weight of the tape, from both sources, and what its header says of it.
#[test]
fn both_sources_give_the_same_experts() {
    for name in ["mixtral", "qwen2moe", "olmoe", "granitemoe", "gpt-oss", "deepseek-v2-lite", "deepseek-v3"] {
        let sources = ["model.safetensors", "model.gguf"].map(|f| open(&golden(name).join(f)).unwrap());
        let program = decoder(&sources[0].1, &Options { fuse: false, ..Options::default() });
        let headers =
            sources.each_ref().map(|(source, spec)| weights::headers(source, spec, &program).unwrap());
        let mut seen = 0;
        for (w, decl) in program.weights.iter().enumerate() {
            for (p, part) in decl.parts.iter().enumerate() {
                let found = sources.each_ref().map(|(source, spec)| {
                    weights::tensor(source, spec, &part.name).unwrap_or_else(|e| panic!("{name}: {e}"))
                });
                for (tensor, headers) in found.iter().zip(&headers) {
                    let (dtype, bytes, mapped) = headers[w][p];
                    let is = (tensor.dtype, tensor.data.len(), tensor.data.is_mapped());
                    assert_eq!(is, (dtype, bytes, mapped), "{name}: {}", part.name);
                }
                if part.name.contains("_exps") || part.name.contains("_b.") {
                    let [a, b] = found.map(|t| t.to_f32());
                    assert!(a == b, "{name}: {} differs", part.name);
                    seen += 1;
                }
            }
        }
        assert!(seen > 20, "{name}: {seen}");
    }
}
