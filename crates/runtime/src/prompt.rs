//! From a conversation to the tokens that a model is given, by the model's own template.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use quarrel_text::chat_template::DateTime;
use quarrel_text::{ChatTemplate, Ends, RenderInput, Special, Tokenizer};
use serde_json::{Value, json};

/// A turn as templates know it.
pub fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// The text of a special token.
pub fn token_text(tokenizer: &Tokenizer, id: Option<u32>) -> Option<String> {
    id.and_then(|id| tokenizer.token_text(id).ok()).map(|t| t.into_owned())
}

/// The ids of a conversation that the assistant is to go on with.
pub fn encode_chat(tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[Value]) -> Result<Vec<u32>> {
    let mut messages = Value::Array(messages.to_vec());
    quote(tokenizer, &mut messages);
    let input =
        RenderInput { messages: Some(&messages), add_generation_prompt: true, ..RenderInput::default() };
    encode_prompt(tokenizer, &render(tokenizer, template, &input)?)
}

/// What users, tools and operators say is text: names of control tokens in it are not those tokens. What the assistant says
/// may be written with them, but not the arguments of its calls.
pub fn quote(tokenizer: &Tokenizer, messages: &mut Value) {
    for message in messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        let assistant = message.get("role").is_some_and(|r| r == "assistant");
        for (_, value) in message.iter_mut().filter(|(k, _)| !assistant || *k == "tool_calls") {
            quote_all(tokenizer, value);
        }
    }
}

/// All texts in a value: definitions of tools, for one.
pub fn quote_all(tokenizer: &Tokenizer, value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(quoted) = tokenizer.quote(text) {
                *text = quoted;
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| quote_all(tokenizer, v)),
        Value::Object(map) => {
            let named = |key: &String| matches!(tokenizer.quote(key), Cow::Owned(_));
            if map.keys().any(named) {
                let quoted =
                    std::mem::take(map).into_iter().map(|(k, v)| (tokenizer.quote(&k).into_owned(), v));
                *map = quoted.collect();
            }
            map.values_mut().for_each(|v| quote_all(tokenizer, v));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text of a conversation, with the model's own bos and eos and today's date.
pub fn render(tokenizer: &Tokenizer, template: &ChatTemplate, input: &RenderInput<'_>) -> Result<String> {
    let (bos, eos) = (token_text(tokenizer, tokenizer.bos()), token_text(tokenizer, tokenizer.eos()));
    let input = RenderInput { bos: bos.as_deref(), eos: eos.as_deref(), now: Some(now()?), ..*input };
    Ok(template.render(&input)?)
}

/// The ids of a prompt: names of control tokens are those tokens, and it begins with bos where the model wants one, once.
pub fn encode_prompt(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, Special::Parse, Ends::None)?;
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}

/// The time in UTC, for templates that print the date.
pub fn now() -> Result<DateTime> {
    let s = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let (days, second) = ((s / 86_400) as i64, (s % 86_400) as u32);
    let (year, month, day) = civil(days);
    DateTime::new(year, month, day, (second / 3600) as u8, (second / 60 % 60) as u8, (second % 60) as u8)
        .context("the clock is past the year 9999")
}

/// Days since 1970-01-01 as year, month, day (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i32, u8, u8) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year as i32, month as u8, (doy - (153 * mp + 2) / 5 + 1) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_780, (2026, 11, 23)),
            (-1, (1969, 12, 31)),
        ] {
            assert_eq!(civil(days), date);
        }
    }
}
