//! One answer under guidance: the tokens that may still be taken back, and what is decided about them as more are drawn.
//! Knows nothing of sequences: a [`Turn`] says what becomes of them.

use super::meaning::Compared;
use super::{Coherence, Confidence, Guide, GuideStats, HOLD_MAX, Sentence, Verdict, WatchBox, confidence};
use crate::events::FinishReason;
use crate::guide::repetition::Loops;
use crate::sampler::{Choice, Sampler};
use crate::{Error, Result};
use std::time::Duration;

/// Tokens that are refused in one place, and times that tokens are taken back while none becomes safe, before it is given up.
const REFUSED_MAX: usize = 256;
const STRUGGLE_MAX: usize = 2048;

/// A token that may still be taken back.
#[derive(Debug, Clone)]
struct Pending {
    choice: Choice,
    /// The sampler before it drew this token.
    before: Sampler,
    /// What it took.
    time: Duration,
    confidence: f64,
}

/// Segments that are drawn again.
#[derive(Debug, Clone)]
struct Segments {
    criterion: Criterion,
    /// Where the segment begins among the pending tokens.
    start: usize,
    /// Tries that were not good enough.
    tried: u32,
    best: Option<Try>,
    /// The sentence that is being scored, and compared; what was found of it.
    sentence: Option<Sentence>,
    comparing: Option<Compared>,
    found: f64,
    /// The sentence before.
    before: Vec<u32>,
}

#[derive(Debug, Clone)]
enum Criterion {
    Confidence(Confidence),
    Coherence(Coherence),
}

/// One try of a segment.
#[derive(Debug, Clone)]
struct Try {
    badness: f64,
    tokens: Vec<Pending>,
    /// The sampler afterwards.
    after: Sampler,
    end: Option<FinishReason>,
}

/// What a token, or a judgement, comes to.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Tokens that are safe from now on, in order.
    pub(crate) told: Vec<Choice>,
    /// Take so many tokens from the sequence's end, where the one just drawn is not yet; the last row is computed again.
    /// `None` appends the token that was drawn.
    pub(crate) back: Option<usize>,
    /// What follows after going back.
    pub(crate) then: Vec<u32>,
    /// The answer ends.
    pub(crate) end: Option<FinishReason>,
    /// Nothing is decided before these tokens have a score from this position on: see [`Answer::score`].
    pub(crate) score: Option<(Vec<u32>, usize)>,
    /// Nothing is decided before more is known: see [`Answer::poll`].
    pub(crate) waits: bool,
}

/// The guidance of one answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    loops: Option<Loops>,
    watch: Option<WatchBox>,
    segments: Option<Segments>,
    /// Best tokens that the request wants to hear of; more may be asked of the sampler.
    top: usize,
    /// Tokens that were told.
    told: usize,
    pending: Vec<Pending>,
    /// Tokens that the watch may still refuse, of those that are pending.
    hold: usize,
    /// Tokens that may not come at a place of the answer.
    refused: Vec<(usize, u32)>,
    /// Times that tokens were taken back since the last were told.
    struggle: usize,
    stats: GuideStats,
}

impl Answer {
    /// Of a request that reports `top` best tokens. `None` if no answer has a state of its own.
    pub(crate) fn new(guide: &Guide, top: usize) -> Option<Answer> {
        let criterion = match (guide.confidence, &guide.coherence) {
            (Some(c), _) => Some(Criterion::Confidence(c)),
            (None, Some(c)) => Some(Criterion::Coherence(c.clone())),
            (None, None) => None,
        };
        let segments = criterion.map(|criterion| Segments {
            criterion,
            start: 0,
            tried: 0,
            best: None,
            sentence: None,
            comparing: None,
            found: 0.0,
            before: Vec::new(),
        });
        let answer = Answer {
            loops: guide.repetition.map(Loops::new),
            watch: guide.watch.clone(),
            segments,
            top,
            told: 0,
            pending: Vec::new(),
            hold: 0,
            refused: Vec::new(),
            struggle: 0,
            stats: GuideStats::default(),
        };
        (answer.loops.is_some() || answer.holds()).then_some(answer)
    }

    /// Whether it judges tokens by the model's log-probabilities.
    pub(crate) fn measures(&self) -> bool {
        self.segments.is_some()
    }

    /// Best tokens that the sampler must report.
    pub(crate) fn wanted_top(&self) -> usize {
        match self.segments.as_ref().map(|s| &s.criterion) {
            Some(Criterion::Confidence(c)) => self.top.max(c.best.into()),
            _ => self.top,
        }
    }

    fn holds(&self) -> bool {
        self.watch.is_some() || self.segments.is_some()
    }

    /// What it cost.
    pub(crate) fn stats(&self) -> GuideStats {
        self.stats
    }

    /// Tells the sampler what it must not draw next; gives its state, where it may have to go back to it.
    pub(crate) fn prepare(&mut self, sampler: &mut Sampler) -> Option<Sampler> {
        if !self.holds() {
            return None;
        }
        let (told, place) = (self.told, self.told + self.pending.len());
        // Further on the tokens before it were others; what was told stays.
        self.refused.retain(|r| r.0 >= told && r.0 <= place);
        let before = sampler.clone();
        sampler.forbid(self.refused.iter().filter(|r| r.0 == place).map(|r| r.1).collect());
        Some(before)
    }

    /// Takes a token that was drawn in `time`; with `end`, the answer would end with it, or before it if it is a stop token.
    /// `step` names it in errors.
    pub(crate) fn take(
        &mut self,
        mut choice: Choice,
        before: Option<Sampler>,
        end: Option<FinishReason>,
        time: Duration,
        step: usize,
        sampler: &mut Sampler,
    ) -> Result<Turn> {
        let stop = end == Some(FinishReason::Stop);
        let Some(before) = before.filter(|_| self.holds()) else {
            return Ok(self.tell(if stop { Vec::new() } else { vec![choice] }, end));
        };
        sampler.forbid(Vec::new());
        let (id, mut sentence) = (choice.id, false);
        if !stop {
            let confidence = match self.segments.as_ref().map(|s| &s.criterion) {
                Some(Criterion::Confidence(c)) => confidence::of(&choice.top, c.best.into()),
                _ => 0.0,
            };
            choice.top.truncate(self.top);
            self.pending.push(Pending { choice, before, time, confidence });
        }
        if let Some(watch) = &mut self.watch {
            let mut verdict = Verdict::Pass { hold: 0, sentence: false };
            if !stop {
                verdict = watch.push(id, step)?;
            }
            if let (Verdict::Pass { sentence: ends, .. }, true) = (verdict, end.is_some()) {
                verdict = match watch.finish(step)? {
                    Verdict::Pass { .. } => Verdict::Pass { hold: 0, sentence: ends },
                    refuse => refuse,
                };
            }
            match verdict {
                Verdict::Pass { hold, sentence: ends } => (self.hold, sentence) = (hold, ends),
                Verdict::Refuse { tokens } if !self.pending.is_empty() => {
                    return self.refuse(tokens, stop, step, sampler);
                }
                Verdict::Refuse { .. } => {}
            }
        }
        match self.finished_segment(sentence, end, step)? {
            Some(badness) => self.judge(badness, end, stop, step, sampler),
            None if self.waits() => Ok(self.ask()),
            None => Ok(self.release(end)),
        }
    }

    /// Takes the last tokens back for the watch, and forbids the first of them in its place.
    fn refuse(&mut self, tokens: usize, stop: bool, step: usize, sampler: &mut Sampler) -> Result<Turn> {
        let at = self.pending.len() - tokens.clamp(1, self.pending.len());
        let (place, id) = (self.told + at, self.pending[at].choice.id);
        self.refused.push((place, id));
        let here = self.refused.iter().filter(|r| r.0 == place).count();
        self.struggle += 1;
        if here > REFUSED_MAX || self.struggle > STRUGGLE_MAX {
            let why = format!("{here} tokens in a row were refused; what is banned leaves too little to say");
            return Err(Error::Guide { step, why });
        }
        if let Some(s) = &mut self.segments
            && at < s.start
        {
            // The segment before goes on. What was before it is told, and not known any more.
            (s.start, s.tried, s.best) = (at, 0, None);
            s.before.clear();
        }
        self.go_back(at, stop, step, sampler)
    }

    /// Takes the pending tokens from `at` on back.
    fn go_back(&mut self, at: usize, stop: bool, step: usize, sampler: &mut Sampler) -> Result<Turn> {
        let gone = self.pending.split_off(at);
        if let Some(watch) = &mut self.watch {
            watch.take_back(gone.len(), step)?;
        }
        if let Some(first) = gone.first() {
            sampler.go_back(first.before.clone());
        }
        self.hold = self.hold.saturating_sub(gone.len());
        self.stats.rewinds += 1;
        self.stats.withdrawn_tokens += gone.len() as u64;
        self.stats.time += gone.iter().map(|p| p.time).sum();
        // The last is not yet in the sequence, if it is of the answer at all.
        Ok(Turn { back: Some(gone.len() - usize::from(!stop && !gone.is_empty())), ..Turn::default() })
    }

    /// How bad the segment is that ends here, if one does and that can be said at once.
    fn finished_segment(
        &mut self,
        sentence: bool,
        end: Option<FinishReason>,
        step: usize,
    ) -> Result<Option<f64>> {
        let Some(s) = self.segments.as_mut() else { return Ok(None) };
        let segment = &self.pending[s.start..];
        let full = end.is_some() || segment.len() >= HOLD_MAX;
        match &s.criterion {
            Criterion::Confidence(c) => Ok((full || segment.len() >= c.window as usize)
                .then(|| c.badness(&segment.iter().map(|p| p.confidence).collect::<Vec<_>>()))),
            Criterion::Coherence(c) => {
                let long = segment.len() >= c.tokens as usize;
                if !full && (!sentence || !long) {
                    return Ok(None);
                }
                if !long {
                    return Ok(Some(0.0));
                }
                let with = segment.iter().map(|p| f64::from(p.choice.raw)).sum();
                let tokens = segment.len();
                s.found = 0.0;
                let fresh = Sentence { sequence: 0, with, without: 0.0, tokens, scored: 0 };
                s.sentence = c.min.map(|_| fresh);
                if let Some(meant) = &c.meant {
                    let ids: Vec<u32> = segment.iter().map(|p| p.choice.id).collect();
                    s.comparing = Some(Compared::begin(&*meant.by, &s.before, &ids, step)?);
                }
                Ok(None)
            }
        }
    }

    fn waits(&self) -> bool {
        self.segments.as_ref().is_some_and(|s| s.sentence.is_some() || s.comparing.is_some())
    }

    /// Asks for the score of the segment without its context.
    fn ask(&mut self) -> Turn {
        let Some(s) = &self.segments else { return Turn::default() };
        let Criterion::Coherence(c) = &s.criterion else { return Turn::default() };
        if s.sentence.is_none() {
            return Turn { waits: true, ..Turn::default() };
        }
        let tokens = c.empty.iter().copied().chain(self.pending[s.start..].iter().map(|p| p.choice.id));
        Turn { score: Some((tokens.collect(), c.empty.len())), ..Turn::default() }
    }

    /// The sequence that scores the segment.
    pub(crate) fn set_scorer(&mut self, sequence: u64) {
        if let Some(sentence) = self.segments.as_mut().and_then(|s| s.sentence.as_mut()) {
            sentence.sequence = sequence;
        }
    }

    /// Whether a sequence scores its segment.
    pub(crate) fn is_scored_by(&self, id: u64) -> bool {
        self.segments.as_ref().and_then(|s| s.sentence.as_ref()).is_some_and(|s| s.sequence == id)
    }

    /// Takes the log-probability of the token at position `at` of the tokens to be scored, computed in `time`; gives the turn
    /// once all are there, for the token that was drawn last, and `end` as then.
    pub(crate) fn score(
        &mut self,
        at: usize,
        logprob: f64,
        time: Duration,
        end: Option<FinishReason>,
        step: usize,
        sampler: &mut Sampler,
    ) -> Result<Option<Turn>> {
        self.stats.extra_rows += 1;
        self.stats.time += time;
        let Some(s) = &mut self.segments else { return Ok(None) };
        let (Some(sentence), Criterion::Coherence(c)) = (&mut s.sentence, &s.criterion) else {
            return Ok(None);
        };
        if at != c.empty.len() + sentence.scored {
            return Ok(None); // it was preempted, and comes again
        }
        sentence.without += logprob;
        sentence.scored += 1;
        if sentence.scored < sentence.tokens {
            return Ok(None);
        }
        s.found += (f64::from(c.min.unwrap_or(f32::MIN)) - sentence.pmi()).max(0.0);
        s.sentence = None;
        self.settle(end, step, sampler)
    }

    /// Looks whether its segment has been compared; gives the turn once all is known of it, as [`Answer::score`].
    pub(crate) fn poll(
        &mut self,
        end: Option<FinishReason>,
        step: usize,
        sampler: &mut Sampler,
    ) -> Result<Option<Turn>> {
        let Some(s) = &mut self.segments else { return Ok(None) };
        let Some(found) = s.comparing.as_ref().and_then(|c| c.poll(step)) else { return Ok(None) };
        s.comparing = None;
        let (likeness, time) = found?;
        self.stats.time += time;
        if let Criterion::Coherence(Coherence { meant: Some(meant), .. }) = &s.criterion {
            s.found += meant.badness(likeness);
        }
        self.settle(end, step, sampler)
    }

    /// Whether a comparison is under way.
    pub(crate) fn compares(&self) -> bool {
        self.segments.as_ref().is_some_and(|s| s.comparing.is_some())
    }

    /// Decides about the segment if all is known of it.
    fn settle(
        &mut self,
        end: Option<FinishReason>,
        step: usize,
        sampler: &mut Sampler,
    ) -> Result<Option<Turn>> {
        let found = self.segments.as_ref().map_or(0.0, |s| s.found);
        if self.waits() {
            return Ok(None);
        }
        self.judge(found, end, end == Some(FinishReason::Stop), step, sampler).map(Some)
    }

    /// Decides about a segment that has ended.
    fn judge(
        &mut self,
        badness: f64,
        end: Option<FinishReason>,
        stop: bool,
        step: usize,
        sampler: &mut Sampler,
    ) -> Result<Turn> {
        let Some(s) = &mut self.segments else { return Ok(self.release(end)) };
        let tries = match &s.criterion {
            Criterion::Confidence(c) => c.tries,
            Criterion::Coherence(c) => c.tries,
        };
        let start = s.start;
        let is_best = s.best.as_ref().is_none_or(|b| badness < b.badness);
        if badness > 0.0 && s.tried < tries {
            s.tried += 1;
            if is_best {
                let (tokens, after) = (self.pending[start..].to_vec(), sampler.clone());
                s.best = Some(Try { badness, tokens, after, end });
            }
            self.stats.retries += 1;
            return self.go_back(start, stop, step, sampler);
        }
        let best = s.best.take();
        s.tried = 0;
        let mut turn = Turn::default();
        let mut end = end;
        if let Some(best) = best.filter(|_| !is_best) {
            turn = self.go_back(start, stop, step, sampler)?;
            // The try before was at other tokens in its places.
            let place = self.told + start;
            self.refused.retain(|r| r.0 <= place);
            // It is told after all.
            self.stats.withdrawn_tokens -= best.tokens.len() as u64;
            turn.then = best.tokens.iter().map(|p| p.choice.id).collect();
            sampler.go_back(best.after);
            for p in &best.tokens {
                if let Some(watch) = &mut self.watch
                    && let Verdict::Pass { hold, .. } = watch.push(p.choice.id, step)?
                {
                    self.hold = hold;
                }
            }
            self.pending.extend(best.tokens);
            end = best.end;
        }
        if let Some(s) = &mut self.segments {
            if matches!(s.criterion, Criterion::Coherence(_)) {
                s.before =
                    self.pending[s.start.min(self.pending.len())..].iter().map(|p| p.choice.id).collect();
            }
            s.start = self.pending.len();
        }
        let Turn { told, end, .. } = self.release(end);
        Ok(Turn { told, end, ..turn })
    }

    /// Tells what is safe: at the end everything.
    fn release(&mut self, end: Option<FinishReason>) -> Turn {
        let n = match end {
            Some(_) => self.pending.len(),
            None => {
                let safe = self.pending.len() - self.hold.min(HOLD_MAX).min(self.pending.len());
                self.segments.as_ref().map_or(safe, |s| safe.min(s.start))
            }
        };
        if n == 0 {
            return Turn { end, ..Turn::default() };
        }
        if let Some(s) = &mut self.segments {
            s.start -= n.min(s.start);
        }
        self.struggle = 0;
        let told = self.pending.drain(..n).map(|p| p.choice).collect();
        self.tell(told, end)
    }

    /// Tells tokens, up to the end of a loop if there is one.
    fn tell(&mut self, mut told: Vec<Choice>, mut end: Option<FinishReason>) -> Turn {
        if let Some(loops) = &mut self.loops
            && let Some(i) = told.iter().position(|c| loops.push(c.id).is_some())
        {
            self.stats.withdrawn_tokens += (told.len() - i - 1 + self.pending.len()) as u64;
            told.truncate(i + 1);
            self.pending.clear();
            end = Some(FinishReason::Repetition);
        }
        self.told += told.len();
        Turn { told, end, ..Turn::default() }
    }

    /// What is pending when the answer is cut short, without what would be refused.
    pub(crate) fn rest(&mut self) -> Vec<Choice> {
        let refused = match self.watch.as_mut().map(|w| w.finish(self.told)) {
            Some(Ok(Verdict::Refuse { tokens })) => tokens,
            Some(Err(_)) => self.pending.len(),
            _ => 0,
        };
        let keep = self.pending.len() - refused.min(self.pending.len());
        self.stats.withdrawn_tokens += (self.pending.len() - keep) as u64;
        self.pending.truncate(keep);
        let told = self.pending.drain(..).map(|p| p.choice).collect();
        self.tell(told, None).told
    }
}
