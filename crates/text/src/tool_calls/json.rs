//! JSON read character by character: where a value ends, and calls that are written as JSON objects.

use super::call::{Progress, Sink};

/// Deepest nesting of arguments; readers of JSON refuse about 128.
const MAX_DEPTH: usize = 100;
/// Longest text of a number, a key or a name that is looked at.
const MAX_SHORT: usize = 512;

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// The value goes on.
    More,
    /// The value is whole with this character.
    Done,
    /// This is not JSON.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    FirstItem,
    FirstKey,
    Key,
    Text { key: bool, escape: Escape },
    Colon,
    Comma,
    Number,
    Literal { word: &'static str, at: usize },
    Done,
}

/// Where in an escape a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    No,
    Backslash,
    Hex {
        digits: u8,
        code: u16,
    },
    /// The second half of a surrogate pair has to come: its backslash, then its `u`.
    Low {
        backslash: bool,
    },
    LowHex {
        digits: u8,
        code: u16,
    },
}

/// What is at depth 1, the level of the keys of the outermost object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Key,
    Value,
    Between,
}

/// Follows one JSON object or list and knows when it is whole. Strict: what it lets through, every reader takes.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    stack: Vec<bool>, // true: an object
    state: State,
    number: String,
}

impl Scanner {
    /// At the first character.
    pub(super) fn new() -> Self {
        Self { stack: Vec::new(), state: State::Value, number: String::new() }
    }

    /// Nothing has come.
    pub(super) fn is_new(&self) -> bool {
        self.stack.is_empty() && self.state == State::Value
    }

    fn place(&self) -> Place {
        match (self.stack.len(), self.state) {
            (1, State::Text { key: true, .. }) => Place::Key,
            (1, State::Text { .. } | State::Number | State::Literal { .. }) => Place::Value,
            (0 | 1, _) => Place::Between,
            _ => Place::Value,
        }
    }

    /// Takes the next character.
    pub(super) fn feed(&mut self, c: char) -> Feed {
        if let State::Text { key, escape } = self.state {
            return self.text(key, escape, c);
        }
        if self.state == State::Number {
            if c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-') {
                self.number.push(c);
                return if self.number.len() > MAX_SHORT { Feed::Bad } else { Feed::More };
            }
            if serde_json::from_str::<serde_json::Number>(&self.number).is_err() {
                return Feed::Bad;
            }
            self.state = State::Comma;
        }
        if let State::Literal { word, at } = self.state {
            if word.as_bytes().get(at).map(|&b| char::from(b)) != Some(c) {
                return Feed::Bad;
            }
            let at = at + 1;
            self.state = if at == word.len() { State::Comma } else { State::Literal { word, at } };
            return Feed::More;
        }
        if matches!(c, ' ' | '\t' | '\n' | '\r') {
            return Feed::More;
        }
        match (self.state, c) {
            (State::FirstItem, ']') | (State::FirstKey, '}') => return self.close(),
            (State::Value | State::FirstItem, _) => return self.value(c),
            (State::FirstKey | State::Key, '"') => {
                self.state = State::Text { key: true, escape: Escape::No };
            }
            (State::Colon, ':') => self.state = State::Value,
            (State::Comma, ',') => {
                self.state = if self.stack.last() == Some(&true) { State::Key } else { State::Value };
            }
            (State::Comma, '}') if self.stack.last() == Some(&true) => return self.close(),
            (State::Comma, ']') if self.stack.last() == Some(&false) => return self.close(),
            _ => return Feed::Bad,
        }
        Feed::More
    }

    fn value(&mut self, c: char) -> Feed {
        self.state = match c {
            '{' | '[' if self.stack.len() >= MAX_DEPTH => return Feed::Bad,
            '{' => {
                self.stack.push(true);
                State::FirstKey
            }
            '[' => {
                self.stack.push(false);
                State::FirstItem
            }
            _ if self.stack.is_empty() => return Feed::Bad, // only objects and lists end by themselves
            '"' => State::Text { key: false, escape: Escape::No },
            '-' | '0'..='9' => {
                self.number = c.into();
                State::Number
            }
            't' => State::Literal { word: "true", at: 1 },
            'f' => State::Literal { word: "false", at: 1 },
            'n' => State::Literal { word: "null", at: 1 },
            _ => return Feed::Bad,
        };
        Feed::More
    }

    fn close(&mut self) -> Feed {
        self.stack.pop();
        if self.stack.is_empty() {
            self.state = State::Done;
            return Feed::Done;
        }
        self.state = State::Comma;
        Feed::More
    }

    fn text(&mut self, key: bool, escape: Escape, c: char) -> Feed {
        let hex = |digits: u8, code: u16| {
            let digit = u16::try_from(c.to_digit(16)?).ok()?;
            Some((digits + 1, (code << 4) | digit))
        };
        let escape = match escape {
            Escape::No if c == '"' => {
                self.state = if key { State::Colon } else { State::Comma };
                return Feed::More;
            }
            Escape::No if c == '\\' => Escape::Backslash,
            Escape::No if c < ' ' => return Feed::Bad,
            Escape::No => Escape::No,
            Escape::Backslash => match c {
                'u' => Escape::Hex { digits: 0, code: 0 },
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => Escape::No,
                _ => return Feed::Bad,
            },
            Escape::Hex { digits, code } => match hex(digits, code) {
                Some((4, 0xD800..=0xDBFF)) => Escape::Low { backslash: false },
                Some((4, 0xDC00..=0xDFFF)) | None => return Feed::Bad,
                Some((4, _)) => Escape::No,
                Some((digits, code)) => Escape::Hex { digits, code },
            },
            Escape::Low { backslash: false } if c == '\\' => Escape::Low { backslash: true },
            Escape::Low { backslash: true } if c == 'u' => Escape::LowHex { digits: 0, code: 0 },
            Escape::Low { .. } => return Feed::Bad,
            Escape::LowHex { digits, code } => match hex(digits, code) {
                Some((4, 0xDC00..=0xDFFF)) => Escape::No,
                Some((4, _)) | None => return Feed::Bad,
                Some((digits, code)) => Escape::LowHex { digits, code },
            },
        };
        self.state = State::Text { key, escape };
        Feed::More
    }
}

/// One call as an object: its name under `name`, its arguments under `arguments`, or what the family calls them.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    scanner: Scanner,
    key: String,
    slot: Slot,
    value: String,
    named: bool,
    arguments: Option<String>, // whole, before the name came
    given: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Name,
    Arguments,
    Other,
}

impl Envelope {
    /// Before its `{`.
    pub(super) fn new() -> Self {
        Self {
            scanner: Scanner::new(),
            key: String::new(),
            slot: Slot::Other,
            value: String::new(),
            named: false,
            arguments: None,
            given: false,
        }
    }

    /// Takes a character of the object.
    pub(super) fn feed(&mut self, c: char, sink: &mut Sink<'_>) -> Progress {
        if self.scanner.stack.is_empty() && c != '{' {
            return Progress::Fail;
        }
        let in_number = self.scanner.state == State::Number && self.scanner.stack.len() == 1;
        let before = self.scanner.place();
        let fed = self.scanner.feed(c);
        if fed == Feed::Bad {
            return Progress::Fail;
        }
        let after = if fed == Feed::Done { Place::Between } else { self.scanner.place() };
        if before == Place::Key || after == Place::Key {
            self.key.push(c);
            if self.key.len() > MAX_SHORT {
                return Progress::Fail;
            }
            if after != Place::Key && !self.choose() {
                return Progress::Fail;
            }
        } else if before == Place::Value || after == Place::Value {
            let ended_by_next = in_number && before == Place::Value && after != Place::Value;
            if !ended_by_next && !self.push(c, sink) {
                return Progress::Fail;
            }
            if after != Place::Value && !self.value_is_whole(sink) {
                return Progress::Fail;
            }
        }
        if fed == Feed::More { Progress::More } else { self.close(sink) }
    }

    /// A key is whole: what its value is. A key that calls do not have tells that this is some other object.
    fn choose(&mut self) -> bool {
        let Ok(key) = serde_json::from_str::<String>(&self.key) else { return false };
        self.key.clear();
        self.value.clear();
        self.slot = match key.as_str() {
            "name" | "tool_name" | "function" if self.named => return false,
            "name" | "tool_name" | "function" => Slot::Name,
            "arguments" | "parameters" if self.given => return false,
            "arguments" | "parameters" => Slot::Arguments,
            "id" | "type" | "tool_call_id" | "index" => Slot::Other,
            _ if self.named => Slot::Other,
            _ => return false,
        };
        true
    }

    fn push(&mut self, c: char, sink: &mut Sink<'_>) -> bool {
        match self.slot {
            Slot::Other => true,
            Slot::Name => {
                self.value.push(c);
                self.value.len() <= MAX_SHORT && self.value.starts_with('"')
            }
            Slot::Arguments => {
                if self.value.is_empty() {
                    self.given = true;
                    if !matches!(c, '{' | '"' | 'n') {
                        return false;
                    }
                }
                if self.named && (self.value == "{" || (self.value.is_empty() && c == '{')) {
                    self.value = "{".into(); // an object goes on as it comes; this only remembers that it is one
                    sink.arguments(c);
                } else {
                    self.value.push(c);
                }
                true
            }
        }
    }

    fn value_is_whole(&mut self, sink: &mut Sink<'_>) -> bool {
        match self.slot {
            Slot::Other => true,
            Slot::Name => {
                let Ok(name) = serde_json::from_str::<String>(&self.value) else { return false };
                self.named = sink.begin(&name);
                if let (true, Some(arguments)) = (self.named, self.arguments.take()) {
                    sink.arguments_text(&arguments);
                }
                self.named
            }
            Slot::Arguments if self.named && self.value == "{" => true, // it went on as it came
            Slot::Arguments => {
                let Some(text) = arguments_of(&self.value) else { return false };
                if self.named {
                    sink.arguments_text(&text);
                } else {
                    self.arguments = Some(text);
                }
                true
            }
        }
    }

    fn close(&mut self, sink: &mut Sink<'_>) -> Progress {
        if !self.named {
            return Progress::Fail;
        }
        if !self.given {
            sink.arguments_text("{}");
        }
        sink.end();
        Progress::Done
    }
}

/// The arguments of a value that was kept: an object, a text that holds one, or nothing.
fn arguments_of(value: &str) -> Option<String> {
    if value.starts_with('{') {
        return Some(value.into());
    }
    if value == "null" {
        return Some("{}".into());
    }
    let text: String = serde_json::from_str(value).ok()?;
    if text.trim().is_empty() {
        return Some("{}".into());
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).ok()?;
    serde_json::to_string(&object).ok()
}

/// Calls as objects, one after another or in a list.
#[derive(Clone, Debug)]
pub(super) struct JsonCalls {
    list: bool,
    comma: bool, // in a list: an object has ended
    open: Option<Envelope>,
}

impl JsonCalls {
    /// Before the first character.
    pub(super) fn new() -> Self {
        Self { list: false, comma: false, open: None }
    }

    /// Takes a character.
    pub(super) fn feed(&mut self, c: char, sink: &mut Sink<'_>) -> Progress {
        if let Some(envelope) = &mut self.open {
            let progress = envelope.feed(c, sink);
            if progress != Progress::Done {
                return progress;
            }
            self.open = None;
            self.comma = true;
            return if self.list { Progress::More } else { Progress::Done };
        }
        match c {
            c if c.is_whitespace() => Progress::More,
            '[' if !self.list => {
                self.list = true;
                Progress::More
            }
            ']' if self.list && self.comma => Progress::Done,
            ',' if self.comma => {
                self.comma = false;
                Progress::More
            }
            '{' if !self.comma => {
                let mut envelope = Envelope::new();
                let progress = envelope.feed(c, sink);
                self.open = Some(envelope);
                progress
            }
            _ => Progress::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(text: &str) -> Option<usize> {
        let mut scanner = Scanner::new();
        for (i, c) in text.char_indices() {
            match scanner.feed(c) {
                Feed::More => {}
                Feed::Done => return Some(i + c.len_utf8()),
                Feed::Bad => return None,
            }
        }
        None
    }

    #[test]
    fn where_a_value_ends() {
        let whole = [
            "{}",
            "[ ]",
            r#"{"a":1}"#,
            r#"{"a": [1, -2.5e3, true, false, null, "x\n\"\\é\u00e9\ud83e\udd99"], "b": {"c": {}}}"#,
            "[[],{},[1 ,2 ]]",
        ];
        for text in whole {
            assert_eq!(scan(&format!("{text}}} rest")), Some(text.len()), "{text}");
            serde_json::from_str::<serde_json::Value>(text).unwrap();
        }
        let bad = [
            "1 ",
            "\"a\"",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1,]",
            "[1 2]",
            "[01]",
            "[1.]",
            "[1e999]",
            "[-]",
            "[tru]",
            "[trux]",
            "{\"a\":1]",
            "[1}",
            "[\"\n\"]",
            "[\"\\x\"]",
            "[\"\\ud800\"]",
            "[\"\\udc00\"]",
            "[\"\\u12g4\"]",
            "[\"\\ud800\\u0041\"]",
            "[,]",
            "{,}",
            "{1:2}",
        ];
        for text in bad {
            assert_eq!(scan(text), None, "{text}");
        }
        assert_eq!(scan(&"[".repeat(10_000)), None, "deep nesting is refused, not followed");
    }

    proptest! {
        #[test]
        fn what_is_let_through_is_json(text in r#"[\[{]([\[\]{}",:0-9 tfnrulase.\\eE+-]|"a":|"b"){0,24}"#) {
            if let Some(end) = scan(&text) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text[..end]).is_ok(), "{}", &text[..end]);
            } else {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_err());
            }
        }
    }
}
