//! Encoders: every token sees the whole text, and hidden states are the result, or a decoder answers them.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&BERT, &NOMIC_BERT, &T5_ENCODER, &T5];

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

/// T5's encoder alone, of any version: what Sentence-T5 and GTR, and many that draw, are made of.
pub const T5_ENCODER: Arch = Arch {
    gguf: "t5encoder",
    hf: &["T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel"],
    title: "T5, mT5, UMT5 encoders: embeddings",
    causal: false,
    goldens: &["t5encoder", "umt5encoder"],
    ..T5
};

/// T5 1.0 and 1.1, Flan-T5 and mT5. Which version it is, the tensors tell.
pub const T5: Arch = Arch {
    gguf: "t5",
    hf: &["T5ForConditionalGeneration", "MT5ForConditionalGeneration"],
    title: "T5 1.0 and 1.1, Flan-T5, mT5: an encoder reads the prompt, a decoder answers",
    act: Activation::Relu,
    gated: false,
    positions: Positions::Buckets,
    names: &[
        ("token_embd", "shared"),
        ("token_embd", "encoder.embed_tokens"),
        ("token_embd", "decoder.embed_tokens"),
        ("enc.output_norm", "encoder.final_layer_norm"),
        ("enc.blk.{}.attn_norm", "encoder.block.{}.layer.0.layer_norm"),
        ("enc.blk.{}.attn_q", "encoder.block.{}.layer.0.SelfAttention.q"),
        ("enc.blk.{}.attn_k", "encoder.block.{}.layer.0.SelfAttention.k"),
        ("enc.blk.{}.attn_v", "encoder.block.{}.layer.0.SelfAttention.v"),
        ("enc.blk.{}.attn_output", "encoder.block.{}.layer.0.SelfAttention.o"),
        ("enc.blk.{}.attn_rel_b", "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias"),
        ("enc.blk.{}.ffn_norm", "encoder.block.{}.layer.1.layer_norm"),
        ("enc.blk.{}.ffn_gate", "encoder.block.{}.layer.1.DenseReluDense.wi_0"),
        ("enc.blk.{}.ffn_up", "encoder.block.{}.layer.1.DenseReluDense.wi_1"),
        ("enc.blk.{}.ffn_up", "encoder.block.{}.layer.1.DenseReluDense.wi"),
        ("enc.blk.{}.ffn_down", "encoder.block.{}.layer.1.DenseReluDense.wo"),
        ("dec.output_norm", "decoder.final_layer_norm"),
        ("dec.blk.{}.attn_norm", "decoder.block.{}.layer.0.layer_norm"),
        ("dec.blk.{}.attn_q", "decoder.block.{}.layer.0.SelfAttention.q"),
        ("dec.blk.{}.attn_k", "decoder.block.{}.layer.0.SelfAttention.k"),
        ("dec.blk.{}.attn_v", "decoder.block.{}.layer.0.SelfAttention.v"),
        ("dec.blk.{}.attn_output", "decoder.block.{}.layer.0.SelfAttention.o"),
        ("dec.blk.{}.attn_rel_b", "decoder.block.{}.layer.0.SelfAttention.relative_attention_bias"),
        ("dec.blk.{}.ffn_norm", "decoder.block.{}.layer.2.layer_norm"),
        ("dec.blk.{}.ffn_gate", "decoder.block.{}.layer.2.DenseReluDense.wi_0"),
        ("dec.blk.{}.ffn_up", "decoder.block.{}.layer.2.DenseReluDense.wi_1"),
        ("dec.blk.{}.ffn_up", "decoder.block.{}.layer.2.DenseReluDense.wi"),
        ("dec.blk.{}.ffn_down", "decoder.block.{}.layer.2.DenseReluDense.wo"),
        ("dec.blk.{}.cross_attn_norm", "decoder.block.{}.layer.1.layer_norm"),
        ("dec.blk.{}.cross_attn_q", "decoder.block.{}.layer.1.EncDecAttention.q"),
        ("dec.blk.{}.cross_attn_k", "decoder.block.{}.layer.1.EncDecAttention.k"),
        ("dec.blk.{}.cross_attn_v", "decoder.block.{}.layer.1.EncDecAttention.v"),
        ("dec.blk.{}.cross_attn_output", "decoder.block.{}.layer.1.EncDecAttention.o"),
    ],
    gguf_names: &[
        ("enc.blk.{}.attn_output", "enc.blk.{}.attn_o"),
        ("dec.blk.{}.attn_output", "dec.blk.{}.attn_o"),
        ("dec.blk.{}.cross_attn_output", "dec.blk.{}.cross_attn_o"),
    ],
    hf_unused: &[
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.{}.layer.{}.EncDecAttention.relative_attention_bias.weight",
    ],
    goldens: &["t5", "flan-t5", "mt5"],
    notes: "GELU (tanh) with a gate from version 1.1 on",
    ..LLAMA
};
