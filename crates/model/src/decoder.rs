//! The only forward pass: a [`ModelSpec`] becomes a Program.

use crate::arch::QkNorm;
use crate::spec::ModelSpec;
use quarrel_ir::{AttendSpec, KvLayer, NormSpec, Op, Program, RopeId, Rows, View, WeightId, fuse};

/// How to build the tape.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Apply the fusion rewrites.
    pub fuse: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { fuse: true }
    }
}

/// Builds the Program of a decoder. Pure: no I/O, no clock, the same spec gives the same tape.
pub fn decoder(spec: &ModelSpec, options: &Options) -> Program {
    let mut b = Builder { p: Program::new(), s: spec };
    b.p.kv = spec
        .layers
        .iter()
        .map(|l| KvLayer {
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            v_dim: spec.v_dim,
            window: l.window,
        })
        .collect();
    let ropes: Vec<RopeId> = spec.ropes.iter().map(|t| b.p.rope(t.clone())).collect();
    let table = b.p.weight("token_embd.weight", spec.vocab, spec.dim);
    let scale = if spec.arch.embed_sqrt_dim { (spec.dim as f32).sqrt() } else { 1.0 };
    let mut x = b.p.value("embed", Rows::Tokens, spec.dim);
    b.p.push(Op::Embed { out: x, table, scale });
    for (l, layer) in spec.layers.iter().enumerate() {
        b.p.set_layer(Some(l as u32));
        x = b.attention(x, l as u32, layer.window, ropes[layer.rope]);
        x = b.feed_forward(x, l as u32);
    }
    b.p.set_layer(None);
    b.head(x, table);
    if options.fuse { fuse::fuse(&b.p) } else { b.p }
}

struct Builder<'a> {
    p: Program,
    s: &'a ModelSpec,
}

impl Builder<'_> {
    fn weight(&mut self, layer: u32, name: &str, rows: u32, cols: u32) -> WeightId {
        self.p.weight(format!("blk.{layer}.{name}.weight"), rows, cols)
    }

    fn bias(&mut self, when: bool, layer: u32, name: &str, cols: u32) -> Option<WeightId> {
        when.then(|| self.p.weight(format!("blk.{layer}.{name}.bias"), 1, cols))
    }

    fn norm_spec(&mut self, weight: String, group: u32) -> NormSpec {
        let weight = Some(self.p.weight(weight, 1, group));
        NormSpec { kind: self.s.arch.norm, eps: self.s.eps, group, weight, bias: None }
    }

    fn layer_norm(&mut self, layer: u32, name: &'static str, x: View, group: u32) -> View {
        let norm = self.norm_spec(format!("blk.{layer}.{name}.weight"), group);
        self.p.norm(name, x, norm)
    }

    fn linear(&mut self, layer: u32, name: &'static str, x: View, rows: u32, bias: bool) -> View {
        let w = self.weight(layer, name, rows, x.cols);
        let bias = self.bias(bias, layer, name, rows);
        self.p.matmul(name, x, w, bias)
    }

    /// The residual sum, through a norm of its own where the family has one.
    fn residual(&mut self, layer: u32, post_norm: &'static str, x: View, y: View) -> View {
        if !self.s.arch.post_norms {
            return self.p.add("residual", x, y);
        }
        let norm = self.norm_spec(format!("blk.{layer}.{post_norm}.weight"), y.cols);
        let out = self.p.value("residual", Rows::Tokens, y.cols);
        self.p.push(Op::Norm { out, x: y, norm, add: Some(x) });
        out
    }

    fn attention(&mut self, x: View, l: u32, window: Option<u32>, rope: RopeId) -> View {
        let s = self.s;
        let h = self.layer_norm(l, "attn_norm", x, s.dim);
        let mut q = self.linear(l, "attn_q", h, s.heads * s.head_dim, s.qkv_bias);
        let mut k = self.linear(l, "attn_k", h, s.kv_heads * s.head_dim, s.qkv_bias);
        let v = self.linear(l, "attn_v", h, s.kv_heads * s.v_dim, s.qkv_bias);
        if s.arch.qk_norm == QkNorm::PerHead {
            q = self.layer_norm(l, "attn_q_norm", q, s.head_dim);
            k = self.layer_norm(l, "attn_k_norm", k, s.head_dim);
        }
        for x in [q, k] {
            self.p.push(Op::Rope { x, head_dim: s.head_dim, table: rope });
        }
        self.p.push(Op::StoreKv { k, v, kv_layer: l });
        let spec = AttendSpec {
            kv_layer: l,
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            v_dim: s.v_dim,
            scale: s.attn_scale,
            window,
            softcap: s.attn_softcap,
        };
        let a = self.p.attend(q, spec);
        let y = self.linear(l, "attn_output", a, s.dim, s.out_bias);
        self.residual(l, "post_attention_norm", x, y)
    }

    fn feed_forward(&mut self, x: View, l: u32) -> View {
        let s = self.s;
        let h = self.layer_norm(l, "ffn_norm", x, s.dim);
        let gate = self.linear(l, "ffn_gate", h, s.ff, s.ff_bias);
        let up = self.linear(l, "ffn_up", h, s.ff, s.ff_bias);
        let a = self.p.glu(gate, up, s.arch.act);
        let y = self.linear(l, "ffn_down", a, s.dim, s.ff_bias);
        self.residual(l, "post_ffw_norm", x, y)
    }

    fn head(&mut self, x: View, table: WeightId) {
        let s = self.s;
        let picked = self.p.value("picked", Rows::Outputs, s.dim);
        self.p.push(Op::PickRows { out: picked, x });
        let norm = self.norm_spec("output_norm.weight".into(), s.dim);
        let h = self.p.norm("output_norm", picked, norm);
        let w = if s.tied { table } else { self.p.weight("output.weight", s.vocab, s.dim) };
        let logits = self.p.matmul("logits", h, w, None);
        if let Some(cap) = s.logit_softcap {
            self.p.push(Op::Softcap { x: logits, cap });
        }
        self.p.logits = Some(logits);
    }
}
