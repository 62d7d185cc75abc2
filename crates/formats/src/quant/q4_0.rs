//! Q4_0 and Q4_1: 32 values of 4 bits with one scale, and one minimum in Q4_1.
//!
//! ```text
//! Q4_0  | d: f16 | qs: 16 bytes |           18 bytes   y = d * (q - 8)
//! Q4_1  | d: f16 | m: f16 | qs: 16 bytes |  20 bytes   y = d * q + m
//! ```
//! Byte `j` of `qs` holds value `j` in its low nibble and value `j + 16` in its high one.

use super::{
    f16_at,
    fit::{extreme, inverse, range, round_f16},
};

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

pub(super) fn encode_q4_0(x: &[f32; 32], b: &mut [u8; 18]) {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    b[..2].copy_from_slice(&round_f16(d).1);
    let quant = |v: f32| ((v * id + 8.5) as u8).min(15);
    for j in 0..16 {
        b[2 + j] = quant(x[j]) | quant(x[j + 16]) << 4;
    }
}

pub(super) fn encode_q4_1(x: &[f32; 32], b: &mut [u8; 20]) {
    let (low, high) = range(x);
    let d = (high - low) / 15.0;
    let id = inverse(d);
    b[..2].copy_from_slice(&round_f16(d).1);
    b[2..4].copy_from_slice(&round_f16(low).1);
    let quant = |v: f32| (((v - low) * id + 0.5) as u8).min(15);
    for j in 0..16 {
        b[4 + j] = quant(x[j]) | quant(x[j + 16]) << 4;
    }
}
