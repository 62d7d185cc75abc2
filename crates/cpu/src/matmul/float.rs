//! Products with weights that are floats in the file's layout, and with rows of rare types that are decoded first.
//!
//! Lanes go along `k`: an output is `L` partial sums (`k` modulo `L`), added up as a tree at the end. Several outputs and rows
//! are computed side by side, which leaves an output's arithmetic as it is.

use std::{cell::RefCell, ops::Range};

use quarrel_formats::{DType, quant};

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::{
    Rows, UNIT,
    lanes::{Lanes, Portable},
};
use crate::{pack::PackedWeight, simd::Kind};

/// How a weight's element is read.
trait Element {
    const BYTES: usize;
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F;
}

struct F32;
struct F16;
struct BF16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::f32(p) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::f16(p) }
    }
}

impl Element for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::bf16(p) }
    }
}

thread_local! {
    /// A unit's weights as f32.
    static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Columns `columns` of the product (a unit's) with `rows`, to `y`, a row every `y_stride` floats.
///
/// # Safety
/// `x` is readable for the rows, `y` writable.
pub(super) unsafe fn unit(
    w: &PackedWeight,
    columns: Range<usize>,
    x: Rows,
    rows: Range<usize>,
    y: *mut f32,
    y_stride: usize,
) {
    let bytes = w.file_rows().expect("the caller saw that it was not repacked");
    let row_bytes = bytes.len() / w.rows();
    let bytes = &bytes[columns.start * row_bytes..columns.end * row_bytes];
    let direct = matches!(w.dtype(), DType::F32 | DType::F16 | DType::BF16);
    // SAFETY: `x` and `y` as promised; the weights' rows are as long as `cols` says.
    let product = |dtype, bytes: &[u8], row_bytes| unsafe {
        let (x, x_stride) = (x.ptr.add(rows.start * x.stride), x.stride);
        let run = match (w.isa().kind(), dtype) {
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, DType::F16) => avx512::<F16>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, DType::BF16) => avx512::<BF16>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, _) => avx512::<F32>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, DType::F16) => avx2::<F16>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, DType::BF16) => avx2::<BF16>,
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, _) => avx2::<F32>,
            (Kind::Portable, DType::F16) => portable::<F16>,
            (Kind::Portable, DType::BF16) => portable::<BF16>,
            (Kind::Portable, _) => portable::<F32>,
        };
        run(bytes.as_ptr(), row_bytes, columns.len(), w.cols(), x, x_stride, rows.len(), y, y_stride);
    };
    if direct {
        product(w.dtype(), bytes, row_bytes);
    } else {
        WIDE.with_borrow_mut(|wide| {
            wide.resize(columns.len() * w.cols(), 0.0);
            quant::dequantize(w.dtype(), bytes, wide).expect("the type was tried when the weight was made");
            product(DType::F32, bytemuck::cast_slice(wide), 4 * w.cols());
        });
    }
}

/// The products of `n` rows of weights with `rows` rows of activations, and the sizes of the blocks that fit the registers:
/// `O` outputs with four rows, `O1` with one.
///
/// # Safety
/// The CPU has `S`; the pointers are valid for the shape.
#[inline(always)]
unsafe fn product<S: Lanes, E: Element, const O: usize, const O1: usize>(
    w: *const u8,
    row_bytes: usize,
    n: usize,
    cols: usize,
    x: *const f32,
    x_stride: usize,
    rows: usize,
    y: *mut f32,
    y_stride: usize,
) {
    let mut r = 0;
    while r < rows {
        let (step, outputs) = if rows - r >= 4 { (4, O) } else { (1, O1) };
        for o in (0..n).step_by(outputs) {
            // SAFETY: inside the shape.
            unsafe {
                let (x, y) = (x.add(r * x_stride), y.add(r * y_stride + o));
                let w = w.add(o * row_bytes);
                if step == 4 {
                    block::<S, E, O, 4>(w, row_bytes, n - o, cols, x, x_stride, y, y_stride);
                } else {
                    block::<S, E, O1, 1>(w, row_bytes, n - o, cols, x, x_stride, y, y_stride);
                }
            }
        }
        r += step;
    }
}

/// # Safety
/// As [`product`]; of `O` outputs there are `n`, if that is less.
#[inline(always)]
unsafe fn block<S: Lanes, E: Element, const O: usize, const R: usize>(
    w: *const u8,
    row_bytes: usize,
    n: usize,
    cols: usize,
    x: *const f32,
    x_stride: usize,
    y: *mut f32,
    y_stride: usize,
) {
    // SAFETY: the caller's promise; outputs beyond the last repeat it.
    unsafe {
        let w: [*const u8; O] = std::array::from_fn(|o| w.add(o.min(n - 1) * row_bytes));
        let x: [*const f32; R] = std::array::from_fn(|r| x.add(r * x_stride));
        let mut acc = [[S::fzero(); R]; O];
        let whole = cols / S::L * S::L;
        let mut k = 0;
        while k < whole {
            let xs: [S::F; R] = std::array::from_fn(|r| S::f32(x[r].add(k).cast()));
            for o in 0..O {
                if R == 1 {
                    // The rows after these. The hardware's own prefetch stops at every page, which is about a row.
                    S::prefetch(w[o].wrapping_add(k * E::BYTES + O * row_bytes));
                }
                let w = E::load::<S>(w[o].add(k * E::BYTES));
                for r in 0..R {
                    acc[o][r] = S::fma(w, xs[r], acc[o][r]);
                }
            }
            k += S::L;
        }
        if k < cols {
            // The rest, filled up with zeros. A NaN beside it cannot come in.
            let left = cols - k;
            let xs: [S::F; R] = std::array::from_fn(|r| {
                let mut lanes = [0f32; UNIT];
                x[r].add(k).copy_to_nonoverlapping(lanes.as_mut_ptr(), left);
                S::f32(lanes.as_ptr().cast())
            });
            for o in 0..O {
                let mut lanes = [0u8; 4 * UNIT];
                w[o].add(k * E::BYTES).copy_to_nonoverlapping(lanes.as_mut_ptr(), left * E::BYTES);
                let w = E::load::<S>(lanes.as_ptr());
                for r in 0..R {
                    acc[o][r] = S::fma(w, xs[r], acc[o][r]);
                }
            }
        }
        for o in 0..O.min(n) {
            for r in 0..R {
                *y.add(r * y_stride + o) = S::sum(acc[o][r]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512<E: Element>(
    w: *const u8,
    row_bytes: usize,
    n: usize,
    cols: usize,
    x: *const f32,
    x_stride: usize,
    rows: usize,
    y: *mut f32,
    y_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { product::<Avx512, E, 4, 8>(w, row_bytes, n, cols, x, x_stride, rows, y, y_stride) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<E: Element>(
    w: *const u8,
    row_bytes: usize,
    n: usize,
    cols: usize,
    x: *const f32,
    x_stride: usize,
    rows: usize,
    y: *mut f32,
    y_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { product::<Avx2, E, 2, 8>(w, row_bytes, n, cols, x, x_stride, rows, y, y_stride) }
}

unsafe fn portable<E: Element>(
    w: *const u8,
    row_bytes: usize,
    n: usize,
    cols: usize,
    x: *const f32,
    x_stride: usize,
    rows: usize,
    y: *mut f32,
    y_stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { product::<Portable, E, 2, 4>(w, row_bytes, n, cols, x, x_stride, rows, y, y_stride) }
}
