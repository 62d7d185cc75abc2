//! The KV blocks of one device: reference counts, the free lists, and the prefix cache. Host only, no I/O.
//!
//! A block that is full is *published* under the digest of its tokens and all before them, a chain from the root that stands
//! for the model. A match compares the tokens of each block too, so no hash is trusted. A published block that nobody uses
//! stays in a free list, oldest first, and is found again until its turn to be reused comes.

use crate::request::Retention;
use crate::snapshots::Snapshots;
use quarrel_ir::BLOCK_TOKENS;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

/// What a block holds and after what: SHA-256 of the digest before it and its tokens.
pub(crate) type Digest = [u8; 32];

/// The tokens of a full block.
pub(crate) type Tokens = [u32; BLOCK_TOKENS];

/// The digest of a block of `tokens` after `parent`.
pub(crate) fn chain(parent: &Digest, tokens: &Tokens) -> Digest {
    let mut hash = Sha256::new();
    hash.update(parent);
    tokens.iter().for_each(|t| hash.update(t.to_le_bytes()));
    hash.finalize().into()
}

/// What a published block holds.
#[derive(Debug, Clone)]
struct Published {
    digest: Digest,
    tokens: Tokens,
    retention: Retention,
    /// The copy of the state behind its last token, where sequences have states and it has one.
    snapshot: Option<u32>,
}

/// No neighbour in a free list.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Block {
    /// Sequences that use it.
    users: u32,
    published: Option<Published>,
    /// The free list and the neighbours in it while `users` is 0.
    list: List,
    previous: u32,
    next: u32,
}

/// The free lists, in the order in which they are emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// Blocks that cache nothing, or nothing that is worth keeping; then the others, oldest first.
    Usual,
    /// Blocks whose requests asked to keep them.
    Kept,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    head: u32,
    tail: u32,
}

/// A block to write to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Allocated {
    pub(crate) block: u32,
    /// What it cached until now.
    pub(crate) forgotten: Option<Digest>,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct BlockManager {
    /// Those that have been used; the table grows as blocks are, so a long context costs nothing before it is filled.
    blocks: Vec<Block>,
    total: usize,
    lists: [Ends; 2],
    /// Blocks in the free lists; others are free because they have never been used.
    listed: usize,
    index: HashMap<Digest, u32>,
    snapshots: Snapshots,
}

impl BlockManager {
    pub(crate) fn new(count: usize) -> BlockManager {
        BlockManager {
            blocks: Vec::new(),
            total: count,
            lists: [Ends { head: NONE, tail: NONE }; 2],
            listed: 0,
            index: HashMap::new(),
            snapshots: Snapshots::default(),
        }
    }

    /// The pool with so many copies of states.
    pub(crate) fn with_snapshots(self, total: usize) -> BlockManager {
        BlockManager { snapshots: Snapshots::new(total), ..self }
    }

    /// The copies of states.
    pub(crate) fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Copies that nobody can find any more since this was asked last.
    pub(crate) fn left_snapshots(&mut self) -> Vec<u32> {
        self.snapshots.left()
    }

    /// Whether a published block has a copy of the state.
    pub(crate) fn has_snapshot(&self, digest: &Digest) -> bool {
        self.index.get(digest).is_some_and(|b| self.snapshot_of(*b).is_some())
    }

    fn snapshot_of(&self, b: u32) -> Option<u32> {
        self.blocks[b as usize].published.as_ref()?.snapshot
    }

    /// How many of these blocks come before the end of the last one that has a copy of the state, itself included.
    pub(crate) fn up_to_snapshot(&self, blocks: &[u32]) -> usize {
        blocks.iter().rposition(|b| self.snapshot_of(*b).is_some()).map_or(0, |i| i + 1)
    }

    /// A place for a copy of a state; that of an answer takes the place of the one before.
    pub(crate) fn take_snapshot(&mut self, answer: Option<u64>) -> Option<u32> {
        let (place, loses) = self.snapshots.take(answer)?;
        if let Some(p) = loses.and_then(|b| self.blocks[b as usize].published.as_mut()) {
            p.snapshot = None;
        }
        Some(place)
    }

    /// Frees a place that no block owns.
    pub(crate) fn free_snapshot(&mut self, place: u32) {
        self.snapshots.free(place);
    }

    /// Gives a copy to the published block of these tokens; frees it if there is none, or it has one.
    pub(crate) fn put_snapshot(&mut self, digest: &Digest, tokens: &Tokens, place: u32, answer: Option<u64>) {
        let published = self.index.get(digest).and_then(|b| self.blocks[*b as usize].published.as_mut());
        match published.filter(|p| p.snapshot.is_none() && p.tokens == *tokens) {
            Some(p) => {
                p.snapshot = Some(place);
                let keep = p.retention == Retention::Keep;
                self.snapshots.put(place, self.index[digest], answer, keep);
            }
            None => self.snapshots.free(place),
        }
    }

    /// Takes the longest published chain of these blocks whose last has a copy of the state, and names the copy.
    pub(crate) fn take_prefix_with_state(
        &mut self,
        digests: &[Digest],
        tokens: &[Tokens],
    ) -> (Vec<u32>, Option<u32>) {
        let mut found = self.take_prefix(digests, tokens);
        let rest = found.split_off(self.up_to_snapshot(&found));
        self.release(&rest);
        let place = found.last().and_then(|b| self.snapshot_of(*b));
        place.into_iter().for_each(|p| self.snapshots.touch(p));
        (found, place)
    }

    /// All blocks.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Blocks that nobody uses, cached ones included.
    pub(crate) fn free(&self) -> usize {
        self.total - self.blocks.len() + self.listed
    }

    /// Blocks that cache a prefix, used or not.
    pub(crate) fn cached(&self) -> usize {
        self.index.len()
    }

    /// Takes the longest published chain of these blocks.
    pub(crate) fn take_prefix(&mut self, digests: &[Digest], tokens: &[Tokens]) -> Vec<u32> {
        let mut found = Vec::new();
        for (digest, tokens) in digests.iter().zip(tokens) {
            let Some(&b) = self.index.get(digest) else { break };
            let holds = |p: &Published| p.tokens == *tokens;
            if !self.blocks[b as usize].published.as_ref().is_some_and(holds) {
                break;
            }
            self.share(b);
            found.push(b);
        }
        found
    }

    /// How many of these blocks are published, from the first on.
    pub(crate) fn count_prefix(&self, digests: &[Digest]) -> usize {
        digests.iter().take_while(|d| self.index.contains_key(*d)).count()
    }

    /// One user more.
    pub(crate) fn share(&mut self, b: u32) {
        if self.blocks[b as usize].users == 0 {
            self.unlink(b);
        }
        self.blocks[b as usize].users += 1;
    }

    /// Whether a user must copy the block before writing to it: others read it, or may find it.
    pub(crate) fn is_shared(&self, b: u32) -> bool {
        let block = &self.blocks[b as usize];
        block.users > 1 || block.published.is_some()
    }

    /// Whether the block becomes free when one user gives it back.
    pub(crate) fn is_last_user(&self, b: u32) -> bool {
        self.blocks[b as usize].users == 1
    }

    /// Takes a block: one that caches nothing, or a new one, or the one that has been free longest, whose cache is
    /// forgotten; one that was asked to be kept only when there is no other.
    pub(crate) fn allocate(&mut self) -> Option<Allocated> {
        let usual = self.lists[List::Usual as usize].head;
        let idle = self.blocks.get(usual as usize).is_some_and(|b| b.published.is_none());
        if !idle && self.blocks.len() < self.total {
            let (list, previous, next) = (List::Usual, NONE, NONE);
            self.blocks.push(Block { users: 1, published: None, list, previous, next });
            return Some(Allocated { block: self.blocks.len() as u32 - 1, forgotten: None });
        }
        let b = if usual == NONE { self.lists[List::Kept as usize].head } else { usual };
        if b == NONE {
            return None;
        }
        self.unlink(b);
        self.blocks[b as usize].users = 1;
        let forgotten = self.unpublish(b);
        Some(Allocated { block: b, forgotten })
    }

    /// Publishes a full block. If an equal one is published already, this one stays private. A request that wants the
    /// cache to keep it longer than the last one did is heard.
    pub(crate) fn publish(&mut self, b: u32, digest: Digest, tokens: &Tokens, retention: Retention) {
        if let Some(&other) = self.index.get(&digest) {
            if let Some(p) = &mut self.blocks[other as usize].published {
                p.retention = p.retention.max(retention);
            }
            return;
        }
        self.blocks[b as usize].published =
            Some(Published { digest, tokens: *tokens, retention, snapshot: None });
        self.index.insert(digest, b);
    }

    /// Gives the blocks of a sequence back, in the sequence's order. The last is freed first, so that a chain is reused
    /// from its end; blocks that cache nothing are reused before all others.
    pub(crate) fn release(&mut self, blocks: &[u32]) {
        for &b in blocks.iter().rev() {
            let block = &mut self.blocks[b as usize];
            block.users -= 1;
            if block.users > 0 {
                continue;
            }
            match block.published.as_ref().map(|p| p.retention) {
                None | Some(Retention::Discard) => {
                    self.unpublish(b);
                    self.push_front(b, List::Usual);
                }
                Some(Retention::Usual) => self.push_back(b, List::Usual),
                Some(Retention::Keep) => self.push_back(b, List::Kept),
            }
        }
    }

    /// Makes a block private to its only user: it is not found any more.
    pub(crate) fn withdraw(&mut self, b: u32) {
        self.unpublish(b);
    }

    /// Lets nobody find a block any more; gives what it was found by. Its copy of a state goes with it.
    fn unpublish(&mut self, b: u32) -> Option<Digest> {
        let p = self.blocks[b as usize].published.take()?;
        self.index.remove(&p.digest);
        p.snapshot.into_iter().for_each(|s| self.snapshots.free(s));
        Some(p.digest)
    }

    /// Forgets the cache, as after a device error that may have spoiled its contents.
    pub(crate) fn forget(&mut self) {
        self.index.clear();
        self.snapshots.clear();
        self.blocks.iter_mut().for_each(|b| b.published = None);
    }

    /// Checks that `users` (the block tables of all sequences), the free lists and the index agree.
    pub(crate) fn check_integrity<'a>(&self, users: impl Iterator<Item = &'a [u32]>) -> Result<(), String> {
        let mut counts = vec![0u32; self.blocks.len()];
        users.flatten().for_each(|b| counts[*b as usize] += 1);
        for (i, (b, want)) in self.blocks.iter().zip(&counts).enumerate() {
            if b.users != *want {
                return Err(format!("block {i} counts {} users, {want} sequences have it", b.users));
            }
            if let Some(p) = &b.published
                && self.index.get(&p.digest) != Some(&(i as u32))
            {
                return Err(format!("block {i} is published but not found"));
            }
        }
        let published = self.blocks.iter().filter(|b| b.published.is_some()).count();
        if published != self.index.len() {
            return Err(format!("{published} blocks are published, {} indexed", self.index.len()));
        }
        let owned = (0..self.blocks.len() as u32).filter_map(|b| Some((b, self.snapshot_of(b)?)));
        self.snapshots.check(owned)?;
        let mut seen = 0;
        for list in [List::Usual, List::Kept] {
            let ends = self.lists[list as usize];
            let (mut at, mut last) = (ends.head, NONE);
            while at != NONE && seen <= self.blocks.len() {
                let b = &self.blocks[at as usize];
                if b.users != 0 || b.previous != last || b.list != list {
                    return Err(format!("block {at} does not belong in the free list where it is"));
                }
                (last, at, seen) = (at, b.next, seen + 1);
            }
            if last != ends.tail {
                return Err(format!("a free list ends at {last}, not at {}", ends.tail));
            }
        }
        let unused = counts.iter().filter(|c| **c == 0).count();
        if seen != self.listed || seen != unused {
            return Err(format!("{seen} blocks listed as free, {} counted, {unused} unused", self.listed));
        }
        Ok(())
    }

    fn push_back(&mut self, b: u32, list: List) {
        let tail = self.lists[list as usize].tail;
        self.link(b, list, tail, NONE);
    }

    fn push_front(&mut self, b: u32, list: List) {
        let head = self.lists[list as usize].head;
        self.link(b, list, NONE, head);
    }

    fn link(&mut self, b: u32, list: List, previous: u32, next: u32) {
        let block = &mut self.blocks[b as usize];
        (block.list, block.previous, block.next) = (list, previous, next);
        self.join(list, previous, b);
        self.join(list, b, next);
        self.listed += 1;
    }

    fn unlink(&mut self, b: u32) {
        let Block { list, previous, next, .. } = self.blocks[b as usize];
        self.join(list, previous, next);
        self.listed -= 1;
    }

    /// Makes `a` and `b` neighbours; `NONE` stands for the list's ends.
    fn join(&mut self, list: List, a: u32, b: u32) {
        match self.blocks.get_mut(a as usize) {
            Some(block) => block.next = b,
            None => self.lists[list as usize].head = b,
        }
        match self.blocks.get_mut(b as usize) {
            Some(block) => block.previous = a,
            None => self.lists[list as usize].tail = a,
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
        digests: Vec<Digest>,
        blocks: Vec<u32>,
        published: usize,
    }

    impl Held {
        fn new(tokens: Vec<u32>) -> Held {
            let mut digests = Vec::new();
            for block in tokens.as_chunks().0 {
                digests.push(chain(digests.last().unwrap_or(&[7; 32]), block));
            }
            Held { tokens, digests, blocks: vec![], published: 0 }
        }

        fn start(m: &mut BlockManager, tokens: Vec<u32>) -> Held {
            let mut h = Held::new(tokens);
            h.blocks = m.take_prefix(&h.digests, h.tokens.as_chunks().0);
            h.published = h.blocks.len();
            h
        }

        /// Allocates and publishes until all tokens are covered, or the pool is empty.
        fn fill(&mut self, m: &mut BlockManager, retention: Retention) {
            while self.blocks.len() < self.tokens.len().div_ceil(BLOCK_TOKENS) {
                let Some(b) = m.allocate() else { return };
                self.blocks.push(b.block);
            }
            let (chunks, _) = self.tokens.as_chunks();
            for (i, chunk) in chunks.iter().enumerate().skip(self.published) {
                m.publish(self.blocks[i], self.digests[i], chunk, retention);
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
        a.fill(&mut m, Retention::Usual);
        // Shared while in use, full blocks only.
        let b = Held::start(&mut m, text(40, 0));
        assert_eq!(b.blocks, a.blocks[..2]);
        assert!(m.is_shared(b.blocks[0]) && !m.is_shared(a.blocks[2]));
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
        // A digest alone is not believed.
        let forged = Held { tokens: text(40, 1), ..Held::new(text(40, 0)) };
        assert!(m.take_prefix(&forged.digests, forged.tokens.as_chunks().0).is_empty());
        m.check_integrity(std::iter::empty()).unwrap();
    }

    #[test]
    fn the_cache_goes_oldest_first_and_from_the_end_of_a_chain() {
        let mut m = BlockManager::new(4);
        let mut a = Held::start(&mut m, text(64, 0));
        a.fill(&mut m, Retention::Usual);
        m.release(&a.blocks);
        let taken = m.allocate().unwrap();
        assert_eq!(taken, Allocated { block: a.blocks[3], forgotten: Some(a.digests[3]) });
        let again = Held::start(&mut m, text(64, 0));
        assert_eq!(again.blocks, a.blocks[..3]);
        assert_eq!(m.allocate(), None);
        m.check_integrity([&again.blocks[..], &[taken.block]].into_iter()).unwrap();
    }

    #[test]
    fn hints_say_what_is_kept_and_what_is_not() {
        let mut m = BlockManager::new(6);
        let mut held = [Retention::Keep, Retention::Usual, Retention::Discard].map(|retention| {
            let mut h = Held::start(&mut m, text(32, retention as u32 * 1000));
            h.fill(&mut m, retention);
            h
        });
        held.iter().for_each(|h| m.release(&h.blocks));
        held.sort_by_key(|h| std::cmp::Reverse(h.tokens[0]));
        assert_eq!(m.cached(), 4, "what is to be discarded is found by nobody");
        let order: Vec<u32> = std::iter::from_fn(|| m.allocate()).map(|a| a.block).collect();
        // The last of a chain first; the oldest was to be kept and goes last.
        let of = |salt: u32| held.iter().find(|h| h.tokens[0] == salt * 1000).unwrap().blocks.clone();
        let (keep, usual, discard) =
            (of(Retention::Keep as u32), of(Retention::Usual as u32), of(Retention::Discard as u32));
        assert_eq!(order, [discard[0], discard[1], usual[1], usual[0], keep[1], keep[0]]);
    }

    #[test]
    fn equal_prefixes_computed_twice_meet_again() {
        let mut m = BlockManager::new(8);
        let (mut a, mut b) = (Held::new(text(32, 0)), Held::new(text(48, 0)));
        a.fill(&mut m, Retention::Usual);
        b.fill(&mut m, Retention::Usual);
        assert_eq!(Held::start(&mut m, text(48, 0)).blocks, [a.blocks[0], a.blocks[1], b.blocks[2]]);
    }

    #[test]
    fn a_pool_for_an_endless_context_holds_what_is_used() {
        let mut m = BlockManager::new(1 << 31);
        assert_eq!((m.total(), m.free(), m.blocks.capacity()), (1 << 31, 1 << 31, 0));
        let a: Vec<u32> = (0..3).filter_map(|_| m.allocate()).map(|a| a.block).collect();
        m.release(&a[1..]);
        assert_eq!((a, m.free()), (vec![0, 1, 2], (1 << 31) - 1));
        assert_eq!(m.allocate().unwrap().block, 1, "a block that caches nothing before a new one");
        assert!(m.blocks.capacity() < 100);
        m.check_integrity([&[0u32, 1][..]].into_iter()).unwrap();
    }

    #[test]
    fn forgetting_leaves_no_prefix() {
        let mut m = BlockManager::new(4);
        let mut a = Held::start(&mut m, text(32, 0));
        a.fill(&mut m, Retention::Keep);
        m.forget();
        assert!(Held::start(&mut m, text(32, 0)).blocks.is_empty());
        m.check_integrity([&a.blocks[..]].into_iter()).unwrap();
        m.release(&a.blocks);
        m.check_integrity(std::iter::empty()).unwrap();
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
                    h.fill(&mut m, [Retention::Usual, Retention::Keep, Retention::Discard][letter as usize]);
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
