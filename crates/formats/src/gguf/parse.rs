//! The GGUF parser. It trusts nothing: counts are held against the bytes that remain before anything is allocated, and
//! each error names the field.

use std::collections::HashSet;

use super::{
    Array, DEFAULT_ALIGNMENT, DEPTH_MAX, DIMS_MAX, Gguf, KEY_BYTES_MAX, Metadata, NAME_BYTES_MAX, TensorInfo,
    Value, align, metadata::TYPE_NAMES, tensor_bytes,
};
use crate::{DType, Error};

/// What a read can stumble over; the caller adds the field.
enum Fault {
    Short { at: usize, need: u64, have: usize },
    Long { at: usize, len: u64, max: usize },
    Utf8 { at: usize },
    Other(String),
}

impl Fault {
    fn reason(self) -> String {
        match self {
            Fault::Short { at, need, have } => format!(
                "needs {need} bytes at byte {at} but the file has {have} left; it is truncated or damaged, fetch it again"
            ),
            Fault::Long { at, len, max } => format!("length {len} at byte {at} is over the limit of {max}"),
            Fault::Utf8 { at } => format!("the text at byte {at} is not UTF-8"),
            Fault::Other(reason) => reason,
        }
    }

    fn field(self, field: impl Into<String>) -> Error {
        Error::field(field, self.reason())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, need: u64) -> Result<&'a [u8], Fault> {
        let short = Fault::Short { at: self.at, need, have: self.left() };
        let n = usize::try_from(need).ok().filter(|n| *n <= self.left()).ok_or(short)?;
        let part = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (part, _) = self.take(N as u64)?.split_first_chunk().expect("take gave N bytes");
        Ok(*part)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each, so it can be allocated for.
    fn count(&mut self, min_bytes: u64) -> Result<usize, Fault> {
        let n = self.u64()?;
        match n.checked_mul(min_bytes) {
            Some(need) if need <= self.left() as u64 => Ok(n as usize),
            need => Err(Fault::Short { at: self.at, need: need.unwrap_or(u64::MAX), have: self.left() }),
        }
    }

    fn str(&mut self, max: usize) -> Result<&'a str, Fault> {
        let at = self.at;
        let len = self.u64()?;
        if len > max as u64 {
            return Err(Fault::Long { at, len, max });
        }
        std::str::from_utf8(self.take(len)?).map_err(|_| Fault::Utf8 { at: at + 8 })
    }

    fn string(&mut self) -> Result<String, Fault> {
        self.str(usize::MAX).map(str::to_owned)
    }

    fn bool(&mut self) -> Result<bool, Fault> {
        bool_of(self.array::<1>()?[0])
    }

    fn numbers<const N: usize, T>(&mut self, from: fn([u8; N]) -> T) -> Result<Vec<T>, Fault> {
        let n = self.count(N as u64)?;
        let part = self.take((n * N) as u64)?;
        Ok(part.as_chunks::<N>().0.iter().map(|c| from(*c)).collect())
    }

    fn value(&mut self) -> Result<Value, Fault> {
        let id = self.u32()?;
        Ok(match id {
            0 => Value::U8(self.array::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.typed_array(1)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            _ => return Err(unknown_value(id)),
        })
    }

    fn typed_array(&mut self, depth: usize) -> Result<Array, Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::Other(format!("arrays are nested deeper than {DEPTH_MAX}")));
        }
        let id = self.u32()?;
        let element = |i: usize, n: usize| {
            move |fault: Fault| Fault::Other(format!("element {i} of {n}: {}", fault.reason()))
        };
        Ok(match id {
            0 => {
                let n = self.count(1)?;
                Array::U8(self.take(n as u64)?.to_vec())
            }
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => {
                let n = self.count(1)?;
                let part = self.take(n as u64)?;
                let bools = part.iter().enumerate().map(|(i, b)| bool_of(*b).map_err(element(i, n)));
                Array::Bool(bools.collect::<Result<_, _>>()?)
            }
            8 => {
                let n = self.count(8)?;
                Array::String((0..n).map(|i| self.string().map_err(element(i, n))).collect::<Result<_, _>>()?)
            }
            9 => {
                let n = self.count(12)?;
                let mut arrays = Vec::with_capacity(n);
                for i in 0..n {
                    arrays.push(self.typed_array(depth + 1).map_err(element(i, n))?);
                }
                Array::Array(arrays)
            }
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            _ => return Err(unknown_value(id)),
        })
    }
}

fn unknown_value(id: u32) -> Fault {
    Fault::Other(format!("value type {id} is not known (0 {} to 12 {} are)", TYPE_NAMES[0], TYPE_NAMES[12]))
}

fn bool_of(byte: u8) -> Result<bool, Fault> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        b => Err(Fault::Other(format!("a boolean is {b}, not 0 or 1"))),
    }
}

fn version(r: &mut Reader<'_>) -> Result<u32, Error> {
    let magic = r.array::<4>().map_err(|f| f.field("magic"))?;
    match &magic {
        b"GGUF" => {}
        b"GGML" | b"ggml" | b"lmgg" | b"fmgg" | b"tjgg" => {
            return Err(Error::field("magic", "a GGML file from before GGUF; convert it or fetch the GGUF"));
        }
        m => {
            return Err(Error::field(
                "magic",
                format!("not a GGUF file: it begins with \"{}\"", m.escape_ascii()),
            ));
        }
    }
    let version = r.u32().map_err(|f| f.field("version"))?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(Error::field("version", "GGUF version 1 is too old; convert the file to version 3")),
        v if v & 0xffff == 0 && v != 0 => {
            Err(Error::field("version", "a big-endian GGUF file; fetch or convert to the little-endian one"))
        }
        v => Err(Error::field("version", format!("GGUF version {v} is not known; 2 and 3 are"))),
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Gguf, Error> {
    let mut r = Reader { bytes, at: 0 };
    let version = version(&mut r)?;
    // A tensor takes at least a name's length, one byte of name, dimensions, type and offset; a key likewise.
    let tensor_count = r.count(33).map_err(|f| f.field("tensor count"))?;
    let key_count = r.count(14).map_err(|f| f.field("metadata count"))?;

    let mut metadata = Metadata::new();
    for i in 0..key_count {
        let key =
            r.str(KEY_BYTES_MAX).map_err(|f| f.field(format!("metadata key {} of {key_count}", i + 1)))?;
        let value = r.value().map_err(|f| f.field(format!("metadata {key:?}")))?;
        if key.is_empty() {
            return Err(Error::field(format!("metadata key {} of {key_count}", i + 1), "it is empty"));
        }
        if metadata.insert(key, value).is_some() {
            return Err(Error::field(format!("metadata {key:?}"), "the key is there twice"));
        }
    }
    let alignment = alignment(&metadata)?;

    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(tensor_count);
    for i in 0..tensor_count {
        let info = tensor(&mut r, i, tensor_count)?;
        if !names.insert(info.name.clone()) {
            return Err(Error::field(format!("tensor {:?}", info.name), "the name is there twice"));
        }
        tensors.push(info);
    }
    let data_offset = align(r.at as u64, alignment)
        .ok_or_else(|| Error::field("general.alignment", format!("{alignment} leaves no room for data")))?;
    check_ranges(&tensors, alignment, data_offset, bytes.len() as u64)?;
    Ok(Gguf { version, metadata, tensors, alignment, data_offset })
}

fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value {
        Value::U32(n) if n.is_power_of_two() => Ok((*n).into()),
        Value::U32(n) => {
            Err(Error::field("metadata \"general.alignment\"", format!("{n} is not a power of two")))
        }
        v => Err(Error::field("metadata \"general.alignment\"", format!("is {}, not u32", v.type_name()))),
    }
}

fn tensor(r: &mut Reader<'_>, i: usize, count: usize) -> Result<TensorInfo, Error> {
    let name = r.str(NAME_BYTES_MAX).map_err(|f| f.field(format!("name of tensor {} of {count}", i + 1)))?;
    let field = |part: &str| format!("tensor {name:?}, {part}");
    if name.is_empty() {
        return Err(Error::field(format!("name of tensor {} of {count}", i + 1), "it is empty"));
    }
    let dims = r.u32().map_err(|f| f.field(field("dimension count")))? as usize;
    if dims == 0 || dims > DIMS_MAX {
        return Err(Error::field(
            field("dimension count"),
            format!("{dims} dimensions; 1 to {DIMS_MAX} are allowed"),
        ));
    }
    let mut shape = Vec::with_capacity(dims);
    for _ in 0..dims {
        shape.push(r.u64().map_err(|f| f.field(field("dimensions")))?);
    }
    shape.reverse();
    let id = r.u32().map_err(|f| f.field(field("type")))?;
    let dtype = DType::from_ggml(id).ok_or_else(|| Error::field(field("type"), unknown_dtype(id)))?;
    let offset = r.u64().map_err(|f| f.field(field("offset")))?;
    let bytes = tensor_bytes(dtype, &shape).map_err(|reason| Error::field(field("dimensions"), reason))?;
    Ok(TensorInfo { name: name.to_owned(), dtype, shape, offset, bytes })
}

fn unknown_dtype(id: u32) -> String {
    match id {
        4 | 5 => format!("type {id} (Q4_{}) was withdrawn from ggml; fetch a newer file", id - 2),
        31..=33 => format!("type {id} (Q4_0 repacked for ARM) was withdrawn from ggml; fetch the Q4_0 file"),
        36..=38 => {
            format!("type {id} (IQ4_NL repacked for ARM) was withdrawn from ggml; fetch the IQ4_NL file")
        }
        _ => format!("type {id} is not known to this version"),
    }
}

/// Every tensor aligned, inside the file, and on bytes of its own.
fn check_ranges(tensors: &[TensorInfo], alignment: u64, data_offset: u64, file: u64) -> Result<(), Error> {
    for t in tensors {
        let field = || format!("tensor {:?}, offset", t.name);
        if !t.offset.is_multiple_of(alignment) {
            return Err(Error::field(
                field(),
                format!("{} is not a multiple of the alignment, {alignment}", t.offset),
            ));
        }
        let end = data_offset.checked_add(t.offset).and_then(|start| start.checked_add(t.bytes));
        match end {
            Some(end) if end <= file => {}
            Some(end) => {
                let reason = format!(
                    "{} bytes at {} end at byte {end} but the file has {file}; it is truncated or damaged, fetch it again",
                    t.bytes, t.offset
                );
                return Err(Error::field(field(), reason));
            }
            None => return Err(Error::field(field(), format!("{} overflows", t.offset))),
        }
    }
    let mut sorted: Vec<&TensorInfo> = tensors.iter().collect();
    sorted.sort_by_key(|t| t.offset);
    for pair in sorted.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            let reason = format!("{} lies inside tensor {:?}", pair[1].offset, pair[0].name);
            return Err(Error::field(format!("tensor {:?}, offset", pair[1].name), reason));
        }
    }
    Ok(())
}
