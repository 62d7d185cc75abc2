//! Layers that mix tokens by something else than attention: what they are, and their part of the tape.

use crate::Result;
use crate::decoder::Builder;
use crate::spec::field_error;
use quarrel_ir::{Activation, KvLayer, NormKind, NormSpec, Op, Rows, ScanSpec, View};

/// What a family's layers have where it is not attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hybrid {
    /// Short convolutions between two gates (LFM2).
    ShortConv,
    /// Mamba-2 (Granite 4).
    Mamba2,
}

/// How the tokens of a layer learn of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixer {
    /// Attention.
    Attention,
    /// A convolution of so many taps.
    ShortConv {
        /// Tokens that it sees, its own included.
        taps: u32,
        /// Biases on it and on the products around it.
        bias: bool,
    },
    /// A convolution and a recurrence, both with a state.
    Mamba2(Mamba2),
}

/// The sizes of a Mamba-2 layer (Dao & Gu 2024), one group of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mamba2 {
    /// Heads.
    pub heads: u32,
    /// Columns of a head.
    pub head_dim: u32,
    /// Columns of a head's state.
    pub state_dim: u32,
    /// Taps of the convolution.
    pub taps: u32,
    /// A bias on the convolution.
    pub conv_bias: bool,
    /// Biases on the products before and after.
    pub bias: bool,
}

impl Mamba2 {
    /// Columns of all heads.
    fn inner(&self) -> u32 {
        self.heads * self.head_dim
    }

    /// Columns that the convolution sees: the heads', and what goes into the state and is read of it.
    fn convolved(&self) -> u32 {
        self.inner() + 2 * self.state_dim
    }

    /// Checks sizes that would make later arithmetic meaningless.
    pub(crate) fn check(self) -> Result<Mamba2> {
        for (field, value, max) in [
            ("heads of the recurrence", self.heads, 1 << 12),
            ("columns of its heads", self.head_dim, 1 << 10),
            ("columns of its states", self.state_dim, 1 << 10),
        ] {
            if !(1..=max).contains(&value) {
                return Err(field_error(field, format!("is {value}, must be 1..={max}")));
            }
        }
        if !(2..=quarrel_ir::TAPS_MAX).contains(&self.taps) {
            let why = format!("is {}, must be 2..={}", self.taps, quarrel_ir::TAPS_MAX);
            return Err(field_error("taps of the convolution", why));
        }
        Ok(self)
    }

    fn parameters(&self, dim: u64) -> u64 {
        let (inner, heads) = (u64::from(self.inner()), u64::from(self.heads));
        let convolved = u64::from(self.convolved());
        dim * (2 * inner + convolved + heads) + convolved * u64::from(self.taps + 1) + 3 * heads + inner
    }
}

impl Mixer {
    /// Parameters of a layer's mixer of this width, but for attention.
    pub(crate) fn parameters(self, dim: u64) -> Option<u64> {
        match self {
            Mixer::Attention => None,
            Mixer::ShortConv { taps, .. } => Some(dim * (4 * dim + u64::from(taps))),
            Mixer::Mamba2(m) => Some(m.parameters(dim)),
        }
    }

    /// What the layer keeps of each token, in a model of this width: `attention` where it attends, nothing where it has a state.
    pub(crate) fn cache(self, dim: u32, attention: KvLayer) -> Option<KvLayer> {
        match self {
            Mixer::Attention => Some(attention),
            Mixer::ShortConv { taps, .. } => Some(KvLayer::inputs(dim, taps)),
            Mixer::Mamba2(_) => None,
        }
    }
}

impl Builder<'_> {
    /// A product gives two gates and the input, the convolution goes between, and a product follows.
    pub(crate) fn short_conv(&mut self, h: View, l: u32, taps: u32, bias: bool) -> View {
        let dim = self.s.dim;
        let all = self.linear(l, "shortconv.in_proj", h, 3 * dim, bias);
        let [before, after, x] = [0, 1, 2].map(|i| all.slice(i * dim, dim));
        let weight = self.weight(l, "shortconv.conv", dim, taps);
        let bias_of = self.bias(bias, l, "shortconv.conv", dim);
        let kv_layer = self.kv_layer(l);
        let y = self.p.short_conv([x, before, after], (weight, bias_of), kv_layer);
        let y = self.linear(l, "shortconv.out_proj", y, dim, bias);
        self.scaled(y)
    }

    /// A product gives a gate, what is convolved, and the steps; the recurrence follows, gated and normalised, and a product.
    pub(crate) fn mamba2(&mut self, h: View, l: u32, m: &Mamba2) -> View {
        let (inner, n) = (m.inner(), m.state_dim);
        let all = self.linear(l, "ssm_in", h, inner + m.convolved() + m.heads, m.bias);
        let (gate, dt) = (all.slice(0, inner), all.slice(inner + m.convolved(), m.heads));
        let weight = self.weight(l, "ssm_conv1d", m.convolved(), m.taps);
        let bias = self.bias(m.conv_bias, l, "ssm_conv1d", m.convolved());
        let u = self.p.conv(all.slice(inner, m.convolved()), weight, bias);
        let parts = [u.slice(0, inner), u.slice(inner, n), u.slice(inner + n, n), dt];
        let spec = ScanSpec {
            heads: m.heads,
            head_dim: m.head_dim,
            state_dim: n,
            a: self.weight(l, "ssm_a", m.heads, 1),
            skip: self.weight(l, "ssm_d", m.heads, 1),
            dt_bias: self.p.weight(format!("blk.{l}.ssm_dt.bias"), 1, m.heads),
        };
        let up = self.p.scan(parts, spec);
        let gated = self.p.value("ssm_gated", Rows::Tokens, inner);
        self.p.push(Op::Glu { out: gated, gate, up, act: Activation::Silu });
        let gain = Some(self.p.weight(format!("blk.{l}.ssm_norm.weight"), 1, inner));
        let norm = NormSpec { kind: NormKind::Rms, eps: self.s.eps, group: inner, weight: gain, bias: None };
        let y = self.p.norm("ssm_norm", gated, norm);
        let y = self.linear(l, "ssm_out", y, self.s.dim, m.bias);
        self.scaled(y)
    }
}
