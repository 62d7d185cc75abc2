//! Sequences, KV blocks, scheduling, sampling: token ids in, token ids out. Text exists only outside.
//!
//! [`Engine::start`] moves a device into a thread of its own and gives a [`Handle`]; [`Handle::submit`] gives a [`Stream`] of
//! [`Event`]s. A request's life: `request` checks it, `handle` sends it, `scheduler` gives it blocks (`block_manager`) and a
//! share of each step, `batch` makes the step, the device runs it, `sampler` draws a token, and `events` go back.
#![forbid(unsafe_code)]

mod batch;
mod block_manager;
mod engine;
mod events;
mod evict;
mod handle;
mod load;
pub mod memory;
mod request;
mod sampler;
mod scheduler;
mod sequence;

pub use engine::{Engine, EngineConfig, EngineInfo};
pub use events::{EngineStats, Event, FinishReason, RequestStats};
pub use evict::{Evicted, Eviction, Evictor};
pub use handle::{Handle, Stream};
pub use load::{CONTEXT_DEFAULT_MAX, LoadOptions, Loaded};
pub use request::{DynamicTemperature, LOGPROBS_MAX, Request, Sampling};

use std::sync::Arc;

/// Why a request, or the engine, cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A setting outside its range.
    #[error("{field} is {value}; it must be {range}")]
    Field {
        /// Which setting.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// An engine limit that contradicts another.
    #[error("engine setting {field} is {value}; it must be at least {least}, {why}")]
    Config {
        /// Which setting.
        field: &'static str,
        /// What it is.
        value: usize,
        /// Its least value.
        least: usize,
        /// Where the bound comes from.
        why: &'static str,
    },
    /// Sizes that do not fit into a memory budget, however small they are made.
    #[error(
        "a context of {context} tokens needs {need}; there are {} for all, and the least that works needs {} \
         (a context of {shortest}, one sequence)",
        memory::Mb(*.budget), memory::Mb(*.least)
    )]
    Budget {
        /// What was asked for needs this.
        need: memory::Need,
        /// Context that was asked for, in tokens.
        context: usize,
        /// Bytes that there are.
        budget: usize,
        /// Bytes that the smallest sizes need.
        least: usize,
        /// Their context in tokens.
        shortest: usize,
    },
    /// A prompt that leaves no room for a token.
    #[error(
        "the prompt has {prompt} tokens and the context holds {context}, the answer included; \
         shorten the prompt or ask for a longer context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error("{what} has token {id}, the model's vocabulary ends at {}", .vocab - 1)]
    Token {
        /// The id.
        id: u32,
        /// Where it is.
        what: &'static str,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Too many requests wait.
    #[error("{limit} requests are waiting, which is the limit; try again later")]
    QueueFull {
        /// The limit.
        limit: usize,
    },
    /// Logits that are no distribution.
    #[error(
        "the logits of step {step} are no distribution: {nan} of {vocab} are NaN, the largest is {max}; \
         the model file is damaged or its numbers overflow, or every token is forbidden"
    )]
    Logits {
        /// Position of the token that was to be drawn, prompt included.
        step: usize,
        /// How many are NaN.
        nan: usize,
        /// How many there are.
        vocab: usize,
        /// The largest other one.
        max: f32,
    },
    /// The model could not be loaded.
    #[error(transparent)]
    Model(Arc<quarrel_model::Error>),
    /// The device refused the model or failed in a step; requests that were running are lost, new ones may work.
    #[error(transparent)]
    Device(Arc<quarrel_ir::Error>),
    /// A bug ended the engine's thread; every request is lost and none is accepted.
    #[error("the engine stopped by a bug: {0}")]
    Panicked(String),
    /// The engine was shut down.
    #[error("the engine is shut down")]
    Down,
    /// The system would not start a thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(String),
}

impl From<quarrel_model::Error> for Error {
    fn from(e: quarrel_model::Error) -> Error {
        Error::Model(Arc::new(e))
    }
}

impl From<quarrel_ir::Error> for Error {
    fn from(e: quarrel_ir::Error) -> Error {
        Error::Device(Arc::new(e))
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
