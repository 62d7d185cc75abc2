//! Ops with states: a convolution whose last inputs are kept, and the recurrence of Mamba-2.
//!
//! Rows of a sequence are walked in order, and threads share columns or heads, so that a row's bits depend on the tokens before
//! it alone: not on how they were cut into steps, and not on other sequences.

use crate::exec::{Memory, Run};
use crate::pool::Team;
use crate::simd::{F32x16, Kernel, LANES, Simd};
use quarrel_ir::{Op, Program, TAPS_MAX};

fn padded(n: u32) -> usize {
    (n as usize).next_multiple_of(LANES)
}

/// Where each state of a sequence begins, and the floats of all: rows are whole vectors.
pub(crate) fn places(program: &Program) -> (Vec<usize>, usize) {
    let mut sizes = vec![0; program.states.len()];
    for node in &program.ops {
        match &node.op {
            Op::Conv { x, weight, state, .. } => {
                let taps = program.weights[weight.0 as usize].cols as usize;
                sizes[*state as usize] = taps.saturating_sub(1) * padded(x.cols);
            }
            Op::Scan { x, spec, state, .. } => {
                sizes[*state as usize] = x.cols as usize * padded(spec.state_dim);
            }
            _ => {}
        }
    }
    let mut at = 0;
    let places = sizes.iter().map(|n| {
        at += n;
        at - n
    });
    (places.collect(), at)
}

/// Where the state is copied to after a row, if it is.
fn snapshot<'a>(run: &Run<'a>, row: usize) -> Option<&'a Memory> {
    let at = run.snapshots.binary_search_by_key(&row, |s| s.0).ok()?;
    Some(&run.snapshots[at].1)
}

/// The op, a thread's share of it.
pub(crate) fn recur(run: &Run, team: &Team, op: &Op) {
    match op {
        Op::Conv { .. } => run.isa.run(Conv(run, team, op)),
        _ => run.isa.run(Scan(run, team, op)),
    }
}

struct Conv<'a>(&'a Run<'a>, &'a Team<'a>, &'a Op);

impl Kernel for Conv<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Conv(run, team, op) = self;
        let Op::Conv { out, x, weight, bias, state } = *op else { return };
        let (w, bias) = (run.held(weight).vector(), bias.map(|b| run.held(b).vector()));
        let cols = x.cols as usize;
        let (taps, width) = (w.len() / cols, padded(x.cols));
        let (out, x) = (run.mat(out), run.mat(x));
        for lane in team.share(cols.div_ceil(LANES)) {
            let at = lane * LANES..(lane * LANES + LANES).min(cols);
            let mut weights = [s.zero(); TAPS_MAX as usize];
            for (j, weight) in weights[..taps].iter_mut().enumerate() {
                let mut of_tap = [0.0; LANES];
                at.clone().zip(&mut of_tap).for_each(|(c, t)| *t = w[c * taps + j]);
                *weight = s.load(&of_tap);
            }
            let bias = bias.map_or(s.zero(), |b| s.load_partial(&b[at.clone()], 0.0));
            let mut row = 0;
            for (i, seq) in run.step.seqs.iter().enumerate() {
                let Memory(state_at) = run.states[i];
                // SAFETY: the state has whole vectors for each tap but one; lanes are split over the threads.
                let place_in = |state_at: *mut f32, j: usize| unsafe {
                    state_at.add(run.state_places[state as usize] + j * width + lane * LANES)
                };
                let place = |j: usize| place_in(state_at, j);
                let mut inputs = [s.zero(); TAPS_MAX as usize];
                for (j, input) in inputs[..taps - 1].iter_mut().enumerate() {
                    // SAFETY: as above.
                    *input = unsafe { s.load_ptr(place(j)) };
                }
                for r in row..row + seq.rows {
                    // SAFETY: columns are split over the threads, and a barrier lies behind the writers of `x`; `prepare` refused
                    // an output that overlaps an input.
                    let (out, x) = unsafe { (out.part_mut(r, at.clone()), x.row(r)) };
                    inputs[taps - 1] = s.load_partial(&x[at.clone()], 0.0);
                    let mut sum = bias;
                    for (x, w) in inputs[..taps].iter().zip(&weights) {
                        sum = x.fma(*w, sum);
                    }
                    sum.silu().store_partial(out);
                    inputs[..taps].rotate_left(1);
                    if let Some(Memory(copy)) = snapshot(run, r) {
                        for (j, input) in inputs[..taps - 1].iter().enumerate() {
                            // SAFETY: as above; a copy is as large as a state, and that of no sequence of the step.
                            unsafe { input.store_ptr(place_in(*copy, j)) };
                        }
                    }
                }
                row += seq.rows;
                for (j, input) in inputs[..taps - 1].iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { input.store_ptr(place(j)) };
                }
            }
        }
    }
}

struct Scan<'a>(&'a Run<'a>, &'a Team<'a>, &'a Op);

impl Kernel for Scan<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Scan(run, team, op) = self;
        let Op::Scan { out, x, b, c, dt, spec, state } = *op else { return };
        let [a, skip, bias] = [spec.a, spec.skip, spec.dt_bias].map(|w| run.held(w).vector());
        let [out, x, b, c, dt] = [out, x, b, c, dt].map(|v| run.mat(v));
        let (hd, width) = (spec.head_dim as usize, padded(spec.state_dim));
        for head in team.share(spec.heads as usize) {
            let columns = head * hd..(head + 1) * hd;
            let mut row = 0;
            for (i, seq) in run.step.seqs.iter().enumerate() {
                let Memory(state_at) = run.states[i];
                for r in row..row + seq.rows {
                    // SAFETY: heads are split over the threads, and a barrier lies behind the writers of the inputs; `prepare`
                    // refused an output that overlaps an input.
                    let (out, [x, b, c, dt]) =
                        unsafe { (out.part_mut(r, columns.clone()), [x, b, c, dt].map(|m| m.row(r))) };
                    let step = f64::from(dt[head]) + f64::from(bias[head]);
                    let step = step.max(0.0) + (-step.abs()).exp().ln_1p();
                    let keep = s.splat((step * f64::from(a[head])).exp() as f32);
                    for (p, (out, x)) in out.iter_mut().zip(&x[columns.clone()]).enumerate() {
                        let add = s.splat(step as f32 * x);
                        let mut sum = s.zero();
                        let line = run.state_places[state as usize] + (columns.start + p) * width;
                        for (j, (b, c)) in b.chunks(LANES).zip(c.chunks(LANES)).enumerate() {
                            // SAFETY: a line of the state is this head's, and whole vectors.
                            let at = unsafe { state_at.add(line + j * LANES) };
                            let (b, c) = (s.load_partial(b, 0.0), s.load_partial(c, 0.0));
                            // SAFETY: as above.
                            let now = unsafe { s.load_ptr(at) }.fma(keep, add * b);
                            // SAFETY: as above.
                            unsafe { now.store_ptr(at) };
                            sum = now.fma(c, sum);
                        }
                        *out = skip[head].mul_add(*x, sum.sum());
                    }
                    if let Some(Memory(copy)) = snapshot(run, r) {
                        let lines = run.state_places[state as usize] + columns.start * width;
                        // SAFETY: the lines are this head's; a copy is as large as a state, and that of no sequence of the step.
                        unsafe { copy.add(lines).copy_from_nonoverlapping(state_at.add(lines), hd * width) };
                    }
                }
                row += seq.rows;
            }
        }
    }
}
