//! The text of one answer, as its tokens come: whole characters only, and never past a stop string.

use quarrel_text::stream_decoder::{Control, Leading};
use quarrel_text::{Result, StopMatcher, StreamDecoder, Tokenizer};

/// Text out of the tokens of one answer.
#[derive(Debug, Clone)]
pub struct TextStream {
    decoder: StreamDecoder,
    matcher: StopMatcher,
    stopped: Option<usize>,
}

impl TextStream {
    /// An answer at its first token, which ends where one of `stop` would begin.
    pub fn new(leading: Leading, control: Control, stop: Vec<String>) -> TextStream {
        TextStream {
            decoder: StreamDecoder::new(leading, control),
            matcher: StopMatcher::new(stop),
            stopped: None,
        }
    }

    /// The text that this token sets free, perhaps none; nothing after a stop string.
    ///
    /// # Errors
    /// The id is outside the vocabulary.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        let text = self.decoder.push(tokenizer, id)?;
        Ok(self.take(&text))
    }

    fn take(&mut self, text: &str) -> String {
        let out = self.matcher.push(text);
        self.stopped = out.stopped;
        out.text
    }

    /// The stop string that was found; the answer is over.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.and_then(|i| self.matcher.stop(i))
    }

    /// What was held back, when no more tokens come.
    pub fn finish(&mut self) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        let rest = self.decoder.finish();
        let text = self.take(&rest);
        if self.stopped.is_some() { text } else { text + &self.matcher.finish() }
    }
}
