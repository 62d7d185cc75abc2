//! Calls that are written as Python: `f(a=1, b="x")`, alone, in lines or in a list. Only literals are understood;
//! nothing is evaluated.

use serde_json::{Map, Value as Json};

/// Deepest nesting of literals.
const MAX_DEPTH: usize = 60;

/// The calls of a text: names and arguments; `None` when it is anything else.
pub(super) fn calls(text: &str) -> Option<Vec<(String, Map<String, Json>)>> {
    let mut p = Parser { rest: text };
    p.space();
    let list = p.take("[");
    let mut calls = Vec::new();
    loop {
        p.space();
        if p.rest.is_empty() || (list && p.rest.starts_with(']')) {
            break;
        }
        calls.push(p.call()?);
        p.blanks();
        let line = p.rest.starts_with('\n') || p.rest.starts_with('\r');
        if !(p.take(",") || p.take(";") || line) {
            break;
        }
    }
    p.space();
    if list && !p.take("]") {
        return None;
    }
    p.space();
    (p.rest.is_empty() && !calls.is_empty()).then_some(calls)
}

/// A Python literal as JSON: numbers, texts, `True`, `False`, `None`, lists, tuples and dicts of them.
pub(super) fn literal(text: &str) -> Option<Json> {
    let mut p = Parser { rest: text };
    p.space();
    let value = p.value(0)?;
    p.space();
    p.rest.is_empty().then_some(value)
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take(&mut self, word: &str) -> bool {
        let rest = self.rest.strip_prefix(word);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take_while(&mut self, f: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !f(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// `f(..)`, `f.call(..)` (Llama's built-in tools), `print(f(..))` (Gemma's).
    fn call(&mut self) -> Option<(String, Map<String, Json>)> {
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        self.blanks();
        if word.is_empty() || !self.take("(") {
            return None;
        }
        if word == "print" {
            self.space();
            let call = self.call()?;
            self.space();
            return self.take(")").then_some(call);
        }
        let mut arguments = Map::new();
        loop {
            self.space();
            if self.take(")") {
                break;
            }
            let key = self.take_while(|c| c.is_alphanumeric() || c == '_');
            self.space();
            if key.is_empty() || !self.take("=") {
                return None;
            }
            self.space();
            if arguments.insert(key.into(), self.value(0)?).is_some() {
                return None;
            }
            self.space();
            if !self.take(",") && !self.rest.starts_with(')') {
                return None;
            }
        }
        Some((word.strip_suffix(".call").unwrap_or(word).into(), arguments))
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.rest.chars().next()? {
            '"' | '\'' => self.text().map(Json::String),
            '[' => self.items("[", "]", depth).map(|(items, _)| Json::Array(items)),
            '(' => {
                let (mut items, comma) = self.items("(", ")", depth)?;
                if items.len() == 1 && !comma { items.pop() } else { Some(Json::Array(items)) }
            }
            '{' => self.dict(depth),
            c if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number(),
            _ => match self.take_while(|c| c.is_alphanumeric() || c == '_') {
                "True" | "true" => Some(true.into()),
                "False" | "false" => Some(false.into()),
                "None" | "null" => Some(Json::Null),
                _ => None,
            },
        }
    }

    fn number(&mut self) -> Option<Json> {
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.' | '_'));
        let word = word.replace('_', "");
        let word = word.strip_prefix('+').unwrap_or(&word);
        if let Ok(n) = word.parse::<i64>() {
            return Some(n.into());
        }
        if let Ok(n) = word.parse::<u64>() {
            return Some(n.into());
        }
        let digits = word.contains(|c: char| c.is_ascii_digit()); // not `inf`, not `nan`
        word.parse::<f64>().ok().filter(|n| n.is_finite() && digits).map(Json::from)
    }

    fn items(&mut self, open: &str, close: &str, depth: usize) -> Option<(Vec<Json>, bool)> {
        self.take(open);
        let (mut items, mut comma) = (Vec::new(), false);
        loop {
            self.space();
            if self.take(close) {
                return Some((items, comma));
            }
            if !items.is_empty() && !comma {
                return None;
            }
            items.push(self.value(depth + 1)?);
            self.space();
            comma = self.take(",");
        }
    }

    fn dict(&mut self, depth: usize) -> Option<Json> {
        self.take("{");
        let (mut map, mut comma) = (Map::new(), true);
        loop {
            self.space();
            if self.take("}") {
                return Some(Json::Object(map));
            }
            if !comma {
                return None;
            }
            let key = self.text()?;
            self.space();
            if !self.take(":") {
                return None;
            }
            self.space();
            map.insert(key, self.value(depth + 1)?);
            self.space();
            comma = self.take(",");
        }
    }

    fn text(&mut self) -> Option<String> {
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|q| self.rest.starts_with(q))?;
        self.take(quote);
        let mut out = String::new();
        loop {
            if self.take(quote) {
                return Some(out);
            }
            let c = self.rest.chars().next()?;
            self.rest = &self.rest[c.len_utf8()..];
            match c {
                '\n' if quote.len() == 1 => return None,
                '\\' => self.escape(&mut out)?,
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Option<()> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if digits == 0 {
            match c {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                '\n' => {}
                '\\' | '\'' | '"' => out.push(c),
                c => out.extend(['\\', c]), // Python keeps the backslash of what is no escape
            }
            return Some(());
        }
        let (code, rest) = self.rest.split_at_checked(digits)?;
        self.rest = rest;
        out.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Option<Json> {
        let calls = calls(text)?;
        Some(calls.into_iter().map(|(name, arguments)| json!([name, arguments])).collect())
    }

    #[test]
    fn forms_of_calls() {
        let one = json!([["f", {"a": 1, "b": "x"}]]);
        for text in
            ["f(a=1, b=\"x\")", "[f(a=1, b='x')]", "f.call(a = 1, b=\"x\",)", "print(f(a=1,b='''x'''))\n"]
        {
            assert_eq!(read(text), Some(one.clone()), "{text}");
        }
        let two = Some(json!([["f", {}], ["g", {"x": [1, -2.5, true, null], "y": {"k": ["t"]}}]]));
        assert_eq!(read("[f(), g(x=[1, -2.5, True, None], y={'k': ('t',)})]"), two);
        assert_eq!(read("f()\ng(x=[1, -2.5, True, None,], y={'k': ['t']})"), two);
        assert_eq!(read(r#"f(a="q\"\n\u00e9\xe9\d")"#), Some(json!([["f", {"a": "q\"\né\u{e9}\\d"}]])));
        for text in [
            "",
            "f",
            "f(1)",
            "f(a=b)",
            "f(a=1) + 2",
            "x = f(a=1)",
            "[f(a=1)",
            "f(a=1",
            "f(a=1 b=2)",
            "f(a=1, a=2)",
            "f(a='x)",
            "f(a=[1 2])",
            "f(a=inf)",
            "import os\nf()",
            "f() g()",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(literal(&"[".repeat(100_000)), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in r#"[f(){}\[\]"'=,:\\0-9xuTé\n .-]{0,24}"#) {
            let _ = calls(&text);
            let _ = literal(&text);
        }
    }
}
