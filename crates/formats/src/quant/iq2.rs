//! IQ2_XXS, IQ2_XS and IQ2_S: 256 values in groups of 8, each an index into a table of vectors, with signs and a 4-bit scale.
//!
//! ```text
//! IQ2_XXS  | d: f16 | 8 x (4 indices: 4 bytes, signs and scale: u32) |                        66 bytes
//! IQ2_XS   | d: f16 | qs: 32 x u16 | scales: 8 bytes |                                        74 bytes
//! IQ2_S    | d: f16 | qs: 32 bytes | signs: 32 bytes | qh: 8 bytes | scales: 8 bytes |        82 bytes
//! y = d * (0.5 + scale) / 4 * (+-vector)
//! ```
//! IQ2_XXS has four times 7 sign bits and, above them, one scale for 32 values. IQ2_XS has 9 bits of index and 7 of signs in a
//! word, and a nibble of scale for 16 values. IQ2_S has two more bits of each index in `qh`.

use super::{
    f16_at,
    grids::{self, even_signs, put},
};

pub(super) fn decode_xxs(b: &[u8; 66], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    for (part, y) in b[2..].as_chunks::<8>().0.iter().zip(y.as_chunks_mut::<32>().0) {
        let bits = u32::from_le_bytes([part[4], part[5], part[6], part[7]]);
        let scale = d * (0.5 + (bits >> 28) as f32) * 0.25;
        for g in 0..4 {
            let signs = even_signs((bits >> (7 * g) & 127) as u8);
            put(&mut y[8 * g..], scale, &grids::IQ2_XXS[usize::from(part[g])], signs);
        }
    }
}

/// The scale of group `g`, of a nibble for every two groups.
#[inline]
fn nibble_scale(d: f32, scales: &[u8], g: usize) -> f32 {
    d * (0.5 + f32::from(scales[g / 4] >> (4 * (g / 2 % 2)) & 15)) * 0.25
}

pub(super) fn decode_xs(b: &[u8; 74], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    for (g, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let q = u16::from_le_bytes([b[2 + 2 * g], b[3 + 2 * g]]);
        let scale = nibble_scale(d, &b[66..], g);
        put(y, scale, &grids::IQ2_XS[usize::from(q & 511)], even_signs((q >> 9) as u8));
    }
}

pub(super) fn decode_s(b: &[u8; 82], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    for (g, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let index = usize::from(b[2 + g]) | usize::from(b[66 + g / 4] >> (2 * (g % 4)) & 3) << 8;
        put(y, nibble_scale(d, &b[74..], g), &grids::IQ2_S[index], b[34 + g]);
    }
}
