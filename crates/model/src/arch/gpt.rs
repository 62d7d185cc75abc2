//! The line of GPT-2: layer norms, biases, two products in a feed-forward block, one matrix of queries, keys and values.

use super::*;

pub(super) const ROWS: &[&Arch] =
    &[&GPT2, &GPTNEO, &GPTNEOX, &STARCODER2, &PHI2, &FALCON, &MPT, &BLOOM, &STABLELM];

/// GPT-2.
pub const GPT2: Arch = Arch {
    gguf: "gpt2",
    hf: &["GPT2LMHeadModel"],
    title: "GPT-2",
    norm: NormKind::Layer,
    act: Activation::GeluTanh,
    gated: false,
    positions: Positions::Learned,
    gguf_rope: RopeStyle::Neox,
    hf_transposed: true,
    names: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("blk.{}.attn_norm", "transformer.h.{}.ln_1"),
        ("blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn"),
        ("blk.{}.attn_output", "transformer.h.{}.attn.c_proj"),
        ("blk.{}.ffn_norm", "transformer.h.{}.ln_2"),
        ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc"),
        ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
    ],
    hf_unused: &["transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"],
    hf_only: &[
        ("scale_attn_by_inverse_layer_idx", Setting::Flag(false)),
        ("scale_attn_weights", Setting::Flag(true)),
        ("add_cross_attention", Setting::Flag(false)),
    ],
    goldens: &["gpt2"],
    ..LLAMA
};

/// GPT-Neo.
pub const GPTNEO: Arch = Arch {
    gguf: "gptneo",
    hf: &["GPTNeoForCausalLM"],
    title: "GPT-Neo 125M, 1.3B, 2.7B (safetensors)",
    attn_scale: AttnScale::One,
    hf_transposed: false,
    names: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("blk.{}.attn_norm", "transformer.h.{}.ln_1"),
        ("blk.{}.attn_q", "transformer.h.{}.attn.attention.q_proj"),
        ("blk.{}.attn_k", "transformer.h.{}.attn.attention.k_proj"),
        ("blk.{}.attn_v", "transformer.h.{}.attn.attention.v_proj"),
        ("blk.{}.attn_output", "transformer.h.{}.attn.attention.out_proj"),
        ("blk.{}.ffn_norm", "transformer.h.{}.ln_2"),
        ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc"),
        ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
    ],
    hf_unused: &["transformer.h.{}.attn.attention.bias", "transformer.h.{}.attn.attention.masked_bias"],
    hf_defaults: &[("sliding_window", Setting::Number(256.0))],
    hf_only: &[],
    goldens: &["gptneo"],
    notes: "scores are not scaled; a window in the layers that the file calls local",
    ..GPT2
};

/// GPT-NeoX and Pythia.
pub const GPTNEOX: Arch = Arch {
    gguf: "gptneox",
    hf: &["GPTNeoXForCausalLM"],
    title: "GPT-NeoX, Pythia",
    act: Activation::GeluErf,
    parallel: true,
    positions: Positions::Rotated,
    hf_transposed: false,
    hf_qkv: Stacked::ByKvHead,
    names: &[
        ("token_embd", "gpt_neox.embed_in"),
        ("output_norm", "gpt_neox.final_layer_norm"),
        ("output", "embed_out"),
        ("output", "lm_head"),
        ("blk.{}.attn_norm", "gpt_neox.layers.{}.input_layernorm"),
        ("blk.{}.attn_qkv", "gpt_neox.layers.{}.attention.query_key_value"),
        ("blk.{}.attn_output", "gpt_neox.layers.{}.attention.dense"),
        ("blk.{}.ffn_norm", "gpt_neox.layers.{}.post_attention_layernorm"),
        ("blk.{}.ffn_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
        ("blk.{}.ffn_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
    ],
    hf_unused: &["gpt_neox.layers.{}.attention.bias", "gpt_neox.layers.{}.attention.masked_bias"],
    hf_defaults: &[("partial_rotary_factor", Setting::Number(0.25)), ("eps", Setting::Number(1e-5))],
    hf_only: &[],
    goldens: &["gptneox", "pythia"],
    ..GPT2
};

/// StarCoder 2.
pub const STARCODER2: Arch = Arch {
    gguf: "starcoder2",
    hf: &["Starcoder2ForCausalLM"],
    title: "StarCoder 2",
    positions: Positions::Rotated,
    hf_transposed: false,
    names: &[
        ("blk.{}.ffn_up", "model.layers.{}.mlp.c_fc"),
        ("blk.{}.ffn_down", "model.layers.{}.mlp.c_proj"),
    ],
    hf_unused: &[],
    hf_only: &[],
    goldens: &["starcoder2", "starcoder2-full"],
    ..GPT2
};

/// Phi 1, 1.5 and 2.
pub const PHI2: Arch = Arch {
    gguf: "phi2",
    hf: &["PhiForCausalLM"],
    title: "Phi-1, Phi-1.5, Phi-2",
    parallel: true,
    names: &[
        ("output_norm", "model.final_layernorm"),
        ("blk.{}.attn_output", "model.layers.{}.self_attn.dense"),
        ("blk.{}.ffn_up", "model.layers.{}.mlp.fc1"),
        ("blk.{}.ffn_down", "model.layers.{}.mlp.fc2"),
    ],
    hf_defaults: &[("partial_rotary_factor", Setting::Number(0.5))],
    hf_only: &[("qk_layernorm", Setting::Flag(false))],
    goldens: &["phi2"],
    ..STARCODER2
};

/// Falcon 7B, 40B, 180B and 2.
pub const FALCON: Arch = Arch {
    gguf: "falcon",
    hf: &["FalconForCausalLM", "RWForCausalLM"],
    title: "Falcon 7B, 40B, 180B; Falcon 2",
    act: Activation::GeluErf,
    names: &[
        ("token_embd", "transformer.word_embeddings"),
        ("output_norm", "transformer.ln_f"),
        ("blk.{}.attn_norm", "transformer.h.{}.ln_attn"),
        ("blk.{}.attn_norm", "transformer.h.{}.input_layernorm"),
        ("blk.{}.attn_qkv", "transformer.h.{}.self_attention.query_key_value"),
        ("blk.{}.attn_output", "transformer.h.{}.self_attention.dense"),
        ("blk.{}.ffn_norm", "transformer.h.{}.ln_mlp"),
        ("blk.{}.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"),
        ("blk.{}.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"),
    ],
    gguf_names: &[("blk.{}.attn_norm", "blk.{}.attn_norm_2"), ("blk.{}.ffn_norm", "blk.{}.attn_norm")],
    hf_unused: &[],
    hf_defaults: &[("max_position_embeddings", Setting::Number(2048.0)), ("eps", Setting::Number(1e-5))],
    hf_only: &[("alibi", Setting::Flag(false)), ("parallel_attn", Setting::Flag(true))],
    goldens: &["falcon", "falcon-new"],
    ..GPTNEOX
};

/// MPT.
pub const MPT: Arch = Arch {
    gguf: "mpt",
    hf: &["MptForCausalLM", "MPTForCausalLM"],
    title: "MPT",
    act: Activation::GeluErf,
    positions: Positions::Alibi,
    hf_transposed: false,
    names: &[
        ("token_embd", "transformer.wte"),
        ("output_norm", "transformer.norm_f"),
        ("blk.{}.attn_norm", "transformer.blocks.{}.norm_1"),
        ("blk.{}.attn_qkv", "transformer.blocks.{}.attn.Wqkv"),
        ("blk.{}.attn_output", "transformer.blocks.{}.attn.out_proj"),
        ("blk.{}.ffn_norm", "transformer.blocks.{}.norm_2"),
        ("blk.{}.ffn_up", "transformer.blocks.{}.ffn.up_proj"),
        ("blk.{}.ffn_down", "transformer.blocks.{}.ffn.down_proj"),
    ],
    hf_unused: &[],
    hf_defaults: &[("eps", Setting::Number(1e-5))],
    hf_only: &[
        ("attn_config.alibi", Setting::Flag(true)),
        ("attn_config.attn_type", Setting::Text("multihead_attention")),
        ("attn_config.prefix_lm", Setting::Flag(false)),
        ("attn_config.qk_ln", Setting::Flag(false)),
        ("attn_config.softmax_scale", Setting::Number(0.0)),
        ("logit_scale", Setting::Number(1.0)),
    ],
    clips: true,
    goldens: &["mpt", "mpt-clip"],
    ..GPT2
};

/// BLOOM.
pub const BLOOM: Arch = Arch {
    gguf: "bloom",
    hf: &["BloomForCausalLM", "BloomModel"],
    title: "BLOOM, BLOOMZ",
    act: Activation::GeluTanh,
    parallel: false,
    positions: Positions::Alibi,
    embed_norm: true,
    names: &[
        ("token_embd", "transformer.word_embeddings"),
        ("token_embd_norm", "transformer.word_embeddings_layernorm"),
        ("output_norm", "transformer.ln_f"),
        ("blk.{}.attn_norm", "transformer.h.{}.input_layernorm"),
        ("blk.{}.attn_qkv", "transformer.h.{}.self_attention.query_key_value"),
        ("blk.{}.attn_output", "transformer.h.{}.self_attention.dense"),
        ("blk.{}.ffn_norm", "transformer.h.{}.post_attention_layernorm"),
        ("blk.{}.ffn_up", "transformer.h.{}.mlp.dense_h_to_4h"),
        ("blk.{}.ffn_down", "transformer.h.{}.mlp.dense_4h_to_h"),
    ],
    hf_unused: &[],
    hf_defaults: &[("max_position_embeddings", Setting::Number(2048.0)), ("eps", Setting::Number(1e-5))],
    hf_only: &[("apply_residual_connection_post_layernorm", Setting::Flag(false))],
    goldens: &["bloom"],
    ..GPTNEOX
};

/// StableLM 3B, Zephyr, 2 1.6B and 2 12B.
pub const STABLELM: Arch = Arch {
    gguf: "stablelm",
    hf: &["StableLmForCausalLM"],
    title: "StableLM 3B, StableLM 2 1.6B, 12B",
    norm: NormKind::Layer,
    gguf_rope: RopeStyle::Neox,
    qk_norm: QkNorm::EachHead,
    names: &[
        ("blk.{}.attn_q_norm.{}", "model.layers.{}.self_attn.q_layernorm.norms.{}"),
        ("blk.{}.attn_k_norm.{}", "model.layers.{}.self_attn.k_layernorm.norms.{}"),
    ],
    hf_defaults: &[("partial_rotary_factor", Setting::Number(0.25))],
    goldens: &["stablelm", "stablelm-12b"],
    ..LLAMA
};
