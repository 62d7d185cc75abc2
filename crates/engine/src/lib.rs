//! Sequences, KV blocks, scheduling, sampling: token ids in, token ids out. Text exists only outside.
//!
//! [`Engine::start`] moves a device into a thread of its own and gives a [`Handle`]; [`Handle::submit`] gives a [`Stream`] of
//! [`Event`]s. A request's life: `request` checks it, `handle` sends it, `scheduler` gives it blocks (`block_manager`) and a
//! share of each step, `batch` makes the step, the device runs it, `sampler` draws a token, and `events` go back.
#![forbid(unsafe_code)]

mod adapters;
mod batch;
mod beam;
mod block_manager;
mod client;
mod config;
mod constraint;
mod embed;
mod engine;
mod events;
mod evict;
mod guide;
mod handle;
mod load;
mod logits;
pub mod memory;
mod outbox;
mod pace;
mod request;
mod sampler;
mod sampling;
mod scheduler;
mod sequence;
mod snapshots;
mod speculate;
mod statistics;
mod tier;
mod watchdog;

pub use adapters::{AdapterInfo, AdapterLimits};
pub use config::{EngineConfig, EngineInfo};
pub use constraint::{Constraint, ConstraintBox};
pub use embed::{EmbedRequest, Embedded, Embedding, Pooling};
pub use engine::Engine;
pub use events::{Event, FinishReason, RequestStats};
pub use evict::{Evicted, Eviction, EvictionStats, Evictor};
pub use guide::{
    Amateur, Coherence, Comparing, Confidence, ContrastiveSearch, Dola, Guide, GuideStats, HOLD_MAX,
    Likeness, Meaning, Meant, Negative, Repetition, Verdict, Watch, WatchBox,
};
pub use handle::{Handle, ScoreRequest, Scores, Stream};
pub use load::{CONTEXT_DEFAULT_MAX, LoadOptions, Loaded, identity};
pub use request::{
    Beams, BestBy, Class, EXPLAIN_MAX, LOGPROBS_MAX, LogprobsOf, Request, Retention, WIDTH_MAX,
};
pub use sampler::{
    CandidateTrace, ChangeTrace, DrawTrace, Drawn, EditTrace, LogitSampler, StageTrace, Trace,
};
pub use sampling::{BriefBias, DynamicTemperature, Sampling, Stage};
pub use speculate::{DraftConfig, DraftModel, Speculate};
pub use statistics::{EngineStats, Histogram};
pub use tier::DiskCache;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

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
    /// Two settings that exclude each other.
    #[error("{a} and {b} do not go together: {why}; leave one of them out")]
    Together {
        /// One.
        a: &'static str,
        /// The other.
        b: &'static str,
        /// Why.
        why: &'static str,
    },
    /// Stages of the sampling chain in an order that means nothing.
    #[error("{then} after {first} in samplers: {why}")]
    Order {
        /// The earlier stage.
        first: &'static str,
        /// The later one.
        then: &'static str,
        /// Why.
        why: &'static str,
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
    /// A draft model of another vocabulary.
    #[error("the draft model has {draft} tokens and the model {vocab}; its vocabulary must be the same")]
    DraftVocabulary {
        /// Tokens of the draft model.
        draft: usize,
        /// Tokens of the model.
        vocab: usize,
    },
    /// Too many requests wait.
    #[error("{limit} requests are waiting, which is the limit; try again in {}", Seconds(*.retry_after))]
    QueueFull {
        /// The limit.
        limit: usize,
        /// When there is likely to be room.
        retry_after: Duration,
    },
    /// The request would wait longer than it may.
    #[error(
        "the request would wait about {} and may wait {}; try again in {}",
        Seconds(*.wait), Seconds(*.limit), Seconds(*.retry_after)
    )]
    Busy {
        /// How long it would wait for its turn.
        wait: Duration,
        /// How long it may.
        limit: Duration,
        /// When it is likely to be taken.
        retry_after: Duration,
    },
    /// The deadline came before the request had begun.
    #[error("the deadline of {} passed while the request waited", Seconds(*.0))]
    Deadline(Duration),
    /// More sequences at once than the engine can follow.
    #[error("the request follows {width} sequences at once, which need {need}; there are {have}: {hint}")]
    Width {
        /// Sequences.
        width: usize,
        /// What they need.
        need: String,
        /// What there is.
        have: usize,
        /// What to do.
        hint: &'static str,
    },
    /// A step that does not end: a device that hangs. Requests are failed; new ones are taken again if it ends after all.
    #[error("a step has run for {} and does not end; the device hangs", Seconds(*.0))]
    Stuck(Duration),
    /// Logits that are no distribution.
    #[error(
        "the logits of step {step} are no distribution after {stage}: {nan} of {vocab} are NaN, the largest is {max}; {}",
        if *.stage == "the model" { "the model file is damaged or its numbers overflow" } else { "every token is forbidden" }
    )]
    Logits {
        /// What made them so: the model, or a stage of the sampling chain.
        stage: &'static str,
        /// Position of the token that was to be drawn, prompt included.
        step: usize,
        /// How many are NaN.
        nan: usize,
        /// How many there are.
        vocab: usize,
        /// The largest other one.
        max: f32,
    },
    /// Hidden states that are no numbers.
    #[error(
        "the hidden state at position {position} has values that are no finite numbers; \
         the model file is damaged or its numbers overflow"
    )]
    Hidden {
        /// Position of the token.
        position: usize,
    },
    /// Something that needs another kind of model.
    #[error("{what}: {why}")]
    Unsuited {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be had and what to do.
        why: &'static str,
    },
    /// The request's constraint failed, or leaves no token to draw.
    #[error("the constraint of the answer failed at step {step}: {why}")]
    Constraint {
        /// Position of the token that was to be drawn, prompt included.
        step: usize,
        /// What it says.
        why: String,
    },
    /// What guides an answer failed, or leaves nothing to say.
    #[error("the guidance of the answer failed at step {step}: {why}")]
    Guide {
        /// Position of the token that was to be drawn.
        step: usize,
        /// What is wrong.
        why: String,
    },
    /// An adapter that cannot be loaded, or is not.
    #[error("adapter {name:?}: {why}")]
    Adapter {
        /// Its name.
        name: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A store of the prefix cache that cannot be used.
    #[error("prefix cache {}: {why}", .path.display())]
    Store {
        /// The directory.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
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

/// A duration as people read it.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs_f64();
        if s < 1.0 { write!(f, "{:.0} ms", (1e3 * s).max(1.0)) } else { write!(f, "{s:.1} s") }
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
