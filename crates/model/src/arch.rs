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

/// Where the norms of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and feed-forward.
    Before,
    /// Before and after them, inside the residual addition.
    Around,
    /// After each residual addition, as in the first transformers.
    After,
}

/// How a token learns its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotated,
    /// A row of a table is added to its embedding.
    Learned,
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
    /// Feed-forward nonlinearity.
    pub act: Activation,
    /// Whether it gates a second product.
    pub gated: bool,
    /// Norm on queries and keys.
    pub qk_norm: QkNorm,
    /// Where the norms of a block are.
    pub norms: Norms,
    /// A token sees only what is before it. Without that the model is an encoder: it has no head, and what it gives are the
    /// hidden states.
    pub causal: bool,
    /// Positions.
    pub positions: Positions,
    /// The embeddings are normalised before the first block.
    pub embed_norm: bool,
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
    /// Hugging Face tensors that hidden states and logits do not depend on.
    pub hf_unused: &'static [&'static str],
}

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

/// BERT and its kin: all-MiniLM, BGE, E5, GTE and other encoders of text.
pub const BERT: Arch = Arch {
    gguf: "bert",
    hf: &["BertModel"],
    title: "BERT encoders (all-MiniLM, BGE, E5): embeddings",
    norm: NormKind::Layer,
    act: Activation::GeluErf,
    gated: false,
    norms: Norms::After,
    causal: false,
    positions: Positions::Learned,
    embed_norm: true,
    gguf_rope: RopeStyle::Neox,
    names: &[
        ("token_embd", "embeddings.word_embeddings"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("position_embd", "embeddings.position_embeddings"),
        ("token_embd_norm", "embeddings.LayerNorm"),
        ("blk.{}.attn_q", "encoder.layer.{}.attention.self.query"),
        ("blk.{}.attn_k", "encoder.layer.{}.attention.self.key"),
        ("blk.{}.attn_v", "encoder.layer.{}.attention.self.value"),
        ("blk.{}.attn_output", "encoder.layer.{}.attention.output.dense"),
        ("blk.{}.attn_output_norm", "encoder.layer.{}.attention.output.LayerNorm"),
        ("blk.{}.ffn_up", "encoder.layer.{}.intermediate.dense"),
        ("blk.{}.ffn_down", "encoder.layer.{}.output.dense"),
        ("blk.{}.layer_output_norm", "encoder.layer.{}.output.LayerNorm"),
    ],
    hf_unused: &["embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"],
    ..LLAMA
};

/// nomic-embed-text: a BERT with rotations and a gate. GGUF only; its checkpoints come with code of their own.
pub const NOMIC_BERT: Arch = Arch {
    gguf: "nomic-bert",
    hf: &[],
    title: "nomic-embed-text v1, v1.5 (GGUF): embeddings",
    act: Activation::Silu,
    gated: true,
    positions: Positions::Rotated,
    ..BERT
};

/// All families.
pub const ALL: &[&Arch] = &[&LLAMA, &MISTRAL, &GEMMA3, &BERT, &NOMIC_BERT];

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
