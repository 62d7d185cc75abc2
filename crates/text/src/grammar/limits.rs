//! Limits for specifications from strangers, checked before anything is compiled, and those that the compiler works under.

use llguidance::api::ParserLimits;
use serde_json::Value;

use super::GrammarSpec;

/// Deepest nesting of a schema; each level costs the compiler stack.
const SCHEMA_DEPTH_MAX: usize = 64;
/// Most values in a schema: objects, arrays, strings, numbers.
const SCHEMA_VALUES_MAX: usize = 50_000;
/// Most bytes of all strings of a schema.
const SCHEMA_BYTES_MAX: usize = 1 << 20;
/// Most different references in a schema; a chain of them is as deep as it is long.
const SCHEMA_REFS_MAX: usize = 2_000;
/// Longest regular expression, alone or in a schema, in bytes.
const REGEX_BYTES_MAX: usize = 16 << 10;
/// Largest Lark grammar in bytes.
const LARK_BYTES_MAX: usize = 256 << 10;

/// What the compiler and the parser may spend. A step is a token, for which others wait: ambiguous grammars, whose cost
/// grows with the square of their items, get a fifth of llguidance's figure, and lexers half. States of a lexer take 1 to 2
/// kB each for as long as the request lives.
pub(super) fn parser() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 50_000,
        step_max_items: 10_000,
        step_lexer_fuel: 100_000,
        ..ParserLimits::default()
    }
}

/// Checks a specification's size.
pub(super) fn check(spec: &GrammarSpec) -> Result<(), String> {
    match spec {
        GrammarSpec::JsonObject => Ok(()),
        GrammarSpec::JsonSchema(schema) => Walk::default().check(schema),
        GrammarSpec::Regex(regex) => bytes(regex, REGEX_BYTES_MAX),
        GrammarSpec::Lark(lark) => bytes(lark, LARK_BYTES_MAX),
    }
}

fn bytes(text: &str, most: usize) -> Result<(), String> {
    if text.len() > most {
        return Err(format!("it has {} bytes (at most {most})", text.len()));
    }
    Ok(())
}

/// A walk over a schema with a stack of its own: the schema may be of any depth.
#[derive(Default)]
struct Walk<'a> {
    values: usize,
    bytes: usize,
    refs: std::collections::HashSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn check(mut self, schema: &'a Value) -> Result<(), String> {
        match schema {
            Value::Object(o) if o.contains_key("x-guidance") => {
                return Err("`x-guidance` is not part of JSON Schema and cannot be set here".into());
            }
            Value::Object(_) | Value::Bool(true) => {}
            Value::Bool(false) => return Err("`false` accepts nothing".into()),
            _ => return Err("it must be an object or `true`".into()),
        }
        let mut open = vec![(schema, 1)];
        while let Some((value, depth)) = open.pop() {
            if depth > SCHEMA_DEPTH_MAX {
                return Err(format!("it is nested more than {SCHEMA_DEPTH_MAX} levels deep"));
            }
            match value {
                Value::Array(values) => open.extend(values.iter().map(|v| (v, depth + 1))),
                Value::Object(map) => {
                    for (key, value) in map {
                        self.count(key)?;
                        self.special(key, value)?;
                        open.push((value, depth + 1));
                    }
                }
                Value::String(text) => self.count(text)?,
                Value::Null | Value::Bool(_) | Value::Number(_) => self.count("")?,
            }
        }
        Ok(())
    }

    /// What is no plain value: references and regular expressions.
    fn special(&mut self, key: &'a str, value: &'a Value) -> Result<(), String> {
        match (key, value) {
            ("$ref", Value::String(to)) => {
                if !to.starts_with('#') {
                    let to: String = to.chars().take(80).collect();
                    return Err(format!(
                        "`$ref` to {to:?}: only references within the schema (#/..) are followed"
                    ));
                }
                self.refs.insert(to);
                if self.refs.len() > SCHEMA_REFS_MAX {
                    return Err(format!("it has more than {SCHEMA_REFS_MAX} different `$ref`s"));
                }
            }
            ("pattern", Value::String(regex)) => {
                bytes(regex, REGEX_BYTES_MAX).map_err(|e| format!("`pattern`: {e}"))?;
            }
            ("patternProperties", Value::Object(map)) => {
                for regex in map.keys() {
                    bytes(regex, REGEX_BYTES_MAX).map_err(|e| format!("`patternProperties`: {e}"))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, text: &str) -> Result<(), String> {
        self.values += 1;
        self.bytes += text.len();
        if self.values > SCHEMA_VALUES_MAX {
            return Err(format!("it has more than {SCHEMA_VALUES_MAX} keys and values"));
        }
        if self.bytes > SCHEMA_BYTES_MAX {
            return Err(format!("its text is longer than {SCHEMA_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}
