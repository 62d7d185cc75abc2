//! The operations of a Program: about a dozen coarse ops, plain data with `u32` handles.
//! `match op` is exhaustive everywhere, so a device without a kernel for an op does not compile.

use crate::distance::Buckets;
use crate::experts::{Gate, RouteSpec};
use crate::program::{ValueId, WeightId};
use crate::rope::RopeId;

/// A range of columns of a value; ops read and write views, so fused weights need no copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    /// The matrix.
    pub value: ValueId,
    /// First column.
    pub col: u32,
    /// Number of columns.
    pub cols: u32,
}

impl View {
    /// Columns `col..col + cols` of this view.
    pub fn slice(self, col: u32, cols: u32) -> View {
        assert!(col + cols <= self.cols, "view slice {col}+{cols} exceeds {}", self.cols);
        View { value: self.value, col: self.col + col, cols }
    }
}

/// Which mean and deviation a norm uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)` (Zhang & Sennrich 2019).
    Rms,
    /// `(x - mean) / sqrt(var + eps)` (Ba et al. 2016).
    Layer,
    /// `x` as it is, so that there are gain and bias alone.
    Plain,
}

/// A normalisation over groups of columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// The kind of norm.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f32,
    /// Columns that are normalised together: the whole width, or a head's.
    pub group: u32,
    /// Gain of length `group`, shared by all groups, or `[groups, group]`, one of its own for each.
    pub weight: Option<WeightId>,
    /// Bias of length `group`, shared by all groups.
    pub bias: Option<WeightId>,
}

/// The nonlinearity of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
}

/// Which row of a table an [`Op::Embed`] takes for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// That of its id.
    Token,
    /// That of its id, and this one for ids that the table has no row for.
    TokenOr(u32),
    /// That of its position in its sequence; see [`crate::Program::positions`].
    Position,
    /// The same one for every token: a BERT's type of token, which is 0 in a text of one part.
    Row(u32),
}

/// Attention by blocks of positions (Child et al. 2019; Zaheer et al. 2020; Phi-3-small): a token sees of what is before it its
/// own block and a few before, and elsewhere only some. Block `n` holds positions `n * tokens` to `(n + 1) * tokens - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Positions of a block, a power of two.
    pub tokens: u32,
    /// Blocks up to a token's own that it sees.
    pub local: u32,
    /// The first so many blocks are seen by all.
    pub global: u32,
    /// Every so many'th block is seen by all behind it; 0: none.
    pub stride: u32,
    /// In query head `h` those lie so many blocks times `h` before the first head's.
    pub shift: u32,
}

impl Blocks {
    /// Whether query head `head` of a token at `position` sees the block of `key`, which is not behind it.
    pub fn sees(&self, head: usize, position: usize, key: usize) -> bool {
        let tokens = self.tokens.max(1) as usize;
        let (own, block) = (position / tokens, key / tokens);
        let strided = |n: usize| (block + head * self.shift as usize + 1).is_multiple_of(n);
        own - block < self.local as usize
            || block < self.global as usize
            || (self.stride > 0 && strided(self.stride as usize))
    }

    /// How many positions the first head of a token at `position` sees.
    pub fn seen(&self, position: u64) -> u64 {
        let tokens = u64::from(self.tokens.max(1));
        let near = (position / tokens + 1).min(u64::from(self.local.max(1)));
        let far = position / tokens + 1 - near;
        let global = far.min(u64::from(self.global));
        let strided = |blocks: u64| blocks.checked_div(u64::from(self.stride)).unwrap_or(0);
        (near - 1) * tokens + position % tokens + 1 + (global + strided(far) - strided(global)) * tokens
    }
}

/// The parameters of one attention op. Query head `h` reads key/value head `h / (heads / kv_heads)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttendSpec {
    /// Index into the Program's KV layers.
    pub kv_layer: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Columns of a query or key head.
    pub head_dim: u32,
    /// Columns of a value head.
    pub v_dim: u32,
    /// Multiplies every score.
    pub scale: f32,
    /// A token sees itself and what is before it. Otherwise it sees all that its sequence holds at the end of the step, so
    /// that a sequence must be whole in one step, and there is no window.
    pub causal: bool,
    /// A token at position `p` sees positions `p - window + 1 ..= p`; `None` sees all up to `p`.
    pub window: Option<u32>,
    /// The window begins at a multiple of its size: a token at `p` sees `p - p % window ..= p`.
    pub chunked: bool,
    /// Not all blocks of positions are seen; there is no window and no ALiBi then, and attention is causal.
    pub blocks: Option<Blocks>,
    /// `cap * tanh(score / cap)` before the softmax.
    pub softcap: Option<f32>,
    /// ALiBi (Press et al. 2022): a score falls by [`alibi_slope`] of its head for each position that the key lies back;
    /// this is the largest bias. Only where attention is causal.
    pub alibi: Option<f32>,
    /// What is added to a score by its distance; there is no window, no blocks and no ALiBi then.
    pub buckets: Option<Buckets>,
    /// Keys and values are those of the sequence's source, [`crate::SeqStep::source`] of them, all of which are seen: nothing
    /// of the above is there then.
    pub of_source: bool,
    /// A score for each query head that takes part in its softmax and adds nothing: `[1, heads]`.
    pub sinks: Option<WeightId>,
}

/// The slope of query head `head` of `heads`: `2^(-max i / n)` with `n` the largest power of two up to `heads`; heads beyond
/// it take every second step of the same with `2 n`.
pub fn alibi_slope(max: f32, heads: u32, head: u32) -> f32 {
    let n = 1u32 << heads.max(1).ilog2();
    let steps = if head < n { f64::from(head + 1) } else { f64::from(head - n) + 0.5 };
    (-f64::from(max) * steps / f64::from(n)).exp2() as f32
}

/// The heads of a recurrence, and a number of each, `[heads, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanSpec {
    /// Heads.
    pub heads: u32,
    /// Columns of a head.
    pub head_dim: u32,
    /// Columns of a head's state.
    pub state_dim: u32,
    /// How fast it forgets, negative.
    pub a: WeightId,
    /// How much of the input passes by.
    pub skip: WeightId,
    /// Added to its step, `[1, heads]`.
    pub dt_bias: WeightId,
}

/// One operation. Shapes are `[rows, cols]`; `rows` is the step's.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `out = scale * table[row]`, or `out = add + scale * table[row]`.
    Embed {
        /// `[rows, dim]`.
        out: View,
        /// `[vocab, dim]`.
        table: WeightId,
        /// Multiplies each element of the row.
        scale: f32,
        /// Which row of the table.
        by: Lookup,
        /// Added to the row.
        add: Option<View>,
    },
    /// `out = norm(x)`, or `out = add + norm(x)`.
    Norm {
        /// Same width as `x`.
        out: View,
        /// Input.
        x: View,
        /// How to normalise.
        norm: NormSpec,
        /// Residual added after the norm.
        add: Option<View>,
    },
    /// `y = n(x) W^T + bias`, where `n` is an optional norm folded into the load of `x`;
    /// then `out = y`, or `out = add + y`, or, with `glu`, `out = act(y[..half]) * y[half..]`.
    /// In rows of a sequence with an adapter, `y` is changed first: see [`crate::AdapterPart`].
    MatMul {
        /// `[rows, W rows]`, or half of that with `glu`.
        out: View,
        /// `[rows, W cols]`.
        x: View,
        /// Applied to `x` first.
        norm: Option<NormSpec>,
        /// `[out cols, in cols]`, possibly several tensors stacked.
        weight: WeightId,
        /// `[1, out cols]`, parts as in `weight`.
        bias: Option<WeightId>,
        /// Residual added to the product.
        add: Option<View>,
        /// The first half of the product gates the second.
        glu: Option<Activation>,
    },
    /// Rotates the first `table.rot_dims` columns of each head of `x` by its token's position, in place.
    Rope {
        /// `[rows, heads * head_dim]`.
        x: View,
        /// Columns of a head.
        head_dim: u32,
        /// Frequencies and style.
        table: RopeId,
    },
    /// Writes this step's keys and values into the cache at their positions.
    StoreKv {
        /// `[rows, kv_heads * head_dim]`.
        k: View,
        /// `[rows, kv_heads * v_dim]`.
        v: View,
        /// Index into the Program's KV layers.
        kv_layer: u32,
    },
    /// Softmax attention of each row over the cache of its sequence, its own position included.
    Attend {
        /// `[rows, heads * v_dim]`.
        out: View,
        /// `[rows, heads * head_dim]`.
        q: View,
        /// Heads, scale, window.
        spec: AttendSpec,
    },
    /// A causal convolution of each column over the last tokens of its sequence, between two gates (LFM2): with
    /// `u = before * x`, which is written into the cache at its position, `out = after * sum_j weight[.., j] * u[p - taps + 1 + j]`,
    /// and nothing before the sequence's first token. What is read is what the cache holds, also of this step's rows.
    ShortConv {
        /// As wide as `x`.
        out: View,
        /// Convolved, once it is gated.
        x: View,
        /// Multiplies the input.
        before: View,
        /// Multiplies the sum.
        after: View,
        /// `[cols, taps]`, the newest token's last.
        weight: WeightId,
        /// `[1, cols]`, added to the sum.
        bias: Option<WeightId>,
        /// Index into the Program's KV layers, of one that has no keys: see [`crate::KvLayer::inputs`].
        kv_layer: u32,
    },
    /// A causal convolution of each column whose last inputs are in the sequence's state: `out = silu(sum_j weight[.., j] *
    /// x[row - taps + 1 + j] + bias)`, where rows before the step come from the state and are 0 before the sequence.
    Conv {
        /// As wide as `x`.
        out: View,
        /// Convolved.
        x: View,
        /// `[cols, taps]`, the newest token's last.
        weight: WeightId,
        /// `[1, cols]`.
        bias: Option<WeightId>,
        /// Index into [`crate::Program::states`]: `[taps - 1, cols]`, the oldest first.
        state: u32,
    },
    /// The recurrence of Mamba-2 (Dao & Gu 2024), row after row: with `d = softplus(dt + dt_bias)` of a head, its state
    /// `S = exp(d a) S + (d x) b^T` and `out = S c + skip x`.
    Scan {
        /// `[rows, heads * head_dim]`.
        out: View,
        /// `[rows, heads * head_dim]`.
        x: View,
        /// What goes into the state, `[rows, state_dim]`, the same for all heads.
        b: View,
        /// What is read of it.
        c: View,
        /// `[rows, heads]`.
        dt: View,
        /// The heads and their weights.
        spec: ScanSpec,
        /// Index into [`crate::Program::states`]: `[heads, head_dim, state_dim]`.
        state: u32,
    },
    /// `out = act(gate) * up`.
    Glu {
        /// Output.
        out: View,
        /// Gate.
        gate: View,
        /// Up.
        up: View,
        /// Nonlinearity of the gate.
        act: Activation,
    },
    /// `out = act(x)`.
    Activate {
        /// Output.
        out: View,
        /// Input.
        x: View,
        /// Nonlinearity.
        act: Activation,
    },
    /// Chooses experts for each row: see [`crate::experts::route`].
    Route {
        /// `[rows, 2 * used]`: the numbers of the experts, then their weights.
        out: View,
        /// `[rows, experts]`.
        logits: View,
        /// `[1, experts]`, added to the scores for the choice alone.
        bias: Option<WeightId>,
        /// From logits to experts and weights.
        spec: RouteSpec,
    },
    /// The product of each row with the weight of each of its experts: `out[r, j] = x[r, j] W_e^T + bias_e` with
    /// `e = route[r, j]`, or with `glu` `out[r, j] = gate(x[r, j] G_e^T + .., x[r, j] U_e^T + ..)`. Only weights of chosen experts
    /// are read. Without a route each block of columns has a weight of its own, `e = j`: the heads of latent attention.
    MatMulExperts {
        /// `[rows, used * (n + rest)]` where an expert gives `n` columns.
        out: View,
        /// `[rows, W cols]`, the same for all experts of a row, or `[rows, used * (W cols + rest)]`; the last `rest` columns of a
        /// block are copied behind its product.
        x: View,
        /// What an [`Op::Route`] has written.
        route: Option<View>,
        /// Experts, all of which are used without a route.
        experts: u32,
        /// One part for each expert; with `glu` those of all gates, then those of all ups.
        weight: WeightId,
        /// Parts as in `weight`.
        bias: Option<WeightId>,
        /// The product with the first half of the parts gates that with the second.
        glu: Option<Gate>,
    },
    /// `out[i] = sum_j weights[i, j] * x[j]`, or `out[i] = add[i] + ..`, of blocks of columns: a row's own small matrix mixes them.
    Combine {
        /// `[rows, sums * cols]`.
        out: View,
        /// `[rows, n * cols]`.
        x: View,
        /// `[rows, sums * n]`.
        weights: View,
        /// Blocks of `out`.
        sums: u32,
        /// Added to the sums.
        add: Option<View>,
    },
    /// `out = by[0] * a + by[1] * b`.
    Add {
        /// Output.
        out: View,
        /// Left.
        a: View,
        /// Right.
        b: View,
        /// Factors of both.
        by: [f32; 2],
    },
    /// Each block of `x` that is as wide as `like`, brought to its length: `out = x * rms(like) / sqrt(max(mean(x^2), floor))`.
    Rescale {
        /// As wide as `x`.
        out: View,
        /// Blocks of `like.cols` columns.
        x: View,
        /// Whose length they get.
        like: View,
        /// The least mean square that is divided by.
        floor: f32,
    },
    /// `x = max(x - (mean + by * deviation), 0)` by the mean and the deviation of each row, in place: of numbers that lie as a
    /// Gaussian's do, a fixed part is left.
    Cutoff {
        /// Cut.
        x: View,
        /// Deviations above the mean.
        by: f32,
    },
    /// `x = x * by`, in place.
    Scale {
        /// Scaled.
        x: View,
        /// Factor.
        by: f32,
    },
    /// `x = min(max(x, -by), by)`, in place; NaN stays NaN.
    Clip {
        /// Clipped.
        x: View,
        /// Bound.
        by: f32,
    },
    /// `x = cap * tanh(x / cap)`, in place.
    Softcap {
        /// Capped.
        x: View,
        /// Bound.
        cap: f32,
    },
    /// Copies the rows that the step wants logits for: `out[i] = x[outputs[i]]`.
    PickRows {
        /// `[outputs, cols]`.
        out: View,
        /// `[rows, cols]`.
        x: View,
    },
    /// What tokens are drawn from: the best of each row of logits, and the sum over all of them; see
    /// [`crate::candidates`], which is the form of `out`.
    TopK {
        /// `[outputs, candidates::columns(k)]`.
        out: View,
        /// `[outputs, vocab]`.
        x: View,
    },
}

impl AttendSpec {
    /// The first position that a token sees, if it sees only what is before it.
    pub fn first(&self, position: usize) -> usize {
        match self.window.map(|w| w as usize) {
            None => 0,
            Some(w) if self.chunked => position - position % w.max(1),
            Some(w) => (position + 1).saturating_sub(w),
        }
    }
}

impl Op {
    /// The name used in displays, benchmarks and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::Norm { .. } => "norm",
            Op::MatMul { .. } => "matmul",
            Op::Rope { .. } => "rope",
            Op::StoreKv { .. } => "store_kv",
            Op::Attend { .. } => "attend",
            Op::ShortConv { .. } => "short_conv",
            Op::Conv { .. } => "conv",
            Op::Scan { .. } => "scan",
            Op::Glu { .. } => "glu",
            Op::Activate { .. } => "activate",
            Op::Route { .. } => "route",
            Op::MatMulExperts { .. } => "matmul_experts",
            Op::Combine { .. } => "combine",
            Op::Add { .. } => "add",
            Op::Rescale { .. } => "rescale",
            Op::Cutoff { .. } => "cutoff",
            Op::Scale { .. } => "scale",
            Op::Clip { .. } => "clip",
            Op::Softcap { .. } => "softcap",
            Op::PickRows { .. } => "pick_rows",
            Op::TopK { .. } => "top_k",
        }
    }

    /// The view that this op writes; an in-place op writes what it reads. `StoreKv` writes only the cache.
    pub fn output(&self) -> Option<View> {
        match *self {
            Op::Embed { out, .. }
            | Op::Norm { out, .. }
            | Op::MatMul { out, .. }
            | Op::Attend { out, .. }
            | Op::ShortConv { out, .. }
            | Op::Conv { out, .. }
            | Op::Scan { out, .. }
            | Op::Glu { out, .. }
            | Op::Activate { out, .. }
            | Op::Route { out, .. }
            | Op::MatMulExperts { out, .. }
            | Op::Combine { out, .. }
            | Op::Add { out, .. }
            | Op::Rescale { out, .. }
            | Op::PickRows { out, .. }
            | Op::TopK { out, .. } => Some(out),
            Op::Rope { x, .. }
            | Op::Cutoff { x, .. }
            | Op::Scale { x, .. }
            | Op::Clip { x, .. }
            | Op::Softcap { x, .. } => Some(x),
            Op::StoreKv { .. } => None,
        }
    }

    /// Whether the op changes a view that an earlier op wrote.
    pub fn in_place(&self) -> bool {
        let cut = matches!(self, Op::Cutoff { .. } | Op::Clip { .. } | Op::Softcap { .. });
        cut || matches!(self, Op::Rope { .. } | Op::Scale { .. })
    }

    /// Calls `f` on every view that the op reads.
    pub fn for_inputs(&self, mut f: impl FnMut(View)) {
        self.clone().views_mut(|v, read| {
            if read {
                f(*v)
            }
        });
    }

    /// Calls `f(view, is_read)` on every view of the op; an in-place view is visited once, as read.
    pub fn views_mut(&mut self, mut f: impl FnMut(&mut View, bool)) {
        match self {
            Op::Embed { out, add, .. } => {
                if let Some(add) = add {
                    f(add, true);
                }
                f(out, false);
            }
            Op::Norm { out, x, add, .. } | Op::MatMul { out, x, add, .. } => {
                f(x, true);
                if let Some(add) = add {
                    f(add, true);
                }
                f(out, false);
            }
            Op::Rope { x, .. }
            | Op::Cutoff { x, .. }
            | Op::Scale { x, .. }
            | Op::Clip { x, .. }
            | Op::Softcap { x, .. } => f(x, true),
            Op::StoreKv { k, v, .. } => {
                f(k, true);
                f(v, true);
            }
            Op::Attend { out, q, .. } => {
                f(q, true);
                f(out, false);
            }
            Op::ShortConv { out, x, before, after, .. } => {
                f(x, true);
                f(before, true);
                f(after, true);
                f(out, false);
            }
            Op::Glu { out, gate, up, .. } => {
                f(gate, true);
                f(up, true);
                f(out, false);
            }
            Op::Scan { out, x, b, c, dt, .. } => {
                [x, b, c, dt].into_iter().for_each(|v| f(v, true));
                f(out, false);
            }
            Op::Activate { out, x, .. }
            | Op::Conv { out, x, .. }
            | Op::PickRows { out, x }
            | Op::TopK { out, x } => {
                f(x, true);
                f(out, false);
            }
            Op::Route { out, logits, .. } => {
                f(logits, true);
                f(out, false);
            }
            Op::MatMulExperts { out, x, route, .. } => {
                f(x, true);
                if let Some(route) = route {
                    f(route, true);
                }
                f(out, false);
            }
            Op::Combine { out, x, weights, add, .. } => {
                f(x, true);
                f(weights, true);
                if let Some(add) = add {
                    f(add, true);
                }
                f(out, false);
            }
            Op::Add { out, a, b, .. } | Op::Rescale { out, x: a, like: b, .. } => {
                f(a, true);
                f(b, true);
                f(out, false);
            }
        }
    }

    /// Calls `f` on every weight that the op reads.
    pub fn for_weights(&self, mut f: impl FnMut(WeightId)) {
        self.clone().weights_mut(|w| f(*w));
    }

    /// Calls `f` on every weight handle of the op.
    pub fn weights_mut(&mut self, mut f: impl FnMut(&mut WeightId)) {
        let norm = match self {
            Op::Norm { norm, .. } => Some(norm),
            Op::MatMul { norm, .. } => norm.as_mut(),
            _ => None,
        };
        if let Some(n) = norm {
            n.weight.iter_mut().chain(&mut n.bias).for_each(&mut f);
        }
        match self {
            Op::MatMul { weight, bias, .. }
            | Op::MatMulExperts { weight, bias, .. }
            | Op::ShortConv { weight, bias, .. }
            | Op::Conv { weight, bias, .. } => {
                f(weight);
                bias.iter_mut().for_each(f);
            }
            Op::Route { bias, .. } => bias.iter_mut().for_each(f),
            Op::Scan { spec, .. } => [&mut spec.a, &mut spec.skip, &mut spec.dt_bias].into_iter().for_each(f),
            Op::Embed { table, .. } => f(table),
            Op::Attend { spec, .. } => {
                spec.sinks.iter_mut().chain(spec.buckets.as_mut().map(|b| &mut b.table)).for_each(f)
            }
            _ => {}
        }
    }
}
