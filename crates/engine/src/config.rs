//! The sizes of an engine, which are checked before anything is made of them, and what became of them.

use crate::adapters::AdapterLimits;
use crate::tier::DiskCache;
use crate::{Error, Result, scheduler};
use quarrel_ir::{BLOCK_TOKENS, DeviceInfo};
use std::time::Duration;

/// Most KV blocks: their numbers are of 32 bits.
const BLOCKS_MAX: usize = 1 << 31;
/// Bytes of copies of states, where nothing else is said.
const SNAPSHOT_BYTES: usize = 256 << 20;
/// Most copies of states: they are looked through one by one.
const SNAPSHOTS_MAX: usize = 1024;
/// Most blocks from one copy to the next: 1,024 tokens.
const SNAPSHOT_EVERY_MAX: usize = 64;

/// The sizes of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Longest sequence, prompt and answer together, in tokens.
    pub context: usize,
    /// KV blocks of 16 tokens; `None` is enough for one sequence of full length.
    pub kv_blocks: Option<usize>,
    /// Most tokens in a step. A prompt longer than this comes in over several steps.
    pub step_tokens: usize,
    /// Most rows with logits in a step; bounds the logits buffer, 64 rows of 262k being 67 MB.
    pub step_outputs: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_queue: usize,
    /// Share the blocks of equal prefixes. The output is the same bytes with and without.
    pub prefix_cache: bool,
    /// How long a step may take while somebody waits for its next token; prompts come in with what is left of it. `None` is
    /// 1.8 times what it takes without them.
    pub target_itl: Option<Duration>,
    /// Most tokens of a sequence that are guessed ahead in a step, where its request wants that; 0 is never. `step_outputs`
    /// bounds those of all sequences together.
    pub guesses: usize,
    /// What a row more costs, in thousandths of a step of one row, for the choice of guesses: for runs that can be repeated.
    /// `None` is what is measured.
    pub row_cost_permille: Option<u16>,
    /// A step that takes longer than this is one that hangs.
    pub step_limit: Duration,
    /// Bounds on the adapters that are loaded at once.
    pub adapters: AdapterLimits,
    /// Bytes of ordinary memory for blocks that the device has no room for: of preempted sequences and of the prefix cache.
    pub host_cache: usize,
    /// A directory in which the prefix cache survives the process. Needs `identity`.
    pub disk_cache: Option<DiskCache>,
    /// What tells the model from all others; [`crate::Engine::load`] finds it out where it is needed.
    pub identity: Option<[u8; 32]>,
    /// Every sequence has all its rows in one step: an encoder's, whose engine sees to it by itself.
    pub whole: bool,
    /// Sequences have a state beside their KV blocks, which knows its last token alone: nothing is guessed ahead, and a prefix is
    /// shared up to a block that has a copy of the state. The engine sees to it by itself.
    pub states: bool,
    /// Prompts are sources, which an encoder reads before the answer: no prefix is shared and nothing is guessed ahead. Set by
    /// the engine from the Program.
    pub sources: bool,
    /// Most bytes of such copies; see [`Self::snapshots`].
    pub snapshot_bytes: usize,
    /// Exits that the Program was built with ([`quarrel_model::decoder::Options::exits`]), for [`crate::Dola`].
    pub exits: usize,
}

impl EngineConfig {
    /// The defaults for a context of so many tokens.
    pub fn new(context: usize) -> EngineConfig {
        EngineConfig {
            context,
            kv_blocks: None,
            step_tokens: 256,
            step_outputs: 64,
            max_running: 16,
            max_queue: 64,
            prefix_cache: true,
            target_itl: None,
            guesses: 12,
            row_cost_permille: None,
            step_limit: Duration::from_secs(300),
            adapters: AdapterLimits::default(),
            host_cache: 0,
            disk_cache: None,
            identity: None,
            whole: false,
            states: false,
            sources: false,
            snapshot_bytes: SNAPSHOT_BYTES,
            exits: 0,
        }
    }

    /// How many copies of states are kept where those of a sequence have so many bytes: as many as fit, at most 1,024 and one for
    /// each block; none where prefixes are not shared.
    pub fn snapshots(&self, state_bytes: usize) -> usize {
        let fit = self.snapshot_bytes.checked_div(state_bytes).unwrap_or(0);
        let blocks = self.kv_blocks.unwrap_or(self.context.div_ceil(BLOCK_TOKENS));
        if self.prefix_cache { fit.min(SNAPSHOTS_MAX).min(blocks) } else { 0 }
    }

    /// The limits of copies of such states: in a prompt there is a block for each MiB of a copy.
    pub(crate) fn state_limits(&self, state_bytes: usize) -> scheduler::StateLimits {
        let every = state_bytes.div_ceil(1 << 20).clamp(1, SNAPSHOT_EVERY_MAX);
        scheduler::StateLimits { snapshots: self.snapshots(state_bytes), every }
    }

    pub(crate) fn check(&self) -> Result<scheduler::Limits> {
        let full = self.context.div_ceil(BLOCK_TOKENS);
        let blocks = self.kv_blocks.unwrap_or(full);
        for (field, value, least, why) in [
            ("context", self.context, 2, "a token of prompt and one of answer"),
            ("kv_blocks", blocks, full, "the blocks of one sequence of full length"),
            ("max_running", self.max_running, 1, "one sequence"),
            ("max_queue", self.max_queue, 1, "one request"),
            ("step_tokens", self.step_tokens, self.max_running + 1, "one more than max_running"),
            ("step_outputs", self.step_outputs, self.max_running, "max_running"),
            (
                "step_tokens",
                self.step_tokens,
                if self.whole || self.sources { self.context } else { 0 },
                "the context of an encoder",
            ),
        ] {
            if value < least {
                return Err(Error::Config { field, value, least, why });
            }
        }
        if blocks > BLOCKS_MAX {
            return Err(Error::Field {
                field: "kv_blocks",
                value: blocks.to_string(),
                range: "at most 2^31; ask for a shorter context",
            });
        }
        Ok(scheduler::Limits {
            rows: self.step_tokens,
            outputs: self.step_outputs,
            running: self.max_running,
            // The queue, and room for everything that runs to be sent back.
            waiting: self.max_queue + self.max_running,
            blocks,
            // What an encoder computes of a text depends on its end.
            prefix_cache: self.prefix_cache && !self.whole && !self.sources,
            target: self.target_itl,
            whole: self.whole,
            states: self.states.then(scheduler::StateLimits::default),
        })
    }
}

/// What an engine runs, and with what sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// The device.
    pub device: DeviceInfo,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// KV blocks of 16 tokens.
    pub kv_blocks: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Whether the model makes tokens; an encoder makes embeddings alone.
    pub generates: bool,
    /// Length of an embedding, if there are hidden states to make it of.
    pub hidden: Option<usize>,
    /// Layers after which there are logits too.
    pub exits: usize,
    /// Of a model whose decoder answers an encoder, the token that an answer begins with before its own first one; prompts are
    /// sources then.
    pub source: Option<u32>,
    /// Whether a sequence can be shortened in the cache.
    pub evicts: bool,
    /// Whether there is a draft model.
    pub draft: bool,
    /// Whether tokens can be guessed ahead: not where sequences have states, out of which a wrong guess cannot be taken, or sources.
    pub speculates: bool,
    /// Whether blocks go to memory and disk below the device, where it is given them: not where sequences have states, or share no
    /// prefixes.
    pub tiers: bool,
    /// Bytes that the device holds, and that of a draft model: weights, activations, KV.
    pub device_bytes: usize,
}
