//! Q2_K: 256 values of 2 bits in 16 groups of 16, each with a 4-bit scale and a 4-bit minimum.
//!
//! ```text
//! | scales: 16 bytes | qs: 64 bytes | d: f16 | dmin: f16 |  84 bytes   y = (d * scale) * q - (dmin * minimum)
//! ```
//! Byte `g` of `scales` has the scale of group `g` in its low nibble and the minimum in its high one. Value `128h + 32k + j`
//! is in bits `2k` of byte `32h + j` of `qs`.

use super::{
    f16_at,
    fit::{Measure, Search, affine, nearest, round_f16},
};

pub(super) fn decode(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
    for (group, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(b[group] & 15), dmin * f32::from(b[group] >> 4));
        let (half, k) = (group / 8, group % 8 / 2);
        let qs = &b[16 + 32 * half + 16 * (group % 2)..][..16];
        for j in 0..16 {
            y[j] = scale * f32::from(qs[j] >> (2 * k) & 3) - min;
        }
    }
}

pub(super) fn encode(x: &[f32; 256], b: &mut [u8; 84]) {
    let search = Search { levels: 3, start: -0.5, steps: 15, measure: Measure::Absolute };
    let groups = x.as_chunks::<16>().0;
    let fits: [(f32, f32); 16] = std::array::from_fn(|g| affine(&groups[g], |_, v| v.abs(), &search));
    let max = |part: fn(&(f32, f32)) -> f32| fits.iter().map(part).fold(0.0, f32::max);
    let (max_scale, max_min) = (max(|f| f.0), max(|f| f.1));
    let step =
        |value: f32, max: f32| if max > 0.0 { nearest(15.0 / max * value).clamp(0, 15) as u8 } else { 0 };
    let (d, dmin) = (round_f16(max_scale / 15.0), round_f16(max_min / 15.0));
    b[80..82].copy_from_slice(&d.1);
    b[82..84].copy_from_slice(&dmin.1);
    b[16..80].fill(0);
    for g in 0..16 {
        let (scale, min) = (step(fits[g].0, max_scale), step(fits[g].1, max_min));
        b[g] = scale | min << 4;
        let (scale, min) = (d.0 * f32::from(scale), dmin.0 * f32::from(min));
        let (half, k) = (g / 8, g % 8 / 2);
        for j in 0..16 {
            let q = if scale == 0.0 { 0 } else { nearest((groups[g][j] + min) / scale).clamp(0, 3) as u8 };
            b[16 + 32 * half + 16 * (g % 2) + j] |= q << (2 * k);
        }
    }
}
