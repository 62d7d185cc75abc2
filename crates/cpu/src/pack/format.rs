//! The quantised types as data: which planes of bits hold the codes, what is subtracted, which scales apply; and how the
//! codes and scales are read out of a block of the file. Layouts: `quarrel_formats::quant`.

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

/// Eight groups of four codes, a byte each: 32 values in order.
pub(crate) type Codes = [u32; 8];

/// What `Scales` wants of a block of the file.
pub(crate) struct RowScales {
    /// Bits of the f16 (bf16 with [`Scales::Brain`]) factor.
    pub(crate) d: u16,
    /// Bits of the f16 offset or factor of minima.
    pub(crate) m: u16,
    /// For every 32 or 16 values: the byte that multiplies `d`.
    pub(crate) scale: [u8; 16],
    /// The byte that multiplies `m`.
    pub(crate) min: [u8; 16],
}

/// A quantised type.
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

    /// The codes of the `i`th 32 values of a block.
    fn codes(block: &[u8], i: usize) -> Codes;

    /// The scales of a block.
    fn scales(block: &[u8]) -> RowScales;
}

#[inline(always)]
fn word(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

#[inline(always)]
fn half(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

const LOW: u32 = 0x0f0f_0f0f;

/// 16 bytes whose low nibbles come first.
#[inline(always)]
fn nibbles(b: &[u8]) -> Codes {
    std::array::from_fn(|g| (word(b, 4 * (g % 4)) >> (4 * (g / 4) as u32)) & LOW)
}

/// Spreads the four low bits to the lowest bits of four bytes.
#[inline(always)]
fn spread(bits: u32) -> u32 {
    (bits & 15).wrapping_mul(0x0020_4081) & 0x0101_0101
}

#[inline(always)]
fn plain(d: u16, m: u16) -> RowScales {
    RowScales { d, m, scale: [0; 16], min: [0; 16] }
}

macro_rules! simple {
    ($name:ident, $bytes:expr, $bits:expr, $centre:expr, $scales:ident, $table:expr, |$b:ident| $codes:expr, $s:expr) => {
        pub(crate) struct $name;
        impl Format for $name {
            const BYTES: usize = $bytes;
            const BITS: u32 = $bits;
            const CENTRE: i32 = $centre;
            const TABLE: Option<[i8; 16]> = $table;
            const SCALES: Scales = Scales::$scales;

            #[inline(always)]
            fn codes($b: &[u8], _: usize) -> Codes {
                $codes
            }

            #[inline(always)]
            fn scales($b: &[u8]) -> RowScales {
                $s
            }
        }
    };
}

#[inline(always)]
fn five(b: &[u8]) -> Codes {
    let (high, low) = (word(b, 0), nibbles(&b[4..20]));
    std::array::from_fn(|g| low[g] | spread(high >> (4 * g as u32)) << 4)
}

const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

simple!(Q4_0, 18, 4, 8, Half, None, |b| nibbles(&b[2..18]), plain(half(b, 0), 0));
simple!(Q4_1, 20, 4, 0, HalfMin, None, |b| nibbles(&b[4..20]), plain(half(b, 0), half(b, 2)));
simple!(Q5_0, 22, 5, 16, Half, None, |b| five(&b[2..22]), plain(half(b, 0), 0));
simple!(Q5_1, 24, 5, 16, HalfMin, None, |b| five(&b[4..24]), plain(half(b, 0), half(b, 2)));
simple!(Q8_0, 34, 8, 0, Half, None, |b| std::array::from_fn(|g| word(b, 2 + 4 * g)), plain(half(b, 0), 0));
simple!(Iq4Nl, 18, 4, 0, Half, Some(IQ4), |b| nibbles(&b[2..18]), plain(half(b, 0), 0));
simple!(MxFp4, 17, 4, 0, Brain, Some(FP4), |b| nibbles(&b[1..17]), plain(half_of_e8m0(b[0]), 0));

/// Half of 2^(e - 127) as bfloat16: the table holds doubled values.
#[inline(always)]
fn half_of_e8m0(e: u8) -> u16 {
    if e < 2 { 0x20 << e } else { u16::from(e - 1) << 7 }
}

/// The six-bit scales and minima of Q4_K and Q5_K.
#[inline(always)]
fn k_scales(b: &[u8]) -> RowScales {
    let s = &b[4..16];
    let mut out = plain(half(b, 0), half(b, 2));
    for g in 0..4 {
        out.scale[g] = s[g] & 63;
        out.min[g] = s[g + 4] & 63;
        out.scale[g + 4] = s[g + 8] & 15 | s[g] >> 6 << 4;
        out.min[g + 4] = s[g + 8] >> 4 | s[g + 4] >> 6 << 4;
    }
    out
}

pub(crate) struct Q4K;
impl Format for Q4K {
    const BYTES: usize = 144;
    const BITS: u32 = 4;
    const SCALES: Scales = Scales::Min32;

    #[inline(always)]
    fn codes(b: &[u8], i: usize) -> Codes {
        let q = &b[16 + 32 * (i / 2)..][..32];
        std::array::from_fn(|g| (word(q, 4 * g) >> (4 * (i % 2) as u32)) & LOW)
    }

    #[inline(always)]
    fn scales(b: &[u8]) -> RowScales {
        k_scales(b)
    }
}

pub(crate) struct Q5K;
impl Format for Q5K {
    const BYTES: usize = 176;
    const BITS: u32 = 5;
    const CENTRE: i32 = 16;
    const SCALES: Scales = Scales::Min32;

    #[inline(always)]
    fn codes(b: &[u8], i: usize) -> Codes {
        let (h, q) = (&b[16..48], &b[48 + 32 * (i / 2)..][..32]);
        std::array::from_fn(|g| {
            (word(q, 4 * g) >> (4 * (i % 2) as u32)) & LOW | ((word(h, 4 * g) >> i as u32) & 0x0101_0101) << 4
        })
    }

    #[inline(always)]
    fn scales(b: &[u8]) -> RowScales {
        k_scales(b)
    }
}

pub(crate) struct Q6K;
impl Format for Q6K {
    const BYTES: usize = 210;
    const BITS: u32 = 6;
    const CENTRE: i32 = 32;
    const SCALES: Scales = Scales::Signed16;

    #[inline(always)]
    fn codes(b: &[u8], i: usize) -> Codes {
        let (n, k) = (i / 4, i % 4);
        let (l, h) = (&b[64 * n + 32 * (k % 2)..][..32], &b[128 + 32 * n..][..32]);
        std::array::from_fn(|g| {
            (word(l, 4 * g) >> (4 * (k / 2) as u32)) & LOW
                | ((word(h, 4 * g) >> (2 * k as u32)) & 0x0303_0303) << 4
        })
    }

    #[inline(always)]
    fn scales(b: &[u8]) -> RowScales {
        let mut out = plain(half(b, 208), 0);
        out.scale.copy_from_slice(&b[192..208]);
        out
    }
}

pub(crate) struct Q2K;
impl Format for Q2K {
    const BYTES: usize = 84;
    const BITS: u32 = 2;
    const SCALES: Scales = Scales::Min16;

    #[inline(always)]
    fn codes(b: &[u8], i: usize) -> Codes {
        let q = &b[16 + 32 * (i / 4)..][..32];
        std::array::from_fn(|g| (word(q, 4 * g) >> (2 * (i % 4) as u32)) & 0x0303_0303)
    }

    #[inline(always)]
    fn scales(b: &[u8]) -> RowScales {
        let mut out = plain(half(b, 80), half(b, 82));
        for g in 0..16 {
            out.scale[g] = b[g] & 15;
            out.min[g] = b[g] >> 4;
        }
        out
    }
}

pub(crate) struct Q3K;
impl Format for Q3K {
    const BYTES: usize = 110;
    const BITS: u32 = 3;
    const CENTRE: i32 = 4;
    const SCALES: Scales = Scales::Signed16;

    #[inline(always)]
    fn codes(b: &[u8], i: usize) -> Codes {
        let (h, q) = (&b[..32], &b[32 + 32 * (i / 4)..][..32]);
        std::array::from_fn(|g| {
            (word(q, 4 * g) >> (2 * (i % 4) as u32)) & 0x0303_0303
                | ((word(h, 4 * g) >> i as u32) & 0x0101_0101) << 2
        })
    }

    #[inline(always)]
    fn scales(b: &[u8]) -> RowScales {
        let s = &b[96..108];
        let mut out = plain(half(b, 108), 0);
        for g in 0..16 {
            let low = if g < 8 { s[g] & 15 } else { s[g - 8] >> 4 };
            let high = s[8 + g % 4] >> (2 * (g / 4)) & 3;
            out.scale[g] = (low | high << 4).wrapping_sub(32);
        }
        out
    }
}

pub(crate) struct Iq4Xs;
impl Format for Iq4Xs {
    const BYTES: usize = 136;
    const BITS: u32 = 4;
    const TABLE: Option<[i8; 16]> = Some(IQ4);
    const SCALES: Scales = Scales::Signed32;

    #[inline(always)]
    fn codes(b: &[u8], i: usize) -> Codes {
        nibbles(&b[8 + 16 * i..][..16])
    }

    #[inline(always)]
    fn scales(b: &[u8]) -> RowScales {
        let mut out = plain(half(b, 0), 0);
        for g in 0..8 {
            let low = b[4 + g / 2] >> (4 * (g % 2)) & 15;
            let high = (half(b, 2) >> (2 * g) & 3) as u8;
            out.scale[g] = (low | high << 4).wrapping_sub(32);
        }
        out
    }
}
