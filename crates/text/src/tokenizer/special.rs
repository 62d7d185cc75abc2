//! Cuts a text at its special tokens before anything else sees it.

use aho_corasick::{AhoCorasick, MatchKind};

use super::table::Pieces;
use crate::{Error, Result};

/// Stands inside the names of control tokens that are not to be those tokens. Unicode keeps it for the inside of programs.
pub(super) const QUOTE: char = '\u{FDD0}';

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
#[derive(Debug, Default)]
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

    /// The text with a [`QUOTE`] in each name, so that none is found again; none if there is nothing to change.
    pub(super) fn quote(&self, text: &str) -> Option<String> {
        let first = self.matcher.as_ref()?.find(text)?;
        let mut out = String::with_capacity(text.len() + 64);
        let (mut from, mut next) = (0, Some(first.start()));
        // A name may begin inside of another, so the search goes on behind the first character.
        while let Some(start) = next {
            let head = text[start..].chars().next().map_or(1, char::len_utf8);
            out.push_str(&text[from..start + head]);
            out.push(QUOTE);
            from = start + head;
            next = self.matcher.as_ref().and_then(|m| m.find(&text[from..])).map(|m| from + m.start());
        }
        out.push_str(&text[from..]);
        Some(out)
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
