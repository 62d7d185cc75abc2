//! Conformance: what every device and every golden test needs to run a Program and compare it with the reference.
//!
//! Development only. The tests live in `tests/`: ops against the reference at odd shapes, fusion rewrites, tiny golden
//! models made by `transformers`, and real models.
#![forbid(unsafe_code)]

pub mod cases;
pub mod compare;
pub mod random;
pub mod rig;
pub mod tiny;

use quarrel_formats::Tensor;
use quarrel_ir::{
    BLOCK_TOKENS, Device, HostWeight, Limits, Prepared, Program, Readout, Result, Rows, SeqStep, StepInputs,
    View, Weight,
};
use std::collections::HashMap;

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

/// Loads the weights of `program` into `device` and prepares it.
pub fn prepare(
    device: &mut dyn Device,
    program: &Program,
    tensors: &Tensors,
    limits: Limits,
) -> Result<Prepared> {
    let weights = program
        .weights
        .iter()
        .map(|decl| {
            let parts = decl.parts.iter().map(|p| tensors[&p.name].clone()).collect();
            device.load(decl, HostWeight { parts })
        })
        .collect::<Result<Vec<Weight>>>()?;
    device.prepare(program.clone(), &weights, limits)
}

/// One sequence fed to a device in chunks; collects the rows of `read` that each chunk produced.
pub fn run_chunks(
    device: &mut dyn Device,
    prepared: Prepared,
    program: &Program,
    tokens: &[u32],
    chunks: &[usize],
    read: View,
) -> Result<Vec<f32>> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().collect();
    let (mut start, mut out) = (0, Vec::new());
    for &rows in chunks {
        let outputs: Vec<u32> = (0..rows as u32).collect();
        let seqs = [SeqStep::new(rows, start, &blocks)];
        let step = StepInputs::new(&tokens[start..start + rows], &seqs, &outputs);
        device.run(prepared, &step)?;
        let mut part = vec![0.0; rows * read.cols as usize];
        match program.rows_of(read) {
            Rows::Tokens => device.read(prepared, Readout::View(read), &mut part)?,
            Rows::Outputs => {
                for (i, row) in part.chunks_exact_mut(read.cols as usize).enumerate() {
                    device.read(prepared, Readout::Logits(i), row)?;
                }
            }
        }
        out.extend(part);
        start += rows;
    }
    assert_eq!(start, tokens.len(), "the chunks must cover the tokens");
    Ok(out)
}

/// A program that looks `tokens` up in an F32 table `[vocab, cols]` named `input`: the way to feed any matrix to an op.
pub fn input_program(vocab: u32, cols: u32) -> (Program, View) {
    let mut p = Program::new();
    let table = p.weight("input", vocab, cols);
    let x = p.embed("input", table, 1.0);
    (p, x)
}
