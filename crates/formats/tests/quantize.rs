//! The encoders against the Python package `gguf`, byte for byte where it has one; else no worse than ggml's own library.
//! `generate.py` beside this file makes the data.

use quarrel_formats::{DType, Error, dequantize, quantize};

const GOLDEN: &[u8] = include_bytes!("data/quantize.bin");
const EXACT: [DType; 8] =
    [DType::F16, DType::BF16, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0, DType::MXFP4];

/// The values, then each type with its bytes.
fn golden() -> (Vec<f32>, Vec<(DType, &'static [u8])>) {
    let n = u32::from_le_bytes(GOLDEN[..4].try_into().unwrap()) as usize;
    let (values, mut rest) = GOLDEN[4..].split_at(4 * n);
    let values = values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let mut types = Vec::new();
    while let Some((len, tail)) = rest.split_first() {
        let (name, tail) = tail.split_at(usize::from(*len));
        let dtype: DType = std::str::from_utf8(name).unwrap().parse().unwrap();
        let (bytes, tail) = tail.split_at(dtype.row_bytes(n).unwrap());
        types.push((dtype, bytes));
        rest = tail;
    }
    (values, types)
}

fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dequantize(dtype, bytes, &mut values).unwrap();
    values
}

fn rms(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

#[test]
fn encoders_match_python_gguf_or_are_as_good_as_ggml() {
    let (x, types) = golden();
    assert_eq!(types.len(), 14);
    for (dtype, theirs) in types {
        let mut ours = vec![1, 2, 3];
        quantize(dtype, &x, &mut ours).unwrap();
        assert_eq!(ours[..3], [1, 2, 3], "{dtype}: what was there stays");
        let ours = &ours[3..];
        if EXACT.contains(&dtype) {
            let blocks = ours.chunks(dtype.block_bytes()).zip(theirs.chunks(dtype.block_bytes()));
            for (i, (ours, theirs)) in blocks.enumerate() {
                assert_eq!(ours, theirs, "{dtype}, block {i}");
            }
        } else {
            let (ours, theirs) = (decoded(dtype, ours), decoded(dtype, theirs));
            for (i, x) in x.chunks(256).enumerate() {
                let of = 256 * i..256 * (i + 1);
                let (our_error, their_error) = (rms(&ours[of.clone()], x), rms(&theirs[of], x));
                // For Q3_K ggml goes on to improve single numbers, which is not worth its code here.
                let slack = if dtype == DType::Q3_K { 1.06 } else { 1.02 };
                assert!(
                    our_error <= their_error * slack + 1e-9,
                    "{dtype}, block {i}: {our_error} > {their_error}"
                );
            }
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_and_leaves_the_output_alone() {
    let mut out = vec![9];
    for (dtype, bad) in [
        (DType::F32, f32::NAN),
        (DType::F16, 65520.0),
        (DType::BF16, f32::MAX),
        (DType::Q8_0, f32::INFINITY),
        (DType::Q4_0, 1e9),
        (DType::Q4_K, -1e9),
        (DType::Q6_K, f32::MAX),
    ] {
        let mut x = vec![0.5; 512];
        x[300] = bad;
        let error = quantize(dtype, &x, &mut out).expect_err(dtype.name());
        assert!(matches!(error, Error::CannotHold { index: 300, .. }), "{dtype}: {error}");
        assert_eq!(out, [9], "{dtype}");
    }
    assert!(matches!(quantize(DType::Q4_K, &[0.0; 255], &mut out), Err(Error::BlockSize { .. })));
    assert!(matches!(quantize(DType::IQ2_XS, &[0.0; 256], &mut out), Err(Error::NoEncoder(DType::IQ2_XS))));
    assert_eq!(out, [9]);
}
