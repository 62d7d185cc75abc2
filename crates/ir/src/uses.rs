//! What a Program does with each of its weights, and what devices ask of a Program before they keep the weights in their own form.

use crate::op::Op;
use crate::program::{Node, Program};
use crate::{Error, Result};
use std::collections::HashSet;

/// How a Program uses a weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uses {
    /// Gains, biases, sinks or taps, which are wanted as numbers.
    pub vector: bool,
    /// Multiplied with.
    pub matrix: bool,
    /// The matrix's first half gates its second.
    pub halves: bool,
    /// The matrix is one of experts: each of its parts is multiplied with alone.
    pub experts: bool,
    /// Its product chooses experts: where two are nearly alike, a rounded input would choose another one.
    pub exact: bool,
    /// Its rows are looked up.
    pub table: bool,
}

/// The uses of every weight of a Program, by `WeightId`.
pub fn uses(program: &Program) -> Vec<Uses> {
    let mut all = vec![Uses::default(); program.weights.len()];
    let logits = |n: &Node| match n.op {
        Op::Route { logits, .. } => Some(logits.value),
        _ => None,
    };
    let chooses: HashSet<_> = program.ops.iter().filter_map(logits).collect();
    for node in &program.ops {
        match node.op {
            Op::MatMul { out, weight, glu, .. } => {
                let uses = &mut all[weight.0 as usize];
                uses.exact |= chooses.contains(&out.value);
                (uses.matrix, uses.halves) = (true, uses.halves || glu.is_some());
            }
            Op::MatMulExperts { weight, glu, .. } => {
                let uses = &mut all[weight.0 as usize];
                uses.experts = true;
                (uses.matrix, uses.halves) = (true, uses.halves || glu.is_some());
            }
            Op::Embed { table, .. } => all[table.0 as usize].table = true,
            _ => {}
        }
        let vectors = match &node.op {
            Op::Norm { norm, .. } => [norm.weight, norm.bias, None],
            Op::MatMul { norm: Some(norm), bias, .. } => [norm.weight, norm.bias, *bias],
            Op::MatMul { bias, .. } | Op::MatMulExperts { bias, .. } | Op::Route { bias, .. } => {
                [*bias, None, None]
            }
            Op::Attend { spec, .. } => [spec.sinks, spec.buckets.map(|b| b.table), None],
            Op::Scan { spec, .. } => [spec.a, spec.skip, spec.dt_bias].map(Some),
            Op::ShortConv { weight, bias, .. } | Op::Conv { weight, bias, .. } => {
                [Some(*weight), *bias, None]
            }
            _ => [None; 3],
        };
        vectors.into_iter().flatten().for_each(|w| all[w.0 as usize].vector = true);
    }
    all
}

/// Checks that no op writes columns that it reads, but for those that work in place: kernels read their inputs while they write
/// their output.
pub fn check_overlap(program: &Program) -> Result<()> {
    for (i, node) in program.ops.iter().enumerate() {
        let Some(out) = node.op.output().filter(|_| !node.op.in_place()) else { continue };
        let mut clash = false;
        node.op.for_inputs(|v| {
            clash |= v.value == out.value && v.col < out.col + out.cols && out.col < v.col + v.cols;
        });
        if clash {
            let at = format!("op {i} ({})", node.op.name());
            return Err(Error::Shape { at, why: "the output overlaps an input".into() });
        }
    }
    Ok(())
}
