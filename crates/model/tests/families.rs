//! What a file says that is not understood is named: a family, a field, a setting, a tensor. The golden models are the files.

use quarrel_formats::Source;
use quarrel_model::ModelSpec;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/tiny").join(name)
}

fn open(path: &Path) -> Result<ModelSpec, String> {
    let source = Source::open(path).map_err(|e| e.to_string())?;
    quarrel_model::spec(&source).map_err(|e| e.to_string())
}

/// A golden's GGUF with each word replaced by another of its length.
fn gguf(name: &str, words: &[(&str, &str)]) -> Result<ModelSpec, String> {
    let mut bytes = std::fs::read(golden(name).join("model.gguf")).unwrap();
    for (from, to) in words {
        assert_eq!(from.len(), to.len());
        let places: Vec<usize> = bytes
            .windows(from.len())
            .enumerate()
            .filter(|(_, w)| *w == from.as_bytes())
            .map(|(i, _)| i)
            .collect();
        assert!(!places.is_empty(), "{from}");
        places.into_iter().for_each(|i| bytes[i..i + to.len()].copy_from_slice(to.as_bytes()));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    open(&path)
}

/// A golden's safetensors with settings changed.
fn hf(name: &str, settings: &[(&str, Value)]) -> Result<ModelSpec, String> {
    let from = golden(name);
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    settings.iter().for_each(|(k, v)| config[*k] = v.clone());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    open(&dir.path().join("model.safetensors"))
}

#[test]
fn both_sources_give_the_same_model() {
    for dir in std::fs::read_dir(golden("")).unwrap() {
        let dir = dir.unwrap().path();
        let files = [dir.join("model.safetensors"), dir.join("model.gguf")];
        if !files.iter().all(|f| f.exists()) {
            continue;
        }
        let [a, b] = files.map(|f| open(&f).unwrap());
        let sizes = |s: &ModelSpec| {
            let of = (
                s.vocab,
                s.dim,
                s.heads,
                s.kv_heads,
                s.head_dim,
                s.ff,
                s.tied,
                s.parallel,
                s.parallel && s.ff_norm,
            );
            (
                of,
                s.qkv_bias,
                s.norm_bias,
                s.qk_norm,
                s.alibi,
                s.layers.iter().map(|l| l.window).collect::<Vec<_>>(),
            )
        };
        assert_eq!(sizes(&a), sizes(&b), "{}", dir.display());
        let unrotated = |s: &ModelSpec| s.layers.iter().map(|l| l.rope.is_none()).collect::<Vec<_>>();
        assert_eq!(unrotated(&a), unrotated(&b), "{}", dir.display());
        assert_eq!((a.streams, a.first_shared), (b.streams, b.first_shared), "{}", dir.display());
        let near = |(a, b): (&Option<f32>, &Option<f32>)| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-6,
            (a, b) => a == b,
        };
        let same = a.cutoffs.len() == b.cutoffs.len() && a.cutoffs.iter().zip(&b.cutoffs).all(near);
        assert!(same, "{}: {:?}, {:?}", dir.display(), a.cutoffs, b.cutoffs);
    }
}

/// What the table of Gemma 3n's inputs costs: it is looked up in the file, and never multiplied with or copied; and layers that use
/// the keys and values of others have no cache.
#[test]
fn inputs_of_layers_stay_in_the_file_and_shared_layers_have_no_cache() {
    use quarrel_model::decoder::{Options, decoder};
    for file in ["model.safetensors", "model.gguf"] {
        let source = Source::open(golden("gemma3n").join(file)).unwrap();
        let spec = quarrel_model::spec(&source).unwrap();
        assert_eq!((spec.first_shared, spec.logit_softcap), (Some(3), Some(5.0)));
        assert_eq!([0, 1, 2, 3, 4].map(|l| spec.cache_of(l)), [0, 1, 2, 1, 2].map(Some));
        let program = decoder(&spec, &Options::default());
        assert_eq!((program.kv.len(), spec.kv_bytes_per_token(2)), (3, 3 * 2 * 2 * 16 * 2));
        let headers = quarrel_model::weights::headers(&source, &spec, &program).unwrap();
        let is = |w: &quarrel_ir::WeightDecl| w.parts[0].name == "per_layer_token_embd.weight";
        let table = program.weights.iter().position(is).unwrap();
        let uses = quarrel_ir::uses(&program)[table];
        assert_eq!(uses, quarrel_ir::Uses { table: true, ..Default::default() });
        assert_eq!(
            headers[table].iter().map(|(_, n, mapped)| (*n, *mapped)).collect::<Vec<_>>(),
            [(2 * 60 * 40, true)]
        );
        // Of the parameters of the file, all but keys and values of the layers that have those of others.
        let stored: usize = source.tensors().map(|t| t.len()).sum();
        let unused = 2 * 2 * (2 * 16 * 32) + 2 * 16;
        let left: u64 = (stored - unused) as u64 - spec.parameters();
        // Gains of heads, and of the norms around the blocks, are not counted in any family.
        assert_eq!(left, 5 * 16 + 3 * 16 + 5 * 2 * 32, "{file}");
    }
}

/// Baichuan 2 is known by its vocabulary, whatever the source; rows that were stored in blocks become floats.
#[test]
fn the_head_of_baichuan_2_has_rows_of_length_1() {
    use quarrel_formats::gguf::{NewTensor, write};
    use quarrel_formats::{DType, Metadata, Value as Field};
    use quarrel_model::{decoder, weights};

    let (vocab, dim, ff) = (125_696usize, 32usize, 32usize);
    let mut meta = Metadata::new();
    meta.insert("general.architecture", Field::String("baichuan".into()));
    let numbers =
        [("block_count", 1), ("context_length", 64), ("embedding_length", dim), ("attention.head_count", 1)];
    for (key, n) in numbers.into_iter().chain([("feed_forward_length", ff)]) {
        meta.insert(format!("baichuan.{key}"), Field::U32(n as u32));
    }
    meta.insert("baichuan.attention.layer_norm_rms_epsilon", Field::F32(1e-6));
    let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let square = names.map(|n| (format!("blk.0.{n}.weight"), vec![dim as u64, dim as u64]));
    let vectors = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"];
    let vectors = vectors.map(|n| (format!("{n}.weight"), vec![dim as u64]));
    let tables = ["token_embd", "output"].map(|n| (format!("{n}.weight"), vec![vocab as u64, dim as u64]));
    for dtype in [DType::F32, DType::Q8_0] {
        let tensors: Vec<_> = square
            .iter()
            .chain(&vectors)
            .chain(&tables)
            .map(|(name, shape)| {
                let n: u64 = shape.iter().product();
                let floats: Vec<f32> = (0..n).map(|i| (i % 37) as f32 * 0.25 + 1.0).collect();
                let dtype = if name == "output.weight" { dtype } else { DType::F32 };
                let mut data = Vec::new();
                quarrel_formats::quant::quantize(dtype, &floats, &mut data).unwrap();
                (name, shape.clone(), dtype, data)
            })
            .collect();
        let new: Vec<NewTensor> = tensors
            .iter()
            .map(|(name, shape, dtype, data)| NewTensor { name, dtype: *dtype, shape, data })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        write(&mut std::fs::File::create(&path).unwrap(), &meta, &new).unwrap();
        let source = Source::open(&path).unwrap();
        let spec = quarrel_model::spec(&source).unwrap();
        let head = weights::tensor(&source, &spec, "output.weight").unwrap();
        let floats = head.to_f32();
        for row in floats.chunks(dim).step_by(997) {
            let length: f32 = row.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 2e-3, "{dtype}: {length}");
        }
        let program = decoder::decoder(&spec, &decoder::Options::default());
        let at = program.weights.iter().position(|w| w.parts[0].name == "output.weight").unwrap();
        let told = weights::headers(&source, &spec, &program).unwrap()[at][0];
        assert_eq!(told, (head.dtype, head.data.len(), false));
    }
    let one = hf("baichuan2", &[("num_hidden_layers", json!(40))]).unwrap();
    assert!(one.unit_head && one.alibi.is_some());
    assert!(!open(&golden("baichuan").join("model.safetensors")).unwrap().unit_head);
}

#[test]
fn both_sources_give_the_same_stacks() {
    for name in ["encdec/t5", "encdec/flan-t5", "embed/t5encoder", "embed/umt5encoder"] {
        let dir = golden("..").join(name);
        let [a, b] = ["model.safetensors", "model.gguf"].map(|f| open(&dir.join(f)).unwrap());
        assert_eq!(a, b, "{name}");
        assert_eq!(a.source.is_some(), name.starts_with("encdec"));
        assert_eq!(a.distances.unwrap().each, name.contains("umt5"));
        let encoder = a.clone().to_run(true);
        let alone = |s: &ModelSpec| (s.layers.len(), s.context, s.arch.causal, s.source.is_none());
        assert_eq!(alone(&encoder), (2, 512, false, true), "{name}");
        assert_eq!(a.clone().to_run(false), a);
    }
}

#[test]
fn an_unknown_family_is_refused_with_the_nearest_and_the_difference() {
    let e = gguf("qwen3", &[("qwen3", "qwen9"), ("attn_k_norm", "attn_k_nose")]).unwrap_err();
    for part in ["\"qwen9\" is not supported", "nearest is qwen3", "blk.*.attn_k_nose.weight", "llama, "] {
        assert!(e.contains(part), "{part}: {e}");
    }
    let e = gguf("qwen3", &[("qwen3", "qwen9"), ("freq_base", "freq_nose")]).unwrap_err();
    assert!(e.contains("Fields not understood: qwen9.rope.freq_nose"), "{e}");
    let e =
        hf("olmo2", &[("architectures", json!(["Olmo9ForCausalLM"])), ("strange", json!(1))]).unwrap_err();
    assert!(
        e.contains("Olmo9ForCausalLM")
            && e.contains("nearest is olmo2")
            && e.contains("not understood: strange."),
        "{e}"
    );
}

#[test]
fn what_a_known_family_does_not_have_is_refused_by_name() {
    for (result, part) in [
        (
            gguf("qwen3", &[("freq_base", "freq_nose")]),
            "fields that the engine does not understand: qwen3.rope.freq_nose",
        ),
        (gguf("qwen2", &[("attn_output", "attn_others")]), "attn_others"),
        // A factor means something only where the family has it.
        (gguf("granite", &[("granite", "smollm3")]), "smollm3.embedding_scale"),
        (hf("phi2", &[("qk_layernorm", json!(true))]), "qk_layernorm"),
        (hf("llama2", &[("clip_qkv", json!(8.0))]), "clip_qkv"),
        (hf("olmo", &[("clip_qkv", json!(-1.0))]), "clipping"),
        (gguf("olmo-clip", &[("clamp_kqv", "clamp_kvq")]), "olmo.attention.clamp_kvq"),
        (hf("falcon", &[("alibi", json!(true))]), "alibi"),
        (hf("qwen3", &[("hidden_act", json!("gelu"))]), "hidden_act"),
        (hf("qwen3", &[("rope_scaling", json!({ "rope_type": "strange" }))]), "\"strange\" is not supported"),
        (
            hf(
                "phi3",
                &[("rope_scaling", json!({ "type": "su", "long_factor": [1.0], "short_factor": [1.0] }))],
            ),
            "factors",
        ),
        (hf("olmo3", &[("layer_types", json!(["full_attention"]))]), "layer_types"),
        (hf("lfm2", &[("layer_types", json!(["conv", "full_attention", "strange", "conv"]))]), "layer_types"),
        (hf("lfm2", &[("conv_L_cache", json!(99))]), "taps of the short convolutions"),
        (gguf("lfm2", &[("shortconv.l_cache", "shortconv.l_noses")]), "lfm2.shortconv.l_noses"),
        (gguf("granitehybrid", &[("ssm.group_count", "ssm.group_noses")]), "granitehybrid.ssm.group_noses"),
        (hf("granitehybrid", &[("mamba_n_groups", json!(2))]), "mamba_n_groups"),
        (hf("granitehybrid", &[("mamba_d_conv", json!(1))]), "taps of the convolution"),
        (hf("granite", &[("logits_scaling", json!(0.0))]), "logit scale"),
        (
            hf("gptneo", &[("attention_types", json!([[["global"], 3]]))]),
            "attention_types: must list 4 times",
        ),
        (
            hf("gptneo", &[("attention_types", json!([[["global", "sparse"], 2]]))]),
            "attention_types: has \"sparse\"",
        ),
        (hf("llama2", &[("blocksparse_block_size", json!(64))]), "not known to attend by blocks"),
        (hf("phi3-small", &[("blocksparse_block_size", json!(12))]), "which is no pattern"),
        (
            hf("phi3-small", &[("blocksparse_vert_stride", json!(null))]),
            "blocksparse_vert_stride: is missing",
        ),
        (hf("phi3-small", &[("dummy_token_indices", json!([64]))]), "have 64 of 64"),
        (hf("phi3-small", &[("gegelu_limit", json!(7.0))]), "gegelu_limit"),
        (
            hf("../encdec/t5", &[("feed_forward_proj", json!("gated-gelu"))]),
            "feed_forward_proj: is \"gated-gelu\"",
        ),
        (hf("../encdec/flan-t5", &[("feed_forward_proj", json!("gated-silu"))]), "feed_forward_proj"),
        (hf("../encdec/t5", &[("relative_attention_num_buckets", json!(33))]), "buckets of distances"),
        (hf("../encdec/t5", &[("decoder_start_token_id", json!(96))]), "answers begin with token 96"),
        (hf("../encdec/t5", &[("num_decoder_layers", json!(2))]), "decoder.block.2."),
        (
            gguf("../encdec/t5", &[("relative_buckets_count", "relative_buckets_noses")]),
            "t5.attention.relative_buckets_noses",
        ),
        (hf("gemma3n", &[("altup_active_idx", json!(1))]), "altup_active_idx"),
        (hf("gemma3n", &[("altup_correct_scale", json!(false))]), "altup_correct_scale"),
        (hf("gemma3n", &[("altup_num_inputs", json!(1))]), "streams"),
        (hf("gemma3n", &[("num_kv_shared_layers", json!(6))]), "is 6, but there are 5 layers"),
        (hf("gemma3n", &[("num_kv_shared_layers", json!(4))]), "shared keys and values: layer 1"),
        (hf("gemma3n", &[("intermediate_size", json!([40, 40, 40, 40, 48]))]), "intermediate_size"),
        (hf("gemma3n", &[("activation_sparsity_pattern", json!([0.5, 0.5]))]), "activation_sparsity_pattern"),
        (
            hf("gemma3n", &[("activation_sparsity_pattern", json!([0.5, 0.5, 0.5, 0.5, 1.0]))]),
            "no share below 1",
        ),
        (gguf("gemma3n", &[("altup.num_inputs", "altup.num_nosess")]), "gemma3n.altup.num_nosess"),
        (gguf("gemma3n", &[("laurel_post_norm", "laurel_nose_norm")]), "laurel_nose_norm"),
        // Streams mean something only where the family has them.
        (gguf("olmo-clip", &[("attention.clamp_kqv", "altup.correct_scale")]), "olmo.altup.correct_scale"),
        // What only two stacks have is nothing for others.
        (gguf("olmo-clip", &[("attention.clamp_kqv", "decoder_block_count")]), "olmo.decoder_block_count"),
        (
            hf(
                "phi3-small",
                &[("rope_scaling", json!({ "type": "su", "short_mscale": 1.0, "long_mscale": 1.1 }))],
            ),
            "long_mscale",
        ),
    ] {
        let e = result.unwrap_err();
        assert!(e.contains(part), "{part}: {e}");
    }
}

/// A golden whose tensors have other names, with another configuration.
fn renamed(
    name: &str,
    rename: &[(&str, &str)],
    config: impl Fn(Value) -> Value,
) -> Result<ModelSpec, String> {
    let from = golden(name);
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = std::str::from_utf8(&bytes[8..8 + len]).unwrap().to_string();
    for (a, b) in rename {
        assert!(header.contains(a), "{a}");
        header = header.replace(a, b);
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&bytes[8 + len..]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let old = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    std::fs::write(dir.path().join("config.json"), config(old).to_string()).unwrap();
    open(&dir.path().join("model.safetensors"))
}

#[test]
fn a_checkpoint_of_the_base_class_has_shorter_names() {
    let short = renamed("qwen3", &[("\"model.", "\"")], |c| c);
    assert_eq!(short, open(&golden("qwen3").join("model.safetensors")));
}

#[test]
fn a_model_that_sees_has_its_language_part_inside() {
    let nest = |c: Value| json!({ "architectures": ["Gemma3ForConditionalGeneration"], "text_config": c });
    let want = open(&golden("gemma3").join("model.safetensors"));
    assert!(want.is_ok());
    for model in ["language_model.model.", "model.language_model."] {
        let name = format!("\"{model}");
        assert_eq!(renamed("gemma3", &[("\"model.", &name)], nest), want, "{model}");
    }
}
