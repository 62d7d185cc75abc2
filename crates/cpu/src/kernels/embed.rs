//! Rows of an embedding table, decoded from the mapped file one at a time.

use super::elementwise::{Each, map};
use crate::simd::Isa;
use quarrel_formats::{DType, dequantize};

/// `out = scale * table[at]`, plus `add` where given; `row_bytes` is the size of a stored row. The table's shape was checked
/// when it was loaded.
pub(crate) fn embed(
    isa: Isa,
    dtype: DType,
    table: &[u8],
    row_bytes: usize,
    at: u32,
    scale: f32,
    add: Option<&[f32]>,
    out: &mut [f32],
) {
    let row = &table[at as usize * row_bytes..][..row_bytes];
    dequantize(dtype, row, out).expect("type and size were checked when the table was prepared");
    if scale != 1.0 {
        map(isa, Each::Scale(scale), None, &[], out);
    }
    if let Some(add) = add {
        map(isa, Each::Add, None, add, out);
    }
}
