//! The engine's thread: takes commands, plans a step, runs it on the device, samples, and sends events. The only place of
//! this crate with a device in it; the clock is read here and at submission.

use crate::batch::Batch;
use crate::events::{EngineStats, Event, FinishReason, RequestStats};
use crate::handle::{Command, Handle, Job, Place, Shared, Work};
use crate::request::Request;
use crate::sampler::{Sampler, Scratch, checked_max, softmax};
use crate::scheduler::{self, Chunk, Scheduler};
use crate::sequence::{Goal, Sequence};
use crate::{Error, Result};
use quarrel_ir::{BLOCK_TOKENS, Device, DeviceInfo, Limits, Prepared, Program, Readout, Weight};
use std::{
    any::Any,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    time::{Duration, Instant},
};

/// Most KV blocks: their numbers are of 32 bits.
const BLOCKS_MAX: usize = 1 << 31;

/// The sizes of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Longest sequence, prompt and answer together, in tokens.
    pub context: usize,
    /// KV blocks of 16 tokens; `None` is enough for one sequence of full length.
    pub kv_blocks: Option<usize>,
    /// Most tokens in a step. A prompt longer than this comes in over several steps.
    pub step_tokens: usize,
    /// Most rows with logits in a step; bounds the logits buffer, 64 rows of 262k being 67 MB.
    pub step_outputs: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_queue: usize,
    /// Share the blocks of equal prefixes. The output is the same bytes with and without.
    pub prefix_cache: bool,
}

impl EngineConfig {
    /// The defaults for a context of so many tokens.
    pub fn new(context: usize) -> EngineConfig {
        EngineConfig {
            context,
            kv_blocks: None,
            step_tokens: 256,
            step_outputs: 64,
            max_running: 16,
            max_queue: 64,
            prefix_cache: true,
        }
    }

    pub(crate) fn check(&self) -> Result<scheduler::Limits> {
        let full = self.context.div_ceil(BLOCK_TOKENS);
        let blocks = self.kv_blocks.unwrap_or(full);
        for (field, value, least, why) in [
            ("context", self.context, 2, "a token of prompt and one of answer"),
            ("kv_blocks", blocks, full, "the blocks of one sequence of full length"),
            ("max_running", self.max_running, 1, "one sequence"),
            ("max_queue", self.max_queue, 1, "one request"),
            ("step_tokens", self.step_tokens, self.max_running + 1, "one more than max_running"),
            ("step_outputs", self.step_outputs, self.max_running, "max_running"),
        ] {
            if value < least {
                return Err(Error::Config { field, value, least, why });
            }
        }
        if blocks > BLOCKS_MAX {
            return Err(Error::Field {
                field: "kv_blocks",
                value: blocks.to_string(),
                range: "at most 2^31; ask for a shorter context",
            });
        }
        Ok(scheduler::Limits {
            rows: self.step_tokens,
            outputs: self.step_outputs,
            running: self.max_running,
            // The queue, and room for everything that runs to be sent back.
            waiting: self.max_queue + self.max_running,
            blocks,
            prefix_cache: self.prefix_cache,
        })
    }
}

/// What an engine runs, and with what sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// The device.
    pub device: DeviceInfo,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// KV blocks of 16 tokens.
    pub kv_blocks: usize,
    /// Bytes that the device holds: weights, activations, KV.
    pub device_bytes: usize,
}

/// Starts engines; what runs is reached by a [`Handle`].
pub struct Engine;

impl Engine {
    /// Prepares the Program on the device and moves both into a thread of their own. `weights[i]` is what the device gave
    /// for `program.weights[i]`.
    pub fn start(
        mut device: Box<dyn Device>,
        program: Program,
        weights: &[Weight],
        config: EngineConfig,
    ) -> Result<Handle> {
        let limits = config.check()?;
        let vocab = program.logits.map_or(0, |l| l.cols as usize);
        let prepared = device.prepare(
            program,
            weights,
            Limits { rows: limits.rows, outputs: limits.outputs, kv_blocks: limits.blocks },
        )?;
        let info = EngineInfo {
            device: device.info().clone(),
            context: config.context,
            vocab,
            kv_blocks: limits.blocks,
            device_bytes: device.memory(),
        };
        // Waiting requests bound the channel; the slack is for cancellations.
        let (sender, commands) = sync_channel(config.max_queue + 64);
        let shared = Arc::new(Shared::default());
        let mut worker = Worker {
            device,
            prepared,
            scheduler: Scheduler::new(limits),
            clients: HashMap::new(),
            batch: Batch::default(),
            row: vec![0.0; vocab],
            scratch: Scratch::default(),
            context: config.context,
            epoch: Instant::now(),
            stats: EngineStats { blocks_total: limits.blocks, ..EngineStats::default() },
            shared: shared.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || worker.supervise(commands))
            .map_err(|e| Error::Thread(e.to_string()))?;
        Ok(Handle::new(info, config.max_queue, shared, sender, thread))
    }
}

/// A request in the engine, beside its [`Sequence`] in the scheduler.
struct Client {
    submitted: Instant,
    cancelled: Arc<AtomicBool>,
    /// Given back when the request is admitted.
    place: Option<Place>,
    task: Task,
}

enum Task {
    Generate(Box<Generation>),
    Score { from: usize, scores: Vec<f64>, reply: SyncSender<Result<Vec<f64>>> },
    Logits { reply: SyncSender<Result<Vec<f32>>> },
}

struct Generation {
    sampler: Sampler,
    events: std::sync::mpsc::Sender<Event>,
    prompt: usize,
    made: usize,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    seed: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// Whether a client goes on after an output.
enum Next {
    Push(u32),
    Wait,
    Finish(FinishReason),
    Fail(Error),
}

struct Worker {
    device: Box<dyn Device>,
    prepared: Prepared,
    scheduler: Scheduler,
    clients: HashMap<u64, Client>,
    batch: Batch,
    row: Vec<f32>,
    scratch: Scratch,
    context: usize,
    epoch: Instant,
    stats: EngineStats,
    shared: Arc<Shared>,
}

impl Worker {
    /// Runs until the last handle is gone. A panic, which is a bug here or in the device, fails every request and leaves
    /// the reason for those to come; nobody is left waiting.
    fn supervise(&mut self, commands: Receiver<Command>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(&commands)));
        let Err(panic) = outcome else { return };
        let error = Error::Panicked(panic_text(&*panic));
        *self.shared.down.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        self.fail_all(&error);
        // What is still in the channel is dropped with it, and its streams find the reason above.
    }

    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            if self.clients.is_empty() {
                debug_assert_eq!(self.scheduler.check_integrity(), Ok(()));
                match commands.recv() {
                    Ok(command) => self.take(command),
                    Err(_) => return,
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.finish_where(|_| true),
                }
            }
            self.finish_where(|c| c.cancelled.load(Ordering::Acquire));
            if !self.scheduler.is_idle()
                && let Err(error) = self.step()
            {
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
        };
        let Job { id, work, submitted, cancelled, place } = *job;
        let (tokens, goal, task) = match work {
            Work::Generate { request, events } => {
                let Request { prompt, sampling, max_tokens, stop_ids, ignore_eos, logprobs } = request;
                let seed = sampling.seed.unwrap_or_else(random_seed);
                let generation = Generation {
                    sampler: Sampler::new(sampling, seed, logprobs.unwrap_or(0).into(), &prompt),
                    events,
                    prompt: prompt.len(),
                    made: 0,
                    max_tokens: max_tokens.map_or(usize::MAX, |n| n as usize),
                    stop_ids: if ignore_eos { Vec::new() } else { stop_ids },
                    seed,
                    first: None,
                    last: None,
                };
                (prompt, Goal::Next, Task::Generate(Box::new(generation)))
            }
            Work::Score { tokens, from, reply } => {
                let scores = vec![0.0; tokens.len() - from];
                (tokens, Goal::Score { from }, Task::Score { from, scores, reply })
            }
            Work::Logits { tokens, reply } => (tokens, Goal::Next, Task::Logits { reply }),
        };
        let client = Client { submitted, cancelled, place: Some(place), task };
        match self.scheduler.add(Sequence::new(id, tokens, goal)) {
            Ok(()) => drop(self.clients.insert(id, client)),
            Err(error) => client.fail(error),
        }
    }

    /// One step: plan, run, book, then an output for each sequence that has one.
    fn step(&mut self) -> Result<()> {
        self.scheduler.schedule(self.epoch.elapsed());
        for chunk in self.scheduler.plan() {
            let s = &self.scheduler.running()[chunk.running];
            if let Some(c) = self.clients.get_mut(&s.id)
                && c.place.take().is_some()
            {
                self.stats.cached_tokens += s.cached as u64;
            }
        }
        self.batch.run(&mut *self.device, self.prepared, self.scheduler.plan(), self.scheduler.running())?;
        let plan = self.scheduler.commit();
        self.stats.steps += 1;
        let (mut output, mut over) = (0, Vec::new());
        for chunk in &plan {
            self.stats.rows += chunk.rows.len() as u64;
            let id = self.scheduler.running()[chunk.running].id;
            for at in chunk.outputs.clone() {
                self.device.read(self.prepared, Readout::Logits(output), &mut self.row)?;
                output += 1;
                match self.output(chunk, at) {
                    Next::Push(token) => self.scheduler.push(chunk.running, token),
                    Next::Wait => {}
                    Next::Finish(reason) => over.push((id, Ok(reason))),
                    Next::Fail(error) => over.push((id, Err(error))),
                }
            }
            if chunk.outputs.is_empty() {
                self.report_progress(chunk);
            }
        }
        for (id, outcome) in over {
            self.finish(id, outcome);
        }
        Ok(())
    }

    /// Uses `self.row`, the logits at position `at` of a chunk.
    fn output(&mut self, chunk: &Chunk, at: usize) -> Next {
        let s = &self.scheduler.running()[chunk.running];
        let Some(client) = self.clients.get_mut(&s.id) else { return Next::Wait };
        match &mut client.task {
            Task::Generate(g) => {
                if chunk.rows.len() > 1 || g.made == 0 {
                    g.report_progress(chunk.rows.end, s.tokens.len());
                }
                self.stats.sampled_tokens += 1;
                g.next(&mut self.row, s.tokens.len(), self.context, &mut self.scratch)
            }
            Task::Score { from, scores, .. } => match checked_max(&self.row, at + 1) {
                Ok(max) => {
                    let next = s.tokens[at + 1];
                    let lse = softmax::log_sum_exp(&self.row, max);
                    scores[at + 1 - *from] = f64::from(self.row[next as usize]) - lse;
                    if at + 2 == s.tokens.len() { Next::Finish(FinishReason::Stop) } else { Next::Wait }
                }
                Err(error) => Next::Fail(error),
            },
            Task::Logits { .. } => Next::Finish(FinishReason::Stop),
        }
    }

    fn report_progress(&self, chunk: &Chunk) {
        let s = &self.scheduler.running()[chunk.running];
        if let Some(Client { task: Task::Generate(g), .. }) = self.clients.get(&s.id) {
            g.report_progress(chunk.rows.end, s.tokens.len());
        }
    }

    /// Ends a request and frees its blocks.
    fn finish(&mut self, id: u64, outcome: Result<FinishReason>) {
        let (Some(client), Some(sequence)) = (self.clients.remove(&id), self.scheduler.remove(id)) else {
            return;
        };
        // The figures are up to date before anyone can learn that the request is over.
        self.publish_stats();
        match outcome {
            Err(error) => client.fail(error),
            Ok(reason) => client.finish(reason, &sequence, self.epoch, &self.row),
        }
    }

    /// Aborts the requests for which `condition` holds.
    fn finish_where(&mut self, condition: impl Fn(&Client) -> bool) {
        let ids: Vec<u64> = self.clients.iter().filter(|(_, c)| condition(c)).map(|(id, _)| *id).collect();
        for id in ids {
            self.finish(id, Ok(FinishReason::Aborted));
        }
    }

    fn fail_all(&mut self, error: &Error) {
        for (_, client) in self.clients.drain() {
            client.fail(error.clone());
        }
    }

    fn publish_stats(&mut self) {
        let s = &mut self.stats;
        s.preemptions = self.scheduler.preemptions();
        s.running = self.scheduler.running().len();
        s.waiting = self.scheduler.waiting();
        (s.blocks_used, s.blocks_total) = self.scheduler.blocks_used();
        *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = *s;
    }
}

impl Generation {
    /// Draws a token and says how the sequence, now of `length` tokens, goes on.
    fn next(&mut self, row: &mut [f32], length: usize, context: usize, scratch: &mut Scratch) -> Next {
        let choice = match self.sampler.next(row, length, scratch) {
            Ok(choice) => choice,
            Err(error) => return Next::Fail(error),
        };
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        if self.stop_ids.contains(&choice.id) {
            return Next::Finish(FinishReason::Stop);
        }
        self.made += 1;
        // A send that fails means a dropped stream, which has set `cancelled`.
        let _ = self.events.send(Event::Token { id: choice.id, logprob: choice.logprob, top: choice.top });
        if self.made >= self.max_tokens {
            Next::Finish(FinishReason::Length)
        } else if length + 1 >= context {
            Next::Finish(FinishReason::ContextFull)
        } else {
            Next::Push(choice.id)
        }
    }

    fn report_progress(&self, done: usize, total: usize) {
        let _ = self.events.send(Event::Prefill { done, total });
    }

    fn stats(&self, submitted: Instant, sequence: &Sequence, epoch: Instant) -> RequestStats {
        let admitted = sequence.admitted.map(|a| epoch + a);
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        RequestStats {
            prompt_tokens: self.prompt,
            cached_tokens: sequence.cached,
            completion_tokens: self.made,
            seed: self.seed,
            queue: between(Some(submitted), admitted),
            ttft: between(Some(submitted), self.first),
            prefill: between(admitted, self.first),
            decode: between(self.first, self.last),
        }
    }
}

impl Client {
    // In both, a receiver that is gone has lost interest in the answer.

    fn finish(self, reason: FinishReason, sequence: &Sequence, epoch: Instant, row: &[f32]) {
        match self.task {
            Task::Generate(g) => {
                let stats = g.stats(self.submitted, sequence, epoch);
                let _ = g.events.send(Event::Done { reason, stats });
            }
            Task::Score { reply, scores, .. } => {
                let _ =
                    reply.send(if reason == FinishReason::Aborted { Err(Error::Down) } else { Ok(scores) });
            }
            Task::Logits { reply } => {
                let aborted = reason == FinishReason::Aborted;
                let _ = reply.send(if aborted { Err(Error::Down) } else { Ok(row.to_vec()) });
            }
        }
    }

    fn fail(self, error: Error) {
        match self.task {
            Task::Generate(g) => drop(g.events.send(Event::Failed(error))),
            Task::Score { reply, .. } => drop(reply.send(Err(error))),
            Task::Logits { reply } => drop(reply.send(Err(error))),
        }
    }
}

/// A seed from the system's randomness, by way of the standard library's hasher keys.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
