//! Quantised blocks: the layout of every tensor type and its reference meaning, `dequantize`, with encoders for most.
//!
//! One file per family. Values are bit-equal to those of the Python package `gguf`, which are ggml's own.
//! Source of the layouts: `ggml-common.h` and `ggml-quants.c` of the ggml project.

mod float;
mod q4_0;
mod q4_k;
mod q5_0;
mod q6_k;
mod q8_0;

use crate::{DType, Error};

/// Decodes whole blocks: `src` must hold exactly `dst.len()` values of type `dtype`. Integers become the nearest `f32`.
pub fn dequantize(dtype: DType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    if dtype.row_bytes(dst.len()) != Some(src.len()) {
        return Err(Error::BlockSize { dtype, bytes: src.len(), values: dst.len() });
    }
    match dtype {
        DType::F32 => each(src, dst, |b, [y]| *y = f32::from_le_bytes(*b)),
        DType::F16 => each(src, dst, |b, [y]| *y = f16(*b)),
        DType::BF16 => each(src, dst, |b, [y]| *y = float::bf16(*b)),
        DType::F64 => each(src, dst, |b, [y]| *y = f64::from_le_bytes(*b) as f32),
        DType::U8 => each(src, dst, |[b], [y]| *y = (*b).into()),
        DType::I8 => each(src, dst, |[b], [y]| *y = (*b as i8).into()),
        DType::I16 => each(src, dst, |b, [y]| *y = i16::from_le_bytes(*b).into()),
        DType::I32 => each(src, dst, |b, [y]| *y = i32::from_le_bytes(*b) as f32),
        DType::I64 => each(src, dst, |b, [y]| *y = i64::from_le_bytes(*b) as f32),
        DType::Q4_0 => each(src, dst, q4_0::decode_q4_0),
        DType::Q4_1 => each(src, dst, q4_0::decode_q4_1),
        DType::Q5_0 => each(src, dst, q5_0::decode_q5_0),
        DType::Q5_1 => each(src, dst, q5_0::decode_q5_1),
        DType::Q8_0 => each(src, dst, q8_0::decode_q8_0),
        DType::Q4_K => each(src, dst, q4_k::decode_q4_k),
        DType::Q5_K => each(src, dst, q4_k::decode_q5_k),
        DType::Q6_K => each(src, dst, q6_k::decode),
        t => return Err(Error::NoEncoder(t)),
    }
    Ok(())
}

/// Decodes block after block: `B` bytes to `N` values. The sizes were checked by the caller.
fn each<const B: usize, const N: usize>(
    src: &[u8],
    dst: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, values) in src.as_chunks::<B>().0.iter().zip(dst.as_chunks_mut::<N>().0) {
        decode(block, values);
    }
}

use float::f16;

/// The half-precision number at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16([block[at], block[at + 1]])
}
