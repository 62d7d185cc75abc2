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

    /// Notes what the sequences of a step have seen.
    pub(crate) fn end(&mut self, step: &StepInputs) {
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
