//! A model as one straight-line [`Program`] over matrices.
//!
//! In a decoder every activation is a matrix `[rows, cols]` and `rows` (the tokens of this step) is the only run-time
//! size; only attention sees heads, and attention is one op. So there is no N-d tensor, no stride and no broadcasting.
//! A pure function in `quarrel-model` builds the Program once; a [`Device`] prepares it and runs it.
//! The slow scalar interpreter in [`mod@reference`] *is* the semantics: every device is checked against it.
#![forbid(unsafe_code)]

pub mod arena;
pub mod candidates;
pub mod cost;
pub mod device;
mod display;
pub mod distance;
pub mod evict;
pub mod experts;
pub mod fuse;
pub mod op;
pub mod program;
pub mod reference;
pub mod rope;
mod scalar;
mod uses;

pub use candidates::Candidates;
pub use device::{
    Adapter, AdapterPart, BLOCK_TOKENS, Device, DeviceInfo, HostWeight, KvCopy, Limits, OpTime, Prepared,
    RANK_MAX, Readout, SeqStep, StateCopy, StepInputs, Stop, Weight, check_adapter, check_positions,
    check_source, check_states, no_adapter,
};
pub use distance::Buckets;
pub use evict::{Keep, KeyRotation, Mass, Observe, Turn};
pub use experts::{ExpertGroups, Gate, RouteSpec, Scoring};
pub use op::{Activation, AttendSpec, Blocks, Lookup, NormKind, NormSpec, Op, ScanSpec, View, alibi_slope};
pub use program::{KvLayer, Node, Program, Rows, TAPS_MAX, ValueId, WeightDecl, WeightId, WeightPart};
pub use rope::{Growth, RopeId, RopeStyle, RopeTable};
pub use uses::{Uses, check_overlap, uses};

/// What can go wrong between a Program and a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Program that does not hold together; a bug in its builder, or a model whose tensors contradict each other.
    #[error("the program is inconsistent at {at}: {why}")]
    Shape {
        /// The op, value or weight concerned.
        at: String,
        /// What does not fit.
        why: String,
    },
    /// A request outside what the device prepared for.
    #[error("the step exceeds what was prepared: {what} is {got}, the limit is {limit}")]
    Limit {
        /// Which limit.
        what: &'static str,
        /// The value asked for.
        got: usize,
        /// The value prepared for.
        limit: usize,
    },
    /// A step whose tables contradict each other.
    #[error("the step is inconsistent: {0}")]
    Step(String),
    /// A weight that the device cannot hold or read.
    #[error("weight {name}: {why}")]
    Weight {
        /// Tensor name.
        name: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// Memory that the system would not give.
    #[error("out of memory: {what} needs {bytes} bytes; choose a shorter context or a smaller model")]
    Memory {
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// The step was left because [`Stop`] said so.
    #[error("the step was stopped")]
    Stopped,
    /// A device that failed while running.
    #[error("device {device}: {why}")]
    Device {
        /// Device name.
        device: String,
        /// What happened.
        why: String,
    },
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;
