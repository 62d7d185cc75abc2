//! Tiny random models of four families as GGUF files, with matrices of any tensor type.

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
    /// Short convolutions, before and after a layer of attention.
    Lfm2,
    /// Mamba-2, before and after a layer of attention.
    Granite,
}

/// Writes a model of random weights, the same for the same arguments.
pub fn write_gguf(path: &Path, family: Family, dtype: DType, seed: u64) {
    let (gemma, lfm2) = (family == Family::Gemma, family == Family::Lfm2);
    let (heads, kv_heads, head_dim, ff) =
        if family == Family::Llama { (6, 2, 128, 256) } else { (4, 1, 64, 256) };
    let granite = family == Family::Granite;
    let layers = if lfm2 || granite { LAYERS + 1 } else { LAYERS };
    let mut meta = Metadata::new();
    let arch = ["llama", "gemma3", "lfm2", "granitehybrid"][family as usize];
    meta.insert("general.architecture", Value::String(arch.into()));
    let mut number = |key: &str, n: usize| drop(meta.insert(format!("{arch}.{key}"), Value::U32(n as u32)));
    number("block_count", layers);
    number("context_length", 4096);
    number("embedding_length", DIM);
    number("feed_forward_length", ff);
    number("attention.head_count", heads);
    number("attention.key_length", head_dim);
    number("attention.value_length", head_dim);
    if granite {
        let [heads, inner, state] = MAMBA;
        number("ssm.conv_kernel", 4);
        number("ssm.state_size", state);
        number("ssm.group_count", 1);
        number("ssm.inner_size", inner);
        number("ssm.time_step_rank", heads);
    } else if lfm2 {
        number("shortconv.l_cache", 3);
    } else {
        number("attention.head_count_kv", kv_heads);
        number("attention.sliding_window", if gemma { 50 } else { 150 });
    }
    if gemma {
        number("attention.sliding_window_pattern", 2);
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
            [_, cols] => tensor(&name, dtype, shape, 1.5 * (cols as f32).powf(-0.5), &mut rng),
            _ => {
                let gains: Vec<f32> = (0..shape[0]).map(|_| 1.0 + 0.2 * rng.normal()).collect();
                f32_tensor(&name, shape, &gains)
            }
        });
    };
    add("token_embd.weight".into(), &[VOCAB, DIM]);
    for l in 0..layers {
        let mut layer = |name: &str, shape: &[usize]| add(format!("blk.{l}.{name}.weight"), shape);
        layer("attn_norm", &[DIM]);
        layer("ffn_norm", &[DIM]);
        if gemma {
            layer("post_attention_norm", &[DIM]);
            layer("post_ffw_norm", &[DIM]);
        }
        if granite && l != 1 {
            let [heads, inner, state] = MAMBA;
            layer("ssm_in", &[2 * inner + 2 * state + heads, DIM]);
            layer("ssm_norm", &[inner]);
            layer("ssm_out", &[DIM, inner]);
        } else if lfm2 && l != 1 {
            layer("shortconv.in_proj", &[3 * DIM, DIM]);
            layer("shortconv.out_proj", &[DIM, DIM]);
        } else {
            if gemma || lfm2 {
                layer("attn_q_norm", &[head_dim]);
                layer("attn_k_norm", &[head_dim]);
            }
            layer("attn_q", &[heads * head_dim, DIM]);
            layer("attn_k", &[kv_heads * head_dim, DIM]);
            layer("attn_v", &[kv_heads * head_dim, DIM]);
            layer("attn_output", &[DIM, heads * head_dim]);
        }
        layer("ffn_gate", &[ff, DIM]);
        layer("ffn_up", &[ff, DIM]);
        layer("ffn_down", &[DIM, ff]);
    }
    add(if lfm2 { "token_embd_norm" } else { "output_norm" }.to_string() + ".weight", &[DIM]);
    if family == Family::Llama {
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

    let shapes: Vec<Vec<u64>> = tensors.iter().map(|t| t.shape.iter().map(|d| *d as u64).collect()).collect();
    let new: Vec<NewTensor> = tensors
        .iter()
        .zip(&shapes)
        .map(|(t, shape)| NewTensor { name: &t.name, dtype: t.dtype, shape, data: &t.data })
        .collect();
    let mut file = std::fs::File::create(path).expect("a place for a temporary model");
    write(&mut file, &meta, &new).expect("a model that the format can hold");
}
