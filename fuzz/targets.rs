// What is fuzzed, by name. Shared by cargo-fuzz (fuzz_targets/) and the fuzzer that needs no nightly compiler
// (crates/formats/examples/fuzz.rs). A target may return errors and must never panic.
#![allow(dead_code, reason = "cargo-fuzz names one target per program")]

/// Takes any bytes and must not panic.
pub(crate) type Target = fn(&[u8]);

/// Every target with the directory of its corpus.
pub(crate) const ALL: [(&str, Target); 2] = [("gguf", gguf), ("safetensors", safetensors)];

/// Parses a GGUF file and decodes the tensors that a small input can hold.
pub(crate) fn gguf(bytes: &[u8]) {
    let Ok(gguf) = quarrel_formats::Gguf::parse(bytes) else { return };
    for tensor in &gguf.tensors {
        let data = &bytes[gguf.range(tensor)];
        let values = data.len() / tensor.dtype.block_bytes() * tensor.dtype.block_len();
        let mut out = vec![0.0; values.min(1024 / tensor.dtype.block_len() * tensor.dtype.block_len())];
        let len = tensor.dtype.row_bytes(out.len()).expect("whole blocks");
        quarrel_formats::dequantize(tensor.dtype, &data[..len], &mut out).expect("the sizes agree");
    }
    // What can be read can be written, and reads the same.
    let mut copy = Vec::new();
    let tensors: Vec<_> = gguf
        .tensors
        .iter()
        .map(|t| quarrel_formats::gguf::NewTensor {
            name: &t.name,
            dtype: t.dtype,
            shape: &t.shape,
            data: &bytes[gguf.range(t)],
        })
        .collect();
    // A huge alignment would be written as huge padding.
    if gguf.alignment <= 4096 {
        quarrel_formats::gguf::write(&mut copy, &gguf.metadata, &tensors)
            .expect("what was read can be written");
        let again = quarrel_formats::Gguf::parse(&copy).expect("what was written can be read");
        assert_eq!(again.metadata.len(), gguf.metadata.len());
        assert_eq!(again.tensors.len(), gguf.tensors.len());
    }
}

/// Parses a safetensors file.
pub(crate) fn safetensors(bytes: &[u8]) {
    let Ok(parsed) = quarrel_formats::safetensors::Safetensors::parse(bytes) else { return };
    for tensor in parsed.tensors {
        let data = &bytes[tensor.range];
        let values: usize = tensor.shape.iter().product();
        assert_eq!(tensor.dtype.row_bytes(values), Some(data.len()));
    }
}
