//! Phi-3, GLM and Command-R: Llama's parts in one matrix, rotated in pairs, or side by side.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&PHI3, &PHI3_SMALL, &CHATGLM, &GLM4, &COMMAND_R, &COHERE2];

/// Phi-3, 3.5 and 4.
pub const PHI3: Arch = Arch {
    gguf: "phi3",
    hf: &["Phi3ForCausalLM"],
    title: "Phi-3, Phi-3.5 mini and medium; Phi-4, Phi-4-mini",
    gguf_rope: RopeStyle::Neox,
    names: &[
        ("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
        ("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
    ],
    goldens: &["phi3", "phi3-long", "phi4-mini"],
    notes: "queries, keys and values in one matrix, gate and up in another",
    ..LLAMA
};

/// Phi-3-small, 8k and 128k.
pub const PHI3_SMALL: Arch = Arch {
    gguf: "phi3small",
    hf: &["Phi3SmallForCausalLM"],
    title: "Phi-3-small (safetensors)",
    norm: NormKind::Layer,
    gate: Some(Gate::Clamped { alpha: 1.702, limit: 20.0 }),
    hf_gate_pairs: true,
    hf_qkv: Stacked::ByKvHead,
    multipliers: Multipliers::Mup,
    names: &[
        ("output_norm", "model.final_layernorm"),
        ("blk.{}.attn_qkv", "model.layers.{}.self_attn.query_key_value"),
        ("blk.{}.attn_output", "model.layers.{}.self_attn.dense"),
        ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ],
    hf_unused: &["lm_head.dummy_token_indices"],
    hf_only: &[
        ("hidden_act", Setting::Text("gegelu")),
        ("gegelu_limit", Setting::Number(20.0)),
        ("mup_use_scaling", Setting::Flag(true)),
        ("rope_position_scale", Setting::Number(1.0)),
    ],
    goldens: &["phi3-small"],
    notes: "queries, keys and values in one matrix, gate and up in another, row by row; attention by blocks in all but \
            every so many'th layer",
    ..LLAMA
};

/// GLM-4 9B, 1M, and GLM-Edge.
pub const CHATGLM: Arch = Arch {
    gguf: "chatglm",
    hf: &["GlmForCausalLM"],
    title: "GLM-4 9B; GLM-Edge",
    hf_rope: RopeStyle::Interleaved,
    names: &[("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj")],
    hf_defaults: &[("partial_rotary_factor", Setting::Number(0.5))],
    goldens: &["glm"],
    notes: "biases on queries, keys and values; gate and up in one matrix; half of each head is rotated",
    ..LLAMA
};

/// GLM-4-0414 and GLM-Z1.
pub const GLM4: Arch = Arch {
    gguf: "glm4",
    hf: &["Glm4ForCausalLM"],
    title: "GLM-4-0414, GLM-Z1",
    norms: Norms::Around,
    names: &[
        ("blk.{}.post_attention_norm", "model.layers.{}.post_self_attn_layernorm"),
        ("blk.{}.post_ffw_norm", "model.layers.{}.post_mlp_layernorm"),
        ("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
    ],
    goldens: &["glm4"],
    ..CHATGLM
};

/// Command-R and Aya.
pub const COMMAND_R: Arch = Arch {
    gguf: "command-r",
    hf: &["CohereForCausalLM"],
    title: "Command-R, Command-R+; Aya 23, Aya Expanse",
    norm: NormKind::Layer,
    qk_norm: QkNorm::EachHead,
    parallel: true,
    multipliers: Multipliers::Logits,
    hf_rope: RopeStyle::Interleaved,
    hf_defaults: &[("logit_scale", Setting::Number(0.0625))],
    goldens: &["command-r", "command-r-plus"],
    ..LLAMA
};

/// Command-R7B and Command-A.
pub const COHERE2: Arch = Arch {
    gguf: "cohere2",
    hf: &["Cohere2ForCausalLM"],
    title: "Command-R7B, Command-A",
    qk_norm: QkNorm::None,
    unrotated: Unrotated::Full,
    windows: WindowPattern::AllButEvery(4),
    goldens: &["cohere2"],
    ..COMMAND_R
};
