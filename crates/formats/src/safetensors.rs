//! safetensors headers, checked. A file is the header's length (u64), the header (JSON) and the tensors' bytes.
//! Source: <https://github.com/huggingface/safetensors#format>.

use std::{collections::HashSet, fmt, ops::Range};

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};

use crate::{DType, Error};

/// Longest header, in bytes (the reference implementation's).
pub const HEADER_BYTES_MAX: usize = 100_000_000;
/// Most dimensions of a tensor.
pub const DIMS_MAX: usize = 8;

/// What a safetensors file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Safetensors {
    /// The free text of `__metadata__`.
    pub metadata: Vec<(String, String)>,
    /// Tensors in the order of their data. Names are unique, ranges lie in the file and do not overlap.
    pub tensors: Vec<TensorInfo>,
}

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Unique name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Row-major, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The data's place in the file, in bytes.
    pub range: Range<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct Header {
    metadata: Vec<(String, String)>,
    entries: Vec<(String, Entry)>,
}

/// An object of strings, in order.
struct Strings(Vec<(String, String)>);

struct HeaderVisitor;
struct StringsVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    // By hand, because a map would let the second of two equal names win in silence.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name:?} is there twice")));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value::<Strings>()?.0;
            } else {
                let entry =
                    map.next_value().map_err(|e| A::Error::custom(format!("tensor {name:?}: {e}")))?;
                header.entries.push((name, entry));
            }
        }
        Ok(header)
    }
}

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = Strings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings in __metadata__")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
        let mut strings = Vec::new();
        while let Some(pair) = map.next_entry()? {
            strings.push(pair);
        }
        Ok(Strings(strings))
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(HeaderVisitor)
    }
}

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(StringsVisitor)
    }
}

fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "I16" => DType::I16,
        "I8" => DType::I8,
        // A BOOL is a byte of 0 or 1: masks that old checkpoints carry along.
        "U8" | "BOOL" => DType::U8,
        _ => return None,
    })
}

impl Safetensors {
    /// Reads the header of a whole file given as bytes. Nothing of the tensors' data is touched.
    pub fn parse(bytes: &[u8]) -> Result<Safetensors, Error> {
        let short = |need: u64| {
            let reason = format!(
                "needs {need} bytes but the file has {}; it is not safetensors, truncated or damaged",
                bytes.len()
            );
            Error::field("header length", reason)
        };
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| short(8))?;
        let length = u64::from_le_bytes(*length);
        if length > rest.len() as u64 {
            return Err(short(length.saturating_add(8)));
        }
        let length = length as usize;
        if length > HEADER_BYTES_MAX {
            return Err(Error::field(
                "header length",
                format!("{length} is over the limit of {HEADER_BYTES_MAX}"),
            ));
        }
        let (header, data) = rest.split_at(length);
        if header.first() != Some(&b'{') {
            return Err(Error::field("header", "does not begin with '{'; this is not a safetensors file"));
        }
        let header: Header =
            serde_json::from_slice(header).map_err(|e| Error::field("header", e.to_string()))?;
        let mut tensors = Vec::with_capacity(header.entries.len());
        for (name, entry) in header.entries {
            tensors.push(tensor(name, &entry, data.len(), 8 + length)?);
        }
        tensors.sort_by_key(|t| (t.range.start, t.range.end));
        let mut end = 8 + length;
        for t in &tensors {
            if t.range.start != end {
                let what = if t.range.start < end {
                    "overlaps the tensor before it"
                } else {
                    "leaves a hole before it"
                };
                let reason = format!(
                    "begins at {} and {what}, which ends at {}",
                    t.range.start - 8 - length,
                    end - 8 - length
                );
                return Err(Error::field(format!("tensor {:?}, data_offsets", t.name), reason));
            }
            end = t.range.end;
        }
        if end != bytes.len() {
            let reason = format!("the tensors end at byte {end} but the file has {} bytes", bytes.len());
            return Err(Error::field("data_offsets", reason));
        }
        Ok(Safetensors { metadata: header.metadata, tensors })
    }
}

fn tensor(name: String, entry: &Entry, data_len: usize, data_offset: usize) -> Result<TensorInfo, Error> {
    let field = |part: &str| format!("tensor {name:?}, {part}");
    let Some(dtype) = dtype(&entry.dtype) else {
        let reason = format!(
            "{:?} is not supported (F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL are)",
            entry.dtype
        );
        return Err(Error::field(field("dtype"), reason));
    };
    if entry.shape.len() > DIMS_MAX {
        let reason = format!("{} dimensions; at most {DIMS_MAX} are allowed", entry.shape.len());
        return Err(Error::field(field("shape"), reason));
    }
    let overflow = || Error::field(field("shape"), format!("{:?} overflows", entry.shape));
    let shape: Vec<usize> =
        entry.shape.iter().map(|d| usize::try_from(*d)).collect::<Result<_, _>>().map_err(|_| overflow())?;
    let bytes = shape.iter().try_fold(dtype.block_bytes(), |n, d| n.checked_mul(*d)).ok_or_else(overflow)?;
    let (begin, end) = entry.data_offsets;
    if begin > end || end > data_len as u64 {
        let reason = format!(
            "{begin}..{end} is not within the {data_len} bytes of data; the file is truncated or damaged"
        );
        return Err(Error::field(field("data_offsets"), reason));
    }
    if end - begin != bytes as u64 {
        let reason = format!("{begin}..{end} is {} bytes but {dtype} {shape:?} is {bytes}", end - begin);
        return Err(Error::field(field("data_offsets"), reason));
    }
    let range = data_offset + begin as usize..data_offset + end as usize;
    Ok(TensorInfo { name, dtype, shape, range })
}
