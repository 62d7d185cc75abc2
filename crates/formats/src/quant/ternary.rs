//! TQ1_0 and TQ2_0: 256 values that are each -d, 0 or d.
//!
//! ```text
//! TQ1_0  | qs: 48 bytes | qh: 4 bytes | d: f16 |  54 bytes
//! TQ2_0  | qs: 64 bytes | d: f16 |                66 bytes   y = d * (q - 1)
//! ```
//! TQ1_0 keeps five digits of base 3 in a byte as the fraction byte/256: the first digit is the whole part after
//! multiplying by 3, and multiplying by 3^n, modulo 256, brings up digit n. Bytes 0-31 of `qs` hold the values `32n + j` (digit
//! n of byte j), bytes 32-47 `160 + 16n + j`, and `qh`, with four digits each, `240 + 4n + j`.
//! TQ2_0 has value `128h + 32k + j` in bits `2k` of byte `32h + j`.

use super::f16_at;

pub(super) fn decode_tq1_0(b: &[u8; 54], y: &mut [f32; 256]) {
    let d = f16_at(b, 52);
    for (bytes, digits, at) in [(0..32, 5, 0), (32..48, 5, 160), (48..52, 4, 240)] {
        let bytes = &b[bytes];
        let y = &mut y[at..][..digits * bytes.len()];
        for (power, y) in [1u8, 3, 9, 27, 81].iter().zip(y.chunks_exact_mut(bytes.len())) {
            for (byte, y) in bytes.iter().zip(y) {
                let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                *y = d * f32::from(digit as i8 - 1);
            }
        }
    }
}

pub(super) fn decode_tq2_0(b: &[u8; 66], y: &mut [f32; 256]) {
    let d = f16_at(b, 64);
    for (i, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, k) = (i / 4, i % 4);
        for j in 0..32 {
            y[j] = d * f32::from((b[32 * half + j] >> (2 * k) & 3) as i8 - 1);
        }
    }
}
