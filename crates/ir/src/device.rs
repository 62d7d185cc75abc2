//! The seam between a Program and hardware: one virtual call per step, so `Box<dyn Device>` and no generics.

use crate::evict::{Keep, Mass, Observe};
use crate::op::{Op, View};
use crate::program::{Program, WeightDecl, WeightId};
use crate::{Error, Result};
use quarrel_formats::Tensor;

/// Tokens in a block of the KV cache.
pub const BLOCK_TOKENS: usize = 16;

/// Largest rank of an adapter.
pub const RANK_MAX: usize = 512;

/// What a device is, for displays and benchmarks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `cpu`, `cuda:0`, `reference`, ...
    pub name: String,
    /// What the hardware calls itself, and the kernels chosen for it.
    pub description: String,
    /// Worker threads, where that means something.
    pub threads: usize,
    /// Number type of the KV cache.
    pub cache: &'static str,
}

/// The tensors of one [`WeightDecl`], in the order of its parts.
#[derive(Debug, Clone)]
pub struct HostWeight {
    /// One tensor per part; a vector has shape `[n]`, a matrix `[rows, cols]`.
    pub parts: Vec<Tensor>,
}

impl HostWeight {
    /// Checks that the tensors are what the Program declares.
    pub fn check(&self, decl: &WeightDecl) -> Result<()> {
        for (tensor, part) in self.parts.iter().zip(&decl.parts) {
            let elements: usize = tensor.shape.iter().product();
            let want = part.rows as usize * decl.cols as usize;
            let last = tensor.shape.last().copied().unwrap_or(0);
            if elements != want || (tensor.shape.len() > 1 && last != decl.cols as usize) {
                return Err(Error::Weight {
                    name: tensor.name.clone(),
                    why: format!(
                        "has shape {:?}, the model needs {} x {}",
                        tensor.shape, part.rows, decl.cols
                    ),
                });
            }
        }
        if self.parts.len() != decl.parts.len() {
            let name = decl.parts.first().map(|p| p.name.clone()).unwrap_or_default();
            return Err(Error::Weight {
                name,
                why: format!("{} parts instead of {}", self.parts.len(), decl.parts.len()),
            });
        }
        Ok(())
    }
}

/// Handle of a weight that a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(pub u32);

/// Handle of a prepared Program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared(pub u32);

/// Handle of an adapter of a prepared Program. A device never gives the same twice, so an old one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Adapter(pub u32);

/// A low-rank change to one tensor of a weight: products of rows whose sequence has the adapter are
/// `n(x) W^T + bias + scale * B (A n(x))` (Hu et al. 2021, LoRA), before a gate or an addition.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterPart {
    /// The weight, as the Program numbers it.
    pub weight: WeightId,
    /// Index into [`WeightDecl::parts`].
    pub part: usize,
    /// `[rank, columns of the weight]`, row-major.
    pub a: Vec<f32>,
    /// `[rows of the part, rank]`, row-major.
    pub b: Vec<f32>,
    /// Multiplies the product of both.
    pub scale: f32,
}

impl AdapterPart {
    /// Rows of `A` and columns of `B`, once [`check_adapter`] has seen them.
    pub fn rank(&self, program: &Program) -> usize {
        self.a.len() / (program.weights[self.weight.0 as usize].cols as usize).max(1)
    }

    /// First row of the part in the stacked weight.
    pub fn first_row(&self, program: &Program) -> usize {
        program.weights[self.weight.0 as usize].parts[..self.part].iter().map(|p| p.rows as usize).sum()
    }
}

/// Checks that the parts of an adapter fit the products of a Program; a device may rely on all of it.
pub fn check_adapter(program: &Program, parts: &[AdapterPart]) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for p in parts {
        let decl = program.weights.get(p.weight.0 as usize);
        let part = decl.and_then(|d| d.parts.get(p.part));
        let (Some(decl), Some(part)) = (decl, part) else {
            let at = format!("adapter of weight {}, part {}", p.weight.0, p.part);
            return Err(Error::Shape { at, why: "the program has no such part".into() });
        };
        let fail = |why: String| Err(Error::Weight { name: format!("{} (adapter)", part.name), why });
        let (cols, rows) = (decl.cols as usize, part.rows as usize);
        let rank = p.a.len() / cols.max(1);
        if !program.ops.iter().any(|n| matches!(n.op, Op::MatMul { weight, .. } if weight == p.weight)) {
            return fail("no product uses this tensor, so a low-rank change cannot be added to it".into());
        }
        if rank == 0 || rank > RANK_MAX || p.a.len() != rank * cols || p.b.len() != rows * rank {
            return fail(format!(
                "{} and {} values are not A [rank, {cols}] and B [{rows}, rank] of one rank in 1..={RANK_MAX}",
                p.a.len(),
                p.b.len()
            ));
        }
        if !p.scale.is_finite() {
            return fail(format!("its scale is {}", p.scale));
        }
        if !seen.insert((p.weight.0, p.part)) {
            return fail("is there twice".into());
        }
    }
    Ok(())
}

/// The sizes that a device prepares for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens in one step, over all sequences.
    pub rows: usize,
    /// Most rows with logits in one step.
    pub outputs: usize,
    /// Blocks of [`BLOCK_TOKENS`] tokens in the KV cache.
    pub kv_blocks: usize,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub struct SeqStep<'a> {
    /// How many of the step's rows are this sequence's; they are consecutive, in the order of [`StepInputs::seqs`].
    pub rows: usize,
    /// Tokens that the cache already holds: the position of the first row.
    pub start: usize,
    /// Block numbers that cover positions `0..start + rows`.
    pub blocks: &'a [u32],
    /// Rows whose attention is added up for [`Device::take_mass`].
    pub observe: Option<Observe>,
    /// What is added to the products of its rows.
    pub adapter: Option<Adapter>,
    /// Where its state is kept, in programs that have [`Program::states`]: any number of the caller's, another for each sequence.
    /// From position 0 it begins with zeros, whatever was there; else it must be that of exactly `start` tokens.
    pub state: u32,
    /// Positions of its source that the cache holds, in the same blocks; 0 in a model of one stack.
    pub source: usize,
}

impl<'a> SeqStep<'a> {
    /// `rows` rows from position `start` on, in `blocks`, without an adapter.
    pub fn new(rows: usize, start: usize, blocks: &'a [u32]) -> SeqStep<'a> {
        SeqStep { rows, start, blocks, observe: None, adapter: None, state: 0, source: 0 }
    }
}

/// A row whose keys and values another sequence of the step needs too: the branches of a tree share rows, but each has a
/// last block of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCopy {
    /// Row of the step.
    pub row: u32,
    /// Index into [`StepInputs::seqs`]; its blocks hold the row's position, which lies before its own first row.
    pub seq: u32,
}

/// A copy of a sequence's state as it is after a row: what follows the row's token can go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateCopy {
    /// Row of the step.
    pub row: u32,
    /// What takes the copy: any number of the caller's, as [`SeqStep::state`] is, but that of no sequence of the step.
    pub state: u32,
}

/// Asked now and then while a step runs: whether nobody wants it any more.
#[derive(Clone, Copy)]
pub struct Stop<'a>(pub &'a (dyn Fn() -> bool + Sync));

impl std::fmt::Debug for Stop<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stop")
    }
}

/// Everything that changes from step to step.
#[derive(Debug, Clone, Copy)]
pub struct StepInputs<'a> {
    /// One id per row.
    pub tokens: &'a [u32],
    /// The sequences, whose `rows` add up to `tokens.len()`.
    pub seqs: &'a [SeqStep<'a>],
    /// Rows whose logits are wanted, ascending.
    pub outputs: &'a [u32],
    /// Rows that are stored in several sequences, by ascending row.
    pub copies: &'a [KvCopy],
    /// Rows after which the state of their sequence is copied, ascending; in programs that have [`Program::states`].
    pub snapshots: &'a [StateCopy],
    /// Once it says yes, the device may leave the step within a layer's time, with [`Error::Stopped`]: what the step was to
    /// write, cache included, is undefined then, and nothing else is.
    pub stop: Option<Stop<'a>>,
    /// The tokens are whole sources, from position 0 on, and only the ops that read sources run: keys and values are all that
    /// comes of it.
    pub source: bool,
}

impl<'a> StepInputs<'a> {
    /// A step without copies that runs to its end.
    pub fn new(tokens: &'a [u32], seqs: &'a [SeqStep<'a>], outputs: &'a [u32]) -> StepInputs<'a> {
        StepInputs { tokens, seqs, outputs, copies: &[], snapshots: &[], stop: None, source: false }
    }

    /// Sequence and position of each row.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let rows = |(s, seq): (usize, &SeqStep)| {
            let start = seq.start;
            (0..seq.rows).map(move |r| (s, start + r))
        };
        self.seqs.iter().enumerate().flat_map(rows)
    }

    /// The sequences other than its own in which row `row` is stored.
    pub fn copies_of(&self, row: usize) -> impl Iterator<Item = &SeqStep<'a>> {
        let from = self.copies.partition_point(|c| (c.row as usize) < row);
        let copies = self.copies[from..].iter().take_while(move |c| c.row as usize == row);
        copies.map(|c| &self.seqs[c.seq as usize])
    }

    /// Checks the step against the limits it was prepared for and the vocabulary.
    pub fn check(&self, limits: &Limits, vocab: usize) -> Result<()> {
        let over =
            |what, got, limit| if got > limit { Err(Error::Limit { what, got, limit }) } else { Ok(()) };
        over("tokens in a step", self.tokens.len(), limits.rows)?;
        over("rows with logits", self.outputs.len(), limits.outputs)?;
        if self.tokens.is_empty() || self.seqs.iter().map(|s| s.rows).sum::<usize>() != self.tokens.len() {
            return Err(Error::Step(format!(
                "{} tokens are not the sum of the sequences' rows",
                self.tokens.len()
            )));
        }
        if let Some(t) = self.tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::Step(format!("token {t} is outside the vocabulary of {vocab}")));
        }
        if let Some(o) = self.outputs.iter().find(|o| **o as usize >= self.tokens.len()) {
            return Err(Error::Step(format!("output row {o} of {}", self.tokens.len())));
        }
        for s in self.seqs {
            let need = (s.start + s.rows).div_ceil(BLOCK_TOKENS);
            if s.rows == 0 || s.blocks.len() < need {
                return Err(Error::Step(format!(
                    "{} blocks for {} tokens",
                    s.blocks.len(),
                    s.start + s.rows
                )));
            }
            if let Some(b) = s.blocks.iter().find(|b| **b as usize >= limits.kv_blocks) {
                return Err(Error::Step(format!("block {b} of {}", limits.kv_blocks)));
            }
        }
        self.check_observed()?;
        self.check_copies()
    }

    fn check_observed(&self) -> Result<()> {
        for (i, s) in self.seqs.iter().enumerate() {
            let Some(o) = s.observe else { continue };
            if o.rows > s.rows {
                return Err(Error::Step(format!("{} observed rows of {}", o.rows, s.rows)));
            }
            if self.seqs[..i].iter().any(|s| s.observe.is_some_and(|p| p.slot == o.slot)) {
                return Err(Error::Step(format!("two sequences are observed in slot {}", o.slot)));
            }
        }
        Ok(())
    }

    fn check_copies(&self) -> Result<()> {
        if self.copies.is_empty() {
            return Ok(());
        }
        let places: Vec<_> = self.places().collect();
        let fits = |c: &KvCopy| match (places.get(c.row as usize), self.seqs.get(c.seq as usize)) {
            (Some((seq, position)), Some(to)) => *seq != c.seq as usize && *position < to.start,
            _ => false,
        };
        if let Some(c) = self.copies.iter().find(|c| !fits(c)) {
            return Err(Error::Step(format!("row {} cannot be copied to sequence {}", c.row, c.seq)));
        }
        if !self.copies.is_sorted_by_key(|c| c.row) {
            return Err(Error::Step("the copies are not in the order of their rows".into()));
        }
        Ok(())
    }
}

/// Checks that no sequence of a step is longer than the Program's tables of positions.
pub fn check_positions(program: &Program, step: &StepInputs) -> Result<()> {
    let longest = step.seqs.iter().map(|s| s.start + s.rows).max().unwrap_or(0);
    match program.positions().filter(|most| longest > *most) {
        Some(limit) => Err(Error::Limit { what: "tokens in a sequence", got: longest, limit }),
        None => Ok(()),
    }
}

/// Checks what a step says of sources.
pub fn check_source(program: &Program, step: &StepInputs) -> Result<()> {
    let fail = |why: &str| Err(Error::Step(why.into()));
    let observed = step.seqs.iter().any(|s| s.observe.is_some());
    if observed
        && program.ops.iter().any(|n| matches!(&n.op, Op::Attend { spec, .. } if spec.buckets.is_some()))
    {
        return fail("attention with a bias by distance is not observed");
    }
    if !program.ops.first().is_some_and(|n| n.source) {
        return match step.source || step.seqs.iter().any(|s| s.source > 0) {
            true => fail("the model reads no sources"),
            false => Ok(()),
        };
    }
    if step.source {
        let plain = step.outputs.is_empty() && step.copies.is_empty() && !observed;
        return match plain && step.seqs.iter().all(|s| s.start == 0) {
            true => Ok(()),
            false => fail("a source is read whole, and nothing comes out of it"),
        };
    }
    match step.seqs.iter().find(|s| s.source == 0 || s.blocks.len() < s.source.div_ceil(BLOCK_TOKENS)) {
        Some(s) => Err(Error::Step(format!("{} blocks for a source of {} tokens", s.blocks.len(), s.source))),
        None => Ok(()),
    }
}

/// Checks the sequences of a step against the states that a device has: `seen` tells how many tokens a state has seen.
pub fn check_states(step: &StepInputs, seen: impl Fn(u32) -> Option<usize>) -> Result<()> {
    if !step.copies.is_empty() {
        return Err(Error::Step("rows of a tree do not fit a model with states".into()));
    }
    for (i, s) in step.seqs.iter().enumerate() {
        if step.seqs[..i].iter().any(|other| other.state == s.state) {
            return Err(Error::Step(format!("two sequences have state {}", s.state)));
        }
        if s.start > 0 && seen(s.state) != Some(s.start) {
            let why = format!("state {} has seen {:?} tokens and not {}", s.state, seen(s.state), s.start);
            return Err(Error::Step(why));
        }
    }
    let rows = step.tokens.len();
    for (i, c) in step.snapshots.iter().enumerate() {
        let taken = step.seqs.iter().any(|s| s.state == c.state)
            || step.snapshots[..i].iter().any(|other| other.state == c.state);
        if c.row as usize >= rows || taken || step.snapshots[..i].iter().any(|other| other.row >= c.row) {
            let why = "it is of no row, out of order, or to a state that something else of the step has";
            return Err(Error::Step(format!(
                "state {} cannot be copied after row {}: {why}",
                c.state, c.row
            )));
        }
    }
    Ok(())
}

/// What to bring back to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readout {
    /// One row of logits, by index into [`StepInputs::outputs`].
    Logits(usize),
    /// All rows of a view, for tests and probes; only views that nothing later overwrites are meaningful.
    View(View),
}

/// How long one op took, as the device's first thread saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpTime {
    /// Inside the op, waits included that belong to the op itself.
    pub busy_ns: u64,
    /// At the barrier before it.
    pub wait_ns: u64,
    /// How often it ran.
    pub calls: u64,
}

/// The error of a step or call with an adapter that is not loaded.
pub fn no_adapter(adapter: Adapter) -> Error {
    Error::Step(format!("adapter {} is not loaded on this program", adapter.0))
}

/// Hardware that runs Programs.
pub trait Device: Send {
    /// What this device is.
    fn info(&self) -> &DeviceInfo;

    /// Takes a weight in; the device may keep the mapped bytes or a repacked copy.
    fn load(&mut self, decl: &WeightDecl, weight: HostWeight) -> Result<Weight>;

    /// Chooses kernels and reserves memory. `weights[i]` belongs to `program.weights[i]`.
    fn prepare(&mut self, program: Program, weights: &[Weight], limits: Limits) -> Result<Prepared>;

    /// Runs one step; may return before it is done.
    fn run(&mut self, prepared: Prepared, step: &StepInputs) -> Result<()>;

    /// Waits for the last step: what follows is not its time. Devices whose [`Self::run`] does have nothing to do.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Waits for the last step and copies a result into `out`, whose length must be the result's.
    fn read(&mut self, prepared: Prepared, what: Readout, out: &mut [f32]) -> Result<()>;

    /// Copies whole KV blocks `(from, to)`, all layers.
    fn copy_blocks(&mut self, prepared: Prepared, pairs: &[(u32, u32)]) -> Result<()>;

    /// Shortens a sequence of `tokens` tokens in `from` to those of `keep`, moved to the front of `to` with their keys
    /// rotated to where they are then. A block of `to` is not in `from`, or is at the same place there.
    fn compact(
        &mut self,
        _prepared: Prepared,
        _from: &[u32],
        _tokens: usize,
        _to: &[u32],
        _keep: &Keep,
    ) -> Result<()> {
        Err(self.no_eviction())
    }

    /// What the observed rows of a slot have given since it was last taken; empties the slot. A step that ends with
    /// [`Error::Stopped`] adds nothing.
    fn take_mass(&mut self, _prepared: Prepared, _slot: u32) -> Result<Mass> {
        Err(self.no_eviction())
    }

    /// Why [`Device::compact`] is refused by default.
    fn no_eviction(&self) -> Error {
        let why = "this device cannot shorten a sequence in its cache".to_string();
        Error::Device { device: self.info().name.clone(), why }
    }

    /// Takes an adapter in, for sequences of a prepared Program; see [`AdapterPart`] for what it does. An error where the
    /// device cannot.
    fn load_adapter(&mut self, _prepared: Prepared, _parts: &[AdapterPart]) -> Result<Adapter> {
        let why = "this device does not run adapters".to_string();
        Err(Error::Device { device: self.info().name.clone(), why })
    }

    /// Frees an adapter; steps that name it are refused from now on.
    fn unload_adapter(&mut self, _prepared: Prepared, adapter: Adapter) -> Result<()> {
        Err(no_adapter(adapter))
    }

    /// Bytes of a whole KV block of a prepared Program, all layers, in the device's own form; 0 where it cannot save one.
    fn block_bytes(&self, _prepared: Prepared) -> usize {
        0
    }

    /// Copies the bytes of a whole KV block to `out`, which must be [`Device::block_bytes`] long. What was never written of
    /// it may be anything.
    fn save_block(&mut self, _prepared: Prepared, _block: u32, _out: &mut [u8]) -> Result<()> {
        Err(self.no_saving())
    }

    /// Puts the bytes of a saved block in the place of a block: what follows is as after the steps that wrote it. The bytes
    /// must come from this build of the same device with the same kind of cache.
    fn load_block(&mut self, _prepared: Prepared, _block: u32, _data: &[u8]) -> Result<()> {
        Err(self.no_saving())
    }

    /// Why [`Device::save_block`] is refused by default.
    fn no_saving(&self) -> Error {
        let why = "this device does not save blocks of its cache".to_string();
        Error::Device { device: self.info().name.clone(), why }
    }

    /// Gives a sequence the state of another, as it is; nothing where that has none.
    fn copy_state(&mut self, _prepared: Prepared, _from: u32, _to: u32) -> Result<()> {
        Err(self.no_states())
    }

    /// Bytes of the states of one sequence of a prepared Program; 0 where it has none.
    fn state_bytes(&self, _prepared: Prepared) -> usize {
        0
    }

    /// Forgets the state of a sequence, if it has one.
    fn drop_state(&mut self, _prepared: Prepared, _state: u32) -> Result<()> {
        Err(self.no_states())
    }

    /// Why states are refused by default.
    fn no_states(&self) -> Error {
        let why = "this device keeps no states of sequences; the CPU does (--device cpu)".to_string();
        Error::Device { device: self.info().name.clone(), why }
    }

    /// Bytes of device memory held now: weights repacked or uploaded, arena, KV, adapters.
    fn memory(&self) -> usize;

    /// Turns the timing of each op on, from zero, or off. An error where the device cannot.
    fn profile(&mut self, _on: bool) -> Result<()> {
        Err(self.no_timing())
    }

    /// The times of each op of a prepared Program since [`Device::profile`], by index in [`Program::ops`].
    fn timings(&self, _prepared: Prepared) -> Result<Vec<OpTime>> {
        Err(self.no_timing())
    }

    /// Why [`Device::profile`] is refused by default.
    fn no_timing(&self) -> Error {
        let why = "this device does not time its ops".to_string();
        Error::Device { device: self.info().name.clone(), why }
    }
}
