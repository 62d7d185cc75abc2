//! The CPU device: thread pool, packed weights and SIMD kernels.

pub mod matmul;
pub mod pack;
pub mod simd;
