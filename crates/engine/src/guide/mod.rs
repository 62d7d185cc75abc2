//! Guidance: what steers an answer beside the chain of one step's sampler. It can look at several tokens and take them back
//! (watches, confidence, coherence), at a second row of logits (a negative prompt, an amateur), or end what runs away.
//!
//! All that takes tokens back does it in one way: `Answer` holds the tokens that may still go, `Scheduler::rewind` shortens
//! the sequence with its blocks, and the sampler goes back to what it was before the first of them, but for its random
//! numbers, which go on. A number that drew a refused token says which tokens are near it; drawn again, it would not give the
//! distribution of the others. Nothing that may be taken back is ever told, so nobody sees text withdrawn.

mod answer;
mod coherence;
mod confidence;
mod contrast;
mod layers;
mod meaning;
mod pair;
mod repetition;
mod search;
mod watch;

pub(crate) use answer::{Answer, Turn};
pub use coherence::Coherence;
pub(crate) use coherence::Sentence;
pub use confidence::Confidence;
pub use contrast::{Amateur, Negative};
pub use layers::Dola;
pub use meaning::{Comparing, Likeness, Meaning, Meant};
pub(crate) use pair::Pairs;
pub use repetition::Repetition;
pub use search::ContrastiveSearch;
pub(crate) use search::{Candidate, STATES_MAX, Walk};
pub use watch::{Verdict, Watch, WatchBox};

use crate::request::LogprobsOf;
use crate::sampling::Sampling;
use crate::{Error, Result};
use std::time::Duration;

/// Most tokens of an answer that are held back: a longer segment is judged at this length, and what a [`Watch`] would hold
/// longer is told.
pub const HOLD_MAX: usize = 128;

/// How an answer is guided. The default does nothing, and so does every part at its identity: the answer is then the same
/// bytes as without guidance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Guide {
    /// Ends an answer that repeats itself without end.
    pub repetition: Option<Repetition>,
    /// Refuses tokens after the fact, such as those of banned strings.
    pub watch: Option<WatchBox>,
    /// Makes segments again whose confidence is out of a band.
    pub confidence: Option<Confidence>,
    /// Makes sentences again that have little to do with what precedes them.
    pub coherence: Option<Coherence>,
    /// Away from what the model says after another prompt.
    pub negative: Option<Negative>,
    /// Away from what a smaller model says.
    pub amateur: Option<Amateur>,
    /// Away from what the model would say after some of its layers.
    pub dola: Option<Dola>,
    /// A search for what is likely and unlike the text before, in the place of drawing.
    pub search: Option<ContrastiveSearch>,
}

impl Guide {
    /// Without the parts that change nothing; `None` if nothing is left.
    pub(crate) fn effective(self) -> Option<Guide> {
        let guide = Guide {
            confidence: self.confidence.filter(|c| c.tries > 0),
            coherence: self.coherence.filter(|c| c.tries > 0),
            negative: self.negative.filter(|n| n.scale != 1.0),
            amateur: self.amateur.filter(|a| a.beta != 0.0),
            dola: self.dola.filter(|d| d.beta != 0.0),
            search: self.search.filter(ContrastiveSearch::acts),
            ..self
        };
        (guide != Guide::default()).then_some(guide)
    }

    /// Whether tokens may be taken back.
    pub(crate) fn rewinds(&self) -> bool {
        self.watch.is_some() || self.retries() != (false, false)
    }

    /// Whether segments are drawn again for their confidence, and sentences for their coherence.
    fn retries(&self) -> (bool, bool) {
        let confidence = self.confidence.as_ref().is_some_and(|c| c.tries > 0);
        (confidence, self.coherence.as_ref().is_some_and(|c| c.tries > 0))
    }

    /// Whether a second sequence runs beside each answer.
    pub(crate) fn shadows(&self) -> bool {
        self.negative.as_ref().is_some_and(|n| n.scale != 1.0)
    }

    /// Checks every part, and that they can work together and with the way of drawing.
    pub(crate) fn check(&self, sampling: &Sampling, vocab: usize, context: usize) -> Result<()> {
        self.repetition.iter().try_for_each(Repetition::check)?;
        self.confidence.iter().try_for_each(Confidence::check)?;
        self.coherence.iter().try_for_each(|c| c.check(vocab))?;
        self.negative.iter().try_for_each(|n| n.check(vocab, context))?;
        self.amateur.iter().try_for_each(Amateur::check)?;
        self.dola.iter().try_for_each(Dola::check)?;
        self.search.iter().try_for_each(ContrastiveSearch::check)?;
        self.check_rows()?;
        if self.shadows() && self.amateur.is_some_and(|a| a.beta != 0.0) {
            let range = "given without guidance.negative_prompt: each makes another row of the model's";
            return Err(Error::Field { field: "guidance.contrast", value: "given".into(), range });
        }
        let (confidence, coherence) = self.retries();
        if confidence && coherence {
            let range = "given without guidance.confidence: one of them says where a segment ends";
            return Err(Error::Field { field: "guidance.coherence", value: "given".into(), range });
        }
        if (confidence || coherence) && sampling.temperature == 0.0 {
            let field = if confidence { "guidance.confidence" } else { "guidance.coherence" };
            let range = "given with a temperature above 0: greedy tries are all the same";
            return Err(Error::Field { field, value: "with temperature 0".into(), range });
        }
        Ok(())
    }

    /// The exits, if they are contrasted with.
    pub(crate) fn exits(&self) -> Option<Dola> {
        self.dola.filter(|d| d.beta != 0.0)
    }

    /// The search, if it is more than the greedy choice.
    pub(crate) fn searches(&self) -> Option<ContrastiveSearch> {
        self.search.filter(ContrastiveSearch::acts)
    }

    /// A row is combined with one other, and a search takes nothing back.
    fn check_rows(&self) -> Result<()> {
        let (dola, amateur) = (self.exits().is_some(), self.amateur.is_some_and(|a| a.beta != 0.0));
        if dola && (amateur || self.shadows()) {
            let why = "each makes another row of the model's";
            let b = if amateur { "guidance.contrast" } else { "guidance.negative_prompt" };
            return Err(Error::Together { a: "guidance.dola", b, why });
        }
        if self.searches().is_some() && (dola || amateur || self.shadows() || self.rewinds()) {
            let b = "other guidance than guidance.repetition";
            let why = "a search compares several rows of the model's and takes no token back";
            return Err(Error::Together { a: "guidance.contrastive_search", b, why });
        }
        Ok(())
    }

    /// What a request with it cannot have.
    pub(crate) fn check_with(&self, beams: bool, evicts: bool, of: LogprobsOf) -> Result<()> {
        let refuse = |value: &str, range| Err(Error::Field { field: "guidance", value: value.into(), range });
        if beams {
            return refuse("with beams", "given without beams, which do not draw tokens");
        }
        if of == LogprobsOf::Sampled && self.retries().0 {
            let (field, value) = ("guidance.confidence", "with log-probabilities after the chain".into());
            let range = "given with those of the model, which it is made of";
            return Err(Error::Field { field, value, range });
        }
        if evicts && (self.rewinds() || self.shadows() || self.searches().is_some()) {
            return refuse(
                "with eviction",
                "given without eviction: what was dropped from the cache cannot be brought back",
            );
        }
        Ok(())
    }
}

/// Checks that a number is in its range.
fn check_field(field: &'static str, value: f64, ok: bool, range: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Field { field, value: value.to_string(), range }) }
}

/// What guidance cost a request.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GuideStats {
    /// Times that tokens were taken back.
    pub rewinds: u64,
    /// Segments that were drawn again.
    pub retries: u64,
    /// Tokens that were drawn and taken back.
    pub withdrawn_tokens: u64,
    /// Rows computed beside those of the answers: of second sequences, of an amateur, of sentences that were scored.
    pub extra_rows: u64,
    /// About what both took, withdrawn tokens and extra rows.
    pub time: Duration,
}

impl GuideStats {
    /// Both together.
    pub fn plus(self, other: GuideStats) -> GuideStats {
        GuideStats {
            rewinds: self.rewinds + other.rewinds,
            retries: self.retries + other.retries,
            withdrawn_tokens: self.withdrawn_tokens + other.withdrawn_tokens,
            extra_rows: self.extra_rows + other.extra_rows,
            time: self.time + other.time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_nothing_at_all() {
        let identity = Guide {
            confidence: Some(Confidence { tries: 0, ..Confidence::default() }),
            coherence: Some(Coherence { tries: 0, ..Coherence::new(vec![1]) }),
            negative: Some(Negative { prompt: vec![1], scale: 1.0 }),
            amateur: Some(Amateur { beta: 0.0, ..Amateur::default() }),
            dola: Some(Dola { beta: 0.0, ..Dola::default() }),
            search: Some(ContrastiveSearch { k: 1, ..ContrastiveSearch::default() }),
            ..Guide::default()
        };
        assert_eq!(identity.effective(), None);
        let loops = Guide { repetition: Some(Repetition::default()), ..Guide::default() };
        assert!(!loops.rewinds() && !loops.shadows());
        assert!(loops.effective().is_some());
    }

    #[test]
    fn errors_name_the_part_that_is_wrong() {
        let d = Guide::default;
        let confidence = |c: Confidence| Guide { confidence: Some(c), ..d() };
        let usual = Confidence { tries: 2, ..Confidence::default() };
        let coherence = Coherence::new(vec![1]);
        let cases = [
            (
                "guidance.repetition.repeats",
                Guide { repetition: Some(Repetition { repeats: 1, ..Repetition::default() }), ..d() },
            ),
            ("guidance.confidence.window", confidence(Confidence { window: 0, ..usual })),
            ("guidance.confidence.min", confidence(Confidence { min: f32::NAN, ..usual })),
            ("guidance.confidence.max", confidence(Confidence { min: 3.0, max: 2.0, ..usual })),
            ("guidance.coherence.empty", Guide { coherence: Some(Coherence::new(vec![])), ..d() }),
            (
                "guidance.coherence",
                Guide { coherence: Some(coherence.clone()), confidence: Some(usual), ..d() },
            ),
            (
                "guidance.contrast",
                Guide {
                    amateur: Some(Amateur::default()),
                    negative: Some(Negative { prompt: vec![1], scale: 2.0 }),
                    ..d()
                },
            ),
            (
                "guidance.scale",
                Guide { negative: Some(Negative { prompt: vec![1], scale: f32::INFINITY }), ..d() },
            ),
            (
                "guidance.negative_prompt",
                Guide { negative: Some(Negative { prompt: vec![], scale: 2.0 }), ..d() },
            ),
            (
                "guidance.dola",
                Guide { dola: Some(Dola::default()), amateur: Some(Amateur::default()), ..d() },
            ),
            (
                "guidance.contrastive_search",
                Guide { dola: Some(Dola::default()), search: Some(ContrastiveSearch::default()), ..d() },
            ),
            (
                "guidance.contrastive_search.k",
                Guide { search: Some(ContrastiveSearch { k: 0, alpha: 0.5 }), ..d() },
            ),
            (
                "guidance.contrast.alpha",
                Guide { amateur: Some(Amateur { alpha: 2.0, ..Amateur::default() }), ..d() },
            ),
        ];
        for (field, guide) in cases {
            let error = guide.check(&Sampling::default(), 10, 100).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field} ")), "{field}: {error}");
        }
        let greedy = confidence(usual).check(&Sampling::greedy(), 10, 100).unwrap_err().to_string();
        assert!(greedy.starts_with("guidance.confidence"), "{greedy}");
        confidence(usual).check(&Sampling::default(), 10, 100).unwrap();
        assert!(confidence(usual).check_with(true, false, LogprobsOf::Raw).is_err());
        assert!(confidence(usual).check_with(false, true, LogprobsOf::Raw).is_err());
        assert!(confidence(usual).check_with(false, false, LogprobsOf::Sampled).is_err());
        let loops = Guide { repetition: Some(Repetition::default()), ..d() };
        loops.check_with(false, true, LogprobsOf::Sampled).unwrap();
    }
}
