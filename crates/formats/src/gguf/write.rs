//! The GGUF writer: version 3, tensors in the order given, each padded to the alignment as ggml and its Python package do.

use std::{collections::HashSet, io};

use super::{
    Array, DEFAULT_ALIGNMENT, DEPTH_MAX, KEY_BYTES_MAX, Metadata, NAME_BYTES_MAX, Value, align, tensor_bytes,
};
use crate::{DType, Error};

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewTensor<'a> {
    /// Unique name.
    pub name: &'a str,
    /// Element type; one that ggml has.
    pub dtype: DType,
    /// Row-major, outermost first.
    pub shape: &'a [u64],
    /// The data, exactly as long as type and shape say.
    pub data: &'a [u8],
}

/// Writes a whole file to `out`. The alignment is `general.alignment` if the metadata has it, else 32. Everything is checked
/// before the first byte goes out, so only an I/O error can leave a part behind.
pub fn write(out: &mut impl io::Write, metadata: &Metadata, tensors: &[NewTensor<'_>]) -> Result<(), Error> {
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(n)) if n.is_power_of_two() => (*n).into(),
        Some(_) => {
            return Err(Error::field("metadata \"general.alignment\"", "must be a u32 and a power of two"));
        }
    };
    let mut head = Vec::new();
    head.extend(b"GGUF");
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Error::field(
                format!("metadata {key:?}"),
                format!("a key has 1 to {KEY_BYTES_MAX} bytes"),
            ));
        }
        put_str(&mut head, key);
        head.extend(value.id().to_le_bytes());
        put_value(&mut head, value).map_err(|reason| Error::field(format!("metadata {key:?}"), reason))?;
    }
    let mut names = HashSet::new();
    let mut offset = 0u64;
    for t in tensors {
        let wrong = |reason: String| Error::field(format!("tensor {:?}", t.name), reason);
        if t.name.is_empty() || t.name.len() > NAME_BYTES_MAX || !names.insert(t.name) {
            return Err(wrong(format!("a name is unique and has 1 to {NAME_BYTES_MAX} bytes")));
        }
        let id =
            t.dtype.ggml_id().ok_or_else(|| wrong(format!("type {} does not exist in GGUF", t.dtype)))?;
        let bytes = tensor_bytes(t.dtype, t.shape).map_err(wrong)?;
        if bytes != t.data.len() as u64 {
            return Err(wrong(format!(
                "{} {:?} needs {bytes} bytes, {} were given",
                t.dtype,
                t.shape,
                t.data.len()
            )));
        }
        put_str(&mut head, t.name);
        head.extend((t.shape.len() as u32).to_le_bytes());
        for d in t.shape.iter().rev() {
            head.extend(d.to_le_bytes());
        }
        head.extend(id.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset = offset
            .checked_add(bytes)
            .and_then(|end| align(end, alignment))
            .ok_or_else(|| wrong("the file would be too large".to_owned()))?;
    }
    let write = |out: &mut dyn io::Write, bytes: &[u8]| {
        out.write_all(bytes).map_err(|error| Error::Io { path: "GGUF output".into(), action: "write", error })
    };
    write(out, &head)?;
    pad(head.len() as u64, alignment, |zeros| write(out, zeros))?;
    for t in tensors {
        write(out, t.data)?;
        pad(t.data.len() as u64, alignment, |zeros| write(out, zeros))?;
    }
    out.flush().map_err(|error| Error::Io { path: "GGUF output".into(), action: "write", error })
}

fn pad(len: u64, alignment: u64, mut write: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let mut left = (alignment - len % alignment) % alignment;
    while left > 0 {
        let n = left.min(4096);
        write(&[0; 4096][..n as usize])?;
        left -= n;
    }
    Ok(())
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) -> Result<(), String> {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => put_str(out, v),
        Value::Array(v) => put_array(out, v, 1)?,
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
    Ok(())
}

fn put_array(out: &mut Vec<u8>, array: &Array, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("arrays are nested deeper than {DEPTH_MAX}"));
    }
    out.extend(array.element_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|x| u8::from(*x))),
        Array::String(v) => v.iter().for_each(|s| put_str(out, s)),
        Array::Array(v) => {
            for a in v {
                put_array(out, a, depth + 1)?;
            }
        }
        Array::U64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
    }
    Ok(())
}
