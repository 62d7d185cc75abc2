//! What a model is, after all differences between files are gone.

use crate::arch::{Arch, AttnScale, Positions, WindowPattern};
use crate::experts::ExpertSpec;
use crate::latent::Latent;
use crate::{Error, Result};
use quarrel_ir::RopeTable;

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Attention window in tokens, its own included.
    pub window: Option<u32>,
    /// Index into [`ModelSpec::ropes`].
    pub rope: usize,
    /// Its feed-forward block is a mixture of experts.
    pub sparse: bool,
}

/// A decoder-only or encoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The family's row.
    pub arch: &'static Arch,
    /// Rows of the embedding.
    pub vocab: u32,
    /// Width of the residual stream.
    pub dim: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Columns of a query or key head.
    pub head_dim: u32,
    /// Columns of a value head.
    pub v_dim: u32,
    /// Width of the feed-forward block.
    pub ff: u32,
    /// The experts of sparse layers.
    pub experts: Option<ExpertSpec>,
    /// Latent attention; heads are then as the cache has them.
    pub latent: Option<Latent>,
    /// Context that the model was trained for, in tokens.
    pub context: u32,
    /// Norm epsilon.
    pub eps: f32,
    /// Factor on attention scores.
    pub attn_scale: f32,
    /// Bound on attention scores.
    pub attn_softcap: Option<f32>,
    /// Bound on logits.
    pub logit_softcap: Option<f32>,
    /// Biases on Q, K, V.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub out_bias: bool,
    /// Biases in the feed-forward block.
    pub ff_bias: bool,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Rows of the table of positions; 0 where there is none.
    pub positions: u32,
    /// Rows of the table of token types, whose first is added to every token; 0 where there is none.
    pub token_types: u32,
    /// Rotary tables.
    pub ropes: Vec<RopeTable>,
    /// Layers, first to last.
    pub layers: Vec<LayerSpec>,
}

impl PartialEq for Arch {
    fn eq(&self, other: &Arch) -> bool {
        self.gguf == other.gguf
    }
}

impl ModelSpec {
    /// Bytes of KV cache per token with elements of `element_bytes`.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> usize {
        self.layers.len() * self.kv_heads as usize * (self.head_dim + self.v_dim) as usize * element_bytes
    }

    /// Parameters, from the shapes.
    pub fn parameters(&self) -> u64 {
        let (d, ff) = (u64::from(self.dim), u64::from(self.ff));
        let q = u64::from(self.heads * self.head_dim);
        let kv = u64::from(self.kv_heads) * u64::from(self.head_dim + self.v_dim);
        let o = u64::from(self.heads * self.v_dim);
        let tables = if self.tied || !self.arch.causal { 1 } else { 2 };
        let products = if self.arch.gated { 3 } else { 2 };
        let sparse = self.layers.iter().filter(|l| l.sparse).count() as u64;
        let dense = self.layers.len() as u64 - sparse;
        let attention = self.latent.map_or(d * (q + kv + o), |m| m.parameters(self));
        self.layers.len() as u64 * (attention + 2 * d)
            + dense * products * d * ff
            + sparse * self.experts.map_or(0, |e| e.parameters(d))
            + (tables * u64::from(self.vocab) + u64::from(self.positions) + u64::from(self.token_types)) * d
            + d
    }

    /// With the heads that latent attention has in the cache.
    pub(crate) fn with_latent(self, latent: Option<Latent>) -> ModelSpec {
        match latent {
            None => self,
            Some(m) => ModelSpec { latent, kv_heads: 1, head_dim: m.rank + m.rotated, v_dim: m.rank, ..self },
        }
    }

    /// Checks sizes that would make later arithmetic meaningless; files come from strangers.
    pub(crate) fn check(self) -> Result<ModelSpec> {
        let bounds: [(&str, u32, u32); 8] = [
            ("vocabulary size", self.vocab, 1 << 24),
            ("embedding_length", self.dim, 1 << 20),
            ("feed_forward_length", self.ff, 1 << 22),
            ("head_count", self.heads, 1 << 12),
            ("head_count_kv", self.kv_heads, 1 << 12),
            ("key_length", self.head_dim, 1 << 12),
            ("value_length", self.v_dim, 1 << 12),
            ("block_count", self.layers.len() as u32, 1 << 12),
        ];
        for (field, value, max) in bounds {
            if value == 0 || value > max {
                return Err(field_error(field, format!("is {value}, must be 1..={max}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(field_error(
                "head_count_kv",
                format!("{} does not divide {} heads", self.kv_heads, self.heads),
            ));
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(field_error("layer_norm_rms_epsilon", format!("is {}", self.eps)));
        }
        if self.context == 0 {
            return Err(field_error("context_length", "is 0"));
        }
        if self.arch.positions == Positions::Learned && self.positions < self.context {
            let why = format!("has {} rows for {} positions", self.positions, self.context);
            return Err(field_error("position_embd", why));
        }
        for t in &self.ropes {
            if t.rot_dims > self.head_dim || t.rot_dims % 2 != 0 || t.inv_freq.iter().any(|f| !f.is_finite())
            {
                return Err(field_error(
                    "rope",
                    format!(
                        "{} rotated columns in heads of {}, or a frequency that is no number",
                        t.rot_dims, self.head_dim
                    ),
                ));
            }
        }
        Ok(self)
    }
}

/// Which layers are window layers when the file does not list them itself.
pub(crate) fn local_layers(arch: &Arch, count: u32) -> Vec<bool> {
    (0..count)
        .map(|l| match arch.windows {
            WindowPattern::All => true,
            WindowPattern::AllButEvery(n) => (l + 1) % n != 0,
        })
        .collect()
}

/// The window and the rope table of each layer; table 1 is the local one where the family has it.
pub(crate) fn layers(arch: &Arch, local: &[bool], window: Option<u32>) -> Vec<LayerSpec> {
    let layer = |local: &bool| LayerSpec {
        window: window.filter(|_| *local),
        rope: usize::from(*local && arch.local_rope_base.is_some()),
        sparse: false,
    };
    local.iter().map(layer).collect()
}

pub(crate) fn attn_scale(arch: &Arch, layers: u32, dim: u32, heads: u32, head_dim: u32) -> f32 {
    match arch.attn_scale {
        AttnScale::HeadDimBut { layers: l } if l == layers => (dim as f32 / heads as f32).powf(-0.5),
        _ => (head_dim as f32).powf(-0.5),
    }
}

pub(crate) fn field_error(field: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Field { field: field.into(), why: why.into() }
}
