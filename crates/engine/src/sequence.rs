//! One sequence as the scheduler sees it: tokens, how many of them the cache holds, the blocks that hold them, and its place
//! among the others.

use crate::block_manager::{Digest, chain};
use crate::evict::Evictor;
use crate::request::{Class, Retention};
use crate::snapshots::SNAPSHOT;
use quarrel_ir::{Adapter, BLOCK_TOKENS};
use std::{ops::Range, sync::Arc, time::Duration};

/// Which rows of a sequence need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The last token's, again and again as tokens are added.
    Next,
    /// Those that predict the tokens from this position on; the last token itself is not computed.
    Score { from: usize },
    /// None: the hidden states of the tokens from this position on are wanted.
    Embed { from: usize },
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

/// Where the device keeps the state of a sequence.
pub(crate) fn state_of(id: u64) -> u32 {
    id as u32 & !SNAPSHOT
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
    /// Tokens whose keys and values were computed; the cache holds those that were not dropped since.
    pub(crate) computed: usize,
    /// Tokens that were dropped from the cache: a token's position there is its index less these.
    pub(crate) dropped: usize,
    /// The first so many tokens are a source: they are read in one step, and then dropped, which leaves what was read of them in
    /// the same blocks.
    pub(crate) source: usize,
    /// Shortens it when it outgrows its budget.
    pub(crate) evictor: Option<Evictor>,
    /// Tokens that the prefix cache had at the first admission.
    pub(crate) cached: usize,
    /// When it first left the queue.
    pub(crate) admitted: Option<Duration>,
    pub(crate) blocks: Vec<u32>,
    /// Full blocks that have been published.
    pub(crate) published: usize,
    pub(crate) retention: Retention,
    pub(crate) standing: Standing,
    /// The hidden states of all its tokens are wanted: caches of its blocks are of no use.
    pub(crate) states: bool,
    /// A short piece of work that another sequence waits for.
    pub(crate) beside: bool,
    /// The number of its admission to the queue, which breaks ties; set by the scheduler.
    pub(crate) order: u64,
    /// Urgency at its admission, from 0; set by the scheduler.
    pub(crate) level: u8,
    /// The digest before its first block: of the model and what else changes keys and values.
    pub(crate) root: Digest,
    /// What its rows are computed with; the root tells it apart.
    pub(crate) adapter: Option<Adapter>,
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
            dropped: 0,
            source: 0,
            evictor: None,
            cached: 0,
            admitted: None,
            blocks: Vec::new(),
            published: 0,
            retention: Retention::Usual,
            standing: Standing::default(),
            states: false,
            beside: false,
            order: 0,
            level: 0,
            root,
            adapter: None,
            digests: Vec::new(),
        }
    }

    /// Rows to compute in all, as things stand.
    pub(crate) fn rows(&self) -> usize {
        match self.goal {
            Goal::Next | Goal::Embed { .. } => self.tokens.len(),
            Goal::Score { .. } => self.tokens.len() - 1,
        }
    }

    /// Tokens that the cache holds.
    pub(crate) fn held(&self) -> usize {
        self.computed - self.dropped
    }

    /// Blocks that hold what is computed of it, and what was read of its source.
    pub(crate) fn held_blocks(&self) -> usize {
        self.held().max(self.source).div_ceil(BLOCK_TOKENS)
    }

    /// Tokens that the cache holds at most on the way to the end of its rows.
    pub(crate) fn extent(&self) -> usize {
        if self.source > 0 {
            return self.source.max(self.rows().saturating_sub(self.source));
        }
        let rows = self.rows() - self.dropped;
        self.evictor.as_ref().map_or(rows, |e| rows.min(e.most()))
    }

    /// Whether its source is to be read.
    pub(crate) fn reads(&self) -> bool {
        self.computed < self.source
    }

    /// Whether it must be shortened before its next row.
    pub(crate) fn is_full(&self) -> bool {
        self.left() > 0 && self.evictor.as_ref().is_some_and(|e| e.room(self.held()) == 0)
    }

    /// The first row that must be computed, whatever caches have: that of the first logits, or one whose attention counts.
    pub(crate) fn first_needed(&self) -> usize {
        let first = match self.goal {
            Goal::Embed { from } => from,
            Goal::Next if self.states => 0,
            _ => self.output_rows().start,
        };
        self.evictor.as_ref().map_or(first, |e| first.min(e.first_observed()))
    }

    /// Where the device adds up the attention of its rows.
    pub(crate) fn slot(&self) -> u32 {
        self.id as u32
    }

    /// Where the device keeps its state.
    pub(crate) fn state(&self) -> u32 {
        state_of(self.id)
    }

    /// Forgets what was computed.
    pub(crate) fn restart(&mut self) {
        (self.computed, self.published, self.dropped) = (0, 0, 0);
        self.blocks.clear();
        self.evictor.iter_mut().for_each(Evictor::restart);
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
            Goal::Embed { .. } => self.tokens.len()..self.tokens.len(),
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
