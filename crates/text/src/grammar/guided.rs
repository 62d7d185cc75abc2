//! An answer that may reason before it obeys: a small phase machine around a [`Grammar`].
//!
//! Opening: the model may begin to reason or answer at once. Reasoning: it is free until the end marker is in its text, but
//! for ending the answer, where a grammar is still to come; when the budget is used up, the marker's tokens are forced one by
//! one. Answer: the grammar, or freedom.

use std::collections::VecDeque;
use std::sync::Arc;

use llguidance::toktrie::TokTrie;

use super::{Grammar, GrammarFactory, Vocabulary};
use crate::{Ends, Error, Result, Special};

/// How a model marks its reasoning, and how long it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasoning {
    /// What begins it, such as `<think>`; empty if the prompt has begun it already.
    pub start: String,
    /// What ends it, such as `</think>`.
    pub end: String,
    /// Most tokens of it; then the end is forced.
    pub budget: Option<u32>,
    /// What follows the end before the answer, such as `\n\n`: forced where a grammar follows or the end was forced.
    pub then: String,
}

/// Where an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing has come that decides whether the model reasons.
    Opening,
    /// The model reasons.
    Reasoning,
    /// The end of the reasoning is being forced, or what follows it.
    Closing,
    /// The answer itself.
    Answer,
}

/// A [`Grammar`] that begins after the reasoning; either may be absent. A clone goes its own way, as a grammar's does.
#[derive(Clone)]
pub struct Guided {
    vocabulary: Arc<Vocabulary>,
    grammar: Option<Grammar>,
    reasoning: Reasoning,
    phase: Phase,
    /// Tokens to force, in order.
    forced: VecDeque<u32>,
    /// Where the forced tokens lead.
    next: Phase,
    /// The last bytes, as many as the marker may begin in.
    tail: Vec<u8>,
    /// Tokens of the reasoning.
    spent: u32,
}

impl Guided {
    /// The phases of one answer.
    ///
    /// # Errors
    /// The end marker is empty, or a marker cannot be encoded.
    pub fn new(
        factory: &GrammarFactory,
        grammar: Option<Grammar>,
        reasoning: Option<Reasoning>,
    ) -> Result<Self> {
        let phase = match &reasoning {
            None => Phase::Answer,
            Some(r) if r.end.is_empty() => {
                let what = "the marker that ends it is empty".into();
                return Err(Error::Grammar { kind: "reasoning", what });
            }
            Some(r) if r.start.is_empty() => Phase::Reasoning,
            Some(_) => Phase::Opening,
        };
        let mut guided = Self {
            vocabulary: factory.vocabulary.clone(),
            grammar,
            reasoning: reasoning.unwrap_or_default(),
            phase,
            forced: VecDeque::new(),
            next: Phase::Answer,
            tail: Vec::new(),
            spent: 0,
        };
        for text in [&guided.reasoning.start, &guided.reasoning.end, &guided.reasoning.then] {
            guided.vocabulary.encode(text)?;
        }
        if guided.phase == Phase::Reasoning {
            guided.check_budget()?;
        }
        Ok(guided)
    }

    /// Where the answer is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the answer may end now.
    pub fn is_complete(&mut self) -> bool {
        match self.phase {
            Phase::Closing => false,
            Phase::Opening | Phase::Answer => self.grammar.as_mut().is_none_or(Grammar::is_complete),
            Phase::Reasoning => self.grammar.is_none(),
        }
    }

    /// Sets the bits of the ids that may come next, in a set that is empty; `false` says that nothing is forbidden.
    ///
    /// # Errors
    /// As [`Grammar::mask`].
    pub fn mask(&mut self, allowed: &mut [u32]) -> Result<bool> {
        match self.phase {
            Phase::Closing => {
                self.forced.front().into_iter().for_each(|id| set(allowed, *id, true));
                Ok(true)
            }
            Phase::Reasoning if self.grammar.is_some() => {
                let vocab = self.vocabulary.trie().vocab_size();
                let (full, rest) = (vocab / 32, vocab % 32);
                allowed.iter_mut().take(full).for_each(|word| *word = u32::MAX);
                allowed.iter_mut().skip(full).take(1).for_each(|word| *word = (1 << rest) - 1);
                self.vocabulary.ends.iter().for_each(|id| set(allowed, *id, false));
                self.forbid_overshoot(allowed);
                Ok(true)
            }
            Phase::Reasoning => Ok(false),
            Phase::Opening | Phase::Answer => {
                let Some(grammar) = &mut self.grammar else { return Ok(false) };
                allowed.iter_mut().zip(grammar.mask()?).for_each(|(a, m)| *a = *m);
                if self.phase == Phase::Opening {
                    let start = self.vocabulary.encode(&self.reasoning.start)?;
                    start.first().into_iter().for_each(|id| set(allowed, *id, true));
                }
                Ok(true)
            }
        }
    }

    /// Takes the next token.
    ///
    /// # Errors
    /// The token is not allowed here, or the grammar cannot go on.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        match self.phase {
            Phase::Opening => self.open(id),
            Phase::Reasoning => self.reason(id),
            Phase::Closing => {
                if self.forced.front() != Some(&id) {
                    return Err(Error::GrammarStep(format!("token {id} comes where another one is forced")));
                }
                self.forced.pop_front();
                if self.forced.is_empty() {
                    self.phase = self.next;
                    self.check_budget()?;
                }
                Ok(())
            }
            Phase::Answer => self.grammar.as_mut().map_or(Ok(()), |g| g.accept(id)),
        }
    }

    /// The first tokens: the start marker or the answer. With a grammar, a token that it takes is of the answer; without
    /// one the text is watched for the marker.
    fn open(&mut self, id: u32) -> Result<()> {
        if let Some(grammar) = &mut self.grammar {
            let mut start: VecDeque<u32> = self.vocabulary.encode(&self.reasoning.start)?.into();
            let begins = start.pop_front() == Some(id);
            if begins && !grammar.mask().is_ok_and(|mask| is_set(mask, id)) {
                self.force(start, Phase::Reasoning);
                return self.check_budget();
            }
            self.phase = Phase::Answer;
            return grammar.accept(id);
        }
        self.tail.extend_from_slice(self.vocabulary.bytes(id));
        let text = self.tail.trim_ascii_start();
        let start = self.reasoning.start.as_bytes();
        if text.starts_with(start) {
            let rest = text[start.len()..].to_vec();
            self.tail.clear();
            self.phase = Phase::Reasoning;
            return self.watch(&rest);
        }
        if !start.starts_with(text) || self.vocabulary.ends.contains(&id) {
            self.phase = Phase::Answer;
        }
        Ok(())
    }

    fn reason(&mut self, id: u32) -> Result<()> {
        if self.vocabulary.ends.contains(&id) {
            if self.grammar.is_some() {
                return Err(Error::GrammarStep(format!("token {id} ends the answer before it has begun")));
            }
            self.phase = Phase::Answer;
            return Ok(());
        }
        self.spent = self.spent.saturating_add(1);
        let bytes = self.vocabulary.bytes(id).to_vec();
        self.watch(&bytes)
    }

    /// Looks for the end marker in what has come.
    fn watch(&mut self, bytes: &[u8]) -> Result<()> {
        self.tail.extend_from_slice(bytes);
        let end = self.reasoning.end.as_bytes();
        let Some(at) = self.tail.windows(end.len()).position(|w| w == end) else {
            let keep = self.tail.len().min(end.len().max(4) - 1);
            self.tail.drain(..self.tail.len() - keep);
            return self.check_budget();
        };
        let rest = self.tail.split_off(at + end.len());
        self.tail.clear();
        self.phase = Phase::Answer;
        let Some(grammar) = &mut self.grammar else { return Ok(()) };
        // The marker's last token may have brought white space, which the grammar need not know, or the answer's first bytes.
        let then = self.reasoning.then.as_str();
        if rest.trim_ascii().is_empty() {
            let common = rest.iter().zip(then.as_bytes()).take_while(|(a, b)| a == b).count();
            let forced = self.vocabulary.encode(then.get(common..).unwrap_or_default())?;
            self.force(forced.into(), Phase::Answer);
            return Ok(());
        }
        for id in self.vocabulary.trie().greedy_tokenize(&rest) {
            grammar.accept(id)?;
        }
        Ok(())
    }

    /// Forces the end of the reasoning when its budget is used up, at the end of a character.
    fn check_budget(&mut self) -> Result<()> {
        let used_up = self.reasoning.budget.is_some_and(|b| self.spent >= b);
        if self.phase != Phase::Reasoning || !used_up {
            return Ok(());
        }
        let split = (1..=3.min(self.tail.len())).any(|n| {
            let last = &self.tail[self.tail.len() - n..];
            std::str::from_utf8(last).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        });
        if split && self.spent < self.reasoning.budget.unwrap_or(0).saturating_add(4) {
            return Ok(());
        }
        let Reasoning { end, then, .. } = &self.reasoning;
        let begun = self.begun().max().and_then(|n| end.get(n..)).unwrap_or(end);
        let forced = self.vocabulary.encode(&format!("{begun}{then}"))?;
        self.force(forced.into(), Phase::Answer);
        Ok(())
    }

    fn force(&mut self, ids: VecDeque<u32>, next: Phase) {
        self.phase = if ids.is_empty() { next } else { Phase::Closing };
        (self.forced, self.next) = (ids, next);
    }

    /// How many bytes of the end marker the text may have begun with.
    fn begun(&self) -> impl Iterator<Item = usize> {
        let end = self.reasoning.end.as_bytes();
        (1..end.len()).filter(move |n| self.tail.ends_with(&end[..*n]))
    }

    /// Forbids tokens that complete the end marker and go on with bytes that the grammar has had no say in.
    fn forbid_overshoot(&self, allowed: &mut [u32]) {
        let end = self.reasoning.end.as_bytes();
        for n in self.begun() {
            for id in 0..self.vocabulary.trie().vocab_size() as u32 {
                let more = self.vocabulary.bytes(id).strip_prefix(&end[n..]);
                if more.is_some_and(|more| !more.trim_ascii().is_empty()) {
                    set(allowed, id, false);
                }
            }
        }
    }
}

impl std::fmt::Debug for Guided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guided({:?}, {:?})", self.phase, self.grammar)
    }
}

impl Vocabulary {
    fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }

    /// The bytes of a token as it is spelled, special ones too; none outside the vocabulary.
    fn bytes(&self, id: u32) -> &[u8] {
        self.tokenizer.token_bytes(id).unwrap_or_default()
    }

    /// The ids of a marker.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        self.tokenizer.encode(text, Special::Parse, Ends::None)
    }
}

fn set(bits: &mut [u32], id: u32, on: bool) {
    if let Some(word) = bits.get_mut(id as usize / 32) {
        let bit = 1 << (id % 32);
        *word = if on { *word | bit } else { *word & !bit };
    }
}

fn is_set(bits: &[u32], id: u32) -> bool {
    bits.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
}
