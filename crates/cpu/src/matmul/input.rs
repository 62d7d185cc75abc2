//! Activations in blocks of 32 numbers of 15 bits with one scale, made once per matrix that several weights multiply.
//! A number is two signed bytes, because products of bytes are what CPUs are fast at; one byte is too coarse, see
//! `docs/adr/0002`.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::{Rows, lanes::Lanes};
use crate::simd::{Isa, Kind};

/// Rows that lie side by side: a kernel takes up to so many at once, with one pointer.
pub(crate) const GROUP: usize = 8;

/// Bits of the least magnitude of a block that is not rounded to zero, 2^-100: its inverse must be a number.
pub(crate) const SMALLEST: i32 = (127 - 100) << 23;

/// The largest magnitude of a quantised value: 127 in the high byte.
pub(crate) const STEPS: f32 = 127.0 * 128.0;

/// 32 values: `(128 high + low) * scale`, with `scale = max |x| / 16256`, `low` in -64..64 and `high` in -127..=127. If one is
/// infinite or NaN, the scale is NaN and so is every product.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(32))]
pub(crate) struct XBlock {
    /// High and low bytes of the values.
    pub(crate) q: [[i8; 32]; 2],
    /// Multiplies them.
    pub(crate) scale: f32,
    /// `scale` times the sum of the values.
    pub(crate) scaled_sum: f32,
    /// The same of the first and of the last 16 values.
    pub(crate) scaled_half: [f32; 2],
    /// What sums start from when something is subtracted from the codes, as the instruction set wants it (`Lanes`).
    pub(crate) starts: [i32; 4],
}

/// High and low part of a quantised value.
#[inline(always)]
pub(crate) fn split(q: i32) -> (i32, i32) {
    let high = (q + 64) >> 7;
    (high, q - (high << 7))
}

/// Fills in all but `q`; `sums` are those of the two halves.
///
/// # Safety
/// `out` is writable.
#[inline(always)]
pub(crate) unsafe fn finish(out: *mut XBlock, scale: f32, sums: [i32; 2], starts: [i32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        (*out).scale = scale;
        (*out).scaled_sum = scale * (sums[0] + sums[1]) as f32;
        (*out).scaled_half = sums.map(|s| scale * s as f32);
        (*out).starts = starts;
    }
}

/// A block of zeros, or of what is no number: `amax` are the bits of the largest magnitude.
///
/// # Safety
/// `out` is writable.
#[cold]
pub(crate) unsafe fn quantize_special(amax: i32, out: *mut XBlock) {
    let scale = if amax < SMALLEST { 0.0 } else { f32::NAN };
    // SAFETY: the caller's promise.
    unsafe {
        out.write(XBlock {
            q: [[0; 32]; 2],
            scale,
            scaled_sum: scale,
            scaled_half: [scale; 2],
            starts: [0; 4],
        })
    }
}

/// Quantised activations `[rows, cols]` in memory that the caller owns. Block `b` of row `r` of a group of `n` rows is the
/// group's `b * n + r`th; groups have `GROUP` rows, the last one perhaps fewer.
#[derive(Clone, Copy, Debug)]
pub struct Quantized {
    isa: Isa,
    ptr: *mut XBlock,
    rows: usize,
    cols: usize,
}

impl Quantized {
    /// Alignment of the memory.
    pub const ALIGN: usize = align_of::<XBlock>();

    /// Bytes of memory for a matrix.
    pub const fn bytes(rows: usize, cols: usize) -> usize {
        rows * (cols / 32) * size_of::<XBlock>()
    }

    /// A matrix at `ptr`, to be filled by [`quantize`](Self::quantize). `cols` is a multiple of 32.
    ///
    /// # Safety
    /// `ptr` is aligned to [`ALIGN`](Self::ALIGN) and valid for [`bytes`](Self::bytes) as long as this or a copy is used.
    pub unsafe fn new(isa: Isa, ptr: *mut u8, rows: usize, cols: usize) -> Quantized {
        assert!(cols.is_multiple_of(32), "{cols} columns are not whole blocks of 32");
        assert!(ptr.addr().is_multiple_of(Self::ALIGN), "activations at {ptr:?} are not aligned");
        Quantized { isa, ptr: ptr.cast(), rows, cols }
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

    pub(crate) fn ptr(&self) -> *const XBlock {
        self.ptr
    }

    /// Quantises `rows` of `x`.
    ///
    /// # Safety
    /// `x` is readable for these rows, and no other thread uses them here.
    pub unsafe fn quantize(&self, x: Rows, rows: Range<usize>) {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let blocks = self.cols / 32;
        for r in rows {
            let group = r / GROUP * GROUP;
            let n = GROUP.min(self.rows - group);
            // SAFETY: the places of this row, and its values; the ISA exists.
            unsafe {
                let out = self.ptr.add(group * blocks + (r - group));
                let x = x.ptr.add(r * x.stride);
                match self.isa.kind() {
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx512 => avx512(x, blocks, out, n),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx2 => avx2(x, blocks, out, n),
                    Kind::Portable => row::<super::Portable>(x, blocks, out, n),
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn row<S: Lanes>(x: *const f32, blocks: usize, out: *mut XBlock, stride: usize) {
    for b in 0..blocks {
        // SAFETY: `quantize` gives the row.
        unsafe { S::quantize(x.add(32 * b), out.add(b * stride)) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512(x: *const f32, blocks: usize, out: *mut XBlock, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe { row::<Avx512>(x, blocks, out, stride) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(x: *const f32, blocks: usize, out: *mut XBlock, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe { row::<Avx2>(x, blocks, out, stride) }
}
