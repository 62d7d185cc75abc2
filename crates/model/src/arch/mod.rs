//! The table of architectures: each family is a row that says how it differs from Llama.
//! A field enters only when a published checkpoint needs it.

use quarrel_ir::{Activation, NormKind, RopeStyle};

mod encoders;
mod gemma;
mod llama;

pub use encoders::{BERT, NOMIC_BERT};
pub use gemma::GEMMA3;
pub use llama::{LLAMA, MISTRAL};

/// The rows, by kin. A file of rows is one line here.
const KIN: &[&[&Arch]] = &[llama::ROWS, gemma::ROWS, encoders::ROWS];

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

/// All families.
pub fn all() -> impl Iterator<Item = &'static Arch> {
    KIN.iter().flat_map(|rows| rows.iter().copied())
}

/// The family of a GGUF file.
pub fn by_gguf(name: &str) -> Option<&'static Arch> {
    all().find(|a| a.gguf == name)
}

/// The family of a `config.json`.
pub fn by_hf(name: &str) -> Option<&'static Arch> {
    all().find(|a| a.hf.contains(&name))
}

/// All GGUF names, for error messages.
pub fn known() -> String {
    all().map(|a| a.gguf).collect::<Vec<_>>().join(", ")
}
