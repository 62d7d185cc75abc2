//! Weights as the matrix kernels want them.
//!
//! Quantised types are repacked once, at load, into tiles of `L` output columns (16 with AVX-512, else 8): vectors of `L x 4`
//! bytes that hold four neighbouring `k` of each column, split into planes of bits, and beside them the scales of the `L`
//! columns. A tile is `| codes of all blocks | scales of all blocks |`, about as many bytes as in the file. Of floats the 16
//! columns of a unit are side by side, `k` after `k`. The rare types stay where they are, and are decoded when they are used.

pub(crate) mod format;
pub(crate) mod memory;
mod words;

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use quarrel_formats::{Bytes, DType, quant};

pub(crate) use self::words::Words;
use self::{
    format::{Codes, Format, Scales, WORDS, half_of_e8m0},
    memory::{Memory, Slab},
};
use crate::{
    matmul::{self, TileFn, UNIT},
    simd::Isa,
};

/// Bytes of the source that a thread takes at a time.
pub(crate) const STEP: usize = 1 << 20;

/// Why a weight cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not a matrix of this shape and type.
    #[error("{bytes} bytes are not a {rows} x {cols} matrix of {dtype}; the model file is damaged")]
    Shape {
        /// The type.
        dtype: DType,
        /// Output columns.
        rows: usize,
        /// Input columns.
        cols: usize,
        /// Bytes that came.
        bytes: usize,
    },
    /// The type cannot be decoded.
    #[error("weights of type {dtype} cannot be used")]
    Type {
        /// The type.
        dtype: DType,
        /// What the decoder said.
        #[source]
        source: quarrel_formats::Error,
    },
    /// The size is beyond this machine.
    #[error("a {rows} x {cols} matrix of {dtype} does not fit the memory")]
    TooLarge {
        /// The type.
        dtype: DType,
        /// Output columns.
        rows: usize,
        /// Input columns.
        cols: usize,
    },
}

/// How a type is packed and multiplied on an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct TileKernel {
    /// The product.
    pub(crate) run: TileFn,
    /// The packing of one tile: see [`pack_tile`].
    pub(crate) pack: PackFn,
    /// Columns of a tile.
    pub(crate) lanes: usize,
    /// Bytes of codes per column and block of 32.
    pub(crate) code_bytes: usize,
    /// Bytes of scales per column.
    pub(crate) scale_bytes: usize,
    /// For so many blocks of 32.
    pub(crate) scale_blocks: usize,
    /// Bytes of a block of 32 that the product has unpacked.
    pub(crate) unpacked: usize,
}

/// Source rows, bytes per row, `k`-blocks, places of codes and scales.
pub(crate) type PackFn = unsafe fn(*const u8, usize, usize, *mut u8, *mut u8);

/// Source rows, bytes per row, bytes per float, `k`, place of the unit.
pub(crate) type FloatPackFn = unsafe fn(*const u8, usize, usize, usize, *mut u8);

/// Where a tile lies.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The codes, block after block.
    pub(crate) codes: *const u8,
    /// The scales.
    pub(crate) scales: *const u8,
    /// Bytes from a tile to the next.
    pub(crate) bytes: usize,
}

impl Tile {
    /// The `n`th tile from this one on.
    pub(crate) fn nth(self, n: usize) -> Tile {
        let at = n * self.bytes;
        Tile { codes: self.codes.wrapping_add(at), scales: self.scales.wrapping_add(at), bytes: self.bytes }
    }
}

enum Data {
    Tiles { kernel: TileKernel, memory: Memory },
    Floats(Memory),
    Rows(Bytes),
}

/// A weight matrix `[rows, cols]` (output columns, input columns), ready for [`matmul`](matmul::matmul).
pub struct PackedWeight {
    isa: Isa,
    dtype: DType,
    rows: usize,
    cols: usize,
    data: Data,
}

/// What a weight multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Activations quantised by [`Quantized`](matmul::Quantized).
    Quantized,
    /// Activations as they are, in `f32`.
    Float,
}

impl PackedWeight {
    /// Output columns.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Units of work: 16 output columns each, the last one perhaps fewer.
    pub fn units(&self) -> usize {
        self.rows.div_ceil(UNIT)
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Tiles { memory, .. } | Data::Floats(memory) => memory.len(),
            Data::Rows(bytes) => bytes.len(),
        }
    }

    /// Bytes of memory of its own; zero where it uses the file's.
    pub fn owned_bytes(&self) -> usize {
        match &self.data {
            Data::Tiles { memory, .. } | Data::Floats(memory) => memory.len(),
            Data::Rows(_) => 0,
        }
    }

    /// Which form of the activations it multiplies.
    pub fn input(&self) -> InputKind {
        match self.data {
            Data::Tiles { .. } => InputKind::Quantized,
            Data::Floats(_) | Data::Rows(_) => InputKind::Float,
        }
    }

    /// Blocks of 32 input columns.
    pub(crate) fn blocks(&self) -> usize {
        self.cols / 32
    }

    /// The kernel, the first tile of `units`, and their tiles' number.
    pub(crate) fn tiles(&self, units: Range<usize>) -> Option<(&TileKernel, Tile, usize)> {
        let Data::Tiles { kernel, memory } = &self.data else { return None };
        let (codes, scales) = tile_bytes(kernel, self.blocks());
        let (per_unit, bytes) = (UNIT / kernel.lanes, codes + scales);
        assert!(units.end * per_unit * bytes <= memory.len(), "units {units:?}");
        let at = units.start * per_unit * bytes;
        // SAFETY: the units are inside the memory.
        let tile =
            unsafe { Tile { codes: memory.ptr().add(at), scales: memory.ptr().add(at + codes), bytes } };
        Some((kernel, tile, units.len() * per_unit))
    }

    /// Whether products read a mapped file.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(&self.data, Data::Rows(bytes) if bytes.is_mapped())
    }

    /// Where the floats of a unit lie.
    pub(crate) fn float_unit(&self, unit: usize) -> Option<*const u8> {
        let Data::Floats(memory) = &self.data else { return None };
        assert!(unit < self.units(), "unit {unit} of {}", self.units());
        // SAFETY: inside the memory, as it was allocated for the units.
        Some(unsafe { memory.ptr().add(unit * (memory.len() / self.units())) }.cast_const())
    }

    /// The rows as in the file, where they were not repacked.
    pub(crate) fn file_rows(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Rows(bytes) => Some(bytes),
            Data::Tiles { .. } | Data::Floats(_) => None,
        }
    }
}

/// Bytes of the codes and of the scales of a tile, both whole cache lines.
pub(crate) fn tile_bytes(kernel: &TileKernel, blocks: usize) -> (usize, usize) {
    let codes = (blocks * kernel.code_bytes * kernel.lanes).next_multiple_of(64);
    (codes, (blocks / kernel.scale_blocks * kernel.scale_bytes * kernel.lanes).next_multiple_of(64))
}

/// The kernel of a packed matrix; none if it is used as it is in the file.
fn kernel(isa: Isa, dtype: DType, cols: usize) -> Option<TileKernel> {
    matmul::tile_kernel(isa, dtype).filter(|k| cols.is_multiple_of(32 * k.scale_blocks))
}

/// Bytes of a float of the types that are packed as such.
fn float_bytes(dtype: DType) -> Option<usize> {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16).then(|| dtype.block_bytes())
}

/// Which form of the activations a matrix of this type multiplies.
pub(crate) fn input_kind(isa: Isa, dtype: DType, cols: usize) -> InputKind {
    if kernel(isa, dtype, cols).is_some() { InputKind::Quantized } else { InputKind::Float }
}

/// Bytes that a matrix takes of a [`Slab`]: zero where it is used as it is in the file, none if they cannot be counted.
pub(crate) fn packed_bytes(isa: Isa, dtype: DType, rows: usize, cols: usize) -> Option<usize> {
    if let Some(bytes) = float_bytes(dtype) {
        return cols
            .checked_mul(UNIT * bytes)?
            .checked_next_multiple_of(64)?
            .checked_mul(rows.div_ceil(UNIT));
    }
    let Some(kernel) = kernel(isa, dtype, cols) else { return Some(0) };
    let (codes, scales) = tile_bytes(&kernel, cols / 32);
    (rows.div_ceil(UNIT) * (UNIT / kernel.lanes)).checked_mul(codes + scales)
}

/// A weight that is being packed, perhaps by several threads.
pub struct PackedBuilder {
    weight: PackedWeight,
    source: Bytes,
    next: AtomicUsize,
}

impl PackedBuilder {
    /// Checks the shape and allocates. `bytes` is the matrix in the file's layout.
    pub fn new(isa: Isa, dtype: DType, rows: usize, cols: usize, bytes: Bytes) -> Result<Self, Error> {
        PackedBuilder::within(&mut Slab::default(), isa, dtype, rows, cols, bytes)
    }

    /// The same with memory of `slab`, of which it takes [`packed_bytes`].
    pub(crate) fn within(
        slab: &mut Slab,
        isa: Isa,
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: Bytes,
    ) -> Result<Self, Error> {
        let size = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        if size != Some(bytes.len()) || bytes.is_empty() {
            return Err(Error::Shape { dtype, rows, cols, bytes: bytes.len() });
        }
        let memory = packed_bytes(isa, dtype, rows, cols).and_then(|n| slab.take(n));
        let memory = memory.ok_or(Error::TooLarge { dtype, rows, cols })?;
        let data = match kernel(isa, dtype, cols) {
            Some(kernel) => Data::Tiles { kernel, memory },
            None if float_bytes(dtype).is_some() => Data::Floats(memory),
            None => {
                let mut block = vec![0.0; dtype.block_len()];
                quant::dequantize(dtype, &bytes[..dtype.block_bytes()], &mut block)
                    .map_err(|source| Error::Type { dtype, source })?;
                Data::Rows(bytes.clone())
            }
        };
        let weight = PackedWeight { isa, dtype, rows, cols, data };
        Ok(PackedBuilder { weight, source: bytes, next: AtomicUsize::new(0) })
    }

    /// Packs the next units, about `bytes` of the source, that no thread has taken yet; false if there are none. Any number of
    /// threads may call it. The mapped pages that were read are given back.
    pub fn pack_next(&self, bytes: usize) -> bool {
        let (all, row_bytes) = (self.weight.units(), self.source.len() / self.weight.rows);
        let units = (bytes / (UNIT * row_bytes)).max(1);
        let first = self.next.fetch_add(units, Ordering::Relaxed).min(all);
        if first == all || matches!(self.weight.data, Data::Rows(_)) {
            return false;
        }
        let last = (first + units).min(all);
        let part =
            self.source.slice(first * UNIT * row_bytes..(last * UNIT).min(self.weight.rows) * row_bytes);
        part.populate();
        self.pack(first..last);
        part.release();
        true
    }

    /// Units are packed by whoever took their numbers from `next`, so no two threads write to one.
    fn pack(&self, units: Range<usize>) {
        let w = &self.weight;
        let row_bytes = self.source.len() / w.rows;
        let mut padded = Vec::new();
        for unit in units {
            let mut rows = &self.source[unit * UNIT * row_bytes..];
            if rows.len() < UNIT * row_bytes {
                // The last unit has columns of zeros.
                padded.extend_from_slice(rows);
                padded.resize(UNIT * row_bytes, 0);
                rows = &padded;
            }
            // SAFETY: `rows` are those of a unit that is ours alone; the kernels are for the weight's ISA, which exists.
            unsafe {
                if let Some((kernel, tile, tiles)) = w.tiles(unit..unit + 1) {
                    for i in 0..tiles {
                        let (rows, tile) = (rows.as_ptr().add(i * kernel.lanes * row_bytes), tile.nth(i));
                        let (codes, scales) = (tile.codes.cast_mut(), tile.scales.cast_mut());
                        (kernel.pack)(rows, row_bytes, w.blocks(), codes, scales);
                    }
                } else if let (Some(out), Some(bytes)) = (w.float_unit(unit), float_bytes(w.dtype)) {
                    matmul::pack_floats(w.isa)(rows.as_ptr(), row_bytes, bytes, w.cols, out.cast_mut());
                }
            }
        }
    }

    /// Packs what is left.
    pub fn finish(self) -> PackedWeight {
        while self.pack_next(STEP) {}
        self.weight
    }
}

/// Packs a tile of `W::L` columns from as many rows of the file. The bytes of the next tile's rows are asked for meanwhile.
///
/// # Safety
/// The CPU has `W`; `rows` is readable for the tile's rows, `codes` and `scales` are writable for their sizes.
#[inline(always)]
pub(crate) unsafe fn pack_tile<T: Format, W: Words>(
    rows: *const u8,
    row_bytes: usize,
    blocks: usize,
    xor: u8,
    codes: *mut u8,
    scales: *mut u8,
) {
    let group = T::SCALES.blocks();
    let planes = matmul::plane_bytes(T::BITS) * W::L;
    // SAFETY: the caller's promise; the words that are read lie inside a block.
    unsafe {
        let mut words = [W::splat(0); WORDS];
        let next = rows.wrapping_add(W::L * row_bytes);
        for g in 0..blocks / group {
            let block = rows.add(g * T::BYTES);
            for line in (0..T::BYTES * W::L).step_by(64) {
                prefetch(next.wrapping_add(g * T::BYTES * W::L + line));
            }
            for at in (0..T::WORDS).step_by(4) {
                let at = at.min(T::WORDS - 4);
                words[at..at + 4].copy_from_slice(&W::rows(block.add(T::SKIP + 4 * at), row_bytes));
            }
            put_scales::<T, W>(&words, block, row_bytes, scales.add(g * T::SCALES.bytes() * W::L));
            for i in 0..group {
                put_codes::<T, W>(&T::codes(&words, i), xor, codes.add((g * group + i) * planes));
            }
        }
    }
}

/// Packs a unit of floats of two or four bytes.
///
/// # Safety
/// The CPU has `W`; `rows` is readable for [`UNIT`] rows, `out` writable for their floats.
#[inline(always)]
pub(crate) unsafe fn pack_unit<W: Words>(
    rows: *const u8,
    row_bytes: usize,
    bytes: usize,
    cols: usize,
    out: *mut u8,
) {
    // Floats in four words.
    let step = 16 / bytes;
    let whole = cols / step * step;
    let next = rows.wrapping_add(UNIT * row_bytes);
    // SAFETY: the caller's promise.
    unsafe {
        for k in (0..whole).step_by(step) {
            for line in (0..16 * UNIT).step_by(64) {
                prefetch(next.wrapping_add(k * bytes * UNIT + line));
            }
            for row in (0..UNIT).step_by(W::L) {
                let words = W::rows(rows.add(row * row_bytes + k * bytes), row_bytes);
                for (i, w) in words.into_iter().enumerate() {
                    let at = |i: usize| ((k + i) * UNIT + row) * bytes;
                    if bytes == 4 {
                        w.store(out.add(at(i)));
                    } else {
                        w.store_halves(out.add(at(2 * i)));
                        w.down(16).store_halves(out.add(at(2 * i + 1)));
                    }
                }
            }
        }
        for k in whole..cols {
            for row in 0..UNIT {
                let from = rows.add(row * row_bytes + k * bytes);
                from.copy_to_nonoverlapping(out.add((k * UNIT + row) * bytes), bytes);
            }
        }
    }
}

/// Asks for the cache line at `p`, which may be anywhere.
#[inline(always)]
fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch reads nothing that the program can see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// The fields of `width` bits from bit `at` of each byte, side by side in one.
#[inline(always)]
unsafe fn fields<W: Words>(c: &[W], at: u32, width: u32) -> W {
    let mask = ((1 << width) - 1) * 0x0101_0101;
    // SAFETY: the caller's promise.
    unsafe {
        let mut all = c[0].down(at).and(mask);
        for (j, w) in c.iter().enumerate().skip(1) {
            all = all.or(w.down(at).and(mask).up(width * j as u32));
        }
        all
    }
}

#[inline(always)]
unsafe fn put_codes<T: Format, W: Words>(c: &Codes<W>, xor: u8, out: *mut u8) {
    let bytes = 4 * W::L;
    // SAFETY: the caller's promise: `out` has room for the planes.
    unsafe {
        if T::BITS == 8 {
            for j in 0..8 {
                c[j].xor(u32::from(xor) * 0x0101_0101).store(out.add(j * bytes));
            }
        } else if T::BITS >= 4 {
            for j in 0..4 {
                fields(&c[2 * j..][..2], 0, 4).store(out.add(j * bytes));
            }
        } else {
            fields(&c[..4], 0, 2).store(out);
            fields(&c[4..], 0, 2).store(out.add(bytes));
        }
        match T::BITS {
            3 => fields(c, 2, 1).store(out.add(2 * bytes)),
            5 => fields(c, 4, 1).store(out.add(4 * bytes)),
            6 => {
                fields(&c[..4], 4, 2).store(out.add(4 * bytes));
                fields(&c[4..], 4, 2).store(out.add(5 * bytes));
            }
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn put_scales<T: Format, W: Words>(
    words: &[W; WORDS],
    block: *const u8,
    row_bytes: usize,
    out: *mut u8,
) {
    // SAFETY: the caller's promise: the blocks are readable and `out` has room for their scales.
    unsafe {
        for lane in 0..W::L {
            let from = block.add(lane * row_bytes + T::FACTOR);
            let to = out.cast::<u16>().add(lane);
            if T::SCALES == Scales::Brain {
                to.write_unaligned(half_of_e8m0(*from).to_le());
            } else {
                to.write_unaligned(from.cast::<u16>().read_unaligned());
            }
            if T::SCALES.min() {
                to.add(W::L).write_unaligned(from.cast::<u16>().add(1).read_unaligned());
            }
        }
        if T::SCALES.blocks() > 1 {
            let small = out.add(if T::SCALES.min() { 4 } else { 2 } * W::L);
            let kinds = if T::SCALES.min() { 2 } else { 1 };
            let all = T::small(words);
            for i in 0..if T::SCALES.halves() { 16 } else { 8 } {
                for kind in 0..kinds {
                    let byte = all[kind][i / 4].down(8 * (i % 4) as u32);
                    byte.store_bytes(small.add((kinds * i + kind) * W::L));
                }
            }
        }
    }
}
