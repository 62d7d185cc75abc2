//! Q8_0, and Q8_1 and Q8_K, which ggml makes of activations and which files hardly ever hold.
//!
//! ```text
//! Q8_0  | d: f16 | qs: 32 x i8 |                              34 bytes   y = d * q
//! Q8_1  | d: f16 | s: f16 | qs: 32 x i8 |                     36 bytes   y = d * q, s = d * sum(q)
//! Q8_K  | d: f32 | qs: 256 x i8 | sums of 16: 16 x i16 |     292 bytes   y = d * q
//! ```

use super::{
    f16_at,
    fit::{extreme, inverse, round_f16},
};

pub(super) fn decode_q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..32 {
        y[j] = d * f32::from(b[2 + j] as i8);
    }
}

pub(super) fn decode_q8_1(b: &[u8; 36], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..32 {
        y[j] = d * f32::from(b[4 + j] as i8);
    }
}

pub(super) fn decode_q8_k(b: &[u8; 292], y: &mut [f32; 256]) {
    let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for j in 0..256 {
        y[j] = d * f32::from(b[4 + j] as i8);
    }
}

pub(super) fn encode_q8_0(x: &[f32; 32], b: &mut [u8; 34]) {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    b[..2].copy_from_slice(&round_f16(d).1);
    for j in 0..32 {
        b[2 + j] = (x[j] * id).round() as i8 as u8;
    }
}
