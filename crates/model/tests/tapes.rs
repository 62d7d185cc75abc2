//! The tape of each family, pinned with no weights: a change to the forward pass shows here line by line.

use quarrel_ir::{RopeStyle, RopeTable};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::{Arch, LayerSpec, ModelSpec, arch};

fn spec(arch: &'static Arch, window: Option<u32>) -> ModelSpec {
    ModelSpec {
        arch,
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
        attn_softcap: None,
        logit_softcap: None,
        qkv_bias: false,
        out_bias: false,
        ff_bias: false,
        tied: true,
        ropes: vec![RopeTable::new(RopeStyle::Neox, 16, 10_000.0, None)],
        layers: vec![LayerSpec { window, rope: 0 }],
    }
}

#[test]
fn tapes_are_as_pinned() {
    for (arch, window) in [(&arch::LLAMA, None), (&arch::MISTRAL, Some(64)), (&arch::GEMMA3, Some(32))] {
        for fuse in [false, true] {
            let name = format!("{}_{}", arch.gguf, if fuse { "fused" } else { "plain" });
            insta::assert_snapshot!(name, decoder(&spec(arch, window), &Options { fuse }).to_string());
        }
    }
}
