//! A prepared Program that is fed steps of several sequences and answers with bits: the ground of the invariance tests.

use crate::{Tensors, prepare};
use quarrel_ir::{BLOCK_TOKENS, Device, Limits, Prepared, Program, Readout, Rows, SeqStep, StepInputs, View};

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
        let tokens: Vec<u32> = parts.iter().flat_map(|p| p.tokens.to_vec()).collect();
        let seqs: Vec<SeqStep> = parts
            .iter()
            .map(|p| SeqStep { rows: p.tokens.len(), start: p.start, blocks: &self.blocks[p.seq] })
            .collect();
        let step = StepInputs { tokens: &tokens, seqs: &seqs, outputs };
        self.device.run(self.prepared, &step).expect("a step of this test");
        let rows = if self.kind == Rows::Tokens { tokens.len() } else { outputs.len() };
        let mut values = vec![0.0f32; rows * self.logits.cols as usize];
        self.device
            .read(self.prepared, Readout::View(self.logits), &mut values)
            .expect("a value of the program");
        values
            .chunks_exact(self.logits.cols as usize)
            .map(|r| r.iter().map(|x| x.to_bits()).collect())
            .collect()
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
