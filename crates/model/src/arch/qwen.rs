//! Qwen: biases on queries, keys and values, later norms in their place.

use super::*;

pub(super) const ROWS: &[&Arch] = &[&QWEN2, &QWEN3];

/// Qwen 2 and 2.5.
pub const QWEN2: Arch = Arch {
    gguf: "qwen2",
    hf: &["Qwen2ForCausalLM"],
    title: "Qwen 2, 2.5, QwQ; DeepSeek-R1-Distill-Qwen",
    windows: WindowPattern::FromLayer,
    gguf_rope: RopeStyle::Neox,
    hf_defaults: &[("use_sliding_window", Setting::Flag(false))],
    goldens: &["qwen2", "qwen2-yarn"],
    notes: "biases on queries, keys and values",
    ..LLAMA
};

/// Qwen 3, dense.
pub const QWEN3: Arch = Arch {
    gguf: "qwen3",
    hf: &["Qwen3ForCausalLM"],
    title: "Qwen 3 (dense); Qwen3-Embedding",
    qk_norm: QkNorm::PerHead,
    goldens: &["qwen3", "qwen3-yarn"],
    notes: "",
    ..QWEN2
};
