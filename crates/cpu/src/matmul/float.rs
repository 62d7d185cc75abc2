//! Products with weights that are floats, packed by units: the 16 columns of a unit side by side, `k` after `k`. Rows of
//! rare types are decoded into such a unit when they are used.
//!
//! Lanes are output columns. An output is the sum over blocks of [`BLOCK`] `k`, in order, of the sum of each, in order; how
//! many rows and units are computed side by side leaves its arithmetic as it is.

use std::{cell::RefCell, mem::MaybeUninit, ops::Range};

use quarrel_formats::{DType, quant};

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::{
    Rows, UNIT,
    lanes::{Lanes, Portable},
};
use crate::{
    pack::PackedWeight,
    simd::{Isa, Kind},
};

/// Input columns whose products are added up before they come to the rest.
const BLOCK: usize = 256;
/// Most rows of a call.
pub(super) const ROWS: usize = 96;
/// Units of a call.
pub(super) const UNITS: usize = 2;
/// The results of a call, unit after unit, [`UNIT`] floats a row.
pub(super) type Products = [[f32; ROWS * UNIT]; UNITS];
/// Chunks of rows from which on the weights are widened once for all of them.
const WIDEN: usize = 3;
/// Activations of a call, in bytes: they stay in the core's cache while units come and go.
const CACHED: usize = 1 << 20;
/// Bytes from what is read to what is asked for.
const AHEAD: usize = 4096;

/// Rows of the chunks that kernels take; all but the last chunk are of the largest size.
fn chunk_sizes(isa: Isa) -> &'static [usize] {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => &[1, 2, 4, 8, 12],
        _ => &[1, 2, 4, 6],
    }
}

/// Float activations `[rows, cols]` in memory that the caller owns, packed in chunks of rows: in a chunk of `n` rows, that
/// begins with row `f`, the value of row `r` at `k` is the chunk's `k * n + (r - f)`th. The last chunk is filled up with zeros.
#[derive(Clone, Copy, Debug)]
pub struct PackedFloats {
    isa: Isa,
    ptr: *mut f32,
    rows: usize,
    cols: usize,
}

impl PackedFloats {
    /// Bytes of memory for a matrix.
    pub const fn bytes(rows: usize, cols: usize) -> usize {
        (rows + 3) * cols * size_of::<f32>()
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

    /// The first row and the size of the chunk of `row`.
    fn chunk(&self, row: usize) -> (usize, usize) {
        let sizes = chunk_sizes(self.isa);
        let most = sizes[sizes.len() - 1];
        let first = row / most * most;
        let left = self.rows - first;
        (first, *sizes.iter().find(|n| **n >= left).unwrap_or(&most))
    }

    /// Packs `rows` of `x`.
    ///
    /// # Safety
    /// `x` is readable for these rows, and no other thread uses them here.
    pub unsafe fn pack(&self, x: Rows, rows: Range<usize>) {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        for row in rows {
            let (first, n) = self.chunk(row);
            // SAFETY: the places of this row, and, for the last row, of the zeros behind it in the chunk.
            unsafe {
                let out = self.ptr.add(first * self.cols + (row - first));
                let x = x.ptr.add(row * x.stride);
                for k in 0..self.cols {
                    *out.add(k * n) = *x.add(k);
                }
                if row + 1 == self.rows {
                    for beyond in 1..n - (row - first) {
                        for k in 0..self.cols {
                            *out.add(k * n + beyond) = 0.0;
                        }
                    }
                }
            }
        }
    }

    /// Rows by calls: whole chunks, the last perhaps less.
    pub(super) fn calls(self) -> impl Iterator<Item = Range<usize>> {
        let most = (CACHED / (4 * self.cols.max(1))).clamp(24, ROWS) / 12 * 12;
        (0..self.rows).step_by(most).map(move |first| first..(first + most).min(self.rows))
    }
}

/// How a weight's element is read.
trait Element {
    const BYTES: usize;
    /// Whether they come from memory, and must be asked for in time.
    const FAR: bool = true;
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F;
}

macro_rules! element {
    ($name:ident, $bytes:expr, $load:ident) => {
        struct $name;
        impl Element for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { S::$load(p) }
            }
        }
    };
}

/// Floats that were widened a moment ago.
struct Near;
impl Element for Near {
    const BYTES: usize = 4;
    const FAR: bool = false;
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::f32(p) }
    }
}

element!(F32, 4, f32);
element!(F16, 2, f16);
element!(BF16, 2, bf16);

/// One or two units' weights, `k` columns of them, and the activations and places of the results of some rows.
#[derive(Clone, Copy)]
struct Call {
    w: [*const u8; UNITS],
    units: usize,
    cols: usize,
    x: PackedFloats,
    first: usize,
    last: usize,
    y: *mut f32,
}

thread_local! {
    /// Units of a rare type as f32: as in the file, and packed.
    static DECODED: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// The products of one or two units with `rows` of `x`, a range of [`PackedFloats::calls`].
///
/// # Safety
/// `x` is filled.
pub(super) unsafe fn product(
    w: &PackedWeight,
    units: Range<usize>,
    x: PackedFloats,
    rows: Range<usize>,
    y: &mut Products,
) {
    assert!(!units.is_empty() && units.len() <= UNITS && units.end <= w.units(), "units {units:?}");
    assert!(rows.len() <= ROWS && rows.end <= x.rows, "rows {rows:?} of {}", x.rows);
    let mut call = |dtype, first: *const u8, second| {
        let w = [first, if units.len() == UNITS { second } else { first }];
        let (cols, y) = (x.cols, y.as_mut_ptr().cast());
        let call = Call { w, units: units.len(), cols, x, first: rows.start, last: rows.end, y };
        // SAFETY: the ISA exists, and the pointers are to whole units and results.
        unsafe {
            match (x.isa.kind(), dtype) {
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, DType::F16) => avx512::<F16>(call),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, DType::BF16) => avx512::<BF16>(call),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, _) => avx512::<F32>(call),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx2, DType::F16) => avx2::<F16>(call),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx2, DType::BF16) => avx2::<BF16>(call),
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx2, _) => avx2::<F32>(call),
                (Kind::Portable, DType::F16) => blocks::<Portable, F16, 1, 2>(call),
                (Kind::Portable, DType::BF16) => blocks::<Portable, BF16, 1, 2>(call),
                (Kind::Portable, _) => blocks::<Portable, F32, 1, 2>(call),
            }
        }
    };
    if let Some(first) = w.float_unit(units.start) {
        return call(w.dtype(), first, w.float_unit(units.end - 1).unwrap_or(first));
    }
    let bytes = w.file_rows().expect("a weight that is not packed is as in the file");
    let row_bytes = bytes.len() / w.rows();
    DECODED.with_borrow_mut(|(plain, packed)| {
        let cols = w.cols();
        let columns = units.start * UNIT..(units.end * UNIT).min(w.rows());
        plain.resize(columns.len() * cols, 0.0);
        packed.clear();
        packed.resize(UNITS * UNIT * cols, 0.0);
        quant::dequantize(w.dtype(), &bytes[columns.start * row_bytes..columns.end * row_bytes], plain)
            .expect("the type was tried when the weight was made");
        for (c, row) in plain.chunks_exact(cols).enumerate() {
            let unit = &mut packed[c / UNIT * UNIT * cols..];
            row.iter().enumerate().for_each(|(k, w)| unit[k * UNIT + c % UNIT] = *w);
        }
        call(DType::F32, packed.as_ptr().cast(), packed[UNIT * cols..].as_ptr().cast());
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512<E: Element>(call: Call) {
    // SAFETY: the caller's promise.
    unsafe { blocks::<Avx512, E, 2, 1>(call) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<E: Element>(call: Call) {
    // SAFETY: the caller's promise.
    unsafe { blocks::<Avx2, E, 1, 2>(call) }
}

/// A unit's weights of a block, as f32.
type Wide = [MaybeUninit<f32>; BLOCK * UNIT];

/// Block after block of `k`; `U` units of `V` vectors are computed at once.
///
/// # Safety
/// The CPU has `S`; the pointers are valid for the shape.
#[inline(always)]
unsafe fn blocks<S: Lanes, E: Element, const U: usize, const V: usize>(call: Call) {
    let mut wide: [Wide; UNITS] = [[MaybeUninit::uninit(); BLOCK * UNIT]; UNITS];
    let (_, size) = call.x.chunk(call.first);
    let widen = E::BYTES != 4 && (call.last - call.first).div_ceil(size) >= WIDEN;
    for k in (0..call.cols).step_by(BLOCK) {
        let n = BLOCK.min(call.cols - k);
        // SAFETY: inside the shape; `wide` holds a block.
        unsafe {
            let mut w = call.w;
            for u in 0..call.units {
                w[u] = w[u].add(k * UNIT * E::BYTES);
                if widen {
                    let to = wide[u].as_mut_ptr().cast::<f32>();
                    for at in (0..n * UNIT).step_by(S::L) {
                        S::prefetch(w[u].wrapping_add(at * E::BYTES + AHEAD));
                        S::store(E::load::<S>(w[u].add(at * E::BYTES)), to.add(at));
                    }
                    w[u] = to.cast::<u8>().cast_const();
                }
            }
            if widen {
                chunks::<S, Near, U, V>(Call { w, ..call }, k, n);
            } else {
                chunks::<S, E, U, V>(Call { w, ..call }, k, n);
            }
        }
    }
}

/// `n` input columns from `k`, where the weights of `call` are, with all rows.
///
/// # Safety
/// As [`blocks`].
#[inline(always)]
unsafe fn chunks<S: Lanes, E: Element, const U: usize, const V: usize>(call: Call, k: usize, n: usize) {
    let mut row = call.first;
    while row < call.last {
        let (first, size) = call.x.chunk(row);
        // SAFETY: the chunk begins behind `first` whole rows.
        unsafe {
            let x = call.x.ptr.add(first * call.cols + k * size);
            let y = call.y.add((row - call.first) * UNIT);
            macro_rules! step {
                ($($rows:literal)+) => {
                    match size {
                        $($rows if U == 1 || call.units == 1 => {
                            for u in 0..call.units {
                                step::<S, E, 1, V, $rows>([call.w[u]], n, x, y.add(u * ROWS * UNIT), k == 0);
                            }
                        })+
                        $($rows => step::<S, E, U, V, $rows>(std::array::from_fn(|u| call.w[u]), n, x, y, k == 0),)+
                        _ => unreachable!("chunks have no {size} rows"),
                    }
                };
            }
            if S::L == 16 { step!(1 2 4 8 12) } else { step!(1 2 4 6) }
        }
        row = first + size;
    }
}

/// A block's products of `U` units with `R` rows.
///
/// # Safety
/// As [`blocks`].
#[inline(always)]
unsafe fn step<S: Lanes, E: Element, const U: usize, const V: usize, const R: usize>(
    w: [*const u8; U],
    n: usize,
    x: *const f32,
    y: *mut f32,
    first: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[[S::fzero(); V]; U]; R];
        for k in 0..n {
            let mut ws = [[S::fzero(); V]; U];
            for u in 0..U {
                if E::FAR {
                    S::prefetch(w[u].wrapping_add(k * UNIT * E::BYTES + AHEAD));
                }
                for v in 0..V {
                    ws[u][v] = E::load::<S>(w[u].add((k * UNIT + v * S::L) * E::BYTES));
                }
            }
            for r in 0..R {
                let x = S::splat(*x.add(k * R + r));
                for u in 0..U {
                    for v in 0..V {
                        acc[r][u][v] = S::fma(ws[u][v], x, acc[r][u][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for u in 0..U {
                for v in 0..V {
                    let y = y.add((u * ROWS + r) * UNIT + v * S::L);
                    let sum = if first { acc[r][u][v] } else { S::add(S::f32(y.cast()), acc[r][u][v]) };
                    S::store(sum, y);
                }
            }
        }
    }
}
