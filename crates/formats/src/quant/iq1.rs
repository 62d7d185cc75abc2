//! IQ1_S and IQ1_M: 256 values in groups of 8, each an 11-bit index into 2048 vectors of -1, 0 and 1, shifted by 1/8.
//!
//! ```text
//! IQ1_S  | d: f16 | qs: 32 bytes | qh: 8 x u16 |              50 bytes
//! IQ1_M  | qs: 32 bytes | qh: 16 bytes | scales: 4 x u16 |    56 bytes
//! y = d * (2 * scale + 1) * (vector + shift)
//! ```
//! IQ1_S: `qh[i]` serves 32 values: three upper index bits for each group in bits 0-11, the scale in bits 12-14, and bit 15
//! set where the shift is -1/8. IQ1_M: a nibble of `qh` serves 8 values: three index bits and the shift's sign; a scale of 3 bits
//! serves 16 values, four in a word, and the words' upper nibbles make up `d`.

use super::{f16, f16_at, grids};

const SHIFT: f32 = 0.125;

fn put(y: &mut [f32; 8], index: usize, scale: f32, negative: bool) {
    let shift = if negative { -SHIFT } else { SHIFT };
    for (y, value) in y.iter_mut().zip(&grids::IQ1_S[index]) {
        *y = scale * (f32::from(*value) + shift);
    }
}

pub(super) fn decode_s(b: &[u8; 50], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    for (g, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let qh = u16::from_le_bytes([b[34 + g / 4 * 2], b[35 + g / 4 * 2]]);
        let index = usize::from(b[2 + g]) | usize::from(qh >> (3 * (g % 4)) & 7) << 8;
        put(y, index, d * f32::from(2 * (qh >> 12 & 7) + 1), qh & 0x8000 != 0);
    }
}

pub(super) fn decode_m(b: &[u8; 56], y: &mut [f32; 256]) {
    let (qs, qh) = (&b[..32], &b[32..48]);
    let words: [u16; 4] = std::array::from_fn(|i| u16::from_le_bytes([b[48 + 2 * i], b[49 + 2 * i]]));
    let d = words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12;
    let d = f16(d.to_le_bytes());
    for (g, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = qh[g / 2] >> (4 * (g % 2));
        let index = usize::from(qs[g]) | usize::from(high & 7) << 8;
        let scale = words[g / 8] >> (3 * (g / 2 % 4)) & 7;
        put(y, index, d * f32::from(2 * scale + 1), high & 8 != 0);
    }
}
