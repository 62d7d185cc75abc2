//! SentencePiece unigram (`t5`): the path of tokens with the best sum of scores, after SentencePiece's own
//! normalisation table (an XOR-compressed double array, here with every index checked).

use super::table::{NONE, Pieces};
use super::vocab::TokenType;
use crate::{Error, Result};

/// A token of more bytes than this is refused: the search looks at every start with every length.
const MAX_TOKEN_BYTES: usize = 1024;
/// How much worse than the worst token an unknown character scores (SentencePiece's own figure).
const UNKNOWN_PENALTY: f64 = 10.0;

/// The searchable vocabulary.
#[derive(Debug)]
pub(super) struct Unigram {
    /// Ids in the order of their bytes, for narrowing a prefix byte by byte.
    sorted: Vec<u32>,
    scores: Vec<f32>,
    unknown_score: f64,
    charsmap: Charsmap,
    pub(super) add_space_prefix: bool,
    pub(super) merge_spaces: bool,
}

impl Unigram {
    /// # Errors
    /// No scores, a token longer than 1024 bytes, or a broken normalisation table.
    pub(super) fn new(pieces: &Pieces, types: &[TokenType], scores: &[f32], charsmap: &[u8]) -> Result<Self> {
        if scores.len() < pieces.len() {
            return Err(Error::Missing { field: "tokenizer.ggml.scores" });
        }
        let mut scores = scores[..pieces.len()].to_vec();
        let mut sorted = Vec::with_capacity(pieces.len());
        let mut worst = f64::INFINITY;
        for id in 0..pieces.len() as u32 {
            let kind = types[id as usize];
            if !matches!(kind, TokenType::Normal | TokenType::UserDefined | TokenType::Unused) {
                continue;
            }
            let bytes = pieces.get(id).unwrap_or_default().len();
            if bytes > MAX_TOKEN_BYTES {
                let what = format!("token {id} has {bytes} bytes (at most {MAX_TOKEN_BYTES})");
                return Err(Error::BadField { field: "tokenizer.ggml.tokens", what });
            }
            match kind {
                TokenType::UserDefined => scores[id as usize] = 0.0,
                TokenType::Normal => worst = worst.min(f64::from(scores[id as usize])),
                _ => {}
            }
            if bytes > 0 {
                sorted.push(id);
            }
        }
        sorted.sort_unstable_by_key(|&id| (pieces.get(id), id));
        sorted.dedup_by_key(|id| pieces.get(*id)); // a text with two ids keeps the first
        let unknown_score = if worst.is_finite() { worst } else { 0.0 } - UNKNOWN_PENALTY;
        let charsmap = Charsmap::new(charsmap)?;
        Ok(Self { sorted, scores, unknown_score, charsmap, add_space_prefix: false, merge_spaces: false })
    }

    /// Appends the ids of a text without special tokens.
    ///
    /// # Errors
    /// The normalisation table points outside itself, or a character is unknown and there is no unknown token.
    pub(super) fn encode(
        &self,
        text: &str,
        pieces: &Pieces,
        bytes: &[u32; 256],
        unk: Option<u32>,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let text = self.normalize(text)?;
        let raw = text.as_bytes();
        // best[end] = (score of the best path to here, its last token, where that starts)
        let mut best = vec![(f64::NEG_INFINITY, NONE, 0u32); raw.len() + 1];
        best[0].0 = 0.0;
        for (start, c) in text.char_indices() {
            let here = best[start].0;
            let mut whole_char = false;
            let (mut lo, mut hi) = (0, self.sorted.len());
            for (depth, &byte) in raw[start..].iter().enumerate() {
                let range = &self.sorted[lo..hi];
                let at = |id: u32| pieces.get(id).and_then(|p| p.get(depth)).copied();
                hi = lo + range.partition_point(|&id| at(id) <= Some(byte));
                lo += range.partition_point(|&id| at(id) < Some(byte));
                let Some(&first) = self.sorted[lo..hi].first() else { break };
                let end = start + depth + 1;
                if pieces.get(first).is_some_and(|p| p.len() == depth + 1) {
                    whole_char |= depth + 1 == c.len_utf8();
                    let score = here + f64::from(self.scores[first as usize]);
                    if score > best[end].0 {
                        best[end] = (score, first, start as u32);
                    }
                }
            }
            let (end, score) = (start + c.len_utf8(), here + self.unknown_score);
            if !whole_char && score > best[end].0 {
                best[end] = (score, NONE, start as u32);
            }
        }
        let first_new = out.len();
        let mut end = raw.len();
        let mut unknown_after = false;
        while end > 0 {
            let (_, id, start) = best[end];
            let spelled = &raw[start as usize..end];
            let unknown = id == NONE;
            if !unknown {
                out.push(id);
            } else if spelled.iter().all(|&b| bytes[b as usize] != NONE) {
                out.extend(spelled.iter().rev().map(|&b| bytes[b as usize]));
            } else if !unknown_after {
                let what = String::from_utf8_lossy(spelled);
                out.push(
                    unk.ok_or_else(|| Error::Encode(format!("the vocabulary has no token for `{what}`")))?,
                );
            }
            unknown_after = unknown;
            end = start as usize;
        }
        out[first_new..].reverse();
        Ok(())
    }

    /// Normalised text with spaces as `▁`.
    fn normalize(&self, text: &str) -> Result<String> {
        let mut out = String::with_capacity(text.len() + text.len() / 4);
        let (mut in_word, mut prefixed) = (false, false);
        let mut rest = text;
        while !rest.is_empty() {
            let (replaced, used) = match self.charsmap.longest(rest.as_bytes())? {
                Some((replacement, used)) if rest.is_char_boundary(used) => (replacement, used),
                _ => {
                    let used = rest.chars().next().map_or(1, char::len_utf8);
                    (&rest[..used], used)
                }
            };
            for c in replaced.chars() {
                if c == ' ' {
                    in_word = false;
                    if !self.merge_spaces {
                        out.push('▁');
                    }
                    continue;
                }
                if !in_word {
                    in_word = true;
                    if (self.add_space_prefix && !prefixed) || self.merge_spaces {
                        out.push('▁');
                        prefixed = true;
                    }
                }
                out.push(c);
            }
            rest = &rest[used..];
        }
        if self.merge_spaces {
            out.truncate(out.trim_end_matches('▁').len());
        }
        Ok(out)
    }
}

/// `precompiled_charsmap`: prefixes of the text and what replaces them.
/// A node packs BASE (bits 10-30, shifted by 8 where bit 9 is set), LABEL (bits 0-7) and HAS_LEAF (bit 8).
#[derive(Debug, Default)]
struct Charsmap {
    nodes: Vec<u32>,
    /// Zero-terminated replacements.
    texts: Vec<u8>,
}

impl Charsmap {
    fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let bad =
            |what: &str| Error::BadField { field: "tokenizer.ggml.precompiled_charsmap", what: what.into() };
        let (head, rest) =
            bytes.split_first_chunk::<4>().ok_or_else(|| bad("shorter than its length field"))?;
        let size = u32::from_le_bytes(*head) as usize;
        if !size.is_multiple_of(4) || size >= rest.len() {
            return Err(bad("its trie does not fit in it"));
        }
        let (trie, texts) = rest.split_at(size);
        let nodes = trie.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        Ok(Self { nodes, texts: texts.to_vec() })
    }

    /// The replacement of the longest prefix that has one, and that prefix's length.
    fn longest(&self, text: &[u8]) -> Result<Option<(&str, usize)>> {
        if self.nodes.is_empty() {
            return Ok(None);
        }
        let bad =
            |what: &str| Error::BadField { field: "tokenizer.ggml.precompiled_charsmap", what: what.into() };
        let node = |i: u32| {
            self.nodes.get(i as usize).copied().ok_or_else(|| bad("an index points outside the trie"))
        };
        let base = |n: u32| (n >> 10) << ((n & (1 << 9)) >> 6);
        let mut found = None;
        let mut at = base(node(0)?);
        for (i, &byte) in text.iter().enumerate() {
            at ^= u32::from(byte);
            let here = node(at)?;
            if byte == 0 || here & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            at ^= base(here);
            if here >> 8 & 1 == 1 {
                found = Some((node(at)? & !(1 << 31), i + 1));
            }
        }
        let Some((offset, used)) = found else { return Ok(None) };
        let tail =
            self.texts.get(offset as usize..).ok_or_else(|| bad("a replacement points outside the table"))?;
        let end = tail.iter().position(|&b| b == 0).ok_or_else(|| bad("a replacement does not end"))?;
        let text = str::from_utf8(&tail[..end]).map_err(|_| bad("a replacement is not UTF-8"))?;
        Ok(Some((text, used)))
    }
}
