//! Tiny random models of two families as GGUF files, with matrices of any tensor type.

use crate::random::{Rng, tensor};
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
    let mut add = |name: String, shape: &[usize], dtype, scale, shift: f32| {
        let mut t = tensor(&name, dtype, shape, scale, &mut rng);
        if shift != 0.0 {
            let shifted: Vec<u8> = t.to_f32().iter().flat_map(|x| (x + shift).to_le_bytes()).collect();
            t.data = shifted.into();
        }
        tensors.push(t);
    };
    let near_one = |add: &mut dyn FnMut(String, &[usize], DType, f32, f32), name: String, n| {
        add(name, &[n], DType::F32, 0.2, 1.0);
    };
    let matrix = |add: &mut dyn FnMut(String, &[usize], DType, f32, f32), name: String, rows, cols: usize| {
        add(name, &[rows, cols], dtype, 1.5 * (cols as f32).powf(-0.5), 0.0);
    };
    matrix(&mut add, "token_embd.weight".into(), VOCAB, DIM);
    for l in 0..LAYERS {
        let name = |n: &str| format!("blk.{l}.{n}.weight");
        for n in ["attn_norm", "ffn_norm"] {
            near_one(&mut add, name(n), DIM);
        }
        if gemma {
            near_one(&mut add, name("post_attention_norm"), DIM);
            near_one(&mut add, name("post_ffw_norm"), DIM);
            near_one(&mut add, name("attn_q_norm"), head_dim);
            near_one(&mut add, name("attn_k_norm"), head_dim);
        }
        matrix(&mut add, name("attn_q"), heads * head_dim, DIM);
        matrix(&mut add, name("attn_k"), kv_heads * head_dim, DIM);
        matrix(&mut add, name("attn_v"), kv_heads * head_dim, DIM);
        matrix(&mut add, name("attn_output"), DIM, heads * head_dim);
        matrix(&mut add, name("ffn_gate"), ff, DIM);
        matrix(&mut add, name("ffn_up"), ff, DIM);
        matrix(&mut add, name("ffn_down"), DIM, ff);
    }
    near_one(&mut add, "output_norm.weight".into(), DIM);
    if !gemma {
        matrix(&mut add, "output.weight".into(), VOCAB, DIM);
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
