//! From the scheduler's plan to a device's [`StepInputs`]: the rows of all chunks, one after the other.

use crate::scheduler::{Ahead, Chunk, Taken};
use crate::sequence::Sequence;
use quarrel_ir::{Device, KvCopy, Observe, Prepared, SeqStep, StateCopy, StepInputs, Stop};

/// The step's tables, reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    tokens: Vec<u32>,
    outputs: Vec<u32>,
    copies: Vec<KvCopy>,
    snapshots: Vec<StateCopy>,
}

impl Batch {
    /// Rows of the last step that have logits.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// Runs the planned chunks on the device, each with the guesses behind it. Logits come in the order of the chunks and their
    /// outputs; those of a tree in the order of its rows. States are copied where it was planned.
    pub(crate) fn run(
        &mut self,
        device: &mut dyn Device,
        prepared: Prepared,
        plan: &[Chunk],
        (ahead, taken): (&[Ahead], &[Taken]),
        running: &[Sequence],
        stop: Option<Stop>,
    ) -> quarrel_ir::Result<()> {
        self.tokens.clear();
        self.outputs.clear();
        self.copies.clear();
        self.snapshots.clear();
        // Block tables of the branches of each tree.
        let table = |a: &Ahead| match running.iter().find(|s| s.id == a.id) {
            Some(s) => (0..a.layout.branches.len()).map(|b| a.blocks(b, s)).collect(),
            None => Vec::new(),
        };
        let tables: Vec<Vec<Vec<u32>>> = ahead.iter().map(table).collect();
        let mut seqs: Vec<SeqStep> = Vec::with_capacity(plan.len());
        for chunk in plan {
            let s = &running[chunk.running];
            let (first, adapter) = (self.tokens.len(), s.adapter);
            let Some((a, tables)) = ahead.iter().zip(&tables).find(|(a, _)| a.id == s.id) else {
                self.outputs.extend(chunk.outputs.clone().map(|o| (first + o - chunk.rows.start) as u32));
                self.tokens.extend_from_slice(&s.tokens[chunk.rows.clone()]);
                let of = taken.iter().filter(|t| t.id == s.id);
                self.snapshots.extend(of.map(|t| StateCopy {
                    row: (first + t.tokens - 1 - chunk.rows.start) as u32,
                    state: t.state(),
                }));
                let (rows, start) = (chunk.rows.len(), chunk.rows.start - s.dropped);
                let observed = s.evictor.as_ref().map_or(0, |e| e.observe(start, rows));
                let observe = (observed > 0).then_some(Observe { slot: s.slot(), rows: observed });
                let step = SeqStep::new(rows, start, &s.blocks);
                let (state, source) = (s.state(), s.source);
                seqs.push(SeqStep { observe, adapter, state, source, ..step });
                continue;
            };
            let copy = |(row, branch): &(usize, usize)| KvCopy {
                row: (first + row) as u32,
                seq: (seqs.len() + branch) as u32,
            };
            self.copies.extend(a.layout.shared.iter().map(copy));
            for (branch, blocks) in a.layout.branches.iter().zip(tables) {
                self.tokens.extend(branch.nodes.iter().map(|n| a.tree.nodes()[*n].token));
                let step = SeqStep::new(branch.nodes.len(), a.root + branch.depth, blocks);
                seqs.push(SeqStep { adapter, ..step });
            }
            self.outputs.extend(first as u32..self.tokens.len() as u32);
        }
        let step = StepInputs::new(&self.tokens, &seqs, &self.outputs);
        // Sources are never planned with other tokens.
        let source = plan.iter().any(|c| running[c.running].reads());
        let step = StepInputs { stop, copies: &self.copies, snapshots: &self.snapshots, source, ..step };
        device.run(prepared, &step)
    }
}
