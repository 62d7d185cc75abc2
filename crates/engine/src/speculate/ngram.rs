//! The n-gram cache: how answers of this engine went on after two to four tokens, shared by its requests. A fixed number of
//! contexts in sets of four, the one not met for longest making room; counts saturate. Which requests came in which order
//! decides what it holds, and nothing else does: no random hash, no clock.

use super::rates::Class;
use super::tree::{ROOT, Tree};

/// Tokens of the longest context, and of the shortest.
const ORDER_MAX: usize = 4;
const ORDER_MIN: usize = 2;
/// Contexts in a set, and continuations of a context.
const WAYS: usize = 4;
/// At this count all counts of a context are halved, so that a new habit can win.
const COUNT_MAX: u16 = 64;

/// A context with its continuations; `count` 0 is an empty place.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Tells the contexts of a set apart; two contexts may still have the same, which costs a wrong guess.
    tag: u32,
    /// When it was met last, in tokens learnt.
    used: u32,
    next: [Next; WAYS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Next {
    token: u32,
    count: u16,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Ngrams {
    /// Empty until something is learnt.
    sets: Vec<[Entry; WAYS]>,
    size: usize,
    learnt: u32,
}

impl Ngrams {
    /// A cache of so many contexts, rounded up to a power of two; each takes 40 bytes.
    pub(crate) fn new(contexts: usize) -> Ngrams {
        Ngrams { sets: Vec::new(), size: contexts.div_ceil(WAYS).next_power_of_two(), learnt: 0 }
    }

    /// Learns that the last of `tokens` followed those before it.
    pub(crate) fn learn(&mut self, tokens: &[u32]) {
        let Some((token, before)) = tokens.split_last() else { return };
        if self.sets.is_empty() {
            self.sets = vec![[Entry::default(); WAYS]; self.size];
        }
        self.learnt = self.learnt.wrapping_add(1);
        for order in ORDER_MIN..=ORDER_MAX.min(before.len()) {
            let (set, tag) = self.place(&before[before.len() - order..]);
            let set = &mut self.sets[set];
            let way = set.iter().position(|e| e.tag == tag && e.next[0].count > 0).unwrap_or_else(|| {
                // Distances, so that the counter may wrap.
                let idle = |e: &Entry| match e.next[0].count {
                    0 => u64::MAX,
                    _ => u64::from(self.learnt.wrapping_sub(e.used)),
                };
                let oldest = (0..WAYS).rev().max_by_key(|w| idle(&set[*w])).unwrap_or(0);
                set[oldest] = Entry { tag, ..Entry::default() };
                oldest
            });
            set[way].used = self.learnt;
            set[way].count(*token);
        }
    }

    /// Adds the likeliest continuations of `tokens` to the tree, likeliest first, until it has `most` guesses.
    pub(crate) fn propose(&self, tokens: &[u32], most: usize, tree: &mut Tree) {
        if self.sets.is_empty() {
            return;
        }
        // Guesses that may come next: reach, parent, token, class.
        let mut open: Vec<(f32, usize, u32, Class)> = Vec::new();
        let expand = |open: &mut Vec<_>, tree: &Tree, node: usize, reach: f32| {
            for (token, class) in self.after(tokens, tree, node).into_iter().flatten() {
                open.push((reach * class.prior(), node, token, class));
            }
        };
        expand(&mut open, tree, ROOT, 1.0);
        while tree.guesses() < most && !open.is_empty() {
            // The first of equals, which is the likelier sibling.
            let mut best = 0;
            for i in 1..open.len() {
                if open[i].0 > open[best].0 {
                    best = i;
                }
            }
            let (reach, parent, token, class) = open.remove(best);
            let node = tree.add(parent, token, class);
            expand(&mut open, tree, node, reach);
        }
    }

    /// The continuations of the longest known context that ends with `node`.
    fn after(&self, tokens: &[u32], tree: &Tree, node: usize) -> [Option<(u32, Class)>; WAYS] {
        let path = tree.path(node);
        let path = path.iter().rev().map(|n| tree.nodes()[*n].token);
        let mut context: Vec<u32> = path.chain(tokens.iter().rev().copied()).take(ORDER_MAX).collect();
        context.reverse();
        for order in (ORDER_MIN..=context.len()).rev() {
            let (set, tag) = self.place(&context[context.len() - order..]);
            if let Some(e) = self.sets[set].iter().find(|e| e.tag == tag && e.next[0].count > 0) {
                let total: u32 = e.next.iter().map(|n| u32::from(n.count)).sum();
                let class = |n: &Next| (n.token, Class::ngram(order, n.count.into(), total));
                return e.next.each_ref().map(|n| (n.count > 0).then(|| class(n)));
            }
        }
        [None; WAYS]
    }

    fn place(&self, context: &[u32]) -> (usize, u32) {
        let mix = |h: u64, t: &u32| (h ^ u64::from(*t)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let h = context.iter().fold(context.len() as u64, mix).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((h >> 32) as usize & (self.size - 1), h as u32)
    }
}

impl Entry {
    /// Counts a continuation, the likeliest staying first. A new one takes the place of the last if that came only once;
    /// otherwise it wears it down.
    fn count(&mut self, token: u32) {
        let known = self.next.iter().position(|n| n.count > 0 && n.token == token);
        let empty = || self.next.iter().position(|n| n.count == 0);
        let mut i = known.or_else(empty).unwrap_or(WAYS - 1);
        let next = &mut self.next[i];
        if known.is_none() && next.count > 1 {
            next.count -= 1;
            return;
        }
        *next = Next { token, count: if known.is_some() { next.count + 1 } else { 1 } };
        while i > 0 && self.next[i].count >= self.next[i - 1].count {
            self.next.swap(i, i - 1);
            i -= 1;
        }
        if self.next[0].count >= COUNT_MAX {
            self.next.iter_mut().for_each(|n| n.count /= 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn learnt(contexts: usize, texts: &[&[u32]]) -> Ngrams {
        let mut cache = Ngrams::new(contexts);
        for text in texts {
            (1..=text.len()).for_each(|n| cache.learn(&text[..n]));
        }
        cache
    }

    fn tree(cache: &Ngrams, tokens: &[u32], most: usize) -> Tree {
        let mut tree = Tree::new(tokens[tokens.len() - 1]);
        cache.propose(tokens, most, &mut tree);
        tree
    }

    fn tokens_of(tree: &Tree, nodes: impl IntoIterator<Item = usize>) -> Vec<u32> {
        nodes.into_iter().map(|n| tree.nodes()[n].token).collect()
    }

    #[test]
    fn what_came_often_is_guessed_first_and_the_rest_branches() {
        let usual: &[u32] = &[9, 1, 2, 3, 4, 5, 6];
        let cache = learnt(1024, &[usual, usual, usual, &[8, 1, 2, 7, 7], usual]);
        let t = tree(&cache, &[1, 2], 5);
        assert_eq!(tokens_of(&t, t.children(ROOT)), [3, 7]);
        assert_eq!(tokens_of(&t, t.path(t.child(ROOT, 3).unwrap() + 1)), [3, 4]);
        // A longer context decides where there is one.
        let t = tree(&cache, &[8, 1, 2], 2);
        assert_eq!(tokens_of(&t, t.children(ROOT)), [7]);
        assert_eq!(tree(&cache, &[2], 5).guesses(), 0);
        assert_eq!(tree(&cache, &[60, 61, 62], 5).guesses(), 0);
        assert_eq!(tree(&Ngrams::new(8), &[1, 2], 5).guesses(), 0);
    }

    #[test]
    fn a_new_habit_replaces_an_old_one() {
        let mut cache = Ngrams::new(64);
        let first = |cache: &Ngrams| {
            let t = tree(cache, &[1, 2], 1);
            t.nodes()[1].token
        };
        (0..1000).for_each(|_| cache.learn(&[1, 2, 3]));
        assert_eq!(first(&cache), 3);
        (0..COUNT_MAX).for_each(|_| cache.learn(&[1, 2, 4]));
        assert_eq!(first(&cache), 4);
        // A crowd of rare continuations does not drive the usual one out.
        (10..200).for_each(|t| cache.learn(&[1, 2, t]));
        assert_eq!(first(&cache), 4);
    }

    #[test]
    fn the_oldest_context_makes_room() {
        // One set.
        let mut cache = Ngrams::new(4);
        for a in 0..9 {
            cache.learn(&[a, a, 1]);
        }
        assert_eq!(cache.sets.len(), 1);
        let known: Vec<u32> = (0..9).filter(|a| tree(&cache, &[*a, *a], 1).guesses() == 1).collect();
        assert_eq!(known, [5, 6, 7, 8]);
    }

    proptest! {
        /// The size is fixed, the first is the likeliest, equal histories make equal caches, and the tree stays in bounds.
        #[test]
        fn bounded_and_deterministic(
            texts in prop::collection::vec(prop::collection::vec(0u32..6, 0..30), 1..6), most in 0usize..12,
        ) {
            let texts: Vec<&[u32]> = texts.iter().map(|t| &t[..]).collect();
            let (a, b) = (learnt(32, &texts), learnt(32, &texts));
            prop_assert!(a.sets.len() <= 8);
            for e in a.sets.iter().flatten() {
                prop_assert!(e.next.is_sorted_by_key(|n| std::cmp::Reverse(n.count)));
                prop_assert!(e.next[0].count <= COUNT_MAX);
            }
            for text in texts.iter().filter(|t| !t.is_empty()) {
                let t = tree(&a, text, most);
                prop_assert!(t.guesses() <= most);
                prop_assert_eq!(t, tree(&b, text, most));
            }
        }
    }
}
