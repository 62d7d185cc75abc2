//! Bytes and operations of each op, so that every benchmark can print GB/s and the share of the machine's peak.

use crate::op::{Op, View};
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

/// The shape of a step, as far as cost goes.
#[derive(Debug, Clone, Copy)]
pub struct StepShape {
    /// Tokens in the step.
    pub rows: u64,
    /// Rows with logits.
    pub outputs: u64,
    /// Mean number of positions that a row attends to.
    pub context: u64,
    /// Bytes of one cached element.
    pub kv_element_bytes: u64,
}

/// The cost of `op`; `weight_bytes(i)` gives the stored size of weight `i`.
pub fn cost(program: &Program, op: &Op, step: &StepShape, weight_bytes: impl Fn(usize) -> u64) -> Cost {
    let rows = |v: View| match program.rows_of(v) {
        Rows::Tokens => step.rows,
        Rows::Outputs => step.outputs,
    };
    let mut c = Cost::default();
    op.clone().views_mut(|v, _| c.activation_bytes += rows(*v) * u64::from(v.cols) * 4);
    match op {
        Op::Embed { out, table, .. } => {
            let w = &program.weights[table.0 as usize];
            c.weight_bytes = weight_bytes(table.0 as usize) / u64::from(w.rows().max(1)) * step.rows;
            c.flops = rows(*out) * u64::from(out.cols);
        }
        Op::MatMul { x, weight, .. } => {
            let w = &program.weights[weight.0 as usize];
            c.weight_bytes = weight_bytes(weight.0 as usize);
            c.flops = 2 * rows(*x) * u64::from(w.rows()) * u64::from(w.cols);
        }
        Op::StoreKv { k, v, .. } => {
            c.kv_bytes = step.rows * u64::from(k.cols + v.cols) * step.kv_element_bytes;
        }
        Op::Attend { spec: s, .. } => {
            let seen = s.window.map_or(step.context, |w| step.context.min(u64::from(w)));
            c.kv_bytes = seen * u64::from(s.kv_heads * (s.head_dim + s.v_dim)) * step.kv_element_bytes;
            c.flops = 2 * step.rows * seen * u64::from(s.heads) * u64::from(s.head_dim + s.v_dim);
        }
        Op::Norm { x, .. } => c.flops = 4 * rows(*x) * u64::from(x.cols),
        Op::Rope { x, .. } => c.flops = 3 * rows(*x) * u64::from(x.cols),
        Op::Glu { out, .. } | Op::Activate { out, .. } => c.flops = 8 * rows(*out) * u64::from(out.cols),
        Op::Add { out, .. } => c.flops = rows(*out) * u64::from(out.cols),
        Op::Scale { x, .. } | Op::Softcap { x, .. } => c.flops = rows(*x) * u64::from(x.cols),
        Op::PickRows { .. } => {}
    }
    c
}
