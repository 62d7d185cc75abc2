//! DoLa (Chuang et al. 2024, "Decoding by Contrasting Layers Improves Factuality in Large Language Models"): away from what the
//! model would say after some of its layers. Of the layers that the engine was loaded with exits after, each step takes the one
//! whose distribution is farthest from the last one's.

use super::check_field;
use crate::sampler::{checked_max, softmax};
use crate::{Error, Result};

/// Of the tokens with `q_N(x) >= alpha max q_N`, the score is `log q_N(x) - beta log q_M(x)`, where `N` is the last layer and
/// `M` the exit with the largest Jensen-Shannon divergence from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dola {
    /// Tokens that are less likely than this share of the best one cannot come.
    pub alpha: f32,
    /// How far to go; 1 is the paper's, 0 is off.
    pub beta: f32,
}

impl Default for Dola {
    fn default() -> Dola {
        Dola { alpha: 0.1, beta: 1.0 }
    }
}

/// What is less likely than this in both distributions adds nothing to their divergence: together less than `30 V e^-30`.
const NEGLIGIBLE: f32 = 30.0;

impl Dola {
    pub(super) fn check(&self) -> Result<()> {
        let Dola { alpha, beta } = *self;
        check_field("guidance.dola.alpha", alpha.into(), (0.0..=1.0).contains(&alpha), "0 (all) to 1")?;
        check_field("guidance.dola.beta", beta.into(), (0.0..=20.0).contains(&beta), "0 (off) to 20")
    }

    /// Combines the model's row with one of its exits', all of the same length, one after another; gives which. `step` names
    /// the row in errors.
    pub(crate) fn combine(&self, row: &mut [f32], exits: &[f32], step: usize) -> Result<usize> {
        let most = checked_max(row, step)?;
        let whole = (most, softmax::log_sum_exp(row, most));
        let mut farthest: Option<(f64, usize, f32)> = None;
        for (e, exit) in exits.chunks_exact(row.len()).enumerate() {
            let other = checked_max(exit, step)?;
            let divergence = jensen_shannon((row, whole), (exit, (other, softmax::log_sum_exp(exit, other))));
            if farthest.is_none_or(|f| divergence > f.0) {
                farthest = Some((divergence, e, other));
            }
        }
        let Some((_, chosen, other)) = farthest else {
            return Err(Error::Guide { step, why: "the engine has no exits to contrast with".into() });
        };
        let (floor, n) = (most + self.alpha.ln(), row.len());
        for (s, a) in row.iter_mut().zip(&exits[chosen * n..]) {
            // Relative to the best of each, as in contrastive decoding; what the exit rules out is no better than unlikely.
            let a = (a - other).max(-100.0);
            *s = if *s >= floor { (*s - most) - self.beta * a } else { f32::NEG_INFINITY };
        }
        Ok(chosen)
    }
}

/// The divergence of two rows of logits, each with its largest and its log-sum-exp: `1/2 KL(p || m) + 1/2 KL(q || m)` for
/// `m = (p + q) / 2`, in nats.
fn jensen_shannon((row, p): (&[f32], (f32, f64)), (exit, q): (&[f32], (f32, f64))) -> f64 {
    let mut sum = 0.0;
    for (s, a) in row.iter().zip(exit) {
        if *s < p.0 - NEGLIGIBLE && *a < q.0 - NEGLIGIBLE {
            continue;
        }
        let (log_p, log_q) = (f64::from(*s) - p.1, f64::from(*a) - q.1);
        let (p, q) = (log_p.exp(), log_q.exp());
        let m = 0.5 * (p + q);
        let part = |x: f64, log: f64| if x > 0.0 { x * log } else { 0.0 };
        sum += 0.5 * (part(p, log_p) + part(q, log_q)) - if m > 0.0 { m * m.ln() } else { 0.0 };
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn softmax_of(row: &[f32]) -> Vec<f64> {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let e: Vec<f64> = row.iter().map(|l| f64::from(l - max).exp()).collect();
        let z: f64 = e.iter().sum();
        e.iter().map(|e| e / z).collect()
    }

    /// The definition, written down.
    fn divergence(p: &[f64], q: &[f64]) -> f64 {
        let kl = |a: &[f64], m: &[f64]| -> f64 { a.iter().zip(m).map(|(a, m)| a * (a / m).ln()).sum() };
        let m: Vec<f64> = p.iter().zip(q).map(|(p, q)| 0.5 * (p + q)).collect();
        0.5 * kl(p, &m) + 0.5 * kl(q, &m)
    }

    proptest! {
        #[test]
        fn the_farthest_exit_is_taken_off(
            rows in prop::collection::vec(prop::collection::vec(-12f32..12.0, 9), 2..6),
            alpha in 0.01f32..0.9, beta in 0.1f32..2.0,
        ) {
            let (row, exits) = (&rows[0], &rows[1..]);
            let p = softmax_of(row);
            let each: Vec<f64> = exits.iter().map(|e| divergence(&p, &softmax_of(e))).collect();
            let mut got = row.clone();
            let chosen = Dola { alpha, beta }.combine(&mut got, &exits.concat(), 0).unwrap();
            prop_assert!(each.iter().all(|d| *d <= each[chosen] + 1e-6), "{chosen} of {each:?}");
            let q = softmax_of(&exits[chosen]);
            let best = p.iter().copied().fold(0.0, f64::max);
            let score = |i: usize| p[i].ln() - f64::from(beta) * q[i].ln();
            let first = (0..9).find(|i| got[*i].is_finite()).unwrap();
            for i in 0..9 {
                let margin = p[i] / (f64::from(alpha) * best);
                if (margin - 1.0).abs() > 1e-4 {
                    prop_assert_eq!(got[i].is_finite(), margin > 1.0);
                }
                if got[i].is_finite() {
                    let want = score(i) - score(first);
                    prop_assert!((f64::from(got[i] - got[first]) - want).abs() < 1e-3, "{got:?}");
                }
            }
        }
    }

    #[test]
    fn equal_rows_do_not_diverge_and_disjoint_ones_by_ln_two() {
        let of = |row: &[f32]| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            (max, softmax::log_sum_exp(row, max))
        };
        let js = |a: &[f32], b: &[f32]| jensen_shannon((a, of(a)), (b, of(b)));
        assert!(js(&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0]).abs() < 1e-12);
        assert!((js(&[90.0, 0.0], &[0.0, 90.0]) - 2f64.ln()).abs() < 1e-9);
        assert!((js(&[0.0, f32::NEG_INFINITY], &[f32::NEG_INFINITY, 0.0]) - 2f64.ln()).abs() < 1e-12);
        assert!(Dola::default().combine(&mut [0.0, 1.0], &[], 3).is_err());
        assert!(Dola::default().combine(&mut [0.0, 1.0], &[f32::NAN, 0.0], 3).is_err());
    }
}
