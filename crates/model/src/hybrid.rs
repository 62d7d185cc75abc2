//! Layers that mix tokens by something else than attention: what they are, and their part of the tape.

use crate::decoder::Builder;
use quarrel_ir::{KvLayer, View};

/// What a family's layers have where it is not attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hybrid {
    /// Short convolutions between two gates (LFM2).
    ShortConv,
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
}

impl Mixer {
    /// Parameters of a layer's mixer of this width, but for attention.
    pub(crate) fn parameters(self, dim: u64) -> Option<u64> {
        match self {
            Mixer::Attention => None,
            Mixer::ShortConv { taps, .. } => Some(dim * (4 * dim + u64::from(taps))),
        }
    }

    /// What the layer keeps of each token, but for attention.
    pub(crate) fn cache(self, dim: u32) -> Option<KvLayer> {
        match self {
            Mixer::Attention => None,
            Mixer::ShortConv { taps, .. } => Some(KvLayer::inputs(dim, taps)),
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
        let y = self.p.short_conv([x, before, after], (weight, bias_of), l);
        let y = self.linear(l, "shortconv.out_proj", y, dim, bias);
        self.scaled(y)
    }
}
