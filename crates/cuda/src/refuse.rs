//! What programs ask for that has no kernels here. A program is refused by name when it is prepared, and never computed wrongly.

use quarrel_ir::{Lookup, Op, Program, WeightId};

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
    if program.ropes.iter().any(|t| t.first > 0 || t.growth.is_some()) {
        return Some(EXPERTS);
    }
    let many = |w: WeightId| program.weights[w.0 as usize].rows() > 1;
    program.ops.iter().find_map(|n| match &n.op {
        Op::Embed { by, add, .. } if *by != Lookup::Token || add.is_some() => Some(POSITIONS),
        Op::Attend { spec, .. } if spec.alibi.is_some() || spec.sinks.is_some() => Some(BIASED),
        Op::Attend { spec, .. } if spec.buckets.is_some() => Some(DISTANCES),
        Op::Attend { spec, .. } if spec.chunked || spec.blocks.is_some() => Some(EXPERTS),
        Op::Route { .. } | Op::MatMulExperts { .. } | Op::Combine { .. } => Some(EXPERTS),
        Op::ShortConv { .. } => Some(STATES),
        Op::Norm { norm, .. } if norm.weight.is_some_and(many) => Some(GAINS),
        Op::Clip { .. } => Some(GAINS),
        _ => None,
    })
}

const POSITIONS: &str =
    "models with a table of positions, as encoders, do not run on it; the CPU runs them (--device cpu)";
const BIASED: &str = "has no attention with ALiBi or sinks; the CPU has (--device cpu)";
const DISTANCES: &str =
    "has no attention with a bias by distance and none to a source (T5); the CPU has (--device cpu)";
const STATES: &str = "has no short convolutions and no recurrences; the CPU has (--device cpu)";
const EXPERTS: &str = "mixtures of experts, latent, chunked and block-sparse attention do not run on it; the CPU runs them (--device cpu)";
const GAINS: &str = "has no clipping and no norms with gains for each head; the CPU has (--device cpu)";
