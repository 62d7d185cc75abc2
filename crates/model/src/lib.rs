//! Architectures as data, and the one forward pass that builds a Program from them.
//!
//! A file's metadata ([`from_gguf`] or [`from_hf`]) and a row of the table in [`arch`] give a [`ModelSpec`];
//! [`decoder::decoder`] turns it into a Program; [`weights::load`] hands the tensors to a device. Differences between
//! sources (names, Gemma's norm + 1, tied heads) end here: nothing above or below knows an architecture's name.
#![forbid(unsafe_code)]

pub mod arch;
pub mod decoder;
mod encdec;
pub mod experts;
pub mod from_gguf;
pub mod from_hf;
pub mod hybrid;
pub mod latent;
pub mod lora;
pub mod names;
pub mod rope;
pub mod spec;
mod stacks;
pub mod streams;
mod t5;
pub mod weights;

pub use arch::Arch;
pub use spec::{DistanceSpec, LayerSpec, ModelSpec, SourceSpec};

use quarrel_formats::Source;

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file lacks a field that its architecture needs, or has it with an impossible value.
    #[error("model field {field}: {why}")]
    Field {
        /// Metadata key or configuration entry.
        field: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// An architecture that the table does not have.
    #[error(
        "architecture {name:?} is not supported; nearest is {nearest} (supported: {known}). \
         Fields not understood: {fields}. Tensors not understood: {tensors}"
    )]
    UnknownArch {
        /// What the file says.
        name: String,
        /// The family with the most tensors in common.
        nearest: String,
        /// All families.
        known: String,
        /// Metadata that the nearest family does not know.
        fields: String,
        /// Tensor names that the nearest family does not have.
        tensors: String,
    },
    /// Metadata or tensors beyond what the family is known to need: running would silently ignore them.
    #[error(
        "this {arch} model has {what} that the engine does not understand: {names}; it would not run as intended"
    )]
    NotUnderstood {
        /// Family.
        arch: &'static str,
        /// `fields` or `tensors`.
        what: &'static str,
        /// Their names.
        names: String,
    },
    /// An adapter that is not understood, or does not fit the model.
    #[error("adapter {file}: {at}: {why}")]
    Adapter {
        /// The file.
        file: String,
        /// Setting or tensor.
        at: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A tensor that is not in the file.
    #[error("tensor {name} is missing from {file}; the file is incomplete or made for another architecture")]
    MissingTensor {
        /// Canonical name, and the source's where it differs.
        name: String,
        /// The file or directory.
        file: String,
    },
    /// The file itself.
    #[error(transparent)]
    Format(#[from] quarrel_formats::Error),
    /// The Program or the device.
    #[error(transparent)]
    Ir(#[from] quarrel_ir::Error),
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Reads the specification of a model from any source.
pub fn spec(source: &Source) -> Result<ModelSpec> {
    if lora::is_adapter(source) {
        let why = "is a LoRA adapter and not a model; name its model, and the adapter beside it (--lora)";
        return Err(Error::Adapter { file: place(source), at: "the file".into(), why: why.into() });
    }
    match source {
        Source::Gguf(gguf) => from_gguf::spec(source, &gguf.metadata),
        Source::Hf(hf) => from_hf::spec(source, &hf.config),
    }
}

/// Whether a file is of a family whose encoder reads the prompt and whose decoder answers it.
pub fn reads_source(source: &Source) -> bool {
    let arch = match source {
        Source::Gguf(gguf) => {
            gguf.metadata.str("general.architecture").and_then(|name| arch::by_gguf(name, false))
        }
        Source::Hf(hf) => hf.config["architectures"][0].as_str().and_then(arch::by_hf),
    };
    arch.is_some_and(|a| a.causal && a.positions == arch::Positions::Buckets)
}

/// The file or directory that a source was opened from, for messages.
pub(crate) fn place(source: &Source) -> String {
    source.paths().first().map(|p| p.display().to_string()).unwrap_or_default()
}
