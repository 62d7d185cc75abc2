//! Quantised blocks: the layout of every tensor type and its reference meaning, `dequantize`, with encoders for most.
//!
//! One file per family. Values are bit-equal to those of the Python package `gguf`, which are ggml's own.
//! Source of the layouts: `ggml-common.h` and `ggml-quants.c` of the ggml project.

mod fit;
mod float;
mod fp4;
mod grids;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_k;
mod q5_0;
mod q6_k;
mod q8_0;
mod ternary;

use crate::{DType, Error};
use float::f16;

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
        DType::Q8_1 => each(src, dst, q8_0::decode_q8_1),
        DType::Q2_K => each(src, dst, q2_k::decode),
        DType::Q3_K => each(src, dst, q3_k::decode),
        DType::Q4_K => each(src, dst, q4_k::decode_q4_k),
        DType::Q5_K => each(src, dst, q4_k::decode_q5_k),
        DType::Q6_K => each(src, dst, q6_k::decode),
        DType::Q8_K => each(src, dst, q8_0::decode_q8_k),
        DType::IQ1_S => each(src, dst, iq1::decode_s),
        DType::IQ1_M => each(src, dst, iq1::decode_m),
        DType::IQ2_XXS => each(src, dst, iq2::decode_xxs),
        DType::IQ2_XS => each(src, dst, iq2::decode_xs),
        DType::IQ2_S => each(src, dst, iq2::decode_s),
        DType::IQ3_XXS => each(src, dst, iq3::decode_xxs),
        DType::IQ3_S => each(src, dst, iq3::decode_s),
        DType::IQ4_NL => each(src, dst, iq4::decode_nl),
        DType::IQ4_XS => each(src, dst, iq4::decode_xs),
        DType::TQ1_0 => each(src, dst, ternary::decode_tq1_0),
        DType::TQ2_0 => each(src, dst, ternary::decode_tq2_0),
        DType::MXFP4 => each(src, dst, fp4::decode_mxfp4),
        DType::NVFP4 => each(src, dst, fp4::decode_nvfp4),
    }
    Ok(())
}

/// Encodes `src`, a whole number of blocks, and appends the bytes to `dst`, which is left as it was on error. Refuses values
/// that are not finite, and values so large that the type cannot hold them.
///
/// F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and MXFP4 are rounded as the Python package `gguf` does; the K types and IQ4_NL
/// search for scales as ggml's encoders without importance weights.
pub fn quantize(dtype: DType, src: &[f32], dst: &mut Vec<u8>) -> Result<(), Error> {
    let bytes = dtype.row_bytes(src.len()).ok_or(Error::BlockSize { dtype, bytes: 0, values: src.len() })?;
    let start = dst.len();
    dst.resize(start + bytes, 0);
    encode(dtype, src, &mut dst[start..]).inspect_err(|_| dst.truncate(start))
}

fn encode(dtype: DType, src: &[f32], dst: &mut [u8]) -> Result<(), Error> {
    let cannot_hold = |i: usize| Error::CannotHold { dtype, index: i, value: src[i] };
    if let Some(i) = src.iter().position(|v| !v.is_finite()) {
        return Err(cannot_hold(i));
    }
    match dtype {
        DType::F32 => encode_each(src, dst, |[x], b| *b = x.to_le_bytes()),
        DType::F16 => encode_each(src, dst, |[x], b| *b = half::f16::from_f32(*x).to_le_bytes()),
        DType::BF16 => encode_each(src, dst, |[x], b| *b = half::bf16::from_f32(*x).to_le_bytes()),
        DType::Q4_0 => encode_each(src, dst, q4_0::encode_q4_0),
        DType::Q4_1 => encode_each(src, dst, q4_0::encode_q4_1),
        DType::Q5_0 => encode_each(src, dst, q5_0::encode_q5_0),
        DType::Q5_1 => encode_each(src, dst, q5_0::encode_q5_1),
        DType::Q8_0 => encode_each(src, dst, q8_0::encode_q8_0),
        DType::Q2_K => encode_each(src, dst, q2_k::encode),
        DType::Q3_K => encode_each(src, dst, q3_k::encode),
        DType::Q4_K => encode_each(src, dst, q4_k::encode_q4_k),
        DType::Q5_K => encode_each(src, dst, q4_k::encode_q5_k),
        DType::Q6_K => encode_each(src, dst, q6_k::encode),
        DType::IQ4_NL => encode_each(src, dst, iq4::encode_nl),
        DType::MXFP4 => encode_each(src, dst, fp4::encode_mxfp4),
        t => return Err(Error::NoEncoder(t)),
    }
    // A scale that overflowed would come back as infinities; better to say so than to write it.
    let mut back = [0.0; 256];
    let bytes = 256 / dtype.block_len() * dtype.block_bytes();
    for (n, (x, b)) in src.chunks(256).zip(dst.chunks(bytes)).enumerate() {
        let back = &mut back[..x.len()];
        dequantize(dtype, b, back)?;
        if let Some(bad) = back.iter().position(|v| !v.is_finite()) {
            let block = bad / dtype.block_len() * dtype.block_len();
            let largest =
                (block..block + dtype.block_len()).max_by(|a, b| x[*a].abs().total_cmp(&x[*b].abs()));
            return Err(cannot_hold(256 * n + largest.unwrap_or(bad)));
        }
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

/// Encodes block after block.
fn encode_each<const N: usize, const B: usize>(
    src: &[f32],
    dst: &mut [u8],
    encode: impl Fn(&[f32; N], &mut [u8; B]),
) {
    for (values, block) in src.as_chunks::<N>().0.iter().zip(dst.as_chunks_mut::<B>().0) {
        encode(values, block);
    }
}

/// The half-precision number at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16([block[at], block[at + 1]])
}
