//! The table of architectures: each family is a row that says how it differs from Llama.
//! A field enters only when a published checkpoint needs it.

use quarrel_ir::{Activation, NormKind, RopeStyle};

/// How queries and keys are normalised before rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Not at all.
    None,
    /// RMS norm over each head with one gain of `head_dim`.
    PerHead,
}

/// Which layers see only a window, given the window's size from the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowPattern {
    /// Every layer, when the file has a window at all.
    All,
    /// All but every `n`-th layer (layers `n-1`, `2n-1`, ... see everything).
    AllButEvery(u32),
}

/// The factor on attention scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttnScale {
    /// `head_dim^-0.5`.
    HeadDim,
    /// `head_dim^-0.5`, but `(dim / heads)^-0.5` in the checkpoint with this many layers: Gemma 3 27B's
    /// `query_pre_attn_scalar` is 168 and GGUF has no field for it.
    HeadDimBut {
        /// The layer count that marks the exception.
        layers: u32,
    },
}

/// Rows of tensor names: canonical GGUF stem, Hugging Face stem; `{}` is the layer.
pub type NameTable = &'static [(&'static str, &'static str)];

/// One family.
#[derive(Debug, Clone, Copy)]
pub struct Arch {
    /// `general.architecture` in GGUF.
    pub gguf: &'static str,
    /// `architectures[0]` in `config.json`.
    pub hf: &'static [&'static str],
    /// What people call it, for the documentation.
    pub title: &'static str,
    /// Kind of norm.
    pub norm: NormKind,
    /// Feed-forward nonlinearity (always gated so far).
    pub act: Activation,
    /// Norm on queries and keys.
    pub qk_norm: QkNorm,
    /// Norms after attention and feed-forward, before the residual addition.
    pub post_norms: bool,
    /// Embeddings are multiplied by `sqrt(dim)`.
    pub embed_sqrt_dim: bool,
    /// Window layers.
    pub windows: WindowPattern,
    /// Window layers rotate with this base instead of the file's.
    pub local_rope_base: Option<f64>,
    /// Score factor.
    pub attn_scale: AttnScale,
    /// How GGUF stores rotated heads; Hugging Face files are always NeoX.
    pub gguf_rope: RopeStyle,
    /// Hugging Face stores norm gains minus one.
    pub hf_norm_minus_one: bool,
    /// Tensor names that differ from [`crate::names::COMMON`].
    pub names: NameTable,
}

/// Llama 1 to 3.3, SmolLM 1 and 2, TinyLlama, and Mistral 7B as GGUF calls it.
pub const LLAMA: Arch = Arch {
    gguf: "llama",
    hf: &["LlamaForCausalLM"],
    title: "Llama 2, 3, 3.1, 3.2; SmolLM, SmolLM2; TinyLlama",
    norm: NormKind::Rms,
    act: Activation::Silu,
    qk_norm: QkNorm::None,
    post_norms: false,
    embed_sqrt_dim: false,
    windows: WindowPattern::All,
    local_rope_base: None,
    attn_scale: AttnScale::HeadDim,
    gguf_rope: RopeStyle::Interleaved,
    hf_norm_minus_one: false,
    names: &[],
};

/// Mistral 7B and its kin, where a file says so itself.
pub const MISTRAL: Arch = Arch {
    gguf: "mistral",
    hf: &["MistralForCausalLM"],
    title: "Mistral 7B (sliding window where set)",
    ..LLAMA
};

/// Gemma 3, text.
pub const GEMMA3: Arch = Arch {
    gguf: "gemma3",
    hf: &["Gemma3ForCausalLM"],
    title: "Gemma 3 (text)",
    act: Activation::GeluTanh,
    qk_norm: QkNorm::PerHead,
    post_norms: true,
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

/// All families.
pub const ALL: &[&Arch] = &[&LLAMA, &MISTRAL, &GEMMA3];

/// The family of a GGUF file.
pub fn by_gguf(name: &str) -> Option<&'static Arch> {
    ALL.iter().copied().find(|a| a.gguf == name)
}

/// The family of a `config.json`.
pub fn by_hf(name: &str) -> Option<&'static Arch> {
    ALL.iter().copied().find(|a| a.hf.contains(&name))
}

/// All GGUF names, for error messages.
pub fn known() -> String {
    ALL.iter().map(|a| a.gguf).collect::<Vec<_>>().join(", ")
}
