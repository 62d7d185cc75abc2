//! Every fusion rewrite gives the same numbers as the plain tape, on the reference, for each family's shape.

use quarrel_conform::random::{Rng, tensor};
use quarrel_conform::{Tensors, compare, prepare, run_chunks};
use quarrel_formats::DType;
use quarrel_ir::reference::Reference;
use quarrel_ir::{Limits, Op, Program, RopeStyle};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::rope::Rotary;
use quarrel_model::{Arch, LayerSpec, ModelSpec, arch};

fn spec(arch: &'static Arch, bias: bool, tied: bool) -> ModelSpec {
    ModelSpec {
        vocab: 50,
        dim: 24,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        v_dim: 8,
        ff: 40,
        context: 64,
        eps: 1e-5,
        attn_scale: 0.35,
        qkv_bias: bias,
        out_bias: bias,
        ff_bias: bias,
        tied,
        ropes: vec![
            Rotary::plain(RopeStyle::Interleaved, 8, 10_000.0),
            Rotary::plain(RopeStyle::Neox, 8, 100.0),
        ],
        layers: vec![LayerSpec { window: Some(5), rope: Some(1) }, LayerSpec { window: None, rope: Some(0) }],
        ..ModelSpec::new(arch)
    }
}

fn tensors(program: &Program, rng: &mut Rng) -> Tensors {
    let mut all = Tensors::new();
    for w in &program.weights {
        for p in &w.parts {
            let shape =
                if p.rows == 1 { vec![w.cols as usize] } else { vec![p.rows as usize, w.cols as usize] };
            all.insert(p.name.clone(), tensor(&p.name, DType::F32, &shape, 0.3, rng));
        }
    }
    all
}

#[test]
fn fused_tapes_equal_plain_ones_on_the_reference() {
    let tokens: Vec<u32> = (0..20).map(|i| (i * 7) % 50).collect();
    for (arch, bias, tied) in [
        (&arch::LLAMA, false, true),
        (&arch::LLAMA, true, false),
        (&arch::GEMMA3, false, true),
        (&arch::MISTRAL, false, false),
    ] {
        let spec = spec(arch, bias, tied);
        let plain = decoder(&spec, &Options { fuse: false, ..Options::default() });
        let fused = decoder(&spec, &Options { fuse: true, ..Options::default() });
        plain.check().unwrap();
        fused.check().unwrap();
        let weights = tensors(&plain, &mut Rng(7));
        let limits = Limits { rows: 20, outputs: 20, kv_blocks: 2 };
        let logits: Vec<Vec<f32>> = [&plain, &fused]
            .into_iter()
            .map(|p| {
                let mut device = Reference::default();
                let prepared = prepare(&mut device, p, &weights, limits).unwrap();
                run_chunks(&mut device, prepared, p, &tokens, &[13, 1, 6], p.logits.unwrap()).unwrap()
            })
            .collect();
        // The same scalar operations in the same order: the bits are equal, not only the values.
        assert_eq!(logits[0], logits[1], "{} bias {bias} tied {tied}", arch.gguf);
        assert!(compare::relative_rms(&logits[0], &logits[1]) == 0.0 && logits[0].iter().any(|l| *l != 0.0));
    }
}

#[test]
fn fusion_leaves_what_the_design_promises() {
    let fused = decoder(&spec(&arch::LLAMA, false, true), &Options { fuse: true, ..Options::default() });
    let per_layer = fused.ops.iter().filter(|n| n.layer == Some(0)).count();
    // QKV, rope Q, rope K, store, attend, output + residual, gate|up + glu, down + residual.
    assert_eq!(per_layer, 8, "{fused}");
    assert!(
        !fused.ops.iter().any(|n| matches!(n.op, Op::Glu { .. } | Op::Add { .. } | Op::Norm { .. })),
        "{fused}"
    );
}
