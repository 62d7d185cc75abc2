//! Tiny random models of eight families as GGUF files, with matrices of any tensor type.

use crate::random::{Rng, f32_tensor, tensor};
use quarrel_formats::gguf::{NewTensor, write};
use quarrel_formats::{Array, DType, Metadata, Tensor, Value};
use std::path::Path;

/// Tokens in the vocabulary: as many as a request can have log-probabilities of.
pub const VOCAB: usize = 64;

const DIM: usize = 256;
const LAYERS: usize = 2;

/// Heads of a recurrence, their columns together, and those of a head's state.
const MAMBA: [usize; 3] = [4, 256, 32];

/// Which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Grouped heads in threes, interleaved rotation, a window.
    Llama,
    /// Norms on queries and keys and after each block, tied head, a window on the first layer alone.
    Gemma,
    /// A mixture of experts in each layer (Qwen 3).
    Experts,
    /// Latent attention, and experts in groups beside a shared one in the second layer (DeepSeek-V3).
    Latent,
    /// Short convolutions, before and after a layer of attention.
    Lfm2,
    /// Mamba-2, before and after a layer of attention.
    Granite,
    /// An encoder that reads the prompt, and a decoder (T5 1.1).
    T5,
    /// Four streams, an input for each layer, gates that are cut off, and two layers that attend to keys and values of others.
    Gemma3n,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Gemma => "gemma3",
            Family::Experts => "qwen3moe",
            Family::Latent => "deepseek2",
            Family::Lfm2 => "lfm2",
            Family::Granite => "granitehybrid",
            Family::T5 => "t5",
            Family::Gemma3n => "gemma3n",
        }
    }

    /// Query heads, key heads, and the columns of a head in the cache, of keys and of values.
    fn heads(self) -> [usize; 4] {
        match self {
            Family::Llama => [6, 2, 128, 128],
            Family::Gemma | Family::Gemma3n | Family::Experts | Family::Lfm2 | Family::Granite => {
                [4, 1, 64, 64]
            }
            Family::T5 => [4, 4, 64, 64],
            Family::Latent => [4, 1, RANK + ROTATED, RANK],
        }
    }
}

/// Columns of a latent.
const RANK: usize = 256;
/// Columns of a key that are rotated beside it.
const ROTATED: usize = 32;
/// Columns of a head before the latent is absorbed, less those; and of a value behind it.
const PLAIN: usize = 256;
const VALUE: usize = 64;
const EXPERTS: usize = 4;
/// Columns of a layer's own input, and rank of its residual.
const INPUT: usize = 64;

/// Writes a model of random weights, the same for the same arguments.
pub fn write_gguf(path: &Path, family: Family, dtype: DType, seed: u64) {
    let [heads, kv_heads, head_dim, v_dim] = family.heads();
    let (arch, ff) = (family.name(), 256);
    let (lfm2, granite) = (family == Family::Lfm2, family == Family::Granite);
    let gemma3n = family == Family::Gemma3n;
    let layers = LAYERS + if lfm2 || granite { 1 } else { 0 } + if gemma3n { 2 } else { 0 };
    let mut meta = Metadata::new();
    meta.insert("general.architecture", Value::String(arch.into()));
    let mut number = |key: &str, n: usize| drop(meta.insert(format!("{arch}.{key}"), Value::U32(n as u32)));
    number("block_count", layers);
    number("context_length", 4096);
    number("embedding_length", DIM);
    number("feed_forward_length", ff);
    number("attention.head_count", heads);
    number("attention.key_length", head_dim);
    number("attention.value_length", v_dim);
    if !lfm2 && !granite {
        number("attention.head_count_kv", kv_heads);
    }
    match family {
        Family::Lfm2 => number("shortconv.l_cache", 3),
        Family::Granite => {
            let [heads, inner, state] = MAMBA;
            number("ssm.conv_kernel", 4);
            number("ssm.state_size", state);
            number("ssm.group_count", 1);
            number("ssm.inner_size", inner);
            number("ssm.time_step_rank", heads);
        }
        Family::Llama => number("attention.sliding_window", 150),
        Family::Gemma => {
            number("attention.sliding_window", 50);
            number("attention.sliding_window_pattern", 2);
        }
        Family::Gemma3n => {
            number("attention.sliding_window", 50);
            number("attention.sliding_window_pattern", 2);
            number("attention.shared_kv_layers", 2);
            number("altup.num_inputs", 4);
            number("embedding_length_per_layer_input", INPUT);
        }
        Family::Experts => {}
        Family::T5 => {
            number("attention.relative_buckets_count", 32);
            number("decoder_block_count", layers);
            number("decoder_start_token_id", 0);
        }
        Family::Latent => {
            number("attention.kv_lora_rank", RANK);
            number("attention.key_length_mla", PLAIN + ROTATED);
            number("attention.value_length_mla", VALUE);
            number("rope.dimension_count", ROTATED);
            number("expert_group_count", 2);
            number("expert_group_used_count", 1);
            number("expert_gating_func", 2);
        }
    }
    if matches!(family, Family::Experts | Family::Latent) {
        number("expert_count", EXPERTS);
        number("expert_used_count", 2);
        meta.insert(format!("{arch}.expert_weights_norm"), Value::Bool(true));
    }
    if gemma3n {
        let cut = Array::F32(vec![0.3, f32::NEG_INFINITY, -0.2, f32::NEG_INFINITY]);
        meta.insert(format!("{arch}.activation_sparsity_scale"), Value::Array(cut));
    }
    if granite {
        meta.insert(format!("{arch}.rope.scaling.finetuned"), Value::Bool(false));
    }
    if lfm2 || granite {
        let heads = Array::U32(vec![0, kv_heads as u32, 0]);
        meta.insert(format!("{arch}.attention.head_count_kv"), Value::Array(heads));
    }
    meta.insert(format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));

    let mut rng = Rng(seed);
    let mut tensors: Vec<Tensor> = Vec::new();
    // Gains lie near 1; the rows of a matrix have a length near 1.5.
    let mut add = |name: String, shape: &[usize]| {
        tensors.push(match *shape {
            [.., _, cols] => {
                let dtype = if cols.is_multiple_of(dtype.block_len()) { dtype } else { DType::F32 };
                tensor(&name, dtype, shape, 1.5 * (cols as f32).powf(-0.5), &mut rng)
            }
            _ => {
                let gains: Vec<f32> = (0..shape[0]).map(|_| 1.0 + 0.2 * rng.normal()).collect();
                f32_tensor(&name, shape, &gains)
            }
        });
    };
    add("token_embd.weight".into(), &[VOCAB, DIM]);
    if family == Family::T5 {
        for (stack, l) in ["enc", "dec"].into_iter().flat_map(|s| (0..layers).map(move |l| (s, l))) {
            let mut layer =
                |name: &str, shape: &[usize]| add(format!("{stack}.blk.{l}.{name}.weight"), shape);
            for attention in ["attn", "cross_attn"].into_iter().take(if stack == "dec" { 2 } else { 1 }) {
                layer(&format!("{attention}_norm"), &[DIM]);
                ["q", "k", "v", "o"].iter().for_each(|x| layer(&format!("{attention}_{x}"), &[DIM, DIM]));
            }
            layer("ffn_norm", &[DIM]);
            ["ffn_gate", "ffn_up"].iter().for_each(|x| layer(x, &[ff, DIM]));
            layer("ffn_down", &[DIM, ff]);
        }
        ["enc.output_norm", "dec.output_norm"].iter().for_each(|n| add(format!("{n}.weight"), &[DIM]));
        add("output.weight".into(), &[VOCAB, DIM]);
        for stack in ["enc", "dec"] {
            let table: Vec<f32> = (0..32 * heads).map(|_| 1.5 * rng.normal()).collect();
            tensors.push(f32_tensor(&format!("{stack}.blk.0.attn_rel_b.weight"), &[32, heads], &table));
        }
        return finish(path, &meta, &tensors);
    }
    for l in 0..layers {
        let mut layer = |name: &str, shape: &[usize]| add(format!("blk.{l}.{name}.weight"), shape);
        layer("attn_norm", &[DIM]);
        layer("ffn_norm", &[DIM]);
        match family {
            Family::Latent => {
                layer("attn_q", &[heads * (PLAIN + ROTATED), DIM]);
                layer("attn_kv_a_mqa", &[RANK + ROTATED, DIM]);
                layer("attn_kv_a_norm", &[RANK]);
                layer("attn_k_b", &[heads, RANK, PLAIN]);
                layer("attn_v_b", &[heads, VALUE, RANK]);
                layer("attn_output", &[DIM, heads * VALUE]);
            }
            Family::Granite if l != 1 => {
                let [heads, inner, state] = MAMBA;
                layer("ssm_in", &[2 * inner + 2 * state + heads, DIM]);
                layer("ssm_norm", &[inner]);
                layer("ssm_out", &[DIM, inner]);
            }
            Family::Lfm2 if l != 1 => {
                layer("shortconv.in_proj", &[3 * DIM, DIM]);
                layer("shortconv.out_proj", &[DIM, DIM]);
            }
            _ => {
                layer("attn_q", &[heads * head_dim, DIM]);
                layer("attn_k", &[kv_heads * head_dim, DIM]);
                layer("attn_v", &[kv_heads * head_dim, DIM]);
                layer("attn_output", &[DIM, heads * head_dim]);
            }
        }
        if family == Family::Gemma || gemma3n {
            layer("post_attention_norm", &[DIM]);
            layer("post_ffw_norm", &[DIM]);
        }
        if gemma3n {
            ["laurel_post_norm", "post_norm", "altup_router_norm", "altup_correct_scale"]
                .iter()
                .for_each(|name| layer(name, &[DIM]));
            layer("laurel_l", &[INPUT, DIM]);
            layer("laurel_r", &[DIM, INPUT]);
            layer("inp_gate", &[INPUT, DIM]);
            layer("proj", &[DIM, INPUT]);
            layer("altup_router", &[4, DIM]);
            layer("altup_predict_coef", &[16, 4]);
            layer("altup_correct_coef", &[4, 4]);
        }
        if matches!(family, Family::Gemma | Family::Gemma3n | Family::Experts) || (lfm2 && l == 1) {
            layer("attn_q_norm", &[head_dim]);
            layer("attn_k_norm", &[head_dim]);
        }
        if family == Family::Experts || (family == Family::Latent && l == 1) {
            layer("ffn_gate_inp", &[EXPERTS, DIM]);
            layer("ffn_gate_exps", &[EXPERTS, ff, DIM]);
            layer("ffn_up_exps", &[EXPERTS, ff, DIM]);
            layer("ffn_down_exps", &[EXPERTS, DIM, ff]);
            if family == Family::Latent {
                layer("ffn_gate_shexp", &[ff, DIM]);
                layer("ffn_up_shexp", &[ff, DIM]);
                layer("ffn_down_shexp", &[DIM, ff]);
            }
        } else {
            layer("ffn_gate", &[ff, DIM]);
            layer("ffn_up", &[ff, DIM]);
            layer("ffn_down", &[DIM, ff]);
        }
    }
    add(if lfm2 { "token_embd_norm" } else { "output_norm" }.to_string() + ".weight", &[DIM]);
    if gemma3n {
        add("per_layer_token_embd.weight".into(), &[VOCAB - 7, layers * INPUT]);
        add("per_layer_model_proj.weight".into(), &[layers * INPUT, DIM]);
        add("per_layer_proj_norm.weight".into(), &[INPUT]);
        add("altup_proj.weight".into(), &[3, DIM, DIM]);
        add("altup_unembd_proj.weight".into(), &[3, DIM, DIM]);
    }
    if !matches!(family, Family::Gemma | Family::Gemma3n | Family::Lfm2 | Family::Granite) {
        add("output.weight".into(), &[VOCAB, DIM]);
    }
    for l in (0..layers).filter(|l| granite && *l != 1) {
        let [heads, inner, state] = MAMBA;
        let mut add = |name: &str, shape: &[usize], mean: f32, spread: f32| {
            let numbers: Vec<f32> =
                (0..shape.iter().product()).map(|_| mean + spread * rng.normal()).collect();
            tensors.push(f32_tensor(&format!("blk.{l}.{name}"), shape, &numbers));
        };
        add("ssm_conv1d.weight", &[inner + 2 * state, 4], 0.0, 0.5);
        add("ssm_conv1d.bias", &[inner + 2 * state], 0.0, 0.2);
        add("ssm_a", &[heads, 1], -1.0, 0.2);
        add("ssm_d", &[heads, 1], 1.0, 0.2);
        add("ssm_dt.bias", &[heads], -1.0, 0.5);
    }
    for l in (0..layers).filter(|l| lfm2 && *l != 1) {
        let taps: Vec<f32> = (0..3 * DIM).map(|_| 0.6 * rng.normal()).collect();
        tensors.push(f32_tensor(&format!("blk.{l}.shortconv.conv.weight"), &[DIM, 3], &taps));
    }

    finish(path, &meta, &tensors);
}

fn finish(path: &Path, meta: &Metadata, tensors: &[Tensor]) {
    let shapes: Vec<Vec<u64>> = tensors.iter().map(|t| t.shape.iter().map(|d| *d as u64).collect()).collect();
    let new: Vec<NewTensor> = tensors
        .iter()
        .zip(&shapes)
        .map(|(t, shape)| NewTensor { name: &t.name, dtype: t.dtype, shape, data: &t.data })
        .collect();
    let mut file = std::fs::File::create(path).expect("a place for a temporary model");
    write(&mut file, meta, &new).expect("a model that the format can hold");
}
