//! Texts that an answer must not contain, and where its sentences end, over the tokens as they are drawn. A token may turn out
//! to begin a banned text when others have come, so this says how many of the last tokens may still be refused.
//!
//! All patterns are one lazy automaton over bytes. From every byte a match may begin; those that still may become one are
//! kept, which are few, and go on with the next token. A match longer than [`TOKENS_MAX`] tokens is not seen.

use std::collections::VecDeque;
use std::sync::Arc;

use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::{Anchored, Input, MatchKind};

use crate::{Error, Result, Tokenizer};

/// Tokens that are looked back over.
pub const TOKENS_MAX: usize = 320;
/// Most patterns, bytes of each, and bytes of the automaton that they make.
const PATTERNS_MAX: usize = 1024;
const BYTES_MAX: usize = 4096;
const NFA_BYTES_MAX: usize = 8 << 20;

/// Banned strings and regular expressions, compiled.
#[derive(Debug)]
pub struct Banned {
    dfa: DFA,
}

impl Banned {
    /// Strings in any case of their letters, and regular expressions in Rust's syntax as they stand.
    ///
    /// # Errors
    /// A pattern is wrong, empty, too long, or matches the empty text; there are too many.
    pub fn new(strings: &[String], regexes: &[String]) -> Result<Banned> {
        let fail = |what: String| Error::Grammar { kind: "banned text", what };
        let all = strings.len() + regexes.len();
        if all == 0 || all > PATTERNS_MAX {
            return Err(fail(format!("{all} patterns; 1 to {PATTERNS_MAX} can be banned")));
        }
        if let Some(p) = strings.iter().chain(regexes).find(|p| p.is_empty() || p.len() > BYTES_MAX) {
            return Err(fail(format!("a pattern of {} bytes; 1 to {BYTES_MAX} are allowed", p.len())));
        }
        let patterns: Vec<String> =
            strings.iter().map(|s| escape(s)).chain(regexes.iter().cloned()).collect();
        let dfa = DFA::builder()
            .configure(DFA::config().match_kind(MatchKind::All))
            .thompson(thompson::Config::new().nfa_size_limit(Some(NFA_BYTES_MAX)).utf8(false))
            .build_many(&patterns)
            .map_err(|e| {
                let mut what = e.to_string();
                let mut source = std::error::Error::source(&e);
                while let Some(inner) = source {
                    what = inner.to_string();
                    source = inner.source();
                }
                fail(format!("{what} (a word's boundary is written (?-u:\\b))"))
            })?;
        let banned = Banned { dfa };
        let mut cache = banned.dfa.create_cache();
        if banned.run(&mut cache, b"", 0, true)? == Fate::Match {
            return Err(fail("a pattern matches the empty text, which nothing can avoid".into()));
        }
        Ok(banned)
    }

    /// What becomes of a match that begins at `start`; at the `end` of an answer nothing follows.
    fn run(&self, cache: &mut Cache, text: &[u8], start: usize, end: bool) -> Result<Fate> {
        let fail = |what: String| Error::GrammarStep(format!("banned text: {what}"));
        let input = Input::new(text).span(start..text.len()).anchored(Anchored::Yes);
        let mut state = self.dfa.start_state_forward(cache, &input).map_err(|e| fail(e.to_string()))?;
        for byte in &text[start..] {
            state = self.dfa.next_state(cache, state, *byte).map_err(|e| fail(e.to_string()))?;
            // A match is known one byte after its end.
            if state.is_match() {
                return Ok(Fate::Match);
            }
            if state.is_dead() || state.is_quit() {
                return Ok(Fate::Dead);
            }
        }
        if end {
            state = self.dfa.next_eoi_state(cache, state).map_err(|e| fail(e.to_string()))?;
            return Ok(if state.is_match() { Fate::Match } else { Fate::Dead });
        }
        Ok(Fate::Open(cache.clear_count(), state))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Match,
    /// In this state: a number of the automaton, which holds until its cache is cleared.
    Open(usize, LazyStateID),
    Dead,
}

/// A pattern that matches just this string, in any case. A backslash before a letter would mean something; before a sign it
/// says that the sign is meant.
fn escape(text: &str) -> String {
    let mut out = String::from("(?i)");
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// What the last token comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// All but the last `hold` tokens are safe, whatever follows and whichever of those go; a sentence may end here.
    Pass {
        /// Tokens that may still be refused.
        hold: usize,
        /// Whether a sentence ends here.
        sentence: bool,
    },
    /// So many of the last tokens are, or touch, a banned text.
    Banned(usize),
}

/// Watches the tokens of one answer.
#[derive(Debug, Clone)]
pub struct TextWatch {
    tokenizer: Arc<Tokenizer>,
    banned: Option<(Arc<Banned>, Cache)>,
    /// The bytes of the last tokens.
    text: Vec<u8>,
    tokens: VecDeque<Token>,
    /// Whether tokens before these were forgotten.
    cut: bool,
}

#[derive(Debug, Clone)]
struct Token {
    /// Bytes of it.
    len: usize,
    /// Where matches began that were open after it, by their distance from its end.
    open: Vec<usize>,
    /// The last tokens, this one included, that such a match touches.
    hold: usize,
}

impl TextWatch {
    /// A watch at the start of an answer; without banned texts it only looks for sentences.
    pub fn new(tokenizer: Arc<Tokenizer>, banned: Option<Arc<Banned>>) -> TextWatch {
        let banned = banned.map(|b| {
            let cache = b.dfa.create_cache();
            (b, cache)
        });
        TextWatch { tokenizer, banned, text: Vec::new(), tokens: VecDeque::new(), cut: false }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The id is outside the vocabulary, or the automaton cannot go on.
    pub fn push(&mut self, id: u32) -> Result<Seen> {
        let bytes = self.tokenizer.token_bytes(id)?;
        // Control tokens are no text.
        let bytes = if self.tokenizer.is_special(id) { &[][..] } else { bytes };
        let (before, starts) = (self.text.len(), self.open());
        self.text.extend_from_slice(bytes);
        self.tokens.push_back(Token { len: bytes.len(), open: Vec::new(), hold: 0 });
        let (end, mut open) = (self.text.len(), Vec::<(usize, _)>::new());
        if let Some((banned, cache)) = &mut self.banned {
            for start in starts.into_iter().chain(before..end) {
                match banned.run(cache, &self.text, start, false)? {
                    Fate::Match => return Ok(Seen::Banned(self.since(start))),
                    // What is in one state has one future: the first and the last of them are enough.
                    Fate::Open(count, state) => {
                        let same: Vec<usize> =
                            (0..open.len()).filter(|i| open[*i].1 == (count, state)).collect();
                        if let [_, last] = same[..] {
                            open.remove(last);
                        }
                        open.push((end - start, (count, state)));
                    }
                    Fate::Dead => {}
                }
            }
        }
        if let Some(token) = self.tokens.back_mut() {
            token.open = open.into_iter().map(|o| o.0).collect();
        }
        if self.tokens.len() > TOKENS_MAX
            && let Some(first) = self.tokens.pop_front()
        {
            self.text.drain(..first.len);
            self.cut = true;
        }
        let hold = self.open().first().map_or(0, |start| self.since(*start));
        if let Some(token) = self.tokens.back_mut() {
            token.hold = hold;
        }
        // Of the tokens that are held some may go, and then what was open before them is open again.
        let (n, mut safe) = (self.tokens.len(), self.tokens.len());
        for (i, token) in self.tokens.iter().enumerate().rev() {
            if i + 1 < safe {
                break;
            }
            safe = safe.min((i + 1).saturating_sub(token.hold));
        }
        Ok(Seen::Pass { hold: n - safe, sentence: end > before && ends_sentence(&self.text) })
    }

    /// What would be if the answer ended here.
    ///
    /// # Errors
    /// The automaton cannot go on.
    pub fn finish(&mut self) -> Result<Seen> {
        let starts = self.open();
        if let Some((banned, cache)) = &mut self.banned {
            for start in starts {
                if banned.run(cache, &self.text, start, true)? == Fate::Match {
                    return Ok(Seen::Banned(self.since(start)));
                }
            }
        }
        Ok(Seen::Pass { hold: 0, sentence: true })
    }

    /// Where matches begin that are open. Not in what is forgotten, nor in the first token then, which stays as what
    /// precedes a match.
    fn open(&self) -> Vec<usize> {
        let least = self.tokens.front().filter(|_| self.cut).map_or(0, |t| t.len);
        let distances = self.tokens.back().into_iter().flat_map(|t| &t.open);
        distances.filter_map(|d| self.text.len().checked_sub(*d)).filter(|start| *start >= least).collect()
    }

    /// The last tokens did not happen; no more of them than [`TOKENS_MAX`] less one.
    pub fn take_back(&mut self, tokens: usize) {
        for token in (0..tokens).map_while(|_| self.tokens.pop_back()) {
            self.text.truncate(self.text.len() - token.len);
        }
    }

    /// The tokens from that on which has the byte at `start`.
    fn since(&self, start: usize) -> usize {
        let mut end = self.text.len();
        let mut n = 0;
        for token in self.tokens.iter().rev() {
            if end <= start && token.len > 0 {
                break;
            }
            n += 1;
            end -= token.len;
        }
        n
    }
}

/// Whether a sentence, or a line, ends with this text.
fn ends_sentence(text: &[u8]) -> bool {
    if text.ends_with(b"\n") {
        return true;
    }
    let trimmed = text.trim_ascii_end();
    let closing: &[&[u8]] = &[b"\"", b"'", b")", b"]", "”".as_bytes(), "’".as_bytes(), "»".as_bytes()];
    let core = closing.iter().find_map(|c| trimmed.strip_suffix(*c)).unwrap_or(trimmed);
    let ends: [&[u8]; 6] = [b"!", b"?", "…".as_bytes(), "。".as_bytes(), "！".as_bytes(), "？".as_bytes()];
    if ends.iter().any(|e| core.ends_with(e)) {
        return true;
    }
    // "3.", "A." and "e.g." end no sentence.
    let Some(before) = core.strip_suffix(b".") else { return false };
    let word = before.rsplit(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
    word.len() > 1 && !word.contains(&b'.') && !word.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{Scheme, Vocab};
    use proptest::prelude::*;
    use regex_automata::meta::Regex;
    use std::sync::OnceLock;

    const PIECES: [&str; 16] =
        ["a", "b", "c", "ab", "bc", "abc", "▁", "A", "é", "<0xF0>", "<0x9F>", "cab", "a▁b", ".", "B", "▁a"];

    fn tokenizer() -> Arc<Tokenizer> {
        static ONE: OnceLock<Arc<Tokenizer>> = OnceLock::new();
        let make = || {
            let tokens = PIECES.map(String::from);
            let vocab = Vocab { add_bos: Some(false), ..Vocab::new(Scheme::Spm, &tokens) };
            Arc::new(Tokenizer::from_vocab(&vocab).unwrap())
        };
        ONE.get_or_init(make).clone()
    }

    fn own(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    fn watch(strings: &[&str], regexes: &[&str]) -> TextWatch {
        let banned = Banned::new(&own(strings), &own(regexes)).unwrap();
        TextWatch::new(tokenizer(), Some(Arc::new(banned)))
    }

    const STRINGS: [&str; 2] = ["Abc", "b a."];
    const REGEXES: [&str; 4] = ["c[^b]a", "é+b", r"(?-u:\b)ab(?-u:\b)", "(?s)é.b"];

    proptest! {
        /// Whatever comes, no banned text is left, nothing is refused that was safe, and nothing without cause.
        #[test]
        fn no_banned_text_is_left_and_what_was_safe_stays(ids in prop::collection::vec(0u32..16, 0..40)) {
            static FIND: OnceLock<Regex> = OnceLock::new();
            let find = FIND.get_or_init(|| {
                let strings = STRINGS.map(escape).to_vec();
                Regex::new_many(&[strings, own(&REGEXES)].concat()).unwrap()
            });
            let mut watch = watch(&STRINGS, &REGEXES);
            let (mut kept, mut safe): (Vec<u32>, usize) = (Vec::new(), 0);
            let text = |kept: &[u32]| tokenizer().decode_bytes(kept).unwrap();
            for id in ids {
                kept.push(id);
                match watch.push(id).unwrap() {
                    Seen::Pass { hold, .. } => safe = safe.max(kept.len() - hold),
                    Seen::Banned(n) => {
                        prop_assert!(kept.len() - n >= safe, "{kept:?} {n}");
                        prop_assert!(find.is_match(&text(&kept)), "{:?}", text(&kept));
                        watch.take_back(n);
                        kept.truncate(kept.len() - n);
                    }
                }
            }
            while let Seen::Banned(n) = watch.finish().unwrap() {
                prop_assert!(kept.len() - n >= safe && n > 0);
                watch.take_back(n);
                kept.truncate(kept.len() - n);
            }
            prop_assert!(!find.is_match(&text(&kept)), "{:?}", text(&kept));
        }
    }

    fn ids(pieces: &[&str]) -> Vec<u32> {
        pieces.iter().map(|p| PIECES.iter().position(|q| q == p).unwrap() as u32).collect()
    }

    #[test]
    fn only_what_may_still_be_banned_is_held() {
        let mut w = watch(&["abc"], &[]);
        let seen: Vec<Seen> =
            ids(&["c", "a", "b", "b", "A", "bc"]).iter().map(|i| w.push(*i).unwrap()).collect();
        let pass = |hold| Seen::Pass { hold, sentence: false };
        assert_eq!(seen, [pass(0), pass(1), pass(2), pass(0), pass(1), pass(2)]);
        // Complete: known with the next byte, or at the end.
        assert_eq!(w.clone().finish().unwrap(), Seen::Banned(2));
        assert_eq!(w.push(ids(&["c"])[0]).unwrap(), Seen::Banned(3));
        w.take_back(3);
        assert_eq!(w.finish().unwrap(), Seen::Pass { hold: 0, sentence: true });
    }

    #[test]
    fn what_was_open_before_a_token_that_may_go_is_held_too() {
        let mut w = watch(&["abc"], &["é+b"]);
        let mut push = |piece: &str| w.push(ids(&[piece])[0]).unwrap();
        assert_eq!(push("cab"), Seen::Pass { hold: 1, sentence: false });
        // With é the "ab" goes no further; but é may go.
        assert_eq!(push("é"), Seen::Pass { hold: 2, sentence: false });
        assert_eq!(push("b"), Seen::Pass { hold: 3, sentence: false });
        assert_eq!(push("▁"), Seen::Banned(3));
        w.take_back(3);
        w.push(ids(&["c"])[0]).unwrap();
        assert_eq!(w.finish().unwrap(), Seen::Banned(2));
    }

    #[test]
    fn a_pattern_without_end_is_held_no_longer_than_the_bound() {
        let mut w = watch(&[], &["(?s)a.*é"]);
        for (n, id) in ids(&["a"; 700]).into_iter().enumerate() {
            let Seen::Pass { hold, .. } = w.push(id).unwrap() else { panic!("{n}") };
            assert!(hold == n + 1 || hold <= TOKENS_MAX, "{hold} of {n}");
        }
        assert!(w.text.len() <= TOKENS_MAX && w.tokens.iter().all(|t| t.open.len() <= 2));
        assert!(matches!(w.push(ids(&["é"])[0]).unwrap(), Seen::Pass { .. }));
        assert!(matches!(w.push(ids(&["b"])[0]).unwrap(), Seen::Banned(n) if n > 1));
    }

    #[test]
    fn wrong_patterns_are_named() {
        for (strings, regexes, why) in [
            (&[][..], &[][..], "0 patterns"),
            (&[""][..], &[][..], "a pattern of 0 bytes"),
            (&[][..], &["a*"][..], "matches the empty text"),
            (&[][..], &["(a"][..], "unclosed group"),
            (&[][..], &[r"\ba\b"][..], "(?-u:\\b)"),
        ] {
            let error = Banned::new(&own(strings), &own(regexes)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        // Signs are themselves.
        let mut w = watch(&["a.b"], &[]);
        let seen: Vec<Seen> = ids(&["ab", "a", ".", "b"]).iter().map(|i| w.push(*i).unwrap()).collect();
        assert!(seen.iter().all(|s| matches!(s, Seen::Pass { .. })));
        assert_eq!(w.finish().unwrap(), Seen::Banned(3));
    }

    #[test]
    fn sentences_end_where_people_end_them() {
        for (text, ends) in [
            ("He left.", true),
            ("He left. ", true),
            ("\"Why?\"", true),
            ("好。", true),
            ("a\n", true),
            ("3.", false),
            ("in section 12.", false),
            ("e.g.", false),
            ("J.", false),
            ("He", false),
            ("", false),
        ] {
            assert_eq!(ends_sentence(text.as_bytes()), ends, "{text:?}");
        }
    }
}
