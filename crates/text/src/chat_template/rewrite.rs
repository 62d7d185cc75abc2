//! What is changed in a template's source before it is compiled: `{% generation %}` becomes a scope, and operands of
//! `+` and `*` pass through a check of their size. The engine counts its work, but lists join lazily and outside that
//! count: `x + x`, forty times over, would never end.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// The filter's name in rewritten sources.
pub(super) const SIZED: &str = "__sized";
/// Longest list that may be added to another, and most `+` and `*` in one tag: their product bounds a result.
const MAX_ITEMS: usize = 1 << 16;
const MAX_OPERATORS: usize = 64;

/// The check itself. Texts and numbers pass: the engine counts those.
pub(super) fn sized(value: Value) -> Result<Value, Error> {
    let list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if list && value.len().is_none_or(|n| n > MAX_ITEMS) {
        let what = format!("a list of more than {MAX_ITEMS} items (or of unknown length) in a sum");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    Ok(value)
}

/// The rewritten source; line numbers stay.
///
/// # Errors
/// A tag has more than 64 operators.
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len() + source.len() / 16);
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        rest = match tag.as_bytes().get(1) {
            Some(b'#') => {
                let end = tag.find("#}").map_or(tag.len(), |i| i + 2);
                out.push_str(&tag[..end]);
                &tag[end..]
            }
            Some(b'{' | b'%') => {
                let used = rewrite_tag(tag, &mut out)?;
                if word(&tag[..used]) == "raw" {
                    let end = raw_end(&tag[used..]);
                    out.push_str(&tag[used..used + end]);
                    &tag[used + end..]
                } else {
                    &tag[used..]
                }
            }
            _ => {
                out.push('{');
                &tag[1..]
            }
        };
    }
    out.push_str(rest);
    Ok(out)
}

/// The only word of a `{% tag %}`, or nothing.
fn word(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}")).unwrap_or("");
    inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim()
}

/// Bytes up to the `{% endraw %}`.
fn raw_end(text: &str) -> usize {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%").map(|i| i + from) {
        let end = text[at..].find("%}").map_or(text.len(), |i| at + i + 2);
        if word(&text[at..end]) == "endraw" {
            return at;
        }
        from = at + 2;
    }
    text.len()
}

/// Words that no value ends with.
const OPERATORS: &[&str] =
    &["if", "elif", "else", "in", "not", "and", "or", "is", "set", "for", "with", "call", "do"];

/// Copies one `{{ .. }}` or `{% .. %}` to `out` with its checks; returns its length.
fn rewrite_tag(tag: &str, out: &mut String) -> Result<usize, String> {
    let bytes = tag.as_bytes();
    let close = if bytes[1] == b'{' { "}}" } else { "%}" };
    let start = out.len();
    out.push_str(&tag[..2]);
    let mut at = 2;
    if matches!(bytes.get(2), Some(b'-' | b'+')) {
        out.push(bytes[2] as char);
        at = 3;
    }
    // One entry a bracket: whether the operand that is being read there belongs to a `+` or `*`.
    let mut open = vec![false];
    let mut value_end = None; // where in `out` a value has just ended
    let mut after_text = false;
    let mut operators = 0;
    while at < tag.len() {
        let rest = &tag[at..];
        if open.len() == 1 {
            let control = usize::from(rest.starts_with(['-', '+']));
            if rest[control..].starts_with(close) {
                check(&mut open, value_end, out);
                out.push_str(&rest[..control + 2]);
                let made = &out[start..];
                for (mark, scope) in [("generation", "with"), ("endgeneration", "endwith")] {
                    if word(made) == mark {
                        let made = made.replacen(mark, scope, 1);
                        out.truncate(start);
                        out.push_str(&made);
                        break;
                    }
                }
                return Ok(at + control + 2);
            }
        }
        let Some(c) = rest.chars().next() else { break };
        let len = token_len(rest, c);
        let token = &rest[..len];
        at += len;
        if c.is_whitespace() {
            out.push_str(token);
            continue;
        }
        let text = matches!(c, '\'' | '"');
        let goes_on = matches!(c, '.' | '[' | '(' | '|') || (text && after_text);
        if !goes_on {
            check(&mut open, value_end, out);
        }
        let operator = matches!(token, "+" | "*") && value_end.is_some();
        if let (true, Some(end)) = (operator, value_end) {
            operators += 1;
            if operators > MAX_OPERATORS {
                return Err(format!("a tag with more than {MAX_OPERATORS} sums"));
            }
            if !out[end..].contains(SIZED) {
                out.insert_str(end, &format!("|{SIZED}"));
            }
        }
        match c {
            '(' | '[' | '{' => open.push(false),
            ')' | ']' | '}' if open.len() > 1 => {
                open.pop();
            }
            _ => {}
        }
        out.push_str(token);
        if operator && let Some(top) = open.last_mut() {
            *top = true;
        }
        let name = c.is_alphanumeric() || c == '_';
        let ends = text || matches!(c, ')' | ']' | '}') || (name && !OPERATORS.contains(&token));
        value_end = if ends { Some(out.len()) } else { None };
        after_text = text;
    }
    Ok(tag.len())
}

/// Puts the check behind a value if it is the right side of an operator.
fn check(open: &mut [bool], value_end: Option<usize>, out: &mut String) {
    if let (Some(end), Some(top)) = (value_end, open.last_mut())
        && *top
    {
        *top = false;
        out.insert_str(end, &format!("|{SIZED}"));
    }
}

/// Length of the token at the start of `rest`, whose first character is `c`.
fn token_len(rest: &str, c: char) -> usize {
    if matches!(c, '\'' | '"') {
        let mut escaped = false;
        for (i, d) in rest.char_indices().skip(1) {
            match d {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if d == c => return i + d.len_utf8(),
                _ => {}
            }
        }
        return rest.len();
    }
    if rest.starts_with("**") {
        return 2;
    }
    if c.is_alphanumeric() || c == '_' {
        return rest.find(|d: char| !(d.is_alphanumeric() || d == '_')).unwrap_or(rest.len());
    }
    if c.is_whitespace() {
        return rest.find(|d: char| !d.is_whitespace()).unwrap_or(rest.len());
    }
    c.len_utf8()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_checked_and_the_rest_is_as_it_was() {
        for (source, want) in [
            ("a + b {# x + y #} {", "a + b {# x + y #} {"),
            ("{{ a + b }}", "{{ a|S + b|S }}"),
            ("{{- a.b[1 + 2](x)|f(y) + 'a + \\'b' -}}", "{{- a.b[1|S + 2|S](x)|f(y)|S + 'a + \\'b'|S -}}"),
            ("{{ (a + b) + c + d }}", "{{ (a|S + b|S)|S + c|S + d|S }}"),
            ("{{ -1 + -x * 2 }}", "{{ -1|S + -x|S * 2|S }}"),
            ("{%+ if a+b+%}x{% endif +%}", "{%+ if a|S+b|S+%}x{% endif +%}"),
            ("{{ 2 ** 3 }}{{ f(*args) }}", "{{ 2 ** 3 }}{{ f(*args) }}"),
            ("{% raw %}{{ a + b }}{% endraw %}{{ a+b }}", "{% raw %}{{ a + b }}{% endraw %}{{ a|S+b|S }}"),
            ("{% for x in a + [b] if x is defined %}", "{% for x in a|S + [b]|S if x is defined %}"),
            (
                "{{ 'x' + 'a' 'b' if y else {'k': 1 + 1} }}",
                "{{ 'x'|S + 'a' 'b'|S if y else {'k': 1|S + 1|S} }}",
            ),
            ("{%- generation -%}a{% endgeneration %}", "{%- with -%}a{% endwith %}"),
            ("{{ '}}' + x", "{{ '}}'|S + x"),
        ] {
            assert_eq!(rewrite(source).unwrap().replace(SIZED, "S"), want);
        }
        assert!(rewrite(&format!("{{{{ 1{} }}}}", "+1".repeat(65))).is_err());
    }
}
