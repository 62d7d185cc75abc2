//! Byte-pair encoding by merge ranks, over raw bytes: GPT-2's printable alphabet is undone when the vocabulary is read.

use hashbrown::HashMap;

use super::merge::Merger;
use super::pre::{PreTokenizer, shorten};
use super::table::{Index, NONE, Pieces};
use crate::{Error, Result};

/// The merges of a vocabulary, by pairs of ids.
#[derive(Debug)]
pub(super) struct Bpe {
    pub(super) pre: PreTokenizer,
    /// (left, right) to (rank, joined).
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// Token of each single byte, [`NONE`] where there is none.
    bytes: Box<[u32; 256]>,
}

impl Bpe {
    /// Resolves merges (`left right`, best first) to ids. A merge whose parts or result are no tokens is left out: it
    /// could only make what the vocabulary cannot say. `bytes` are the byte tokens `<0xXX>`; a byte-level vocabulary
    /// has its own.
    ///
    /// # Errors
    /// A merge that is not two parts.
    pub(super) fn new(
        pre: PreTokenizer,
        merges: &[String],
        mut bytes: Box<[u32; 256]>,
        pieces: &Pieces,
        index: &Index,
    ) -> Result<Self> {
        let byte_level = pre.rules.byte_level;
        let mut map = HashMap::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, merge) in merges.iter().enumerate() {
            // The first part may itself begin with a space, never be empty.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let Some(space) = merge[first..].find(' ').map(|i| i + first) else {
                let what = format!("merge {rank} `{}` is not two parts with a space between", shorten(merge));
                return Err(Error::BadField { field: "tokenizer.ggml.merges", what });
            };
            joined.clear();
            spell(&merge[..space], byte_level, &mut joined);
            let cut = joined.len();
            spell(&merge[space + 1..], byte_level, &mut joined);
            let find = |bytes: &[u8]| index.get(pieces, bytes);
            if let (Some(l), Some(r), Some(to)) = (find(&joined[..cut]), find(&joined[cut..]), find(&joined))
            {
                map.entry((l, r)).or_insert((rank as u32, to));
            }
        }
        if byte_level {
            for byte in 0..=255u8 {
                bytes[byte as usize] = index.get(pieces, &[byte]).unwrap_or(NONE);
            }
        }
        Ok(Self { pre, merges: map, bytes })
    }

    /// Appends the ids of a text without special tokens.
    ///
    /// # Errors
    /// A byte for which the vocabulary has no token.
    pub(super) fn encode(
        &self,
        text: &str,
        pieces: &Pieces,
        index: &Index,
        unk: Option<u32>,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let mut merger = Merger::default();
        for word in self.pre.split(text) {
            let newlines = !self.pre.rules.byte_level && word.bytes().all(|b| b == b'\n');
            if (self.pre.rules.ignore_merges || newlines || word.len() == 1)
                && let Some(id) = index.get(pieces, word.as_bytes())
            {
                out.push(id);
                continue;
            }
            merger.clear();
            if self.pre.rules.byte_level {
                word.bytes().for_each(|b| merger.push(1, self.bytes[b as usize]));
            } else {
                let mut utf8 = [0; 4];
                for c in word.chars() {
                    let c = c.encode_utf8(&mut utf8).as_bytes();
                    merger.push(c.len() as u32, index.get(pieces, c).unwrap_or(NONE));
                }
            }
            merger.run(|l, r| self.merges.get(&(l.id, r.id)).copied());
            for symbol in merger.alive() {
                if symbol.id != NONE {
                    out.push(symbol.id);
                    continue;
                }
                let start = symbol.start as usize;
                for &byte in &word.as_bytes()[start..start + symbol.len as usize] {
                    match self.bytes[byte as usize] {
                        NONE => out.push(unk.ok_or_else(|| {
                            Error::Encode(format!("the vocabulary has no token for the byte 0x{byte:02X}"))
                        })?),
                        id => out.push(id),
                    }
                }
            }
        }
        Ok(())
    }
}

/// Appends the bytes that a token's spelling stands for. A spelling outside GPT-2's alphabet is its own UTF-8.
pub(super) fn spell(text: &str, byte_level: bool, out: &mut Vec<u8>) {
    let start = out.len();
    if byte_level {
        for c in text.chars() {
            match char_to_byte(c) {
                Some(b) => out.push(b),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

/// GPT-2's printable alphabet: printable Latin-1 stands for itself, the other 68 bytes are U+0100.. in order.
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    Some(match c as u32 {
        n @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => n as u8,
        n @ 0x100..=0x120 => (n - 0x100) as u8,
        n @ 0x121..=0x142 => (n - 0x121 + 0x7F) as u8,
        0x143 => 0xAD,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_each_byte_once() {
        let mut seen = [false; 256];
        for c in (0..0x200u32).filter_map(char::from_u32) {
            if let Some(b) = char_to_byte(c) {
                assert!(!std::mem::replace(&mut seen[b as usize], true), "{b} twice");
            }
        }
        assert!(seen.iter().all(|&s| s));
        assert_eq!(char_to_byte('Ġ'), Some(b' '));
        assert_eq!(char_to_byte('Ċ'), Some(b'\n'));
    }
}
