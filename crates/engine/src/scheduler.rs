//! Which sequences run in a step, and how many rows of each: a pure, synchronous state machine. It does no I/O, reads no
//! clock and draws no random numbers; the time is passed in.
//!
//! There is no prefill mode and no decode mode: every sequence has rows that are not computed yet, one when it decodes, many
//! when it is new, and a step has one budget for them. Sequences that need a single row come first, so that a long prompt
//! cannot stop the others; the rest goes to the others in the order of their admission, and then to the queue. Without a free
//! block, the sequence admitted last gives its blocks back and waits at the head of the queue, to be computed again.

use crate::block_manager::{BlockManager, Link};
use crate::sequence::Sequence;
use crate::{Error, Result};
use quarrel_ir::BLOCK_TOKENS;
use std::{collections::VecDeque, ops::Range, time::Duration};

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
}

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

/// The state machine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    blocks: BlockManager,
    waiting: VecDeque<Sequence>,
    /// In the order of admission.
    running: Vec<Sequence>,
    plan: Vec<Chunk>,
    preemptions: u64,
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
            blocks: BlockManager::new(limits.blocks),
            waiting: VecDeque::new(),
            running: Vec::new(),
            plan: Vec::new(),
            preemptions: 0,
        }
    }

    /// Queues a sequence, or refuses it if the queue is full.
    pub(crate) fn add(&mut self, sequence: Sequence) -> Result<()> {
        if self.waiting.len() >= self.limits.waiting {
            return Err(Error::QueueFull { limit: self.limits.waiting });
        }
        self.waiting.push_back(sequence);
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

    /// How many sequences wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Blocks in use, and all.
    pub(crate) fn blocks_used(&self) -> (usize, usize) {
        (self.blocks.total() - self.blocks.free(), self.blocks.total())
    }

    /// Sequences that had to give their blocks back so far.
    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The step as planned, until [`Self::commit`].
    pub(crate) fn plan(&self) -> &[Chunk] {
        &self.plan
    }

    /// Plans a step, `now` after any fixed moment. The chunks' sequences have the blocks that they need. The plan is empty
    /// only if nothing runs or waits.
    pub(crate) fn schedule(&mut self, now: Duration) {
        self.plan.clear();
        let mut left = Budget { rows: self.limits.rows, outputs: self.limits.outputs };
        let preemptions = self.preemptions;
        for single in [true, false] {
            let mut i = 0;
            // A preemption shortens the list from its end.
            while i < self.running.len() {
                let s = &self.running[i];
                if (s.rows() - s.computed == 1) == single && !self.is_planned(i) {
                    self.plan_chunk(i, &mut left);
                }
                i += 1;
            }
        }
        if self.preemptions == preemptions {
            while left.rows > 0 && self.running.len() < self.limits.running && self.admit(now) {
                self.plan_chunk(self.running.len() - 1, &mut left);
            }
        }
    }

    /// Books the planned step as done: the cache holds its rows, and full blocks may be shared. Gives the plan back, whose
    /// indices hold until a sequence is removed.
    pub(crate) fn commit(&mut self) -> Vec<Chunk> {
        let plan = std::mem::take(&mut self.plan);
        for chunk in &plan {
            let s = &mut self.running[chunk.running];
            s.computed = chunk.rows.end;
            if !self.limits.prefix_cache {
                continue;
            }
            let (full, _) = s.tokens[..s.computed].as_chunks::<BLOCK_TOKENS>();
            for (tokens, b) in full.iter().zip(&s.blocks).skip(s.published) {
                s.link = self.blocks.publish(*b, s.link, tokens);
            }
            s.published = full.len();
        }
        plan
    }

    /// Adds a token to a running sequence.
    pub(crate) fn push(&mut self, running: usize, token: u32) {
        self.running[running].tokens.push(token);
    }

    /// Takes a sequence out, wherever it is; its blocks are free at once. Not between `schedule` and `commit`.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Sequence> {
        if let Some(i) = self.waiting.iter().position(|s| s.id == id) {
            return self.waiting.remove(i);
        }
        let i = self.running.iter().position(|s| s.id == id)?;
        let mut s = self.running.remove(i);
        self.release(&mut s);
        Some(s)
    }

    /// Drops every sequence and the prefix cache, whose contents may be spoiled.
    pub(crate) fn clear(&mut self) {
        self.plan.clear();
        self.waiting.clear();
        for mut s in std::mem::take(&mut self.running) {
            self.release(&mut s);
        }
        self.blocks.forget();
    }

    /// Checks that blocks and sequences agree. For tests, and whenever the engine is idle in a debug build.
    pub(crate) fn check_integrity(&self) -> std::result::Result<(), String> {
        if let Some(s) = self.waiting.iter().find(|s| !s.blocks.is_empty() || s.computed > 0) {
            return Err(format!("sequence {} waits with {} blocks", s.id, s.blocks.len()));
        }
        if let Some(s) = self.running.iter().find(|s| s.blocks.len() < s.computed.div_ceil(BLOCK_TOKENS)) {
            return Err(format!("sequence {} has {} tokens in {} blocks", s.id, s.computed, s.blocks.len()));
        }
        self.blocks.check_integrity(self.running.iter().map(|s| &s.blocks[..]))
    }

    fn is_planned(&self, i: usize) -> bool {
        self.plan.iter().any(|c| c.running == i)
    }

    /// Moves the head of the queue to the running ones, with the blocks that the prefix cache has. Refuses if it would not
    /// fit now beside a spare block for each that runs: it would be sent back before it had done anything.
    fn admit(&mut self, now: Duration) -> bool {
        let Some(s) = self.waiting.front_mut() else { return false };
        // The first row with logits has to be computed, cached or not.
        let most = if self.limits.prefix_cache { s.output_rows().start / BLOCK_TOKENS } else { 0 };
        let found = self.blocks.take_prefix(&s.tokens, most);
        s.blocks.extend(found.iter().map(|f| f.0));
        let needed = s.rows().div_ceil(BLOCK_TOKENS) - found.len() + self.running.len();
        if needed > self.blocks.free() {
            self.blocks.release(&s.blocks);
            s.blocks.clear();
            return false;
        }
        s.link = found.last().map_or(Link::ROOT, |f| f.1);
        s.published = found.len();
        s.computed = found.len() * BLOCK_TOKENS;
        if s.admitted.is_none() {
            s.admitted = Some(now);
            s.cached = s.computed;
        }
        self.running.extend(self.waiting.pop_front());
        true
    }

    /// Plans as many rows of a running sequence as the budget allows, and gets blocks for them.
    fn plan_chunk(&mut self, i: usize, left: &mut Budget) {
        let s = &self.running[i];
        let (start, wanted) = (s.computed, s.output_rows());
        // Rows past the first `left.outputs` wanted ones have to wait for another step.
        let end_by_outputs = wanted.start.max(start) + left.outputs;
        let end = s.rows().min(start + left.rows).min(end_by_outputs);
        if end <= start {
            return;
        }
        while self.running[i].blocks.len() < end.div_ceil(BLOCK_TOKENS) {
            match self.blocks.allocate() {
                Some(b) => self.running[i].blocks.push(b),
                None => {
                    self.preempt_last(left);
                    if i >= self.running.len() {
                        return;
                    }
                }
            }
        }
        let outputs = wanted.start.clamp(start, end)..wanted.end.clamp(start, end);
        left.rows -= end - start;
        left.outputs -= outputs.len();
        self.plan.push(Chunk { running: i, rows: start..end, outputs });
    }

    /// Sends the sequence that was admitted last back to the head of the queue.
    fn preempt_last(&mut self, left: &mut Budget) {
        let Some(mut s) = self.running.pop() else { return };
        let i = self.running.len();
        if let Some(at) = self.plan.iter().position(|c| c.running == i) {
            let chunk = self.plan.remove(at);
            left.rows += chunk.rows.len();
            left.outputs += chunk.outputs.len();
        }
        self.release(&mut s);
        self.preemptions += 1;
        self.waiting.push_front(s);
    }

    fn release(&mut self, s: &mut Sequence) {
        self.blocks.release(&s.blocks);
        s.blocks.clear();
        (s.computed, s.published, s.link) = (0, 0, Link::ROOT);
    }
}
