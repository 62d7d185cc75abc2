//! What comes back while a request runs.

use crate::Error;
use crate::evict::{Evicted, EvictionStats};
use crate::guide::GuideStats;
use crate::sampler::Trace;
use std::time::Duration;

/// One thing that happened to a request. `Done` or `Failed` is the last.
#[derive(Debug, Clone)]
pub enum Event {
    /// The prompt is in the cache up to `done` of `total` tokens; sent after each step of a prompt.
    Prefill {
        /// Tokens that the cache holds.
        done: usize,
        /// Tokens to hold before the next token comes.
        total: usize,
    },
    /// A token of an answer. With [`crate::Request::best_of`] or beams they come at the end.
    Token {
        /// Which answer, from 0; below [`crate::Request::n`].
        choice: u32,
        /// Its id.
        id: u32,
        /// Natural logarithm of its probability, in the distribution that [`crate::Request::logprobs_of`] says; none where it says none.
        logprob: Option<f32>,
        /// The best tokens there, best first, if the request wants them.
        top: Vec<(u32, f32)>,
        /// How it was drawn, if the request wants that.
        trace: Option<Box<Trace>>,
    },
    /// The sequence outgrew its budget and was shortened in the cache, as [`crate::Request::eviction`] says.
    Evicted {
        /// Tokens of prompt and answer that had been computed.
        at: usize,
        /// What it lost.
        evicted: Evicted,
    },
    /// One of several answers is complete.
    Finished {
        /// Which answer.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
    },
    /// All answers are complete.
    Done {
        /// Why the first one ended.
        reason: FinishReason,
        /// Counts and durations.
        stats: RequestStats,
    },
    /// The request could not go on.
    Failed(Error),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-generation token, which is not part of the answer.
    Stop,
    /// `max_tokens` are made.
    Length,
    /// Prompt and answer fill the context.
    ContextFull,
    /// The answer repeated itself without end; see [`crate::Repetition`].
    Repetition,
    /// The request's deadline passed.
    Deadline,
    /// Cancelled, or the engine was shut down.
    Aborted,
}

/// Counts and durations of one request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RequestStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the prefix cache had.
    pub cached_tokens: usize,
    /// Tokens made for all answers.
    pub completion_tokens: usize,
    /// Seed of the first answer's random numbers; the same one gives the same answer.
    pub seed: u64,
    /// Tokens that were guessed ahead and computed, and those of them that came true; see [`crate::Speculate`].
    pub drafted_tokens: u64,
    /// See [`Self::drafted_tokens`].
    pub accepted_tokens: u64,
    /// From submission to admission.
    pub queue: Duration,
    /// From submission to the first token.
    pub ttft: Duration,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last: the time of `completion_tokens - 1` of them.
    pub decode: Duration,
    /// What was dropped from the cache.
    pub eviction: EvictionStats,
    /// What guidance cost.
    pub guide: GuideStats,
}
