//! The plain 16-bit floats: IEEE half (F16) and the upper half of an `f32` (BF16).

/// Exact. Written without branches so that loops over it become vector code, and without arithmetic on `f32` subnormals so
/// that threads which flush those to zero agree.
#[inline]
pub(super) fn f16(bytes: [u8; 2]) -> f32 {
    let h = u32::from(u16::from_le_bytes(bytes));
    let magnitude = h & 0x7fff;
    // Subnormals are magnitude * 2^-24; the others have their exponent moved from bias 15 to bias 127.
    let subnormal = (magnitude as f32 * 2f32.powi(-24)).to_bits();
    let normal = (magnitude << 13) + (112 << 23);
    let infinite_or_nan = (magnitude << 13) | 0x7f80_0000;
    let bits = if magnitude < 0x0400 {
        subnormal
    } else if magnitude < 0x7c00 {
        normal
    } else {
        infinite_or_nan
    };
    f32::from_bits(bits | (h & 0x8000) << 16)
}

#[inline]
pub(super) fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_the_number_that_the_half_crate_says() {
        for h in 0..=u16::MAX {
            let (ours, theirs) = (f16(h.to_le_bytes()), half::f16::from_bits(h).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{h:#06x}");
            let (ours, theirs) = (bf16(h.to_le_bytes()), half::bf16::from_bits(h).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{h:#06x}");
        }
    }
}
