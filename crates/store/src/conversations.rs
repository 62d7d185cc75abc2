//! Conversations: create, list, search, read, rename, delete, and the rolling summary of each. Everything belongs to an
//! owner; to another one it does not exist.

use rusqlite::{OptionalExtension, Row, ToSql, Transaction, params};
use serde::Serialize;
use serde_json::Value;

use crate::error::Fault;
use crate::messages::{self, Message, json};
use crate::{Error, Result, Store, UnixMs, ids, words};

const OWNER_BYTES_MAX: usize = 128;
const TITLE_BYTES_MAX: usize = 1024;
const METADATA_BYTES_MAX: usize = 16 << 10;
const SEARCH_BYTES_MAX: usize = 1024;
const PAGE_MAX: u32 = 200;

/// A conversation that is to be made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewConversation {
    /// What a list shows; empty takes the first text of the user when there is one.
    pub title: String,
    /// Whatever the server keeps with it: model, preset, system prompt.
    pub metadata: Option<Value>,
}

/// A conversation as a list shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConversationInfo {
    /// `conv_` and 24 characters.
    pub id: String,
    /// May be empty.
    pub title: String,
    /// Whatever the server keeps with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it was last changed.
    pub updated_at: UnixMs,
    /// How many messages it has.
    pub messages: u64,
    /// The last of them, which the next append names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_message: Option<String>,
}

/// A whole conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Everything but the messages.
    pub info: ConversationInfo,
    /// In order.
    pub messages: Vec<Message>,
    /// Of the messages up to one of them.
    pub summary: Option<Summary>,
}

/// What a model wrote about the beginning of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The summary.
    pub text: String,
    /// The last message that it covers.
    pub up_to: String,
    /// Its length in tokens.
    pub tokens: u32,
}

/// Which conversations to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery<'a> {
    /// Only those with all these words in the title, or in one message; the last word may be the beginning of one.
    pub search: Option<&'a str>,
    /// [`ListPage::next`] of the page before.
    pub cursor: Option<&'a str>,
    /// At most this many, 1 to 200.
    pub limit: u32,
}

/// A page of a list, the last changed first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListPage {
    /// The conversations.
    pub conversations: Vec<ConversationInfo>,
    /// What gives the next page; none if this is the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Store {
    /// Makes an empty conversation.
    pub fn create(&self, owner: &str, new: &NewConversation, now: UnixMs) -> Result<ConversationInfo> {
        check_owner(owner)?;
        check_title(&new.title)?;
        let metadata = encode_metadata(new.metadata.as_ref())?;
        let id = ids::id("conv_")?;
        self.write(|tx| {
            let sql = "SELECT count(*) FROM conversations WHERE owner = ?1";
            let count: i64 = tx.query_row(sql, [owner], |r| r.get(0))?;
            let limit = self.limits().conversations_per_owner;
            if count.max(0) as u64 >= limit {
                return Err(Error::Full { what: "conversations of one owner", limit }.into());
            }
            self.room(tx, 512 + metadata.as_ref().map_or(0, String::len) as u64)?;
            tx.execute(
                "INSERT INTO conversations (id, owner, title, metadata, created_at, updated_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
                params![id, owner, new.title, metadata, now],
            )?;
            info(tx, owner, &id)
        })
    }

    /// A page of an owner's conversations, the last changed first.
    pub fn list(&self, owner: &str, query: &ListQuery<'_>) -> Result<ListPage> {
        if query.limit == 0 || query.limit > PAGE_MAX {
            return Err(Error::invalid("limit", format!("must be 1 to {PAGE_MAX}")));
        }
        let (before, before_id) = query.cursor.map_or(Ok((i64::MAX, "~")), parse_cursor)?;
        let filter = Filter::of(query.search)?;
        let sql = format!(
            "SELECT {INFO} FROM conversations c WHERE owner = ?1 AND (updated_at, id) < (?2, ?3) AND {} \
             ORDER BY updated_at DESC, id DESC LIMIT ?4",
            filter.sql()
        );
        let limit = i64::from(query.limit) + 1; // one more tells whether there is a next page
        self.read(|tx| {
            let mut statement = tx.prepare(&sql)?;
            let word: &dyn ToSql = match &filter {
                Filter::All => &None::<String>,
                Filter::Words(w) | Filter::Part(w) => w,
            };
            let rows = statement.query_map(params![owner, before, before_id, limit, word], info_of)?;
            let mut found: Vec<ConversationInfo> = rows.collect::<rusqlite::Result<_>>()?;
            let more = found.len() > query.limit as usize;
            found.truncate(query.limit as usize);
            let next = found.last().filter(|_| more).map(|c| format!("{}.{}", c.updated_at, c.id));
            Ok(ListPage { conversations: found, next })
        })
    }

    /// A conversation without its messages.
    pub fn info(&self, owner: &str, id: &str) -> Result<ConversationInfo> {
        self.read(|tx| info(tx, owner, id))
    }

    /// A conversation with all its messages, as they are at one moment.
    pub fn conversation(&self, owner: &str, id: &str) -> Result<Conversation> {
        self.read(|tx| {
            let n = row(tx, owner, id)?;
            Ok(Conversation {
                info: info(tx, owner, id)?,
                messages: messages::select(tx, n, 0, u64::MAX)?,
                summary: summary(tx, n)?,
            })
        })
    }

    /// Gives it another title.
    pub fn rename(&self, owner: &str, id: &str, title: &str, now: UnixMs) -> Result<ConversationInfo> {
        check_title(title)?;
        self.write(|tx| {
            let n = row(tx, owner, id)?;
            let sql = "UPDATE conversations SET title = ?2, updated_at = max(updated_at, ?3) WHERE n = ?1";
            tx.execute(sql, params![n, title, now])?;
            info(tx, owner, id)
        })
    }

    /// Replaces what the server keeps with it.
    pub fn set_metadata(&self, owner: &str, id: &str, metadata: Option<&Value>, now: UnixMs) -> Result<()> {
        let text = encode_metadata(metadata)?;
        self.write(|tx| {
            let n = row(tx, owner, id)?;
            let sql = "UPDATE conversations SET metadata = ?2, updated_at = max(updated_at, ?3) WHERE n = ?1";
            tx.execute(sql, params![n, text, now])?;
            Ok(())
        })
    }

    /// Removes it with all its messages.
    pub fn delete(&self, owner: &str, id: &str) -> Result<()> {
        self.write(|tx| {
            let n = row(tx, owner, id)?;
            tx.execute("DELETE FROM conversations WHERE n = ?1", [n])?;
            Ok(())
        })
    }

    /// Removes everything that an owner has: conversations and responses. Gives how many of both.
    pub fn delete_all(&self, owner: &str) -> Result<u64> {
        self.write(|tx| {
            let conversations = tx.execute("DELETE FROM conversations WHERE owner = ?1", [owner])?;
            let responses = tx.execute("DELETE FROM responses WHERE owner = ?1", [owner])?;
            Ok((conversations + responses) as u64)
        })
    }

    /// Keeps a summary of the messages up to one of them, in place of the one before. A summary that reaches less far than
    /// the one that is kept is a conflict: somebody was faster.
    pub fn set_summary(&self, owner: &str, id: &str, new: &Summary) -> Result<()> {
        let (size, limit) = (new.text.len() as u64, self.limits().message_bytes);
        if size > limit {
            return Err(Error::TooLarge { what: "bytes of a summary", size, limit });
        }
        self.write(|tx| {
            let n = row(tx, owner, id)?;
            let reach = messages::position(tx, n, &new.up_to)?;
            if let Some(kept) = summary(tx, n)?
                && messages::position(tx, n, &kept.up_to)? > reach
            {
                return Err(Error::Conflict {
                    what: format!("the summary of {id}"),
                    expected: format!("one that ends before {}", new.up_to),
                    found: format!("one that ends at {}", kept.up_to),
                }
                .into());
            }
            self.room(tx, size)?;
            tx.execute(
                "UPDATE conversations SET summary = ?2, summary_up_to = ?3, summary_tokens = ?4 WHERE n = ?1",
                params![n, new.text, new.up_to, new.tokens],
            )?;
            Ok(())
        })
    }
}

/// SQLite's number of an owner's conversation.
pub(crate) fn row(tx: &Transaction<'_>, owner: &str, id: &str) -> Result<i64, Fault> {
    let sql = "SELECT n FROM conversations WHERE id = ?1 AND owner = ?2";
    let n = tx.query_row(sql, [id, owner], |r| r.get(0)).optional()?;
    Ok(n.ok_or_else(|| Error::not_found("conversation", id))?)
}

/// Positions have no gaps, so the last one counts the messages.
const INFO: &str = "id, title, metadata, created_at, updated_at, \
    (SELECT coalesce(max(position) + 1, 0) FROM messages WHERE conversation = c.n), \
    (SELECT id FROM messages WHERE conversation = c.n ORDER BY position DESC LIMIT 1)";

fn info(tx: &Transaction<'_>, owner: &str, id: &str) -> Result<ConversationInfo, Fault> {
    let sql = format!("SELECT {INFO} FROM conversations c WHERE id = ?1 AND owner = ?2");
    let found = tx.query_row(&sql, [id, owner], info_of).optional()?;
    Ok(found.ok_or_else(|| Error::not_found("conversation", id))?)
}

fn info_of(r: &Row<'_>) -> rusqlite::Result<ConversationInfo> {
    Ok(ConversationInfo {
        id: r.get(0)?,
        title: r.get(1)?,
        metadata: json(r, 2)?,
        created_at: r.get(3)?,
        updated_at: r.get(4)?,
        messages: r.get::<_, i64>(5)?.max(0) as u64,
        last_message: r.get(6)?,
    })
}

fn summary(tx: &Transaction<'_>, n: i64) -> Result<Option<Summary>, Fault> {
    let sql = "SELECT summary, summary_up_to, summary_tokens FROM conversations WHERE n = ?1 AND summary IS NOT NULL";
    let read = |r: &Row<'_>| Ok(Summary { text: r.get(0)?, up_to: r.get(1)?, tokens: r.get(2)? });
    Ok(tx.query_row(sql, [n], read).optional()?)
}

pub(crate) fn check_owner(owner: &str) -> Result<()> {
    if owner.is_empty() || owner.len() > OWNER_BYTES_MAX {
        return Err(Error::invalid("owner", format!("must have 1 to {OWNER_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn check_title(title: &str) -> Result<()> {
    let (size, limit) = (title.len() as u64, TITLE_BYTES_MAX as u64);
    if size > limit {
        return Err(Error::TooLarge { what: "bytes of a title", size, limit });
    }
    if title.chars().any(char::is_control) {
        return Err(Error::invalid("title", "must be one line without control characters"));
    }
    Ok(())
}

fn encode_metadata(metadata: Option<&Value>) -> Result<Option<String>> {
    let text = metadata.map(Value::to_string);
    let (size, limit) = (text.as_ref().map_or(0, String::len) as u64, METADATA_BYTES_MAX as u64);
    if size > limit {
        return Err(Error::TooLarge { what: "bytes of metadata", size, limit });
    }
    Ok(text)
}

fn parse_cursor(cursor: &str) -> Result<(i64, &str)> {
    let parts = cursor.split_once('.').and_then(|(at, id)| Some((at.parse().ok()?, id)));
    parts.ok_or_else(|| Error::invalid("cursor", "is none that a list gave; begin without one"))
}

/// How a search is done: through the index of words or, for scripts without spaces between words, by looking for the
/// text itself, because the index knows only what is between spaces.
enum Filter {
    All,
    Words(String),
    Part(String),
}

impl Filter {
    fn of(search: Option<&str>) -> Result<Filter> {
        let Some(search) = search.map(str::trim).filter(|s| !s.is_empty()) else { return Ok(Filter::All) };
        let (size, limit) = (search.len() as u64, SEARCH_BYTES_MAX as u64);
        if size > limit {
            return Err(Error::TooLarge { what: "bytes of a search", size, limit });
        }
        if search.chars().any(words::unspaced) {
            return Ok(Filter::Part(search.to_owned()));
        }
        // Every word in quotes: nothing that a person types is an operator of the query language.
        let list: Vec<String> = words::words(search).iter().map(|w| format!("\"{w}\"")).collect();
        if list.is_empty() {
            return Ok(Filter::Part(search.to_owned()));
        }
        Ok(Filter::Words(format!("{}*", list.join(" "))))
    }

    fn sql(&self) -> &'static str {
        match self {
            Filter::All => "?5 IS NULL",
            Filter::Words(_) => {
                "(c.n IN (SELECT rowid FROM titles_words WHERE titles_words MATCH ?5) OR c.n IN \
                 (SELECT m.conversation FROM messages_words w JOIN messages m ON m.n = w.rowid \
                  WHERE messages_words MATCH ?5))"
            }
            Filter::Part(_) => {
                "(instr(title, ?5) > 0 OR EXISTS \
                 (SELECT 1 FROM messages m WHERE m.conversation = c.n AND instr(m.text, ?5) > 0))"
            }
        }
    }
}
