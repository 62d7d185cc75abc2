//! Tensor names. GGUF's are canonical; Hugging Face's are found through a table of stems.

use crate::arch::Arch;
use quarrel_formats::{Source, Tensor};

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

/// Cuts a canonical name in its pattern, numbers and kind: `blk.3.attn_q.weight` in `blk.{}.attn_q`, `3` and `weight`, and
/// `blk.3.ffn_up_exps.7.weight` in `blk.{}.ffn_up_exps.{}`, `3` and `7`, and `weight`.
fn cut(canonical: &str) -> Option<(String, [&str; 2], &str)> {
    let (stem, kind) = canonical.rsplit_once('.')?;
    let (stack, name) =
        stem.split_at(if stem.starts_with("enc.") || stem.starts_with("dec.") { 4 } else { 0 });
    Some(match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => {
            match rest.split_once('.').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit())) {
                Some((rest, expert)) => (format!("{stack}blk.{{}}.{rest}.{{}}"), [layer, expert], kind),
                None => (format!("{stack}blk.{{}}.{rest}"), [layer, ""], kind),
            }
        }
        None => match name.rsplit_once('.').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit())) {
            Some((name, number)) => (format!("{stack}{name}.{{}}"), [number, ""], kind),
            None => (stem.to_string(), [""; 2], kind),
        },
    })
}

/// A name with its numbers.
fn fill(name: &str, numbers: [&str; 2]) -> String {
    numbers.iter().fold(name.to_string(), |name, n| name.replacen("{}", n, 1))
}

/// All Hugging Face names of a canonical tensor name: a family's own, or the common one.
fn all<'a>(arch: &'a Arch, canonical: &'a str) -> impl Iterator<Item = String> + 'a {
    cut(canonical).into_iter().flat_map(|(pattern, numbers, kind)| {
        let whole = format!("{pattern}.{kind}");
        let own = arch.names.iter().any(|(c, _)| *c == pattern || *c == whole);
        let rows = if own { arch.names } else { COMMON };
        rows.iter().filter_map(move |(c, name)| match *c {
            c if c == pattern => Some(format!("{}.{kind}", fill(name, numbers))),
            // A few tensors have no kind in their names, or another.
            c if c == whole => Some(fill(name, numbers)),
            _ => None,
        })
    })
}

/// The Hugging Face name of a canonical tensor name, e.g. `blk.3.attn_q.weight`.
pub fn hf(arch: &Arch, canonical: &str) -> Option<String> {
    all(arch, canonical).next()
}

/// Whether a family has a tensor of this canonical name.
pub(crate) fn known(arch: &Arch, canonical: &str) -> bool {
    all(arch, canonical).next().is_some()
}

/// The tensor of a source that a canonical name means, by itself, under any of its names. Checkpoints of a family's base
/// class lack the first word of the names; those of models that see have `language_model` in front or behind it.
pub(crate) fn find<'a>(source: &'a Source, arch: &Arch, canonical: &str) -> Option<&'a Tensor> {
    match source {
        Source::Gguf(_) => {
            let in_block = |pattern: &str| source.tensor(&format!("{}.weight", pattern.replace("{}", "0")));
            let renamed = arch.gguf_names.first().is_some_and(|(_, marker)| in_block(marker).is_some());
            let (pattern, numbers, kind) = cut(canonical)?;
            let other = arch.gguf_names.iter().filter(|_| renamed).find(|(c, _)| *c == pattern);
            match other {
                Some((_, name)) => source.tensor(&format!("{}.{kind}", fill(name, numbers))),
                // A few tensors have no kind in their names.
                None => {
                    source.tensor(canonical).or_else(|| source.tensor(canonical.strip_suffix(".weight")?))
                }
            }
        }
        Source::Hf(_) => all(arch, canonical).find_map(|name| {
            let (first, short) = name.split_once('.')?;
            let beside_sight = [format!("language_model.{name}"), format!("{first}.language_model.{short}")];
            let names = [name.as_str(), short].into_iter().chain(beside_sight.iter().map(String::as_str));
            names.into_iter().find_map(|n| source.tensor(n))
        }),
    }
}

/// The canonical name of a Hugging Face tensor name: the inverse of [`hf`].
pub fn canonical(arch: &Arch, hf: &str) -> Option<String> {
    let (stem, kind) = hf.rsplit_once('.')?;
    let number = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let layer = stem.split('.').find(number).unwrap_or("{}");
    let (name, _) = arch.names.iter().chain(COMMON).find(|(_, name)| name.replace("{}", layer) == stem)?;
    Some(format!("{}.{kind}", name.replace("{}", layer)))
}

/// A name with its layer left open.
pub(crate) fn pattern(name: &str) -> String {
    let number = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').map(|p| if number(p) { "{}" } else { p }).collect();
    parts.join(".")
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
