//! Llama and those that are the same but for their name.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&LLAMA, &MISTRAL];

/// Llama 1 to 3.3, SmolLM 1 and 2, TinyLlama, and Mistral 7B as GGUF calls it.
pub const LLAMA: Arch = Arch {
    gguf: "llama",
    hf: &["LlamaForCausalLM"],
    title: "Llama 2, 3, 3.1, 3.2; SmolLM, SmolLM2; TinyLlama",
    norm: NormKind::Rms,
    act: Activation::Silu,
    gated: true,
    qk_norm: QkNorm::None,
    norms: Norms::Before,
    causal: true,
    positions: Positions::Rotated,
    embed_norm: false,
    embed_sqrt_dim: false,
    windows: WindowPattern::All,
    local_rope_base: None,
    attn_scale: AttnScale::HeadDim,
    gguf_rope: RopeStyle::Interleaved,
    hf_norm_minus_one: false,
    names: &[],
    hf_unused: &[],
};

/// Mistral 7B and its kin, where a file says so itself.
pub const MISTRAL: Arch = Arch {
    gguf: "mistral",
    hf: &["MistralForCausalLM"],
    title: "Mistral 7B (sliding window where set)",
    ..LLAMA
};
