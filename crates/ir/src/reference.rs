//! The semantics: a scalar interpreter with f64 accumulation and f32 values, one op at a time, nothing fused or tiled.
//! It is a [`Device`], so tests run it and a fast device side by side.

mod recur;

use crate::candidates;
use crate::device::{
    Adapter, AdapterPart, BLOCK_TOKENS, Device, DeviceInfo, HostWeight, Limits, Prepared, Readout,
    StepInputs, Weight, check_adapter, check_positions, check_source, check_states, no_adapter,
};
use crate::evict::{Keep, KeyRotation, Mass, Turn, check_compact, key_rotations};
use crate::experts::route;
use crate::op::{Activation, AttendSpec, Lookup, NormKind, NormSpec, Op, View, alibi_slope};
use crate::program::{KvLayer, Program, Rows, WeightDecl, WeightId};
use crate::rope::RopeTable;
pub use crate::scalar::{activate, erf};
use crate::{Error, Result};
use quarrel_formats::quant;
use std::collections::HashMap;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Normalises `x` in groups into `out`.
fn normalise(spec: &NormSpec, weight: Option<&[f32]>, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    let g = spec.group as usize;
    for (i, (x, out)) in x.chunks_exact(g).zip(out.chunks_exact_mut(g)).enumerate() {
        let weight = weight.map(|w| &w[i * g % w.len()..]);
        let mean = match spec.kind {
            NormKind::Rms | NormKind::Plain => 0.0,
            NormKind::Layer => x.iter().map(|v| f64::from(*v)).sum::<f64>() / g as f64,
        };
        let var = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / g as f64;
        let inv = match spec.kind {
            NormKind::Plain => 1.0,
            NormKind::Rms | NormKind::Layer => 1.0 / (var + f64::from(spec.eps)).sqrt(),
        };
        for i in 0..g {
            let gain = weight.map_or(1.0, |w| f64::from(w[i]));
            let shift = bias.map_or(0.0, |b| f64::from(b[i]));
            out[i] = ((f64::from(x[i]) - mean) * inv * gain + shift) as f32;
        }
    }
}

/// Rotates the heads of one row.
fn rotate(table: &RopeTable, head_dim: usize, position: u32, x: &mut [f32]) {
    let half = table.rot_dims as usize / 2;
    let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
    table.angles(position, &mut cos, &mut sin);
    for head in x.chunks_exact_mut(head_dim) {
        for i in 0..half {
            let (a, b) = table.columns(i);
            let (x0, x1) = (head[a], head[b]);
            head[a] = x0 * cos[i] - x1 * sin[i];
            head[b] = x0 * sin[i] + x1 * cos[i];
        }
    }
}

/// Keys and values of one layer, `[block][token][kv_heads * dim]`.
struct Cache {
    layer: KvLayer,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    fn row(&self, blocks: &[u32], position: usize) -> usize {
        blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
    }
}

impl Cache {
    /// Moves a head's key and value from one place of a sequence to another; the key turns with its position.
    fn shift(
        &mut self,
        head: usize,
        from: (&[u32], usize),
        to: (&[u32], usize),
        rotation: Option<&KeyRotation>,
    ) {
        let KvLayer { kv_heads, head_dim, v_dim, .. } = self.layer;
        let (old, new) = (self.row(from.0, from.1), self.row(to.0, to.1));
        let at = |row: usize, dim: u32| (row * kv_heads as usize + head) * dim as usize;
        let mut key = self.k[at(old, head_dim)..][..head_dim as usize].to_vec();
        for Turn { a, b, cos, sin } in rotation.iter().flat_map(|r| r.turns(from.1 as u32, to.1 as u32)) {
            let (x, y) = (f64::from(key[a]), f64::from(key[b]));
            (key[a], key[b]) = ((x * cos - y * sin) as f32, (x * sin + y * cos) as f32);
        }
        self.k[at(new, head_dim)..][..head_dim as usize].copy_from_slice(&key);
        let value = at(old, v_dim)..at(old, v_dim) + v_dim as usize;
        self.v.copy_within(value, at(new, v_dim));
    }
}

/// What a sequence keeps beside its cache: how many tokens it has seen, and the numbers of each state.
#[derive(Clone)]
struct State {
    seen: usize,
    numbers: Vec<Vec<f32>>,
}

/// A prepared Program: values as plain vectors, caches in f32.
struct Ready {
    program: Program,
    weights: Vec<Weight>,
    limits: Limits,
    values: Vec<Vec<f32>>,
    caches: Vec<Cache>,
    mass: HashMap<u32, Observed>,
    states: HashMap<u32, State>,
    /// By handle; the places of unloaded ones stay empty.
    adapters: Vec<Option<Vec<AdapterPart>>>,
    rows: usize,
    outputs: usize,
}

/// The sums of one slot, by head and token.
#[derive(Clone, Default)]
struct Observed {
    rows: usize,
    tokens: usize,
    sums: Vec<Vec<f64>>,
}

/// The reference device.
pub struct Reference {
    info: DeviceInfo,
    weights: Vec<Vec<f32>>,
    ready: Vec<Ready>,
}

impl Default for Reference {
    fn default() -> Self {
        let info = DeviceInfo {
            name: "reference".into(),
            description: "scalar interpreter".into(),
            threads: 1,
            cache: "f32",
        };
        Reference { info, weights: Vec::new(), ready: Vec::new() }
    }
}

impl Ready {
    /// Key/value heads of all layers.
    fn heads(&self) -> usize {
        self.program.kv.iter().map(|l| l.kv_heads as usize).sum()
    }

    fn row_count(&self, v: View) -> usize {
        match self.program.rows_of(v) {
            Rows::Tokens => self.rows,
            Rows::Outputs => self.outputs,
        }
    }

    fn read_row(&self, v: View, row: usize) -> Vec<f32> {
        let cols = self.program.values[v.value.0 as usize].cols as usize;
        let start = row * cols + v.col as usize;
        self.values[v.value.0 as usize][start..start + v.cols as usize].to_vec()
    }

    fn write_row(&mut self, v: View, row: usize, data: &[f32]) {
        let cols = self.program.values[v.value.0 as usize].cols as usize;
        let start = row * cols + v.col as usize;
        self.values[v.value.0 as usize][start..start + v.cols as usize].copy_from_slice(data);
    }

    fn weight<'a>(&self, all: &'a [Vec<f32>], id: WeightId) -> &'a [f32] {
        &all[self.weights[id.0 as usize].0 as usize]
    }

    fn norm_row(&self, all: &[Vec<f32>], spec: &NormSpec, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let w = spec.weight.map(|w| self.weight(all, w));
        normalise(spec, w, spec.bias.map(|b| self.weight(all, b)), x, &mut out);
        out
    }

    /// The first position that query head `h` of a row sees, the weights of all that it sees in a sequence of `end` tokens
    /// before they are divided by their sum, and that sum, the sink's weight included.
    fn weights_of(
        &self,
        all: &[Vec<f32>],
        spec: &AttendSpec,
        h: usize,
        q: &[f32],
        blocks: &[u32],
        (position, end): (usize, usize),
    ) -> (usize, Vec<f64>, f64) {
        let cache = &self.caches[spec.kv_layer as usize];
        let hd = spec.head_dim as usize;
        let kvh = h / (spec.heads / spec.kv_heads) as usize;
        let first = spec.first(position);
        let past = if spec.causal { position + 1 } else { end };
        let table = spec.buckets.map(|b| (b, self.weight(all, b.table)));
        let by_distance = |p: usize| {
            table.map_or(0.0, |(b, table)| {
                let row = b.row((table.len() / spec.heads as usize) as u32, p as i64 - position as i64);
                f64::from(table[row as usize * spec.heads as usize + h])
            })
        };
        let scores: Vec<f64> = (first..past)
            .map(|p| {
                let k = cache.row(blocks, p) * cache.layer.kv_heads as usize * hd + kvh * hd;
                let dot: f64 = (0..hd).map(|i| f64::from(q[h * hd + i]) * f64::from(cache.k[k + i])).sum();
                let s = dot * f64::from(spec.scale);
                let s = spec.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh());
                let slope = spec.alibi.map_or(0.0, |max| alibi_slope(max, spec.heads, h as u32));
                let unseen = spec.blocks.is_some_and(|b| !b.sees(h, position, p));
                if unseen {
                    return f64::NEG_INFINITY;
                }
                s + by_distance(p) - f64::from(slope) * (position as f64 - p as f64)
            })
            .collect();
        // `f64::max` drops NaN; a NaN score must reach the output instead.
        let sink = spec.sinks.map_or(f64::NEG_INFINITY, |w| f64::from(self.weight(all, w)[h]));
        let max = scores
            .iter()
            .chain([&sink])
            .fold(f64::NEG_INFINITY, |m, s| if s.is_nan() || m.is_nan() { f64::NAN } else { m.max(*s) });
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum = weights.iter().sum::<f64>() + (sink - max).exp();
        (first, weights, sum)
    }

    /// `scale * B (A x)` of every part of a weight, as long as the weight has rows.
    fn adapter_delta(&self, adapter: Adapter, weight: WeightId, x: &[f32]) -> Vec<f64> {
        let mut delta = vec![0.0; self.program.weights[weight.0 as usize].rows() as usize];
        let parts = self.adapters[adapter.0 as usize].iter().flatten().filter(|p| p.weight == weight);
        for p in parts {
            let h: Vec<f64> = p.a.chunks_exact(x.len()).map(|a| dot(a, x)).collect();
            let rows = delta[p.first_row(&self.program)..].iter_mut().zip(p.b.chunks_exact(h.len()));
            for (d, b) in rows {
                *d = f64::from(p.scale) * b.iter().zip(&h).map(|(b, h)| f64::from(*b) * h).sum::<f64>();
            }
        }
        delta
    }

    fn attend_row(
        &self,
        all: &[Vec<f32>],
        spec: &AttendSpec,
        q: &[f32],
        blocks: &[u32],
        place: (usize, usize),
    ) -> Vec<f32> {
        let cache = &self.caches[spec.kv_layer as usize];
        let vd = spec.v_dim as usize;
        let mut out = vec![0.0; spec.heads as usize * vd];
        for h in 0..spec.heads as usize {
            let kvh = h / (spec.heads / spec.kv_heads) as usize;
            let (first, weights, total) = self.weights_of(all, spec, h, q, blocks, place);
            for i in 0..vd {
                // What is not seen has no weight, and what lies there does not matter.
                let sum: f64 = weights
                    .iter()
                    .zip(first..)
                    .filter(|(w, _)| spec.blocks.is_none() || **w != 0.0)
                    .map(|(w, p)| {
                        let v = cache.row(blocks, p) * cache.layer.kv_heads as usize * vd + kvh * vd;
                        w * f64::from(cache.v[v + i])
                    })
                    .sum();
                out[h * vd + i] = (sum / total) as f32;
            }
        }
        out
    }

    /// Adds the weights of the rows that the step wants observed.
    fn observe(&mut self, all: &[Vec<f32>], spec: &AttendSpec, q: View, step: &StepInputs) {
        let group = (spec.heads / spec.kv_heads) as usize;
        let before: u32 = self.program.kv[..spec.kv_layer as usize].iter().map(|l| l.kv_heads).sum();
        let mut row = 0;
        for seq in step.seqs {
            row += seq.rows;
            let Some(o) = seq.observe.filter(|o| o.rows > 0) else { continue };
            for back in (1..=o.rows).rev() {
                let end = seq.start + seq.rows;
                let (q, place) = (self.read_row(q, row - back), (end - back, end));
                for h in 0..spec.heads as usize {
                    let (first, weights, total) = self.weights_of(all, spec, h, &q, seq.blocks, place);
                    let heads = &mut self.mass.get_mut(&o.slot).expect("made before the step").sums;
                    let sums = &mut heads[before as usize + h / group][first..];
                    sums.iter_mut().zip(weights).for_each(|(s, w)| *s += w / total / group as f64);
                }
            }
        }
    }

    fn run_op(&mut self, all: &[Vec<f32>], op: &Op, step: &StepInputs) {
        let places: Vec<(usize, usize)> = step.places().collect();
        match *op {
            Op::Embed { out, table, scale, by, add } => {
                let w = self.weight(all, table);
                let cols = out.cols as usize;
                for (r, t) in step.tokens.iter().enumerate() {
                    let at = match by {
                        Lookup::Token => *t as usize,
                        Lookup::TokenOr(other) if *t >= self.program.weights[table.0 as usize].rows() => {
                            other as usize
                        }
                        Lookup::TokenOr(_) => *t as usize,
                        Lookup::Position => places[r].1,
                        Lookup::Row(row) => row as usize,
                    };
                    let mut row: Vec<f32> = w[at * cols..][..cols].iter().map(|x| x * scale).collect();
                    if let Some(a) = add {
                        self.read_row(a, r).iter().zip(&mut row).for_each(|(a, y)| *y += a);
                    }
                    self.write_row(out, r, &row);
                }
            }
            Op::Norm { out, x, ref norm, add } => {
                for r in 0..self.row_count(x) {
                    let mut y = self.norm_row(all, norm, &self.read_row(x, r));
                    if let Some(a) = add {
                        self.read_row(a, r).iter().zip(&mut y).for_each(|(a, y)| *y += a);
                    }
                    self.write_row(out, r, &y);
                }
            }
            Op::MatMul { out, x, ref norm, weight, bias, add, glu } => {
                let w = self.weight(all, weight);
                let bias = bias.map(|b| self.weight(all, b));
                for r in 0..self.row_count(x) {
                    let mut input = self.read_row(x, r);
                    if let Some(n) = norm {
                        input = self.norm_row(all, n, &input);
                    }
                    let token =
                        if self.program.rows_of(x) == Rows::Tokens { r } else { step.outputs[r] as usize };
                    let adapter = step.seqs[places[token].0].adapter;
                    let delta = adapter.map(|a| self.adapter_delta(a, weight, &input));
                    let mut y: Vec<f32> = w
                        .chunks_exact(input.len())
                        .enumerate()
                        .map(|(o, w)| {
                            let more = delta.as_ref().map_or(0.0, |d| d[o]);
                            (dot(w, &input) + bias.map_or(0.0, |b| f64::from(b[o])) + more) as f32
                        })
                        .collect();
                    if let Some(act) = glu {
                        let (gate, up) = y.split_at(y.len() / 2);
                        y = gate
                            .iter()
                            .zip(up)
                            .map(|(g, u)| activate(act, f64::from(*g)) as f32 * u)
                            .collect();
                    }
                    if let Some(a) = add {
                        self.read_row(a, r).iter().zip(&mut y).for_each(|(a, y)| *y += a);
                    }
                    self.write_row(out, r, &y);
                }
            }
            Op::Rope { x, head_dim, table } => {
                let table = self.program.ropes[table.0 as usize].clone();
                for (r, (_, position)) in places.iter().enumerate() {
                    let mut row = self.read_row(x, r);
                    rotate(&table, head_dim as usize, *position as u32, &mut row);
                    self.write_row(x, r, &row);
                }
            }
            Op::StoreKv { k, v, kv_layer } => {
                for (r, (s, position)) in places.iter().enumerate() {
                    let (krow, vrow) = (self.read_row(k, r), self.read_row(v, r));
                    let cache = &mut self.caches[kv_layer as usize];
                    for seq in std::iter::once(&step.seqs[*s]).chain(step.copies_of(r)) {
                        let at = cache.row(seq.blocks, *position);
                        cache.k[at * krow.len()..][..krow.len()].copy_from_slice(&krow);
                        cache.v[at * vrow.len()..][..vrow.len()].copy_from_slice(&vrow);
                    }
                }
            }
            Op::Attend { out, q, ref spec } => {
                for (r, (s, position)) in places.iter().enumerate() {
                    let seq = &step.seqs[*s];
                    let end = if spec.of_source { seq.source } else { seq.start + seq.rows };
                    let place = (*position, end);
                    let y = self.attend_row(all, spec, &self.read_row(q, r), seq.blocks, place);
                    self.write_row(out, r, &y);
                }
                self.observe(all, spec, q, step);
            }
            Op::Glu { out, gate, up, act } => {
                for r in 0..self.row_count(out) {
                    let (g, u) = (self.read_row(gate, r), self.read_row(up, r));
                    let y: Vec<f32> =
                        g.iter().zip(&u).map(|(g, u)| activate(act, f64::from(*g)) as f32 * u).collect();
                    self.write_row(out, r, &y);
                }
            }
            Op::ShortConv { out, x, before, after, weight, bias, kv_layer } => {
                for (r, (s, position)) in places.iter().enumerate() {
                    let (x, gate) = (self.read_row(x, r), self.read_row(before, r));
                    let u: Vec<f32> = x.iter().zip(&gate).map(|(x, g)| x * g).collect();
                    let cache = &mut self.caches[kv_layer as usize];
                    for seq in std::iter::once(&step.seqs[*s]).chain(step.copies_of(r)) {
                        let at = cache.row(seq.blocks, *position) * u.len();
                        cache.v[at..at + u.len()].copy_from_slice(&u);
                    }
                }
                let (w, bias) = (self.weight(all, weight), bias.map(|b| self.weight(all, b)));
                let (cols, taps) = (x.cols as usize, self.program.weights[weight.0 as usize].cols as usize);
                for (r, (s, position)) in places.iter().enumerate() {
                    let (gate, cache) = (self.read_row(after, r), &self.caches[kv_layer as usize]);
                    let sum = |c: usize| -> f64 {
                        let seen = (0..taps).filter(|back| back <= position).rev();
                        seen.map(|back| {
                            let u = cache.v[cache.row(step.seqs[*s].blocks, position - back) * cols + c];
                            f64::from(w[c * taps + taps - 1 - back]) * f64::from(u)
                        })
                        .sum()
                    };
                    let y: Vec<f32> = (0..cols)
                        .map(|c| (sum(c) + bias.map_or(0.0, |b| f64::from(b[c]))) as f32 * gate[c])
                        .collect();
                    self.write_row(out, r, &y);
                }
            }
            Op::Conv { .. } | Op::Scan { .. } => self.recur(all, op, step),
            Op::Activate { out, x, act } => self.map_rows(out, x, |v| activate(act, f64::from(v)) as f32),
            Op::Route { out, logits, bias, ref spec } => {
                let (bias, mut scratch) = (bias.map(|b| self.weight(all, b)), Vec::new());
                for r in 0..self.row_count(out) {
                    let mut row = vec![0.0; out.cols as usize];
                    route(spec, bias, &self.read_row(logits, r), &mut scratch, &mut row);
                    self.write_row(out, r, &row);
                }
            }
            Op::MatMulExperts { out, x, route, experts, weight, bias, glu } => {
                let (w, bias) = (self.weight(all, weight), bias.map(|b| self.weight(all, b)));
                let (experts, decl) = (experts as usize, &self.program.weights[weight.0 as usize]);
                let (cols, used) = (decl.cols as usize, route.map_or(experts, |r| r.cols as usize / 2));
                let n = decl.parts[0].rows as usize;
                for r in 0..self.row_count(out) {
                    let input = self.read_row(x, r);
                    let ids = route.map(|route| self.read_row(route, r));
                    let mut row = Vec::with_capacity(out.cols as usize);
                    for j in 0..used {
                        let block = if input.len() == cols {
                            0..cols
                        } else {
                            j * (input.len() / used)..(j + 1) * (input.len() / used)
                        };
                        let (input, rest) = input[block].split_at(cols);
                        // The products with one of the experts' tensors.
                        let product = |part: usize, o: usize| {
                            let at = part * n + o;
                            dot(&w[at * cols..][..cols], input) + bias.map_or(0.0, |b| f64::from(b[at]))
                        };
                        let e = ids.as_ref().map_or(j, |ids| ids[j] as usize);
                        row.extend((0..n).map(|o| match glu {
                            Some(gate) => {
                                let (g, u) = (product(e, o) as f32, product(experts + e, o) as f32);
                                gate.apply(g.into(), u.into()) as f32
                            }
                            None => product(e, o) as f32,
                        }));
                        row.extend_from_slice(rest);
                    }
                    self.write_row(out, r, &row);
                }
            }
            Op::Combine { out, x, weights, sums, add } => {
                for r in 0..self.row_count(out) {
                    let (x, weights) = (self.read_row(x, r), self.read_row(weights, r));
                    let add = add.map(|a| self.read_row(a, r));
                    let (cols, n) = ((out.cols / sums) as usize, weights.len() / sums as usize);
                    let sum = |c: usize| -> f64 {
                        weights[c / cols * n..][..n]
                            .iter()
                            .enumerate()
                            .map(|(j, w)| f64::from(*w) * f64::from(x[j * cols + c % cols]))
                            .sum()
                    };
                    let y: Vec<f32> = (0..out.cols as usize)
                        .map(|c| add.as_ref().map_or(0.0, |a| a[c]) + sum(c) as f32)
                        .collect();
                    self.write_row(out, r, &y);
                }
            }
            Op::Add { out, a, b, by } => {
                for r in 0..self.row_count(out) {
                    let (x, y) = (self.read_row(a, r), self.read_row(b, r));
                    let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| by[0] * x + by[1] * y).collect();
                    self.write_row(out, r, &sum);
                }
            }
            Op::Rescale { out, x, like, floor } => {
                let mean = |x: &[f32]| dot(x, x) / x.len() as f64;
                for r in 0..self.row_count(out) {
                    let length = mean(&self.read_row(like, r)).sqrt();
                    let mut row = self.read_row(x, r);
                    for block in row.chunks_exact_mut(like.cols as usize) {
                        // `f64::max` drops NaN, but a row that has one keeps it.
                        let by = length / mean(block).max(f64::from(floor)).sqrt();
                        block.iter_mut().for_each(|x| *x = (f64::from(*x) * by) as f32);
                    }
                    self.write_row(out, r, &row);
                }
            }
            Op::Cutoff { x, by } => {
                for r in 0..self.row_count(x) {
                    let mut row = self.read_row(x, r);
                    let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / row.len() as f64;
                    let var = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>();
                    let cut = mean + f64::from(by) * (var / row.len() as f64).sqrt();
                    row.iter_mut().for_each(|v| *v = activate(Activation::Relu, f64::from(*v) - cut) as f32);
                    self.write_row(x, r, &row);
                }
            }
            Op::Scale { x, by } => self.map_rows(x, x, |v| v * by),
            // `clamp` keeps NaN.
            Op::Clip { x, by } => self.map_rows(x, x, |v| v.clamp(-by, by)),
            Op::Softcap { x, cap } => {
                self.map_rows(x, x, |v| (f64::from(cap) * (f64::from(v) / f64::from(cap)).tanh()) as f32)
            }
            Op::TopK { out, x } => {
                for r in 0..self.row_count(out) {
                    let mut best = vec![0.0; out.cols as usize];
                    candidates::choose(&self.read_row(x, r), &mut best);
                    self.write_row(out, r, &best);
                }
            }
            Op::PickRows { out, x } => {
                for (i, r) in step.outputs.iter().enumerate() {
                    let row = self.read_row(x, *r as usize);
                    self.write_row(out, i, &row);
                }
            }
        }
    }

    fn map_rows(&mut self, out: View, x: View, f: impl Fn(f32) -> f32) {
        for r in 0..self.row_count(out) {
            let y: Vec<f32> = self.read_row(x, r).into_iter().map(&f).collect();
            self.write_row(out, r, &y);
        }
    }
}

impl Device for Reference {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn load(&mut self, decl: &WeightDecl, weight: HostWeight) -> Result<Weight> {
        weight.check(decl)?;
        let mut data = vec![0.0; decl.rows() as usize * decl.cols as usize];
        let mut at = 0;
        for t in &weight.parts {
            let n: usize = t.shape.iter().product();
            quant::dequantize(t.dtype, &t.data, &mut data[at..at + n])
                .map_err(|e| Error::Weight { name: t.name.clone(), why: e.to_string() })?;
            at += n;
        }
        self.weights.push(data);
        Ok(Weight(self.weights.len() as u32 - 1))
    }

    fn prepare(&mut self, program: Program, weights: &[Weight], limits: Limits) -> Result<Prepared> {
        program.check()?;
        let values = program
            .values
            .iter()
            .map(|v| {
                let rows = match v.rows {
                    Rows::Tokens => limits.rows,
                    Rows::Outputs => limits.outputs,
                };
                vec![f32::NAN; rows * v.cols as usize]
            })
            .collect();
        let tokens = limits.kv_blocks * BLOCK_TOKENS;
        let caches = program
            .kv
            .iter()
            .map(|l| Cache {
                layer: *l,
                k: vec![f32::NAN; tokens * (l.kv_heads * l.head_dim) as usize],
                v: vec![f32::NAN; tokens * (l.kv_heads * l.v_dim) as usize],
            })
            .collect();
        self.ready.push(Ready {
            mass: HashMap::new(),
            states: HashMap::new(),
            program,
            weights: weights.to_vec(),
            limits,
            values,
            caches,
            adapters: Vec::new(),
            rows: 0,
            outputs: 0,
        });
        Ok(Prepared(self.ready.len() as u32 - 1))
    }

    fn run(&mut self, prepared: Prepared, step: &StepInputs) -> Result<()> {
        let ready = &mut self.ready[prepared.0 as usize];
        step.check(&ready.limits, vocab(&ready.program))?;
        check_positions(&ready.program, step)?;
        check_source(&ready.program, step)?;
        let loaded = |a: &Adapter| ready.adapters.get(a.0 as usize).is_some_and(Option::is_some);
        if let Some(a) = step.seqs.iter().filter_map(|s| s.adapter).find(|a| !loaded(a)) {
            return Err(no_adapter(a));
        }
        let has_states = !ready.program.states.is_empty();
        if has_states {
            check_states(step, |s| ready.states.get(&s).map(|s| s.seen))?;
            let zeros = || ready.program.states.iter().map(|n| vec![0.0; *n as usize]).collect();
            for s in step.seqs.iter().filter(|s| s.start == 0) {
                ready.states.insert(s.state, State { seen: 0, numbers: zeros() });
            }
            for c in step.snapshots {
                ready.states.insert(c.state, State { seen: usize::MAX, numbers: zeros() });
            }
        }
        (ready.rows, ready.outputs) = (step.tokens.len(), step.outputs.len());
        let before = ready.mass.clone();
        for (seq, o) in step.seqs.iter().filter_map(|s| Some((s, s.observe.filter(|o| o.rows > 0)?))) {
            let heads = ready.heads();
            let mass = ready.mass.entry(o.slot).or_default();
            (mass.rows, mass.tokens) = (mass.rows + o.rows, seq.start + seq.rows);
            mass.sums.resize(heads, Vec::new());
            mass.sums.iter_mut().for_each(|s| s.resize(mass.tokens, 0.0));
        }
        for node in ready.program.ops.clone().into_iter().filter(|n| n.source == step.source) {
            // A state cannot be computed twice from where the step began.
            if matches!(node.op, Op::Attend { .. }) && !has_states && step.stop.is_some_and(|s| s.0()) {
                ready.mass = before;
                return Err(Error::Stopped);
            }
            ready.run_op(&self.weights, &node.op, step);
        }
        for s in step.seqs.iter().filter(|_| has_states) {
            ready.states.entry(s.state).and_modify(|state| state.seen = s.start + s.rows);
        }
        let places: Vec<_> = step.places().filter(|_| !step.snapshots.is_empty()).collect();
        for c in step.snapshots {
            ready.states.entry(c.state).and_modify(|state| state.seen = places[c.row as usize].1 + 1);
        }
        Ok(())
    }

    fn read(&mut self, prepared: Prepared, what: Readout, out: &mut [f32]) -> Result<()> {
        let ready = &self.ready[prepared.0 as usize];
        let (view, rows) = match what {
            Readout::Logits(row) => {
                let logits = ready.program.logits;
                (logits.ok_or_else(|| Error::Step("the program has no logits".into()))?, row..row + 1)
            }
            Readout::View(view) => (view, 0..ready.row_count(view)),
        };
        if rows.end > ready.row_count(view) || out.len() != rows.len() * view.cols as usize {
            return Err(Error::Step(format!("cannot read rows {rows:?} into {} elements", out.len())));
        }
        for (r, out) in rows.zip(out.chunks_exact_mut(view.cols as usize)) {
            out.copy_from_slice(&ready.read_row(view, r));
        }
        Ok(())
    }

    fn copy_blocks(&mut self, prepared: Prepared, pairs: &[(u32, u32)]) -> Result<()> {
        for cache in &mut self.ready[prepared.0 as usize].caches {
            for (from, to) in pairs {
                for (data, dim) in [(&mut cache.k, cache.layer.head_dim), (&mut cache.v, cache.layer.v_dim)] {
                    let n = BLOCK_TOKENS * (cache.layer.kv_heads * dim) as usize;
                    data.copy_within(*from as usize * n..(*from as usize + 1) * n, *to as usize * n);
                }
            }
        }
        Ok(())
    }

    fn compact(
        &mut self,
        prepared: Prepared,
        from: &[u32],
        tokens: usize,
        to: &[u32],
        keep: &Keep,
    ) -> Result<()> {
        let ready = &mut self.ready[prepared.0 as usize];
        check_compact(&ready.program, ready.limits.kv_blocks, from, tokens, to, keep)?;
        let rotations = key_rotations(&ready.program)?;
        let mut head = 0;
        for (cache, rotation) in ready.caches.iter_mut().zip(&rotations) {
            for h in 0..cache.layer.kv_heads as usize {
                for (new, old) in keep.head(head).iter().enumerate() {
                    cache.shift(h, (from, *old as usize), (to, new), rotation.as_ref());
                }
                head += 1;
            }
        }
        Ok(())
    }

    fn take_mass(&mut self, prepared: Prepared, slot: u32) -> Result<Mass> {
        let Observed { rows, tokens, sums } =
            self.ready[prepared.0 as usize].mass.remove(&slot).unwrap_or_default();
        Ok(Mass { rows, tokens, sums: sums.iter().flatten().map(|x| *x as f32).collect() })
    }

    fn load_adapter(&mut self, prepared: Prepared, parts: &[AdapterPart]) -> Result<Adapter> {
        let ready = &mut self.ready[prepared.0 as usize];
        check_adapter(&ready.program, parts)?;
        ready.adapters.push(Some(parts.to_vec()));
        Ok(Adapter(ready.adapters.len() as u32 - 1))
    }

    fn unload_adapter(&mut self, prepared: Prepared, adapter: Adapter) -> Result<()> {
        let adapters = &mut self.ready[prepared.0 as usize].adapters;
        let held = adapters.get_mut(adapter.0 as usize).and_then(Option::take);
        held.map(drop).ok_or_else(|| no_adapter(adapter))
    }

    fn block_bytes(&self, prepared: Prepared) -> usize {
        let caches = &self.ready[prepared.0 as usize].caches;
        caches
            .iter()
            .map(|c| 4 * BLOCK_TOKENS * (c.layer.kv_heads * (c.layer.head_dim + c.layer.v_dim)) as usize)
            .sum()
    }

    fn save_block(&mut self, prepared: Prepared, block: u32, out: &mut [u8]) -> Result<()> {
        let numbers = self.block(prepared, block, out.len())?;
        numbers.zip(out.chunks_exact_mut(4)).for_each(|(x, out)| out.copy_from_slice(&x.to_le_bytes()));
        Ok(())
    }

    fn load_block(&mut self, prepared: Prepared, block: u32, data: &[u8]) -> Result<()> {
        let numbers = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        self.block(prepared, block, data.len())?.zip(numbers).for_each(|(x, y)| *x = y);
        Ok(())
    }

    fn copy_state(&mut self, prepared: Prepared, from: u32, to: u32) -> Result<()> {
        let states = &mut self.ready[prepared.0 as usize].states;
        if let Some(state) = states.get(&from).cloned() {
            states.insert(to, state);
        }
        Ok(())
    }

    fn state_bytes(&self, prepared: Prepared) -> usize {
        4 * self.ready[prepared.0 as usize].program.states.iter().map(|n| *n as usize).sum::<usize>()
    }

    fn drop_state(&mut self, prepared: Prepared, state: u32) -> Result<()> {
        self.ready[prepared.0 as usize].states.remove(&state);
        Ok(())
    }

    fn memory(&self) -> usize {
        let floats = |v: &[Vec<f32>]| v.iter().map(Vec::len).sum::<usize>();
        let caches = self.ready.iter().flat_map(|r| &r.caches).map(|c| c.k.len() + c.v.len()).sum::<usize>();
        let adapters = self.ready.iter().flat_map(|r| r.adapters.iter().flatten().flatten());
        let adapters = adapters.map(|p| p.a.len() + p.b.len()).sum::<usize>();
        4 * (adapters
            + floats(&self.weights)
            + caches
            + self.ready.iter().map(|r| floats(&r.values)).sum::<usize>())
    }
}

impl Reference {
    /// The numbers of a block, layer after layer, if it exists and has so many bytes.
    fn block(
        &mut self,
        prepared: Prepared,
        block: u32,
        bytes: usize,
    ) -> Result<impl Iterator<Item = &mut f32>> {
        let (size, blocks) = (self.block_bytes(prepared), self.ready[prepared.0 as usize].limits.kv_blocks);
        if block as usize >= blocks || bytes != size {
            let why = format!("block {block} of {blocks} in {bytes} bytes; a block of this cache has {size}");
            return Err(Error::Step(why));
        }
        let range = move |cols: u32| {
            let n = BLOCK_TOKENS * cols as usize;
            block as usize * n..(block as usize + 1) * n
        };
        let caches = self.ready[prepared.0 as usize].caches.iter_mut();
        Ok(caches.flat_map(move |Cache { layer: l, k, v }| {
            let (k, v) = (&mut k[range(l.kv_heads * l.head_dim)], &mut v[range(l.kv_heads * l.v_dim)]);
            k.iter_mut().chain(v)
        }))
    }
}

/// The number of rows of the table of tokens, which bounds their ids.
pub fn vocab(program: &Program) -> usize {
    program
        .ops
        .iter()
        .find_map(|n| match n.op {
            Op::Embed { table, by: Lookup::Token, .. } => {
                Some(program.weights[table.0 as usize].rows() as usize)
            }
            _ => None,
        })
        .unwrap_or(usize::MAX)
}
