//! Steps that read sources: the prompts of a model whose encoder reads them whole, before its decoder answers. What is read lies in
//! the blocks that the answer's tokens are written to.

use super::{Below, Budget, Scheduler};

impl Scheduler {
    /// Plans a step of the sources that are to be read, the senior first, if it is their turn; they take turns with those who
    /// decode. Says whether it was.
    pub(super) fn share_sources(&mut self, left: &mut Budget, below: &dyn Below) -> bool {
        let unread = self.running.iter().any(|s| s.reads());
        let others = self.running.iter().any(|s| !s.reads() && s.left() > 0);
        self.reading = unread && !(self.has_read && others);
        if !self.reading {
            return false;
        }
        self.budget = left.rows;
        let mut all: Vec<usize> = (0..self.running.len()).filter(|i| self.running[*i].reads()).collect();
        all.sort_by_key(|i| self.rank(*i));
        let ids: Vec<u64> = all.into_iter().map(|i| self.running[i].id).collect();
        ids.into_iter().for_each(|id| self.plan_chunk(id, usize::MAX, left, below));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Retention;
    use crate::scheduler::{BlockOp, Limits, Nothing};
    use crate::sequence::{Goal, Sequence};
    use proptest::prelude::*;
    use quarrel_ir::BLOCK_TOKENS;
    use std::time::Duration;

    /// Of a sequence.
    type Rows = (u64, std::ops::Range<usize>);

    fn scheduler(blocks: usize, running: usize) -> Scheduler {
        Scheduler::new(Limits {
            rows: 64,
            outputs: 8,
            running,
            waiting: 16,
            blocks,
            prefix_cache: false,
            target: None,
            whole: false,
            states: None,
        })
    }

    fn sequence(id: u64, source: usize) -> Sequence {
        let tokens = (0..=source as u32).collect();
        Sequence { source, retention: Retention::Usual, ..Sequence::new(id, [0; 32], tokens, Goal::Next) }
    }

    /// One step: what was planned, and the copies before it. Those that are through get a token more.
    fn step(s: &mut Scheduler) -> (Vec<Rows>, Vec<(u32, u32)>) {
        s.schedule(Duration::ZERO, &Nothing);
        let copies = s.take_ops().into_iter().filter_map(|op| match op {
            BlockOp::Copy { from, to } => Some((from, to)),
            _ => None,
        });
        let copies = copies.collect();
        let reading: Vec<bool> = s.plan().iter().map(|c| s.running()[c.running].reads()).collect();
        assert!(reading.iter().all(|r| *r == reading[0]), "sources and tokens in one step");
        for c in s.plan() {
            let q = &s.running()[c.running];
            if q.reads() {
                assert_eq!((c.rows.clone(), c.outputs.len()), (0..q.source, 0), "a source is read whole");
            }
            let held = q.source.max(c.rows.end.saturating_sub(q.source));
            assert!(
                q.blocks.len() >= held.div_ceil(BLOCK_TOKENS),
                "{held} positions in {} blocks",
                q.blocks.len()
            );
        }
        let plan = s.commit(Duration::from_millis(1), &Nothing);
        let made = plan.iter().map(|c| (s.running()[c.running].id, c.rows.clone())).collect();
        let through = |c: &super::super::Chunk| {
            let q = &s.running()[c.running];
            (q.left() == 0).then_some(q.id)
        };
        let ids: Vec<u64> = plan.iter().filter_map(through).collect();
        ids.into_iter().for_each(|id| s.push(id, 7));
        s.check_integrity().unwrap();
        (made, copies)
    }

    #[test]
    fn a_source_is_read_once_and_the_answer_begins_at_its_own_position_0() {
        let mut s = scheduler(12, 4);
        s.add(sequence(1, 40)).unwrap();
        assert_eq!(step(&mut s).0, [(1, 0..40)]);
        let q = &s.running()[0];
        assert_eq!((q.computed, q.held(), q.left(), q.blocks.len()), (40, 0, 1, 3));
        for n in 40..48 {
            assert_eq!(step(&mut s).0, [(1, n..n + 1)]);
        }
        assert_eq!(
            (s.running()[0].held(), s.running()[0].blocks.len()),
            (8, 3),
            "the answer uses the same blocks"
        );
        (0..40).for_each(|_| drop(step(&mut s)));
        assert_eq!((s.running()[0].held(), s.running()[0].blocks.len()), (48, 3));
        step(&mut s);
        assert_eq!(s.running()[0].blocks.len(), 4);
        // Going back frees nothing of the source.
        s.rewind(1, 45);
        assert_eq!((s.running()[0].held(), s.running()[0].blocks.len()), (4, 3));
    }

    #[test]
    fn a_fork_copies_the_block_with_its_part_of_the_source() {
        let mut s = scheduler(12, 4);
        s.add(sequence(1, 20)).unwrap();
        step(&mut s);
        s.fork(1, 2);
        let (made, copies) = step(&mut s);
        assert_eq!(made.len(), 2);
        let old = s.running().iter().map(|q| q.blocks[0]).collect::<Vec<_>>();
        assert!(copies.len() == 1 && old.contains(&copies[0].0) && old.contains(&copies[0].1), "{copies:?}");
        assert_eq!(
            s.running()[0].blocks[1],
            s.running()[1].blocks[1],
            "the rest is shared until it is written"
        );
    }

    #[test]
    fn those_who_decode_and_new_sources_take_turns() {
        let mut s = scheduler(40, 8);
        s.add(sequence(1, 10)).unwrap();
        step(&mut s);
        let mut kinds = Vec::new();
        for id in 2..6 {
            s.add(sequence(id, 60)).unwrap();
            let (made, _) = step(&mut s);
            kinds.push(made.iter().any(|(_, rows)| rows.start == 0));
        }
        assert_eq!(kinds, [false, true, false, true]);
    }

    proptest! {
        #[test]
        fn every_answer_is_made_whatever_is_preempted_forked_and_taken_back(
            sources in prop::collection::vec(1usize..64, 1..6),
            moves in prop::collection::vec((0u64..6, 0u8..4), 0..40),
            blocks in 6usize..14,
        ) {
            let mut s = scheduler(blocks, 3);
            for (id, n) in sources.iter().enumerate() {
                s.add(sequence(id as u64, *n)).unwrap();
            }
            let mut moves = moves.into_iter();
            let mut next = 100;
            for _ in 0..1000 {
                if s.is_idle() {
                    break;
                }
                let (made, _) = step(&mut s);
                prop_assert!(!made.is_empty(), "nobody gets on");
                if let Some((id, what)) = moves.next() {
                    let all = s.running().iter().chain(s.waiting());
                    let answer = all.filter(|q| q.id == id).map(|q| q.tokens.len() - q.source - 1).next();
                    match (what, answer) {
                        (0, Some(_)) if next < 104 => {
                            s.fork(id, next);
                            next += 1;
                        }
                        (1, Some(n)) if n > 1 => s.rewind(id, n / 2),
                        _ => {}
                    }
                    prop_assert_eq!(s.check_integrity(), Ok(()));
                }
                let over = |q: &&Sequence| q.tokens.len() > q.source + 24;
                let done: Vec<u64> = s.running().iter().chain(s.waiting()).filter(over).map(|q| q.id).collect();
                done.into_iter().for_each(|id| drop(s.remove(id)));
            }
            prop_assert!(s.is_idle());
            prop_assert_eq!(s.blocks().0, 0);
        }
    }
}
