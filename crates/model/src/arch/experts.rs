//! Families whose feed-forward blocks are mixtures of experts.

use super::*;
use crate::experts::{Experts, Stack};
use quarrel_ir::{Gate, Scoring};

pub(super) const ROWS: &[&Arch] = &[&MIXTRAL, &QWEN2_MOE, &QWEN3_MOE, &DEEPSEEK2];

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
    gguf_rope: RopeStyle::Neox,
    experts: Some(QWEN),
    ..LLAMA
};

/// Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder.
pub const QWEN3_MOE: Arch = Arch {
    gguf: "qwen3moe",
    hf: &["Qwen3MoeForCausalLM"],
    title: "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    qk_norm: QkNorm::PerHead,
    experts: Some(Experts { normalize: true, ..QWEN }),
    ..QWEN2_MOE
};

/// DeepSeek-V2, V2-Lite, V2.5, V3 and R1: latent attention, shared experts, groups of experts.
pub const DEEPSEEK2: Arch = Arch {
    gguf: "deepseek2",
    hf: &["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"],
    title: "DeepSeek-V2, V2-Lite, V2.5, V3, R1",
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
