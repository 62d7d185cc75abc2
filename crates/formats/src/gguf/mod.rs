//! GGUF files, versions 2 and 3, little-endian: parse and write.
//! Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod metadata;
mod parse;
mod write;

pub use metadata::{Array, Metadata, Value};
pub use write::{NewTensor, write};

use crate::{DType, Error};

/// Tensor data begins and continues at multiples of this where `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// Longest metadata key, in bytes (the specification's).
pub const KEY_BYTES_MAX: usize = 65_535;
/// Longest tensor name, in bytes (ggml itself stops at 63).
pub const NAME_BYTES_MAX: usize = 1023;
/// Most dimensions of a tensor (ggml's).
pub const DIMS_MAX: usize = 4;
/// Deepest nesting of arrays in arrays; published files have none.
pub const DEPTH_MAX: usize = 4;

/// The header of a GGUF file: everything but the tensors' bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    /// Format version, 2 or 3.
    pub version: u32,
    /// Keys and values in the order of the file.
    pub metadata: Metadata,
    /// Tensors in the order of the file; names are unique, ranges lie in the file and do not overlap.
    pub tensors: Vec<TensorInfo>,
    /// Every tensor starts at a multiple of this, counted from `data_offset`. A power of two.
    pub alignment: u64,
    /// Where tensor data begins in the file, in bytes.
    pub data_offset: u64,
}

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Unique name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major, outermost dimension first: the reverse of the file's order. 1 to 4 dimensions, none of them zero.
    pub shape: Vec<u64>,
    /// Bytes from [`Gguf::data_offset`].
    pub offset: u64,
    /// Size of the data.
    pub bytes: u64,
}

impl Gguf {
    /// Reads the header of a whole file given as bytes. Nothing of the tensors' data is touched.
    pub fn parse(bytes: &[u8]) -> Result<Gguf, Error> {
        parse::parse(bytes)
    }

    /// The range of a tensor's data in the file.
    pub fn range(&self, tensor: &TensorInfo) -> std::ops::Range<usize> {
        // Both ends were found to lie within the parsed bytes, so they fit.
        let start = (self.data_offset + tensor.offset) as usize;
        start..start + tensor.bytes as usize
    }
}

/// The bytes of a tensor of this type and shape; `Err` says what is wrong with it.
fn tensor_bytes(dtype: DType, shape: &[u64]) -> Result<u64, String> {
    if shape.is_empty() || shape.len() > DIMS_MAX {
        return Err(format!("{} dimensions; 1 to {DIMS_MAX} are allowed", shape.len()));
    }
    if shape.contains(&0) {
        return Err(format!("shape {shape:?} has a dimension of zero"));
    }
    let cols = shape[shape.len() - 1];
    let len = dtype.block_len() as u64;
    if !cols.is_multiple_of(len) {
        return Err(format!("rows of {cols} values are not whole blocks of {len} as {dtype} needs"));
    }
    let rows = shape[..shape.len() - 1].iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    // i64::MAX as ggml has it, so that sums of two such numbers cannot overflow either.
    rows.and_then(|rows| rows.checked_mul(cols))
        .and_then(|values| (values / len).checked_mul(dtype.block_bytes() as u64))
        .filter(|bytes| *bytes <= i64::MAX as u64)
        .ok_or_else(|| format!("shape {shape:?} overflows"))
}

/// The next multiple of `alignment`, a power of two.
fn align(at: u64, alignment: u64) -> Option<u64> {
    at.checked_next_multiple_of(alignment)
}
