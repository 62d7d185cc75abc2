//! The codebooks of the IQ types: short vectors chosen by ggml's author from lattices, that an index picks.
//!
//! Stored packed, one small code per value, exactly as the Python package `gguf` has them (`tests/generate.py` copies them), and
//! unpacked when compiled. Source: `iq1s_grid`, `iq2xxs_grid` and their like in `ggml-common.h`.

const IQ2_VALUES: [i8; 3] = [8, 25, 43];

pub(super) static IQ1_S: [[i8; 8]; 2048] = unpack(include_bytes!("grids/iq1_s.bin"), 2, &[-1, 0, 1]);
pub(super) static IQ2_XXS: [[i8; 8]; 256] = unpack(include_bytes!("grids/iq2_xxs.bin"), 2, &IQ2_VALUES);
pub(super) static IQ2_XS: [[i8; 8]; 512] = unpack(include_bytes!("grids/iq2_xs.bin"), 2, &IQ2_VALUES);
pub(super) static IQ2_S: [[i8; 8]; 1024] = unpack(include_bytes!("grids/iq2_s.bin"), 2, &IQ2_VALUES);
pub(super) static IQ3_XXS: [[i8; 4]; 256] =
    unpack(include_bytes!("grids/iq3_xxs.bin"), 4, &[4, 12, 20, 28, 36, 44, 52, 62]);
pub(super) static IQ3_S: [[i8; 4]; 512] =
    unpack(include_bytes!("grids/iq3_s.bin"), 4, &[1, 3, 5, 7, 9, 11, 13, 15]);

/// Codes of `bits` bits, the lowest first, as values. Does not compile if a code has no value or a byte is left over.
const fn unpack<const ROWS: usize, const COLS: usize>(
    packed: &[u8],
    bits: usize,
    values: &[i8],
) -> [[i8; COLS]; ROWS] {
    assert!(packed.len() * 8 == ROWS * COLS * bits);
    let mut rows = [[0; COLS]; ROWS];
    let mut i = 0;
    while i < ROWS * COLS {
        let at = i * bits;
        let code = packed[at / 8] >> (at % 8) & ((1 << bits) - 1);
        rows[i / COLS][i % COLS] = values[code as usize];
        i += 1;
    }
    rows
}

/// Seven stored sign bits as eight: the number of minus signs is even.
#[inline]
pub(super) fn even_signs(seven: u8) -> u8 {
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Writes `scale * values`, negated where the bit is set.
#[inline]
pub(super) fn put<const N: usize>(y: &mut [f32], scale: f32, values: &[i8; N], signs: u8) {
    for (j, (y, value)) in y[..N].iter_mut().zip(values).enumerate() {
        let v = scale * f32::from(*value);
        *y = if signs >> j & 1 == 1 { -v } else { v };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sums that `tests/generate.py` prints of the tables in the Python package `gguf`.
    #[test]
    fn the_codebooks_are_those_of_python_gguf() {
        fn fnv(table: &[i8]) -> u64 {
            table
                .iter()
                .fold(0xcbf2_9ce4_8422_2325, |h, v| (h ^ u64::from(*v as u8)).wrapping_mul(0x100_0000_01b3))
        }
        assert_eq!(fnv(IQ1_S.as_flattened()), 0x6703_ed86_3501_ae2e);
        assert_eq!(fnv(IQ2_XXS.as_flattened()), 0xbb4e_e025_b5ac_6e8e);
        assert_eq!(fnv(IQ2_XS.as_flattened()), 0xc9b1_ee61_e799_09bd);
        assert_eq!(fnv(IQ2_S.as_flattened()), 0x123e_dd38_a3b6_2b90);
        assert_eq!(fnv(IQ3_XXS.as_flattened()), 0xdfa5_dc83_d6a1_55d5);
        assert_eq!(fnv(IQ3_S.as_flattened()), 0xfa37_020c_25b4_4829);
    }
}
