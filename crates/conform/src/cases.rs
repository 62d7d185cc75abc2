//! Programs of one or a few ops at odd shapes, with random weights: what every device is compared with the reference on.

use crate::random::{Rng, f32_tensor, tensor};
use crate::{Tensors, compare, input_program, prepare, run_chunks};
use quarrel_formats::DType;
use quarrel_ir::{
    Activation, AttendSpec, Device, ExpertGroups, Gate, KvLayer, Limits, Lookup, NormKind, NormSpec, Op,
    Program, Result, RopeStyle, RopeTable, RouteSpec, Rows, ScanSpec, Scoring, View, WeightPart,
};

/// Rows of the input tables.
pub const VOCAB: u32 = 80;

/// All activations.
pub const ACTIVATIONS: [Activation; 4] =
    [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu];

/// A Program that ends with a value to compare.
pub struct Case {
    /// What it is, for messages.
    pub name: String,
    /// Checked, with logits.
    pub program: Program,
    /// Its weights.
    pub tensors: Tensors,
    /// Rows of its one step.
    pub rows: usize,
    /// How far a result is from the reference.
    pub measure: Measure,
    /// Whether a weight has a quantised type.
    pub quantized: bool,
}

/// A distance from the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Of one product `w` of the input: root mean square of the error over that of the root sum square of each output's
    /// terms, because the sum itself can be any share of them, when terms cancel.
    Terms,
    /// Root mean square of the error over that of the values.
    Rms,
    /// Largest difference.
    Largest,
    /// Largest difference relative to the value, where NaN answers NaN.
    Relative,
}

impl Case {
    fn new(name: String, program: Program, tensors: Tensors, rows: usize, measure: Measure) -> Case {
        program.check().unwrap_or_else(|e| panic!("{name}: {e}"));
        let quantized = tensors.values().any(|t| t.dtype.is_quantized());
        Case { name, program, tensors, rows, measure, quantized }
    }

    /// The id at row `r`: rows of the input table in a mixed order.
    pub fn token(r: u32) -> u32 {
        (r * 13 + 5) % VOCAB
    }

    /// Runs it on a device, cut into steps of `chunks` rows, and reads the value it ends with.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn run(&self, device: &mut dyn Device, chunks: &[usize]) -> Result<Vec<f32>> {
        let limits = Limits { rows: self.rows, outputs: self.rows, kv_blocks: self.rows.div_ceil(16) };
        let prepared = prepare(device, &self.program, &self.tensors, limits)?;
        let tokens: Vec<u32> = (0..self.rows as u32).map(Case::token).collect();
        let read = self.program.logits.expect("cases are checked");
        run_chunks(device, prepared, &self.program, &tokens, chunks, read)
    }

    /// The distance of a result from the reference's; infinite where one is NaN and the other not.
    pub fn error(&self, got: &[f32], want: &[f32]) -> f64 {
        match self.measure {
            Measure::Rms => compare::relative_rms(got, want),
            Measure::Largest => compare::max_abs_diff(got, want).into(),
            Measure::Relative => relative(got, want),
            Measure::Terms => self.error_of_terms(got, want),
        }
    }

    fn error_of_terms(&self, got: &[f32], want: &[f32]) -> f64 {
        let (x, w) = (self.tensors["input"].to_f32(), self.tensors["w"].to_f32());
        let cols = x.len() / VOCAB as usize;
        let square = |v: f64| v * v;
        let mut squares = vec![0.0; cols]; // of each column of the weight
        for w in w.chunks_exact(cols) {
            squares.iter_mut().zip(w).for_each(|(s, w)| *s += square(f64::from(*w)));
        }
        let error: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
        let terms: f64 = (0..self.rows as u32)
            .flat_map(|r| x[Case::token(r) as usize * cols..][..cols].iter().zip(&squares))
            .map(|(x, s)| square(f64::from(*x)) * s)
            .sum();
        let ratio = (error / terms).sqrt();
        if ratio.is_nan() { f64::INFINITY } else { ratio }
    }
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    got.iter().zip(want).fold(0.0, |worst, (g, w)| {
        let near = (w - g).abs() <= 1e-36 || (w.is_nan() && g.is_nan()) || w == g;
        let error = f64::from((w - g).abs()) / f64::from(w.abs().max(1e-30));
        match (near, error.is_nan()) {
            (true, _) => worst,
            (false, true) => f64::INFINITY,
            (false, false) => worst.max(error),
        }
    })
}

/// A program whose first value is a random matrix, and its table.
pub fn with_input(cols: u32, rng: &mut Rng) -> (Program, View, Tensors) {
    let (p, x) = input_program(VOCAB, cols);
    let table = tensor("input", DType::F32, &[VOCAB as usize, cols as usize], 1.0, rng);
    (p, x, Tensors::from([("input".into(), table)]))
}

/// The types that a weight can have: all but the index types.
pub fn weight_types() -> impl Iterator<Item = DType> {
    DType::all().filter(|t| !matches!(t, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U8))
}

/// A product of a type, `[out, k]`, of so many rows.
pub fn product(dtype: DType, out: u32, cols: u32, rows: usize, rng: &mut Rng) -> Case {
    let (mut p, x, mut t) = with_input(cols, rng);
    let w = p.weight("w", out, cols);
    t.insert("w".into(), tensor("w", dtype, &[out as usize, cols as usize], 0.5, rng));
    p.logits = Some(p.matmul("y", x, w, None));
    Case::new(format!("{dtype} {out}x{cols}, {rows} rows"), p, t, rows, Measure::Terms)
}

/// Products of every type at odd shapes.
pub fn products(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in weight_types() {
        let unit = dtype.block_len().max(32) as u32;
        for (out, blocks, rows) in [(1, 1, 1), (15, 3, 2), (17, 1, 7), (33, 2, 64), (64, 1, 5)] {
            cases.push(product(dtype, out, unit * blocks, rows, rng));
        }
    }
    cases
}

/// Rows of tables of every type.
pub fn lookups(rng: &mut Rng) -> Vec<Case> {
    let case = |dtype: DType| {
        let cols = 2 * dtype.block_len().max(32) as u32;
        let (mut p, x) = input_program(VOCAB, cols);
        if let Op::Embed { scale, .. } = &mut p.ops[0].op {
            *scale = 2.5;
        }
        p.logits = Some(x);
        let t = tensor("input", dtype, &[VOCAB as usize, cols as usize], 0.5, rng);
        Case::new(format!("{dtype} x {cols}"), p, Tensors::from([("input".into(), t)]), 37, Measure::Rms)
    };
    weight_types().map(case).collect()
}

/// A block of a feed-forward network: norm, biased gate and up, activation, down, residual.
pub fn feed_forward(dtype: DType, cols: u32, rows: usize, act: Activation, rng: &mut Rng) -> Case {
    let (mut p, x, mut t) = with_input(cols, rng);
    let gain = p.weight("gain", 1, cols);
    t.insert("gain".into(), tensor("gain", DType::F32, &[cols as usize], 1.0, rng));
    let norm = NormSpec { kind: NormKind::Rms, eps: 1e-5, group: cols, weight: Some(gain), bias: None };
    let h = p.norm("h", x, norm);
    let mut part = |p: &mut Program, name: &str, rows: u32| {
        t.insert(name.into(), tensor(name, dtype, &[rows as usize, cols as usize], 0.2, rng));
        let bias = format!("{name}.bias");
        t.insert(bias.clone(), tensor(&bias, DType::F32, &[rows as usize], 0.5, rng));
        let (w, b) = (p.weight(name, rows, cols), p.weight(bias, 1, rows));
        p.matmul("part", h, w, Some(b))
    };
    let gate = part(&mut p, "gate", cols);
    let up = part(&mut p, "up", cols);
    let a = p.glu(gate, up, act);
    let w = p.weight("down", cols, cols);
    t.insert("down".into(), tensor("down", dtype, &[cols as usize, cols as usize], 0.2, rng));
    let y = p.matmul("down", a, w, None);
    p.logits = Some(p.add("z", x, y));
    Case::new(format!("{dtype} {cols}, {rows} rows, {act:?}"), p, t, rows, Measure::Rms)
}

/// A mixture of experts with a given router, and what its parts are.
#[derive(Debug, Clone, Copy)]
pub struct Mixture {
    /// Columns of the input and of the result.
    pub cols: u32,
    /// Columns between an expert's two products.
    pub ff: u32,
    /// Experts.
    pub experts: u32,
    /// Which are chosen.
    pub spec: RouteSpec,
    /// How an expert's first products become one; without it there is one, with an activation.
    pub gate: Option<Gate>,
    /// Biases of the choice and of the products.
    pub biased: bool,
}

/// The whole of a mixture: logits, choice, gate and up, down, weighted sum on the input.
pub fn mixture(dtype: DType, m: Mixture, rows: usize, rng: &mut Rng) -> Case {
    let (mut p, x, mut t) = with_input(m.cols, rng);
    let z = mixture_of(&mut p, &mut t, x, dtype, m, rng);
    p.logits = Some(z);
    Case::new(format!("{dtype} {m:?}, {rows} rows"), p, t, rows, Measure::Rms)
}

/// Adds a mixture on `x` to a program.
pub fn mixture_of(
    p: &mut Program,
    t: &mut Tensors,
    x: View,
    dtype: DType,
    m: Mixture,
    rng: &mut Rng,
) -> View {
    let vector = |p: &mut Program, t: &mut Tensors, name: &str, n: u32, rng: &mut Rng| {
        t.insert(name.into(), tensor(name, DType::F32, &[n as usize], 0.5, rng));
        p.weight(name, 1, n)
    };
    t.insert("router".into(), tensor("router", DType::F32, &[m.experts as usize, m.cols as usize], 0.5, rng));
    let router = p.weight("router", m.experts, m.cols);
    let logits = p.matmul("router", x, router, None);
    let bias = m.biased.then(|| vector(p, t, "choice", m.experts, rng));
    let route = p.route(logits, bias, m.spec);
    let mut stack = |p: &mut Program, names: &[&str], rows: u32, cols: u32, rng: &mut Rng| {
        let (mut parts, mut biases) = (Vec::new(), Vec::new());
        for (name, e) in names.iter().flat_map(|n| (0..m.experts).map(move |e| (n, e))) {
            let name = format!("{name}.{e}");
            t.insert(name.clone(), tensor(&name, dtype, &[rows as usize, cols as usize], 0.2, rng));
            parts.push(WeightPart { name: name.clone(), rows });
            let bias = format!("{name}.bias");
            t.insert(bias.clone(), tensor(&bias, DType::F32, &[rows as usize], 0.5, rng));
            biases.push(WeightPart { name: bias, rows });
        }
        let weight = p.stacked(parts, cols);
        (weight, m.biased.then(|| p.stacked(biases, 1)))
    };
    let names: &[&str] = if m.gate.is_some() { &["gate", "up"] } else { &["up"] };
    let first = stack(p, names, m.ff, m.cols, rng);
    let mut a = p.matmul_experts("ff", (x, Some(route)), m.experts, first, m.gate);
    if m.gate.is_none() {
        let out = p.value("act", Rows::Tokens, a.cols);
        p.push(Op::Activate { out, x: a, act: Activation::Relu });
        a = out;
    }
    let down = stack(p, &["down"], m.cols, m.ff, rng);
    let y = p.matmul_experts("down", (a, Some(route)), m.experts, down, None);
    p.combine("z", y, route.slice(m.spec.used, m.spec.used), Some(x))
}

/// Blocks of columns with a weight of their own, and what passes by them.
pub fn blocks(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, heads, cols, n, rest) in [
        (DType::F32, 3, 20, 7, 0),
        (DType::BF16, 5, 16, 33, 6),
        (DType::Q8_0, 4, 64, 40, 8),
        (DType::F32, 1, 9, 4, 3),
    ] {
        for rows in [1, 3, 64] {
            let (mut p, x, mut t) = with_input(heads * (cols + rest), rng);
            let parts = (0..heads).map(|h| {
                let name = format!("w.{h}");
                t.insert(name.clone(), tensor(&name, dtype, &[n as usize, cols as usize], 0.3, rng));
                WeightPart { name, rows: n }
            });
            let parts = parts.collect();
            let w = p.stacked(parts, cols);
            p.logits = Some(p.matmul_experts("y", (x, None), heads, (w, None), None));
            let name = format!("{dtype} {heads} blocks {n}x{cols}+{rest}, {rows} rows");
            cases.push(Case::new(name, p, t, rows, Measure::Rms));
        }
    }
    cases
}

/// Ways to choose among experts and to gate, at odd shapes.
pub fn mixtures(rng: &mut Rng) -> Vec<Case> {
    let plain = RouteSpec { used: 2, scoring: Scoring::Softmax, groups: None, normalize: true, scale: 1.0 };
    let silu = Some(Gate::Plain(Activation::Silu));
    let clamped = Some(Gate::Clamped { alpha: 1.702, limit: 1.0 });
    let groups = Some(ExpertGroups { count: 4, used: 2, best: 2 });
    let grouped = RouteSpec { used: 3, scoring: Scoring::Sigmoid, groups, scale: 2.5, ..plain };
    let raw = RouteSpec { used: 4, normalize: false, ..plain };
    let sparse = RouteSpec { scoring: Scoring::Sparse { eps: 0.1 }, normalize: false, ..plain };
    let one = RouteSpec { used: 1, scoring: Scoring::Sigmoid, normalize: false, ..plain };
    let mixture_of =
        |cols, ff, experts, spec, gate, biased| Mixture { cols, ff, experts, spec, gate, biased };
    let shapes = [
        (DType::F32, mixture_of(40, 24, 4, plain, silu, false)),
        (DType::F32, mixture_of(33, 17, 8, grouped, silu, true)),
        (DType::F16, mixture_of(48, 50, 5, raw, None, true)),
        (DType::F32, mixture_of(16, 16, 6, sparse, Some(Gate::Plain(Activation::GeluErf)), false)),
        (DType::BF16, mixture_of(20, 36, 3, one, silu, false)),
        (DType::Q8_0, mixture_of(64, 96, 7, raw, silu, false)),
        (DType::Q4_K, mixture_of(256, 256, 4, plain, silu, false)),
        (DType::MXFP4, mixture_of(64, 32, 6, plain, clamped, true)),
    ];
    let mut cases = Vec::new();
    for (dtype, m) in shapes {
        for rows in [1, 2, 7, 64] {
            cases.push(mixture(dtype, m, rows, rng));
        }
    }
    cases
}

/// Norms of both kinds, whole and per head, with an addition.
pub fn norms(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [NormKind::Rms, NormKind::Layer] {
        for (cols, group) in [(1, 1), (33, 33), (96, 96), (120, 40), (576, 576), (80, 16)] {
            for rows in [1, 3, 64] {
                let (mut p, x, mut t) = with_input(cols, rng);
                let weight = Some(p.weight("gain", 1, group));
                let bias = Some(p.weight("bias", 1, group));
                for name in ["gain", "bias"] {
                    t.insert(name.into(), tensor(name, DType::F32, &[group as usize], 1.0, rng));
                }
                let out = p.value("y", Rows::Tokens, cols);
                let norm = NormSpec { kind, eps: 1e-6, group, weight, bias };
                p.push(Op::Norm { out, x, norm, add: Some(x) });
                p.logits = Some(out);
                let name = format!("{kind:?} {cols}/{group}, {rows} rows");
                cases.push(Case::new(name, p, t, rows, Measure::Rms));
            }
        }
    }
    cases
}

/// Norms of heads with a gain of its own each.
pub fn head_norms(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, group, heads) in [(NormKind::Layer, 16, 5), (NormKind::Rms, 33, 3), (NormKind::Layer, 128, 1)]
    {
        for rows in [1, 9] {
            let (mut p, x, mut t) = with_input(heads * group, rng);
            let part = |h: u32| WeightPart { name: format!("gain.{h}"), rows: 1 };
            for h in 0..heads {
                let name = format!("gain.{h}");
                t.insert(name.clone(), tensor(&name, DType::F32, &[group as usize], 1.0, rng));
            }
            let weight = Some(p.stacked((0..heads).map(part).collect(), group));
            p.logits = Some(p.norm("y", x, NormSpec { kind, eps: 1e-5, group, weight, bias: None }));
            cases.push(Case::new(
                format!("{kind:?} {heads} heads of {group}, {rows} rows"),
                p,
                t,
                rows,
                Measure::Rms,
            ));
        }
    }
    cases
}

/// Activation, factor, cap, sum, gate and picked rows in one.
pub fn elementwise(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for cols in [1, 31, 100] {
        for rows in [1, 2, 65] {
            let (mut p, x, t) = with_input(cols, rng);
            let a = p.value("a", Rows::Tokens, cols);
            p.push(Op::Activate { out: a, x, act: Activation::GeluErf });
            p.push(Op::Scale { x: a, by: 3.0 });
            p.push(Op::Softcap { x: a, cap: 1.5 });
            let b = p.add("b", a, x);
            let g = p.glu(x, b, Activation::Silu);
            let out = p.value("picked", Rows::Outputs, cols);
            p.push(Op::PickRows { out, x: g });
            p.logits = Some(out);
            cases.push(Case::new(format!("{cols} columns, {rows} rows"), p, t, rows, Measure::Largest));
        }
    }
    cases
}

/// What streams are mixed by: sums with factors, blocks by a row's own small matrix, rows of another's length, cut-off rows, gains
/// alone, and a table that not every token has a row in.
pub fn streams(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (cols, n, sums) in [(1, 1, 1), (7, 2, 3), (33, 4, 4), (64, 1, 3), (130, 5, 2)] {
        for rows in [1, 2, 65] {
            let (mut p, x, mut t) = with_input(n * cols + sums * n, rng);
            let (blocks, weights) = (x.slice(0, n * cols), x.slice(n * cols, sums * n));
            let shape = [VOCAB as usize - 9, (sums * cols) as usize];
            t.insert("short".into(), tensor("short", DType::F32, &shape, 1.0, rng));
            let table = p.weight("short", VOCAB - 9, sums * cols);
            let add = p.value("add", Rows::Tokens, sums * cols);
            p.push(Op::Embed { out: add, table, scale: 0.5, by: Lookup::TokenOr(4), add: None });
            let mixed = p.value("mixed", Rows::Tokens, sums * cols);
            p.push(Op::Combine { out: mixed, x: blocks, weights, sums, add: Some(add) });
            let rescaled = p.value("rescaled", Rows::Tokens, sums * cols);
            let like = blocks.slice(0, cols);
            p.push(Op::Rescale { out: rescaled, x: mixed, like, floor: 1e-5 });
            let out = p.value("y", Rows::Tokens, sums * cols);
            p.push(Op::Add { out, a: rescaled, b: add, by: [0.75, -1.5] });
            p.push(Op::Cutoff { x: out.slice(0, cols), by: 0.4 });
            t.insert("gain".into(), tensor("gain", DType::F32, &[cols as usize], 1.0, rng));
            let weight = Some(p.weight("gain", 1, cols));
            let gain = NormSpec { kind: NormKind::Plain, eps: 0.0, group: cols, weight, bias: None };
            p.logits = Some(p.norm("z", out, gain));
            let name = format!("{sums} sums of {n} blocks of {cols}, {rows} rows");
            cases.push(Case::new(name, p, t, rows, Measure::Largest));
        }
    }
    cases
}

/// The best of rows, with ties, where there are few columns and many.
pub fn candidates(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (cols, k) in [(1, 1), (5, 3), (127, 64), (128, 64), (1000, 64), (4097, 7), (33_000, 64)] {
        for rows in [1, 2, 17] {
            let (mut p, x, mut t) = with_input(cols, rng);
            let rounded: Vec<f32> = t["input"].to_f32().iter().map(|v| (v * 64.0).round() / 16.0).collect();
            t.insert("input".into(), f32_tensor("input", &[VOCAB as usize, cols as usize], &rounded));
            let out = p.value("picked", Rows::Outputs, cols);
            p.push(Op::PickRows { out, x });
            p.logits = Some(out);
            p.choose(k);
            p.logits = p.candidates;
            cases.push(Case::new(format!("best {k} of {cols}, {rows} rows"), p, t, rows, Measure::Relative));
        }
    }
    cases
}

/// Clipping, of NaN too.
pub fn clips() -> Vec<Case> {
    let values: Vec<f32> =
        (0..40).map(|i| [f32::NAN, f32::INFINITY, -3e30, 2.5, -2.5, -1.0, 0.3][i % 7]).collect();
    let case = |by: f32| {
        let (mut p, x) = input_program(VOCAB, values.len() as u32);
        let table: Vec<f32> = values.iter().copied().cycle().take(VOCAB as usize * values.len()).collect();
        let t =
            Tensors::from([("input".into(), f32_tensor("input", &[VOCAB as usize, values.len()], &table))]);
        p.push(Op::Clip { x: x.slice(1, 38), by });
        p.logits = Some(x);
        Case::new(format!("clip at {by}"), p, t, 3, Measure::Relative)
    };
    vec![case(2.5), case(0.5), case(1e30)]
}

/// Gates where exponentials overflow, and NaN.
pub fn extremes() -> Vec<Case> {
    let values = [0.0, -0.0, 100.0, -100.0, 1000.0, -1000.0, 1e30, -1e30, f32::NAN, 88.0, -88.0, -103.0];
    let case = |act: Activation| {
        let (mut p, x) = input_program(VOCAB, values.len() as u32);
        let table: Vec<f32> = values.iter().copied().cycle().take(VOCAB as usize * values.len()).collect();
        let table = f32_tensor("input", &[VOCAB as usize, values.len()], &table);
        let out = p.value("y", Rows::Tokens, x.cols);
        p.push(Op::Activate { out, x, act });
        p.logits = Some(out);
        let t = Tensors::from([("input".into(), table)]);
        Case::new(format!("{act:?} of {values:?}"), p, t, 3, Measure::Relative)
    };
    ACTIVATIONS.map(case).into()
}

/// The shape of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Columns of each.
    pub head_dim: u32,
    /// Columns that are rotated.
    pub rot_dims: u32,
    /// Positions seen.
    pub window: Option<u32>,
    /// Bound of scores.
    pub softcap: Option<f32>,
}

/// Rotation, cache and attention together, `rows` tokens of one sequence.
pub fn attend(h: Heads, style: RopeStyle, rows: usize, rng: &mut Rng) -> Case {
    let Heads { heads, kv_heads, head_dim, rot_dims, window, softcap } = h;
    let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
    let (mut p, x, t) = with_input(q_cols + 2 * kv_cols, rng);
    p.kv = vec![KvLayer { kv_heads, head_dim, v_dim: head_dim, window }];
    let (q, k, v) = (x.slice(0, q_cols), x.slice(q_cols, kv_cols), x.slice(q_cols + kv_cols, kv_cols));
    let table = p.rope(RopeTable::new(style, rot_dims, 1000.0, None));
    for x in [q, k] {
        p.push(Op::Rope { x, head_dim, table });
    }
    p.push(Op::StoreKv { k, v, kv_layer: 0 });
    let scale = (head_dim as f32).powf(-0.5);
    let spec = AttendSpec {
        kv_layer: 0,
        heads,
        kv_heads,
        head_dim,
        v_dim: head_dim,
        scale,
        causal: true,
        window,
        softcap,
        alibi: None,
        buckets: None,
        of_source: false,
        chunked: false,
        sinks: None,
        blocks: None,
    };
    p.logits = Some(p.attend(q, spec));
    let name = format!("{heads}/{kv_heads} heads of {head_dim}, window {window:?}, {style:?}, {rows} tokens");
    Case::new(name, p, t, rows, Measure::Rms)
}

/// Attention with ALiBi, with sinks and with both: heads that are and are not a power of two, windows and caps.
pub fn biased_attention(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (heads, kv_heads, head_dim, window, softcap, rows) in [
        (1, 1, 8, None, None, 70),
        (4, 2, 33, None, Some(3.0), 70),
        (6, 6, 16, Some(7), None, 70),
        (12, 1, 64, Some(40), None, 150),
        (14, 2, 20, None, None, 300),
    ] {
        for (alibi, sinks) in [(Some(8.0), false), (None, true), (Some(4.5), true)] {
            let heads_of = Heads { heads, kv_heads, head_dim, rot_dims: 0, window, softcap };
            let mut case = attend(heads_of, RopeStyle::Neox, rows, rng);
            let weight = sinks.then(|| case.program.weight("sinks", 1, heads));
            if sinks {
                let scores = tensor("sinks", DType::F32, &[heads as usize], 2.0, rng);
                case.tensors.insert("sinks".into(), scores);
            }
            for node in &mut case.program.ops {
                if let Op::Attend { spec, .. } = &mut node.op {
                    (spec.alibi, spec.sinks) = (alibi, weight);
                }
            }
            case.program.check().unwrap_or_else(|e| panic!("{}: {e}", case.name));
            case.name = format!("{}, alibi {alibi:?}, sinks {sinks}", case.name);
            cases.push(case);
        }
    }
    cases
}

/// Short convolutions of `rows` tokens of one sequence, with and without biases.
pub fn short_convs(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (cols, taps, biased, rows) in
        [(1, 1, true, 5), (16, 3, false, 1), (33, 2, true, 40), (100, 4, false, 70), (64, 16, true, 50)]
    {
        let (mut p, x, mut t) = with_input(3 * cols, rng);
        p.kv = vec![KvLayer::inputs(cols, taps)];
        t.insert("taps".into(), tensor("taps", DType::F32, &[cols as usize, taps as usize], 0.7, rng));
        t.insert("bias".into(), tensor("bias", DType::F32, &[cols as usize], 0.5, rng));
        let weight = p.weight("taps", cols, taps);
        let bias = biased.then(|| p.weight("bias", 1, cols));
        let parts = [2, 0, 1].map(|i| x.slice(i * cols, cols));
        p.logits = Some(p.short_conv(parts, (weight, bias), 0));
        cases.push(Case::new(
            format!("{taps} taps on {cols} columns, {rows} tokens"),
            p,
            t,
            rows,
            Measure::Rms,
        ));
    }
    cases
}

/// Convolutions and recurrences with states, of `rows` tokens of one sequence.
pub fn recurrences(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (heads, head_dim, state_dim, taps, rows) in
        [(1, 1, 1, 2, 5), (3, 16, 16, 4, 1), (2, 7, 20, 3, 40), (5, 24, 33, 4, 70), (4, 64, 128, 16, 50)]
    {
        let inner = heads * head_dim;
        let (mut p, x, mut t) = with_input(inner + 2 * state_dim + heads, rng);
        let mut number = |name: &str, shape: &[usize], spread: f32| {
            t.insert(name.into(), tensor(name, DType::F32, shape, spread, rng));
        };
        let convolved = inner + 2 * state_dim;
        number("taps", &[convolved as usize, taps as usize], 0.5);
        number("bias", &[convolved as usize], 0.3);
        ["skip", "step"].into_iter().for_each(|name| number(name, &[heads as usize], 0.5));
        let slow: Vec<f32> = (0..heads).map(|h| -0.3 - 0.4 * h as f32).collect();
        t.insert("a".into(), f32_tensor("a", &[heads as usize], &slow));
        let (weight, bias) = (p.weight("taps", convolved, taps), p.weight("bias", 1, convolved));
        let u = p.conv(x.slice(0, convolved), weight, Some(bias));
        let spec = ScanSpec {
            heads,
            head_dim,
            state_dim,
            a: p.weight("a", heads, 1),
            skip: p.weight("skip", heads, 1),
            dt_bias: p.weight("step", 1, heads),
        };
        let parts = [
            u.slice(0, inner),
            u.slice(inner, state_dim),
            u.slice(inner + state_dim, state_dim),
            x.slice(convolved, heads),
        ];
        p.logits = Some(p.scan(parts, spec));
        let name = format!("{heads} heads of {head_dim}, states of {state_dim}, {taps} taps, {rows} tokens");
        cases.push(Case::new(name, p, t, rows, Measure::Rms));
    }
    cases
}

/// Attention over head sizes, groups, windows and caps.
pub fn attention(rng: &mut Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (heads, kv_heads, head_dim, rot_dims, window, softcap) in [
        (1, 1, 1, 0, None, None),
        (2, 1, 33, 32, None, None),
        (9, 3, 64, 64, None, None),
        (4, 1, 256, 256, Some(7), None),
        (6, 2, 80, 32, Some(1), Some(2.0)),
        (8, 8, 40, 20, None, Some(5.0)),
        (12, 4, 96, 96, Some(40), None),
        (4, 2, 128, 128, None, None),
    ] {
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            cases.push(attend(
                Heads { heads, kv_heads, head_dim, rot_dims, window, softcap },
                style,
                70,
                rng,
            ));
        }
    }
    cases
}
