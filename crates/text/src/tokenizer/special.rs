//! Cuts a text at its special tokens before anything else sees it.

use aho_corasick::{AhoCorasick, MatchKind};

use super::table::Pieces;
use crate::{Error, Result};

/// A part of a text.
#[derive(Debug, PartialEq)]
pub(super) enum Part<'t> {
    /// Ordinary text.
    Text(&'t str),
    /// A special token.
    Token(u32),
}

/// What a special token does to the white space around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strip {
    pub(super) left: bool,
    pub(super) right: bool,
}

/// Finds special tokens: leftmost first, the longest of those that start there.
#[derive(Debug)]
pub(super) struct Partition {
    matcher: Option<AhoCorasick>,
    ids: Vec<(u32, Strip)>,
}

impl Partition {
    /// # Errors
    /// The special tokens are too many or too long for an automaton.
    pub(super) fn new(texts: &Pieces, ids: Vec<(u32, Strip)>) -> Result<Self> {
        if ids.is_empty() {
            return Ok(Self { matcher: None, ids });
        }
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(ids.iter().map(|&(id, _)| texts.get(id).unwrap_or_default()))
            .map_err(|e| Error::BadField {
                field: "tokenizer.ggml.tokens",
                what: format!("special tokens: {e}"),
            })?;
        Ok(Self { matcher: Some(matcher), ids })
    }

    /// The parts of `text` in order; no text part is empty.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let mut rest_from = 0;
        let space = |c: char| matches!(c, ' ' | '\t'..='\r');
        for m in self.matcher.iter().flat_map(|matcher| matcher.find_iter(text)) {
            let (id, strip) = self.ids[m.pattern().as_usize()];
            let Some(mut before) = text.get(rest_from.min(m.start())..m.start()) else { continue };
            if strip.left {
                before = before.trim_end_matches(space);
            }
            if !before.is_empty() {
                parts.push(Part::Text(before));
            }
            parts.push(Part::Token(id));
            let after = &text[m.end()..];
            rest_from =
                m.end() + if strip.right { after.len() - after.trim_start_matches(space).len() } else { 0 };
        }
        if rest_from < text.len() {
            parts.push(Part::Text(&text[rest_from..]));
        }
        parts
    }
}
