//! Tensor names. GGUF's are canonical; Hugging Face's are found through a table of stems.

use crate::arch::Arch;

/// Canonical stem and Hugging Face stem, for every family that does not say otherwise.
pub const COMMON: crate::arch::NameTable = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "model.layers.{}.input_layernorm"),
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
    ("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    ("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
    ("blk.{}.ffn_norm", "model.layers.{}.post_attention_layernorm"),
    ("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
    ("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate"),
    ("blk.{}.ffn_gate_exps.{}", "model.layers.{}.mlp.experts.{}.gate_proj"),
    ("blk.{}.ffn_up_exps.{}", "model.layers.{}.mlp.experts.{}.up_proj"),
    ("blk.{}.ffn_down_exps.{}", "model.layers.{}.mlp.experts.{}.down_proj"),
    ("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_expert.gate_proj"),
    ("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_expert.up_proj"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_expert.down_proj"),
    ("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate"),
];

/// The Hugging Face name of a canonical tensor name, e.g. `blk.3.attn_q.weight` or, of expert 7, `blk.3.ffn_up_exps.7.weight`.
pub fn hf(arch: &Arch, canonical: &str) -> Option<String> {
    let (stem, kind) = canonical.rsplit_once('.')?;
    let (pattern, layer, expert) = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => match rest.split_once('.') {
            Some((rest, expert)) => (format!("blk.{{}}.{rest}.{{}}"), layer, expert),
            None => (format!("blk.{{}}.{rest}"), layer, ""),
        },
        None => (stem.to_string(), "", ""),
    };
    let of = |p: &str| arch.names.iter().chain(COMMON).find(|(c, _)| *c == p).map(|(_, name)| name);
    // A few have names of their own, kind included.
    if let Some(name) = of(&format!("{pattern}.{kind}")) {
        return Some(name.replacen("{}", layer, 1));
    }
    let name = of(&pattern)?;
    Some(format!("{}.{kind}", name.replacen("{}", layer, 1).replacen("{}", expert, 1)))
}

/// The canonical name of a Hugging Face tensor name: the inverse of [`hf`].
pub fn canonical(arch: &Arch, hf: &str) -> Option<String> {
    let (stem, kind) = hf.rsplit_once('.')?;
    let number = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let layer = stem.split('.').find(number).unwrap_or("{}");
    let (name, _) = arch.names.iter().chain(COMMON).find(|(_, name)| name.replace("{}", layer) == stem)?;
    Some(format!("{}.{kind}", name.replace("{}", layer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{GEMMA3, LLAMA};

    #[test]
    fn canonical_names_map_to_hugging_face() {
        for (arch, canonical, want) in [
            (&LLAMA, "token_embd.weight", "model.embed_tokens.weight"),
            (&LLAMA, "blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            (&LLAMA, "blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            (&GEMMA3, "blk.0.ffn_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
            (&GEMMA3, "blk.7.post_attention_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
        ] {
            assert_eq!(hf(arch, canonical).as_deref(), Some(want));
            assert_eq!(super::canonical(arch, want).as_deref(), Some(canonical));
        }
        assert_eq!(hf(&LLAMA, "blk.0.attn_sinks.weight"), None);
        for name in
            ["model.layers.x.self_attn.q_proj.weight", "model.layers..self_attn.q_proj.weight", "q", ""]
        {
            assert_eq!(canonical(&LLAMA, name), None);
        }
    }
}
