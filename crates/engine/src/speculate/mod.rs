//! Speculative decoding: tokens are guessed ahead, a step computes them all, and those are kept that the sampler draws anyway
//! (`verify`). Guesses come from the sequence's own text (`lookup`), from earlier answers (`ngram`) or from a smaller model
//! (`draft`) as a `tree`; `rates` measures how often each kind comes true, `depth` how many of them pay; `guesser` has all of
//! it for the engine, whose thread `driver` joins.

pub(crate) mod depth;
pub(crate) mod draft;
pub(crate) mod driver;
pub(crate) mod guesser;
pub(crate) mod lookup;
pub(crate) mod ngram;
pub(crate) mod rates;
pub(crate) mod tree;
pub(crate) mod verify;

pub use draft::{DraftConfig, DraftModel};

/// How an answer's tokens are guessed ahead. The answer is the same in each case; only its speed differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Speculate {
    /// Not at all.
    #[default]
    Off,
    /// Where the text repeats itself.
    Lookup,
    /// As earlier answers of the engine went on.
    Ngram,
    /// By the engine's draft model.
    Draft,
    /// By whatever the engine has, as far as it pays; not at all where sequences have states, which refuse all others.
    Auto,
}

impl Speculate {
    /// All of them.
    pub const ALL: [Speculate; 5] =
        [Speculate::Off, Speculate::Lookup, Speculate::Ngram, Speculate::Draft, Speculate::Auto];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Speculate::Off => "off",
            Speculate::Lookup => "lookup",
            Speculate::Ngram => "ngram",
            Speculate::Draft => "draft",
            Speculate::Auto => "auto",
        }
    }

    pub(crate) fn looks_up(self) -> bool {
        matches!(self, Speculate::Lookup | Speculate::Auto)
    }

    pub(crate) fn has_ngrams(self) -> bool {
        matches!(self, Speculate::Ngram | Speculate::Auto)
    }

    pub(crate) fn drafts(self) -> bool {
        matches!(self, Speculate::Draft | Speculate::Auto)
    }
}
