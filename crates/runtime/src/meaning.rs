//! What an embedding model makes of the sentences of an answer: the other side of the engine's seam for coherence.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use quarrel_engine::{Comparing, EmbedRequest, Embedded, Error, Handle, Likeness, Meaning, Pooling};
use quarrel_text::Tokenizer;

use crate::{Opened, Running, embed};

/// A model that makes embeddings of texts.
#[derive(Clone)]
pub struct Embedder {
    handle: Handle,
    tokenizer: Arc<Tokenizer>,
    pooling: Pooling,
    tokens_max: usize,
}

impl Embedder {
    /// Of a model that was loaded for embeddings.
    ///
    /// # Errors
    /// Its files name a way to pool that is not known here.
    pub fn new(opened: &Opened, running: &Running) -> Result<Embedder> {
        let Some(pooling) = running.embeddings.pooling else {
            bail!("{} pools its hidden states in a way that is not known here", opened.local.name);
        };
        let tokens_max = running.embeddings.tokens_max;
        Ok(Embedder::of(running.handle.clone(), opened.tokenizer.clone(), pooling, tokens_max))
    }

    /// Of an engine with hidden states.
    pub fn of(handle: Handle, tokenizer: Arc<Tokenizer>, pooling: Pooling, tokens_max: usize) -> Embedder {
        Embedder { handle, tokenizer, pooling, tokens_max }
    }

    /// Vectors of length 1.
    fn request(&self, text: &str) -> quarrel_text::Result<EmbedRequest> {
        let fitted = embed::fit_text(&self.tokenizer, text, self.tokens_max)?;
        Ok(EmbedRequest { pooling: self.pooling, ..EmbedRequest::new(fitted.tokens) })
    }
}

/// Vectors of texts that were asked for lately: a sentence is compared with the one before, and all with the prompt.
type Known = Mutex<VecDeque<(String, Arc<Vec<f32>>)>>;
const KNOWN_MAX: usize = 16;

/// Compares the sentences of the answers to one prompt.
pub struct Sentences {
    by: Embedder,
    /// Of the model that answers.
    tokenizer: Arc<Tokenizer>,
    prompt: String,
    known: Arc<Known>,
}

impl Sentences {
    /// For answers to `prompt` in the tokens of `tokenizer`.
    pub fn new(by: Embedder, tokenizer: Arc<Tokenizer>, prompt: String) -> Sentences {
        Sentences { by, tokenizer, prompt, known: Arc::default() }
    }

    fn part(&self, text: String) -> Result<Part, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, vector)) = known.iter().find(|k| k.0 == text) {
            return Ok(Part::Here(vector.clone()));
        }
        let request = self.by.request(&text).map_err(|e| e.to_string())?;
        Ok(Part::Wanted(text, request))
    }

    fn parts(&self, before: &[u32], sentence: &[u32]) -> Result<[Option<Part>; 3], String> {
        let text = |ids: &[u32]| -> Result<String, String> {
            let mut bytes = Vec::new();
            for id in ids {
                bytes.extend_from_slice(self.tokenizer.token_bytes(*id).map_err(|e| e.to_string())?);
            }
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        let before = text(before)?;
        let before = if before.is_empty() { None } else { Some(self.part(before)?) };
        Ok([before, Some(self.part(self.prompt.clone())?), Some(self.part(text(sentence)?)?)])
    }
}

impl Meaning for Sentences {
    fn compare(&self, before: &[u32], sentence: &[u32]) -> Box<dyn Comparing> {
        let parts = self.parts(before, sentence);
        Box::new(Comparison { by: self.by.clone(), known: self.known.clone(), parts })
    }
}

/// A vector on its way.
enum Part {
    Wanted(String, EmbedRequest),
    Asked(String, Embedded),
    Here(Arc<Vec<f32>>),
}

struct Comparison {
    by: Embedder,
    known: Arc<Known>,
    /// The sentence before, the prompt, the sentence.
    parts: Result<[Option<Part>; 3], String>,
}

impl Comparing for Comparison {
    fn poll(&mut self) -> Option<Result<Likeness, String>> {
        let parts = match &mut self.parts {
            Ok(parts) => parts,
            Err(why) => return Some(Err(why.clone())),
        };
        for part in parts.iter_mut().flatten() {
            match advance(part, &self.by, &self.known) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(why) => return Some(Err(format!("the embedding model: {why}"))),
            }
        }
        let vector = |p: &Option<Part>| match p {
            Some(Part::Here(v)) => Some(v.clone()),
            _ => None,
        };
        let [before, prompt, sentence] = [&parts[0], &parts[1], &parts[2]].map(vector);
        let sentence = sentence.unwrap_or_default();
        let cosine = |other: Arc<Vec<f32>>| -> f32 {
            let products = other.iter().zip(sentence.iter()).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum::<f64>() as f32
        };
        let prompt = prompt.map_or(0.0, cosine);
        Some(Ok(Likeness { adjacent: before.map(cosine), prompt }))
    }
}

/// Goes on with a vector; true when it is here. Where the queue is full it is asked for again.
fn advance(part: &mut Part, by: &Embedder, known: &Known) -> quarrel_engine::Result<bool> {
    if let Part::Wanted(text, request) = part {
        match by.handle.embed(request.clone()) {
            Ok(embedded) => *part = Part::Asked(std::mem::take(text), embedded),
            Err(Error::QueueFull { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    if let Part::Asked(text, embedded) = part {
        let Some(made) = embedded.wait_for(Duration::ZERO) else { return Ok(false) };
        let vector = Arc::new(made?.vectors.into_iter().next().unwrap_or_default());
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.truncate(KNOWN_MAX - 1);
        known.push_front((std::mem::take(text), vector.clone()));
        *part = Part::Here(vector);
    }
    Ok(true)
}
