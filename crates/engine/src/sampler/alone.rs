//! The sampler without an engine: for those who have logits of their own, and for measuring it.

use super::{Sampler, Scratch, Trace};
use crate::constraint::ConstraintBox;
use crate::request::{LogprobsOf, check_tokens};
use crate::sampling::Sampling;
use crate::{Error, Result};

/// Draws tokens from rows of logits, one answer's after the other, as the engine does.
#[derive(Debug)]
pub struct LogitSampler {
    sampler: Sampler,
    scratch: Scratch,
    vocab: usize,
    length: usize,
}

/// A token that a [`LogitSampler`] has drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of the probability that the row alone gives it; NaN if none is reported and nothing needs it.
    pub logprob: f32,
    /// How it was drawn, if that is wanted.
    pub trace: Option<Box<Trace>>,
}

impl LogitSampler {
    /// A sampler of an answer to `prompt`, in a vocabulary of `vocab` tokens. The seed is 0 if the settings have none.
    ///
    /// # Errors
    /// A setting outside its range, settings that exclude each other, or a token outside the vocabulary.
    pub fn new(sampling: Sampling, prompt: &[u32], vocab: usize) -> Result<LogitSampler> {
        sampling.check()?;
        if !prompt.is_empty() {
            check_tokens(prompt, vocab)?;
        }
        if let Some(id) = sampling.biased().find(|id| *id as usize >= vocab) {
            return Err(Error::Token { id, what: "logit_bias", vocab });
        }
        let seed = sampling.seed.unwrap_or(0);
        let sampler = Sampler::new(sampling, seed, 0, prompt).reporting(LogprobsOf::Raw, None);
        Ok(LogitSampler { sampler, scratch: Scratch::default(), vocab, length: prompt.len() })
    }

    /// Draws only what the constraint allows.
    pub fn constrained(self, constraint: ConstraintBox) -> LogitSampler {
        LogitSampler { sampler: self.sampler.constrained(Some(constraint)), ..self }
    }

    /// Reports no log-probabilities, which saves a pass over the vocabulary.
    pub fn unreported(self) -> LogitSampler {
        LogitSampler { sampler: self.sampler.reporting(LogprobsOf::Unreported, None), ..self }
    }

    /// Tells how each token is drawn, with so many candidates.
    pub fn explained(self, candidates: u32) -> LogitSampler {
        LogitSampler { sampler: self.sampler.reporting(LogprobsOf::Raw, Some(candidates)), ..self }
    }

    /// Takes a token of the answer that was chosen elsewhere, as if the model had been sure of it.
    ///
    /// # Errors
    /// It is outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<()> {
        check_tokens(&[id], self.vocab)?;
        self.length += 1;
        self.sampler.push(id, 0.0);
        Ok(())
    }

    /// Draws the next token; the row is changed in place.
    ///
    /// # Errors
    /// The row is not of the vocabulary's size, has NaN or nothing to draw, or the constraint fails.
    pub fn next(&mut self, row: &mut [f32]) -> Result<Drawn> {
        if row.len() != self.vocab {
            let range = "a row of the vocabulary's size";
            return Err(Error::Field { field: "logits", value: row.len().to_string(), range });
        }
        let choice = self.sampler.of_row(row, None, self.length, &mut self.scratch)?;
        self.length += 1;
        Ok(Drawn { id: choice.id, logprob: choice.raw, trace: choice.trace })
    }
}
