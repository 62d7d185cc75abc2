//! The Program: values, weights and ops in execution order, with the checks that make a device's life simple.

use crate::candidates;
use crate::experts::{Gate, RouteSpec};
use crate::op::{Activation, AttendSpec, Lookup, NormSpec, Op, ScanSpec, View};
use crate::rope::{RopeId, RopeTable};
use crate::{Error, Result};

/// Most taps of a short convolution.
pub const TAPS_MAX: u32 = 16;

/// Handle of a [`Value`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Handle of a [`WeightDecl`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// How many rows a value has in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One per token of the step.
    Tokens,
    /// One per token whose logits are wanted.
    Outputs,
}

/// An activation matrix `[rows, cols]` of f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Where it comes from, for displays and probes.
    pub name: &'static str,
    /// Row count.
    pub rows: Rows,
    /// Column count.
    pub cols: u32,
}

/// One tensor of a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightPart {
    /// Canonical (GGUF) name.
    pub name: String,
    /// Rows, i.e. output columns of a product; 1 for a vector.
    pub rows: u32,
}

/// A weight `[sum of part rows, cols]`: one tensor, or several stacked by a fusion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightDecl {
    /// The stacked tensors, top to bottom.
    pub parts: Vec<WeightPart>,
    /// Columns of every part (the length of a vector).
    pub cols: u32,
}

impl WeightDecl {
    /// Rows of all parts together.
    pub fn rows(&self) -> u32 {
        self.parts.iter().map(|p| p.rows).sum()
    }
}

/// The cache of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayer {
    /// Key/value heads.
    pub kv_heads: u32,
    /// Columns of a key head; 0 where a short convolution keeps its inputs.
    pub head_dim: u32,
    /// Columns of a value head.
    pub v_dim: u32,
    /// The farthest position that is still read, as in [`AttendSpec::window`].
    pub window: Option<u32>,
}

impl KvLayer {
    /// The cache of a short convolution's inputs: one head of values, and no keys.
    pub fn inputs(cols: u32, taps: u32) -> KvLayer {
        KvLayer { kv_heads: 1, head_dim: 0, v_dim: cols, window: Some(taps) }
    }

    /// Whether it holds inputs of a convolution and not keys and values.
    pub fn holds_inputs(&self) -> bool {
        self.head_dim == 0
    }
}

/// An op and the layer it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Decoder layer, if it is in one.
    pub layer: Option<u32>,
    /// It reads sources: it runs in steps of sources, and in no other. See [`StepInputs::source`](crate::StepInputs::source).
    pub source: bool,
}

/// A straight-line program over matrices. Built by the methods below, checked by [`Program::check`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Program {
    /// Activations, by [`ValueId`].
    pub values: Vec<Value>,
    /// Weights, by [`WeightId`].
    pub weights: Vec<WeightDecl>,
    /// Rotary tables, by [`RopeId`].
    pub ropes: Vec<RopeTable>,
    /// Attention caches, by `kv_layer`.
    pub kv: Vec<KvLayer>,
    /// Numbers of each of the states that a sequence has; they change with every token. See [`crate::SeqStep::state`].
    pub states: Vec<u32>,
    /// The tape.
    pub ops: Vec<Node>,
    /// `[outputs, vocab]`, once the tape is complete; an encoder has none.
    pub logits: Option<View>,
    /// `[tokens, dim]`: what the model knows of each token, after its last norm, where it is wanted for embeddings.
    pub hidden: Option<View>,
    /// `[outputs, candidates::columns(k)]`: the best of the logits, where they are wanted.
    pub candidates: Option<View>,
    pub(crate) layer: Option<u32>,
    pub(crate) source: bool,
}

impl Program {
    /// An empty program.
    pub fn new() -> Program {
        Program::default()
    }

    /// Ops pushed from now on belong to `layer`.
    pub fn set_layer(&mut self, layer: Option<u32>) {
        self.layer = layer;
    }

    /// Ops pushed from now on read sources, or no longer do.
    pub fn set_source(&mut self, source: bool) {
        self.source = source;
    }

    /// Declares a value and gives a view of all its columns.
    pub fn value(&mut self, name: &'static str, rows: Rows, cols: u32) -> View {
        self.values.push(Value { name, rows, cols });
        View { value: ValueId(self.values.len() as u32 - 1), col: 0, cols }
    }

    /// Declares a weight of one tensor `[rows, cols]`; the same tensor twice gives the same handle.
    pub fn weight(&mut self, name: impl Into<String>, rows: u32, cols: u32) -> WeightId {
        let decl = WeightDecl { parts: vec![WeightPart { name: name.into(), rows }], cols };
        if let Some(i) = self.weights.iter().position(|w| *w == decl) {
            return WeightId(i as u32);
        }
        self.weights.push(decl);
        WeightId(self.weights.len() as u32 - 1)
    }

    /// Declares a weight of several tensors, one below the other.
    pub fn stacked(&mut self, parts: Vec<WeightPart>, cols: u32) -> WeightId {
        self.weights.push(WeightDecl { parts, cols });
        WeightId(self.weights.len() as u32 - 1)
    }

    /// Adds a rotary table; equal tables share a handle.
    pub fn rope(&mut self, table: RopeTable) -> RopeId {
        if let Some(i) = self.ropes.iter().position(|t| *t == table) {
            return RopeId(i as u32);
        }
        self.ropes.push(table);
        RopeId(self.ropes.len() as u32 - 1)
    }

    /// Appends an op to the tape.
    pub fn push(&mut self, op: Op) {
        self.ops.push(Node { op, layer: self.layer, source: self.source });
    }

    /// Rows of a table as a new value.
    pub fn embed(&mut self, name: &'static str, table: WeightId, scale: f32) -> View {
        let out = self.value(name, Rows::Tokens, self.weights[table.0 as usize].cols);
        self.push(Op::Embed { out, table, scale, by: Lookup::Token, add: None });
        out
    }

    /// `norm(x)` as a new value.
    pub fn norm(&mut self, name: &'static str, x: View, norm: NormSpec) -> View {
        let out = self.value(name, self.rows_of(x), x.cols);
        self.push(Op::Norm { out, x, norm, add: None });
        out
    }

    /// `x W^T + bias` as a new value.
    pub fn matmul(&mut self, name: &'static str, x: View, weight: WeightId, bias: Option<WeightId>) -> View {
        let out = self.value(name, self.rows_of(x), self.weights[weight.0 as usize].rows());
        self.push(Op::MatMul { out, x, norm: None, weight, bias, add: None, glu: None });
        out
    }

    /// `a + b` as a new value.
    pub fn add(&mut self, name: &'static str, a: View, b: View) -> View {
        let out = self.value(name, self.rows_of(a), a.cols);
        self.push(Op::Add { out, a, b, by: [1.0; 2] });
        out
    }

    /// `act(gate) * up` as a new value.
    pub fn glu(&mut self, gate: View, up: View, act: Activation) -> View {
        let out = self.value("ffn_act", self.rows_of(up), up.cols);
        self.push(Op::Glu { out, gate, up, act });
        out
    }

    /// The experts of each row and their weights as a new value.
    pub fn route(&mut self, logits: View, bias: Option<WeightId>, spec: RouteSpec) -> View {
        let out = self.value("route", self.rows_of(logits), 2 * spec.used);
        self.push(Op::Route { out, logits, bias, spec });
        out
    }

    /// Products with the chosen ones of `experts`, or with all, as a new value.
    pub fn matmul_experts(
        &mut self,
        name: &'static str,
        (x, route): (View, Option<View>),
        experts: u32,
        (weight, bias): (WeightId, Option<WeightId>),
        glu: Option<Gate>,
    ) -> View {
        let (w, used) = (&self.weights[weight.0 as usize], route.map_or(experts, |r| r.cols / 2));
        let each = w.rows() / experts / if glu.is_some() { 2 } else { 1 };
        let rest = if x.cols == w.cols { 0 } else { (x.cols / used).saturating_sub(w.cols) };
        let out = self.value(name, self.rows_of(x), used * (each + rest));
        self.push(Op::MatMulExperts { out, x, route, experts, weight, bias, glu });
        out
    }

    /// The weighted sum of blocks of columns as a new value.
    pub fn combine(&mut self, name: &'static str, x: View, weights: View, add: Option<View>) -> View {
        let out = self.value(name, self.rows_of(x), x.cols / weights.cols.max(1));
        self.push(Op::Combine { out, x, weights, sums: 1, add });
        out
    }

    /// Attention over the cache as a new value.
    pub fn attend(&mut self, q: View, spec: AttendSpec) -> View {
        let out = self.value("attn", self.rows_of(q), spec.heads * spec.v_dim);
        self.push(Op::Attend { out, q, spec });
        out
    }

    /// A short convolution between two gates as a new value.
    pub fn short_conv(
        &mut self,
        [x, before, after]: [View; 3],
        (weight, bias): (WeightId, Option<WeightId>),
        kv_layer: u32,
    ) -> View {
        let out = self.value("conv", self.rows_of(x), x.cols);
        self.push(Op::ShortConv { out, x, before, after, weight, bias, kv_layer });
        out
    }

    /// A convolution whose last inputs are a state, as a new value.
    pub fn conv(&mut self, x: View, weight: WeightId, bias: Option<WeightId>) -> View {
        let out = self.value("conv", self.rows_of(x), x.cols);
        self.states.push(self.weights[weight.0 as usize].cols.saturating_sub(1) * x.cols);
        let state = self.states.len() as u32 - 1;
        self.push(Op::Conv { out, x, weight, bias, state });
        out
    }

    /// A recurrence as a new value; the views are its inputs, `b`, `c` and the steps.
    pub fn scan(&mut self, [x, b, c, dt]: [View; 4], spec: ScanSpec) -> View {
        let out = self.value("scan", self.rows_of(x), x.cols);
        self.states.push(spec.heads * spec.head_dim * spec.state_dim);
        self.push(Op::Scan { out, x, b, c, dt, spec, state: self.states.len() as u32 - 1 });
        out
    }

    /// Adds what tokens are drawn from: the `k` best logits of each row, or all if there are fewer. Without logits there is nothing
    /// to add.
    pub fn choose(&mut self, k: u32) {
        let Some(x) = self.logits.filter(|l| l.cols <= candidates::VOCAB_MAX) else { return };
        let out = self.value("candidates", Rows::Outputs, candidates::columns(k.min(x.cols)));
        self.push(Op::TopK { out, x });
        self.candidates = Some(out);
    }

    /// Most tokens of a sequence: the rows of the smallest table of positions, if there is one.
    pub fn positions(&self) -> Option<usize> {
        let tables = self.ops.iter().filter_map(|n| match n.op {
            Op::Embed { table, by: Lookup::Position, .. } => {
                Some(self.weights[table.0 as usize].rows() as usize)
            }
            _ => None,
        });
        tables.min()
    }

    /// Whether a token's values depend on what comes after it, so that a sequence must be whole in one step.
    pub fn looks_ahead(&self) -> bool {
        let ahead = |n: &Node| matches!(&n.op, Op::Attend { spec, .. } if !spec.causal && !spec.of_source);
        self.ops.iter().any(|n| ahead(n) && !n.source)
    }

    /// How many ops, the first ones, read sources; 0 in a model of one stack.
    pub fn source_ops(&self) -> usize {
        self.ops.iter().take_while(|n| n.source).count()
    }

    /// Where ops that read sources are not the first, or give others something that is not in the cache.
    fn source_problem(&self) -> Option<String> {
        let (reading, rest) = self.ops.split_at(self.source_ops());
        let outs: Vec<_> = reading.iter().filter_map(|n| n.op.output()).map(|v| v.value).collect();
        let mut taken = false;
        rest.iter().for_each(|n| n.op.for_inputs(|v| taken |= outs.contains(&v.value)));
        let cross = |n: &Node| matches!(&n.op, Op::Attend { spec, .. } if spec.of_source);
        if rest.iter().any(|n| n.source) {
            return Some("ops that read sources are not the first".into());
        }
        if reading.iter().any(cross) || (reading.is_empty() && rest.iter().any(cross)) {
            return Some("attention to a source that nothing has read".into());
        }
        let states = !reading.is_empty() && !self.states.is_empty();
        (taken || states).then(|| "what is read of a source goes through the cache".into())
    }

    /// The row kind of a view.
    pub fn rows_of(&self, v: View) -> Rows {
        self.values[v.value.0 as usize].rows
    }

    /// Checks every shape, handle and order; a device may rely on all of it.
    pub fn check(&self) -> Result<()> {
        let mut written = vec![false; self.values.len()];
        for (i, node) in self.ops.iter().enumerate() {
            let fail = |why: String| Error::Shape { at: format!("op {i} ({})", node.op.name()), why };
            let mut problem = None;
            node.op.clone().views_mut(|v, read| {
                let Some(value) = self.values.get(v.value.0 as usize) else {
                    problem = Some(format!("no value {}", v.value.0));
                    return;
                };
                if v.cols == 0 || u64::from(v.col) + u64::from(v.cols) > u64::from(value.cols) {
                    problem =
                        Some(format!("columns {}+{} of {} ({})", v.col, v.cols, value.name, value.cols));
                } else if read && !written[v.value.0 as usize] {
                    problem = Some(format!("{} is read before it is written", value.name));
                }
            });
            node.op.for_weights(|w| {
                if w.0 as usize >= self.weights.len() {
                    problem = Some(format!("no weight {}", w.0));
                }
            });
            if let Some(why) = problem.or_else(|| self.op_problem(&node.op)) {
                return Err(fail(why));
            }
            if let Some(out) = node.op.output() {
                written[out.value.0 as usize] = true;
            }
        }
        if let Some(why) = self.source_problem() {
            return Err(Error::Shape { at: "the source".into(), why });
        }
        let is_written = |v: View| written.get(v.value.0 as usize) == Some(&true);
        if self.logits.or(self.hidden).is_none() || !self.logits.is_none_or(is_written) {
            return Err(Error::Shape { at: "logits".into(), why: "no op writes them".into() });
        }
        if !self.candidates.is_none_or(is_written) {
            return Err(Error::Shape { at: "candidates".into(), why: "no op writes them".into() });
        }
        match self.hidden {
            Some(h) if !is_written(h) || self.rows_of(h) != Rows::Tokens => {
                Err(Error::Shape { at: "hidden".into(), why: "no op writes a row for each token".into() })
            }
            _ => Ok(()),
        }
    }

    fn op_problem(&self, op: &Op) -> Option<String> {
        let w = |id: WeightId| &self.weights[id.0 as usize];
        let norm_problem = |n: &NormSpec, x: View| {
            let each = |id: WeightId| w(id).rows().checked_mul(n.group) == Some(x.cols);
            let bad_len = n.weight.into_iter().chain(n.bias).any(|id| w(id).cols != n.group)
                || n.weight.is_some_and(|id| w(id).rows() != 1 && !each(id))
                || n.bias.is_some_and(|id| w(id).rows() != 1);
            (n.group == 0 || !x.cols.is_multiple_of(n.group) || bad_len)
                .then(|| format!("norm group {} does not fit {} columns", n.group, x.cols))
        };
        let same = |a: View, b: View| {
            (a.cols != b.cols || self.rows_of(a) != self.rows_of(b))
                .then(|| format!("{} columns against {}", a.cols, b.cols))
        };
        match op {
            Op::Embed { out, table, by, add, .. } => {
                let (cols, rows) = (w(*table).cols, w(*table).rows());
                if matches!(by, Lookup::Row(r) | Lookup::TokenOr(r) if *r >= rows) {
                    return Some(format!("{by:?} of a table of {rows} rows"));
                }
                (cols != out.cols)
                    .then(|| format!("table has {cols} columns, output {}", out.cols))
                    .or_else(|| {
                        (self.rows_of(*out) != Rows::Tokens).then(|| "rows of a table are for tokens".into())
                    })
                    .or_else(|| add.and_then(|a| same(*out, a)))
            }
            Op::Norm { out, x, norm, add } => {
                norm_problem(norm, *x).or_else(|| same(*out, *x)).or_else(|| add.and_then(|a| same(*out, a)))
            }
            Op::MatMul { out, x, norm, weight, bias, add, glu } => {
                let rows = w(*weight).rows();
                let y = if glu.is_some() { rows / 2 } else { rows };
                if w(*weight).cols != x.cols || y != out.cols || (glu.is_some() && rows % 2 != 0) {
                    return Some(format!(
                        "weight {}x{} between {} and {} columns",
                        rows,
                        w(*weight).cols,
                        x.cols,
                        out.cols
                    ));
                }
                if bias.is_some_and(|b| w(b).parts.iter().map(|p| p.rows).sum::<u32>() * w(b).cols != rows) {
                    return Some(format!("bias does not have {rows} elements"));
                }
                if add.is_some() && glu.is_some() {
                    return Some("a product is either gated or added, not both".into());
                }
                norm.as_ref().and_then(|n| norm_problem(n, *x)).or_else(|| add.and_then(|a| same(*out, a)))
            }
            Op::Rope { x, head_dim, table } => {
                let fits = self.ropes.get(table.0 as usize).is_some_and(|t| {
                    t.first.checked_add(t.rot_dims).is_some_and(|end| end <= *head_dim)
                        && t.rot_dims % 2 == 0
                        && t.inv_freq.len() == t.rot_dims as usize / 2
                });
                (!fits || *head_dim == 0 || x.cols % head_dim != 0)
                    .then(|| format!("rope of head {head_dim} on {} columns", x.cols))
            }
            Op::StoreKv { k, v, kv_layer } => {
                let fits = self
                    .kv
                    .get(*kv_layer as usize)
                    .is_some_and(|l| k.cols == l.kv_heads * l.head_dim && v.cols == l.kv_heads * l.v_dim);
                (!fits).then(|| format!("keys {} and values {} do not fit cache {kv_layer}", k.cols, v.cols))
            }
            Op::Attend { out, q, spec: s } => {
                let cache = self.kv.get(s.kv_layer as usize);
                let fits = cache
                    .is_some_and(|l| (l.kv_heads, l.head_dim, l.v_dim) == (s.kv_heads, s.head_dim, s.v_dim))
                    && s.kv_heads > 0
                    && s.head_dim > 0
                    && s.heads % s.kv_heads == 0
                    && q.cols == s.heads * s.head_dim
                    && out.cols == s.heads * s.v_dim
                    && s.window != Some(0)
                    && (s.causal || (s.window.is_none() && s.alibi.is_none()))
                    && s.blocks.is_none_or(|b| {
                        let plain = s.causal && s.window.is_none() && s.alibi.is_none();
                        plain && b.local > 0 && b.tokens.is_power_of_two()
                    })
                    && s.buckets.is_none_or(|b| {
                        let w = &self.weights[b.table.0 as usize];
                        let plain = s.window.is_none() && s.alibi.is_none() && s.blocks.is_none();
                        plain && b.fits(w.rows()) && w.cols == s.heads && (s.causal || b.both_ways)
                    })
                    && !(s.of_source && (s.causal || s.buckets.is_some()))
                    && s.sinks.is_none_or(|w| {
                        let w = &self.weights[w.0 as usize];
                        (w.rows(), w.cols) == (1, s.heads)
                    });
                (!fits).then(|| format!("{} heads over {} do not fit", s.heads, s.kv_heads))
            }
            Op::ShortConv { out, x, before, after, weight, bias, kv_layer } => {
                let (taps, inputs) = (w(*weight).cols, self.kv.get(*kv_layer as usize));
                let fits = (1..=TAPS_MAX).contains(&taps)
                    && w(*weight).rows() == x.cols
                    && bias.is_none_or(|b| (w(b).rows(), w(b).cols) == (1, x.cols))
                    && inputs == Some(&KvLayer::inputs(x.cols, taps))
                    && self.rows_of(*x) == Rows::Tokens;
                (!fits)
                    .then(|| format!("{taps} taps on {} columns do not fit cache {kv_layer}", x.cols))
                    .or_else(|| [before, after, out].into_iter().find_map(|v| same(*v, *x)))
            }
            Op::Conv { out, x, weight, bias, state } => {
                let taps = w(*weight).cols;
                let fits = (2..=TAPS_MAX).contains(&taps)
                    && w(*weight).rows() == x.cols
                    && bias.is_none_or(|b| (w(b).rows(), w(b).cols) == (1, x.cols))
                    && self.has_state(*state, u64::from(taps - 1) * u64::from(x.cols))
                    && self.rows_of(*x) == Rows::Tokens;
                (!fits)
                    .then(|| format!("{taps} taps on {} columns do not fit state {state}", x.cols))
                    .or_else(|| same(*out, *x))
            }
            Op::Scan { out, x, b, c, dt, spec: s, state } => {
                let of_head = |id: WeightId| w(id).rows() * w(id).cols == s.heads;
                let inner = u64::from(s.heads) * u64::from(s.head_dim);
                let fits = inner == u64::from(x.cols)
                    && [b, c].iter().all(|v| v.cols == s.state_dim)
                    && dt.cols == s.heads
                    && [s.a, s.skip, s.dt_bias].into_iter().all(of_head)
                    && self.has_state(*state, inner * u64::from(s.state_dim))
                    && [x, b, c, dt].iter().all(|v| self.rows_of(**v) == Rows::Tokens);
                (!fits)
                    .then(|| format!("{} heads of {} do not fit state {state}", s.heads, s.head_dim))
                    .or_else(|| same(*out, *x))
            }
            Op::Glu { out, gate, up, .. } => same(*out, *gate).or_else(|| same(*out, *up)),
            Op::Activate { out, x, .. } => same(*out, *x),
            Op::Route { out, logits, bias, spec } => {
                if out.cols != 2 * spec.used || self.rows_of(*out) != self.rows_of(*logits) {
                    return Some(format!("{} columns for {} experts and weights", out.cols, spec.used));
                }
                if bias.is_some_and(|b| w(b).rows() != 1 || w(b).cols != logits.cols) {
                    return Some(format!("bias does not have {} elements", logits.cols));
                }
                spec.problem(logits.cols)
            }
            Op::MatMulExperts { .. } => self.experts_problem(op),
            Op::Combine { out, x, weights, sums, add } => {
                let whole = |v: &View| v.cols.is_multiple_of(*sums);
                let fits = *sums > 0
                    && whole(out)
                    && whole(weights)
                    && u64::from(weights.cols / sums) * u64::from(out.cols / sums) == u64::from(x.cols)
                    && [*x, *weights].iter().all(|v| self.rows_of(*v) == self.rows_of(*out));
                (!fits)
                    .then(|| format!("{} weights of {} columns from {}", weights.cols, out.cols, x.cols))
                    .or_else(|| add.and_then(|a| same(*out, a)))
            }
            Op::Add { out, a, b, .. } => same(*out, *a).or_else(|| same(*out, *b)),
            Op::Rescale { out, x, like, .. } => {
                let fits = x.cols.is_multiple_of(like.cols) && self.rows_of(*like) == self.rows_of(*x);
                (!fits).then(|| format!("{} columns like {}", x.cols, like.cols)).or_else(|| same(*out, *x))
            }
            Op::Cutoff { .. } | Op::Scale { .. } | Op::Clip { .. } | Op::Softcap { .. } => None,
            Op::PickRows { out, x } => (out.cols != x.cols
                || self.rows_of(*out) != Rows::Outputs
                || self.rows_of(*x) != Rows::Tokens)
                .then(|| "picks from tokens to outputs only".into()),
            Op::TopK { out, x } => {
                let k = candidates::count(out.cols);
                let fits = out.cols == candidates::columns(k)
                    && (1..=x.cols).contains(&k)
                    && x.cols <= candidates::VOCAB_MAX
                    && [*out, *x].iter().all(|v| self.rows_of(*v) == Rows::Outputs);
                (!fits).then(|| format!("{} columns do not hold the best of {}", out.cols, x.cols))
            }
        }
    }

    /// Whether a state has so many numbers and one op alone.
    fn has_state(&self, state: u32, numbers: u64) -> bool {
        let users = self
            .ops
            .iter()
            .filter(|n| matches!(n.op, Op::Conv { state: s, .. } | Op::Scan { state: s, .. } if s == state));
        self.states.get(state as usize).is_some_and(|n| u64::from(*n) == numbers) && users.count() == 1
    }

    fn experts_problem(&self, op: &Op) -> Option<String> {
        let Op::MatMulExperts { out, x, route, experts, weight, bias, glu } = op else { return None };
        let w = &self.weights[weight.0 as usize];
        let halves = if glu.is_some() { 2 } else { 1 };
        let used = route.map_or(*experts, |r| r.cols / 2).max(1);
        let each = w.rows() / experts.max(&1) / halves;
        let parts = w.parts.iter().all(|p| p.rows == each)
            && w.parts.len() as u64 == u64::from(*experts) * u64::from(halves);
        // Blocks of the input and of the output, less what is multiplied: the same is left of both.
        let rest =
            |v: View, n: u32| v.cols.is_multiple_of(used).then(|| (v.cols / used).checked_sub(n)).flatten();
        let left = if x.cols == w.cols { Some(0) } else { rest(*x, w.cols) };
        if each == 0 || !parts || left.is_none() || rest(*out, each) != left {
            let (n, cols) = (w.parts.len(), w.cols);
            return Some(format!(
                "{n} tensors of {each}x{cols} for {experts} experts between {} and {} columns",
                x.cols, out.cols
            ));
        }
        let length = |b: &WeightDecl| b.rows() * b.cols;
        if bias.is_some_and(|b| length(&self.weights[b.0 as usize]) != w.rows()) {
            return Some(format!("bias does not have {} elements", w.rows()));
        }
        if self.rows_of(*x) != self.rows_of(*out)
            || route.is_some_and(|r| self.rows_of(r) != self.rows_of(*out))
        {
            return Some("its inputs have other rows".into());
        }
        // The ids are used as they are, so nothing but a router for these experts may have written them.
        let route = (*route)?;
        let mut writers = self.ops.iter().filter(|n| n.op.output().is_some_and(|o| o.value == route.value));
        let routed = |n: &Node| matches!(n.op, Op::Route { out, logits, .. } if out == route && logits.cols == *experts);
        let by_router = writers.next().is_some_and(routed) && writers.next().is_none();
        (!by_router).then(|| format!("its route is not one over {experts} experts"))
    }
}
