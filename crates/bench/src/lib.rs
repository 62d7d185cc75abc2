//! Measures the machine and a model on it.
//!
//! [`Machine`] is the fingerprint with the measured peaks; [`Work`] says what to measure; [`Session`] holds the model and
//! measures below the engine; `serve` measures through it; [`kv`] compares the types of
//! the cache; [`load`] puts the engine under load; `child` looks at fresh processes; [`Report`] is what comes out,
//! as JSON, as text ([`text`]), as a plot ([`plot`]), or compared with an earlier one ([`check`]).
#![forbid(unsafe_code)]

pub mod against;
pub mod check;
pub mod child;
mod chosen;
mod kept;
pub mod kv;
pub mod load;
mod machine;
pub mod ops;
pub mod plan;
pub mod plot;
mod report;
mod serve;
mod session;
pub mod speculate;
pub mod stats;
pub mod svg;
pub mod text;
mod work;

pub use chosen::Chosen;
pub use machine::{Machine, Rates};
pub use report::{BatchSpeed, Bound, DepthSpeed, Latency, Memory, ModelInfo, Report, Speed, StartUp};
pub use serve::latency;
pub use session::{KV_ELEMENT_BYTES, Session, Totals, Turn};
pub use stats::Spread;
pub use work::{Case, Wish, Work};

use std::path::PathBuf;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than the model or the machine has.
    #[error("{0}")]
    Work(String),
    /// A file that cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// `read`, `write`, ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A baseline that is no report of ours.
    #[error("{} is no report of `quarrel bench --json`: {why}", path.display())]
    Baseline {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A baseline of another machine, model or work.
    #[error("the baseline cannot be compared: {0}")]
    Different(String),
    /// A process that was started to be measured, and failed.
    #[error("{what} failed: {why}")]
    Child {
        /// What was to be measured.
        what: String,
        /// Its last words.
        why: String,
    },
    /// The user asked for a stop while a process was measured; the process has ended.
    #[error("stopped")]
    Stopped,
    /// The package to compare with.
    #[error("{0}")]
    Package(String),
    /// The model.
    #[error(transparent)]
    Model(#[from] quarrel_model::Error),
    /// The device.
    #[error(transparent)]
    Device(#[from] quarrel_ir::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] quarrel_engine::Error),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// What to tell of the progress: a part of the work is about to start.
pub type Progress<'a> = &'a mut dyn FnMut(&str);
