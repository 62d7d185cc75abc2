//! Confidence-guided rejection: a segment whose mean confidence is outside a band is drawn again, a few times, and the best
//! try is kept. The confidence of a step is `C_t = -(1/k) sum of log p over the k best tokens` (Fu et al. 2025, "Deep Think
//! with Confidence"), which is high where one token has nearly all the mass. The band has two sides: below it the model
//! guesses, above it the text is likely a loop.

use super::check_field;
use crate::Result;
use crate::request::LOGPROBS_MAX;

/// When a segment is drawn again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// Times that a segment may be drawn again; 0 is off, and the answer is that of plain drawing.
    pub tries: u32,
    /// Tokens of a segment, 2 to [`super::HOLD_MAX`].
    pub window: u32,
    /// Tokens whose log-probabilities are averaged, the `k` of the formula.
    pub best: u8,
    /// Least mean confidence of a segment, in nats.
    pub min: f32,
    /// Largest.
    pub max: f32,
}

impl Default for Confidence {
    /// Off. The band is wide open: what is usual depends on the model and the text.
    fn default() -> Confidence {
        Confidence { tries: 0, window: 16, best: 20, min: 0.0, max: f32::INFINITY }
    }
}

impl Confidence {
    pub(super) fn check(&self) -> Result<()> {
        let Confidence { tries, window, best, min, max } = *self;
        check_field("guidance.confidence.tries", tries.into(), tries <= 32, "0 (off) to 32")?;
        check_field(
            "guidance.confidence.window",
            window.into(),
            (2..=128).contains(&window),
            "2 to 128 tokens",
        )?;
        check_field(
            "guidance.confidence.best",
            best.into(),
            (1..=LOGPROBS_MAX).contains(&best),
            "1 to 64 tokens",
        )?;
        check_field("guidance.confidence.min", min.into(), !min.is_nan(), "a number of nats")?;
        check_field("guidance.confidence.max", max.into(), max >= min, "min or more nats")
    }

    /// How far a segment of such confidences is outside the band, 0 within. A rest shorter than half a window says little.
    pub(super) fn badness(&self, each: &[f64]) -> f64 {
        if each.is_empty() || each.len() < self.window.div_ceil(2) as usize {
            return 0.0;
        }
        let mean = each.iter().sum::<f64>() / each.len() as f64;
        (f64::from(self.min) - mean).max(mean - f64::from(self.max)).max(0.0)
    }
}

/// The confidence of a step, from the log-probabilities of its best tokens, best first; `k` of them at most.
pub(super) fn of(top: &[(u32, f32)], k: usize) -> f64 {
    // A token that is out of the question says nothing of how sure the model is of the others.
    let finite = top.iter().take(k).map(|t| f64::from(t.1)).filter(|l| l.is_finite());
    let (n, sum) = finite.fold((0, 0.0), |(n, sum), l| (n + 1, sum + l));
    if n == 0 { 0.0 } else { -sum / f64::from(n) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_is_the_papers() {
        let even: Vec<(u32, f32)> = (0..4).map(|i| (i, 0.25f32.ln())).collect();
        assert!((of(&even, 4) - 4f64.ln()).abs() < 1e-6);
        let sure = [(0, 0.97f32.ln()), (1, 0.01f32.ln()), (2, 0.01f32.ln()), (3, f32::NEG_INFINITY)];
        assert!((of(&sure, 4) - (-(0.97f64.ln() + 2.0 * 0.01f64.ln()) / 3.0)).abs() < 1e-6);
        assert!((of(&sure, 1) + 0.97f64.ln()).abs() < 1e-6);
        assert_eq!(of(&[], 4), 0.0);
    }

    #[test]
    fn the_band_has_two_sides() {
        let c = Confidence { window: 4, min: 2.0, max: 5.0, tries: 1, best: 4 };
        assert_eq!(c.badness(&[2.0, 3.0, 4.0, 5.0]), 0.0);
        assert_eq!(c.badness(&[1.0, 1.0, 1.0, 3.0]), 0.5);
        assert_eq!(c.badness(&[6.0, 8.0]), 2.0);
        assert_eq!(c.badness(&[6.0]), 0.0);
    }
}
