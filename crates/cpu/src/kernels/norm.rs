//! Normalisation of one row in groups of columns, and what else depends on a row's length or deviation; sums in f32 over four
//! times 16 fixed lanes.

use crate::simd::{F32x16, Isa, Kernel, LANES, Simd};
use quarrel_ir::NormKind;

/// A norm with its vectors at hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) kind: NormKind,
    pub(crate) eps: f32,
    pub(crate) group: usize,
    /// For all groups, or for each its own.
    pub(crate) gain: Option<&'a [f32]>,
    pub(crate) shift: Option<&'a [f32]>,
}

/// `out = norm(x)`, plus `add` where given; all of one length, a multiple of the group.
pub(crate) fn norm(isa: Isa, norm: &Norm, x: &[f32], add: Option<&[f32]>, out: &mut [f32]) {
    isa.run(Row { norm, x, add, out })
}

struct Row<'a> {
    norm: &'a Norm<'a>,
    x: &'a [f32],
    add: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let g = self.norm.group;
        for (i, (x, out)) in self.x.chunks_exact(g).zip(self.out.chunks_exact_mut(g)).enumerate() {
            let gain = self.norm.gain.map(|w| if w.len() > g { &w[i * g..][..g] } else { w });
            group(s, &Norm { gain, ..*self.norm }, x, self.add.map(|a| &a[i * g..][..g]), out);
        }
    }
}

/// Sum of `f` over `x`, by lanes: vector i goes to accumulator i mod 4.
#[inline(always)]
fn lanes_sum<S: Simd>(s: S, x: &[f32], f: impl Fn(S::F) -> S::F) -> f32 {
    let mut acc = [s.zero(); 4];
    let mut quads = x.chunks_exact(4 * LANES);
    for q in &mut quads {
        for (a, v) in acc.iter_mut().zip(q.chunks_exact(LANES)) {
            *a = *a + f(s.load(v));
        }
    }
    let mut rest = quads.remainder().chunks_exact(LANES);
    for (a, v) in acc.iter_mut().zip(&mut rest) {
        *a = *a + f(s.load(v));
    }
    let total = ((acc[0] + acc[1]) + (acc[2] + acc[3])).sum();
    // `f` of an absent lane need not be 0, so the last few are summed one by one.
    let tail = rest.remainder();
    f(s.load_partial(tail, 0.0)).to_array()[..tail.len()].iter().fold(total, |t, x| t + x)
}

#[inline(always)]
fn group<S: Simd>(s: S, norm: &Norm, x: &[f32], add: Option<&[f32]>, out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = match norm.kind {
        NormKind::Rms | NormKind::Plain => s.zero(),
        NormKind::Layer => s.splat(lanes_sum(s, x, |v| v) / n),
    };
    let var = || lanes_sum(s, x, |v| (v - mean) * (v - mean)) / n;
    let inv = match norm.kind {
        NormKind::Plain => s.splat(1.0),
        NormKind::Rms | NormKind::Layer => s.splat(1.0 / (var() + norm.eps).sqrt()),
    };
    for (i, out) in out.chunks_mut(LANES).enumerate() {
        let at = i * LANES..i * LANES + out.len();
        let full = out.len() == LANES;
        let load =
            |p: &[f32]| if full { s.load(&p[at.clone()]) } else { s.load_partial(&p[at.clone()], 0.0) };
        let mut y = (load(x) - mean) * inv;
        if let Some(gain) = norm.gain {
            y = y * load(gain);
        }
        if let Some(shift) = norm.shift {
            y = y + load(shift);
        }
        if let Some(add) = add {
            y = y + load(add);
        }
        if full { y.store(out) } else { y.store_partial(out) }
    }
}

/// Each block of `x` as long as `like`, brought to its length: `out = x * rms(like) / sqrt(max(mean(x^2), floor))`.
pub(crate) fn rescale(isa: Isa, x: &[f32], like: &[f32], floor: f32, out: &mut [f32]) {
    isa.run(Rescale { x, like, floor, out })
}

struct Rescale<'a> {
    x: &'a [f32],
    like: &'a [f32],
    floor: f32,
    out: &'a mut [f32],
}

impl Kernel for Rescale<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.like.len();
        let mean = |x: &[f32]| lanes_sum(s, x, |v| v * v) / n as f32;
        let length = mean(self.like).sqrt();
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            // `f32::max` drops NaN, but a row that has one keeps it.
            let by = s.splat(length / mean(x).max(self.floor).sqrt());
            for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
                (s.load_partial(x, 0.0) * by).store_partial(out);
            }
        }
    }
}

/// `x = max(x - (mean + by * deviation), 0)` by the row's own mean and deviation.
pub(crate) fn cutoff(isa: Isa, by: f32, x: &mut [f32]) {
    isa.run(Cutoff { by, x })
}

struct Cutoff<'a> {
    by: f32,
    x: &'a mut [f32],
}

impl Kernel for Cutoff<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.x.len() as f32;
        let mean = s.splat(lanes_sum(s, self.x, |v| v) / n);
        let var = lanes_sum(s, self.x, |v| (v - mean) * (v - mean)) / n;
        let cut = mean + s.splat(self.by * var.sqrt());
        for x in self.x.chunks_mut(LANES) {
            // 0 comes first: `max` gives its second argument for NaN.
            s.zero().max(s.load_partial(x, 0.0) - cut).store_partial(x);
        }
    }
}
