//! From a row of logits to a token. The stages run in the published order, each in a file of its own:
//! the mask of a constraint, logit bias, penalties, temperature (static or entropy-scaled), top-k, top-p, min-p, draw. Bias
//! and penalties change each logit by itself, so the mask is applied where the others begin: only what it allows is gathered.
//!
//! Nothing is sorted but the candidates that are left, and nothing is allocated once the buffers have grown.

mod bias;
mod draw;
mod logprobs;
mod mask;
mod min_p;
mod penalties;
mod rng;
pub(crate) mod softmax;
mod temperature;
mod top_k;
mod top_p;

use crate::constraint::ConstraintBox;
use crate::request::Sampling;
use crate::{Error, Result};
use mask::Allowed;
use penalties::Penalties;
use rng::Pcg64;
use std::cmp::Ordering;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
    /// `e^((logit - max) / temperature)`: 1 for the best.
    weight: f32,
}

/// The order of truncations: larger logits first, then lower ids. Rows with NaN never get here.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Logits that were changed in place, with what they were.
#[derive(Debug, Default)]
struct Edits(Vec<(u32, f32)>);

impl Edits {
    fn set(&mut self, row: &mut [f32], id: u32, value: f32) {
        let l = &mut row[id as usize];
        self.0.push((id, *l));
        *l = value;
    }

    /// The logit before any edit.
    fn original(&self, row: &[f32], id: u32) -> f32 {
        self.0.iter().find(|(i, _)| *i == id).map_or(row[id as usize], |(_, l)| *l)
    }
}

/// Buffers that all requests of an engine share.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    candidates: Vec<Candidate>,
    edits: Edits,
    allowed: Allowed,
}

impl Scratch {
    /// The `n` best tokens of a row with their log-probabilities, best first; `lse` is the row's log-sum-exp.
    pub(crate) fn best(&mut self, row: &[f32], n: usize, lse: f64) -> Vec<(u32, f32)> {
        let mut top = Vec::new();
        logprobs::top(row, n, lse, &mut self.candidates, &mut top);
        top
    }
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) id: u32,
    /// Natural logarithm of the raw model's probability of `id`.
    pub(crate) logprob: f32,
    /// The raw model's best tokens, best first.
    pub(crate) top: Vec<(u32, f32)>,
}

/// The sampler of one answer: its settings, random numbers, token counts and constraint.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: Pcg64,
    penalties: Option<Penalties>,
    top: usize,
    constraint: Option<ConstraintBox>,
    /// Tokens that cannot be drawn, until others are named.
    forbidden: Vec<u32>,
    /// The random numbers and the constraint as they were before the guesses.
    before_guesses: Option<(Pcg64, Option<ConstraintBox>)>,
}

impl Sampler {
    /// `top` is how many of the best tokens to report. The settings have passed [`Sampling::check`].
    pub(crate) fn new(sampling: Sampling, seed: u64, top: usize, prompt: &[u32]) -> Sampler {
        let mut penalties = Penalties::new(&sampling);
        if let Some(p) = &mut penalties {
            prompt.iter().for_each(|t| p.push(*t, false));
        }
        Sampler {
            sampling,
            rng: Pcg64::new(seed),
            penalties,
            top,
            constraint: None,
            forbidden: Vec::new(),
            before_guesses: None,
        }
    }

    /// Draws none of these, until others are named.
    pub(crate) fn forbid(&mut self, ids: Vec<u32>) {
        self.forbidden = ids;
    }

    /// Becomes what it was before, but for the random numbers, which go on: a number that drew what is taken back says which
    /// tokens are near it.
    pub(crate) fn go_back(&mut self, before: Sampler) {
        *self = Sampler { rng: self.rng.clone(), ..before };
    }

    /// Draws only what the constraint allows, from here on.
    pub(crate) fn constrained(self, constraint: Option<ConstraintBox>) -> Sampler {
        Sampler { constraint, ..self }
    }

    /// The constraint, for a search that does not draw and has one for each of its sequences.
    pub(crate) fn take_constraint(&mut self) -> Option<ConstraintBox> {
        self.constraint.take()
    }

    /// The same settings and counts with random numbers of another seed.
    pub(crate) fn reseeded(&self, seed: u64) -> Sampler {
        Sampler { rng: Pcg64::new(seed), ..self.clone() }
    }

    /// Draws a token from `row`, which the bias and the penalties change in place. `step` names the row in errors.
    pub(crate) fn next(&mut self, row: &mut [f32], step: usize, scratch: &mut Scratch) -> Result<Choice> {
        let raw = checked_max(row, step)?;
        let lse = logprobs::log_sum_exp(row, raw);
        let mut top = Vec::new();
        logprobs::top(row, self.top, lse, &mut scratch.candidates, &mut top);
        scratch.edits.0.clear();
        bias::apply(&self.sampling.logit_bias, row, &mut scratch.edits);
        if let Some(p) = &self.penalties {
            p.apply(row, &mut scratch.edits);
        }
        self.forbidden.iter().for_each(|id| scratch.edits.set(row, *id, f32::NEG_INFINITY));
        let mut constraint = self.constraint.take();
        let drawn = self.draw(row, raw, step, constraint.as_mut(), scratch);
        self.constraint = constraint;
        let id = drawn?;
        if let Some(p) = &mut self.penalties {
            p.push(id, true);
        }
        let logprob = (f64::from(scratch.edits.original(row, id)) - lse) as f32;
        Ok(Choice { id, logprob, top })
    }

    /// Draws from the row after bias and penalties; `raw` was its largest logit before.
    fn draw(
        &mut self,
        row: &[f32],
        raw: f32,
        step: usize,
        constraint: Option<&mut ConstraintBox>,
        scratch: &mut Scratch,
    ) -> Result<u32> {
        let Scratch { candidates, edits, allowed } = scratch;
        let whole = || if edits.0.is_empty() { Ok(raw) } else { checked_max(row, step) };
        let Some(constraint) = constraint else { return Ok(self.pick(row, whole()?, candidates)) };
        let id = match allowed.gather(constraint, row, step)? {
            Some((logits, max)) => {
                let index = self.pick(logits, max, candidates);
                allowed.id(index)
            }
            None => self.pick(row, whole()?, candidates),
        };
        constraint.accept(id, step).map(|()| id)
    }

    /// From here on tokens are drawn from another model, to guess what will be drawn: with the same random numbers and
    /// penalties and a fork of the constraint, so that equal rows give equal tokens. [`Self::take_back`] undoes it all.
    pub(crate) fn guess(&mut self) {
        let fork = self.constraint.clone();
        self.before_guesses = Some((self.rng.clone(), std::mem::replace(&mut self.constraint, fork)));
        self.penalties.iter_mut().for_each(Penalties::guess);
    }

    /// Draws a token as [`Self::next`] does, and says the probability that the row alone gives it.
    pub(crate) fn next_guess(&mut self, row: &mut [f32], scratch: &mut Scratch) -> Result<(u32, f32)> {
        let top = std::mem::take(&mut self.top);
        let choice = self.next(row, 0, scratch);
        self.top = top;
        choice.map(|c| (c.id, c.logprob.exp()))
    }

    /// Undoes what happened since [`Self::guess`].
    pub(crate) fn take_back(&mut self) {
        if let Some((rng, constraint)) = self.before_guesses.take() {
            (self.rng, self.constraint) = (rng, constraint);
            self.penalties.iter_mut().for_each(Penalties::take_back);
        }
    }

    /// The `k` best tokens after bias and penalties with their log-probabilities, best first, for a search that does not
    /// draw; the answer so far is `answer`. What `constraint` forbids is left out, and the others' shares stay as they are.
    pub(crate) fn best(
        &self,
        row: &mut [f32],
        k: usize,
        answer: impl Iterator<Item = u32>,
        constraint: Option<&mut ConstraintBox>,
        step: usize,
        scratch: &mut Scratch,
    ) -> Result<Vec<(u32, f32)>> {
        checked_max(row, step)?;
        scratch.edits.0.clear();
        bias::apply(&self.sampling.logit_bias, row, &mut scratch.edits);
        if let Some(p) = &self.penalties {
            let mut p = p.clone();
            answer.for_each(|t| p.push(t, true));
            p.apply(row, &mut scratch.edits);
        }
        let lse = logprobs::log_sum_exp(row, checked_max(row, step)?);
        let mut best = Vec::new();
        let Scratch { candidates, allowed, .. } = scratch;
        let gathered = match constraint {
            Some(c) => allowed.gather(c, row, step)?,
            None => None,
        };
        match gathered {
            Some((logits, _)) => {
                logprobs::top(logits, k, lse, candidates, &mut best);
                best.iter_mut().for_each(|(index, _)| *index = allowed.id(*index));
            }
            None => logprobs::top(row, k, lse, candidates, &mut best),
        }
        best.retain(|(_, lp)| *lp > f32::NEG_INFINITY);
        Ok(best)
    }

    fn pick(&mut self, row: &[f32], max: f32, candidates: &mut Vec<Candidate>) -> u32 {
        let t = temperature::choose(&self.sampling, row, max);
        // Below 1e-6 the best token's weight is all there is, but for ties, which temperature 0 does not know either.
        if t < 1e-6 {
            return softmax::argmax(row, max);
        }
        let s = &self.sampling;
        let total = gather(s, row, max, t, candidates);
        top_p::keep(candidates, s.top_p, total);
        min_p::keep(candidates, s.min_p);
        draw::draw(candidates, &mut self.rng)
    }
}

/// Collects weighed candidates and says what mass top-p takes a share of: the `k` best; or all that top-p and min-p,
/// which decide afterwards, could possibly keep.
fn gather(s: &Sampling, row: &[f32], max: f32, t: f32, out: &mut Vec<Candidate>) -> f64 {
    let k = s.top_k as usize;
    let inverse = 1.0 / t;
    let weight = |logit: f32| softmax::exp((logit - max) * inverse);
    if k > 0 && k < row.len() {
        // Temperature keeps the order, so the k best logits are the k best scaled ones.
        top_k::select(row, k, out);
        out.iter_mut().for_each(|c| c.weight = weight(c.logit));
        return out.iter().map(|c| f64::from(c.weight)).sum();
    }
    let (mut least, mut total) = (f64::from(s.min_p), 0.0);
    if s.top_p < 1.0 {
        total = softmax::sum(row, max, t);
        least = least.max(top_p::least_weight(s.top_p, total, row.len()));
    }
    // The slack covers the roundings of logarithm and exponential; 0 becomes -inf and keeps all.
    let floor = max + t * (least.ln() as f32 - 1e-3) - max.abs() * 1e-6;
    out.clear();
    for (id, &logit) in row.iter().enumerate() {
        if logit >= floor && logit > f32::NEG_INFINITY {
            out.push(Candidate { id: id as u32, logit, weight: weight(logit) });
        }
    }
    total
}

/// The largest logit, or an error if the row is no distribution.
pub(crate) fn checked_max(row: &[f32], step: usize) -> Result<f32> {
    let scan = softmax::scan(row);
    if scan.nan > 0 || !scan.max.is_finite() {
        return Err(Error::Logits { step, nan: scan.nan, vocab: row.len(), max: scan.max });
    }
    Ok(scan.max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::DynamicTemperature;
    use proptest::prelude::*;

    /// The chain by its definitions: scale, softmax, sort everything, truncate, renormalise. Gives probabilities by id.
    fn model(s: &Sampling, row: &[f32]) -> Vec<f64> {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let t = f64::from(temperature::choose(s, row, max));
        let mut c: Vec<(usize, f64)> =
            row.iter().enumerate().map(|(i, l)| (i, (f64::from(l - max) / t).exp())).collect();
        c.sort_by(|a, b| row[b.0].total_cmp(&row[a.0]).then(a.0.cmp(&b.0)));
        if s.top_k > 0 {
            c.truncate(s.top_k as usize);
        }
        let total: f64 = c.iter().map(|c| c.1).sum();
        if s.top_p < 1.0 {
            let mut mass = 0.0;
            let n = c.iter().position(|c| {
                mass += c.1;
                mass >= f64::from(s.top_p) * total
            });
            c.truncate(n.map_or(c.len(), |n| n + 1));
        }
        let best = c[0].1;
        c.retain(|c| c.1 >= f64::from(s.min_p) * best);
        let total: f64 = c.iter().map(|c| c.1).sum();
        let mut p = vec![0.0; row.len()];
        c.iter().for_each(|c| p[c.0] = c.1 / total);
        p
    }

    /// The candidates that the real chain leaves, as probabilities by id.
    fn chain(s: &Sampling, row: &[f32]) -> Vec<f64> {
        let max = checked_max(row, 0).unwrap();
        let t = temperature::choose(s, row, max);
        let mut c = Vec::new();
        let total = gather(s, row, max, t, &mut c);
        top_p::keep(&mut c, s.top_p, total);
        min_p::keep(&mut c, s.min_p);
        let total: f64 = c.iter().map(|c| f64::from(c.weight)).sum();
        let mut p = vec![0.0; row.len()];
        c.iter().for_each(|c| p[c.id as usize] = f64::from(c.weight) / total);
        p
    }

    fn settings() -> impl Strategy<Value = Sampling> {
        let dynamic = prop::option::of((0.1f32..1.0, 0.0f32..1.0, 0.5f32..2.0));
        (
            0.1f32..2.0,
            0u32..60,
            prop_oneof![Just(1.0f32), 0.05f32..1.0],
            prop_oneof![Just(0.0f32), 0.0f32..0.5],
            dynamic,
        )
            .prop_map(|(temperature, top_k, top_p, min_p, d)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                dynamic_temperature: d.map(|(min, more, exponent)| DynamicTemperature {
                    min,
                    max: min + more,
                    exponent,
                }),
                ..Sampling::default()
            })
    }

    proptest! {
        #[test]
        fn chain_equals_the_scalar_model(s in settings(), row in prop::collection::vec(-12f32..12.0, 1..200)) {
            let (got, want) = (chain(&s, &row), model(&s, &row));
            // A token exactly on a boundary may fall either way by rounding; then the masses differ by that token alone.
            for (g, w) in got.iter().zip(&want) {
                prop_assert!((g - w).abs() < 1e-5, "{:?}\n{:?}\n{:?}", s, got, want);
            }
            prop_assert!((got.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }

        #[test]
        fn more_permissive_settings_keep_more(s in settings(), row in prop::collection::vec(-12f32..12.0, 1..200)) {
            let wider = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, ..s.clone() };
            for (n, w) in chain(&s, &row).iter().zip(chain(&wider, &row)) {
                prop_assert!(*n == 0.0 || w > 0.0 && *n >= w - 1e-6);
            }
        }

        #[test]
        fn same_seed_same_tokens(s in settings(), seed: u64, row in prop::collection::vec(-12f32..12.0, 1..200)) {
            let run = || {
                let mut sampler = Sampler::new(s.clone(), seed, 2, &[]);
                let mut scratch = Scratch::default();
                (0..8).map(|i| sampler.next(&mut row.clone(), i, &mut scratch).unwrap()).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }
    }

    #[test]
    fn guesses_draw_what_will_be_drawn_and_leave_no_trace() {
        let s = Sampling { temperature: 1.0, frequency_penalty: 0.7, ..Sampling::default() };
        let row: Vec<f32> = (0..40).map(|i| (i * 37 % 11) as f32 / 3.0).collect();
        let new = || Sampler::new(s.clone(), 9, 2, &[1, 2]);
        let (mut plain, mut guessing, mut scratch) = (new(), new(), Scratch::default());
        for i in 0..20 {
            guessing.guess();
            let guesses: Vec<u32> =
                (0..3).map(|_| guessing.next_guess(&mut row.clone(), &mut scratch).unwrap().0).collect();
            guessing.take_back();
            let got = guessing.next(&mut row.clone(), i, &mut scratch).unwrap();
            assert_eq!(got.top.len(), 2);
            assert_eq!((guesses[0], &got), (got.id, &plain.next(&mut row.clone(), i, &mut scratch).unwrap()));
        }
    }

    fn one(s: Sampling, row: &[f32]) -> Result<Choice> {
        Sampler::new(s, 1, 3, &[0, 0, 2]).next(&mut row.to_vec(), 5, &mut Scratch::default())
    }

    #[test]
    fn greedy_takes_the_lowest_of_ties_and_reports_raw_logprobs() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let row = [1.0, 3.0, 0.0, 3.0];
        let z: f64 = row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        let got = one(greedy.clone(), &row).unwrap();
        assert_eq!(got.id, 1);
        assert!((f64::from(got.logprob) - (3.0 - z)).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        // A bias moves the choice, not the reported probability.
        let moved = one(Sampling { logit_bias: vec![(0, 50.0)], ..greedy }, &row).unwrap();
        assert_eq!(moved.id, 0);
        assert!((f64::from(moved.logprob) - (1.0 - z)).abs() < 1e-6);
        assert_eq!(moved.top, got.top);
    }

    #[test]
    fn a_row_that_is_no_distribution_is_an_error_with_its_step_and_count() {
        let s = Sampling::default();
        let nan = one(s.clone(), &[1.0, f32::NAN, f32::NAN]).unwrap_err().to_string();
        assert!(nan.contains("step 5") && nan.contains("2 of 3"), "{nan}");
        assert!(one(s.clone(), &[f32::NEG_INFINITY; 4]).is_err());
        assert!(one(s.clone(), &[f32::INFINITY, 0.0]).is_err());
        let all_banned = Sampling { logit_bias: vec![(0, f32::NEG_INFINITY), (1, f32::NEG_INFINITY)], ..s };
        assert!(one(all_banned, &[1.0, 2.0]).is_err());
    }

    #[test]
    fn a_banned_token_is_never_drawn() {
        let s = Sampling { logit_bias: vec![(1, f32::NEG_INFINITY)], ..Sampling::default() };
        let mut sampler = Sampler::new(s, 3, 0, &[]);
        let mut scratch = Scratch::default();
        for i in 0..200 {
            assert_ne!(sampler.next(&mut [0.0, 9.0, 0.0], i, &mut scratch).unwrap().id, 1);
        }
    }

    #[test]
    fn the_whole_chain_draws_its_own_distribution() {
        let row: Vec<f32> = (0..400).map(|i| ((i * 131 % 400) as f32).sqrt() / 2.0).collect();
        let s = Sampling { temperature: 0.7, top_k: 60, top_p: 0.8, min_p: 0.1, ..Sampling::default() };
        let want = model(&s, &row);
        let (mut sampler, mut scratch) = (Sampler::new(s, 5, 0, &[]), Scratch::default());
        const N: u32 = 40_000;
        let mut counts = vec![0u32; row.len()];
        for i in 0..N as usize {
            counts[sampler.next(&mut row.clone(), i, &mut scratch).unwrap().id as usize] += 1;
        }
        let (mut chi, mut degrees) = (0.0, -1.0);
        for (c, p) in counts.iter().zip(&want) {
            assert!(*p > 0.0 || *c == 0);
            if *p > 0.0 {
                chi += (f64::from(*c) - p * f64::from(N)).powi(2) / (p * f64::from(N));
                degrees += 1.0;
            }
        }
        // The chi-square distribution has mean `degrees` and variance twice that.
        let sigmas = (chi - degrees) / (2.0f64 * degrees).sqrt();
        assert!(degrees > 10.0 && sigmas.abs() < 3.5, "{chi} with {degrees} degrees of freedom");
    }
}
