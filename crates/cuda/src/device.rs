//! An NVIDIA GPU as a [`Device`]: loads weights, prepares Programs, runs steps, as graphs where they come again.

use crate::args::Ptr;
use crate::choose;
use crate::exec::{self, COPIES_MAX, Pass, RopeAt, Scratch, Tape};
use crate::gpu::{Buffer, Caps, Event, Gpu, Graph, Pinned};
use crate::kv::{KvPool, KvType};
use crate::refuse;
use crate::step::{Inputs, Lists, Size};
use crate::weights::{Held, Uploader};
use quarrel_ir::arena::{Arena, Slot};
use quarrel_ir::reference::vocab;
use quarrel_ir::{
    Device, DeviceInfo, Error, HostWeight, Limits, Op, OpTime, Prepared, Program, Readout, Result, Rows,
    StepInputs, View, Weight, WeightDecl, check_overlap, check_positions, no_adapter, uses,
};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// How to set up a GPU.
#[derive(Debug, Clone, Copy, Default)]
pub struct CudaOptions {
    /// Which GPU, as the driver numbers them.
    pub ordinal: usize,
    /// Number type of the KV cache.
    pub kv: KvType,
    /// Products whose result for a row does not depend on how many rows there are.
    pub deterministic: bool,
    /// Keep every value until the step's end, so that all can be read; takes more memory.
    pub keep_values: bool,
    /// Fill the values with NaN before each step, so that a read of anything unwritten shows. For tests.
    pub poison: bool,
    /// Launch each kernel by itself also where a graph would do. For tests.
    pub no_graphs: bool,
}

/// The CUDA device.
pub struct Cuda {
    info: DeviceInfo,
    options: CudaOptions,
    gpu: Arc<Gpu>,
    uploader: Uploader,
    held: Vec<Held>,
    ready: Vec<Ready>,
    profile: bool,
}

/// A prepared Program.
struct Ready {
    program: Program,
    limits: Limits,
    ids: Vec<Weight>,
    slots: Vec<Slot>,
    arena: Buffer,
    kv: KvPool,
    kv_type: KvType,
    ropes: Vec<RopeAt>,
    scratch: Scratch,
    inputs: Inputs,
    /// None where a step of the size was run once: recording pays off when it comes again.
    graphs: HashMap<Size, Option<Graph>>,
    times: Vec<OpTime>,
    events: Vec<Event>,
    /// Rows of logits that were read ahead, and the first of them.
    logits: Option<(Pinned, std::ops::Range<usize>)>,
    /// Where the candidates of a step come to.
    best: Option<Pinned>,
    rows: usize,
    outputs: usize,
}

/// Bytes behind the activations, and behind prepared inputs.
pub(crate) const ARENA_SLACK: usize = 1024;

/// Rows of logits that are fetched at once: those whose candidates are not enough, which may be one or all.
const LOGITS_AHEAD: usize = 4;

/// Graphs that are kept.
const GRAPHS_MAX: usize = 64;

/// Largest step that becomes a graph: beyond, launching costs nothing next to the work.
const GRAPH_ROWS_MAX: usize = 512;

impl Cuda {
    /// Opens the GPU.
    pub fn new(options: CudaOptions) -> Result<Cuda> {
        let gpu = Gpu::open(options.ordinal)?;
        let c = &gpu.caps;
        let description = format!(
            "{}, compute capability {}.{}, {} multiprocessors, {:.0} GB",
            c.name,
            c.sm / 10,
            c.sm % 10,
            c.multiprocessors,
            c.memory as f64 / 1e9
        );
        let info = DeviceInfo { name: gpu.name(), description, threads: 1, cache: options.kv.name() };
        let uploader = Uploader::new(gpu.clone());
        Ok(Cuda { info, options, gpu, uploader, held: Vec::new(), ready: Vec::new(), profile: false })
    }

    /// What the GPU can do.
    pub fn caps(&self) -> &Caps {
        &self.gpu.caps
    }

    /// Free and total bytes of the GPU's memory.
    pub fn free_memory(&self) -> Result<(usize, usize)> {
        self.gpu.bind()?;
        self.gpu.memory()
    }

    fn ready(&self, prepared: Prepared) -> &Ready {
        &self.ready[prepared.0 as usize]
    }
}

/// Tiles of a gate's weight have its halves side by side, so no product may use the weight otherwise.
fn check_gates(program: &Program) -> Result<()> {
    let mut gated = HashMap::new();
    for (i, node) in program.ops.iter().enumerate() {
        let (weight, how) = match node.op {
            Op::MatMul { weight, glu, .. } => (weight, (glu.is_some(), false)),
            Op::MatMulExperts { weight, glu, .. } => (weight, (glu.is_some(), true)),
            _ => continue,
        };
        if *gated.entry(weight.0).or_insert(how) != how {
            let why = "a weight gates, or is one of experts, in one product and not in another".into();
            return Err(Error::Shape { at: format!("op {i} ({})", node.op.name()), why });
        }
    }
    Ok(())
}

impl Device for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn load(&mut self, decl: &WeightDecl, weight: HostWeight) -> Result<Weight> {
        weight.check(decl)?;
        self.gpu.bind()?;
        let mut held = Held::new(decl.clone(), weight.parts)?;
        if held.is_matrix() {
            held.upload(&mut self.uploader)?;
        }
        self.held.push(held);
        Ok(Weight(self.held.len() as u32 - 1))
    }

    fn prepare(&mut self, program: Program, weights: &[Weight], limits: Limits) -> Result<Prepared> {
        program.check()?;
        if let Some(why) = refuse::unsupported(&program) {
            return Err(Error::Device { device: self.info.name.clone(), why: why.into() });
        }
        check_overlap(&program)?;
        self.gpu.bind()?;
        let belongs =
            |(w, d): (&Weight, &WeightDecl)| self.held.get(w.0 as usize).is_some_and(|h| h.decl == *d);
        if weights.len() != program.weights.len() || !weights.iter().zip(&program.weights).all(belongs) {
            let why = "are not those that the program declares".into();
            return Err(Error::Shape { at: "weights".into(), why });
        }
        check_gates(&program)?;
        for (id, uses) in weights.iter().zip(uses(&program)) {
            self.held[id.0 as usize].ready(uses, &mut self.uploader)?;
        }
        let gpu = &self.gpu;
        let plan = Arena::plan(&program, &limits, self.options.keep_values);
        // Kernels may read up to a vector's width beyond a row, and padded rows must hold some number.
        let arena = gpu.zeroed(4 * plan.elements + ARENA_SLACK, "the activations")?;
        let mut ropes = Vec::new();
        for t in &program.ropes {
            let bytes: Vec<u8> = t.inv_freq.iter().flat_map(|f| f.to_le_bytes()).collect();
            let freq = gpu.alloc(bytes.len(), "rotations")?;
            self.uploader.send(freq.ptr, &bytes)?;
            let angles = gpu.alloc(4 * t.rot_dims as usize * limits.rows, "rotations")?;
            ropes.push(RopeAt { freq, angles });
        }
        let runs: Vec<_> = weights.iter().map(|w| self.held[w.0 as usize].shapes()).collect();
        let bytes = exec::scratch_bytes(&program, &runs, &limits, &gpu.caps, self.options.deterministic);
        let scratch = Scratch {
            input: gpu.zeroed(bytes.input + ARENA_SLACK, "prepared inputs")?,
            wide: gpu.zeroed(bytes.wide, "gated products")?,
            form: gpu.zeroed(bytes.form + ARENA_SLACK, "prepared inputs")?,
            lists: gpu.zeroed(bytes.lists, "rows by expert")?,
            parts: gpu.zeroed(bytes.parts, "partial sums of attention")?,
            top: gpu.zeroed(bytes.top, "sums of logits")?,
        };
        let ready = Ready {
            kv: KvPool::new(gpu, &program.kv, self.options.kv, limits.kv_blocks)?,
            kv_type: self.options.kv,
            inputs: Inputs::new(gpu, &limits, exec::tile_rows(&program))?,
            limits,
            ids: weights.to_vec(),
            slots: plan.slots,
            arena,
            ropes,
            scratch,
            graphs: HashMap::new(),
            times: vec![OpTime::default(); program.ops.len()],
            events: Vec::new(),
            logits: None,
            best: None,
            rows: 0,
            outputs: 0,
            program,
        };
        self.uploader.finish()?;
        self.ready.push(ready);
        Ok(Prepared(self.ready.len() as u32 - 1))
    }

    fn run(&mut self, prepared: Prepared, step: &StepInputs) -> Result<()> {
        let r = &mut self.ready[prepared.0 as usize];
        step.check(&r.limits, vocab(&r.program))?;
        check_positions(&r.program, step)?;
        if let Some(a) = step.seqs.iter().find_map(|s| s.adapter) {
            return Err(no_adapter(a));
        }
        if step.seqs.iter().any(|s| s.observe.is_some_and(|o| o.rows > 0)) {
            return Err(self.gpu.error("this device cannot observe attention, which eviction needs".into()));
        }
        if step.copies.len() > COPIES_MAX {
            let (got, limit) = (step.copies.len(), COPIES_MAX);
            return Err(Error::Limit { what: "rows stored in several sequences", got, limit });
        }
        if step.stop.is_some_and(|s| s.0()) {
            return Err(Error::Stopped);
        }
        self.gpu.bind()?;
        let (rows, outputs) = (step.tokens.len(), step.outputs.len());
        let longest = step.seqs.iter().map(|s| s.start + s.rows).max().unwrap_or(0);
        let size = Size {
            rows: choose::bucket(rows, r.limits.rows),
            outputs: choose::bucket(outputs, r.limits.outputs),
            chunks: exec::chunk_bucket(longest),
        };
        (r.rows, r.outputs, r.logits) = (rows, outputs, r.logits.take().map(|(p, _)| (p, 0..0)));
        if r.inputs.reserve(step, size)? {
            r.graphs.clear();
        }
        r.inputs.send(step, size)?;
        if self.options.poison {
            self.gpu.fill(r.arena.ptr, 0xff, r.arena.bytes)?;
        }
        let lists = r.inputs.lists(step, size);
        let plain =
            lists.copies.is_none() && lists.many.is_empty() && !self.profile && !self.options.no_graphs;
        // Decoding: every row wants logits, so the same sizes come again and again.
        if plain && rows == outputs && rows <= GRAPH_ROWS_MAX {
            return r.replay(&self.gpu, &self.held, self.options.deterministic, size);
        }
        let times = self.profile;
        if times {
            while r.events.len() <= r.program.ops.len() {
                r.events.push(self.gpu.event(true)?);
            }
        }
        let pass = Pass {
            size,
            step: r.inputs.step(size),
            lists,
            stop: step.stop,
            times: times.then_some(&r.events[..]),
        };
        r.tape(&self.gpu, &self.held, self.options.deterministic).launch(&pass)?;
        if times {
            self.gpu.wait()?;
            for (i, t) in r.times.iter_mut().enumerate() {
                t.busy_ns += (f64::from(r.events[i].until(&r.events[i + 1])?) * 1e6) as u64;
                t.calls += 1;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.gpu.bind()?;
        self.gpu.wait()
    }

    fn read(&mut self, prepared: Prepared, what: Readout, out: &mut [f32]) -> Result<()> {
        self.gpu.bind()?;
        let gpu = self.gpu.clone();
        let r = &mut self.ready[prepared.0 as usize];
        let (view, rows) = match what {
            Readout::Logits(row) => {
                let logits =
                    r.program.logits.ok_or_else(|| Error::Step("the program has no logits".into()))?;
                (logits, row..row.saturating_add(1))
            }
            Readout::View(view) => (view, 0..r.row_count(view)),
        };
        let cols = view.cols as usize;
        if rows.end > r.row_count(view) || out.len() != rows.len() * cols {
            return Err(Error::Step(format!("cannot read rows {rows:?} into {} elements", out.len())));
        }
        let held = match what {
            Readout::Logits(row) => Some(r.fetch_logits(&gpu, view, row)?),
            Readout::View(view) if Some(view) == r.program.candidates => {
                return r.fetch_best(&gpu, view, out);
            }
            Readout::View(_) => None,
        };
        if let Some(bytes) = held {
            floats(bytes, out);
            return Ok(());
        }
        let mut row_bytes = vec![0u8; 4 * cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            gpu.read(&mut row_bytes, r.at(view, row))?;
            floats(&row_bytes, out);
        }
        Ok(())
    }

    fn copy_blocks(&mut self, prepared: Prepared, pairs: &[(u32, u32)]) -> Result<()> {
        self.gpu.bind()?;
        self.ready[prepared.0 as usize].kv.copy(pairs)
    }

    fn block_bytes(&self, prepared: Prepared) -> usize {
        self.ready(prepared).kv.page
    }

    fn save_block(&mut self, prepared: Prepared, block: u32, out: &mut [u8]) -> Result<()> {
        self.gpu.bind()?;
        self.ready(prepared).kv.save(block, out)
    }

    fn load_block(&mut self, prepared: Prepared, block: u32, data: &[u8]) -> Result<()> {
        self.gpu.bind()?;
        self.ready(prepared).kv.load(block, data)
    }

    fn memory(&self) -> usize {
        self.held.iter().map(Held::bytes).sum::<usize>() + self.ready.iter().map(Ready::bytes).sum::<usize>()
    }

    fn profile(&mut self, on: bool) -> Result<()> {
        self.profile = on;
        self.ready.iter_mut().for_each(|r| r.times.fill(OpTime::default()));
        Ok(())
    }

    fn timings(&self, prepared: Prepared) -> Result<Vec<OpTime>> {
        Ok(self.ready(prepared).times.clone())
    }
}

impl Ready {
    fn tape<'a>(&'a self, gpu: &'a Arc<Gpu>, held: &'a [Held], deterministic: bool) -> Tape<'a> {
        Tape {
            gpu,
            program: &self.program,
            held,
            ids: &self.ids,
            slots: &self.slots,
            arena: self.arena.ptr,
            kv: &self.kv,
            kv_type: self.kv_type,
            ropes: &self.ropes,
            scratch: &self.scratch,
            deterministic,
            sorted: Cell::new(None),
        }
    }

    /// Runs a step of a size by its graph, which is recorded the second time that the size comes.
    fn replay(&mut self, gpu: &Arc<Gpu>, held: &[Held], deterministic: bool, size: Size) -> Result<()> {
        let pass =
            Pass { size, step: self.inputs.step(size), lists: Lists::default(), stop: None, times: None };
        if self.graphs.len() >= GRAPHS_MAX && !self.graphs.contains_key(&size) {
            gpu.wait()?;
            self.graphs.clear();
        }
        match self.graphs.get(&size) {
            Some(Some(graph)) => gpu.replay(graph),
            None => {
                self.tape(gpu, held, deterministic).launch(&pass)?;
                self.graphs.insert(size, None);
                Ok(())
            }
            Some(None) => {
                let tape = self.tape(gpu, held, deterministic);
                let graph = gpu.capture(|| tape.launch(&pass))?;
                gpu.replay(&graph)?;
                self.graphs.insert(size, Some(graph));
                Ok(())
            }
        }
    }

    fn row_count(&self, v: View) -> usize {
        match self.program.rows_of(v) {
            Rows::Tokens => self.rows,
            Rows::Outputs => self.outputs,
        }
    }

    fn at(&self, v: View, row: usize) -> Ptr {
        let slot = self.slots[v.value.0 as usize];
        self.arena.ptr + 4 * (slot.offset + row * slot.stride + v.col as usize) as u64
    }

    /// The bytes of a row of logits; its neighbours come with it.
    fn fetch_logits(&mut self, gpu: &Arc<Gpu>, view: View, row: usize) -> Result<&[u8]> {
        let cols = view.cols as usize;
        let stride = self.slots[view.value.0 as usize].stride;
        if self.logits.as_ref().is_none_or(|(_, held)| !held.contains(&row)) {
            let rows = row..(row + LOGITS_AHEAD).min(self.outputs);
            let bytes = 4 * (stride * (rows.len() - 1) + cols);
            let from = self.at(view, row);
            let (mut pinned, _) = match self.logits.take() {
                Some(l) => l,
                None => (gpu.pinned(4 * stride * LOGITS_AHEAD.min(self.limits.outputs.max(1)))?, 0..0),
            };
            gpu.download(&mut pinned, from, bytes)?;
            gpu.wait()?;
            self.logits = Some((pinned, rows));
        }
        let (pinned, held) = self.logits.as_ref().expect("fetched just now");
        let at = 4 * (row - held.start) * stride;
        Ok(&pinned.bytes()[at..at + 4 * cols])
    }

    /// The candidates of all rows of the step in one copy.
    fn fetch_best(&mut self, gpu: &Arc<Gpu>, view: View, out: &mut [f32]) -> Result<()> {
        let (cols, rows) = (view.cols as usize, self.outputs);
        let stride = self.slots[view.value.0 as usize].stride;
        let from = self.at(view, 0);
        let mut pinned = match self.best.take() {
            Some(p) => p,
            None => gpu.pinned(4 * stride * self.limits.outputs.max(1))?,
        };
        gpu.download(&mut pinned, from, 4 * (stride * rows.saturating_sub(1) + cols))?;
        gpu.wait()?;
        for (out, row) in out.chunks_exact_mut(cols).zip(pinned.bytes().chunks(4 * stride)) {
            floats(&row[..4 * cols], out);
        }
        self.best = Some(pinned);
        Ok(())
    }

    fn bytes(&self) -> usize {
        let s = &self.scratch;
        let ropes: usize = self.ropes.iter().map(|r| r.freq.bytes + r.angles.bytes).sum();
        let scratch =
            s.input.bytes + s.wide.bytes + s.form.bytes + s.lists.bytes + s.parts.bytes + s.top.bytes;
        self.arena.bytes + self.kv.buffer.bytes + ropes + scratch + self.inputs.bytes()
    }
}

fn floats(bytes: &[u8], out: &mut [f32]) {
    for (x, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
}
