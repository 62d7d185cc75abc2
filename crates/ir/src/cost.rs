//! Bytes and operations of each op, so that every benchmark can print GB/s and the share of the machine's peak.

use crate::op::{Blocks, Op, View};
use crate::program::{Program, Rows};

/// What one op moves and computes in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Weight bytes read once.
    pub weight_bytes: u64,
    /// KV bytes read and written.
    pub kv_bytes: u64,
    /// Activation bytes read and written.
    pub activation_bytes: u64,
    /// Multiplications and additions.
    pub flops: u64,
}

/// What one step reads in the cache: the tokens of each of its sequences.
#[derive(Debug, Clone, Copy)]
pub struct StepShape<'a> {
    /// Cached tokens before the step, and tokens of the step, of each sequence.
    pub seqs: &'a [(u64, u64)],
    /// Rows with logits.
    pub outputs: u64,
    /// Bytes of one cached element.
    pub kv_element_bytes: u64,
    /// Tokens of the source of each sequence, where it has one.
    pub source: u64,
}

impl StepShape<'_> {
    /// Tokens in the step.
    pub fn rows(&self) -> u64 {
        self.seqs.iter().map(|(_, rows)| rows).sum()
    }

    /// Sequences that have rows: those whose states are read and written.
    fn states(&self) -> u64 {
        self.seqs.iter().filter(|(_, rows)| *rows > 0).count() as u64
    }

    /// Cached positions that are read, each once for its sequence however many rows look at it.
    fn read(&self, window: Option<u32>) -> u64 {
        let one = |(start, rows): &(u64, u64)| {
            let all = start + rows;
            window.map_or(all, |w| all.min(rows + u64::from(w) - 1))
        };
        self.seqs.iter().filter(|(_, rows)| *rows > 0).map(one).sum()
    }

    /// The same of blocks, by one head, about.
    fn read_by_blocks(&self, blocks: &Blocks) -> u64 {
        let one = |(start, rows): &(u64, u64)| match rows {
            0 => 0,
            n => (start + n).min(blocks.seen(start + n - 1) + n - 1),
        };
        self.seqs.iter().map(one).sum()
    }

    fn attended_by_blocks(&self, blocks: &Blocks) -> u64 {
        self.seqs.iter().flat_map(|(start, rows)| (*start..start + rows).map(|p| blocks.seen(p))).sum()
    }

    /// Pairs of a row and a position that it attends to.
    fn attended(&self, window: Option<u32>, causal: bool) -> u64 {
        let window = window.map_or(u64::MAX, u64::from);
        let one = |(start, rows): &(u64, u64)| match causal {
            true => (1..=*rows).map(|r| (start + r).min(window)).sum::<u64>(),
            false => rows * (start + rows),
        };
        self.seqs.iter().map(one).sum()
    }
}

/// The cost of `op`; `weight_bytes(i)` gives the stored size of weight `i`.
pub fn cost(program: &Program, op: &Op, step: &StepShape, weight_bytes: impl Fn(usize) -> u64) -> Cost {
    let rows = |v: View| match program.rows_of(v) {
        Rows::Tokens => step.rows(),
        Rows::Outputs => step.outputs,
    };
    let mut c = Cost::default();
    op.clone().views_mut(|v, _| c.activation_bytes += rows(*v) * u64::from(v.cols) * 4);
    match op {
        Op::Embed { out, table, .. } => {
            let w = &program.weights[table.0 as usize];
            c.weight_bytes = weight_bytes(table.0 as usize) / u64::from(w.rows().max(1)) * step.rows();
            c.flops = rows(*out) * u64::from(out.cols);
        }
        // A product of no rows (a prompt's head before the last step) reads nothing.
        Op::MatMul { x, weight, .. } if rows(*x) > 0 => {
            let w = &program.weights[weight.0 as usize];
            c.weight_bytes = weight_bytes(weight.0 as usize);
            c.flops = 2 * rows(*x) * u64::from(w.rows()) * u64::from(w.cols);
        }
        // Of the experts, those that are chosen, when no two rows choose the same; it cannot be known before.
        Op::MatMulExperts { out, route, experts, weight, .. } => {
            let w = &program.weights[weight.0 as usize];
            let used = u64::from(route.map_or(*experts, |r| r.cols / 2));
            let (pairs, experts) = (rows(*out) * used, u64::from(*experts));
            c.weight_bytes = weight_bytes(weight.0 as usize) / experts.max(1) * pairs.min(experts);
            c.flops = 2 * pairs * u64::from(w.rows()) / experts.max(1) * u64::from(w.cols);
        }
        Op::Combine { x, sums, .. } => c.flops = 2 * rows(*x) * u64::from(x.cols) * u64::from(*sums),
        Op::Route { logits, .. } => c.flops = 8 * rows(*logits) * u64::from(logits.cols),
        Op::StoreKv { k, v, .. } => {
            c.kv_bytes = step.rows() * u64::from(k.cols + v.cols) * step.kv_element_bytes;
        }
        Op::Attend { spec: s, .. } => {
            let position = u64::from(s.kv_heads * (s.head_dim + s.v_dim)) * step.kv_element_bytes;
            let (read, attended) = match s.blocks {
                // The keys and values of the source, all of them for every row.
                _ if s.of_source => (step.states() * step.source, step.rows() * step.source),
                None => (step.read(s.window), step.attended(s.window, s.causal)),
                // Heads do not share what they read.
                Some(b) => {
                    (step.read_by_blocks(&b) * u64::from(s.heads / s.kv_heads), step.attended_by_blocks(&b))
                }
            };
            c.kv_bytes = read * position;
            c.flops = 2 * attended * u64::from(s.heads) * u64::from(s.head_dim + s.v_dim);
        }
        Op::ShortConv { x, weight, .. } => {
            let taps = program.weights[weight.0 as usize].cols;
            let position = u64::from(x.cols) * step.kv_element_bytes;
            c.kv_bytes = (step.rows() + step.read(Some(taps))) * position;
            c.flops = 2 * rows(*x) * u64::from(x.cols) * u64::from(taps + 1);
        }
        Op::Conv { x, weight, state, .. } => {
            let taps = program.weights[weight.0 as usize].cols;
            c.kv_bytes = step.states() * 8 * u64::from(program.states[*state as usize]);
            c.flops = rows(*x) * u64::from(x.cols) * u64::from(2 * taps + 4);
        }
        Op::Scan { x, state, .. } => {
            let numbers = u64::from(program.states[*state as usize]);
            c.kv_bytes = step.states() * 8 * numbers;
            c.flops = 5 * rows(*x) * numbers;
        }
        Op::Norm { x, .. } | Op::Rescale { x, .. } | Op::Cutoff { x, .. } => {
            c.flops = 4 * rows(*x) * u64::from(x.cols)
        }
        Op::Rope { x, .. } => c.flops = 3 * rows(*x) * u64::from(x.cols),
        Op::Glu { out, .. } | Op::Activate { out, .. } => c.flops = 8 * rows(*out) * u64::from(out.cols),
        Op::Add { out, .. } => c.flops = rows(*out) * u64::from(out.cols),
        Op::Scale { x, .. } | Op::Clip { x, .. } | Op::Softcap { x, .. } => {
            c.flops = rows(*x) * u64::from(x.cols)
        }
        // An exponential of each logit.
        Op::TopK { x, .. } => c.flops = 8 * rows(*x) * u64::from(x.cols),
        Op::MatMul { .. } | Op::PickRows { .. } => {}
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_bounds_what_is_read_and_seen() {
        let shape = |seqs| StepShape { seqs, outputs: 1, kv_element_bytes: 2, source: 0 };
        let prompt = shape(&[(0, 4)]);
        assert_eq!((prompt.rows(), prompt.read(None), prompt.attended(None, true)), (4, 4, 1 + 2 + 3 + 4));
        assert_eq!(prompt.attended(None, false), 4 * 4);
        assert_eq!((prompt.read(Some(2)), prompt.attended(Some(2), true)), (4, 1 + 2 + 2 + 2));
        let mixed = shape(&[(100, 1), (7, 3)]);
        assert_eq!(
            (mixed.rows(), mixed.read(None), mixed.attended(None, true)),
            (4, 101 + 10, 101 + 8 + 9 + 10)
        );
        assert_eq!((mixed.read(Some(8)), mixed.attended(Some(8), true)), (8 + 10, 4 * 8));
    }
}
