//! Gemma: norms around the blocks, gains stored as their difference from 1, windows in most layers.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&GEMMA3];

/// Gemma 3, text.
pub const GEMMA3: Arch = Arch {
    gguf: "gemma3",
    hf: &["Gemma3ForCausalLM"],
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
    names: &[
        ("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
        ("blk.{}.ffn_norm", "model.layers.{}.pre_feedforward_layernorm"),
        ("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
    ],
    ..LLAMA
};
