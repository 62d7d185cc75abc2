//! Families whose layers are not all attention.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&LFM2, &GRANITE_HYBRID];

/// LFM 2: most layers are short convolutions.
pub const LFM2: Arch = Arch {
    gguf: "lfm2",
    hf: &["Lfm2ForCausalLM"],
    title: "LFM 2, 2.5 (dense)",
    hybrid: Some(Hybrid::ShortConv),
    qk_norm: QkNorm::PerHead,
    gguf_rope: RopeStyle::Neox,
    names: &[
        ("output_norm", "model.embedding_norm"),
        ("blk.{}.attn_norm", "model.layers.{}.operator_norm"),
        ("blk.{}.attn_output", "model.layers.{}.self_attn.out_proj"),
        ("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_layernorm"),
        ("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_layernorm"),
        ("blk.{}.shortconv.in_proj", "model.layers.{}.conv.in_proj"),
        ("blk.{}.shortconv.conv", "model.layers.{}.conv.conv"),
        ("blk.{}.shortconv.out_proj", "model.layers.{}.conv.out_proj"),
        ("blk.{}.ffn_norm", "model.layers.{}.ffn_norm"),
        ("blk.{}.ffn_gate", "model.layers.{}.feed_forward.w1"),
        ("blk.{}.ffn_up", "model.layers.{}.feed_forward.w3"),
        ("blk.{}.ffn_down", "model.layers.{}.feed_forward.w2"),
    ],
    // To llama.cpp the last norm is one of the embeddings.
    gguf_names: &[("output_norm", "token_embd_norm")],
    hf_defaults: &[("conv_L_cache", Setting::Number(3.0)), ("rope_theta", Setting::Number(1e6))],
    hf_only: &[("block_use_swiglu", Setting::Flag(true))],
    goldens: &["lfm2"],
    ..LLAMA
};

/// Granite 4: most layers are Mamba-2, and the others know no positions; experts beside a shared one, or that one alone.
pub const GRANITE_HYBRID: Arch = Arch {
    gguf: "granitehybrid",
    hf: &["GraniteMoeHybridForCausalLM"],
    title: "Granite 4.0 H (and 4.0 from safetensors)",
    hybrid: Some(Hybrid::Mamba2),
    names: &[
        ("blk.{}.ssm_in", "model.layers.{}.mamba.in_proj"),
        ("blk.{}.ssm_conv1d", "model.layers.{}.mamba.conv1d"),
        ("blk.{}.ssm_dt.bias", "model.layers.{}.mamba.dt_bias"),
        ("blk.{}.ssm_a.weight", "model.layers.{}.mamba.A_log"),
        ("blk.{}.ssm_d.weight", "model.layers.{}.mamba.D"),
        ("blk.{}.ssm_norm", "model.layers.{}.mamba.norm"),
        ("blk.{}.ssm_out", "model.layers.{}.mamba.out_proj"),
        ("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.router.layer"),
        ("blk.{}.ffn_gate_up_exps", "model.layers.{}.block_sparse_moe.input_linear"),
        ("blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.output_linear"),
        ("blk.{}.ffn_gate_up_shexp", "model.layers.{}.shared_mlp.input_linear"),
        ("blk.{}.ffn_down_shexp", "model.layers.{}.shared_mlp.output_linear"),
        ("blk.{}.ffn_up", "model.layers.{}.shared_mlp.input_linear"),
        ("blk.{}.ffn_down", "model.layers.{}.shared_mlp.output_linear"),
    ],
    hf_defaults: &[("mamba_n_groups", Setting::Number(1.0)), ("mamba_d_conv", Setting::Number(4.0))],
    hf_only: &[
        ("mamba_n_groups", Setting::Number(1.0)),
        ("normalization_function", Setting::Text("rmsnorm")),
    ],
    goldens: &["granitehybrid", "granitehybrid-moe"],
    notes: "no positions, where set",
    ..GRANITE_MOE
};
