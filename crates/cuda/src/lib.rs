//! NVIDIA GPUs as a device: `ir::Device` over the driver, with kernels compiled ahead and embedded.
//!
//! Nothing of CUDA is needed to build the program or to start it: the driver's library is opened when a GPU is asked for.
//! How it works, and what was measured, is in `docs/cuda.md`.

mod args;
mod choose;
mod device;
mod exec;
mod experts;
mod footprint;
mod gpu;
mod kernels;
mod kv;
mod peaks;
mod product;
mod refuse;
mod step;
mod tuned;
mod weights;

pub use device::{Cuda, CudaOptions};
pub use footprint::{Footprint, footprint};
pub use gpu::Caps;
pub use kv::KvType;
pub use peaks::{Peaks, peaks};

/// How many GPUs there are; the sentence says why none can be used.
pub fn gpus() -> Result<usize, String> {
    gpu::count()
}
