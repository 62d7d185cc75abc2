//! Going back: a running sequence loses its last tokens with the blocks that held them; and sequences that are computed beside
//! another for its sake.

use super::Scheduler;
use crate::request::Retention;
use crate::sequence::{Goal, Sequence};
use quarrel_ir::BLOCK_TOKENS;

impl Scheduler {
    /// Takes the last `back` tokens of a sequence away, with what was computed of them and of the token before, whose logits
    /// are wanted once more. Blocks that it filled may still be found by others, who have these tokens; it writes to copies.
    /// Between steps only; the sequence was never shortened in the cache.
    pub(crate) fn rewind(&mut self, id: u64, back: usize) {
        let (running, states) = (self.index(id), self.limits.states.is_some());
        let Some(s) = self.running.iter_mut().chain(&mut self.waiting).find(|s| s.id == id) else { return };
        debug_assert!(
            back < s.tokens.len() - s.source && (s.dropped == 0 || s.source > 0),
            "{back} of {}",
            s.tokens.len()
        );
        s.tokens.truncate(s.tokens.len().saturating_sub(back).max(1));
        s.digests.truncate(s.tokens.len() / BLOCK_TOKENS);
        if states {
            // A state knows no token before its last.
            return running.into_iter().for_each(|i| self.begin_again(i));
        }
        s.computed = s.computed.min(s.tokens.len() - 1);
        s.published = s.published.min(s.computed / BLOCK_TOKENS);
        let rest = s.blocks.split_off(s.held_blocks().min(s.blocks.len()));
        self.blocks.release(&rest);
    }

    /// Queues a sequence whose tokens are scored from position `from` on, with the standing and the model of another.
    pub(crate) fn score_beside(&mut self, of: u64, id: u64, tokens: Vec<u32>, from: usize) {
        let Some(s) = self.running.iter().chain(&self.waiting).find(|s| s.id == of) else { return };
        let score = Sequence {
            request: s.request,
            standing: s.standing.clone(),
            retention: Retention::Discard,
            adapter: s.adapter,
            beside: true,
            order: s.order,
            ..Sequence::new(id, s.root, tokens, Goal::Score { from })
        };
        self.shares.enter(&score.standing.key);
        self.waiting.push(score);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{BlockOp, Limits, Nothing, StateLimits};
    use proptest::prelude::*;
    use std::time::Duration;

    fn scheduler(blocks: usize) -> Scheduler {
        Scheduler::new(Limits {
            rows: 64,
            outputs: 8,
            running: 4,
            waiting: 8,
            blocks,
            prefix_cache: true,
            target: None,
            whole: false,
            states: None,
        })
    }

    fn step(s: &mut Scheduler, token: u32) {
        s.schedule(Duration::ZERO, &Nothing);
        s.take_ops();
        let plan = s.commit(Duration::from_millis(1), &Nothing);
        let done = |i: usize| (s.running()[i].left() == 0).then_some(s.running()[i].id);
        let ids: Vec<u64> = plan.iter().filter_map(|c| done(c.running)).collect();
        ids.into_iter().for_each(|id| s.push(id, token));
        s.check_integrity().unwrap();
    }

    #[test]
    fn tokens_go_with_their_blocks_and_what_others_find_is_copied() {
        let mut s = scheduler(12);
        s.add(Sequence::new(1, [0; 32], (0..30).collect(), Goal::Next)).unwrap();
        (0..6).for_each(|_| step(&mut s, 7));
        let q = &s.running()[0];
        assert_eq!((q.tokens.len(), q.computed, q.published, q.blocks.len()), (36, 35, 2, 3));
        let before = q.blocks.clone();
        s.rewind(1, 5);
        let q = &s.running()[0];
        // Row 30 is to be computed again, in the second block, which is published.
        assert_eq!((q.tokens.len(), q.computed, q.published), (31, 30, 1));
        assert_eq!(q.blocks, before[..2]);
        s.schedule(Duration::ZERO, &Nothing);
        assert!(matches!(s.take_ops()[..], [BlockOp::Copy { from, .. }] if from == before[1]));
        assert_eq!(s.plan()[0].rows, 30..31);
        s.commit(Duration::from_millis(1), &Nothing);
        s.check_integrity().unwrap();
        s.remove(1).unwrap();
        assert_eq!(s.blocks().0, 0);
    }

    #[test]
    fn a_state_goes_back_to_its_last_copy() {
        let states = Some(StateLimits { snapshots: 4, every: 9 });
        let mut s = Scheduler::new(Limits { states, ..scheduler(12).limits });
        s.add(Sequence::new(1, [0; 32], (0..40).collect(), Goal::Next)).unwrap();
        (0..20).for_each(|_| step(&mut s, 7));
        // At the prompt's last whole block, and at the answer's, which replaced the one before.
        let q = &s.running()[0];
        assert_eq!((q.tokens.len(), q.computed, s.snapshots(), s.counts().snapshots), (60, 59, 2, 2));
        let state = q.state();
        for (back, computed) in [(3, 48), (10, 32), (14, 32), (30, 0)] {
            s.rewind(1, back.min(s.running()[0].tokens.len() - 1));
            let q = &s.running()[0];
            assert_eq!((q.computed, q.published, q.blocks.len()), (computed, computed / 16, computed / 16));
            let begins =
                s.take_ops().iter().any(|op| matches!(op, BlockOp::Branch { to, .. } if *to == state));
            assert_eq!(begins, computed > 0, "{back}");
            s.check_integrity().unwrap();
        }
        step(&mut s, 7);
        s.remove(1).unwrap();
        assert_eq!(s.blocks().0, 0);
    }

    #[test]
    fn a_score_runs_beside_and_waits_for_nobody() {
        let mut s = scheduler(12);
        s.add(Sequence::new(1, [0; 32], (0..30).collect(), Goal::Next)).unwrap();
        s.schedule(Duration::ZERO, &Nothing);
        s.commit(Duration::from_millis(1), &Nothing);
        s.score_beside(1, 2, vec![9, 8, 7], 1);
        s.schedule(Duration::ZERO, &Nothing);
        assert_eq!(s.plan().len(), 1);
        let c = s.plan()[0].clone();
        assert_eq!((s.running()[c.running].id, c.rows, c.outputs), (2, 0..2, 0..2));
        s.commit(Duration::from_millis(1), &Nothing);
        s.remove(2).unwrap();
        s.remove(1).unwrap();
        s.check_integrity().unwrap();
    }

    #[test]
    fn with_one_place_the_answer_leaves_it_to_its_score_and_comes_back() {
        let mut s = Scheduler::new(Limits { running: 1, ..scheduler(12).limits });
        s.add(Sequence::new(1, [0; 32], (0..30).collect(), Goal::Next)).unwrap();
        s.schedule(Duration::ZERO, &Nothing);
        s.commit(Duration::from_millis(1), &Nothing);
        s.score_beside(1, 2, vec![9, 8, 7], 1);
        s.schedule(Duration::ZERO, &Nothing);
        assert_eq!((s.running()[0].id, s.plan().len()), (2, 1));
        s.commit(Duration::from_millis(1), &Nothing);
        s.remove(2).unwrap();
        s.push(1, 5);
        s.schedule(Duration::ZERO, &Nothing);
        assert_eq!((s.running()[0].id, s.plan().len()), (1, 1));
        s.check_integrity().unwrap();
    }

    #[test]
    fn of_two_pairs_that_hold_each_other_up_one_gets_on() {
        let mut s = Scheduler::new(Limits { running: 2, ..scheduler(12).limits });
        // Of each pair one runs and waits for the other, which has no place.
        for id in [1, 3] {
            s.add(Sequence::new(id, [0; 32], vec![7; 20], Goal::Next)).unwrap();
            s.schedule(Duration::ZERO, &Nothing);
            s.commit(Duration::from_millis(1), &Nothing);
        }
        for id in [2, 4] {
            s.add(Sequence::new(id, [1; 32], vec![8; 20], Goal::Next)).unwrap();
        }
        s.schedule(Duration::ZERO, &Nothing);
        let running: Vec<u64> = s.running().iter().map(|q| q.id).collect();
        assert_eq!((running, s.plan().len()), (vec![1, 2], 1));
    }

    proptest! {
        #[test]
        fn whatever_is_taken_back_no_block_is_lost(
            moves in prop::collection::vec((0u64..3, 0usize..24), 1..60), blocks in 8usize..20,
        ) {
            let mut s = scheduler(blocks);
            for id in 0..3 {
                s.add(Sequence::new(id, [0; 32], (0..20 + id as u32).collect(), Goal::Next)).unwrap();
            }
            for (n, (id, back)) in moves.into_iter().enumerate() {
                step(&mut s, n as u32 % 5);
                let all = s.running().iter().chain(s.waiting());
                let length = all.filter(|q| q.id == id).map(|q| q.tokens.len()).next().unwrap();
                s.rewind(id, back.min(length - 1));
                prop_assert_eq!(s.check_integrity(), Ok(()));
            }
            (0..3).for_each(|id| drop(s.remove(id)));
            prop_assert_eq!(s.check_integrity(), Ok(()));
            prop_assert_eq!(s.blocks().0, 0);
        }
    }
}
