//! IQ4_NL and IQ4_XS: 4 bits that pick one of 16 values spaced for a bell curve.
//!
//! ```text
//! IQ4_NL  | d: f16 | qs: 16 bytes |                                        18 bytes, 32 values
//! IQ4_XS  | d: f16 | scales_h: u16 | scales_l: 4 bytes | qs: 128 bytes |  136 bytes, 256 values in 8 groups of 32
//! y = d * VALUES[q]     in IQ4_XS  y = d * (scale - 32) * VALUES[q]
//! ```
//! Nibbles lie as in Q4_0, 16 bytes to 32 values. Scale `g` of IQ4_XS has its low four bits in a nibble of `scales_l` and its
//! upper two in bits `2g` of `scales_h`.

use super::{
    f16_at,
    fit::{best_scale, extreme, round_f16},
};

const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn decode(scale: f32, qs: &[u8], y: &mut [f32; 32]) {
    for (j, q) in qs[..16].iter().enumerate() {
        y[j] = scale * f32::from(VALUES[usize::from(q & 15)]);
        y[j + 16] = scale * f32::from(VALUES[usize::from(q >> 4)]);
    }
}

pub(super) fn decode_nl(b: &[u8; 18], y: &mut [f32; 32]) {
    decode(f16_at(b, 0), &b[2..], y);
}

pub(super) fn decode_xs(b: &[u8; 136], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (g, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = b[4 + g / 2] >> (4 * (g % 2)) & 15 | ((high >> (2 * g) & 3) << 4) as u8;
        decode(d * f32::from(scale as i8 - 32), &b[8 + 16 * g..], y);
    }
}

/// The nearest of the 16 values.
fn nearest(x: f32) -> usize {
    let at = VALUES.partition_point(|v| f32::from(*v) < x).clamp(1, 15);
    if x - f32::from(VALUES[at - 1]) < f32::from(VALUES[at]) - x { at - 1 } else { at }
}

pub(super) fn encode_nl(x: &[f32; 32], b: &mut [u8; 18]) {
    let extreme = extreme(x);
    let scale = if extreme.abs() < 1e-15 {
        0.0
    } else {
        let least = f32::from(VALUES[0]);
        let inverses =
            [-least / extreme].into_iter().chain((-7..=7).map(|step| (step as f32 + least) / extreme));
        best_scale(x, inverses, |v, inverse| VALUES[nearest(inverse * v)].into())
    };
    b[..2].copy_from_slice(&round_f16(scale).1);
    let quant = |v: f32| if scale == 0.0 { 0 } else { nearest(v / scale) as u8 };
    for j in 0..16 {
        b[2 + j] = quant(x[j]) | quant(x[j + 16]) << 4;
    }
}
