//! Q6_K: 256 values of 6 bits in 16 groups of 16, each with an 8-bit scale.
//!
//! ```text
//! | ql: 128 bytes | qh: 64 bytes | scales: 16 x i8 | d: f16 |  210 bytes   y = (d * scale) * (q - 32)
//! ```
//! Two halves of 128 values, with 64 bytes of `ql` and 32 of `qh` each. In a half, value `32k + j` has its low four bits in
//! byte `32(k % 2) + j` of `ql` (low nibble for k < 2, else high) and its upper two in bits `2k` of byte `j` of `qh`.

use super::{
    f16_at,
    fit::{extreme, nearest, round_f16, symmetric},
};

pub(super) fn decode(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = f16_at(b, 208);
    for half in 0..2 {
        let (ql, qh, scales) = (&b[64 * half..], &b[128 + 32 * half..], &b[192 + 8 * half..]);
        let (ql, qh) = (&ql[..64], &qh[..32]);
        let y = &mut y[128 * half..][..128];
        for group in 0..8 {
            let (k, scale) = (group / 2, d * f32::from(scales[group] as i8));
            let ql = &ql[32 * (k % 2)..][..32];
            for j in 16 * (group % 2)..16 * (group % 2) + 16 {
                let q = ql[j] >> (4 * (k / 2)) & 15 | (qh[j] >> (2 * k) & 3) << 4;
                y[32 * k + j] = scale * f32::from(q as i8 - 32);
            }
        }
    }
}

pub(super) fn encode(x: &[f32; 256], b: &mut [u8; 210]) {
    let groups = x.as_chunks::<16>().0;
    let fits: [f32; 16] = std::array::from_fn(|g| symmetric(&groups[g], 32));
    let max = extreme(&fits);
    let d = round_f16(max / -128.0);
    b[..192].fill(0);
    b[208..].copy_from_slice(&d.1);
    for g in 0..16 {
        let scale = if max == 0.0 { 0 } else { nearest(-128.0 / max * fits[g]).clamp(-128, 127) };
        b[192 + g] = scale as i8 as u8;
        let scale = d.0 * scale as f32;
        let (half, k, from) = (g / 8, g % 8 / 2, 16 * (g % 2));
        for j in 0..16 {
            let q = if scale == 0.0 { 32 } else { (nearest(groups[g][j] / scale).clamp(-32, 31) + 32) as u8 };
            b[64 * half + 32 * (k % 2) + from + j] |= (q & 15) << (4 * (k / 2));
            b[128 + 32 * half + from + j] |= (q >> 4) << (2 * k);
        }
    }
}
