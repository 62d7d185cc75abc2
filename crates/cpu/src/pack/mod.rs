//! Weights as the matrix kernels want them.
//!
//! Quantised types are repacked once, at load, into tiles of `L` output columns (16 with AVX-512, else 8): vectors of `L x 4`
//! bytes that hold four neighbouring `k` of each column, split into planes of bits, and beside them the scales of the `L`
//! columns. A tile is `| codes of all blocks | scales of all blocks |`, about as many bytes as in the file. Float types
//! stay where they are, and so do the rare types, whose rows are decoded when they are used.

pub(crate) mod format;
mod memory;

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use quarrel_formats::{Bytes, DType, quant};

use self::{
    format::{Codes, Format},
    memory::Memory,
};
use crate::{
    matmul::{self, TileFn, UNIT},
    simd::Isa,
};

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
    /// The packing of one tile: source rows, bytes per row, `k`-blocks, tile.
    pub(crate) pack: fn(&[u8], usize, usize, &mut [u8], &mut [u8]),
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
            Data::Tiles { memory, .. } => memory.len(),
            Data::Rows(bytes) => bytes.len(),
        }
    }

    /// Bytes of memory of its own; zero where it uses the file's.
    pub fn owned_bytes(&self) -> usize {
        match &self.data {
            Data::Tiles { memory, .. } => memory.len(),
            Data::Rows(_) => 0,
        }
    }

    /// Which form of the activations it multiplies.
    pub fn input(&self) -> InputKind {
        match self.data {
            Data::Tiles { .. } => InputKind::Quantized,
            Data::Rows(_) => InputKind::Float,
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

    /// The rows as in the file, where they were not repacked.
    pub(crate) fn file_rows(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Rows(bytes) => Some(bytes),
            Data::Tiles { .. } => None,
        }
    }
}

/// Bytes of the codes and of the scales of a tile, both whole cache lines.
fn tile_bytes(kernel: &TileKernel, blocks: usize) -> (usize, usize) {
    let codes = (blocks * kernel.code_bytes * kernel.lanes).next_multiple_of(64);
    (codes, (blocks / kernel.scale_blocks * kernel.scale_bytes * kernel.lanes).next_multiple_of(64))
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
        let size = dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        if size != Some(bytes.len()) || bytes.is_empty() {
            return Err(Error::Shape { dtype, rows, cols, bytes: bytes.len() });
        }
        let data = match matmul::tile_kernel(isa, dtype) {
            Some(kernel) if cols.is_multiple_of(32 * kernel.scale_blocks) => {
                let (codes, scales) = tile_bytes(&kernel, cols / 32);
                let tiles = rows.div_ceil(UNIT) * (UNIT / kernel.lanes);
                let memory = tiles.checked_mul(codes + scales).and_then(Memory::zeroed);
                Data::Tiles { kernel, memory: memory.ok_or(Error::TooLarge { dtype, rows, cols })? }
            }
            _ => {
                let mut block = vec![0.0; dtype.block_len()];
                quant::dequantize(dtype, &bytes[..dtype.block_bytes()], &mut block)
                    .map_err(|source| Error::Type { dtype, source })?;
                Data::Rows(bytes.clone())
            }
        };
        let weight = PackedWeight { isa, dtype, rows, cols, data };
        Ok(PackedBuilder { weight, source: bytes, next: AtomicUsize::new(0) })
    }

    /// Packs the next `units` units that no thread has taken yet; false if there are none. Any number of threads may call it.
    pub fn pack_next(&self, units: usize) -> bool {
        let all = self.weight.units();
        let first = self.next.fetch_add(units, Ordering::Relaxed).min(all);
        self.pack(first..(first + units).min(all));
        first < all
    }

    /// Units are packed by whoever took their numbers from `next`, so no two threads write to one.
    fn pack(&self, units: Range<usize>) {
        let w = &self.weight;
        let Data::Tiles { kernel, .. } = &w.data else { return };
        let (codes, scales) = tile_bytes(kernel, w.blocks());
        let row_bytes = self.source.len() / w.rows;
        for unit in units {
            let Some((_, tile, tiles)) = w.tiles(unit..unit + 1) else { return };
            for i in 0..tiles {
                let tile = tile.nth(i);
                let first = unit * UNIT + i * kernel.lanes;
                let last = (first + kernel.lanes).min(w.rows);
                if first < last {
                    let rows = &self.source[first * row_bytes..last * row_bytes];
                    // SAFETY: the two parts of a tile that is ours alone.
                    let (codes, scales) = unsafe {
                        (
                            std::slice::from_raw_parts_mut(tile.codes.cast_mut(), codes),
                            std::slice::from_raw_parts_mut(tile.scales.cast_mut(), scales),
                        )
                    };
                    (kernel.pack)(rows, row_bytes, w.blocks(), codes, scales);
                }
            }
        }
    }

    /// Packs what is left. The source may be released by the caller afterwards, if [`PackedWeight::owned_bytes`] is not zero.
    pub fn finish(self) -> PackedWeight {
        while self.pack_next(64) {}
        self.weight
    }
}

/// Packs a tile of `L` columns from rows of the file.
#[inline(always)]
pub(crate) fn pack_tile<T: Format, const L: usize>(
    rows: &[u8],
    row_bytes: usize,
    blocks: usize,
    xor: u8,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    let group = T::SCALES.blocks();
    let planes = matmul::plane_bytes(T::BITS) * L;
    for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
        for g in 0..blocks / group {
            let block = &row[g * T::BYTES..][..T::BYTES];
            put_scales::<T, L>(
                block,
                lane,
                &mut scales[g * T::SCALES.bytes() * L..][..T::SCALES.bytes() * L],
            );
            for i in 0..group {
                let out = &mut codes[(g * group + i) * planes..][..planes];
                put_codes::<T, L>(&T::codes(block, i), lane, xor, out);
            }
        }
    }
}

#[inline(always)]
fn put_codes<T: Format, const L: usize>(c: &Codes, lane: usize, xor: u8, out: &mut [u8]) {
    let mut put = |plane: usize, word: u32| {
        out[4 * (plane * L + lane)..][..4].copy_from_slice(&word.to_le_bytes());
    };
    let bit = |at: u32| (0..8).fold(0, |p, j| p | ((c[j] >> at) & 0x0101_0101) << j);
    let two =
        |at: u32, first: usize| (0..4).fold(0, |p, j| p | ((c[first + j] >> at) & 0x0303_0303) << (2 * j));
    if T::BITS == 8 {
        for j in 0..8 {
            put(j, c[j] ^ (u32::from(xor) * 0x0101_0101));
        }
    } else if T::BITS >= 4 {
        for j in 0..4 {
            put(j, c[2 * j] & 0x0f0f_0f0f | (c[2 * j + 1] & 0x0f0f_0f0f) << 4);
        }
    } else {
        put(0, two(0, 0));
        put(1, two(0, 4));
    }
    match T::BITS {
        3 => put(2, bit(2)),
        5 => put(4, bit(4)),
        6 => {
            put(4, two(4, 0));
            put(5, two(4, 4));
        }
        _ => {}
    }
}

#[inline(always)]
fn put_scales<T: Format, const L: usize>(block: &[u8], lane: usize, out: &mut [u8]) {
    let s = T::scales(block);
    out[2 * lane..][..2].copy_from_slice(&s.d.to_le_bytes());
    if T::SCALES.min() {
        out[2 * (L + lane)..][..2].copy_from_slice(&s.m.to_le_bytes());
    }
    if T::SCALES.blocks() > 1 {
        let small = &mut out[if T::SCALES.min() { 4 } else { 2 } * L..];
        for i in 0..if T::SCALES.halves() { 16 } else { 8 } {
            if T::SCALES.min() {
                small[2 * i * L + lane] = s.scale[i];
                small[(2 * i + 1) * L + lane] = s.min[i];
            } else {
                small[i * L + lane] = s.scale[i];
            }
        }
    }
}
