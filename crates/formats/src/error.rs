//! What can go wrong while reading or writing a model file. Every message says where and, where it helps, what to do.

use std::path::{Path, PathBuf};

use crate::DType;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{}: cannot {action}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, such as "open".
        action: &'static str,
        /// The system's answer.
        error: std::io::Error,
    },
    /// Something is wrong inside this file.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        error: Box<Error>,
    },
    /// The path is not a model that can be opened.
    #[error("{0}")]
    NotAModel(String),
    /// A field of a GGUF or safetensors file is wrong.
    #[error("{field}: {reason}")]
    Field {
        /// The field, such as `tensor "blk.0.attn_q.weight", offset`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor type that is not known.
    #[error("tensor type {0:?} is not known")]
    UnknownType(String),
    /// The sizes given to `dequantize` or `quantize` do not belong together.
    #[error("{dtype}: {bytes} bytes do not hold {values} values ({} bytes per {} values)", dtype.block_bytes(), dtype.block_len())]
    BlockSize {
        /// The tensor type.
        dtype: DType,
        /// Bytes given.
        bytes: usize,
        /// Values asked for.
        values: usize,
    },
    /// There is no encoder for this type.
    #[error(
        "{0}: quantising to this type is not supported; use another, such as Q8_0, Q6_K, Q5_K, Q4_K, Q4_0, F16 or BF16"
    )]
    NoEncoder(DType),
    /// A value that a quantised type cannot hold.
    #[error("value {index} is {value}: {dtype} cannot hold it, only finite numbers of ordinary size")]
    CannotHold {
        /// The tensor type.
        dtype: DType,
        /// Position of the value in the slice given.
        index: usize,
        /// The value.
        value: f32,
    },
}

impl Error {
    pub(crate) fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Field { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Error::Io { path, action, error }
    }

    /// Says in which file the error is.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Error::Io { .. } | Error::File { .. } => self,
            error => Error::File { path: path.to_owned(), error: Box::new(error) },
        }
    }
}
