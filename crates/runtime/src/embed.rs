//! Embeddings of texts: how a model makes them where nothing else is said, tokens that fit it, and many at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use quarrel_engine::{EmbedRequest, Embedded, Embedding, Error, Handle, Pooling};
use quarrel_formats::Source;
use quarrel_text::{Ends, Special, Tokenizer};
use serde_json::Value;

use crate::{Opened, file};

/// How often one who waits looks whether the vectors are still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// What a model says of its embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embeddings {
    /// How it pools; `None` if in a way that is not known here, so that one must be chosen. A model that does not say pools
    /// by the mean, a decoder that was not made for embeddings too.
    pub pooling: Option<Pooling>,
    /// Longest text in tokens.
    pub tokens_max: usize,
    /// Whether the first numbers of a vector are a vector too (Kusupati et al. 2022, Matryoshka representations).
    pub shortens: bool,
}

/// A text as the model takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitted {
    /// Its tokens, with those that the model wants around it.
    pub tokens: Vec<u32>,
    /// Tokens of the text's end that are left out.
    pub cut: usize,
}

impl Opened {
    /// What the model's files say of embeddings, for an engine of this context.
    pub fn embeddings(&self, context: usize) -> Result<Embeddings> {
        let (mut pooling, mut tokens_max, mut shortens) = (Some(Pooling::Mean), context, false);
        match &self.source {
            Source::Gguf(gguf) => {
                let arch = gguf.metadata.str("general.architecture").unwrap_or_default();
                pooling = match gguf.metadata.u32(&format!("{arch}.pooling_type")) {
                    None | Some(0 | 1) => pooling,
                    Some(2) => Some(Pooling::Cls),
                    Some(3) => Some(Pooling::Last),
                    Some(_) => None,
                };
            }
            Source::Hf(hf) => {
                let path = hf.dir.join("1_Pooling/config.json");
                if path.exists() {
                    pooling = pooling_of(&file::json(&path)?);
                }
                let path = hf.dir.join("sentence_bert_config.json");
                if path.exists()
                    && let Some(n) = file::json(&path)?["max_seq_length"].as_u64().filter(|n| *n > 2)
                {
                    tokens_max = tokens_max.min(usize::try_from(n).unwrap_or(usize::MAX));
                }
                shortens =
                    hf.config["is_matryoshka"] == true || hf.config["matryoshka_dimensions"].is_array();
            }
        }
        Ok(Embeddings { pooling, tokens_max, shortens })
    }
}

/// What sentence-transformers' module says.
fn pooling_of(config: &Value) -> Option<Pooling> {
    let modes = config.as_object()?;
    let on: Vec<&str> = modes
        .iter()
        .filter(|(name, value)| name.starts_with("pooling_mode_") && **value == true)
        .map(|(name, _)| name.as_str())
        .collect();
    match on[..] {
        ["pooling_mode_mean_tokens"] => Some(Pooling::Mean),
        ["pooling_mode_cls_token"] => Some(Pooling::Cls),
        ["pooling_mode_lasttoken"] => Some(Pooling::Last),
        _ => None, // the maximum, or several one after the other
    }
}

/// The tokens of a text, at most `tokens_max`: of a longer one the end is left out, and what the model wants behind a text
/// stays behind it.
///
/// # Errors
/// The tokenizer's.
pub fn fit_text(tokenizer: &Tokenizer, text: &str, tokens_max: usize) -> quarrel_text::Result<Fitted> {
    let tokens = tokenizer.encode(text, Special::Plain, Ends::Model)?;
    if tokens.len() <= tokens_max {
        return Ok(Fitted { tokens, cut: 0 });
    }
    let around = tokenizer.encode("", Special::Plain, Ends::Model)?;
    let before = around.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
    Ok(cut(tokens, around.len() - before, tokens_max))
}

/// Leaves out what is too much, before the last `behind` tokens.
fn cut(mut tokens: Vec<u32>, behind: usize, tokens_max: usize) -> Fitted {
    let cut = tokens.len() - tokens_max;
    let end = tokens.split_off(tokens.len() - behind.min(tokens_max));
    tokens.truncate(tokens_max - end.len());
    tokens.extend(end);
    Fitted { tokens, cut }
}

/// Embeds texts, so many at once that the engine always has the next one and others have their turn. `None` if `unwanted`
/// became true meanwhile.
pub fn embed_all(
    handle: &Handle,
    requests: impl IntoIterator<Item = EmbedRequest>,
    unwanted: &AtomicBool,
) -> quarrel_engine::Result<Option<Vec<Embedding>>> {
    let window = 2 * handle.info().max_running;
    let (mut open, mut done) = (VecDeque::<Embedded>::new(), Vec::new());
    let next = |open: &mut VecDeque<Embedded>, done: &mut Vec<Embedding>| {
        let Some(first) = open.pop_front() else { return Ok(false) };
        loop {
            if unwanted.load(Ordering::Acquire) {
                return Ok(false); // those that are open are cancelled by being dropped
            }
            if let Some(embedding) = first.wait_for(LOOK) {
                done.push(embedding?);
                return Ok::<bool, Error>(true);
            }
        }
    };
    for request in requests {
        loop {
            if unwanted.load(Ordering::Acquire) {
                return Ok(None);
            }
            let full = open.len() >= window;
            match if full { None } else { Some(handle.embed(request.clone())) } {
                Some(Ok(embedded)) => {
                    open.push_back(embedded);
                    break;
                }
                // There is room for the next when one of ours is done.
                None | Some(Err(Error::QueueFull { .. })) if !open.is_empty() => {
                    next(&mut open, &mut done)?;
                }
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
    }
    while !open.is_empty() {
        if !next(&mut open, &mut done)? {
            return Ok(None);
        }
    }
    Ok(Some(done))
}

/// The first `dimensions` numbers of a vector, of length 1 again where it was.
pub fn shorten(vector: &mut Vec<f32>, dimensions: usize, normalize: bool) {
    vector.truncate(dimensions);
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if normalize && length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_behind_a_text_stays_behind_it() {
        let fitted = |behind, most| cut(vec![2, 10, 11, 12, 3], behind, most);
        assert_eq!(fitted(1, 4), Fitted { tokens: vec![2, 10, 11, 3], cut: 1 });
        assert_eq!(fitted(0, 3), Fitted { tokens: vec![2, 10, 11], cut: 2 });
        assert_eq!(fitted(1, 1), Fitted { tokens: vec![3], cut: 4 });
    }

    #[test]
    fn poolings_that_are_known_and_that_are_not() {
        let of = |v: Value| pooling_of(&v);
        let off = json!({ "pooling_mode_mean_tokens": false, "word_embedding_dimension": 384 });
        assert_eq!(
            of(json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false })),
            Some(Pooling::Cls)
        );
        assert_eq!(of(json!({ "pooling_mode_mean_tokens": true })), Some(Pooling::Mean));
        assert_eq!(of(json!({ "pooling_mode_lasttoken": true })), Some(Pooling::Last));
        assert_eq!(of(json!({ "pooling_mode_max_tokens": true })), None);
        assert_eq!(of(json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true })), None);
        assert_eq!(of(off), None);
    }

    #[test]
    fn a_shorter_vector_has_length_one_again() {
        let mut v = vec![0.6, 0.0, 0.8];
        shorten(&mut v, 2, true);
        assert_eq!(v, [1.0, 0.0]);
        let mut v = vec![0.6, 0.5, 0.8];
        shorten(&mut v, 2, false);
        assert_eq!(v, [0.6, 0.5]);
    }
}
