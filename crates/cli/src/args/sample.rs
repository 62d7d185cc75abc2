//! The flags of the sampling chain beyond the usual ones. Each is set by its name, as `/set` in `chat` does it.

use clap::{ArgAction, Args, ValueEnum};
use quarrel_engine::{BestBy, LogprobsOf};

use super::{above_zero, at_least_zero, finite, zero_to_one};

/// Stages that are off if nothing is said. docs/sampling.md explains them.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ChainArgs {
    /// Stages in their order, such as "dry;top_k;temperature"; those left out are off [default: logit_bias;penalties;dry;top_n_sigma;temperature;top_k;typical_p;top_p;min_p;xtc;mirostat]
    #[arg(long, value_name = "LIST", help_heading = "Sampling chain")]
    pub(crate) samplers: Option<String>,
    /// Keep the tokens whose surprise is nearest to the expected one, up to this much probability; 1 keeps all
    #[arg(long, value_name = "P", visible_aliases = ["typical", "typ-p"], value_parser = zero_to_one, help_heading = "Sampling chain")]
    typical_p: Option<f32>,
    /// Keep tokens whose score is at most this many standard deviations below the best; 0 keeps all
    #[arg(long, value_name = "N", visible_alias = "top-nsigma", value_parser = at_least_zero, help_heading = "Sampling chain")]
    top_n_sigma: Option<f32>,
    /// How often the top choices are dropped, but the least of them; 0 is never
    #[arg(long, value_name = "P", value_parser = zero_to_one, help_heading = "Sampling chain")]
    xtc_probability: Option<f32>,
    /// ... which are the tokens of at least this probability [default: 0.1]
    #[arg(long, value_name = "P", value_parser = zero_to_one, help_heading = "Sampling chain")]
    xtc_threshold: Option<f32>,
    /// Punish a token that would make a repeat longer; 0 is off
    #[arg(long, value_name = "X", value_parser = at_least_zero, help_heading = "Sampling chain")]
    dry_multiplier: Option<f32>,
    /// ... by this factor more for each token of the repeat [default: 1.75]
    #[arg(long, value_name = "X", value_parser = above_zero, help_heading = "Sampling chain")]
    dry_base: Option<f32>,
    /// ... from repeats of this length on [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Sampling chain")]
    dry_allowed_length: Option<u32>,
    /// ... within this many last tokens; -1 is all [default: -1]
    #[arg(long, value_name = "N", visible_alias = "dry-penalty-last-n", value_parser = clap::value_parser!(i64).range(-1..=u32::MAX as i64), allow_negative_numbers = true, help_heading = "Sampling chain")]
    dry_window: Option<i64>,
    /// ... but not over tokens with this text in them (may be given several times) [default: line break, colon, quotation mark, asterisk]
    #[arg(long, value_name = "TEXT", visible_alias = "dry-sequence-breaker", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Sampling chain")]
    pub(crate) dry_breaker: Vec<String>,
    /// The penalties look at this many last tokens; -1 is all, 0 none [default: -1]
    #[arg(long, value_name = "N", visible_alias = "repeat-last-n", value_parser = clap::value_parser!(i64).range(-1..=u32::MAX as i64), allow_negative_numbers = true, help_heading = "Sampling chain")]
    penalty_window: Option<i64>,
    /// Halve the penalties on a token with each so many tokens since it was there [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Sampling chain")]
    penalty_half_life: Option<u32>,
    /// Let the temperature follow the entropy of each step, by so much below and above --temp; 0 is off
    #[arg(long, value_name = "T", value_parser = at_least_zero, help_heading = "Sampling chain")]
    dynatemp_range: Option<f32>,
    /// ... on a curve that this bends; 1 is a line [default: 1]
    #[arg(long, value_name = "X", visible_alias = "dynatemp-exp", value_parser = above_zero, help_heading = "Sampling chain")]
    dynatemp_exponent: Option<f32>,
    /// Lower the temperature the more, the surer the model is; 0 is off
    #[arg(long, value_name = "X", value_parser = at_least_zero, help_heading = "Sampling chain")]
    edt_theta: Option<f32>,
    /// How much repeats and doubt in the answer may change temperature and penalties, up to 1; 0 is off
    #[arg(long, value_name = "X", value_parser = zero_to_one, help_heading = "Sampling chain")]
    adaptive: Option<f32>,
    /// Mirostat 1 or 2, in place of the other truncations: holds the surprise of tokens near a value; 0 is off
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=2), help_heading = "Sampling chain")]
    mirostat: Option<u8>,
    /// ... of so many bits [default: 5]
    #[arg(long, value_name = "BITS", visible_alias = "mirostat-ent", value_parser = above_zero, help_heading = "Sampling chain")]
    mirostat_tau: Option<f32>,
    /// ... and learns so fast [default: 0.1]
    #[arg(long, value_name = "X", visible_alias = "mirostat-lr", value_parser = above_zero, help_heading = "Sampling chain")]
    mirostat_eta: Option<f32>,
    /// Add to the score of a token, -inf forbids it; with :N for the first N tokens (may be given several times)
    #[arg(long, value_name = "ID=BIAS[:N]", action = ArgAction::Append, help_heading = "Sampling chain")]
    logit_bias: Vec<String>,
    /// Make so many answers and print the best, when all are complete
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=128), help_heading = "Sampling chain")]
    best_of: Option<u32>,
    /// ... by the mean log-probability of its tokens, or by how certain the model was [default: likelihood]
    #[arg(long, value_enum, value_name = "HOW", requires = "best_of", help_heading = "Sampling chain")]
    pub(crate) best_of_by: Option<Best>,
}

impl ChainArgs {
    /// What was given, by the names of the settings and in the order in which they are to be set.
    pub(crate) fn pairs(&self) -> Vec<(&'static str, String)> {
        fn number<T: ToString>(name: &'static str, value: &Option<T>) -> Option<(&'static str, String)> {
            value.as_ref().map(|v| (name, v.to_string()))
        }
        let single = [
            number("samplers", &self.samplers),
            number("mirostat", &self.mirostat),
            number("mirostat-tau", &self.mirostat_tau),
            number("mirostat-eta", &self.mirostat_eta),
            number("typical-p", &self.typical_p),
            number("top-n-sigma", &self.top_n_sigma),
            number("xtc-probability", &self.xtc_probability),
            number("xtc-threshold", &self.xtc_threshold),
            number("dry-multiplier", &self.dry_multiplier),
            number("dry-base", &self.dry_base),
            number("dry-allowed-length", &self.dry_allowed_length),
            number("dry-window", &self.dry_window),
            number("penalty-window", &self.penalty_window),
            number("penalty-half-life", &self.penalty_half_life),
            number("dynatemp-range", &self.dynatemp_range),
            number("dynatemp-exponent", &self.dynatemp_exponent),
            number("edt-theta", &self.edt_theta),
            number("adaptive", &self.adaptive),
            number("best-of", &self.best_of),
        ];
        let biases = self.logit_bias.iter().map(|b| ("logit-bias", b.clone()));
        single.into_iter().flatten().chain(biases).collect()
    }

    /// Whether one was given that only a draw uses.
    pub(crate) fn draws(&self) -> bool {
        const EDITS: [&str; 8] = [
            "dry-multiplier",
            "dry-base",
            "dry-allowed-length",
            "dry-window",
            "penalty-window",
            "penalty-half-life",
            "logit-bias",
            "samplers",
        ];
        self.pairs().iter().any(|(name, _)| !EDITS.contains(name))
    }
}

/// What the best of several answers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Best {
    Likelihood,
    SelfCertainty,
}

impl From<Best> for BestBy {
    fn from(best: Best) -> BestBy {
        match best {
            Best::Likelihood => BestBy::Likelihood,
            Best::SelfCertainty => BestBy::SelfCertainty,
        }
    }
}

/// Whose log-probabilities are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Logprobs {
    Raw,
    Sampled,
}

impl From<Logprobs> for LogprobsOf {
    fn from(of: Logprobs) -> LogprobsOf {
        match of {
            Logprobs::Raw => LogprobsOf::Raw,
            Logprobs::Sampled => LogprobsOf::Sampled,
        }
    }
}

/// `ID=BIAS`, or `ID=BIAS:TOKENS`.
pub(crate) fn parse_bias(text: &str) -> Result<(u32, f32, Option<u32>), String> {
    let wrong = || format!("{text:?} is not ID=BIAS or ID=BIAS:TOKENS, such as 13=-2 or 2=-inf:20");
    let (id, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (bias, tokens) = rest.split_once(':').map_or((rest, None), |(b, n)| (b, Some(n)));
    let tokens = tokens.map(|n| n.trim().parse().map_err(|_| wrong())).transpose()?;
    let bias = match bias.trim() {
        "-inf" => f32::NEG_INFINITY,
        number => finite(number).map_err(|_| wrong())?,
    };
    Ok((id.trim().parse().map_err(|_| wrong())?, bias, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_read() {
        assert_eq!(parse_bias("13=-2.5"), Ok((13, -2.5, None)));
        assert_eq!(parse_bias("2=-inf:20"), Ok((2, f32::NEG_INFINITY, Some(20))));
        for wrong in ["13", "a=1", "1=b", "1=1:x", "1=nan", "=1"] {
            assert!(parse_bias(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
