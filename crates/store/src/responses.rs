//! Stored responses of `/v1/responses`: each may name the one before it, and a chain gives back all items in order.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde_json::Value;

use crate::error::Fault;
use crate::messages::{json, odd};
use crate::{Error, Result, Store, UnixMs, conversations};

/// A response that is to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewResponse {
    /// From [`crate::new_response_id`].
    pub id: String,
    /// The response that this one goes on from.
    pub previous: Option<String>,
    /// The model that answered.
    pub model: String,
    /// Items of the request, without those of the chain.
    pub input: Vec<Value>,
    /// Items of the answer.
    pub output: Vec<Value>,
    /// Whatever else the server gives back with it.
    pub settings: Value,
    /// How long it is kept.
    pub ttl_ms: i64,
}

/// A response that is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredResponse {
    /// `resp_` and 24 characters.
    pub id: String,
    /// The response before it.
    pub previous: Option<String>,
    /// The model that answered.
    pub model: String,
    /// Items of the request, without those of the chain.
    pub input: Vec<Value>,
    /// Items of the answer.
    pub output: Vec<Value>,
    /// Whatever else the server gives back with it.
    pub settings: Value,
    /// When it was stored.
    pub created_at: UnixMs,
    /// When it goes away; later if a newer one names it.
    pub expires_at: UnixMs,
}

/// A response and all before it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chain {
    /// Ids, the oldest first.
    pub ids: Vec<String>,
    /// Input and output of each in turn, the oldest first: what the next request's input follows.
    pub items: Vec<Value>,
}

impl Store {
    /// Stores a response. What it follows is kept for at least as long.
    pub fn put_response(&self, owner: &str, new: &NewResponse, now: UnixMs) -> Result<()> {
        conversations::check_owner(owner)?;
        if !new.id.starts_with("resp_") || new.id.len() > 64 {
            return Err(Error::invalid("id", "must begin with resp_ and have at most 64 bytes"));
        }
        if new.ttl_ms <= 0 {
            return Err(Error::invalid("ttl_ms", "must be above 0"));
        }
        let (input, output) = (encode(&new.input), encode(&new.output));
        let settings = new.settings.to_string();
        let size = (input.len() + output.len() + settings.len() + new.model.len()) as u64;
        let limits = self.limits();
        if size > limits.conversation_bytes {
            let limit = limits.conversation_bytes;
            return Err(Error::TooLarge { what: "bytes of a response", size, limit });
        }
        let expires_at = now.saturating_add(new.ttl_ms);
        self.write(|tx| {
            let (depth, bytes) = match &new.previous {
                None => (1, size),
                Some(previous) => {
                    let (depth, bytes) = link(tx, owner, previous, now)?;
                    keep_chain(tx, owner, previous, expires_at)?;
                    (depth + 1, bytes.saturating_add(size))
                }
            };
            if depth > limits.response_chain {
                return Err(Error::Full { what: "responses of a chain", limit: limits.response_chain }.into());
            }
            if bytes > limits.conversation_bytes {
                return Err(Error::Full { what: "bytes of a chain", limit: limits.conversation_bytes }.into());
            }
            let sql = "SELECT count(*) FROM responses WHERE owner = ?1";
            if tx.query_row(sql, [owner], |r| r.get::<_, i64>(0))?.max(0) as u64 >= limits.responses_per_owner {
                let limit = limits.responses_per_owner;
                return Err(Error::Full { what: "stored responses of one owner", limit }.into());
            }
            self.room(tx, size + 512)?;
            let added = tx.execute(
                "INSERT INTO responses (id, owner, previous, depth, model, input, output, settings, created_at, \
                 expires_at, chain_bytes) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11) ON CONFLICT (id) DO NOTHING",
                params![
                    new.id,
                    owner,
                    new.previous,
                    depth as i64,
                    new.model,
                    input,
                    output,
                    settings,
                    now,
                    expires_at,
                    bytes as i64
                ],
            )?;
            if added == 0 {
                return Err(Error::Conflict {
                    what: "the response to be stored".into(),
                    expected: "an id that is new".into(),
                    found: "one that is taken".into(),
                }
                .into());
            }
            Ok(())
        })
    }

    /// A response by its id.
    pub fn response(&self, owner: &str, id: &str, now: UnixMs) -> Result<StoredResponse> {
        self.read(|tx| get(tx, owner, id, now))
    }

    /// Removes a response. Those that follow it stay, but their chain is broken: [`Store::chain`] then names this one.
    pub fn delete_response(&self, owner: &str, id: &str) -> Result<()> {
        self.write(|tx| {
            match tx.execute("DELETE FROM responses WHERE id = ?1 AND owner = ?2", [id, owner])? {
                0 => Err(Error::not_found("response", id).into()),
                _ => Ok(()),
            }
        })
    }

    /// The items of a response and of all before it, in order.
    pub fn chain(&self, owner: &str, id: &str, now: UnixMs) -> Result<Chain> {
        self.read(|tx| {
            let mut links = Vec::new();
            let mut next = Some(id.to_owned());
            while let Some(id) = next {
                // Depth is checked when a response is stored; a damaged file may still have a circle.
                if links.len() as u64 >= self.limits().response_chain {
                    let limit = self.limits().response_chain;
                    return Err(Error::Full { what: "responses of a chain", limit }.into());
                }
                let response = get(tx, owner, &id, now)?;
                next = response.previous.clone();
                links.push(response);
            }
            let mut chain = Chain::default();
            for link in links.into_iter().rev() {
                chain.ids.push(link.id);
                chain.items.extend(link.input);
                chain.items.extend(link.output);
            }
            Ok(chain)
        })
    }
}

fn encode(items: &[Value]) -> String {
    Value::from(items).to_string()
}

/// Depth and bytes of the chain that ends with a response.
fn link(tx: &Transaction<'_>, owner: &str, id: &str, now: UnixMs) -> Result<(u64, u64), Fault> {
    let sql = "SELECT depth, chain_bytes FROM responses WHERE id = ?1 AND owner = ?2 AND expires_at > ?3";
    let read = |r: &Row<'_>| Ok((r.get::<_, i64>(0)?.max(0) as u64, r.get::<_, i64>(1)?.max(0) as u64));
    let found = tx.query_row(sql, params![id, owner, now], read).optional()?;
    Ok(found.ok_or_else(|| Error::not_found("response", id))?)
}

/// Nothing in a chain goes away before its end does.
fn keep_chain(tx: &Transaction<'_>, owner: &str, id: &str, until: UnixMs) -> Result<(), Fault> {
    tx.execute(
        "WITH RECURSIVE chain (id, previous) AS (\
           SELECT id, previous FROM responses WHERE id = ?1 AND owner = ?2 \
           UNION SELECT r.id, r.previous FROM responses r JOIN chain ON r.id = chain.previous WHERE r.owner = ?2) \
         UPDATE responses SET expires_at = ?3 WHERE id IN (SELECT id FROM chain) AND expires_at < ?3",
        params![id, owner, until],
    )?;
    Ok(())
}

fn get(tx: &Transaction<'_>, owner: &str, id: &str, now: UnixMs) -> Result<StoredResponse, Fault> {
    let sql = "SELECT id, previous, model, input, output, settings, created_at, expires_at FROM responses \
               WHERE id = ?1 AND owner = ?2 AND expires_at > ?3";
    let found = tx.query_row(sql, params![id, owner, now], decode).optional()?;
    Ok(found.ok_or_else(|| Error::not_found("response", id))?)
}

fn decode(r: &Row<'_>) -> rusqlite::Result<StoredResponse> {
    let items = |column| match json(r, column)? {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(odd(column, "not a list".into())),
    };
    Ok(StoredResponse {
        id: r.get(0)?,
        previous: r.get(1)?,
        model: r.get(2)?,
        input: items(3)?,
        output: items(4)?,
        settings: json(r, 5)?.unwrap_or_default(),
        created_at: r.get(6)?,
        expires_at: r.get(7)?,
    })
}

pub(crate) fn remove_expired(tx: &Transaction<'_>, now: UnixMs) -> rusqlite::Result<u64> {
    Ok(tx.execute("DELETE FROM responses WHERE expires_at <= ?1", [now])? as u64)
}
