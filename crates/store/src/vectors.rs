//! Vectors of messages, for retrieval by meaning: made by the caller, kept beside the messages and gone with them. One of
//! another model counts as none, so that a change of the model makes them anew.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

use crate::{Error, Result, Store, conversations};

/// Most numbers of a vector.
const DIMENSIONS_MAX: usize = 1 << 16;

impl Store {
    /// The vectors of a conversation that `model` made, by message.
    pub fn vectors(&self, owner: &str, conversation: &str, model: &str) -> Result<HashMap<String, Vec<f32>>> {
        self.read(|tx| {
            let n = conversations::row(tx, owner, conversation)?;
            let mut select = tx.prepare(
                "SELECT m.id, v.vector FROM vectors v JOIN messages m ON m.n = v.message \
                 WHERE m.conversation = ?1 AND v.model = ?2",
            )?;
            let rows = select.query_map(params![n, model], |r| Ok((r.get(0)?, r.get::<_, Vec<u8>>(1)?)))?;
            let mut out = HashMap::new();
            for row in rows {
                let (id, bytes): (String, _) = row?;
                let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                out.insert(id, numbers.collect());
            }
            Ok(out)
        })
    }

    /// Messages with a text that have no vector of `model`, with their texts, in order, at most `limit`.
    pub fn without_vectors(
        &self,
        owner: &str,
        conversation: &str,
        model: &str,
        limit: u32,
    ) -> Result<Vec<(String, String)>> {
        self.read(|tx| {
            let n = conversations::row(tx, owner, conversation)?;
            let mut select = tx.prepare(
                "SELECT m.id, m.text FROM messages m LEFT JOIN vectors v ON v.message = m.n AND v.model = ?2 \
                 WHERE m.conversation = ?1 AND v.message IS NULL AND m.text <> '' ORDER BY m.position LIMIT ?3",
            )?;
            let rows = select.query_map(params![n, model, limit], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Keeps vectors of messages, instead of those that other models made; of messages that are gone meanwhile nothing. Gives
    /// how many were kept.
    ///
    /// # Errors
    /// A vector is empty, too long or has a value that is not finite; the store is full.
    pub fn set_vectors(
        &self,
        owner: &str,
        conversation: &str,
        model: &str,
        vectors: &[(String, Vec<f32>)],
    ) -> Result<usize> {
        if vectors
            .iter()
            .any(|(_, v)| v.is_empty() || v.len() > DIMENSIONS_MAX || v.iter().any(|x| !x.is_finite()))
        {
            return Err(Error::invalid("vector", format!("must have 1 to {DIMENSIONS_MAX} finite numbers")));
        }
        let more: usize = vectors.iter().map(|(_, v)| 4 * v.len() + model.len()).sum();
        self.write(|tx| {
            let n = conversations::row(tx, owner, conversation)?;
            self.room(tx, more as u64)?;
            let mut kept = 0;
            for (id, vector) in vectors {
                let sql = "SELECT n FROM messages WHERE id = ?1 AND conversation = ?2";
                let message: Option<i64> = tx.query_row(sql, params![id, n], |r| r.get(0)).optional()?;
                let Some(message) = message else { continue };
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                let sql = "INSERT OR REPLACE INTO vectors (message, model, vector) VALUES (?1, ?2, ?3)";
                kept += tx.execute(sql, params![message, model, bytes])?;
            }
            Ok(kept)
        })
    }
}
