//! The product op.

use crate::exec::Run;
use crate::kernels::norm::norm;
use crate::pool::Team;
use quarrel_formats::{Tensor, dequantize};
use quarrel_ir::{Error, Op, Result};

pub(crate) struct Packed {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Packed {
    pub(crate) fn new(t: &Tensor, rows: usize, cols: usize) -> Result<Packed> {
        let mut data = vec![0.0; rows * cols];
        dequantize(t.dtype, &t.data, &mut data)
            .map_err(|e| Error::Weight { name: t.name.clone(), why: e.to_string() })?;
        Ok(Packed { rows, cols, data })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len() * 4
    }
}

pub(crate) struct Plan;

#[derive(Default)]
pub(crate) struct Shared;

#[derive(Default)]
pub(crate) struct Lines {
    x: Vec<f32>,
}

pub(crate) fn matmul(run: &Run, team: &Team, lines: &mut Lines, _i: usize, op: &Op) {
    let Op::MatMul { out, x, norm: ref spec, weight, bias, add, glu } = *op else { return };
    let rows = run.rows(x);
    let held = run.held(weight);
    let bias = bias.map(|b| run.held(b).vector());
    let (out, x, add) = (run.mat(out), run.mat(x), add.map(|a| run.mat(a)));
    let cols = held.decl.cols as usize;
    let total: usize = held.packed.iter().map(|p| p.rows).sum();
    let dot = |x: &[f32], o: usize| {
        let (mut o2, mut p) = (o, 0);
        while o2 >= held.packed[p].rows {
            o2 -= held.packed[p].rows;
            p += 1;
        }
        let w = &held.packed[p].data[o2 * held.packed[p].cols..][..cols];
        let y: f64 = w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        y as f32 + bias.map_or(0.0, |b| b[o])
    };
    let n = if glu.is_some() { total / 2 } else { total };
    let share = team.share(n);
    for r in 0..rows {
        lines.x.resize(cols, 0.0);
        let xr = unsafe { x.row(r) };
        match spec {
            Some(s) => norm(run.isa, &run.norm(s), xr, None, &mut lines.x),
            None => lines.x.copy_from_slice(xr),
        }
        let outr = unsafe { out.part_mut(r, share.clone()) };
        for (k, o) in share.clone().enumerate() {
            let mut y = dot(&lines.x, o);
            if let Some(act) = glu {
                y = quarrel_ir::reference::activate(act, f64::from(y)) as f32 * dot(&lines.x, o + n);
            }
            if let Some(a) = add {
                y += unsafe { a.row(r) }[o];
            }
            outr[k] = y;
        }
    }
}

impl Shared {
    pub(crate) fn new(_: &quarrel_ir::Program, _: &[Option<Plan>], _: &quarrel_ir::Limits) -> Result<Shared> {
        Ok(Shared)
    }
    pub(crate) fn bytes(&self) -> usize {
        0
    }
}

pub(crate) fn plans(
    program: &quarrel_ir::Program,
    _: &[crate::weights::Held],
    _: &[quarrel_ir::Weight],
    _: usize,
) -> Vec<Option<Plan>> {
    program.ops.iter().map(|_| None).collect()
}

pub(crate) fn pack(
    _: &mut crate::pool::Pool,
    held: &mut [crate::weights::Held],
    todo: &[usize],
) -> Result<()> {
    for &i in todo {
        let h = &mut held[i];
        h.packed = h
            .tensors
            .iter()
            .zip(&h.decl.parts)
            .map(|(t, p)| Packed::new(t, p.rows as usize, h.decl.cols as usize))
            .collect::<Result<_>>()?;
    }
    Ok(())
}
