//! One sequence as the scheduler sees it: tokens, how many of them the cache holds, and the blocks that hold them.

use crate::block_manager::Link;
use std::{ops::Range, time::Duration};

/// Which rows of a sequence need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The last token's, again and again as tokens are added.
    Next,
    /// Those that predict the tokens from this position on; the last token itself is not computed.
    Score { from: usize },
}

/// A sequence. Its blocks belong to the [`crate::scheduler::Scheduler`] that owns it.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Names the sequence outside the scheduler.
    pub(crate) id: u64,
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
    /// Full blocks that are published, and the link of the last.
    pub(crate) published: usize,
    pub(crate) link: Link,
}

impl Sequence {
    pub(crate) fn new(id: u64, tokens: Vec<u32>, goal: Goal) -> Sequence {
        Sequence {
            id,
            tokens,
            goal,
            computed: 0,
            cached: 0,
            admitted: None,
            blocks: Vec::new(),
            published: 0,
            link: Link::ROOT,
        }
    }

    /// Rows to compute in all, as things stand.
    pub(crate) fn rows(&self) -> usize {
        match self.goal {
            Goal::Next => self.tokens.len(),
            Goal::Score { .. } => self.tokens.len() - 1,
        }
    }

    /// The rows that need logits: one range up to the end.
    pub(crate) fn output_rows(&self) -> Range<usize> {
        match self.goal {
            Goal::Next => self.tokens.len() - 1..self.tokens.len(),
            Goal::Score { from } => from - 1..self.tokens.len() - 1,
        }
    }
}
