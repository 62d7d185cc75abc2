//! Calls whose parameters are tags, one by one: the values become JSON by the tool's schema.

use serde_json::Value as Json;

use super::call::{Progress, Sink};
use super::python;

/// Longest name of a function or parameter.
const MAX_NAME: usize = 256;

/// How a family writes the tags.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tags {
    /// Before the function's name; empty where it comes at once.
    pub(super) open: &'static str,
    /// After the name. Empty: the name ends with its line or before the next tag.
    pub(super) open_end: &'static str,
    /// Before a parameter's name.
    pub(super) param: &'static str,
    /// After it.
    pub(super) param_end: &'static str,
    /// Before the value, where it has a tag of its own.
    pub(super) value: &'static str,
    /// After the value.
    pub(super) value_end: &'static str,
    /// After the last parameter.
    pub(super) close: &'static str,
}

/// Qwen3-Coder, Seed-OSS: `<function=f><parameter=p>value</parameter></function>`.
pub(super) const QWEN: Tags = Tags {
    open: "<function=",
    open_end: ">",
    param: "<parameter=",
    param_end: ">",
    value: "",
    value_end: "</parameter>",
    close: "</function>",
};
/// MiniMax M2: `<invoke name="f"><parameter name="p">value</parameter></invoke>`.
pub(super) const MINIMAX: Tags = Tags {
    open: "<invoke name=\"",
    open_end: "\">",
    param: "<parameter name=\"",
    param_end: "\">",
    value: "",
    value_end: "</parameter>",
    close: "</invoke>",
};
/// GLM 4.5 and later: `f`, then `<arg_key>p</arg_key><arg_value>value</arg_value>`, then `</tool_call>`.
pub(super) const GLM: Tags = Tags {
    open: "",
    open_end: "",
    param: "<arg_key>",
    param_end: "</arg_key>",
    value: "<arg_value>",
    value_end: "</arg_value>",
    close: "</tool_call>",
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Name,
    Between,
    Key,
    ValueTag,
    Value,
}

/// One call.
#[derive(Clone, Debug)]
pub(super) struct XmlCall {
    tags: &'static Tags,
    state: State,
    text: String,
    name: String,
    key: String,
    keys: Vec<String>,
}

impl XmlCall {
    /// Before the tag of the function, or (`inside`) behind it.
    pub(super) fn new(tags: &'static Tags, inside: bool) -> Self {
        let state = if inside || tags.open.is_empty() { State::Name } else { State::Open };
        Self { tags, state, text: String::new(), name: String::new(), key: String::new(), keys: Vec::new() }
    }

    /// Takes a character.
    pub(super) fn feed(&mut self, c: char, sink: &mut Sink<'_>) -> Progress {
        if matches!(self.state, State::Open | State::Between | State::ValueTag)
            && self.text.is_empty()
            && c.is_whitespace()
        {
            return Progress::More;
        }
        self.text.push(c);
        if self.state != State::Value && self.text.len() > MAX_NAME {
            return Progress::Fail;
        }
        match self.state {
            State::Open => match tag(&self.text, self.tags.open) {
                Some(true) => self.go(State::Name),
                Some(false) => Progress::More,
                None => Progress::Fail,
            },
            State::Name => self.name(c, sink),
            State::Between => match (tag(&self.text, self.tags.param), tag(&self.text, self.tags.close)) {
                (Some(true), _) => self.go(State::Key),
                (_, Some(true)) => {
                    sink.arguments_text(if self.keys.is_empty() { "{}" } else { "}" });
                    sink.end();
                    Progress::Done
                }
                (None, None) => Progress::Fail,
                _ => Progress::More,
            },
            State::Key => {
                let Some(key) = self.text.strip_suffix(self.tags.param_end) else { return Progress::More };
                self.key = key.trim().into();
                if self.key.is_empty() || self.keys.contains(&self.key) {
                    return Progress::Fail;
                }
                self.go(if self.tags.value.is_empty() { State::Value } else { State::ValueTag })
            }
            State::ValueTag => match tag(&self.text, self.tags.value) {
                Some(true) => self.go(State::Value),
                Some(false) => Progress::More,
                None => Progress::Fail,
            },
            State::Value => {
                if let Some(value) = self.text.strip_suffix(self.tags.value_end) {
                    let value = value.strip_prefix('\n').unwrap_or(value);
                    let value = value.strip_suffix('\n').unwrap_or(value);
                    let types = sink.tool(&self.name).map(|t| t.types_of(&self.key)).unwrap_or_default();
                    let value = to_json(value, &types);
                    let open = if self.keys.is_empty() { "{" } else { ", " };
                    sink.arguments_text(&format!("{open}{}: {value}", Json::from(self.key.as_str())));
                    self.keys.push(std::mem::take(&mut self.key));
                    return self.go(State::Between);
                }
                Progress::More
            }
        }
    }

    fn go(&mut self, state: State) -> Progress {
        self.text.clear();
        self.state = state;
        Progress::More
    }

    fn name(&mut self, c: char, sink: &mut Sink<'_>) -> Progress {
        let bare = self.tags.open_end.is_empty();
        let name = if bare {
            self.text.strip_suffix(['\n', '<']).filter(|name| !name.trim().is_empty())
        } else {
            self.text.strip_suffix(self.tags.open_end)
        };
        let Some(name) = name else {
            // A bare name is one word: anything else is text, and need not wait for the limit.
            let odd =
                bare && !c.is_whitespace() && !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '.');
            return if odd { Progress::Fail } else { Progress::More };
        };
        self.name = name.trim().into();
        if !sink.begin(&self.name) {
            return Progress::Fail;
        }
        self.go(State::Between);
        if bare && c == '<' {
            self.text.push(c);
        }
        Progress::More
    }
}

/// Whether the text is this tag (true), its beginning (false), or neither.
fn tag(text: &str, tag: &str) -> Option<bool> {
    tag.starts_with(text).then_some(text.len() == tag.len())
}

/// A value in a tag as JSON: a text where the schema allows one, else what it reads as.
fn to_json(value: &str, types: &[&str]) -> String {
    let trimmed = value.trim();
    if types.contains(&"string") {
        let null = types.contains(&"null") && matches!(trimmed, "null" | "None");
        return if null { "null".into() } else { Json::from(value).to_string() };
    }
    match serde_json::from_str::<Json>(trimmed) {
        Ok(Json::String(_)) if types.is_empty() => {}
        Ok(_) => return trimmed.into(),
        Err(_) => {}
    }
    match python::literal(trimmed) {
        Some(Json::String(_)) | None => Json::from(value).to_string(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_the_schema() {
        let cases: &[(&str, &[&str], &str)] = &[
            ("3", &["string"], "\"3\""),
            ("3", &["integer"], "3"),
            ("3", &[], "3"),
            ("a \"b\"\nc", &["string"], r#""a \"b\"\nc""#),
            ("true", &["boolean"], "true"),
            ("True", &["boolean"], "true"),
            ("None", &["string", "null"], "null"),
            ("[1, 2]", &["array"], "[1, 2]"),
            ("{'a': [True, None]}", &["object"], r#"{"a":[true,null]}"#),
            ("not a number", &["number"], "\"not a number\""),
            ("\"quoted\"", &[], r#""\"quoted\"""#),
            ("", &["string"], "\"\""),
        ];
        for (value, types, json) in cases {
            assert_eq!(to_json(value, types), *json, "{value} {types:?}");
        }
    }
}
