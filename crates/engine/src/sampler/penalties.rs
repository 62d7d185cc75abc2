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

/// The tokens that penalties look at, counted as they come.
#[derive(Debug, Clone)]
pub(crate) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    window: usize,
    /// The last `window` tokens and whether each is of the answer; kept only where there is a window.
    recent: VecDeque<(u32, bool)>,
    counts: HashMap<u32, Count>,
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
        })
    }

    /// A token of the prompt, or of the answer.
    pub(crate) fn push(&mut self, id: u32, answer: bool) {
        let count = self.counts.entry(id).or_default();
        count.all += 1;
        count.answer += u32::from(answer);
        if self.window == usize::MAX {
            return;
        }
        self.recent.push_back((id, answer));
        if self.recent.len() > self.window
            && let Some((id, answer)) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&id)
        {
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

    #[test]
    fn identity_settings_are_absent() {
        assert!(Penalties::new(&Sampling::default()).is_none());
    }
}
