//! Weighted sums of blocks of a row: of what experts gave, and between streams.

use crate::simd::{F32x16, Isa, Kernel, LANES, Simd};

/// `out[i] = sum_j weights[i, j] * x[j]`, in the order of `j`, or `add[i]` and that; `out` has `sums` blocks as long as each of `x`.
pub(crate) fn combine(
    isa: Isa,
    x: &[f32],
    weights: &[f32],
    sums: usize,
    add: Option<&[f32]>,
    out: &mut [f32],
) {
    let (cols, n) = (out.len() / sums, weights.len() / sums);
    for (i, (out, weights)) in out.chunks_exact_mut(cols).zip(weights.chunks_exact(n)).enumerate() {
        isa.run(Combine { x, weights, add: add.map(|a| &a[i * cols..][..cols]), out });
    }
}

struct Combine<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    add: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Combine { x, weights, add, out } = self;
        let cols = out.len();
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let at = i * LANES..i * LANES + out.len();
            let mut sum = s.zero();
            for (x, w) in x.chunks_exact(cols).zip(weights) {
                sum = s.load_partial(&x[at.clone()], 0.0).fma(s.splat(*w), sum);
            }
            if let Some(add) = add {
                sum = s.load_partial(&add[at], 0.0) + sum;
            }
            sum.store_partial(out);
        }
    }
}
