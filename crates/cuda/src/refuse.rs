//! What programs ask for that has no kernels here. A program is refused by name when it is prepared, and never computed wrongly.

use quarrel_ir::{Lookup, NormKind, Op, Program};

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
        Op::Embed { by: Lookup::TokenOr(_), .. } | Op::Rescale { .. } | Op::Cutoff { .. } => Some(STREAMS),
        Op::Combine { sums, .. } if *sums != 1 => Some(STREAMS),
        Op::Add { by, .. } if *by != [1.0; 2] => Some(STREAMS),
        Op::Norm { norm, .. } | Op::MatMul { norm: Some(norm), .. } if norm.kind == NormKind::Plain => {
            Some(STREAMS)
        }
        Op::Attend { spec, .. } if spec.buckets.is_some() => Some(DISTANCES),
        Op::Attend { spec, .. } if spec.blocks.is_some() => Some(BLOCKS),
        Op::ShortConv { .. } => Some(STATES),
        _ => None,
    })
}

const STREAMS: &str = "models of several streams with inputs for each layer (Gemma 3n) do not run on it; the CPU runs them (--device cpu)";
const POSITIONS: &str =
    "models whose attention is not causal, as encoders, do not run on it; the CPU runs them (--device cpu)";
const DISTANCES: &str =
    "has no attention with a bias by distance and none to a source (T5); the CPU has (--device cpu)";
const STATES: &str = "has no short convolutions and no recurrences; the CPU has (--device cpu)";
const BLOCKS: &str = "has no block-sparse attention; the CPU has (--device cpu)";

#[cfg(test)]
mod tests {
    use super::*;
    use quarrel_ir::Rows;

    #[test]
    fn streams_are_refused_by_name() {
        let mut plain = Program::new();
        let table = plain.weight("table", 8, 4);
        let x = plain.embed("x", table, 1.0);
        plain.add("y", x, x);
        assert_eq!(unsupported(&plain), None);
        let out = |p: &mut Program| p.value("out", Rows::Tokens, 4);
        let ops: [&dyn Fn(&mut Program) -> Op; 5] = [
            &|_| Op::Cutoff { x, by: 1.0 },
            &|p| Op::Rescale { out: out(p), x, like: x, floor: 0.0 },
            &|p| Op::Add { out: out(p), a: x, b: x, by: [1.0, -1.0] },
            &|p| Op::Combine { out: out(p), x, weights: x, sums: 2, add: None },
            &|p| Op::Embed { out: out(p), table, scale: 1.0, by: Lookup::TokenOr(0), add: None },
        ];
        for op in ops {
            let mut p = plain.clone();
            let op = op(&mut p);
            p.push(op);
            assert!(unsupported(&p).is_some_and(|why| why.contains("Gemma 3n")), "{:?}", p.ops.last());
        }
    }
}
