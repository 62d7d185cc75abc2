//! DRY, "don't repeat yourself" (Weidmann 2024, text-generation-webui pull request 5677): a token that would make a repeat
//! longer, of `n` tokens of the text that are there already, loses `multiplier base^(n - allowed)` if `n >= allowed`; of several
//! repeats the longest counts. Repeats do not go over the tokens that break sequences, and those are not punished.

use super::Edits;
use super::repeats::Repeats;
use crate::sampling::Sampling;
use std::collections::HashMap;
use std::sync::Arc;

/// Nobody draws a token that has lost this much, and numbers stay small enough to add up.
const MOST: f64 = 1000.0;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Dry {
    multiplier: f32,
    base: f32,
    allowed: u32,
    breakers: Arc<[u32]>,
    repeats: Repeats,
    /// The longest repeat that each token goes on with.
    longest: HashMap<u32, u32>,
}

impl Dry {
    /// `None` if the settings change nothing.
    pub(super) fn new(s: &Sampling, prompt: &[u32]) -> Option<Dry> {
        let window = s.dry_window.map_or(usize::MAX, |w| w as usize);
        (s.dry_multiplier != 0.0).then(|| Dry {
            multiplier: s.dry_multiplier,
            base: s.dry_base,
            allowed: s.dry_allowed_length,
            breakers: s.dry_breakers.clone(),
            repeats: Repeats::new(prompt, window, s.dry_breakers.clone()),
            longest: HashMap::new(),
        })
    }

    /// A token of the answer.
    pub(super) fn push(&mut self, id: u32) {
        self.repeats.push(id);
    }

    /// From here on tokens are only guessed, until [`Self::take_back`].
    pub(super) fn guess(&mut self) {
        self.repeats.guess();
    }

    /// Takes the guessed tokens back.
    pub(super) fn take_back(&mut self) {
        self.repeats.take_back();
    }

    /// Punishes the tokens that go on with a repeat.
    pub(super) fn apply(&mut self, row: &mut [f32], edits: &mut Edits) {
        self.longest.clear();
        for (id, length) in self.repeats.each().filter(|r| r.1 >= self.allowed) {
            if self.breakers.binary_search(&id).is_err() {
                let longest = self.longest.entry(id).or_default();
                *longest = length.max(*longest);
            }
        }
        for (id, length) in &self.longest {
            let more = f64::from(length - self.allowed);
            let penalty = (f64::from(self.multiplier) * f64::from(self.base).powf(more)).min(MOST);
            edits.set(row, *id, row[*id as usize] - penalty as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(s: &Sampling, prompt: &[u32], answer: &[u32]) -> Vec<f32> {
        let mut dry = Dry::new(s, prompt).unwrap();
        answer.iter().for_each(|t| dry.push(*t));
        let mut row = vec![0.0; 10];
        dry.apply(&mut row, &mut Edits::default());
        row
    }

    #[test]
    fn the_penalty_grows_with_the_repeat() {
        let s = Sampling { dry_multiplier: 0.5, dry_base: 2.0, ..Sampling::default() };
        assert_eq!(row(&s, &[1, 2, 3, 9, 1], &[]), [0.0; 10]);
        assert_eq!(row(&s, &[1, 2, 3, 9, 1], &[2])[3], -0.5);
        assert_eq!(row(&s, &[1, 2, 3, 4, 9, 1, 2], &[3])[4], -1.0);
        // Of two repeats the longer one, and each with its token.
        let got = row(&s, &[1, 2, 3, 4, 2, 3, 5, 2, 3, 4, 1, 2], &[3]);
        assert_eq!((got[4], got[5]), (-1.0, -0.5));
        assert_eq!(row(&s, &[8; 60], &[])[8], -1000.0);
    }

    #[test]
    fn breakers_end_repeats_and_go_free() {
        let s = Sampling { dry_multiplier: 1.0, dry_base: 1.5, ..Sampling::default() };
        let broken = Sampling { dry_breakers: [3, 4].into(), ..s.clone() };
        let text = [1, 2, 3, 5, 6, 7, 1, 2, 3, 5, 6];
        assert_eq!(row(&s, &text, &[])[7], -(1.5f32.powi(3)));
        assert_eq!(row(&broken, &text, &[])[7], -1.0);
        assert_eq!(row(&broken, &[1, 2, 3, 1], &[2]), [0.0; 10]);
    }
}
