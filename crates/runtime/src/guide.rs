//! Guidance in words: banned texts as a watch of the engine, and the settings that command line and server share.

use std::sync::Arc;

use anyhow::Result;
use quarrel_engine::{Amateur, Coherence, Confidence, Guide, Negative, Repetition, Verdict, Watch, WatchBox};
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

/// What flags and fields say about guidance; nothing by default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuideOptions {
    /// Texts that the answer does not contain, in any case of their letters.
    pub banned_strings: Vec<String>,
    /// Regular expressions that nothing in the answer matches.
    pub banned_regexes: Vec<String>,
    /// When an answer is a loop, and ends.
    pub repetition: Option<Repetition>,
    /// The band of confidence.
    pub confidence: Option<Confidence>,
    /// Tries, least PMI, and least tokens of a sentence.
    pub coherence: Option<(u32, f32, u32)>,
    /// The tokens of the negative prompt, and the scale.
    pub negative: Option<(Vec<u32>, f32)>,
    /// Contrast with the draft model.
    pub amateur: Option<Amateur>,
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
            Some((tries, min, tokens)) => {
                // Texts begin with it, or end with it, which is where another begins.
                let empty = tokenizer.bos().or(tokenizer.eos());
                let empty = empty.ok_or_else(|| {
                    anyhow::anyhow!("coherence: this model has no token with which a text begins")
                })?;
                Some(Coherence { tries, min, tokens, empty: vec![empty] })
            }
        };
        let guide = Guide {
            repetition: *repetition,
            watch,
            confidence: *confidence,
            coherence,
            negative: self.negative.map(|(prompt, scale)| Negative { prompt, scale }),
            amateur: self.amateur,
        };
        Ok((guide != Guide::default()).then(|| Box::new(guide)))
    }
}
