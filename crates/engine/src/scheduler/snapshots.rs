//! Where sequences have states: which rows of a step a copy is made after, which block gets it, and how a sequence begins with
//! one.

use super::{BlockOp, Scheduler};
use crate::request::Retention;
use crate::sequence::{Goal, Sequence};
use crate::snapshots::SNAPSHOT;
use quarrel_ir::BLOCK_TOKENS;

/// The limits of copies of states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StateLimits {
    /// Copies that are kept.
    pub(crate) snapshots: usize,
    /// Blocks from one copy to the next on the way through a sequence, at least 1.
    pub(crate) every: usize,
}

impl StateLimits {
    /// Blocks between the copies of a sequence: more for one that would have more than half of all copies.
    fn spacing(self, blocks: usize) -> usize {
        let mut spacing = self.every.max(1);
        while blocks / spacing > (self.snapshots / 2).max(1) {
            spacing *= 2;
        }
        spacing
    }
}

/// A copy of a state that the planned step makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The sequence.
    pub(crate) id: u64,
    /// Its tokens until there: whole blocks.
    pub(crate) tokens: usize,
    place: u32,
    answer: Option<u64>,
}

impl Taken {
    /// The state that takes the copy.
    pub(crate) fn state(&self) -> u32 {
        SNAPSHOT | self.place
    }
}

impl Scheduler {
    /// Copies of states that the planned step makes, by chunk and row.
    pub(crate) fn taken(&self) -> &[Taken] {
        &self.taken
    }

    /// Copies that are kept.
    pub(crate) fn snapshots(&self) -> usize {
        self.blocks.snapshots().held()
    }

    /// Chooses where the planned step makes copies: at every so many blocks, at the last block before the first output, and at
    /// each block that an answer fills, where the next turn may begin.
    pub(super) fn plan_snapshots(&mut self) {
        self.drop_taken();
        let Some(limits) = self.limits.states.filter(|l| l.snapshots > 0 && self.limits.prefix_cache) else {
            return;
        };
        for chunk in &self.plan {
            let s = &mut self.running[chunk.running];
            // Its blocks are not found again.
            if s.retention == Retention::Discard {
                continue;
            }
            let (first, spacing) =
                (s.output_rows().start / BLOCK_TOKENS, limits.spacing(s.rows() / BLOCK_TOKENS));
            for n in chunk.rows.start / BLOCK_TOKENS + 1..=chunk.rows.end / BLOCK_TOKENS {
                let stays = n % spacing == 0;
                let wanted = if n <= first { n == first || stays } else { s.goal == Goal::Next };
                if !wanted || self.blocks.has_snapshot(&s.digests(n)[n - 1]) {
                    continue;
                }
                let answer = (n > first && !stays).then_some(s.id);
                if let Some(place) = self.blocks.take_snapshot(answer) {
                    self.taken.push(Taken { id: s.id, tokens: n * BLOCK_TOKENS, place, answer });
                }
            }
        }
    }

    /// Gives the copies that a step has made to their blocks, which are published.
    pub(super) fn keep_snapshots(&mut self) {
        for t in std::mem::take(&mut self.taken) {
            let n = t.tokens / BLOCK_TOKENS;
            let Some(s) = self.running.iter_mut().find(|s| s.id == t.id) else {
                self.blocks.free_snapshot(t.place);
                continue;
            };
            let digest = s.digests(n)[n - 1];
            self.blocks.put_snapshot(&digest, &s.tokens.as_chunks().0[n - 1], t.place, t.answer);
        }
    }

    /// Gives up copies of a step that is not run.
    pub(super) fn drop_taken(&mut self) {
        for t in std::mem::take(&mut self.taken) {
            self.blocks.free_snapshot(t.place);
        }
    }

    /// Lets a running sequence begin with a copy of a state.
    pub(super) fn begin_with(&mut self, s: &Sequence, place: Option<u32>) {
        self.ops.extend(place.map(|p| BlockOp::Branch { from: SNAPSHOT | p, to: s.state() }));
    }

    /// Lets a running sequence, whose tokens have become others, begin again as far on as a copy of its state allows.
    pub(super) fn begin_again(&mut self, i: usize) {
        let blocks = std::mem::take(&mut self.running[i].blocks);
        self.blocks.release(&blocks);
        let s = &mut self.running[i];
        s.restart();
        let most = if self.limits.prefix_cache { s.first_needed() / BLOCK_TOKENS } else { 0 };
        let digests = s.digests(most).to_vec();
        let (found, state) = self.blocks.take_prefix_with_state(&digests, s.tokens.as_chunks().0);
        (s.computed, s.published, s.blocks) = (found.len() * BLOCK_TOKENS, found.len(), found);
        let to = s.state();
        self.ops.extend(state.map(|p| BlockOp::Branch { from: SNAPSHOT | p, to }));
    }
}
