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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Goal;
    use proptest::prelude::*;

    fn limits() -> Limits {
        Limits { rows: 8, outputs: 3, running: 3, waiting: 4, blocks: 8, prefix_cache: true }
    }

    fn sequence(id: u64, n: usize) -> Sequence {
        Sequence::new(id, (0..n as u32).map(|t| t + 1000 * id as u32).collect(), Goal::Next)
    }

    fn step(s: &mut Scheduler) -> Vec<Chunk> {
        s.schedule(Duration::ZERO);
        s.commit()
    }

    fn chunk(running: usize, rows: Range<usize>, outputs: Range<usize>) -> Chunk {
        Chunk { running, rows, outputs }
    }

    #[test]
    fn decodes_come_first_and_prompts_share_what_is_left() {
        let mut s = Scheduler::new(limits());
        s.add(sequence(1, 20)).unwrap();
        s.add(sequence(2, 3)).unwrap();
        assert_eq!(step(&mut s), [chunk(0, 0..8, 8..8)]);
        assert_eq!(step(&mut s), [chunk(0, 8..16, 16..16)]);
        assert_eq!(step(&mut s), [chunk(0, 16..20, 19..20), chunk(1, 0..3, 2..3)]);
        s.push(0, 7);
        s.push(1, 8);
        s.add(sequence(3, 30)).unwrap();
        assert_eq!(step(&mut s), [chunk(0, 20..21, 20..21), chunk(1, 3..4, 3..4), chunk(2, 0..6, 6..6)]);
        s.push(0, 7);
        s.push(1, 8);
        assert_eq!(step(&mut s), [chunk(0, 21..22, 21..22), chunk(1, 4..5, 4..5), chunk(2, 6..12, 12..12)]);
    }

    #[test]
    fn scores_take_no_more_outputs_than_there_are() {
        let mut s = Scheduler::new(limits());
        s.add(Sequence::new(1, (0..12).collect(), Goal::Score { from: 5 })).unwrap();
        assert_eq!(step(&mut s), [chunk(0, 0..7, 4..7)]);
        assert_eq!(step(&mut s), [chunk(0, 7..10, 7..10)]);
        assert_eq!(step(&mut s), [chunk(0, 10..11, 10..11)]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut s = Scheduler::new(limits());
        (0..4).for_each(|id| s.add(sequence(id, 2)).unwrap());
        assert!(matches!(s.add(sequence(9, 2)), Err(Error::QueueFull { limit: 4 })));
        step(&mut s);
        s.add(sequence(9, 2)).unwrap();
    }

    #[test]
    fn the_last_admitted_is_preempted_and_comes_back_first() {
        let mut s = Scheduler::new(Limits { rows: 64, blocks: 5, ..limits() });
        s.add(sequence(1, 32)).unwrap();
        s.add(sequence(2, 16)).unwrap();
        s.add(sequence(3, 16)).unwrap();
        // The third would fit alone, but not beside a spare block for each that runs.
        assert_eq!(step(&mut s).len(), 2);
        s.push(0, 1);
        s.push(1, 1);
        step(&mut s);
        assert_eq!((s.blocks_used(), s.preemptions()), ((5, 5), 0));
        for i in 0..16 {
            s.push(0, i);
            s.push(1, i);
            step(&mut s);
            s.check_integrity().unwrap();
            if s.preemptions() > 0 {
                break;
            }
        }
        assert_eq!(s.running().iter().map(|s| s.id).collect::<Vec<_>>(), [1]);
        assert_eq!((s.preemptions(), s.waiting.iter().map(|s| s.id).collect::<Vec<_>>()), (1, vec![2, 3]));
        s.remove(1).unwrap();
        step(&mut s);
        assert_eq!(s.running()[0].id, 2);
    }

    /// A request of the simulation: prompt length, which prompts it shares a prefix with, how long it goes on, whether it
    /// is aborted instead, and steps until the next one arrives.
    type Load = (usize, u32, usize, Option<usize>, usize);

    fn load() -> impl Strategy<Value = Vec<Load>> {
        prop::collection::vec(
            (1usize..60, 0u32..3, 1usize..30, prop::option::of(0usize..12), 0usize..6),
            1..20,
        )
    }

    proptest! {
        /// Random workloads with aborts and full memory: limits hold in every step, rows come in order without a gap,
        /// integrity holds always, everyone finishes, and no block is left.
        #[test]
        fn workloads_finish_within_the_limits(
            load in load(), rows in 4usize..20, blocks in 6usize..12, prefix_cache: bool,
        ) {
            let limits = Limits { rows, outputs: 3, running: 3, waiting: 64, blocks, prefix_cache };
            let mut s = Scheduler::new(limits);
            let mut arrivals = load.iter().enumerate();
            let (mut wait, mut exhausted) = (0, false);
            // Per request: tokens to make, and steps until it is aborted.
            let mut left: Vec<(usize, Option<usize>)> = Vec::new();
            for steps in 0.. {
                prop_assert!(steps < 20_000, "no end");
                while wait == 0 && !exhausted {
                    let Some((id, (n, salt, more, abort, next))) = arrivals.next() else {
                        exhausted = true;
                        break;
                    };
                    let goal = if id % 4 == 3 && *n > 1 { Goal::Score { from: 1 + n / 2 } } else { Goal::Next };
                    let tokens = (0..*n as u32).map(|i| if i == 20 { id as u32 } else { i / 16 + salt }).collect();
                    s.add(Sequence::new(id as u64, tokens, goal)).unwrap();
                    left.push((*more, *abort));
                    wait = *next;
                }
                wait = wait.saturating_sub(1);
                if exhausted && s.is_idle() {
                    break;
                }
                let before: Vec<(u64, usize)> = s.running().iter().map(|s| (s.id, s.computed)).collect();
                s.schedule(Duration::ZERO);
                let plan = s.plan().to_vec();
                prop_assert_eq!(plan.is_empty(), s.is_idle());
                prop_assert!(plan.iter().map(|c| c.rows.len()).sum::<usize>() <= limits.rows);
                prop_assert!(plan.iter().map(|c| c.outputs.len()).sum::<usize>() <= limits.outputs);
                prop_assert!(s.running().len() <= limits.running);
                for c in &plan {
                    let q = &s.running()[c.running];
                    let planned_twice = plan.iter().filter(|d| d.running == c.running).count() > 1;
                    prop_assert!(!planned_twice && !c.rows.is_empty() && c.rows.start == q.computed);
                    prop_assert!(q.blocks.len() * BLOCK_TOKENS >= c.rows.end);
                    // Every sequence that decodes gets its row, or gave up its blocks.
                    let wanted = q.output_rows();
                    prop_assert_eq!(
                        c.outputs.clone().collect::<Vec<_>>(),
                        c.rows.clone().filter(|r| wanted.contains(r)).collect::<Vec<_>>()
                    );
                }
                for (i, q) in s.running().iter().enumerate() {
                    let decodes = q.rows() - q.computed == 1;
                    let had = before.contains(&(q.id, q.computed));
                    prop_assert!(!(decodes && had) || plan.iter().any(|c| c.running == i), "starved");
                }
                let mut over = Vec::new();
                for c in s.commit() {
                    let q = &s.running()[c.running];
                    let (id, goal) = (q.id, q.goal);
                    if c.rows.end == q.rows() {
                        let more = &mut left[id as usize].0;
                        *more -= 1;
                        if *more == 0 || goal != Goal::Next {
                            over.push(id);
                        } else {
                            s.push(c.running, 3);
                        }
                    }
                }
                for (id, (_, abort)) in left.iter_mut().enumerate() {
                    match abort {
                        Some(0) => over.push(id as u64),
                        Some(n) => *n -= 1,
                        None => {}
                    }
                }
                over.into_iter().for_each(|id| drop(s.remove(id)));
                if let Err(e) = s.check_integrity() {
                    prop_assert!(false, "{}", e);
                }
            }
            prop_assert_eq!(s.blocks_used(), (0, blocks));
        }
    }
}
