//! Gemma: norms around the blocks, gains stored as their difference from 1, windows in most layers.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&GEMMA, &GEMMA2, &GEMMA3];

/// Gemma 1.
pub const GEMMA: Arch = Arch {
    gguf: "gemma",
    hf: &["GemmaForCausalLM"],
    title: "Gemma 1",
    act: Activation::GeluTanh,
    embed_sqrt_dim: true,
    gguf_rope: RopeStyle::Neox,
    hf_norm_minus_one: true,
    goldens: &["gemma"],
    ..LLAMA
};

/// Gemma 2.
pub const GEMMA2: Arch = Arch {
    gguf: "gemma2",
    hf: &["Gemma2ForCausalLM"],
    title: "Gemma 2",
    norms: Norms::Around,
    windows: WindowPattern::AllButEvery(2),
    attn_scale: AttnScale::HeadDimBut { layers: 46 },
    names: GEMMA3.names,
    goldens: &["gemma2"],
    notes: "scores and logits are capped",
    ..GEMMA
};

/// Gemma 3, text.
pub const GEMMA3: Arch = Arch {
    gguf: "gemma3",
    hf: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    title: "Gemma 3 (text)",
    act: Activation::GeluTanh,
    qk_norm: QkNorm::PerHead,
    norms: Norms::Around,
    embed_sqrt_dim: true,
    windows: WindowPattern::AllButEvery(6),
    local_rope_base: Some(10_000.0),
    attn_scale: AttnScale::HeadDimBut { layers: 62 },
    gguf_rope: RopeStyle::Neox,
    hf_norm_minus_one: true,
    hf_defaults: &[
        ("vocab_size", Setting::Number(262_208.0)),
        ("num_attention_heads", Setting::Number(8.0)),
        ("num_key_value_heads", Setting::Number(4.0)),
        ("head_dim", Setting::Number(256.0)),
        ("max_position_embeddings", Setting::Number(131_072.0)),
        ("eps", Setting::Number(1e-6)),
        ("query_pre_attn_scalar", Setting::Number(256.0)),
        ("rope_theta", Setting::Number(1e6)),
    ],
    goldens: &["gemma3", "gemma3-scaled"],
    names: &[
        ("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
        ("blk.{}.ffn_norm", "model.layers.{}.pre_feedforward_layernorm"),
        ("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
    ],
    ..LLAMA
};
