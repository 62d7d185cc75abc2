//! Keys and values in codes of 8 or 4 bits: up to 32 neighbouring numbers of one token of one head share a scale, so what is
//! stored of a token depends on that token alone.
//!
//! Codes lie in lines of 64 bytes that kernels multiply as pairs of 16 bits. A line of keys has one word per token, a line
//! of values one per column: its four bytes are four columns or four tokens, and with 4 bits each byte holds a second
//! column, so that a token's bytes are its own and threads may store different tokens at once.

use crate::simd::{F32x16, LANES, Simd, f16_to_f32, f32_to_f16};
use quarrel_ir::BLOCK_TOKENS;

/// Numbers that share a scale.
pub(crate) const GROUP: usize = 32;
/// Bytes of a line.
pub(crate) const LINE: usize = 64;
/// Bytes of a group's scales of a page.
pub(crate) const SCALES: usize = 2 * BLOCK_TOKENS;

/// A type of codes.
pub(crate) trait Codes: Send + Sync + 'static {
    /// Bits of a code.
    const BITS: usize;
    /// The code of zero.
    const CENTRE: i32 = 1 << (Self::BITS - 1);
    /// Vectors of pairs in a line.
    const PAIRS: usize = 16 / Self::BITS;

    /// The scale of numbers whose largest is `largest`, sign included.
    fn scale(largest: f32) -> f32;

    /// Pair `p` of the codes of a line: of its `p / 2`th four numbers the even or the odd ones.
    fn pair<S: Simd>(s: S, line: S::I, p: usize) -> S::I;
}

/// 8 bits: 8.5 per number with scales.
pub(crate) struct Q8;
/// 4 bits: 4.5 per number with scales.
pub(crate) struct Q4;

impl Codes for Q8 {
    const BITS: usize = 8;

    #[inline(always)]
    fn scale(largest: f32) -> f32 {
        largest.abs() / 127.0
    }

    #[inline(always)]
    fn pair<S: Simd>(s: S, line: S::I, p: usize) -> S::I {
        if p == 0 { s.and(line, 0x00ff_00ff) } else { s.down::<8>(line) }
    }
}

impl Codes for Q4 {
    const BITS: usize = 4;

    #[inline(always)]
    fn scale(largest: f32) -> f32 {
        // The range is -8..=7, so the largest number is -8.
        largest / -8.0
    }

    #[inline(always)]
    fn pair<S: Simd>(s: S, line: S::I, p: usize) -> S::I {
        const LOW: i32 = 0x000f_000f;
        match p {
            0 => s.and(line, LOW),
            1 => s.and(s.down::<8>(line), LOW),
            2 => s.and(s.down::<4>(line), LOW),
            _ => s.down::<12>(line),
        }
    }
}

/// Lines of a head's keys in a page.
pub(crate) fn key_lines<C: Codes>(head_dim: usize) -> usize {
    head_dim.div_ceil(2 * C::PAIRS)
}

/// Lines of a head's values in a page.
pub(crate) fn value_lines<C: Codes>(v_dim: usize) -> usize {
    let vectors = v_dim.div_ceil(LANES);
    BLOCK_TOKENS / 4 * if C::BITS == 8 { vectors } else { vectors.div_ceil(2) }
}

/// Bytes of a head's page: lines, then a row of scales for each group, to whole lines. None if that is more than there can be.
pub(crate) fn head_bytes(lines: usize, dim: usize) -> Option<usize> {
    let scales = dim.div_ceil(GROUP).checked_mul(SCALES)?;
    lines.checked_mul(LINE)?.checked_add(scales)?.checked_next_multiple_of(LINE)
}

/// Where a column of a token's key has its code: the byte, and whether it is in the upper half of it.
fn key_place<C: Codes>(token: usize, column: usize) -> (usize, bool) {
    let line = column / (2 * C::PAIRS);
    (line * LINE + 4 * token + column % 4, C::BITS == 4 && column % 8 >= 4)
}

/// The same of a value.
fn value_place<C: Codes>(v_dim: usize, token: usize, column: usize) -> (usize, bool) {
    let (group, vector, lane) = (column / GROUP, column % GROUP / LANES, column % LANES);
    let inside = 4 * lane + token % 4;
    if C::BITS == 4 {
        return ((group * BLOCK_TOKENS / 4 + token / 4) * LINE + inside, vector == 1);
    }
    // The last group may have one vector.
    let vectors = (v_dim.div_ceil(LANES) - 2 * group).min(2);
    ((group * BLOCK_TOKENS / 2 + token / 4 * vectors + vector) * LINE + inside, false)
}

/// Whether numbers are keys or values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Keys,
    Values,
}

impl Part {
    #[inline(always)]
    pub(crate) fn lines<C: Codes>(self, dim: usize) -> usize {
        match self {
            Part::Keys => key_lines::<C>(dim),
            Part::Values => value_lines::<C>(dim),
        }
    }

    #[inline(always)]
    fn place<C: Codes>(self, dim: usize, token: usize, column: usize) -> (usize, bool) {
        match self {
            Part::Keys => key_place::<C>(token, column),
            Part::Values => value_place::<C>(dim, token, column),
        }
    }
}

/// Stores one token's numbers of one head in the head's page.
///
/// # Safety
/// `page` must be valid for the page of a head of `x.len()` columns, and no other thread may use this token's bytes.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd, C: Codes>(s: S, part: Part, token: usize, x: &[f32], page: *mut u8) {
    let dim = x.len();
    for (group, x) in x.chunks(GROUP).enumerate() {
        let (scale, codes) = quantise::<S, C>(s, x);
        for (i, code) in codes[..x.len()].iter().enumerate() {
            let (at, upper) = part.place::<C>(dim, token, group * GROUP + i);
            // SAFETY: a column of this token; with 4 bits the lower half of a byte comes first and clears the upper one.
            unsafe {
                let byte = page.add(at);
                *byte = if upper { *byte | code << 4 } else { *code };
            }
        }
        let at = part.lines::<C>(dim) * LINE + group * SCALES + 2 * token;
        // SAFETY: the scale of this token and group.
        unsafe { page.add(at).cast::<[u8; 2]>().write(scale.to_le_bytes()) };
    }
}

/// Reads what [`store`] wrote of one token.
pub(crate) fn read<C: Codes>(part: Part, token: usize, page: &[u8], x: &mut [f32]) {
    let dim = x.len();
    for (group, x) in x.chunks_mut(GROUP).enumerate() {
        let at = part.lines::<C>(dim) * LINE + group * SCALES + 2 * token;
        let scale = f16_to_f32(u16::from_le_bytes([page[at], page[at + 1]]));
        for (i, x) in x.iter_mut().enumerate() {
            let (at, upper) = part.place::<C>(dim, token, group * GROUP + i);
            let byte = i32::from(page[at]);
            let code = if C::BITS == 8 { byte } else { byte >> if upper { 4 } else { 0 } & 15 };
            *x = (code - C::CENTRE) as f32 * scale;
        }
    }
}

/// The codes of up to 32 numbers, and the bits of their scale. With a NaN or an infinity among them the scale is NaN.
#[inline(always)]
fn quantise<S: Simd, C: Codes>(s: S, x: &[f32]) -> (u16, [u8; GROUP]) {
    let mut lanes = [0.0; GROUP];
    lanes[..x.len()].copy_from_slice(x);
    let (a, b) = (s.load(&lanes), s.load(&lanes[LANES..]));
    let (high, low) = (a.max(b).largest(), (-a).max(-b).largest());
    let wrong = (a * s.zero() + b * s.zero()).sum();
    let bits = f32_to_f16(C::scale(if high >= low { high } else { -low }) + wrong);
    let scale = f16_to_f32(bits);
    let inverse = s.splat(if scale == 0.0 { 0.0 } else { 1.0 / scale });
    let centre = s.splat(C::CENTRE as f32);
    let top = s.splat((2 * C::CENTRE - 1) as f32);
    let code = |x: S::F| s.to_words(s.round_to_words((x * inverse + centre).max(s.zero()).min(top)));
    let mut codes = [0; GROUP];
    for (codes, words) in codes.chunks_exact_mut(LANES).zip([code(a), code(b)]) {
        codes.iter_mut().zip(words).for_each(|(c, w)| *c = w as u8);
    }
    (bits, codes)
}

/// Multiplies each head's blocks of the largest power of two that divides `dim` by the normalised Hadamard matrix, which is
/// its own inverse. It spreads a few large columns over all, so that they take no precision from the others (QuaRot, Ashkboos
/// et al. 2024), and leaves dot products as they are.
#[inline(always)]
pub(crate) fn rotate<S: Simd>(s: S, x: &mut [f32], dim: usize) {
    let block = 1usize << dim.trailing_zeros();
    if block == 1 {
        return;
    }
    let norm = 1.0 / (block as f32).sqrt();
    for x in x.chunks_exact_mut(block) {
        let mut step = block / 2;
        while step >= LANES {
            for pair in x.chunks_exact_mut(2 * step) {
                let (a, b) = pair.split_at_mut(step);
                for (a, b) in a.chunks_exact_mut(LANES).zip(b.chunks_exact_mut(LANES)) {
                    let (p, q) = (s.load(a), s.load(b));
                    (p + q).store(a);
                    (p - q).store(b);
                }
            }
            step /= 2;
        }
        while step > 0 {
            for pair in x.chunks_exact_mut(2 * step) {
                let (a, b) = pair.split_at_mut(step);
                a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
            }
            step /= 2;
        }
        x.iter_mut().for_each(|x| *x *= norm);
    }
}
