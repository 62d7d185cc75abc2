//! Tiny random models of two families as GGUF files, with matrices of any tensor type.

use crate::random::{Rng, f32_tensor, tensor};
use quarrel_formats::gguf::{NewTensor, write};
use quarrel_formats::{DType, Metadata, Tensor, Value};
use std::path::Path;

/// Tokens in the vocabulary: as many as a request can have log-probabilities of.
pub const VOCAB: usize = 64;

const DIM: usize = 256;
const LAYERS: usize = 2;

/// Which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Grouped heads in threes, interleaved rotation, a window.
    Llama,
    /// Norms on queries and keys and after each block, tied head, a window on the first layer alone.
    Gemma,
}

/// Writes a model of random weights, the same for the same arguments.
pub fn write_gguf(path: &Path, family: Family, dtype: DType, seed: u64) {
    let gemma = family == Family::Gemma;
    let (heads, kv_heads, head_dim, ff) = if gemma { (4, 1, 64, 256) } else { (6, 2, 128, 256) };
    let mut meta = Metadata::new();
    let arch = if gemma { "gemma3" } else { "llama" };
    meta.insert("general.architecture", Value::String(arch.into()));
    let mut number = |key: &str, n: usize| drop(meta.insert(format!("{arch}.{key}"), Value::U32(n as u32)));
    number("block_count", LAYERS);
    number("context_length", 4096);
    number("embedding_length", DIM);
    number("feed_forward_length", ff);
    number("attention.head_count", heads);
    number("attention.head_count_kv", kv_heads);
    number("attention.key_length", head_dim);
    number("attention.value_length", head_dim);
    number("attention.sliding_window", if gemma { 50 } else { 150 });
    if gemma {
        number("attention.sliding_window_pattern", 2);
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
    for l in 0..LAYERS {
        let mut layer = |name: &str, shape: &[usize]| add(format!("blk.{l}.{name}.weight"), shape);
        layer("attn_norm", &[DIM]);
        layer("ffn_norm", &[DIM]);
        if gemma {
            layer("post_attention_norm", &[DIM]);
            layer("post_ffw_norm", &[DIM]);
            layer("attn_q_norm", &[head_dim]);
            layer("attn_k_norm", &[head_dim]);
        }
        layer("attn_q", &[heads * head_dim, DIM]);
        layer("attn_k", &[kv_heads * head_dim, DIM]);
        layer("attn_v", &[kv_heads * head_dim, DIM]);
        layer("attn_output", &[DIM, heads * head_dim]);
        layer("ffn_gate", &[ff, DIM]);
        layer("ffn_up", &[ff, DIM]);
        layer("ffn_down", &[DIM, ff]);
    }
    add("output_norm.weight".into(), &[DIM]);
    if !gemma {
        add("output.weight".into(), &[VOCAB, DIM]);
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
