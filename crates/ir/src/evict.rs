//! What a device needs to shorten a sequence in its cache: which tokens stay, where their keys were rotated, and how much
//! attention each has received.
//!
//! A shortened sequence is simply a shorter sequence: the kept tokens move to the front, and position stays index. So the
//! kept keys are rotated from their old to their new positions, as StreamingLLM (Xiao et al. 2023) and the context shift
//! of llama.cpp do.

use crate::op::Op;
use crate::program::{KvLayer, Program};
use crate::rope::{RopeId, RopeTable};
use crate::{Error, Result};

/// The tokens that stay, as ascending positions. A head is one key/value head of one layer, in the order of
/// [`Program::kv`] and of the heads in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// The same in every head.
    Tokens(Vec<u32>),
    /// One list per head, all of one length.
    PerHead(Vec<Vec<u32>>),
}

impl Keep {
    /// Tokens of the sequence afterwards.
    pub fn len(&self) -> usize {
        match self {
            Keep::Tokens(kept) => kept.len(),
            Keep::PerHead(heads) => heads.first().map_or(0, Vec::len),
        }
    }

    /// Whether nothing stays.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stays in one head.
    pub fn head(&self, head: usize) -> &[u32] {
        match self {
            Keep::Tokens(kept) => kept,
            Keep::PerHead(heads) => &heads[head],
        }
    }

    /// Checks the lists against a sequence of `tokens` tokens in `heads` heads.
    pub fn check(&self, heads: usize, tokens: usize) -> Result<()> {
        let lists = match self {
            Keep::Tokens(kept) => std::slice::from_ref(kept),
            Keep::PerHead(lists) => lists,
        };
        if matches!(self, Keep::PerHead(_)) && lists.len() != heads {
            return Err(Error::Step(format!("kept tokens of {} heads, the model has {heads}", lists.len())));
        }
        for (h, kept) in lists.iter().enumerate() {
            if kept.len() != self.len() {
                let why = format!("head {h} keeps {} tokens, head 0 keeps {}", kept.len(), self.len());
                return Err(Error::Step(why));
            }
            if !kept.is_sorted_by(|a, b| a < b) || kept.last().is_some_and(|t| *t as usize >= tokens) {
                let why = format!("head {h}: kept tokens are not ascending positions below {tokens}");
                return Err(Error::Step(why));
            }
        }
        Ok(())
    }
}

/// Asks a step to add up the attention weights of some rows of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe {
    /// Where the sums are kept: any number of the caller's, another for each sequence.
    pub slot: u32,
    /// How many of the sequence's rows of this step, the last ones.
    pub rows: usize,
}

/// Attention that the tokens of a sequence have received from the observed rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mass {
    /// Rows that were observed; each gave a mass of 1 in every head, for each layer that reads it.
    pub rows: usize,
    /// Tokens of the sequence when a row was last observed.
    pub tokens: usize,
    /// `[head][token]`, heads as in [`Keep`]: the sum over the rows of the softmax weight, in the mean over the query heads
    /// that read the head.
    pub sums: Vec<f32>,
}

impl Mass {
    /// The sums of one head.
    pub fn head(&self, head: usize) -> &[f32] {
        &self.sums[head * self.tokens..][..self.tokens]
    }
}

/// How a cached key is moved to another position.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRotation(RopeTable);

/// Columns `a` and `b` of a head turn by an angle: `(a cos - b sin, a sin + b cos)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// First column.
    pub a: usize,
    /// Second column.
    pub b: usize,
    /// Cosine of the angle.
    pub cos: f64,
    /// Sine of the angle.
    pub sin: f64,
}

impl KeyRotation {
    /// What takes a key from position `from` to `to`. The table's `mscale` is in the key already.
    pub fn turns(&self, from: u32, to: u32) -> impl Iterator<Item = Turn> + '_ {
        let by = f64::from(to) - f64::from(from);
        self.0.inv_freq.iter().enumerate().map(move |(i, f)| {
            let (a, b) = self.0.columns(i);
            let (sin, cos) = (by * f).sin_cos();
            Turn { a, b, cos, sin }
        })
    }
}

/// How the keys of each KV layer were rotated before they were stored: found from the tape, because the cache does not
/// know; none where they were not. Layer `l` belongs to `program.kv[l]`.
pub fn key_rotations(program: &Program) -> Result<Vec<Option<KeyRotation>>> {
    if program.positions().is_some() || program.looks_ahead() {
        let why =
            "keys have their positions from a table, or know what comes after them; neither can be moved";
        return Err(Error::Shape { at: "the cache".into(), why: why.into() });
    }
    if program.source_ops() > 0 {
        let why = "blocks hold a part of the source too, which cannot be moved with the tokens";
        return Err(Error::Shape { at: "the cache".into(), why: why.into() });
    }
    if program.ops.iter().any(|n| matches!(n.op, Op::Attend { spec, .. } if spec.blocks.is_some())) {
        let why = "attention is by blocks of positions, in which tokens cannot be moved";
        return Err(Error::Shape { at: "the cache".into(), why: why.into() });
    }
    if !program.states.is_empty() {
        let why = "a state has seen all tokens, and none can be taken out of it";
        return Err(Error::Shape { at: "the states".into(), why: why.into() });
    }
    if program.kv.iter().any(KvLayer::holds_inputs) {
        let why = "short convolutions read neighbours, and tokens that were none would become such";
        return Err(Error::Shape { at: "the cache".into(), why: why.into() });
    }
    let mut tables: Vec<Option<RopeId>> = vec![None; program.kv.len()];
    for (i, node) in program.ops.iter().enumerate() {
        let Op::StoreKv { k, kv_layer, .. } = node.op else { continue };
        let head_dim = program.kv[kv_layer as usize].head_dim;
        // From the cache back to the product that made the key.
        let mut view = k;
        for node in program.ops[..i].iter().rev() {
            let Some(out) = node.op.output() else { continue };
            if out.value != view.value || out.col >= view.col + view.cols || view.col >= out.col + out.cols {
                continue;
            }
            let whole = out.col <= view.col && out.col + out.cols >= view.col + view.cols;
            match node.op {
                Op::Rope { head_dim: rotated, table, .. } => {
                    let fits = whole && rotated == head_dim && (view.col - out.col) % head_dim == 0;
                    if !fits || view != k || tables[kv_layer as usize].replace(table).is_some() {
                        let why = "keys are rotated in a way that cannot be continued".into();
                        return Err(Error::Shape { at: format!("op {i} (store_kv)"), why });
                    }
                }
                // A factor is the same before and after a rotation.
                Op::Scale { .. } => {}
                Op::Norm { x, .. } if whole => view = x.slice(view.col - out.col, view.cols),
                _ => break,
            }
        }
    }
    Ok(tables.into_iter().map(|t| t.map(|t| KeyRotation(program.ropes[t.0 as usize].clone()))).collect())
}

/// Checks the arguments of [`crate::Device::compact`].
pub fn check_compact(
    program: &Program,
    kv_blocks: usize,
    from: &[u32],
    tokens: usize,
    to: &[u32],
    keep: &Keep,
) -> Result<()> {
    let need = |tokens: usize| tokens.div_ceil(crate::BLOCK_TOKENS);
    if from.len() < need(tokens) || to.len() < need(keep.len()) {
        return Err(Error::Step(format!(
            "{} and {} blocks for {tokens} tokens of which {} stay",
            from.len(),
            to.len(),
            keep.len()
        )));
    }
    if let Some(b) = from.iter().chain(to).find(|b| **b as usize >= kv_blocks) {
        return Err(Error::Step(format!("block {b} of {kv_blocks}")));
    }
    // A token moves to the front, so a block may be its own target, but not that of another.
    let (from, to) = (&from[..need(tokens)], &to[..need(keep.len())]);
    let clash = |(i, b): (usize, &u32)| {
        to[..i].contains(b) || from.iter().position(|f| f == b).is_some_and(|at| at != i)
    };
    if let Some((_, b)) = to.iter().enumerate().find(|t| clash(*t)) {
        return Err(Error::Step(format!("block {b} would be overwritten before it is read")));
    }
    keep.check(program.kv.iter().map(|l| l.kv_heads as usize).sum(), tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NormKind, NormSpec, RopeStyle, View};

    /// A product of two heads of queries, two of keys and two of values, and what `ops` makes of it before it is stored.
    fn program(ops: impl Fn(&mut Program, View, RopeId) -> View) -> Program {
        let mut p = Program::new();
        let table = p.weight("table", 4, 8);
        let w = p.weight("qkv", 48, 8);
        let rope = p.rope(RopeTable::new(RopeStyle::Neox, 6, 1e4, None));
        p.kv = vec![KvLayer { kv_heads: 2, head_dim: 8, v_dim: 8, window: None }];
        let x = p.embed("x", table, 1.0);
        let qkv = p.matmul("qkv", x, w, None);
        let k = ops(&mut p, qkv, rope);
        p.push(Op::StoreKv { k, v: qkv.slice(32, 16), kv_layer: 0 });
        p
    }

    #[test]
    fn the_rotation_of_keys_is_found_on_the_tape() {
        let norm = NormSpec { kind: NormKind::Rms, eps: 1e-5, group: 8, weight: None, bias: None };
        let rotate = |p: &mut Program, x, table| p.push(Op::Rope { x, head_dim: 8, table });
        type Ops<'a> = &'a dyn Fn(&mut Program, View, RopeId) -> View;
        let cases: [(&str, Ops, Option<bool>); 7] = [
            ("none", &|_, x, _| x.slice(16, 16), Some(false)),
            ("queries alone", &|p, x, t| (rotate(p, x.slice(0, 16), t), x.slice(16, 16)).1, Some(false)),
            ("keys", &|p, x, t| (rotate(p, x.slice(16, 16), t), x.slice(16, 16)).1, Some(true)),
            (
                "queries and keys at once",
                &|p, x, t| (rotate(p, x.slice(0, 32), t), x.slice(16, 16)).1,
                Some(true),
            ),
            (
                "normed, then rotated and scaled",
                &|p, x, t| {
                    let k = p.norm("k", x.slice(16, 16), norm);
                    rotate(p, k, t);
                    p.push(Op::Scale { x: k, by: 2.0 });
                    k
                },
                Some(true),
            ),
            (
                "rotated, then normed",
                &|p, x, t| {
                    rotate(p, x.slice(16, 16), t);
                    p.norm("k", x.slice(16, 16), norm)
                },
                None,
            ),
            ("one head of two", &|p, x, t| (rotate(p, x.slice(16, 8), t), x.slice(16, 16)).1, None),
        ];
        for (what, ops, want) in cases {
            let got = key_rotations(&program(ops));
            match want {
                None => assert!(got.is_err(), "{what}"),
                Some(rotated) => assert_eq!(got.unwrap()[0].is_some(), rotated, "{what}"),
            }
        }
    }

    #[test]
    fn inputs_of_convolutions_cannot_be_moved() {
        let mut p = program(|_, x, _| x.slice(16, 16));
        assert!(key_rotations(&p).is_ok());
        p.kv.push(KvLayer::inputs(8, 3));
        assert!(key_rotations(&p).unwrap_err().to_string().contains("short convolutions"));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let p = program(|_, x, _| x.slice(16, 16));
        let check = |from: &[u32], to: &[u32], keep| check_compact(&p, 8, from, 40, to, &keep);
        let tokens = |t: &[u32]| Keep::Tokens(t.to_vec());
        let most: Vec<u32> = (0..20).collect();
        check(&[0, 1, 2], &[3, 4], tokens(&most)).unwrap();
        check(&[0, 1, 2], &[0, 1], tokens(&most)).unwrap();
        check(&[0, 1, 2], &[3], Keep::PerHead(vec![vec![1, 5], vec![0, 39]])).unwrap();
        for (why, from, to, keep) in [
            ("too few blocks", &[0, 1][..], &[3, 4][..], tokens(&most)),
            ("too few targets", &[0, 1, 2], &[3], tokens(&most)),
            ("no such block", &[0, 1, 8], &[3, 4], tokens(&most)),
            ("a target before it is read", &[0, 1, 2], &[1, 3], tokens(&most)),
            ("a target twice", &[0, 1, 2], &[3, 3], tokens(&most)),
            ("not ascending", &[0, 1, 2], &[3, 4], tokens(&[3, 3])),
            ("no such token", &[0, 1, 2], &[3, 4], tokens(&[3, 40])),
            ("other heads", &[0, 1, 2], &[3, 4], Keep::PerHead(vec![vec![0]])),
            ("uneven", &[0, 1, 2], &[3, 4], Keep::PerHead(vec![vec![0], vec![0, 1]])),
        ] {
            assert!(check(from, to, keep).is_err(), "{why}");
        }
    }
}
