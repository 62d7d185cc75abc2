//! A mean over prompts and how far it can be trusted.

use serde::Serialize;

/// A mean with the interval that holds 95% of its bootstrap replicates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// 2.5th and 97.5th percentile.
    pub low: f64,
    /// See `low`.
    pub high: f64,
}

/// How often the mean is taken again.
const REPLICATES: usize = 2000;

impl Interval {
    /// The mean of `values`, resampled with replacement (Efron 1979) by a fixed sequence of random numbers, so that equal values
    /// give equal intervals. Values that are not finite are an error of the caller's; of no values it is NaN.
    pub fn of(values: &[f64]) -> Interval {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        if n < 2 {
            return Interval { mean, low: mean, high: mean };
        }
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut draw = || {
            // SplitMix64 (Steele et al. 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            values[((z ^ (z >> 31)) % n as u64) as usize]
        };
        let mut means: Vec<f64> =
            (0..REPLICATES).map(|_| (0..n).map(|_| draw()).sum::<f64>() / n as f64).collect();
        means.sort_by(f64::total_cmp);
        let at = |q: f64| means[((REPLICATES - 1) as f64 * q).round() as usize];
        Interval { mean, low: at(0.025), high: at(0.975) }
    }

    /// Whether the other one's mean is outside this one's interval, and this one's outside the other's.
    pub fn differs(&self, other: &Interval) -> bool {
        let outside = |a: &Interval, b: &Interval| b.mean < a.low || b.mean > a.high;
        outside(self, other) && outside(other, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_about_two_standard_errors() {
        let values: Vec<f64> = (0..400).map(|i| ((i * 7919) % 400) as f64 / 400.0).collect();
        let i = Interval::of(&values);
        // Uniform on 0..1: the standard error is 0.289 / 20.
        assert!((i.mean - 0.49875).abs() < 1e-9);
        assert!((i.high - i.low - 4.0 * 0.0144).abs() < 0.006, "{i:?}");
        assert_eq!(i, Interval::of(&values), "no chance in it");
        assert_eq!(Interval::of(&[2.0]), Interval { mean: 2.0, low: 2.0, high: 2.0 });
    }

    #[test]
    fn means_differ_when_neither_interval_holds_the_other() {
        let i = |mean, half| Interval { mean, low: mean - half, high: mean + half };
        assert!(i(1.0, 0.2).differs(&i(2.0, 0.5)));
        assert!(!i(1.0, 0.2).differs(&i(1.3, 0.5)));
    }
}
