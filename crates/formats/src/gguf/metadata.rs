//! GGUF metadata: values, typed arrays, and the ordered table of unique keys with getters that widen number types.

use std::{borrow::Cow, collections::HashMap};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of values of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are the types")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Evaluates `$body` with `$v` bound to the vector, whatever its type.
macro_rules! each_array {
    ($array:expr, $v:ident => $body:expr) => {
        match $array {
            Array::U8($v) => $body,
            Array::I8($v) => $body,
            Array::U16($v) => $body,
            Array::I16($v) => $body,
            Array::U32($v) => $body,
            Array::I32($v) => $body,
            Array::F32($v) => $body,
            Array::Bool($v) => $body,
            Array::String($v) => $body,
            Array::Array($v) => $body,
            Array::U64($v) => $body,
            Array::I64($v) => $body,
            Array::F64($v) => $body,
        }
    };
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        each_array!(self, v => v.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type's number in a file.
    pub(crate) fn element_id(&self) -> u32 {
        match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => 7,
            Array::String(_) => 8,
            Array::Array(_) => 9,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        }
    }

    /// Element `i`.
    pub fn get(&self, i: usize) -> Option<Value> {
        Some(match self {
            Array::U8(v) => Value::U8(*v.get(i)?),
            Array::I8(v) => Value::I8(*v.get(i)?),
            Array::U16(v) => Value::U16(*v.get(i)?),
            Array::I16(v) => Value::I16(*v.get(i)?),
            Array::U32(v) => Value::U32(*v.get(i)?),
            Array::I32(v) => Value::I32(*v.get(i)?),
            Array::F32(v) => Value::F32(*v.get(i)?),
            Array::Bool(v) => Value::Bool(*v.get(i)?),
            Array::String(v) => Value::String(v.get(i)?.clone()),
            Array::Array(v) => Value::Array(v.get(i)?.clone()),
            Array::U64(v) => Value::U64(*v.get(i)?),
            Array::I64(v) => Value::I64(*v.get(i)?),
            Array::F64(v) => Value::F64(*v.get(i)?),
        })
    }
}

impl Value {
    /// The type's name: `u32`, `string`, `array of f32`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(a) => format!("array of {}", TYPE_NAMES[a.element_id() as usize]),
            v => TYPE_NAMES[v.id() as usize].to_owned(),
        }
    }

    /// The type's number in a file.
    pub(crate) fn id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::String(_) => 8,
            Value::Array(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// The integer, of whatever type it is stored in.
    pub fn as_int(&self) -> Option<i128> {
        Some(match self {
            Value::U8(v) => (*v).into(),
            Value::I8(v) => (*v).into(),
            Value::U16(v) => (*v).into(),
            Value::I16(v) => (*v).into(),
            Value::U32(v) => (*v).into(),
            Value::I32(v) => (*v).into(),
            Value::U64(v) => (*v).into(),
            Value::I64(v) => (*v).into(),
            _ => return None,
        })
    }
}

/// Names of the value types in the order of their numbers.
pub(crate) const TYPE_NAMES: [&str; 13] =
    ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];

/// Keys and values in the order of the file; keys are unique. The typed getters answer `None` where the key is missing or
/// holds another type; integers of every width are read as any integer type that holds the value.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|i| &self.entries[*i].1)
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Sets a key and gives back the value that it had. A new key goes to the end.
    pub fn insert(&mut self, key: impl Into<String>, value: Value) -> Option<Value> {
        let key = key.into();
        if let Some(i) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[*i].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn int<T: TryFrom<i128>>(&self, key: &str) -> Option<T> {
        T::try_from(self.get(key)?.as_int()?).ok()
    }

    /// A string.
    pub fn str(&self, key: &str) -> Option<&str> {
        let Value::String(s) = self.get(key)? else { return None };
        Some(s)
    }

    /// An integer from 0 to 2^32-1.
    pub fn u32(&self, key: &str) -> Option<u32> {
        self.int(key)
    }

    /// An integer from 0 to 2^64-1.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.int(key)
    }

    /// An integer that counts something here.
    pub fn usize(&self, key: &str) -> Option<usize> {
        self.int(key)
    }

    /// A number of any type, rounded to `f32`.
    pub fn f32(&self, key: &str) -> Option<f32> {
        match self.get(key)? {
            Value::F32(v) => Some(*v),
            Value::F64(v) => Some(*v as f32),
            v => v.as_int().map(|i| i as f32),
        }
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Option<bool> {
        let Value::Bool(b) = self.get(key)? else { return None };
        Some(*b)
    }

    fn array(&self, key: &str) -> Option<&Array> {
        let Value::Array(a) = self.get(key)? else { return None };
        Some(a)
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Option<&[String]> {
        let Array::String(v) = self.array(key)? else { return None };
        Some(v)
    }

    /// An array of booleans.
    pub fn bools(&self, key: &str) -> Option<&[bool]> {
        let Array::Bool(v) = self.array(key)? else { return None };
        Some(v)
    }

    /// An array of `f32`; `f64` is rounded.
    pub fn f32s(&self, key: &str) -> Option<Cow<'_, [f32]>> {
        match self.array(key)? {
            Array::F32(v) => Some(v.into()),
            Array::F64(v) => Some(v.iter().map(|x| *x as f32).collect()),
            _ => None,
        }
    }

    /// An array of integers that all fit `i32`, of whatever type they are stored in.
    pub fn i32s(&self, key: &str) -> Option<Cow<'_, [i32]>> {
        fn narrow<T: Copy + TryInto<i32>>(v: &[T]) -> Option<Cow<'static, [i32]>> {
            v.iter().map(|x| (*x).try_into().ok()).collect()
        }
        match self.array(key)? {
            Array::I32(v) => Some(v.into()),
            Array::U8(v) => narrow(v),
            Array::I8(v) => narrow(v),
            Array::U16(v) => narrow(v),
            Array::I16(v) => narrow(v),
            Array::U32(v) => narrow(v),
            Array::U64(v) => narrow(v),
            Array::I64(v) => narrow(v),
            _ => None,
        }
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<K: Into<String>> FromIterator<(K, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(iter: I) -> Self {
        let mut metadata = Metadata::new();
        for (k, v) in iter {
            metadata.insert(k, v);
        }
        metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_widen_and_narrow_only_where_the_value_fits() {
        let m: Metadata = [
            ("u8", Value::U8(7)),
            ("i32", Value::I32(-1)),
            ("u64", Value::U64(u64::MAX)),
            ("f64", Value::F64(0.5)),
            ("bool", Value::Bool(true)),
            ("ints", Value::Array(Array::U64(vec![1, 2]))),
            ("big", Value::Array(Array::U32(vec![u32::MAX]))),
        ]
        .into_iter()
        .collect();
        assert_eq!(
            (m.u32("u8"), m.u64("u8"), m.usize("u8"), m.f32("u8")),
            (Some(7), Some(7), Some(7), Some(7.0))
        );
        assert_eq!((m.u32("i32"), m.f32("i32")), (None, Some(-1.0)));
        assert_eq!((m.u32("u64"), m.u64("u64")), (None, Some(u64::MAX)));
        assert_eq!((m.f32("f64"), m.u32("f64"), m.u32("bool"), m.bool("u8")), (Some(0.5), None, None, None));
        assert_eq!(m.i32s("ints").as_deref(), Some(&[1, 2][..]));
        assert_eq!((m.i32s("big"), m.f32s("ints"), m.strings("ints")), (None, None, None));
        assert_eq!(m.get("ints").unwrap().type_name(), "array of u64");
    }

    #[test]
    fn a_key_set_again_keeps_its_place() {
        let mut m = Metadata::new();
        assert_eq!(m.insert("a", Value::U8(1)), None);
        m.insert("b", Value::U8(2));
        assert_eq!(m.insert("a", Value::U8(3)), Some(Value::U8(1)));
        assert_eq!(m.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(m.get("a"), Some(&Value::U8(3)));
    }
}
