//! SentencePiece BPE (`llama`): neighbours join where the joined text is a token, best score first; what is no token
//! falls back to its bytes.

use super::merge::{Merger, score_key};
use super::table::{Index, NONE, Pieces};
use crate::{Error, Result};

/// Appends the ids of `text`, in which spaces are already `▁`. `bytes` are the byte tokens `<0x00>`..`<0xFF>`, [`NONE`]
/// where there is none.
///
/// # Errors
/// A character that is no token, has no byte tokens, and there is no unknown token.
pub(super) fn encode(
    text: &str,
    pieces: &Pieces,
    index: &Index,
    scores: &[f32],
    bytes: &[u32; 256],
    unk: Option<u32>,
    out: &mut Vec<u32>,
) -> Result<()> {
    let mut merger = Merger::default();
    let mut utf8 = [0; 4];
    for c in text.chars() {
        let c = c.encode_utf8(&mut utf8).as_bytes();
        merger.push(c.len() as u32, index.get(pieces, c).unwrap_or(NONE));
    }
    let raw = text.as_bytes();
    merger.run(|l, r| {
        let joined = &raw[l.start as usize..(r.start + r.len) as usize];
        index.get(pieces, joined).map(|id| (score_key(scores.get(id as usize).copied().unwrap_or(0.0)), id))
    });
    let mut unknown_before = false;
    for symbol in merger.alive() {
        if symbol.id != NONE {
            out.push(symbol.id);
            unknown_before = false;
            continue;
        }
        let spelled = &raw[symbol.start as usize..(symbol.start + symbol.len) as usize];
        if spelled.iter().all(|&b| bytes[b as usize] != NONE) {
            out.extend(spelled.iter().map(|&b| bytes[b as usize]));
            unknown_before = false;
        } else if !unknown_before {
            out.push(unk.ok_or_else(|| {
                Error::Encode(format!(
                    "the vocabulary has no token and no byte tokens for `{}`",
                    String::from_utf8_lossy(spelled)
                ))
            })?);
            unknown_before = true;
        }
    }
    Ok(())
}
