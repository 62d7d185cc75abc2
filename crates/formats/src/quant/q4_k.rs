//! Q4_K and Q5_K: 256 values in 8 groups of 32, each with a 6-bit scale and a 6-bit minimum.
//!
//! ```text
//! Q4_K  | d: f16 | dmin: f16 | scales: 12 bytes | qs: 128 bytes |                144 bytes
//! Q5_K  | d: f16 | dmin: f16 | scales: 12 bytes | qh: 32 bytes | qs: 128 bytes | 176 bytes
//! y = (d * scale) * q - (dmin * minimum)
//! ```
//! Group `2g` is the low nibbles of bytes `32g..32g+32` of `qs`, group `2g+1` the high ones. Bit `k` of `qh[j]` is the fifth
//! bit of value `j` of group `k`. The 12 bytes of scales `a` and minima `m` (capitals: upper bits), for groups 0 to 7:
//! bytes 0-3 `A4 A4 a0..a0` (two upper bits of groups 4-7, six bits of groups 0-3), bytes 4-7 the same for the minima,
//! bytes 8-11 `m4 m4 m4 m4 a4 a4 a4 a4` (four low bits of groups 4-7).

use super::{
    f16_at,
    fit::{Measure, Search, affine, nearest, round_f16},
};

/// The eight (scale, minimum) pairs.
#[inline]
pub(super) fn scales(s: &[u8; 12]) -> [(u8, u8); 8] {
    std::array::from_fn(|g| {
        if g < 4 {
            (s[g] & 63, s[g + 4] & 63)
        } else {
            (s[g + 4] & 15 | s[g - 4] >> 6 << 4, s[g + 4] >> 4 | s[g] >> 6 << 4)
        }
    })
}

/// The scale and the minimum of each group as numbers; the first 16 bytes of both layouts.
#[inline]
fn header(b: &[u8; 16]) -> [(f32, f32); 8] {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    scales(b.last_chunk().expect("16 bytes have a tail of 12"))
        .map(|(scale, min)| (d * f32::from(scale), dmin * f32::from(min)))
}

pub(super) fn decode_q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (head, qs) = b.split_first_chunk::<16>().expect("144 bytes begin with 16");
    let groups = header(head);
    for g in 0..4 {
        let ((d0, m0), (d1, m1)) = (groups[2 * g], groups[2 * g + 1]);
        for j in 0..32 {
            let q = qs[32 * g + j];
            y[64 * g + j] = d0 * f32::from(q & 15) - m0;
            y[64 * g + 32 + j] = d1 * f32::from(q >> 4) - m1;
        }
    }
}

pub(super) fn decode_q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (head, rest) = b.split_first_chunk::<16>().expect("176 bytes begin with 16");
    let (qh, qs) = rest.split_first_chunk::<32>().expect("160 bytes begin with 32");
    let groups = header(head);
    for g in 0..4 {
        let ((d0, m0), (d1, m1)) = (groups[2 * g], groups[2 * g + 1]);
        for j in 0..32 {
            let (q, h) = (qs[32 * g + j], qh[j] >> (2 * g));
            y[64 * g + j] = d0 * f32::from(q & 15 | (h & 1) << 4) - m0;
            y[64 * g + 32 + j] = d1 * f32::from(q >> 4 | (h & 2) << 3) - m1;
        }
    }
}

/// Fits scales and minima, writes the 16 bytes of the header, and gives `q` of value `i`, at most `levels`.
fn encode(x: &[f32; 256], search: &Search, head: &mut [u8]) -> [u8; 256] {
    let groups = x.as_chunks::<32>().0;
    let fits: [(f32, f32); 8] = std::array::from_fn(|g| affine(&groups[g], |rms, v| rms + v.abs(), search));
    let max = |part: fn(&(f32, f32)) -> f32| fits.iter().map(part).fold(0.0, f32::max);
    let (max_scale, max_min) = (max(|f| f.0), max(|f| f.1));
    let step =
        |value: f32, max: f32| if max > 0.0 { nearest(63.0 / max * value).clamp(0, 63) as u8 } else { 0 };
    let (d, dmin) = (round_f16(max_scale / 63.0), round_f16(max_min / 63.0));
    head[..2].copy_from_slice(&d.1);
    head[2..4].copy_from_slice(&dmin.1);
    let packed = &mut head[4..16];
    packed.fill(0);
    let mut q = [0; 256];
    for (g, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = (step(fits[g].0, max_scale), step(fits[g].1, max_min));
        if g < 4 {
            packed[g] |= scale;
            packed[g + 4] |= min;
        } else {
            packed[g + 4] |= scale & 15 | min << 4;
            packed[g - 4] |= scale >> 4 << 6;
            packed[g] |= min >> 4 << 6;
        }
        let (scale, min) = (d.0 * f32::from(scale), dmin.0 * f32::from(min));
        for j in 0..32 {
            q[j] = if scale == 0.0 {
                0
            } else {
                nearest((groups[g][j] + min) / scale).clamp(0, search.levels.into()) as u8
            };
        }
    }
    q
}

pub(super) fn encode_q4_k(x: &[f32; 256], b: &mut [u8; 144]) {
    let search = Search { levels: 15, start: -1.0, steps: 20, measure: Measure::Square };
    let q = encode(x, &search, b);
    for i in 0..128 {
        let low = i / 32 * 64 + i % 32;
        b[16 + i] = q[low] | q[low + 32] << 4;
    }
}

pub(super) fn encode_q5_k(x: &[f32; 256], b: &mut [u8; 176]) {
    let search = Search { levels: 31, start: -0.5, steps: 15, measure: Measure::Square };
    let q = encode(x, &search, b);
    for j in 0..32 {
        b[16 + j] = (0..8).fold(0, |bits, g| bits | q[32 * g + j] >> 4 << g);
    }
    for i in 0..128 {
        let low = i / 32 * 64 + i % 32;
        b[48 + i] = q[low] & 15 | q[low + 32] << 4;
    }
}
