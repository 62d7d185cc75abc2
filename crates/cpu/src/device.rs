//! The CPU as a [`Device`]: loads weights, prepares Programs and runs steps on its threads.

use crate::exec::{self, Memory, Run, Scratch, Tile, Watched};
use crate::footprint::{Footprint, TABLE_TOKENS};
use crate::kernels::bias::Distances;
use crate::kv::{KvPool, KvType, huge_pages};
use crate::kv_edit::Compaction;
use crate::linear;
use crate::lora::Adapters;
use crate::plan;
use crate::pool::{Pool, physical_cores};
use crate::simd::Isa;
use crate::states::States;
use crate::weights::Held;
use memmap2::MmapMut;
use quarrel_ir::arena::{ALIGN, Arena, Slot};
use quarrel_ir::evict::{check_compact, key_rotations};
use quarrel_ir::reference::vocab;
use quarrel_ir::{
    Adapter, AdapterPart, AttendSpec, BLOCK_TOKENS, Device, DeviceInfo, Error, HostWeight, Keep, Limits,
    Mass, Op, OpTime, Prepared, Program, Readout, Result, Rows, StepInputs, View, Weight, WeightDecl,
    WeightId, check_adapter, check_overlap, check_positions, check_source, uses,
};
use std::collections::HashMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// How to set up the CPU.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuOptions {
    /// Threads, the caller included; the physical cores that the process may use if not given.
    pub threads: Option<usize>,
    /// Instructions; the best that the processor has if not given.
    pub isa: Option<Isa>,
    /// Number type of the KV cache.
    pub kv: KvType,
    /// Keep every value until the step's end, so that all can be read; takes more memory.
    pub keep_values: bool,
    /// Fill the values with NaN before each step, so that a read of anything unwritten shows. For tests.
    pub poison: bool,
}

/// The CPU device.
pub struct Cpu {
    info: DeviceInfo,
    options: CpuOptions,
    isa: Isa,
    pool: Pool,
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
    angles: Vec<Slot>,
    barriers: Vec<bool>,
    linear: Vec<Option<linear::Plan>>,
    attends: Vec<AttendSpec>,
    distances: Vec<Arc<Distances>>,
    source_ops: usize,
    arena: MmapMut,
    kv: KvPool,
    shared: linear::Shared,
    adapters: Adapters,
    scratch: Vec<Mutex<Scratch>>,
    counters: Vec<AtomicUsize>,
    /// The weights whose rows are looked up, and the tokens since their pages were given back.
    tables: Vec<usize>,
    looked_up: usize,
    places: Vec<(usize, usize)>,
    tiles: Vec<Tile>,
    parts: Vec<f32>,
    times: Mutex<Vec<OpTime>>,
    outputs: usize,
    rows: usize,
    /// Attention received, by slot.
    mass: HashMap<u32, Sums>,
    states: States,
}

/// The sums of one slot.
#[derive(Clone, Default)]
struct Sums {
    rows: usize,
    tokens: usize,
    /// `[page][head][16]`: a sequence that grows adds pages.
    sums: Vec<f32>,
}

impl Cpu {
    /// Starts the threads.
    pub fn new(options: CpuOptions) -> Result<Cpu> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let threads = options.threads.unwrap_or_else(physical_cores).max(1);
        let pool = Pool::new(threads).map_err(|e| Error::Device {
            device: "cpu".into(),
            why: format!("cannot start {threads} threads: {e}"),
        })?;
        let info =
            DeviceInfo { name: "cpu".into(), description: describe(isa), threads, cache: options.kv.name() };
        Ok(Cpu { info, options, isa, pool, held: Vec::new(), ready: Vec::new(), profile: false })
    }

    /// The number type of the caches of Programs that are prepared from now on.
    pub fn set_kv(&mut self, kv: KvType) {
        self.options.kv = kv;
    }

    /// Bytes by part: weights and working memory as they are, and of the KV cache what has been written.
    pub fn footprint(&self) -> Footprint {
        let mut f = Footprint::default();
        self.held.iter().for_each(|h| h.measure(&mut f));
        for r in &self.ready {
            let kinds: Vec<_> = r.linear.iter().map(|p| p.as_ref().map(|p| p.kinds)).collect();
            f.working_memory(&r.program, &kinds, &r.limits, &self.options, self.info.threads);
            f.tables += r.tables.iter().map(|t| self.held[*t].table_bytes()).sum::<usize>();
            f.kv += r.kv.resident();
            f.kv += r.states.bytes();
            f.kv += 4 * r.mass.values().map(|m| m.sums.len()).sum::<usize>();
        }
        f
    }

    /// What the cache holds of one token of a layer: keys `[kv_heads * head_dim]` and values `[kv_heads * v_dim]`, after the
    /// rotations of their positions, in the cache's precision. Panics if there is no such layer, block or token, the layer
    /// holds inputs of a convolution, or the lengths are others.
    pub fn read_token(
        &self,
        prepared: Prepared,
        layer: usize,
        place: (u32, usize),
        k: &mut [f32],
        v: &mut [f32],
    ) {
        self.ready[prepared.0 as usize].kv.read_token(layer, place.0, place.1, k, v)
    }

    /// Stores one token of a layer as a step would; panics as [`Cpu::read_token`] does.
    pub fn write_token(
        &mut self,
        prepared: Prepared,
        layer: usize,
        place: (u32, usize),
        k: &[f32],
        v: &[f32],
    ) {
        self.ready[prepared.0 as usize].kv.write_token(self.isa, layer, place.0, place.1, k, v)
    }

    /// The biases by distance of attentions, each once.
    fn distances(&self, attends: &[AttendSpec], weights: &[Weight]) -> Vec<Arc<Distances>> {
        let mut all: Vec<Arc<Distances>> = Vec::new();
        for (spec, buckets) in attends.iter().filter_map(|a| Some((a, a.buckets?))) {
            if all.iter().all(|d| d.buckets != buckets) {
                let table = self.held[weights[buckets.table.0 as usize].0 as usize].vector();
                all.push(Arc::new(Distances::new(buckets, spec.heads as usize, table)));
            }
        }
        all
    }

    /// Brings the weights of a Program into the forms that its ops read.
    fn pack(&mut self, program: &Program, weights: &[Weight]) -> Result<()> {
        let mut todo = Vec::new();
        for (id, uses) in weights.iter().zip(uses(program)) {
            let held = &mut self.held[id.0 as usize];
            if uses.vector {
                held.make_vector()?;
            }
            if uses.matrix && !linear::is_packed(held, uses) {
                todo.push((id.0 as usize, uses));
            }
        }
        linear::pack(&mut self.pool, self.isa, &mut self.held, &todo)
    }
}

/// `Intel Xeon Gold 6330, avx512`, or just the instructions.
fn describe(isa: Isa) -> String {
    processor_name().map_or(isa.to_string(), |c| format!("{c}, {isa}"))
}

/// What the processor calls itself, where the system tells.
pub fn processor_name() -> Option<String> {
    // Of the first processor: the whole file takes a large machine milliseconds.
    let mut info = Vec::new();
    if let Ok(file) = std::fs::File::open("/proc/cpuinfo") {
        let _ = file.take(4096).read_to_end(&mut info); // what was read may be enough
    }
    let info = String::from_utf8_lossy(&info);
    let name = info.lines().find_map(|l| l.strip_prefix("model name"))?;
    Some(name.trim_start_matches([' ', '\t', ':']).trim().to_string())
}

/// Where values lie.
pub(crate) struct Layout {
    pub(crate) arena: Arena,
    /// By rope table: cosines and sines of each row, behind the arena.
    angles: Vec<Slot>,
    /// Elements in all.
    pub(crate) elements: usize,
}

/// Places the values of a Program and the angles of its rotations.
pub(crate) fn layout(program: &Program, limits: &Limits, keep_all: bool) -> Layout {
    let arena = Arena::plan(program, limits, keep_all);
    let mut elements = arena.elements;
    let angles = program.ropes.iter().map(|t| {
        let stride = (t.rot_dims as usize).next_multiple_of(ALIGN);
        let slot = Slot { offset: elements, stride, rows: limits.rows };
        elements += slot.stride * slot.rows;
        slot
    });
    Layout { angles: angles.collect(), arena, elements }
}

impl Device for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn load(&mut self, decl: &WeightDecl, weight: HostWeight) -> Result<Weight> {
        weight.check(decl)?;
        let held = Held::new(decl.clone(), weight.parts);
        held.check()?;
        held.tensors.iter().for_each(|t| t.data.will_need());
        self.held.push(held);
        Ok(Weight(self.held.len() as u32 - 1))
    }

    fn prepare(&mut self, program: Program, weights: &[Weight], limits: Limits) -> Result<Prepared> {
        program.check()?;
        check_overlap(&program)?;
        if weights.len() != program.weights.len()
            || weights
                .iter()
                .zip(&program.weights)
                .any(|(w, d)| self.held.get(w.0 as usize).is_none_or(|h| h.decl != *d))
        {
            return Err(Error::Shape {
                at: "weights".into(),
                why: "are not those that the program declares".into(),
            });
        }
        self.pack(&program, weights)?;
        let Layout { arena, angles, elements } = layout(&program, &limits, self.options.keep_values);
        let bytes = elements.max(1) * size_of::<f32>();
        let memory = MmapMut::map_anon(bytes).map_err(|_| Error::Memory { what: "activations", bytes })?;
        huge_pages(&memory);
        let attends: Vec<AttendSpec> = program
            .ops
            .iter()
            .filter_map(|n| if let Op::Attend { spec, .. } = &n.op { Some(*spec) } else { None })
            .collect();
        let distances = self.distances(&attends, weights);
        let threads = self.pool.threads();
        let linear = linear::plans(&program, &self.held, weights, threads);
        let shared = linear::Shared::new(&program, &linear, &limits)?;
        let n = program.ops.len();
        let uses = uses(&program);
        let tables = weights.iter().zip(uses).filter(|(_, u)| u.table).map(|(w, _)| w.0 as usize).collect();
        self.ready.push(Ready {
            barriers: plan::barriers(&program, &arena),
            kv: KvPool::new(&program.kv, self.options.kv, limits.kv_blocks)?,
            limits,
            ids: weights.to_vec(),
            slots: arena.slots,
            angles,
            linear,
            attends,
            distances,
            source_ops: program.source_ops(),
            arena: memory,
            shared,
            adapters: Adapters::default(),
            scratch: (0..threads).map(|_| Mutex::new(Scratch::default())).collect(),
            counters: (0..n).map(|_| AtomicUsize::new(0)).collect(),
            tables,
            looked_up: 0,
            places: Vec::with_capacity(limits.rows),
            tiles: Vec::new(),
            parts: Vec::new(),
            times: Mutex::new(vec![OpTime::default(); n]),
            outputs: 0,
            rows: 0,
            mass: HashMap::new(),
            states: States::new(&program),
            program,
        });
        Ok(Prepared(self.ready.len() as u32 - 1))
    }

    fn run(&mut self, prepared: Prepared, step: &StepInputs) -> Result<()> {
        let r = &mut self.ready[prepared.0 as usize];
        step.check(&r.limits, vocab(&r.program))?;
        check_positions(&r.program, step)?;
        check_source(&r.program, step)?;
        let heads = r.heads();
        let lora = r.adapters.step(step.seqs)?;
        let states = r.states.begin(step)?;
        let snapshots = r.states.begin_copies(step);
        // A state cannot be computed twice from where the step began.
        let step = &StepInputs { stop: step.stop.filter(|_| r.states.is_empty()), ..*step };
        (r.rows, r.outputs) = (step.tokens.len(), step.outputs.len());
        r.places.clear();
        r.places.extend(step.places());
        for seq in step.seqs {
            let written = seq.start / BLOCK_TOKENS..(seq.start + seq.rows).div_ceil(BLOCK_TOKENS);
            r.kv.touch(&seq.blocks[written]);
        }
        for copy in step.copies {
            let block = r.places[copy.row as usize].1 / BLOCK_TOKENS;
            r.kv.touch(&step.seqs[copy.seq as usize].blocks[block..=block]);
        }
        let group = r.attends.iter().map(|a| (a.heads / a.kv_heads) as usize).max().unwrap_or(1);
        exec::tiles(step, group, &mut r.tiles);
        let parts =
            r.attends.iter().map(|a| exec::parts_len(&r.tiles, a, self.info.threads)).max().unwrap_or(0);
        r.parts.resize(parts.max(r.parts.len()), 0.0);
        r.counters.iter().for_each(|c| c.store(0, Relaxed));
        if self.options.poison {
            let nan = f32::NAN.to_ne_bytes();
            r.arena.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&nan));
        }
        let before = if step.stop.is_some() { watched_now(&r.mass, step) } else { Vec::new() };
        let watched = watch(&mut r.mass, heads, step);
        let stopped = AtomicUsize::new(usize::MAX);
        let run = Run {
            isa: self.isa,
            program: &r.program,
            ops: if step.source { 0..r.source_ops } else { r.source_ops..r.program.ops.len() },
            distances: &r.distances,
            slots: &r.slots,
            barriers: &r.barriers,
            linear: &r.linear,
            held: &self.held,
            ids: &r.ids,
            arena: Memory(r.arena.as_mut_ptr().cast()),
            angles: &r.angles,
            kv: r.kv.share(),
            states: &states,
            snapshots: &snapshots,
            state_places: &r.states.places,
            step,
            places: &r.places,
            tiles: &r.tiles,
            watched: &watched,
            counters: &r.counters,
            stopped: &stopped,
            parts: Memory(r.parts.as_mut_ptr()),
            shared: r.shared.share(),
            lora: lora.as_ref(),
            scratch: &r.scratch,
            times: self.profile.then_some(&r.times),
        };
        self.pool.run(&|team| run.thread(team)).map_err(|why| Error::Device {
            device: self.info.name.clone(),
            why: format!("a step failed: {why}; this is a bug, please report it"),
        })?;
        if stopped.into_inner() != usize::MAX {
            r.mass.extend(before);
            return Err(Error::Stopped);
        }
        r.states.end(step);
        // Each row of a mapped table brings its neighbourhood in; over a long time that would be the table.
        r.looked_up += r.rows;
        if r.looked_up >= TABLE_TOKENS {
            r.looked_up = 0;
            r.tables.iter().for_each(|t| self.held[*t].release_table());
        }
        Ok(())
    }

    fn read(&mut self, prepared: Prepared, what: Readout, out: &mut [f32]) -> Result<()> {
        let r = &self.ready[prepared.0 as usize];
        let (view, rows) = match what {
            Readout::Logits(row) => {
                let logits = r.program.logits;
                (
                    logits.ok_or_else(|| Error::Step("the program has no logits".into()))?,
                    row..row.saturating_add(1),
                )
            }
            Readout::View(view) => (view, 0..r.row_count(view)),
        };
        if rows.end > r.row_count(view) || out.len() != rows.len() * view.cols as usize {
            return Err(Error::Step(format!("cannot read rows {rows:?} into {} elements", out.len())));
        }
        let slot = r.slots[view.value.0 as usize];
        for (row, out) in rows.zip(out.chunks_exact_mut(view.cols as usize)) {
            let at = 4 * (slot.offset + row * slot.stride + view.col as usize);
            let bytes = r.arena[at..at + 4 * out.len()].chunks_exact(4);
            out.iter_mut().zip(bytes).for_each(|(x, b)| *x = f32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        }
        Ok(())
    }

    fn copy_blocks(&mut self, prepared: Prepared, pairs: &[(u32, u32)]) -> Result<()> {
        self.ready[prepared.0 as usize].kv.copy(pairs)
    }

    fn compact(
        &mut self,
        prepared: Prepared,
        from: &[u32],
        tokens: usize,
        to: &[u32],
        keep: &Keep,
    ) -> Result<()> {
        let r = &mut self.ready[prepared.0 as usize];
        check_compact(&r.program, r.limits.kv_blocks, from, tokens, to, keep)?;
        let rotations = key_rotations(&r.program)?;
        r.kv.touch(&to[..keep.len().div_ceil(BLOCK_TOKENS)]);
        let (isa, layers, kv) = (self.isa, &r.program.kv[..], r.kv.share());
        let compaction = Compaction { isa, kv, layers, rotations: &rotations, from, to, keep };
        self.pool.run(&|team| compaction.thread(team)).map_err(|why| Error::Device {
            device: self.info.name.clone(),
            why: format!("shortening a sequence failed: {why}; this is a bug, please report it"),
        })
    }

    fn copy_state(&mut self, prepared: Prepared, from: u32, to: u32) -> Result<()> {
        self.ready[prepared.0 as usize].states.copy(from, to);
        Ok(())
    }

    fn state_bytes(&self, prepared: Prepared) -> usize {
        self.ready[prepared.0 as usize].states.each()
    }

    fn drop_state(&mut self, prepared: Prepared, state: u32) -> Result<()> {
        self.ready[prepared.0 as usize].states.forget(state);
        Ok(())
    }

    fn take_mass(&mut self, prepared: Prepared, slot: u32) -> Result<Mass> {
        let r = &mut self.ready[prepared.0 as usize];
        let Sums { rows, tokens, sums } = r.mass.remove(&slot).unwrap_or_default();
        let heads = r.heads();
        let at = |(head, token): (usize, usize)| {
            sums[(token / BLOCK_TOKENS * heads + head) * BLOCK_TOKENS + token % BLOCK_TOKENS]
        };
        let places = (0..heads).flat_map(|head| (0..tokens).map(move |token| (head, token)));
        Ok(Mass { rows, tokens, sums: places.map(at).collect() })
    }

    fn load_adapter(&mut self, prepared: Prepared, parts: &[AdapterPart]) -> Result<Adapter> {
        let r = &mut self.ready[prepared.0 as usize];
        check_adapter(&r.program, parts)?;
        let pieces = |w: WeightId| &self.held[r.ids[w.0 as usize].0 as usize].pieces[..];
        r.adapters.load(&r.program, parts, pieces, r.limits.rows.max(r.limits.outputs))
    }

    fn unload_adapter(&mut self, prepared: Prepared, adapter: Adapter) -> Result<()> {
        let r = &mut self.ready[prepared.0 as usize];
        r.adapters.unload(adapter, r.limits.rows.max(r.limits.outputs))
    }

    fn block_bytes(&self, prepared: Prepared) -> usize {
        self.ready[prepared.0 as usize].kv.page_bytes()
    }

    fn save_block(&mut self, prepared: Prepared, block: u32, out: &mut [u8]) -> Result<()> {
        self.ready[prepared.0 as usize].kv.save(block, out)
    }

    fn load_block(&mut self, prepared: Prepared, block: u32, data: &[u8]) -> Result<()> {
        self.ready[prepared.0 as usize].kv.load(block, data)
    }

    fn memory(&self) -> usize {
        self.footprint().total() + self.ready.iter().map(|r| r.adapters.bytes()).sum::<usize>()
    }

    fn profile(&mut self, on: bool) -> Result<()> {
        self.profile = on;
        for r in &mut self.ready {
            r.times.get_mut().unwrap_or_else(PoisonError::into_inner).fill(OpTime::default());
        }
        Ok(())
    }

    fn timings(&self, prepared: Prepared) -> Result<Vec<OpTime>> {
        Ok(self.ready[prepared.0 as usize].times.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Ready {
    /// Key/value heads of all layers.
    fn heads(&self) -> usize {
        self.program.kv.iter().map(|l| l.kv_heads as usize).sum()
    }

    fn row_count(&self, v: View) -> usize {
        match self.program.rows_of(v) {
            Rows::Tokens => self.rows,
            Rows::Outputs => self.outputs,
        }
    }
}

/// The sums that a step will change, as they are.
fn watched_now(mass: &HashMap<u32, Sums>, step: &StepInputs) -> Vec<(u32, Sums)> {
    let slots = step.seqs.iter().filter_map(|s| s.observe).map(|o| o.slot);
    slots.map(|slot| (slot, mass.get(&slot).cloned().unwrap_or_default())).collect()
}

/// Makes room for what a step's observed rows will add.
fn watch(mass: &mut HashMap<u32, Sums>, heads: usize, step: &StepInputs) -> Vec<Watched> {
    let watched = step.seqs.iter().enumerate().filter_map(|(i, seq)| {
        let observe = seq.observe.filter(|o| o.rows > 0)?;
        let mass = mass.entry(observe.slot).or_default();
        (mass.rows, mass.tokens) = (mass.rows + observe.rows, seq.start + seq.rows);
        let pages = mass.tokens.div_ceil(BLOCK_TOKENS);
        mass.sums.resize((pages * heads * BLOCK_TOKENS).max(mass.sums.len()), 0.0);
        Some(Watched::new(step, i, &mut mass.sums, heads))
    });
    watched.collect()
}
