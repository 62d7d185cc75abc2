//! The flags of guidance: what steers an answer beside the sampler.

use clap::{ArgAction, Args};
use quarrel_engine::{Amateur, Confidence, Repetition};
use quarrel_runtime::GuideOptions;

use super::at_least_zero;

/// A number, `0.5`, or infinity as `inf`, on both sides of a colon; either may be left out.
fn band(text: &str) -> Result<(f32, f32), String> {
    let wrong = || format!("{text:?} is not MIN:MAX, such as 4.5:8, 4.5: or :8");
    let (min, max) = text.split_once(':').ok_or_else(wrong)?;
    let side = |text: &str, open: f32| match text {
        "" => Ok(open),
        _ => text.parse::<f32>().ok().filter(|n| !n.is_nan()).ok_or_else(wrong),
    };
    Ok((side(min, 0.0)?, side(max, f32::INFINITY)?))
}

/// What steers an answer.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct GuideArgs {
    /// A text that the answer does not contain, in any case of its letters; tokens that made it are taken back (may be given several times)
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Guidance")]
    ban: Vec<String>,
    /// A regular expression that nothing in the answer matches (may be given several times)
    #[arg(long, value_name = "REGEX", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Guidance")]
    ban_regex: Vec<String>,
    /// End an answer that repeats the same tokens N times in a row, and 96 tokens at least [default: off; without N: 5]
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "5", value_parser = clap::value_parser!(u32).range(2..=1000), help_heading = "Guidance")]
    stop_loops: Option<u32>,
    /// Draw a segment again, up to N times, whose confidence is outside --confidence; the best try is kept [default: 4 with --confidence]
    #[arg(long, value_name = "N", requires = "confidence", value_parser = clap::value_parser!(u32).range(0..=32), help_heading = "Guidance")]
    confidence_tries: Option<u32>,
    /// Band of the mean confidence of a segment, in nats: -1/20 of the sum of the 20 best log-probabilities
    #[arg(long, value_name = "MIN:MAX", value_parser = band, help_heading = "Guidance")]
    confidence: Option<(f32, f32)>,
    /// Tokens of a segment [default: 16]
    #[arg(long, value_name = "N", requires = "confidence", value_parser = clap::value_parser!(u32).range(2..=128), help_heading = "Guidance")]
    confidence_window: Option<u32>,
    /// Draw a sentence again that is hardly likelier in its context than alone: less than X nats a token (conditional PMI)
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        conflicts_with = "confidence",
        help_heading = "Guidance"
    )]
    coherence: Option<f32>,
    /// How often [default: 2 with --coherence]
    #[arg(long, value_name = "N", requires = "coherence", value_parser = clap::value_parser!(u32).range(0..=32), help_heading = "Guidance")]
    coherence_tries: Option<u32>,
    /// Away from the answer to this prompt: it takes the place of the prompt, or of the last message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Guidance")]
    pub(crate) negative_prompt: Option<String>,
    /// How far; 1 is not at all [default: 1.5]
    #[arg(long, value_name = "X", requires = "negative_prompt", value_parser = at_least_zero, help_heading = "Guidance")]
    guidance_scale: Option<f32>,
    /// Away from what the --draft model says, or the --exit-layer (contrastive decoding), by this much [default: off; without X: 0.5]
    #[arg(long, value_name = "X", num_args = 0..=1, default_missing_value = "0.5", value_parser = at_least_zero, help_heading = "Guidance")]
    contrast: Option<f32>,
    /// With --contrast: the model's own first N layers, with its head after them, in the place of a draft model (DoLa with one layer)
    #[arg(long, value_name = "N", requires = "contrast", conflicts_with_all = ["draft", "memory_budget"], value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Guidance")]
    pub(crate) exit_layer: Option<u32>,
    /// With --contrast: only tokens of at least this share of the best one's probability [default: 0.1]
    #[arg(long, value_name = "P", requires = "contrast", value_parser = super::zero_to_one, help_heading = "Guidance")]
    contrast_alpha: Option<f32>,
}

impl GuideArgs {
    /// Whether another model, or a part of this one, must run beside.
    pub(crate) fn needs_amateur(&self) -> bool {
        self.contrast.is_some_and(|beta| beta != 0.0)
    }

    /// Whether sentences are scored beside the answer.
    pub(crate) fn scores_sentences(&self) -> bool {
        self.coherence.is_some()
    }

    /// What the flags say; `negative` is the negative prompt in tokens.
    pub(crate) fn options(&self, negative: Option<Vec<u32>>) -> GuideOptions {
        GuideOptions {
            banned_strings: self.ban.clone(),
            banned_regexes: self.ban_regex.clone(),
            repetition: self.stop_loops.map(|repeats| Repetition { repeats, ..Repetition::default() }),
            confidence: self.confidence.map(|(min, max)| {
                let d = Confidence::default();
                let (tries, window) = (self.confidence_tries.unwrap_or(4), self.confidence_window);
                Confidence { tries, min, max, window: window.unwrap_or(d.window), ..d }
            }),
            coherence: self.coherence.map(|min| (self.coherence_tries.unwrap_or(2), min, 6)),
            negative: negative.map(|ids| (ids, self.guidance_scale.unwrap_or(1.5))),
            amateur: self.contrast.map(|beta| {
                let alpha = self.contrast_alpha.unwrap_or(Amateur::default().alpha);
                Amateur { alpha, beta }
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_may_be_open() {
        assert_eq!(band("5:12"), Ok((5.0, 12.0)));
        assert_eq!(band("5:"), Ok((5.0, f32::INFINITY)));
        assert_eq!(band(":12.5"), Ok((0.0, 12.5)));
        for wrong in ["5", "a:b", "", "nan:2"] {
            assert!(band(wrong).is_err(), "{wrong}");
        }
    }
}
