//! The tokens that DRY's repeats do not go over: those whose text has one of the breakers in it.

use anyhow::{Result, bail};
use quarrel_text::Tokenizer;
use std::sync::Arc;

/// The breakers if nobody names others, which are llama.cpp's.
pub const DRY_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// The ids of tokens that have one of the texts in them, in ascending order; of [`DRY_BREAKERS`] if none are given.
///
/// # Errors
/// A text is empty, or is in no token: then it would break nothing.
pub fn breakers(tokenizer: &Tokenizer, texts: Option<&[String]>) -> Result<Arc<[u32]>> {
    let given: Vec<&str> = match texts {
        Some(texts) => texts.iter().map(String::as_str).collect(),
        None => DRY_BREAKERS.to_vec(),
    };
    if given.iter().any(|t| t.is_empty()) {
        bail!("an empty text breaks nothing; leave it out");
    }
    let mut found = vec![false; given.len()];
    let mut ids = Vec::new();
    for id in 0..tokenizer.vocab_size() as u32 {
        let Ok(bytes) = tokenizer.token_bytes(id) else { continue };
        let mut breaks = false;
        for (text, found) in given.iter().zip(&mut found) {
            if bytes.windows(text.len()).any(|w| w == text.as_bytes()) {
                (breaks, *found) = (true, true);
            }
        }
        if breaks {
            ids.push(id);
        }
    }
    match given.iter().zip(&found).find(|(_, found)| !**found && texts.is_some()) {
        Some((text, _)) => bail!("no token of the model has {text:?} in it; give a shorter part of it"),
        None => Ok(ids.into()),
    }
}
