//! MXFP4 and NVFP4: 4-bit floats (E2M1) under a shared 8-bit one.
//!
//! ```text
//! MXFP4  | e: 1 byte | qs: 16 bytes |            17 bytes, 32 values
//! NVFP4  | scales: 4 bytes | qs: 32 bytes |      36 bytes, 64 values in 4 groups of 16
//! ```
//! MXFP4's scale is the power of two 2^(e - 127) (E8M0), NVFP4's an unsigned E4M3. The table holds twice the values of E2M1
//! and the scales are halved, so that all are whole numbers. Nibbles lie as in Q4_0; in NVFP4 eight bytes make a group.
//! Source: OCP Microscaling Formats 1.0.

/// Twice the values of E2M1.
const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of 2^(e - 127); the two smallest are subnormal.
fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half of the unsigned E4M3 number; its NaN counts as zero, as in ggml.
fn half_ue4m3(x: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(x >> 3 & 15), f32::from(x & 7));
    match (x, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) * 0.5,
    }
}

pub(super) fn decode_mxfp4(b: &[u8; 17], y: &mut [f32; 32]) {
    let d = half_e8m0(b[0]);
    for j in 0..16 {
        let q = b[1 + j];
        y[j] = d * f32::from(VALUES[usize::from(q & 15)]);
        y[j + 16] = d * f32::from(VALUES[usize::from(q >> 4)]);
    }
}

pub(super) fn decode_nvfp4(b: &[u8; 36], y: &mut [f32; 64]) {
    for (group, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = half_ue4m3(b[group]);
        for j in 0..8 {
            let q = b[4 + 8 * group + j];
            y[j] = d * f32::from(VALUES[usize::from(q & 15)]);
            y[j + 8] = d * f32::from(VALUES[usize::from(q >> 4)]);
        }
    }
}

/// The scale is the power of two that brings the largest value to between 4 and 8, as the OCP specification has it.
pub(super) fn encode_mxfp4(x: &[f32; 32], b: &mut [u8; 17]) {
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let exponent = (max.to_bits() >> 23) as u8;
    b[0] = exponent.saturating_sub(2);
    let d = half_e8m0(b[0]);
    let nearest = |v: f32| {
        let error = |i: usize| (d * f32::from(VALUES[i]) - v).abs();
        (1..16).fold(0, |best, i| if error(i) < error(best) { i } else { best }) as u8
    };
    for j in 0..16 {
        b[1 + j] = nearest(x[j]) | nearest(x[j + 16]) << 4;
    }
}
