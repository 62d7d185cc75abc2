//! The tree of guessed tokens behind a sequence, and how a step computes it: a branch is a sequence of its own whose blocks
//! are the sequence's up to the last full one and private ones after it. Only accepted tokens ever leave this tree.

use super::rates::Class;
use quarrel_ir::BLOCK_TOKENS;
use std::ops::Range;

/// The node of the sequence's last token, which is computed in any case.
pub(crate) const ROOT: usize = 0;

/// A guessed token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Node {
    pub(crate) token: u32,
    /// Always an earlier node; the root is its own.
    pub(crate) parent: usize,
    /// Tokens after the sequence's last.
    pub(crate) depth: usize,
    /// What the guess rests on.
    pub(crate) class: Class,
}

/// Guesses that share their beginnings. A node comes after its parent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

/// A run of nodes that continue each other, computed as one sequence of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Branch {
    /// The nodes, from the branching point on. Those of the first branch begin with the root.
    pub(crate) nodes: Vec<usize>,
    /// Depth of the first one, so the rows start at the root's position plus this.
    pub(crate) depth: usize,
}

/// The tree as rows of a step, branch after branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) branches: Vec<Branch>,
    /// Row of each node, counted from the tree's first row.
    pub(crate) row_of: Vec<usize>,
    /// Rows that a later branch needs too: the row, and the branch. By ascending row.
    pub(crate) shared: Vec<(usize, usize)>,
}

impl Tree {
    /// No guesses after `last`, the sequence's last token.
    pub(crate) fn new(last: u32) -> Tree {
        Tree { nodes: vec![Node { token: last, parent: ROOT, depth: 0, class: Class::default() }] }
    }

    /// Adds a guess after `parent`, or finds it there; of two reasons for a guess the better one counts.
    pub(crate) fn add(&mut self, parent: usize, token: u32, class: Class) -> usize {
        if let Some(node) = self.child(parent, token) {
            let known = &mut self.nodes[node].class;
            if class.prior() > known.prior() {
                *known = class;
            }
            return node;
        }
        let depth = self.nodes[parent].depth + 1;
        self.nodes.push(Node { token, parent, depth, class });
        self.nodes.len() - 1
    }

    /// The guess `token` after `parent`.
    pub(crate) fn child(&self, parent: usize, token: u32) -> Option<usize> {
        self.children(parent).find(|n| self.nodes[*n].token == token)
    }

    /// The guesses after a node, in the order in which they were added.
    pub(crate) fn children(&self, parent: usize) -> impl Iterator<Item = usize> + '_ {
        let later = self.nodes.iter().enumerate().skip(parent + 1);
        later.filter(move |(_, n)| n.parent == parent).map(|(i, _)| i)
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Guesses, the root not among them.
    pub(crate) fn guesses(&self) -> usize {
        self.nodes.len() - 1
    }

    /// The nodes from the root, which is not among them, to `node`.
    pub(crate) fn path(&self, mut node: usize) -> Vec<usize> {
        let mut path = vec![ROOT; self.nodes[node].depth];
        while node != ROOT {
            path[self.nodes[node].depth - 1] = node;
            node = self.nodes[node].parent;
        }
        path
    }

    /// The tree of some of the nodes; each one's parent is among them, and the root always is.
    pub(crate) fn keep(&self, wanted: impl Fn(usize) -> bool) -> Tree {
        let mut kept = Tree::new(self.nodes[ROOT].token);
        let mut place = vec![ROOT; self.nodes.len()];
        for (i, n) in self.nodes.iter().enumerate().skip(1).filter(|(i, _)| wanted(*i)) {
            place[i] = kept.nodes.len();
            kept.nodes.push(Node { parent: place[n.parent], ..*n });
        }
        kept
    }

    /// Keeps the first `most` branches: for want of blocks.
    pub(crate) fn keep_branches(&self, most: usize) -> Tree {
        let branches = self.branches();
        self.keep(|n| branches.iter().take(most.max(1)).any(|b| b.nodes.contains(&n)))
    }

    /// The first branch follows the first child of each node; each other child begins a branch of its own.
    pub(crate) fn branches(&self) -> Vec<Branch> {
        let mut branches = vec![Branch { nodes: vec![ROOT], depth: 0 }];
        for (i, n) in self.nodes.iter().enumerate().skip(1) {
            match branches.iter_mut().find(|b| b.nodes.last() == Some(&n.parent)) {
                Some(b) => b.nodes.push(i),
                None => branches.push(Branch { nodes: vec![i], depth: n.depth }),
            }
        }
        branches
    }

    pub(crate) fn layout(&self) -> Layout {
        let branches = self.branches();
        let mut row_of = vec![0; self.nodes.len()];
        for (row, node) in branches.iter().flat_map(|b| &b.nodes).enumerate() {
            row_of[*node] = row;
        }
        let mut shared = Vec::new();
        for (b, branch) in branches.iter().enumerate().skip(1) {
            let before = self.nodes[branch.nodes[0]].parent;
            shared.extend(std::iter::once(ROOT).chain(self.path(before)).map(|n| (row_of[n], b)));
        }
        shared.sort_unstable();
        Layout { branches, row_of, shared }
    }
}

impl Branch {
    /// The blocks that the branch does not share, by their place in its block table; `root` is the root's position. The first
    /// of them begins with a copy of the sequence's own where the root is not at its beginning.
    pub(crate) fn private_blocks(&self, root: usize) -> Range<usize> {
        root / BLOCK_TOKENS..(root + self.depth + self.nodes.len()).div_ceil(BLOCK_TOKENS)
    }

    /// The branch that computes `node`.
    pub(crate) fn of(branches: &[Branch], node: usize) -> usize {
        branches.iter().position(|b| b.nodes.contains(&node)).unwrap_or(0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tree from arbitrary numbers: each node hangs on an earlier one.
    pub(crate) fn tree(vocab: u32, most: usize) -> impl Strategy<Value = Tree> {
        prop::collection::vec((any::<prop::sample::Index>(), 0..vocab), 0..most).prop_map(|nodes| {
            let mut tree = Tree::new(0);
            for (parent, token) in nodes {
                tree.add(parent.index(tree.nodes.len()), token, Class::default());
            }
            tree
        })
    }

    #[test]
    fn branches_rows_and_blocks_of_a_small_tree() {
        let mut t = Tree::new(9);
        let c = Class::default();
        let a = t.add(ROOT, 1, c);
        let b = t.add(a, 2, c);
        let x = t.add(a, 3, c);
        let y = t.add(ROOT, 4, c);
        let z = t.add(x, 5, c);
        assert_eq!(t.add(a, 2, c), b);
        assert_eq!(t.path(z), [a, x, z]);
        assert_eq!(t.child(ROOT, 4), Some(y));
        let l = t.layout();
        let nodes: Vec<&[usize]> = l.branches.iter().map(|b| &b.nodes[..]).collect();
        assert_eq!(nodes, [&[ROOT, a, b][..], &[x, z], &[y]]);
        assert_eq!(l.branches.iter().map(|b| b.depth).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!(l.row_of, [0, 1, 2, 3, 5, 4]);
        // Root and `a` are stored for the second branch, the root for the third.
        assert_eq!(l.shared, [(0, 1), (0, 2), (1, 1)]);
        assert_eq!(l.branches[1].private_blocks(14), 0..2);
        assert_eq!(l.branches[1].private_blocks(12), 0..1);
        assert_eq!(l.branches[2].private_blocks(16), 1..2);
        let two = t.keep_branches(2);
        assert_eq!((two.guesses(), two.branches().len(), two.child(ROOT, 4)), (4, 2, None));
    }

    proptest! {
        #[test]
        fn every_node_is_computed_once_after_its_parent_at_its_place(t in tree(5, 20)) {
            let l = t.layout();
            let all: Vec<usize> = l.branches.iter().flat_map(|b| b.nodes.clone()).collect();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..t.nodes().len()).collect::<Vec<_>>());
            prop_assert!(l.shared.is_sorted());
            for (b, branch) in l.branches.iter().enumerate() {
                for (i, n) in branch.nodes.iter().enumerate() {
                    let node = t.nodes()[*n];
                    prop_assert_eq!(node.depth, branch.depth + i);
                    prop_assert_eq!(all[l.row_of[*n]], *n);
                    prop_assert_eq!(Branch::of(&l.branches, *n), b);
                    if i > 0 {
                        prop_assert_eq!(node.parent, branch.nodes[i - 1]);
                    }
                }
                // Its shared rows are its first node's ancestors, each once.
                let mut depths: Vec<usize> =
                    l.shared.iter().filter(|s| s.1 == b).map(|s| t.nodes()[all[s.0]].depth).collect();
                depths.sort_unstable();
                prop_assert_eq!(depths, (0..branch.depth).collect::<Vec<_>>());
            }
        }

        #[test]
        fn siblings_differ_and_what_is_kept_is_a_tree(t in tree(4, 20), most in 0usize..4) {
            for n in 0..t.nodes().len() {
                let mut tokens: Vec<u32> = t.children(n).map(|c| t.nodes()[c].token).collect();
                let count = tokens.len();
                tokens.sort_unstable();
                tokens.dedup();
                prop_assert_eq!(tokens.len(), count);
            }
            let kept = t.keep_branches(most);
            prop_assert!(kept.branches().len() <= most.max(1));
            for n in 1..kept.nodes().len() {
                // Its path is a path of the whole tree.
                let mut at = ROOT;
                for p in kept.path(n) {
                    at = t.child(at, kept.nodes()[p].token).unwrap();
                }
                prop_assert_eq!(t.nodes()[at].depth, kept.nodes()[n].depth);
            }
        }
    }
}
