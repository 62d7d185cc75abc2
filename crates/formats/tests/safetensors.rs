//! safetensors: files of the reference implementation's layout are read and hostile ones refused by the name of the field.

use proptest::prelude::*;
use quarrel_formats::{DType, safetensors::Safetensors};

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 7);
    out
}

const VALID: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[8,20]},"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"empty":{"dtype":"F32","shape":[0,4],"data_offsets":[20,20]}}  "#;

#[test]
fn a_valid_file_is_read_in_the_order_of_its_data() {
    let bytes = file(VALID, 20);
    let read = Safetensors::parse(&bytes).unwrap();
    assert_eq!(read.metadata, [("format".to_owned(), "pt".to_owned())]);
    let got: Vec<_> =
        read.tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.clone(), t.range.clone())).collect();
    let start = 8 + VALID.len();
    assert_eq!(
        got,
        [
            ("a", DType::I64, vec![], start..start + 8),
            ("b", DType::F16, vec![2, 3], start + 8..start + 20),
            ("empty", DType::F32, vec![0, 4], start + 20..start + 20),
        ]
    );
    assert_eq!(Safetensors::parse(&file("{}", 0)).unwrap().tensors, []);
}

#[test]
fn hostile_files_are_refused_by_the_name_of_the_field() {
    let one = |entry: &str| file(&format!(r#"{{"t":{entry}}}"#), 8);
    let deep = format!(r#"{{"t":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let mut long = file("{}", 0);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "header length: needs 8 bytes but the file has 0"),
        (vec![0; 7], "header length: needs 8 bytes"),
        (long, "header length: needs 18446744073709551615 bytes"),
        (file("", 0), "header: does not begin with '{'"),
        (file(" {}", 0), "header: does not begin with '{'"),
        (file("{", 0), "header: EOF while parsing"),
        (file("{}x", 0), "header: trailing characters"),
        (file("{}\0", 0), "header: trailing characters"),
        (file(&deep, 0), "tensor \"t\": invalid type: sequence"),
        (one("3"), "tensor \"t\": invalid type: integer `3`"),
        (one(r#"{"dtype":"F32","shape":[2]}"#), "tensor \"t\": missing field `data_offsets`"),
        (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}"#), "tensor \"t\": unknown field `x`"),
        (
            one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#),
            "tensor \"t\": invalid value: integer `-2`",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}"#),
            "tensor \"t\": invalid type: floating point",
        ),
        (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0]}"#), "tensor \"t\": invalid length 1"),
        (
            one(r#"{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}"#),
            "tensor \"t\", dtype: \"F8_E4M3\" is not supported",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            "tensor \"t\", data_offsets: 8..0 is not within",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#),
            "tensor \"t\", data_offsets: 4..12 is not within the 8",
        ),
        (
            one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
            "data_offsets: 0..8 is 8 bytes but F32 [3] is 12",
        ),
        (
            one(r#"{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}"#),
            "tensor \"t\", shape: [4611686018427387904] overflows",
        ),
        (
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#),
            "tensor \"t\", shape:",
        ),
        (
            one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}"#),
            "shape: 9 dimensions; at most 8",
        ),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), "data_offsets: the tensors end at byte"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), "begins at 4 and leaves a hole"),
        (
            file(
                r#"{"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                8,
            ),
            "tensor \"b\", data_offsets: begins at 4 and overlaps the tensor before it, which ends at 6",
        ),
        (
            file(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                8,
            ),
            "header: \"a\" is there twice",
        ),
        (file(r#"{"__metadata__":{"a":1}}"#, 0), "header: invalid type: integer `1`, expected a string"),
        (file(r#"{"__metadata__":[]}"#, 0), "expected an object of strings in __metadata__"),
    ];
    for (bytes, want) in cases {
        let error = Safetensors::parse(&bytes).expect_err(want).to_string();
        assert!(error.contains(want), "got  {error}\nwant {want}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn mutated_bytes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), cut in any::<prop::sample::Index>()) {
        let mut bytes = file(VALID, 20);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(read) = Safetensors::parse(&bytes) {
            for t in read.tensors {
                prop_assert!(bytes.get(t.range).is_some());
            }
        }
        bytes.truncate(cut.index(bytes.len()));
        let _ = Safetensors::parse(&bytes);
    }
}
