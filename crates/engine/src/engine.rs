//! The engine's thread: takes commands, plans a step, runs it on the device, samples, and sends events. The only place of
//! this crate with a device in it; the clock is read here and at submission.

mod acts;
mod rows;

use crate::adapters::{AdapterInfo, NewAdapter, Registry};
use crate::batch::Batch;
use crate::block_manager::Digest;
use crate::client::{Act, Client, Generation, Task, Tools};
use crate::config::{EngineConfig, EngineInfo};
use crate::embed::{EmbedRequest, Pooler};
use crate::events::FinishReason;
use crate::handle::{Command, Handle, Job, Scores, Shared, Work};
use crate::logits::{CANDIDATES, Logits};
use crate::request::Retention;
use crate::sampler::Scratch;
use crate::scheduler::{Ahead, BlockOp, Chunk, Nothing, Scheduler};
use crate::sequence::{Goal, Sequence, Standing};
use crate::speculate::driver::Speculation;
use crate::speculate::{DraftModel, verify};
use crate::statistics::EngineStats;
use crate::tier::{Bytes, MoveCost, Tier};
use crate::watchdog::Watchdog;
use crate::{Error, Result};
use quarrel_ir::{BLOCK_TOKENS, Device, DeviceInfo, Limits, Prepared, Program, Stop, View, Weight};
use quarrel_model::ModelSpec;
use sha2::{Digest as _, Sha256};
use std::{
    any::Any,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError, sync_channel},
    },
    time::{Duration, Instant},
};

/// How often one with nothing else to do looks whether sentences have been compared.
const COMPARING: Duration = Duration::from_micros(500);
/// Starts engines; what runs is reached by a [`Handle`].
pub struct Engine;

impl Engine {
    /// Prepares the Program on the device and moves both into a thread of their own. `weights[i]` is what the device gave
    /// for `program.weights[i]`.
    pub fn start(
        device: Box<dyn Device>,
        program: Program,
        weights: &[Weight],
        config: EngineConfig,
    ) -> Result<Handle> {
        Engine::start_with_draft(device, program, weights, config, None)
    }

    /// [`Engine::start`] with a smaller model that guesses tokens ahead, for requests with [`Speculate::Draft`](crate::speculate::Speculate::Draft) or
    /// [`Speculate::Auto`](crate::speculate::Speculate::Auto). Its tokens must mean the same; only the size of the vocabulary is checked here.
    pub fn start_with_draft(
        device: Box<dyn Device>,
        program: Program,
        weights: &[Weight],
        config: EngineConfig,
        draft: Option<DraftModel>,
    ) -> Result<Handle> {
        Engine::start_model(device, program, weights, config, draft, None)
    }

    /// The same; adapters can be read from files if the specification of the Program is known.
    pub(crate) fn start_model(
        mut device: Box<dyn Device>,
        mut program: Program,
        weights: &[Weight],
        config: EngineConfig,
        draft: Option<DraftModel>,
        spec: Option<ModelSpec>,
    ) -> Result<Handle> {
        let states = !program.states.is_empty();
        let sources = program.source_ops() > 0;
        let config = EngineConfig { whole: program.looks_ahead(), states, sources, ..config };
        let source = spec.as_ref().and_then(|s| s.source).map(|s| s.start);
        if sources != source.is_some() {
            let why = "the model's specification is needed with it, which says how an answer begins";
            return Err(Error::Unsuited { what: "a program that reads sources", why });
        }
        let mut limits = config.check()?;
        if program.positions().is_some_and(|most| config.context > most) {
            let (value, range) =
                (config.context.to_string(), "at most the positions that the model has a table of");
            return Err(Error::Field { field: "context", value, range });
        }
        let logits = program.logits.map(|l| l.cols as usize);
        let vocab = logits.unwrap_or_else(|| quarrel_ir::reference::vocab(&program));
        program.choose(CANDIDATES);
        let (hidden, candidates) = (program.hidden, program.candidates);
        let exits = quarrel_model::decoder::exit_logits(&program, config.exits);
        if let Some(d) = draft.as_ref().filter(|d| d.vocab() != vocab) {
            return Err(Error::DraftVocabulary { draft: d.vocab(), vocab });
        }
        let evicts = quarrel_ir::evict::key_rotations(&program).is_ok();
        let heads = program.kv.iter().map(|l| l.kv_heads as usize).sum();
        let model = spec.map(|spec| (spec, program.clone()));
        let prepared = device.prepare(
            program,
            weights,
            Limits { rows: limits.rows, outputs: limits.outputs, kv_blocks: limits.blocks },
        )?;
        let state_bytes = device.state_bytes(prepared);
        if let Some(s) = &mut limits.states {
            *s = config.state_limits(state_bytes);
            limits.prefix_cache &= s.snapshots > 0;
        }
        let block_bytes = device.block_bytes(prepared);
        // What lies below are blocks that others may find; one of them would need the state behind it, which is not kept there.
        let tiers = limits.prefix_cache && !states;
        let tier = match (config.host_cache, &config.disk_cache) {
            _ if !tiers => None,
            (0, None) => None,
            (memory, disk) => Some(Tier::open(memory, disk.as_ref(), block_bytes)?),
        };
        let root = root(&config, device.info(), block_bytes)?;
        let info = EngineInfo {
            device: device.info().clone(),
            context: config.context,
            vocab,
            kv_blocks: limits.blocks,
            max_running: limits.running,
            generates: logits.is_some(),
            hidden: hidden.map(|h| h.cols as usize),
            exits: exits.len(),
            source,
            evicts,
            draft: draft.is_some(),
            speculates: !states && !sources,
            tiers,
            device_bytes: device.memory() + draft.as_ref().map_or(0, DraftModel::device_bytes),
        };
        // Waiting requests bound the channel; the slack is for cancellations.
        let (sender, commands) = sync_channel(config.max_queue + 64);
        let shared = Arc::new(Shared::default());
        let adapters = Registry::new(config.adapters);
        let mut worker = Worker {
            device,
            prepared,
            scheduler: Scheduler::new(limits),
            clients: HashMap::new(),
            batch: Batch::default(),
            row: vec![0.0; logits.unwrap_or(0)],
            candidates,
            best: Vec::new(),
            hidden,
            states: Vec::new(),
            exits,
            exit_rows: Vec::new(),
            exit_row: Vec::new(),
            scratch: Scratch::default(),
            speculation: Speculation::new(&config, draft),
            context: config.context,
            sources,
            heads,
            root,
            tier,
            fetching: HashMap::new(),
            block: vec![0; block_bytes],
            state_bytes,
            moves: MoveCost::default(),
            next_id: 0,
            stopped: false,
            epoch: Instant::now(),
            stats: EngineStats { blocks_total: limits.blocks, ..EngineStats::default() },
            shared: shared.clone(),
            adapters: adapters.clone(),
        };
        let watchdog =
            Watchdog::start(shared.clone(), config.step_limit).map_err(|e| Error::Thread(e.to_string()))?;
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || worker.supervise(commands))
            .map_err(|e| Error::Thread(e.to_string()))?;
        let handle = Handle::new(info, config.max_queue, shared, sender, thread, watchdog, (adapters, model));
        Ok(handle)
    }
}

struct Worker {
    device: Box<dyn Device>,
    prepared: Prepared,
    scheduler: Scheduler,
    clients: HashMap<u64, Client>,
    batch: Batch,
    row: Vec<f32>,
    /// Where the best of the logits are, and those of a step.
    candidates: Option<View>,
    best: Vec<f32>,
    /// Where the hidden states are, and those of a step.
    hidden: Option<View>,
    states: Vec<f32>,
    /// Where the logits of the exits are, those of a step, and those of a row.
    exits: Vec<View>,
    exit_rows: Vec<Vec<f32>>,
    exit_row: Vec<f32>,
    scratch: Scratch,
    speculation: Speculation,
    context: usize,
    /// Prompts are sources, with the answer's first token behind them.
    sources: bool,
    /// Key/value heads of all layers.
    heads: usize,
    /// The digest before every sequence's first block.
    root: Digest,
    tier: Option<Tier>,
    /// Sequences whose blocks come from the disk, by request.
    fetching: HashMap<u64, Sequence>,
    /// A block's bytes on their way.
    block: Vec<u8>,
    /// Bytes of a sequence's states.
    state_bytes: usize,
    moves: MoveCost,
    next_id: u64,
    /// Whether the last step was left; the next one runs to its end, so that cancellations cannot hold the others up.
    stopped: bool,
    epoch: Instant,
    stats: EngineStats,
    shared: Arc<Shared>,
    adapters: Registry,
}

impl Worker {
    /// Runs until the last handle is gone. A panic, which is a bug here or in the device, fails every request and leaves
    /// the reason for those to come; nobody is left waiting.
    fn supervise(&mut self, commands: Receiver<Command>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(&commands)));
        let Err(panic) = outcome else { return };
        self.shared.pulse.end();
        let error = Error::Panicked(panic_text(&*panic));
        *self.shared.down.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        self.fail_all(&error);
        // What is still in the channel is dropped with it, and its streams find the reason above.
    }

    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            self.free_adapters();
            self.take_fetched();
            if self.clients.is_empty() {
                debug_assert_eq!(self.scheduler.check_integrity(), Ok(()));
                debug_assert_eq!(self.speculation.check_integrity(), Ok(()));
                self.rest();
                match commands.recv() {
                    Ok(command) => self.take(command),
                    Err(_) => return,
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.abort_where(|_| true),
                }
            }
            self.abort_where(|c| c.cancelled.load(Ordering::Acquire));
            for sequence in self.scheduler.expired(self.epoch.elapsed()) {
                self.expire(sequence);
            }
            self.take_compared();
            if !self.scheduler.is_idle()
                && let Err(error) = self.step()
            {
                self.stats.device_errors += u64::from(matches!(error, Error::Device(_)));
                self.scheduler.clear();
                self.fail_all(&error);
            }
            self.publish_stats();
        }
    }

    fn take(&mut self, command: Command) {
        let job = match command {
            Command::Run(job) => job,
            Command::Cancel(id) => {
                if let Some(c) = self.clients.get(&id) {
                    c.cancelled.store(true, Ordering::Release);
                }
                return;
            }
            Command::LoadAdapter(new, reply) => {
                // A caller who is gone finds the adapter in the list.
                return drop(reply.send(self.load_adapter(*new)));
            }
            Command::FreeAdapters(reply) => {
                self.free_adapters();
                let _ = reply.send(()); // as above
                return;
            }
        };
        let Job { id, work, submitted, cancelled, place, adapter } = *job;
        self.next_id += 1;
        let sequence = self.next_id;
        let mut standing = Standing { arrived: submitted - self.epoch, ..Standing::default() };
        let (mut evictor, mut shadow, mut source) = (None, None, 0);
        let (tokens, goal, task, deadline, retention) = match work {
            Work::Generate { request, events } => {
                let seed = request.sampling.seed.unwrap_or_else(random_seed);
                let (tokens, deadline, retention) =
                    (request.prompt.clone(), request.deadline, request.retention);
                (standing.class, standing.key) = (request.class, request.key.clone());
                // It was checked when it was submitted.
                evictor = request.evictor(self.context).unwrap_or_default();
                let guide = request.guide.as_ref().filter(|g| g.shadows());
                if let Some(negative) = guide.and_then(|g| g.negative.as_ref()) {
                    self.next_id += 1;
                    shadow = Some((self.next_id, negative.prompt.clone()));
                }
                let beside = shadow.as_ref().map(|s| s.0);
                let dim = self.hidden.map_or(0, |h| h.cols as usize);
                let mut g = Box::new(Generation::new(*request, seed, sequence, beside, dim, events));
                if self.sources {
                    (source, g.foreign) = (tokens.len() - 1, 1);
                }
                (tokens, Goal::Next, Task::Generate(g), deadline, retention)
            }
            Work::Score { tokens, from, top, evictor: e, reply } => {
                evictor = e;
                let log_probs = vec![0.0; tokens.len() - from];
                let best = if top > 0 { vec![Vec::new(); log_probs.len()] } else { Vec::new() };
                let scores = Scores { log_probs, top: best, ..Scores::default() };
                (
                    tokens,
                    Goal::Score { from },
                    Task::Score { from, top, scores, reply },
                    None,
                    Default::default(),
                )
            }
            Work::Logits { tokens, reply } => {
                (tokens, Goal::Next, Task::Logits { reply }, None, Default::default())
            }
            Work::Embed { request, reply } => {
                let EmbedRequest { tokens, pooling, normalize, class, key, deadline, .. } = request;
                (standing.class, standing.key) = (class, key);
                let goal = Goal::Embed { from: Pooler::first_needed(pooling, tokens.len()) };
                let dim = self.hidden.map_or(0, |h| h.cols as usize); // checked when it was submitted
                let pooler = Pooler::new(pooling, normalize, dim, tokens.len());
                // Nobody goes on with a text that was embedded.
                (tokens, goal, Task::Embed { pooler, reply }, deadline, Retention::Discard)
            }
        };
        standing.deadline = deadline.map(|d| standing.arrived.saturating_add(d));
        self.stats.requests[standing.class as usize] += 1;
        let root = adapter.as_ref().map_or(self.root, |a| a.root(&self.root));
        let handle = adapter.as_ref().map(|a| a.handle);
        let client = Client {
            submitted,
            cancelled,
            place: Some(place),
            deadline,
            sequences: [sequence].into_iter().chain(shadow.as_ref().map(|s| s.0)).collect(),
            adapter,
            task,
        };
        let sequence = Sequence {
            request: id,
            states: client.wants_hidden(),
            standing,
            retention,
            evictor,
            source,
            adapter: handle,
            ..Sequence::new(sequence, root, tokens, goal)
        };
        self.clients.insert(id, client);
        let beside = shadow.map(|(id, tokens)| Sequence {
            request: sequence.request,
            standing: sequence.standing.clone(),
            retention,
            adapter: handle,
            ..Sequence::new(id, root, tokens, Goal::Next)
        });
        self.admit(sequence);
        if let Some(beside) = beside.filter(|_| self.clients.contains_key(&id))
            && let Err(error) = self.scheduler.add(beside)
        {
            self.finish(id, Err(error));
        }
    }

    /// Gives a sequence to the scheduler, or first to the disk, if that has more of it.
    fn admit(&mut self, mut sequence: Sequence) {
        let request = sequence.request;
        if let Some(tier) = &self.tier {
            let n = sequence.first_needed() / BLOCK_TOKENS;
            let digests = sequence.digests(n);
            let here = self.scheduler.count_prefix(digests);
            if tier.fetch(request, &digests[here..]) {
                self.fetching.insert(request, sequence);
                return;
            }
        }
        if let Err(error) = self.scheduler.add(sequence) {
            self.finish(request, Err(error));
        }
    }

    /// Takes the sequences on whose blocks have come; waits a moment for them if there is nothing else to do.
    fn take_fetched(&mut self) {
        let Some(tier) = self.tier.as_ref().filter(|_| !self.fetching.is_empty()) else { return };
        let mut come = Vec::new();
        if self.scheduler.is_idle() {
            come.extend(tier.fetched.recv_timeout(Duration::from_millis(2)));
        }
        come.extend(tier.fetched.try_iter());
        for request in come {
            if let Some(sequence) = self.fetching.remove(&request)
                && let Err(error) = self.scheduler.add(sequence)
            {
                self.finish(request, Err(error));
            }
        }
    }

    /// Before the thread sleeps: blocks that are to survive are kept.
    fn rest(&mut self) {
        if let Err(error) = self.apply_ops(&HashMap::new()) {
            self.stats.device_errors += 1;
            self.scheduler.clear();
            self.fail_all(&error.into());
        }
    }

    /// Between two steps, so that no step sees half of it.
    fn load_adapter(&mut self, new: NewAdapter) -> Result<AdapterInfo> {
        self.adapters.lock().check_new(&new.info)?;
        let handle = self
            .device
            .load_adapter(self.prepared, &new.parts)
            .map_err(|e| Error::Adapter { name: new.info.name.clone(), why: e.to_string() })?;
        let info = new.info.clone();
        self.adapters.lock().insert(new, handle);
        self.publish_stats();
        Ok(info)
    }

    fn free_adapters(&mut self) {
        let free = self.adapters.lock().take_free();
        for adapter in free {
            let freed = self.device.unload_adapter(self.prepared, adapter);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }

    /// One step: plan, run, book, then an output for each sequence that has one.
    fn step(&mut self) -> Result<()> {
        let loads = self.plan();
        if self.scheduler.plan().is_empty() {
            if self.clients.values().any(Client::compares) {
                std::thread::sleep(COMPARING);
                return Ok(());
            }
            // Every sequence waits for another: a bug, and better an error than a standstill.
            return Err(Error::Panicked("no sequence can go on".into()));
        }
        let now = Instant::now();
        for chunk in self.scheduler.plan() {
            let s = &self.scheduler.running()[chunk.running];
            if let Some(c) = self.clients.get_mut(&s.request)
                && c.place.take().is_some()
            {
                self.stats.queue_time.observe(now.saturating_duration_since(c.submitted));
            }
        }
        self.shared.pulse.begin();
        self.speculation.plan(&mut self.scheduler, &mut self.clients, &mut self.scratch);
        let began = Instant::now();
        let outcome = self.run_step(&loads);
        let elapsed = began.elapsed();
        if self.shared.pulse.end() {
            // The callers have given up; the device has not, so new ones are welcome.
            let error = self.shared.down.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(error.unwrap_or(Error::Stuck(elapsed)));
        }
        match outcome {
            Err(quarrel_ir::Error::Stopped) => {
                self.stopped = true;
                self.stats.steps_stopped += 1;
                self.scheduler.abandon();
                return Ok(());
            }
            other => other?,
        }
        self.stopped = false;
        let plan = match &self.tier {
            Some(tier) => self.scheduler.commit(elapsed, &tier.view(true)),
            None => self.scheduler.commit(elapsed, &Nothing),
        };
        self.stats.steps += 1;
        self.stats.last_step = elapsed;
        self.stats.step.observe(elapsed);
        self.stats.last_rows = plan.iter().map(|c| c.rows.len()).sum::<usize>() + self.scheduler.guessed();
        self.stats.rows += self.stats.last_rows as u64;
        let amateur = self.speculation.amateur(&plan, &self.scheduler, &mut self.clients);
        let row_time = self.scheduler.pace().per_row();
        let mut acts = self.pool(&plan)?;
        self.choose()?;
        self.read_exits(&plan)?;
        let mut output = 0;
        for chunk in &plan {
            let s = &self.scheduler.running()[chunk.running];
            let Some(client) = self.clients.get_mut(&s.request) else { continue };
            let prompt = chunk.rows.len() > 1 || chunk.outputs.is_empty();
            if prompt {
                self.stats.prompt_rows += chunk.rows.len() as u64;
            }
            if let Task::Generate(g) = &client.task
                && (prompt || g.is_new())
            {
                g.report_progress(s.id, chunk.rows.end, s.tokens.len());
            }
            let (request, id) = (s.request, s.id);
            if self.scheduler.ahead().iter().any(|a| a.id == id) {
                let Some(ahead) = self.scheduler.take_ahead(id) else { continue };
                let rows = ahead.tree.nodes().len();
                acts.extend(self.verify(request, ahead, output)?.into_iter().map(|act| (request, act)));
                output += rows;
                continue;
            }
            for at in chunk.outputs.clone() {
                let best = rows::best_of(&self.best, self.candidates, output);
                let logits = Logits::new(&mut *self.device, self.prepared, output, best, &mut self.row);
                output += 1;
                let (scratch, next_id) = (&mut self.scratch, &mut self.next_id);
                let is_new = |c: &Client| matches!(&c.task, Task::Generate(g) if g.is_new());
                let new = is_new(client);
                let wants = client.wants_exits();
                rows::gather(&self.exit_rows, output - 1, logits.vocab(), wants, &mut self.exit_row);
                let tools = &mut Tools {
                    logits,
                    exits: wants.then_some(&self.exit_row),
                    amateur: amateur.get(&s.id),
                    row_time,
                    scratch,
                    context: self.context,
                    next_id,
                    epoch: self.epoch,
                };
                let between = |d| self.stats.between_tokens.observe(d);
                let made = client.output(s, at, tools, between);
                if new && !is_new(client) {
                    self.stats.first_token.observe(client.submitted.elapsed());
                }
                self.stats.sampled_tokens += u64::from(s.goal == Goal::Next);
                acts.extend(made.into_iter().map(|act| (s.request, act)));
            }
        }
        for (request, act) in acts {
            self.act(request, act);
        }
        self.speculation.learn(&self.scheduler);
        for sequence in self.scheduler.full() {
            self.shorten(sequence)?;
        }
        Ok(())
    }

    /// Shortens a sequence that has outgrown its budget.
    fn shorten(&mut self, sequence: u64) -> Result<()> {
        let Some(s) = self.scheduler.running().iter().find(|s| s.id == sequence) else { return Ok(()) };
        let mass = self.device.take_mass(self.prepared, s.slot())?;
        let shortened = match &self.tier {
            Some(tier) => self.scheduler.shorten(sequence, &mass, self.heads, &tier.view(true)),
            None => self.scheduler.shorten(sequence, &mass, self.heads, &Nothing),
        };
        let Some(s) = shortened else { return Ok(()) };
        self.apply_ops(&HashMap::new())?;
        self.device.compact(self.prepared, &s.from, s.evicted.before, &s.to, &s.keep)?;
        if let Some(client) = self.clients.get_mut(&s.request) {
            client.evicted(s.computed, s.evicted);
        }
        Ok(())
    }

    /// Draws the tokens of a sequence along the tree that was computed behind it, whose logits begin at `first`: each is the
    /// token that would have been drawn without a tree, so it does not matter what was guessed. What is left to do comes
    /// back: for the last token, which no row has been computed for.
    fn verify(&mut self, request: u64, ahead: Ahead, first: usize) -> Result<Vec<Act>> {
        let mut last = Vec::new();
        let tree = &ahead.tree;
        let walked = verify::walk(tree, |node| {
            let output = first + ahead.layout.row_of[node];
            let Some(client) = self.clients.get_mut(&request) else { return Ok(None) };
            let Some(s) = self.scheduler.running().iter().find(|s| s.id == ahead.id) else { return Ok(None) };
            let best = rows::best_of(&self.best, self.candidates, output);
            let logits = Logits::new(&mut *self.device, self.prepared, output, best, &mut self.row);
            let (scratch, next_id) = (&mut self.scratch, &mut self.next_id);
            let row_time = self.scheduler.pace().per_row();
            let (context, epoch) = (self.context, self.epoch);
            let tools =
                &mut Tools { logits, exits: None, amateur: None, row_time, scratch, context, next_id, epoch };
            let between = |d| self.stats.between_tokens.observe(d);
            last = client.output(s, ahead.root, tools, between);
            self.stats.sampled_tokens += 1;
            let [Act::Push { token, .. }] = last[..] else { return Ok(None) };
            if tree.child(node, token).is_some() {
                self.scheduler.push(ahead.id, token);
                last.clear();
            }
            Ok::<_, Error>(Some(token))
        });
        let walked = match walked {
            Ok(walked) => walked,
            Err(error) => {
                self.scheduler.refuse(&ahead);
                return Err(error);
            }
        };
        let (drafted, accepted) = (tree.guesses() as u64, walked.accepted as u64);
        self.stats.drafted_tokens += drafted;
        self.stats.accepted_tokens += accepted;
        if let Some(Client { task: Task::Generate(g), .. }) = self.clients.get_mut(&request) {
            g.guessed(drafted, accepted);
        }
        match &self.tier {
            Some(tier) => self.scheduler.accept(ahead, walked.node, &tier.view(true)),
            None => self.scheduler.accept(ahead, walked.node, &Nothing),
        }
        Ok(last)
    }

    /// Plans the step; gives the blocks that it wants from below.
    fn plan(&mut self) -> HashMap<Digest, Bytes> {
        let now = self.epoch.elapsed();
        let Some(tier) = &self.tier else {
            self.scheduler.schedule(now, &Nothing);
            return HashMap::new();
        };
        let compute = self.scheduler.pace().per_row() * BLOCK_TOKENS as u32;
        // Nothing that was at hand while it was planned may go before it is used.
        let mut view = tier.view(self.moves.pays(compute));
        self.scheduler.schedule(now, &view);
        let wanted = self.scheduler.ops().iter().filter_map(|op| match op {
            BlockOp::Load { digest, .. } => Some(*digest),
            _ => None,
        });
        wanted.filter_map(|d| Some((d, view.get(&d)?))).collect()
    }

    /// The device's part of a step.
    fn run_step(&mut self, loads: &HashMap<Digest, Bytes>) -> quarrel_ir::Result<()> {
        self.apply_ops(loads)?;
        let (plan, running) = (self.scheduler.plan(), self.scheduler.running());
        // A step that is mostly for nobody is left.
        let watched: Vec<(&AtomicBool, usize)> = plan
            .iter()
            .filter_map(|c: &Chunk| {
                let client = self.clients.get(&running[c.running].request)?;
                Some((&*client.cancelled, c.rows.len()))
            })
            .collect();
        let total: usize = watched.iter().map(|w| w.1).sum();
        let shared = &*self.shared;
        let unwanted = || {
            let gone = watched.iter().filter(|w| w.0.load(Ordering::Acquire)).map(|w| w.1).sum::<usize>();
            2 * gone > total || shared.closing.load(Ordering::Acquire)
        };
        let stop = (!self.stopped).then_some(Stop(&unwanted));
        let beside = (self.scheduler.ahead(), self.scheduler.taken());
        self.batch.run(&mut *self.device, self.prepared, plan, beside, running, stop)?;
        // Its time is learnt from, and the watchdog looks at it.
        self.device.finish()
    }

    /// Moves blocks as the scheduler wants it before a step, one after the other.
    fn apply_ops(&mut self, loads: &HashMap<Digest, Bytes>) -> quarrel_ir::Result<()> {
        let missing = || quarrel_ir::Error::Step("a block from below is not there".into());
        for op in self.scheduler.take_ops() {
            let began = Instant::now();
            match op {
                BlockOp::Forget { slot } => drop(self.device.take_mass(self.prepared, slot)?),
                BlockOp::Leave { state } => self.device.drop_state(self.prepared, state)?,
                BlockOp::Branch { from, to } => self.device.copy_state(self.prepared, from, to)?,
                BlockOp::Copy { from, to } => self.device.copy_blocks(self.prepared, &[(from, to)])?,
                BlockOp::Save { block, digest } => {
                    let tier = self.tier.as_ref().ok_or_else(missing)?;
                    self.device.save_block(self.prepared, block, &mut self.block)?;
                    tier.put(digest, self.block.as_slice().into());
                    self.moves.saved(began.elapsed());
                }
                BlockOp::Load { block, digest } => {
                    let data = loads.get(&digest).ok_or_else(missing)?;
                    self.device.load_block(self.prepared, block, data)?;
                    self.moves.loaded(began.elapsed());
                }
            }
        }
        Ok(())
    }

    /// Aborts the requests for which `condition` holds.
    fn abort_where(&mut self, condition: impl Fn(&Client) -> bool) {
        let ids: Vec<u64> = self.clients.iter().filter(|(_, c)| condition(c)).map(|(id, _)| *id).collect();
        for id in ids {
            self.finish(id, Ok(FinishReason::Aborted));
        }
    }

    /// Ends the request of a sequence whose deadline has passed.
    fn expire(&mut self, sequence: u64) {
        let request = self.clients.iter().find(|(_, c)| c.sequences.contains(&sequence)).map(|(id, _)| *id);
        if let Some(id) = request {
            self.finish(id, Ok(FinishReason::Deadline));
        }
    }

    fn fail_all(&mut self, error: &Error) {
        self.stats.failed += self.clients.len() as u64;
        self.speculation.clear();
        self.fetching.clear();
        self.publish_stats();
        for (_, client) in self.clients.drain() {
            client.fail(error.clone());
        }
    }

    fn publish_stats(&mut self) {
        let (s, scheduler) = (&mut self.stats, &self.scheduler);
        let counts = scheduler.counts();
        (s.draft_steps, s.draft_errors) = self.speculation.draft_counts();
        (s.preemptions, s.preempted_tokens) = (counts.preemptions, counts.given_up);
        s.looked_up_tokens = counts.looked_up;
        (s.snapshots_made, s.snapshots_evicted) = (counts.snapshots, counts.snapshots_evicted);
        (s.snapshots, s.snapshot_bytes) = (scheduler.snapshots(), scheduler.snapshots() * self.state_bytes);
        (s.evictions, s.evicted_tokens) = (counts.evictions, counts.evicted);
        (s.cached_tokens, s.cached_below_tokens) = (counts.hits, counts.hits_below);
        (s.copied_blocks, s.saved_blocks, s.loaded_blocks) = (counts.copies, counts.saves, counts.loads);
        let by_class = |sequences: &[Sequence]| {
            let mut n = [0; 3];
            sequences.iter().for_each(|s| n[s.standing.class as usize] += 1);
            n
        };
        s.running_by_class = by_class(scheduler.running());
        s.waiting_by_class = by_class(scheduler.waiting());
        (s.running, s.waiting) = (scheduler.running().len(), scheduler.waiting().len());
        (s.blocks_used, s.blocks_cached, s.blocks_total) = scheduler.blocks();
        (s.keys, s.last_budget) = (scheduler.keys(), scheduler.budget());
        (s.step_time, s.row_time) =
            (scheduler.pace().predict(scheduler.work().of_rows(1)), scheduler.pace().per_row());
        (s.adapters, s.adapter_bytes) = self.adapters.lock().held();
        if let Some(figures) = self.tier.as_ref().map(Tier::figures) {
            (s.host_blocks, s.host_bytes) = (figures.host_blocks, figures.host_bytes);
            (s.disk_blocks, s.disk_bytes) = (figures.disk_blocks, figures.disk_bytes);
            (s.disk_damaged, s.disk_dropped) = (figures.damaged, figures.dropped);
        }
        let backlog = u64::try_from(scheduler.clear_time().as_nanos()).unwrap_or(u64::MAX);
        self.shared.backlog.store(backlog, Ordering::Relaxed);
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = *s;
    }
}

/// The digest before the first block of every sequence: of all that decides what a block's bytes are beside its tokens.
fn root(config: &EngineConfig, device: &DeviceInfo, block_bytes: usize) -> Result<Digest> {
    let identity = match (config.identity, &config.disk_cache) {
        (None, Some(disk)) => {
            let why = "cannot be used for a model without an identity; load it from a file".into();
            return Err(Error::Store { path: disk.dir.clone(), why });
        }
        (identity, _) => identity.unwrap_or_default(),
    };
    let mut hash = Sha256::new();
    hash.update(identity);
    for part in [env!("CARGO_PKG_VERSION"), &device.name, &device.description, device.cache] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update((block_bytes as u64).to_le_bytes());
    Ok(hash.finalize().into())
}

/// A seed from the system's randomness, by way of the standard library's hasher keys.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
