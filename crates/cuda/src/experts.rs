//! Mixtures of experts on the tape: the choice, the products with the chosen experts, the weighted sum.
//!
//! A pair is a row and one of its experts. Few rows: each pair is a product of its own. More: `experts_sort` brings the pairs of an expert
//! side by side and cuts them into tiles, which the products find by themselves, so that nothing waits for the host and graphs record it.

use crate::args::{self, Ptr};
use crate::choose::{self, Layout};
use crate::exec::{At, Pass, Tape, code};
use crate::gpu::Caps;
use crate::tuned::{Format, Mm, Mv, Plan};
use crate::weights::RunShape;
use quarrel_formats::DType;
use quarrel_ir::{Gate, Op, Program, Result, RouteSpec, Scoring, View, WeightId};

/// Most tiles of a launch: the second dimension of a grid ends at 65,535.
const TILES_MAX: usize = 65_535;

/// Pairs of a tile of the plain kernel: `R` of simple_experts.cu.
const PLAIN_PAIRS: usize = 4;

/// The products of an `Op::MatMulExperts`, as far as its launches go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Experts {
    pub(crate) rows: usize,
    /// Rows and columns of an expert's matrix.
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) experts: usize,
    /// Of a row.
    pub(crate) used: usize,
    pub(crate) glu: bool,
    pub(crate) deterministic: bool,
    /// As of [`choose::Product`].
    pub(crate) fine: bool,
}

/// Whether a Program chooses experts.
pub(crate) fn chooses(program: &Program) -> bool {
    program.ops.iter().any(|n| matches!(n.op, Op::Route { .. }))
}

/// One launch.
pub(crate) struct ExpertLaunch {
    /// Which run of the weight.
    pub(crate) run: usize,
    /// Whether it holds the second halves of a gate, where a launch has one.
    pub(crate) up: bool,
    /// Whether the launch has both halves.
    pub(crate) glu: bool,
    /// Experts.
    pub(crate) low: usize,
    pub(crate) high: usize,
    /// The first expert's place among the run's parts.
    pub(crate) part: usize,
    pub(crate) kernel: ExpertKernel,
    /// Pairs of a tile; none where each is one and nothing is sorted.
    pub(crate) of_tile: Option<usize>,
    /// Most tiles.
    pub(crate) tiles: usize,
}

/// What runs it.
pub(crate) enum ExpertKernel {
    Plain(&'static str),
    Mv(&'static Format, Mv),
    Mm(&'static Format, Mm),
}

impl Experts {
    /// Those of an op, for so many rows.
    pub(crate) fn of(program: &Program, op: &Op, rows: usize, deterministic: bool) -> Option<Experts> {
        let Op::MatMulExperts { route, experts, weight, glu, .. } = *op else { return None };
        let decl = &program.weights[weight.0 as usize];
        Some(Experts {
            rows,
            n: decl.parts[0].rows as usize,
            k: decl.cols as usize,
            experts: experts as usize,
            used: route.map_or(experts, |r| r.cols / 2) as usize,
            glu: glu.is_some(),
            deterministic,
            fine: chooses(program),
        })
    }

    /// Whether pairs are so few that two hardly share an expert.
    fn direct(&self) -> bool {
        self.rows == 1 || 4 * self.rows * self.used <= self.experts
    }

    fn tiles(&self, of_tile: Option<usize>) -> usize {
        let pairs = self.rows * self.used;
        of_tile.map_or(pairs, |of| pairs.min(pairs / of + self.experts.min(pairs)))
    }

    /// The launches of a weight: one for both halves of a gate where all parts have one type, else one for each type and half.
    pub(crate) fn launches(&self, runs: &[RunShape], caps: &Caps) -> Vec<ExpertLaunch> {
        if self.glu && runs.len() == 1 {
            return vec![self.launch((0, &runs[0]), true, false, 0..self.experts, 0, caps)];
        }
        let mut all = Vec::new();
        for (i, run) in runs.iter().enumerate() {
            let parts = run.first / self.n..(run.first + run.rows) / self.n;
            for up in [false, true] {
                let from = if up { self.experts } else { 0 };
                let low = parts.start.max(from);
                let high = parts.end.min(from + self.experts);
                if low < high {
                    let experts = low - from..high - from;
                    all.push(self.launch((i, run), false, up, experts, low - parts.start, caps));
                }
            }
        }
        all
    }

    fn launch(
        &self,
        (run, shape): (usize, &RunShape),
        glu: bool,
        up: bool,
        experts: std::ops::Range<usize>,
        part: usize,
        caps: &Caps,
    ) -> ExpertLaunch {
        let n = if glu { 2 * self.n } else { self.n };
        let layout = choose::expert_layout(shape.dtype, self.n, self.k, glu, caps);
        let (kernel, of_tile) = self.kernel(shape.dtype, layout, n, caps);
        let of_tile = of_tile.filter(|_| !self.direct());
        let tiles = self.tiles(of_tile);
        ExpertLaunch { run, up, glu, low: experts.start, high: experts.end, part, kernel, of_tile, tiles }
    }

    /// The kernel, and the pairs that its tiles hold.
    fn kernel(&self, dtype: DType, layout: Layout, n: usize, caps: &Caps) -> (ExpertKernel, Option<usize>) {
        let Layout::Tiles(format) = layout else {
            return (ExpertKernel::Plain(choose::experts_plain(dtype)), Some(PLAIN_PAIRS));
        };
        let pairs = self.rows * self.used;
        if !self.direct() && !self.deterministic {
            let tiles = |of| self.tiles(Some(of));
            if let Some((mm, of)) = format.experts_mm(pairs, self.experts, n, tiles, caps) {
                let planes = format.image_planes(self.fine);
                return (ExpertKernel::Mm(format, Mm { planes, ..mm }), Some(of));
            }
        }
        let tiles = |rows: usize| self.tiles((!self.direct()).then_some(rows));
        match format.experts_mv(if self.direct() { 1 } else { crate::tuned::MV_ROWS }, n, self.k, tiles, caps)
        {
            Some(mv) => (ExpertKernel::Mv(format, mv), Some(mv.rows)),
            None => unreachable!("a type has tiles only where a row fits: `choose::expert_layout`"),
        }
    }
}

impl ExpertLaunch {
    /// Bytes of the list of tiles and pairs.
    pub(crate) fn list_bytes(&self, experts: &Experts) -> usize {
        self.of_tile.map_or(0, |_| 16 + 16 * self.tiles + 4 * experts.rows * experts.used)
    }
}

/// A sorted list of pairs that lies in scratch: of which route, in tiles of how many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sorted {
    route: Option<View>,
    experts: usize,
    of_tile: usize,
    rows: usize,
}

/// The parts of an `Op::MatMulExperts`.
#[derive(Clone, Copy)]
struct Parts {
    out: View,
    x: View,
    route: Option<View>,
    weight: WeightId,
    bias: Option<WeightId>,
    gate: Option<Gate>,
    rows_kind: i32,
}

impl Tape<'_> {
    /// Queues `Op::Route`.
    pub(crate) fn route(
        &self,
        pass: &Pass,
        out: View,
        logits: View,
        bias: Option<WeightId>,
        spec: &RouteSpec,
    ) -> Result<()> {
        let (o, i, (rows, rows_kind)) = (self.at(out), self.at(logits), self.rows(pass, logits));
        let (scoring, eps) = match spec.scoring {
            Scoring::Softmax => (0, 0.0),
            Scoring::Sigmoid => (1, 0.0),
            Scoring::Sparse { eps } => (2, eps),
        };
        let args = args::Route {
            n: pass.step.n,
            logits: i.ptr,
            bias: self.vector(bias),
            out: o.ptr,
            logits_stride: i.stride,
            out_stride: o.stride,
            rows_kind,
            experts: logits.cols as i32,
            used: spec.used as i32,
            scoring,
            groups: spec.groups.map_or(0, |g| g.count as i32),
            kept: spec.groups.map_or(0, |g| g.used as i32),
            best: spec.groups.map_or(0, |g| g.best as i32),
            normalize: i32::from(spec.normalize),
            eps,
            scale: spec.scale,
        };
        let shared = 8 * (2 * logits.cols + 128);
        self.gpu.launch("experts_route", [rows as u32, 1, 1], 32, shared, &args)
    }

    /// Queues `Op::MatMulExperts`.
    pub(crate) fn matmul_experts(&self, pass: &Pass, op: &Op) -> Result<()> {
        let Op::MatMulExperts { out, x, route, weight, bias, glu, .. } = *op else { return Ok(()) };
        let (rows, rows_kind) = self.rows(pass, x);
        let Some(e) = Experts::of(self.program, op, rows, self.deterministic).filter(|_| rows > 0) else {
            return Ok(());
        };
        let parts = Parts { out, x, route, weight, bias, gate: glu, rows_kind };
        let launches = e.launches(&self.weight(weight).shapes(), &self.gpu.caps);
        let wide = glu.is_some() && launches.iter().any(|l| !l.glu);
        for l in &launches {
            self.product_of_experts(pass, &e, l, &parts, wide)?;
        }
        let (o, i) = (self.at(out), self.at(x));
        let out_block = i64::from(out.cols) / e.used as i64;
        let blocks = args::Blocks {
            n: pass.step.n,
            x: 0,
            out: 0,
            x_stride: 0,
            out_stride: o.stride,
            x_block: 0,
            out_block,
            rows_kind,
            cols: 0,
            used: e.used as i32,
            act: glu.map_or(0, act_of),
            alpha: limits(glu).0,
            limit: limits(glu).1,
        };
        if wide {
            let args = args::Blocks {
                x: self.scratch.wide.ptr,
                out: o.ptr,
                x_stride: (2 * e.n * e.used) as i64,
                x_block: 2 * e.n as i64,
                cols: e.n as i32,
                ..blocks
            };
            self.blocks("experts_gate", &args, e.used, rows)?;
        }
        let rest = out_block as usize - e.n;
        if rest == 0 {
            return Ok(());
        }
        let args = args::Blocks {
            x: i.ptr + 4 * e.k as u64,
            out: o.ptr + 4 * e.n as u64,
            x_stride: i.stride,
            x_block: i64::from(x.cols) / e.used as i64,
            cols: rest as i32,
            ..blocks
        };
        self.blocks("experts_rest", &args, e.used, rows)
    }

    fn blocks(&self, kernel: &'static str, args: &args::Blocks, used: usize, rows: usize) -> Result<()> {
        let grid = [(args.cols as u32).div_ceil(256), used as u32, rows as u32];
        self.gpu.launch(kernel, grid, 256, 0, args)
    }

    fn product_of_experts(
        &self,
        pass: &Pass,
        e: &Experts,
        l: &ExpertLaunch,
        p: &Parts,
        wide: bool,
    ) -> Result<()> {
        let run = &self.weight(p.weight).runs[l.run];
        let w = run.matrix().ok_or_else(|| self.missing("an expert's matrix"))?;
        let at_x = self.at(p.x);
        let out = match wide {
            false => self.at(p.out),
            true => At {
                ptr: self.scratch.wide.ptr + if l.up { 4 * e.n as u64 } else { 0 },
                stride: (2 * e.n * e.used) as i64,
            },
        };
        let bias = match self.vector(p.bias) {
            0 => 0,
            b if l.up => b + 4 * (e.experts * e.n) as u64,
            b => b,
        };
        let matrix = match &l.kernel {
            ExpertKernel::Plain(_) => run.shape.dtype.row_bytes(e.k).unwrap_or(0) * e.n,
            ExpertKernel::Mv(f, _) | ExpertKernel::Mm(f, _) => f.bytes(e.n * if l.glu { 2 } else { 1 }, e.k),
        };
        let list = self.sort(pass, e, l, p)?;
        let order = list + 16 + 16 * l.tiles as u64;
        let sorted = |ptr: Ptr| if l.of_tile.is_some() { ptr } else { 0 };
        let x_block = if p.x.cols as usize == e.k { 0 } else { i64::from(p.x.cols) / e.used as i64 };
        let mut experts = args::Experts {
            n: pass.step.n,
            route: p.route.map_or(0, |r| self.at(r).ptr),
            tiles: sorted(list + 16),
            order: sorted(order),
            tile_count: sorted(list),
            route_stride: p.route.map_or(0, |r| self.at(r).stride),
            w_stride: matrix as i64,
            x_block,
            out_block: if wide { 2 * e.n as i64 } else { i64::from(p.out.cols) / e.used as i64 },
            up_bias: (e.experts * e.n) as i64,
            used: e.used as i32,
            rows_kind: p.rows_kind,
            low: l.low as i32,
            high: l.high as i32,
            tile0: 0,
            pad: 0,
            alpha: limits(p.gate).0,
            limit: limits(p.gate).1,
        };
        let w = w + (l.part * matrix) as u64;
        let act = if l.glu { p.gate.map_or(-1, act_of) } else { -1 };
        let n = if l.glu { 2 * e.n } else { e.n };
        if let ExpertKernel::Mm(format, mm) = &l.kernel {
            return self.mm_experts((format, mm), (l, experts, at_x), e, |form, scales| args::Mm {
                w,
                x: form,
                scales,
                bias,
                add: 0,
                out: out.ptr,
                add_stride: 0,
                out_stride: out.stride,
                n: n as i32,
                k: e.k as i32,
                rows: mm.image_rows as i32,
                image_rows: mm.image_rows as i32,
                act,
                planes: mm.planes as i32,
            });
        }
        for tile in (0..l.tiles).step_by(TILES_MAX) {
            experts.tile0 = tile as i32;
            let tiles = TILES_MAX.min(l.tiles - tile) as u32;
            match &l.kernel {
                ExpertKernel::Plain(kernel) => {
                    let args = args::PlainExperts {
                        w,
                        w2: if l.glu { w + (e.experts * matrix) as u64 } else { 0 },
                        x: at_x.ptr,
                        bias,
                        out: out.ptr,
                        x_stride: at_x.stride,
                        out_stride: out.stride,
                        n: e.n as i32,
                        k: e.k as i32,
                        act,
                        pad: 0,
                        experts,
                    };
                    let slots = if l.glu { e.n } else { e.n.div_ceil(2) };
                    self.gpu.launch(kernel, [slots.div_ceil(8) as u32, tiles, 1], 256, 0, &args)?;
                }
                ExpertKernel::Mv(format, mv) => {
                    let mv_args = args::Mv {
                        w,
                        x: at_x.ptr,
                        prepared: 0,
                        sums: 0,
                        scales: 0,
                        gain: 0,
                        bias,
                        add: 0,
                        out: out.ptr,
                        x_stride: at_x.stride,
                        add_stride: 0,
                        out_stride: out.stride,
                        n: n as i32,
                        k: e.k as i32,
                        rows: mv.rows as i32,
                        norm: 0,
                        eps: 0.0,
                        act,
                        slices: mv.slices,
                        cluster: mv.cluster as i32,
                        stages: mv.stages,
                        pad: 0,
                    };
                    let args = args::MvExperts { mv: mv_args, experts };
                    let grid = [mv.grid, tiles, 1];
                    self.gpu.launch_cluster(format.mvx, grid, mv.block, mv.shared, mv.cluster, &args)?;
                }
                ExpertKernel::Mm(..) => {}
            }
        }
        Ok(())
    }

    /// The pairs' inputs as an image, then the products.
    fn mm_experts(
        &self,
        (format, mm): (&'static Format, &Mm),
        (l, experts, x): (&ExpertLaunch, args::Experts, At),
        e: &Experts,
        args: impl Fn(Ptr, Ptr) -> args::Mm,
    ) -> Result<()> {
        let form = self.scratch.form.ptr;
        let scales = form + format.parts(&Plan::Mm(*mm), e.k).scales as u64;
        let prep = args::MmPrepExperts {
            prep: args::MmPrep {
                x: x.ptr,
                gain: 0,
                image: form,
                scales,
                x_stride: x.stride,
                rows: mm.image_rows as i32,
                k: e.k as i32,
                norm: 0,
                eps: 0.0,
                image_rows: mm.image_rows as i32,
                planes: mm.planes as i32,
            },
            experts,
            of_tile: l.of_tile.unwrap_or(1) as i32,
            pad: 0,
        };
        let kernel = if format.bf16 { "mmx_prep_bf16" } else { "mmx_prep_f16" };
        self.gpu.launch(kernel, [mm.image_rows as u32, 1, 1], 256, 0, &prep)?;
        let args = args::MmExperts { mm: args(form, scales), experts };
        self.gpu.launch(mm.kernel, [mm.grid, 1, 1], 384, mm.shared, &args)
    }

    /// Where the list of tiles lies, which is made unless it is there from the product before.
    fn sort(&self, pass: &Pass, e: &Experts, l: &ExpertLaunch, p: &Parts) -> Result<Ptr> {
        let list = self.scratch.lists.ptr;
        let Some(of_tile) = l.of_tile else { return Ok(list) };
        let key = Sorted { route: p.route, experts: e.experts, of_tile, rows: e.rows };
        if self.sorted.get() == Some(key) {
            return Ok(list);
        }
        self.sorted.set(Some(key));
        let route = p.route.map(|r| self.at(r));
        let args = args::Sort {
            n: pass.step.n,
            route: route.map_or(0, |r| r.ptr),
            tile_count: list,
            tiles: list + 16,
            order: list + 16 + 16 * l.tiles as u64,
            route_stride: route.map_or(0, |r| r.stride),
            rows_kind: p.rows_kind,
            experts: e.experts as i32,
            used: e.used as i32,
            of_tile: of_tile as i32,
        };
        self.gpu.launch("experts_sort", [1, 1, 1], 1024, 8 * e.experts as u32, &args)?;
        Ok(list)
    }

    /// Queues `Op::Combine`.
    pub(crate) fn combine(
        &self,
        pass: &Pass,
        out: View,
        x: View,
        weights: View,
        add: Option<View>,
    ) -> Result<()> {
        let (o, i, w, (rows, rows_kind)) = (self.at(out), self.at(x), self.at(weights), self.rows(pass, out));
        let add = add.map(|a| self.at(a));
        let args = args::Combine {
            n: pass.step.n,
            x: i.ptr,
            weights: w.ptr,
            add: add.map_or(0, |a| a.ptr),
            out: o.ptr,
            x_stride: i.stride,
            weights_stride: w.stride,
            add_stride: add.map_or(0, |a| a.stride),
            out_stride: o.stride,
            rows_kind,
            cols: out.cols as i32,
            used: weights.cols as i32,
            pad: 0,
        };
        self.gpu.launch("experts_combine", [out.cols.div_ceil(256), rows as u32, 1], 256, 0, &args)
    }
}

/// The code of a gate in kernels: that of its activation, or 4.
fn act_of(gate: Gate) -> i32 {
    match gate {
        Gate::Plain(act) => code(act),
        Gate::Clamped { .. } => 4,
    }
}

/// Slope and bound of a gate that has them.
fn limits(gate: Option<Gate>) -> (f32, f32) {
    match gate {
        Some(Gate::Clamped { alpha, limit }) => (alpha, limit),
        _ => (0.0, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(sm: u32) -> Caps {
        Caps {
            name: "a GPU".into(),
            sm: sm as _,
            multiprocessors: 132,
            shared_max: 232_448,
            l2: 50 << 20,
            memory: 80 << 30,
        }
    }

    #[test]
    fn launches_of_experts_cover_each_part_once_and_fit_the_gpu() {
        for (n, k, experts, used) in
            [(768, 2048, 128, 8), (14_336, 4096, 8, 2), (2880, 2880, 32, 4), (17, 33, 5, 5)]
        {
            for rows in [1, 2, 5, 16, 300, 4096] {
                for (glu, deterministic, sm) in
                    [(true, false, 90), (false, false, 90), (true, true, 90), (true, false, 80)]
                {
                    let parts = if glu { 2 * experts } else { experts };
                    let e = Experts { rows, n, k, experts, used, glu, deterministic, fine: true };
                    let run = |dtype, first: usize, count: usize| RunShape {
                        dtype,
                        first: first * n,
                        rows: count * n,
                    };
                    let all = [
                        vec![run(DType::Q8_0, 0, parts)],
                        vec![
                            run(DType::MXFP4, 0, experts - 1),
                            run(DType::IQ2_S, experts - 1, parts + 1 - experts),
                        ],
                    ];
                    for runs in all.iter().filter(|r| r.len() == 1 || glu) {
                        let launches = e.launches(runs, &caps(sm));
                        let covered: usize =
                            launches.iter().map(|l| (l.high - l.low) * if l.glu { 2 } else { 1 }).sum();
                        assert_eq!(covered, parts);
                        for l in launches {
                            let shared = match &l.kernel {
                                ExpertKernel::Plain(_) => 0,
                                ExpertKernel::Mv(_, mv) => {
                                    assert!(
                                        l.of_tile.is_none_or(|of| of == mv.rows) && mv.grid % mv.cluster == 0
                                    );
                                    mv.shared
                                }
                                ExpertKernel::Mm(_, mm) => {
                                    assert!(!deterministic && sm == 90);
                                    assert_eq!(mm.image_rows, l.tiles * l.of_tile.unwrap());
                                    mm.shared
                                }
                            };
                            assert!(shared <= 232_448 && l.tiles <= rows * used && l.tiles > 0);
                        }
                    }
                }
            }
        }
    }
}
