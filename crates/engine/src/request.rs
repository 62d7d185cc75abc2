//! What a caller asks for: a prompt of token ids, how to sample, when to stop, and how urgent it is.

use crate::constraint::ConstraintBox;
use crate::evict::{Eviction, Evictor};
use crate::guide::Guide;
use crate::sampling::Sampling;
use crate::speculate::Speculate;
use crate::{Error, Result};
use std::{sync::Arc, time::Duration};

/// How urgent a request is. Each 10 s of waiting make it as urgent as the next class, so that none starves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// A program waits.
    Batch,
    /// Nobody waits: what is left of the device.
    Background,
}

impl Class {
    /// All of them, the most urgent first.
    pub const ALL: [Class; 3] = [Class::Interactive, Class::Batch, Class::Background];

    /// The name in settings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Class::Interactive => "interactive",
            Class::Batch => "batch",
            Class::Background => "background",
        }
    }
}

/// How long the prefix cache should keep what a request has computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Retention {
    /// Nobody will ask for it again: not at all.
    Discard,
    /// The longest unused goes first.
    #[default]
    Usual,
    /// Longer than everything that did not ask for it, such as a system prompt.
    Keep,
}

/// Beam search: the sequences of highest probability that a search of limited width finds. It takes the place of drawing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beams {
    /// Sequences that are followed, 2 to [`WIDTH_MAX`].
    pub width: u32,
    /// Scores are sums of log-probabilities over the length to this power; above 0 prefers long answers.
    pub length_penalty: f32,
}

/// Whose log-probabilities are reported with tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogprobsOf {
    /// The model's: before the sampling chain.
    #[default]
    Raw,
    /// Of the distribution that the token was drawn from: after the chain. A token that the chain removed has none.
    Sampled,
    /// Nobody's: events have none. It saves a pass over the vocabulary, where nothing else needs it.
    Unreported,
}

/// What the best of several answers is chosen by: a mean over their tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BestBy {
    /// The model's log-probability of the token.
    #[default]
    Likelihood,
    /// How far the model was from not knowing at all (Kang et al. 2025, "Scalable Best-of-N Selection via Self-Certainty",
    /// eq. 6): the divergence of the uniform distribution from the model's, `-(1/V) sum_j ln(V p_j)`, over the `V` tokens.
    SelfCertainty,
}

/// Largest [`Request::explain`].
pub const EXPLAIN_MAX: u32 = 1000;

/// Largest [`Request::n`], [`Request::best_of`] and [`Beams::width`].
pub const WIDTH_MAX: u32 = 128;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids, special ones included; at least one.
    pub prompt: Vec<u32>,
    /// How to draw.
    pub sampling: Sampling,
    /// Most tokens to make; `None` goes on to the end of the context.
    pub max_tokens: Option<u32>,
    /// End-of-generation ids: one of them ends the answer and is not part of it.
    pub stop_ids: Vec<u32>,
    /// Treat `stop_ids` as ordinary tokens.
    pub ignore_eos: bool,
    /// Report this many best tokens with each token, at most [`LOGPROBS_MAX`].
    pub logprobs: Option<u8>,
    /// Whose log-probabilities are reported.
    pub logprobs_of: LogprobsOf,
    /// Tell with each token how it was drawn, with so many of the candidates that were left, at most [`EXPLAIN_MAX`]. It takes
    /// some passes over the vocabulary more for each token; without it nothing.
    pub explain: Option<u32>,
    /// Answers to make. They share what is computed of the prompt; the seed of each is the one before plus 1.
    pub n: u32,
    /// Make so many, and report the `n` best by `best_of_by`, at their end.
    pub best_of: Option<u32>,
    /// What is best.
    pub best_of_by: BestBy,
    /// Search instead of drawing.
    pub beams: Option<Beams>,
    /// How urgent it is.
    pub class: Class,
    /// Whose it is: keys that have something to do share the device evenly within a class.
    pub key: Arc<str>,
    /// From submission; the request ends then with what it has, or fails if it has not begun.
    pub deadline: Option<Duration>,
    /// What the prefix cache should do with it.
    pub retention: Retention,
    /// How its tokens are guessed ahead: changes its speed, never its answer.
    pub speculate: Speculate,
    /// What happens when it outgrows `kv_tokens`. With anything but [`Eviction::Refuse`] prompt and answer may be longer than
    /// the context, and one answer can be asked for.
    pub eviction: Eviction,
    /// Most tokens in the cache; the engine's context if not given.
    pub kv_tokens: Option<u32>,
    /// Name of a loaded adapter to compute it with; see [`crate::Handle::load_adapter`].
    pub adapter: Option<String>,
    /// What its tokens must obey; each answer gets a fork of its own.
    pub constraint: Option<ConstraintBox>,
    /// What steers it beside the sampler.
    pub guide: Option<Box<Guide>>,
}

/// Largest [`Request::logprobs`].
pub const LOGPROBS_MAX: u8 = 64;

impl Request {
    /// A request with the default sampling and no stop.
    pub fn new(prompt: Vec<u32>) -> Request {
        Request {
            prompt,
            sampling: Sampling::default(),
            max_tokens: None,
            stop_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            logprobs_of: LogprobsOf::default(),
            explain: None,
            n: 1,
            best_of: None,
            best_of_by: BestBy::default(),
            beams: None,
            class: Class::default(),
            key: "".into(),
            deadline: None,
            retention: Retention::default(),
            speculate: Speculate::Off,
            eviction: Eviction::default(),
            kv_tokens: None,
            adapter: None,
            constraint: None,
            guide: None,
        }
    }

    /// Most tokens in the cache of an engine with this context.
    pub(crate) fn budget(&self, context: usize) -> usize {
        self.kv_tokens.map_or(context, |n| n as usize)
    }

    /// What shortens its sequence, if anything does.
    pub(crate) fn evictor(&self, context: usize) -> Result<Option<Evictor>> {
        Evictor::new(self.eviction, self.budget(context), self.prompt.len())
    }

    /// Sequences that are followed at once.
    pub fn width(&self) -> u32 {
        self.beams.map_or(self.best_of.unwrap_or(self.n), |b| b.width)
    }

    /// Sequences that need a place at once.
    pub(crate) fn places(&self) -> u32 {
        let shadows = self.guide.as_ref().is_some_and(|g| g.shadows());
        let candidates = self.guide.as_ref().and_then(|g| g.searches()).map_or(1, |s| s.k);
        self.width() * if shadows { 2 } else { candidates }
    }

    /// Checks the request against a model's vocabulary and the engine's context, in tokens.
    pub(crate) fn check(&self, vocab: usize, context: usize) -> Result<()> {
        self.sampling.check()?;
        check_tokens(&self.prompt, vocab)?;
        self.check_eviction(context)?;
        if self.max_tokens == Some(0) {
            return Err(Error::Field { field: "max_tokens", value: "0".into(), range: "1 or more" });
        }
        check_logprobs(self.logprobs.unwrap_or(0))?;
        self.check_width()?;
        self.check_search()?;
        if let Some(guide) = &self.guide {
            guide.check(&self.sampling, vocab, context)?;
            let evicts = self.eviction != Eviction::Refuse;
            guide.check_with(self.beams.is_some(), evicts, self.logprobs_of)?;
        }
        match self.sampling.biased().find(|id| *id as usize >= vocab) {
            Some(id) => Err(Error::Token { id, what: "logit_bias", vocab }),
            None => Ok(()),
        }
    }
}

impl Request {
    fn check_eviction(&self, context: usize) -> Result<()> {
        let budget = self.budget(context);
        check_budget(self.kv_tokens, context)?;
        let most = match self.eviction {
            Eviction::Refuse => budget,
            // They are shortened while the prompt comes in.
            Eviction::Slide { .. } | Eviction::H2o { .. } => usize::MAX,
            Eviction::SnapKv { .. } => context,
        };
        if self.prompt.len() >= most {
            return Err(Error::PromptTooLong { prompt: self.prompt.len(), context: most });
        }
        if self.evictor(context)?.is_some() && self.width() > 1 {
            let range = "1 where the cache is shortened: eviction follows one sequence";
            return Err(Error::Field { field: "n", value: self.width().to_string(), range });
        }
        Ok(())
    }

    /// A search does not draw, so what only a draw uses is refused.
    fn check_search(&self) -> Result<()> {
        if let Some(n) = self.explain.filter(|n| *n > EXPLAIN_MAX) {
            return Err(Error::Field { field: "explain", value: n.to_string(), range: "0 to 1000" });
        }
        let contrastive = self.guide.as_ref().is_some_and(|g| g.search.is_some());
        let b = if contrastive { "guidance.contrastive_search" } else { "beams" };
        if contrastive && self.width() > 1 {
            let range = "1 with guidance.contrastive_search, which finds the same answer each time";
            return Err(Error::Field { field: "n", value: self.width().to_string(), range });
        }
        let Some(field) = self.sampling.drawing().filter(|_| contrastive || self.beams.is_some()) else {
            return Ok(());
        };
        let why = "a search takes what is best and draws nothing";
        Err(Error::Together { a: field, b, why })
    }

    fn check_width(&self) -> Result<()> {
        let field = |field, value: &dyn std::fmt::Display, range| {
            Err(Error::Field { field, value: value.to_string(), range })
        };
        if self.n < 1 || self.n > WIDTH_MAX {
            return field("n", &self.n, "1 to 128");
        }
        if let Some(best_of) = self.best_of
            && (best_of < self.n || best_of > WIDTH_MAX)
        {
            return field("best_of", &best_of, "n to 128");
        }
        let Some(beams) = self.beams else { return Ok(()) };
        if beams.width < self.n.max(2) || beams.width > WIDTH_MAX {
            return field("beams", &beams.width, "2 to 128, and no less than n");
        }
        if !(-10.0..=10.0).contains(&beams.length_penalty) {
            return field("length_penalty", &beams.length_penalty, "-10 to 10");
        }
        if self.best_of.is_some() {
            return field("best_of", &beams.width, "not given with beams, which are compared anyway");
        }
        Ok(())
    }
}

/// Checks that a budget of the cache fits into the context.
pub(crate) fn check_budget(kv_tokens: Option<u32>, context: usize) -> Result<()> {
    match kv_tokens.filter(|n| *n < 2 || *n as usize > context) {
        Some(n) => {
            let range = "2 to the context of the engine";
            Err(Error::Field { field: "kv_tokens", value: n.to_string(), range })
        }
        None => Ok(()),
    }
}

/// Whether so many best tokens can be reported.
pub(crate) fn check_logprobs(n: u8) -> Result<()> {
    let error = || Error::Field { field: "logprobs", value: n.to_string(), range: "0 to 64" };
    if n > LOGPROBS_MAX { Err(error()) } else { Ok(()) }
}

/// Checks that there are tokens and that all are in the vocabulary.
pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<()> {
    if tokens.is_empty() {
        return Err(Error::Field { field: "prompt", value: "empty".into(), range: "1 token or more" });
    }
    match tokens.iter().find(|t| **t as usize >= vocab) {
        Some(id) => Err(Error::Token { id: *id, what: "prompt", vocab }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked_against_vocabulary_and_context() {
        let ok = Request::new(vec![1, 2, 3]);
        ok.check(4, 4).unwrap();
        assert!(matches!(ok.check(4, 3), Err(Error::PromptTooLong { prompt: 3, context: 3 })));
        assert!(matches!(ok.check(3, 9), Err(Error::Token { id: 3, what: "prompt", vocab: 3 })));
        assert!(Request::new(vec![]).check(4, 4).is_err());
        assert!(Request { max_tokens: Some(0), ..ok.clone() }.check(4, 4).is_err());
        assert!(Request { logprobs: Some(65), ..ok.clone() }.check(4, 4).is_err());
        let beams = |width, length_penalty| Some(Beams { width, length_penalty });
        for (field, wrong) in [
            ("n", Request { n: 0, ..ok.clone() }),
            ("n", Request { n: 129, ..ok.clone() }),
            ("best_of", Request { n: 3, best_of: Some(2), ..ok.clone() }),
            ("best_of", Request { best_of: Some(4), beams: beams(4, 1.0), ..ok.clone() }),
            ("beams", Request { beams: beams(1, 1.0), ..ok.clone() }),
            ("beams", Request { n: 5, beams: beams(4, 1.0), ..ok.clone() }),
            ("length_penalty", Request { beams: beams(4, f32::NAN), ..ok.clone() }),
        ] {
            let error = wrong.check(4, 4).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let evicting = |eviction, kv_tokens| Request { eviction, kv_tokens: Some(kv_tokens), ..ok.clone() };
        evicting(Eviction::SLIDE, 16).check(4, 32).unwrap();
        assert!(matches!(evicting(Eviction::Refuse, 3).check(4, 32), Err(Error::PromptTooLong { .. })));
        let long = Request { prompt: vec![1; 50], ..evicting(Eviction::H2O, 16) };
        long.check(4, 32).unwrap();
        let snap = Request { eviction: Eviction::SnapKv { window: 8, kernel: 3 }, ..long.clone() };
        assert!(matches!(snap.check(4, 32), Err(Error::PromptTooLong { context: 32, .. })));
        for (field, wrong) in [
            ("kv_tokens", evicting(Eviction::SLIDE, 33)),
            ("kv_tokens", evicting(Eviction::SLIDE, 15)),
            ("n", Request { n: 2, ..evicting(Eviction::SLIDE, 16) }),
        ] {
            let error = wrong.check(4, 32).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let sampling = Sampling { logit_bias: vec![(4, 1.0)], ..Sampling::default() };
        assert!(matches!(
            Request { sampling, ..ok }.check(4, 4),
            Err(Error::Token { what: "logit_bias", .. })
        ));
    }
}
