//! From the lifetimes of values to offsets in one buffer, so that nothing is allocated or fragmented per step.

use crate::device::Limits;
use crate::program::{Program, Rows};

/// Where a value lives: row `r`, column `c` is element `offset + r * stride + c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// Elements from one row to the next: the columns, rounded up to [`ALIGN`].
    pub stride: usize,
    /// Rows reserved.
    pub rows: usize,
}

/// Slots start at multiples of this many f32 (64 bytes).
pub const ALIGN: usize = 16;

/// A plan for all values of a Program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arena {
    /// By [`crate::ValueId`].
    pub slots: Vec<Slot>,
    /// Elements in all.
    pub elements: usize,
}

impl Arena {
    /// Places every value; values that are never alive together may share memory. With `keep_all` nothing is shared,
    /// so that every value can be read after a step. The logits, their
    /// candidates and the hidden rows are never shared.
    pub fn plan(program: &Program, limits: &Limits, keep_all: bool) -> Arena {
        let n = program.values.len();
        let (mut first, mut last) = (vec![usize::MAX; n], vec![0; n]);
        for (i, node) in program.ops.iter().enumerate() {
            node.op.clone().views_mut(|v, _| {
                let v = v.value.0 as usize;
                first[v] = first[v].min(i);
                last[v] = last[v].max(i);
            });
        }
        for kept in program.logits.into_iter().chain(program.hidden).chain(program.candidates) {
            last[kept.value.0 as usize] = usize::MAX;
        }
        if keep_all {
            last.fill(usize::MAX);
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&v| first[v]);
        let mut slots = vec![Slot { offset: 0, stride: 0, rows: 0 }; n];
        let mut placed: Vec<usize> = Vec::new();
        let mut elements = 0;
        for v in order {
            let value = &program.values[v];
            let rows = match value.rows {
                Rows::Tokens => limits.rows,
                Rows::Outputs => limits.outputs,
            };
            let stride = (value.cols as usize).next_multiple_of(ALIGN);
            let size = stride * rows;
            // First gap between the slots alive at the same time; a value read by the op that writes another is alive.
            let mut alive: Vec<Slot> =
                placed.iter().filter(|&&p| last[p] >= first[v]).map(|&p| slots[p]).collect();
            alive.sort_by_key(|s| s.offset);
            let mut offset = 0;
            for s in alive {
                if s.offset >= offset + size {
                    break;
                }
                offset = offset.max(s.offset + s.stride * s.rows);
            }
            slots[v] = Slot { offset, stride, rows };
            elements = elements.max(offset + size);
            placed.push(v);
        }
        Arena { slots, elements }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Activation, Op};

    #[test]
    fn values_alive_together_never_overlap_and_dead_ones_are_reused() {
        let mut p = Program::new();
        let table = p.weight("e", 4, 20);
        let x = p.embed("x", table, 1.0);
        let mut y = x;
        for _ in 0..6 {
            let z = p.value("z", Rows::Tokens, 20);
            p.push(Op::Activate { out: z, x: y, act: Activation::Relu });
            y = z;
        }
        p.logits = Some(y);
        p.check().unwrap();
        let limits = Limits { rows: 3, outputs: 1, kv_blocks: 1 };
        let a = Arena::plan(&p, &limits, false);
        let size = 32 * 3;
        assert!(a.elements <= 3 * size, "six values in turn need two slots and the logits: {}", a.elements);
        for w in 0..6 {
            assert_ne!(
                a.slots[w].offset,
                a.slots[w + 1].offset,
                "an op's input and output are alive together"
            );
        }
        assert_eq!(Arena::plan(&p, &limits, true).elements, 7 * size);
    }
}
