//! Token texts in one allocation, and the map from bytes to id. A vocabulary of 262,144 tokens is ready in
//! milliseconds because nothing is allocated per token.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use crate::{Error, Result};

/// No token.
pub(super) const NONE: u32 = u32::MAX;

/// Byte strings by index, back to back.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl Pieces {
    pub(super) fn with_capacity(count: usize) -> Self {
        Self { data: Vec::with_capacity(count.saturating_mul(8)), ends: Vec::with_capacity(count) }
    }

    /// Appends one piece that `write` puts at the end of the buffer.
    ///
    /// # Errors
    /// More than 4 GiB of text or tokens.
    pub(super) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        write(&mut self.data);
        let end = u32::try_from(self.data.len()).ok().filter(|_| self.ends.len() < NONE as usize);
        self.ends.push(end.ok_or_else(|| Error::BadField {
            field: "tokenizer.ggml.tokens",
            what: "more than 4 GiB of tokens".into(),
        })?);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The piece of index `id`, if there is one.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let i = id as usize;
        let end = *self.ends.get(i)? as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        Some(&self.data[start..end])
    }
}

/// From bytes to id; the bytes live in a [`Pieces`] that is passed to each call.
#[derive(Debug, Default)]
pub(super) struct Index {
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Longest entry, bytes.
    pub(super) longest: usize,
}

impl Index {
    pub(super) fn with_capacity(count: usize) -> Self {
        Self { table: HashTable::with_capacity(count), hasher: DefaultHashBuilder::default(), longest: 0 }
    }

    /// Adds `id`, or returns the id that already has these bytes.
    pub(super) fn insert(&mut self, pieces: &Pieces, id: u32) -> Option<u32> {
        let bytes = pieces.get(id)?;
        let hash = self.hasher.hash_one(bytes);
        if let Some(&there) = self.table.find(hash, |&other| pieces.get(other) == Some(bytes)) {
            return Some(there);
        }
        let hasher = &self.hasher;
        self.table.insert_unique(hash, id, |&other| hasher.hash_one(pieces.get(other).unwrap_or_default()));
        self.longest = self.longest.max(bytes.len());
        None
    }

    pub(super) fn get(&self, pieces: &Pieces, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        self.table.find(self.hasher.hash_one(bytes), |&id| pieces.get(id) == Some(bytes)).copied()
    }
}
