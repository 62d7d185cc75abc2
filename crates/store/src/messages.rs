//! Messages of a conversation: appended several at once behind a check of what is there, and removed from the end.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Fault;
use crate::{Error, Limits, Result, Store, UnixMs, conversations, ids};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The operator's instructions.
    System,
    /// The application's instructions.
    Developer,
    /// A person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    const ALL: [Role; 5] = [Role::System, Role::Developer, Role::User, Role::Assistant, Role::Tool];

    /// The name in requests and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role of a name.
    pub fn by_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|r| r.name() == name)
    }
}

/// A message that is to be stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMessage {
    /// Who speaks.
    pub role: Role,
    /// A string, a list of parts, or null.
    #[serde(default)]
    pub content: Value,
    /// What the model thought before it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The calls that the model made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The call that this is the result of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The model that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its length in tokens of that model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
    /// Anything else that the server keeps with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

impl NewMessage {
    /// A plain text.
    pub fn text(role: Role, text: impl Into<String>) -> NewMessage {
        NewMessage {
            role,
            content: Value::String(text.into()),
            reasoning: None,
            tool_calls: None,
            tool_call_id: None,
            model: None,
            tokens: None,
            metadata: None,
        }
    }

    /// What a person would read and search: the string, or the text of the parts, a line each.
    pub fn plain_text(&self) -> String {
        match &self.content {
            Value::String(s) => s.clone(),
            Value::Array(parts) => {
                let text = |p: &Value| p.as_str().or_else(|| p.get("text")?.as_str()).map(str::to_owned);
                parts.iter().filter_map(text).collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        }
    }
}

/// A message that is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// `msg_` and 24 characters.
    pub id: String,
    /// When it was appended.
    pub created_at: UnixMs,
    /// The rest of it.
    #[serde(flatten)]
    pub body: NewMessage,
}

/// Where messages go: what the caller takes to be there, so that two writers never interleave without noticing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// The conversation is empty.
    First,
    /// This message is the last one.
    After(&'a str),
    /// This message and all after it are removed, in the same transaction: an edit, or another answer.
    InsteadOf(&'a str),
    /// Wherever the end is.
    End,
}

impl Store {
    /// Appends messages in one transaction: all of them or, on an error, none. Gives them back with their ids. The first
    /// text of a user becomes the title of a conversation without one.
    pub fn append(
        &self,
        owner: &str,
        conversation: &str,
        place: Place<'_>,
        messages: &[NewMessage],
        now: UnixMs,
    ) -> Result<Vec<Message>> {
        // Sizes first: they need no lock.
        let rows: Vec<Encoded> = messages.iter().map(|m| encode(m, self.limits())).collect::<Result<_>>()?;
        let more: u64 = rows.iter().map(|r| r.bytes).sum();
        let mut stored = Vec::with_capacity(messages.len());
        for m in messages {
            stored.push(Message { id: ids::id("msg_")?, created_at: now, body: m.clone() });
        }
        self.write(|tx| {
            let n = conversations::row(tx, owner, conversation)?;
            if let Place::InsteadOf(id) = place {
                remove_from(tx, n, id)?;
            }
            let (last, count) = end(tx, n)?;
            check_place(conversation, place, last.as_deref())?;
            self.check_room(tx, n, count, rows.len() as u64, more)?;
            for (i, (m, row)) in stored.iter().zip(&rows).enumerate() {
                insert(tx, n, count + i as u64, m, row)?;
            }
            tx.execute(
                "UPDATE conversations SET updated_at = max(updated_at, ?2), bytes = bytes + ?3 WHERE n = ?1",
                params![n, now, more as i64],
            )?;
            if let Some(title) = stored.iter().find(|m| m.body.role == Role::User).map(|m| title_of(&m.body))
            {
                tx.execute(
                    "UPDATE conversations SET title = ?2 WHERE n = ?1 AND title = ''",
                    params![n, title],
                )?;
            }
            Ok(())
        })?;
        Ok(stored)
    }

    /// Removes a message and all after it; gives how many were removed. A summary that covers one of them goes too.
    pub fn remove_from(&self, owner: &str, conversation: &str, message: &str, now: UnixMs) -> Result<u64> {
        self.write(|tx| {
            let n = conversations::row(tx, owner, conversation)?;
            let removed = remove_from(tx, n, message)?;
            let touch = "UPDATE conversations SET updated_at = max(updated_at, ?2) WHERE n = ?1";
            tx.execute(touch, params![n, now])?;
            Ok(removed)
        })
    }

    /// Messages in order, at most `limit`, from behind `after` or from the first.
    pub fn messages(
        &self,
        owner: &str,
        conversation: &str,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Vec<Message>> {
        self.read(|tx| {
            let n = conversations::row(tx, owner, conversation)?;
            let from = match after {
                Some(id) => position(tx, n, id)? + 1,
                None => 0,
            };
            select(tx, n, from, limit)
        })
    }

    fn check_room(
        &self,
        tx: &Transaction<'_>,
        n: i64,
        count: u64,
        added: u64,
        more: u64,
    ) -> Result<(), Fault> {
        let limits = self.limits();
        if count.saturating_add(added) > limits.messages_per_conversation {
            let limit = limits.messages_per_conversation;
            return Err(Error::Full { what: "messages of a conversation", limit }.into());
        }
        let bytes: i64 = tx.query_row("SELECT bytes FROM conversations WHERE n = ?1", [n], |r| r.get(0))?;
        if (bytes.max(0) as u64).saturating_add(more) > limits.conversation_bytes {
            let limit = limits.conversation_bytes;
            return Err(Error::Full { what: "bytes of a conversation", limit }.into());
        }
        self.room(tx, more)
    }
}

/// The columns of a message that are JSON, as text, and the size of all of it.
struct Encoded {
    text: String,
    content: Option<String>,
    tool_calls: Option<String>,
    metadata: Option<String>,
    bytes: u64,
}

fn encode(m: &NewMessage, limits: &Limits) -> Result<Encoded> {
    let text = m.plain_text();
    let content = (!m.content.is_string()).then(|| m.content.to_string());
    let tool_calls = m.tool_calls.as_ref().map(Value::to_string);
    let metadata = m.metadata.as_ref().map(Value::to_string);
    let parts = [&content, &tool_calls, &metadata, &m.reasoning, &m.tool_call_id, &m.model];
    let size = text.len() + parts.into_iter().flatten().map(String::len).sum::<usize>();
    if size as u64 > limits.message_bytes {
        let (size, limit) = (size as u64, limits.message_bytes);
        return Err(Error::TooLarge { what: "bytes of a message", size, limit });
    }
    // What a row costs beside its text: ids, numbers, its place in the indexes.
    Ok(Encoded { text, content, tool_calls, metadata, bytes: size as u64 + 128 })
}

fn insert(tx: &Transaction<'_>, n: i64, position: u64, m: &Message, row: &Encoded) -> Result<(), Fault> {
    let b = &m.body;
    tx.execute(
        "INSERT INTO messages (id, conversation, position, role, text, content, reasoning, tool_calls, tool_call_id, \
         model, tokens, metadata, created_at, bytes) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)",
        params![
            m.id,
            n,
            position as i64,
            b.role.name(),
            row.text,
            row.content,
            b.reasoning,
            row.tool_calls,
            b.tool_call_id,
            b.model,
            b.tokens,
            row.metadata,
            m.created_at,
            row.bytes as i64
        ],
    )?;
    Ok(())
}

/// The id of the last message and how many there are.
fn end(tx: &Transaction<'_>, n: i64) -> Result<(Option<String>, u64), Fault> {
    let sql = "SELECT id, position FROM messages WHERE conversation = ?1 ORDER BY position DESC LIMIT 1";
    let last = tx.query_row(sql, [n], |r| Ok((r.get(0)?, r.get::<_, i64>(1)?))).optional()?;
    Ok(last.map_or((None, 0), |(id, position)| (Some(id), position.max(0) as u64 + 1)))
}

fn check_place(conversation: &str, place: Place<'_>, last: Option<&str>) -> Result<()> {
    let expected = match place {
        Place::First => None,
        Place::After(id) => Some(id),
        Place::End | Place::InsteadOf(_) => return Ok(()),
    };
    if expected == last {
        return Ok(());
    }
    let name = |id: Option<&str>| id.map_or("no message".to_owned(), |id| format!("{:.64}", id));
    Err(Error::Conflict {
        what: format!("the last message of {conversation}"),
        expected: name(expected),
        found: name(last),
    })
}

pub(crate) fn position(tx: &Transaction<'_>, n: i64, id: &str) -> Result<u64, Fault> {
    let sql = "SELECT position FROM messages WHERE conversation = ?1 AND id = ?2";
    let found: Option<i64> = tx.query_row(sql, params![n, id], |r| r.get(0)).optional()?;
    Ok(found.ok_or_else(|| Error::not_found("message", id))?.max(0) as u64)
}

fn remove_from(tx: &Transaction<'_>, n: i64, id: &str) -> Result<u64, Fault> {
    let from = position(tx, n, id)? as i64;
    let removed =
        tx.execute("DELETE FROM messages WHERE conversation = ?1 AND position >= ?2", params![n, from])?;
    tx.execute(
        "UPDATE conversations SET bytes = (SELECT coalesce(sum(bytes), 0) FROM messages WHERE conversation = ?1) \
         WHERE n = ?1",
        [n],
    )?;
    tx.execute(
        "UPDATE conversations SET summary = NULL, summary_up_to = NULL, summary_tokens = NULL WHERE n = ?1 \
         AND summary_up_to NOT IN (SELECT id FROM messages WHERE conversation = ?1)",
        [n],
    )?;
    Ok(removed as u64)
}

/// Messages of a conversation from a position on.
pub(crate) fn select(tx: &Transaction<'_>, n: i64, from: u64, limit: u64) -> Result<Vec<Message>, Fault> {
    let mut statement = tx.prepare(
        "SELECT id, created_at, role, text, content, reasoning, tool_calls, tool_call_id, model, tokens, metadata \
         FROM messages WHERE conversation = ?1 AND position >= ?2 ORDER BY position LIMIT ?3",
    )?;
    let clip = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![n, clip(from), clip(limit)], decode)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn decode(r: &Row<'_>) -> rusqlite::Result<Message> {
    let role: String = r.get(2)?;
    let role = Role::by_name(&role);
    let content: Option<Value> = json(r, 4)?;
    Ok(Message {
        id: r.get(0)?,
        created_at: r.get(1)?,
        body: NewMessage {
            role: role.ok_or_else(|| odd(2, "an unknown role".into()))?,
            content: match content {
                Some(content) => content,
                None => Value::String(r.get(3)?),
            },
            reasoning: r.get(5)?,
            tool_calls: json(r, 6)?,
            tool_call_id: r.get(7)?,
            model: r.get(8)?,
            tokens: r.get(9)?,
            metadata: json(r, 10)?,
        },
    })
}

/// A column of JSON; text that is none is damage.
pub(crate) fn json(r: &Row<'_>, column: usize) -> rusqlite::Result<Option<Value>> {
    let text: Option<String> = r.get(column)?;
    text.map(|t| serde_json::from_str(&t).map_err(|e| odd(column, e.into()))).transpose()
}

/// A value in the database that this program never writes.
pub(crate) fn odd(column: usize, why: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, why)
}

/// The first line of a text, shortened to what a list shows.
fn title_of(m: &NewMessage) -> String {
    let text = m.plain_text().replace(|c: char| c.is_control() && c != '\n', " ");
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((end, _)) => {
            let cut = &line[..end];
            // At a space if there is one in the second half.
            let at = cut.rfind(' ').filter(|at| *at > end / 2).unwrap_or(end);
            format!("{}...", cut[..at].trim_end())
        }
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_text_of_parts() {
        let mut m = NewMessage::text(Role::User, "hello");
        for (content, text) in [
            (json!("hello"), "hello"),
            (
                json!(["a", {"type": "text", "text": "b"}, {"type": "image_url"}, {"type": "text", "text": 3}]),
                "a\nb",
            ),
            (json!(null), ""),
            (json!({"text": "x"}), ""),
        ] {
            m.content = content;
            assert_eq!(m.plain_text(), text);
        }
    }

    #[test]
    fn titles_are_first_lines() {
        for (text, title) in [
            ("", ""),
            ("\n\n  Hello \nworld", "Hello"),
            (&"word ".repeat(40), &format!("{}...", "word ".repeat(12).trim_end())[..]),
            ("a\tb\u{0}c\r\nd", "a b c"),
            (&"é".repeat(61), &format!("{}...", "é".repeat(60))[..]),
        ] {
            assert_eq!(title_of(&NewMessage::text(Role::User, text)), title);
        }
    }

    #[test]
    fn messages_of_strangers_name_what_is_unknown() {
        let e = serde_json::from_value::<NewMessage>(json!({"role": "user", "contents": "x"})).unwrap_err();
        assert!(e.to_string().contains("contents"), "{e}");
    }
}
