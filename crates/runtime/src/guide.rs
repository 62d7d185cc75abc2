//! Guidance in words: banned texts as a watch of the engine, and the settings that command line and server share.

use std::sync::Arc;

use anyhow::Result;
use quarrel_engine::{
    Amateur, Coherence, Confidence, ContrastiveSearch, Dola, Guide, Meaning, Meant, Negative, Repetition,
    Verdict, Watch, WatchBox,
};
use quarrel_text::{Banned, Seen, TextWatch, Tokenizer};

struct Watches(TextWatch);

fn verdict(seen: quarrel_text::Result<Seen>) -> Result<Verdict, String> {
    match seen {
        Ok(Seen::Pass { hold, sentence }) => Ok(Verdict::Pass { hold, sentence }),
        Ok(Seen::Banned(tokens)) => Ok(Verdict::Refuse { tokens }),
        Err(e) => Err(e.to_string()),
    }
}

impl Watch for Watches {
    fn push(&mut self, id: u32) -> Result<Verdict, String> {
        verdict(self.0.push(id))
    }

    fn finish(&mut self) -> Result<Verdict, String> {
        verdict(self.0.finish())
    }

    fn take_back(&mut self, tokens: usize) {
        self.0.take_back(tokens);
    }

    fn fork(&self) -> Box<dyn Watch> {
        Box::new(Watches(self.0.clone()))
    }
}

/// What flags and fields say about the coherence of sentences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CoherenceOptions {
    /// Times that a sentence may be drawn again.
    pub tries: u32,
    /// Least PMI, in nats a token; none if it does not count.
    pub min: Option<f32>,
    /// Least cosine with the sentence before, by an embedding model.
    pub adjacent: Option<f32>,
    /// Least cosine with the prompt.
    pub prompt: Option<f32>,
    /// Shorter sentences are joined to the next.
    pub tokens: u32,
}

impl Default for CoherenceOptions {
    /// Nothing is judged yet.
    fn default() -> CoherenceOptions {
        CoherenceOptions { tries: 2, min: None, adjacent: None, prompt: None, tokens: 6 }
    }
}

impl CoherenceOptions {
    /// Whether an embedding model is asked.
    pub fn compares(&self) -> bool {
        self.adjacent.is_some() || self.prompt.is_some()
    }
}

/// What flags and fields say about guidance; nothing by default.
#[derive(Clone, Default)]
pub struct GuideOptions {
    /// Texts that the answer does not contain, in any case of their letters.
    pub banned_strings: Vec<String>,
    /// Regular expressions that nothing in the answer matches.
    pub banned_regexes: Vec<String>,
    /// When an answer is a loop, and ends.
    pub repetition: Option<Repetition>,
    /// The band of confidence.
    pub confidence: Option<Confidence>,
    /// When a sentence is drawn again.
    pub coherence: Option<CoherenceOptions>,
    /// Who compares sentences by their embeddings, where that is asked for.
    pub meaning: Option<Arc<dyn Meaning>>,
    /// The tokens of the negative prompt, and the scale.
    pub negative: Option<(Vec<u32>, f32)>,
    /// Contrast with the draft model.
    pub amateur: Option<Amateur>,
    /// Contrast with the model's own exits.
    pub dola: Option<Dola>,
    /// Contrastive search.
    pub search: Option<ContrastiveSearch>,
}

impl GuideOptions {
    /// What a request carries; none if nothing is set.
    ///
    /// # Errors
    /// A banned text is wrong, or sentences cannot be scored by this model.
    pub fn guide(self, tokenizer: &Arc<Tokenizer>) -> Result<Option<Box<Guide>>> {
        let GuideOptions { banned_strings, banned_regexes, repetition, confidence, .. } = &self;
        let banned = match banned_strings.is_empty() && banned_regexes.is_empty() {
            true => None,
            false => Some(Arc::new(Banned::new(banned_strings, banned_regexes)?)),
        };
        let watch = (banned.is_some() || self.coherence.is_some())
            .then(|| WatchBox::new(Watches(TextWatch::new(tokenizer.clone(), banned))));
        let coherence = match self.coherence {
            None => None,
            Some(c) => {
                // Texts begin with it, or end with it, which is where another begins.
                let empty = tokenizer.bos().or(tokenizer.eos());
                let empty = empty.ok_or_else(|| {
                    anyhow::anyhow!("coherence: this model has no token with which a text begins")
                })?;
                let meant = match (c.compares(), self.meaning.clone()) {
                    (false, _) => None,
                    (true, Some(by)) => {
                        let (adjacent, prompt) = (c.adjacent.unwrap_or(-1.0), c.prompt.unwrap_or(-1.0));
                        Some(Meant { by, adjacent, prompt })
                    }
                    (true, None) => anyhow::bail!(
                        "coherence: cosines of embeddings need an embedding model; give --embedding-model"
                    ),
                };
                Some(Coherence { tries: c.tries, min: c.min, meant, tokens: c.tokens, empty: vec![empty] })
            }
        };
        let guide = Guide {
            repetition: *repetition,
            watch,
            confidence: *confidence,
            coherence,
            negative: self.negative.map(|(prompt, scale)| Negative { prompt, scale }),
            amateur: self.amateur,
            dola: self.dola,
            search: self.search,
        };
        Ok((guide != Guide::default()).then(|| Box::new(guide)))
    }
}
