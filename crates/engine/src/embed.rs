//! Embeddings: the hidden states of a text's tokens, pooled to one vector. Sums are in f64 and in the order of positions, so
//! that a vector's bits do not depend on how the text came in or on who else did.

use crate::handle::Shared;
use crate::request::Class;
use crate::{Error, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

/// How the hidden states of a text become one vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// That of the first token, which a BERT is trained to speak for the text with.
    Cls,
    /// That of the last token, which alone has seen all of a text in a decoder.
    Last,
    /// Not at all: a vector for each token.
    None,
}

impl Pooling {
    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Last => "last",
            Pooling::None => "none",
        }
    }
}

/// A text to embed.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// The text, with the tokens that the model wants around it.
    pub tokens: Vec<u32>,
    /// What becomes of the hidden states.
    pub pooling: Pooling,
    /// Scale each vector to length 1, where it has one.
    pub normalize: bool,
    /// How urgent it is.
    pub class: Class,
    /// Whose it is, as for [`crate::Request::key`].
    pub key: Arc<str>,
    /// From submission; afterwards it fails.
    pub deadline: Option<Duration>,
    /// Name of a loaded adapter.
    pub adapter: Option<String>,
}

impl EmbedRequest {
    /// The mean of a text's hidden states, of length 1.
    pub fn new(tokens: Vec<u32>) -> EmbedRequest {
        EmbedRequest {
            tokens,
            pooling: Pooling::Mean,
            normalize: true,
            class: Class::default(),
            key: "".into(),
            deadline: None,
            adapter: None,
        }
    }
}

/// What embedding a text gives.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Embedding {
    /// One vector, or with [`Pooling::None`] those of all tokens.
    pub vectors: Vec<Vec<f32>>,
}

/// Most bytes of the vectors of one text without pooling.
pub(crate) const STATES_BYTES_MAX: usize = 64 << 20;

/// An embedding in the making. Dropping it cancels the request.
pub struct Embedded {
    pub(crate) answer: Receiver<Result<Embedding>>,
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) shared: Arc<Shared>,
}

impl Embedded {
    /// Waits for it so long at most.
    pub fn wait_for(&self, patience: Duration) -> Option<Result<Embedding>> {
        match self.answer.recv_timeout(patience) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) if !self.shared.pulse.is_stuck() => None,
            Err(_) => Some(Err(self.shared.why_down())),
        }
    }

    /// Waits for it.
    pub fn wait(self) -> Result<Embedding> {
        self.shared.wait(&self.answer)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// Hidden states on their way to an embedding.
pub(crate) struct Pooler {
    pooling: Pooling,
    normalize: bool,
    dim: usize,
    tokens: usize,
    /// One vector, or one for each token.
    sums: Vec<f64>,
}

impl Pooler {
    pub(crate) fn new(pooling: Pooling, normalize: bool, dim: usize, tokens: usize) -> Pooler {
        let vectors = if pooling == Pooling::None { tokens } else { 1 };
        Pooler { pooling, normalize, dim, tokens, sums: vec![0.0; vectors * dim] }
    }

    /// The first position whose row is needed.
    pub(crate) fn first_needed(pooling: Pooling, tokens: usize) -> usize {
        if pooling == Pooling::Last { tokens - 1 } else { 0 }
    }

    /// Takes the rows from position `first` on; they come in order, from the start again after a preemption. Says whether
    /// these were the last.
    pub(crate) fn take(&mut self, first: usize, rows: &[f32]) -> Result<bool> {
        let mut at = first;
        for row in rows.chunks_exact(self.dim) {
            let into = match self.pooling {
                Pooling::Mean => 0..self.dim,
                Pooling::Cls if at == 0 => 0..self.dim,
                Pooling::Last if at + 1 == self.tokens => 0..self.dim,
                Pooling::None => at * self.dim..(at + 1) * self.dim,
                Pooling::Cls | Pooling::Last => 0..0,
            };
            let begins = self.pooling != Pooling::Mean || at == 0;
            if !into.is_empty() && row.iter().any(|x| !x.is_finite()) {
                return Err(Error::Hidden { position: at });
            }
            for (sum, x) in self.sums[into].iter_mut().zip(row) {
                *sum = if begins { f64::from(*x) } else { *sum + f64::from(*x) };
            }
            at += 1;
        }
        Ok(at == self.tokens)
    }

    pub(crate) fn finish(self) -> Embedding {
        let count = if self.pooling == Pooling::Mean { self.tokens as f64 } else { 1.0 };
        let vector = |sums: &[f64]| {
            let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
            // A vector of zeros has no direction; it stays what it is.
            let by = if self.normalize && length > 0.0 { length } else { count };
            sums.iter().map(|x| (x / by) as f32).collect()
        };
        Embedding { vectors: self.sums.chunks_exact(self.dim).map(vector).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(pooling: Pooling, normalize: bool, cuts: &[std::ops::Range<usize>]) -> Vec<Vec<f32>> {
        let rows: Vec<f32> = [[3.0, 0.0], [1.0, 2.0], [-1.0, 4.0]].concat();
        let mut pooler = Pooler::new(pooling, normalize, 2, 3);
        let done: Vec<bool> =
            cuts.iter().map(|c| pooler.take(c.start, &rows[2 * c.start..2 * c.end]).unwrap()).collect();
        assert_eq!(done.iter().position(|d| *d), Some(cuts.len() - 1));
        pooler.finish().vectors
    }

    #[test]
    fn each_pooling_takes_its_rows_however_they_come() {
        let whole = std::iter::once(0..3).collect::<Vec<_>>();
        for cuts in [&whole[..], &[0..1, 1..2, 2..3], &[0..2, 0..1, 1..3]] {
            assert_eq!(pooled(Pooling::Mean, false, cuts), [[1.0, 2.0]]);
            assert_eq!(pooled(Pooling::Cls, false, cuts), [[3.0, 0.0]]);
            assert_eq!(pooled(Pooling::Last, false, cuts), [[-1.0, 4.0]]);
            assert_eq!(pooled(Pooling::None, false, cuts), [[3.0, 0.0], [1.0, 2.0], [-1.0, 4.0]]);
            assert_eq!(pooled(Pooling::Cls, true, cuts), [[1.0, 0.0]]);
            let [mean] = &pooled(Pooling::Mean, true, cuts)[..] else { panic!("one vector") };
            assert_eq!(mean[..], [0.2f32.sqrt(), 0.8f32.sqrt()]);
        }
        assert_eq!(pooled(Pooling::Last, false, &[2..2, 2..3]), [[-1.0, 4.0]], "the prefix was cached");
    }

    #[test]
    fn zeros_stay_and_what_is_no_number_is_named() {
        let mut zeros = Pooler::new(Pooling::Mean, true, 2, 1);
        assert!(zeros.take(0, &[0.0, 0.0]).unwrap());
        assert_eq!(zeros.finish().vectors, [[0.0, 0.0]]);
        let mut bad = Pooler::new(Pooling::Mean, true, 2, 3);
        let error = bad.take(0, &[1.0, 1.0, f32::NAN, 1.0]).unwrap_err();
        assert!(error.to_string().contains("position 1"), "{error}");
    }
}
