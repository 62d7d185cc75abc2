//! `docs/architectures.md`: the table of architectures for people, made from the rows.

use super::*;
use quarrel_ir::Scoring;
use std::fmt::Write;

const HEAD: &str = "# Architectures

Made by `quarrel docs-architectures` from the table in `crates/model/src/arch/`; do not edit.

A family is a row of that table, which says how it differs from Llama; there is one forward pass. What a row proves is a
golden model: a tiny one with random weights whose logits `transformers` computed in float32, run from safetensors and from
GGUF, whole and token by token (`crates/conform/goldens`); Baichuan 2's and Phi-3-small's, which it does not have, by code that
repeats what their own computes (`goldens/families.py`). A model whose family, field or tensor is not understood is refused
with the difference, never run approximately.

Contexts beyond the first training are known as `linear`, `dynamic` (NTK), `llama3`, `yarn` and `longrope`; rotations may be
of a part of each head. LongRoPE and `dynamic` depend on the context that is served (`--ctx`), and hold for all its tokens.

T5 and its kin answer a prompt that their encoder reads ([how](adr/0008-encoder-decoder.md)), on the CPU; the prompt ends with eos. The
encoder alone makes embeddings, out of a file of its own or of the whole (`quarrel embed`, `serve --embedding-model`). Their goldens are
in `goldens/encdec` and `goldens/embed`.

Gemma 3n is run for text; what its checkpoints see and hear with is left alone. Its streams are mixed by small matrices that each row
makes for itself, and the table of its layers' inputs, which is larger than all else, stays in the file and is read row by row. In training
the coefficients of the mixture are clipped; afterwards there is nothing left to clip.

Attention sees everything before a token, a window, a chunk, or blocks: the token's own and a few before it, the first ones,
and every so many'th, which differ by head. What is not seen is not read, so a window or a pattern costs what it sees and not
the context. Attention by blocks runs on the CPU alone and cannot be combined with eviction. Phi-3-small's folder needs a
`tokenizer.json` (it is published with a tokenizer of its own code; its vocabulary is that of cl100k with added tokens).

| family | GGUF | Hugging Face | what differs from Llama | golden |
|---|---|---|---|---|
";

/// The document.
pub fn markdown() -> String {
    let mut out = String::from(HEAD);
    for a in all() {
        let hf: Vec<String> = a.hf.iter().map(|n| format!("`{n}`")).collect();
        let hf = if hf.is_empty() { "—".into() } else { hf.join(", ") };
        let differs = differences(a).join("; ");
        let differs = if differs.is_empty() { "—" } else { &differs };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| {} | `{}` | {hf} | {differs} | {} |", a.title, a.gguf, a.goldens.join(", "));
    }
    out
}

/// What of a row is not as in Llama's, in words.
fn differences(a: &Arch) -> Vec<String> {
    let mut out = Vec::new();
    let mut say = |when: bool, what: &str| {
        if when {
            out.push(what.to_string());
        }
    };
    say(!a.causal, "an encoder: every token sees all");
    say(a.norm == NormKind::Layer, "layer norms");
    match a.norms {
        Norms::Before => {}
        Norms::Around => say(true, "norms before and after attention and feed-forward"),
        Norms::After => say(true, "norms after the residual sums"),
        Norms::Outputs => say(true, "norms after attention and feed-forward, none before"),
    }
    say(a.bare_norms, "norms have no gains");
    say(a.clips, "queries, keys and values are clipped, where set");
    say(a.embed_norm, "the embeddings are normalised");
    say(a.parallel, "attention and feed-forward side by side");
    say(!a.gated, "no gate in the feed-forward block");
    say(a.experts.is_some(), "mixtures of experts");
    say(a.experts.is_some_and(|e| e.weigh_input), "experts' inputs are weighted, not what they give");
    say(a.experts.is_some_and(|e| matches!(e.scoring, Scoring::Sparse { .. })), "SparseMixer");
    say(a.latent, "latent attention, absorbed");
    say(a.chunks.is_some(), "attention in chunks");
    say(a.gate.is_some(), "a gate that is clamped");
    say(a.hybrid == Some(Hybrid::Mamba2), "Mamba-2 instead of attention in most layers");
    say(a.hybrid == Some(Hybrid::ShortConv), "short convolutions instead of attention in most layers");
    match a.act {
        Activation::Silu => {}
        Activation::GeluTanh => say(true, "GELU (tanh)"),
        Activation::GeluErf => say(true, "GELU"),
        Activation::Relu => say(true, "ReLU"),
    }
    match a.qk_norm {
        QkNorm::None => {}
        QkNorm::PerHead => say(true, "queries and keys are normalised per head"),
        QkNorm::EachHead => {
            say(true, "queries and keys are normalised per head with gains of its own, where it has them")
        }
        QkNorm::Whole => say(true, "queries and keys are normalised over all heads"),
    }
    say(a.value_norm, "values are normalised per head");
    match a.positions {
        Positions::Rotated => {}
        Positions::Learned => say(true, "learned positions"),
        Positions::Alibi => say(true, "ALiBi"),
        Positions::Buckets => say(true, "a bias by distance"),
        Positions::RotatedBut { layers } => say(true, &format!("ALiBi with {layers} layers")),
    }
    match a.unrotated {
        Unrotated::Never => {}
        Unrotated::Every(n) => say(true, &format!("no rotation in every {} layer", ordinal(n))),
        Unrotated::Full => say(true, "no rotation in layers that see everything"),
    }
    match a.windows {
        WindowPattern::All => {}
        WindowPattern::FromLayer => say(true, "a window from a layer on, where set"),
        WindowPattern::AllButEvery(n) => {
            say(true, &format!("a window in all but every {} layer, where set", ordinal(n)))
        }
    }
    say(a.local_rope_base.is_some(), "window layers rotate with a base of their own");
    say(a.local_unscaled, "window layers rotate without scaling");
    say(a.growing, "queries grow with their position, where set");
    say(a.embed_sqrt_dim, "embeddings times the root of the width");
    match a.multipliers {
        Multipliers::None => {}
        Multipliers::Granite | Multipliers::MiniCpm | Multipliers::Mup => {
            say(true, "factors on embeddings, residuals and logits")
        }
        Multipliers::Logits => say(true, "a factor on logits"),
    }
    say(matches!(a.attn_scale, AttnScale::HeadDimBut { .. }), "a scale of scores of its own in the largest");
    say(!a.notes.is_empty(), a.notes);
    out
}

fn ordinal(n: u32) -> String {
    match n {
        2 => "second".into(),
        3 => "third".into(),
        4 => "fourth".into(),
        5 => "fifth".into(),
        6 => "sixth".into(),
        n => format!("{n}th"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When this fails: `cargo run -- docs-architectures > docs/architectures.md`.
    #[test]
    fn the_committed_table_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/architectures.md");
        let committed = std::fs::read_to_string(path).unwrap();
        let why = "docs/architectures.md is stale: cargo run -- docs-architectures > docs/architectures.md";
        assert!(committed == markdown(), "{why}");
    }

    #[test]
    fn names_are_unique_and_rows_have_a_golden() {
        // Mixtral is a llama with experts to GGUF.
        let gguf = |a: &&'static Arch| a.hf != ["MixtralForCausalLM"];
        let files = all().filter(gguf).map(|a| a.gguf);
        let mut names: Vec<&str> = all().flat_map(|a| a.hf.iter().copied()).chain(files).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(all().all(|a| !a.goldens.is_empty()));
    }

    /// What the table is for: a family that differs in little is little.
    #[test]
    fn qwen3_is_under_fifteen_lines_given_llama() {
        let row = include_str!("qwen.rs").split("pub const QWEN3").nth(1).unwrap();
        assert!(row.lines().count() < 15);
        assert_eq!(differences(&QWEN3)[0], "queries and keys are normalised per head");
        assert!(differences(&LLAMA).is_empty());
    }
}
