//! The product op: its input normalised and quantised once, then every thread computes output columns of its own.
//!
//! With few rows each thread prepares all of them for itself, which is cheaper than meeting the others; with many the rows
//! are prepared together. Either way a row is prepared by the same code, so its bits are the same.

use crate::exec::{Mat, Run};
use crate::experts;
use crate::kernels::norm::norm;
use crate::kv::huge_pages;
use crate::matmul::{self, Epilogue, Input, Line, PackedFloats, Quantized, Rows, Side, room};
use crate::pack::{InputKind, PackedBuilder, PackedWeight, STEP, memory::Slab, packed_bytes};
use crate::pool::{Pool, Team};
use crate::simd::Isa;
use crate::weights::Held;
use memmap2::MmapMut;
use quarrel_formats::{Bytes, DType};
use quarrel_ir::{Activation, Error, Limits, Op, Program, Result, Uses, Weight, WeightDecl, WeightId};
use std::ops::Range;

/// Up to so many rows every thread prepares by itself.
const FEW: usize = 4;
/// Rows that one thread prepares together: those that lie side by side in quantised form.
const GROUP: usize = 8;
/// Bytes in memory of our own that are repacked before their source is given back: that much is there twice for a moment.
/// Mapped pages go as they are read.
const BATCH: usize = 32 << 20;

/// Rows of a weight in one packed piece, from the first output column on.
pub(crate) struct Piece {
    first: usize,
    pub(crate) weight: PackedWeight,
}

impl Piece {
    /// Its first row in the weight.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// Its rows.
    pub(crate) fn rows(&self) -> usize {
        self.weight.rows()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weight.owned_bytes()
    }

    /// Bytes that are read where they are mapped.
    pub(crate) fn mapped_bytes(&self) -> usize {
        self.weight.file_rows().filter(|_| self.weight.is_mapped()).map_or(0, <[u8]>::len)
    }
}

/// Where a weight is cut: between its tensors, and so that a gate's piece has its partner in the other half.
pub(crate) fn cuts(decl: &WeightDecl, halves: bool) -> Vec<usize> {
    let total = decl.rows() as usize;
    let mut cuts = vec![0, total];
    let mut at = 0;
    for part in &decl.parts {
        at += part.rows as usize;
        cuts.push(at);
    }
    if halves {
        let half = total / 2;
        cuts.extend(cuts.clone().iter().flat_map(|c| [c % half, c % half + half]));
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Whether the packed pieces serve these uses.
pub(crate) fn is_packed(held: &Held, uses: Uses) -> bool {
    let first = |c: &usize| held.pieces.iter().any(|p| p.first == *c);
    !held.pieces.is_empty()
        && cuts(&held.decl, uses.halves).iter().filter(|c| **c < held.decl.rows() as usize).all(first)
}

/// Repacks weights on all threads, and gives back the mapped pages that are not needed any more.
pub(crate) fn pack(pool: &mut Pool, isa: Isa, held: &mut [Held], todo: &[(usize, Uses)]) -> Result<()> {
    let mut total = 0usize;
    for (i, uses) in todo {
        let h = &held[*i];
        for w in cuts(&h.decl, uses.halves).windows(2) {
            let (name, dtype, _) = h.rows(w[0], w[1])?;
            let bytes = packed_bytes(isa, dtype, w[1] - w[0], h.decl.cols as usize);
            total = bytes.and_then(|b| b.checked_add(total)).ok_or_else(|| Error::Weight {
                name: name.into(),
                why: "is larger than any memory; the model file is damaged".into(),
            })?;
        }
    }
    let mut slab = Slab::new(total);
    let mut at = 0;
    while at < todo.len() {
        let mut bytes = 0;
        let mut fits = |held: &Held| {
            let fits = bytes < BATCH;
            bytes += held.tensors.iter().filter(|t| !t.data.is_mapped()).map(|t| t.data.len()).sum::<usize>();
            fits
        };
        let end = at + todo[at..].iter().take_while(|t| fits(&held[t.0])).count();
        let mut builders = Vec::new();
        for (i, uses) in &todo[at..end] {
            let h = &held[*i];
            for w in cuts(&h.decl, uses.halves).windows(2) {
                let (name, dtype, bytes) = h.rows(w[0], w[1])?;
                let (rows, cols) = (w[1] - w[0], h.decl.cols as usize);
                let builder = PackedBuilder::within(&mut slab, isa, dtype, rows, cols, bytes)
                    .map_err(|e| Error::Weight { name: name.into(), why: e.to_string() })?;
                builders.push((*i, w[0], builder));
            }
        }
        pool.run(&|_| builders.iter().for_each(|(.., b)| while b.pack_next(STEP) {})).map_err(|why| {
            Error::Device { device: "cpu".into(), why: format!("repacking weights failed: {why}") }
        })?;
        todo[at..end].iter().for_each(|(i, _)| held[*i].pieces.clear());
        for (i, first, builder) in builders {
            held[i].pieces.push(Piece { first, weight: builder.finish() });
        }
        for (i, uses) in &todo[at..end] {
            let h = &mut held[*i];
            if h.pieces.iter().all(|p| p.bytes() > 0) {
                h.give_back(uses.table);
            }
        }
        at = end;
    }
    Ok(())
}

/// Forms of the activations that the pieces of a weight multiply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds {
    pub(crate) quantized: bool,
    pub(crate) float: bool,
}

impl Kinds {
    fn of(held: &Held) -> Kinds {
        let kind = |k| held.pieces.iter().any(|p| p.weight.input() == k);
        Kinds { quantized: kind(InputKind::Quantized), float: kind(InputKind::Float) }
    }
}

/// By op, what a product's weight multiplies.
pub(crate) fn kinds(program: &Program, of: impl Fn(WeightId) -> Kinds) -> Vec<Option<Kinds>> {
    program.ops.iter().map(|n| Product::of(program, &n.op).map(|p| of(p.weight))).collect()
}

/// What is prepared for an op that multiplies.
pub(crate) struct Product {
    weight: WeightId,
    /// Of the step, or of its outputs.
    rows_of: quarrel_ir::Rows,
    /// Prepared rows for each of them, and their width.
    pub(crate) times: usize,
    cols: usize,
    /// Matrices of which each takes some of the rows.
    matrices: usize,
}

impl Product {
    /// Of an op that multiplies rows with a weight.
    pub(crate) fn of(program: &Program, op: &Op) -> Option<Product> {
        let (x, weight, times, matrices) = match op {
            Op::MatMul { x, weight, .. } => (x, *weight, 1, 1),
            Op::MatMulExperts { x, route, weight, experts, .. } => {
                let used = route.as_ref().map_or(*experts, |r| r.cols / 2) as usize;
                (x, *weight, used, *experts as usize)
            }
            _ => return None,
        };
        let cols = program.weights[weight.0 as usize].cols as usize;
        Some(Product { weight, rows_of: program.rows_of(*x), times, cols, matrices })
    }

    /// Most rows that are prepared.
    fn rows(&self, limits: &Limits) -> usize {
        self.times
            * match self.rows_of {
                quarrel_ir::Rows::Tokens => limits.rows,
                quarrel_ir::Rows::Outputs => limits.outputs,
            }
    }

    /// Bytes of so many prepared rows: quantised, and as floats.
    pub(crate) fn bytes(&self, rows: usize) -> [usize; 2] {
        let padding = PackedFloats::bytes(0, self.cols) * (self.matrices.min(rows).max(1) - 1);
        [Quantized::bytes(rows, self.cols), PackedFloats::bytes(rows, self.cols) + padding]
    }
}

/// How the units of a product are divided.
pub(crate) struct Plan {
    /// By thread: pieces and their units. With a gate the pieces are those of the first half. Those of experts are divided in each
    /// step.
    shares: Vec<Vec<(usize, Range<usize>)>>,
    pub(crate) kinds: Kinds,
}

/// The plans of a Program's products, by op.
pub(crate) fn plans(program: &Program, held: &[Held], ids: &[Weight], threads: usize) -> Vec<Option<Plan>> {
    let plan = |op: &Op| {
        let h = &held[ids[Product::of(program, op)?.weight.0 as usize].0 as usize];
        let Op::MatMul { glu, .. } = op else {
            return Some(Plan { shares: Vec::new(), kinds: Kinds::of(h) });
        };
        let end = if glu.is_some() { h.decl.rows() as usize / 2 } else { h.decl.rows() as usize };
        let pieces = h.pieces.iter().filter(|p| p.first < end);
        Some(Plan {
            shares: shares(pieces.map(|p| (p.weight.units(), p.weight.bytes())), threads),
            kinds: Kinds::of(h),
        })
    };
    program.ops.iter().map(|n| plan(&n.op)).collect()
}

/// Divides pieces, given as units and bytes, so that threads read about equally many bytes.
fn shares(
    pieces: impl Iterator<Item = (usize, usize)> + Clone,
    threads: usize,
) -> Vec<Vec<(usize, Range<usize>)>> {
    let total: usize = pieces.clone().map(|p| p.1).sum();
    let share = |t: usize| {
        let (from, to) = (total * t / threads, total * (t + 1) / threads);
        let mut at = 0;
        let mut mine = Vec::new();
        for (i, (units, bytes)) in pieces.clone().enumerate() {
            // The unit in which byte `b` of the whole lies; the same rounding for `to` here and `from` of the next.
            let unit = |b: usize| (b.saturating_sub(at) * units).div_ceil(bytes).min(units);
            let range = unit(from)..unit(to);
            if !range.is_empty() {
                mine.push((i, range));
            }
            at += bytes;
        }
        mine
    };
    (0..threads).map(share).collect()
}

/// A thread's own prepared rows.
#[derive(Default)]
pub(crate) struct Lines {
    normed: Vec<f32>,
    pub(crate) quantized: Vec<Line>,
    pub(crate) floats: Vec<Line>,
}

/// Prepared rows that all threads read.
pub(crate) struct Shared {
    quantized: MmapMut,
    floats: MmapMut,
}

/// Bytes of the prepared rows of the largest product: quantised and as floats.
pub(crate) fn prepared_bytes(program: &Program, kinds: &[Option<Kinds>], limits: &Limits) -> [usize; 2] {
    largest(program, kinds, |p| p.rows(limits))
}

fn largest(program: &Program, kinds: &[Option<Kinds>], rows: impl Fn(&Product) -> usize) -> [usize; 2] {
    let (mut quantized, mut floats) = (1, 1);
    for (node, kinds) in program.ops.iter().zip(kinds) {
        let (Some(product), Some(kinds)) = (Product::of(program, &node.op), kinds) else { continue };
        let bytes = product.bytes(rows(&product));
        if kinds.quantized {
            quantized = quantized.max(bytes[0]);
        }
        if kinds.float {
            floats = floats.max(bytes[1]);
        }
    }
    [quantized, floats]
}

/// Bytes of a thread's own prepared rows.
pub(crate) fn lines_bytes(program: &Program, kinds: &[Option<Kinds>], limits: &Limits) -> usize {
    let few = |p: &Product| p.rows(limits).min(if p.matrices > 1 { experts::FEW } else { FEW });
    largest(program, kinds, few).iter().sum()
}

impl Shared {
    /// Room for the largest product of a Program.
    pub(crate) fn new(program: &Program, plans: &[Option<Plan>], limits: &Limits) -> Result<Shared> {
        let kinds: Vec<_> = plans.iter().map(|p| p.as_ref().map(|p| p.kinds)).collect();
        let [quantized, floats] = prepared_bytes(program, &kinds, limits);
        let map = |bytes| {
            MmapMut::map_anon(bytes).map_err(|_| Error::Memory { what: "prepared activations", bytes })
        };
        let shared = Shared { quantized: map(quantized)?, floats: map(floats)? };
        huge_pages(&shared.quantized);
        huge_pages(&shared.floats);
        Ok(shared)
    }

    /// Access for the threads of a step.
    pub(crate) fn share(&mut self) -> Sharing {
        Sharing { quantized: self.quantized.as_mut_ptr(), floats: self.floats.as_mut_ptr() }
    }
}

/// [`Shared`] as the threads of a step see it.
#[derive(Clone, Copy)]
pub(crate) struct Sharing {
    pub(crate) quantized: *mut u8,
    pub(crate) floats: *mut u8,
}

// SAFETY: plain addresses; the threads write different rows and wait before they read others'.
unsafe impl Sync for Sharing {}
// SAFETY: as above.
unsafe impl Send for Sharing {}

/// Runs one product.
pub(crate) fn matmul(run: &Run, team: &Team, lines: &mut Lines, i: usize, op: &Op) {
    let (Op::MatMul { out, x, norm: spec, weight, bias, add, glu }, Some(plan)) = (op, &run.linear[i]) else {
        return;
    };
    let (rows, cols) = (run.rows(*x), x.cols as usize);
    if rows == 0 {
        return;
    }
    let lora = run.lora.and_then(|l| {
        let outputs = (run.program.rows_of(*x) == quarrel_ir::Rows::Outputs).then_some(run.step.outputs);
        l.product(*weight, run.places, outputs)
    });
    let x = run.mat(*x);
    let few = rows <= FEW;
    let prepared = if few { 0..rows } else { group_share(team, rows) };

    // Where the prepared rows are: the thread's own buffers, sized here, or the shared ones, sized by `Shared::new`.
    let quantized = plan.kinds.quantized.then(|| {
        let mut own = || room(&mut lines.quantized, Quantized::bytes(rows, cols));
        let place = if few { own() } else { run.shared.quantized };
        // SAFETY: the place has room for the rows.
        unsafe { Quantized::new(run.isa, place, rows, cols) }
    });
    let floats = plan.kinds.float.then(|| {
        let mut own = || room(&mut lines.floats, PackedFloats::bytes(rows, cols));
        let place = if few { own() } else { run.shared.floats };
        // SAFETY: as above.
        unsafe { PackedFloats::new(run.isa, place, rows, cols) }
    });
    lines.normed.resize(lines.normed.len().max(cols), 0.0);
    let spec = spec.as_ref().map(|s| run.norm(s));
    for r in prepared {
        // SAFETY: the rows of `x` are complete, behind a barrier; row r of the buffers is this thread's.
        unsafe {
            let ptr = match &spec {
                Some(n) => {
                    norm(run.isa, n, x.row(r), None, &mut lines.normed[..cols]);
                    lines.normed.as_mut_ptr()
                }
                None => x.row(r).as_ptr().cast_mut(),
            };
            let row = Rows { ptr, stride: 0 };
            if let Some(t) = &quantized {
                t.quantize(row, r..r + 1);
            }
            if let Some(t) = &floats {
                t.pack(row, r..r + 1);
            }
            if let Some(lora) = &lora {
                // A row that every thread prepares is shared by rank.
                let ranks = lora.ranks(r);
                let mine = if few { team.share(ranks) } else { 0..ranks };
                lora.down(run.isa, r, std::slice::from_raw_parts(ptr, cols), mine);
            }
        }
    }
    if !few || lora.is_some() {
        team.barrier();
    }
    let input = |w: &PackedWeight| match w.input() {
        InputKind::Quantized => Input::Quantized(quantized.expect("the plan saw this piece")),
        InputKind::Float => Input::Float(floats.expect("the plan saw this piece")),
    };
    let pieces = &run.held(*weight).pieces;
    let bias = bias.map(|b| run.held(b).vector());
    let part = |p: &Piece| bias.map(|b| &b[p.first..p.first + p.weight.rows()]);
    let (out, add) = (run.mat(*out), add.map(|a| run.mat(a)));
    let delta = |piece: usize| lora.map(|l| l.delta(piece));
    for (i, units) in &plan.shares[team.index] {
        let piece = &pieces[*i];
        // SAFETY: `x` is complete, units belong to one thread, and `prepare` refused an output that overlaps an input.
        unsafe {
            match glu {
                Some(act) => {
                    // The second half is cut like the first.
                    let second = i + pieces.len() / 2;
                    let partner = &pieces[second];
                    let gate = Side { weight: &piece.weight, bias: part(piece), delta: delta(*i) };
                    let up = Side { weight: &partner.weight, bias: part(partner), delta: delta(second) };
                    matmul::matmul_glu(
                        gate,
                        up,
                        units.clone(),
                        input(gate.weight),
                        out.columns(piece.first),
                        activation(*act),
                    );
                }
                None => {
                    let add = add.map(|a| a.columns(piece.first));
                    let epilogue = Epilogue { bias: part(piece), delta: delta(*i), add };
                    let x = input(&piece.weight);
                    matmul::matmul(&piece.weight, units.clone(), x, out.columns(piece.first), epilogue);
                }
            }
        }
    }
}

/// This thread's rows, in whole groups.
fn group_share(team: &Team, rows: usize) -> Range<usize> {
    let groups = team.share(rows.div_ceil(GROUP));
    groups.start * GROUP..(groups.end * GROUP).min(rows)
}

impl Mat {
    pub(crate) fn columns(self, first: usize) -> Rows {
        let (ptr, stride) = self.start(first);
        Rows { ptr, stride }
    }
}

pub(crate) fn activation(act: Activation) -> matmul::Activation {
    match act {
        Activation::Silu => matmul::Activation::Silu,
        Activation::GeluTanh => matmul::Activation::GeluTanh,
        Activation::GeluErf => matmul::Activation::GeluErf,
        Activation::Relu => matmul::Activation::Relu,
    }
}

impl Held {
    /// Rows `from..to` of the stacked matrix, which lie in one tensor.
    fn rows(&self, from: usize, to: usize) -> Result<(&str, DType, Bytes)> {
        let mut start = 0;
        for (t, part) in self.tensors.iter().zip(&self.decl.parts) {
            let end = start + part.rows as usize;
            if from < end {
                if t.data.is_empty() {
                    let why = "was given back after another program packed it; load it again".into();
                    return Err(Error::Weight { name: t.name.clone(), why });
                }
                let row = t.data.len() / part.rows as usize;
                return Ok((&t.name, t.dtype, t.data.slice((from - start) * row..(to - start) * row)));
            }
            start = end;
        }
        Err(Error::Shape { at: self.decl.parts[0].name.clone(), why: format!("no rows {from}..{to}") })
    }

    /// Drops the source of what was repacked. Mapped pages can be read again, as rows of an embedding table are; memory of
    /// our own is gone, unless it is such a `table`.
    fn give_back(&mut self, table: bool) {
        for t in &mut self.tensors {
            if t.data.is_mapped() {
                t.data.release();
            } else if !table {
                t.data = Bytes::from(Vec::new());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_every_unit_once_and_balance_bytes() {
        for threads in [1, 2, 3, 7] {
            let pieces = [(36, 36 * 100), (12, 12 * 100), (12, 12 * 300), (1, 5)];
            let mut seen = pieces.map(|p| vec![0; p.0]);
            for share in shares(pieces.iter().copied(), threads) {
                let bytes: usize = share.iter().map(|(i, r)| r.len() * pieces[*i].1 / pieces[*i].0).sum();
                assert!(bytes.abs_diff(8405 / threads) <= 600, "{bytes} of {threads} threads");
                share.iter().for_each(|(i, r)| r.clone().for_each(|u| seen[*i][u] += 1));
            }
            assert!(seen.iter().flatten().all(|n| *n == 1), "{seen:?}");
        }
    }
}
