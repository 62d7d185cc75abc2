//! Embeddings of texts: how a model makes them where nothing else is said, tokens that fit it, and many at once.

use std::collections::VecDeque;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
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
                pooling = pooling_in(&hf.dir)?;
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

/// How a checkpoint pools; `None` if in a way that is not known here.
fn pooling_in(dir: &Path) -> Result<Option<Pooling>> {
    Ok(match pooling_file(dir)? {
        Some(settings) => pooling_of(&file::json(&settings)?),
        None => Some(Pooling::Mean),
    })
}

/// Where a checkpoint of sentence-transformers says how it pools. Behind the model it may have a scaling to length 1, which is
/// the default here; anything else would have to be computed, and vectors without it would be others.
fn pooling_file(dir: &Path) -> Result<Option<PathBuf>> {
    let usual = dir.join("1_Pooling/config.json");
    let path = dir.join("modules.json");
    if !path.exists() {
        return Ok(Some(usual).filter(|p| p.exists()));
    }
    let listed = file::json(&path)?;
    let mut found = None;
    for module in listed.as_array().into_iter().flatten() {
        let text = |key: &str| module[key].as_str().unwrap_or_default();
        match text("type").rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" => {
                let folder = text("path");
                let plain = |c| matches!(c, Component::Normal(_));
                ensure!(
                    Path::new(folder).components().all(plain),
                    "{}: the module {folder:?} is outside of the model's folder",
                    path.display()
                );
                let settings = dir.join(folder).join("config.json");
                ensure!(
                    settings.exists(),
                    "{} is missing, and with it how hidden states become a vector; `quarrel pull` fetches it",
                    settings.display()
                );
                found = Some(settings);
            }
            kind => bail!(
                "{}: the model has a module {:?} of type {kind:?} behind its hidden states, which is not computed here; its \
                 vectors would be wrong without it",
                path.display(),
                text("path")
            ),
        }
    }
    Ok(found)
}

/// What sentence-transformers' module says: a switch for each way, or in newer files the name of one.
fn pooling_of(config: &Value) -> Option<Pooling> {
    let modes = config.as_object()?;
    let named = modes.get("pooling_mode").map(|mode| mode.as_str().unwrap_or_default());
    let switched = modes
        .iter()
        .filter(|(_, value)| **value == true)
        .filter_map(|(name, _)| name.strip_prefix("pooling_mode_"))
        .map(|name| name.trim_end_matches("_tokens").trim_end_matches("_token"));
    let on: Vec<&str> = if let Some(named) = named { vec![named] } else { switched.collect() };
    match on[..] {
        ["mean"] => Some(Pooling::Mean),
        ["cls"] => Some(Pooling::Cls),
        ["lasttoken"] => Some(Pooling::Last),
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
        assert_eq!(of(json!({ "pooling_mode_mean_sqrt_len_tokens": true })), None);
        assert_eq!(of(off), None);
        assert_eq!(of(json!({ "pooling_mode": "cls", "include_prompt": true })), Some(Pooling::Cls));
        assert_eq!(of(json!({ "pooling_mode": ["mean", "cls"] })), None);
    }

    /// What a folder with these files says.
    fn pooling(files: &[(&str, &Value)]) -> Result<Option<Pooling>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        }
        pooling_in(dir.path())
    }

    fn module(path: &str, kind: &str) -> Value {
        json!({ "idx": 0, "name": "0", "path": path, "type": format!("sentence_transformers.models.{kind}") })
    }

    #[test]
    fn a_checkpoint_of_sentence_transformers_says_how_it_pools() {
        let cls = json!({ "word_embedding_dimension": 32, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false });
        let all = json!([
            module("", "Transformer"),
            module("1_Pooling", "Pooling"),
            module("2_Normalize", "Normalize")
        ]);
        let elsewhere = json!([module("", "Transformer"), module("3_Pooling", "Pooling")]);
        let beside = ("1_Pooling/config.json", &cls);
        for (files, wanted) in [
            (&[][..], Pooling::Mean),
            (&[beside][..], Pooling::Cls),
            (&[beside, ("modules.json", &all)][..], Pooling::Cls),
            (&[("3_Pooling/config.json", &cls), ("modules.json", &elsewhere)][..], Pooling::Cls),
        ] {
            assert_eq!(pooling(files).unwrap(), Some(wanted), "{files:?}");
        }
        let refused = |files: &[(&str, &Value)]| pooling(files).unwrap_err().to_string();
        let said = refused(&[("modules.json", &all)]);
        assert!(said.contains("1_Pooling/config.json is missing") && said.contains("quarrel pull"), "{said}");
        let dense =
            json!([module("", "Transformer"), module("1_Pooling", "Pooling"), module("2_Dense", "Dense")]);
        let said = refused(&[beside, ("modules.json", &dense)]);
        assert!(said.contains("\"2_Dense\"") && said.contains("\"Dense\""), "{said}");
        let said = refused(&[("modules.json", &json!([module("../../etc", "Pooling")]))]);
        assert!(said.contains("outside"), "{said}");
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
