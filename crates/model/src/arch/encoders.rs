//! Encoders: every token sees the whole text, and hidden states are the result.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&BERT, &NOMIC_BERT];

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
    goldens: &["bert", "minilm"],
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
    goldens: &["nomic"],
    ..BERT
};
