//! The tape of each family, pinned with no weights: a change to the forward pass shows here line by line.

use quarrel_ir::RopeStyle;
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::rope::Rotary;
use quarrel_model::{Arch, LayerSpec, ModelSpec, arch};

fn spec(arch: &'static Arch, window: Option<u32>) -> ModelSpec {
    ModelSpec {
        vocab: 1000,
        dim: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        v_dim: 16,
        ff: 128,
        context: 512,
        eps: 1e-5,
        attn_scale: 0.25,
        tied: true,
        ropes: vec![Rotary::plain(RopeStyle::Neox, 16, 10_000.0)],
        layers: vec![LayerSpec { window, rope: Some(0) }],
        embed_scale: if arch.embed_sqrt_dim { 8.0 } else { 1.0 },
        ..ModelSpec::new(arch)
    }
}

#[test]
fn tapes_are_as_pinned() {
    for (arch, window) in [(&arch::LLAMA, None), (&arch::MISTRAL, Some(64)), (&arch::GEMMA3, Some(32))] {
        for fuse in [false, true] {
            let name = format!("{}_{}", arch.gguf, if fuse { "fused" } else { "plain" });
            insta::assert_snapshot!(
                name,
                decoder(&spec(arch, window), &Options { fuse, ..Options::default() }).to_string()
            );
        }
    }
}

#[test]
fn encoders_have_no_head_and_decoders_keep_hidden_states_where_they_are_wanted() {
    let bert = ModelSpec {
        kv_heads: 4,
        qkv_bias: true,
        out_bias: true,
        ff_bias: true,
        positions: 512,
        token_types: 2,
        ropes: Vec::new(),
        ..spec(&arch::BERT, None)
    };
    let nomic = ModelSpec { kv_heads: 4, token_types: 2, ..spec(&arch::NOMIC_BERT, None) };
    let tape = |s: &ModelSpec, hidden| {
        let program = decoder(s, &Options { hidden, ..Options::default() });
        program.check().unwrap();
        program
    };
    for s in [&bert, &nomic] {
        let program = tape(s, false);
        assert!(program.logits.is_none() && program.looks_ahead());
        assert_eq!(program.hidden.map(|h| h.cols), Some(64));
        assert_eq!(program, tape(s, true));
        insta::assert_snapshot!(format!("{}_fused", s.arch.gguf), program.to_string());
    }
    let llama = spec(&arch::LLAMA, None);
    let (plain, more) = (tape(&llama, false), tape(&llama, true));
    assert_eq!((plain.hidden, plain.logits.map(|l| l.cols)), (None, more.logits.map(|l| l.cols)));
    assert_eq!((more.hidden.map(|h| h.cols), more.ops.len()), (Some(64), plain.ops.len() + 1));
}

#[test]
fn costs_count_each_weight_once_and_the_context_that_is_seen() {
    use quarrel_ir::Op;
    use quarrel_ir::cost::{StepShape, cost};

    let program = decoder(&spec(&arch::MISTRAL, Some(64)), &Options { fuse: true, ..Options::default() });
    // Two bytes an element, so that bytes are easy to say.
    let bytes = |w: usize| 2 * u64::from(program.weights[w].rows()) * u64::from(program.weights[w].cols);
    let of = |kind: &str, rows, context| {
        let step = StepShape { seqs: &[(context - rows, rows)], outputs: 1, kv_element_bytes: 2, source: 0 };
        let ops = program.ops.iter().filter(|n| n.op.name() == kind);
        ops.map(|n| cost(&program, &n.op, &step, bytes))
            .fold((0, 0, 0), |sum, c| (sum.0 + c.weight_bytes, sum.1 + c.kv_bytes, sum.2 + c.flops))
    };
    // QKV, output, gate and up, down; then the head, which only the one output row needs.
    let layer = 64 * (64 + 32 + 32) + 64 * 64 + 64 * 256 + 128 * 64;
    let head = 1000 * 64;
    assert_eq!(of("matmul", 1, 1), (2 * (layer + head), 0, 2 * (layer + head)));
    assert_eq!(of("matmul", 5, 5), (2 * (layer + head), 0, 2 * (5 * layer + head)));
    assert_eq!(of("embed", 5, 5).0, 5 * 64 * 2);
    // Keys and values of two heads of 16; the window of 64 bounds what is read.
    let token = 2 * (16 + 16) * 2;
    assert_eq!(of("store_kv", 3, 3).1, 3 * token);
    assert_eq!(of("attend", 1, 10).1, 10 * token);
    assert_eq!(of("attend", 1, 1000), (0, 64 * token, 2 * 64 * 4 * 32));
    assert!(program.ops.iter().any(|n| matches!(n.op, Op::Attend { .. })));
}
