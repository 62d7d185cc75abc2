//! Guessed tokens behind the decodes of a planned step: blocks for them where nobody else needs any, and afterwards the branch
//! that came true takes its place in the sequence.

use super::{Below, BlockOp, Nothing, Scheduler};
use crate::sequence::{Goal, Sequence};
use crate::speculate::depth::Load;
use crate::speculate::tree::{Branch, Layout, Tree};
use quarrel_ir::BLOCK_TOKENS;

/// The guesses behind one decode of a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ahead {
    /// The sequence.
    pub(crate) id: u64,
    pub(crate) tree: Tree,
    pub(crate) layout: Layout,
    /// Position of the tree's root.
    pub(crate) root: usize,
    /// For each branch but the first the blocks that take the place of the sequence's, from its root's on.
    pub(crate) tails: Vec<Vec<u32>>,
}

impl Ahead {
    /// The block table of a branch of sequence `s`.
    pub(crate) fn blocks(&self, branch: usize, s: &Sequence) -> Vec<u32> {
        match branch.checked_sub(1) {
            None => s.blocks.clone(),
            Some(b) => [&s.blocks[..self.root / BLOCK_TOKENS], &self.tails[b]].concat(),
        }
    }
}

impl Scheduler {
    /// The planned step as guesses would join it, and how many may: those who wait for their next token and prompts come
    /// first.
    pub(crate) fn load(&self) -> Load {
        let rows = self.plan.iter().map(|c| c.rows.len()).sum::<usize>() + self.guessed();
        let outputs = self.plan.iter().map(|c| c.outputs.len()).sum::<usize>() + self.guessed();
        let decodes = self.plan.iter().filter(|c| self.is_decode(c.running)).count();
        let alone = self.plan.len() == 1 && self.limits.target.is_none();
        let most = if alone { self.limits.rows } else { self.budget.min(self.limits.rows) };
        let room = most.saturating_sub(rows).min(self.limits.outputs.saturating_sub(outputs));
        Load { rows, tokens: decodes.max(1), room }
    }

    /// Whether a running sequence only needs its next token.
    pub(crate) fn is_decode(&self, running: usize) -> bool {
        let s = &self.running[running];
        s.goal == Goal::Next && s.left() == 1
    }

    /// Puts guesses behind the planned decode of a sequence, as many branches as there are blocks for that nobody waits for.
    /// Gives the guesses that found room.
    pub(crate) fn guess(&mut self, running: usize, tree: Tree) -> usize {
        let (id, root) = (self.running[running].id, self.running[running].computed);
        let mut free = self.blocks.free().saturating_sub(self.reserved(u8::MAX));
        let held = self.running[running].blocks.len();
        let mut fits = 0;
        for branch in tree.branches() {
            let needed = match fits {
                0 => branch.private_blocks(root).end.saturating_sub(held),
                _ => branch.private_blocks(root).len(),
            };
            if needed > free {
                break;
            }
            free -= needed;
            fits += 1;
        }
        let tree = if fits == 0 { tree.keep(|_| false) } else { tree.keep_branches(fits) };
        let guesses = tree.guesses();
        if guesses == 0 {
            return 0;
        }
        let layout = tree.layout();
        let mut tails = Vec::new();
        for (b, branch) in layout.branches.iter().enumerate() {
            let blocks = branch.private_blocks(root);
            let new = if b == 0 { held.max(blocks.start)..blocks.end } else { blocks };
            // They were counted: each is there. What one cached is not worth keeping below for a guess.
            let new: Vec<u32> = new.filter_map(|_| self.allocate(&Nothing)).collect();
            let s = &mut self.running[running];
            if b == 0 {
                s.blocks.extend(new);
                continue;
            }
            if !root.is_multiple_of(BLOCK_TOKENS) {
                self.counts.copies += 1;
                self.ops.push(BlockOp::Copy { from: s.blocks[root / BLOCK_TOKENS], to: new[0] });
            }
            tails.push(new);
        }
        self.ahead.push(Ahead { id, tree, layout, root, tails });
        guesses
    }

    /// The guesses of the planned step, in the order of the plan's decodes that have some.
    pub(crate) fn ahead(&self) -> &[Ahead] {
        &self.ahead
    }

    /// Guessed rows of the planned step.
    pub(crate) fn guessed(&self) -> usize {
        self.ahead.iter().map(|a| a.tree.guesses()).sum()
    }

    /// Takes the guesses of a sequence in the step that was committed; they go back by [`Self::accept`] or [`Self::refuse`].
    pub(crate) fn take_ahead(&mut self, id: u64) -> Option<Ahead> {
        let at = self.ahead.iter().position(|a| a.id == id)?;
        Some(self.ahead.remove(at))
    }

    /// Ends the guesses of a committed step. The tokens on the path to `node` have been pushed; what was computed for them
    /// stays, on whichever branch it is.
    pub(crate) fn accept(&mut self, mut ahead: Ahead, node: usize, below: &dyn Below) {
        let Some(i) = self.index(ahead.id) else { return self.refuse(&ahead) };
        let s = &mut self.running[i];
        self.shares.charge(&s.standing.key, ahead.tree.guesses());
        s.computed = ahead.root + 1 + ahead.tree.nodes()[node].depth;
        if let Some(b) = Branch::of(&ahead.layout.branches, node).checked_sub(1) {
            let own = s.blocks.split_off(ahead.root / BLOCK_TOKENS);
            s.blocks.append(&mut ahead.tails[b]);
            self.blocks.release(&own);
        }
        let s = &mut self.running[i];
        let rest = s.blocks.split_off(s.rows().div_ceil(BLOCK_TOKENS).min(s.blocks.len()));
        self.blocks.release(&rest);
        self.refuse(&ahead);
        self.publish(i, below);
    }

    /// Gives up all guesses, as when their step was not run to its end.
    pub(super) fn drop_ahead(&mut self) {
        for ahead in std::mem::take(&mut self.ahead) {
            self.refuse(&ahead);
        }
    }

    /// Gives the blocks of guesses back, as when their logits cannot be read.
    pub(crate) fn refuse(&mut self, ahead: &Ahead) {
        ahead.tails.iter().for_each(|t| self.blocks.release(t));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Limits;
    use crate::speculate::rates::Class;
    use crate::speculate::tree::ROOT;
    use crate::speculate::tree::tests::tree;
    use proptest::prelude::*;
    use std::time::Duration;

    fn scheduler(blocks: usize, prompts: &[usize]) -> Scheduler {
        let mut s = Scheduler::new(Limits {
            rows: 64,
            outputs: 40,
            running: 3,
            waiting: 4,
            blocks,
            prefix_cache: true,
            target: None,
            whole: false,
            states: None,
        });
        for (id, n) in prompts.iter().enumerate() {
            let tokens = (0..*n as u32).map(|t| t + 100 * id as u32).collect();
            s.add(Sequence::new(id as u64, [0; 32], tokens, Goal::Next)).unwrap();
        }
        s
    }

    /// Runs the planned step; every sequence gets the token 7 after the tokens on the way to its node.
    fn finish(s: &mut Scheduler, nodes: &[usize]) {
        s.check_integrity().unwrap();
        let plan = s.commit(Duration::from_millis(3), &Nothing);
        let ids: Vec<u64> = s.ahead().iter().map(|a| a.id).collect();
        for (id, node) in ids.into_iter().zip(nodes) {
            let a = s.take_ahead(id).unwrap();
            let path: Vec<u32> = a.tree.path(*node).iter().map(|n| a.tree.nodes()[*n].token).collect();
            path.into_iter().for_each(|t| s.push(a.id, t));
            s.accept(a, *node, &Nothing);
        }
        let done = |s: &Scheduler, i: usize| s.running()[i].left() == 0;
        let ids: Vec<u64> =
            plan.iter().filter(|c| done(s, c.running)).map(|c| s.running()[c.running].id).collect();
        ids.into_iter().for_each(|id| s.push(id, 7));
        s.check_integrity().unwrap();
    }

    fn schedule(s: &mut Scheduler) {
        s.schedule(Duration::ZERO, &Nothing);
    }

    #[test]
    fn the_branch_that_comes_true_replaces_the_sequences_blocks() {
        let mut s = scheduler(12, &[30]);
        schedule(&mut s);
        finish(&mut s, &[]);
        schedule(&mut s);
        assert!(s.is_decode(0));
        assert_eq!(s.load(), Load { rows: 1, tokens: 1, room: 39 });
        let mut t = Tree::new(7);
        let a = t.add(ROOT, 1, Class::default());
        t.add(a, 2, Class::default());
        let b = t.add(a, 3, Class::default());
        let c = t.add(b, 4, Class::default());
        assert_eq!(s.guess(0, t), 4);
        assert_eq!(s.load().room, 35);
        let a = s.ahead()[0].clone();
        // The root is at 30: the second branch has a copy of block 1, and a block after it.
        assert_eq!((a.root, a.tails.len(), a.tails[0].len()), (30, 1, 2));
        let own = s.running()[0].blocks.clone();
        assert!(
            matches!(s.take_ops()[..], [BlockOp::Copy { from, to }] if from == own[1] && to == a.tails[0][0])
        );
        assert_eq!(a.blocks(1, &s.running()[0]), [own[0], a.tails[0][0], a.tails[0][1]]);
        finish(&mut s, &[c]);
        let q = &s.running()[0];
        assert_eq!(q.tokens[30..], [7, 1, 3, 4, 7]);
        assert_eq!((q.computed, &q.blocks[..]), (34, &[own[0], a.tails[0][0], a.tails[0][1]][..]));
        assert_eq!(q.published, 2);
        assert_eq!(s.blocks().0, 3);
    }

    #[test]
    fn guesses_take_no_block_that_somebody_waits_for() {
        // Two sequences of two blocks each; a spare one for each is kept.
        let mut s = scheduler(6, &[30, 30]);
        schedule(&mut s);
        finish(&mut s, &[]);
        schedule(&mut s);
        let mut t = Tree::new(7);
        (0..4).fold(ROOT, |at, i| t.add(at, i, Class::default()));
        assert_eq!(s.guess(0, t.clone()), 0);
        // Two more rows fit into the last block.
        let short = t.keep(|n| n == 1);
        assert_eq!(s.guess(1, short), 1);
        s.abandon();
        assert_eq!(s.blocks().0, 4);
        s.check_integrity().unwrap();
    }

    proptest! {
        #[test]
        fn whatever_comes_true_no_block_is_lost(
            trees in prop::collection::vec((tree(9, 12), any::<prop::sample::Index>()), 1..30),
            blocks in 6usize..20, left in prop::collection::vec(any::<bool>(), 30),
        ) {
            let mut s = scheduler(blocks, &[5, 17, 32]);
            for (i, (t, node)) in trees.iter().enumerate() {
                schedule(&mut s);
                let mut nodes = Vec::new();
                let decodes: Vec<usize> =
                    s.plan().iter().map(|c| c.running).filter(|r| s.is_decode(*r)).collect();
                for running in decodes {
                    let room = s.load().room;
                    let guesses = s.guess(running, t.keep(|n| n <= room));
                    prop_assert!(guesses <= room);
                    if guesses > 0 {
                        nodes.push(node.index(guesses + 1));
                    }
                }
                let rows: usize = s.plan().iter().map(|c| c.rows.len()).sum();
                prop_assert!(rows + s.guessed() <= 64);
                s.take_ops();
                if left[i] {
                    s.abandon();
                    prop_assert_eq!(s.check_integrity(), Ok(()));
                } else {
                    finish(&mut s, &nodes);
                }
                // None may outgrow the pool.
                let long: Vec<u64> = s.running().iter().filter(|q| q.tokens.len() > 60).map(|q| q.id).collect();
                long.into_iter().for_each(|id| drop(s.remove(id)));
            }
            (0..3).for_each(|id| drop(s.remove(id)));
            prop_assert_eq!(s.check_integrity(), Ok(()));
            prop_assert_eq!(s.blocks().0, 0);
        }
    }
}
