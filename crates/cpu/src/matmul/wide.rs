//! Products of many rows with weights that are floats: lanes are output columns, as the weights of a unit are widened and
//! transposed once for all rows, and the activations are packed so that a step reads neighbours.
//!
//! The bits are those of `float`, whose lanes go along `k`: its `L` partial sums (`k` modulo `L`) are computed here one after
//! the other, and merged in the order of its tree.

use std::ops::Range;

use quarrel_formats::{DType, quant};

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::{
    Rows, UNIT,
    lanes::{Lanes, Portable},
};
use crate::{
    pack::PackedWeight,
    simd::{F32x16, Isa, Kernel, Kind, Simd},
};

/// Rows of a chunk and of the smaller chunks behind the last whole one; the last of those is filled up with zeros.
fn chunk_rows(isa: Isa) -> (usize, usize) {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => (12, 4),
        _ => (6, 2),
    }
}

fn lanes(isa: Isa) -> usize {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => Avx512::L,
        _ => Portable::L,
    }
}

/// Float activations `[rows, cols]`, packed for products with many rows, in memory that the caller owns. In a chunk of `n`
/// rows, the value of row `r` at `k = i * L + c` is at `(c * steps + i) * n + r`, where `steps = ceil(cols / L)`.
#[derive(Clone, Copy, Debug)]
pub struct PackedFloats {
    isa: Isa,
    ptr: *mut f32,
    rows: usize,
    cols: usize,
}

impl PackedFloats {
    /// From so many rows on, packing pays.
    pub const WORTH: usize = 64;

    /// Bytes of memory for a matrix.
    pub fn bytes(isa: Isa, rows: usize, cols: usize) -> usize {
        let (large, small) = chunk_rows(isa);
        let padded = rows / large * large + (rows % large).next_multiple_of(small);
        padded * cols.next_multiple_of(lanes(isa)) * size_of::<f32>()
    }

    /// A matrix at `ptr`, to be filled by [`pack`](Self::pack).
    ///
    /// # Safety
    /// `ptr` is aligned for `f32` and valid for [`bytes`](Self::bytes) as long as this or a copy is used.
    pub unsafe fn new(isa: Isa, ptr: *mut u8, rows: usize, cols: usize) -> PackedFloats {
        let ptr = ptr.cast::<f32>();
        assert!(ptr.is_aligned(), "activations at {ptr:?} are not aligned");
        PackedFloats { isa, ptr, rows, cols }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The instruction set it is made for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    fn steps(&self) -> usize {
        self.cols.div_ceil(lanes(self.isa))
    }

    /// The first row and the size of the chunk of `row`.
    fn chunk(&self, row: usize) -> (usize, usize) {
        let (large, small) = chunk_rows(self.isa);
        let whole = self.rows / large * large;
        if row < whole {
            (row / large * large, large)
        } else {
            (whole + (row - whole) / small * small, small)
        }
    }

    /// Packs `rows` of `x`.
    ///
    /// # Safety
    /// `x` is readable for these rows, and no other thread uses them here.
    pub unsafe fn pack(&self, x: Rows, rows: Range<usize>) {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let (l, steps) = (lanes(self.isa), self.steps());
        for row in rows {
            let (first, n) = self.chunk(row);
            // SAFETY: the places of this row, and, for the last row, of the zeros behind it in the chunk.
            unsafe {
                let out = self.ptr.add(first * steps * l + (row - first));
                let x = x.ptr.add(row * x.stride);
                for i in 0..self.cols / l {
                    for c in 0..l {
                        *out.add((c * steps + i) * n) = *x.add(i * l + c);
                    }
                }
                for k in self.cols / l * l..steps * l {
                    *out.add((k % l * steps + k / l) * n) = if k < self.cols { *x.add(k) } else { 0.0 };
                }
                if row + 1 == self.rows {
                    for beyond in 1..n - (row - first) {
                        for at in 0..steps * l {
                            *out.add(at * n + beyond) = 0.0;
                        }
                    }
                }
            }
        }
    }
}

/// Chunks of the same size that are computed together, one partial sum after the other: its weights stay in the first cache.
const CHUNKS: usize = 5;

/// Most rows of a call.
pub(super) const ROWS: usize = CHUNKS * 12;

/// A unit's weights as f32, transposed; memory that is used again for the next unit.
#[derive(Default)]
pub(super) struct WideUnit {
    rows: Vec<f32>,
    transposed: Vec<Line>,
}

/// A unit's columns at one `k`: a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; UNIT]);

impl WideUnit {
    /// Takes the weights of `columns`.
    pub(super) fn load(&mut self, w: &PackedWeight, columns: Range<usize>, x: &PackedFloats) {
        let bytes = w.file_rows().expect("the caller saw that it was not repacked");
        let row_bytes = bytes.len() / w.rows();
        let bytes = &bytes[columns.start * row_bytes..columns.end * row_bytes];
        let (steps, l) = (x.steps(), lanes(x.isa));
        self.rows.clear();
        self.rows.resize(UNIT * steps * l, 0.0);
        self.transposed.resize(steps * l, Line([0.0; UNIT]));
        for (row, out) in bytes.chunks_exact(row_bytes).zip(self.rows.chunks_exact_mut(steps * l)) {
            widen(w, row, &mut out[..w.cols()]);
        }
        // SAFETY: the buffers have these sizes, and the ISA exists.
        unsafe { transpose(x.isa, self.rows.as_ptr(), self.transposed.as_mut_ptr().cast(), steps) }
    }

    /// The product with rows from `first` on, the beginning of a chunk, to `y`, [`UNIT`] floats a row; gives their number.
    ///
    /// # Safety
    /// `x` is filled, and is that of `load`.
    pub(super) unsafe fn product(&self, x: &PackedFloats, first: usize, y: &mut [f32; ROWS * UNIT]) -> usize {
        let (start, n) = x.chunk(first);
        debug_assert_eq!(first, start);
        let (large, _) = chunk_rows(x.isa);
        let alike = if n == large { x.rows / large * large } else { x.rows };
        let chunks = (alike - first).div_ceil(n).min(CHUNKS);
        // SAFETY: the chunk begins behind `first` whole rows.
        unsafe {
            let (steps, rows) = (x.steps(), x.ptr.add(first * x.steps() * lanes(x.isa)));
            run(x.isa, n, chunks, self.transposed.as_ptr().cast(), rows, steps, y.as_mut_ptr());
        }
        (chunks * n).min(x.rows - first)
    }
}

/// A row of weights as f32.
fn widen(w: &PackedWeight, row: &[u8], out: &mut [f32]) {
    struct Widen<'a>(&'a [u8], &'a mut [f32], bool);
    impl Kernel for Widen<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks(2 * UNIT).zip(self.1.chunks_mut(UNIT)) {
                let mut lanes = [0u16; UNIT];
                let x = if x.len() == 2 * UNIT {
                    x.as_ptr().cast()
                } else {
                    for (lane, x) in lanes.iter_mut().zip(x.as_chunks().0) {
                        *lane = u16::from_le_bytes(*x);
                    }
                    lanes.as_ptr()
                };
                // SAFETY: 32 bytes of the row, or the copy.
                let v = unsafe { if self.2 { s.load_bf16_ptr(x) } else { s.load_f16_ptr(x) } };
                if y.len() == UNIT { v.store(y) } else { v.store_partial(y) }
            }
        }
    }
    match w.dtype() {
        DType::F16 | DType::BF16 => w.isa().run(Widen(row, out, w.dtype() == DType::BF16)),
        dtype => quant::dequantize(dtype, row, out).expect("the type was tried when the weight was made"),
    }
}

/// From `[UNIT][steps][L]` to `[L][steps][UNIT]`.
///
/// # Safety
/// The ISA exists, and the pointers are valid for these sizes.
unsafe fn transpose(isa: Isa, from: *const f32, to: *mut f32, steps: usize) {
    let l = lanes(isa);
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if isa != Isa::PORTABLE {
            for i in 0..steps {
                for c in (0..l).step_by(8) {
                    for column in (0..UNIT).step_by(8) {
                        let from = from.add(column * steps * l + i * l + c);
                        transpose8(from, steps * l, to.add((c * steps + i) * UNIT + column), steps * UNIT);
                    }
                }
            }
            return;
        }
        for c in 0..l {
            for i in 0..steps {
                for column in 0..UNIT {
                    *to.add((c * steps + i) * UNIT + column) = *from.add((column * steps + i) * l + c);
                }
            }
        }
    }
}

/// Eight rows of eight floats, transposed.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller gives eight rows on both sides.
    unsafe {
        let r: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(from.add(i * from_stride)));
        let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let ((a0, a1), (b0, b1)) = (pairs(r[0], r[1]), pairs(r[2], r[3]));
        let ((c0, c1), (d0, d1)) = (pairs(r[4], r[5]), pairs(r[6], r[7]));
        let low = |a, b| _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
        let high = |a, b| _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
        let upper = [low(a0, b0), high(a0, b0), low(a1, b1), high(a1, b1)];
        let lower = [low(c0, d0), high(c0, d0), low(c1, d1), high(c1, d1)];
        for i in 0..4 {
            _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
            _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
        }
    }
}

/// # Safety
/// The ISA exists; the pointers are valid for `chunks` chunks of `n` rows and a unit.
unsafe fn run(isa: Isa, n: usize, chunks: usize, w: *const f32, x: *const f32, steps: usize, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match (isa.kind(), n) {
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, 12) => avx512::<12>(chunks, w, x, steps, y),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, _) => avx512::<4>(chunks, w, x, steps, y),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, 6) => avx2::<6>(chunks, w, x, steps, y),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, _) => avx2::<2>(chunks, w, x, steps, y),
            (Kind::Portable, 6) => product::<Portable, 2, 6>(chunks, w, x, steps, y),
            (Kind::Portable, _) => product::<Portable, 2, 2>(chunks, w, x, steps, y),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512<const R: usize>(chunks: usize, w: *const f32, x: *const f32, steps: usize, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { product::<Avx512, 1, R>(chunks, w, x, steps, y) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const R: usize>(chunks: usize, w: *const f32, x: *const f32, steps: usize, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { product::<Avx2, 2, R>(chunks, w, x, steps, y) }
}

/// Chunks of `R` rows and the `V * L` columns of a unit.
#[inline(always)]
unsafe fn product<S: Lanes, const V: usize, const R: usize>(
    chunks: usize,
    w: *const f32,
    x: *const f32,
    steps: usize,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        // Sums that wait for their partner in the tree, one per chunk and level.
        let mut waiting = [[[[S::fzero(); V]; R]; 4]; CHUNKS];
        let levels = S::L.trailing_zeros();
        for n in 0..S::L {
            let class = n.reverse_bits() >> (usize::BITS - levels);
            for chunk in 0..chunks {
                let waiting = &mut waiting[chunk];
                let mut w = w.add(class * steps * UNIT);
                let mut x = x.add((chunk * S::L + class) * steps * R);
                let mut acc = [[S::fzero(); V]; R];
                for _ in 0..steps {
                    let ws: [S::F; V] = std::array::from_fn(|v| S::f32(w.add(v * S::L).cast()));
                    for r in 0..R {
                        let x = S::splat(*x.add(r));
                        for v in 0..V {
                            acc[r][v] = S::fma(ws[v], x, acc[r][v]);
                        }
                    }
                    w = w.add(UNIT);
                    x = x.add(R);
                }
                let mut level = 0;
                while n >> level & 1 == 1 {
                    for r in 0..R {
                        for v in 0..V {
                            acc[r][v] = S::add(waiting[level][r][v], acc[r][v]);
                        }
                    }
                    level += 1;
                }
                if n + 1 < S::L {
                    waiting[level] = acc;
                    continue;
                }
                for r in 0..R {
                    for v in 0..V {
                        S::store(acc[r][v], y.add((chunk * R + r) * UNIT + v * S::L));
                    }
                }
            }
        }
    }
}
