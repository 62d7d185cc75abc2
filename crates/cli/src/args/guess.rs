//! The flags of speculation: how coming tokens are guessed.

use clap::{Args, ValueEnum};
use quarrel_engine::Speculate;

/// Most tokens that are guessed in a step, where nothing else is said.
pub(crate) const DRAFT_MAX: u16 = 12;

/// How coming tokens are guessed, so that several are computed at once.
#[derive(Debug, Clone, Args)]
pub(crate) struct GuessArgs {
    /// Guess coming tokens where that is faster: from repetitions in the text (lookup), from earlier answers (ngram), or all that there is (auto). The answer is the same [default: lookup; with --draft: auto]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Engine")]
    pub(crate) speculate: Option<Guess>,
    /// A smaller model of the same vocabulary that guesses too
    #[arg(long, value_name = "MODEL", help_heading = "Engine")]
    pub(crate) draft: Option<String>,
    /// Most tokens to guess in a step
    #[arg(long, value_name = "N", default_value_t = DRAFT_MAX, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Engine")]
    pub(crate) draft_max: u16,
}

impl GuessArgs {
    /// What the flags say, with or without a draft model.
    pub(crate) fn mode(&self) -> Speculate {
        match (self.speculate, &self.draft) {
            (Some(Guess::Auto), _) | (None, Some(_)) => Speculate::Auto,
            (Some(Guess::Off), Some(_)) => Speculate::Draft,
            (Some(Guess::Off), None) => Speculate::Off,
            (Some(Guess::Lookup), _) | (None, None) => Speculate::Lookup,
            (Some(Guess::Ngram), _) => Speculate::Ngram,
        }
    }
}

/// A kind of guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guess {
    Auto,
    Off,
    Lookup,
    Ngram,
}
