//! Adapter files that must be refused, each by the name of what is wrong; and files that strangers have damaged.

use proptest::prelude::*;
use quarrel_formats::{Source, gguf};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::{ModelSpec, lora};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens")
}

fn model(name: &str) -> ModelSpec {
    quarrel_model::spec(&Source::open(goldens().join("tiny").join(name).join("model.safetensors")).unwrap())
        .unwrap()
}

/// Reads the adapter in a directory or file, and fits it to a model.
fn fit(path: &Path, spec: &ModelSpec) -> Result<lora::Lora, String> {
    let source = Source::open_adapter(path).map_err(|e| e.to_string())?;
    let lora = lora::read(&source).map_err(|e| e.to_string())?;
    let parts = lora.parts(spec, &decoder(spec, &Options::default()), 1.0).map_err(|e| e.to_string())?;
    assert_eq!(parts.len(), lora.targets.len());
    Ok(lora)
}

/// Tensors of a safetensors file: name, type, shape, bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

fn f32s(name: &str, shape: [usize; 2], value: f32) -> Tensor {
    let bytes = (0..shape[0] * shape[1]).flat_map(|_| value.to_le_bytes()).collect();
    (format!("base_model.model.{name}"), "F32", shape.to_vec(), bytes)
}

fn write_safetensors(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let from = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(path, file).unwrap();
}

fn config() -> Value {
    json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["o_proj"] })
}

/// A and B of a matrix of the tiny llama2, which is 32 x 32.
fn pair(module: &str) -> Vec<Tensor> {
    vec![
        f32s(&format!("{module}.lora_A.weight"), [2, 32], 0.1),
        f32s(&format!("{module}.lora_B.weight"), [32, 2], 0.2),
    ]
}

const O: &str = "model.layers.0.self_attn.o_proj";

fn peft(config: &Value, tensors: &[Tensor]) -> Result<lora::Lora, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    write_safetensors(&dir.path().join("adapter_model.safetensors"), tensors);
    fit(dir.path(), &model("llama2"))
}

fn with(key: &str, value: Value) -> Value {
    let mut c = config();
    c[key] = value;
    c
}

#[test]
fn scales_follow_rank_alpha_and_patterns() {
    for (change, want) in [
        (json!({}), 2.0),
        (json!({ "use_rslora": true }), 4.0 / 2f32.sqrt()),
        (json!({ "alpha_pattern": { "o_proj": 1, "down_proj": 50 } }), 0.5),
        (json!({ "alpha_pattern": { "^model.layers.0.self_attn.o_proj": 3 } }), 1.5),
        (
            json!({ "alpha_pattern": { "^self_attn.o_proj": 3, "_proj": 7, "model\\.layers\\.1.self_attn.o_proj": 9 } }),
            2.0,
        ),
        (json!({ "r": 64, "rank_pattern": { "self_attn.o_proj": 2 } }), 2.0),
        (
            json!({ "fan_in_fan_out": true, "lora_dropout": 0.1, "task_type": "CAUSAL_LM", "use_dora": false }),
            2.0,
        ),
    ] {
        let mut c = config();
        change.as_object().unwrap().iter().for_each(|(k, v)| c[k] = v.clone());
        let lora = peft(&c, &pair(O)).unwrap();
        assert_eq!((lora.targets.len(), lora.targets[0].rank), (1, 2));
        assert!((lora.targets[0].scale - want).abs() < 1e-6, "{change}: {}", lora.targets[0].scale);
    }
    // As PEFT before 0.6 named them.
    let old: Vec<Tensor> =
        pair(O).into_iter().map(|(n, d, s, b)| (n.replace(".weight", ".default.weight"), d, s, b)).collect();
    assert_eq!(peft(&config(), &old).unwrap().ranks(), (2, 2));
}

#[test]
fn settings_that_are_not_supported_are_refused_by_name() {
    for (key, value, why) in [
        ("peft_type", json!("IA3"), "only \"LORA\" is supported"),
        ("peft_type", Value::Null, "only \"LORA\" is supported"),
        ("bias", json!("lora_only"), "only \"none\" is supported"),
        ("use_dora", json!(true), "is true, which is not supported"),
        ("lora_bias", json!(true), "is true, which is not supported"),
        ("modules_to_save", json!(["lm_head"]), "is [\"lm_head\"], which is not supported"),
        ("trainable_token_indices", json!([5]), "not supported"),
        ("layer_replication", json!([[0, 4]]), "not supported"),
        ("a_setting_of_tomorrow", json!(1), "not supported"),
        ("init_lora_weights", json!("pissa_niter_4"), "path_initial_model_for_weight_conversion"),
        ("r", json!(0), "a rank in 1..=512"),
        ("r", json!(-3), "a rank in 1..=512"),
        ("r", json!(1e300), "a rank in 1..=512"),
        ("lora_alpha", json!("many"), "a number is needed"),
        ("use_rslora", json!("yes"), "true or false"),
        ("rank_pattern", json!({ "o_proj": 99999 }), "no such number"),
        ("rank_pattern", json!({ "layers.(0|1)": 2 }), "only names of modules"),
        ("alpha_pattern", json!({ "": 2 }), "only names of modules"),
        ("alpha_pattern", json!([1]), "an object is needed"),
    ] {
        let e = peft(&with(key, value), &pair(O)).unwrap_err();
        assert!(e.contains(&format!("adapter_model.safetensors: {key}: ")) && e.contains(why), "{e}");
    }
    assert!(peft(&json!([1, 2]), &pair(O)).unwrap_err().contains("is not an object"));
    let e = peft(&with("r", json!(8)), &pair(O)).unwrap_err();
    assert!(e.contains(O) && e.contains("has rank 2, but adapter_config.json says 8"), "{e}");
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let one = |name: &str, shape| vec![f32s(name, shape, 0.5)];
    let more = |tensor: Tensor| pair(O).into_iter().chain([tensor]).collect::<Vec<_>>();
    let a = format!("{O}.lora_A.weight");
    let twice = f32s(&format!("{O}.lora_A.default.weight"), [2, 32], 0.5);
    let cube = ("base_model.model.x.lora_A.weight".to_string(), "F32", vec![1, 2, 4], vec![0; 32]);
    for (tensors, at, why) in [
        (vec![], "tensors", "has none"),
        (one(&a, [2, 32]), O, "only one of A and B"),
        (
            more(f32s("lm_head.base_layer.weight", [8, 8], 0.5)),
            "lm_head.base_layer.weight",
            "save_embedding_layers",
        ),
        (
            more(f32s("model.embed_tokens.lora_embedding_A", [2, 8], 0.5)),
            "lora_embedding_A",
            "embedding of tokens",
        ),
        (
            more(f32s(&format!("{O}.lora_magnitude_vector"), [1, 32], 0.5)),
            "lora_magnitude_vector",
            "not understood",
        ),
        (more(f32s("model.norm.weight", [1, 32], 0.5)), "model.norm.weight", "not understood"),
        (more(twice), "default", "twice"),
        (more(cube), "x", "only one of A and B"),
        (
            pair("model.layers.7.self_attn.o_proj"),
            "model.layers.7.self_attn.o_proj",
            "is no matrix of this model",
        ),
        (pair("model.layers.0.mlp.experts.o_proj"), "experts", "is no matrix of this model"),
        (pair("model.embed_tokens"), "model.embed_tokens", "is no matrix of this model"),
        (pair("model.norm"), "model.norm", "is no matrix of this model"),
        (pair("model.layers.0.mlp.down_proj"), "down_proj", "the model's matrix is 32 x 48"),
        (
            vec![f32s(&a, [2, 32], 0.5), f32s(&format!("{O}.lora_B.weight"), [32, 3], 0.5)],
            O,
            "A has 2 rows and B 3 columns",
        ),
        (
            vec![f32s(&a, [600, 32], 0.5), f32s(&format!("{O}.lora_B.weight"), [32, 600], 0.5)],
            O,
            "has rank 600",
        ),
        (
            vec![f32s(&a, [2, 32], f32::NAN), f32s(&format!("{O}.lora_B.weight"), [32, 2], 0.5)],
            O,
            "has the value NaN",
        ),
    ] {
        let e = peft(&config(), &tensors).unwrap_err();
        assert!(e.contains(at) && e.contains(why), "{e}");
    }
}

#[test]
fn gguf_adapters_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let golden = goldens().join("adapters/llama2-all/adapter.gguf");
    let source = Source::open_adapter(&golden).unwrap();
    let spec = model("llama2");
    type Change = (&'static str, Option<gguf::Value>);
    let text = |s: &str| Some(gguf::Value::String(s.into()));
    let write = |changes: &[Change], rename: &dyn Fn(&str) -> String| {
        let mut meta = quarrel_formats::Metadata::new();
        for (k, v) in source.metadata().unwrap().iter() {
            if !changes.iter().any(|c| c.0 == k) {
                meta.insert(k, v.clone());
            }
        }
        changes.iter().for_each(|(k, v)| drop(v.clone().map(|v| meta.insert(*k, v))));
        let names: Vec<_> = source.tensors().map(|t| rename(&t.name)).collect();
        let shapes: Vec<Vec<u64>> =
            source.tensors().map(|t| t.shape.iter().map(|d| *d as u64).collect()).collect();
        let tensors: Vec<_> = source
            .tensors()
            .zip(names.iter().zip(&shapes))
            .map(|(t, (name, shape))| gguf::NewTensor { name, dtype: t.dtype, shape, data: &t.data })
            .collect();
        gguf::write(&mut std::fs::File::create(&path).unwrap(), &meta, &tensors).unwrap();
        fit(&path, &spec)
    };
    let same = |n: &str| n.to_string();
    assert!(write(&[], &same).is_ok());
    // No alpha leaves the product as it is.
    assert_eq!(write(&[("adapter.lora.alpha", None)], &same).unwrap().targets[0].scale, 1.0);
    assert!(write(&[("adapter.lora.task_name", text("poems"))], &same).is_ok());
    let cases: [(Change, &str); 8] = [
        (("general.type", text("model")), "a LoRA adapter says \"adapter\""),
        (("adapter.type", None), "is missing"),
        (("adapter.type", text("control")), "a LoRA adapter says \"lora\""),
        (("adapter.lora.alpha", text("eight")), "is not a number"),
        (("adapter.lora.alpha", Some(gguf::Value::F32(f32::INFINITY))), "is not a number"),
        (("adapter.alora.invocation_tokens", Some(gguf::Value::U32(1))), "is not understood"),
        (("general.architecture", text("mamba")), "known are llama"),
        (("general.architecture", text("gemma3")), "but the model is \"llama\""),
    ];
    for ((key, value), why) in cases {
        let e = write(&[(key, value)], &same).unwrap_err();
        assert!(e.contains(&format!("a.gguf: {key}: ")) && e.contains(why), "{e}");
    }
    for (from, to, why) in [
        ("blk.0.attn_v.weight.lora_a", "blk.0.attn_norm.weight", "only NAME.lora_a and NAME.lora_b"),
        ("blk.0.attn_v.weight.lora_a", "blk.0.attn_w.weight.lora_a", "only one of A and B"),
        ("output.weight.lora_a", "token_embd.weight.lora_a", "embedding of tokens"),
        ("blk.1", "blk.9", "is no matrix of this model"),
    ] {
        let e = write(&[], &|n| n.replace(from, to)).unwrap_err();
        assert!(e.contains(why), "{e}");
    }
}

#[test]
fn a_directory_without_an_adapter_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let e = Source::open_adapter(dir.path()).unwrap_err().to_string();
    assert!(e.contains("no adapter_model.safetensors"), "{e}");
    std::fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
    let e = Source::open_adapter(dir.path()).unwrap_err().to_string();
    assert!(e.contains("save the adapter as safetensors"), "{e}");
    write_safetensors(&dir.path().join("adapter_model.safetensors"), &pair(O));
    let e = Source::open_adapter(dir.path()).unwrap_err().to_string();
    assert!(e.contains("adapter_config.json"), "{e}");
}

#[test]
fn truncated_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let golden = goldens().join("adapters/llama3-rslora");
    let spec = model("llama3");
    std::fs::copy(golden.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
    for name in ["adapter_model.safetensors", "adapter.gguf"] {
        let whole = std::fs::read(golden.join(name)).unwrap();
        let path = dir.path().join(name);
        for n in (0..4000).step_by(37).chain((4000..whole.len()).step_by(1009)).chain([whole.len() - 1]) {
            std::fs::write(&path, &whole[..n]).unwrap();
            assert!(fit(&path, &spec).is_err(), "{n} bytes of {name}");
        }
        std::fs::write(&path, &whole).unwrap();
        fit(&path, &spec).unwrap();
    }
}

/// Any JSON, small.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_.^(*]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_.]{0,9}", inner, 0..4)
                .prop_map(|m| Value::from(m.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the settings are, the answer is an adapter with finite scales or an error; never a panic.
    #[test]
    fn any_setting_is_answered(changes in prop::collection::vec((0usize..12, anything()), 1..4)) {
        let keys = ["peft_type", "r", "lora_alpha", "bias", "use_rslora", "rank_pattern", "alpha_pattern",
            "target_modules", "modules_to_save", "init_lora_weights", "use_dora", "else"];
        let mut c = config();
        changes.into_iter().for_each(|(k, v)| c[keys[k]] = v);
        if let Ok(lora) = peft(&c, &pair(O)) {
            prop_assert!(lora.targets.iter().all(|t| t.scale.is_finite()));
        }
    }

    /// Bytes changed anywhere near the header, where sizes and names are.
    #[test]
    fn any_damage_is_answered(hits in prop::collection::vec((0usize..2500, any::<u8>()), 1..6), gguf: bool) {
        let dir = tempfile::tempdir().unwrap();
        let golden = goldens().join("adapters/llama3-rslora");
        std::fs::copy(golden.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
        let name = if gguf { "adapter.gguf" } else { "adapter_model.safetensors" };
        let mut bytes = std::fs::read(golden.join(name)).unwrap();
        hits.into_iter().for_each(|(at, b)| bytes[at] = b);
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let _ = fit(&dir.path().join(name), &model("llama3")); // an answer of either kind; a panic fails
    }
}
