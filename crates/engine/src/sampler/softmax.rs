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

/// `Z = sum of e^((l - max) / t)` over the row, and the sum of `e^((l - max)/t) (l - max)/t`, both in f64.
pub(crate) fn sums(row: &[f32], max: f32, t: f32) -> (f64, f64) {
    let inverse = 1.0 / t;
    let (mut z, mut zx) = ([0.0f64; LANES], [0.0f64; LANES]);
    let (chunks, tail) = row.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..tail.len()].copy_from_slice(tail);
    for c in chunks.iter().chain([&last]) {
        for i in 0..LANES {
            let x = (c[i] - max) * inverse;
            let e = exp(x);
            z[i] += f64::from(e);
            // Below -87 the product is nothing, and -inf must not become NaN.
            zx[i] += f64::from(e * if x < -87.0 { 0.0 } else { x });
        }
    }
    (z.iter().sum(), zx.iter().sum())
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
                let x = || row.iter().map(|l| f64::from(l - max) / f64::from(t));
                let z: f64 = x().map(f64::exp).sum();
                let zx: f64 = x().filter(|x| x.is_finite()).map(|x| x * x.exp()).sum();
                let got = sums(&row, max, t);
                assert!((got.0 - z).abs() < 1e-6 * z && (got.1 - zx).abs() < 1e-6 * z, "{got:?} {z} {zx}");
            }
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
