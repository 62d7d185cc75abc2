//! The caller's side of the engine: submit, score, cancel. Everything crosses to the engine's thread by one bounded channel.

use crate::adapters::{AdapterInfo, NewAdapter, Registry, Use};
use crate::config::EngineInfo;
use crate::embed::{EmbedRequest, Embedded, Embedding, Pooling, STATES_BYTES_MAX};
use crate::events::Event;
use crate::evict::{Eviction, EvictionStats, Evictor};
use crate::guide::STATES_MAX;
use crate::outbox::{Bell, Outbox};
use crate::request::{Class, Request, check_budget, check_logprobs, check_tokens};
use crate::speculate::Speculate;
use crate::statistics::EngineStats;
use crate::watchdog::{Pulse, Watchdog};
use crate::{Error, Result};
use quarrel_formats::Source;
use quarrel_ir::{AdapterPart, BLOCK_TOKENS, Program};
use quarrel_model::{ModelSpec, lora};
use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What an engine is to do.
pub(crate) enum Work {
    /// Make tokens.
    Generate { request: Box<Request>, events: Outbox },
    /// Log-probabilities of the tokens from position `from` on.
    Score {
        tokens: Vec<u32>,
        from: usize,
        top: usize,
        evictor: Option<Evictor>,
        reply: SyncSender<Result<Scores>>,
    },
    /// The row of logits after the tokens.
    Logits { tokens: Vec<u32>, reply: SyncSender<Result<Vec<f32>>> },
    /// Vectors of the tokens.
    Embed { request: EmbedRequest, reply: SyncSender<Result<Embedding>> },
}

/// A text to score.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRequest {
    /// The text.
    pub tokens: Vec<u32>,
    /// The first token to score, at least 1: nothing precedes the first.
    pub from: usize,
    /// What happens when it outgrows `kv_tokens`, as for [`Request::eviction`]; SnapKV takes the tokens for an answer without a
    /// prompt.
    pub eviction: Eviction,
    /// Most tokens in the cache; the engine's context if not given.
    pub kv_tokens: Option<u32>,
    /// Name of a loaded adapter.
    pub adapter: Option<String>,
    /// Report the model's so many best tokens at each position, at most [`crate::LOGPROBS_MAX`].
    pub top: u8,
}

impl ScoreRequest {
    /// Scores `tokens[from..]` within the context, without an adapter.
    pub fn new(tokens: Vec<u32>, from: usize) -> ScoreRequest {
        ScoreRequest { tokens, from, eviction: Eviction::default(), kv_tokens: None, adapter: None, top: 0 }
    }
}

/// What scoring a text gives.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scores {
    /// Natural logarithms of the probabilities of the tokens that were asked for.
    pub log_probs: Vec<f64>,
    /// The best tokens at their positions with their log-probabilities, best first; empty if none were asked for.
    pub top: Vec<Vec<(u32, f32)>>,
    /// What was dropped from the cache meanwhile.
    pub eviction: EvictionStats,
}

/// Work with what the engine needs to keep beside it.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) work: Work,
    pub(crate) submitted: Instant,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Held while the job waits.
    pub(crate) place: Place,
    pub(crate) adapter: Option<Use>,
}

/// What a handle sends.
pub(crate) enum Command {
    Run(Box<Job>),
    Cancel(u64),
    LoadAdapter(Box<NewAdapter>, SyncSender<Result<AdapterInfo>>),
    /// Those that nobody uses any more.
    FreeAdapters(SyncSender<()>),
}

/// A place in the queue; dropping it makes room for another.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>, limit: usize) -> Option<Place> {
        let free = |n| (n < limit).then_some(n + 1);
        waiting.try_update(Ordering::AcqRel, Ordering::Acquire, free).ok()?;
        Some(Place(waiting.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the engine's thread and its handles share.
#[derive(Default)]
pub(crate) struct Shared {
    /// Figures of the last step.
    pub(crate) stats: Mutex<EngineStats>,
    /// Why nothing goes on: the thread ended by itself, or its device hangs.
    pub(crate) down: Mutex<Option<Error>>,
    pub(crate) pulse: Arc<Pulse>,
    /// Nobody is interested any more.
    pub(crate) closing: AtomicBool,
    /// Nanoseconds that it takes to compute the prompts that wait or come in.
    pub(crate) backlog: AtomicU64,
}

/// How often one who waits looks whether the engine hangs.
const LOOK: Duration = Duration::from_millis(200);

impl Shared {
    fn is_down(&self) -> Option<Error> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn why_down(&self) -> Error {
        self.is_down().unwrap_or(Error::Down)
    }

    /// Waits for a message, but not for an engine that hangs.
    pub(crate) fn wait<T>(&self, receiver: &Receiver<T>) -> Result<T> {
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Disconnected) => return Err(self.why_down()),
                Err(RecvTimeoutError::Timeout) if self.pulse.is_stuck() => return Err(self.why_down()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// How long a request that comes now waits until its own prompt's turn.
    fn wait_time(&self) -> Duration {
        Duration::from_nanos(self.backlog.load(Ordering::Relaxed))
    }
}

/// A handle to a running engine. Clones share it; dropping the last one aborts what runs and ends the thread.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    info: EngineInfo,
    queue_max: usize,
    waiting: Arc<AtomicUsize>,
    next_id: AtomicU64,
    shared: Arc<Shared>,
    adapters: Registry,
    /// What adapters are fitted to.
    model: Option<(ModelSpec, Program)>,
    /// Taken on drop, so that the thread sees the end of the channel before it is joined.
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
    _watchdog: Watchdog,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.commands = None;
        self.shared.closing.store(true, Ordering::Release);
        // A thread that hangs in a device cannot be waited for; it ends with the process.
        if let Some(thread) = self.thread.take()
            && !self.shared.pulse.is_stuck()
        {
            // A panic of the thread has been reported to every request.
            let _ = thread.join();
        }
    }
}

impl Handle {
    pub(crate) fn new(
        info: EngineInfo,
        queue_max: usize,
        shared: Arc<Shared>,
        commands: SyncSender<Command>,
        thread: JoinHandle<()>,
        watchdog: Watchdog,
        (adapters, model): (Registry, Option<(ModelSpec, Program)>),
    ) -> Handle {
        Handle(Arc::new(Inner {
            info,
            queue_max,
            waiting: Arc::default(),
            next_id: AtomicU64::new(1),
            shared,
            adapters,
            model,
            commands: Some(commands),
            thread: Some(thread),
            _watchdog: watchdog,
        }))
    }

    /// Queues a request. Refused at once if it makes no sense for this model, is longer than the context, the queue is full
    /// (for batch requests from three quarters on, for background ones from a half), or it would miss its deadline by
    /// waiting; the refusal says when to try again. An adapter that is not loaded is refused too. Dropping the stream aborts the request, also in the middle of its prompt.
    pub fn submit(&self, mut request: Request) -> Result<Stream> {
        self.check_generates("an answer")?;
        self.add_start(&mut request)?;
        request.check(self.0.info.vocab, self.0.info.context)?;
        self.check_evicts(request.eviction)?;
        self.check_width(&request)?;
        self.bound_search(&mut request);
        if !self.0.info.speculates && !matches!(request.speculate, Speculate::Off | Speculate::Auto) {
            let (value, range) = (
                request.speculate.name().into(),
                "off or auto: sequences of this model have states or sources, with which nothing is guessed ahead",
            );
            return Err(Error::Field { field: "speculate", value, range });
        }
        if request.speculate == Speculate::Draft && !self.0.info.draft {
            let (value, range) =
                ("draft".into(), "off, lookup, ngram or auto: the engine has no draft model");
            return Err(Error::Field { field: "speculate", value, range });
        }
        let amateur = request.guide.as_ref().and_then(|g| g.amateur).filter(|a| a.beta != 0.0);
        if let Some(amateur) = amateur.filter(|_| !self.0.info.draft) {
            let (field, value) = ("guidance.contrast.beta", amateur.beta.to_string());
            return Err(Error::Field { field, value, range: "0: the engine has no draft model" });
        }
        self.check_rows(&request)?;
        let wait = self.0.shared.wait_time();
        if let Some(limit) = request.deadline
            && wait > limit
        {
            return Err(Error::Busy { wait, limit, retry_after: wait - limit });
        }
        let (events, receiver, bell) = Outbox::new();
        let class = request.class;
        let adapter = self.adapter(request.adapter.as_deref())?;
        let (id, cancelled) =
            self.send(Work::Generate { request: Box::new(request), events }, class, adapter)?;
        Ok(Stream { id, events: receiver, bell, cancelled, shared: self.0.shared.clone(), over: false })
    }

    /// Cancels a request by [`Stream::id`]: its stream ends with [`crate::FinishReason::Aborted`], and a step that is mostly
    /// its own is left within a layer. Does nothing if it is over.
    pub fn cancel(&self, id: u64) {
        if let Some(commands) = &self.0.commands {
            // A thread that is gone has no requests left to cancel.
            let _ = commands.send(Command::Cancel(id));
        }
    }

    /// The natural logarithm of the probability of each `tokens[i]`, `i >= from`, given all tokens before it: an exact
    /// log-softmax in f64. `from` is at least 1, for nothing precedes the first token. Waits for the result.
    pub fn score(&self, tokens: Vec<u32>, from: usize) -> Result<Vec<f64>> {
        Ok(self.score_with(ScoreRequest::new(tokens, from))?.log_probs)
    }

    /// The same with what a [`ScoreRequest`] may ask for.
    pub fn score_with(&self, request: ScoreRequest) -> Result<Scores> {
        let ScoreRequest { tokens, from, eviction, kv_tokens, adapter, top } = request;
        self.check_generates("probabilities")?;
        self.check_predicts("probabilities")?;
        check_logprobs(top)?;
        let context = self.0.info.context;
        check_budget(kv_tokens, context)?;
        let budget = kv_tokens.map_or(context, |n| n as usize);
        let evictor = Evictor::new(eviction, budget, 0)?;
        self.check_evicts(eviction)?;
        check_tokens(&tokens, self.0.info.vocab)?;
        if evictor.is_none() && tokens.len() > budget {
            return Err(Error::PromptTooLong { prompt: tokens.len(), context: budget });
        }
        if from == 0 || from >= tokens.len() {
            let value = format!("{from} of {} tokens", tokens.len());
            return Err(Error::Field { field: "from", value, range: "1 or more, and a token's position" });
        }
        let (reply, answer) = sync_channel(1);
        let adapter = self.adapter(adapter.as_deref())?;
        self.send(
            Work::Score { tokens, from, top: top.into(), evictor, reply },
            Class::Interactive,
            adapter,
        )?;
        self.0.shared.wait(&answer)?
    }

    /// The model's logits after `tokens`, `[vocab]`. Waits for the result.
    pub fn logits(&self, tokens: Vec<u32>) -> Result<Vec<f32>> {
        self.logits_with(tokens, None)
    }

    /// The same with an adapter.
    pub fn logits_with(&self, tokens: Vec<u32>, adapter: Option<&str>) -> Result<Vec<f32>> {
        self.check_generates("logits")?;
        self.check_predicts("logits")?;
        self.check_length(&tokens)?;
        let (reply, answer) = sync_channel(1);
        let adapter = self.adapter(adapter)?;
        self.send(Work::Logits { tokens, reply }, Class::Interactive, adapter)?;
        self.0.shared.wait(&answer)?
    }

    /// Queues a text to embed, batched with what else runs. Refused at once as [`Self::submit`] does, and by a model that was
    /// loaded without hidden states. Dropping what comes back cancels it.
    pub fn embed(&self, request: EmbedRequest) -> Result<Embedded> {
        let Some(dim) = self.0.info.hidden else {
            let why = match self.0.info.source {
                None => "the engine was loaded without its hidden states; load it for embeddings",
                Some(_) => {
                    "this model answers; load its encoder alone for embeddings (embed, serve --embedding-model)"
                }
            };
            return Err(Error::Unsuited { what: "an embedding", why });
        };
        self.check_length(&request.tokens)?;
        let bytes = request.tokens.len().saturating_mul(4 * dim);
        if request.pooling == Pooling::None && bytes > STATES_BYTES_MAX {
            let why = "the vectors of all tokens of this text take more than 64 MiB; cut it into parts";
            return Err(Error::Unsuited { what: "vectors without pooling", why });
        }
        let wait = self.0.shared.wait_time();
        if let Some(limit) = request.deadline.filter(|limit| wait > *limit) {
            return Err(Error::Busy { wait, limit, retry_after: wait - limit });
        }
        let (reply, answer) = sync_channel(1);
        let (adapter, class) = (self.adapter(request.adapter.as_deref())?, request.class);
        let (_, cancelled) = self.send(Work::Embed { request, reply }, class, adapter)?;
        Ok(Embedded { answer, cancelled, shared: self.0.shared.clone() })
    }

    /// Loads an adapter from PEFT's directory or a GGUF file while others run, and names it for [`Request::adapter`]. Its
    /// scale is multiplied by `scale`. The file is read here; the engine's thread only takes it in, between two steps.
    /// Refused are names that are taken, files that are not understood or made for another model, and what exceeds
    /// [`crate::EngineConfig::adapters`].
    pub fn load_adapter(&self, name: &str, path: impl AsRef<Path>, scale: f32) -> Result<AdapterInfo> {
        let refused = |why: String| Error::Adapter { name: name.into(), why };
        let Some((spec, program)) = &self.0.model else {
            return Err(refused("this engine was started without its model's specification".into()));
        };
        let path = path.as_ref();
        let source = Source::open_adapter(path).map_err(quarrel_model::Error::from)?;
        let lora = lora::read(&source)?;
        // Bounds first, before the numbers are decoded.
        let mut new = NewAdapter::new(name, path.display().to_string(), scale, lora.ranks(), Vec::new());
        new.info.bytes = 4 * lora.parameters();
        self.0.adapters.lock().check_new(&new.info)?;
        let parts = lora.parts(spec, program, scale)?;
        self.load(NewAdapter::new(name, new.info.path, scale, lora.ranks(), parts))
    }

    /// Loads an adapter from parts that are fitted to the Program already.
    pub fn load_adapter_parts(
        &self,
        name: &str,
        parts: Vec<AdapterPart>,
        rank: usize,
    ) -> Result<AdapterInfo> {
        self.load(NewAdapter::new(name, String::new(), 1.0, (rank, rank), parts))
    }

    fn load(&self, new: NewAdapter) -> Result<AdapterInfo> {
        let (reply, answer) = sync_channel(1);
        self.command(Command::LoadAdapter(Box::new(new), reply))?;
        self.0.shared.wait(&answer)?
    }

    /// Takes an adapter's name away: no request can choose it any more, and it may be given to another. Requests that have
    /// it, those that wait included, keep it to their end, and its memory is freed with the last of them; the answer is
    /// how many there are.
    pub fn unload_adapter(&self, name: &str) -> Result<usize> {
        let uses = self.0.adapters.lock().unload(name)?;
        let (reply, answer) = sync_channel(1);
        self.command(Command::FreeAdapters(reply))?;
        self.0.shared.wait(&answer)?;
        Ok(uses)
    }

    /// The adapters that requests can choose, by name.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.0.adapters.lock().list()
    }

    fn adapter(&self, name: Option<&str>) -> Result<Option<Use>> {
        name.map(|n| self.0.adapters.acquire(n)).transpose()
    }

    /// Whether the engine takes requests: an error if its thread is gone or a step hangs.
    pub fn check(&self) -> Result<()> {
        self.0.shared.is_down().map_or_else(|| self.check_alive(), Err)
    }

    fn check_alive(&self) -> Result<()> {
        if self.0.shared.pulse.is_stuck() { Err(self.0.shared.why_down()) } else { Ok(()) }
    }

    fn command(&self, command: Command) -> Result<()> {
        self.check_alive()?;
        let commands = self.0.commands.as_ref().ok_or(Error::Down)?;
        commands.send(command).map_err(|_| self.0.shared.why_down())
    }

    /// What runs.
    pub fn info(&self) -> &EngineInfo {
        &self.0.info
    }

    /// Figures as of the last step.
    pub fn stats(&self) -> EngineStats {
        *self.0.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_length(&self, tokens: &[u32]) -> Result<()> {
        check_tokens(tokens, self.0.info.vocab)?;
        let context = self.0.info.context;
        if tokens.len() > context {
            return Err(Error::PromptTooLong { prompt: tokens.len(), context });
        }
        Ok(())
    }

    fn check_generates(&self, what: &'static str) -> Result<()> {
        if self.0.info.generates {
            return Ok(());
        }
        Err(Error::Unsuited { what, why: "this model is an encoder: it makes embeddings and no text" })
    }

    /// A prompt that is a source has the answer's first token behind it, which nobody has sent.
    fn add_start(&self, request: &mut Request) -> Result<()> {
        let Some(start) = self.0.info.source else { return Ok(()) };
        if request.guide.as_ref().is_some_and(|g| (**g).clone().effective().is_some()) {
            let why = "answers of a model with an encoder and a decoder are not guided";
            return Err(Error::Unsuited { what: "guidance", why });
        }
        if !request.prompt.is_empty() {
            request.prompt.push(start);
        }
        Ok(())
    }

    /// Rows of a prompt are nothing that a model with sources predicts.
    fn check_predicts(&self, what: &'static str) -> Result<()> {
        match self.0.info.source {
            None => Ok(()),
            Some(_) => {
                Err(Error::Unsuited { what, why: "this model predicts its answers and not its prompt" })
            }
        }
    }

    fn check_evicts(&self, eviction: Eviction) -> Result<()> {
        if eviction == Eviction::Refuse || self.0.info.evicts {
            return Ok(());
        }
        let range = "refuse: keys of this model cannot be moved in its cache";
        Err(Error::Field { field: "eviction", value: format!("{eviction:?}"), range })
    }

    /// Guidance by rows that not every engine computes.
    fn check_rows(&self, request: &Request) -> Result<()> {
        let Some(guide) = &request.guide else { return Ok(()) };
        if guide.exits().is_some() && self.0.info.exits == 0 {
            let why = "the engine was loaded without exits; load it with the layers to contrast with";
            return Err(Error::Unsuited { what: "guidance.dola", why });
        }
        if guide.searches().is_none() {
            return Ok(());
        }
        let (what, info) = ("guidance.contrastive_search", &self.0.info);
        let Some(dim) = info.hidden else {
            let why = "the engine was loaded without its hidden states; load it with them, as for embeddings";
            return Err(Error::Unsuited { what, why });
        };
        let most =
            request.max_tokens.map_or(info.context, |n| request.prompt.len().saturating_add(n as usize));
        if most.min(info.context).saturating_mul(4 * dim) > STATES_MAX {
            let why = "the hidden states of prompt and answer take more than 256 MiB; ask for fewer tokens";
            return Err(Error::Unsuited { what, why });
        }
        Ok(())
    }

    /// A request that follows several sequences must find room for all of them.
    fn check_width(&self, request: &Request) -> Result<()> {
        let (width, info) = (request.places() as usize, &self.0.info);
        if width > info.max_running {
            let (need, have) = (format!("{width} places"), info.max_running);
            return Err(Error::Width { width, need, have, hint: "ask for fewer, or raise max_running" });
        }
        // Beams wait for each other, so all of them must fit at once; what they have in common counts for each. So do an
        // answer and the sequence beside it.
        let guide = request.guide.as_ref();
        let negative = guide.and_then(|g| g.negative.as_ref()).map_or(0, |n| n.prompt.len());
        let prompt = request.prompt.len().max(negative);
        let longest = request.max_tokens.map_or(info.context, |n| info.context.min(prompt + n as usize));
        // A beam that branches off needs one to copy.
        let blocks = width * (longest.div_ceil(BLOCK_TOKENS) + usize::from(request.beams.is_some()));
        // The candidates of a search are forks of one sequence: each has its last block for itself.
        let searches = guide.is_some_and(|g| g.search.is_some());
        let forks = prompt.max(request.max_tokens.map_or(0, |_| longest)).div_ceil(BLOCK_TOKENS) + width;
        if searches && forks > info.kv_blocks {
            let (need, have) = (format!("{forks} KV blocks"), info.kv_blocks);
            let hint = "ask for fewer candidates or tokens, or raise kv_blocks";
            return Err(Error::Width { width, need, have, hint });
        }
        let together = request.beams.is_some() || guide.is_some_and(|g| g.shadows());
        if together && blocks > info.kv_blocks {
            let (need, have) = (format!("{blocks} KV blocks"), info.kv_blocks);
            let hint = "ask for fewer beams or tokens, or raise kv_blocks";
            return Err(Error::Width { width, need, have, hint });
        }
        Ok(())
    }

    /// A search without a bound ends where its candidates would not fit any more: they could only push each other out.
    fn bound_search(&self, request: &mut Request) {
        let searches = request.guide.as_ref().is_some_and(|g| g.search.is_some());
        if searches && request.max_tokens.is_none() {
            let fit = self.0.info.kv_blocks.saturating_sub(request.places() as usize) * BLOCK_TOKENS;
            let fit = fit.min(request.budget(self.0.info.context));
            request.kv_tokens = Some(u32::try_from(fit).unwrap_or(u32::MAX));
        }
    }

    fn send(&self, work: Work, class: Class, adapter: Option<Use>) -> Result<(u64, Arc<AtomicBool>)> {
        let limit = match class {
            Class::Interactive => self.0.queue_max,
            Class::Batch => self.0.queue_max.div_ceil(4) * 3,
            Class::Background => self.0.queue_max.div_ceil(2),
        };
        self.check_alive()?;
        let place = Place::take(&self.0.waiting, limit.min(self.0.queue_max))
            .ok_or_else(|| Error::QueueFull { limit, retry_after: self.0.shared.wait_time() })?;
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = Job { id, work, submitted: Instant::now(), cancelled: cancelled.clone(), place, adapter };
        self.command(Command::Run(Box::new(job)))?;
        Ok((id, cancelled))
    }
}

/// The events of one request, in order; the iterator blocks for the next one and ends after `Done` or `Failed`.
pub struct Stream {
    id: u64,
    events: Receiver<Event>,
    bell: Arc<Bell>,
    cancelled: Arc<AtomicBool>,
    shared: Arc<Shared>,
    over: bool,
}

impl Stream {
    /// Names the request for [`Handle::cancel`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next event if there is one now, without waiting; `None` before and after.
    pub fn poll(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = match self.events.try_recv() {
            Ok(event) => event,
            Err(TryRecvError::Empty) if !self.shared.pulse.is_stuck() => return None,
            Err(_) => Event::Failed(self.shared.why_down()),
        };
        self.note(&event);
        Some(event)
    }

    /// The next event for an async task, which is woken when one comes; `None` at the end. Nobody wakes it when the engine
    /// hangs: who wants to know polls again now and then.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(event) = self.poll() {
            return Poll::Ready(Some(event));
        }
        self.bell.set(context.waker());
        // One may have come before the bell was set.
        self.poll().map_or(Poll::Pending, |event| Poll::Ready(Some(event)))
    }

    fn note(&mut self, event: &Event) {
        self.over = matches!(event, Event::Done { .. } | Event::Failed(_));
    }
}

impl Iterator for Stream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = self.shared.wait(&self.events).unwrap_or_else(Event::Failed);
        self.note(&event);
        Some(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
    }
}
