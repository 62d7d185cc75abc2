//! One step: every thread interprets the same tape inside one parallel region.
//!
//! Soundness of the shared memory rests on [`crate::plan`]: between two barriers no thread writes what another one reads
//! or writes. Each `unsafe` block below names the split that makes its part the thread's own.

use crate::experts;
use crate::kernels::attention::{self, Cached, Queries};
use crate::kernels::bias::Distances;
use crate::kernels::elementwise::{Each, map};
use crate::kernels::norm::{Norm, cutoff, norm, rescale};
use crate::kernels::observe::{self, Observed, ReadKeys, Sums};
use crate::kernels::top_k::{self, TopK};
use crate::kernels::{combine::combine, embed::embed, recurrent, rope::rope, short_conv};
use crate::kv::{Bf16, KvHead, KvShare, KvType, Stored, by_type};
use crate::linear::{self, Lines};
use crate::lora;
use crate::plan;
use crate::pool::Team;
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::weights::Held;
use quarrel_ir::arena::Slot;
use quarrel_ir::experts::route;
use quarrel_ir::{
    AttendSpec, BLOCK_TOKENS, KvLayer, Limits, Lookup, NormSpec, Op, OpTime, Program, Rows, StepInputs, View,
    Weight, WeightId,
};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Query vectors of a tile, about: rows of one sequence that attend together.
const TILE: usize = 48;

/// Columns of a matrix in the arena.
#[derive(Clone, Copy)]
pub(crate) struct Mat {
    base: *mut f32,
    stride: usize,
    cols: usize,
    rows: usize,
}

impl Mat {
    /// One row.
    ///
    /// # Safety
    /// No thread may write these columns of the row while the slice lives.
    pub(crate) unsafe fn row<'a>(self, r: usize) -> &'a [f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: the slot has `rows` rows of `stride` >= `cols` elements; no writer by the contract.
        unsafe { std::slice::from_raw_parts(self.base.add(r * self.stride), self.cols) }
    }

    /// One row, or with `part` some of its columns, to write.
    ///
    /// # Safety
    /// No other thread may read or write these columns of the row while the slice lives.
    pub(crate) unsafe fn part_mut<'a>(self, r: usize, part: Range<usize>) -> &'a mut [f32] {
        assert!(
            r < self.rows && part.start <= part.end && part.end <= self.cols,
            "row {r}, columns {part:?}"
        );
        // SAFETY: as in `row`; the columns are this thread's own by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(r * self.stride + part.start), part.len()) }
    }

    /// Address of column `first` of row 0, and elements from a row to the next.
    pub(crate) fn start(self, first: usize) -> (*mut f32, usize) {
        assert!(first < self.cols, "column {first} of {}", self.cols);
        (self.base.wrapping_add(first), self.stride)
    }

    /// Columns.
    pub(crate) fn cols(self) -> usize {
        self.cols
    }

    /// One row to write.
    ///
    /// # Safety
    /// As for [`Mat::part_mut`].
    pub(crate) unsafe fn row_mut<'a>(self, r: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.part_mut(r, 0..self.cols) }
    }
}

/// Memory that threads share by agreement.
#[derive(Clone, Copy)]
pub(crate) struct Memory(pub(crate) *mut f32);

// SAFETY: a plain address; every access through it is an `unsafe` block that says whose the elements are.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

/// Rows of one sequence that attend together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    seq: usize,
    /// First row of the step.
    row: usize,
    rows: usize,
    /// Position of the first row.
    position: usize,
    /// Tokens of the sequence at the end of the step.
    end: usize,
    /// And of its source.
    source: usize,
}

/// The last rows of a sequence's part of a step, whose attention is added up.
pub(crate) struct Watched {
    seq: usize,
    /// First row of the step.
    row: usize,
    rows: usize,
    /// Position of the first row.
    position: usize,
    /// Tokens of the sequence at the end of the step.
    end: usize,
    /// `[page][head of any layer][16]`.
    sums: Memory,
    pages: usize,
}

impl Watched {
    /// The observed rows of sequence `seq`, with sums for so many `heads`.
    pub(crate) fn new(step: &StepInputs, seq: usize, sums: &mut [f32], heads: usize) -> Watched {
        let s = &step.seqs[seq];
        let rows = s.observe.map_or(0, |o| o.rows);
        let row = step.seqs[..=seq].iter().map(|s| s.rows).sum::<usize>() - rows;
        let pages = sums.len() / (heads * BLOCK_TOKENS);
        let end = s.start + s.rows;
        Watched { seq, row, rows, position: end - rows, end, sums: Memory(sums.as_mut_ptr()), pages }
    }
}

/// Cuts the step into tiles.
pub(crate) fn tiles(step: &StepInputs, group: usize, out: &mut Vec<Tile>) {
    out.clear();
    let most = (TILE / group).max(1);
    let mut row = 0;
    for (seq, s) in step.seqs.iter().enumerate() {
        for at in (0..s.rows).step_by(most) {
            let rows = most.min(s.rows - at);
            let (position, end) = (s.start + at, s.start + s.rows);
            out.push(Tile { seq, row: row + at, rows, position, end, source: s.source });
        }
        row += s.rows;
    }
}

/// What a thread needs for itself.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) lines: Lines,
    groups: experts::Groups,
    scores: Vec<[f64; 2]>,
    queries: Queries,
    attention: Box<attention::Scratch>,
    states: Vec<f32>,
    parts: Vec<f32>,
    observed: observe::Scratch,
    top: top_k::Scratch,
    convolved: Vec<f32>,
}

/// Everything a step reads, and the memory it writes.
pub(crate) struct Run<'a> {
    pub(crate) isa: Isa,
    pub(crate) program: &'a Program,
    /// The ops of this step: all, or those that read sources, or the others.
    pub(crate) ops: Range<usize>,
    /// The biases by distance.
    pub(crate) distances: &'a [Arc<Distances>],
    pub(crate) slots: &'a [Slot],
    pub(crate) barriers: &'a [bool],
    pub(crate) linear: &'a [Option<linear::Plan>],
    pub(crate) held: &'a [Held],
    pub(crate) ids: &'a [Weight],
    pub(crate) arena: Memory,
    /// By rope table: cosines and sines of each row.
    pub(crate) angles: &'a [Slot],
    pub(crate) kv: KvShare<'a>,
    /// The states of each sequence of the step, if the program has any, and where each begins.
    pub(crate) states: &'a [Memory],
    pub(crate) state_places: &'a [usize],
    /// Rows after which the state of their sequence is copied, ascending, and where to.
    pub(crate) snapshots: &'a [(usize, Memory)],
    pub(crate) step: &'a StepInputs<'a>,
    /// Sequence and position of each row.
    pub(crate) places: &'a [(usize, usize)],
    pub(crate) tiles: &'a [Tile],
    pub(crate) watched: &'a [Watched],
    /// Next piece of work, by op.
    pub(crate) counters: &'a [AtomicUsize],
    /// Op before which every thread leaves the step.
    pub(crate) stopped: &'a AtomicUsize,
    /// Parts of attention that is split over threads.
    pub(crate) parts: Memory,
    pub(crate) shared: linear::Sharing,
    /// Adapters, if a sequence has one.
    pub(crate) lora: Option<&'a lora::Step<'a>>,
    pub(crate) scratch: &'a [Mutex<Scratch>],
    /// Times by op, when they are wanted.
    pub(crate) times: Option<&'a Mutex<Vec<OpTime>>>,
}

impl Run<'_> {
    pub(crate) fn mat(&self, v: View) -> Mat {
        let slot = self.slots[v.value.0 as usize];
        self.slot(slot, v.col as usize, v.cols as usize)
    }

    fn slot(&self, slot: Slot, col: usize, cols: usize) -> Mat {
        // SAFETY: the arena was allocated for all its slots, and a view lies within its value.
        let base = unsafe { self.arena.0.add(slot.offset + col) };
        Mat { base, stride: slot.stride, cols, rows: slot.rows }
    }

    pub(crate) fn rows(&self, v: View) -> usize {
        match self.program.rows_of(v) {
            Rows::Tokens => self.step.tokens.len(),
            Rows::Outputs => self.step.outputs.len(),
        }
    }

    pub(crate) fn held(&self, id: WeightId) -> &Held {
        &self.held[self.ids[id.0 as usize].0 as usize]
    }

    pub(crate) fn norm(&self, n: &NormSpec) -> Norm<'_> {
        Norm {
            kind: n.kind,
            eps: n.eps,
            group: n.group as usize,
            gain: n.weight.map(|w| self.held(w).vector()),
            shift: n.bias.map(|w| self.held(w).vector()),
        }
    }

    /// The tape, as one thread runs it.
    pub(crate) fn thread(&self, team: &Team) {
        let mut scratch = self.scratch[team.index].lock().unwrap_or_else(PoisonError::into_inner);
        let mut times = self
            .times
            .filter(|_| team.index == 0)
            .map(|t| (t.lock().unwrap_or_else(PoisonError::into_inner), Cell::new(Instant::now())));
        let lap = |last: &Cell<Instant>| {
            let now = Instant::now();
            (now - last.replace(now)).as_nanos() as u64
        };
        self.angles(team);
        for (i, node) in self.ops.clone().zip(&self.program.ops[self.ops.clone()]) {
            if let Some((_, last)) = &times {
                lap(last);
            }
            if self.barriers[i] {
                // Once a layer. A thread that is late may read of a later stop, and goes on to the same barrier.
                if team.index == 0
                    && matches!(node.op, Op::Attend { .. })
                    && self.step.stop.is_some_and(|stop| stop.0())
                {
                    self.stopped.store(i, Relaxed);
                }
                team.barrier();
                if self.stopped.load(Relaxed) <= i {
                    return;
                }
            }
            if let Some((t, last)) = &mut times {
                t[i].wait_ns += lap(last);
            }
            self.op(team, &mut scratch, i, &node.op);
            if let Some((t, last)) = &mut times {
                t[i].busy_ns += lap(last);
                t[i].calls += 1;
            }
        }
    }

    fn angles(&self, team: &Team) {
        for (table, slot) in self.program.ropes.iter().zip(self.angles) {
            let half = table.rot_dims as usize / 2;
            let mat = self.slot(*slot, 0, 2 * half);
            for r in team.share(self.places.len()) {
                // SAFETY: rows are split over the threads, as where the angles are read.
                let (cos, sin) = unsafe { mat.row_mut(r) }.split_at_mut(half);
                table.angles(self.places[r].1 as u32, cos, sin);
            }
        }
    }

    fn op(&self, team: &Team, scratch: &mut Scratch, i: usize, op: &Op) {
        match *op {
            Op::Embed { out, table, scale, by, add } => {
                let (held, out, add) = (self.held(table), self.mat(out), add.map(|a| self.mat(a)));
                for r in team.share(self.step.tokens.len()) {
                    // SAFETY: rows are split over the threads; `prepare` refused an output that overlaps an input.
                    let (out, add) = unsafe { (out.row_mut(r), add.map(|a| a.row(r))) };
                    let row = match by {
                        Lookup::Token => self.step.tokens[r],
                        Lookup::TokenOr(other) => match self.step.tokens[r] {
                            token if token < held.decl.rows() => token,
                            _ => other,
                        },
                        Lookup::Position => self.places[r].1 as u32,
                        Lookup::Row(row) => row,
                    };
                    let (dtype, bytes, row_bytes, row) = held.table_row(row);
                    embed(self.isa, dtype, bytes, row_bytes, row, scale, add, out);
                }
            }
            Op::Norm { out, x, norm: ref spec, add } => {
                let n = self.norm(spec);
                let (rows, out, x, add) =
                    (self.rows(x), self.mat(out), self.mat(x), add.map(|a| self.mat(a)));
                for r in team.share(rows) {
                    // SAFETY: rows are split over the threads; `prepare` refused an output that overlaps an input.
                    let (out, x, add) = unsafe { (out.row_mut(r), x.row(r), add.map(|a| a.row(r))) };
                    norm(self.isa, &n, x, add, out);
                }
            }
            Op::MatMul { .. } => linear::matmul(self, team, &mut scratch.lines, i, op),
            Op::MatMulExperts { .. } => {
                experts::matmul(self, team, &mut scratch.lines, &mut scratch.groups, i, op)
            }
            Op::Route { out, logits, bias, ref spec } => {
                let (rows, bias) = (self.rows(out), bias.map(|b| self.held(b).vector()));
                let (out, logits) = (self.mat(out), self.mat(logits));
                for r in team.share(rows) {
                    // SAFETY: rows are split over the threads; `prepare` refused an output that overlaps an input.
                    let (out, logits) = unsafe { (out.row_mut(r), logits.row(r)) };
                    route(spec, bias, logits, &mut scratch.scores, out);
                }
            }
            Op::Combine { out, x, weights, sums, add } => {
                let (rows, out, x) = (self.rows(out), self.mat(out), self.mat(x));
                let (weights, add) = (self.mat(weights), add.map(|a| self.mat(a)));
                for r in team.share(rows) {
                    // SAFETY: as above.
                    let (out, x, weights) = unsafe { (out.row_mut(r), x.row(r), weights.row(r)) };
                    // SAFETY: as above.
                    let add = add.map(|a| unsafe { a.row(r) });
                    combine(self.isa, x, weights, sums as usize, add, out);
                }
            }
            Op::Rescale { out, x, like, floor } => {
                let (rows, out, x, like) = (self.rows(out), self.mat(out), self.mat(x), self.mat(like));
                for r in team.share(rows) {
                    // SAFETY: rows are split over the threads; `prepare` refused an output that overlaps an input.
                    let (out, x, like) = unsafe { (out.row_mut(r), x.row(r), like.row(r)) };
                    rescale(self.isa, x, like, floor, out);
                }
            }
            Op::Cutoff { x, by } => {
                let (rows, x) = (self.rows(x), self.mat(x));
                for r in team.share(rows) {
                    // SAFETY: rows are split over the threads.
                    cutoff(self.isa, by, unsafe { x.row_mut(r) });
                }
            }
            Op::Rope { x, head_dim, table } => {
                let t = &self.program.ropes[table.0 as usize];
                let half = t.rot_dims as usize / 2;
                let (x, angles) = (self.mat(x), self.slot(self.angles[table.0 as usize], 0, 2 * half));
                for r in team.share(self.places.len()) {
                    // SAFETY: rows are split over the threads.
                    let (x, angles) = unsafe { (x.row_mut(r), angles.row(r)) };
                    let (cos, sin) = angles.split_at(half);
                    rope(self.isa, t, head_dim as usize, cos, sin, x);
                }
            }
            Op::StoreKv { k, v, kv_layer } => by_type!(self.kv.kind(), T, {
                self.isa.run(Store::<T>(self, team, k, v, kv_layer, &mut scratch.states, PhantomData))
            }),
            Op::Attend { out, q, ref spec } => {
                by_type!(self.kv.kind(), T, {
                    self.attend::<T>(team, scratch, i, out, q, spec);
                    self.observe::<T>(team, scratch, q, spec);
                })
            }
            Op::ShortConv { .. } => {
                let run = match self.kv.kind().of_inputs() {
                    KvType::F32 => short_conv::short_conv::<f32>,
                    KvType::BF16 => short_conv::short_conv::<Bf16>,
                    _ => short_conv::short_conv::<u16>,
                };
                run(self, team, &mut scratch.convolved, op);
            }
            Op::Conv { .. } | Op::Scan { .. } => recurrent::recur(self, team, op),
            Op::Glu { out, gate, up, act } => self.each(team, op, Each::Glu(act), out, Some(gate), Some(up)),
            Op::Activate { out, x, act } => self.each(team, op, Each::Activate(act), out, Some(x), None),
            Op::Add { out, a, b, by: [1.0, 1.0] } => self.each(team, op, Each::Add, out, Some(a), Some(b)),
            Op::Add { out, a, b, by } => self.each(team, op, Each::Mix(by), out, Some(a), Some(b)),
            Op::Scale { x, by } => self.each(team, op, Each::Scale(by), x, None, None),
            Op::Clip { x, by } => self.each(team, op, Each::Clip(by), x, None, None),
            Op::Softcap { x, cap } => self.each(team, op, Each::Softcap(cap), x, None, None),
            Op::TopK { out, x } => {
                let (out, x) = (self.mat(out), self.mat(x));
                for r in team.share(self.step.outputs.len()) {
                    // SAFETY: output rows are split over the threads; a barrier lies behind the writers of `x`.
                    let (out, x) = unsafe { (out.row_mut(r), x.row(r)) };
                    self.isa.run(TopK { x, out, scratch: &mut scratch.top });
                }
            }
            Op::PickRows { out, x } => {
                let (out, x) = (self.mat(out), self.mat(x));
                for r in team.share(self.step.outputs.len()) {
                    // SAFETY: output rows are split over the threads; a barrier lies behind the writers of `x`.
                    let (out, x) = unsafe { (out.row_mut(r), x.row(self.step.outputs[r] as usize)) };
                    out.copy_from_slice(x);
                }
            }
        }
    }

    fn each(&self, team: &Team, op: &Op, each: Each, out: View, x: Option<View>, y: Option<View>) {
        let (rows, mat) = (self.rows(out), self.mat(out));
        let (x, y) = (x.map(|x| self.mat(x)), y.map(|y| self.mat(y)));
        let (share, cols) = if plan::by_rows(op) {
            (team.share(rows), 0..mat.cols)
        } else {
            let lines = team.share(mat.cols.div_ceil(LANES));
            (0..rows, lines.start * LANES..(lines.end * LANES).min(mat.cols))
        };
        for r in share {
            // SAFETY: rows, or columns of wide matrices, are split over the threads; overlap was refused.
            let (out, x, y) =
                unsafe { (mat.part_mut(r, cols.clone()), x.map(|x| x.row(r)), y.map(|y| y.row(r))) };
            let y = y.map_or(&[][..], |y| &y[cols.clone()]);
            map(self.isa, each, x.map(|x| &x[cols.clone()]), y, out);
        }
    }

    /// Attention of the step's tiles. With few of them, as in decoding, every thread takes an equal part of all their
    /// chunks, which are merged afterwards with the same arithmetic; else tiles and heads are claimed one by one.
    fn attend<T: Cached>(
        &self,
        team: &Team,
        scratch: &mut Scratch,
        i: usize,
        out: View,
        q: View,
        spec: &AttendSpec,
    ) {
        let (out, q) = (self.mat(out), self.mat(q));
        // By blocks no two query heads may see the same, so each has its keys for itself.
        let each = AttendSpec { kv_heads: spec.heads, ..*spec };
        let spec = if spec.blocks.is_some() { &each } else { spec };
        let (heads, tiles) = (spec.kv_heads as usize, self.tiles.len());
        if splits(self.tiles, spec, team.threads) {
            self.attend_split::<T>(team, scratch, q, spec);
            team.barrier();
            for task in team.share(tiles * heads) {
                self.merge::<T>(scratch, out, spec, task / heads, task % heads);
            }
            return;
        }
        loop {
            let unit = self.counters[i].fetch_add(1, Relaxed);
            if unit >= tiles * heads {
                break;
            }
            // All tiles of a head in turn, so that its keys and values stay near; the last see the most and go first.
            self.attend_whole::<T>(scratch, out, q, spec, tiles - 1 - unit % tiles, unit / tiles);
        }
    }

    /// Adds up the attention of the observed rows, a sequence and kv head at a time.
    fn observe<T: ReadKeys>(&self, team: &Team, scratch: &mut Scratch, q: View, spec: &AttendSpec) {
        let (q, heads) = (self.mat(q), spec.kv_heads as usize);
        let columns = q.cols / heads;
        let heads_of = |layers: &[KvLayer]| layers.iter().map(|l| l.kv_heads as usize).sum::<usize>();
        let (before, all) =
            (heads_of(&self.program.kv[..spec.kv_layer as usize]), heads_of(&self.program.kv));
        for task in team.share(self.watched.len() * heads) {
            let (w, head) = (&self.watched[task / heads], task % heads);
            let kv = self.kv.head(spec.kv_layer as usize, head, self.step.seqs[w.seq].blocks);
            // SAFETY: a page of the sums has a line for each head; this one is within the first.
            let base = unsafe { w.sums.0.add((before + head) * BLOCK_TOKENS) };
            let sums = Sums { base, stride: all * BLOCK_TOKENS, pages: w.pages };
            for at in (0..w.rows).step_by(observe::ROWS) {
                let rows = (at..w.rows.min(at + observe::ROWS)).map(|r| {
                    // SAFETY: queries are only read here, behind a barrier.
                    let q = unsafe { q.row(w.row + r) };
                    (&q[head * columns..(head + 1) * columns], attention::span(spec, w.position + r, w.end))
                });
                let rows: Vec<_> = rows.collect();
                let scratch = &mut scratch.observed;
                let (first, sinks) = (head * (spec.heads / spec.kv_heads) as usize, self.sinks(spec));
                let stored = PhantomData;
                self.isa.run(Observed::<T> { spec, kv, first, sinks, rows: &rows, sums, scratch, stored });
            }
        }
    }

    /// One tile and kv head.
    fn attend_whole<T: Cached>(
        &self,
        scratch: &mut Scratch,
        out: Mat,
        q: Mat,
        spec: &AttendSpec,
        tile: usize,
        head: usize,
    ) {
        let tile = self.tiles[tile];
        self.pack::<T>(&mut scratch.queries, q, spec, &tile, head..head + 1);
        let kv = self.kv_head(spec, &tile, head);
        let len = attention::state_len(spec);
        let states = tile.states(spec);
        scratch.states.resize(states.max(scratch.states.len()), 0.0);
        scratch.parts.resize(states.max(scratch.parts.len()), 0.0);
        let (states, parts) = (&mut scratch.states[..states], &mut scratch.parts[..states]);
        attention::reset(states, len);
        let chunks = tile.chunks(spec);
        let parts_of = attention::CHUNK / attention::unit(spec);
        for unit in chunks.start * parts_of..chunks.end * parts_of {
            if !scratch.queries.narrow(spec, head, unit) {
                continue;
            }
            let c = unit / parts_of;
            let next = (spec.blocks.is_none() && c + 1 < chunks.end).then_some((kv, c + 1));
            let queries = (&scratch.queries, 0);
            // SAFETY: the cache is written by `StoreKv` alone, behind a barrier; `T` is the cache's kind.
            unsafe {
                T::chunk(self.isa, spec, kv, queries, c, next, &mut scratch.attention, parts);
            }
            self.isa.run(attention::Merge { states, parts, len });
        }
        self.finish::<T>(spec, &tile, head, states, out);
    }

    /// This thread's share of all chunks of all tiles, in the order of tile, chunk and kv head.
    fn attend_split<T: Cached>(&self, team: &Team, scratch: &mut Scratch, q: Mat, spec: &AttendSpec) {
        let heads = spec.kv_heads as usize;
        let units = self.tiles.iter().map(|t| t.chunks(spec).len() * heads).sum();
        let share = team.share(units);
        let mut first = 0;
        for tile in self.tiles {
            let chunks = tile.chunks(spec);
            let mine = share.start.max(first)..share.end.min(first + chunks.len() * heads);
            if !mine.is_empty() {
                self.pack::<T>(&mut scratch.queries, q, spec, tile, 0..heads);
            }
            let place = |unit: usize| {
                let head = (unit - first) % heads;
                (self.kv_head(spec, tile, head), chunks.start + (unit - first) / heads, head)
            };
            for unit in mine.clone() {
                let (kv, chunk, head) = place(unit);
                let next = (unit + 1 < mine.end).then(|| place(unit + 1)).map(|(kv, chunk, _)| (kv, chunk));
                // SAFETY: each part belongs to one unit, and that to one thread.
                let out = unsafe { self.part(spec, tile, unit) };
                let queries = (&scratch.queries, head);
                // SAFETY: the cache is written by `StoreKv` alone, behind a barrier; `T` is the cache's kind.
                unsafe {
                    T::chunk(self.isa, spec, kv, queries, chunk, next, &mut scratch.attention, out);
                }
            }
            first += chunks.len() * heads;
        }
    }

    /// Merges the parts of a tile and kv head after [`Run::attend_split`].
    fn merge<T: Cached>(&self, scratch: &mut Scratch, out: Mat, spec: &AttendSpec, tile: usize, head: usize) {
        let heads = spec.kv_heads as usize;
        let first: usize = self.tiles[..tile].iter().map(|t| t.chunks(spec).len() * heads).sum();
        let tile = self.tiles[tile];
        let (len, n) = (attention::state_len(spec), tile.states(spec));
        scratch.states.resize(n.max(scratch.states.len()), 0.0);
        let states = &mut scratch.states[..n];
        attention::reset(states, len);
        for c in 0..tile.chunks(spec).len() {
            // SAFETY: parts were written before the barrier, and this thread alone has this tile and head now.
            let parts = unsafe { self.part(spec, &tile, first + c * heads + head) };
            self.isa.run(attention::Merge { states, parts, len });
        }
        self.finish::<T>(spec, &tile, head, states, out);
    }

    /// Writes the states of a tile and kv head to its rows and columns of `out`.
    fn finish<T: Cached>(&self, spec: &AttendSpec, tile: &Tile, head: usize, states: &[f32], out: Mat) {
        let (vd, group) = (spec.v_dim as usize, (spec.heads / spec.kv_heads) as usize);
        for (j, state) in states.chunks_exact(attention::state_len(spec)).enumerate() {
            let (row, h) = (tile.row + j / group, head * group + j % group);
            // SAFETY: rows and heads of a tile and kv head belong to the thread that claimed it.
            let out = unsafe { out.part_mut(row, h * vd..(h + 1) * vd) };
            let sink = self.sinks(spec).get(h).copied();
            self.isa.run(attention::Finish { state, out, sink, rotated: T::ROTATED });
        }
    }

    /// The scores of the heads' sinks; empty without.
    fn sinks(&self, spec: &AttendSpec) -> &[f32] {
        spec.sinks.map_or(&[], |w| self.held(w).vector())
    }

    fn pack<T: Cached>(
        &self,
        queries: &mut Queries,
        q: Mat,
        spec: &AttendSpec,
        tile: &Tile,
        heads: Range<usize>,
    ) {
        let rows = (0..tile.rows).map(|r| {
            // SAFETY: queries are only read here, behind a barrier.
            (unsafe { q.row(tile.row + r) }, tile.span(spec, tile.position + r))
        });
        T::pack(queries, self.isa, spec, heads.clone(), rows);
        if let Some(buckets) = spec.buckets {
            let group = (spec.heads / spec.kv_heads) as usize;
            let own = self.distances.iter().find(|d| d.buckets == buckets);
            let own = own.expect("`prepare` laid out the table of every attention");
            queries.measure(own, heads.start * group, tile.position, group);
        }
    }

    fn kv_head(&self, spec: &AttendSpec, tile: &Tile, head: usize) -> KvHead<'_> {
        let layer = spec.kv_layer as usize;
        let shared = (spec.kv_heads / self.program.kv[layer].kv_heads) as usize;
        self.kv.head(layer, head / shared, self.step.seqs[tile.seq].blocks)
    }

    /// The part of a unit of `tile`, when attention is split.
    ///
    /// # Safety
    /// No other thread may use this part while the slice lives.
    unsafe fn part<'b>(&self, spec: &AttendSpec, tile: &Tile, unit: usize) -> &'b mut [f32] {
        let most = tile_states(self.tiles, spec);
        // SAFETY: `parts_len` counts `most` elements for each unit, and no tile has more; this one is the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.parts.0.add(unit * most), tile.states(spec)) }
    }
}

impl Tile {
    /// The chunks that its rows see.
    fn chunks(&self, spec: &AttendSpec) -> Range<usize> {
        let (first, last) = (self.position, self.position + self.rows - 1);
        attention::chunks(&[self.span(spec, first), self.span(spec, last)])
    }

    /// What a row at `position` sees.
    fn span(&self, spec: &AttendSpec, position: usize) -> attention::Span {
        attention::span(spec, position, if spec.of_source { self.source } else { self.end })
    }

    /// Elements of the states of its query vectors for one kv head.
    fn states(&self, spec: &AttendSpec) -> usize {
        self.rows * (spec.heads / spec.kv_heads) as usize * attention::state_len(spec)
    }
}

/// Elements of the states of the largest tile.
fn tile_states(tiles: &[Tile], spec: &AttendSpec) -> usize {
    tiles.iter().map(|t| t.states(spec)).max().unwrap_or(0)
}

/// Elements of the parts of a step whose attention is split.
fn split_len(tiles: &[Tile], spec: &AttendSpec) -> usize {
    let units: usize = tiles.iter().map(|t| t.chunks(spec).len() * spec.kv_heads as usize).sum();
    units * tile_states(tiles, spec)
}

/// Whether attention is split by chunk: when there are several, and each tile has few queries, so that its time goes into
/// reading keys and values in their order, or tiles and heads are too few for the threads; unless that takes much memory.
fn splits(tiles: &[Tile], spec: &AttendSpec, threads: usize) -> bool {
    let group = (spec.heads / spec.kv_heads) as usize;
    let few = tiles.iter().all(|t| t.rows * group <= attention::MOST);
    let tasks = tiles.len() * spec.kv_heads as usize;
    spec.blocks.is_none()
        && tiles.iter().any(|t| t.chunks(spec).len() > 1)
        && (tasks < 4 * threads || (few && split_len(tiles, spec) <= PARTS_MOST))
}

/// Elements of the parts that many tiles may have together.
const PARTS_MOST: usize = 1 << 20;

/// Elements that `Run::parts` needs for a step.
pub(crate) fn parts_len(tiles: &[Tile], spec: &AttendSpec, threads: usize) -> usize {
    if splits(tiles, spec, threads) { split_len(tiles, spec) } else { 0 }
}

/// Bytes of the threads' scratch: prepared rows, queries and states of a tile, and the parts of a decode over a full cache.
pub(crate) fn scratch_bytes(
    program: &Program,
    kinds: &[Option<linear::Kinds>],
    limits: &Limits,
    threads: usize,
) -> usize {
    let attends = program
        .ops
        .iter()
        .filter_map(|n| if let Op::Attend { spec, .. } = &n.op { Some(spec) } else { None });
    let (mut own, mut parts) = (0, 0);
    for spec in attends {
        let group = (spec.heads / spec.kv_heads) as usize;
        let vectors = (TILE / group).max(1).min(limits.rows) * group;
        own = own.max(vectors * (spec.head_dim as usize + 2 * attention::state_len(spec)));
        // As many sequences as have logits share the cache evenly.
        let seqs = limits.outputs.max(1);
        let tokens = (limits.kv_blocks / seqs * BLOCK_TOKENS).max(1);
        let tile = Tile { seq: 0, row: 0, rows: 1, position: tokens - 1, end: tokens, source: tokens };
        parts = parts.max(if seqs < 4 * threads { parts_len(&vec![tile; seqs], spec, threads) } else { 0 });
    }
    let convolved = program.ops.iter().filter_map(|n| match &n.op {
        Op::ShortConv { x, weight, .. } => {
            Some(short_conv::scratch_len(x.cols, program.weights[weight.0 as usize].cols))
        }
        _ => None,
    });
    let own = own + convolved.max().unwrap_or(0);
    4 * (parts + threads * own)
        + threads * (linear::lines_bytes(program, kinds, limits) + size_of::<attention::Scratch>())
        + threads * experts::groups_bytes(program, limits)
}

struct Store<'a, T>(&'a Run<'a>, &'a Team<'a>, View, View, u32, &'a mut Vec<f32>, PhantomData<T>);

impl<T: Stored> Kernel for Store<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Store(run, team, k, v, layer, turned, _) = self;
        let (k, v) = (run.mat(k), run.mat(v));
        for r in team.share(run.places.len()) {
            let (seq, position) = run.places[r];
            let token = position % BLOCK_TOKENS;
            for seq in std::iter::once(&run.step.seqs[seq]).chain(run.step.copies_of(r)) {
                let block = seq.blocks[position / BLOCK_TOKENS];
                // SAFETY: rows, and so tokens, are split over the threads, copies with them; readers wait at a barrier;
                // `attend` and this function choose `T` by the same kind.
                unsafe {
                    run.kv.store::<S, T>(s, layer as usize, block, token, k.row(r), v.row(r), turned);
                }
            }
        }
    }
}
