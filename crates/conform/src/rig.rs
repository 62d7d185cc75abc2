//! A prepared Program that is fed steps of several sequences and answers with bits: the ground of the invariance tests.

use crate::{Tensors, prepare};
use quarrel_ir::{
    Adapter, AdapterPart, BLOCK_TOKENS, Device, KvCopy, Limits, Prepared, Program, Readout, Result, Rows,
    SeqStep, StepInputs, Stop, View,
};

/// Rows of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The sequence, which has KV blocks of its own.
    pub seq: usize,
    /// Position of the first row.
    pub start: usize,
    /// One row each.
    pub tokens: &'a [u32],
}

/// Sizes of a [`Rig`].
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Most rows of a step.
    pub rows: usize,
    /// Sequences.
    pub seqs: usize,
    /// Most tokens of a sequence.
    pub tokens: usize,
}

/// A device with one prepared Program.
pub struct Rig {
    device: Box<dyn Device>,
    prepared: Prepared,
    logits: View,
    kind: Rows,
    /// By sequence; scattered over the cache.
    blocks: Vec<Vec<u32>>,
}

impl Rig {
    /// Loads and prepares. Panics where a test would: the Program and its tensors are the test's own.
    pub fn new(mut device: Box<dyn Device>, program: &Program, tensors: &Tensors, sizes: Sizes) -> Rig {
        let each = sizes.tokens.div_ceil(BLOCK_TOKENS);
        let total = each * sizes.seqs;
        let limits = Limits { rows: sizes.rows, outputs: sizes.rows, kv_blocks: total };
        let prepared = prepare(&mut *device, program, tensors, limits).expect("a program of this test");
        // A stride that shares no factor with the number of blocks visits each once.
        let stride = (total / 3..).find(|s| gcd(*s, total) == 1).expect("1 or total + 1 will do");
        let block = |i: usize| ((i * stride + 1) % total) as u32;
        let blocks = (0..sizes.seqs).map(|s| (0..each).map(|b| block(s * each + b)).collect()).collect();
        let logits = program.logits.expect("a value to read");
        Rig { device, prepared, logits, kind: program.rows_of(logits), blocks }
    }

    /// Runs one step and gives the bits of each row of the Program's logits: of all rows, or of `outputs` where the value
    /// has those only.
    pub fn step(&mut self, parts: &[Part], outputs: &[u32]) -> Vec<Vec<u32>> {
        self.step_with(parts, outputs, &[], None).expect("a step of this test")
    }

    /// The same, with rows stored in several sequences and a stop.
    pub fn step_with(
        &mut self,
        parts: &[Part],
        outputs: &[u32],
        copies: &[KvCopy],
        stop: Option<Stop>,
    ) -> Result<Vec<Vec<u32>>> {
        let parts: Vec<_> = parts.iter().map(|p| (*p, None)).collect();
        self.step_adapted(&parts, outputs, copies, stop)
    }

    /// The same, with adapters.
    pub fn step_adapted(
        &mut self,
        parts: &[(Part, Option<Adapter>)],
        outputs: &[u32],
        copies: &[KvCopy],
        stop: Option<Stop>,
    ) -> Result<Vec<Vec<u32>>> {
        let tokens: Vec<u32> = parts.iter().flat_map(|(p, _)| p.tokens.to_vec()).collect();
        let seq = |(p, adapter): &(Part, Option<Adapter>)| SeqStep {
            adapter: *adapter,
            ..SeqStep::new(p.tokens.len(), p.start, &self.blocks[p.seq])
        };
        let seqs: Vec<SeqStep> = parts.iter().map(seq).collect();
        let step = StepInputs { copies, stop, ..StepInputs::new(&tokens, &seqs, outputs) };
        self.device.run(self.prepared, &step)?;
        let rows = if self.kind == Rows::Tokens { tokens.len() } else { outputs.len() };
        let mut values = vec![0.0f32; rows * self.logits.cols as usize];
        self.device
            .read(self.prepared, Readout::View(self.logits), &mut values)
            .expect("a value of the program");
        let bits = |r: &[f32]| r.iter().map(|x| x.to_bits()).collect();
        Ok(values.chunks_exact(self.logits.cols as usize).map(bits).collect())
    }

    /// Loads an adapter.
    pub fn load_adapter(&mut self, parts: &[AdapterPart]) -> Result<Adapter> {
        self.device.load_adapter(self.prepared, parts)
    }

    /// Frees it.
    pub fn unload_adapter(&mut self, adapter: Adapter) -> Result<()> {
        self.device.unload_adapter(self.prepared, adapter)
    }

    /// Bytes that the device holds.
    pub fn memory(&self) -> usize {
        self.device.memory()
    }

    /// Copies the cache of one sequence to another.
    pub fn fork(&mut self, from: usize, to: usize) {
        let pairs: Vec<_> = self.blocks[from].iter().copied().zip(self.blocks[to].iter().copied()).collect();
        self.device.copy_blocks(self.prepared, &pairs).expect("blocks of this test");
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
