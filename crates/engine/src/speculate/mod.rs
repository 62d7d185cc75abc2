//! Speculative decoding: tokens are guessed ahead, a step computes them all, and those are kept that the sampler draws anyway
//! (`verify`). Guesses come from the sequence's own text (`lookup`), from earlier answers (`ngram`) or from a smaller model
//! (`draft`) as a `tree`; `rates` measures how often each kind comes true, and `depth` how many of them pay.

pub(crate) mod depth;
pub(crate) mod draft;
pub(crate) mod lookup;
pub(crate) mod ngram;
pub(crate) mod rates;
pub(crate) mod tree;
pub(crate) mod verify;
