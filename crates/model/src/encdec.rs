//! Two stacks in one Program (T5): the ops of the encoder read sources and leave in the cache what the decoder's layers attend to.

use crate::arch::T5_ENCODER;
use crate::decoder::Builder;
use crate::spec::{LayerSpec, ModelSpec, SourceSpec};
use quarrel_ir::{AttendSpec, Buckets, KvLayer, NormSpec, Op, View, WeightId};

/// A stack of layers, by its place in the names of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    /// The only one of most models.
    Only,
    /// One that sees everything, before a decoder or alone.
    Encoder,
    /// One that answers an encoder.
    Decoder,
}

impl Stack {
    /// What names of its tensors begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Stack::Only => "",
            Stack::Encoder => "enc.",
            Stack::Decoder => "dec.",
        }
    }
}

impl ModelSpec {
    /// The stack that [`ModelSpec::layers`] are.
    pub(crate) fn stack(&self) -> Stack {
        match (self.distances, self.source) {
            (_, Some(_)) => Stack::Decoder,
            (Some(_), None) => Stack::Encoder,
            (None, None) => Stack::Only,
        }
    }

    /// What an engine runs: the whole, or of two stacks the encoder alone, where embeddings are wanted.
    pub fn to_run(self, encoder: bool) -> ModelSpec {
        let Some(source) = self.source.filter(|_| encoder) else { return self };
        let layers = vec![LayerSpec { window: None, rope: None }; source.layers as usize];
        let context = self.context / 2;
        ModelSpec { arch: &T5_ENCODER, source: None, logit_scale: 1.0, context, layers, ..self }
    }
}

impl Builder<'_> {
    /// The encoder over the rows of sources, and the keys and values that each layer of the decoder has of it. In the cache come
    /// the encoder's layers, then the decoder's own, then what these read of the source.
    pub(crate) fn read_source(&mut self, source: &SourceSpec, table: WeightId) {
        let s = self.s;
        let (kv_heads, head_dim, v_dim) = (s.kv_heads, s.head_dim, s.v_dim);
        let layer = KvLayer { kv_heads, head_dim, v_dim, window: None };
        let own = std::mem::take(&mut self.p.kv);
        self.p.kv = vec![layer; source.layers as usize];
        self.p.kv.extend(own);
        self.p.kv.extend(vec![layer; s.layers.len()]);
        self.p.set_source(true);
        self.stack = Stack::Encoder;
        let mut x = self.p.embed("source", table, s.embed_scale);
        for l in 0..source.layers {
            self.p.set_layer(Some(l));
            x = self.block(x, l, None, None);
        }
        self.p.set_layer(None);
        let x = self.last_norm("source", x);
        self.stack = Stack::Decoder;
        for l in 0..s.layers.len() as u32 {
            self.p.set_layer(Some(l));
            let k = self.linear(l, "cross_attn_k", x, kv_heads * head_dim, false);
            let v = self.linear(l, "cross_attn_v", x, kv_heads * v_dim, false);
            let kv_layer = self.cross_layer(l);
            self.p.push(Op::StoreKv { k, v, kv_layer });
        }
        self.p.set_layer(None);
        self.p.set_source(false);
    }

    /// Attention to the source, and the residual sum.
    pub(crate) fn cross_attention(&mut self, x: View, l: u32) -> View {
        let s = self.s;
        let h = self.layer_norm(l, "cross_attn_norm", x, s.dim);
        let q = self.linear(l, "cross_attn_q", h, s.heads * s.head_dim, false);
        let spec = AttendSpec {
            kv_layer: self.cross_layer(l),
            causal: false,
            of_source: true,
            buckets: None,
            ..self.attend_spec(l, None)
        };
        let a = self.p.attend(q, spec);
        let y = self.linear(l, "cross_attn_output", a, s.dim, false);
        self.p.add("residual", x, y)
    }

    /// The norm behind a stack's last layer.
    pub(crate) fn output_norm(&mut self) -> NormSpec {
        self.norm_spec(format!("{}output_norm.weight", self.stack.prefix()), self.s.dim)
    }

    /// Its result.
    pub(crate) fn last_norm(&mut self, name: &'static str, x: View) -> View {
        let norm = self.output_norm();
        self.p.norm(name, x, norm)
    }

    /// The first layer of the cache that is of this stack.
    pub(crate) fn first_kv(&self) -> u32 {
        self.s.source.filter(|_| self.stack == Stack::Decoder).map_or(0, |s| s.layers)
    }

    fn cross_layer(&self, l: u32) -> u32 {
        self.first_kv() + self.s.layers.len() as u32 + l
    }

    /// The bias by distance of a layer's attention.
    pub(crate) fn buckets(&mut self, l: u32) -> Option<Buckets> {
        let d = self.s.distances?;
        let l = if d.each { l } else { 0 };
        let table = self.weight(l, "attn_rel_b", d.buckets, self.s.heads);
        Some(Buckets { table, most: d.most, both_ways: self.stack == Stack::Encoder })
    }
}
