//! What the processor can do at best: reading memory, multiplying bytes, multiplying floats. Benchmarks give the speed of a
//! model as a share of these. Each figure is the best of several passes, because what disturbs a pass only makes it slower.

use crate::kv::huge_pages;
use crate::pool::Pool;
use crate::simd::{F32x16, Isa, Kernel, Kind, LANES, Simd};
use memmap2::MmapMut;
use quarrel_ir::{Error, Result};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Passes over the buffer with each number of streams.
const PASSES: usize = 5;
/// Streams that one thread reads at a time; which number is best differs from processor to processor.
const STREAMS: [usize; 3] = [1, 4, 8];
/// Bytes of a stream that are read before the next stream's turn.
const CHUNK: usize = 512;
/// Independent sums: enough to hide the latency of a product, few enough for 16 registers.
const SUMS: usize = 12;
/// How long each arithmetic peak is looked for.
const SEARCH: Duration = Duration::from_millis(200);

/// Measured peaks of this processor with a number of threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Bytes per second read from memory.
    pub read_bytes_per_s: f64,
    /// Multiplications and additions per second of 8-bit integers into 32-bit sums.
    pub int8_ops_per_s: f64,
    /// Multiplications and additions per second of 32-bit floats.
    pub f32_flops_per_s: f64,
}

impl Peaks {
    /// Measures for about a second. `buffer_bytes` are read, which should be several times the last-level cache; `threads`
    /// take part, the caller being one.
    ///
    /// # Errors
    /// Where the threads or the buffer cannot be had.
    pub fn measure(isa: Isa, threads: usize, buffer_bytes: usize) -> Result<Peaks> {
        let threads = threads.max(1);
        let device = |why: String| Error::Device { device: "cpu".into(), why };
        let mut pool =
            Pool::new(threads).map_err(|e| device(format!("cannot start {threads} threads: {e}")))?;
        let read = read_peak(isa, &mut pool, buffer_bytes).map_err(|e| match e {
            Failure::Memory(bytes) => Error::Memory { what: "the buffer of the bandwidth test", bytes },
            Failure::Panic(why) => device(why),
        })?;
        let mut int8 = 0.0f64;
        let mut float = 0.0f64;
        let start = Instant::now();
        while start.elapsed() < SEARCH {
            int8 = int8.max(rate(&mut pool, &|| int8_loop(isa)).map_err(device)?);
        }
        let start = Instant::now();
        while start.elapsed() < SEARCH {
            float = float.max(rate(&mut pool, &|| float_loop(isa)).map_err(device)?);
        }
        Ok(Peaks { read_bytes_per_s: read, int8_ops_per_s: int8, f32_flops_per_s: float })
    }
}

enum Failure {
    Memory(usize),
    Panic(String),
}

/// Operations per second of all threads together; `f` returns how many it did.
fn rate(pool: &mut Pool, f: &(dyn Fn() -> u64 + Sync)) -> std::result::Result<f64, String> {
    let done = AtomicU64::new(0);
    let start = Instant::now();
    pool.run(&|_| _ = done.fetch_add(f(), Relaxed))?;
    Ok(done.load(Relaxed) as f64 / start.elapsed().as_secs_f64())
}

fn read_peak(isa: Isa, pool: &mut Pool, bytes: usize) -> std::result::Result<f64, Failure> {
    let unit = pool.threads() * STREAMS[STREAMS.len() - 1] * CHUNK;
    let bytes = (bytes / unit).max(1) * unit;
    let mut map = MmapMut::map_anon(bytes).map_err(|_| Failure::Memory(bytes))?;
    huge_pages(&map);
    // A page that was never written is the one page of zeros; writing makes it real, and its first touch is slow.
    map.chunks_mut(4096).for_each(|page| page[0] = 1);
    let part = bytes / pool.threads();
    let mut best = 0.0f64;
    for streams in STREAMS {
        for _ in 0..PASSES {
            let start = Instant::now();
            pool.run(&|team| {
                let mine = &map[team.index * part..(team.index + 1) * part];
                black_box(isa.run(Read { bytes: mine, streams }));
            })
            .map_err(Failure::Panic)?;
            best = best.max(bytes as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Sums a part of the buffer, as several streams side by side.
struct Read<'a> {
    bytes: &'a [u8],
    streams: usize,
}

impl Kernel for Read<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const LOADS: usize = CHUNK / (LANES * 4);
        let mut sums = [s.splat(0.0); LOADS];
        let stream = self.bytes.len() / self.streams;
        for at in (0..stream / CHUNK * CHUNK).step_by(CHUNK) {
            for i in 0..self.streams {
                let chunk = &self.bytes[i * stream + at..][..CHUNK];
                for (j, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `chunk` has LOADS vectors of 64 bytes; any bits are an f32.
                    *sum = *sum + unsafe { s.load_ptr(chunk.as_ptr().add(j * LANES * 4).cast()) };
                }
            }
        }
        sums.into_iter().fold(s.splat(0.0), |a, b| a + b).sum()
    }
}

/// Rounds of the arithmetic loops, about a millisecond.
const ROUNDS: u64 = 1 << 17;

/// Fused multiply-adds in registers, `N` independent ones.
struct Float<const N: usize>;

impl<const N: usize> Kernel for Float<N> {
    type Out = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        let mut sums = [s.splat(1.0); N];
        for _ in 0..ROUNDS {
            for i in 0..N {
                sums[i] = sums[i].fma(a, b);
            }
        }
        black_box(sums.into_iter().fold(s.splat(0.0), |a, b| a + b).sum());
        ROUNDS * (N * LANES * 2) as u64
    }
}

/// Multiply-adds of floats, as many side by side as the registers hold; returns the operations done.
fn float_loop(isa: Isa) -> u64 {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => isa.run(Float::<SUMS>),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => isa.run(Float::<6>),
        Kind::Portable => isa.run(Float::<3>),
    }
}

/// Dot products of bytes; returns the operations done.
fn int8_loop(isa: Isa) -> u64 {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a value of this kind exists only where the CPU has the instructions.
        Kind::Avx512 => unsafe { x86::int8_avx512() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Avx2 => unsafe { x86::int8_avx2() },
        Kind::Portable => int8_portable(),
    }
}

fn int8_portable() -> u64 {
    const N: usize = 256;
    let (a, b) = ([3i8; N], [5i8; N]);
    let rounds = ROUNDS / 16;
    let mut sum = 0i32;
    for _ in 0..rounds {
        let (a, b) = (black_box(&a), black_box(&b));
        sum = sum.wrapping_add(a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum::<i32>());
    }
    black_box(sum);
    rounds * N as u64 * 2
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{ROUNDS, SUMS};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn int8_avx512() -> u64 {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..ROUNDS {
            for s in &mut sums {
                *s = _mm512_dpbusd_epi32(*s, a, b);
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 64 * 2
    }

    /// As kernels do it without VNNI: bytes to 16 bits, to 32 bits, added. The first factor comes from memory, as the same
    /// product of the same registers would be taken out of the loop.
    #[target_feature(enable = "avx2")]
    pub(super) fn int8_avx2() -> u64 {
        let (line, ones) = ([_mm256_set1_epi8(3); SUMS], _mm256_set1_epi16(1));
        let b = _mm256_set1_epi8(black_box(5));
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for _ in 0..ROUNDS {
            for (s, a) in sums.iter_mut().zip(black_box(&line)) {
                *s = _mm256_add_epi32(*s, _mm256_madd_epi16(_mm256_maddubs_epi16(*a, b), ones));
            }
        }
        black_box(sums);
        ROUNDS * SUMS as u64 * 32 * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_peaks() {
        for isa in Isa::available() {
            let p = Peaks::measure(isa, 1, 1 << 20).unwrap();
            for (what, v) in
                [("read", p.read_bytes_per_s), ("int8", p.int8_ops_per_s), ("f32", p.f32_flops_per_s)]
            {
                assert!(v.is_finite() && v > 0.0, "{isa} {what}: {v}");
            }
        }
    }
}
