//! One Program as a sequence of launches: the match over ops. It only queues, so the same code runs a step and records a graph.

use crate::args::{self, Ptr};
use crate::choose::{self, Kernel, Product};
use crate::experts::{ExpertKernel, Experts, Sorted, chooses};
use crate::gpu::{Buffer, Caps, Event, Gpu};
use crate::kv::{KvPool, KvType};
use crate::step::{Lists, Size};
use crate::tuned::Plan;
use crate::weights::{Held, RunShape};
use quarrel_ir::arena::Slot;
use quarrel_ir::{
    Activation, AttendSpec, BLOCK_TOKENS, Error, Limits, Lookup, NormKind, NormSpec, Op, Program, Result,
    RopeStyle, RopeTable, Rows, Stop, View, Weight, WeightId, candidates, uses,
};
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;

/// Tokens of the context that one block of the attention kernel takes: `CHUNK` of attend.cu.
pub(crate) const CHUNK: usize = 256;

/// Most bytes of scratch for partial sums of attention.
const PARTS_MAX: usize = 128 << 20;

/// Most rows whose chunks go to different blocks.
const PARTS_ROWS_MAX: usize = 1024;

/// A value on the GPU: address of a view's first element, floats from row to row.
#[derive(Clone, Copy)]
pub(crate) struct At {
    pub(crate) ptr: Ptr,
    pub(crate) stride: i64,
}

/// What launches need to know of a prepared Program.
pub(crate) struct Tape<'a> {
    pub(crate) gpu: &'a Arc<Gpu>,
    pub(crate) program: &'a Program,
    pub(crate) held: &'a [Held],
    pub(crate) ids: &'a [Weight],
    pub(crate) slots: &'a [Slot],
    pub(crate) arena: Ptr,
    pub(crate) kv: &'a KvPool,
    pub(crate) kv_type: KvType,
    pub(crate) ropes: &'a [RopeAt],
    pub(crate) scratch: &'a Scratch,
    pub(crate) deterministic: bool,
    /// What lies in [`Scratch::lists`].
    pub(crate) sorted: Cell<Option<Sorted>>,
}

/// A rotation's frequencies, and the angles of a step's rows.
pub(crate) struct RopeAt {
    pub(crate) freq: Buffer,
    pub(crate) angles: Buffer,
}

/// Memory that ops use for themselves.
pub(crate) struct Scratch {
    /// Inputs of products, normed.
    pub(crate) input: Buffer,
    /// The same as tuned kernels read them.
    pub(crate) form: Buffer,
    /// Products whose two halves come from different kernels.
    pub(crate) wide: Buffer,
    /// Rows by expert.
    pub(crate) lists: Buffer,
    /// Partial sums of attention.
    pub(crate) parts: Buffer,
    /// What the logits come to by groups of columns.
    pub(crate) top: Buffer,
}

/// Bytes of each part of [`Scratch`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScratchBytes {
    pub(crate) input: usize,
    pub(crate) form: usize,
    pub(crate) wide: usize,
    pub(crate) lists: usize,
    pub(crate) parts: usize,
    pub(crate) top: usize,
}

/// How one launch of the tape goes.
pub(crate) struct Pass<'a> {
    pub(crate) size: Size,
    pub(crate) step: args::Step,
    pub(crate) lists: Lists,
    /// Asked before each layer, once the layer before the last is done.
    pub(crate) stop: Option<Stop<'a>>,
    /// One more than there are ops; recorded around each.
    pub(crate) times: Option<&'a [Event]>,
}

impl Tape<'_> {
    /// Queues the whole Program.
    pub(crate) fn launch(&self, pass: &Pass) -> Result<()> {
        for (table, at) in self.program.ropes.iter().zip(self.ropes) {
            let half = table.rot_dims / 2;
            let args = args::Angles {
                step: pass.step,
                freq: at.freq.ptr,
                out: at.angles.ptr,
                half: half as i32,
                mscale: table.mscale,
                growth_tokens: table.growth.map_or(0.0, |g| g.tokens),
                growth_by: table.growth.map_or(0.0, |g| g.by),
                growth_ahead: table.growth.map_or(0.0, |g| g.ahead),
                pad: 0,
            };
            if half > 0 {
                self.gpu.launch("angles", [pass.size.rows as u32, 1, 1], 64, 0, &args)?;
            }
        }
        let mut brake = pass.stop.map(|stop| Brake { stop, layer: None, marks: Vec::new() });
        let mut done = 0;
        for (i, node) in self.program.ops.iter().enumerate() {
            if let Some(times) = pass.times {
                times[i].record()?;
            }
            if let Some(brake) = &mut brake {
                brake.layer(self.gpu, node.layer)?;
            }
            if i < done {
                continue;
            }
            done = match self.rope_store(pass, i)? {
                true => i + 3,
                false => i + 1,
            };
            if done == i + 1 {
                self.op(pass, &node.op)?;
            }
        }
        pass.times.map_or(Ok(()), |times| times[self.program.ops.len()].record())
    }

    fn op(&self, pass: &Pass, op: &Op) -> Result<()> {
        match *op {
            Op::Embed { out, table, scale, by, add } => self.embed(pass, (out, add), (table, by), scale),
            Op::Norm { out, x, ref norm, add } => self.norm(pass, out, x, norm, add),
            Op::MatMul { .. } => self.matmul(pass, op),
            Op::Rope { x, head_dim, table } => self.rope(pass, x, head_dim, table.0 as usize),
            Op::StoreKv { k, v, kv_layer } => self.store(pass, k, v, kv_layer as usize),
            Op::Attend { out, q, ref spec } => self.attend(pass, out, q, spec),
            Op::Glu { out, gate, up, act } => self.map(pass, "map_glu", out, gate, Some(up), code(act), 0.0),
            Op::Activate { out, x, act } => self.map(pass, "map_act", out, x, None, code(act), 0.0),
            Op::Add { out, a, b, .. } => self.map(pass, "map_add", out, a, Some(b), 0, 0.0),
            Op::Scale { x, by } => self.map(pass, "map_scale", x, x, None, 0, by),
            Op::Softcap { x, cap } => self.map(pass, "map_softcap", x, x, None, 0, cap),
            Op::TopK { out, x } => self.top_k(pass, out, x),
            Op::Route { out, logits, bias, ref spec } => self.route(pass, out, logits, bias, spec),
            Op::MatMulExperts { .. } => self.matmul_experts(pass, op),
            Op::Combine { out, x, weights, add, .. } => self.combine(pass, out, x, weights, add),
            Op::Clip { x, by } => self.map(pass, "map_clip", x, x, None, 0, by),
            Op::Rescale { .. }
            | Op::Cutoff { .. }
            | Op::ShortConv { .. }
            | Op::Conv { .. }
            | Op::Scan { .. } => {
                unreachable!("`prepare` refused programs with streams, convolutions or recurrences")
            }
            Op::PickRows { out, x } => {
                let (o, i) = (self.at(out), self.at(x));
                let args = args::Pick {
                    step: pass.step,
                    x: i.ptr,
                    out: o.ptr,
                    x_stride: i.stride,
                    out_stride: o.stride,
                    cols: out.cols as i32,
                    pad: 0,
                };
                let grid = [out.cols.div_ceil(256), pass.size.outputs as u32, 1];
                self.gpu.launch("pick_rows", grid, 256, 0, &args)
            }
        }
    }

    pub(crate) fn at(&self, v: View) -> At {
        let slot = self.slots[v.value.0 as usize];
        let ptr = self.arena + 4 * (slot.offset as u64 + u64::from(v.col));
        At { ptr, stride: slot.stride as i64 }
    }

    /// Rows that a value is computed for, and which of the step's counts it has.
    pub(crate) fn rows(&self, pass: &Pass, v: View) -> (usize, i32) {
        match self.program.rows_of(v) {
            Rows::Tokens => (pass.size.rows, 0),
            Rows::Outputs => (pass.size.outputs, 1),
        }
    }

    fn embed(
        &self,
        pass: &Pass,
        (out, add): (View, Option<View>),
        (table, by): (WeightId, Lookup),
        scale: f32,
    ) -> Result<()> {
        let (o, add) = (self.at(out), add.map(|a| self.at(a)));
        for run in &self.weight(table).runs {
            let RunShape { dtype, first, rows } = run.shape;
            let args = args::Embed {
                step: pass.step,
                w: run.table().ok_or_else(|| self.missing("a table"))?,
                out: o.ptr,
                stride: o.stride,
                add: add.map_or(0, |a| a.ptr),
                add_stride: add.map_or(0, |a| a.stride),
                first: first as i32,
                last: (first + rows) as i32,
                cols: out.cols as i32,
                scale,
                by: match by {
                    Lookup::Token => -1,
                    Lookup::Position => -2,
                    Lookup::Row(row) => row as i32,
                    Lookup::TokenOr(_) => unreachable!("`prepare` refused tables that lack some ids"),
                },
                pad: 0,
            };
            self.gpu.launch(choose::embed(dtype), [pass.size.rows as u32, 1, 1], 128, 0, &args)?;
        }
        Ok(())
    }

    fn norm(&self, pass: &Pass, out: View, x: View, norm: &NormSpec, add: Option<View>) -> Result<()> {
        let (o, i, (rows, rows_kind)) = (self.at(out), self.at(x), self.rows(pass, x));
        let add = add.map(|a| self.at(a));
        let args = args::Norm {
            n: pass.step.n,
            x: i.ptr,
            gain: self.vector(norm.weight),
            bias: self.vector(norm.bias),
            add: add.map_or(0, |a| a.ptr),
            out: o.ptr,
            x_stride: i.stride,
            out_stride: o.stride,
            add_stride: add.map_or(0, |a| a.stride),
            rows_kind,
            group: norm.group as i32,
            kind: kind(norm.kind),
            eps: norm.eps,
            gain_step: self.gain_step(Some(norm)),
            pad: 0,
        };
        let grid = [rows as u32, x.cols / norm.group, 1];
        self.gpu.launch("norm_rows", grid, norm_block(norm.group as usize), 0, &args)
    }

    /// From a group's gains to the next one's: 0 where all groups have the same.
    pub(crate) fn gain_step(&self, norm: Option<&NormSpec>) -> i32 {
        let many = norm.filter(|n| n.weight.is_some_and(|w| self.weight(w).decl.rows() > 1));
        many.map_or(0, |n| n.group as i32)
    }

    fn rope(&self, pass: &Pass, x: View, head_dim: u32, table: usize) -> Result<()> {
        let (i, rope) = (self.at(x), &self.program.ropes[table]);
        let half = rope.rot_dims / 2;
        if half == 0 {
            return Ok(());
        }
        let heads = x.cols / head_dim;
        let args = args::Rope {
            n: pass.step.n,
            x: i.ptr + 4 * u64::from(rope.first),
            angles: self.ropes[table].angles.ptr,
            stride: i.stride,
            heads: heads as i32,
            head_dim: head_dim as i32,
            half: half as i32,
            interleaved: i32::from(rope.style == RopeStyle::Interleaved),
        };
        let grid = [pass.size.rows as u32, (heads * half).div_ceil(128), 1];
        self.gpu.launch("rope", grid, 128, 0, &args)
    }

    /// Rope of queries, of keys, and the store of those keys, where they follow each other, in one launch; whether they do.
    fn rope_store(&self, pass: &Pass, i: usize) -> Result<bool> {
        let [a, b, c, ..] = &self.program.ops[i..] else { return Ok(false) };
        let (
            &Op::Rope { x: q, head_dim: q_dim, table },
            &Op::Rope { x: k, head_dim, table: k_table },
            &Op::StoreKv { k: stored, v, kv_layer },
        ) = (&a.op, &b.op, &c.op)
        else {
            return Ok(false);
        };
        let RopeTable { rot_dims, first, .. } = self.program.ropes[table.0 as usize];
        let half = rot_dims / 2;
        let l = self.program.kv[kv_layer as usize];
        if table != k_table
            || stored != k
            || q_dim != head_dim
            || head_dim != l.head_dim
            || half == 0
            || first > 0
        {
            return Ok(false);
        }
        let kernel = match self.kv_type {
            KvType::F32 => "rope_store_f32",
            KvType::F16 => "rope_store_f16",
            KvType::BF16 => "rope_store_bf16",
        };
        let (heads, items) = (q.cols / head_dim, head_dim - half);
        let at = self.at(q);
        let args = args::RopeStore {
            store: self.store_args(pass, k, v, kv_layer as usize),
            q: at.ptr,
            angles: self.ropes[table.0 as usize].angles.ptr,
            q_stride: at.stride,
            heads: heads as i32,
            half: half as i32,
            interleaved: i32::from(self.program.ropes[table.0 as usize].style == RopeStyle::Interleaved),
            pad: 0,
        };
        let all = (heads + l.kv_heads) * items + l.kv_heads * l.v_dim;
        self.gpu.launch(kernel, [pass.size.rows as u32, all.div_ceil(128), 1], 128, 0, &args)?;
        self.store_copies(pass, &args.store)?;
        Ok(true)
    }

    fn store_args(&self, pass: &Pass, k: View, v: View, layer: usize) -> args::Store {
        let (ka, va) = (self.at(k), self.at(v));
        let (l, place) = (self.program.kv[layer], self.kv.places[layer]);
        args::Store {
            n: pass.step.n,
            list: pass.step.row,
            blocks: pass.step.blocks,
            k: ka.ptr,
            v: va.ptr,
            pool: self.kv.buffer.ptr,
            k_stride: ka.stride,
            v_stride: va.stride,
            page: self.kv.page as i64,
            k_at: place.k as i64,
            v_at: place.v as i64,
            kv_heads: l.kv_heads as i32,
            head_dim: l.head_dim as i32,
            v_dim: l.v_dim as i32,
            copies: 0,
        }
    }

    fn store_kernel(&self) -> &'static str {
        match self.kv_type {
            KvType::F32 => "store_f32",
            KvType::F16 => "store_f16",
            KvType::BF16 => "store_bf16",
        }
    }

    fn store(&self, pass: &Pass, k: View, v: View, layer: usize) -> Result<()> {
        let args = self.store_args(pass, k, v, layer);
        self.gpu.launch(self.store_kernel(), [pass.size.rows as u32, 1, 1], 256, 0, &args)?;
        self.store_copies(pass, &args)
    }

    /// The rows that other sequences have too.
    fn store_copies(&self, pass: &Pass, args: &args::Store) -> Result<()> {
        let Some((n, list)) = pass.lists.copies else { return Ok(()) };
        let args = args::Store { n, list, copies: 1, ..*args };
        self.gpu.launch(self.store_kernel(), [COPIES_MAX as u32, 1, 1], 256, 0, &args)
    }

    /// Attention of the sequences with many rows on tensor cores; whether there is a kernel for it.
    fn flash(&self, pass: &Pass, out: View, q: View, spec: &AttendSpec) -> Result<bool> {
        let group = spec.heads / spec.kv_heads;
        let kernel = flash_kernel(self.kv_type, spec.head_dim).filter(|_| {
            spec.head_dim == spec.v_dim
                && group <= FLASH_ROWS
                && !self.deterministic
                && !pass.lists.many.is_empty()
        });
        let Some((kernel, tokens)) = kernel else { return Ok(false) };
        let (o, i) = (self.at(out), self.at(q));
        let place = self.kv.places[spec.kv_layer as usize];
        let window = spec.window.map_or(0, |w| i32::try_from(w).unwrap_or(i32::MAX));
        if let Some((kernel, rows, shared)) = prefill_kernel(self.kv_type, spec.head_dim, self.gpu.caps.sm) {
            let args = args::Prefill {
                tiles: pass.lists.tiles,
                blocks: pass.step.blocks,
                q: i.ptr,
                out: o.ptr,
                pool: self.kv.buffer.ptr,
                q_stride: i.stride,
                out_stride: o.stride,
                page: self.kv.page as i64,
                k_at: place.k as i64,
                v_at: place.v as i64,
                heads: spec.heads as i32,
                kv_heads: spec.kv_heads as i32,
                window,
                chunked: i32::from(spec.chunked),
                scale: spec.scale,
                softcap: spec.softcap.unwrap_or(0.0),
                sinks: self.vector(spec.sinks),
                alibi: spec.alibi.unwrap_or(0.0),
                pad: 0,
            };
            let grid = [spec.heads, pass.lists.tile_count as u32, 1];
            self.gpu.launch(kernel, grid, 2 * rows as u32, shared, &args)?;
            return Ok(true);
        }
        let args = args::Flash {
            step: pass.step,
            seqs: pass.lists.seqs,
            q: i.ptr,
            out: o.ptr,
            pool: self.kv.buffer.ptr,
            q_stride: i.stride,
            out_stride: o.stride,
            page: self.kv.page as i64,
            k_at: place.k as i64,
            v_at: place.v as i64,
            heads: spec.heads as i32,
            kv_heads: spec.kv_heads as i32,
            window,
            chunked: i32::from(spec.chunked),
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            sinks: self.vector(spec.sinks),
            alibi: spec.alibi.unwrap_or(0.0),
            pad: 0,
        };
        let of_tile = (FLASH_ROWS / group) as usize;
        let tiles: usize = pass.lists.many.iter().map(|rows| rows.div_ceil(of_tile)).sum();
        let shared = 2 * (FLASH_ROWS + 4 * tokens) * (spec.head_dim + 8);
        self.gpu.launch(kernel, [tiles as u32, spec.kv_heads, 1], 128, shared, &args)?;
        Ok(true)
    }

    fn attend(&self, pass: &Pass, out: View, q: View, spec: &AttendSpec) -> Result<()> {
        let (o, i) = (self.at(out), self.at(q));
        let place = self.kv.places[spec.kv_layer as usize];
        let flash = self.flash(pass, out, q, spec)?;
        let rows = if flash { pass.lists.few_len } else { pass.size.rows };
        if rows == 0 {
            return Ok(());
        }
        let size = Size { rows, ..pass.size };
        let fast = decode_kernels(self.kv_type, spec).filter(|_| {
            let fits = size.rows <= PARTS_ROWS_MAX && parts_bytes(spec, size) <= PARTS_MAX;
            let aligned = i.ptr % 16 == 0 && i.stride % 4 == 0;
            aligned && !self.deterministic && (size.chunks == 1 || fits)
        });
        let split = match fast {
            Some(_) => size.chunks > 1,
            None => attend_split(spec, size, self.gpu.caps.multiprocessors as usize),
        };
        let wide = spec.head_dim.is_multiple_of(8) && spec.v_dim.is_multiple_of(8);
        let (kernel, tile) = attend_kernel(self.kv_type, wide, (spec.heads / spec.kv_heads) as usize);
        let args = args::Attend {
            step: pass.step,
            list: if flash { pass.lists.few } else { 0 },
            q: i.ptr,
            out: o.ptr,
            pool: self.kv.buffer.ptr,
            part: if split { self.scratch.parts.ptr } else { 0 },
            q_stride: i.stride,
            out_stride: o.stride,
            page: self.kv.page as i64,
            k_at: place.k as i64,
            v_at: place.v as i64,
            heads: spec.heads as i32,
            kv_heads: spec.kv_heads as i32,
            head_dim: spec.head_dim as i32,
            v_dim: spec.v_dim as i32,
            window: spec.window.map_or(0, |w| i32::try_from(w).unwrap_or(i32::MAX)),
            chunks: pass.size.chunks as i32,
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            sinks: self.vector(spec.sinks),
            alibi: spec.alibi.unwrap_or(0.0),
            chunked: i32::from(spec.chunked),
        };
        if let Some((decode, join)) = fast {
            let group = spec.heads / spec.kv_heads;
            let grid = [size.chunks as u32, spec.kv_heads * group.div_ceil(16), rows as u32];
            let shared = 8 * group.min(16) * spec.head_dim * 4;
            self.gpu.launch(decode, grid, 256, shared, &args)?;
            return match split {
                true => self.gpu.launch(join, [spec.heads.div_ceil(4), rows as u32, 1], 128, 0, &args),
                false => Ok(()),
            };
        }
        let pad = |n: u32| n.next_multiple_of(4) as usize;
        let floats = tile * (pad(spec.head_dim) + CHUNK + 2 * pad(spec.v_dim) + 5);
        let tiles = (spec.heads / spec.kv_heads).div_ceil(tile as u32);
        let chunks = if split { pass.size.chunks as u32 } else { 1 };
        // The third dimension of a grid ends at 65,535.
        let grid = [chunks, spec.kv_heads * tiles, rows as u32];
        self.gpu.launch(kernel, grid, 128, 4 * floats as u32, &args)?;
        if !split {
            return Ok(());
        }
        let block = spec.v_dim.next_multiple_of(32).min(256);
        self.gpu.launch("attend_join", [spec.heads, rows as u32, 1], block, 0, &args)
    }

    /// Two launches: what all of a row comes to by groups of columns, and the best in the groups that can have them.
    fn top_k(&self, pass: &Pass, out: View, x: View) -> Result<()> {
        let (o, i) = (self.at(out), self.at(x));
        let (groups, parts) = top_parts(x);
        let k = candidates::count(out.cols);
        if groups > TOP_GROUPS_MAX || k > TOP_MAX || i.ptr % 16 != 0 || i.stride % 4 != 0 {
            return Err(self.gpu.error(format!("cannot choose the best {k} of {} logits", x.cols)));
        }
        let args = args::TopK {
            step: pass.step,
            x: i.ptr,
            out: o.ptr,
            // Parts first: they are the wider ones.
            largest: self.scratch.top.ptr + 16 * (pass.size.outputs as u64 * u64::from(parts)),
            parts: self.scratch.top.ptr,
            x_stride: i.stride,
            out_stride: o.stride,
            cols: x.cols as i32,
            k: k as i32,
            groups: groups as i32,
            part_count: parts as i32,
        };
        let outputs = pass.size.outputs as u32;
        if outputs == 0 {
            return Ok(());
        }
        self.gpu.launch("top_groups", [parts, outputs, 1], 256, 0, &args)?;
        self.gpu.launch("top_pick", [outputs, 1, 1], 1024, 0, &args)
    }

    fn map(
        &self,
        pass: &Pass,
        kernel: &'static str,
        out: View,
        a: View,
        b: Option<View>,
        act: i32,
        by: f32,
    ) -> Result<()> {
        let (o, i, (rows, rows_kind)) = (self.at(out), self.at(a), self.rows(pass, out));
        let b = b.map(|b| self.at(b));
        let args = args::Map {
            n: pass.step.n,
            a: i.ptr,
            b: b.map_or(0, |b| b.ptr),
            out: o.ptr,
            a_stride: i.stride,
            b_stride: b.map_or(0, |b| b.stride),
            out_stride: o.stride,
            rows_kind,
            cols: out.cols as i32,
            act,
            by,
        };
        self.gpu.launch(kernel, [out.cols.div_ceil(256), rows as u32, 1], 256, 0, &args)
    }

    pub(crate) fn missing(&self, what: &str) -> Error {
        self.gpu.error(format!("{what} is not on the GPU; this is a bug, please report it"))
    }
}

/// Groups and parts of a row of logits: `GROUP` and `PART` of top_k.cu.
fn top_parts(x: View) -> (u32, u32) {
    (x.cols.div_ceil(128), x.cols.div_ceil(4096))
}

/// Most groups: `GROUPS_MAX` of top_k.cu.
const TOP_GROUPS_MAX: u32 = 4096;

/// Most candidates: half of `FOUND_MAX` of top_k.cu.
const TOP_MAX: u32 = 1024;

/// Most rows of a step that may be stored in several sequences at once.
pub(crate) const COPIES_MAX: usize = 4096;

/// Leaves a step when nobody wants it any more, at most about two layers late.
struct Brake<'a> {
    stop: Stop<'a>,
    layer: Option<u32>,
    marks: Vec<Event>,
}

impl Brake<'_> {
    fn layer(&mut self, gpu: &Arc<Gpu>, layer: Option<u32>) -> Result<()> {
        if layer == self.layer {
            return Ok(());
        }
        self.layer = layer;
        let mark = gpu.event(false)?;
        mark.record()?;
        self.marks.push(mark);
        if self.marks.len() > 2 {
            self.marks.remove(0).wait()?;
        }
        if self.stop.0() {
            gpu.wait()?;
            return Err(Error::Stopped);
        }
        Ok(())
    }
}

/// Scratch for all ops of a Program with steps of up to `limits` rows; `runs` are those of each weight.
pub(crate) fn scratch_bytes(
    program: &Program,
    runs: &[Vec<RunShape>],
    limits: &Limits,
    caps: &Caps,
    deterministic: bool,
) -> ScratchBytes {
    let mut b = ScratchBytes::default();
    let (uses, fine) = (uses(program), chooses(program));
    let (mut seen, mut alike) = (HashSet::new(), HashSet::new());
    for node in &program.ops {
        match node.op {
            Op::MatMul { x, weight, glu, .. } => {
                let limit = match program.rows_of(x) {
                    Rows::Tokens => limits.rows,
                    Rows::Outputs => limits.outputs,
                };
                let (runs, k) = (&runs[weight.0 as usize], x.cols as usize);
                let exact = uses[weight.0 as usize].exact;
                if !seen.insert((
                    runs.iter().map(|r| (r.dtype, r.rows)).collect::<Vec<_>>(),
                    k,
                    glu.is_some(),
                    (limit, exact),
                )) {
                    continue; // the layers are alike
                }
                let all: usize = runs.iter().map(|r| r.rows).sum();
                let mut rows = 0;
                while rows < limit {
                    rows = choose::bucket(rows + 1, limit);
                    let launches = Product { k, glu: glu.is_some(), rows, deterministic, exact, fine }
                        .launches(runs, caps);
                    b.input = b.input.max(4 * rows * k);
                    for l in &launches {
                        if let Kernel::Tuned(format, plan) = &l.kernel {
                            b.form = b.form.max(format.parts(plan, k).bytes);
                        }
                    }
                    if glu.is_some() && launches.iter().any(|l| !l.glu) {
                        b.wide = b.wide.max(4 * rows * all);
                    }
                }
            }
            Op::MatMulExperts { x, weight, .. } => {
                let limit = match program.rows_of(x) {
                    Rows::Tokens => limits.rows,
                    Rows::Outputs => limits.outputs,
                };
                let runs = &runs[weight.0 as usize];
                let types: Vec<_> = runs.iter().map(|r| (r.dtype, r.rows)).collect();
                let e = Experts::of(program, &node.op, limit, deterministic);
                if let Some(e) = e.filter(|e| alike.insert((*e, types))) {
                    experts_bytes(&mut b, e, runs, caps);
                }
            }
            Op::TopK { x, .. } => {
                let (groups, parts) = top_parts(x);
                b.top = b.top.max(limits.outputs * (16 * parts as usize + 4 * groups as usize));
            }
            Op::Attend { ref spec, .. } => {
                let chunks = chunk_bucket(limits.kv_blocks * BLOCK_TOKENS);
                let size = Size { rows: limits.rows.min(PARTS_ROWS_MAX), outputs: 0, chunks };
                b.parts = b.parts.max(parts_bytes(spec, size).min(PARTS_MAX));
            }
            _ => {}
        }
    }
    b
}

/// Scratch of the products with experts, in steps of up to so many rows.
fn experts_bytes(b: &mut ScratchBytes, most: Experts, runs: &[RunShape], caps: &Caps) {
    let mut rows = 0;
    while rows < most.rows {
        rows = choose::bucket(rows + 1, most.rows);
        let e = Experts { rows, ..most };
        let launches = e.launches(runs, caps);
        for l in &launches {
            b.lists = b.lists.max(l.list_bytes(&e));
            if let ExpertKernel::Mm(format, mm) = &l.kernel {
                b.form = b.form.max(format.parts(&Plan::Mm(*mm), e.k).bytes);
            }
        }
        if e.glu && launches.iter().any(|l| !l.glu) {
            b.wide = b.wide.max(4 * rows * e.used * 2 * e.n);
        }
    }
}

/// The number of chunks that a context of so many tokens is recorded for.
pub(crate) fn chunk_bucket(tokens: usize) -> usize {
    tokens.div_ceil(CHUNK).max(1).next_power_of_two()
}

fn parts_bytes(spec: &AttendSpec, size: Size) -> usize {
    4 * size.rows * spec.heads as usize * size.chunks * (spec.v_dim as usize + 2)
}

/// Whether the chunks of a row go to different blocks: where rows and heads alone do not fill the GPU. It changes no bit.
fn attend_split(spec: &AttendSpec, size: Size, multiprocessors: usize) -> bool {
    let blocks = size.rows * spec.kv_heads as usize;
    size.chunks > 1
        && size.rows <= PARTS_ROWS_MAX
        && blocks < 8 * multiprocessors
        && parts_bytes(spec, size) <= PARTS_MAX
}

/// The tensor-core kernels of attn_decode.cu for single rows.
fn decode_kernels(kv: KvType, spec: &AttendSpec) -> Option<(&'static str, &'static str)> {
    if spec.head_dim != spec.v_dim {
        return None;
    }
    match (kv, spec.head_dim) {
        (KvType::F16, 64) => Some(("attn_decode_f16_64", "attn_join_64")),
        (KvType::F16, 96) => Some(("attn_decode_f16_96", "attn_join_96")),
        (KvType::F16, 128) => Some(("attn_decode_f16_128", "attn_join_128")),
        (KvType::F16, 256) => Some(("attn_decode_f16_256", "attn_join_256")),
        (KvType::BF16, 64) => Some(("attn_decode_bf16_64", "attn_join_64")),
        (KvType::BF16, 96) => Some(("attn_decode_bf16_96", "attn_join_96")),
        (KvType::BF16, 128) => Some(("attn_decode_bf16_128", "attn_join_128")),
        (KvType::BF16, 256) => Some(("attn_decode_bf16_256", "attn_join_256")),
        _ => None,
    }
}

/// The kernel of attn_prefill.cu for many rows of a sequence, the rows of its tiles, and its shared memory.
fn prefill_kernel(kv: KvType, head_dim: u32, sm: u32) -> Option<(&'static str, usize, u32)> {
    if sm != 90 {
        return None;
    }
    let (name, parts) = match (kv, head_dim) {
        (KvType::F16, 64) => ("attn_prefill_f16_64", 1),
        (KvType::F16, 96) => ("attn_prefill_f16_96", 2),
        (KvType::F16, 128) => ("attn_prefill_f16_128", 2),
        (KvType::F16, 256) => ("attn_prefill_f16_256", 4),
        (KvType::BF16, 64) => ("attn_prefill_bf16_64", 1),
        (KvType::BF16, 96) => ("attn_prefill_bf16_96", 2),
        (KvType::BF16, 128) => ("attn_prefill_bf16_128", 2),
        (KvType::BF16, 256) => ("attn_prefill_bf16_256", 4),
        _ => return None,
    };
    // Three stages of 64 keys and values; heads of 64 columns keep their queries there too.
    let shared = 3 * 2 * parts * 8192 + if head_dim == 64 { 24576 } else { 0 };
    Some((name, prefill_rows(head_dim), shared))
}

/// Rows of a tile of that kernel.
fn prefill_rows(head_dim: u32) -> usize {
    if head_dim > 128 { 128 } else { 192 }
}

/// Rows of a tile that the kernels of all layers take.
pub(crate) fn tile_rows(program: &Program) -> usize {
    let rows = program.ops.iter().filter_map(|n| match &n.op {
        Op::Attend { spec, .. } => Some(prefill_rows(spec.head_dim)),
        _ => None,
    });
    rows.min().unwrap_or(192)
}

/// The attention kernel and the query heads of its tiles.
fn attend_kernel(kv: KvType, wide: bool, group: usize) -> (&'static str, usize) {
    let tile = match group {
        1 => 1,
        2..=4 => 4,
        _ => 8,
    };
    macro_rules! pick {
        ($t:literal) => {
            match (wide, tile) {
                (true, 1) => concat!("attend_", $t, "_8_1"),
                (true, 4) => concat!("attend_", $t, "_8_4"),
                (true, _) => concat!("attend_", $t, "_8_8"),
                (false, 1) => concat!("attend_", $t, "_1_1"),
                (false, 4) => concat!("attend_", $t, "_1_4"),
                (false, _) => concat!("attend_", $t, "_1_8"),
            }
        };
    }
    let name = match kv {
        KvType::F32 => pick!("f32"),
        KvType::F16 => pick!("f16"),
        KvType::BF16 => pick!("bf16"),
    };
    (name, tile)
}

/// Pairs of a row and a head in a tile of flash.cu.
const FLASH_ROWS: u32 = 64;

/// The kernel for many rows, and the tokens of its tiles of the cache.
fn flash_kernel(kv: KvType, head_dim: u32) -> Option<(&'static str, u32)> {
    macro_rules! pick {
        ($t:literal) => {
            match head_dim {
                64 => Some((concat!("flash_", $t, "_64"), 64)),
                80 => Some((concat!("flash_", $t, "_80"), 64)),
                96 => Some((concat!("flash_", $t, "_96"), 64)),
                128 => Some((concat!("flash_", $t, "_128"), 64)),
                256 => Some((concat!("flash_", $t, "_256"), 32)),
                _ => None,
            }
        };
    }
    match kv {
        KvType::F32 => None,
        KvType::F16 => pick!("f16"),
        KvType::BF16 => pick!("bf16"),
    }
}

/// Threads of a block that norms so many columns.
pub(crate) fn norm_block(group: usize) -> u32 {
    (group.div_ceil(4).next_multiple_of(32)).clamp(32, 1024) as u32
}

pub(crate) fn kind(kind: NormKind) -> i32 {
    match kind {
        NormKind::Rms => 1,
        NormKind::Layer => 2,
        NormKind::Plain => unreachable!("`prepare` refused gains without a norm"),
    }
}

pub(crate) fn code(act: Activation) -> i32 {
    match act {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::GeluErf => 2,
        Activation::Relu => 3,
    }
}
