//! The quantised types as data: which planes of bits hold the codes, what is subtracted, which scales apply; and how the
//! codes and scales are read out of blocks of the file, of the same block of several rows at once. Layouts:
//! `quarrel_formats::quant`.

use super::words::Words;

/// The numbers that turn sums of codes into values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// One f16 factor per 32 values.
    Half,
    /// An f16 factor and an f16 offset per 32 values.
    HalfMin,
    /// One bf16 factor per 32 values.
    Brain,
    /// Per 256 values an f16 factor, and a signed byte that multiplies it for every 32.
    Signed32,
    /// Per 256 values an f16 factor, and a signed byte that multiplies it for every 16.
    Signed16,
    /// Per 256 values f16 factors of scale and minimum, and a byte for each for every 32.
    Min32,
    /// Per 256 values f16 factors of scale and minimum, and a byte for each for every 16.
    Min16,
}

impl Scales {
    /// Whether a block is divided in two halves of 16.
    pub(crate) const fn halves(self) -> bool {
        matches!(self, Scales::Signed16 | Scales::Min16)
    }

    /// Whether there is an offset besides the factor.
    pub(crate) const fn min(self) -> bool {
        matches!(self, Scales::HalfMin | Scales::Min32 | Scales::Min16)
    }

    /// Blocks of 32 that share the f16 factor.
    pub(crate) const fn blocks(self) -> usize {
        match self {
            Scales::Half | Scales::HalfMin | Scales::Brain => 1,
            _ => 8,
        }
    }

    /// Bytes per column for that many blocks.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Scales::Half | Scales::Brain => 2,
            Scales::HalfMin => 4,
            Scales::Signed32 => 2 + 8,
            Scales::Signed16 => 2 + 16,
            Scales::Min32 => 4 + 16,
            Scales::Min16 => 4 + 32,
        }
    }
}

/// Most words of a block.
pub(crate) const WORDS: usize = 52;

/// Eight groups of four codes, a byte each: 32 values in order.
pub(crate) type Codes<W> = [W; 8];

/// The bytes of a block that multiply its f16 numbers, four to a word: those of the factor, and those of the offset.
pub(crate) type Small<W> = [[W; 4]; 2];

/// A quantised type. Of a block's words the functions read those that [`Format::WORDS`] counts.
pub(crate) trait Format {
    /// Bytes of a block in the file.
    const BYTES: usize;
    /// Bits of a code: 2, 3, 4, 5, 6 or 8 (signed).
    const BITS: u32;
    /// Subtracted from codes of less than eight bits; 0 or 4, 8, 16, 32.
    const CENTRE: i32 = 0;
    /// The values that 4-bit codes stand for, where they are not themselves.
    const TABLE: Option<[i8; 16]> = None;
    /// The scales; `SCALES.blocks()` is the number of 32s in a block of the file.
    const SCALES: Scales;
    /// Where a block has its f16 factor (with [`Scales::Brain`] its exponent); the offset follows it.
    const FACTOR: usize = 0;
    /// Bytes before the first word.
    const SKIP: usize = 0;
    /// Words from there on, at least four.
    const WORDS: usize = Self::BYTES / 4;

    /// The codes of the `i`th 32 values of a block.
    ///
    /// # Safety
    /// The CPU has `W`.
    unsafe fn codes<W: Words>(w: &[W; WORDS], i: usize) -> Codes<W>;

    /// The small scales of a block; types with one scale for it have none.
    ///
    /// # Safety
    /// The CPU has `W`.
    unsafe fn small<W: Words>(w: &[W; WORDS]) -> Small<W> {
        [[w[0]; 4]; 2]
    }
}

const LOW: u32 = 0x0f0f_0f0f;
const PAIRS: u32 = 0x0303_0303;
const ONES: u32 = 0x0101_0101;

/// An array by index. A closure would be a function of its own, without the instructions of the one around it.
macro_rules! array {
    (4, $i:ident => $e:expr) => {
        array!([0 1 2 3], $i => $e)
    };
    (8, $i:ident => $e:expr) => {
        array!([0 1 2 3 4 5 6 7], $i => $e)
    };
    ([$($n:literal)+], $i:ident => $e:expr) => {
        [$({
            let $i: usize = $n;
            $e
        }),+]
    };
}

/// Four words whose low nibbles come first.
#[inline(always)]
unsafe fn nibbles<W: Words>(w: &[W]) -> Codes<W> {
    // SAFETY: the caller's promise.
    unsafe { array!(8, g => w[g % 4].down(4 * (g / 4) as u32).and(LOW)) }
}

/// Spreads the four low bits to the lowest bits of four bytes.
#[inline(always)]
unsafe fn spread<W: Words>(bits: W) -> W {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = bits.and(15);
        let bits = bits.or(bits.up(14)).and(0x0003_0003);
        bits.or(bits.up(7)).and(ONES)
    }
}

macro_rules! simple {
    ($name:ident, $bytes:expr, $bits:expr, $centre:expr, $scales:ident, $table:expr, $skip:expr, |$w:ident| $codes:expr) => {
        pub(crate) struct $name;
        impl Format for $name {
            const BYTES: usize = $bytes;
            const BITS: u32 = $bits;
            const CENTRE: i32 = $centre;
            const TABLE: Option<[i8; 16]> = $table;
            const SCALES: Scales = Scales::$scales;
            const SKIP: usize = $skip;

            #[inline(always)]
            unsafe fn codes<W: Words>($w: &[W; WORDS], _: usize) -> Codes<W> {
                // SAFETY: the caller's promise.
                unsafe { $codes }
            }
        }
    };
}

/// Eight words of whole bytes.
#[inline(always)]
unsafe fn whole<W: Words>(w: &[W]) -> Codes<W> {
    array!(8, g => w[g])
}

/// The word `high` has the fifth bits of the nibbles that follow it.
#[inline(always)]
unsafe fn five<W: Words>(high: usize, w: &[W]) -> Codes<W> {
    // SAFETY: the caller's promise.
    unsafe {
        let low = nibbles(&w[high + 1..]);
        array!(8, g => low[g].or(spread(w[high].down(4 * g as u32)).up(4)))
    }
}

const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

simple!(Q4_0, 18, 4, 8, Half, None, 2, |w| nibbles(w));
simple!(Q4_1, 20, 4, 0, HalfMin, None, 0, |w| nibbles(&w[1..]));
simple!(Q5_0, 22, 5, 16, Half, None, 2, |w| five(0, w));
simple!(Q5_1, 24, 5, 16, HalfMin, None, 0, |w| five(1, w));
simple!(Q8_0, 34, 8, 0, Half, None, 2, |w| whole(w));
simple!(Iq4Nl, 18, 4, 0, Half, Some(IQ4), 2, |w| nibbles(w));
simple!(MxFp4, 17, 4, 0, Brain, Some(FP4), 1, |w| nibbles(w));

/// Half of 2^(e - 127) as bfloat16: the table holds doubled values.
#[inline(always)]
pub(crate) fn half_of_e8m0(e: u8) -> u16 {
    if e < 2 { 0x20 << e } else { u16::from(e - 1) << 7 }
}

/// The six-bit scales and minima of Q4_K and Q5_K, in three words.
#[inline(always)]
unsafe fn k_scales<W: Words>(w: &[W; WORDS]) -> Small<W> {
    // SAFETY: the caller's promise.
    unsafe {
        let six = 0x3f3f_3f3f;
        let (a, b, c) = (w[1], w[2], w[3]);
        let scale = c.and(LOW).or(a.down(6).and(PAIRS).up(4));
        let min = c.down(4).and(LOW).or(b.down(6).and(PAIRS).up(4));
        [[a.and(six), scale, c, c], [b.and(six), min, c, c]]
    }
}

/// Minus 32 of six-bit numbers.
#[inline(always)]
unsafe fn centred<W: Words>(w: W) -> W {
    // SAFETY: the caller's promise.
    unsafe {
        let w = w.xor(0x2020_2020);
        let sign = w.and(0x2020_2020);
        w.or(sign.up(1)).or(sign.up(2))
    }
}

pub(crate) struct Q4K;
impl Format for Q4K {
    const BYTES: usize = 144;
    const BITS: u32 = 4;
    const SCALES: Scales = Scales::Min32;

    #[inline(always)]
    unsafe fn codes<W: Words>(w: &[W; WORDS], i: usize) -> Codes<W> {
        let q = &w[4 + 8 * (i / 2)..][..8];
        // SAFETY: the caller's promise.
        unsafe { array!(8, g => q[g].down(4 * (i % 2) as u32).and(LOW)) }
    }

    #[inline(always)]
    unsafe fn small<W: Words>(w: &[W; WORDS]) -> Small<W> {
        // SAFETY: the caller's promise.
        unsafe { k_scales(w) }
    }
}

pub(crate) struct Q5K;
impl Format for Q5K {
    const BYTES: usize = 176;
    const BITS: u32 = 5;
    const CENTRE: i32 = 16;
    const SCALES: Scales = Scales::Min32;

    #[inline(always)]
    unsafe fn codes<W: Words>(w: &[W; WORDS], i: usize) -> Codes<W> {
        let (h, q) = (&w[4..12], &w[12 + 8 * (i / 2)..][..8]);
        // SAFETY: the caller's promise.
        unsafe {
            array!(8, g => q[g].down(4 * (i % 2) as u32).and(LOW).or(h[g].down(i as u32).and(ONES).up(4)))
        }
    }

    #[inline(always)]
    unsafe fn small<W: Words>(w: &[W; WORDS]) -> Small<W> {
        // SAFETY: the caller's promise.
        unsafe { k_scales(w) }
    }
}

pub(crate) struct Q6K;
impl Format for Q6K {
    const BYTES: usize = 210;
    const BITS: u32 = 6;
    const CENTRE: i32 = 32;
    const SCALES: Scales = Scales::Signed16;
    const FACTOR: usize = 208;

    #[inline(always)]
    unsafe fn codes<W: Words>(w: &[W; WORDS], i: usize) -> Codes<W> {
        let (n, k) = (i / 4, i % 4);
        let (l, h) = (&w[16 * n + 8 * (k % 2)..][..8], &w[32 + 8 * n..][..8]);
        // SAFETY: the caller's promise.
        unsafe {
            array!(8, g => l[g].down(4 * (k / 2) as u32).and(LOW).or(h[g].down(2 * k as u32).and(PAIRS).up(4)))
        }
    }

    #[inline(always)]
    unsafe fn small<W: Words>(w: &[W; WORDS]) -> Small<W> {
        let scale = [w[48], w[49], w[50], w[51]];
        [scale, scale]
    }
}

pub(crate) struct Q2K;
impl Format for Q2K {
    const BYTES: usize = 84;
    const BITS: u32 = 2;
    const SCALES: Scales = Scales::Min16;
    const FACTOR: usize = 80;

    #[inline(always)]
    unsafe fn codes<W: Words>(w: &[W; WORDS], i: usize) -> Codes<W> {
        let q = &w[4 + 8 * (i / 4)..][..8];
        // SAFETY: the caller's promise.
        unsafe { array!(8, g => q[g].down(2 * (i % 4) as u32).and(PAIRS)) }
    }

    #[inline(always)]
    unsafe fn small<W: Words>(w: &[W; WORDS]) -> Small<W> {
        // SAFETY: the caller's promise.
        unsafe { [array!(4, i => w[i].and(LOW)), array!(4, i => w[i].down(4).and(LOW))] }
    }
}

pub(crate) struct Q3K;
impl Format for Q3K {
    const BYTES: usize = 110;
    const BITS: u32 = 3;
    const CENTRE: i32 = 4;
    const SCALES: Scales = Scales::Signed16;
    const FACTOR: usize = 108;

    #[inline(always)]
    unsafe fn codes<W: Words>(w: &[W; WORDS], i: usize) -> Codes<W> {
        let (h, q) = (&w[..8], &w[8 + 8 * (i / 4)..][..8]);
        // SAFETY: the caller's promise.
        unsafe {
            array!(8, g => q[g].down(2 * (i % 4) as u32).and(PAIRS).or(h[g].down(i as u32).and(ONES).up(2)))
        }
    }

    #[inline(always)]
    unsafe fn small<W: Words>(w: &[W; WORDS]) -> Small<W> {
        // SAFETY: the caller's promise.
        let scale = unsafe {
            array!(4, i => {
                let low = w[24 + i % 2].down(4 * (i / 2) as u32).and(LOW);
                centred(low.or(w[26].down(2 * i as u32).and(PAIRS).up(4)))
            })
        };
        [scale, scale]
    }
}

pub(crate) struct Iq4Xs;
impl Format for Iq4Xs {
    const BYTES: usize = 136;
    const BITS: u32 = 4;
    const TABLE: Option<[i8; 16]> = Some(IQ4);
    const SCALES: Scales = Scales::Signed32;

    #[inline(always)]
    unsafe fn codes<W: Words>(w: &[W; WORDS], i: usize) -> Codes<W> {
        // SAFETY: the caller's promise.
        unsafe { nibbles(&w[2 + 4 * i..]) }
    }

    #[inline(always)]
    unsafe fn small<W: Words>(w: &[W; WORDS]) -> Small<W> {
        // SAFETY: the caller's promise.
        let scale = unsafe {
            array!(4, i => {
                // Four nibbles and four pairs of bits, to a byte each; there are twice as many.
                let i = i as u32 % 2;
                let low = w[1].down(16 * i).and(0xffff);
                let low = low.or(low.up(8)).and(0x00ff_00ff);
                let low = low.or(low.up(4)).and(LOW);
                let high = w[0].down(16 + 8 * i).and(0xff);
                let high = high.or(high.up(12)).and(0x000f_000f);
                let high = high.or(high.up(6)).and(PAIRS);
                centred(low.or(high.up(4)))
            })
        };
        [scale, scale]
    }
}
