//! Ops that change a state: row after row, with copies of it after the rows that a step names.

use super::{Ready, activate, dot};
use crate::device::StepInputs;
use crate::op::{Activation, Op};

impl Ready {
    /// An op that changes states. Rows of a sequence follow each other, so each finds the state that the row before has left.
    pub(super) fn recur(&mut self, all: &[Vec<f32>], op: &Op, step: &StepInputs) {
        let (Op::Conv { state: n, .. } | Op::Scan { state: n, .. }) = *op else { return };
        for (r, (s, _)) in step.places().enumerate() {
            let slot = step.seqs[s].state;
            let mut state = self.states.remove(&slot).expect("made before the step");
            self.recur_row(all, op, r, &mut state.numbers);
            if let Some(c) = step.snapshots.iter().find(|c| c.row as usize == r) {
                let to = self.states.get_mut(&c.state).expect("made before the step");
                to.numbers[n as usize].clone_from(&state.numbers[n as usize]);
            }
            self.states.insert(slot, state);
        }
    }

    /// One row of it.
    fn recur_row(&mut self, all: &[Vec<f32>], op: &Op, r: usize, states: &mut [Vec<f32>]) {
        match *op {
            Op::Conv { out, x, weight, bias, state } => {
                let (w, bias) = (self.weight(all, weight), bias.map(|b| self.weight(all, b)));
                let (cols, taps) = (x.cols as usize, self.program.weights[weight.0 as usize].cols as usize);
                let (last, now) = (&mut states[state as usize], self.read_row(x, r));
                let y: Vec<f32> = (0..cols)
                    .map(|c| {
                        let inputs = (0..taps - 1).map(|j| last[j * cols + c]).chain([now[c]]);
                        let sum: f64 =
                            w[c * taps..].iter().zip(inputs).map(|(w, x)| f64::from(*w) * f64::from(x)).sum();
                        let sum = (sum + bias.map_or(0.0, |b| f64::from(b[c]))) as f32;
                        activate(Activation::Silu, f64::from(sum)) as f32
                    })
                    .collect();
                last.drain(..cols);
                last.extend_from_slice(&now);
                self.write_row(out, r, &y);
            }
            Op::Scan { out, x, b, c, dt, spec, state } => {
                let [a, skip, bias] = [spec.a, spec.skip, spec.dt_bias].map(|w| self.weight(all, w));
                let [x, b, c, dt] = [x, b, c, dt].map(|v| self.read_row(v, r));
                let (hd, n) = (spec.head_dim as usize, spec.state_dim as usize);
                let y: Vec<f32> = (0..x.len())
                    .map(|i| {
                        let h = i / hd;
                        let step = f64::from(dt[h]) + f64::from(bias[h]);
                        let step = step.max(0.0) + (-step.abs()).exp().ln_1p();
                        let (keep, add) = ((step * f64::from(a[h])).exp(), step * f64::from(x[i]));
                        let row = &mut states[state as usize][i * n..(i + 1) * n];
                        row.iter_mut().zip(&b).for_each(|(s, b)| {
                            *s = (f64::from(*s) * keep + add * f64::from(*b)) as f32;
                        });
                        (dot(row, &c) + f64::from(skip[h]) * f64::from(x[i])) as f32
                    })
                    .collect();
                self.write_row(out, r, &y);
            }
            _ => {}
        }
    }
}
