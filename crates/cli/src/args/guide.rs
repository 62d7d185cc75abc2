//! The flags of guidance: what steers an answer beside the sampler.

use clap::{ArgAction, Args};
use quarrel_engine::{Amateur, Confidence, ContrastiveSearch, Dola, Repetition};
use quarrel_runtime::{CoherenceOptions, Exits, GuideOptions};

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
    /// Draw a sentence again whose embedding has a cosine below X with that of the sentence before; needs --embedding-model
    #[arg(long, value_name = "X", allow_negative_numbers = true, requires = "embedding_model", conflicts_with = "confidence", value_parser = cosine, help_heading = "Guidance")]
    coherence_adjacent: Option<f32>,
    /// ... with that of the prompt
    #[arg(long, value_name = "X", allow_negative_numbers = true, requires = "embedding_model", conflicts_with = "confidence", value_parser = cosine, help_heading = "Guidance")]
    coherence_prompt: Option<f32>,
    /// A model that makes embeddings of sentences, in any form that --model takes
    #[arg(long, value_name = "MODEL", help_heading = "Guidance")]
    pub(crate) embedding_model: Option<String>,
    /// How often a sentence may be drawn again [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=32), help_heading = "Guidance")]
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
    #[arg(long, value_name = "N", requires = "contrast", conflicts_with = "draft", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Guidance")]
    pub(crate) exit_layer: Option<u32>,
    /// With --contrast: only tokens of at least this share of the best one's probability [default: 0.1]
    #[arg(long, value_name = "P", requires = "contrast", value_parser = super::zero_to_one, help_heading = "Guidance")]
    contrast_alpha: Option<f32>,
    /// Away from what the model would say after some of its layers, the farthest of --dola-layers in each step, by this much (DoLa) [default: off; without X: 1]
    #[arg(long, value_name = "X", num_args = 0..=1, default_missing_value = "1", value_parser = at_least_zero, conflicts_with_all = ["contrast", "negative_prompt"], help_heading = "Guidance")]
    dola: Option<f32>,
    /// With --dola: low, high (every other layer of the first or second half) or numbers of layers, such as 8,10,12; a single one is fixed [default: high]
    #[arg(long, value_name = "LAYERS", requires = "dola", help_heading = "Guidance")]
    dola_layers: Option<Exits>,
    /// With --dola: only tokens of at least this share of the best one's probability [default: 0.1]
    #[arg(long, value_name = "P", requires = "dola", value_parser = super::zero_to_one, help_heading = "Guidance")]
    dola_alpha: Option<f32>,
    /// Contrastive search: the likeliest tokens are held against the text before, whose likeness costs them this share of the score; takes the place of drawing [default: off; without X: 0.6]
    #[arg(long, value_name = "X", num_args = 0..=1, default_missing_value = "0.6", value_parser = super::zero_to_one, conflicts_with_all = ["contrast", "dola", "negative_prompt", "confidence", "coherence", "coherence_adjacent", "coherence_prompt", "ban", "ban_regex"], help_heading = "Guidance")]
    contrastive_search: Option<f32>,
    /// With --contrastive-search: candidates for each token [default: 4]
    #[arg(long, value_name = "K", requires = "contrastive_search", value_parser = clap::value_parser!(u32).range(1..=128), help_heading = "Guidance")]
    contrastive_k: Option<u32>,
}

/// A cosine.
fn cosine(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().ok().filter(|x| (-1.0..=1.0).contains(x));
    value.ok_or_else(|| format!("{text:?} is not a number from -1 to 1"))
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

    /// The layers to contrast with.
    pub(crate) fn exits(&self) -> Option<Exits> {
        self.dola.filter(|beta| *beta != 0.0)?;
        Some(self.dola_layers.clone().unwrap_or(Exits::High))
    }

    /// The candidates of a search for each token, if there are several.
    pub(crate) fn candidates(&self) -> Option<u32> {
        let search = self.search().filter(|s| s.alpha != 0.0 && s.k > 1);
        search.map(|s| s.k)
    }

    /// Whether sentences are compared by an embedding model.
    pub(crate) fn compares(&self) -> bool {
        self.coherence_adjacent.is_some() || self.coherence_prompt.is_some()
    }

    fn search(&self) -> Option<ContrastiveSearch> {
        let k = self.contrastive_k.unwrap_or(ContrastiveSearch::default().k);
        self.contrastive_search.map(|alpha| ContrastiveSearch { alpha, k })
    }

    fn coherence(&self) -> Option<CoherenceOptions> {
        let options = CoherenceOptions {
            tries: self.coherence_tries.unwrap_or(2),
            min: self.coherence,
            adjacent: self.coherence_adjacent,
            prompt: self.coherence_prompt,
            ..CoherenceOptions::default()
        };
        (options.min.is_some() || options.compares()).then_some(options)
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
            coherence: self.coherence(),
            negative: negative.map(|ids| (ids, self.guidance_scale.unwrap_or(1.5))),
            amateur: self.contrast.map(|beta| {
                let alpha = self.contrast_alpha.unwrap_or(Amateur::default().alpha);
                Amateur { alpha, beta }
            }),
            dola: self
                .dola
                .map(|beta| Dola { beta, alpha: self.dola_alpha.unwrap_or(Dola::default().alpha) }),
            search: self.search(),
            ..GuideOptions::default()
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
