//! Medians, spreads and percentiles of repeated measurements.

use serde::{Deserialize, Serialize};

/// A quantity that was measured several times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of the values in any order; `None` of none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let sorted = sorted(values);
        let (first, last) = (sorted.first()?, sorted.last()?);
        Some(Spread { median: percentile(values, 50.0)?, min: *first, max: *last })
    }

    /// Half of the distance from the least to the largest, as a share of the median.
    pub fn half_width(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median.abs() }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which `percent` of the values lie, between neighbours in proportion; `None` of no values.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let sorted = sorted(values);
    let at = (sorted.len().checked_sub(1)?) as f64 * percent / 100.0;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_of_known_numbers() {
        let s = |median, min, max| Some(Spread { median, min, max });
        for (values, want) in [
            (&[][..], None),
            (&[7.0], s(7.0, 7.0, 7.0)),
            (&[3.0, 1.0], s(2.0, 1.0, 3.0)),
            (&[9.0, 1.0, 4.0], s(4.0, 1.0, 9.0)),
            (&[4.0, 3.0, 2.0, 1.0], s(2.5, 1.0, 4.0)),
        ] {
            assert_eq!(Spread::of(values), want, "{values:?}");
        }
        let hundred: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        for p in [0.0, 1.0, 50.0, 99.0, 100.0] {
            assert_eq!(percentile(&hundred, p), Some(p));
        }
        assert_eq!(percentile(&[1.0, 2.0], 25.0), Some(1.25));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn the_spread_is_half_of_the_range() {
        assert_eq!(Spread::of(&[90.0, 100.0, 130.0]).unwrap().half_width(), 0.2);
        assert_eq!(Spread::of(&[5.0]).unwrap().half_width(), 0.0);
        assert_eq!(Spread::of(&[0.0]).unwrap().half_width(), 0.0);
    }
}
