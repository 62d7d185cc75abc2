//! Which sequences run in a step, and how many rows of each: a pure, synchronous state machine. It does no I/O, reads no
//! clock and draws no random numbers; the time is passed in.
//!
//! There is no prefill mode and no decode mode: every sequence has rows that are not computed yet, one when it decodes, many
//! when it is new, and a step has one budget for them. Who waits for its next token comes first. What prompts get beside
//! them follows from the time that a step may take ([`Pace`]); a quarter of it goes to the one that is there longest, the
//! rest to the shortest, so that a long prompt neither holds the others up nor stands still. Without a free block the
//! sequence that costs least to bring back, of those that came later or matter less, gives its blocks back and waits.

mod ahead;
mod back;
mod snapshots;
mod sources;
mod turn;

pub(crate) use ahead::Ahead;
pub(crate) use snapshots::{StateLimits, Taken};

use crate::block_manager::{BlockManager, Digest};
use crate::evict::Evicted;
use crate::pace::{Allowed, Pace, Work};
use crate::sequence::{Sequence, state_of};
use crate::snapshots::SNAPSHOT;
use crate::{Error, Result};
use quarrel_ir::{BLOCK_TOKENS, Keep, Mass};
use std::{cmp::Reverse, ops::Range, time::Duration};
use turn::{Shares, level};

/// The scheduler's limits. [`crate::EngineConfig`] has checked that one sequence of full length fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rows in a step.
    pub(crate) rows: usize,
    /// Rows with logits in a step.
    pub(crate) outputs: usize,
    /// Sequences that run at once; below `rows` and at most `outputs`.
    pub(crate) running: usize,
    /// Sequences that wait.
    pub(crate) waiting: usize,
    /// KV blocks.
    pub(crate) blocks: usize,
    /// Whether equal prefixes are shared.
    pub(crate) prefix_cache: bool,
    /// How long a step may take while somebody waits for its next token.
    pub(crate) target: Option<Duration>,
    /// Whether a sequence has all its rows in one step; then `rows` are enough for the longest.
    pub(crate) whole: bool,
    /// Where a sequence has a state beside its blocks, which knows its last computed token alone: its copies.
    pub(crate) states: Option<StateLimits>,
}

/// Least rows of a step for the prompt that is there longest, and for the shortest if that is another: slowly, but on.
const PROMPT_LEAST: usize = 1;

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Index into [`Scheduler::running`].
    pub(crate) running: usize,
    /// Positions to compute.
    pub(crate) rows: Range<usize>,
    /// Positions among them whose logits are wanted.
    pub(crate) outputs: Range<usize>,
}

/// What has to be done to the cache before a step, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockOp {
    /// Keep the block's contents below.
    Save { block: u32, digest: Digest },
    /// Fetch contents from below.
    Load { block: u32, digest: Digest },
    /// Copy a block whose sequence is about to write to it while others read it.
    Copy { from: u32, to: u32 },
    /// Forget the attention that was added up for a sequence that has left its blocks.
    Forget { slot: u32 },
    /// Forget the state of a sequence that has left its blocks, or a copy.
    Leave { state: u32 },
    /// Give a sequence the state of another, whose fork it is, or a copy.
    Branch { from: u32, to: u32 },
}

/// A sequence that is to be shortened in the cache before the next step.
#[derive(Debug)]
pub(crate) struct Shortened {
    pub(crate) request: u64,
    pub(crate) evicted: Evicted,
    pub(crate) keep: Keep,
    /// Its blocks until now, and those that take what stays.
    pub(crate) from: Vec<u32>,
    pub(crate) to: Vec<u32>,
    /// Tokens of it that have been computed.
    pub(crate) computed: usize,
}

/// A larger and slower store of blocks below the device's.
pub(crate) trait Below {
    /// Whether it has the block, at hand and verified, until the next step has run.
    fn has(&self, digest: &Digest) -> bool;
    /// Whether a block that is about to be forgotten is worth keeping there.
    fn wants(&self, digest: &Digest) -> bool;
    /// Whether it should have every block as soon as it is full, so that it survives the process.
    fn persists(&self) -> bool;
}

/// No store below.
pub(crate) struct Nothing;

impl Below for Nothing {
    fn has(&self, _: &Digest) -> bool {
        false
    }
    fn wants(&self, _: &Digest) -> bool {
        false
    }
    fn persists(&self) -> bool {
        false
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) preemptions: u64,
    /// Tokens whose keys and values were given up by preemptions.
    pub(crate) given_up: u64,
    /// Tokens of admitted sequences, and those of them found on the device and below.
    pub(crate) looked_up: u64,
    pub(crate) hits: u64,
    pub(crate) hits_below: u64,
    pub(crate) copies: u64,
    pub(crate) saves: u64,
    pub(crate) loads: u64,
    /// Times that a sequence was shortened, and the tokens that it lost.
    pub(crate) evictions: u64,
    pub(crate) evicted: u64,
    /// Copies of states that were made, and those that made room for others.
    pub(crate) snapshots: u64,
    pub(crate) snapshots_evicted: u64,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    blocks: BlockManager,
    waiting: Vec<Sequence>,
    /// In the order of admission.
    running: Vec<Sequence>,
    shares: Shares,
    pace: Pace,
    plan: Vec<Chunk>,
    ops: Vec<BlockOp>,
    /// Guesses behind decodes of the plan.
    ahead: Vec<Ahead>,
    /// Copies of states that the plan makes.
    taken: Vec<Taken>,
    counts: Counts,
    next_order: u64,
    /// Rows that the last step could have had at most.
    budget: usize,
    /// What the last step computed.
    work: Work,
    /// Whether the planned step reads sources, and whether the last one did.
    reading: bool,
    has_read: bool,
}

/// What is left of a step's budget.
struct Budget {
    rows: usize,
    outputs: usize,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Scheduler {
        Scheduler {
            limits,
            blocks: BlockManager::new(limits.blocks).with_snapshots(limits.states.map_or(0, |s| s.snapshots)),
            waiting: Vec::new(),
            running: Vec::new(),
            shares: Shares::default(),
            pace: Pace::default(),
            plan: Vec::new(),
            ops: Vec::new(),
            ahead: Vec::new(),
            taken: Vec::new(),
            counts: Counts::default(),
            next_order: 0,
            budget: 0,
            work: Work::default(),
            reading: false,
            has_read: false,
        }
    }

    /// Queues a sequence, or refuses it if the queue is full.
    pub(crate) fn add(&mut self, mut sequence: Sequence) -> Result<()> {
        if self.waiting.len() >= self.limits.waiting {
            return Err(Error::QueueFull { limit: self.limits.waiting, retry_after: self.clear_time() });
        }
        sequence.order = self.next_order;
        self.next_order += 1;
        self.shares.enter(&sequence.standing.key);
        self.waiting.push(sequence);
        Ok(())
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The sequences that have blocks, in the order of admission.
    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// The sequences that wait, in no order.
    pub(crate) fn waiting(&self) -> &[Sequence] {
        &self.waiting
    }

    /// Blocks in use, those that cache a prefix (used or not), and all.
    pub(crate) fn blocks(&self) -> (usize, usize, usize) {
        (self.blocks.total() - self.blocks.free(), self.blocks.cached(), self.blocks.total())
    }

    /// Keys with something to do.
    pub(crate) fn keys(&self) -> usize {
        self.shares.len()
    }

    /// What happened so far.
    pub(crate) fn counts(&self) -> Counts {
        let (snapshots, snapshots_evicted) = self.blocks.snapshots().counts();
        Counts { snapshots, snapshots_evicted, ..self.counts }
    }

    /// What steps take.
    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Rows that the last step could have had at most.
    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// The step as planned, until [`Self::commit`].
    pub(crate) fn plan(&self) -> &[Chunk] {
        &self.plan
    }

    /// See [`Self::take_ops`].
    pub(crate) fn ops(&self) -> &[BlockOp] {
        &self.ops
    }

    /// How many of these blocks the prefix cache has on the device, from the first on.
    pub(crate) fn count_prefix(&self, digests: &[Digest]) -> usize {
        self.blocks.count_prefix(digests)
    }

    /// What is to be done to the cache before the step, or before the device rests.
    pub(crate) fn take_ops(&mut self) -> Vec<BlockOp> {
        // A place that is free may be written to by the step: after this.
        let left = self.blocks.left_snapshots().into_iter();
        self.ops.extend(left.map(|p| BlockOp::Leave { state: SNAPSHOT | p }));
        std::mem::take(&mut self.ops)
    }

    /// About how long it takes to compute the prompts that wait or come in.
    pub(crate) fn clear_time(&self) -> Duration {
        let work = self.waiting.iter().chain(&self.running).map(|s| Work::rows_from(s.held(), s.left()));
        let all = work.fold(Work::default(), Work::and);
        let each = if self.budget == 0 { self.limits.rows } else { self.budget };
        let steps = all.rows.div_ceil(each).min(1 << 30) as u32;
        self.pace.predict(all.of_rows(each.min(all.rows))).saturating_mul(steps)
    }

    /// Sequences whose deadline has passed.
    pub(crate) fn expired(&self, now: Duration) -> Vec<u64> {
        let late = |s: &&Sequence| s.standing.deadline.is_some_and(|d| d <= now);
        self.waiting.iter().chain(&self.running).filter(late).map(|s| s.id).collect()
    }

    /// Plans a step, `now` after any fixed moment. The chunks' sequences have the blocks that they need. The plan is empty
    /// only if nothing runs or waits, or all that run wait for their caller.
    pub(crate) fn schedule(&mut self, now: Duration, below: &dyn Below) {
        self.plan.clear();
        while self.admit(now, below) {}
        self.share_out(below);
        // All that run wait for siblings which have no room to run: the most junior make it. They do not take it again
        // themselves, though they were there before.
        let mut aside = Vec::new();
        while self.plan.is_empty() && !self.waiting.is_empty() {
            let Some(last) = (0..self.running.len()).max_by_key(|i| self.rank(*i)) else { break };
            self.preempt(last, &mut Budget { rows: 0, outputs: 0 });
            aside.extend(self.waiting.pop());
            while self.admit(now, below) {}
            self.share_out(below);
        }
        self.waiting.append(&mut aside);
        self.plan_snapshots();
    }

    /// Gives the rows of a step to those that run.
    fn share_out(&mut self, below: &dyn Below) {
        let mut left = Budget { rows: self.limits.rows, outputs: self.limits.outputs };
        let ids = |s: &Scheduler, keep: &dyn Fn(usize) -> bool| -> Vec<u64> {
            s.running.iter().filter(|s| keep(s.left())).map(|s| s.id).collect()
        };
        if self.share_sources(&mut left, below) {
            return;
        }
        if self.limits.whole {
            // The senior one fits always, so that none waits for ever.
            self.budget = left.rows;
            let mut all = ids(self, &|left| left > 0);
            all.sort_by_key(|id| self.index(*id).map(|i| self.rank(i)));
            return all.into_iter().for_each(|id| self.plan_chunk(id, usize::MAX, &mut left, below));
        }
        for id in ids(self, &|left| left == 1) {
            self.plan_chunk(id, 1, &mut left, below);
        }
        let decodes = self.planned();
        let Allowed { alone, whole } = self.pace.allowed(decodes, self.prompts(), self.limits.target);
        let more = self.pace.rows_beside(decodes, decodes.of_rows(1).seen, whole, left.rows);
        self.budget = decodes.rows + more.max(2 * PROMPT_LEAST).min(left.rows);
        let mut prompts = ids(self, &|left| left > 1);
        // The senior one has its quarter; who is short is soon done.
        let senior = prompts.iter().filter_map(|id| self.index(*id)).min_by_key(|i| self.rank(*i));
        let senior = senior.map(|i| self.running[i].id);
        if let Some(id) = senior {
            let until = alone + (whole - alone) / 4.0;
            self.plan_prompt(id, (until, PROMPT_LEAST, left.rows.div_ceil(4)), &mut left, below);
        }
        prompts.sort_by_key(|id| self.index(*id).map(|i| (self.running[i].level, self.running[i].left())));
        for (at, id) in prompts.into_iter().enumerate() {
            if left.rows == 0 {
                break;
            }
            let least = if at == 0 && senior != Some(id) { PROMPT_LEAST } else { 0 };
            self.plan_prompt(id, (whole, least, usize::MAX), &mut left, below);
        }
    }

    /// Sequences that wait for their first token and are as urgent as any that decodes.
    fn prompts(&self) -> usize {
        let decoding = self.running.iter().filter(|s| s.left() == 1).map(|s| s.level).min();
        let urgency = decoding.unwrap_or(u8::MAX);
        let prompts = self.running.iter().filter(|s| s.left() > 1);
        let waiting = self.waiting.iter().filter(|s| s.standing.class as u8 <= urgency);
        prompts.filter(|s| s.level <= urgency).count() + waiting.count()
    }

    /// Plans as many rows more of a prompt as let the step take `until`, from `least` to `most`.
    fn plan_prompt(
        &mut self,
        id: u64,
        (until, least, most): (f64, usize, usize),
        left: &mut Budget,
        below: &dyn Below,
    ) {
        let Some(i) = self.index(id) else { return };
        let s = &self.running[i];
        let planned = self.plan.iter().find(|c| c.running == i).map_or(0, |c| c.rows.len());
        let fit = self.pace.rows_beside(self.planned(), s.held() + planned, until, s.left().min(left.rows));
        self.plan_chunk(id, fit.clamp(least, most.max(least)), left, below);
    }

    /// What the planned step computes, guesses aside.
    fn planned(&self) -> Work {
        let chunk = |c: &Chunk| {
            let s = &self.running[c.running];
            Work::rows_from(c.rows.start - s.dropped, c.rows.len())
        };
        self.plan.iter().map(chunk).fold(Work::default(), Work::and)
    }

    /// What the last step computed, guesses included.
    pub(crate) fn work(&self) -> Work {
        self.work
    }

    /// Books the planned step as done: the cache holds its rows, and full blocks may be shared. Gives the plan back, whose
    /// indices hold until a sequence is removed.
    pub(crate) fn commit(&mut self, elapsed: Duration, below: &dyn Below) -> Vec<Chunk> {
        let planned = self.planned();
        let plan = std::mem::take(&mut self.plan);
        self.work = planned.of_rows(planned.rows + self.guessed());
        self.pace.observe(self.work, elapsed);
        self.has_read = self.reading;
        for chunk in &plan {
            let s = &mut self.running[chunk.running];
            s.computed = chunk.rows.end;
            if s.computed == s.source {
                s.dropped = s.source;
            }
            self.shares.charge(&s.standing.key, chunk.rows.len());
            self.publish(chunk.running, below);
        }
        self.keep_snapshots();
        plan
    }

    /// Lets others find the blocks that a running sequence has filled.
    fn publish(&mut self, running: usize, below: &dyn Below) {
        let s = &mut self.running[running];
        let full = s.computed / BLOCK_TOKENS;
        // A shortened sequence is no prefix of anything.
        if !self.limits.prefix_cache || s.dropped > 0 || full == s.published {
            return;
        }
        s.digests(full);
        for i in s.published..full {
            let digest = s.digests(full)[i];
            let (tokens, _) = s.tokens.as_chunks();
            self.blocks.publish(s.blocks[i], digest, &tokens[i], s.retention);
            if below.persists() && below.wants(&digest) {
                self.counts.saves += 1;
                self.ops.push(BlockOp::Save { block: s.blocks[i], digest });
            }
        }
        s.published = full;
    }

    /// Forgets the planned step, which was not run to its end. What the cache held before, it still holds.
    pub(crate) fn abandon(&mut self) {
        self.plan.clear();
        self.drop_ahead();
        self.drop_taken();
    }

    /// Adds a token to a sequence.
    pub(crate) fn push(&mut self, id: u64, token: u32) {
        if let Some(s) = self.running.iter_mut().chain(&mut self.waiting).find(|s| s.id == id) {
            s.tokens.push(token);
        }
    }

    /// A sequence of its own with the tokens of another; they share what is computed. Without a place among those that run it
    /// waits, to be computed again as far as the prefix cache does not have it.
    pub(crate) fn fork(&mut self, from: u64, id: u64) {
        let Some(s) = self.running.iter().chain(&self.waiting).find(|s| s.id == from) else { return };
        // Whoever wants hidden states has those of the tokens until here.
        let mut s = Sequence { id, states: false, ..s.clone() };
        // Blocks behind what is computed are room for guesses, and nobody else's.
        s.blocks.truncate(s.held_blocks());
        self.shares.enter(&s.standing.key);
        if self.running.len() < self.limits.running && !s.blocks.is_empty() {
            s.blocks.iter().for_each(|b| self.blocks.share(*b));
            if self.limits.states.is_some() {
                self.ops.push(BlockOp::Branch { from: state_of(from), to: s.state() });
            }
            self.running.push(s);
        } else {
            s.restart();
            self.waiting.push(s);
        }
    }

    /// The sequences that must be shortened before they can go on.
    pub(crate) fn full(&self) -> Vec<u64> {
        self.running.iter().filter(|s| s.is_full()).map(|s| s.id).collect()
    }

    /// Shortens a sequence that is full, given what its rows attended to; none if it had to give its blocks back. Blocks that
    /// others use, or may find, stay as they are: it gets others in their place. Between steps only.
    pub(crate) fn shorten(
        &mut self,
        id: u64,
        mass: &Mass,
        heads: usize,
        below: &dyn Below,
    ) -> Option<Shortened> {
        let mut i = self.index(id)?;
        let need = self.running[i].evictor.as_ref()?.kept().div_ceil(BLOCK_TOKENS);
        let (mut to, mut new) = (Vec::with_capacity(need), Vec::new());
        while to.len() < need {
            let held = self.running[i].blocks[to.len()];
            if !self.blocks.is_shared(held) {
                to.push(held);
            } else if let Some(block) = self.allocate(below) {
                to.push(block);
                new.push(block);
            } else if self.blocks.is_last_user(held) {
                // Nobody reads it now, and there is nothing else to write to.
                self.blocks.withdraw(held);
            } else {
                let victim = self.victim(i);
                self.preempt(victim, &mut Budget { rows: 0, outputs: 0 });
                match self.index(id) {
                    Some(now) => i = now,
                    None => {
                        self.blocks.release(&new);
                        return None;
                    }
                }
            }
        }
        let s = &mut self.running[i];
        let (keep, evicted) = s.evictor.as_mut()?.shorten(mass, heads);
        s.dropped += evicted.dropped;
        let from = std::mem::replace(&mut s.blocks, to.clone());
        let (request, computed) = (s.request, s.computed);
        let left: Vec<u32> = from.iter().copied().filter(|b| !to.contains(b)).collect();
        self.blocks.release(&left);
        self.counts.evictions += 1;
        self.counts.evicted += evicted.dropped as u64;
        Some(Shortened { request, evicted, keep, from, to, computed })
    }

    /// Takes a sequence out, wherever it is; its blocks are free at once. Not between `schedule` and `commit`.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Sequence> {
        let s = match self.waiting.iter().position(|s| s.id == id) {
            Some(i) => self.waiting.swap_remove(i),
            None => {
                let i = self.index(id)?;
                let mut s = self.running.remove(i);
                self.release(&mut s);
                s
            }
        };
        self.shares.leave(&s.standing.key);
        Some(s)
    }

    /// Drops every sequence and the prefix cache, whose contents may be spoiled.
    pub(crate) fn clear(&mut self) {
        self.plan.clear();
        self.drop_ahead();
        self.taken.clear();
        // What is held for sequences beside their blocks still has to go.
        self.ops.retain(|op| matches!(op, BlockOp::Leave { .. }));
        self.waiting.clear();
        for mut s in std::mem::take(&mut self.running) {
            self.release(&mut s);
        }
        self.shares = Shares::default();
        self.blocks.forget();
    }

    /// Checks that blocks and sequences agree. For tests, and whenever the engine is idle in a debug build.
    pub(crate) fn check_integrity(&self) -> std::result::Result<(), String> {
        if let Some(s) = self.waiting.iter().find(|s| !s.blocks.is_empty() || s.computed > 0) {
            return Err(format!("sequence {} waits with {} blocks", s.id, s.blocks.len()));
        }
        if let Some(s) = self.running.iter().find(|s| s.blocks.len() < s.held().div_ceil(BLOCK_TOKENS)) {
            return Err(format!("sequence {} has {} tokens in {} blocks", s.id, s.held(), s.blocks.len()));
        }
        if self.is_idle() && self.shares.len() > 0 {
            return Err(format!("{} keys have something to do, but there is nothing", self.shares.len()));
        }
        let tails = self.ahead.iter().flat_map(|a| a.tails.iter().map(|t| &t[..]));
        self.blocks.check_integrity(self.running.iter().map(|s| &s.blocks[..]).chain(tails))
    }

    fn index(&self, id: u64) -> Option<usize> {
        self.running.iter().position(|s| s.id == id)
    }

    /// The most senior of those that run never gives its blocks up, so that somebody always gets on.
    fn rank(&self, i: usize) -> (u8, u64, u64) {
        let s = &self.running[i];
        (s.level, s.order, s.id)
    }

    /// Blocks that those which run will need for the tokens that they have, and a spare one for each; of those that are at
    /// least so urgent.
    fn reserved(&self, urgency: u8) -> usize {
        let need = |s: &Sequence| 1 + s.extent().div_ceil(BLOCK_TOKENS).saturating_sub(s.blocks.len());
        self.running.iter().filter(|s| s.level <= urgency).map(need).sum()
    }

    /// Blocks that would be free if all that are less urgent were sent back.
    fn could_free(&self, urgency: u8) -> usize {
        let less = self.running.iter().filter(|s| s.level > urgency);
        less.flat_map(|s| &s.blocks).filter(|b| self.blocks.is_last_user(**b)).count()
    }

    /// Moves the one whose turn it is to the running ones, with the blocks that the prefix cache has on the device or below.
    /// Refuses if it would not fit beside those that run: it would be sent back before it had done anything. It may send
    /// less urgent ones back for that.
    fn admit(&mut self, now: Duration, below: &dyn Below) -> bool {
        let turn = (0..self.waiting.len())
            .min_by(|a, b| self.shares.compare(&self.waiting[*a], &self.waiting[*b], now));
        let Some(at) = turn else { return false };
        let urgency = level(&self.waiting[at].standing, now);
        let full = self.running.len() >= self.limits.running;
        if full && self.running.iter().all(|s| s.level <= urgency) {
            return false;
        }
        let s = &mut self.waiting[at];
        // The first row with logits has to be computed, cached or not.
        let most = if self.limits.prefix_cache { s.first_needed() / BLOCK_TOKENS } else { 0 };
        let digests = s.digests(most).to_vec();
        let (tokens, _) = s.tokens.as_chunks();
        let (found, state) = match self.limits.states {
            Some(_) => self.blocks.take_prefix_with_state(&digests, tokens),
            None => (self.blocks.take_prefix(&digests, tokens), None),
        };
        let needed = s.extent().div_ceil(BLOCK_TOKENS) - found.len();
        if needed + self.reserved(urgency) > self.blocks.free() + self.could_free(urgency) {
            self.blocks.release(&found);
            return false;
        }
        while self.running.len() >= self.limits.running
            || needed + self.reserved(u8::MAX) > self.blocks.free()
        {
            if !self.preempt_below(urgency) {
                break;
            }
        }
        // A preemption appends to those that wait, so `at` still names this one.
        let mut s = self.waiting.swap_remove(at);
        s.level = urgency;
        s.blocks = found;
        let on_device = s.blocks.len();
        for digest in digests[on_device..].iter().take_while(|d| below.has(d)) {
            let Some(block) = self.allocate(below) else { break };
            let (tokens, _) = s.tokens.as_chunks();
            self.ops.push(BlockOp::Load { block, digest: *digest });
            self.blocks.publish(block, *digest, &tokens[s.blocks.len()], s.retention);
            s.blocks.push(block);
        }
        let loaded = s.blocks.len() - on_device;
        self.counts.loads += loaded as u64;
        s.published = s.blocks.len();
        s.computed = s.blocks.len() * BLOCK_TOKENS;
        self.begin_with(&s, state);
        if s.admitted.is_none() {
            s.admitted = Some(now);
            s.cached = s.computed;
            self.counts.looked_up += s.rows() as u64;
            self.counts.hits += (on_device * BLOCK_TOKENS) as u64;
            self.counts.hits_below += (loaded * BLOCK_TOKENS) as u64;
        }
        self.running.push(s);
        true
    }

    /// A block to write to; what it cached goes below if that is worth it.
    fn allocate(&mut self, below: &dyn Below) -> Option<u32> {
        let a = self.blocks.allocate()?;
        if let Some(digest) = a.forgotten.filter(|d| below.wants(d)) {
            self.counts.saves += 1;
            self.ops.push(BlockOp::Save { block: a.block, digest });
        }
        Some(a.block)
    }

    /// Plans as many rows of a running sequence as the budget allows, `most` at most, and gets blocks for them. If it has
    /// a part of the step already, that part grows.
    fn plan_chunk(&mut self, id: u64, most: usize, left: &mut Budget, below: &dyn Below) {
        let Some(mut i) = self.index(id) else { return };
        let planned = self.plan.iter().position(|c| c.running == i);
        let s = &self.running[i];
        let start = planned.map_or(s.computed, |p| self.plan[p].rows.end);
        let wanted = s.output_rows();
        // Rows past the first `left.outputs` wanted ones have to wait for another step.
        let end_by_outputs = wanted.start.max(start) + left.outputs;
        let room = s.evictor.as_ref().map_or(usize::MAX, |e| e.room(start - s.dropped));
        let end = s.rows().min(start + left.rows.min(most).min(room)).min(end_by_outputs);
        let end = if s.reads() { s.source } else { end };
        let source = s.source;
        if s.reads() != self.reading || (self.reading && end - start > left.rows) {
            return;
        }
        if end <= start || (self.limits.whole && (start > 0 || end < s.rows())) {
            return;
        }
        let (first, past) = (start - s.dropped, end - s.dropped);
        let mut at = first / BLOCK_TOKENS;
        while at < past.div_ceil(BLOCK_TOKENS) {
            let held = self.running[i].blocks.get(at).copied();
            if held.is_some_and(|b| !self.blocks.is_shared(b)) {
                at += 1;
                continue;
            }
            let Some(block) = self.allocate(below) else {
                let victim = self.victim(i);
                self.preempt(victim, left);
                match self.index(id) {
                    Some(now) => i = now,
                    None => return,
                }
                continue;
            };
            match held {
                Some(old) => {
                    if at * BLOCK_TOKENS < first.max(source) {
                        self.counts.copies += 1;
                        self.ops.push(BlockOp::Copy { from: old, to: block });
                    }
                    self.running[i].blocks[at] = block;
                    self.blocks.release(&[old]);
                }
                None => self.running[i].blocks.push(block),
            }
            at += 1;
        }
        let outputs = wanted.start.clamp(start, end)..wanted.end.clamp(start, end);
        left.rows -= end - start;
        left.outputs -= outputs.len();
        match self.plan.iter_mut().find(|c| c.running == i) {
            Some(c) => {
                c.outputs = if c.outputs.is_empty() { outputs } else { c.outputs.start..outputs.end };
                c.rows.end = end;
            }
            None => self.plan.push(Chunk { running: i, rows: start..end, outputs }),
        }
    }

    /// What it costs to bring a sequence back, in rows, by the blocks of its own that it would free.
    fn cost(&self, i: usize) -> Option<usize> {
        let s = &self.running[i];
        // What others hold too stays, and is found again.
        let own = s.blocks.iter().filter(|b| self.blocks.is_last_user(**b)).count();
        let shared = s.blocks.len() - own;
        let found = match self.limits.states {
            _ if s.dropped > 0 => 0,
            Some(_) => self.blocks.up_to_snapshot(&s.blocks[..shared]) * BLOCK_TOKENS,
            None => shared * BLOCK_TOKENS,
        };
        (own > 0).then(|| s.computed.saturating_sub(found))
    }

    /// Who gives its blocks to a sequence that needs one: of those that are junior to it and would free some, the one that
    /// costs least to bring back; if they only share theirs, the most junior; without any, itself.
    fn victim(&self, i: usize) -> usize {
        let juniors = || (0..self.running.len()).filter(|v| self.rank(*v) > self.rank(i));
        let by_cost = juniors().filter_map(|v| Some((self.cost(v)?, Reverse(self.rank(v)), v)));
        let last = || juniors().max_by_key(|v| self.rank(*v));
        by_cost.min().map(|b| b.2).or_else(last).unwrap_or(i)
    }

    /// Sends the cheapest of those back that are less urgent than `urgency`; false if there is none. Before a step is
    /// planned only.
    fn preempt_below(&mut self, urgency: u8) -> bool {
        let less = (0..self.running.len()).filter(|i| self.running[*i].level > urgency);
        let Some((_, _, i)) = less.map(|v| (self.cost(v).unwrap_or(0), Reverse(self.rank(v)), v)).min()
        else {
            return false;
        };
        self.preempt(i, &mut Budget { rows: 0, outputs: 0 });
        true
    }

    /// Sends a sequence back to those that wait.
    fn preempt(&mut self, i: usize, left: &mut Budget) {
        let mut s = self.running.remove(i);
        if let Some(at) = self.plan.iter().position(|c| c.running == i) {
            let chunk = self.plan.remove(at);
            left.rows += chunk.rows.len();
            left.outputs += chunk.outputs.len();
        }
        self.plan.iter_mut().filter(|c| c.running > i).for_each(|c| c.running -= 1);
        self.counts.preemptions += 1;
        self.counts.given_up += s.computed as u64;
        self.release(&mut s);
        self.waiting.push(s);
    }

    fn release(&mut self, s: &mut Sequence) {
        self.blocks.release(&s.blocks);
        if self.limits.states.is_some() {
            self.ops.push(BlockOp::Leave { state: s.state() });
        }
        if s.evictor.is_some() {
            self.ops.push(BlockOp::Forget { slot: s.slot() });
        }
        s.restart();
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
