//! The chain on the candidates that a device has chosen, without the rest of the row. It decides only what the whole row would decide
//! as well: where what the rest may weigh leaves a doubt, it says nothing, and the row is fetched.

use super::adaptive::Steer;
use super::logprobs::log_sum_exp_of;
use super::set::Set;
use super::{Candidate, Choice, Picked, Sampler, Scratch, softmax};
use crate::logits::CANDIDATES;
use crate::request::LogprobsOf;
use crate::sampling::Stage;
use quarrel_ir::Candidates;

/// How far a device's sum may be from the exact one, and sums in other orders from each other.
const SLACK: f64 = 1e-5;

/// What all weights of a row come to: between the two.
type Bounds = (f64, f64);

impl Sampler {
    /// Draws as [`Sampler::next`] does, if the candidates are enough for it; else nothing has changed. `vocab` is the length of the row.
    pub(super) fn among(&mut self, c: &Candidates, vocab: usize, scratch: &mut Scratch) -> Option<Choice> {
        let s = &self.sampling;
        let plain = self.constraint.is_none()
            && self.explain.is_none()
            && self.adaptive.is_none()
            && !self.rate_certainty
            && self.forbidden.is_empty()
            && s.dynamic_temperature.is_none()
            && s.edt_theta <= 0.0;
        let simple = |s: &Stage| matches!(s, Stage::Temperature | Stage::TopK | Stage::TopP | Stage::MinP);
        let sound = c.nan == 0 && c.max.is_finite() && !c.logits.is_empty();
        if !plain || !sound || !self.order.iter().all(simple) {
            return None;
        }
        let all = c.logits.len() < CANDIDATES as usize || vocab <= CANDIDATES as usize;
        let raw = self.logprobs_of == LogprobsOf::Raw;
        if raw && self.top > c.logits.len() && !all {
            return None;
        }
        scratch.candidates.clear();
        scratch.candidates.extend(c.iter().map(|(id, logit)| Candidate { id, logit, weight: 0.0 }));
        let mut set = Set::of_best(&mut scratch.candidates, c.max);
        let mut sampled = Vec::new();
        let picked = match s.temperature == 0.0 {
            true => {
                if self.logprobs_of == LogprobsOf::Sampled && self.top > 0 {
                    sampled.push((c.ids[0] as u32, 0.0));
                }
                Picked { place: c.ids[0] as u32, p: 1.0 }
            }
            false => match self.sure(&mut set, c, vocab, all)? {
                Sure::Of(stages) => {
                    self.chain(&mut set, stages, Steer::NONE, &mut scratch.best, &mut None, &mut sampled)
                }
                Sure::Drawn(picked) => picked,
            },
        };
        let lse = log_sum_exp_of(c);
        let logprob = |logit: f32| (f64::from(logit) - lse) as f32;
        let logit = c.iter().find(|(id, _)| *id == picked.place)?.1;
        let top = match raw {
            true => c.iter().take(self.top).map(|(id, l)| (id, logprob(l))).collect(),
            false => sampled,
        };
        Some(self.chosen(picked.place, picked.p, logprob(logit), top, 0.0, None))
    }

    /// Runs the stages up to the one after which it is certain what is left, or draws from the whole row.
    fn sure(&mut self, set: &mut Set, c: &Candidates, vocab: usize, all: bool) -> Option<Sure> {
        let s = &self.sampling;
        for (i, stage) in self.order.iter().enumerate() {
            match stage {
                Stage::Temperature if s.temperature < 1e-6 => return Some(Sure::Of(i)),
                Stage::Temperature => set.scale(s.temperature),
                Stage::TopK if s.top_k as usize >= vocab => {} // nothing is dropped, so nothing is listed
                Stage::TopK if s.top_k as usize <= c.logits.len() => return Some(Sure::Of(i)),
                Stage::TopK if all => {}
                Stage::MinP if all => return Some(Sure::Of(i)),
                Stage::MinP if f64::from(set.least()) < f64::from(s.min_p) * (1.0 - SLACK) => {
                    return Some(Sure::Of(i));
                }
                Stage::TopP => {
                    let (low, high) = bounds(set, c, vocab);
                    let p = f64::from(s.top_p);
                    let [few, many] = [p * low, p * high].map(|mass| reach(set, |sum| sum >= mass));
                    let n = few.filter(|_| few == many)? + 1;
                    set.list().truncate(n);
                    return Some(Sure::Of(i + 1));
                }
                _ => return None,
            }
        }
        // Whoever wants to know its probability needs the exact sum.
        if self.logprobs_of == LogprobsOf::Sampled {
            return None;
        }
        let (low, high) = bounds(set, c, vocab);
        let mut rng = self.state.rng.clone();
        let uniform = rng.uniform();
        let [first, last] = [uniform * low, uniform * high].map(|mass| reach(set, |sum| sum > mass));
        let place = set.list()[first.filter(|_| first == last)?].id;
        self.state.rng = rng;
        Some(Sure::Drawn(Picked { place, p: f64::NAN }))
    }
}

/// What the candidates were enough for.
enum Sure {
    /// Those in the list are what is left after so many stages, or the next one leaves no others.
    Of(usize),
    /// A token of the whole row.
    Drawn(Picked),
}

/// The first place at which the sum of the weights is enough.
fn reach(set: &mut Set, enough: impl Fn(f64) -> bool) -> Option<usize> {
    let mut sum = 0.0;
    set.list().iter().position(|c| {
        sum += f64::from(c.weight);
        enough(sum)
    })
}

/// What the weights of the whole row come to at the temperature of `set`, which has the best. The sum at temperature 1 is known; how it is
/// spread over the rest is not, but each of the rest is at most the last of the best. With `x = 1 / t` and `w <= b` the rest's weights at 1,
/// `sum w^x` lies between `b^(x-1) sum w` and `n^(1-x) (sum w)^x` (Jensen): below or above as `x` is below or above 1.
fn bounds(set: &mut Set, c: &Candidates, vocab: usize) -> Bounds {
    let t = f64::from(set.t);
    let known: f64 = c.logits.iter().map(|l| f64::from(softmax::exp(l - c.max))).sum();
    let last = f64::from(c.logits[c.logits.len() - 1]) - f64::from(c.max);
    let (n, x) = ((vocab - c.logits.len()) as f64, 1.0 / t);
    let rest = [1.0 - SLACK, 1.0 + SLACK].map(|slack| (f64::from(c.sum) * slack - known).max(0.0));
    let spread = |w: f64| n.powf(1.0 - x) * w.powf(x);
    let heaped = |w: f64| (last * (x - 1.0)).exp() * w;
    let (least, most) = match x >= 1.0 {
        true => (spread(rest[0]), heaped(rest[1])),
        false => (heaped(rest[0]), spread(rest[1])),
    };
    let listed = set.total();
    if n == 0.0 {
        return (listed * (1.0 - SLACK), listed * (1.0 + SLACK));
    }
    let most = most.min(n * (last * x).exp());
    ((listed + least.min(most)) * (1.0 - SLACK), (listed + most) * (1.0 + SLACK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::rng::Pcg64;
    use crate::sampling::Sampling;
    use quarrel_ir::candidates::{choose, columns};

    /// What both ways draw of rows that become flatter, and of how many the candidates were enough.
    fn compare(sampling: &Sampling, of: LogprobsOf, vocab: usize) -> usize {
        let mut rng = Pcg64::new(7);
        let new = || Sampler::new(sampling.clone(), 3, 4, &[]).reporting(of, None);
        let (mut fast, mut slow) = (new(), new());
        let (mut scratch, mut enough) = (Scratch::default(), 0);
        for step in 0..60 {
            let width = 30.0 / (1.0 + step as f64 / 6.0);
            let row: Vec<f32> = (0..vocab)
                .map(|_| (((rng.uniform() + rng.uniform() - 1.0) * width) as f32 * 8.0).round() / 8.0)
                .collect();
            let mut best = vec![0.0; columns(CANDIDATES.min(vocab as u32)) as usize];
            choose(&row, &mut best);
            let best = Candidates::of(&best);
            let want = slow.of_row(&mut row.clone(), Some(best), step, &mut scratch).unwrap();
            let got = match fast.among(&best, vocab, &mut scratch) {
                Some(choice) => {
                    enough += 1;
                    choice
                }
                None => fast.of_row(&mut row.clone(), Some(best), step, &mut scratch).unwrap(),
            };
            let bits = |c: &Choice| (c.id, c.logprob.map(f32::to_bits), c.raw.to_bits(), c.top.clone());
            assert_eq!(bits(&got), bits(&want), "{sampling:?}, {of:?}, {vocab} tokens, step {step}");
        }
        enough
    }

    #[test]
    fn equals_the_whole_row_wherever_it_decides() {
        let plain = Sampling::default();
        let s =
            |temperature, top_k, top_p, min_p| Sampling { temperature, top_k, top_p, min_p, ..plain.clone() };
        let all = [
            // Settings, and the least of 60 rows of 5,000 tokens for which the best 64 must do.
            (plain.clone(), 15),
            (Sampling::greedy(), 60),
            (s(0.7, 0, 1.0, 0.0), 1),
            (s(1.6, 0, 1.0, 0.0), 1),
            (s(0.8, 40, 0.95, 0.05), 60),
            (s(1.0, 64, 1.0, 0.0), 60),
            (s(1.0, 65, 0.5, 0.0), 0),
            (s(0.6, 0, 0.9, 0.0), 0),
            (s(1.3, 0, 0.3, 0.1), 0),
            (s(1.0, 0, 1.0, 0.3), 12),
            (s(1e-7, 0, 0.9, 0.0), 60),
            (
                Sampling {
                    samplers: Some(vec![Stage::MinP, Stage::Temperature, Stage::TopP]),
                    ..s(0.9, 0, 0.8, 0.2)
                },
                8,
            ),
        ];
        for (sampling, least) in &all {
            for of in [LogprobsOf::Raw, LogprobsOf::Sampled, LogprobsOf::Unreported] {
                let enough = compare(sampling, of, 5000);
                assert!(
                    enough >= *least || of == LogprobsOf::Sampled,
                    "{sampling:?}, {of:?}: {enough} of 60"
                );
                let [few, bare] = [64, 3].map(|vocab| compare(sampling, of, vocab));
                // The probability of what is drawn from all is one of the exact sum.
                assert!(
                    (few, bare) == (60, 60) || of == LogprobsOf::Sampled,
                    "{sampling:?}, {of:?}: {few}, {bare}"
                );
            }
        }
    }

    #[test]
    fn what_looks_at_more_than_the_best_is_left_to_the_row() {
        let row: Vec<f32> = (0..200).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let mut best = vec![0.0; columns(CANDIDATES) as usize];
        choose(&row, &mut best);
        let try_it = |s: Sampling, best: &[f32]| {
            let mut sampler = Sampler::new(s, 1, 0, &[1, 2]);
            sampler.among(&Candidates::of(best), 200, &mut Scratch::default()).is_some()
        };
        let greedy = Sampling::greedy();
        assert!(try_it(greedy.clone(), &best));
        assert!(!try_it(Sampling { presence_penalty: 0.5, ..greedy.clone() }, &best));
        assert!(!try_it(Sampling { logit_bias: vec![(3, 1.0)], ..greedy.clone() }, &best));
        assert!(!try_it(Sampling { edt_theta: 1.0, ..Sampling::default() }, &best));
        best[0] = 1.0; // a NaN in the row is for the row's error to tell
        assert!(!try_it(greedy, &best));
    }
}
