//! What the card can do at best, measured: the peaks that benchmarks print shares of.

use crate::args::Peak;
use crate::gpu::Gpu;
use quarrel_ir::Result;

/// Peak rates of a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Peaks {
    /// Reading its memory.
    pub read_bytes_per_s: f64,
    /// Multiplications and additions of bf16 matrices in f32.
    pub matrix_flops_per_s: f64,
}

/// Far more than the caches hold.
const READ_BYTES: usize = 2 << 30;

/// Multiplications and additions of a block of `peak_matrix` in a round: two warpgroups, four products each.
const ROUND_FLOPS: f64 = 2.0 * 4.0 * 2.0 * 64.0 * 256.0 * 16.0;

/// Measures the peaks of GPU `ordinal`, in about a tenth of a second.
pub fn peaks(ordinal: usize) -> Result<Peaks> {
    let gpu = Gpu::open(ordinal)?;
    gpu.bind()?;
    let bytes = READ_BYTES.min(gpu.memory()?.0 / 4);
    let buffer = gpu.alloc(bytes, "the measurement of bandwidth")?;
    gpu.fill(buffer.ptr, 0x5a, bytes)?;
    let out = gpu.zeroed(256, "a result")?;
    let sms = gpu.caps.multiprocessors;
    let best = |kernel: &'static str, n: usize, grid: u32, block: u32| -> Result<f64> {
        let args = Peak { from: buffer.ptr, out: out.ptr, n: n as i64 };
        let (start, end) = (gpu.event(true)?, gpu.event(true)?);
        let mut best = f64::INFINITY;
        for _ in 0..6 {
            start.record()?;
            gpu.launch(kernel, [grid, 1, 1], block, 0, &args)?;
            end.record()?;
            end.wait()?;
            best = best.min(f64::from(start.until(&end)?) / 1e3);
        }
        Ok(best)
    };
    let read = best("peak_read", bytes / 16, 4 * sms, 512)?;
    let rounds = 2000;
    let matrix = best("peak_matrix", rounds, sms, 256)?;
    Ok(Peaks {
        read_bytes_per_s: bytes as f64 / read,
        matrix_flops_per_s: ROUND_FLOPS * rounds as f64 * f64::from(sms) / matrix,
    })
}
