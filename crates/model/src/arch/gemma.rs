//! Gemma: norms around the blocks, gains stored as their difference from 1, windows in most layers.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&GEMMA, &GEMMA2, &GEMMA3, &GEMMA3N];

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

/// Gemma 3n, text.
pub const GEMMA3N: Arch = Arch {
    gguf: "gemma3n",
    hf: &["Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"],
    title: "Gemma 3n (text)",
    value_norm: true,
    streams: true,
    windows: WindowPattern::AllButEvery(5),
    attn_scale: AttnScale::One,
    hf_norm_minus_one: false,
    hf_defaults: &[
        ("vocab_size", Setting::Number(262_400.0)),
        ("hidden_size", Setting::Number(2048.0)),
        ("intermediate_size", Setting::Number(16_384.0)),
        ("num_hidden_layers", Setting::Number(35.0)),
        ("num_attention_heads", Setting::Number(8.0)),
        ("num_key_value_heads", Setting::Number(2.0)),
        ("head_dim", Setting::Number(256.0)),
        ("max_position_embeddings", Setting::Number(32_768.0)),
        ("eps", Setting::Number(1e-6)),
        ("rope_theta", Setting::Number(1e6)),
        ("sliding_window", Setting::Number(512.0)),
        ("final_logit_softcapping", Setting::Number(30.0)),
        ("hidden_size_per_layer_input", Setting::Number(256.0)),
        ("altup_num_inputs", Setting::Number(4.0)),
        ("num_kv_shared_layers", Setting::Number(15.0)),
    ],
    // Of the streams, the first is the one that is computed.
    hf_only: &[("altup_active_idx", Setting::Number(0.0)), ("altup_correct_scale", Setting::Flag(true))],
    goldens: &["gemma3n"],
    notes: "four residual streams (AltUp), a residual of low rank (LAuReL), an input for each layer out of a table; gates are cut \
            off in the first layers; the last ones attend to keys and values of others; logits are capped",
    names: &[
        ("per_layer_token_embd", "model.embed_tokens_per_layer"),
        ("per_layer_model_proj", "model.per_layer_model_projection"),
        ("per_layer_proj_norm", "model.per_layer_projection_norm"),
        ("altup_proj.{}", "model.altup_projections.{}"),
        ("altup_unembd_proj.{}", "model.altup_unembed_projections.{}"),
        ("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
        ("blk.{}.ffn_norm", "model.layers.{}.pre_feedforward_layernorm"),
        ("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
        ("blk.{}.laurel_l", "model.layers.{}.laurel.linear_left"),
        ("blk.{}.laurel_r", "model.layers.{}.laurel.linear_right"),
        ("blk.{}.laurel_post_norm", "model.layers.{}.laurel.post_laurel_norm"),
        ("blk.{}.inp_gate", "model.layers.{}.per_layer_input_gate"),
        ("blk.{}.proj", "model.layers.{}.per_layer_projection"),
        ("blk.{}.post_norm", "model.layers.{}.post_per_layer_input_norm"),
        ("blk.{}.altup_router", "model.layers.{}.altup.modality_router"),
        ("blk.{}.altup_router_norm", "model.layers.{}.altup.router_norm"),
        ("blk.{}.altup_predict_coef", "model.layers.{}.altup.prediction_coefs"),
        ("blk.{}.altup_correct_coef", "model.layers.{}.altup.correction_coefs"),
        ("blk.{}.altup_correct_scale.weight", "model.layers.{}.altup.correct_output_scale"),
    ],
    ..GEMMA3
};
