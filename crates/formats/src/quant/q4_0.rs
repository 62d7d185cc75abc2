//! Q4_0 and Q4_1: 32 values of 4 bits with one scale, and one minimum in Q4_1.
//!
//! ```text
//! Q4_0  | d: f16 | qs: 16 bytes |           18 bytes   y = d * (q - 8)
//! Q4_1  | d: f16 | m: f16 | qs: 16 bytes |  20 bytes   y = d * q + m
//! ```
//! Byte `j` of `qs` holds value `j` in its low nibble and value `j + 16` in its high one.

use super::f16_at;

pub(super) fn decode_q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        y[j] = d * f32::from((q & 15) as i8 - 8);
        y[j + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

pub(super) fn decode_q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for j in 0..16 {
        let q = b[4 + j];
        y[j] = d * f32::from(q & 15) + m;
        y[j + 16] = d * f32::from(q >> 4) + m;
    }
}
