//! Repetition, presence and frequency penalties.
//!
//! Repetition (Keskar et al. 2019, "CTRL", eq. 2): a token of the prompt or the answer has `l / r` if `l > 0`, else `l r`.
//! Presence and frequency (OpenAI API): a token that the answer has `c` times loses `presence + c frequency`.

use super::Edits;
use crate::request::Sampling;
use std::collections::{HashMap, VecDeque};

/// How often a token is in the window.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// In prompt and answer.
    all: u32,
    /// In the answer.
    answer: u32,
}

/// A token in the window, and whether it is of the answer.
type Counted = (u32, bool);

/// The tokens that penalties look at, counted as they come.
#[derive(Debug, Clone)]
pub(crate) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    window: usize,
    /// The last `window` tokens and whether each is of the answer; kept only where there is a window.
    recent: VecDeque<Counted>,
    counts: HashMap<u32, Count>,
    /// While tokens are only guessed: each with what it drove out of the window.
    guessed: Option<Vec<(u32, Option<Counted>)>>,
}

impl Penalties {
    /// `None` if the settings change nothing.
    pub(crate) fn new(s: &Sampling) -> Option<Penalties> {
        let off = s.repetition_penalty == 1.0 && s.presence_penalty == 0.0 && s.frequency_penalty == 0.0;
        (!off).then(|| Penalties {
            repetition: s.repetition_penalty,
            presence: s.presence_penalty,
            frequency: s.frequency_penalty,
            window: s.penalty_window.map_or(usize::MAX, |w| w as usize),
            recent: VecDeque::new(),
            counts: HashMap::new(),
            guessed: None,
        })
    }

    /// A token of the prompt, or of the answer.
    pub(crate) fn push(&mut self, id: u32, answer: bool) {
        self.count(id, answer);
        let mut out = None;
        if self.window < usize::MAX {
            self.recent.push_back((id, answer));
            out = if self.recent.len() > self.window { self.recent.pop_front() } else { None };
        }
        if let Some((id, answer)) = out {
            self.discount(id, answer);
        }
        if let Some(guessed) = &mut self.guessed {
            guessed.push((id, out));
        }
    }

    /// From here on tokens are only guessed, until [`Self::take_back`].
    pub(crate) fn guess(&mut self) {
        self.guessed = Some(Vec::new());
    }

    /// Takes the guessed tokens of the answer back.
    pub(crate) fn take_back(&mut self) {
        for (id, out) in self.guessed.take().into_iter().flatten().rev() {
            if let Some((id, answer)) = out {
                self.count(id, answer);
                self.recent.push_front((id, answer));
            }
            self.recent.pop_back();
            self.discount(id, true);
        }
    }

    fn count(&mut self, id: u32, answer: bool) {
        let count = self.counts.entry(id).or_default();
        count.all += 1;
        count.answer += u32::from(answer);
    }

    fn discount(&mut self, id: u32, answer: bool) {
        if let Some(count) = self.counts.get_mut(&id) {
            count.all -= 1;
            count.answer -= u32::from(answer);
            if count.all == 0 {
                self.counts.remove(&id);
            }
        }
    }

    /// Changes the logits of the tokens in the window; each depends on its own count alone, so their order is free.
    pub(crate) fn apply(&self, row: &mut [f32], edits: &mut Edits) {
        for (id, count) in &self.counts {
            let mut l = row[*id as usize];
            l = if l > 0.0 { l / self.repetition } else { l * self.repetition };
            if count.answer > 0 {
                l -= self.presence + count.answer as f32 * self.frequency;
            }
            edits.set(row, *id, l);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition over a plain list of tokens.
    fn model(s: &Sampling, prompt: &[u32], answer: &[u32], row: &[f32]) -> Vec<f32> {
        let all: Vec<(u32, bool)> =
            prompt.iter().map(|t| (*t, false)).chain(answer.iter().map(|t| (*t, true))).collect();
        let window = &all[all.len() - all.len().min(s.penalty_window.map_or(usize::MAX, |w| w as usize))..];
        (0..row.len() as u32)
            .map(|id| {
                let mut l = row[id as usize];
                if window.iter().any(|(t, _)| *t == id) {
                    l = if l > 0.0 { l / s.repetition_penalty } else { l * s.repetition_penalty };
                }
                let c = window.iter().filter(|w| **w == (id, true)).count() as f32;
                if c > 0.0 { l - (s.presence_penalty + c * s.frequency_penalty) } else { l }
            })
            .collect()
    }

    proptest::proptest! {
        #[test]
        fn equal_to_the_definition(
            prompt in proptest::collection::vec(0u32..12, 0..20),
            answer in proptest::collection::vec(0u32..12, 0..20),
            row in proptest::collection::vec(-5f32..5.0, 12),
            (r, p, f) in (0.5f32..2.0, -2f32..2.0, -2f32..2.0),
            window in proptest::option::of(1u32..30),
        ) {
            let s = Sampling {
                repetition_penalty: r, presence_penalty: p, frequency_penalty: f, penalty_window: window,
                ..Sampling::default()
            };
            let mut penalties = Penalties::new(&s).unwrap();
            prompt.iter().for_each(|t| penalties.push(*t, false));
            answer.iter().for_each(|t| penalties.push(*t, true));
            let (mut got, mut edits) = (row.clone(), Edits::default());
            penalties.apply(&mut got, &mut edits);
            proptest::prop_assert_eq!(&got, &model(&s, &prompt, &answer, &row));
            for id in 0..12 {
                proptest::prop_assert_eq!(edits.original(&got, id), row[id as usize]);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_was_guessed_leaves_nothing(
            answer in proptest::collection::vec(0u32..6, 0..20),
            guesses in proptest::collection::vec(proptest::collection::vec(0u32..6, 0..9), 1..4),
            row in proptest::collection::vec(-5f32..5.0, 6),
            window in proptest::option::of(1u32..12),
        ) {
            let s = Sampling {
                repetition_penalty: 1.3, presence_penalty: 0.4, frequency_penalty: 0.3, penalty_window: window,
                ..Sampling::default()
            };
            let mut p = Penalties::new(&s).unwrap();
            p.push(3, false);
            for (n, token) in answer.iter().enumerate() {
                p.guess();
                guesses[n % guesses.len()].iter().for_each(|t| p.push(*t, true));
                p.take_back();
                p.push(*token, true);
            }
            let mut got = row.clone();
            p.apply(&mut got, &mut Edits::default());
            proptest::prop_assert_eq!(got, model(&s, &[3], &answer, &row));
        }
    }

    #[test]
    fn identity_settings_are_absent() {
        assert!(Penalties::new(&Sampling::default()).is_none());
    }
}
