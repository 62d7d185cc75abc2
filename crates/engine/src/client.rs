//! A request beside its sequences: what it still has to make, and what its caller hears of it.

mod walk;

use crate::adapters::Use;
use crate::beam::{Move, Search};
use crate::constraint::ConstraintBox;
use crate::embed::{Embedding, Pooler};
use crate::events::{Event, FinishReason, RequestStats};
use crate::evict::{Evicted, Eviction, EvictionStats};
use crate::guide::{Amateur, Answer, Dola, Guide, GuideStats, Pairs, Turn, Walk};
use crate::handle::{Place, Scores};
use crate::logits::Logits;
use crate::outbox::Outbox;
use crate::request::{BestBy, LogprobsOf, Request};
use crate::sampler::{Choice, Sampler, Scratch, checked_max, softmax};
use crate::sequence::Sequence;
use crate::speculate::Speculate;
use crate::{Error, Result};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool, mpsc::SyncSender},
    time::{Duration, Instant},
};

/// A request in the engine.
pub(crate) struct Client {
    pub(crate) submitted: Instant,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Given back when the request is admitted.
    pub(crate) place: Option<Place>,
    /// How long it may take.
    pub(crate) deadline: Option<Duration>,
    /// Its sequences in the scheduler.
    pub(crate) sequences: Vec<u64>,
    /// Held until the request is over.
    pub(crate) adapter: Option<Use>,
    pub(crate) task: Task,
}

pub(crate) enum Task {
    Generate(Box<Generation>),
    Score { from: usize, top: usize, scores: Scores, reply: SyncSender<Result<Scores>> },
    Logits { reply: SyncSender<Result<Vec<f32>>> },
    Embed { pooler: Pooler, reply: SyncSender<Result<Embedding>> },
}

/// What becomes of sequences after an output.
pub(crate) enum Act {
    Push {
        sequence: u64,
        token: u32,
    },
    Fork {
        from: u64,
        id: u64,
        token: u32,
    },
    /// Takes the last `back` tokens away; then come others.
    Rewind {
        sequence: u64,
        back: usize,
        then: Vec<u32>,
    },
    /// Scores tokens from a position on, in a sequence of its own beside another.
    Score {
        of: u64,
        id: u64,
        tokens: Vec<u32>,
        from: usize,
    },
    End {
        sequence: u64,
    },
    /// The request is done.
    Finish,
    Fail(Error),
}

/// One of a request's answers.
struct Branch {
    /// Its sequence, while it has one.
    sequence: u64,
    sampler: Sampler,
    guide: Option<Box<Answer>>,
    /// While its guidance waits for a score: the token that was drawn, and why it would be the last.
    waits: Option<(u32, Option<FinishReason>)>,
    /// Tokens, those that may be taken back included.
    made: usize,
    /// Tokens that stand, and the sum of what answers are compared by.
    told: usize,
    sum: f64,
    /// Held back until all are compared.
    held: Vec<Choice>,
    last: Instant,
    reason: Option<FinishReason>,
}

impl Branch {
    fn new(sequence: u64, sampler: Sampler, guide: Option<Box<Answer>>, now: Instant) -> Branch {
        Branch {
            sequence,
            sampler,
            guide,
            waits: None,
            made: 0,
            told: 0,
            sum: 0.0,
            held: Vec::new(),
            last: now,
            reason: None,
        }
    }
}

/// The answers of a request in the making.
pub(crate) struct Generation {
    events: Outbox,
    prompt: usize,
    /// Tokens of it that the caller has not sent.
    pub(crate) foreign: usize,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    seed: u64,
    n: usize,
    /// Whether the answers are compared at the end.
    compare: bool,
    /// What they are compared by.
    best_of_by: BestBy,
    /// Best tokens that are reported with a token, and whose log-probabilities.
    top: usize,
    logprobs_of: LogprobsOf,
    /// The first alone until the prompt is in.
    branches: Vec<Branch>,
    width: usize,
    search: Option<Search>,
    /// A contrastive search, which has its first answer alone.
    walk: Option<Walk>,
    /// Of the search's sequences, in the state after their tokens.
    constraints: HashMap<u64, ConstraintBox>,
    /// Sequences beside those of the answers.
    pairs: Option<Pairs>,
    amateur: Option<Amateur>,
    dola: Option<Dola>,
    /// What those cost; each answer knows its own.
    guided: GuideStats,
    speculate: Speculate,
    /// Guesses that were computed, and those that came true.
    drafted: u64,
    accepted: u64,
    made: usize,
    cached: usize,
    /// Most tokens of the sequence, if fewer than the context or more.
    most: Option<usize>,
    eviction: EvictionStats,
    /// Tokens that had been computed at the last eviction.
    evicted_at: usize,
    admitted: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// What guesses of a sequence's tokens need to know of its request.
pub(crate) struct Guessing<'a> {
    pub(crate) mode: Speculate,
    /// More are of no use.
    pub(crate) most: usize,
    pub(crate) sampler: &'a mut Sampler,
}

/// What an output is made with.
pub(crate) struct Tools<'a> {
    /// The logits; may be changed.
    pub(crate) logits: Logits<'a>,
    /// Those of the exits, one after another, where the request wants them.
    pub(crate) exits: Option<&'a Vec<f32>>,
    /// Those of the amateur, where the request wants them.
    pub(crate) amateur: Option<&'a Result<Vec<f32>>>,
    /// About what a row takes.
    pub(crate) row_time: Duration,
    pub(crate) scratch: &'a mut Scratch,
    /// Longest sequence in tokens.
    pub(crate) context: usize,
    /// The next sequence's name.
    pub(crate) next_id: &'a mut u64,
    /// When time began for the scheduler.
    pub(crate) epoch: Instant,
}

impl Tools<'_> {
    fn new_id(&mut self) -> u64 {
        *self.next_id += 1;
        *self.next_id
    }
}

impl Generation {
    /// Of a request whose first sequence is `sequence`, and the one beside it `shadow` if there is one. Hidden states have `dim`
    /// numbers.
    pub(crate) fn new(
        request: Request,
        seed: u64,
        sequence: u64,
        shadow: Option<u64>,
        dim: usize,
        events: Outbox,
    ) -> Generation {
        let width = request.width() as usize;
        let most = match request.eviction {
            Eviction::Refuse => request.kv_tokens.map(|n| n as usize),
            _ => Some(usize::MAX),
        };
        let Request {
            prompt,
            mut sampling,
            max_tokens,
            stop_ids,
            ignore_eos,
            logprobs,
            logprobs_of,
            explain,
            n,
            best_of_by,
            beams,
            speculate,
            constraint,
            guide,
            ..
        } = request;
        let guide = guide.unwrap_or_default();
        if guide.search.is_some() {
            sampling.temperature = 0.0; // which it is without its penalty
        }
        let guide = guide.effective().unwrap_or_default();
        let top = logprobs.unwrap_or(0).into();
        let answer = Answer::new(&guide, top).map(Box::new);
        let top = answer.as_ref().map_or(top, |a| a.wanted_top());
        // What the caller does not read, guidance may.
        let logprobs_of = match logprobs_of {
            LogprobsOf::Unreported if answer.as_ref().is_some_and(|a| a.measures()) => LogprobsOf::Raw,
            of => of,
        };
        let Guide { negative, amateur, dola, search: walk, .. } = guide;
        let pairs = shadow.zip(negative).map(|(shadow, n)| Pairs::new(n.scale, sequence, shadow));
        let mut sampler = Sampler::new(sampling, seed, top, &prompt)
            .constrained(constraint)
            .reporting(logprobs_of, explain)
            .rating((width > n as usize).then_some(best_of_by));
        let constraint = if beams.is_some() || walk.is_some() { sampler.take_constraint() } else { None };
        let first = Branch::new(sequence, sampler, answer, Instant::now());
        Generation {
            events,
            prompt: prompt.len(),
            foreign: 0,
            max_tokens: max_tokens.map_or(usize::MAX, |n| n as usize),
            stop_ids: if ignore_eos { Vec::new() } else { stop_ids },
            seed,
            n: n as usize,
            compare: width > n as usize,
            best_of_by,
            top,
            logprobs_of,
            branches: vec![first],
            width,
            search: beams.map(|b| Search::new(b, sequence)),
            walk: walk.map(|rule| Walk::new(rule, dim)),
            constraints: constraint.map(|c| (sequence, c)).into_iter().collect(),
            pairs,
            amateur,
            dola,
            guided: GuideStats::default(),
            speculate,
            drafted: 0,
            accepted: 0,
            made: 0,
            cached: 0,
            most,
            eviction: EvictionStats::default(),
            evicted_at: 0,
            admitted: None,
            first: None,
            last: None,
        }
    }

    /// Uses the logits of a sequence's row at position `at`, the last but in scores. Times between tokens go to `between`.
    pub(crate) fn output(
        &mut self,
        s: &Sequence,
        at: usize,
        tools: &mut Tools,
        between: impl FnMut(Duration),
    ) -> Vec<Act> {
        let made = match self.scored(s, at, tools) {
            Some(made) => made,
            None => self.drawn(s, tools, between),
        };
        let acts = made.unwrap_or_else(|error| vec![Act::Fail(error)]);
        self.finished_acts(acts, tools)
    }

    /// What a row comes to that scores a sentence, if it is one of those.
    fn scored(&mut self, s: &Sequence, at: usize, tools: &mut Tools) -> Option<Result<Vec<Act>>> {
        let scores = |b: &Branch| b.guide.as_ref().is_some_and(|g| g.is_scored_by(s.id));
        let b = self.branches.iter().position(scores)?;
        let mut acts = Vec::new();
        Some(self.score(b, s, at, tools, &mut acts).map(|()| acts))
    }

    fn score(
        &mut self,
        b: usize,
        s: &Sequence,
        at: usize,
        tools: &mut Tools,
        acts: &mut Vec<Act>,
    ) -> Result<()> {
        let row = tools.logits.whole()?.0;
        let lse = softmax::log_sum_exp(row, checked_max(row, at + 1)?);
        let logprob = f64::from(row[s.tokens[at + 1] as usize]) - lse;
        let branch = &mut self.branches[b];
        let (Some(guide), Some((token, end))) = (&mut branch.guide, branch.waits) else { return Ok(()) };
        let turn = guide.score(at + 1, logprob, tools.row_time, end, at + 1, &mut branch.sampler)?;
        if !guide.is_scored_by(s.id) {
            acts.push(Act::End { sequence: s.id });
        }
        if let Some(turn) = turn {
            branch.waits = None;
            let of = branch.sequence;
            self.turn(b, turn, (token, end), of, tools, acts);
        }
        Ok(())
    }

    /// Whether an answer waits for what another model makes of its sentence.
    pub(crate) fn compares(&self) -> bool {
        self.branches.iter().any(|b| b.waits.is_some() && b.guide.as_ref().is_some_and(|g| g.compares()))
    }

    /// Looks whether that has come.
    pub(crate) fn poll(&mut self, tools: &mut Tools) -> Vec<Act> {
        let mut acts = Vec::new();
        for b in 0..self.branches.len() {
            let branch = &mut self.branches[b];
            let (Some(guide), Some((token, end))) = (&mut branch.guide, branch.waits) else { continue };
            let step = self.prompt + branch.made;
            match guide.poll(end, step, &mut branch.sampler) {
                Ok(Some(turn)) => {
                    branch.waits = None;
                    let of = branch.sequence;
                    self.turn(b, turn, (token, end), of, tools, &mut acts);
                }
                Ok(None) => {}
                Err(error) => acts.push(Act::Fail(error)),
            }
        }
        self.finished_acts(acts, tools)
    }

    /// What becomes of the sequences beside those of the answers, and of the request when all answers are over.
    fn finished_acts(&mut self, mut acts: Vec<Act>, tools: &mut Tools) -> Vec<Act> {
        if self.search.is_none() && self.branches.iter().all(|b| b.reason.is_some()) {
            acts.push(Act::Finish);
        }
        match &mut self.pairs {
            Some(pairs) => pairs.mirror(acts, || tools.new_id()),
            None => acts,
        }
    }

    /// What a sequence's last row comes to.
    fn drawn(
        &mut self,
        s: &Sequence,
        tools: &mut Tools,
        mut between: impl FnMut(Duration),
    ) -> Result<Vec<Act>> {
        let (mut id, mut length) = (s.id, s.tokens.len());
        if self.first.is_none() && id == self.branches[0].sequence {
            self.cached = s.cached;
            self.admitted = s.admitted.map(|a| tools.epoch + a);
        }
        if let Some(pairs) = &mut self.pairs {
            if pairs.is_shadow(id) {
                let rows = if self.first.is_some() { 1 } else { s.tokens.len() - s.cached };
                self.guided.extra_rows += rows as u64;
                self.guided.time += tools.row_time * rows as u32;
            }
            match pairs.arrive(id, length, tools.logits.replaced()?)? {
                Some(ready) => (id, length) = (ready.main, ready.length),
                None => return Ok(Vec::new()),
            }
        }
        if self.branches.iter().any(|b| b.sequence == id && b.waits.is_some()) {
            return Ok(Vec::new()); // it was preempted meanwhile, and comes again
        }
        if let (Some(amateur), Some(row)) = (&self.amateur, tools.amateur) {
            amateur.combine(tools.logits.replaced()?, row.as_ref().map_err(Error::clone)?, length)?;
        }
        if let (Some(dola), Some(exits)) = (&self.dola, tools.exits) {
            let began = Instant::now();
            dola.combine(tools.logits.replaced()?, exits, length)?;
            self.guided.time += began.elapsed();
        }
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        if self.search.is_some() {
            return Ok(self.search(s, tools));
        }
        if self.walk.is_some() {
            return self.walk(s, tools, now, between);
        }
        let mut acts = Vec::new();
        if self.branches.len() < self.width {
            self.begin(id, length, tools, now, &mut acts)?;
        } else if let Some(b) = self.branches.iter().position(|b| b.sequence == id) {
            between(now.saturating_duration_since(self.branches[b].last));
            self.next(b, length, id, tools, now, &mut acts)?;
        }
        Ok(acts)
    }

    /// The first token of every answer, from the prompt's last row, that of sequence `id`.
    fn begin(
        &mut self,
        id: u64,
        length: usize,
        tools: &mut Tools,
        now: Instant,
        acts: &mut Vec<Act>,
    ) -> Result<()> {
        let row = if self.width > 1 { tools.logits.save() } else { None };
        for choice in 1..self.width {
            let sequence = tools.new_id();
            let first = &self.branches[0];
            let sampler = first.sampler.reseeded(self.seed.wrapping_add(choice as u64));
            self.branches.push(Branch::new(sequence, sampler, first.guide.clone(), now));
        }
        // The first keeps the sequence, so it is extended when the others have been forked from it.
        for b in (0..self.width).rev() {
            tools.logits.restore(&row);
            self.next(b, length, id, tools, now, acts)?;
        }
        Ok(())
    }

    /// One token of answer `b`, whose sequence has `length` tokens, or is about to be forked from `of`.
    fn next(
        &mut self,
        b: usize,
        length: usize,
        of: u64,
        tools: &mut Tools,
        now: Instant,
        acts: &mut Vec<Act>,
    ) -> Result<()> {
        let branch = &mut self.branches[b];
        let before = branch.guide.as_mut().and_then(|g| g.prepare(&mut branch.sampler));
        let choice = branch.sampler.next(&mut tools.logits, length, tools.scratch)?;
        let time = now.saturating_duration_since(std::mem::replace(&mut branch.last, now));
        let token = choice.id;
        let end = match length + 1 >= self.most.unwrap_or(tools.context) {
            _ if self.stop_ids.contains(&token) => Some(FinishReason::Stop),
            _ if branch.made + 1 >= self.max_tokens => Some(FinishReason::Length),
            true => Some(FinishReason::ContextFull),
            false => None,
        };
        let turn = match &mut branch.guide {
            Some(guide) => guide.take(choice, before, end, time, length, &mut branch.sampler)?,
            None => {
                if end != Some(FinishReason::Stop) {
                    self.tell(b, choice);
                }
                Turn { end, ..Turn::default() }
            }
        };
        self.turn(b, turn, (token, end), of, tools, acts);
        Ok(())
    }

    /// Carries a turn of answer `b` out, after `drawn`: a token, and why it would be the last.
    fn turn(
        &mut self,
        b: usize,
        turn: Turn,
        drawn: (u32, Option<FinishReason>),
        of: u64,
        tools: &mut Tools,
        acts: &mut Vec<Act>,
    ) {
        turn.told.into_iter().for_each(|c| self.tell(b, c));
        let branch = &mut self.branches[b];
        let (sequence, token) = (branch.sequence, drawn.0);
        if let Some((tokens, from)) = turn.score {
            let id = tools.new_id();
            branch.guide.iter_mut().for_each(|g| g.set_scorer(id));
            branch.waits = Some(drawn);
            return acts.push(Act::Score { of: sequence, id, tokens, from });
        }
        if turn.waits {
            branch.waits = Some(drawn);
            return;
        }
        branch.reason = turn.end;
        match (turn.end, turn.back) {
            (Some(reason), _) => {
                if sequence == of {
                    acts.push(Act::End { sequence });
                }
                if !self.compare {
                    self.finished(b, reason);
                }
            }
            (None, None) => {
                branch.made += 1;
                acts.push(match sequence == of {
                    true => Act::Push { sequence, token },
                    false => Act::Fork { from: of, id: sequence, token },
                });
            }
            (None, Some(mut back)) => {
                branch.made = branch.made - back + turn.then.len();
                if sequence != of {
                    // It begins with a token that it loses at once.
                    acts.push(Act::Fork { from: of, id: sequence, token });
                    back += 1;
                }
                acts.push(Act::Rewind { sequence, back, then: turn.then });
            }
        }
    }

    /// A token of answer `b` that stands.
    fn tell(&mut self, b: usize, choice: Choice) {
        let branch = &mut self.branches[b];
        branch.told += 1;
        self.made += 1;
        branch.sum += f64::from(match self.best_of_by {
            BestBy::Likelihood => choice.raw,
            BestBy::SelfCertainty => choice.certainty,
        });
        if self.compare {
            branch.held.push(choice);
        } else {
            send(&self.events, b, choice);
        }
    }

    fn search(&mut self, s: &Sequence, tools: &mut Tools) -> Vec<Act> {
        let Some(search) = &mut self.search else { return Vec::new() };
        let answer = search.tokens(s.id);
        let k = search.candidates();
        let sampler = &self.branches[0].sampler;
        let (constraint, step) = (self.constraints.get_mut(&s.id), s.tokens.len());
        let next = tools
            .logits
            .whole()
            .and_then(|(row, _)| sampler.best(row, k, answer, constraint, step, tools.scratch));
        let next = match next {
            Ok(next) => next,
            Err(error) => return vec![Act::Fail(error)],
        };
        if !search.offer(s.id, next) {
            return Vec::new();
        }
        let made = search.length() + 1;
        let full = made >= self.max_tokens || s.tokens.len() + 1 >= self.most.unwrap_or(tools.context);
        let stop_ids = &self.stop_ids;
        let moves = search.advance(|t| stop_ids.contains(&t), full, || tools.new_id());
        if let Err(error) = follow(&mut self.constraints, &moves, step) {
            return vec![Act::Fail(error)];
        }
        let mut acts: Vec<Act> = moves
            .into_iter()
            .map(|m| match m {
                Move::Fork { from, id, token } => Act::Fork { from, id, token },
                Move::Push { sequence, token } => Act::Push { sequence, token },
                Move::Drop { sequence } => Act::End { sequence },
            })
            .collect();
        if search.is_over() {
            acts.push(Act::Finish);
        }
        acts
    }

    /// How the tokens of a sequence may be guessed, and the sampler that will draw them.
    pub(crate) fn guessing(&mut self, sequence: u64) -> Option<Guessing<'_>> {
        let drawn = self.search.is_none()
            && self.walk.is_none()
            && self.branches.len() == self.width
            && self.first.is_some();
        // A row that is combined with another is not known before both are.
        let drawn = drawn && self.pairs.is_none() && self.amateur.is_none() && self.dola.is_none();
        let waits = |b: &Branch| b.waits.is_some();
        let branch = self.branches.iter_mut().find(|b| drawn && b.sequence == sequence && !waits(b))?;
        // The step itself makes one.
        let most = self.max_tokens.saturating_sub(branch.made + 1);
        Some(Guessing { mode: self.speculate, most, sampler: &mut branch.sampler })
    }

    /// Counts guesses.
    pub(crate) fn guessed(&mut self, drafted: u64, accepted: u64) {
        self.drafted += drafted;
        self.accepted += accepted;
    }

    /// Counts and tells of an eviction; one that a preemption made the sequence repeat is known.
    fn evicted(&mut self, at: usize, evicted: Evicted) {
        if at > self.evicted_at {
            self.evicted_at = at;
            self.eviction.add(&evicted);
            self.events.send(Event::Evicted { at, evicted });
        }
    }

    /// Tells how far the rows of a sequence are, if it is an answer's.
    pub(crate) fn report_progress(&self, sequence: u64, done: usize, total: usize) {
        if self.search.is_some() || self.branches.iter().any(|b| b.sequence == sequence) {
            self.events.send(Event::Prefill { done, total });
        }
    }

    /// Whether it wants to know what an amateur says.
    pub(crate) fn wants_amateur(&self, sequence: u64) -> bool {
        self.amateur.is_some() && self.branches.iter().any(|b| b.sequence == sequence && b.waits.is_none())
    }

    /// Counts rows of an amateur.
    pub(crate) fn amateur_ran(&mut self, rows: u64, time: Duration) {
        self.guided.extra_rows += rows;
        self.guided.time += time;
    }

    /// Whether no token has been drawn yet.
    pub(crate) fn is_new(&self) -> bool {
        self.first.is_none()
    }

    fn finished(&self, choice: usize, reason: FinishReason) {
        if self.width > 1 {
            self.events.send(Event::Finished { choice: choice as u32, reason });
        }
    }

    /// Ends the request: what was held back is compared and sent; answers that are not complete end for `reason`.
    fn end(mut self, reason: FinishReason, submitted: Instant) {
        for b in 0..self.branches.len() {
            let rest = self.branches[b].guide.as_mut().map(|g| g.rest()).unwrap_or_default();
            rest.into_iter().for_each(|c| self.tell(b, c));
        }
        // Why each answer ended that has not been told of.
        let mut ended = Vec::new();
        if let Some(search) = self.search.take() {
            let cut = if reason == FinishReason::Stop { FinishReason::Length } else { reason };
            for (choice, h) in search.best(self.n).into_iter().enumerate() {
                self.made += h.tokens.len();
                for (id, logprob) in h.tokens {
                    send(
                        &self.events,
                        choice,
                        Choice {
                            id,
                            logprob: Some(logprob),
                            top: Vec::new(),
                            raw: logprob,
                            certainty: 0.0,
                            trace: None,
                        },
                    );
                }
                ended.push((choice, if h.stopped { FinishReason::Stop } else { cut }));
            }
        } else if self.compare {
            // By the mean; ties in the order of their seeds.
            let mut order: Vec<usize> = (0..self.branches.len()).collect();
            let mean = |b: &usize| self.branches[*b].sum / self.branches[*b].told.max(1) as f64;
            order.sort_by(|x, y| mean(y).total_cmp(&mean(x)).then(x.cmp(y)));
            for (choice, b) in order.into_iter().take(self.n).enumerate() {
                let branch = &mut self.branches[b];
                ended.push((choice, branch.reason.unwrap_or(reason)));
                let held = std::mem::take(&mut branch.held);
                held.into_iter().for_each(|c| send(&self.events, choice, c));
            }
        } else {
            let open = self.branches.iter().enumerate().filter(|(_, b)| b.reason.is_none());
            ended.extend(open.map(|(choice, _)| (choice, reason)));
        }
        ended.iter().for_each(|(choice, reason)| self.finished(*choice, *reason));
        let told = if self.compare { None } else { self.branches[0].reason };
        let first = told.or(ended.first().map(|e| e.1)).unwrap_or(reason);
        let stats = self.stats(submitted);
        self.events.send(Event::Done { reason: first, stats });
    }

    fn stats(&self, submitted: Instant) -> RequestStats {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        RequestStats {
            prompt_tokens: self.prompt - self.foreign,
            cached_tokens: self.cached,
            completion_tokens: self.made,
            seed: self.seed,
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            queue: between(Some(submitted), self.admitted),
            ttft: between(Some(submitted), self.first),
            prefill: between(self.admitted, self.first),
            decode: between(self.first, self.last),
            eviction: self.eviction,
            guide: self.guide_stats(),
        }
    }

    fn guide_stats(&self) -> GuideStats {
        let each = self.branches.iter().filter_map(|b| b.guide.as_ref()).map(|g| g.stats());
        each.fold(self.guided, GuideStats::plus)
    }
}

/// Takes the constraints of a search's sequences along; forks come before what changes the forked.
fn follow(constraints: &mut HashMap<u64, ConstraintBox>, moves: &[Move], step: usize) -> Result<()> {
    for m in moves {
        match *m {
            Move::Fork { from, id, token } => {
                if let Some(mut fork) = constraints.get(&from).cloned() {
                    fork.accept(token, step)?;
                    constraints.insert(id, fork);
                }
            }
            Move::Push { sequence, token } => {
                if let Some(c) = constraints.get_mut(&sequence) {
                    c.accept(token, step)?;
                }
            }
            Move::Drop { sequence } => drop(constraints.remove(&sequence)),
        }
    }
    Ok(())
}

/// A send that fails means a dropped stream, which has set `cancelled`.
fn send(events: &Outbox, choice: usize, c: Choice) {
    let Choice { id, logprob, top, trace, .. } = c;
    events.send(Event::Token { choice: choice as u32, id, logprob, top, trace });
}

impl Client {
    /// Uses the logits at position `at` of one of its sequences.
    pub(crate) fn output(
        &mut self,
        s: &Sequence,
        at: usize,
        tools: &mut Tools,
        between: impl FnMut(Duration),
    ) -> Vec<Act> {
        match &mut self.task {
            Task::Generate(g) => g.output(s, at, tools, between),
            Task::Score { from, top, scores, .. } => {
                let checked = tools.logits.whole().and_then(|(row, _)| Ok((checked_max(row, at + 1)?, row)));
                match checked {
                    Ok((max, row)) => {
                        let next = s.tokens[at + 1];
                        let lse = softmax::log_sum_exp(row, max);
                        scores.log_probs[at + 1 - *from] = f64::from(row[next as usize]) - lse;
                        if *top > 0 {
                            scores.top[at + 1 - *from] = tools.scratch.best(row, *top, lse);
                        }
                        if at + 2 == s.tokens.len() { vec![Act::Finish] } else { Vec::new() }
                    }
                    Err(error) => vec![Act::Fail(error)],
                }
            }
            Task::Logits { .. } => match tools.logits.whole() {
                Ok(_) => vec![Act::Finish],
                Err(error) => vec![Act::Fail(error)],
            },
            Task::Embed { .. } => Vec::new(), // see `hidden`
        }
    }

    /// Notes that its sequence was shortened when `at` tokens had been computed.
    pub(crate) fn evicted(&mut self, at: usize, evicted: Evicted) {
        match &mut self.task {
            Task::Generate(g) => g.evicted(at, evicted),
            Task::Score { scores, .. } => scores.eviction.add(&evicted),
            Task::Logits { .. } | Task::Embed { .. } => {}
        }
    }

    /// Takes the hidden states of a sequence from position `first` on, if it wants them.
    pub(crate) fn hidden(&mut self, sequence: u64, first: usize, rows: &[f32]) -> Option<Act> {
        let taken = match &mut self.task {
            Task::Embed { pooler, .. } => pooler.take(first, rows),
            Task::Generate(g) => g.walk.as_mut()?.take(sequence, first, rows).map(|()| false),
            Task::Score { .. } | Task::Logits { .. } => return None,
        };
        match taken {
            Ok(done) => done.then_some(Act::Finish),
            Err(error) => Some(Act::Fail(error)),
        }
    }

    /// Whether it wants hidden states.
    pub(crate) fn wants_hidden(&self) -> bool {
        match &self.task {
            Task::Embed { .. } => true,
            Task::Generate(g) => g.walk.is_some(),
            Task::Score { .. } | Task::Logits { .. } => false,
        }
    }

    // In both, a receiver that is gone has lost interest in the answer.

    /// Whether it waits for what another model makes of a sentence.
    pub(crate) fn compares(&self) -> bool {
        matches!(&self.task, Task::Generate(g) if g.compares())
    }

    /// Whether its rows are combined with those of exits.
    pub(crate) fn wants_exits(&self) -> bool {
        matches!(&self.task, Task::Generate(g) if g.dola.is_some())
    }

    /// Whether a row of one of its sequences is to be combined with an amateur's.
    pub(crate) fn wants_amateur(&self, sequence: u64) -> bool {
        matches!(&self.task, Task::Generate(g) if g.wants_amateur(sequence))
    }

    /// What guidance cost it until now, and whether a loop ended it.
    pub(crate) fn guided(&self) -> (GuideStats, bool) {
        let Task::Generate(g) = &self.task else { return Default::default() };
        let looped = g.branches.iter().any(|b| b.reason == Some(FinishReason::Repetition));
        (g.guide_stats(), looped)
    }

    /// Ends the request; `row` has the logits of its last row.
    pub(crate) fn finish(self, reason: FinishReason, row: &[f32]) {
        drop(self.adapter); // before anyone can learn that the request is over
        let outcome = |done: bool| match reason {
            _ if done => Ok(()),
            FinishReason::Deadline => Err(Error::Deadline(self.deadline.unwrap_or_default())),
            _ => Err(Error::Down),
        };
        match self.task {
            Task::Generate(g) if reason == FinishReason::Deadline && g.is_new() => {
                g.events.send(Event::Failed(Error::Deadline(self.deadline.unwrap_or_default())));
            }
            Task::Generate(g) => g.end(reason, self.submitted),
            Task::Score { reply, scores, .. } => {
                let _ = reply.send(outcome(reason == FinishReason::Stop).map(|()| scores));
            }
            Task::Logits { reply } => {
                let _ = reply.send(outcome(reason == FinishReason::Stop).map(|()| row.to_vec()));
            }
            Task::Embed { pooler, reply } => {
                let _ = reply.send(outcome(reason == FinishReason::Stop).map(|()| pooler.finish()));
            }
        }
    }

    pub(crate) fn fail(self, error: Error) {
        drop(self.adapter);
        match self.task {
            Task::Generate(g) => g.events.send(Event::Failed(error)),
            Task::Score { reply, .. } => drop(reply.send(Err(error))),
            Task::Logits { reply } => drop(reply.send(Err(error))),
            Task::Embed { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}
