//! Contrastive search (Su et al. 2022, "A Contrastive Framework for Neural Text Generation", eq. 5): of the `k` likeliest tokens
//! the one with the largest `(1 - alpha) p - alpha max_j cos(h, h_j)`, where `h` is the token's hidden state and `h_j` are those of
//! all tokens before it. Each candidate runs as a sequence of its own, a fork of the text; one of them goes on. Pure: the caller
//! forks, extends and drops the sequences.

use super::check_field;
use crate::constraint::ConstraintBox;
use crate::request::WIDTH_MAX;
use crate::{Error, Result};

/// Most bytes of the hidden states of one text.
pub(crate) const STATES_MAX: usize = 256 << 20;

/// Contrastive search: it takes the place of drawing, and is deterministic. With `alpha` 0 or `k` 1 it is the greedy choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContrastiveSearch {
    /// Weight of the penalty on what is like the text before; 0 is off.
    pub alpha: f32,
    /// Candidates for each token; 1 is off.
    pub k: u32,
}

impl Default for ContrastiveSearch {
    /// The paper's for open text.
    fn default() -> ContrastiveSearch {
        ContrastiveSearch { alpha: 0.6, k: 4 }
    }
}

impl ContrastiveSearch {
    /// Whether it is more than the greedy choice.
    pub(crate) fn acts(&self) -> bool {
        self.alpha != 0.0 && self.k > 1
    }

    pub(super) fn check(&self) -> Result<()> {
        let ContrastiveSearch { alpha, k } = *self;
        let field = "guidance.contrastive_search.alpha";
        check_field(field, alpha.into(), (0.0..=1.0).contains(&alpha), "0 (off) to 1")?;
        let field = "guidance.contrastive_search.k";
        check_field(field, k.into(), (1..=WIDTH_MAX).contains(&k), "1 (off) to 128 candidates")
    }
}

/// A token that may come next.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Its sequence, which ends with it.
    pub(crate) sequence: u64,
    pub(crate) token: u32,
    pub(crate) logprob: f32,
    /// In the state after it, if the answer has one.
    pub(crate) constraint: Option<ConstraintBox>,
    /// Its hidden state, of length 1, once its row is computed, and what may follow it, best first.
    state: Option<Vec<f32>>,
    pub(crate) next: Option<Vec<(u32, f32)>>,
}

impl Candidate {
    pub(crate) fn new(
        sequence: u64,
        (token, logprob): (u32, f32),
        constraint: Option<ConstraintBox>,
    ) -> Candidate {
        Candidate { sequence, token, logprob, constraint, state: None, next: None }
    }
}

/// The search of one answer.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) rule: ContrastiveSearch,
    dim: usize,
    /// Hidden states of the text so far, each of length 1.
    states: Vec<f32>,
    /// Who may come next, the likeliest first; none while the prompt comes in.
    pub(crate) open: Vec<Candidate>,
}

impl Walk {
    /// With hidden states of `dim` numbers.
    pub(crate) fn new(rule: ContrastiveSearch, dim: usize) -> Walk {
        Walk { rule, dim: dim.max(1), states: Vec::new(), open: Vec::new() }
    }

    /// Takes the hidden states of a sequence's rows from position `first` on. What was preempted comes again.
    pub(crate) fn take(&mut self, sequence: u64, first: usize, rows: &[f32]) -> Result<()> {
        for (at, row) in (first..).zip(rows.chunks_exact(self.dim)) {
            let text = self.states.len() / self.dim;
            if at < text {
                continue;
            }
            let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            if !length.is_finite() {
                return Err(Error::Hidden { position: at });
            }
            // One of zeros is like nothing.
            let by = if length > 0.0 { 1.0 / length } else { 0.0 };
            let unit = row.iter().map(|x| (f64::from(*x) * by) as f32);
            if self.open.is_empty() {
                self.states.extend(unit);
            } else if let Some(c) = self.open.iter_mut().find(|c| c.sequence == sequence && at == text) {
                c.state = Some(unit.collect());
            }
        }
        Ok(())
    }

    /// Takes what may follow a candidate. True when all have theirs.
    pub(crate) fn offer(&mut self, sequence: u64, next: Vec<(u32, f32)>) -> bool {
        if let Some(c) = self.open.iter_mut().find(|c| c.sequence == sequence) {
            c.next = Some(next);
        }
        self.open.iter().all(|c| c.next.is_some() && c.state.is_some())
    }

    /// Ends a step: the candidate that goes on, whose state joins those of the text, and the others' sequences.
    pub(crate) fn choose(&mut self) -> Option<(Candidate, Vec<u64>)> {
        let alpha = f64::from(self.rule.alpha);
        let score = |c: &Candidate| {
            let like = c.state.as_ref().map_or(0.0, |h| self.likeness(h));
            (1.0 - alpha) * f64::from(c.logprob).exp() - alpha * like
        };
        let mut best: Option<(f64, usize)> = None;
        for (i, c) in self.open.iter().enumerate() {
            let score = score(c);
            // Of equal ones the likelier.
            if best.is_none_or(|b| score > b.0) {
                best = Some((score, i));
            }
        }
        let chosen = self.open.remove(best?.1);
        self.states.extend(chosen.state.iter().flatten());
        Some((chosen, self.open.drain(..).map(|c| c.sequence).collect()))
    }

    /// The largest cosine of a state with those of the text.
    fn likeness(&self, state: &[f32]) -> f64 {
        let dot = |row: &[f32]| {
            let (mut lanes, n) = ([0f32; 16], row.len() - row.len() % 16);
            for (x, y) in row[..n].chunks_exact(16).zip(state[..n].chunks_exact(16)) {
                lanes.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum += x * y);
            }
            let rest: f32 = row[n..].iter().zip(&state[n..]).map(|(x, y)| x * y).sum();
            f64::from(lanes.iter().sum::<f32>() + rest)
        };
        self.states.chunks_exact(self.dim).map(dot).fold(-1.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walk(alpha: f32, states: &[[f32; 3]], open: &[(u32, f32, [f32; 3])]) -> Walk {
        let mut walk = Walk::new(ContrastiveSearch { alpha, k: 4 }, 3);
        walk.take(1, 0, &states.concat()).unwrap();
        let new = |(i, (token, p, _)): (usize, &(u32, f32, [f32; 3]))| {
            Candidate::new(10 + i as u64, (*token, p.ln()), None)
        };
        walk.open = open.iter().enumerate().map(new).collect();
        for (i, (_, _, state)) in open.iter().enumerate() {
            assert!(!walk.offer(10 + i as u64, vec![(7, -0.1)]));
            walk.take(10 + i as u64, states.len(), state).unwrap();
        }
        walk
    }

    proptest! {
        #[test]
        fn the_best_by_the_papers_formula_goes_on(
            states in prop::collection::vec(prop::array::uniform3(-2f32..2.0), 1..20),
            open in prop::collection::vec((0u32..90, 0.01f32..1.0, prop::array::uniform3(-2f32..2.0)), 1..6),
            alpha in 0f32..1.0,
        ) {
            let mut walk = walk(alpha, &states, &open);
            let cos = |a: &[f32; 3], b: &[f32; 3]| {
                let dot = |a: &[f32; 3], b: &[f32; 3]| -> f64 {
                    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
                };
                dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-30)
            };
            let score = |(_, p, h): &(u32, f32, [f32; 3])| {
                let most = states.iter().map(|s| cos(s, h)).fold(f64::MIN, f64::max);
                f64::from(1.0 - alpha) * f64::from(*p) - f64::from(alpha) * most
            };
            let most = open.iter().map(score).fold(f64::MIN, f64::max);
            let (chosen, others) = walk.choose().unwrap();
            let at = (chosen.sequence - 10) as usize;
            prop_assert!((score(&open[at]) - most).abs() < 1e-5);
            prop_assert_eq!(others.len(), open.len() - 1);
            prop_assert!(!others.contains(&chosen.sequence) && walk.open.is_empty());
            prop_assert_eq!(walk.states.len(), 3 * (states.len() + 1));
        }
    }

    #[test]
    fn what_comes_again_changes_nothing_and_what_is_no_number_is_named() {
        let mut w = walk(0.5, &[[1.0, 0.0, 0.0]], &[(5, 0.9, [0.0, 1.0, 0.0]), (6, 0.1, [0.0, 0.0, 1.0])]);
        // A candidate whose blocks were taken is computed from its beginning.
        w.take(11, 0, &[9.0, 9.0, 9.0, 0.0, 0.0, 2.0]).unwrap();
        assert!(w.offer(11, vec![(7, -0.1)]));
        assert_eq!(w.choose().unwrap().0.token, 5);
        assert_eq!(w.states, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let error = w.take(10, 2, &[1.0, f32::NAN, 0.0]).unwrap_err().to_string();
        assert!(error.contains("position 2"), "{error}");
        w.take(10, 2, &[0.0; 3]).unwrap();
        assert_eq!(w.states[6..], [0.0; 3], "zeros have no direction");
    }
}
