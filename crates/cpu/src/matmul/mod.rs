//! Matrix products `y = x W^T` of activations `[rows, cols]` with packed weights, and what is done to `y` before it is stored.
//!
//! The caller gives every thread a range of units (16 output columns) and one thread computes an output alone. The order of
//! an output's additions depends on the weight's type and width only, so its bits do not depend on the rows beside it, on the
//! ranges, or on the threads.

mod float;
mod input;
pub(crate) mod lanes;
mod tile;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256i, __m512i};
use std::ops::Range;

use quarrel_formats::DType;

#[cfg(target_arch = "x86_64")]
use self::lanes::{Avx2, Avx512};
use self::lanes::{Lanes, Portable};
pub use self::{float::PackedFloats, input::Quantized};
pub(crate) use self::{
    input::{GROUP, SMALLEST, STEPS, XBlock, finish, quantize_special, split},
    tile::plane_bytes,
};
use crate::{
    pack::{FloatPackFn, PackedWeight, Tile, TileKernel, format, pack_tile, pack_unit},
    simd::{F32x16, Isa, Kernel, Kind, Simd},
};

/// Output columns of a unit of work.
pub const UNIT: usize = 16;

/// Rows that are computed for one unit before the next: their activations stay in the cache of the core.
const ROW_BLOCK: usize = 64;

/// A tile with rows `first..last` of all rows of quantised activations, see `tile::tile`.
pub(crate) type TileFn = unsafe fn(Tile, usize, *const XBlock, usize, usize, usize, *mut f32, usize);

/// Rows of floats somewhere: row `r` begins at `ptr + r * stride`.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// The first row.
    pub ptr: *mut f32,
    /// Floats from a row to the next.
    pub stride: usize,
}

/// The activations.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// For weights of [`InputKind::Quantized`](crate::pack::InputKind).
    Quantized(Quantized),
    /// For weights of [`InputKind::Float`](crate::pack::InputKind).
    Float(PackedFloats),
}

/// What is added to the product: `out = add + (y + bias)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One value per output column.
    pub bias: Option<&'a [f32]>,
    /// The residual; it may be the output itself.
    pub add: Option<Rows>,
}

/// The nonlinearity of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
    /// GELU.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Applies it to 16 lanes.
    #[inline(always)]
    pub fn apply<F: F32x16>(self, x: F) -> F {
        match self {
            Activation::Silu => x.silu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::GeluErf => x.gelu_erf(),
            Activation::Relu => x.same(0.0).max(x),
        }
    }
}

/// `out = add + (x W^T + bias)` for the output columns of `units`; column 0 of the weight is `out.ptr`.
///
/// # Safety
/// `x`, `out` and `epilogue.add` are valid for the rows of `x`, and no other thread touches these output columns meanwhile.
pub unsafe fn matmul(w: &PackedWeight, units: Range<usize>, x: Input, out: Rows, epilogue: Epilogue<'_>) {
    let x = match x {
        Input::Quantized(x) => x,
        Input::Float(x) => {
            check(w, x.cols(), x.isa());
            let mut y = [[0.0; float::ROWS * UNIT]; float::UNITS];
            for rows in x.calls() {
                for pair in pairs(units.clone()) {
                    // SAFETY: the caller's promise.
                    unsafe { float::product(w, pair.clone(), x, rows.clone(), &mut y) };
                    for (unit, y) in pair.zip(&y) {
                        let kernel =
                            Store { y, rows: rows.clone(), columns: columns(w, unit), out, epilogue };
                        w.isa().run(kernel);
                    }
                }
            }
            return;
        }
    };
    let mut y = [0.0; ROW_BLOCK * UNIT];
    for rows in row_blocks(x) {
        for unit in units.clone() {
            // SAFETY: the caller's promise; `y` holds a block.
            unsafe {
                unit_product(w, unit, x, rows.clone(), &mut y);
                let kernel = Store { y: &y, rows: rows.clone(), columns: columns(w, unit), out, epilogue };
                w.isa().run(kernel);
            }
        }
    }
}

/// `out = act(gate) * up` of two products with the same `x`, each with its bias, for the output columns of `units`.
///
/// # Safety
/// As [`matmul`].
pub unsafe fn matmul_glu(
    gate: (&PackedWeight, Option<&[f32]>),
    up: (&PackedWeight, Option<&[f32]>),
    units: Range<usize>,
    x: Input,
    out: Rows,
    act: Activation,
) {
    assert_eq!(gate.0.rows(), up.0.rows(), "gate and up have the same width");
    let x = match x {
        Input::Quantized(x) => x,
        Input::Float(x) => {
            check(gate.0, x.cols(), x.isa());
            check(up.0, x.cols(), x.isa());
            let (mut g, mut u) =
                ([[0.0; float::ROWS * UNIT]; float::UNITS], [[0.0; float::ROWS * UNIT]; float::UNITS]);
            for rows in x.calls() {
                for pair in pairs(units.clone()) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        float::product(gate.0, pair.clone(), x, rows.clone(), &mut g);
                        float::product(up.0, pair.clone(), x, rows.clone(), &mut u);
                    }
                    for ((unit, gate_y), up_y) in pair.zip(&g).zip(&u) {
                        let (rows, columns, bias) = (rows.clone(), columns(gate.0, unit), [gate.1, up.1]);
                        gate.0.isa().run(StoreGlu { gate: gate_y, up: up_y, rows, columns, out, bias, act });
                    }
                }
            }
            return;
        }
    };
    let (mut g, mut u) = ([0.0; ROW_BLOCK * UNIT], [0.0; ROW_BLOCK * UNIT]);
    for rows in row_blocks(x) {
        for unit in units.clone() {
            // SAFETY: the caller's promise; `g` and `u` hold a block.
            unsafe {
                unit_product(gate.0, unit, x, rows.clone(), &mut g);
                unit_product(up.0, unit, x, rows.clone(), &mut u);
                let (rows, columns) = (rows.clone(), columns(gate.0, unit));
                let kernel = StoreGlu { gate: &g, up: &u, rows, columns, out, bias: [gate.1, up.1], act };
                gate.0.isa().run(kernel);
            }
        }
    }
}

/// Units that are multiplied with floats at once.
fn pairs(units: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let last = units.end;
    units.step_by(float::UNITS).map(move |unit| unit..(unit + float::UNITS).min(last))
}

fn check(w: &PackedWeight, cols: usize, isa: Isa) {
    assert_eq!(cols, w.cols(), "activations are as wide as the weight");
    assert_eq!(isa, w.isa(), "activations are made for the weight's instructions");
}

fn row_blocks(x: Quantized) -> impl Iterator<Item = Range<usize>> {
    let rows = x.rows();
    (0..rows).step_by(ROW_BLOCK).map(move |first| first..(first + ROW_BLOCK).min(rows))
}

fn columns(w: &PackedWeight, unit: usize) -> Range<usize> {
    unit * UNIT..((unit + 1) * UNIT).min(w.rows())
}

/// The product of a unit's columns with a block of rows, to `y`, [`UNIT`] floats a row.
///
/// # Safety
/// As [`matmul`].
unsafe fn unit_product(
    w: &PackedWeight,
    unit: usize,
    x: Quantized,
    rows: Range<usize>,
    y: &mut [f32; ROW_BLOCK * UNIT],
) {
    assert!(unit < w.units(), "unit {unit} of {}", w.units());
    check(w, x.cols(), x.isa());
    let Some((kernel, tiles)) = w.tiles(unit) else {
        panic!("weights of {} multiply {:?} activations", w.dtype(), w.input());
    };
    for (i, tile) in tiles.enumerate() {
        // SAFETY: the kernel is for the weight's ISA, which exists; the rest is the caller's promise.
        unsafe {
            let y = y.as_mut_ptr().add(i * kernel.lanes);
            (kernel.run)(tile, w.blocks(), x.ptr(), x.rows(), rows.start, rows.end, y, UNIT);
        }
    }
}

struct Store<'a> {
    y: &'a [f32],
    rows: Range<usize>,
    columns: Range<usize>,
    out: Rows,
    epilogue: Epilogue<'a>,
}

/// 16 floats, or the first `n`.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
    // SAFETY: the caller's `p` is valid for `n` floats.
    unsafe { if n == UNIT { s.load_ptr(p) } else { s.load_partial(std::slice::from_raw_parts(p, n), 0.0) } }
}

#[inline(always)]
unsafe fn store<F: F32x16>(v: F, p: *mut f32, n: usize) {
    // SAFETY: the caller's `p` is valid for `n` floats.
    unsafe { if n == UNIT { v.store_ptr(p) } else { v.store_partial(std::slice::from_raw_parts_mut(p, n)) } }
}

#[inline(always)]
fn with_bias<S: Simd>(s: S, y: S::F, bias: Option<&[f32]>, columns: &Range<usize>) -> S::F {
    match bias {
        Some(bias) => y + s.load_partial(&bias[columns.clone()], 0.0),
        None => y,
    }
}

impl Kernel for Store<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.columns.len();
        for (row, y) in self.rows.zip(self.y.as_chunks::<UNIT>().0) {
            let mut v = with_bias(s, s.load(y), self.epilogue.bias, &self.columns);
            // SAFETY: `matmul`'s caller promised valid rows.
            unsafe {
                if let Some(add) = self.epilogue.add {
                    v = load(s, add.ptr.add(row * add.stride + self.columns.start), n) + v;
                }
                store(v, self.out.ptr.add(row * self.out.stride + self.columns.start), n);
            }
        }
    }
}

struct StoreGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    rows: Range<usize>,
    columns: Range<usize>,
    out: Rows,
    bias: [Option<&'a [f32]>; 2],
    act: Activation,
}

impl Kernel for StoreGlu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.columns.len();
        let values = self.gate.as_chunks::<UNIT>().0.iter().zip(self.up.as_chunks::<UNIT>().0);
        for (row, (gate, up)) in self.rows.zip(values) {
            let gate = with_bias(s, s.load(gate), self.bias[0], &self.columns);
            let up = with_bias(s, s.load(up), self.bias[1], &self.columns);
            // SAFETY: `matmul_glu`'s caller promised valid rows.
            unsafe {
                let out = self.out.ptr.add(row * self.out.stride + self.columns.start);
                store(self.act.apply(gate) * up, out, n);
            }
        }
    }
}

/// The packing of a unit of floats: source rows, bytes per row, bytes per float, `k`, place.
pub(crate) fn pack_floats(isa: Isa) -> FloatPackFn {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn avx512(rows: *const u8, row_bytes: usize, bytes: usize, cols: usize, out: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { pack_unit::<__m512i>(rows, row_bytes, bytes, cols, out) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2(rows: *const u8, row_bytes: usize, bytes: usize, cols: usize, out: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { pack_unit::<__m256i>(rows, row_bytes, bytes, cols, out) }
    }
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => avx512,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2,
        Kind::Portable => pack_unit::<[u32; 8]>,
    }
}

/// The kernel of a type on an instruction set; none for types that are not repacked.
pub(crate) fn tile_kernel(isa: Isa, dtype: DType) -> Option<TileKernel> {
    macro_rules! kernels {
        ($($dtype:ident => $format:ident),+ $(,)?) => {
            match (dtype, isa.kind()) {
                $(
                    #[cfg(target_arch = "x86_64")]
                    (DType::$dtype, Kind::Avx512) => kernel!($format, Avx512, __m512i, #[target_feature(
                        enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
                    )]),
                    #[cfg(target_arch = "x86_64")]
                    (DType::$dtype, Kind::Avx2) => {
                        kernel!($format, Avx2, __m256i, #[target_feature(enable = "avx2,fma,f16c")])
                    }
                    (DType::$dtype, Kind::Portable) => kernel!($format, Portable, [u32; 8], #[inline]),
                )+
                _ => return None,
            }
        };
    }
    macro_rules! kernel {
        ($format:ident, $lanes:ident, $words:ty, #[$attribute:meta]) => {{
            use format::{Format, $format as T};
            #[$attribute]
            unsafe fn run(
                t: Tile,
                blocks: usize,
                x: *const XBlock,
                all: usize,
                first: usize,
                last: usize,
                out: *mut f32,
                stride: usize,
            ) {
                // SAFETY: the caller's promise; the attribute matches the type.
                unsafe { tile::tile::<$lanes, T>(t, blocks, x, all, first, last, out, stride) }
            }
            #[$attribute]
            unsafe fn pack(
                rows: *const u8,
                row_bytes: usize,
                blocks: usize,
                codes: *mut u8,
                scales: *mut u8,
            ) {
                // SAFETY: as above.
                unsafe { pack_tile::<T, $words>(rows, row_bytes, blocks, $lanes::BYTE_XOR, codes, scales) }
            }
            TileKernel {
                run,
                pack,
                lanes: $lanes::L,
                code_bytes: plane_bytes(T::BITS),
                scale_bytes: T::SCALES.bytes(),
                scale_blocks: T::SCALES.blocks(),
            }
        }};
    }
    Some(kernels! {
        Q4_0 => Q4_0, Q4_1 => Q4_1, Q5_0 => Q5_0, Q5_1 => Q5_1, Q8_0 => Q8_0, IQ4_NL => Iq4Nl, MXFP4 => MxFp4,
        Q2_K => Q2K, Q3_K => Q3K, Q4_K => Q4K, Q5_K => Q5K, Q6_K => Q6K, IQ4_XS => Iq4Xs,
    })
}

#[cfg(test)]
mod tests;
