//! What sequences keep beside the cache: numbers that every token changes, by the numbers that the caller gives sequences.

use crate::exec::Memory;
use crate::kernels::recurrent;
use quarrel_ir::{Program, Result, StepInputs, check_states};
use std::collections::HashMap;

/// Bytes of one sequence's states.
pub fn state_bytes(program: &Program) -> usize {
    4 * recurrent::places(program).1
}

/// The states of one prepared Program.
pub(crate) struct States {
    /// Where each of a sequence's states begins.
    pub(crate) places: Vec<usize>,
    floats: usize,
    held: HashMap<u32, State>,
}

struct State {
    /// Tokens that it has seen.
    seen: usize,
    numbers: Vec<f32>,
}

impl States {
    pub(crate) fn new(program: &Program) -> States {
        let (places, floats) = recurrent::places(program);
        States { places, floats, held: HashMap::new() }
    }

    /// Whether the Program has none.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> usize {
        4 * self.held.values().map(|s| s.numbers.len()).sum::<usize>()
    }

    /// The memory of each sequence of a step, zeros for those that begin.
    pub(crate) fn begin(&mut self, step: &StepInputs) -> Result<Vec<Memory>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        check_states(step, |s| self.held.get(&s).map(|s| s.seen))?;
        let memory = |seq: &quarrel_ir::SeqStep| {
            let state = self.held.entry(seq.state).or_insert_with(|| State { seen: 0, numbers: Vec::new() });
            if seq.start == 0 {
                state.numbers.clear();
                state.numbers.resize(self.floats, 0.0);
            }
            // Until the step has run to its end it is that of no number of tokens.
            state.seen = usize::MAX;
            Memory(state.numbers.as_mut_ptr())
        };
        Ok(step.seqs.iter().map(memory).collect())
    }

    /// The memory of what takes copies of states in a step, with the rows after which they are made.
    pub(crate) fn begin_copies(&mut self, step: &StepInputs) -> Vec<(usize, Memory)> {
        if self.is_empty() {
            return Vec::new();
        }
        let memory = |copy: &quarrel_ir::StateCopy| {
            let state = self.held.entry(copy.state).or_insert_with(|| State { seen: 0, numbers: Vec::new() });
            // Every op copies its own part; between the parts are columns that nobody reads.
            state.numbers.resize(self.floats, 0.0);
            state.seen = usize::MAX;
            (copy.row as usize, Memory(state.numbers.as_mut_ptr()))
        };
        step.snapshots.iter().map(memory).collect()
    }

    /// Bytes of one sequence's states.
    pub(crate) fn each(&self) -> usize {
        4 * self.floats
    }

    /// Notes what the sequences of a step, and the copies of their states, have seen.
    pub(crate) fn end(&mut self, step: &StepInputs) {
        if self.is_empty() {
            return;
        }
        let mut rows = 0;
        let mut copies = step.snapshots.iter().peekable();
        for seq in step.seqs {
            while let Some(copy) = copies.next_if(|c| (c.row as usize) < rows + seq.rows) {
                let seen = seq.start + copy.row as usize - rows + 1;
                self.held.entry(copy.state).and_modify(|s| s.seen = seen);
            }
            rows += seq.rows;
        }
        for seq in step.seqs {
            self.held.entry(seq.state).and_modify(|s| s.seen = seq.start + seq.rows);
        }
    }

    /// Gives one sequence the state of another, if it has one.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        if let Some((seen, numbers)) = self.held.get(&from).map(|s| (s.seen, s.numbers.clone())) {
            self.held.insert(to, State { seen, numbers });
        }
    }

    pub(crate) fn forget(&mut self, state: u32) {
        self.held.remove(&state);
    }
}
