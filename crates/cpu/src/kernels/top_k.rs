//! The best of a row of logits and the sum over all of them, without sorting or listing the row: the largest of each group of
//! columns bounds what can be among the best, so that few groups are looked into.

use crate::simd::{F32x16, Kernel, LANES, Simd};
use quarrel_ir::candidates;
use std::cmp::Ordering;

/// Columns whose largest is remembered.
const GROUP: usize = 128;

/// Columns that are added up in f32.
const BLOCK: usize = 1024;

/// What a thread needs for a row.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The largest of each group.
    largest: Vec<f32>,
    /// The same, in no order.
    ranked: Vec<f32>,
    best: Vec<(u32, f32)>,
}

/// `out` as [`candidates`] has it, of the logits `x`.
pub(crate) struct TopK<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) out: &'a mut [f32],
    pub(crate) scratch: &'a mut Scratch,
}

impl Kernel for TopK<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TopK { x, out, scratch } = self;
        let k = candidates::count(out.len() as u32) as usize;
        out.fill(0.0);
        let max = largest(s, x, &mut scratch.largest);
        let sum = sum(s, x, max);
        // A NaN among the terms is one of the row, or of an infinite logit.
        let nan = if sum.is_nan() { x.iter().filter(|l| l.is_nan()).count() } else { 0 };
        best(s, x, k, scratch);
        candidates::write_head(out, nan, max, sum as f32, scratch.best.len());
        candidates::write_lists(out, scratch.best.iter().copied());
    }
}

/// The largest logit, and of each group; NaNs are passed over.
#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32], groups: &mut Vec<f32>) -> f32 {
    let none = f32::NEG_INFINITY;
    groups.clear();
    for group in x.chunks(GROUP) {
        let mut most = s.splat(none);
        let whole = group.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            most = s.load(&group[at..]).max(most); // of a NaN and a number the second
        }
        groups.push(s.load_partial(&group[whole..], none).max(most).largest());
    }
    groups.iter().fold(none, |m, g| m.max(*g))
}

/// The sum of `e^(l - max)`: the order depends on the row's length alone.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], max: f32) -> f64 {
    let (shift, mut total) = (s.splat(max), 0.0);
    for block in x.chunks(BLOCK) {
        let mut sum = s.zero();
        let whole = block.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            sum = sum + (s.load(&block[at..]) - shift).exp();
        }
        if whole < block.len() {
            sum = sum + (s.load_partial(&block[whole..], f32::NEG_INFINITY) - shift).exp();
        }
        total += f64::from(sum.sum());
    }
    total
}

fn best_first(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// The `k` best into `scratch.best`, in order. Groups have their `k` best among them, so what is less than the `k`-th largest of
/// the groups is not among the best.
#[inline(always)]
fn best<S: Simd>(s: S, x: &[f32], k: usize, scratch: &mut Scratch) {
    let Scratch { largest, ranked, best } = scratch;
    best.clear();
    let mut floor = f32::MIN; // -inf is no candidate
    if k < largest.len() {
        ranked.clone_from(largest);
        ranked.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        floor = floor.max(ranked[k - 1]);
    }
    for (g, group) in x.chunks(GROUP).enumerate().filter(|(g, _)| largest[*g] >= floor) {
        for (i, lanes) in group.chunks(LANES).enumerate() {
            if s.load_partial(lanes, f32::NEG_INFINITY).largest() < floor && !lanes.iter().any(|l| l.is_nan())
            {
                continue;
            }
            let first = g * GROUP + i * LANES;
            let found = lanes.iter().enumerate().filter(|(_, l)| **l >= floor);
            best.extend(found.map(|(j, l)| ((first + j) as u32, *l)));
        }
    }
    if best.len() > k {
        best.select_nth_unstable_by(k - 1, best_first);
        best.truncate(k);
    }
    best.sort_unstable_by(best_first);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;
    use quarrel_ir::Candidates;

    fn check(isa: Isa, x: &[f32], k: u32) {
        let mut want = vec![0.0; candidates::columns(k) as usize];
        let (mut got, mut scratch) = (vec![f32::NAN; want.len()], Scratch::default());
        candidates::choose(x, &mut want);
        isa.run(TopK { x, out: &mut got, scratch: &mut scratch });
        let (w, g) = (Candidates::of(&want), Candidates::of(&got));
        let what = format!("{isa}, {k} of {}", x.len());
        assert_eq!((g.nan, g.max), (w.nan, w.max), "{what}");
        assert_eq!(g.iter().collect::<Vec<_>>(), w.iter().collect::<Vec<_>>(), "{what}");
        if w.nan == 0 && w.max.is_finite() {
            assert!((g.sum - w.sum).abs() <= 1e-6 * w.sum, "{what}: {} is not {}", g.sum, w.sum);
        }
    }

    #[test]
    fn equals_a_sort_on_every_instruction_set() {
        for isa in Isa::available() {
            for n in [1usize, 2, 15, 16, 17, 127, 128, 129, 1000, 5000, 49_152] {
                let mut x: Vec<f32> = (0..n).map(|i| ((i * 7919 % 10_007) as f32).sin() * 9.0).collect();
                for k in [1, 2, 64] {
                    check(isa, &x, k.min(n as u32));
                }
                // Ties within and across groups, zeros of both signs, nothing, infinities and NaN.
                x.iter_mut()
                    .enumerate()
                    .for_each(|(i, l)| *l = ((i % 7) as f32 - 3.0) * 0.0 + (i % 3) as f32);
                check(isa, &x, 64.min(n as u32));
                x[n / 2] = f32::NEG_INFINITY;
                check(isa, &x, 5.min(n as u32));
                x[n - 1] = f32::NAN;
                check(isa, &x, 5.min(n as u32));
                x[0] = f32::INFINITY;
                check(isa, &x, 5.min(n as u32));
                check(isa, &vec![f32::NEG_INFINITY; n], 3.min(n as u32));
            }
        }
    }
}
