//! Semantic coherence of a sentence, by the model itself: the pointwise mutual information of the sentence and what precedes
//! it, per token, `PMI = (1/|s|) [log p(s | context) - log p(s | nothing)]`. The first term is known from drawing; for the
//! second the sentence is scored alone, as a sequence beside the answer, which waits meanwhile. A sentence that is as likely
//! without the context as with it has little to do with it, and is drawn again.

use super::check_field;
use crate::request::check_tokens;
use crate::{Error, Result};

/// When a sentence is drawn again. Where sentences end is said by the request's [`super::Watch`]; without one, and where none
/// ends, a segment of [`super::HOLD_MAX`] tokens is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Coherence {
    /// Times that a sentence may be drawn again; 0 is off.
    pub tries: u32,
    /// Least PMI per token, in nats.
    pub min: f32,
    /// Sentences of fewer tokens are joined to the next.
    pub tokens: u32,
    /// What stands for no context: the tokens with which a text begins, at least one.
    pub empty: Vec<u32>,
}

impl Coherence {
    /// The defaults: one try more for sentences of 6 tokens or more that are likelier alone.
    pub fn new(empty: Vec<u32>) -> Coherence {
        Coherence { tries: 1, min: 0.0, tokens: 6, empty }
    }

    pub(super) fn check(&self, vocab: usize) -> Result<()> {
        let (tries, tokens) = (self.tries, self.tokens);
        check_field("guidance.coherence.tries", tries.into(), tries <= 32, "0 (off) to 32")?;
        check_field("guidance.coherence.min", self.min.into(), self.min.is_finite(), "a number of nats")?;
        let range = "2 to 64";
        check_field("guidance.coherence.tokens", tokens.into(), (2..=64).contains(&tokens), range)?;
        if self.empty.is_empty() {
            let range = "1 token or more, such as the one with which texts begin";
            return Err(Error::Field { field: "guidance.coherence.empty", value: "empty".into(), range });
        }
        check_tokens(&self.empty, vocab)
    }
}

/// A sentence on its way through a score.
#[derive(Debug, Clone)]
pub(crate) struct Sentence {
    /// The sequence that scores it.
    pub(crate) sequence: u64,
    /// Log-probabilities of its tokens in their context, added up.
    pub(super) with: f64,
    /// Those without, as far as they are known.
    pub(super) without: f64,
    pub(super) tokens: usize,
    /// How many of its tokens the score has passed.
    pub(super) scored: usize,
}

impl Sentence {
    /// The PMI per token.
    pub(super) fn pmi(&self) -> f64 {
        (self.with - self.without) / self.tokens.max(1) as f64
    }
}
