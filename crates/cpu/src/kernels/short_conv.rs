//! A short convolution between two gates: inputs go into the cache at their positions, and sums are made of what it holds, so
//! that a token's bits do not depend on whether the tokens before it came in its step.

use crate::exec::Run;
use crate::kv::Element;
use crate::pool::Team;
use crate::simd::{F32x16, Kernel, LANES, Simd};
use quarrel_ir::{BLOCK_TOKENS, Op, TAPS_MAX, WeightId};
use std::marker::PhantomData;

/// Floats of a thread's scratch for so many columns and taps: the taps in the order of their use, or a gated row.
pub(crate) fn scratch_len(cols: u32, taps: u32) -> usize {
    (cols as usize).next_multiple_of(LANES) * taps.max(1) as usize
}

/// The op, a thread's share of it. `E` is how the cache keeps inputs.
pub(crate) fn short_conv<E: Element>(run: &Run, team: &Team, scratch: &mut Vec<f32>, op: &Op) {
    let Op::ShortConv { weight, bias, .. } = *op else { return };
    run.isa.run(Store::<E>(run, team, scratch, op, PhantomData));
    // A row's sum is of inputs that other threads store.
    team.barrier();
    let bias = bias.map(|b| run.held(b).vector());
    run.isa.run(Sum::<E>(run, team, scratch, op, (weight, bias), PhantomData));
}

struct Store<'a, E>(&'a Run<'a>, &'a Team<'a>, &'a mut Vec<f32>, &'a Op, PhantomData<E>);

impl<E: Element> Kernel for Store<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Store(run, team, gated, op, _) = self;
        let Op::ShortConv { x, before, kv_layer, .. } = *op else { return };
        let (x, before) = (run.mat(x), run.mat(before));
        for r in team.share(run.places.len()) {
            // SAFETY: rows are split over the threads here and in the ops that wrote them, or a barrier lies between.
            let (x, before) = unsafe { (x.row(r), before.row(r)) };
            gated.clear();
            gated.resize(x.len(), 0.0);
            let lanes = x.chunks(LANES).zip(before.chunks(LANES));
            for ((x, gate), out) in lanes.zip(gated.chunks_mut(LANES)) {
                (s.load_partial(x, 0.0) * s.load_partial(gate, 0.0)).store_partial(out);
            }
            let (seq, position) = run.places[r];
            let (block, token) = (position / BLOCK_TOKENS, position % BLOCK_TOKENS);
            for seq in std::iter::once(&run.step.seqs[seq]).chain(run.step.copies_of(r)) {
                // SAFETY: rows, and so tokens, are split over the threads, copies with them; readers wait at a barrier; this
                // function and `Sum` have the same `E`.
                unsafe { run.kv.store_inputs::<S, E>(s, kv_layer as usize, seq.blocks[block], token, gated) };
            }
        }
    }
}

struct Sum<'a, E>(
    &'a Run<'a>,
    &'a Team<'a>,
    &'a mut Vec<f32>,
    &'a Op,
    (WeightId, Option<&'a [f32]>),
    PhantomData<E>,
);

impl<E: Element> Kernel for Sum<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Sum(run, team, turned, op, (weight, bias), _) = self;
        let Op::ShortConv { out, after, kv_layer, .. } = *op else { return };
        let (out, after) = (run.mat(out), run.mat(after));
        let rows = team.share(run.places.len());
        if rows.is_empty() {
            return;
        }
        let taps = run.program.weights[weight.0 as usize].cols as usize;
        // `[columns][taps]` becomes `[lanes of columns][taps][16]`.
        turned.clear();
        turned.resize(out.cols().next_multiple_of(LANES) * taps, 0.0);
        for (c, of_column) in run.held(weight).vector().chunks_exact(taps).enumerate() {
            let at = c / LANES * LANES * taps + c % LANES;
            of_column.iter().enumerate().for_each(|(j, w)| turned[at + j * LANES] = *w);
        }
        for r in rows {
            let (seq, position) = run.places[r];
            let blocks = run.step.seqs[seq].blocks;
            // The newest last; the first tokens of a sequence have fewer before them.
            let seen = taps.min(position + 1);
            let mut inputs = [std::ptr::null::<E>(); TAPS_MAX as usize];
            for (j, input) in inputs[..seen].iter_mut().enumerate() {
                let at = position + 1 - seen + j;
                *input = run.kv.inputs(kv_layer as usize, blocks[at / BLOCK_TOKENS], at % BLOCK_TOKENS);
            }
            // SAFETY: rows are split over the threads; `prepare` refused an output that overlaps an input.
            let (out, after) = unsafe { (out.row_mut(r), after.row(r)) };
            let lanes = out.chunks_mut(LANES).zip(after.chunks(LANES)).zip(turned.chunks_exact(LANES * taps));
            for (i, ((out, gate), weights)) in lanes.enumerate() {
                let mut sum = s.zero();
                for (input, w) in inputs[..seen].iter().zip(weights.chunks_exact(LANES).skip(taps - seen)) {
                    // SAFETY: a token's inputs are whole vectors, and nothing writes them now: see the barrier.
                    let u = unsafe { E::load_ptr(s, input.add(i * LANES)) };
                    sum = u.fma(s.load(w), sum);
                }
                if let Some(bias) = bias {
                    sum = sum + s.load_partial(&bias[i * LANES..][..out.len()], 0.0);
                }
                (sum * s.load_partial(gate, 0.0)).store_partial(out);
            }
        }
    }
}
