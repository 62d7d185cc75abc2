//! What comes back while a request runs.

use crate::Error;
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
    /// A token of the answer.
    Token {
        /// Its id.
        id: u32,
        /// Natural logarithm of its probability in the model's own distribution, before the sampling chain.
        logprob: f32,
        /// The model's best tokens, best first, if the request wants them.
        top: Vec<(u32, f32)>,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
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
    /// Cancelled, or the engine was shut down.
    Aborted,
}

/// Counts and durations of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the prefix cache had.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
    /// Seed of the random numbers; the same one gives the same answer.
    pub seed: u64,
    /// From submission to admission.
    pub queue: Duration,
    /// From submission to the first token.
    pub ttft: Duration,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last: the time of `completion_tokens - 1` of them.
    pub decode: Duration,
}

/// Figures of the engine, as of its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Steps run.
    pub steps: u64,
    /// Rows computed.
    pub rows: u64,
    /// Prompt tokens that the prefix cache had, so that they were not computed.
    pub cached_tokens: u64,
    /// Tokens sampled.
    pub sampled_tokens: u64,
    /// Sequences sent back to the queue for want of a block.
    pub preemptions: u64,
    /// Sequences that have blocks.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Blocks in use.
    pub blocks_used: usize,
    /// All blocks.
    pub blocks_total: usize,
}
