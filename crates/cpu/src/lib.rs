//! The CPU device: thread pool, packed weights and SIMD kernels.
//!
//! [`Cpu`] prepares a Program once and then runs each step as one parallel region over its tape. Results do not depend on
//! the number of threads, on the other rows of a step, or on how a prompt is cut into steps.

mod device;
mod exec;
mod experts;
mod footprint;
mod kernels;
mod kv;
mod kv_edit;
mod linear;
mod lora;
pub mod matmul;
pub mod pack;
mod peaks;
mod plan;
mod pool;
pub mod simd;
mod states;
pub mod tune;
mod weights;

pub use device::{Cpu, CpuOptions, processor_name};
pub use footprint::{Footprint, Stored, footprint};
pub use kv::KvType;
pub use pack::memory::trim_heap;
pub use peaks::Peaks;
pub use simd::Isa;
pub use states::state_bytes;
