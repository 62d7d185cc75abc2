//! The product of a tile of packed weights (`L` output columns) with a few rows of quantised activations.
//!
//! One output's arithmetic: for every block of 32 `k`, in order, the exact integer sum of code times activation, then
//! `acc += (sum * weight scale) * activation scale` (the two halves' first added, where a half has a scale) and `acc += offset * activation sum`. It knows nothing of the number of rows,
//! which only decides how many rows share the work of unpacking a weight.

use super::{GROUP, XBlock, lanes::Lanes};
use crate::pack::{
    Tile,
    format::{Format, Scales},
};

/// The codes of vector `j` of a block: the planes' bits put together.
#[inline(always)]
unsafe fn codes<S: Lanes, T: Format>(q: *const u8, j: usize) -> S::V {
    let bytes = 4 * S::L;
    // SAFETY: the block holds these planes, as `Tile` lays them out.
    unsafe {
        // The field of `width` bits from bit `from` moved to bit `to`.
        let field = |plane: usize, from: usize, to: usize, width: u32| {
            let v = S::load(q.add(plane * bytes));
            S::and(S::shift(v, from as i32 - to as i32), (((1 << width) - 1) << to) as u8)
        };
        match T::BITS {
            2 => field(j / 4, 2 * (j % 4), 0, 2),
            3 => S::or(field(j / 4, 2 * (j % 4), 0, 2), field(2, j, 2, 1)),
            4 => field(j / 2, 4 * (j % 2), 0, 4),
            5 => S::or(field(j / 2, 4 * (j % 2), 0, 4), field(4, j, 4, 1)),
            6 => S::or(field(j / 2, 4 * (j % 2), 0, 4), field(4 + j / 4, 2 * (j % 4), 4, 2)),
            _ => S::load(q.add(j * bytes)),
        }
    }
}

/// Bytes of a block's planes per column.
pub(crate) const fn plane_bytes(bits: u32) -> usize {
    4 * bits as usize
}

/// `R` rows from `x`, one [`XBlock`] after the other, `stride` of them from a block of 32 to the next.
///
/// # Safety
/// The CPU has `S`; `tile` has `blocks` blocks of `T`; `x` and `out` are valid for the rows.
#[inline(always)]
unsafe fn rows<S: Lanes, T: Format, const R: usize>(
    tile: Tile,
    blocks: usize,
    x: *const XBlock,
    stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: see above; every pointer below stays inside the tile and the rows.
    unsafe {
        let wide = T::BITS == 8 || T::TABLE.is_some();
        let shift = if T::CENTRE == 0 { 0 } else { T::CENTRE.trailing_zeros() as i32 - 3 };
        let group = T::SCALES.blocks();
        let mut acc = [S::fzero(); R];
        let (mut q, mut s, mut x) = (tile.codes, tile.scales, x);
        for _ in 0..blocks / group {
            let factor = if T::SCALES == Scales::Brain { S::bf16(s) } else { S::f16(s) };
            let offset = if T::SCALES.min() { S::f16(s.add(2 * S::L)) } else { factor };
            let small = s.add(if T::SCALES.min() { 4 } else { 2 } * S::L);
            for b in 0..group {
                let halves = if T::SCALES.halves() { 2 } else { 1 };
                let mut products = [S::fzero(); R];
                for h in 0..halves {
                    let i = halves * b + h;
                    let scale = match T::SCALES {
                        Scales::Half | Scales::HalfMin | Scales::Brain => factor,
                        Scales::Signed32 | Scales::Signed16 => S::mul(factor, S::i8(small.add(i * S::L))),
                        Scales::Min32 | Scales::Min16 => S::mul(factor, S::u8(small.add(2 * i * S::L))),
                    };
                    let mut sums = [S::fzero(); R];
                    if wide {
                        let mut p: [[S::W; 2]; R] =
                            std::array::from_fn(|r| (*x.add(r)).sums.map(|s| S::start_wide(s)));
                        for j in 0..8 {
                            let w = match T::TABLE {
                                Some(table) => S::lookup(codes::<S, T>(q, j), &table),
                                None => codes::<S, T>(q, j),
                            };
                            for r in 0..R {
                                for plane in 0..2 {
                                    let x = (&raw const (*x.add(r)).q[plane]).cast::<i8>().add(4 * j);
                                    p[r][plane] = S::dot_wide(p[r][plane], w, x);
                                }
                            }
                        }
                        for r in 0..R {
                            sums[r] = S::wide_to_f(p[r][0], p[r][1]);
                        }
                    } else {
                        let mut p: [[S::P; 2]; R] = std::array::from_fn(|r| {
                            let x = x.add(r);
                            std::array::from_fn(|plane| match (T::CENTRE, halves, h) {
                                (0, ..) => S::zero(),
                                (_, 1, _) => S::start((*x).sums[plane], shift),
                                (_, _, 0) => S::start((*x).half[plane], shift),
                                _ => S::start_second((*x).sums[plane], (*x).half[plane], shift),
                            })
                        });
                        let n = 8 / halves;
                        for j in n * h..n * (h + 1) {
                            let w = codes::<S, T>(q, j);
                            for r in 0..R {
                                for plane in 0..2 {
                                    let x = (&raw const (*x.add(r)).q[plane]).cast::<i8>().add(4 * j);
                                    p[r][plane] = S::dot(p[r][plane], w, x);
                                }
                            }
                        }
                        for r in 0..R {
                            sums[r] = S::to_f(p[r][0], p[r][1]);
                        }
                    }
                    for r in 0..R {
                        // Two halves are first added where there are registers for it: one addition less for each.
                        if halves == 1 || S::L == 8 {
                            let scaled = S::mul(sums[r], scale);
                            acc[r] = S::fma(scaled, S::splat((*x.add(r)).scale), acc[r]);
                        } else if h == 0 {
                            products[r] = S::mul(sums[r], scale);
                        } else {
                            let both = S::fma(sums[r], scale, products[r]);
                            acc[r] = S::fma(both, S::splat((*x.add(r)).scale), acc[r]);
                        }
                    }
                    if T::SCALES == Scales::Min16 {
                        let min = S::mul(offset, S::u8(small.add((2 * i + 1) * S::L)));
                        for r in 0..R {
                            let x = x.add(r);
                            let sum = |plane: usize| {
                                let (sums, half) = ((*x).sums[plane], (*x).half[plane]);
                                S::plain_sum(if h == 0 { half } else { S::second_half(sums, half) })
                            };
                            let sum = (128 * sum(0) + sum(1)) as f32 * (*x).scale;
                            acc[r] = S::fma(min, S::splat(-sum), acc[r]);
                        }
                    }
                }
                if matches!(T::SCALES, Scales::HalfMin | Scales::Min32) {
                    // What was subtracted from the codes comes back here, with the offset.
                    let min = match T::SCALES {
                        Scales::HalfMin if T::CENTRE == 0 => offset,
                        Scales::HalfMin => S::fma(factor, S::splat(T::CENTRE as f32), offset),
                        _ => {
                            let min = S::mul(offset, S::u8(small.add((2 * b + 1) * S::L)));
                            if T::CENTRE == 0 {
                                S::mul(min, S::splat(-1.0))
                            } else {
                                let scale = S::mul(factor, S::u8(small.add(2 * b * S::L)));
                                S::fma(scale, S::splat(T::CENTRE as f32), S::mul(min, S::splat(-1.0)))
                            }
                        }
                    };
                    for r in 0..R {
                        acc[r] = S::fma(min, S::splat((*x.add(r)).scaled_sum), acc[r]);
                    }
                }
                q = q.add(plane_bytes(T::BITS) * S::L);
                x = x.add(stride);
            }
            s = s.add(T::SCALES.bytes() * S::L);
        }
        for r in 0..R {
            S::store(acc[r], out.add(r * out_stride));
        }
    }
}

/// A tile with rows `first..last` of `x`'s `all`; `out` is the place of row `first`. `first` is a multiple of [`GROUP`].
///
/// # Safety
/// As `rows`.
#[inline(always)]
pub(super) unsafe fn tile<S: Lanes, T: Format>(
    tile: Tile,
    blocks: usize,
    x: *const XBlock,
    all: usize,
    first: usize,
    last: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut row = first;
    while row < last {
        let group = row / GROUP * GROUP;
        let stride = GROUP.min(all - group);
        let left = (stride - (row - group)).min(last - row);
        // SAFETY: the group begins behind `group` whole rows, and has `stride` rows.
        unsafe {
            let x = x.add(group * blocks + (row - group));
            let out = out.add((row - first) * out_stride);
            row += if left >= 8 && S::ROWS >= 8 {
                rows::<S, T, 8>(tile, blocks, x, stride, out, out_stride);
                8
            } else if left >= 4 {
                rows::<S, T, 4>(tile, blocks, x, stride, out, out_stride);
                4
            } else if left >= 2 {
                rows::<S, T, 2>(tile, blocks, x, stride, out, out_stride);
                2
            } else {
                rows::<S, T, 1>(tile, blocks, x, stride, out, out_stride);
                1
            };
        }
    }
}
