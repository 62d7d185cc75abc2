//! Adaptive sampling: the answer so far steers temperature and penalties, within bounds. A method of ours.
//!
//! Of the last 64 tokens of the answer, `r` is the share that ended a repeat of three tokens or more, and `c` the geometric mean
//! of the model's probabilities of them. With `a` the setting and `d = max(0, 1 - c / 0.3)` the doubt:
//! `T' = T clamp(1 + a (r - d), 1 / (1 + a), 1 + a)`, `repetition' = repetition (1 + 0.3 a r)`, `frequency' = frequency + a r`.
//! So a loop heats up until it ends, and an answer that has lost its thread cools down. `a = 0` changes nothing, nor do the
//! first 16 tokens.

use super::repeats::Repeats;
use std::sync::Arc;

const WINDOW: usize = 64;
const LEAST: usize = 16;
/// A repeat of fewer tokens is ordinary language.
const REPEAT: u32 = 3;
/// The mean probability from which on there is no doubt.
const SURE: f64 = 0.3;

/// What steering changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Steer {
    /// Multiplies the temperature.
    pub(super) temperature: f32,
    /// Multiplies the repetition penalty.
    pub(super) repetition: f32,
    /// Is added to the frequency penalty.
    pub(super) frequency: f32,
}

impl Steer {
    pub(super) const NONE: Steer = Steer { temperature: 1.0, repetition: 1.0, frequency: 0.0 };
}

/// The last tokens of the answer.
#[derive(Debug, Clone, Copy)]
struct Recent {
    made: usize,
    /// Bit `n % 64` is whether token `n` ended a repeat.
    repeats: u64,
    /// `ln p` of token `n` at `n % 64`.
    logprobs: [f32; WINDOW],
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Adaptive {
    strength: f32,
    text: Repeats,
    recent: Recent,
    before_guesses: Option<Recent>,
}

impl Adaptive {
    /// `None` if the setting changes nothing.
    pub(super) fn new(strength: f32) -> Option<Adaptive> {
        let recent = Recent { made: 0, repeats: 0, logprobs: [0.0; WINDOW] };
        let text = Repeats::new(&[], 1024, Arc::default());
        (strength != 0.0).then_some(Adaptive { strength, text, recent, before_guesses: None })
    }

    /// A token of the answer, to which the model gave this log-probability.
    pub(super) fn push(&mut self, id: u32, logprob: f32) {
        self.text.push(id);
        let r = &mut self.recent;
        let place = r.made % WINDOW;
        r.repeats = r.repeats & !(1 << place) | u64::from(self.text.longest() >= REPEAT) << place;
        r.logprobs[place] = logprob.max(-87.0);
        r.made += 1;
    }

    /// From here on tokens are only guessed, until [`Self::take_back`].
    pub(super) fn guess(&mut self) {
        self.text.guess();
        self.before_guesses = Some(self.recent);
    }

    /// Takes the guessed tokens back.
    pub(super) fn take_back(&mut self) {
        self.text.take_back();
        self.recent = self.before_guesses.take().unwrap_or(self.recent);
    }

    /// What to change for the next token.
    pub(super) fn steer(&self) -> Steer {
        let (r, a) = (&self.recent, f64::from(self.strength));
        if r.made < LEAST {
            return Steer::NONE;
        }
        let n = r.made.min(WINDOW);
        let repeats = f64::from(r.repeats.count_ones()) / n as f64;
        let mean = r.logprobs[..n].iter().map(|l| f64::from(*l)).sum::<f64>() / n as f64;
        let doubt = (1.0 - mean.exp() / SURE).max(0.0);
        Steer {
            temperature: (1.0 + a * (repeats - doubt)).clamp(1.0 / (1.0 + a), 1.0 + a) as f32,
            repetition: (1.0 + 0.3 * a * repeats) as f32,
            frequency: (a * repeats) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(strength: f32, tokens: impl IntoIterator<Item = (u32, f32)>) -> Steer {
        let mut a = Adaptive::new(strength).unwrap();
        tokens.into_iter().for_each(|(id, l)| a.push(id, l));
        a.steer()
    }

    #[test]
    fn loops_heat_and_doubt_cools_within_bounds() {
        assert!(Adaptive::new(0.0).is_none());
        let calm = 0.5f32.ln();
        assert_eq!(after(1.0, (0..100).map(|i| (i, calm))), Steer::NONE);
        let heated = after(0.5, (0..100).map(|i| (i % 5, calm)));
        assert_eq!(heated, Steer { temperature: 1.5, repetition: 1.15, frequency: 0.5 });
        let doubtful = after(0.5, (0..100).map(|i| (i, -20.0)));
        assert!((doubtful.temperature - 1.0 / 1.5).abs() < 1e-6 && doubtful.frequency == 0.0);
        assert_eq!(after(1.0, (0..15).map(|_| (1, -20.0))), Steer::NONE);
        // Half of a window: `c = e^ln 0.15`, half sure.
        let half = after(1.0, (0..32).map(|i| (i, 0.15f32.ln())));
        assert!((half.temperature - 0.5).abs() < 1e-6, "{half:?}");
    }

    #[test]
    fn guesses_leave_nothing() {
        let mut a = Adaptive::new(1.0).unwrap();
        (0..70).for_each(|i| a.push(i % 9, -0.2));
        let before = a.steer();
        a.guess();
        (0..30).for_each(|i| a.push(i, -30.0));
        assert_ne!(a.steer(), before);
        a.take_back();
        assert_eq!(a.steer(), before);
    }
}
