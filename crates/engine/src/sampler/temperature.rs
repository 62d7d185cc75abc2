//! Temperature: logits are divided by `t` before the softmax. `t = 0` takes the best token, `t = 1` changes nothing.
//!
//! Entropy-scaled: `t = min + (max - min) (H / ln n)^exponent`, where `H` is the entropy of the softmax over the `n`
//! candidates that are left: a sure model stays sure, an unsure one may explore (METHODS: dynamic temperature).
//!
//! EDT (Zhang et al. 2024, "EDT: Improving Large Language Models' Generation by Entropy-based Dynamic Temperature Sampling",
//! eq. 2): `t = T0 N^(theta / H)` with `N = 0.8` and `T0` the static one; `theta = 0` leaves `T0`, `H = 0` is greedy.

use super::set::Set;
use crate::sampling::{DynamicTemperature, Sampling};

/// EDT's base.
const EDT_BASE: f64 = 0.8;

/// The temperature for these candidates.
pub(super) fn choose(sampling: &Sampling, set: &Set) -> f32 {
    match sampling.dynamic_temperature {
        _ if sampling.temperature == 0.0 => 0.0,
        Some(d) => entropy_scaled(&d, set),
        None if sampling.edt_theta > 0.0 => {
            let theta = f64::from(sampling.edt_theta);
            (f64::from(sampling.temperature) * EDT_BASE.powf(theta / set.entropy().0)) as f32
        }
        None => sampling.temperature,
    }
}

fn entropy_scaled(d: &DynamicTemperature, set: &Set) -> f32 {
    let n = set.count();
    if n < 2 {
        return d.min;
    }
    let share = (set.entropy().0 / (n as f64).ln()).clamp(0.0, 1.0) as f32;
    d.min + (d.max - d.min) * share.powf(d.exponent)
}

#[cfg(test)]
mod tests {
    use super::super::softmax;
    use super::*;

    const D: DynamicTemperature = DynamicTemperature { min: 0.25, max: 1.75, exponent: 2.0 };

    fn of(s: &Sampling, row: &[f32]) -> f32 {
        choose(s, &Set::new(row, softmax::scan(row).max, &mut Vec::new()))
    }

    fn at(row: &[f32]) -> f32 {
        of(&Sampling { dynamic_temperature: Some(D), ..Sampling::default() }, row)
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
        let edt = Sampling { edt_theta: 0.5, ..Sampling::default() };
        assert_eq!(of(&edt, &sure), 0.0);
    }

    #[test]
    fn equals_the_formulas() {
        let row = [1.0f32, 2.0, -1.0, 0.5, f32::NEG_INFINITY];
        let z: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
        let p = |l: f32| f64::from(l).exp() / z;
        let h: f64 = row.iter().filter(|l| l.is_finite()).map(|l| -p(*l) * p(*l).ln()).sum();
        let want = 0.25 + 1.5 * (h / 4f64.ln()).powi(2);
        assert!((f64::from(at(&row)) - want).abs() < 1e-6);
        let edt = Sampling { temperature: 1.4, edt_theta: 0.7, ..Sampling::default() };
        assert!((f64::from(of(&edt, &row)) - 1.4 * 0.8f64.powf(0.7 / h)).abs() < 1e-6);
    }

    #[test]
    fn zero_stays_greedy() {
        let s = Sampling { temperature: 0.0, dynamic_temperature: Some(D), ..Sampling::default() };
        assert_eq!(of(&s, &[1.0, 2.0]), 0.0);
    }
}
