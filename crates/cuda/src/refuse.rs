//! What programs ask for that has no kernels here. A program is refused by name when it is prepared, and never computed wrongly.

use quarrel_ir::{Op, Program};

/// Why a program cannot run, if it cannot.
pub(crate) fn unsupported(program: &Program) -> Option<&'static str> {
    if program.looks_ahead() {
        return Some(POSITIONS);
    }
    if program.source_ops() > 0 {
        return Some(DISTANCES);
    }
    if !program.states.is_empty() {
        return Some(STATES);
    }
    program.ops.iter().find_map(|n| match &n.op {
        Op::Attend { spec, .. } if spec.buckets.is_some() => Some(DISTANCES),
        Op::Attend { spec, .. } if spec.blocks.is_some() => Some(BLOCKS),
        Op::ShortConv { .. } => Some(STATES),
        _ => None,
    })
}

const POSITIONS: &str =
    "models whose attention is not causal, as encoders, do not run on it; the CPU runs them (--device cpu)";
const DISTANCES: &str =
    "has no attention with a bias by distance and none to a source (T5); the CPU has (--device cpu)";
const STATES: &str = "has no short convolutions and no recurrences; the CPU has (--device cpu)";
const BLOCKS: &str = "has no block-sparse attention; the CPU has (--device cpu)";
