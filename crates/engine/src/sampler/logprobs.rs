//! Log-probabilities of the model itself: the log-softmax of the raw row, before bias, penalties and truncation; and how
//! certain the model is.

use quarrel_ir::Candidates;

use super::{Candidate, best_first, softmax, top_k};

/// Writes the `n` best tokens of the row with their log-probabilities into `out`, best first. `lse` is the row's log-sum-exp.
pub(crate) fn top(row: &[f32], n: usize, lse: f64, scratch: &mut Vec<Candidate>, out: &mut Vec<(u32, f32)>) {
    out.clear();
    if n > 0 {
        top_k::select(row, n, scratch);
        scratch.sort_unstable_by(best_first);
        out.extend(scratch.iter().map(|c| (c.id, (f64::from(c.logit) - lse) as f32)));
    }
}

/// Log-sum-exp of the row by the fast exponential: within 1e-6 of the exact one.
pub(crate) fn log_sum_exp(row: &[f32], max: f32) -> f64 {
    f64::from(max) + softmax::sum(row, max, 1.0).ln()
}

/// The same of a row that a device has looked at.
pub(crate) fn log_sum_exp_of(best: &Candidates) -> f64 {
    f64::from(best.max) + f64::from(best.sum).ln()
}

/// Self-certainty (Kang et al. 2025, eq. 6): `-(1/V) sum_j ln(V p_j)`, the divergence of the uniform distribution over the `V`
/// tokens that are not forbidden from the model's. With `ln p = l - lse` it needs their mean alone.
pub(crate) fn certainty(row: &[f32], max: f32, lse: f64) -> f32 {
    let (n, mean, _) = softmax::moments(row, max);
    (lse - mean - (n as f64).ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_a_scalar_log_softmax() {
        let row: Vec<f32> = (0..1000).map(|i| ((i * 7919 % 1009) as f32).sin() * 9.0).collect();
        let max = softmax::scan(&row).max;
        let lse = log_sum_exp(&row, max);
        let exact = row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        assert!((lse - exact).abs() < 1e-6);
        let v = row.len() as f64;
        let want = -row.iter().map(|l| (v * (f64::from(*l) - exact).exp()).ln()).sum::<f64>() / v;
        assert!((f64::from(certainty(&row, max, lse)) - want).abs() < 1e-5);
        let (mut scratch, mut got) = (Vec::new(), Vec::new());
        top(&row, 5, lse, &mut scratch, &mut got);
        let mut want: Vec<(u32, f32)> =
            (0..).zip(&row).map(|(i, l)| (i, (f64::from(*l) - exact) as f32)).collect();
        want.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (g, w) in got.iter().zip(&want) {
            assert!(g.0 == w.0 && (g.1 - w.1).abs() < 1e-6, "{g:?} {w:?}");
        }
        assert_eq!(got.len(), 5);
    }
}
