//! Ends an answer that runs in a circle: its last tokens are a period of at most 256 tokens over and over. For each period the
//! length of the run is kept in which every token equals the one a period before; that is 256 comparisons a token, whatever
//! the length of the answer, so the whole is linear.

use super::check_field;
use crate::Result;

/// Longest period that is seen.
const PERIOD_MAX: usize = 256;

/// When an answer is a loop. There is no setting that no sane text meets (a table of zeros, a line of dashes), so this is for
/// those who ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repetition {
    /// Times that a period follows itself without a change.
    pub repeats: u32,
    /// Tokens that they are at least together, so that short periods may be repeated more often.
    pub tokens: u32,
}

impl Default for Repetition {
    /// Five times the same, and 96 tokens at least: a paragraph five times, or one token 96 times.
    fn default() -> Repetition {
        Repetition { repeats: 5, tokens: 96 }
    }
}

impl Repetition {
    pub(super) fn check(&self) -> Result<()> {
        let (repeats, tokens) = (self.repeats, self.tokens);
        check_field("guidance.repetition.repeats", repeats.into(), repeats >= 2, "2 or more")?;
        check_field("guidance.repetition.tokens", tokens.into(), tokens >= 2, "2 or more")
    }
}

/// Watches one answer for a loop.
#[derive(Debug, Clone)]
pub(super) struct Loops {
    settings: Repetition,
    tokens: Vec<u32>,
    /// For the period `i + 1`: how many of the last tokens equal the one a period before.
    runs: Vec<u32>,
}

impl Loops {
    pub(super) fn new(settings: Repetition) -> Loops {
        Loops { settings, tokens: Vec::new(), runs: vec![0; PERIOD_MAX] }
    }

    /// Takes a token; gives the shortest period of the loop that it completes.
    pub(super) fn push(&mut self, token: u32) -> Option<usize> {
        // The nearest first.
        for (run, before) in self.runs.iter_mut().zip(self.tokens.iter().rev()) {
            *run = if *before == token { *run + 1 } else { 0 };
        }
        self.tokens.push(token);
        let Repetition { repeats, tokens } = self.settings;
        let looped = |(period, run): (u64, &u32)| {
            let length = u64::from(*run) + period;
            length >= u64::from(repeats) * period && length >= u64::from(tokens)
        };
        (1..).zip(&self.runs).find(|p| *p.1 > 0 && looped(*p)).map(|(period, _)| period as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, by looking at every period.
    fn is_loop(s: Repetition, tokens: &[u32]) -> Option<usize> {
        (1..=PERIOD_MAX.min(tokens.len())).find(|p| {
            let need = (s.repeats as usize * p).max(s.tokens as usize);
            need <= tokens.len()
                && tokens[tokens.len() - need..].windows(p + 1).all(|w| w[0] == w[*p])
                && need > *p
        })
    }

    proptest! {
        #[test]
        fn equal_to_the_definition(
            tokens in prop::collection::vec(0u32..3, 0..60),
            repeats in 2u32..5, least in 2u32..12,
        ) {
            let settings = Repetition { repeats, tokens: least };
            let mut loops = Loops::new(settings);
            for (i, t) in tokens.iter().enumerate() {
                prop_assert_eq!(loops.push(*t), is_loop(settings, &tokens[..=i]));
            }
        }
    }

    #[test]
    fn a_runaway_is_seen_and_a_list_that_counts_is_not() {
        let first = |tokens: Vec<u32>| {
            let mut loops = Loops::new(Repetition::default());
            tokens.into_iter().position(|t| loops.push(t).is_some())
        };
        assert_eq!(first(vec![7; 200]), Some(95));
        assert_eq!(first((0..2000).map(|i| i % 40).collect()), Some(199));
        assert_eq!(first((0..3000).map(|i| if i % 5 == 4 { i } else { i % 5 }).collect()), None);
        assert_eq!(first((0..3000).map(|i| i % 300).collect()), None);
    }
}
