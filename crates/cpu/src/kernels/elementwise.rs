//! Ops on single elements of a row: gates, activations, sums, scales and soft caps.

use crate::simd::{F32x16, Isa, Kernel, LANES, Simd};
use quarrel_ir::Activation;

/// What becomes of an element, with its partner in a second row where there is one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Each {
    /// `act(x) * y`.
    Glu(Activation),
    /// `x + y`.
    Add,
    /// `by[0] * x + by[1] * y`.
    Mix([f32; 2]),
    /// `act(x)`.
    Activate(Activation),
    /// `x * by`.
    Scale(f32),
    /// `min(max(x, -by), by)`.
    Clip(f32),
    /// `cap * tanh(x / cap)`.
    Softcap(f32),
}

/// A nonlinearity of 16 lanes.
#[inline(always)]
pub(crate) fn activate<F: F32x16>(act: Activation, x: F) -> F {
    match act {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu_tanh(),
        Activation::GeluErf => x.gelu_erf(),
        // 0 comes first: `max` gives its second argument for NaN.
        Activation::Relu => x.same(0.0).max(x),
    }
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn softcap<F: F32x16>(cap: f32, x: F) -> F {
    (x / x.same(cap)).tanh() * x.same(cap)
}

/// `out = each(x, y)`, all of one length; without `x`, `out` itself is the input. Ops of one operand ignore `y`.
pub(crate) fn map(isa: Isa, each: Each, x: Option<&[f32]>, y: &[f32], out: &mut [f32]) {
    isa.run(Map { each, x, y, out })
}

struct Map<'a> {
    each: Each,
    x: Option<&'a [f32]>,
    y: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Map<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Map { each, x, y, out } = self;
        match each {
            Each::Glu(act) => lanes(s, x, Some(y), out, |x, y| activate(act, x) * y),
            Each::Add => lanes(s, x, Some(y), out, |x, y| x + y),
            Each::Mix([a, b]) => lanes(s, x, Some(y), out, |x, y| x * x.same(a) + y * y.same(b)),
            Each::Activate(act) => lanes(s, x, None, out, |x, _| activate(act, x)),
            Each::Scale(by) => lanes(s, x, None, out, |x, _| x * x.same(by)),
            // -x <= by where x >= -by. `max` gives its second argument for NaN.
            Each::Clip(by) => lanes(s, x, None, out, |x, _| {
                let low = x.same(-by).max(x);
                let turned = x.same(-by).max(low * x.same(-1.0));
                turned * x.same(-1.0)
            }),
            Each::Softcap(cap) => lanes(s, x, None, out, |x, _| softcap(cap, x)),
        }
    }
}

#[inline(always)]
fn lanes<S: Simd>(
    s: S,
    x: Option<&[f32]>,
    y: Option<&[f32]>,
    out: &mut [f32],
    f: impl Fn(S::F, S::F) -> S::F,
) {
    let whole = out.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let out = &mut out[at..at + LANES];
        let a = s.load(x.map_or(&*out, |x| &x[at..at + LANES]));
        f(a, y.map_or(a, |y| s.load(&y[at..at + LANES]))).store(out);
    }
    let out = &mut out[whole..];
    if !out.is_empty() {
        let a = s.load_partial(x.map_or(&*out, |x| &x[whole..]), 0.0);
        f(a, y.map_or(a, |y| s.load_partial(&y[whole..], 0.0))).store_partial(out);
    }
}
