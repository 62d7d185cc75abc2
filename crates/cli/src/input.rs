//! Text and JSON that a person gives: from a flag, a file, or a pipe.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::failure::Usage;

/// Largest text that is read, in bytes.
const TEXT_BYTES_MAX: u64 = 64 << 20;

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn name(path: &Path) -> String {
    if is_stdin(path) { "stdin".into() } else { path.display().to_string() }
}

/// A whole file, or stdin for `-`, as UTF-8.
pub(crate) fn text_file(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read = |from: &mut dyn Read, bytes: &mut Vec<u8>| from.take(TEXT_BYTES_MAX + 1).read_to_end(bytes);
    match is_stdin(path) {
        true => read(&mut io::stdin().lock(), &mut bytes),
        false => fs::File::open(path).and_then(|mut f| read(&mut f, &mut bytes)),
    }
    .with_context(|| format!("cannot read {}", name(path)))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        bail!("{} is longer than {} MiB; cut it into parts", name(path), TEXT_BYTES_MAX >> 20);
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
        anyhow!(
            "{} is not UTF-8 text: byte {:#04x} at offset {at}, line {line}; convert it, for example with iconv",
            name(path),
            e.as_bytes()[at]
        )
    })
}

/// The prompt of `run`: words or a flag, then a file after a blank line; without all of them a pipe.
pub(crate) fn prompt(given: Option<String>, file: Option<&Path>) -> Result<String> {
    let file = match (file, &given) {
        (Some(path), _) => Some(text_file(path)?),
        (None, None) if !io::stdin().is_terminal() => Some(text_file(Path::new("-"))?),
        _ => None,
    };
    let file =
        file.map(|t| t.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t).to_owned()).unwrap_or(t));
    match (given, file) {
        (Some(given), Some(file)) => Ok(format!("{given}\n\n{file}")),
        (Some(text), None) => Ok(text),
        (None, Some(text)) if !text.trim().is_empty() => Ok(text),
        _ => Err(no_text("prompt")),
    }
}

/// A text that must not change: from a flag, a file or a pipe, every byte of it.
pub(crate) fn exact(given: Option<String>, file: Option<&Path>, what: &str) -> Result<String> {
    match (given, file) {
        (Some(text), _) => Ok(text),
        (None, Some(path)) => text_file(path),
        (None, None) if !io::stdin().is_terminal() => text_file(Path::new("-")),
        (None, None) => Err(no_text(what)),
    }
}

fn no_text(what: &str) -> anyhow::Error {
    Usage(format!("there is no {what}: give it as an argument, with --file, or through a pipe")).into()
}

/// A JSON file.
pub(crate) fn json(path: &Path) -> Result<Value> {
    serde_json::from_str(&text_file(path)?).with_context(|| format!("{} is not JSON", name(path)))
}

/// A JSON list, also where it is the member `key` of an object.
pub(crate) fn json_list(path: &Path, key: &str) -> Result<Value> {
    let value = match json(path)? {
        Value::Object(mut o) => o.remove(key).unwrap_or(Value::Null),
        value => value,
    };
    if !value.is_array() {
        bail!("{}: a JSON list of {key} is needed, or an object with one", name(path));
    }
    Ok(value)
}
