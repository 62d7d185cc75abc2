//! Two rows of logits made one, before the sampler sees it: away from what the model says after another prompt
//! (classifier-free guidance, context-aware decoding), or from what a smaller model says after the same one (contrastive
//! decoding).

use super::check_field;
use crate::request::check_tokens;
use crate::sampler::{checked_max, softmax};
use crate::{Error, Result};

/// A second prompt, and how far to go away from what follows it.
///
/// Classifier-free guidance (Sanchez et al. 2023): `log q = log p(x | negative) + scale (log p(x | prompt) - log p(x |
/// negative))`. Context-aware decoding (Shi et al. 2023), `(1 + a) log p(x | context, question) - a log p(x | question)`, is
/// the same with the question alone as the other prompt and `scale = 1 + a`. A scale of 1 changes nothing. What is reported as
/// a token's log-probability is that of the combined distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Negative {
    /// Token ids of the other prompt; the answer's tokens follow both.
    pub prompt: Vec<u32>,
    /// 1 is off.
    pub scale: f32,
}

impl Negative {
    pub(super) fn check(&self, vocab: usize, context: usize) -> Result<()> {
        let (scale, field) = (self.scale, "guidance.negative_prompt");
        check_field("guidance.scale", scale.into(), (0.0..=20.0).contains(&scale), "0 to 20; 1 is off")?;
        if self.prompt.is_empty() {
            return Err(Error::Field { field, value: "empty".into(), range: "1 token or more" });
        }
        if self.prompt.len() >= context {
            return Err(Error::PromptTooLong { prompt: self.prompt.len(), context });
        }
        check_tokens(&self.prompt, vocab)
    }
}

/// Contrastive decoding against the engine's draft model (Li et al. 2022, in the form of O'Brien and Lewis 2023): of the
/// tokens with `s >= max s + ln alpha`, the score is `(1 + beta) s - beta a`, with the logits `s` of the model and `a` of the
/// amateur.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Amateur {
    /// Tokens that are less likely than this share of the best one cannot come.
    pub alpha: f32,
    /// How far to go; 0 is off.
    pub beta: f32,
}

impl Default for Amateur {
    fn default() -> Amateur {
        Amateur { alpha: 0.1, beta: 0.5 }
    }
}

impl Amateur {
    pub(super) fn check(&self) -> Result<()> {
        let Amateur { alpha, beta } = *self;
        check_field("guidance.contrast.alpha", alpha.into(), (0.0..=1.0).contains(&alpha), "0 (all) to 1")?;
        check_field("guidance.contrast.beta", beta.into(), (0.0..=20.0).contains(&beta), "0 (off) to 20")
    }

    /// Combines the model's row with the amateur's, in place. `step` names the row in errors.
    pub(crate) fn combine(&self, row: &mut [f32], amateur: &[f32], step: usize) -> Result<()> {
        let (most, other) = (checked_max(row, step)?, checked_max(amateur, step)?);
        let floor = most + self.alpha.ln();
        let shift = (self.beta * (most - other)).clamp(-1e30, 1e30);
        for (s, a) in row.iter_mut().zip(amateur) {
            // Relative to the best of each row, so that no difference of two large numbers is lost. What the amateur rules
            // out is no better than what it finds unlikely.
            let a = a.max(other - 100.0);
            *s = if *s >= floor { *s + (self.beta * (*s - a) - shift) } else { f32::NEG_INFINITY };
        }
        Ok(())
    }
}

/// Combines the row after the prompt with that after the negative one, in place: both as log-probabilities.
pub(super) fn guide(scale: f32, row: &mut [f32], negative: &[f32], step: usize) -> Result<()> {
    let lse = |row: &[f32]| checked_max(row, step).map(|max| softmax::log_sum_exp(row, max));
    let (with, without) = (lse(row)? as f32, lse(negative)? as f32);
    for (l, n) in row.iter_mut().zip(negative) {
        let (l_with, l_without) = (*l - with, (*n - without).max(-1e4));
        *l = if l_with == f32::NEG_INFINITY { l_with } else { l_without + scale * (l_with - l_without) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log_softmax(row: &[f32]) -> Vec<f64> {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let z: f64 = row.iter().map(|l| (f64::from(*l) - max).exp()).sum();
        row.iter().map(|l| f64::from(*l) - max - z.ln()).collect()
    }

    /// Of a row of scores that need not be normalised.
    fn softmax_of(row: &[f64]) -> Vec<f64> {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = row.iter().map(|l| (l - max).exp()).collect();
        let z: f64 = e.iter().sum();
        e.iter().map(|e| e / z).collect()
    }

    proptest! {
        #[test]
        fn rows_are_combined_as_the_papers_say(
            rows in prop::collection::vec((-20f32..20.0, -20f32..20.0), 1..40),
            scale in 0f32..4.0, alpha in 0.01f32..1.0, beta in 0f32..2.0,
        ) {
            let (row, other): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let mut got = row.clone();
            guide(scale, &mut got, &other, 0).unwrap();
            let (p, n) = (log_softmax(&row), log_softmax(&other));
            let want: Vec<f64> = p.iter().zip(&n).map(|(p, n)| n + f64::from(scale) * (p - n)).collect();
            let got: Vec<f64> = got.iter().map(|l| f64::from(*l)).collect();
            for (g, w) in softmax_of(&got).iter().zip(softmax_of(&want)) {
                prop_assert!((g - w).abs() < 1e-4, "{got:?} {want:?}");
            }

            let mut got = row.clone();
            Amateur { alpha, beta }.combine(&mut got, &other, 0).unwrap();
            let (b, best) = (f64::from(beta), row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let want: Vec<f64> = row.iter().zip(&other).map(|(s, a)| {
                let kept = *s >= best + alpha.ln();
                if kept { (1.0 + b) * f64::from(*s) - b * f64::from(*a) } else { f64::NEG_INFINITY }
            }).collect();
            let got: Vec<f64> = got.iter().map(|l| f64::from(*l)).collect();
            for (g, w) in softmax_of(&got).iter().zip(softmax_of(&want)) {
                prop_assert!((g - w).abs() < 1e-4, "{got:?} {want:?}");
            }
        }
    }

    #[test]
    fn what_is_no_distribution_is_an_error_and_what_is_ruled_out_stays_out() {
        let mut row = vec![1.0, f32::NEG_INFINITY, 0.5];
        guide(2.0, &mut row, &[0.0, 1.0, f32::NEG_INFINITY], 0).unwrap();
        assert_eq!(row[1], f32::NEG_INFINITY);
        assert!(row[2].is_finite() && row[2] > row[0]);
        assert!(guide(2.0, &mut [0.0, f32::NAN], &[0.0, 0.0], 7).is_err());
        assert!(Amateur::default().combine(&mut [0.0], &[f32::NAN], 7).is_err());
        let mut row = vec![1.0, 1.0];
        Amateur::default().combine(&mut row, &[1.0, f32::NEG_INFINITY], 0).unwrap();
        assert!(row.iter().all(|l| l.is_finite()) && row[1] > row[0]);
    }
}
