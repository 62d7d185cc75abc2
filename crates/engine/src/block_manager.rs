//! The KV blocks of one device: reference counts, the free list, and the prefix cache. Host only, no I/O.
//!
//! A block that is full is *published* under its tokens and the block before it, so a chain of published blocks is a prefix
//! verified token by token: no hash is trusted. A published block that nobody uses stays in the free list, oldest first, and
//! is found again until its turn to be reused comes.

use quarrel_ir::BLOCK_TOKENS;
use std::collections::HashMap;

/// Identity of a published block; never reused, so a chain cannot continue from a block that has changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Link(u64);

impl Link {
    /// Before the first block of every sequence.
    pub(crate) const ROOT: Link = Link(0);
}

/// What a published block holds, and after what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    parent: Link,
    tokens: [u32; BLOCK_TOKENS],
}

/// No neighbour in the free list.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Block {
    /// Sequences that use it.
    users: u32,
    /// Where it is published.
    published: Option<(Key, Link)>,
    /// Neighbours in the free list while `users` is 0.
    previous: u32,
    next: u32,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct BlockManager {
    /// Those that have been used; the table grows as blocks are, so a long context costs nothing before it is filled.
    blocks: Vec<Block>,
    total: usize,
    /// First to be reused, and last.
    head: u32,
    tail: u32,
    /// Blocks in the free list; others are free because they have never been used.
    listed: usize,
    index: HashMap<Key, u32>,
    next_link: u64,
}

impl BlockManager {
    pub(crate) fn new(count: usize) -> BlockManager {
        BlockManager {
            blocks: Vec::new(),
            total: count,
            head: NONE,
            tail: NONE,
            listed: 0,
            index: HashMap::new(),
            next_link: 1,
        }
    }

    /// All blocks.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Blocks that nobody uses, cached ones included.
    pub(crate) fn free(&self) -> usize {
        self.total - self.blocks.len() + self.listed
    }

    /// Takes the longest published chain that starts `tokens`, at most `most` blocks of it.
    pub(crate) fn take_prefix(&mut self, tokens: &[u32], most: usize) -> Vec<(u32, Link)> {
        let mut parent = Link::ROOT;
        let mut found = Vec::new();
        let (chunks, _) = tokens.as_chunks::<BLOCK_TOKENS>();
        for chunk in chunks.iter().take(most) {
            let Some(&b) = self.index.get(&Key { parent, tokens: *chunk }) else { break };
            if self.blocks[b as usize].users == 0 {
                self.unlink(b);
            }
            let block = &mut self.blocks[b as usize];
            block.users += 1;
            parent = block.published.expect("indexed blocks are published").1;
            found.push((b, parent));
        }
        found
    }

    /// Takes a block: one that caches nothing, or a new one, or the one that has been free longest, whose cache is forgotten.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        let idle = self.blocks.get(self.head as usize).is_some_and(|b| b.published.is_none());
        if !idle && self.blocks.len() < self.total {
            self.blocks.push(Block { users: 1, published: None, previous: NONE, next: NONE });
            return Some(self.blocks.len() as u32 - 1);
        }
        let b = self.head;
        if b == NONE {
            return None;
        }
        self.unlink(b);
        let block = &mut self.blocks[b as usize];
        block.users = 1;
        if let Some((key, _)) = block.published.take() {
            self.index.remove(&key);
        }
        Some(b)
    }

    /// Publishes a full block after `parent`. If an equal one is published already, this one stays private and the
    /// sequence goes on from that one's link, so equal prefixes meet again.
    pub(crate) fn publish(&mut self, b: u32, parent: Link, tokens: &[u32; BLOCK_TOKENS]) -> Link {
        let key = Key { parent, tokens: *tokens };
        if let Some(&other) = self.index.get(&key) {
            return self.blocks[other as usize].published.expect("indexed blocks are published").1;
        }
        let link = Link(self.next_link);
        self.next_link += 1;
        self.blocks[b as usize].published = Some((key, link));
        self.index.insert(key, b);
        link
    }

    /// Gives the blocks of a sequence back, in the sequence's order. The last is freed first, so that a chain is reused
    /// from its end; blocks that cache nothing are reused before all others.
    pub(crate) fn release(&mut self, blocks: &[u32]) {
        for &b in blocks.iter().rev() {
            let block = &mut self.blocks[b as usize];
            block.users -= 1;
            if block.users == 0 {
                if block.published.is_some() { self.push_back(b) } else { self.push_front(b) }
            }
        }
    }

    /// Forgets the cache, as after a device error that may have spoiled its contents.
    pub(crate) fn forget(&mut self) {
        self.index.clear();
        self.blocks.iter_mut().for_each(|b| b.published = None);
    }

    /// Checks that `users` (the block tables of all sequences), the free list and the index agree.
    pub(crate) fn check_integrity<'a>(&self, users: impl Iterator<Item = &'a [u32]>) -> Result<(), String> {
        let mut counts = vec![0u32; self.blocks.len()];
        users.flatten().for_each(|b| counts[*b as usize] += 1);
        for (i, (b, want)) in self.blocks.iter().zip(&counts).enumerate() {
            if b.users != *want {
                return Err(format!("block {i} counts {} users, {want} sequences have it", b.users));
            }
            if let Some((key, _)) = b.published
                && self.index.get(&key) != Some(&(i as u32))
            {
                return Err(format!("block {i} is published but not found"));
            }
        }
        let published = self.blocks.iter().filter(|b| b.published.is_some()).count();
        if published != self.index.len() {
            return Err(format!("{published} blocks are published, {} indexed", self.index.len()));
        }
        let (mut at, mut last, mut seen) = (self.head, NONE, 0);
        while at != NONE && seen <= self.blocks.len() {
            let b = &self.blocks[at as usize];
            if b.users != 0 || b.previous != last {
                return Err(format!("block {at} does not belong in the free list where it is"));
            }
            (last, at, seen) = (at, b.next, seen + 1);
        }
        let unused = counts.iter().filter(|c| **c == 0).count();
        if seen != self.listed || seen != unused || last != self.tail {
            return Err(format!("{seen} blocks listed as free, {} counted, {unused} unused", self.listed));
        }
        Ok(())
    }

    fn push_back(&mut self, b: u32) {
        let tail = self.tail;
        self.link(b, tail, NONE);
    }

    fn push_front(&mut self, b: u32) {
        let head = self.head;
        self.link(b, NONE, head);
    }

    fn link(&mut self, b: u32, previous: u32, next: u32) {
        (self.blocks[b as usize].previous, self.blocks[b as usize].next) = (previous, next);
        self.join(previous, b);
        self.join(b, next);
        self.listed += 1;
    }

    fn unlink(&mut self, b: u32) {
        let Block { previous, next, .. } = self.blocks[b as usize];
        self.join(previous, next);
        self.listed -= 1;
    }

    /// Makes `a` and `b` neighbours; `NONE` stands for the list's ends.
    fn join(&mut self, a: u32, b: u32) {
        match self.blocks.get_mut(a as usize) {
            Some(block) => block.next = b,
            None => self.head = b,
        }
        match self.blocks.get_mut(b as usize) {
            Some(block) => block.previous = a,
            None => self.tail = a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A sequence as a test keeps it.
    struct Held {
        tokens: Vec<u32>,
        blocks: Vec<u32>,
        link: Link,
        published: usize,
    }

    impl Held {
        fn start(m: &mut BlockManager, tokens: Vec<u32>) -> Held {
            let found = m.take_prefix(&tokens, usize::MAX);
            let link = found.last().map_or(Link::ROOT, |f| f.1);
            Held { tokens, published: found.len(), blocks: found.iter().map(|f| f.0).collect(), link }
        }

        /// Allocates and publishes until all tokens are covered, or the pool is empty.
        fn fill(&mut self, m: &mut BlockManager) {
            while self.blocks.len() < self.tokens.len().div_ceil(BLOCK_TOKENS) {
                let Some(b) = m.allocate() else { return };
                self.blocks.push(b);
            }
            let (chunks, _) = self.tokens.as_chunks::<BLOCK_TOKENS>();
            for i in self.published..chunks.len() {
                self.link = m.publish(self.blocks[i], self.link, &chunks[i]);
                self.published = i + 1;
            }
        }
    }

    fn text(n: usize, from: u32) -> Vec<u32> {
        (0..n as u32).map(|i| i + from).collect()
    }

    #[test]
    fn a_prefix_is_found_again_and_only_if_every_token_is_equal() {
        let mut m = BlockManager::new(8);
        let mut a = Held::start(&mut m, text(40, 0));
        a.fill(&mut m);
        // Shared while in use, full blocks only.
        let b = Held::start(&mut m, text(40, 0));
        assert_eq!(b.blocks, a.blocks[..2]);
        m.release(&a.blocks);
        m.release(&b.blocks);
        assert_eq!(m.free(), 8);
        // Found while free.
        let c = Held::start(&mut m, text(40, 0));
        assert_eq!(c.blocks, a.blocks[..2]);
        m.release(&c.blocks);
        // Equal second block after another first block is another prefix.
        let mut other = text(40, 0);
        other[0] = 99;
        assert!(Held::start(&mut m, other).blocks.is_empty());
        m.check_integrity(std::iter::empty()).unwrap();
    }

    #[test]
    fn the_cache_goes_oldest_first_and_from_the_end_of_a_chain() {
        let mut m = BlockManager::new(4);
        let mut a = Held::start(&mut m, text(64, 0));
        a.fill(&mut m);
        m.release(&a.blocks);
        let taken = m.allocate().unwrap();
        assert_eq!(taken, a.blocks[3]);
        let again = Held::start(&mut m, text(64, 0));
        assert_eq!(again.blocks, a.blocks[..3]);
        assert_eq!(m.allocate(), None);
        m.check_integrity([&again.blocks[..], &[taken]].into_iter()).unwrap();
    }

    #[test]
    fn equal_prefixes_computed_twice_meet_again() {
        let mut m = BlockManager::new(8);
        let mut a = Held { tokens: text(32, 0), blocks: vec![], link: Link::ROOT, published: 0 };
        let mut b = Held { tokens: text(48, 0), blocks: vec![], link: Link::ROOT, published: 0 };
        a.fill(&mut m);
        b.fill(&mut m);
        assert_eq!(Held::start(&mut m, text(48, 0)).blocks, [a.blocks[0], a.blocks[1], b.blocks[2]]);
    }

    #[test]
    fn a_pool_for_an_endless_context_holds_what_is_used() {
        let mut m = BlockManager::new(1 << 31);
        assert_eq!((m.total(), m.free(), m.blocks.capacity()), (1 << 31, 1 << 31, 0));
        let a: Vec<u32> = (0..3).filter_map(|_| m.allocate()).collect();
        m.release(&a[1..]);
        assert_eq!((a, m.free()), (vec![0, 1, 2], (1 << 31) - 1));
        assert_eq!(m.allocate(), Some(1), "a block that caches nothing before a new one");
        assert!(m.blocks.capacity() < 100);
        m.check_integrity([&[0u32, 1][..]].into_iter()).unwrap();
    }

    #[test]
    fn forgetting_leaves_no_prefix() {
        let mut m = BlockManager::new(4);
        let mut a = Held::start(&mut m, text(32, 0));
        a.fill(&mut m);
        m.forget();
        assert!(Held::start(&mut m, text(32, 0)).blocks.is_empty());
        m.check_integrity([&a.blocks[..]].into_iter()).unwrap();
    }

    proptest! {
        /// Random sequences over a small alphabet, so that prefixes meet often.
        #[test]
        fn integrity_holds_and_matches_are_true(
            ops in prop::collection::vec((0usize..6, 1usize..80, 0u32..3, 0usize..4), 1..60),
        ) {
            let mut m = BlockManager::new(12);
            let mut held: Vec<Held> = Vec::new();
            // What each block really holds: the whole prefix up to its end.
            let mut truth: HashMap<u32, Vec<u32>> = HashMap::new();
            for (op, n, letter, at) in ops {
                if op < 4 || held.is_empty() {
                    let mut tokens = vec![letter; n];
                    if at > 0 && n > at * 16 {
                        tokens[at * 16] = 9;
                    }
                    let mut h = Held::start(&mut m, tokens);
                    for (i, b) in h.blocks.iter().enumerate() {
                        prop_assert_eq!(&truth[b][..], &h.tokens[..(i + 1) * BLOCK_TOKENS]);
                    }
                    let found = h.blocks.len();
                    h.fill(&mut m);
                    for i in found..h.blocks.len().min(h.tokens.len() / BLOCK_TOKENS) {
                        truth.insert(h.blocks[i], h.tokens[..(i + 1) * BLOCK_TOKENS].to_vec());
                    }
                    held.push(h);
                } else {
                    let h = held.remove(at % held.len());
                    m.release(&h.blocks);
                }
                if let Err(e) = m.check_integrity(held.iter().map(|h| &h.blocks[..])) {
                    prop_assert!(false, "{}", e);
                }
            }
        }
    }
}
