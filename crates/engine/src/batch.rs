//! From the scheduler's plan to a device's [`StepInputs`]: the rows of all chunks, one after the other.

use crate::scheduler::Chunk;
use crate::sequence::Sequence;
use quarrel_ir::{Device, Prepared, SeqStep, StepInputs, Stop};

/// The step's tables, reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    tokens: Vec<u32>,
    outputs: Vec<u32>,
}

impl Batch {
    /// Runs the planned chunks on the device. Logits come in the order of the chunks and their outputs.
    pub(crate) fn run(
        &mut self,
        device: &mut dyn Device,
        prepared: Prepared,
        plan: &[Chunk],
        running: &[Sequence],
        stop: Option<Stop>,
    ) -> quarrel_ir::Result<()> {
        self.tokens.clear();
        self.outputs.clear();
        let mut seqs = Vec::with_capacity(plan.len());
        for chunk in plan {
            let s = &running[chunk.running];
            let first = self.tokens.len();
            self.outputs.extend(chunk.outputs.clone().map(|o| (first + o - chunk.rows.start) as u32));
            self.tokens.extend_from_slice(&s.tokens[chunk.rows.clone()]);
            seqs.push(SeqStep::new(chunk.rows.len(), chunk.rows.start, &s.blocks));
        }
        device.run(prepared, &StepInputs { stop, ..StepInputs::new(&self.tokens, &seqs, &self.outputs) })
    }
}
