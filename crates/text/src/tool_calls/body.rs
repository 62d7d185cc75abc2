//! The inside of a call, by the way it is written.

use super::call::{Progress, Sink};
use super::json::{Feed, JsonCalls, Scanner};
use super::python;
use super::xml::{Tags, XmlCall};

/// Longest text between the mark of a call and its arguments.
pub(super) const MAX_HEADER: usize = 256;
/// Longest call in Python.
const MAX_PYTHON: usize = 256 << 10;

/// How a call is written behind its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Objects, one by one or in a list.
    Json,
    /// A header with the name, then the arguments' object.
    Header(Header),
    /// Tags; `true`: the mark was the tag of the function.
    Xml(&'static Tags, bool),
    /// Python up to one of these.
    Python(&'static [&'static str]),
    /// Llama's `<|python_tag|>`: an object, or Python up to the end.
    LlamaTag,
    /// Mistral's: a list, or a header.
    Mistral,
}

/// Who writes the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    Mistral,
    DeepSeek,
    Kimi,
    Functionary,
}

/// A call being read.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Undecided(Kind),
    Json(JsonCalls),
    Header { style: Header, text: String },
    Arguments(Scanner),
    Xml(XmlCall),
    Python { ends: &'static [&'static str], text: String },
}

impl Body {
    pub(super) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Json => Self::Json(JsonCalls::new()),
            Kind::Header(style) => Self::Header { style, text: String::new() },
            Kind::Xml(tags, inside) => Self::Xml(XmlCall::new(tags, inside)),
            Kind::Python(ends) => Self::Python { ends, text: String::new() },
            Kind::LlamaTag | Kind::Mistral => Self::Undecided(kind),
        }
    }

    /// Takes a character.
    pub(super) fn feed(&mut self, c: char, sink: &mut Sink<'_>) -> Progress {
        match self {
            Self::Undecided(_) if c.is_whitespace() => Progress::More,
            Self::Undecided(kind) => {
                *self = match (c, kind) {
                    ('{' | '[', Kind::LlamaTag) | ('[', _) => Self::new(Kind::Json),
                    (_, Kind::LlamaTag) => Self::new(Kind::Python(&["<|eom_id|>", "<|eot_id|>"])),
                    _ => Self::new(Kind::Header(Header::Mistral)),
                };
                self.feed(c, sink)
            }
            Self::Json(calls) => calls.feed(c, sink),
            Self::Xml(call) => call.feed(c, sink),
            Self::Header { style, text } if c == '{' => {
                if !header_name(*style, text).is_some_and(|name| sink.begin(name)) {
                    return Progress::Fail;
                }
                *self = Self::Arguments(Scanner::new());
                self.feed(c, sink)
            }
            Self::Header { text, .. } => {
                text.push(c);
                if text.len() > MAX_HEADER { Progress::Fail } else { Progress::More }
            }
            Self::Arguments(scanner) => {
                if scanner.is_new() {
                    if c.is_whitespace() {
                        return Progress::More;
                    }
                    if c != '{' {
                        return Progress::Fail;
                    }
                }
                match scanner.feed(c) {
                    Feed::Bad => Progress::Fail,
                    Feed::More => {
                        sink.arguments(c);
                        Progress::More
                    }
                    Feed::Done => {
                        sink.arguments(c);
                        sink.end();
                        Progress::Done
                    }
                }
            }
            Self::Python { ends, text } => {
                text.push(c);
                if text.len() > MAX_PYTHON {
                    return Progress::Fail;
                }
                let Some(code) = ends.iter().find_map(|end| text.strip_suffix(end)) else {
                    return Progress::More;
                };
                if python_calls(code, sink) { Progress::Done } else { Progress::Fail }
            }
        }
    }

    /// The end of the text: whether the call was whole.
    pub(super) fn finish(&self, sink: &mut Sink<'_>) -> bool {
        match self {
            Self::Python { text, .. } => python_calls(text, sink),
            _ => false,
        }
    }
}

/// All calls or none: a part of a program is not what the model meant.
fn python_calls(code: &str, sink: &mut Sink<'_>) -> bool {
    let Some(calls) = python::calls(code) else { return false };
    if !calls.iter().all(|(name, _)| sink.tool(name).is_some()) {
        return false;
    }
    calls
        .into_iter()
        .all(|(name, arguments)| sink.whole(&name, &serde_json::Value::Object(arguments).to_string()))
}

/// The name in a header.
fn header_name(style: Header, text: &str) -> Option<&str> {
    let text = text.trim();
    match style {
        Header::Mistral => match text.split_once('[') {
            Some((name, "ARGS]")) => Some(name.trim()),
            Some((name, rest)) => {
                let id = rest.strip_prefix("CALL_ID]")?.strip_suffix("[ARGS]")?;
                (!id.contains('[')).then_some(name.trim())
            }
            None => Some(text),
        },
        Header::DeepSeek => {
            let text = text.strip_prefix("<｜tool▁call▁begin｜>").unwrap_or(text);
            let (kind, rest) = text.split_once("<｜tool▁sep｜>")?;
            if rest.is_empty() {
                return Some(kind.trim());
            }
            rest.strip_suffix("```json").filter(|_| kind.trim() == "function").map(str::trim)
        }
        Header::Kimi => {
            let text = text.strip_prefix("<|tool_call_begin|>").unwrap_or(text);
            let id = text.strip_suffix("<|tool_call_argument_begin|>")?.trim();
            let id = id.strip_prefix("functions.").unwrap_or(id);
            Some(id.rsplit_once(':').map_or(id, |(name, _)| name))
        }
        Header::Functionary => text.strip_suffix('>').map(str::trim),
    }
}
