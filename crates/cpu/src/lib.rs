//! The CPU device: thread pool, packed weights and SIMD kernels.

pub mod simd;
