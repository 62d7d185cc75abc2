//! Which ops need a barrier before them: found from what each op reads and writes, and from how its work is split.
//!
//! An op whose rows are split over the threads may follow another of the same split without waiting, because a thread
//! meets only rows of its own. Values that share memory in the arena conflict like one value would.

use quarrel_ir::arena::{Arena, Slot};
use quarrel_ir::{Node, Op, Program, Rows, View};

/// In-place and elementwise ops on matrices at least this wide (logits) are split by columns too.
pub(crate) const WIDE: u32 = 16 * 1024;

/// Which thread does which part of an op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    /// Rows of the step, the same rows for every op.
    Tokens,
    /// Rows of the outputs.
    Outputs,
    /// The op's own way.
    Own,
}

/// What an access touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Arena(Slot),
    Cache(u32),
    /// Buffers that all threads share within a product or an attention.
    Shared,
}

#[derive(Debug, Clone, Copy)]
struct Access {
    place: Place,
    split: Split,
    write: bool,
}

impl Access {
    fn conflicts(&self, other: &Access) -> bool {
        let overlap = match (self.place, other.place) {
            (Place::Arena(a), Place::Arena(b)) => {
                a.offset < b.offset + b.stride * b.rows && b.offset < a.offset + a.stride * a.rows
            }
            (a, b) => a == b,
        };
        let same_split = self.split == other.split && self.split != Split::Own && self.place == other.place;
        overlap && (self.write || other.write) && !same_split
    }
}

/// Whether an op's work is split by rows.
pub(crate) fn by_rows(op: &Op) -> bool {
    match op {
        Op::Embed { .. }
        | Op::Norm { .. }
        | Op::Rope { .. }
        | Op::StoreKv { .. }
        | Op::ShortConv { .. }
        | Op::Route { .. }
        | Op::Combine { .. }
        | Op::Rescale { .. }
        | Op::Cutoff { .. }
        | Op::TopK { .. }
        | Op::PickRows { .. } => true,
        Op::MatMul { .. }
        | Op::MatMulExperts { .. }
        | Op::Attend { .. }
        | Op::Conv { .. }
        | Op::Scan { .. } => false,
        Op::Glu { out, .. } | Op::Activate { out, .. } | Op::Add { out, .. } => out.cols < WIDE,
        Op::Scale { x, .. } | Op::Clip { x, .. } | Op::Softcap { x, .. } => x.cols < WIDE,
    }
}

fn accesses(program: &Program, arena: &Arena, node: &Node) -> Vec<Access> {
    let split_of = |v: View| match program.rows_of(v) {
        Rows::Tokens => Split::Tokens,
        Rows::Outputs => Split::Outputs,
    };
    let rows = by_rows(&node.op);
    let mut all = Vec::new();
    let at = |v: View, write: bool| {
        // PickRows reads rows of other threads.
        let picks = matches!(node.op, Op::PickRows { .. }) && !write;
        let split = if rows && !picks { split_of(v) } else { Split::Own };
        Access { place: Place::Arena(arena.slots[v.value.0 as usize]), split, write }
    };
    node.op.for_inputs(|v| all.push(at(v, false)));
    all.extend(node.op.output().map(|v| at(v, true)));
    match &node.op {
        Op::StoreKv { kv_layer, .. } => {
            all.push(Access { place: Place::Cache(*kv_layer), split: Split::Tokens, write: true });
        }
        // Between its own writing and reading it waits by itself.
        Op::ShortConv { kv_layer, .. } => {
            all.push(Access { place: Place::Cache(*kv_layer), split: Split::Own, write: true });
        }
        Op::Attend { spec, .. } => {
            all.push(Access { place: Place::Cache(spec.kv_layer), split: Split::Own, write: false });
            all.push(Access { place: Place::Shared, split: Split::Own, write: true });
        }
        Op::MatMul { .. } | Op::MatMulExperts { .. } => {
            all.push(Access { place: Place::Shared, split: Split::Own, write: true })
        }
        _ => {}
    }
    all
}

/// For each op, whether all threads must have finished what is before it.
pub(crate) fn barriers(program: &Program, arena: &Arena) -> Vec<bool> {
    let mut open: Vec<Access> = Vec::new();
    program
        .ops
        .iter()
        .map(|node| {
            let now = accesses(program, arena, node);
            let wait = now.iter().any(|a| open.iter().any(|b| a.conflicts(b)));
            if wait {
                open.clear();
            }
            open.extend(now);
            wait
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarrel_ir::{Activation, AttendSpec, KvLayer, Limits, RopeStyle, RopeTable};

    #[test]
    fn row_ops_run_on_and_products_and_attention_wait() {
        let mut p = Program::new();
        p.kv.push(KvLayer { kv_heads: 1, head_dim: 8, v_dim: 8, window: None });
        let table = p.weight("e", 16, 8);
        let x = p.embed("x", table, 1.0);
        let w = p.weight("w", 24, 8);
        let qkv = p.matmul("qkv", x, w, None);
        let rope = p.rope(RopeTable::new(RopeStyle::Neox, 8, 1e4, None));
        p.push(Op::Rope { x: qkv.slice(0, 8), head_dim: 8, table: rope });
        p.push(Op::Rope { x: qkv.slice(8, 8), head_dim: 8, table: rope });
        p.push(Op::StoreKv { k: qkv.slice(8, 8), v: qkv.slice(16, 8), kv_layer: 0 });
        let spec = AttendSpec {
            kv_layer: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            v_dim: 8,
            scale: 1.0,
            causal: true,
            window: None,
            softcap: None,
            alibi: None,
            buckets: None,
            of_source: false,
            chunked: false,
            sinks: None,
            blocks: None,
        };
        let a = p.attend(qkv.slice(0, 8), spec);
        let y = p.value("y", Rows::Tokens, 8);
        p.push(Op::Activate { out: y, x: a, act: Activation::Silu });
        let z = p.add("z", x, y);
        let picked = p.value("picked", Rows::Outputs, 8);
        p.push(Op::PickRows { out: picked, x: z });
        let logits = p.matmul("logits", picked, table, None);
        p.push(Op::Softcap { x: logits, cap: 30.0 });
        p.logits = Some(logits);
        p.check().unwrap();
        let limits = Limits { rows: 4, outputs: 2, kv_blocks: 1 };
        for keep_all in [false, true] {
            let got = barriers(&p, &Arena::plan(&p, &limits, keep_all));
            // embed, qkv, rope, rope, store, attend, activate, add, pick, logits, softcap
            let t = true;
            let f = false;
            assert_eq!(got[..6], [f, t, t, f, f, t], "keep_all {keep_all}");
            assert_eq!(got[6..], [t, f, t, t, t], "keep_all {keep_all}");
        }
    }

    #[test]
    fn a_value_in_the_memory_of_a_dead_one_with_other_rows_waits() {
        let slot = |offset, stride| Place::Arena(Slot { offset, stride, rows: 4 });
        let access = |place, split, write| Access { place, split, write };
        let read = access(slot(0, 16), Split::Tokens, false);
        assert!(!read.conflicts(&access(slot(0, 16), Split::Tokens, true)));
        assert!(read.conflicts(&access(slot(0, 32), Split::Tokens, true)), "rows lie elsewhere");
        assert!(read.conflicts(&access(slot(48, 16), Split::Tokens, true)), "another row's memory");
        assert!(!read.conflicts(&access(slot(64, 16), Split::Own, true)));
        assert!(!read.conflicts(&access(slot(0, 16), Split::Own, false)));
    }
}
