//! Guessed tokens behind the decodes of a planned step: blocks for them where nobody else needs any, and afterwards the branch
//! that came true takes its place in the sequence.

use super::{Below, BlockOp, Scheduler};
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
    pub(crate) fn guess(&mut self, running: usize, tree: Tree, below: &dyn Below) -> usize {
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
            // They were counted: each is there.
            let new: Vec<u32> = new.filter_map(|_| self.allocate(below)).collect();
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
    pub(super) fn guessed(&self) -> usize {
        self.ahead.iter().map(|a| a.tree.guesses()).sum()
    }

    /// Takes the guesses of the step that was committed; each goes back by [`Self::accept`].
    pub(crate) fn take_ahead(&mut self) -> Vec<Ahead> {
        std::mem::take(&mut self.ahead)
    }

    /// Ends the guesses of a committed step. The tokens on the path to `node` have been pushed; what was computed for them
    /// stays, on whichever branch it is.
    pub(crate) fn accept(&mut self, mut ahead: Ahead, node: usize, below: &dyn Below) {
        let Some(i) = self.index(ahead.id) else { return self.drop_tails(&ahead) };
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
        self.drop_tails(&ahead);
        self.publish(i, below);
    }

    /// Gives up all guesses, as when their step was not run to its end.
    pub(super) fn drop_ahead(&mut self) {
        for ahead in self.take_ahead() {
            self.drop_tails(&ahead);
        }
    }

    fn drop_tails(&mut self, ahead: &Ahead) {
        ahead.tails.iter().for_each(|t| self.blocks.release(t));
    }
}
