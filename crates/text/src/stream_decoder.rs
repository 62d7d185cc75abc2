//! Token ids to text as they come: only whole characters leave, the start of one waits for the rest.

use crate::{Result, Tokenizer};

/// What happens to the space that SentencePiece writes before the first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leading {
    /// The text goes on from a prompt: the space belongs to it.
    Keep,
    /// The text begins here: one space is dropped, where the tokenizer puts one.
    Strip,
}

/// Whether control tokens show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// They give no text.
    Hide,
    /// They give their names.
    Show,
}

/// One stream of text. It holds at most three bytes.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    held: Vec<u8>,
    strip_first: bool,
    show_control: bool,
}

impl StreamDecoder {
    /// A stream at its first token.
    pub fn new(leading: Leading, control: Control) -> Self {
        Self {
            held: Vec::new(),
            strip_first: leading == Leading::Strip,
            show_control: control == Control::Show,
        }
    }

    /// The text that this token completes, perhaps none.
    ///
    /// # Errors
    /// The id is outside the vocabulary; the stream is as before.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        let bytes = tokenizer.token_bytes(id)?;
        if !self.show_control && tokenizer.is_special(id) {
            return Ok(String::new());
        }
        let strip = std::mem::take(&mut self.strip_first) && tokenizer.strips_leading_space();
        Ok(self.push_bytes(if strip { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes }))
    }

    /// As [`Self::push`], for bytes that are already there.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut out = String::new();
        let mut rest = &self.held[..];
        loop {
            match str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at(e.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(good));
                    let Some(len) = e.error_len() else {
                        rest = bad; // the start of a character
                        break;
                    };
                    out.push('\u{FFFD}');
                    rest = &bad[len..];
                }
            }
        }
        self.held = rest.to_vec();
        out
    }

    /// The end of the stream: what can no longer become a character is U+FFFD.
    pub fn finish(&mut self) -> String {
        let out = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(chunks: &[&[u8]]) -> String {
        let mut s = StreamDecoder::new(Leading::Keep, Control::Hide);
        let mut out: String = chunks.iter().map(|c| s.push_bytes(c)).collect();
        out += &s.finish();
        out
    }

    #[test]
    fn a_split_character_waits_and_a_broken_one_does_not() {
        let mut s = StreamDecoder::new(Leading::Keep, Control::Hide);
        assert_eq!(s.push_bytes(&[0xF0, 0x9F]), "");
        assert_eq!(s.push_bytes(&[0xA6]), "");
        assert_eq!(s.push_bytes(&[0x99, b'!']), "🦙!");
        assert_eq!(s.push_bytes(&[0xF0, 0x9F]), "");
        assert_eq!(s.push_bytes(b"a"), "\u{FFFD}a");
        assert_eq!(s.push_bytes(&[0x80]), "\u{FFFD}", "a stray continuation can never complete");
        assert_eq!(s.push_bytes(&[0xE2, 0x82]), "");
        assert_eq!(s.finish(), "\u{FFFD}");
        assert_eq!(s.finish(), "");
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_text_of_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..60), cuts in prop::collection::vec(1usize..5, 60)) {
            let mut chunks = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (a, b) = rest.split_at(cut.min(rest.len()));
                chunks.push(a);
                rest = b;
            }
            chunks.push(rest);
            prop_assert_eq!(stream(&chunks), String::from_utf8_lossy(&bytes));
        }
    }
}
