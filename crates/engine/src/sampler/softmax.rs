//! Exponentials over a row of logits: the pass that every step pays for a vocabulary of up to 262k entries.

/// What one look at a row of logits says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scan {
    /// The largest logit; `-inf` if there is none.
    pub(crate) max: f32,
    /// Entries that are no number.
    pub(crate) nan: usize,
}

const LANES: usize = 8;
/// Entries that are mapped at once.
const BLOCK: usize = 256;

/// Largest value and number of NaNs.
pub(crate) fn scan(row: &[f32]) -> Scan {
    let (mut max, mut nan) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
    let (chunks, tail) = row.as_chunks::<LANES>();
    for c in chunks {
        for i in 0..LANES {
            max[i] = if c[i] > max[i] { c[i] } else { max[i] };
            nan[i] += u32::from(c[i].is_nan());
        }
    }
    let max = max.iter().chain(tail).fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    Scan { max, nan: nan.iter().sum::<u32>() as usize + tail.iter().filter(|x| x.is_nan()).count() }
}

/// The lowest id of the largest logit.
pub(crate) fn argmax(row: &[f32], max: f32) -> u32 {
    row.iter().position(|x| *x == max).expect("max is taken from the row") as u32
}

/// `e^x` for `x <= 0`, within 2e-7 relative; 0 below -87. Cephes' `expf` without branches, so that a loop over it becomes
/// vector code, and without `libm`, so that every machine gets the same bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let t = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut y = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        y = y * r + c;
    }
    let y = y * r * r + r + 1.0;
    let scale = f32::from_bits(t.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { y * scale }
}

/// `Z`, the sum of `e^((l - max) / t)` over the row, within 1e-6 relative.
pub(crate) fn sum(row: &[f32], max: f32, t: f32) -> f64 {
    let inverse = 1.0 / t;
    fold(row, |l| exp((l - max) * inverse))
}

/// `Z` and the sum of `e^x x` over the row, where `x = (l - max) / t`: what an entropy needs.
pub(crate) fn entropy_sums(row: &[f32], max: f32, t: f32) -> (f64, f64) {
    let inverse = 1.0 / t;
    let (mut plain, mut weighted) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    let (mut z, mut sum) = (0.0, 0.0);
    for block in row.chunks(BLOCK) {
        let (plain, weighted) = (&mut plain[..block.len()], &mut weighted[..block.len()]);
        for ((p, w), l) in plain.iter_mut().zip(weighted.iter_mut()).zip(block) {
            let x = (l - max) * inverse;
            *p = exp(x);
            // Below -87 the product is nothing, and -inf must not become NaN.
            *w = *p * if x < -87.0 { 0.0 } else { x };
        }
        z += lanes(plain);
        sum += lanes(weighted);
    }
    (z, sum)
}

/// The place in the row up to which the weights `e^((l - max) / t)` add up to more than `mass`, without those at the places `seen`, in
/// ascending order, and the weight there; the last one with a weight, if they do not add up to that.
pub(crate) fn find(row: &[f32], max: f32, t: f32, mass: f64, mut seen: &[u32]) -> Option<(usize, f32)> {
    let inverse = 1.0 / t;
    let mut weights = [0.0f32; BLOCK];
    let (mut left, mut last) = (mass, None);
    for (start, block) in (0..).step_by(BLOCK).zip(row.chunks(BLOCK)) {
        let weights = &mut weights[..block.len()];
        weights.iter_mut().zip(block).for_each(|(w, l)| *w = exp((l - max) * inverse));
        while let Some((place, others)) =
            seen.split_first().filter(|s| (*s.0 as usize) < start + weights.len())
        {
            weights[*place as usize - start] = 0.0;
            seen = others;
        }
        let all = lanes(weights);
        if all > 0.0 && left < all {
            for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                last = Some((start + i, *w));
                left -= f64::from(*w);
                if left < 0.0 {
                    break;
                }
            }
            return last; // rounding may leave a trace
        }
        if let Some((i, w)) = weights.iter().enumerate().rfind(|(_, w)| **w > 0.0) {
            last = Some((start + i, *w));
        }
        left -= all;
    }
    last
}

/// Number of logits that are not `-inf`, their mean, and their standard deviation as of a whole population.
pub(crate) fn moments(row: &[f32], max: f32) -> (usize, f64, f64) {
    let finite = |l: f32| l > f32::NEG_INFINITY;
    let n = fold(row, |l| f32::from(u8::from(finite(l))));
    let mean = fold(row, |l| if finite(l) { l - max } else { 0.0 }) / n;
    let centre = mean as f32;
    let squares = fold(row, |l| if finite(l) { (l - max - centre) * (l - max - centre) } else { 0.0 });
    (n as usize, f64::from(max) + mean, (squares / n).sqrt())
}

/// Adds up `f`: blocks in f32 lanes, their totals in f64. Mapping a block before adding it is what lets the compiler use
/// vectors: four times as fast as one loop. The order depends on the row's length alone.
#[inline(always)]
fn fold(row: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut mapped = [0.0f32; BLOCK];
    let mut total = 0.0;
    for block in row.chunks(BLOCK) {
        let mapped = &mut mapped[..block.len()];
        mapped.iter_mut().zip(block).for_each(|(m, l)| *m = f(*l));
        total += lanes(mapped);
    }
    total
}

#[inline(always)]
fn lanes(block: &[f32]) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = block.as_chunks::<LANES>();
    for c in chunks {
        for i in 0..LANES {
            lanes[i] += c[i];
        }
    }
    lanes.iter().chain(tail).map(|x| f64::from(*x)).sum::<f64>()
}

/// `ln sum e^l` with libm's f64 exponential, for scores that are compared with other programs.
pub(crate) fn log_sum_exp(row: &[f32], max: f32) -> f64 {
    let max = f64::from(max);
    max + row.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_2e7_and_exact_at_zero() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(f32::NEG_INFINITY), exp(-87.1), exp(-1e30)), (0.0, 0.0, 0.0));
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 2e-7 * want, "exp({x})");
        }
    }

    #[test]
    fn sums_equal_the_scalar_definition() {
        for n in [1, 7, 8, 9, 1000] {
            let mut row: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            row[n / 2] = if n > 1 { f32::NEG_INFINITY } else { 3.0 };
            let Scan { max, nan } = scan(&row);
            assert_eq!(nan, 0);
            assert_eq!(max, row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            for t in [0.5f32, 1.0, 2.0] {
                let z: f64 = row.iter().map(|l| (f64::from(l - max) / f64::from(t)).exp()).sum();
                assert!((sum(&row, max, t) - z).abs() < 1e-6 * z);
            }
            let x = || row.iter().map(|l| f64::from(l - max)).filter(|x| x.is_finite());
            let want: f64 = x().map(|x| x * x.exp()).sum();
            assert!((entropy_sums(&row, max, 1.0).1 - want).abs() < 1e-6 * want.abs().max(1.0));
            assert_eq!(entropy_sums(&row, max, 0.7).0, sum(&row, max, 0.7));
            // The place that a cumulative sum finds.
            let weights: Vec<f64> = row.iter().map(|l| f64::from(exp((l - max) / 0.7))).collect();
            for share in [0.05, 0.2, 0.77] {
                let mut left = share * sum(&row, max, 0.7);
                let passed = weights.iter().position(|w| {
                    left -= w;
                    left < 0.0
                });
                let want = passed.unwrap();
                let got = find(&row, max, 0.7, share * sum(&row, max, 0.7), &[]).unwrap();
                assert_eq!((got.0, f64::from(got.1)), (want, weights[want]), "{n} {share}");
            }
            assert!(find(&row, max, 0.7, 2.0 * sum(&row, max, 0.7), &[]).unwrap().1 > 0.0);
            let best = argmax(&row, max);
            let second = find(&row, max, 0.7, 0.0, &[best]).map(|f| f.0 as u32);
            assert_eq!(second, (0..n as u32).find(|i| *i != best && weights[*i as usize] > 0.0), "{n}");
            let finite: Vec<f64> = row.iter().filter(|l| l.is_finite()).map(|l| f64::from(*l)).collect();
            let mean = finite.iter().sum::<f64>() / finite.len() as f64;
            let variance = finite.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / finite.len() as f64;
            let (count, m, sd) = moments(&row, max);
            assert_eq!(count, finite.len());
            assert!((m - mean).abs() < 1e-5 && (sd - variance.sqrt()).abs() < 1e-5);
            let z1: f64 = row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&row, max) - z1).abs() < 1e-12);
        }
    }

    #[test]
    fn scan_counts_nans_anywhere() {
        let mut row = vec![1.0f32; 19];
        row[3] = f32::NAN;
        row[18] = f32::NAN;
        row[17] = 2.0;
        assert_eq!(scan(&row), Scan { max: 2.0, nan: 2 });
        assert_eq!(argmax(&[1.0, 3.0, 3.0], 3.0), 1);
    }
}
