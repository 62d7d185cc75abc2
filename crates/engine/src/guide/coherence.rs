//! Semantic coherence of a sentence. By the model itself: the pointwise mutual information of the sentence and what precedes
//! it, per token, `PMI = (1/|s|) [log p(s | context) - log p(s | nothing)]`. The first term is known from drawing; for the
//! second the sentence is scored alone, as a sequence beside the answer, which waits meanwhile. A sentence that is as likely
//! without the context as with it has little to do with it, and is drawn again. By another model: the cosines of its embedding
//! with those of the sentence before and of the prompt ([`super::Meant`]).

use super::{Meant, check_field};
use crate::request::check_tokens;
use crate::{Error, Result};

/// When a sentence is drawn again. Where sentences end is said by the request's [`super::Watch`]; without one, and where none
/// ends, a segment of [`super::HOLD_MAX`] tokens is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Coherence {
    /// Times that a sentence may be drawn again; 0 is off.
    pub tries: u32,
    /// Least PMI per token, in nats; none if it does not count.
    pub min: Option<f32>,
    /// What its embedding should be like.
    pub meant: Option<Meant>,
    /// Sentences of fewer tokens are joined to the next.
    pub tokens: u32,
    /// What stands for no context: the tokens with which a text begins, at least one.
    pub empty: Vec<u32>,
}

impl Coherence {
    /// The defaults: one try more for sentences of 6 tokens or more that are likelier alone.
    pub fn new(empty: Vec<u32>) -> Coherence {
        Coherence { tries: 1, min: Some(0.0), meant: None, tokens: 6, empty }
    }

    pub(super) fn check(&self, vocab: usize) -> Result<()> {
        let (tries, tokens) = (self.tries, self.tokens);
        check_field("guidance.coherence.tries", tries.into(), tries <= 32, "0 (off) to 32")?;
        let min = self.min.unwrap_or(0.0);
        check_field("guidance.coherence.min", min.into(), min.is_finite(), "a number of nats")?;
        self.meant.iter().try_for_each(Meant::check)?;
        if self.min.is_none() && self.meant.is_none() {
            let range = "given, or guidance.coherence.adjacent or prompt: something must be judged";
            return Err(Error::Field { field: "guidance.coherence.min", value: "missing".into(), range });
        }
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
