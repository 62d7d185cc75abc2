//! One sequence as the scheduler sees it: tokens, how many of them the cache holds, the blocks that hold them, and its place
//! among the others.

use crate::block_manager::{Digest, chain};
use crate::request::{Class, Retention};
use quarrel_ir::BLOCK_TOKENS;
use std::{ops::Range, sync::Arc, time::Duration};

/// Which rows of a sequence need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The last token's, again and again as tokens are added.
    Next,
    /// Those that predict the tokens from this position on; the last token itself is not computed.
    Score { from: usize },
}

/// What decides a sequence's turn.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    /// How urgent its request is.
    pub(crate) class: Class,
    /// Whose it is: those who ask share the device.
    pub(crate) key: Arc<str>,
    /// When it came; times are after any fixed moment.
    pub(crate) arrived: Duration,
    /// When it is of no use any more.
    pub(crate) deadline: Option<Duration>,
}

/// A sequence. Its blocks belong to the [`crate::scheduler::Scheduler`] that owns it.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    /// Names the sequence outside the scheduler.
    pub(crate) id: u64,
    /// The request that it belongs to; its forks share it.
    pub(crate) request: u64,
    /// The prompt and what was added since.
    pub(crate) tokens: Vec<u32>,
    /// Why it is computed.
    pub(crate) goal: Goal,
    /// Tokens whose keys and values the cache holds.
    pub(crate) computed: usize,
    /// Tokens that the prefix cache had at the first admission.
    pub(crate) cached: usize,
    /// When it first left the queue.
    pub(crate) admitted: Option<Duration>,
    pub(crate) blocks: Vec<u32>,
    /// Full blocks that have been published.
    pub(crate) published: usize,
    pub(crate) retention: Retention,
    pub(crate) standing: Standing,
    /// The number of its admission to the queue, which breaks ties; set by the scheduler.
    pub(crate) order: u64,
    /// Urgency at its admission, from 0; set by the scheduler.
    pub(crate) level: u8,
    /// The digest before its first block: of the model and what else changes keys and values.
    pub(crate) root: Digest,
    /// Of its full blocks, as far as they were needed.
    pub(crate) digests: Vec<Digest>,
}

impl Sequence {
    pub(crate) fn new(id: u64, root: Digest, tokens: Vec<u32>, goal: Goal) -> Sequence {
        Sequence {
            id,
            request: id,
            tokens,
            goal,
            computed: 0,
            cached: 0,
            admitted: None,
            blocks: Vec::new(),
            published: 0,
            retention: Retention::Usual,
            standing: Standing::default(),
            order: 0,
            level: 0,
            root,
            digests: Vec::new(),
        }
    }

    /// Rows to compute in all, as things stand.
    pub(crate) fn rows(&self) -> usize {
        match self.goal {
            Goal::Next => self.tokens.len(),
            Goal::Score { .. } => self.tokens.len() - 1,
        }
    }

    /// Rows that are left to compute.
    pub(crate) fn left(&self) -> usize {
        self.rows() - self.computed
    }

    /// The rows that need logits: one range up to the end.
    pub(crate) fn output_rows(&self) -> Range<usize> {
        match self.goal {
            Goal::Next => self.tokens.len() - 1..self.tokens.len(),
            Goal::Score { from } => from - 1..self.tokens.len() - 1,
        }
    }

    /// The digests of the first `n` blocks, which are full.
    pub(crate) fn digests(&mut self, n: usize) -> &[Digest] {
        let (full, _) = self.tokens.as_chunks::<BLOCK_TOKENS>();
        for tokens in &full[self.digests.len().min(n)..n] {
            let digest = chain(self.digests.last().unwrap_or(&self.root), tokens);
            self.digests.push(digest);
        }
        &self.digests[..n]
    }
}
