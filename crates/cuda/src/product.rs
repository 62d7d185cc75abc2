//! A product on the tape: its input in the form that the kernel reads, the launches, and a gate whose halves differ.

use crate::args::{self, Ptr};
use crate::choose::{Kernel, Product, ProductLaunch};
use crate::exec::{At, Pass, Tape, code, kind, norm_block};
use crate::experts::chooses;
use crate::tuned::{Format, Plan};
use crate::weights::Held;
use quarrel_ir::{Activation, NormKind, NormSpec, Op, Result, View, WeightId};

/// What a product is made of.
struct Parts<'a> {
    held: &'a Held,
    x: View,
    norm: Option<&'a NormSpec>,
    rows: usize,
    bias: Ptr,
    add: Option<At>,
    out: At,
    act: i32,
}

/// Inputs that were prepared for an earlier launch of the same product.
#[derive(Default)]
struct Made {
    /// As f32, normed.
    plain: Option<Ptr>,
    /// By the preparing kernel and the rows that there is room for.
    tuned: Option<(&'static str, usize)>,
}

impl Tape<'_> {
    /// Queues `Op::MatMul`.
    pub(crate) fn matmul(&self, pass: &Pass, op: &Op) -> Result<()> {
        let Op::MatMul { out, x, ref norm, weight, bias, add, glu } = *op else { return Ok(()) };
        let (rows, rows_kind) = self.rows(pass, x);
        if rows == 0 {
            return Ok(());
        }
        let (held, o) = (self.weight(weight), self.at(out));
        let product = Product {
            rows,
            k: x.cols as usize,
            glu: glu.is_some(),
            deterministic: self.deterministic,
            exact: held.exact,
            fine: chooses(self.program),
        };
        let launches = product.launches(&held.shapes(), &self.gpu.caps);
        let wide = glu.is_some() && launches.iter().any(|l| !l.glu);
        let half = out.cols as usize;
        let parts = Parts {
            held,
            x,
            norm: norm.as_ref(),
            rows,
            bias: self.vector(bias),
            add: add.map(|a| self.at(a)),
            out: if wide { At { ptr: self.scratch.wide.ptr, stride: 2 * half as i64 } } else { o },
            act: glu.map_or(0, code),
        };
        let mut made = Made::default();
        for l in &launches {
            match l.kernel {
                Kernel::Plain(kernel, grid) => self.plain(&parts, l, kernel, grid, &mut made)?,
                Kernel::Tuned(format, plan) => self.tuned(&parts, l, format, &plan, &mut made)?,
            }
        }
        match glu {
            Some(act) if wide => self.gate(pass, act, half, (rows, rows_kind), o),
            _ => Ok(()),
        }
    }

    fn plain(
        &self,
        p: &Parts,
        l: &ProductLaunch,
        kernel: &'static str,
        grid: [u32; 3],
        made: &mut Made,
    ) -> Result<()> {
        let (k, run) = (p.x.cols as usize, &p.held.runs[l.run]);
        let x = self.as_f32(p, made)?;
        let w = run.table().ok_or_else(|| self.missing("a matrix"))?;
        let row_bytes = run.shape.dtype.row_bytes(k).unwrap_or(0);
        let args = args::Mat {
            w,
            w2: if l.glu { w + (l.n * row_bytes) as u64 } else { 0 },
            x,
            bias: at(p.bias, l.first),
            bias2: at(p.bias, l.first + l.n),
            add: p.add.map_or(0, |a| at(a.ptr, l.first)),
            out: at(p.out.ptr, l.first),
            work: 0,
            add_stride: p.add.map_or(0, |a| a.stride),
            out_stride: p.out.stride,
            rows: p.rows as i32,
            n: l.n as i32,
            k: k as i32,
            act: p.act,
        };
        self.gpu.launch(kernel, grid, 256, 0, &args)
    }

    fn tuned(
        &self,
        p: &Parts,
        l: &ProductLaunch,
        format: &'static Format,
        plan: &Plan,
        made: &mut Made,
    ) -> Result<()> {
        let k = p.x.cols as usize;
        let w = p.held.runs[l.run].matrix().ok_or_else(|| self.missing("a matrix"))?;
        // The kernels fold a plain rms norm of the whole row, and load four numbers at a time.
        let folds =
            p.norm.is_none_or(|n| n.kind == NormKind::Rms && n.group as usize == k && n.bias.is_none());
        let (src, norm) = match self.at(p.x) {
            x if folds && x.ptr % 16 == 0 && x.stride % 4 == 0 => (x, p.norm),
            _ => (At { ptr: self.as_f32(p, made)?, stride: k as i64 }, None),
        };
        let (gain, eps) = (self.vector(norm.and_then(|n| n.weight)), norm.map_or(0.0, |n| n.eps));
        let folded = i32::from(norm.is_some());
        let n = if l.glu { 2 * l.n } else { l.n };
        let form = self.scratch.form.ptr;
        let parts = format.parts(plan, k);
        let (sums, scales) = (form + parts.sums as u64, form + parts.scales as u64);
        let prep = format.prep(plan);
        let room = match plan {
            Plan::Mm(mm) => mm.image_rows,
            Plan::Mv(mv) => mv.rows,
        };
        let again = made.tuned == Some((prep, room));
        match *plan {
            Plan::Mm(mm) => {
                if !again {
                    let args = args::MmPrep {
                        x: src.ptr,
                        gain,
                        image: form,
                        scales,
                        x_stride: src.stride,
                        rows: p.rows as i32,
                        k: k as i32,
                        norm: folded,
                        eps,
                        image_rows: mm.image_rows as i32,
                        planes: mm.planes as i32,
                    };
                    self.gpu.launch(prep, [p.rows as u32, 1, 1], 256, 0, &args)?;
                }
                made.tuned = Some((prep, room));
                let args = args::Mm {
                    w,
                    x: form,
                    scales,
                    bias: at(p.bias, l.first),
                    add: p.add.map_or(0, |a| at(a.ptr, l.first)),
                    out: at(p.out.ptr, l.first),
                    add_stride: p.add.map_or(0, |a| a.stride),
                    out_stride: p.out.stride,
                    n: n as i32,
                    k: k as i32,
                    rows: p.rows as i32,
                    image_rows: mm.image_rows as i32,
                    act: if l.glu { p.act } else { -1 },
                    planes: mm.planes as i32,
                };
                self.gpu.launch_cluster(mm.kernel, [mm.grid, 1, 1], 384, mm.shared, mm.cluster, &args)
            }
            Plan::Mv(mv) => {
                // Preparing pays from about three rows on; before, the kernel does the same by itself.
                let prepared = p.rows > 2;
                for row in (0..p.rows).step_by(mv.rows) {
                    let rows = mv.rows.min(p.rows - row) as i32;
                    let x = src.ptr + 4 * row as u64 * src.stride as u64;
                    let shift = |a: At| at(a.ptr, l.first) + 4 * row as u64 * a.stride as u64;
                    if prepared && !(again && p.rows <= mv.rows) {
                        let args = args::MvPrep {
                            x,
                            gain,
                            out: form,
                            sums,
                            scales,
                            x_stride: src.stride,
                            rows,
                            k: k as i32,
                            norm: folded,
                            eps,
                        };
                        self.gpu.launch(prep, [rows as u32, 1, 1], 256, 0, &args)?;
                        made.tuned = Some((prep, room));
                    }
                    let args = args::Mv {
                        w,
                        x: if prepared { 0 } else { x },
                        prepared: if prepared { form } else { 0 },
                        sums: if prepared { sums } else { 0 },
                        scales: if prepared { scales } else { 0 },
                        gain,
                        bias: at(p.bias, l.first),
                        add: p.add.map_or(0, shift),
                        out: shift(p.out),
                        x_stride: src.stride,
                        add_stride: p.add.map_or(0, |a| a.stride),
                        out_stride: p.out.stride,
                        n: n as i32,
                        k: k as i32,
                        rows,
                        norm: if prepared { 0 } else { folded },
                        eps,
                        act: if l.glu { p.act } else { -1 },
                        slices: mv.slices,
                        cluster: mv.cluster as i32,
                        stages: mv.stages,
                        pad: 0,
                    };
                    self.gpu.launch_cluster(
                        format.mv,
                        [mv.grid, 1, 1],
                        mv.block,
                        mv.shared,
                        mv.cluster,
                        &args,
                    )?;
                }
                Ok(())
            }
        }
    }

    /// The input as f32, normed, without gaps between rows; itself where it is that already.
    fn as_f32(&self, p: &Parts, made: &mut Made) -> Result<Ptr> {
        let (i, k) = (self.at(p.x), p.x.cols as usize);
        if let Some(ptr) = made.plain {
            return Ok(ptr);
        }
        if p.norm.is_none() && i.stride == k as i64 && i.ptr % 16 == 0 {
            return Ok(i.ptr);
        }
        let group = p.norm.map_or(k, |n| n.group as usize);
        let args = args::Prep {
            x: i.ptr,
            gain: self.vector(p.norm.and_then(|n| n.weight)),
            bias: self.vector(p.norm.and_then(|n| n.bias)),
            out: self.scratch.input.ptr,
            x_stride: i.stride,
            rows: p.rows as i32,
            k: k as i32,
            group: group as i32,
            kind: p.norm.map_or(0, |n| kind(n.kind)),
            eps: p.norm.map_or(0.0, |n| n.eps),
            gain_step: self.gain_step(p.norm),
        };
        let grid = [p.rows as u32, (k / group) as u32, 1];
        self.gpu.launch("prep_f32", grid, norm_block(group), 0, &args)?;
        made.plain = Some(self.scratch.input.ptr);
        Ok(self.scratch.input.ptr)
    }

    /// Gates the two halves that lie side by side in scratch.
    fn gate(
        &self,
        pass: &Pass,
        act: Activation,
        half: usize,
        (rows, rows_kind): (usize, i32),
        out: At,
    ) -> Result<()> {
        let args = args::Map {
            n: pass.step.n,
            a: self.scratch.wide.ptr,
            b: at(self.scratch.wide.ptr, half),
            out: out.ptr,
            a_stride: 2 * half as i64,
            b_stride: 2 * half as i64,
            out_stride: out.stride,
            rows_kind,
            cols: half as i32,
            act: code(act),
            by: 0.0,
        };
        self.gpu.launch("map_glu", [half.div_ceil(256) as u32, rows as u32, 1], 256, 0, &args)
    }

    pub(crate) fn weight(&self, id: WeightId) -> &Held {
        &self.held[self.ids[id.0 as usize].0 as usize]
    }

    pub(crate) fn vector(&self, id: Option<WeightId>) -> Ptr {
        id.map_or(0, |id| self.weight(id).vector())
    }
}

/// Element `i` of f32 numbers, null of null.
fn at(ptr: Ptr, i: usize) -> Ptr {
    if ptr == 0 { 0 } else { ptr + 4 * i as u64 }
}
