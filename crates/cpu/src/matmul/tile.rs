//! The product of tiles of packed weights (`L` output columns each) with rows of quantised activations.
//!
//! One output's arithmetic: for every block of 32 `k`, in order, the exact integer sum of code times activation, then
//! `acc += (sum * weight scale) * activation scale` (the two halves' first added, where a half has a scale) and `acc += offset * activation sum`. It knows nothing of the number of rows,
//! which only decides how the work is shared: with many rows a tile's codes and scales are unpacked to a scratch memory once.

use std::marker::PhantomData;

use super::{GROUP, XBlock, lanes::Lanes};
use crate::pack::{
    Tile,
    format::{Format, Scales},
};

/// From so many rows on a tile is unpacked first.
const MANY: usize = 16;

/// Bytes of codes between those that are multiplied and those that are asked for, into the second cache: the first has too few
/// buffers to wait for memory in (two dozen lines, which is half of what one thread can read), and the hardware's own prefetch stops
/// at every 4 KiB.
const AHEAD: usize = 16384;

/// A product of neighbouring tiles with some rows.
#[derive(Clone, Copy)]
pub(crate) struct TileProduct {
    /// The first tile.
    pub(crate) tile: Tile,
    /// Tiles.
    pub(crate) tiles: usize,
    /// Blocks of 32 `k`.
    pub(crate) blocks: usize,
    /// All rows of activations, and their number.
    pub(crate) x: *const XBlock,
    pub(crate) x_rows: usize,
    /// The rows that are wanted; the first one is a multiple of [`GROUP`].
    pub(crate) first: usize,
    pub(crate) last: usize,
    /// Where the first of these goes; tiles are `L` apart.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// `TileKernel::unpacked` bytes for every block, for a tile at a time.
    pub(crate) scratch: *mut u8,
}

/// Bytes of a block's planes per column.
pub(crate) const fn plane_bytes(bits: u32) -> usize {
    4 * bits as usize
}

/// Bytes per column of a block that is unpacked: its codes, and scale (and offset) of each half.
pub(crate) const fn unpacked_bytes(scales: Scales) -> usize {
    32 + 4 * halves(scales) * if scales.min() { 2 } else { 1 }
}

const fn halves(scales: Scales) -> usize {
    if scales.halves() { 2 } else { 1 }
}

/// What the instruction set makes of a type.
struct How<S, T>(PhantomData<(S, T)>);

impl<S: Lanes, T: Format> How<S, T> {
    /// Whether codes are multiplied as whole bytes.
    const WIDE: bool = T::BITS == 8 || T::TABLE.is_some() || !S::NARROW;
    /// Codes are moved up so far that what is subtracted from them is 128, which is that of whole bytes too.
    const UP: usize = match (Self::FEW_WIDE && !T::SCALES.min(), T::CENTRE) {
        (false, _) | (_, 0) => 0,
        (true, centre) => 7 - centre.trailing_zeros() as usize,
    };
    /// Whether sums start from what is subtracted.
    const CENTRED: bool = !Self::FEW_WIDE || Self::UP > 0;
    /// Codes of few bits in the product of whole bytes.
    const FEW_WIDE: bool = T::BITS < 8 && T::TABLE.is_none() && !S::NARROW;
    /// What was subtracted from codes that have an offset: it comes back with that.
    const RETURN: i32 = if !Self::WIDE && T::SCALES.min() { T::CENTRE } else { 0 };
    const HALVES: usize = halves(T::SCALES);
}

/// A place in a tile: a group of blocks with a common factor, and a block in it. `UNPACKED` tells how the tile lies.
#[derive(Clone, Copy)]
struct Cursor<S: Lanes, T, const UNPACKED: bool> {
    codes: *const u8,
    scales: *const u8,
    bytes: usize,
    /// The codes that are asked for next, and where those of their tile end.
    fetch: *const u8,
    fetch_end: *const u8,
    /// Bytes from there to the next tile's codes: the scales.
    gap: usize,
    factor: S::F,
    offset: S::F,
    format: PhantomData<T>,
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "pointers stay inside the tile, as `rows` walks it")]
impl<S: Lanes, T: Format, const UNPACKED: bool> Cursor<S, T, UNPACKED> {
    #[inline(always)]
    unsafe fn new(tile: Tile) -> Self {
        let zero = unsafe { S::fzero() };
        let codes = tile.scales as usize - tile.codes as usize;
        // What is ahead may lie several tiles on.
        let tiles = if UNPACKED { 0 } else { AHEAD / codes };
        let fetch = tile.codes.wrapping_add(tiles * tile.bytes);
        Cursor {
            codes: tile.codes,
            scales: tile.scales,
            bytes: tile.bytes,
            fetch: if UNPACKED { fetch } else { fetch.wrapping_add(AHEAD % codes) },
            fetch_end: fetch.wrapping_add(codes),
            gap: tile.bytes.wrapping_sub(codes),
            factor: zero,
            offset: zero,
            format: PhantomData,
        }
    }

    /// Reads the factors of the group, and asks for those of the next tile.
    #[inline(always)]
    unsafe fn open(&mut self) {
        if UNPACKED {
            return;
        }
        // Those of the next tile lie behind its codes.
        for line in (0..T::SCALES.bytes() * S::L).step_by(64) {
            S::prefetch(self.scales.wrapping_add(self.bytes + line));
        }
        unsafe {
            self.factor = if T::SCALES == Scales::Brain { S::bf16(self.scales) } else { S::f16(self.scales) };
            if T::SCALES.min() {
                let m = S::f16(self.scales.add(2 * S::L));
                // The minima of K types are subtracted.
                self.offset = if T::SCALES == Scales::HalfMin { m } else { S::mul(m, S::splat(-1.0)) };
            }
        }
    }

    /// The bytes that multiply the group's factors.
    #[inline(always)]
    unsafe fn small(&self, i: usize) -> *const u8 {
        unsafe { self.scales.add((if T::SCALES.min() { 4 } else { 2 } + i) * S::L) }
    }

    /// Scale of half `h` of block `b` of the group.
    #[inline(always)]
    unsafe fn scale(&self, b: usize, h: usize) -> S::F {
        let i = How::<S, T>::HALVES * b + h;
        unsafe {
            if UNPACKED {
                return S::f32(self.unpacked_scale(h));
            }
            match T::SCALES {
                Scales::Half | Scales::HalfMin | Scales::Brain => self.factor,
                Scales::Signed32 | Scales::Signed16 => S::mul(self.factor, S::i8(self.small(i))),
                Scales::Min32 | Scales::Min16 => S::mul(self.factor, S::u8(self.small(2 * i))),
            }
        }
    }

    /// What multiplies the sum of the activations.
    #[inline(always)]
    unsafe fn min(&self, b: usize, h: usize, scale: S::F) -> S::F {
        let i = How::<S, T>::HALVES * b + h;
        unsafe {
            if UNPACKED {
                return S::f32(self.unpacked_scale(h).add(4 * S::L));
            }
            let min = match T::SCALES {
                Scales::HalfMin => self.offset,
                _ => S::mul(self.offset, S::u8(self.small(2 * i + 1))),
            };
            match How::<S, T>::RETURN {
                0 => min,
                centre => S::fma(scale, S::splat(centre as f32), min),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpacked_scale(&self, h: usize) -> *const u8 {
        let half = if T::SCALES.min() { 8 } else { 4 };
        unsafe { self.codes.add((32 + h * half) * S::L) }
    }

    /// The codes of vector `j` of the block: the planes' bits put together, or what the table says.
    #[inline(always)]
    unsafe fn code(&self, j: usize) -> S::V {
        let bytes = 4 * S::L;
        unsafe {
            if UNPACKED {
                return S::load(self.codes.add(j * bytes));
            }
            // The field of `width` bits from bit `from` moved to bit `to`.
            let field = |plane: usize, from: usize, to: usize, width: u32| {
                let v = S::load(self.codes.add(plane * bytes));
                let to = to + How::<S, T>::UP;
                S::and(S::shift(v, from as i32 - to as i32), (((1u32 << width) - 1) << to) as u8)
            };
            let v = match T::BITS {
                2 => field(j / 4, 2 * (j % 4), 0, 2),
                3 => S::or(field(j / 4, 2 * (j % 4), 0, 2), field(2, j, 2, 1)),
                4 => field(j / 2, 4 * (j % 2), 0, 4),
                5 => S::or(field(j / 2, 4 * (j % 2), 0, 4), field(4, j, 4, 1)),
                6 => S::or(field(j / 2, 4 * (j % 2), 0, 4), field(4 + j / 4, 2 * (j % 4), 4, 2)),
                _ => S::load(self.codes.add(j * bytes)),
            };
            match T::TABLE {
                Some(table) => S::lookup(v, &table),
                None => v,
            }
        }
    }

    /// Asks for a block of the codes that come later.
    #[inline(always)]
    fn prefetch(&mut self) {
        if UNPACKED {
            return;
        }
        let bytes = plane_bytes(T::BITS) * S::L;
        for line in (0..bytes).step_by(64) {
            S::prefetch(self.fetch.wrapping_add(line));
        }
        self.fetch = self.fetch.wrapping_add(bytes);
        if self.fetch >= self.fetch_end {
            self.fetch = self.fetch.wrapping_add(self.gap);
            self.fetch_end = self.fetch_end.wrapping_add(self.bytes);
        }
    }

    #[inline(always)]
    unsafe fn next_block(&mut self) {
        let bytes = if UNPACKED { unpacked_bytes(T::SCALES) } else { plane_bytes(T::BITS) };
        self.codes = unsafe { self.codes.add(bytes * S::L) };
    }

    #[inline(always)]
    unsafe fn next_group(&mut self) {
        if !UNPACKED {
            self.scales = unsafe { self.scales.add(T::SCALES.bytes() * S::L) };
        }
    }
}

/// The integer sums of half `h` of a block with `R` rows.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn sums<S: Lanes, T: Format, const R: usize, const UNPACKED: bool>(
    at: &Cursor<S, T, UNPACKED>,
    h: usize,
    x: *const XBlock,
) -> [S::F; R] {
    let halves = How::<S, T>::HALVES;
    let n = 8 / halves;
    // SAFETY: rows of `x`, and the block.
    unsafe {
        let bytes = |r: usize, plane: usize, j: usize| {
            (&raw const (*x.add(r)).q[plane]).cast::<i8>().add(4 * (n * h + j))
        };
        if How::<S, T>::WIDE {
            let part = if halves == 1 { 0 } else { 1 + h };
            if S::CHAIN {
                let w: [S::V; 8] = std::array::from_fn(|j| at.code(n * h + j % n));
                let mut p: [S::W; R] = std::array::from_fn(|r| {
                    if How::<S, T>::CENTRED {
                        S::start_wide((*x.add(r)).starts[part])
                    } else {
                        S::zero_wide()
                    }
                });
                for j in 0..n {
                    for r in 0..R {
                        p[r] = S::dot_wide(p[r], w[j], bytes(r, 0, j));
                    }
                }
                p = p.map(|p| S::times_128(p));
                for j in 0..n {
                    for r in 0..R {
                        p[r] = S::dot_wide(p[r], w[j], bytes(r, 1, j));
                    }
                }
                p.map(|p| S::wide_to_f(p))
            } else {
                let mut p = [[S::zero_wide(); 2]; R];
                for j in 0..n {
                    let w = at.code(n * h + j);
                    for r in 0..R {
                        for plane in 0..2 {
                            p[r][plane] = S::dot_wide(p[r][plane], w, bytes(r, plane, j));
                        }
                    }
                }
                p.map(|[high, low]| S::wide_to_f(S::add_wide(S::times_128(high), low)))
            }
        } else {
            let shift = if T::CENTRE == 0 { 0 } else { T::CENTRE.trailing_zeros() as i32 - 3 };
            let mut p: [[S::P; 2]; R] = std::array::from_fn(|r| {
                let starts = &(*x.add(r)).starts;
                std::array::from_fn(|plane| match (T::CENTRE, halves, h) {
                    (0, ..) => S::zero(),
                    (_, 1, _) => S::start(starts[plane], shift),
                    (_, _, 0) => S::start(starts[2 + plane], shift),
                    _ => S::start_second(starts[plane], starts[2 + plane], shift),
                })
            });
            for j in 0..n {
                let w = at.code(n * h + j);
                for r in 0..R {
                    for plane in 0..2 {
                        p[r][plane] = S::dot(p[r][plane], w, bytes(r, plane, j));
                    }
                }
            }
            p.map(|[high, low]| S::to_f(high, low))
        }
    }
}

/// Block `b` of a group with `R` rows.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn block<S: Lanes, T: Format, const R: usize, const UNPACKED: bool>(
    at: &mut Cursor<S, T, UNPACKED>,
    b: usize,
    x: *const XBlock,
    acc: &mut [S::F; R],
) {
    // SAFETY: rows of `x`, and the block.
    unsafe {
        let halves = How::<S, T>::HALVES;
        let mut products = [S::fzero(); R];
        at.prefetch();
        for h in 0..halves {
            let scale = at.scale(b, h);
            let sums = sums::<S, T, R, UNPACKED>(at, h, x);
            for r in 0..R {
                // Two halves are first added where there are registers for it: one addition less for each.
                if halves == 1 || S::L == 8 {
                    acc[r] = S::fma(S::mul(sums[r], scale), S::splat((*x.add(r)).scale), acc[r]);
                } else if h == 0 {
                    products[r] = S::mul(sums[r], scale);
                } else {
                    let both = S::fma(sums[r], scale, products[r]);
                    acc[r] = S::fma(both, S::splat((*x.add(r)).scale), acc[r]);
                }
            }
            if T::SCALES.min() {
                let min = at.min(b, h, scale);
                for r in 0..R {
                    let x = x.add(r);
                    let sum = if halves == 1 { (*x).scaled_sum } else { (*x).scaled_half[h] };
                    acc[r] = S::fma(min, S::splat(sum), acc[r]);
                }
            }
        }
    }
}

/// `R` rows from `x`, one [`XBlock`] after the other, `stride` of them from a block of 32 to the next.
///
/// # Safety
/// The CPU has `S`; the tile has `blocks` blocks of `T`; `x` and `out` are valid for the rows.
#[inline(always)]
unsafe fn rows<S: Lanes, T: Format, const R: usize, const UNPACKED: bool>(
    tile: Tile,
    blocks: usize,
    (mut x, stride): (*const XBlock, usize),
    (out, out_stride): (*mut f32, usize),
) {
    // SAFETY: see above; every pointer below stays inside the tile and the rows.
    unsafe {
        let mut acc = [S::fzero(); R];
        let mut at = Cursor::<S, T, UNPACKED>::new(tile);
        for _ in 0..blocks / T::SCALES.blocks() {
            at.open();
            for b in 0..T::SCALES.blocks() {
                block(&mut at, b, x, &mut acc);
                at.next_block();
                x = x.add(stride);
            }
            at.next_group();
        }
        for r in 0..R {
            let y = match How::<S, T>::UP {
                0 => acc[r],
                up => S::mul(acc[r], S::splat(1.0 / (1u32 << up) as f32)),
            };
            S::store(y, out.add(r * out_stride));
        }
    }
}

/// Writes a tile's codes and scales as `UNPACKED` cursors read them.
///
/// # Safety
/// As [`rows`]; `to` is writable.
#[inline(always)]
unsafe fn unpack<S: Lanes, T: Format>(tile: Tile, blocks: usize, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut at, mut to) = (Cursor::<S, T, false>::new(tile), to);
        for _ in 0..blocks / T::SCALES.blocks() {
            at.open();
            for b in 0..T::SCALES.blocks() {
                at.prefetch();
                let out = Cursor::<S, T, true>::new(Tile { codes: to, scales: to, bytes: 0 });
                for j in 0..8 {
                    S::put(at.code(j), to.add(4 * S::L * j));
                }
                for h in 0..How::<S, T>::HALVES {
                    let (scale, place) = (at.scale(b, h), out.unpacked_scale(h).cast_mut().cast::<f32>());
                    S::store(scale, place);
                    if T::SCALES.min() {
                        S::store(at.min(b, h, scale), place.add(S::L));
                    }
                }
                to = to.add(unpacked_bytes(T::SCALES) * S::L);
                at.next_block();
            }
            at.next_group();
        }
    }
}

/// The product.
///
/// # Safety
/// The CPU has `S`; the tiles are of `T`; all is valid for the rows.
#[inline(always)]
pub(super) unsafe fn tile<S: Lanes, T: Format>(p: &TileProduct) {
    let many = p.last - p.first >= MANY;
    let whole = p.first + if many { (p.last - p.first) / S::ROWS * S::ROWS } else { 0 };
    // SAFETY: the caller's promise.
    unsafe {
        for t in 0..p.tiles {
            let tile = p.tile.nth(t);
            if many {
                unpack::<S, T>(tile, p.blocks, p.scratch);
                let unpacked = Tile { codes: p.scratch, scales: p.scratch, bytes: 0 };
                for row in (p.first..whole).step_by(S::ROWS) {
                    let (x, out) = place::<S>(p, row, t);
                    if S::ROWS == 8 {
                        rows::<S, T, 8, true>(unpacked, p.blocks, x, out);
                    } else {
                        rows::<S, T, 4, true>(unpacked, p.blocks, x, out);
                    }
                }
            }
            let mut row = whole;
            while row < p.last {
                let left = p.last.min((row / GROUP + 1) * GROUP) - row;
                let (x, out) = place::<S>(p, row, t);
                row += if left >= 8 && S::ROWS == 8 {
                    rows::<S, T, 8, false>(tile, p.blocks, x, out);
                    8
                } else if left >= 4 {
                    rows::<S, T, 4, false>(tile, p.blocks, x, out);
                    4
                } else if left >= 2 {
                    rows::<S, T, 2, false>(tile, p.blocks, x, out);
                    2
                } else {
                    rows::<S, T, 1, false>(tile, p.blocks, x, out);
                    1
                };
            }
        }
    }
}

/// Where a row's activations begin and their distance from block to block; where its product with tile `t` goes, and the
/// next row's.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn place<S: Lanes>(
    p: &TileProduct,
    row: usize,
    t: usize,
) -> ((*const XBlock, usize), (*mut f32, usize)) {
    let group = row / GROUP * GROUP;
    // SAFETY: the group begins behind `group` whole rows, and has `stride` rows.
    unsafe {
        let x = p.x.add(group * p.blocks + (row - group));
        let out = p.out.add((row - p.first) * p.out_stride + t * S::L);
        ((x, GROUP.min(p.x_rows - group)), (out, p.out_stride))
    }
}
