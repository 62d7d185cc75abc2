//! The one table of tensor types: ggml's id, the name, and how many bytes hold how many values.
//! Source: `ggml.h` (enum ggml_type) and `ggml-common.h` (block layouts) of the ggml project.

use std::{fmt, str::FromStr};

use crate::Error;

/// The type of a tensor's elements. A block of [`block_len`](DType::block_len) neighbouring values of a row is stored in
/// [`block_bytes`](DType::block_bytes) bytes; plain types have blocks of one value.
#[allow(missing_docs, non_camel_case_types, reason = "the names are the field's own")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DType {
    F32,
    F16,
    BF16,
    F64,
    /// Only in safetensors; ggml has no unsigned type.
    U8,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
}

struct Row(DType, Option<u32>, &'static str, usize, usize);

/// In the order of the enum: type, ggml id, name, values per block, bytes per block.
#[rustfmt::skip]
const TABLE: [Row; 34] = [
    Row(DType::F32,     Some(0),  "F32",     1,   4),
    Row(DType::F16,     Some(1),  "F16",     1,   2),
    Row(DType::BF16,    Some(30), "BF16",    1,   2),
    Row(DType::F64,     Some(28), "F64",     1,   8),
    Row(DType::U8,      None,     "U8",      1,   1),
    Row(DType::I8,      Some(24), "I8",      1,   1),
    Row(DType::I16,     Some(25), "I16",     1,   2),
    Row(DType::I32,     Some(26), "I32",     1,   4),
    Row(DType::I64,     Some(27), "I64",     1,   8),
    Row(DType::Q4_0,    Some(2),  "Q4_0",    32,  2 + 16),
    Row(DType::Q4_1,    Some(3),  "Q4_1",    32,  2 + 2 + 16),
    Row(DType::Q5_0,    Some(6),  "Q5_0",    32,  2 + 4 + 16),
    Row(DType::Q5_1,    Some(7),  "Q5_1",    32,  2 + 2 + 4 + 16),
    Row(DType::Q8_0,    Some(8),  "Q8_0",    32,  2 + 32),
    Row(DType::Q8_1,    Some(9),  "Q8_1",    32,  2 + 2 + 32),
    Row(DType::Q2_K,    Some(10), "Q2_K",    256, 16 + 64 + 2 + 2),
    Row(DType::Q3_K,    Some(11), "Q3_K",    256, 32 + 64 + 12 + 2),
    Row(DType::Q4_K,    Some(12), "Q4_K",    256, 2 + 2 + 12 + 128),
    Row(DType::Q5_K,    Some(13), "Q5_K",    256, 2 + 2 + 12 + 32 + 128),
    Row(DType::Q6_K,    Some(14), "Q6_K",    256, 128 + 64 + 16 + 2),
    Row(DType::Q8_K,    Some(15), "Q8_K",    256, 4 + 256 + 32),
    Row(DType::IQ1_S,   Some(19), "IQ1_S",   256, 2 + 32 + 16),
    Row(DType::IQ1_M,   Some(29), "IQ1_M",   256, 32 + 16 + 8),
    Row(DType::IQ2_XXS, Some(16), "IQ2_XXS", 256, 2 + 64),
    Row(DType::IQ2_XS,  Some(17), "IQ2_XS",  256, 2 + 64 + 8),
    Row(DType::IQ2_S,   Some(22), "IQ2_S",   256, 2 + 64 + 16),
    Row(DType::IQ3_XXS, Some(18), "IQ3_XXS", 256, 2 + 64 + 32),
    Row(DType::IQ3_S,   Some(21), "IQ3_S",   256, 2 + 64 + 8 + 32 + 4),
    Row(DType::IQ4_NL,  Some(20), "IQ4_NL",  32,  2 + 16),
    Row(DType::IQ4_XS,  Some(23), "IQ4_XS",  256, 2 + 2 + 4 + 128),
    Row(DType::TQ1_0,   Some(34), "TQ1_0",   256, 48 + 4 + 2),
    Row(DType::TQ2_0,   Some(35), "TQ2_0",   256, 64 + 2),
    Row(DType::MXFP4,   Some(39), "MXFP4",   32,  1 + 16),
    Row(DType::NVFP4,   Some(40), "NVFP4",   64,  4 + 32),
];

impl DType {
    /// Every type.
    pub fn all() -> impl ExactSizeIterator<Item = DType> {
        TABLE.iter().map(|r| r.0)
    }

    const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The name that published files use, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.row().2
    }

    /// The type with this ggml id; none for ids that are unknown or that ggml has withdrawn.
    pub fn from_ggml(id: u32) -> Option<DType> {
        TABLE.iter().find(|r| r.1 == Some(id)).map(|r| r.0)
    }

    /// ggml's id; none for the types that only safetensors has.
    pub const fn ggml_id(self) -> Option<u32> {
        self.row().1
    }

    /// Values per block.
    pub const fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether values share a scale in blocks.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row of `cols` values; none if that is not a whole number of blocks or does not fit.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len()).then_some(())?;
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let row = TABLE.iter().find(|r| r.2.eq_ignore_ascii_case(s));
        row.map(|r| r.0).ok_or_else(|| Error::UnknownType(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_its_ids_and_names_are_unique() {
        for (i, r) in TABLE.iter().enumerate() {
            assert_eq!(r.0 as usize, i, "{}", r.2);
            assert_eq!(format!("{:?}", r.0), r.2);
            assert_eq!(r.2.to_lowercase().parse::<DType>().unwrap(), r.0);
            assert_eq!(r.1.and_then(DType::from_ggml), r.1.map(|_| r.0), "{}", r.2);
        }
        assert!("Q4_K_M".parse::<DType>().is_err(), "a file's mixture is not a tensor type");
        assert_eq!(DType::from_ggml(4), None, "Q4_2 was withdrawn");
        assert_eq!(DType::from_ggml(u32::MAX), None);
    }

    #[test]
    fn row_bytes_takes_whole_blocks_only() {
        assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(DType::Q4_0.row_bytes(33), None);
        assert_eq!(DType::Q6_K.row_bytes(0), Some(0));
        assert_eq!(DType::F64.row_bytes(usize::MAX), None);
    }
}
