//! Families whose feed-forward blocks are mixtures of experts.

use super::*;
use crate::experts::{Experts, Stack};
use quarrel_ir::{Gate, Growth, Scoring};

pub(super) const ROWS: &[&Arch] =
    &[&MIXTRAL, &QWEN2_MOE, &QWEN3_MOE, &OLMOE, &GRANITE_MOE, &PHIMOE, &GPT_OSS, &LLAMA4, &DEEPSEEK2];

/// Softmax over all experts, the weights of the chosen divided by their sum.
const PLAIN: Experts = Experts {
    scoring: Scoring::Softmax,
    normalize: true,
    gate: Gate::Plain(Activation::Silu),
    weigh_input: false,
    hf_count: "num_local_experts",
    hf_stack: Stack::Rows,
};

/// Weights are divided by their sum only where the file says so.
const QWEN: Experts = Experts { normalize: false, hf_count: "num_experts", ..PLAIN };

/// Mixtral 8x7B and 8x22B. GGUF calls them `llama`, with experts.
pub const MIXTRAL: Arch = Arch {
    hf: &["MixtralForCausalLM"],
    title: "Mixtral 8x7B, 8x22B",
    goldens: &["mixtral"],
    names: &[
        ("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate"),
        ("blk.{}.ffn_gate_exps.{}", "model.layers.{}.block_sparse_moe.experts.{}.w1"),
        ("blk.{}.ffn_down_exps.{}", "model.layers.{}.block_sparse_moe.experts.{}.w2"),
        ("blk.{}.ffn_up_exps.{}", "model.layers.{}.block_sparse_moe.experts.{}.w3"),
    ],
    experts: Some(PLAIN),
    ..LLAMA
};

/// Qwen1.5-MoE and Qwen2-57B-A14B: a shared expert behind a gate of its own.
pub const QWEN2_MOE: Arch = Arch {
    gguf: "qwen2moe",
    hf: &["Qwen2MoeForCausalLM"],
    title: "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    goldens: &["qwen2moe"],
    gguf_rope: RopeStyle::Neox,
    experts: Some(QWEN),
    ..LLAMA
};

/// Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder.
pub const QWEN3_MOE: Arch = Arch {
    gguf: "qwen3moe",
    hf: &["Qwen3MoeForCausalLM"],
    title: "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    goldens: &["qwen3moe"],
    qk_norm: QkNorm::PerHead,
    experts: Some(Experts { normalize: true, ..QWEN }),
    ..QWEN2_MOE
};

/// DeepSeek-V2, V2-Lite, V2.5, V3 and R1: latent attention, shared experts, groups of experts.
pub const DEEPSEEK2: Arch = Arch {
    gguf: "deepseek2",
    hf: &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"],
    title: "DeepSeek-V2, V2-Lite, V2.5, V3, R1",
    goldens: &["deepseek-v2-lite", "deepseek-v2", "deepseek-v3"],
    latent: true,
    hf_rope: RopeStyle::Interleaved,
    experts: Some(Experts { normalize: false, hf_count: "n_routed_experts", ..PLAIN }),
    names: &[
        ("blk.{}.attn_q_a", "model.layers.{}.self_attn.q_a_proj"),
        ("blk.{}.attn_q_a_norm", "model.layers.{}.self_attn.q_a_layernorm"),
        ("blk.{}.attn_q_b", "model.layers.{}.self_attn.q_b_proj"),
        ("blk.{}.attn_kv_a_mqa", "model.layers.{}.self_attn.kv_a_proj_with_mqa"),
        ("blk.{}.attn_kv_a_norm", "model.layers.{}.self_attn.kv_a_layernorm"),
        ("blk.{}.attn_kv_b", "model.layers.{}.self_attn.kv_b_proj"),
        ("blk.{}.exp_probs_b.bias", "model.layers.{}.mlp.gate.e_score_correction_bias"),
        ("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_experts.gate_proj"),
        ("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_experts.up_proj"),
        ("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_experts.down_proj"),
    ],
    ..LLAMA
};

/// OLMoE-1B-7B: norms over all heads of queries and keys together.
pub const OLMOE: Arch = Arch {
    gguf: "olmoe",
    hf: &["OlmoeForCausalLM"],
    title: "OLMoE-1B-7B",
    qk_norm: QkNorm::Whole,
    clips: true,
    goldens: &["olmoe"],
    ..QWEN2_MOE
};

/// Granite 3 MoE (1B-A400M, 3B-A800M).
pub const GRANITE_MOE: Arch = Arch {
    gguf: "granitemoe",
    hf: &["GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"],
    title: "Granite 3 MoE 1B-A400M, 3B-A800M",
    experts: Some(PLAIN),
    names: &[
        ("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.router.layer"),
        ("blk.{}.ffn_gate_up_exps", "model.layers.{}.block_sparse_moe.input_linear"),
        ("blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.output_linear"),
        ("blk.{}.ffn_gate_up_shexp", "model.layers.{}.shared_mlp.input_linear"),
        ("blk.{}.ffn_down_shexp", "model.layers.{}.shared_mlp.output_linear"),
    ],
    goldens: &["granitemoe"],
    ..GRANITE
};

/// Phi-3.5-MoE: layer norms, SparseMixer.
pub const PHIMOE: Arch = Arch {
    gguf: "phimoe",
    hf: &["PhimoeForCausalLM", "PhiMoEForCausalLM"],
    title: "Phi-3.5-MoE",
    norm: NormKind::Layer,
    gguf_rope: RopeStyle::Neox,
    experts: Some(Experts { scoring: Scoring::Sparse { eps: 0.01 }, normalize: false, ..PLAIN }),
    goldens: &["phimoe"],
    ..MIXTRAL
};

/// GPT-OSS: sinks, clamped gates, experts of four bits.
pub const GPT_OSS: Arch = Arch {
    gguf: "gpt-oss",
    hf: &["GptOssForCausalLM"],
    title: "GPT-OSS 20B, 120B",
    gguf_rope: RopeStyle::Neox,
    windows: WindowPattern::AllButEvery(2),
    yarn_truncate: false,
    experts: Some(Experts {
        gate: Gate::Clamped { alpha: 1.702, limit: 7.0 },
        hf_stack: Stack::Interleaved,
        ..PLAIN
    }),
    names: &[
        ("blk.{}.attn_sinks.weight", "model.layers.{}.self_attn.sinks"),
        ("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.router"),
        ("blk.{}.ffn_gate_up_exps.weight", "model.layers.{}.mlp.experts.gate_up_proj_blocks"),
        ("blk.{}.ffn_gate_up_exps.bias", "model.layers.{}.mlp.experts.gate_up_proj_bias"),
        ("blk.{}.ffn_down_exps.weight", "model.layers.{}.mlp.experts.down_proj_blocks"),
        ("blk.{}.ffn_down_exps.bias", "model.layers.{}.mlp.experts.down_proj_bias"),
    ],
    gguf_names: &[("blk.{}.ffn_norm", "blk.{}.post_attention_norm")],
    goldens: &["gpt-oss"],
    ..LLAMA
};

/// Llama 4 Scout and Maverick, text: chunks, layers without rotation, weighted inputs of experts.
pub const LLAMA4: Arch = Arch {
    gguf: "llama4",
    hf: &["Llama4ForCausalLM"],
    title: "Llama 4 Scout, Maverick (text)",
    hf_rope: RopeStyle::Interleaved,
    unrotated: Unrotated::Every(4),
    windows: WindowPattern::AllButEvery(4),
    chunks: Some(Chunks { tokens: 8192, growth: Growth { tokens: 8192.0, by: 0.1, ahead: 1.0 } }),
    experts: Some(Experts {
        scoring: Scoring::Sigmoid,
        normalize: false,
        weigh_input: true,
        hf_stack: Stack::Turned,
        ..PLAIN
    }),
    names: &[
        ("blk.{}.ffn_gate", "model.layers.{}.feed_forward.gate_proj"),
        ("blk.{}.ffn_up", "model.layers.{}.feed_forward.up_proj"),
        ("blk.{}.ffn_down", "model.layers.{}.feed_forward.down_proj"),
        ("blk.{}.ffn_gate_inp", "model.layers.{}.feed_forward.router"),
        ("blk.{}.ffn_gate_up_exps.weight", "model.layers.{}.feed_forward.experts.gate_up_proj"),
        ("blk.{}.ffn_down_exps.weight", "model.layers.{}.feed_forward.experts.down_proj"),
        ("blk.{}.ffn_gate_shexp", "model.layers.{}.feed_forward.shared_expert.gate_proj"),
        ("blk.{}.ffn_up_shexp", "model.layers.{}.feed_forward.shared_expert.up_proj"),
        ("blk.{}.ffn_down_shexp", "model.layers.{}.feed_forward.shared_expert.down_proj"),
    ],
    goldens: &["llama4"],
    ..LLAMA
};
