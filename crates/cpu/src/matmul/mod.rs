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
use std::{cell::RefCell, ops::Range};

use quarrel_formats::DType;

#[cfg(target_arch = "x86_64")]
use self::lanes::{Avx2, Avx512};
use self::lanes::{Lanes, Portable};
pub use self::{float::PackedFloats, input::Quantized};
pub(crate) use self::{
    input::{GROUP, SMALLEST, STEPS, XBlock, finish, quantize_special, split},
    tile::{TileProduct, plane_bytes},
};
pub use crate::lora::Delta;
use crate::{
    pack::{FloatPackFn, PackedWeight, TileKernel, format, pack_tile, pack_unit},
    simd::{F32x16, Isa, Kernel, Kind, Simd},
};

/// Output columns of a unit of work.
pub const UNIT: usize = 16;

/// Most rows that are computed for some units before the next ones.
const ROW_BLOCK: usize = 256;

/// Bytes of activations of these rows: they stay in the second cache of the core.
const ROW_BYTES: usize = 1 << 20;

/// Up to so many rows several units are computed together.
const FEW: usize = 4;

/// See `tile::tile`.
pub(crate) type TileFn = unsafe fn(&TileProduct);

/// Rows of floats somewhere: row `r` begins at `ptr + r * stride`.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// The first row.
    pub ptr: *mut f32,
    /// Floats from a row to the next.
    pub stride: usize,
}

/// Where the rows of a product go.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// All rows, in order.
    pub rows: Rows,
    /// Where each row begins, in floats from `rows.ptr`, when they are not side by side.
    pub places: Option<&'a [usize]>,
}

impl From<Rows> for Output<'_> {
    fn from(rows: Rows) -> Self {
        Output { rows, places: None }
    }
}

impl Output<'_> {
    /// The first float of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> *mut f32 {
        self.rows.ptr.wrapping_add(self.places.map_or(row * self.rows.stride, |p| p[row]))
    }
}

/// The activations.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// For weights of [`InputKind::Quantized`](crate::pack::InputKind).
    Quantized(Quantized),
    /// For weights of [`InputKind::Float`](crate::pack::InputKind).
    Float(PackedFloats),
}

/// What is added to the product: `out = add + (y + delta + bias)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One value per output column.
    pub bias: Option<&'a [f32]>,
    /// What adapters add, to the rows that have one.
    pub delta: Option<Delta<'a>>,
    /// The residual; it may be the output itself.
    pub add: Option<Rows>,
}

/// One of the two products of a gate.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The weight.
    pub weight: &'a PackedWeight,
    /// As in [`Epilogue`].
    pub bias: Option<&'a [f32]>,
    /// As in [`Epilogue`].
    pub delta: Option<Delta<'a>>,
}

impl<'a> Side<'a> {
    /// A weight alone.
    pub fn new(weight: &'a PackedWeight) -> Side<'a> {
        Side { weight, bias: None, delta: None }
    }
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

/// How two products become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// `act(gate) * up`.
    Plain(Activation),
    /// `g * sigmoid(alpha * g) * (u + 1)` with `g = min(gate, limit)` and `u` in `-limit..=limit`.
    Clamped {
        /// Slope of the sigmoid.
        alpha: f32,
        /// Largest value.
        limit: f32,
    },
}

impl From<Activation> for Gate {
    fn from(act: Activation) -> Self {
        Gate::Plain(act)
    }
}

impl Gate {
    #[inline(always)]
    fn apply<F: F32x16>(self, gate: F, up: F) -> F {
        match self {
            Gate::Plain(act) => act.apply(gate) * up,
            Gate::Clamped { alpha, limit } => {
                // Bounds come first: of two, the second is given where one is NaN.
                let alpha = gate.same(alpha);
                let gate = gate.same(limit).min(gate);
                let up = up.same(-limit).max(up.same(limit).min(up));
                (gate * alpha).silu() / alpha * (up + up.same(1.0))
            }
        }
    }
}

/// `out = add + (x W^T + bias)` for the output columns of `units`; column 0 of the weight is `out.ptr`.
///
/// # Safety
/// `x`, `out` and `epilogue.add` are valid for the rows of `x`, and no other thread touches these output columns meanwhile;
/// what adapters make of `x` is complete.
pub unsafe fn matmul<'a>(
    w: &PackedWeight,
    units: Range<usize>,
    x: Input,
    out: impl Into<Output<'a>>,
    epilogue: Epilogue<'_>,
) {
    let out = out.into();
    let (isa, columns, delta) = (w.isa(), w.rows(), epilogue.delta);
    let x = match x {
        Input::Quantized(x) => x,
        Input::Float(x) => {
            check(w, x.cols(), x.isa());
            let mut y = [[0.0; float::ROWS * UNIT]; float::UNITS];
            for rows in x.calls() {
                for pair in pairs(units.clone()) {
                    // SAFETY: the caller's promise.
                    unsafe { float::product(w, pair.clone(), x, rows.clone(), &mut y) };
                    for (unit, y) in pair.zip(&mut y) {
                        let (rows, units) = (rows.clone(), unit..unit + 1);
                        // SAFETY: as above.
                        unsafe { add_delta(delta, isa, &rows, &units, y) };
                        isa.run(Store { y, rows, units, columns, out, epilogue });
                    }
                }
            }
            return;
        }
    };
    let mut y = [0.0; ROW_BLOCK * UNIT];
    for (rows, units) in blocks(x, units) {
        // SAFETY: the caller's promise; `y` holds a block.
        unsafe {
            unit_products(w, units.clone(), x, rows.clone(), &mut y);
            add_delta(delta, isa, &rows, &units, &mut y);
        }
        isa.run(Store { y: &y, rows, units, columns, out, epilogue });
    }
}

/// Adds what adapters add, to products as [`unit_products`] leaves them.
///
/// # Safety
/// As [`matmul`].
#[inline(always)]
unsafe fn add_delta(
    delta: Option<Delta<'_>>,
    isa: Isa,
    rows: &Range<usize>,
    units: &Range<usize>,
    y: &mut [f32],
) {
    if let Some(delta) = delta {
        // SAFETY: the caller's promise.
        unsafe { delta.add(isa, rows.clone(), units.clone(), y) };
    }
}

/// `out = act(gate) * up` of two products with the same `x`, for the output columns of `units`.
///
/// # Safety
/// As [`matmul`].
pub unsafe fn matmul_glu<'a>(
    gate: Side<'_>,
    up: Side<'_>,
    units: Range<usize>,
    x: Input,
    out: impl Into<Output<'a>>,
    act: impl Into<Gate>,
) {
    let (out, act) = (out.into(), act.into());
    let (isa, columns, bias) = (gate.weight.isa(), gate.weight.rows(), [gate.bias, up.bias]);
    assert_eq!(columns, up.weight.rows(), "gate and up have the same width");
    let x = match x {
        Input::Quantized(x) => x,
        Input::Float(x) => {
            check(gate.weight, x.cols(), x.isa());
            check(up.weight, x.cols(), x.isa());
            let (mut g, mut u) =
                ([[0.0; float::ROWS * UNIT]; float::UNITS], [[0.0; float::ROWS * UNIT]; float::UNITS]);
            for rows in x.calls() {
                for pair in pairs(units.clone()) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        float::product(gate.weight, pair.clone(), x, rows.clone(), &mut g);
                        float::product(up.weight, pair.clone(), x, rows.clone(), &mut u);
                    }
                    for ((unit, g), u) in pair.zip(&mut g).zip(&mut u) {
                        let (rows, units) = (rows.clone(), unit..unit + 1);
                        // SAFETY: as above.
                        unsafe {
                            add_delta(gate.delta, isa, &rows, &units, g);
                            add_delta(up.delta, isa, &rows, &units, u);
                        }
                        isa.run(StoreGlu { gate: g, up: u, rows, units, columns, out, bias, act });
                    }
                }
            }
            return;
        }
    };
    let (mut g, mut u) = ([0.0; ROW_BLOCK * UNIT], [0.0; ROW_BLOCK * UNIT]);
    for (rows, units) in blocks(x, units) {
        // SAFETY: the caller's promise; `g` and `u` hold a block.
        unsafe {
            unit_products(gate.weight, units.clone(), x, rows.clone(), &mut g);
            unit_products(up.weight, units.clone(), x, rows.clone(), &mut u);
            add_delta(gate.delta, isa, &rows, &units, &mut g);
            add_delta(up.delta, isa, &rows, &units, &mut u);
        }
        isa.run(StoreGlu { gate: &g, up: &u, rows, units, columns, out, bias, act });
    }
}

thread_local! {
    /// A tile that is unpacked.
    static UNPACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Bytes at the alignment of a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
#[expect(dead_code, reason = "written and read through pointers")]
pub(crate) struct Line([u8; 64]);

/// Room for that many bytes, which are never fewer than there were.
pub(crate) fn room(lines: &mut Vec<Line>, bytes: usize) -> *mut u8 {
    lines.resize(lines.len().max(bytes.div_ceil(64)), Line([0; 64]));
    lines.as_mut_ptr().cast()
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

/// Rows and units that are computed together, one after the other.
fn blocks(x: Quantized, units: Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let (rows, cols) = (x.rows(), x.cols());
    let step = (ROW_BYTES / (3 * cols)).clamp(64, ROW_BLOCK) / GROUP * GROUP;
    let together = if rows <= FEW { 4 } else { 1 };
    (0..rows).step_by(step).flat_map(move |first| {
        let (rows, end) = (first..(first + step).min(rows), units.end);
        let units = units.clone().step_by(together);
        units.map(move |unit| (rows.clone(), unit..(unit + together).min(end)))
    })
}

/// The product of the columns of `units` with some rows, to `y`: row after row [`UNIT`] floats for each unit.
///
/// # Safety
/// As [`matmul`].
unsafe fn unit_products(
    w: &PackedWeight,
    units: Range<usize>,
    x: Quantized,
    rows: Range<usize>,
    y: &mut [f32; ROW_BLOCK * UNIT],
) {
    let stride = UNIT * units.len();
    assert!(rows.len() * stride <= y.len(), "{} rows and {units:?}", rows.len());
    check(w, x.cols(), x.isa());
    let Some((kernel, tile, tiles)) = w.tiles(units) else {
        panic!("weights of {} multiply {:?} activations", w.dtype(), w.input());
    };
    UNPACKED.with_borrow_mut(|unpacked| {
        let product = TileProduct {
            tile,
            tiles,
            blocks: w.blocks(),
            x: x.ptr(),
            x_rows: x.rows(),
            first: rows.start,
            last: rows.end,
            out: y.as_mut_ptr(),
            out_stride: stride,
            scratch: room(unpacked, w.blocks() * kernel.unpacked),
        };
        // SAFETY: the kernel is for the weight's ISA, which exists; the rest is the caller's promise.
        unsafe { (kernel.run)(&product) }
    });
}

struct Store<'a> {
    y: &'a [f32],
    rows: Range<usize>,
    units: Range<usize>,
    /// Of the weight.
    columns: usize,
    out: Output<'a>,
    epilogue: Epilogue<'a>,
}

/// The row and the columns of each [`UNIT`] floats of a product with `units` of `all` columns.
#[inline(always)]
fn places(
    rows: Range<usize>,
    units: Range<usize>,
    all: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    rows.flat_map(move |row| units.clone().map(move |u| (row, u * UNIT..((u + 1) * UNIT).min(all))))
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
        for ((row, columns), y) in
            places(self.rows, self.units, self.columns).zip(self.y.as_chunks::<UNIT>().0)
        {
            let mut v = with_bias(s, s.load(y), self.epilogue.bias, &columns);
            // SAFETY: `matmul`'s caller promised valid rows.
            unsafe {
                if let Some(add) = self.epilogue.add {
                    v = load(s, add.ptr.add(row * add.stride + columns.start), columns.len()) + v;
                }
                store(v, self.out.row(row).add(columns.start), columns.len());
            }
        }
    }
}

struct StoreGlu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    rows: Range<usize>,
    units: Range<usize>,
    columns: usize,
    out: Output<'a>,
    bias: [Option<&'a [f32]>; 2],
    act: Gate,
}

impl Kernel for StoreGlu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let values = self.gate.as_chunks::<UNIT>().0.iter().zip(self.up.as_chunks::<UNIT>().0);
        for ((row, columns), (gate, up)) in places(self.rows, self.units, self.columns).zip(values) {
            let gate = with_bias(s, s.load(gate), self.bias[0], &columns);
            let up = with_bias(s, s.load(up), self.bias[1], &columns);
            // SAFETY: `matmul_glu`'s caller promised valid rows.
            unsafe {
                store(self.act.apply(gate, up), self.out.row(row).add(columns.start), columns.len());
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
            unsafe fn run(product: &TileProduct) {
                // SAFETY: the caller's promise; the attribute matches the type.
                unsafe { tile::tile::<$lanes, T>(product) }
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
                unpacked: tile::unpacked_bytes(T::SCALES) * $lanes::L,
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
