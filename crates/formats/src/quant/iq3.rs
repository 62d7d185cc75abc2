//! IQ3_XXS and IQ3_S: 256 values in groups of 4, each an index into a table of vectors, with signs and a 4-bit scale for 32.
//!
//! ```text
//! IQ3_XXS  | d: f16 | qs: 64 bytes | signs and scales: 8 x u32 |                             98 bytes
//! IQ3_S    | d: f16 | qs: 64 bytes | qh: 8 bytes | signs: 32 bytes | scales: 4 bytes |      110 bytes
//! y = d * (0.5 + scale) / 2 * (+-vector)     in IQ3_S  y = d * (1 + 2 * scale) * (+-vector)
//! ```
//! IQ3_XXS has four times 7 sign bits and, above them, a scale in a word. IQ3_S has the ninth bit of each index in `qh`.

use super::{
    f16_at,
    grids::{self, even_signs, put},
};

pub(super) fn decode_xxs(b: &[u8; 98], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    for (i, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let word = &b[66 + 4 * i..][..4];
        let bits = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        let scale = d * (0.5 + (bits >> 28) as f32) * 0.5;
        let qs = &b[2 + 8 * i..][..8];
        for g in 0..4 {
            let signs = even_signs((bits >> (7 * g) & 127) as u8);
            put(&mut y[8 * g..], scale, &grids::IQ3_XXS[usize::from(qs[2 * g])], signs);
            put(&mut y[8 * g + 4..], scale, &grids::IQ3_XXS[usize::from(qs[2 * g + 1])], signs >> 4);
        }
    }
}

pub(super) fn decode_s(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    let (qs, qh, signs, scales) = (&b[2..66], &b[66..74], &b[74..106], &b[106..110]);
    for (i, y) in y.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let index = usize::from(qs[i]) | usize::from(qh[i / 8] >> (i % 8) & 1) << 8;
        let scale = d * f32::from(1 + 2 * (scales[i / 16] >> (4 * (i / 8 % 2)) & 15));
        put(y, scale, &grids::IQ3_S[index], signs[i / 2] >> (4 * (i % 2)));
    }
}
