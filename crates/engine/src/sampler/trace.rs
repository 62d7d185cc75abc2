//! How a token was drawn, stage by stage, for those who ask. It is made beside the chain and changes nothing of it; who does not
//! ask pays nothing.

use super::set::Set;
use super::{Candidate, Edits, best_first, logprobs, softmax, top_k};
use crate::sampling::Stage;

/// The way from a row of logits to a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Position of the token, prompt included.
    pub step: usize,
    /// Entropy of the model's own distribution in nats.
    pub entropy: f64,
    /// What biases and penalties did, in order.
    pub edits: Vec<EditTrace>,
    /// What the stages left that compare tokens, in order.
    pub stages: Vec<StageTrace>,
    /// What the logits were divided by; 0 is greedy.
    pub temperature: f32,
    /// The best of those that could be drawn, best first.
    pub candidates: Vec<CandidateTrace>,
    /// The draw itself.
    pub draw: DrawTrace,
}

/// A stage that changes scores one by one.
#[derive(Debug, Clone, PartialEq)]
pub struct EditTrace {
    /// Which stage.
    pub stage: Stage,
    /// Tokens that it changed.
    pub changed: usize,
    /// The largest changes among them.
    pub largest: Vec<ChangeTrace>,
}

/// A change of a logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChangeTrace {
    /// Whose.
    pub id: u32,
    /// The logit before.
    pub from: f32,
    /// ... and after.
    pub to: f32,
}

/// A stage that compares tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageTrace {
    /// `scores` is where they begin, after the edits; `grammar` is the mask; the others are stages.
    pub name: &'static str,
    /// Tokens that are left.
    pub tokens: usize,
    /// What they have of the mass that all allowed tokens have at the temperature of that moment.
    pub mass: f64,
    /// Entropy of what is left, in nats.
    pub entropy: f64,
    /// A number of the stage's own: the temperature it chose, Mirostat's bound in bits, for XTC whether it acted.
    pub value: Option<f64>,
}

/// A token that could be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateTrace {
    /// Its id.
    pub id: u32,
    /// The model's log-probability.
    pub logprob: f32,
    /// The probability that it was drawn with.
    pub p: f64,
}

/// The draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawTrace {
    /// The random number, in `[0, 1)`, that chose among the candidates, best first; none is needed for one.
    pub uniform: Option<f64>,
    /// What was drawn.
    pub id: u32,
    /// Its probability among the candidates.
    pub p: f64,
    /// How many candidates were likelier.
    pub rank: usize,
    /// The model's log-probability of it.
    pub logprob: f32,
}

/// A trace in the making. Without one every call is a branch.
pub(super) struct Tracer {
    most: usize,
    pub(super) trace: Trace,
}

impl Tracer {
    /// Of a row before any edit.
    pub(super) fn new(step: usize, most: usize, row: &[f32], max: f32) -> Tracer {
        let (z, weighted) = softmax::entropy_sums(row, max, 1.0);
        let entropy = (z.ln() - weighted / z).max(0.0);
        let draw = DrawTrace { uniform: None, id: 0, p: 1.0, rank: 0, logprob: 0.0 };
        let (edits, stages, candidates) = (Vec::new(), Vec::new(), Vec::new());
        Tracer { most, trace: Trace { step, entropy, edits, stages, temperature: 1.0, candidates, draw } }
    }

    /// A stage has made the edits from the `from`th on.
    pub(super) fn edits(&mut self, stage: Stage, edits: &Edits, from: usize, row: &[f32]) {
        let changes =
            edits.0[from..].iter().map(|(id, l)| ChangeTrace { id: *id, from: *l, to: row[*id as usize] });
        let mut largest: Vec<ChangeTrace> = changes.filter(|c| c.from != c.to).collect();
        let changed = largest.len();
        let size = |c: &ChangeTrace| (c.from - c.to).abs();
        largest.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.id.cmp(&b.id)));
        largest.truncate(self.most);
        self.trace.edits.push(EditTrace { stage, changed, largest });
    }

    /// What is left after a stage.
    pub(super) fn stage(&mut self, name: &'static str, set: &Set, value: Option<f64>) {
        let (tokens, mass, entropy) = (set.count(), set.mass(), set.entropy().0);
        self.trace.stages.push(StageTrace { name, tokens, mass, entropy, value });
    }

    /// What a mask has left of a row.
    pub(super) fn mask(&mut self, row: &[f32], max: f32, allowed: &[f32], best: f32) {
        let all = logprobs::log_sum_exp(row, max);
        let left = logprobs::log_sum_exp(allowed, best);
        let (z, weighted) = softmax::entropy_sums(allowed, best, 1.0);
        let entropy = (z.ln() - weighted / z).max(0.0);
        let tokens = allowed.iter().filter(|l| **l > f32::NEG_INFINITY).count();
        let mass = (left - all).exp();
        self.trace.stages.push(StageTrace { name: "grammar", tokens, mass, entropy, value: None });
    }

    /// The candidates that were drawn from; ids are those of the set.
    pub(super) fn candidates(&mut self, list: &[Candidate], total: f64, drawn: Candidate) {
        self.trace.draw.rank = list.iter().filter(|c| best_first(c, &drawn).is_lt()).count();
        let mut best = list.to_vec();
        top_k::shrink(&mut best, self.most.max(1));
        best.truncate(self.most);
        best.sort_unstable_by(best_first);
        let of = |c: &Candidate| CandidateTrace { id: c.id, logprob: 0.0, p: f64::from(c.weight) / total };
        self.trace.candidates = best.iter().map(of).collect();
    }

    /// Ends it: ids of the set become those of tokens, and get their log-probabilities.
    pub(super) fn finish(mut self, id: impl Fn(u32) -> u32, logprob: impl Fn(u32) -> f32) -> Box<Trace> {
        for c in &mut self.trace.candidates {
            c.id = id(c.id);
            c.logprob = logprob(c.id);
        }
        let draw = &mut self.trace.draw;
        draw.id = id(draw.id);
        draw.logprob = logprob(draw.id);
        Box::new(self.trace)
    }
}
