//! Layers of several residual streams, of which one is computed and the others follow (AltUp: Baykal et al. 2023), with a
//! residual of low rank (LAuReL: Menghani et al. 2024) and an input of its own for each layer, as Gemma 3n has them.

use crate::arch::Arch;
use crate::decoder::Builder;
use crate::spec::{ModelSpec, field_error};
use crate::{Result, names};
use quarrel_formats::Source;
use quarrel_ir::reference::erf;
use quarrel_ir::{Lookup, NormKind, NormSpec, Op, RopeId, Rows, View, WeightId, WeightPart};

/// The least mean square that a stream's length is divided by.
const FLOOR: f32 = 1e-5;

/// The sizes of what layers of several streams have beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// Streams; the first is the one that is computed.
    pub count: u32,
    /// Columns between the two products of the learned residual.
    pub rank: u32,
    /// Columns of a layer's own input.
    pub input: u32,
    /// Layers that have one: those of the file.
    pub layers: u32,
    /// Rows of the table that it comes from; tokens beyond have that of token 0.
    pub rows: u32,
}

impl Streams {
    /// With the sizes that only tensors say.
    pub(crate) fn read(source: &Source, arch: &Arch, [count, input, layers]: [u32; 3]) -> Streams {
        let rows = |name: &str| {
            let first = names::find(source, arch, name).and_then(|t| t.shape.first());
            first.map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX))
        };
        let (rank, rows) = (rows("blk.0.laurel_l.weight"), rows("per_layer_token_embd.weight"));
        Streams { count, rank, input, layers, rows }
    }

    /// Checks sizes that would make later arithmetic meaningless.
    pub(crate) fn check(&self) -> Result<()> {
        for (field, value, max) in [
            ("streams", self.count, 16),
            ("rank of the learned residual", self.rank, 1 << 16),
            ("columns of a layer's input", self.input, 1 << 16),
            ("layers with inputs", self.layers, 1 << 12),
            ("rows of the table of layers' inputs", self.rows, 1 << 24),
        ] {
            if !(1..=max).contains(&value) {
                return Err(field_error(field, format!("is {value}, must be 1..={max}")));
            }
        }
        if self.count < 2 {
            return Err(field_error("streams", "is 1, must be at least 2"));
        }
        Ok(())
    }

    /// Parameters of a model of `layers` layers of width `dim` beyond those of one stream.
    pub(crate) fn parameters(&self, dim: u64, layers: u64) -> u64 {
        let [n, rank, input] = [self.count, self.rank, self.input].map(u64::from);
        let inputs = input * u64::from(self.layers);
        let mixing = (n + 2) * dim + n * n * n + n * n;
        let layer = mixing + 2 * rank * dim + dim + 2 * input * dim + dim;
        (u64::from(self.rows) + dim) * inputs + input + 2 * (n - 1) * dim * dim + layers * layer
    }
}

/// Deviations above the mean that the given share of what a Gaussian gives lies below: none for a share of 0 or less.
pub(crate) fn deviations(share: f64) -> Option<f32> {
    if share <= 0.0 {
        return None;
    }
    let below = |x: f64| 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if below(middle) < share { low = middle } else { high = middle }
    }
    Some(low as f32)
}

/// Where gates of so many layers are cut off in files that do not say it.
pub(crate) fn cutoffs(layers: u32) -> Vec<Option<f32>> {
    let sparse = if layers > 10 { 10 } else { 0 };
    (0..layers.min(1 << 16)).map(|l| (l < sparse).then(|| deviations(0.95)).flatten()).collect()
}

/// The first of the last `shared` layers.
pub(crate) fn first_shared(layers: u32, shared: u32, field: &str) -> Result<usize> {
    let first = layers.checked_sub(shared).map(|n| n as usize);
    first.ok_or_else(|| field_error(field, format!("is {shared}, but there are {layers} layers")))
}

impl ModelSpec {
    /// The layer whose keys and values another attends to: its own, or where layers from [`ModelSpec::first_shared`] on have none,
    /// the last one before with the same window.
    pub fn cache_of(&self, layer: usize) -> Option<usize> {
        match self.first_shared {
            Some(first) if layer >= first => {
                let window = self.layers[layer].window;
                self.layers[..first.min(layer)].iter().rposition(|l| l.window == window)
            }
            _ => Some(layer),
        }
    }

    /// Whether a layer has keys and values of its own.
    pub(crate) fn keeps(&self, layer: usize) -> bool {
        self.first_shared.is_none_or(|first| layer < first)
    }
}

/// A step's streams, and what they are computed with.
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    sizes: Streams,
    /// `[rows, layers * input]`.
    inputs: View,
}

impl Builder<'_> {
    /// Streams out of the embeddings, side by side, and the inputs of all layers.
    pub(crate) fn part(&mut self, x: View) -> (View, Option<Flow>) {
        let Some(sizes) = self.s.streams else { return (x, None) };
        let (dim, input) = (x.cols, sizes.input);
        let all = sizes.layers * input;
        let table = self.p.weight("per_layer_token_embd.weight", sizes.rows, all);
        let known = self.p.value("inputs", Rows::Tokens, all);
        let (scale, by) = ((input as f32).sqrt(), Lookup::TokenOr(0));
        self.p.push(Op::Embed { out: known, table, scale, by, add: None });
        let weight = self.p.weight("per_layer_model_proj.weight", all, dim);
        let seen = self.p.matmul("inputs", x, weight, None);
        self.p.push(Op::Scale { x: seen, by: (dim as f32).powf(-0.5) });
        let norm = self.norm_spec("per_layer_proj_norm.weight".into(), input);
        let seen = self.p.norm("per_layer_proj_norm", seen, norm);
        let inputs = self.mix("inputs", seen, known, [0.5f32.sqrt(); 2]);

        let weight = self.others("altup_proj", sizes.count, dim);
        let others = self.p.matmul("altup_proj", x, weight, None);
        let streams = self.p.value("streams", Rows::Tokens, sizes.count * dim);
        let (first, rest) = (streams.slice(0, dim), streams.slice(dim, others.cols));
        // As it is.
        let copy = NormSpec { kind: NormKind::Plain, eps: 0.0, group: dim, weight: None, bias: None };
        self.p.push(Op::Norm { out: first, x, norm: copy, add: None });
        self.p.push(Op::Rescale { out: rest, x: others, like: x, floor: FLOOR });
        (streams, Some(Flow { sizes, inputs }))
    }

    /// The matrices of all streams but the first.
    fn others(&mut self, name: &str, count: u32, dim: u32) -> WeightId {
        let part = |i| WeightPart { name: format!("{name}.{i}.weight"), rows: dim };
        self.p.stacked((0..count - 1).map(part).collect(), dim)
    }

    fn mix(&mut self, name: &'static str, a: View, b: View, by: [f32; 2]) -> View {
        let out = self.p.value(name, self.p.rows_of(a), a.cols);
        self.p.push(Op::Add { out, a, b, by });
        out
    }

    /// One stream out of all, of tokens or of picked rows: their mean, each as long as the first. Other models have one.
    pub(crate) fn merged(&mut self, x: View) -> View {
        let Some(Streams { count, .. }) = self.s.streams else { return x };
        let (dim, n) = (self.s.dim, count - 1);
        let (first, rest) = (x.slice(0, dim), x.slice(dim, n * dim));
        let weight = self.others("altup_unembd_proj", count, dim);
        let made = self.p.matmul_experts("altup_unembd_proj", (rest, None), n, (weight, None), None);
        let rest = self.p.value("merged", self.p.rows_of(x), made.cols);
        self.p.push(Op::Rescale { out: rest, x: made, like: first, floor: FLOOR });
        let part = 1.0 / count as f32;
        let half = self.mix("merged", first, rest.slice(0, dim), [part; 2]);
        (1..n).fold(half, |sum, i| self.mix("merged", sum, rest.slice(i * dim, dim), [1.0, part]))
    }

    /// A row's own factors by a router: `tanh(R norm(x) / dim)`, and what `name` makes of them, with ones added or not.
    fn factors(&mut self, l: u32, name: &'static str, x: View, [n, out]: [u32; 2], ones: bool) -> View {
        let h = self.layer_norm(l, "altup_router_norm", x, x.cols);
        let m = self.linear(l, "altup_router", h, n, false);
        self.p.push(Op::Scale { x: m, by: 1.0 / x.cols as f32 });
        self.p.push(Op::Softcap { x: m, cap: 1.0 });
        self.linear(l, name, m, out, ones)
    }

    /// A layer: every stream is predicted out of all, the first is computed, and all are corrected by what that has changed.
    pub(crate) fn stream_block(
        &mut self,
        x: View,
        l: u32,
        window: Option<u32>,
        rope: Option<RopeId>,
        flow: &Flow,
    ) -> View {
        let (dim, n) = (self.s.dim, flow.sizes.count);
        let weights = self.factors(l, "altup_predict_coef", x.slice(0, dim), [n, n * n], false);
        let predicted = self.p.value("predicted", Rows::Tokens, n * dim);
        self.p.push(Op::Combine { out: predicted, x, weights, sums: n, add: Some(x) });
        let first = predicted.slice(0, dim);

        let h = self.layer_norm(l, "attn_norm", first, dim);
        let low = self.linear(l, "laurel_l", h, flow.sizes.rank, false);
        let low = self.linear(l, "laurel_r", low, dim, false);
        let laurel = self.added(l, "laurel_post_norm", low, h);
        let a = self.attention(h, l, window, rope);
        let a = self.added(l, "post_attention_norm", a, first);
        let x = self.mix("residual", a, laurel, [0.5f32.sqrt(); 2]);
        let h = self.layer_norm(l, "ffn_norm", x, dim);
        let f = self.feed_forward(h, l);
        let active = self.added(l, "post_ffw_norm", f, x);

        let weights = self.factors(l, "altup_correct_coef", active, [n, n], true);
        let change = self.mix("change", active, first, [1.0, -1.0]);
        let out = self.p.value("streams", Rows::Tokens, n * dim);
        let (one, rest) = (out.slice(0, dim), out.slice(dim, (n - 1) * dim));
        self.p.push(Op::Combine {
            out: one,
            x: change,
            weights: weights.slice(0, 1),
            sums: 1,
            add: Some(first),
        });
        // The layer's own input goes to all streams but the first.
        let gain = Some(self.weight(l, "altup_correct_scale", 1, dim));
        let gain = NormSpec { kind: NormKind::Plain, eps: 0.0, group: dim, weight: gain, bias: None };
        let scaled = self.p.norm("altup_correct_scale", one, gain);
        let gate = self.linear(l, "inp_gate", scaled, flow.sizes.input, false);
        let input = flow.inputs.slice(l * flow.sizes.input, flow.sizes.input);
        let y = self.p.glu(gate, input, self.s.act.0);
        let y = self.linear(l, "proj", y, dim, false);
        let norm = self.norm_spec(format!("blk.{l}.post_norm.weight"), dim);
        let with = self.p.value("predicted", Rows::Tokens, rest.cols);
        for i in 1..n {
            let (out, add) = (with.slice((i - 1) * dim, dim), Some(predicted.slice(i * dim, dim)));
            self.p.push(Op::Norm { out, x: y, norm, add });
        }
        let weights = weights.slice(1, n - 1);
        self.p.push(Op::Combine { out: rest, x: change, weights, sums: n - 1, add: Some(with) });
        out
    }

    /// `add` and the norm of `x`.
    fn added(&mut self, l: u32, name: &'static str, x: View, add: View) -> View {
        let norm = self.norm_spec(format!("blk.{l}.{name}.weight"), x.cols);
        let out = self.p.value(name, Rows::Tokens, x.cols);
        self.p.push(Op::Norm { out, x, norm, add: Some(add) });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_those_of_a_gaussian() {
        for (share, want) in
            [(0.95, Some(1.644_853_6)), (0.5, Some(0.0)), (0.025, Some(-1.959_964)), (0.0, None)]
        {
            let got = deviations(share);
            assert!(got.zip(want).map_or(got == want, |(a, b): (f32, f32)| (a - b).abs() < 1e-6), "{got:?}");
        }
    }
}
