//! Python's methods on strings, dicts and lists, as templates call them: those of `minijinja-contrib`, with a bound on
//! what they may build, and the ones that it lacks or that differ from Python.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Longest text that a method may build.
const MAX_BYTES: usize = 16 << 20;

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Python's `str.isspace` for one character.
fn space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn bounded(bytes: Option<usize>) -> Result<(), Error> {
    match bytes {
        Some(n) if n <= MAX_BYTES => Ok(()),
        _ => Err(Error::from(ErrorKind::OutOfFuel)),
    }
}

/// The `trim` filter.
pub(super) fn trim(value: &Value, chars: Option<String>) -> String {
    let text = value.to_string();
    strip(&text, chars.as_deref(), true, true).to_string()
}

fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let wanted = |c: char| chars.map_or_else(|| space(c), |set| set.contains(c));
    let text = if left { text.trim_start_matches(wanted) } else { text };
    if right { text.trim_end_matches(wanted) } else { text }
}

/// Called for a method that a value does not have of itself.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => string(state, value, method, args),
        ValueKind::Seq => match method {
            "index" => {
                let (what,): (&Value,) = from_args(args)?;
                let at = value.try_iter()?.position(|v| v == *what);
                at.map(Value::from).ok_or_else(|| invalid("list.index: the value is not in the list"))
            }
            "copy" => {
                let () = from_args(args)?;
                Ok(value.clone())
            }
            "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse" => {
                Err(invalid(format!("list.{method} is not allowed in a template: values cannot be changed")))
            }
            _ => unknown_method_callback(state, value, method, args),
        },
        ValueKind::Map => match method {
            "copy" => {
                let () = from_args(args)?;
                Ok(value.clone())
            }
            "update" | "setdefault" | "pop" | "popitem" | "clear" => {
                Err(invalid(format!("dict.{method} is not allowed in a template: values cannot be changed")))
            }
            _ => unknown_method_callback(state, value, method, args),
        },
        _ => unknown_method_callback(state, value, method, args),
    }
}

fn string(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let text = value.as_str().unwrap_or_default();
    state.consume_fuel(text.len() as u64 / 64)?;
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Ok(Value::from(strip(text, chars, method != "rstrip", method != "lstrip")))
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            let most = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let found = text.matches(old).take(most).count();
            bounded(found.checked_mul(new.len()).and_then(|n| n.checked_add(text.len())))?;
            Ok(Value::from(text.replacen(old, new, most)))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut out = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let item = item.as_str().map(str::to_string).ok_or_else(|| {
                    invalid(format!("str.join: item {i} is of type {}, not a string", item.kind()))
                })?;
                bounded(out.len().checked_add(text.len() + item.len()))?;
                if i > 0 {
                    out.push_str(text);
                }
                out.push_str(&item);
            }
            Ok(Value::from(out))
        }
        "format" => {
            // Widths and repeated fields can multiply what is there.
            let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            let fields = text.matches('{').count();
            let largest = args.iter().map(|a| a.to_string().len()).max().unwrap_or(0);
            if digits > 4 {
                return Err(invalid("str.format: a width of more than 9999"));
            }
            bounded(largest.max(9999).checked_mul(fields).and_then(|n| n.checked_add(text.len())))?;
            unknown_method_callback(state, value, method, args)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(what) } else { text.rfind(what) };
            let at = at.ok_or_else(|| invalid(format!("str.{method}: the text is not there")))?;
            Ok(Value::from(text[..at].chars().count()))
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            if sep.is_empty() {
                return Err(invalid(format!("str.{method}: the separator is empty")));
            }
            let parts = match (method, text.split_once(sep), text.rsplit_once(sep)) {
                ("partition", Some((a, b)), _) | ("rpartition", _, Some((a, b))) => [a, sep, b],
                ("partition", ..) => [text, "", ""],
                _ => ["", "", text],
            };
            Ok(Value::from(Tuple::from(parts.map(Value::from))))
        }
        "rsplit" => {
            let (sep, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX).saturating_add(1);
            let mut parts: Vec<Value> = match sep {
                Some("") => return Err(invalid("str.rsplit: the separator is empty")),
                Some(sep) => text.rsplitn(most, sep).map(Value::from).collect(),
                None => rsplit_spaces(text, most).into_iter().map(Value::from).collect(),
            };
            parts.reverse();
            Ok(Value::from(parts))
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            Ok(Value::from(split_lines(text, keep.unwrap_or(false))))
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// `rsplit()` without a separator: at most `most` parts, last first.
fn rsplit_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(space);
    while !rest.is_empty() {
        match rest.rfind(space) {
            Some(at) if parts.len() + 1 < most => {
                let word = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                parts.push(&rest[word..]);
                rest = rest[..at].trim_end_matches(space);
            }
            _ => {
                parts.push(rest.trim_start_matches(space));
                break;
            }
        }
    }
    parts
}

fn split_lines(text: &str, keep: bool) -> Vec<Value> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, end) = match rest.find(ends) {
            None => (rest.len(), rest.len()),
            Some(at) if rest[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + rest[at..].chars().next().map_or(0, char::len_utf8)),
        };
        lines.push(Value::from(&rest[..if keep { end } else { line }]));
        rest = &rest[end..];
    }
    lines
}
