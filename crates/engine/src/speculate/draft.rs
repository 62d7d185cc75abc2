//! A draft model: a smaller model of the same vocabulary on a device of its own, which runs ahead of the sequences. It has its
//! own KV blocks; what it computed of rejected guesses is overwritten when it catches up.

use crate::{EngineConfig, Error, Result};
use quarrel_ir::{BLOCK_TOKENS, Device, Limits, Prepared, Program, Readout, SeqStep, StepInputs, Weight};
use std::collections::HashMap;

/// The sizes of a draft model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftConfig {
    /// Longest sequence in tokens; longer ones go on without drafts.
    pub context: usize,
    /// KV blocks of 16 tokens; `None` is enough for one sequence of full length. Where they run out, the sequence that was
    /// not drafted for longest gives its own back.
    pub kv_blocks: Option<usize>,
    /// Most tokens in a step. A prompt longer than this comes in over several steps, beside those of the model.
    pub step_tokens: usize,
    /// Most sequences in a step.
    pub max_running: usize,
}

impl DraftConfig {
    /// The defaults for a context of so many tokens.
    pub fn new(context: usize) -> DraftConfig {
        DraftConfig { context, kv_blocks: None, step_tokens: 128, max_running: 16 }
    }

    /// For all sequences that an engine may run, with as many blocks as it has.
    pub fn beside(config: &EngineConfig) -> DraftConfig {
        let max_running = config.max_running.max(1);
        let step_tokens = max_running.max(128);
        DraftConfig { context: config.context, kv_blocks: config.kv_blocks, step_tokens, max_running }
    }

    /// What its device is prepared for.
    pub fn limits(&self) -> Limits {
        let kv_blocks = self.kv_blocks.unwrap_or(self.context.div_ceil(BLOCK_TOKENS));
        Limits { rows: self.step_tokens, outputs: self.max_running, kv_blocks }
    }
}

/// A loaded draft model, to be given to [`crate::Engine::start_with_draft`].
pub struct DraftModel {
    device: Box<dyn Device>,
    prepared: Prepared,
    vocab: usize,
    config: DraftConfig,
    cache: Cache,
    row: Vec<f32>,
}

/// A sequence for which a token is wanted, guesses included.
pub(crate) struct Want<'a> {
    pub(crate) id: u64,
    /// At least one.
    pub(crate) tokens: &'a [u32],
}

impl DraftModel {
    /// Prepares the device for the sizes. `weights[i]` belongs to `program.weights[i]`.
    pub fn new(
        mut device: Box<dyn Device>,
        program: Program,
        weights: &[Weight],
        config: DraftConfig,
    ) -> Result<DraftModel> {
        let full = config.context.div_ceil(BLOCK_TOKENS);
        let limits = config.limits();
        let blocks = limits.kv_blocks;
        for (field, value, least, why) in [
            ("draft.context", config.context, 1, "one token"),
            ("draft.kv_blocks", blocks, full, "the blocks of one sequence of full length"),
            ("draft.max_running", config.max_running, 1, "one sequence"),
            ("draft.step_tokens", config.step_tokens, config.max_running, "max_running"),
        ] {
            if value < least {
                return Err(Error::Config { field, value, least, why });
            }
        }
        if !program.states.is_empty() {
            let why = "has states that know their last token alone, and a draft takes tokens back; choose another model";
            return Err(Error::Unsuited { what: "a draft model", why });
        }
        let vocab = program.logits.map_or(0, |l| l.cols as usize);
        let prepared = device.prepare(program, weights, limits)?;
        Ok(DraftModel { device, prepared, vocab, config, cache: Cache::new(blocks), row: vec![0.0; vocab] })
    }

    /// Size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Bytes that its device holds.
    pub fn device_bytes(&self) -> usize {
        self.device.memory()
    }

    /// Rows to compute before a token can be drawn after `tokens`.
    pub(crate) fn behind(&self, id: u64, tokens: &[u32]) -> usize {
        tokens.len() - self.cache.held(id, tokens)
    }

    /// One step of the draft's device. `draw` is called with the index of each sequence that it brought to its end, and the
    /// logits there; the others need more steps, and those longer than the context are left out. Gives the rows computed.
    pub(crate) fn step(
        &mut self,
        wants: &[Want],
        mut draw: impl FnMut(usize, &mut [f32]),
    ) -> quarrel_ir::Result<usize> {
        let (mut rows, mut taken) = (self.config.step_tokens, Vec::new());
        self.cache.clock += 1;
        for (i, w) in wants.iter().enumerate().filter(|(_, w)| w.tokens.len() <= self.config.context) {
            let start = self.cache.held(w.id, w.tokens);
            let end = w.tokens.len().min(start + rows);
            if taken.len() < self.config.max_running
                && end > start
                && self.cache.extend(w.id, w.tokens, start, end)
            {
                rows -= end - start;
                taken.push((i, start, end));
            }
        }
        if taken.is_empty() {
            return Ok(0);
        }
        let (mut tokens, mut outputs, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
        for (i, start, end) in &taken {
            let w = &wants[*i];
            tokens.extend_from_slice(&w.tokens[*start..*end]);
            if *end == w.tokens.len() {
                outputs.push(tokens.len() as u32 - 1);
            }
            seqs.push(SeqStep::new(end - start, *start, &self.cache.held[&w.id].blocks));
        }
        let outcome = self.device.run(self.prepared, &StepInputs::new(&tokens, &seqs, &outputs));
        if let Err(error) = outcome {
            // What the cache holds is not known any more.
            self.cache.clear();
            return Err(error);
        }
        let complete = taken.iter().filter(|(i, _, end)| *end == wants[*i].tokens.len());
        for (output, (i, ..)) in complete.enumerate() {
            self.device.read(self.prepared, Readout::Logits(output), &mut self.row)?;
            draw(*i, &mut self.row);
        }
        Ok(tokens.len())
    }

    /// Gives the blocks of a sequence back.
    pub(crate) fn forget(&mut self, id: u64) {
        self.cache.forget(id);
    }

    /// Gives all blocks back.
    pub(crate) fn clear(&mut self) {
        self.cache.clear();
    }

    /// Checks that every block belongs to one sequence or is free.
    pub(crate) fn check_integrity(&self) -> std::result::Result<(), String> {
        self.cache.check_integrity()
    }
}

/// What the draft's KV blocks hold.
#[derive(Debug)]
struct Cache {
    held: HashMap<u64, Held>,
    free: Vec<u32>,
    total: usize,
    clock: u64,
}

#[derive(Debug, Default)]
struct Held {
    /// The tokens whose keys and values are in the blocks.
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    used: u64,
}

impl Cache {
    fn new(blocks: usize) -> Cache {
        Cache { held: HashMap::new(), free: (0..blocks as u32).rev().collect(), total: blocks, clock: 0 }
    }

    /// How many of the first tokens are there; the last is not counted, for its logits are wanted.
    fn held(&self, id: u64, tokens: &[u32]) -> usize {
        let Some(h) = self.held.get(&id) else { return 0 };
        let same = h.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        same.min(tokens.len() - 1)
    }

    /// Books the tokens `start..end` as computed and finds blocks for them; fails if other sequences of this step have all.
    fn extend(&mut self, id: u64, tokens: &[u32], start: usize, end: usize) -> bool {
        let mut h = self.held.remove(&id).unwrap_or_default();
        h.used = self.clock;
        h.tokens.truncate(start);
        let enough = loop {
            if h.blocks.len() * BLOCK_TOKENS >= end {
                break true;
            }
            match self.free.pop() {
                Some(b) => h.blocks.push(b),
                None if !self.evict() => break false,
                None => {}
            }
        };
        if enough {
            h.tokens.extend_from_slice(&tokens[start..end]);
        }
        self.held.insert(id, h);
        enough
    }

    /// Gives the blocks of the sequence back that was used longest ago, if that was not in this step.
    fn evict(&mut self) -> bool {
        let oldest =
            self.held.iter().filter(|(_, h)| h.used < self.clock).min_by_key(|(id, h)| (h.used, **id));
        let Some(id) = oldest.map(|(id, _)| *id) else { return false };
        self.forget(id);
        true
    }

    fn forget(&mut self, id: u64) {
        if let Some(h) = self.held.remove(&id) {
            self.free.extend(h.blocks);
        }
    }

    fn clear(&mut self) {
        let ids: Vec<u64> = self.held.keys().copied().collect();
        ids.into_iter().for_each(|id| self.forget(id));
    }

    fn check_integrity(&self) -> std::result::Result<(), String> {
        let mut blocks: Vec<u32> =
            self.held.values().flat_map(|h| &h.blocks).chain(&self.free).copied().collect();
        blocks.sort_unstable();
        if blocks.len() != self.total || blocks.iter().enumerate().any(|(i, b)| i != *b as usize) {
            return Err(format!("{} of {} draft blocks are accounted for", blocks.len(), self.total));
        }
        match self.held.iter().find(|(_, h)| h.tokens.len() > h.blocks.len() * BLOCK_TOKENS) {
            Some((id, h)) => {
                Err(format!("draft {id} has {} tokens in {} blocks", h.tokens.len(), h.blocks.len()))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rejected_guesses_are_computed_again_and_the_last_token_always() {
        let mut c = Cache::new(4);
        assert!(c.extend(1, &[5, 6, 7, 8], 0, 4));
        assert_eq!(c.held(1, &[5, 6, 7, 8, 9]), 4);
        assert_eq!(c.held(1, &[5, 6, 7, 8]), 3);
        assert_eq!(c.held(1, &[5, 6, 1, 8, 9]), 2);
        assert!(c.extend(1, &[5, 6, 1], 2, 3));
        assert_eq!(c.held[&1].tokens, [5, 6, 1]);
        assert_eq!(c.held(2, &[5, 6]), 0);
    }

    #[test]
    fn the_idlest_gives_its_blocks_and_those_of_the_step_do_not() {
        let long: Vec<u32> = (0..32).collect();
        let mut c = Cache::new(4);
        for id in [1, 2] {
            c.clock += 1;
            assert!(c.extend(id, &long, 0, 32));
        }
        c.clock += 1;
        assert!(c.extend(3, &long, 0, 17));
        assert_eq!((c.held(1, &long), c.held(2, &long)), (0, 31));
        assert!(c.extend(4, &long, 0, 32));
        assert!(!c.extend(5, &long, 0, 1));
        c.check_integrity().unwrap();
        c.clear();
        assert_eq!(c.free.len(), 4);
    }

    proptest! {
        #[test]
        fn blocks_are_never_lost(
            moves in prop::collection::vec((0u64..5, prop::collection::vec(0u32..2, 1..60), any::<bool>()), 1..40),
        ) {
            let mut c = Cache::new(6);
            for (id, tokens, forget) in moves {
                c.clock += 1;
                let start = c.held(id, &tokens);
                c.extend(id, &tokens, start, tokens.len());
                if forget {
                    c.forget(id);
                }
                prop_assert_eq!(c.check_integrity(), Ok(()));
            }
        }
    }
}
