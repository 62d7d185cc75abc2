//! Fusion as Program -> Program rewrites, each small, each proved equal to the unfused tape by the reference.
//!
//! 1. products that read the same input become one (Q, K, V; gate and up);
//! 2. a norm that only feeds products is folded into their load;
//! 3. a gate over the two halves of one product becomes its epilogue;
//! 4. a residual addition becomes the epilogue of the product it adds.

use crate::op::{Op, View};
use crate::program::{Node, Program, ValueId, WeightDecl, WeightId};
use std::collections::HashMap;

/// Applies all rewrites.
pub fn fuse(program: &Program) -> Program {
    let mut p = program.clone();
    merge_products(&mut p);
    fold_norms(&mut p);
    gate_epilogues(&mut p);
    add_epilogues(&mut p);
    compact(&p)
}

/// Whether a view covers its whole value.
fn whole(p: &Program, v: View) -> bool {
    v.col == 0 && v.cols == p.values[v.value.0 as usize].cols
}

/// Indices of the ops that read any column of `value`, in-place ops included.
fn readers(p: &Program, value: ValueId) -> Vec<usize> {
    let reads = |op: &Op| {
        let mut hit = false;
        op.for_inputs(|v| hit |= v.value == value);
        hit
    };
    (0..p.ops.len()).filter(|&i| reads(&p.ops[i].op)).collect()
}

/// Whether an op in `range` writes `value`.
fn written_in(p: &Program, value: ValueId, mut range: std::ops::Range<usize>) -> bool {
    range.any(|i| p.ops[i].op.output().is_some_and(|o| o.value == value))
}

/// Stacks weights (or biases) into one declaration.
fn stack(p: &mut Program, ids: &[WeightId]) -> WeightId {
    let parts = ids.iter().flat_map(|id| p.weights[id.0 as usize].parts.clone()).collect();
    p.weights.push(WeightDecl { parts, cols: p.weights[ids[0].0 as usize].cols });
    WeightId(p.weights.len() as u32 - 1)
}

fn merge_products(p: &mut Program) {
    let mut i = 0;
    while i < p.ops.len() {
        let Some((x, has_bias)) = plain_product(p, i) else {
            i += 1;
            continue;
        };
        let group: Vec<usize> = (i..p.ops.len())
            .filter(|&j| plain_product(p, j) == Some((x, has_bias)) && !written_in(p, x.value, i..j))
            // What all layers make of one value (keys of a source) would be too wide together.
            .filter(|&j| p.ops[j].layer == p.ops[i].layer)
            .collect();
        if group.len() > 1 {
            merge_group(p, x, &group);
        }
        i += 1;
    }
}

/// Input and presence of a bias, if op `i` is a product without norm or epilogue into a whole value.
fn plain_product(p: &Program, i: usize) -> Option<(View, bool)> {
    match p.ops[i].op {
        // A bias of a stacked weight is stacked too, which needs vectors: one row each.
        Op::MatMul { out, x, norm: None, add: None, glu: None, bias, .. }
            if whole(p, out) && bias.is_none_or(|b| p.weights[b.0 as usize].rows() == 1) =>
        {
            Some((x, bias.is_some()))
        }
        _ => None,
    }
}

fn merge_group(p: &mut Program, x: View, group: &[usize]) {
    let (mut weights, mut biases, mut outs) = (Vec::new(), Vec::new(), Vec::new());
    for &j in group {
        if let Op::MatMul { out, weight, bias, .. } = p.ops[j].op {
            weights.push(weight);
            biases.extend(bias);
            outs.push(out);
        }
    }
    let weight = stack(p, &weights);
    let bias = (!biases.is_empty()).then(|| stack_bias(p, &biases));
    let name = p.values[outs[0].value.0 as usize].name;
    let wide = p.value(name, p.rows_of(outs[0]), p.weights[weight.0 as usize].rows());
    let mut at = 0;
    let moved: HashMap<ValueId, u32> = outs
        .iter()
        .map(|o| {
            at += o.cols;
            (o.value, at - o.cols)
        })
        .collect();
    for node in &mut p.ops {
        node.op.views_mut(|v, _| {
            if let Some(col) = moved.get(&v.value) {
                *v = View { value: wide.value, col: v.col + col, cols: v.cols };
            }
        });
    }
    p.ops[group[0]].op = Op::MatMul { out: wide, x, norm: None, weight, bias, add: None, glu: None };
    for &j in group[1..].iter().rev() {
        p.ops.remove(j);
    }
}

/// Stacks bias vectors: parts stay vectors, so the stacked "matrix" has one part per vector, each of one row; its
/// elements are the parts' elements in order. Lengths differ, so a stacked bias declares `cols` 1 and rows per part.
fn stack_bias(p: &mut Program, ids: &[WeightId]) -> WeightId {
    let parts = ids
        .iter()
        .map(|id| {
            let w = &p.weights[id.0 as usize];
            crate::program::WeightPart { name: w.parts[0].name.clone(), rows: w.cols }
        })
        .collect();
    p.weights.push(WeightDecl { parts, cols: 1 });
    WeightId(p.weights.len() as u32 - 1)
}

fn fold_norms(p: &mut Program) {
    let mut i = 0;
    while i < p.ops.len() {
        if let Op::Norm { out, x, norm, add: None } = p.ops[i].op {
            let users = readers(p, out.value);
            let all_products = users.iter().all(|&j| {
                matches!(p.ops[j].op, Op::MatMul { x: input, norm: None, .. } if input == out)
                    && !written_in(p, x.value, i..j)
            });
            if whole(p, out) && !users.is_empty() && all_products {
                for j in users {
                    if let Op::MatMul { x: input, norm: slot, .. } = &mut p.ops[j].op {
                        (*input, *slot) = (x, Some(norm));
                    }
                }
                p.ops.remove(i);
                continue;
            }
        }
        i += 1;
    }
}

fn gate_epilogues(p: &mut Program) {
    for i in 0..p.ops.len() {
        let Op::MatMul { out: wide, add: None, glu: None, .. } = p.ops[i].op else { continue };
        let users = readers(p, wide.value);
        let [j] = users[..] else { continue };
        let Op::Glu { out, gate, up, act } = p.ops[j].op else { continue };
        let half = wide.cols / 2;
        if whole(p, wide) && gate == wide.slice(0, half) && up == wide.slice(half, half) {
            if let Op::MatMul { out: o, glu, .. } = &mut p.ops[i].op {
                (*o, *glu) = (out, Some(act));
            }
            p.ops.remove(j);
            return gate_epilogues(p);
        }
    }
}

fn add_epilogues(p: &mut Program) {
    for i in 0..p.ops.len() {
        let Op::MatMul { out: y, add: None, glu: None, .. } = p.ops[i].op else { continue };
        let users = readers(p, y.value);
        let [j] = users[..] else { continue };
        let Op::Add { out, a, b, by: [1.0, 1.0] } = p.ops[j].op else { continue };
        let other = if a == y { b } else { a };
        if !whole(p, y) || (a != y && b != y) || other.value == y.value || written_in(p, other.value, i..j) {
            continue;
        }
        if let Op::MatMul { out: o, add, .. } = &mut p.ops[i].op {
            (*o, *add) = (out, Some(other));
        }
        p.ops.remove(j);
        return add_epilogues(p);
    }
}

/// Drops values and weights that no op uses, renumbering the rest in order of first use.
fn compact(p: &Program) -> Program {
    let mut out =
        Program { ropes: p.ropes.clone(), kv: p.kv.clone(), states: p.states.clone(), ..Program::default() };
    let mut values: HashMap<ValueId, ValueId> = HashMap::new();
    let mut weights: HashMap<WeightId, WeightId> = HashMap::new();
    let mut nodes: Vec<Node> = p.ops.clone();
    for node in &mut nodes {
        node.op.for_weights(|w| {
            weights.entry(w).or_insert_with(|| {
                out.weights.push(p.weights[w.0 as usize].clone());
                WeightId(out.weights.len() as u32 - 1)
            });
        });
        node.op.views_mut(|v, _| {
            v.value = *values.entry(v.value).or_insert_with(|| {
                out.values.push(p.values[v.value.0 as usize].clone());
                ValueId(out.values.len() as u32 - 1)
            });
        });
        node.op.weights_mut(|w| *w = weights[w]);
    }
    let renumber = |l: View| View { value: values[&l.value], ..l };
    (out.logits, out.hidden) = (p.logits.map(renumber), p.hidden.map(renumber));
    out.ops = nodes;
    out
}
