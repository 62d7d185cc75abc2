//! Beam search over the sequences of one request: which of them go on, and with which tokens. Pure; the caller forks, extends
//! and drops the sequences.
//!
//! Of all continuations of the live beams the best `width` go on (ties: the earlier beam, then the lower token). One that
//! ends among the best `width` is a hypothesis, with its sum of log-probabilities over `length^penalty` as its score (Wu et
//! al. 2016 without coverage, as in transformers). The search ends when no live beam can beat the worst of `width`
//! hypotheses by its score as it stands.

use crate::request::Beams;
use std::cmp::Ordering;

/// A live beam.
#[derive(Debug, Clone)]
struct Beam {
    sequence: u64,
    tokens: Vec<(u32, f32)>,
    sum: f64,
    /// Its best continuations with their log-probabilities, once its row is computed.
    next: Option<Vec<(u32, f32)>>,
}

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hypothesis {
    /// Ids and log-probabilities; the end-of-generation token is not among them.
    pub(crate) tokens: Vec<(u32, f32)>,
    pub(crate) score: f64,
    /// Whether it ended by itself.
    pub(crate) stopped: bool,
}

/// What to do with a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Move {
    /// A new sequence `id` like `from`, with one token more.
    Fork { from: u64, id: u64, token: u32 },
    /// One token more.
    Push { sequence: u64, token: u32 },
    /// No beam goes on from it.
    Drop { sequence: u64 },
}

/// The search of one request.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    width: usize,
    penalty: f64,
    live: Vec<Beam>,
    done: Vec<Hypothesis>,
}

impl Search {
    pub(crate) fn new(beams: Beams, sequence: u64) -> Search {
        let first = Beam { sequence, tokens: Vec::new(), sum: 0.0, next: None };
        Search {
            width: beams.width as usize,
            penalty: beams.length_penalty.into(),
            live: vec![first],
            done: Vec::new(),
        }
    }

    /// How many continuations of a beam are wanted: enough that as many as there are beams do not end.
    pub(crate) fn candidates(&self) -> usize {
        2 * self.width
    }

    /// Takes the continuations of a beam, best first. True when all live beams have theirs.
    pub(crate) fn offer(&mut self, sequence: u64, next: Vec<(u32, f32)>) -> bool {
        if let Some(beam) = self.live.iter_mut().find(|b| b.sequence == sequence) {
            beam.next = Some(next);
        }
        self.live.iter().all(|b| b.next.is_some())
    }

    /// One step: forks come before the pushes to what they fork. No moves are left when the search is over. `full` says
    /// that sequences may not grow by another token after this one.
    pub(crate) fn advance(
        &mut self,
        stop: impl Fn(u32) -> bool,
        full: bool,
        mut new_id: impl FnMut() -> u64,
    ) -> Vec<Move> {
        let mut all: Vec<(f64, usize, u32, f32)> = Vec::new();
        for (b, beam) in self.live.iter().enumerate() {
            let next = beam.next.iter().flatten();
            all.extend(next.map(|(token, lp)| (beam.sum + f64::from(*lp), b, *token, *lp)));
        }
        all.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
        let mut chosen = Vec::new();
        for (rank, (sum, b, token, lp)) in all.into_iter().take(self.candidates()).enumerate() {
            if chosen.len() == self.width {
                break;
            }
            let mut tokens = self.live[b].tokens.clone();
            if stop(token) {
                if rank < self.width {
                    self.finish(tokens, sum, true);
                }
                continue;
            }
            tokens.push((token, lp));
            if full {
                self.finish(tokens, sum, false);
            } else {
                chosen.push((b, token, Beam { sequence: 0, tokens, sum, next: None }));
            }
        }
        let worst = self.done.get(self.width - 1).map_or(f64::NEG_INFINITY, |h| h.score);
        let reach = chosen.first().map(|(_, _, beam)| self.score(beam.sum, beam.tokens.len()));
        let mut moves = Vec::new();
        if reach.is_none_or(|reach| reach <= worst) {
            moves.extend(self.live.drain(..).map(|b| Move::Drop { sequence: b.sequence }));
            return moves;
        }
        let mut kept = vec![false; self.live.len()];
        let (mut forks, mut pushes) = (Vec::new(), Vec::new());
        let mut next = Vec::new();
        // The first child of a beam goes on in its sequence.
        for (b, token, mut beam) in chosen {
            let parent = self.live[b].sequence;
            if std::mem::replace(&mut kept[b], true) {
                beam.sequence = new_id();
                forks.push(Move::Fork { from: parent, id: beam.sequence, token });
            } else {
                beam.sequence = parent;
                pushes.push(Move::Push { sequence: parent, token });
            }
            next.push(beam);
        }
        let dropped = self.live.iter().zip(&kept).filter(|(_, kept)| !**kept);
        moves.extend(forks);
        moves.extend(pushes);
        moves.extend(dropped.map(|(b, _)| Move::Drop { sequence: b.sequence }));
        self.live = next;
        moves
    }

    /// Whether the search is over.
    pub(crate) fn is_over(&self) -> bool {
        self.live.is_empty()
    }

    /// The tokens of a live beam.
    pub(crate) fn length(&self) -> usize {
        self.live.first().map_or(0, |b| b.tokens.len())
    }

    /// Tokens of a live beam's answer.
    pub(crate) fn tokens(&self, sequence: u64) -> impl Iterator<Item = u32> + '_ {
        let beam = self.live.iter().find(move |b| b.sequence == sequence);
        beam.into_iter().flat_map(|b| b.tokens.iter().map(|t| t.0))
    }

    /// The `n` best answers, best first; of a search that was cut short, with the live beams as they are.
    pub(crate) fn best(mut self, n: usize) -> Vec<Hypothesis> {
        for beam in std::mem::take(&mut self.live) {
            self.finish(beam.tokens, beam.sum, false);
        }
        self.done.truncate(n);
        self.done
    }

    fn score(&self, sum: f64, length: usize) -> f64 {
        sum / (length.max(1) as f64).powf(self.penalty)
    }

    fn finish(&mut self, tokens: Vec<(u32, f32)>, sum: f64, stopped: bool) {
        let score = self.score(sum, tokens.len() + usize::from(stopped));
        let by_score = |h: &Hypothesis| h.score.total_cmp(&score) != Ordering::Less;
        let at = self.done.partition_point(by_score);
        self.done.insert(at, Hypothesis { tokens, score, stopped });
        self.done.truncate(self.width);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const STOP: u32 = 0;

    /// A made-up model: log-probabilities of 5 tokens after a sequence.
    fn model(tokens: &[u32]) -> Vec<(u32, f32)> {
        let seed = tokens.iter().fold(17u64, |h, t| (h * 31 + u64::from(*t) + 1) % 1009);
        let logits: Vec<f64> = (0..5u64).map(|t| ((seed * (t + 3) * 7 % 101) as f64) / 25.0).collect();
        let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        let mut next: Vec<(u32, f32)> = (0..).zip(logits).map(|(t, l)| (t, (l - lse) as f32)).collect();
        next.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        next
    }

    fn run(width: u32, penalty: f32, most: usize) -> Vec<Hypothesis> {
        let mut search = Search::new(Beams { width, length_penalty: penalty }, 0);
        let mut sequences = HashMap::from([(0u64, Vec::new())]);
        let mut ids = 0;
        while !search.is_over() {
            let full = search.length() + 1 >= most;
            let mut live: Vec<_> = sequences.clone().into_iter().collect();
            live.sort();
            let mut ready = false;
            for (id, tokens) in live {
                assert!(search.tokens(id).eq(tokens.iter().copied()));
                let mut next = model(&tokens);
                next.truncate(search.candidates());
                ready = search.offer(id, next);
            }
            assert!(ready);
            let moves = search.advance(
                |t| t == STOP,
                full,
                || {
                    ids += 1;
                    ids
                },
            );
            for m in moves {
                match m {
                    Move::Fork { from, id, token } => {
                        let mut tokens = sequences[&from].clone();
                        tokens.push(token);
                        assert!(sequences.insert(id, tokens).is_none());
                    }
                    Move::Push { sequence, token } => sequences.get_mut(&sequence).unwrap().push(token),
                    Move::Drop { sequence } => drop(sequences.remove(&sequence).unwrap()),
                }
            }
        }
        assert!(sequences.is_empty());
        search.best(width as usize)
    }

    /// Every answer of at most `most` tokens, scored.
    fn exhaustive(tokens: &mut Vec<(u32, f32)>, most: usize, penalty: f64, out: &mut Vec<(f64, Vec<u32>)>) {
        let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
        let sum: f64 = tokens.iter().map(|t| f64::from(t.1)).sum();
        for (t, lp) in model(&ids) {
            let score = (sum + f64::from(lp)) / ((ids.len() + 1) as f64).powf(penalty);
            let longer: Vec<u32> = ids.iter().copied().chain([t]).collect();
            if t == STOP {
                out.push((score, ids.clone()));
            } else if longer.len() == most {
                out.push((score, longer));
            } else {
                tokens.push((t, lp));
                exhaustive(tokens, most, penalty, out);
                tokens.pop();
            }
        }
    }

    #[test]
    fn a_wide_search_finds_what_trying_everything_finds() {
        for penalty in [0.0, 1.0] {
            let mut all = Vec::new();
            exhaustive(&mut Vec::new(), 4, penalty, &mut all);
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            let found = run(128, penalty as f32, 4);
            for (f, a) in found.iter().zip(&all).take(3) {
                assert!((f.score - a.0).abs() < 1e-6);
                assert_eq!(f.tokens.iter().map(|t| t.0).collect::<Vec<_>>(), a.1);
            }
        }
    }

    #[test]
    fn a_narrow_search_is_no_worse_than_greedy() {
        let mut greedy: (Vec<u32>, f64) = Default::default();
        while greedy.0.len() < 6 {
            let (t, lp) = model(&greedy.0)[0];
            greedy.1 += f64::from(lp);
            if t == STOP {
                break;
            }
            greedy.0.push(t);
        }
        let found = run(4, 0.0, 6);
        assert!(found[0].score >= greedy.1 - 1e-6 && found.len() == 4);
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
    }
}
