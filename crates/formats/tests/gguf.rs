//! GGUF: what is written is read back, files by other hands are read, and hostile ones are refused by the name of the field.

use proptest::prelude::*;
use quarrel_formats::{
    Array, DType, Gguf, Metadata, TensorInfo, Value,
    gguf::{NewTensor, write},
};

/// Builds files byte by byte, so that they can be wrong.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    /// Magic, version 3 and the two counts.
    fn new(tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }
    fn u8(mut self, v: u8) -> Raw {
        self.0.push(v);
        self
    }
    fn u32(mut self, v: u32) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn raw(mut self, v: &[u8]) -> Raw {
        self.0.extend(v);
        self
    }
    fn str(self, v: &str) -> Raw {
        self.u64(v.len() as u64).raw(v.as_bytes())
    }
    fn tensor(self, name: &str, dims: &[u64], id: u32, offset: u64) -> Raw {
        let head = self.str(name).u32(dims.len() as u32);
        dims.iter().fold(head, |r, d| r.u64(*d)).u32(id).u64(offset)
    }
    /// Pads to 32 and adds data.
    fn data(mut self, bytes: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self
    }
}

/// A valid file to take from: one u32 key and two tensors of 64 bytes.
fn valid() -> Raw {
    Raw::new(2, 1).str("a.key").u32(4).u32(7).tensor("t0", &[4, 4], 0, 0).tensor("t1", &[16], 0, 64).data(128)
}

fn two_tensors(second_offset: u64) -> Raw {
    Raw::new(2, 0).tensor("t0", &[16], 0, 0).tensor("t1", &[16], 0, second_offset).data(128)
}

fn one_tensor(dims: &[u64], id: u32, offset: u64) -> Raw {
    Raw::new(1, 0).tensor("t", dims, id, offset).data(64)
}

fn one_value(id: u32) -> Raw {
    Raw::new(0, 1).str("k").u32(id)
}

fn alignment(n: u32) -> Raw {
    Raw::new(1, 1).str("general.alignment").u32(4).u32(n).tensor("t", &[16], 0, 0).data(128)
}

fn nested(depth: usize) -> Raw {
    (1..depth).fold(one_value(9), |r, _| r.u32(9).u64(1)).u32(0).u64(0)
}

#[test]
fn hostile_files_are_refused_by_the_name_of_the_field() {
    let long_name = "n".repeat(1024);
    let cases: Vec<(Raw, &str)> = vec![
        (Raw::default(), "magic: needs 4 bytes at byte 0 but the file has 0 left"),
        (Raw(b"GGU".to_vec()), "magic: needs 4 bytes"),
        (Raw(b"\x7fELF\0\0\0\0".to_vec()), "magic: not a GGUF file: it begins with \"\\x7fELF\""),
        (Raw(b"lmgg\x01\0\0\0".to_vec()), "magic: a GGML file from before GGUF"),
        (Raw(b"GGUF\x03\0".to_vec()), "version: needs 4 bytes"),
        (Raw(b"GGUF\x01\0\0\0".to_vec()), "version: GGUF version 1 is too old"),
        (Raw(b"GGUF\x04\0\0\0".to_vec()), "version: GGUF version 4 is not known"),
        (Raw(b"GGUF\0\0\0\0".to_vec()), "version: GGUF version 0 is not known"),
        (Raw(b"GGUF\0\0\0\x03".to_vec()), "version: a big-endian GGUF file"),
        (Raw(b"GGUF\x03\0\0\0\0\0\0".to_vec()), "tensor count: needs 8 bytes"),
        (Raw::new(u64::MAX, 0), "tensor count: needs 18446744073709551615 bytes"),
        (Raw::new(1 << 40, 0), "tensor count: needs 36283883716608 bytes"),
        (Raw::new(0, u64::MAX), "metadata count: needs"),
        (Raw::new(0, 2).str("k").u32(0).u8(1), "metadata count: needs 28 bytes"),
        (Raw::new(0, 1).u64(u64::MAX).raw(&[0; 20]), "metadata key 1 of 1: length 18446744073709551615"),
        (
            Raw::new(0, 1).u64(65_536).raw(&[0; 70_000]),
            "metadata key 1 of 1: length 65536 at byte 24 is over the limit",
        ),
        (Raw::new(0, 1).u64(30).raw(&[0; 20]), "metadata key 1 of 1: needs 30 bytes"),
        (
            Raw::new(0, 1).u64(2).raw(&[0xff, 0xfe]).raw(&[0; 20]),
            "metadata key 1 of 1: the text at byte 32 is not UTF-8",
        ),
        (Raw::new(0, 1).str("").u32(0).raw(&[0; 9]), "metadata key 1 of 1: it is empty"),
        (
            Raw::new(0, 2).str("k").u32(0).u8(1).str("k").u32(0).u8(1),
            "metadata \"k\": the key is there twice",
        ),
        (one_value(13).u8(1), "metadata \"k\": value type 13 is not known"),
        (one_value(u32::MAX).u8(1), "metadata \"k\": value type 4294967295 is not known"),
        (one_value(4).u8(1), "metadata \"k\": needs 4 bytes"),
        (one_value(12).u32(1), "metadata \"k\": needs 8 bytes"),
        (one_value(7).u8(2), "metadata \"k\": a boolean is 2, not 0 or 1"),
        (one_value(8).u64(1 << 60), "metadata \"k\": needs 1152921504606846976 bytes"),
        (one_value(8).u64(1).u8(0xff), "metadata \"k\": the text at byte 45 is not UTF-8"),
        (one_value(9).u32(13).u64(0), "metadata \"k\": value type 13 is not known"),
        (one_value(9).u32(6).u64(1 << 62), "metadata \"k\": needs 18446744073709551615 bytes"),
        (
            one_value(9).u32(6).u64(3).u64(0),
            "metadata \"k\": needs 12 bytes at byte 49 but the file has 8 left",
        ),
        (one_value(9).u32(0).u64(u64::MAX), "metadata \"k\": needs 18446744073709551615 bytes"),
        (one_value(9).u32(8).u64(2).str("a").u64(9), "metadata \"k\": element 1 of 2: needs 9 bytes"),
        (one_value(9).u32(8).u64(1).u64(1).u8(0xc0), "metadata \"k\": element 0 of 1: the text at byte 57"),
        (one_value(9).u32(7).u64(2).u8(1).u8(9), "metadata \"k\": element 1 of 2: a boolean is 9"),
        (one_value(9).u32(9).u64(1 << 50).u32(0), "metadata \"k\": needs 13510798882111488 bytes"),
        (nested(5), "arrays are nested deeper than 4"),
        (alignment(0), "metadata \"general.alignment\": 0 is not a power of two"),
        (alignment(24), "metadata \"general.alignment\": 24 is not a power of two"),
        (alignment(1 << 31), "tensor \"t\", offset: 64 bytes at 0 end at byte 2147483712"),
        (
            Raw::new(0, 1).str("general.alignment").u32(10).u64(32),
            "metadata \"general.alignment\": is u64, not u32",
        ),
        (Raw::new(1, 0).u64(99).raw(&[0; 40]), "name of tensor 1 of 1: needs 99 bytes"),
        (Raw::new(1, 0).tensor("", &[16], 0, 0).data(64), "name of tensor 1 of 1: it is empty"),
        (
            Raw::new(1, 0).tensor(&long_name, &[16], 0, 0).data(64),
            "name of tensor 1 of 1: length 1024 at byte 24 is over",
        ),
        (
            Raw::new(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64),
            "tensor \"t\": the name is there twice",
        ),
        (one_tensor(&[], 0, 0), "tensor \"t\", dimension count: 0 dimensions; 1 to 4"),
        (one_tensor(&[1, 1, 1, 1, 16], 0, 0), "tensor \"t\", dimension count: 5 dimensions; 1 to 4"),
        (Raw::new(1, 0).str("t").u32(u32::MAX).raw(&[0; 64]), "dimension count: 4294967295 dimensions"),
        (Raw::new(1, 0).str("tensor").u32(4).raw(&[0; 16]), "tensor \"tensor\", dimensions: needs 8 bytes"),
        (one_tensor(&[0, 4], 0, 0), "tensor \"t\", dimensions: shape [4, 0] has a dimension of zero"),
        (
            one_tensor(&[1 << 32, 1 << 32], 0, 0),
            "tensor \"t\", dimensions: shape [4294967296, 4294967296] overflows",
        ),
        (one_tensor(&[u64::MAX], 0, 0), "dimensions: shape [18446744073709551615] overflows"),
        (one_tensor(&[1 << 61, 1], 0, 0), "dimensions: shape [1, 2305843009213693952] overflows"),
        (
            one_tensor(&[33], 2, 0),
            "tensor \"t\", dimensions: rows of 33 values are not whole blocks of 32 as Q4_0 needs",
        ),
        (one_tensor(&[16, 16], 12, 0), "rows of 16 values are not whole blocks of 256 as Q4_K needs"),
        (one_tensor(&[16], 4, 0), "tensor \"t\", type: type 4 (Q4_2) was withdrawn"),
        (one_tensor(&[16], 31, 0), "tensor \"t\", type: type 31 (Q4_0 repacked for ARM) was withdrawn"),
        (one_tensor(&[16], 99, 0), "tensor \"t\", type: type 99 is not known"),
        (one_tensor(&[16], 0, 1), "tensor \"t\", offset: 1 is not a multiple of the alignment, 32"),
        (
            one_tensor(&[16], 0, 32),
            "tensor \"t\", offset: 64 bytes at 32 end at byte 160 but the file has 128",
        ),
        (one_tensor(&[17], 0, 0), "tensor \"t\", offset: 68 bytes at 0 end at byte 132 but the file has 128"),
        (one_tensor(&[16], 0, u64::MAX - 31), "tensor \"t\", offset: 18446744073709551584 overflows"),
        (two_tensors(32), "tensor \"t1\", offset: 32 lies inside tensor \"t0\""),
        (two_tensors(0), "tensor \"t1\", offset: 0 lies inside tensor \"t0\""),
    ];
    for (i, (file, want)) in cases.iter().enumerate() {
        let error = Gguf::parse(&file.0).expect_err(want).to_string();
        assert!(error.contains(want), "case {i}:\n  got  {error}\n  want {want}");
    }
    for good in [valid(), two_tensors(64), nested(4), alignment(1), alignment(64), one_tensor(&[16], 0, 0)] {
        Gguf::parse(&good.0).unwrap();
    }
}

#[test]
fn every_truncation_is_an_error() {
    let file = valid().0;
    for n in 0..file.len() {
        assert!(Gguf::parse(&file[..n]).is_err(), "the first {n} bytes");
    }
}

#[test]
fn versions_2_and_3_are_read_alike() {
    let three = valid().0;
    let mut two = three.clone();
    two[4] = 2;
    let (two, three) = (Gguf::parse(&two).unwrap(), Gguf::parse(&three).unwrap());
    assert_eq!((two.version, three.version), (2, 3));
    assert_eq!((&two.metadata, &two.tensors), (&three.metadata, &three.tensors));
    assert_eq!(three.metadata.u32("a.key"), Some(7));
    let info = TensorInfo { name: "t1".into(), dtype: DType::F32, shape: vec![16], offset: 64, bytes: 64 };
    assert_eq!(three.tensors[1], info);
    assert_eq!(three.data_offset, 128);
    assert_eq!(three.range(&info), 192..256);
}

/// Names in an error message are quoted, so that a file cannot send escape codes to a terminal.
#[test]
fn control_characters_in_names_are_escaped() {
    let file = Raw::new(0, 1).str("\x1b[2J\n").u32(99);
    assert_eq!(
        Gguf::parse(&file.0).unwrap_err().to_string(),
        "metadata \"\\u{1b}[2J\\n\": value type 99 is not known (0 u8 to 12 f64 are)"
    );
}

/// Written by the Python package `gguf` (see generate.py): every value type, an array of each, two tensors.
#[test]
fn a_file_of_python_gguf_is_read() {
    let file = include_bytes!("data/python.gguf");
    let g = Gguf::parse(file).unwrap();
    let m = &g.metadata;
    assert_eq!(m.str("general.architecture"), Some("test"));
    assert_eq!(m.get("t.u8"), Some(&Value::U8(200)));
    assert_eq!(m.get("t.i8"), Some(&Value::I8(-100)));
    assert_eq!(m.get("t.u16"), Some(&Value::U16(60_000)));
    assert_eq!(m.get("t.i16"), Some(&Value::I16(-30_000)));
    assert_eq!(m.get("t.u32"), Some(&Value::U32(4_000_000_000)));
    assert_eq!(m.get("t.i32"), Some(&Value::I32(-2_000_000_000)));
    assert_eq!(m.get("t.u64"), Some(&Value::U64(1 << 63)));
    assert_eq!(m.get("t.i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(m.get("t.f32"), Some(&Value::F32(0.1)));
    assert_eq!(m.get("t.f64"), Some(&Value::F64(0.1)));
    assert_eq!(m.bool("t.bool"), Some(true));
    assert_eq!(m.str("t.string"), Some("héllo\n"));
    assert_eq!(m.strings("t.strings").unwrap(), ["a", "", "ß"]);
    assert_eq!(m.i32s("t.ints").unwrap().as_ref(), [1, -2, 3]);
    assert_eq!(m.f32s("t.floats").unwrap().as_ref(), [0.5, -1.5]);
    assert_eq!(m.bools("t.bools").unwrap(), [true, false]);
    assert_eq!((g.alignment, g.data_offset % 64), (64, 0));
    assert_eq!(g.tensors[0].shape, [2, 3]);
    assert_eq!((g.tensors[1].dtype, g.tensors[1].shape.as_slice()), (DType::Q8_0, &[2, 64][..]));
    let f32s: Vec<f32> =
        file[g.range(&g.tensors[0])].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(f32s, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn the_writer_refuses_what_the_parser_would() {
    let tensor = NewTensor { name: "t", dtype: DType::Q4_0, shape: &[2, 32], data: &[0; 36] };
    let cases: [(Metadata, Vec<NewTensor<'_>>, &str); 8] = [
        ([("general.alignment", Value::U32(3))].into_iter().collect(), vec![], "general.alignment"),
        ([("", Value::U32(3))].into_iter().collect(), vec![], "a key has 1 to 65535 bytes"),
        (Metadata::new(), vec![NewTensor { data: &[0; 35], ..tensor }], "needs 36 bytes, 35 were given"),
        (Metadata::new(), vec![NewTensor { shape: &[32, 2], ..tensor }], "not whole blocks"),
        (Metadata::new(), vec![NewTensor { shape: &[], ..tensor }], "0 dimensions"),
        (Metadata::new(), vec![NewTensor { dtype: DType::U8, ..tensor }], "type U8 does not exist in GGUF"),
        (Metadata::new(), vec![NewTensor { name: "", ..tensor }], "a name is unique"),
        (Metadata::new(), vec![tensor, tensor], "a name is unique"),
    ];
    for (metadata, tensors, want) in cases {
        let mut out = Vec::new();
        let error = write(&mut out, &metadata, &tensors).expect_err(want).to_string();
        assert!(error.contains(want) && out.is_empty(), "{error} / {want}");
    }
}

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        any::<Vec<u8>>().prop_map(Array::U8),
        any::<Vec<i8>>().prop_map(Array::I8),
        any::<Vec<u16>>().prop_map(Array::U16),
        any::<Vec<i16>>().prop_map(Array::I16),
        any::<Vec<u32>>().prop_map(Array::U32),
        any::<Vec<i32>>().prop_map(Array::I32),
        any::<Vec<f32>>().prop_map(Array::F32),
        any::<Vec<bool>>().prop_map(Array::Bool),
        any::<Vec<String>>().prop_map(Array::String),
        any::<Vec<u64>>().prop_map(Array::U64),
        any::<Vec<i64>>().prop_map(Array::I64),
        any::<Vec<f64>>().prop_map(Array::F64),
    ];
    flat.prop_recursive(3, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_written_is_read_back(
        entries in prop::collection::vec(("[a-z.]{1,12}", value()), 0..8),
        align in prop::option::of(0..10u32),
        shapes in prop::collection::vec((prop::collection::vec(1..5u64, 1..=4), 0..34usize), 0..6),
    ) {
        let mut metadata: Metadata = entries.into_iter().collect();
        if let Some(bits) = align {
            metadata.insert("general.alignment", Value::U32(1 << bits));
        }
        let mut tensors = Vec::new();
        for (i, (mut shape, dtype)) in shapes.into_iter().enumerate() {
            let dtype = DType::all().nth(dtype).filter(|d| d.ggml_id().is_some()).unwrap_or(DType::F32);
            *shape.last_mut().unwrap() *= dtype.block_len() as u64;
            let values: u64 = shape.iter().product();
            let data = vec![i as u8; dtype.row_bytes(values as usize).unwrap()];
            tensors.push((format!("tensor.{i}"), dtype, shape, data));
        }
        let new: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape, data)| NewTensor { name, dtype: *dtype, shape, data })
            .collect();
        let mut file = Vec::new();
        write(&mut file, &metadata, &new).unwrap();
        let read = Gguf::parse(&file).unwrap();
        prop_assert_eq!(read.alignment, align.map_or(32, |bits| 1 << bits));
        prop_assert_eq!(read.metadata, metadata);
        prop_assert_eq!(read.tensors.len(), tensors.len());
        for (info, (name, dtype, shape, data)) in read.tensors.iter().zip(&tensors) {
            prop_assert_eq!((&info.name, info.dtype, &info.shape), (name, *dtype, shape));
            prop_assert_eq!(&file[(read.data_offset + info.offset) as usize..][..info.bytes as usize], data.as_slice());
        }
    }

    #[test]
    fn mutated_bytes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        let mut file = include_bytes!("data/python.gguf").to_vec();
        for (at, byte) in edits {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(gguf) = Gguf::parse(&file) {
            for t in &gguf.tensors {
                prop_assert!(file.get(gguf.range(t)).is_some());
            }
        }
        file.truncate(cut.index(file.len()));
        let _ = Gguf::parse(&file);
    }
}
