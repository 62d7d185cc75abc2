//! Q5_0 and Q5_1: 32 values of 5 bits with one scale, and one minimum in Q5_1.
//!
//! ```text
//! Q5_0  | d: f16 | qh: u32 | qs: 16 bytes |           22 bytes   y = d * (q - 16)
//! Q5_1  | d: f16 | m: f16 | qh: u32 | qs: 16 bytes |  24 bytes   y = d * q + m
//! ```
//! The low four bits lie as in Q4_0; bit `j` of `qh` is the fifth bit of value `j`.

use super::{
    f16_at,
    fit::{extreme, inverse, range, round_f16},
};

/// Calls `put(position, q)` with the 32 five-bit numbers of `qh` and `qs`.
#[inline]
fn unpack(b: &[u8; 20], mut put: impl FnMut(usize, u8)) {
    let qh = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for j in 0..16 {
        let q = b[4 + j];
        put(j, q & 15 | ((qh >> j & 1) << 4) as u8);
        put(j + 16, q >> 4 | ((qh >> (j + 16) & 1) << 4) as u8);
    }
}

pub(super) fn decode_q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    let bits = b.last_chunk().expect("22 bytes have a tail of 20");
    unpack(bits, |j, q| y[j] = d * f32::from(q as i8 - 16));
}

pub(super) fn decode_q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    let bits = b.last_chunk().expect("24 bytes have a tail of 20");
    unpack(bits, |j, q| y[j] = d * f32::from(q) + m);
}

/// Writes the 32 five-bit numbers as `qh` and `qs`.
fn pack(b: &mut [u8], quant: impl Fn(usize) -> u8) {
    let mut qh = 0u32;
    for j in 0..16 {
        let (low, high) = (quant(j), quant(j + 16));
        b[4 + j] = low & 15 | high << 4;
        qh |= u32::from(low >> 4) << j | u32::from(high >> 4) << (j + 16);
    }
    b[..4].copy_from_slice(&qh.to_le_bytes());
}

pub(super) fn encode_q5_0(x: &[f32; 32], b: &mut [u8; 22]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    b[..2].copy_from_slice(&round_f16(d).1);
    pack(&mut b[2..], |j| ((x[j] * id + 16.5) as u8).min(31));
}

pub(super) fn encode_q5_1(x: &[f32; 32], b: &mut [u8; 24]) {
    let (low, high) = range(x);
    let d = (high - low) / 31.0;
    let id = inverse(d);
    b[..2].copy_from_slice(&round_f16(d).1);
    b[2..4].copy_from_slice(&round_f16(low).1);
    pack(&mut b[4..], |j| (((x[j] - low) * id + 0.5) as u8).min(31));
}
