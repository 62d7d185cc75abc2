//! WordPiece (`bert`): words by white space and punctuation, each the longest tokens from its start. The normaliser and
//! the word rule are those of the `tokenizers` crate, which is the reference for them.

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::table::{Index, Pieces};
use crate::{Error, Result};

/// Appends the ids of a text without special tokens. Tokens that start a word are spelled with a `▁` before them.
///
/// # Errors
/// The normaliser fails, or a word is unknown and there is no unknown token.
pub(super) fn encode(
    text: &str,
    normalizer: &BertNormalizer,
    pieces: &Pieces,
    index: &Index,
    unk: Option<u32>,
    out: &mut Vec<u32>,
) -> Result<()> {
    let failed = |e: tokenizers::Error| Error::Encode(e.to_string());
    let mut normal = NormalizedString::from(text);
    normalizer.normalize(&mut normal).map_err(failed)?;
    let mut words = PreTokenizedString::from(normal);
    BertPreTokenizer.pre_tokenize(&mut words).map_err(failed)?;
    let mut spelled = String::new();
    for (word, ..) in words.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
        if word.is_empty() {
            continue;
        }
        spelled.clear();
        spelled.push('▁');
        spelled.push_str(word);
        let raw = spelled.as_bytes();
        let first_new = out.len();
        let mut at = 0;
        while at < raw.len() {
            let longest = raw.len().min(at + index.longest);
            let found =
                (at + 1..=longest).rev().find_map(|end| Some((index.get(pieces, &raw[at..end])?, end)));
            let Some((id, end)) = found else {
                out.truncate(first_new);
                out.push(
                    unk.ok_or_else(|| Error::Encode(format!("the vocabulary has no token for `{word}`")))?,
                );
                break;
            };
            out.push(id);
            at = end;
        }
    }
    Ok(())
}
