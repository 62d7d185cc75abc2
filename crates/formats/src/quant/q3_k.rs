//! Q3_K: 256 values of 3 bits in 16 groups of 16, each with a 6-bit scale.
//!
//! ```text
//! | hmask: 32 bytes | qs: 64 bytes | scales: 12 bytes | d: f16 |  110 bytes   y = d * (scale - 32) * (q - 4)
//! ```
//! Value `128h + 32k + j` has its low two bits in bits `2k` of byte `32h + j` of `qs` and its upper one in bit `4h + k` of
//! `hmask[j]`. Scale `g` has its low four bits in a nibble of byte `g % 8` (low for g < 8) and its upper two in bits
//! `2(g / 4)` of byte `8 + g % 4`.

use super::{
    f16_at,
    fit::{extreme, nearest, round_f16, symmetric},
};

pub(super) fn decode(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = f16_at(b, 108);
    let (hmask, qs, scales) = (&b[..32], &b[32..96], &b[96..108]);
    for (g, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = scales[g % 8] >> (4 * (g / 8)) & 15 | (scales[8 + g % 4] >> (2 * (g / 4)) & 3) << 4;
        let scale = d * f32::from(scale as i8 - 32);
        let (half, k, from) = (g / 8, g % 8 / 2, 16 * (g % 2));
        let (qs, hmask) = (&qs[32 * half + from..][..16], &hmask[from..][..16]);
        for j in 0..16 {
            let q = qs[j] >> (2 * k) & 3 | (hmask[j] >> (4 * half + k) & 1) << 2;
            y[j] = scale * f32::from(q as i8 - 4);
        }
    }
}

pub(super) fn encode(x: &[f32; 256], b: &mut [u8; 110]) {
    let groups = x.as_chunks::<16>().0;
    let fits: [f32; 16] = std::array::from_fn(|g| symmetric(&groups[g], 4));
    let max = extreme(&fits);
    let d = round_f16(max / -32.0);
    b.fill(0);
    b[108..].copy_from_slice(&d.1);
    for g in 0..16 {
        let step = if max == 0.0 { 0 } else { nearest(-32.0 / max * fits[g]).clamp(-32, 31) };
        let stored = (step + 32) as u8;
        b[96 + g % 8] |= (stored & 15) << (4 * (g / 8));
        b[104 + g % 4] |= (stored >> 4) << (2 * (g / 4));
        let scale = d.0 * step as f32;
        let (half, k, from) = (g / 8, g % 8 / 2, 16 * (g % 2));
        for j in 0..16 {
            let q = if scale == 0.0 { 4 } else { (nearest(groups[g][j] / scale).clamp(-4, 3) + 4) as u8 };
            b[32 + 32 * half + from + j] |= (q & 3) << (2 * k);
            b[from + j] |= (q >> 2) << (4 * half + k);
        }
    }
}
