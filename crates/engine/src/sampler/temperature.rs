//! Temperature: logits are divided by `t` before the softmax. `t = 0` takes the best token, `t = 1` changes nothing.
//!
//! Entropy-scaled: `t = min + (max - min) (H / ln n)^exponent`, where `H` is the entropy of the softmax over the `n`
//! candidates that are left: a sure model stays sure, an unsure one may explore (METHODS: dynamic temperature).

use super::softmax;
use crate::request::{DynamicTemperature, Sampling};

/// The temperature for this row, whose largest logit is `max`.
pub(crate) fn choose(sampling: &Sampling, row: &[f32], max: f32) -> f32 {
    match sampling.dynamic_temperature {
        Some(d) if sampling.temperature > 0.0 => entropy_scaled(&d, row, max),
        _ => sampling.temperature,
    }
}

fn entropy_scaled(d: &DynamicTemperature, row: &[f32], max: f32) -> f32 {
    let n = row.iter().filter(|l| **l > f32::NEG_INFINITY).count();
    if n < 2 {
        return d.min;
    }
    let z = softmax::sum(row, max, 1.0);
    let entropy = z.ln() - softmax::weighted_sum(row, max) / z;
    let share = (entropy / (n as f64).ln()).clamp(0.0, 1.0) as f32;
    d.min + (d.max - d.min) * share.powf(d.exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: DynamicTemperature = DynamicTemperature { min: 0.25, max: 1.75, exponent: 2.0 };

    fn at(row: &[f32]) -> f32 {
        let s = Sampling { temperature: 1.0, dynamic_temperature: Some(D), ..Sampling::default() };
        choose(&s, row, softmax::scan(row).max)
    }

    #[test]
    fn ends_are_the_bounds() {
        let uniform = vec![3.0f32; 100];
        assert!((at(&uniform) - 1.75).abs() < 1e-5);
        let mut sure = vec![f32::NEG_INFINITY; 100];
        sure[7] = 1.0;
        assert_eq!(at(&sure), 0.25);
        sure[8] = -300.0;
        assert!((at(&sure) - 0.25).abs() < 1e-6);
    }

    #[test]
    fn equals_the_formula() {
        let row = [1.0f32, 2.0, -1.0, 0.5, f32::NEG_INFINITY];
        let z: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
        let p = |l: f32| f64::from(l).exp() / z;
        let h: f64 = row.iter().filter(|l| l.is_finite()).map(|l| -p(*l) * p(*l).ln()).sum();
        let want = 0.25 + 1.5 * (h / 4f64.ln()).powi(2);
        assert!((f64::from(at(&row)) - want).abs() < 1e-6);
    }

    #[test]
    fn zero_stays_greedy() {
        let s = Sampling { temperature: 0.0, dynamic_temperature: Some(D), ..Sampling::default() };
        assert_eq!(choose(&s, &[1.0, 2.0], 2.0), 0.0);
    }
}
