//! What a model is, after all differences between files are gone.

use crate::arch::{Arch, AttnScale, Positions, QkNorm, Unrotated, WindowPattern};
use crate::experts::ExpertSpec;
use crate::hybrid::Mixer;
use crate::latent::Latent;
use crate::rope::{Rotary, Scaling};
use crate::streams::Streams;
use crate::{Error, Result};
use quarrel_ir::{Activation, Blocks, Buckets, Growth, KvLayer, NormKind, TAPS_MAX, WeightId};

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Attention window in tokens, its own included.
    pub window: Option<u32>,
    /// Index into [`ModelSpec::ropes`]; `None` where queries and keys are not rotated.
    pub rope: Option<usize>,
}

/// A transformer: a decoder, an encoder, or a decoder with an encoder that reads its source.
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
    /// Norm on queries and keys.
    pub qk_norm: QkNorm,
    /// Norms have a bias.
    pub norm_bias: bool,
    /// What queries, keys and values are clipped at.
    pub clip: Option<f32>,
    /// The head's rows are brought to length 1.
    pub unit_head: bool,
    /// Attention and feed-forward read the same and are added together.
    pub parallel: bool,
    /// The feed-forward block has a norm of its own; otherwise it reads what attention does.
    pub ff_norm: bool,
    /// The largest bias of ALiBi.
    pub alibi: Option<f32>,
    /// Factor on the embeddings.
    pub embed_scale: f32,
    /// Factor on what a block adds.
    pub residual_scale: f32,
    /// Factor on logits.
    pub logit_scale: f32,
    /// Biases on Q, K, V.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub out_bias: bool,
    /// Biases in the feed-forward block.
    pub ff_bias: bool,
    /// Bias on the output head.
    pub head_bias: bool,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Rows of the table of positions; 0 where there is none.
    pub positions: u32,
    /// Rows of the table of token types, whose first is added to every token; 0 where there is none.
    pub token_types: u32,
    /// Rotations.
    pub ropes: Vec<Rotary>,
    /// The experts of sparse layers.
    pub experts: Option<ExpertSpec>,
    /// Layers whose feed-forward block is a mixture of experts, where there are any.
    pub sparse: Vec<bool>,
    /// Latent attention; heads are then as the cache has them.
    pub latent: Option<Latent>,
    /// Attention of every layer has a score for each head that adds nothing.
    pub sinks: bool,
    /// Windows begin at multiples of their size.
    pub chunked: bool,
    /// Queries and keys of rotated layers are normalised without a gain.
    pub bare_norm: bool,
    /// What queries of layers without rotation grow by.
    pub growth: Option<Growth>,
    /// Attention by blocks, and every how many layers there is one that sees everything.
    pub blocks: Option<(Blocks, u32)>,
    /// Tokens of the vocabulary that are never answered.
    pub never: Vec<u32>,
    /// What the layers have for attention, where any has something else.
    pub mixers: Vec<Mixer>,
    /// The nonlinearity of dense feed-forward blocks, and whether it gates a second product.
    pub act: (Activation, bool),
    /// Scores have a bias by distance.
    pub distances: Option<DistanceSpec>,
    /// The stack that reads the source, in a model that has two.
    pub source: Option<SourceSpec>,
    /// The residual streams, in a model that has several.
    pub streams: Option<Streams>,
    /// Layers from this one on have no keys and values of their own: see [`ModelSpec::cache_of`].
    pub first_shared: Option<usize>,
    /// Of each layer that has one, how many deviations above their mean the gates of its feed-forward block are cut off.
    pub cutoffs: Vec<Option<f32>>,
    /// Layers, first to last; of the second stack, if there are two.
    pub layers: Vec<LayerSpec>,
}

/// A bias by distance, as T5 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistanceSpec {
    /// Rows of the table.
    pub buckets: u32,
    /// From this distance on all are in the last bucket.
    pub most: u32,
    /// Every layer has a table of its own, and not the first one for all.
    pub each: bool,
}

/// The stack that reads a source, which the other one answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceSpec {
    /// Its layers.
    pub layers: u32,
    /// The token that an answer begins with, before its first own one.
    pub start: u32,
}

impl PartialEq for Arch {
    fn eq(&self, other: &Arch) -> bool {
        self.gguf == other.gguf
    }
}

impl ModelSpec {
    /// What the family is when a file says nothing, without sizes.
    pub fn new(arch: &'static Arch) -> ModelSpec {
        ModelSpec {
            arch,
            vocab: 0,
            dim: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            v_dim: 0,
            ff: 0,
            context: 0,
            eps: 1e-5,
            attn_scale: 1.0,
            attn_softcap: None,
            logit_softcap: None,
            qk_norm: arch.qk_norm,
            norm_bias: arch.norm == NormKind::Layer && !arch.bare_norms,
            clip: None,
            unit_head: false,
            parallel: arch.parallel,
            ff_norm: true,
            alibi: None,
            embed_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            qkv_bias: false,
            out_bias: false,
            ff_bias: false,
            head_bias: false,
            tied: false,
            positions: 0,
            token_types: 0,
            ropes: Vec::new(),
            experts: None,
            sparse: Vec::new(),
            latent: None,
            sinks: false,
            chunked: false,
            bare_norm: false,
            growth: None,
            blocks: None,
            never: Vec::new(),
            mixers: Vec::new(),
            act: (arch.act, arch.gated),
            distances: None,
            source: None,
            streams: None,
            first_shared: None,
            cutoffs: Vec::new(),
            layers: Vec::new(),
        }
    }

    /// Bytes of KV cache per token with elements of `element_bytes`.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> usize {
        let attention =
            KvLayer { kv_heads: self.kv_heads, head_dim: self.head_dim, v_dim: self.v_dim, window: None };
        let own = (0..self.layers.len()).filter(|l| self.keeps(*l));
        let cached = own.filter_map(|l| self.mixer(l).cache(self.dim, attention));
        let own = cached.map(|c| c.kv_heads as usize * (c.head_dim + c.v_dim) as usize).sum::<usize>();
        // Of a source there are the encoder's own, and what each layer reads of it.
        let source = self.source.map_or(0, |s| s.layers as usize + self.layers.len());
        (own + source * self.kv_heads as usize * (self.head_dim + self.v_dim) as usize) * element_bytes
    }

    /// What a layer has for attention.
    pub fn mixer(&self, layer: usize) -> Mixer {
        self.mixers.get(layer).copied().unwrap_or(Mixer::Attention)
    }

    /// Parameters, from the shapes.
    pub fn parameters(&self) -> u64 {
        let (d, ff) = (u64::from(self.dim), u64::from(self.ff));
        let q = u64::from(self.heads * self.head_dim);
        let kv = u64::from(self.kv_heads) * u64::from(self.head_dim + self.v_dim);
        let o = u64::from(self.heads * self.v_dim);
        let tables = if self.tied || !self.arch.causal { 1 } else { 2 };
        let products = if self.act.1 { 3 } else { 2 };
        let attention = self.latent.map_or(d * (q + kv + o), |m| m.parameters(self));
        let sparse = self.sparse.iter().filter(|s| **s).count() as u64;
        let dense = (self.layers.len() as u64).saturating_sub(sparse);
        let mixer = |l: usize| match self.mixer(l).parameters(d) {
            Some(n) => n,
            None if self.keeps(l) => attention,
            None => attention - d * kv,
        };
        let streams = self.streams.map_or(0, |s| s.parameters(d, self.layers.len() as u64));
        let source = self.source.map_or(0, |s| {
            let crossed = self.layers.len() as u64 * (attention + d);
            u64::from(s.layers) * (attention + products * d * ff + 2 * d) + d + crossed
        });
        source
            + streams
            + (0..self.layers.len()).map(|l| mixer(l) + 2 * d).sum::<u64>()
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
        for (field, factor) in [
            ("attention scale", self.attn_scale),
            ("embedding scale", self.embed_scale),
            ("residual scale", self.residual_scale),
            ("logit scale", self.logit_scale),
            ("alibi bias", self.alibi.unwrap_or(1.0)),
            ("clipping", self.clip.unwrap_or(1.0)),
        ] {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(field_error(field, format!("is {factor}; a positive number is needed")));
            }
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(field_error("layer_norm_rms_epsilon", format!("is {}", self.eps)));
        }
        let bad = |(b, every): (Blocks, u32)| {
            let fits = b.tokens.is_power_of_two() && b.tokens <= 1 << 16 && b.local > 0;
            !fits || every == 0 || b.local.max(b.stride).max(b.shift) > 1 << 16
        };
        if let Some(b) = self.blocks.filter(|b| bad(*b)) {
            return Err(field_error("blocks of attention", format!("are {b:?}, which is no pattern")));
        }
        if let Some(n) = self.never.iter().find(|n| **n >= self.vocab) {
            return Err(field_error("tokens that are never answered", format!("have {n} of {}", self.vocab)));
        }
        let taps = |m: &Mixer| matches!(m, Mixer::ShortConv { taps, .. } if !(1..=TAPS_MAX).contains(taps));
        if self.mixers.iter().any(taps) {
            return Err(field_error("taps of the short convolutions", format!("must be 1..={TAPS_MAX}")));
        }
        if let Some(s) = self.source.filter(|s| s.layers == 0 || s.layers > 1 << 12 || s.start >= self.vocab)
        {
            let why = format!("has {} layers, and answers begin with token {}", s.layers, s.start);
            return Err(field_error("the encoder", why));
        }
        let ways = Buckets { table: WeightId(0), most: 0, both_ways: true };
        if let Some(d) = self.distances.filter(|d| !Buckets { most: d.most, ..ways }.fits(d.buckets)) {
            let why = format!("are {} up to {}", d.buckets, d.most);
            return Err(field_error("buckets of distances", why));
        }
        if let Some(s) = &self.streams {
            s.check()?;
        }
        if let Some(l) = (0..self.layers.len()).find(|l| self.cache_of(*l).is_none()) {
            let why = format!("layer {l} has none of its own, and none before it is of its kind");
            return Err(field_error("shared keys and values", why));
        }
        if self.cutoffs.iter().flatten().any(|by| !by.is_finite()) {
            return Err(field_error("activation sparsity", "is no number"));
        }
        if self.context == 0 {
            return Err(field_error("context_length", "is 0"));
        }
        if self.arch.positions == Positions::Learned && self.positions < self.context {
            let why = format!("has {} rows for {} positions", self.positions, self.context);
            return Err(field_error("position_embd", why));
        }
        for t in &self.ropes {
            let factors: [&[f32]; 2] = match &t.scaling {
                Scaling::Factors(f) => [f, f],
                Scaling::Long { short, long, .. } => [short, long],
                _ => [&[], &[]],
            };
            if factors.iter().any(|f| !f.is_empty() && f.len() != t.dims as usize / 2) {
                let why = format!("has {} factors for {} rotated columns", factors[0].len(), t.dims);
                return Err(field_error("rope scaling", why));
            }
            let fits = t.dims >= 2 && t.dims <= self.head_dim && t.dims.is_multiple_of(2);
            if !fits || t.table(self.context).inv_freq.iter().any(|f| !f.is_finite()) {
                let why = format!(
                    "{} rotated columns in heads of {}, or a frequency that is no number",
                    t.dims, self.head_dim
                );
                return Err(field_error("rope", why));
            }
        }
        if self.growth.is_some_and(|g| !(g.tokens.is_finite() && g.tokens > 0.0 && g.by.is_finite())) {
            return Err(field_error("attention temperature", "is no number of tokens and growth"));
        }
        Ok(self)
    }
}

/// Which layers are window layers when the file does not list them itself.
pub(crate) fn local_layers(arch: &Arch, count: u32) -> Vec<bool> {
    (0..count)
        .map(|l| match arch.windows {
            WindowPattern::All | WindowPattern::FromLayer => true,
            WindowPattern::AllButEvery(n) => (l + 1) % n != 0,
        })
        .collect()
}

/// The window and the rotation of each layer, of which `local` have the window; `rotated` where the file lists it.
pub(crate) fn layers(
    arch: &Arch,
    local: &[bool],
    window: Option<u32>,
    ropes: &[Rotary],
    rotated: Option<&[bool]>,
) -> Vec<LayerSpec> {
    let rope = |l: usize, local: bool| {
        let rotates = match (rotated, arch.unrotated) {
            (Some(listed), _) => listed[l],
            (None, Unrotated::Never) => true,
            (None, Unrotated::Every(n)) => !(l as u32 + 1).is_multiple_of(n),
            (None, Unrotated::Full) => local || window.is_none(),
        };
        // Table 1 is the local one where there is one.
        (rotates && !ropes.is_empty()).then_some(usize::from(local && ropes.len() > 1))
    };
    let layer = |(l, local): (usize, &bool)| {
        let local = *local && window.is_some();
        LayerSpec { window: window.filter(|_| local), rope: rope(l, local) }
    };
    local.iter().enumerate().map(layer).collect()
}

/// The first layer of attention.
pub(crate) fn first_attention(mixers: &[Mixer]) -> usize {
    mixers.iter().position(|m| *m == Mixer::Attention).unwrap_or(0)
}

/// How tokens of a model with so many layers know their positions.
pub(crate) fn positions(arch: &Arch, layers: u32) -> Positions {
    match arch.positions {
        Positions::RotatedBut { layers: n } if n == layers => Positions::Alibi,
        Positions::RotatedBut { .. } => Positions::Rotated,
        other => other,
    }
}

/// The norm of queries and keys of a model whose first layer of attention `has` tensors: none, if their gains are not there.
pub(crate) fn qk_norm(arch: &Arch, has: impl Fn(&str) -> bool) -> QkNorm {
    let gains = ["attn_q_norm.weight", "attn_q_norm.0.weight"];
    if gains.into_iter().any(has) { arch.qk_norm } else { QkNorm::None }
}

/// The rotations of a model: that of the file, and another of window layers where the family has one.
pub(crate) fn rotations(arch: &Arch, global: Rotary, local_base: Option<f64>) -> Vec<Rotary> {
    let base = local_base.or(arch.local_unscaled.then_some(global.base));
    let local = base.map(|base| Rotary { base, scaling: Scaling::None, ..global.clone() });
    std::iter::once(global).chain(local).collect()
}

/// Whether norms have a bias, by the first ones that a file may have.
pub(crate) fn has_norm_bias(has: impl Fn(&str) -> bool) -> bool {
    ["output_norm.bias", "token_embd_norm.bias", "blk.0.attn_norm.bias"].into_iter().any(has)
}

pub(crate) fn attn_scale(arch: &Arch, layers: u32, dim: u32, heads: u32, head_dim: u32) -> f32 {
    match arch.attn_scale {
        AttnScale::One => 1.0,
        AttnScale::HeadDimBut { layers: l } if l == layers => (dim as f32 / heads as f32).powf(-0.5),
        _ => (head_dim as f32).powf(-0.5),
    }
}

pub(crate) fn field_error(field: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Field { field: field.into(), why: why.into() }
}
