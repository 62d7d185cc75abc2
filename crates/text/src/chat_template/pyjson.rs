//! The `tojson` filter: Python's `json.dumps(x, ensure_ascii=False, indent, separators, sort_keys)`, byte for byte.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting, as deep as Python's default recursion limit allows in practice.
const MAX_DEPTH: usize = 100;
/// Longest JSON text.
const MAX_BYTES: usize = 16 << 20;

struct Writer {
    out: String,
    ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", what.into()))
}

/// `x | tojson(ensure_ascii, indent, separators, sort_keys)`, in transformers' order of arguments.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    args: Rest<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let arg = |i: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match args.get(i) {
            Some(v) => Some(v.clone()),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    if args.len() > 4 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let ascii = arg(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = match arg(1, "indent")? {
        None => None,
        Some(v) => match (v.as_str(), i64::try_from(v.clone())) {
            (Some(text), _) if text.len() <= 100 => Some(text.to_string()),
            (None, Ok(n)) if n <= 100 => Some(" ".repeat(n.max(0) as usize)),
            _ => return Err(invalid("indent is not a small number or text")),
        },
    };
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
    if let Some(separators) = arg(2, "separators")? {
        let mut both = separators.try_iter()?.map(|v| v.as_str().map(str::to_string));
        match (both.next().flatten(), both.next().flatten(), both.next()) {
            (Some(i), Some(k), None) => (item, key) = (i, k),
            _ => return Err(invalid("separators is not a pair of texts")),
        }
    }
    let sort_keys = arg(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let mut writer = Writer { out: String::new(), ascii, sort_keys, indent, item, key };
    writer.value(value, 0)?;
    state.consume_fuel(writer.out.len() as u64 / 16)?;
    Ok(writer.out)
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("nested more than {MAX_DEPTH} deep")));
        }
        if self.out.len() > MAX_BYTES {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => {
                let n = f64::try_from(value.clone())?;
                self.out.push_str(&float(n));
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let object = value.as_object().ok_or_else(|| invalid("a map without entries"))?;
                let mut entries = Vec::new();
                for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                    entries.push((key_text(&key)?, value));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list('{', '}', entries.len(), depth, |w, i| {
                    w.string(&entries[i].0);
                    w.out.push_str(&w.key.clone());
                    w.value(&entries[i].1, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', items.len(), depth, |w, i| w.value(&items[i], depth + 1))?;
            }
            ValueKind::Undefined => return Err(invalid("the value is undefined")),
            other => return Err(invalid(format!("a value of type {other} has no JSON form"))),
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        len: usize,
        depth: usize,
        mut write: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for i in 0..len {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.newline(depth + 1);
            write(self, i)?;
        }
        if len > 0 {
            self.newline(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn newline(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        let escape = |out: &mut String, unit: u16| out.push_str(&format!("\\u{unit:04x}"));
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 => escape(&mut self.out, c as u16),
                c if self.ascii && c as u32 >= 0x7f => {
                    c.encode_utf16(&mut [0; 2]).iter().for_each(|&unit| escape(&mut self.out, unit));
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number if key.is_integer() => key.to_string(),
        ValueKind::Number => float(f64::try_from(key.clone())?),
        other => return Err(invalid(format!("a key of type {other}"))),
    })
}

/// Python's `repr` of a float, with JSON's names for what is no number.
pub(super) fn float(n: f64) -> String {
    if n.is_nan() {
        return "NaN".into();
    }
    if n.is_infinite() {
        return if n > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{n:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if n != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = n.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (n, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float(n), text);
        }
    }
}
