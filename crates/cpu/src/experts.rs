//! Products with chosen experts: rows are sorted by expert, and each expert's rows meet its packed weights as those of any product
//! do. So a row's bits are those of a product of its own, and only chosen weights are read.

use crate::exec::{Mat, Run};
use crate::linear::{Lines, Product, activation};
use crate::matmul::{self, Epilogue, Gate, Input, Output, PackedFloats, Quantized, Rows, Side, room};
use crate::pack::{InputKind, PackedWeight};
use crate::pool::Team;
use quarrel_ir::{Limits, Op, Program};
use std::ops::Range;

/// Up to so many prepared rows every thread prepares by itself.
pub(crate) const FEW: usize = 16;

/// Rows whose products take about as long as reading the weights for them.
const READING: usize = 4;

/// The rows of a step by expert.
#[derive(Default)]
pub(crate) struct Groups {
    /// Experts that some row has chosen, in order.
    chosen: Vec<Group>,
    /// Row and place among its experts, expert after expert.
    pairs: Vec<(u32, u32)>,
    /// Where the product of each pair begins in the output.
    places: Vec<usize>,
    /// By expert: pairs, then where the next one goes.
    counts: Vec<usize>,
}

/// The pairs of one expert.
struct Group {
    expert: usize,
    first: usize,
    len: usize,
}

impl Groups {
    /// Sorts the choices of `rows` rows; `place` says where the product of a pair goes.
    ///
    /// # Safety
    /// No thread may write `route` meanwhile.
    unsafe fn sort(
        &mut self,
        route: Option<Mat>,
        (rows, used, experts): (usize, usize, usize),
        place: impl Fn(usize, usize) -> usize,
    ) {
        let pairs = rows * used;
        // SAFETY: the caller's promise.
        let expert = |r: usize, j: usize| route.map_or(j, |route| unsafe { route.row(r)[j] } as usize);
        self.counts.clear();
        self.counts.resize(experts, 0);
        (0..rows).for_each(|r| (0..used).for_each(|j| self.counts[expert(r, j)] += 1));
        self.chosen.clear();
        let mut first = 0;
        for (expert, count) in self.counts.iter_mut().enumerate() {
            let len = std::mem::replace(count, first);
            if len > 0 {
                self.chosen.push(Group { expert, first, len });
            }
            first += len;
        }
        self.pairs.resize(pairs.max(self.pairs.len()), (0, 0));
        self.places.resize(pairs.max(self.places.len()), 0);
        for r in 0..rows {
            for j in 0..used {
                let at = &mut self.counts[expert(r, j)];
                (self.pairs[*at], self.places[*at]) = ((r as u32, j as u32), place(r, j));
                *at += 1;
            }
        }
    }
}

/// Bytes of a thread's [`Groups`].
pub(crate) fn groups_bytes(program: &Program, limits: &Limits) -> usize {
    let of = |op: &Op| match op {
        Op::MatMulExperts { route, experts, .. } => {
            let pair = size_of::<(u32, u32)>() + size_of::<usize>();
            let expert = size_of::<Group>() + size_of::<usize>();
            limits.rows * route.as_ref().map_or(*experts, |r| r.cols / 2) as usize * pair
                + *experts as usize * expert
        }
        _ => 0,
    };
    program.ops.iter().map(|n| of(&n.op)).max().unwrap_or(0)
}

/// Prepared rows of each expert in one memory.
struct Inputs {
    quantized: Option<*mut u8>,
    floats: Option<*mut u8>,
    cols: usize,
}

impl Inputs {
    /// The `nth` group's. Floats are padded by group.
    ///
    /// # Safety
    /// The memory has room for all groups.
    unsafe fn group(
        &self,
        run: &Run,
        nth: usize,
        first: usize,
        len: usize,
    ) -> (Option<Quantized>, Option<PackedFloats>) {
        let cols = self.cols;
        let floats = PackedFloats::bytes(first, cols) + nth * PackedFloats::bytes(0, cols);
        let floats = floats - PackedFloats::bytes(0, cols);
        // SAFETY: the caller's promise.
        unsafe {
            (
                self.quantized
                    .map(|p| Quantized::new(run.isa, p.add(Quantized::bytes(first, cols)), len, cols)),
                self.floats.map(|p| PackedFloats::new(run.isa, p.add(floats), len, cols)),
            )
        }
    }
}

/// Runs one product with experts.
pub(crate) fn matmul(run: &Run, team: &Team, lines: &mut Lines, groups: &mut Groups, i: usize, op: &Op) {
    let Op::MatMulExperts { out, x, route, experts, weight, bias, glu } = op else { return };
    let (Some(plan), Some(product)) = (&run.linear[i], Product::of(run.program, op)) else { return };
    let (rows, used, experts) = (run.rows(*x), product.times, *experts as usize);
    let cols = run.program.weights[weight.0 as usize].cols as usize;
    if rows == 0 {
        return;
    }
    let (width, same) = (out.cols as usize / used, x.cols as usize == cols);
    let (each, block) =
        (run.program.weights[weight.0 as usize].parts[0].rows as usize, x.cols as usize / used);
    let (out, x, route) = (run.mat(*out), run.mat(*x), route.map(|r| run.mat(r)));
    let Rows { stride, .. } = out.columns(0);
    // SAFETY: the choices are complete, behind a barrier.
    unsafe { groups.sort(route, (rows, used, experts), |r, j| r * stride + j * width) };

    // One row that every expert reads is prepared once.
    let once = rows == 1 && same && groups.chosen.iter().all(|g| g.len == 1);
    let pairs = if once { 1 } else { rows * used };
    let own = pairs <= FEW;
    let [quantized, floats] = product.bytes(pairs);
    let inputs = Inputs {
        quantized: plan.kinds.quantized.then(|| match own {
            true => room(&mut lines.quantized, quantized),
            false => run.shared.quantized,
        }),
        floats: plan.kinds.float.then(|| match own {
            true => room(&mut lines.floats, floats),
            false => run.shared.floats,
        }),
        cols,
    };
    let prepared = |nth: usize| {
        let (nth, g) = (if once { 0 } else { nth }, &groups.chosen[nth]);
        // SAFETY: own buffers were sized above, the shared ones by `Shared::new`, for all pairs.
        unsafe { inputs.group(run, nth, if once { 0 } else { g.first }, g.len) }
    };
    let mine = if own { 0..pairs } else { team.share(pairs) };
    for (nth, g) in groups.chosen.iter().enumerate().take(if once { 1 } else { usize::MAX }) {
        let (quantized, floats) = prepared(nth);
        for p in mine.start.max(g.first)..mine.end.min(g.first + g.len) {
            let (row, j) = groups.pairs[p];
            let first = if same { 0 } else { j as usize * block };
            // SAFETY: the rows of `x` are complete, behind a barrier; the places of pair p are this thread's.
            unsafe {
                let ptr = x.row(row as usize)[first..first + cols].as_ptr().cast_mut();
                let (row, at) = (Rows { ptr, stride: 0 }, p - g.first..p - g.first + 1);
                if let Some(q) = &quantized {
                    q.quantize(row, at.clone());
                }
                if let Some(f) = &floats {
                    f.pack(row, at);
                }
            }
        }
    }
    if width > each {
        for r in team.share(rows) {
            for j in 0..used {
                // SAFETY: rows are split over the threads, products have other columns, and `x` is complete.
                let (out, x) = unsafe { (out.part_mut(r, j * width + each..(j + 1) * width), x.row(r)) };
                out.copy_from_slice(&x[j * block + cols..(j + 1) * block]);
            }
        }
    }
    if !own {
        team.barrier();
    }

    let pieces = &run.held(*weight).pieces;
    let bias = bias.map(|b| run.held(b).vector());
    let part = |piece: usize| bias.map(|b| &b[piece * each..][..each]);
    for (nth, units) in shares(&groups.chosen, team, |e| pieces[e].weight.units()) {
        let g = &groups.chosen[nth];
        let (quantized, floats) = prepared(nth);
        let input = |w: &PackedWeight| match w.input() {
            InputKind::Quantized => Input::Quantized(quantized.expect("the plan saw this piece")),
            InputKind::Float => Input::Float(floats.expect("the plan saw this piece")),
        };
        let places = Some(&groups.places[g.first..g.first + g.len]);
        let to = Output { rows: out.columns(0), places };
        let (one, two) = (g.expert, experts + g.expert);
        let weight = &pieces[one].weight;
        // SAFETY: `x` is complete, units belong to one thread, and `prepare` refused an output that overlaps an input; places are
        // those of different rows and experts, within the output.
        unsafe {
            match glu {
                Some(gate) => {
                    let gate_side = Side { bias: part(one), ..Side::new(weight) };
                    let up = Side { bias: part(two), ..Side::new(&pieces[two].weight) };
                    matmul::matmul_glu(gate_side, up, units, input(weight), to, kernel_gate(*gate));
                }
                None => {
                    let epilogue = Epilogue { bias: part(one), ..Epilogue::default() };
                    matmul::matmul(weight, units, input(weight), to, epilogue);
                }
            }
        }
    }
}

/// This thread's units of each chosen expert, so that all threads have about as much to do.
fn shares<'a>(
    chosen: &'a [Group],
    team: &Team,
    units: impl Fn(usize) -> usize + Copy + 'a,
) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
    divide(chosen.iter().map(move |g| (units(g.expert), g.len + READING)), team.index, team.threads)
}

/// Part `index` of `parts` of all units, where a unit of each matrix has a cost.
fn divide(
    matrices: impl Iterator<Item = (usize, usize)> + Clone,
    index: usize,
    parts: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let total: usize = matrices.clone().map(|(units, cost)| units * cost).sum();
    let (from, to) = (total * index / parts, total * (index + 1) / parts);
    let mut at = 0;
    let of = move |(i, (units, cost)): (usize, (usize, usize))| {
        // The same rounding for `to` here and `from` of the next part.
        let unit = |b: usize| b.saturating_sub(at).div_ceil(cost).min(units);
        let range = unit(from)..unit(to);
        at += units * cost;
        (!range.is_empty()).then_some((i, range))
    };
    matrices.enumerate().filter_map(of)
}

fn kernel_gate(gate: quarrel_ir::Gate) -> Gate {
    match gate {
        quarrel_ir::Gate::Plain(act) => Gate::Plain(activation(act)),
        quarrel_ir::Gate::Clamped { alpha, limit } => Gate::Clamped { alpha, limit },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_some_threads_and_only_its() {
        for parts in [1, 2, 3, 7, 64] {
            let matrices = [(36, 5), (36, 12), (1, 4), (36, 4 + 64)];
            let mut seen = matrices.map(|m| vec![0; m.0]);
            let mut most = 0;
            for index in 0..parts {
                let mine: Vec<_> = divide(matrices.iter().copied(), index, parts).collect();
                most = most.max(mine.iter().map(|(i, r)| r.len() * matrices[*i].1).sum());
                mine.into_iter().for_each(|(i, r)| r.for_each(|u| seen[i][u] += 1));
            }
            assert!(seen.iter().flatten().all(|n| *n == 1), "{seen:?}");
            assert!(most <= 3064 / parts + 2 * 68, "{most} of {parts}");
        }
    }
}
