//! Model file formats: GGUF, safetensors, tensor types and quantised blocks.
//!
//! The only crate that parses model bytes. Files come from strangers: every size, count, offset and name is checked
//! before it is used, and an error names the field. Nothing here depends on the other crates.
#![deny(unsafe_code)] // `bytes` alone may: it holds the memory map

mod bytes;
mod dtype;
mod error;
pub mod gguf;
pub mod quant;
pub mod safetensors;
mod source;

pub use bytes::Bytes;
pub use dtype::DType;
pub use error::Error;
pub use gguf::{Array, Gguf, Metadata, TensorInfo, Value};
pub use quant::{dequantize, quantize};
pub use source::{GgufSource, HfSource, Source, Tensor};
