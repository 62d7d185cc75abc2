//! Llama and those that are the same but for names, factors and where a norm is.

use super::*;

pub(super) const ROWS: &[&Arch] = &[
    &LLAMA, &MISTRAL, &MISTRAL3, &SMOLLM3, &GRANITE, &MINICPM, &INTERNLM2, &BAICHUAN, &EXAONE, &OLMO, &OLMO2,
    &EXAONE4,
];

/// Llama 1 to 3.3, SmolLM 1 and 2, TinyLlama, and Mistral 7B as GGUF calls it.
pub const LLAMA: Arch = Arch {
    gguf: "llama",
    hf: &["LlamaForCausalLM"],
    title: "Llama 2, 3, 3.1, 3.2; SmolLM, SmolLM2; TinyLlama",
    norm: NormKind::Rms,
    act: Activation::Silu,
    gated: true,
    gate: None,
    hf_gate_pairs: false,
    experts: None,
    latent: false,
    hybrid: None,
    chunks: None,
    yarn_truncate: true,
    qk_norm: QkNorm::None,
    value_norm: false,
    streams: false,
    norms: Norms::Before,
    bare_norms: false,
    clips: false,
    unit_head: None,
    parallel: false,
    causal: true,
    positions: Positions::Rotated,
    unrotated: Unrotated::Never,
    embed_norm: false,
    embed_sqrt_dim: false,
    multipliers: Multipliers::None,
    windows: WindowPattern::All,
    local_rope_base: None,
    local_unscaled: false,
    growing: false,
    attn_scale: AttnScale::HeadDim,
    gguf_rope: RopeStyle::Interleaved,
    hf_rope: RopeStyle::Neox,
    hf_qkv: Stacked::InTurn,
    hf_transposed: false,
    hf_norm_minus_one: false,
    names: &[],
    gguf_names: &[],
    hf_unused: &[],
    hf_defaults: &[],
    hf_only: &[],
    goldens: &["llama2", "llama3", "tinyllama", "smollm2", "llama-odd", "llama-linear", "llama-bias"],
    notes: "",
};

/// Mistral 7B and its kin, where a file says so itself.
pub const MISTRAL: Arch = Arch {
    gguf: "mistral",
    hf: &["MistralForCausalLM", "MinistralForCausalLM"],
    title: "Mistral 7B, Nemo, Small (text); Ministral (GGUF: llama)",
    goldens: &["mistral", "nemo", "ministral"],
    notes: "a sliding window where set",
    ..LLAMA
};

/// Mistral Small 3.1 and Ministral 3, the part that reads.
pub const MISTRAL3: Arch = Arch {
    gguf: "mistral3",
    hf: &["Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"],
    title: "Mistral Small 3.1, 3.2; Ministral 3 (text)",
    growing: true,
    goldens: &["ministral3"],
    ..LLAMA
};

/// SmolLM3.
pub const SMOLLM3: Arch = Arch {
    gguf: "smollm3",
    hf: &["SmolLM3ForCausalLM"],
    title: "SmolLM3",
    unrotated: Unrotated::Every(4),
    hf_defaults: &[("use_sliding_window", Setting::Flag(false))],
    goldens: &["smollm3"],
    ..LLAMA
};

/// Granite 3 and 4, dense.
pub const GRANITE: Arch = Arch {
    gguf: "granite",
    hf: &["GraniteForCausalLM"],
    title: "Granite 3 (dense)",
    multipliers: Multipliers::Granite,
    goldens: &["granite"],
    ..LLAMA
};

/// MiniCPM 1, 2 and 4, dense.
pub const MINICPM: Arch = Arch {
    gguf: "minicpm",
    hf: &["MiniCPMForCausalLM"],
    title: "MiniCPM 1, 2 and 4 (dense)",
    multipliers: Multipliers::MiniCpm,
    goldens: &["minicpm"],
    ..LLAMA
};

/// InternLM 2 and 2.5.
pub const INTERNLM2: Arch = Arch {
    gguf: "internlm2",
    hf: &["InternLM2ForCausalLM"],
    title: "InternLM 2, 2.5",
    hf_qkv: Stacked::ByKvHead,
    names: &[
        ("token_embd", "model.tok_embeddings"),
        ("output", "output"),
        ("blk.{}.attn_norm", "model.layers.{}.attention_norm"),
        ("blk.{}.attn_qkv", "model.layers.{}.attention.wqkv"),
        ("blk.{}.attn_output", "model.layers.{}.attention.wo"),
        ("blk.{}.ffn_norm", "model.layers.{}.ffn_norm"),
        ("blk.{}.ffn_gate", "model.layers.{}.feed_forward.w1"),
        ("blk.{}.ffn_up", "model.layers.{}.feed_forward.w3"),
        ("blk.{}.ffn_down", "model.layers.{}.feed_forward.w2"),
    ],
    goldens: &["internlm2", "internlm2-ntk"],
    ..LLAMA
};

/// Baichuan 1 and 2. Version 2 normalises the head's rows whenever it is used, and is told by its vocabulary.
pub const BAICHUAN: Arch = Arch {
    gguf: "baichuan",
    hf: &["BaichuanForCausalLM", "BaiChuanForCausalLM"],
    title: "Baichuan 7B, 13B; Baichuan 2 7B, 13B",
    positions: Positions::RotatedBut { layers: 40 },
    names: &[("blk.{}.attn_qkv", "model.layers.{}.self_attn.W_pack")],
    unit_head: Some(125_696),
    goldens: &["baichuan", "baichuan2"],
    notes: "the rows of Baichuan 2's head are brought to length 1 when they are loaded",
    ..LLAMA
};

/// EXAONE 3 and 3.5.
pub const EXAONE: Arch = Arch {
    gguf: "exaone",
    hf: &["ExaoneForCausalLM"],
    title: "EXAONE 3, 3.5",
    gguf_rope: RopeStyle::Neox,
    names: &[
        ("token_embd", "transformer.wte"),
        ("output_norm", "transformer.ln_f"),
        ("blk.{}.attn_norm", "transformer.h.{}.ln_1"),
        ("blk.{}.attn_q", "transformer.h.{}.attn.attention.q_proj"),
        ("blk.{}.attn_k", "transformer.h.{}.attn.attention.k_proj"),
        ("blk.{}.attn_v", "transformer.h.{}.attn.attention.v_proj"),
        ("blk.{}.attn_output", "transformer.h.{}.attn.attention.out_proj"),
        ("blk.{}.ffn_norm", "transformer.h.{}.ln_2"),
        ("blk.{}.ffn_gate", "transformer.h.{}.mlp.c_fc_0"),
        ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc_1"),
        ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
    ],
    goldens: &["exaone"],
    ..LLAMA
};

/// OLMo 1.
pub const OLMO: Arch = Arch {
    gguf: "olmo",
    hf: &["OlmoForCausalLM"],
    title: "OLMo 1B, 7B (0424, 0724)",
    norm: NormKind::Layer,
    bare_norms: true,
    clips: true,
    hf_defaults: &[("eps", Setting::Number(1e-5))],
    goldens: &["olmo", "olmo-clip"],
    ..LLAMA
};

/// OLMo 2 and 3.
pub const OLMO2: Arch = Arch {
    gguf: "olmo2",
    hf: &["Olmo2ForCausalLM", "Olmo3ForCausalLM"],
    title: "OLMo 2, 3",
    qk_norm: QkNorm::Whole,
    norms: Norms::Outputs,
    windows: WindowPattern::AllButEvery(4),
    local_unscaled: true,
    gguf_rope: RopeStyle::Neox,
    names: &[
        ("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
        ("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
    ],
    goldens: &["olmo2", "olmo3"],
    ..LLAMA
};

/// EXAONE 4.
pub const EXAONE4: Arch = Arch {
    gguf: "exaone4",
    hf: &["Exaone4ForCausalLM"],
    title: "EXAONE 4",
    qk_norm: QkNorm::PerHead,
    unrotated: Unrotated::Full,
    windows: WindowPattern::AllButEvery(4),
    local_unscaled: false,
    goldens: &["exaone4"],
    gguf_rope: RopeStyle::Neox,
    ..OLMO2
};
