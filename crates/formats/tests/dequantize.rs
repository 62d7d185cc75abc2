//! Byte-made blocks of every tensor type decode to the values of the Python package `gguf`, bit for bit.
//! `generate.py` beside this file makes the data and says which types it decodes from ggml's layouts instead.

use quarrel_formats::{DType, Error, dequantize};

const GOLDEN: &[u8] = include_bytes!("data/dequantize.bin");
const FULL: usize = 2;

fn take<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (part, tail) = rest.split_at(n);
    *rest = tail;
    part
}

fn u32(rest: &mut &[u8]) -> usize {
    u32::from_le_bytes(take(rest, 4).try_into().unwrap()) as usize
}

fn fnv(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn every_type_decodes_as_python_gguf_does() {
    let mut rest = GOLDEN;
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let len = take(&mut rest, 1)[0].into();
        let name = std::str::from_utf8(take(&mut rest, len)).unwrap();
        let dtype: DType = name.parse().unwrap();
        let (count, bytes, values) = (u32(&mut rest), u32(&mut rest), u32(&mut rest));
        assert_eq!((dtype.block_bytes(), dtype.block_len()), (bytes, values), "{name}");
        let blocks = take(&mut rest, count * bytes);
        let hashes = take(&mut rest, count * 8);
        let full = take(&mut rest, FULL * values * 4);

        let mut got = vec![f32::NAN; count * values];
        dequantize(dtype, blocks, &mut got).unwrap();
        for (i, want) in full.chunks_exact(4).enumerate() {
            let want = f32::from_le_bytes(want.try_into().unwrap());
            assert_eq!(got[i].to_bits(), want.to_bits(), "{name}, value {i}: {} is not {want}", got[i]);
        }
        for (i, (got, want)) in got.chunks_exact(values).zip(hashes.chunks_exact(8)).enumerate() {
            assert_eq!(fnv(got), u64::from_le_bytes(want.try_into().unwrap()), "{name}, block {i}");
        }
        seen.push(dtype);
    }
    assert_eq!(seen, DType::all().collect::<Vec<_>>());
}

#[test]
fn sizes_that_do_not_belong_together_are_refused() {
    for (bytes, values) in [(17, 32), (18, 31), (18, 64), (0, 32), (36, 32)] {
        let result = dequantize(DType::Q4_0, &vec![0; bytes], &mut vec![0.0; values]);
        assert!(matches!(result, Err(Error::BlockSize { .. })), "{bytes} bytes, {values} values");
    }
    assert!(dequantize(DType::Q4_0, &[], &mut []).is_ok());
}
