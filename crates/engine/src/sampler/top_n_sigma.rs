//! Top-n-sigma (Tang et al. 2024, "Top-nsigma: Not All Logits Are You Need", eq. 2): keep `l >= max - n sigma`, where `sigma` is
//! the standard deviation of all logits. What is kept does not depend on the temperature: noise is a bell curve of logits,
//! what the model means lies above it.

use super::set::Set;
use super::softmax;

/// Keeps the logits at most `n` standard deviations below the best; forbidden tokens do not count. 0 keeps all.
pub(super) fn apply(set: &mut Set, n: f32) {
    if n <= 0.0 {
        return;
    }
    let (max, sigma) = match set.listed() {
        None => (set.max(), softmax::moments(set.row(), set.max()).2),
        Some(list) => {
            let count = list.len() as f64;
            let mean = list.iter().map(|c| f64::from(c.logit)).sum::<f64>() / count;
            let squares = list.iter().map(|c| (f64::from(c.logit) - mean).powi(2)).sum::<f64>();
            let max = list.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit));
            (max, (squares / count).sqrt())
        }
    };
    set.gather_logits((f64::from(max) - f64::from(n) * sigma) as f32);
}
