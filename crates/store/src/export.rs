//! A conversation to take away: JSON with everything in it, or Markdown to read.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::messages::Role;
use crate::time::iso;
use crate::{Conversation, Message, Result, Store};

impl Store {
    /// Everything about a conversation as JSON, `format` naming its layout.
    pub fn export_json(&self, owner: &str, id: &str) -> Result<Value> {
        Ok(to_json(&self.conversation(owner, id)?))
    }

    /// A conversation as Markdown: a heading for each message, reasoning as a quotation, tool calls as code.
    pub fn export_markdown(&self, owner: &str, id: &str) -> Result<String> {
        Ok(to_markdown(&self.conversation(owner, id)?))
    }
}

fn to_json(c: &Conversation) -> Value {
    json!({
        "format": "quarrel.conversation/1",
        "conversation": c.info,
        "summary": c.summary,
        "messages": c.messages,
    })
}

fn to_markdown(c: &Conversation) -> String {
    let title = if c.info.title.is_empty() { &c.info.id } else { &c.info.title };
    let mut out = format!("# {title}\n\n{} · {}\n", c.info.id, iso(c.info.created_at));
    for m in &c.messages {
        message(&mut out, m);
    }
    out
}

fn message(out: &mut String, m: &Message) {
    let who = match m.body.role {
        Role::System => "System",
        Role::Developer => "Developer",
        Role::User => "User",
        Role::Assistant => "Assistant",
        Role::Tool => "Tool",
    };
    // Writing to a String cannot fail.
    let _ = write!(out, "\n## {who}\n\n{}", iso(m.created_at));
    if let Some(model) = &m.body.model {
        let _ = write!(out, " · {model}");
    }
    out.push('\n');
    if let Some(reasoning) = &m.body.reasoning {
        out.push('\n');
        for line in reasoning.lines() {
            out.push_str(if line.is_empty() { ">" } else { "> " });
            out.push_str(line);
            out.push('\n');
        }
    }
    let text = m.body.plain_text();
    if m.body.role == Role::Tool {
        fenced(out, "", &text);
    } else if !text.is_empty() {
        let _ = write!(out, "\n{}\n", text.trim_end());
    }
    let others = others(&m.body.content);
    if others > 0 {
        let _ = write!(out, "\n*{others} more parts without text are in the JSON export.*\n");
    }
    if let Some(calls) = &m.body.tool_calls {
        fenced(out, "json", &serde_json::to_string_pretty(calls).unwrap_or_else(|_| calls.to_string()));
    }
}

/// How many parts of a content have no text: images, files.
fn others(content: &Value) -> usize {
    match content {
        Value::String(_) | Value::Null => 0,
        Value::Array(parts) => parts.iter().filter(|p| !p.is_string() && !p["text"].is_string()).count(),
        _ => 1,
    }
}

/// A block of code behind a fence that is longer than any inside it.
fn fenced(out: &mut String, language: &str, text: &str) {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = write!(out, "\n{fence}{language}\n{}\n{fence}\n", text.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConversationInfo, NewMessage};

    fn conversation() -> Conversation {
        let body = |role, content| NewMessage { content, ..NewMessage::text(role, "") };
        let mut call = body(Role::Assistant, Value::Null);
        call.reasoning = Some("First look.\n\nThen say.".into());
        call.tool_calls = Some(json!([{"id": "c1", "function": {"name": "weather"}}]));
        call.model = Some("tiny".into());
        let bodies = [
            body(Role::User, json!([{"type": "text", "text": "Weather?"}, {"type": "image_url"}])),
            call,
            body(Role::Tool, json!("```\nsun\n```")),
        ];
        let messages = bodies.into_iter().enumerate();
        Conversation {
            info: ConversationInfo {
                id: "conv_1".into(),
                title: "Weather".into(),
                metadata: None,
                created_at: 0,
                updated_at: 1000,
                messages: 3,
                last_message: Some("msg_2".into()),
            },
            messages: messages
                .map(|(i, body)| Message { id: format!("msg_{i}"), created_at: 0, body })
                .collect(),
            summary: None,
        }
    }

    #[test]
    fn markdown_reads_well() {
        let expected = "# Weather\n\nconv_1 · 1970-01-01T00:00:00Z\n\
            \n## User\n\n1970-01-01T00:00:00Z\n\nWeather?\n\n*1 more parts without text are in the JSON export.*\n\
            \n## Assistant\n\n1970-01-01T00:00:00Z · tiny\n\n> First look.\n>\n> Then say.\n\
            \n```json\n[\n  {\n    \"id\": \"c1\",\n    \"function\": {\n      \"name\": \"weather\"\n    }\n  }\n]\n```\n\
            \n## Tool\n\n1970-01-01T00:00:00Z\n\n````\n```\nsun\n```\n````\n";
        assert_eq!(to_markdown(&conversation()), expected);
    }

    #[test]
    fn json_has_everything() {
        let c = conversation();
        let v = to_json(&c);
        assert_eq!(v["format"], "quarrel.conversation/1");
        assert_eq!(v["messages"][1]["reasoning"], "First look.\n\nThen say.");
        assert_eq!(
            v["messages"][2],
            json!({"id": "msg_2", "created_at": 0, "role": "tool", "content": "```\nsun\n```"})
        );
    }
}
