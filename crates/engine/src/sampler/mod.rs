//! From a row of logits to a token. The stages run in the order of [`Stage::ORDER`] or of the request, each in a file of its own.
//! First those that change scores one by one (bias, penalties, DRY), then the mask of a constraint, which leaves only what it
//! allows, then those that compare tokens (top-n-sigma, temperature, top-k, typical, top-p, min-p, XTC, Mirostat), then the draw.
//!
//! Where a device has chosen the best of the row, most requests need no more ([`among`]).
//!
//! Nothing is sorted but the candidates that are left, and nothing is allocated once the buffers have grown.

mod adaptive;
mod alone;
mod among;
mod bias;
mod draw;
mod dry;
mod logprobs;
mod mask;
mod min_p;
mod mirostat;
mod penalties;
mod repeats;
mod rng;
mod set;
pub(crate) mod softmax;
mod temperature;
mod top_k;
mod top_n_sigma;
mod top_p;
mod trace;
mod typical;
mod xtc;

pub use alone::{Drawn, LogitSampler};
pub use trace::{CandidateTrace, ChangeTrace, DrawTrace, EditTrace, StageTrace, Trace};

use crate::constraint::ConstraintBox;
use crate::logits::Logits;
use crate::request::{BestBy, LogprobsOf};
use crate::sampling::{Sampling, Stage};
use crate::{Error, Result};
use adaptive::{Adaptive, Steer};
use draw::Draw;
use dry::Dry;
use mask::Allowed;
use mirostat::Mirostat;
use penalties::Penalties;
use quarrel_ir::Candidates;
use rng::Pcg64;
use set::Set;
use std::cmp::Ordering;
use trace::Tracer;

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

/// Logits that were changed in place, with what they were. One may be changed several times.
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
    /// For estimates of Mirostat.
    best: Vec<Candidate>,
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
    /// Natural logarithm of the probability of `id`, if it is reported.
    pub(crate) logprob: Option<f32>,
    /// The best tokens by the same probabilities, best first.
    pub(crate) top: Vec<(u32, f32)>,
    /// The same logarithm in the raw model's distribution.
    pub(crate) raw: f32,
    /// Self-certainty of the row, if it was asked for.
    pub(crate) certainty: f32,
    pub(crate) trace: Option<Box<Trace>>,
}

/// What changes with each token and is small.
#[derive(Debug, Clone)]
struct State {
    rng: Pcg64,
    /// Tokens of the answer.
    made: u32,
    mirostat: Option<Mirostat>,
}

/// The sampler of one answer: its settings, random numbers, what it knows of the text, and its constraint.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    /// The stages that change something.
    order: Vec<Stage>,
    state: State,
    penalties: Option<Penalties>,
    dry: Option<Dry>,
    adaptive: Option<Adaptive>,
    top: usize,
    logprobs_of: LogprobsOf,
    explain: Option<u32>,
    rate_certainty: bool,
    /// Whether something needs the model's log-probability of what is drawn.
    needs_raw: bool,
    constraint: Option<ConstraintBox>,
    /// Tokens that cannot be drawn, until others are named.
    forbidden: Vec<u32>,
    /// The state and the constraint as they were before the guesses.
    before_guesses: Option<(State, Option<ConstraintBox>)>,
}

/// What the chain gives: a place in the row that it was given, or in what a mask has left of it.
#[derive(Debug, Clone, Copy)]
struct Picked {
    place: u32,
    /// Its probability in what it was drawn from.
    p: f64,
}

impl Sampler {
    /// `top` is how many of the best tokens to report. The settings have passed [`Sampling::check`].
    pub(crate) fn new(sampling: Sampling, seed: u64, top: usize, prompt: &[u32]) -> Sampler {
        let mut penalties = Penalties::new(&sampling);
        if let Some(p) = &mut penalties {
            prompt.iter().for_each(|t| p.push(*t, false));
        }
        let s = &sampling;
        let mirostat = (s.mirostat != 0).then(|| Mirostat::new(s.mirostat, s.mirostat_tau, s.mirostat_eta));
        Sampler {
            order: s.stages(),
            state: State { rng: Pcg64::new(seed), made: 0, mirostat },
            penalties,
            dry: Dry::new(s, prompt),
            adaptive: Adaptive::new(s.adaptive),
            top,
            logprobs_of: LogprobsOf::Raw,
            explain: None,
            rate_certainty: false,
            needs_raw: true,
            constraint: None,
            forbidden: Vec::new(),
            before_guesses: None,
            sampling,
        }
    }

    /// Draws none of these, until others are named.
    pub(crate) fn forbid(&mut self, ids: Vec<u32>) {
        self.forbidden = ids;
    }

    /// Becomes what it was before, but for the random numbers, which go on: a number that drew what is taken back says which
    /// tokens are near it.
    pub(crate) fn go_back(&mut self, before: Sampler) {
        let rng = std::mem::replace(&mut self.state.rng, Pcg64::new(0));
        *self = before;
        self.state.rng = rng;
    }

    /// Draws only what the constraint allows, from here on.
    pub(crate) fn constrained(self, constraint: Option<ConstraintBox>) -> Sampler {
        Sampler { constraint, ..self }
    }

    /// Reports these log-probabilities, and how each token is drawn with so many candidates.
    pub(crate) fn reporting(self, logprobs_of: LogprobsOf, explain: Option<u32>) -> Sampler {
        let needs_raw = logprobs_of == LogprobsOf::Raw || explain.is_some() || self.adaptive.is_some();
        Sampler { logprobs_of, explain, needs_raw, ..self }
    }

    /// Says what answers are compared by, at each token.
    pub(crate) fn rating(self, by: Option<BestBy>) -> Sampler {
        let needs_raw = self.needs_raw || by.is_some();
        Sampler { rate_certainty: by == Some(BestBy::SelfCertainty), needs_raw, ..self }
    }

    /// The constraint, for a search that does not draw and has one for each of its sequences.
    pub(crate) fn take_constraint(&mut self) -> Option<ConstraintBox> {
        self.constraint.take()
    }

    /// The same settings and counts with random numbers of another seed.
    pub(crate) fn reseeded(&self, seed: u64) -> Sampler {
        let mut sampler = self.clone();
        sampler.state.rng = Pcg64::new(seed);
        sampler
    }

    /// Draws a token from what a device made, of which the whole row is asked for only where its best are not enough. `step` names the
    /// row in errors. The row may be changed.
    pub(crate) fn next(&mut self, logits: &mut Logits, step: usize, scratch: &mut Scratch) -> Result<Choice> {
        let vocab = logits.vocab();
        if let Some(choice) = logits.best().and_then(|best| self.among(&best, vocab, scratch)) {
            return Ok(choice);
        }
        let (row, best) = logits.whole()?;
        self.of_row(row, best, step, scratch)
    }

    /// Draws a token from `row`, which the bias and the penalties change in place. `best` is what a device knows of it.
    pub(crate) fn of_row(
        &mut self,
        row: &mut [f32],
        best: Option<Candidates>,
        step: usize,
        scratch: &mut Scratch,
    ) -> Result<Choice> {
        let (raw, lse) = match best.filter(|b| b.nan == 0 && b.max.is_finite()) {
            Some(best) => (best.max, logprobs::log_sum_exp_of(&best)),
            None => {
                let max = checked_max(row, step)?;
                (max, if self.needs_raw { logprobs::log_sum_exp(row, max) } else { f64::NAN })
            }
        };
        let mut top = Vec::new();
        if self.logprobs_of == LogprobsOf::Raw {
            logprobs::top(row, self.top, lse, &mut scratch.candidates, &mut top);
        }
        let certainty = if self.rate_certainty { logprobs::certainty(row, raw, lse) } else { 0.0 };
        let mut tracer = self.explain.map(|n| Tracer::new(step, n as usize, row, raw));
        let steer = self.adaptive.as_ref().map_or(Steer::NONE, Adaptive::steer);
        let max = self.edit(row, raw, steer, step, scratch, &mut tracer)?;
        let mut constraint = self.constraint.take();
        let drawn = self.draw(row, max, steer, step, constraint.as_mut(), scratch, &mut tracer, &mut top);
        self.constraint = constraint;
        let (id, p, is_masked) = drawn?;
        let Scratch { edits, allowed, .. } = scratch;
        let of = |id: u32| (f64::from(edits.original(row, id)) - lse) as f32;
        let raw = of(id);
        let name = |place| if is_masked { allowed.id(place) } else { place };
        let trace = tracer.map(|t| t.finish(name, of));
        Ok(self.chosen(id, p, raw, top, certainty, trace))
    }

    /// Takes a token that was drawn with probability `p`, and tells what is to be told of it.
    fn chosen(
        &mut self,
        id: u32,
        p: f64,
        raw: f32,
        top: Vec<(u32, f32)>,
        certainty: f32,
        trace: Option<Box<Trace>>,
    ) -> Choice {
        self.push(id, raw);
        let logprob = match self.logprobs_of {
            LogprobsOf::Raw => Some(raw),
            LogprobsOf::Sampled => Some(p.ln() as f32),
            LogprobsOf::Unreported => None,
        };
        Choice { id, logprob, top, raw, certainty, trace }
    }

    /// Takes a token that was drawn.
    fn push(&mut self, id: u32, logprob: f32) {
        self.state.made = self.state.made.saturating_add(1);
        self.penalties.iter_mut().for_each(|p| p.push(id, true));
        self.dry.iter_mut().for_each(|d| d.push(id));
        self.adaptive.iter_mut().for_each(|a| a.push(id, logprob));
    }

    /// Runs the stages that change scores one by one; gives the largest score, which was `raw`.
    fn edit(
        &mut self,
        row: &mut [f32],
        raw: f32,
        steer: Steer,
        step: usize,
        scratch: &mut Scratch,
        tracer: &mut Option<Tracer>,
    ) -> Result<f32> {
        let edits = &mut scratch.edits;
        edits.0.clear();
        for stage in self.order.iter().copied().filter(|s| s.is_edit()) {
            let from = edits.0.len();
            match stage {
                Stage::LogitBias => bias::apply(&self.sampling, self.state.made, row, edits),
                Stage::Penalties => self.penalties.iter().for_each(|p| p.apply(steer, row, edits)),
                _ => self.dry.iter_mut().for_each(|d| d.apply(row, edits)),
            }
            let changed = &edits.0[from..];
            if let Some((id, _)) = changed
                .iter()
                .find(|(id, _)| row[*id as usize].is_nan() || row[*id as usize] == f32::INFINITY)
            {
                let max = row[*id as usize];
                let nan = row.iter().filter(|l| l.is_nan()).count();
                return Err(Error::Logits { stage: stage.name(), step, nan, vocab: row.len(), max });
            }
            if let Some(t) = tracer {
                t.edits(stage, edits, from, row);
            }
        }
        self.forbidden.iter().for_each(|id| edits.set(row, *id, f32::NEG_INFINITY));
        // If nothing that was the largest has changed, the largest is that, or one that was changed.
        let max = match edits.0.iter().any(|(_, l)| *l == raw) {
            true => softmax::scan(row).max,
            false => edits.0.iter().fold(raw, |m, (id, _)| m.max(row[*id as usize])),
        };
        if max > f32::NEG_INFINITY || self.constraint.is_some() {
            return Ok(max); // what a mask leaves is looked at by itself
        }
        // Only a bias forbids, or guidance.
        Err(Error::Logits { stage: Stage::LogitBias.name(), step, nan: 0, vocab: row.len(), max })
    }

    /// Draws from the row after the edits: the token, its probability, and whether the chain saw what a mask had left.
    fn draw(
        &mut self,
        row: &[f32],
        max: f32,
        steer: Steer,
        step: usize,
        constraint: Option<&mut ConstraintBox>,
        scratch: &mut Scratch,
        tracer: &mut Option<Tracer>,
        top: &mut Vec<(u32, f32)>,
    ) -> Result<(u32, f64, bool)> {
        let Scratch { candidates, best, allowed, .. } = scratch;
        let mut lists = (candidates, best);
        let Some(constraint) = constraint else {
            let picked = self.pick(row, max, steer, &mut lists, tracer, top);
            return Ok((picked.place, picked.p, false));
        };
        let (picked, id, is_masked) = match allowed.gather(constraint, row, step)? {
            Some((logits, left)) => {
                if let Some(t) = tracer {
                    t.mask(row, max, logits, left);
                }
                let picked = self.pick(logits, left, steer, &mut lists, tracer, top);
                top.iter_mut()
                    .filter(|_| self.logprobs_of == LogprobsOf::Sampled)
                    .for_each(|t| t.0 = allowed.id(t.0));
                (picked, allowed.id(picked.place), true)
            }
            None => {
                if max == f32::NEG_INFINITY {
                    let stage = Stage::LogitBias.name();
                    return Err(Error::Logits { stage, step, nan: 0, vocab: row.len(), max });
                }
                let picked = self.pick(row, max, steer, &mut lists, tracer, top);
                (picked, picked.place, false)
            }
        };
        constraint.accept(id, step).map(|()| (id, picked.p, is_masked))
    }

    /// Runs the stages that compare tokens, and draws. If log-probabilities of the sampled distribution are wanted, `top` gets
    /// the best.
    fn pick(
        &mut self,
        row: &[f32],
        max: f32,
        steer: Steer,
        lists: &mut (&mut Vec<Candidate>, &mut Vec<Candidate>),
        tracer: &mut Option<Tracer>,
        top: &mut Vec<(u32, f32)>,
    ) -> Picked {
        let mut set = Set::new(row, max, lists.0);
        if let Some(t) = tracer {
            t.stage("scores", &set, None);
        }
        self.chain(&mut set, 0, steer, lists.1, tracer, top)
    }

    /// Runs the stages from `from` on that compare tokens, and draws.
    fn chain(
        &mut self,
        set: &mut Set,
        from: usize,
        steer: Steer,
        best: &mut Vec<Candidate>,
        tracer: &mut Option<Tracer>,
        top: &mut Vec<(u32, f32)>,
    ) -> Picked {
        let s = &self.sampling;
        let mut greedy = s.temperature == 0.0;
        let mut before_mirostat = None;
        for (i, stage) in self.order.iter().enumerate().skip(from) {
            if stage.is_edit() || greedy {
                continue;
            }
            let mut value = None;
            match stage {
                Stage::TopNSigma => top_n_sigma::apply(set, s.top_n_sigma),
                Stage::Temperature => {
                    let t = temperature::choose(s, set) * steer.temperature;
                    value = Some(f64::from(t));
                    // Below 1e-6 the best token's weight is all there is, but for ties, which temperature 0 does not know.
                    greedy = t < 1e-6;
                    if !greedy {
                        set.scale(t);
                    }
                }
                Stage::TopK => set.keep_best(s.top_k as usize),
                Stage::TypicalP => typical::apply(set, s.typical_p),
                Stage::TopP => {
                    // What min-p drops right afterwards need not be collected, but where one wants to see it.
                    let next = self.order.get(i + 1).filter(|s| **s == Stage::MinP && tracer.is_none());
                    top_p::apply(set, s.top_p, next.map_or(0.0, |_| s.min_p));
                }
                Stage::MinP => min_p::apply(set, s.min_p),
                Stage::Xtc => {
                    let acts = self.state.rng.uniform() < f64::from(s.xtc_probability);
                    value = Some(f64::from(u8::from(acts)));
                    if acts {
                        xtc::apply(set, s.xtc_threshold);
                    }
                }
                Stage::Mirostat => {
                    value = self.state.mirostat.as_ref().map(|m| m.mu);
                    before_mirostat = self.state.mirostat.as_ref().map(|m| m.apply(set, best));
                }
                Stage::LogitBias | Stage::Penalties | Stage::Dry => {}
            }
            if let Some(t) = tracer.as_mut().filter(|_| !greedy) {
                t.stage(stage.name(), set, value);
            }
        }
        if let Some(t) = tracer {
            t.trace.temperature = if greedy { 0.0 } else { set.t };
        }
        let reported = if self.logprobs_of == LogprobsOf::Sampled { self.top } else { 0 };
        if greedy {
            let place = set.best();
            if reported > 0 {
                top.push((place, 0.0));
            }
            if let Some(t) = tracer {
                let best = Candidate { id: place, logit: 0.0, weight: 1.0 };
                t.candidates(&[best], 1.0, best);
                t.trace.draw.id = place;
            }
            return Picked { place, p: 1.0 };
        }
        let uniform = self.state.rng.uniform();
        let Draw { of, total } = set.draw(uniform);
        let p = f64::from(of.weight) / total;
        if let Some(t) = tracer {
            t.candidates(set.list(), total, of);
            (t.trace.draw.uniform, t.trace.draw.id, t.trace.draw.p) = (Some(uniform), of.id, p);
        }
        if reported > 0 {
            let list = set.list();
            top_k::shrink(list, reported);
            list.sort_unstable_by(best_first);
            top.extend(list.iter().map(|c| (c.id, (f64::from(c.weight) / total).ln() as f32)));
        }
        if let (Some(m), Some(total)) = (&mut self.state.mirostat, before_mirostat) {
            m.learn(f64::from(of.weight) / total);
        }
        Picked { place: of.id, p }
    }

    /// From here on tokens are drawn from another model, to guess what will be drawn: with the same random numbers and
    /// penalties and a fork of the constraint, so that equal rows give equal tokens. [`Self::take_back`] undoes it all.
    pub(crate) fn guess(&mut self) {
        let fork = self.constraint.clone();
        self.before_guesses = Some((self.state.clone(), std::mem::replace(&mut self.constraint, fork)));
        self.penalties.iter_mut().for_each(Penalties::guess);
        self.dry.iter_mut().for_each(Dry::guess);
        self.adaptive.iter_mut().for_each(Adaptive::guess);
    }

    /// Draws a token as [`Self::next`] does, and says the probability that the row alone gives it.
    pub(crate) fn next_guess(&mut self, row: &mut [f32], scratch: &mut Scratch) -> Result<(u32, f32)> {
        let (top, explain) = (std::mem::take(&mut self.top), self.explain.take());
        let needs_raw = std::mem::replace(&mut self.needs_raw, true);
        let choice = self.of_row(row, None, 0, scratch);
        (self.top, self.explain, self.needs_raw) = (top, explain, needs_raw);
        choice.map(|c| (c.id, c.raw.exp()))
    }

    /// Undoes what happened since [`Self::guess`].
    pub(crate) fn take_back(&mut self) {
        if let Some((state, constraint)) = self.before_guesses.take() {
            (self.state, self.constraint) = (state, constraint);
            self.penalties.iter_mut().for_each(Penalties::take_back);
            self.dry.iter_mut().for_each(Dry::take_back);
            self.adaptive.iter_mut().for_each(Adaptive::take_back);
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
        let raw = checked_max(row, step)?;
        // This sampler knows only the prompt; the answer is that of one sequence of the search.
        let mut sampler = Sampler { constraint: None, before_guesses: None, ..self.clone() };
        answer.for_each(|t| sampler.push(t, 0.0));
        let max = sampler.edit(row, raw, Steer::NONE, step, scratch, &mut None)?;
        let lse = logprobs::log_sum_exp(row, max);
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
}

/// The largest logit of a model's row, or an error if the row is no distribution.
pub(crate) fn checked_max(row: &[f32], step: usize) -> Result<f32> {
    let scan = softmax::scan(row);
    if scan.nan > 0 || !scan.max.is_finite() {
        let (stage, nan, max) = ("the model", scan.nan, scan.max);
        return Err(Error::Logits { stage, step, nan, vocab: row.len(), max });
    }
    Ok(scan.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(s: Sampling, row: &[f32]) -> Result<Choice> {
        Sampler::new(s, 1, 3, &[0, 0, 2]).of_row(&mut row.to_vec(), None, 5, &mut Scratch::default())
    }

    #[test]
    fn greedy_takes_the_lowest_of_ties_and_reports_raw_logprobs() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let row = [1.0, 3.0, 0.0, 3.0];
        let z: f64 = row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        let got = one(greedy.clone(), &row).unwrap();
        assert_eq!(got.id, 1);
        assert!((f64::from(got.logprob.unwrap()) - (3.0 - z)).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0]);
        // A bias moves the choice, not the reported probability.
        let moved = one(Sampling { logit_bias: vec![(0, 50.0)], ..greedy }, &row).unwrap();
        assert_eq!(moved.id, 0);
        assert!((f64::from(moved.logprob.unwrap()) - (1.0 - z)).abs() < 1e-6);
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
            assert_ne!(sampler.of_row(&mut [0.0, 9.0, 0.0], None, i, &mut scratch).unwrap().id, 1);
        }
    }
}
