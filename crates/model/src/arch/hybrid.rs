//! Families whose layers are not all attention.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&LFM2];

/// LFM 2: most layers are short convolutions.
pub const LFM2: Arch = Arch {
    gguf: "lfm2",
    hf: &["Lfm2ForCausalLM"],
    title: "LFM 2, 2.5 (dense)",
    hybrid: Some(Hybrid::ShortConv),
    qk_norm: QkNorm::PerHead,
    gguf_rope: RopeStyle::Neox,
    names: &[
        ("output_norm", "model.embedding_norm"),
        ("blk.{}.attn_norm", "model.layers.{}.operator_norm"),
        ("blk.{}.attn_output", "model.layers.{}.self_attn.out_proj"),
        ("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_layernorm"),
        ("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_layernorm"),
        ("blk.{}.shortconv.in_proj", "model.layers.{}.conv.in_proj"),
        ("blk.{}.shortconv.conv", "model.layers.{}.conv.conv"),
        ("blk.{}.shortconv.out_proj", "model.layers.{}.conv.out_proj"),
        ("blk.{}.ffn_norm", "model.layers.{}.ffn_norm"),
        ("blk.{}.ffn_gate", "model.layers.{}.feed_forward.w1"),
        ("blk.{}.ffn_up", "model.layers.{}.feed_forward.w3"),
        ("blk.{}.ffn_down", "model.layers.{}.feed_forward.w2"),
    ],
    // To llama.cpp the last norm is one of the embeddings.
    gguf_names: &[("output_norm", "token_embd_norm")],
    hf_defaults: &[("conv_L_cache", Setting::Number(3.0)), ("rope_theta", Setting::Number(1e6))],
    hf_only: &[("block_use_swiglu", Setting::Flag(true))],
    goldens: &["lfm2"],
    ..LLAMA
};
