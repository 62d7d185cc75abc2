//! The table of architectures: each family is a row that says how it differs from Llama.
//! A field enters only when a published checkpoint needs it.

use crate::experts::Experts;
use crate::hybrid::Hybrid;
use quarrel_ir::{Activation, Gate, Growth, NormKind, RopeStyle};

pub mod docs;
mod encoders;
mod experts;
mod gemma;
mod gpt;
mod hybrid;
mod llama;
mod pairs;
mod qwen;

pub use encoders::{BERT, NOMIC_BERT, T5, T5_ENCODER};
pub use experts::{DEEPSEEK2, GPT_OSS, GRANITE_MOE, LLAMA4, MIXTRAL, OLMOE, PHIMOE, QWEN2_MOE, QWEN3_MOE};
pub use gemma::{GEMMA, GEMMA2, GEMMA3, GEMMA3N};
pub use gpt::{BLOOM, FALCON, GPT2, GPTNEO, GPTNEOX, MPT, PHI2, STABLELM, STARCODER2};
pub use hybrid::{GRANITE_HYBRID, LFM2};
pub use llama::{
    BAICHUAN, EXAONE, EXAONE4, GRANITE, INTERNLM2, LLAMA, MINICPM, MISTRAL, MISTRAL3, OLMO, OLMO2, SMOLLM3,
};
pub use pairs::{CHATGLM, COHERE2, COMMAND_R, GLM4, PHI3, PHI3_SMALL};
pub use qwen::{QWEN2, QWEN3};

/// The rows, by kin. A file of rows is one line here.
const KIN: &[&[&Arch]] = &[
    llama::ROWS,
    qwen::ROWS,
    gemma::ROWS,
    pairs::ROWS,
    gpt::ROWS,
    experts::ROWS,
    hybrid::ROWS,
    encoders::ROWS,
];

/// How queries and keys are normalised before rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Not at all.
    None,
    /// Over each head with one gain of `head_dim`.
    PerHead,
    /// Over each head with a gain of its own.
    EachHead,
    /// Over all heads together.
    Whole,
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
    /// Of what attention and feed-forward give, inside the residual addition, and none before them.
    Outputs,
}

/// How a token learns its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotated,
    /// A row of a table is added to its embedding.
    Learned,
    /// Scores fall with the distance (ALiBi).
    Alibi,
    /// Scores have a bias by the bucket of the distance (T5).
    Buckets,
    /// Rotated, but ALiBi in the checkpoint with this many layers, for which no file has a field.
    RotatedBut {
        /// The layer count that marks the exception.
        layers: u32,
    },
}

/// Layers whose queries and keys are not rotated, where others are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrotated {
    /// None.
    Never,
    /// Every `n`-th (layers `n-1`, `2n-1`, ...).
    Every(u32),
    /// Those that see everything, if others have a window.
    Full,
}

/// Factors on the embeddings, on what a block adds, and on the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Multipliers {
    /// None.
    None,
    /// As Granite says them; logits are divided.
    Granite,
    /// As MiniCPM says them, from depth and width; logits are divided.
    MiniCpm,
    /// Logits are multiplied (Command-R).
    Logits,
    /// As Phi-3-small says them; logits are divided.
    Mup,
}

/// In what order a Hugging Face file stacks queries, keys and values in one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stacked {
    /// All queries, all keys, all values.
    InTurn,
    /// For each key head its queries, its key and its value.
    ByKvHead,
}

/// A setting of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// `true` or `false`.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A word.
    Text(&'static str),
}

/// Which layers see only a window, given the window's size from the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowPattern {
    /// Every layer, when the file has a window at all.
    All,
    /// Every layer from the one on that the file says.
    FromLayer,
    /// All but every `n`-th layer (layers `n-1`, `2n-1`, ... see everything).
    AllButEvery(u32),
}

/// The factor on attention scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttnScale {
    /// `head_dim^-0.5`.
    HeadDim,
    /// None.
    One,
    /// `head_dim^-0.5`, but `(dim / heads)^-0.5` in the checkpoint with this many layers: Gemma 3 27B's
    /// `query_pre_attn_scalar` is 168 and GGUF has no field for it.
    HeadDimBut {
        /// The layer count that marks the exception.
        layers: u32,
    },
}

/// Llama 4's attention, where a file does not say it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chunks {
    /// Tokens of a chunk.
    pub tokens: u32,
    /// How queries of layers without rotation grow.
    pub growth: Growth,
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
    /// How, where it is not by the nonlinearity alone.
    pub gate: Option<Gate>,
    /// Hugging Face stores gate and up row by row in one matrix.
    pub hf_gate_pairs: bool,
    /// How experts are chosen and used, where a model has them.
    pub experts: Option<Experts>,
    /// Keys and values come from a latent that both share.
    pub latent: bool,
    /// What some layers have instead of attention; the file says which.
    pub hybrid: Option<Hybrid>,
    /// Norm on queries and keys, where the file has its gains.
    pub qk_norm: QkNorm,
    /// Values are normalised per head, without a gain.
    pub value_norm: bool,
    /// Layers have several residual streams, a residual of low rank, and an input each: see [`crate::streams`].
    pub streams: bool,
    /// Where the norms of a block are.
    pub norms: Norms,
    /// Norms have neither gains nor biases.
    pub bare_norms: bool,
    /// Queries, keys and values are clipped, where the file says at what.
    pub clips: bool,
    /// The head's rows have length 1 in checkpoints with so many tokens, for which no file has a field.
    pub unit_head: Option<u32>,
    /// Attention and feed-forward read the same and are added together, unless the file says otherwise.
    pub parallel: bool,
    /// A token sees only what is before it. Without that the model is an encoder: it has no head, and what it gives are the
    /// hidden states.
    pub causal: bool,
    /// Positions.
    pub positions: Positions,
    /// Layers without rotation.
    pub unrotated: Unrotated,
    /// The embeddings are normalised before the first block.
    pub embed_norm: bool,
    /// Embeddings are multiplied by `sqrt(dim)`.
    pub embed_sqrt_dim: bool,
    /// Factors.
    pub multipliers: Multipliers,
    /// Window layers.
    pub windows: WindowPattern,
    /// Window layers rotate with this base instead of the file's.
    pub local_rope_base: Option<f64>,
    /// Window layers rotate without the file's scaling.
    pub local_unscaled: bool,
    /// Windows begin at multiples of their size, and queries of layers without rotation grow.
    pub chunks: Option<Chunks>,
    /// In GGUF files, YaRN's borders are at whole pairs.
    pub yarn_truncate: bool,
    /// Score factor.
    pub attn_scale: AttnScale,
    /// Queries grow with their position, where the file says how much (Ministral 3).
    pub growing: bool,
    /// How GGUF stores rotated heads.
    pub gguf_rope: RopeStyle,
    /// How Hugging Face files do.
    pub hf_rope: RopeStyle,
    /// How they stack queries, keys and values.
    pub hf_qkv: Stacked,
    /// They store the matrices of blocks with inputs as rows (GPT-2).
    pub hf_transposed: bool,
    /// Hugging Face stores norm gains minus one.
    pub hf_norm_minus_one: bool,
    /// Tensor names that differ from [`crate::names::COMMON`]; a name may have several rows.
    pub names: NameTable,
    /// GGUF names that differ from the canonical ones, in files that have the first of them.
    pub gguf_names: NameTable,
    /// Hugging Face tensors that hidden states and logits do not depend on.
    pub hf_unused: &'static [&'static str],
    /// What the family's configuration class has for keys that files leave out.
    pub hf_defaults: &'static [(&'static str, Setting)],
    /// Settings that only one value of is understood, where the file has them.
    pub hf_only: &'static [(&'static str, Setting)],
    /// The golden models that prove the row.
    pub goldens: &'static [&'static str],
    /// How it differs from Llama beyond what the fields above say, for the documentation.
    pub notes: &'static str,
}

impl Arch {
    /// What files leave out of a setting that is a number.
    pub(crate) fn default_number(&self, key: &str) -> Option<f64> {
        self.hf_defaults.iter().find_map(|(k, s)| match s {
            Setting::Number(n) if *k == key => Some(*n),
            _ => None,
        })
    }
}

/// All families.
pub fn all() -> impl Iterator<Item = &'static Arch> {
    KIN.iter().flat_map(|rows| rows.iter().copied())
}

/// The family of a GGUF file: Mixtral's, for one, have Llama's name.
pub fn by_gguf(name: &str, experts: bool) -> Option<&'static Arch> {
    let of_name = || all().filter(|a| a.gguf == name);
    of_name().find(|a| a.experts.is_some() == experts).or_else(|| of_name().next())
}

/// The family of a `config.json`.
pub fn by_hf(name: &str) -> Option<&'static Arch> {
    all().find(|a| a.hf.contains(&name))
}

/// All GGUF names, for error messages.
pub fn known() -> String {
    all().map(|a| a.gguf).collect::<Vec<_>>().join(", ")
}
