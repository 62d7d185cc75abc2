//! The caller's side of the engine: submit, score, cancel. Everything crosses to the engine's thread by one bounded channel.

use crate::engine::EngineInfo;
use crate::events::{EngineStats, Event};
use crate::request::{Request, check_tokens};
use crate::{Error, Result};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::Instant,
};

/// What an engine is to do.
pub(crate) enum Work {
    /// Make tokens. The channel of events needs no bound of its own: `max_tokens` and the context bound it.
    Generate { request: Request, events: Sender<Event> },
    /// Log-probabilities of the tokens from position `from` on.
    Score { tokens: Vec<u32>, from: usize, reply: SyncSender<Result<Vec<f64>>> },
    /// The row of logits after the tokens.
    Logits { tokens: Vec<u32>, reply: SyncSender<Result<Vec<f32>>> },
}

/// Work with what the engine needs to keep beside it.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) work: Work,
    pub(crate) submitted: Instant,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// Held while the job waits.
    pub(crate) place: Place,
}

/// What a handle sends.
pub(crate) enum Command {
    Run(Box<Job>),
    Cancel(u64),
}

/// A place in the queue; dropping it makes room for another.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>, limit: usize) -> Result<Place> {
        waiting
            .try_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1))
            .map_err(|_| Error::QueueFull { limit })?;
        Ok(Place(waiting.clone()))
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
    /// Why the thread ended, if it did by itself.
    pub(crate) down: Mutex<Option<Error>>,
}

impl Shared {
    fn why_down(&self) -> Error {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(Error::Down)
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
    /// Taken on drop, so that the thread sees the end of the channel before it is joined.
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
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
    ) -> Handle {
        Handle(Arc::new(Inner {
            info,
            queue_max,
            waiting: Arc::default(),
            next_id: AtomicU64::new(1),
            shared,
            commands: Some(commands),
            thread: Some(thread),
        }))
    }

    /// Queues a request. Refused at once if it makes no sense for this model, is longer than the context, or the queue
    /// is full. Dropping the stream aborts the request, also in the middle of its prompt.
    pub fn submit(&self, request: Request) -> Result<Stream> {
        request.check(self.0.info.vocab, self.0.info.context)?;
        let (events, receiver) = channel();
        let (id, cancelled) = self.send(Work::Generate { request, events })?;
        Ok(Stream { id, events: receiver, cancelled, shared: self.0.shared.clone(), over: false })
    }

    /// Cancels a request by [`Stream::id`]: its stream ends with [`crate::FinishReason::Aborted`] before the next step.
    /// Does nothing if it is over.
    pub fn cancel(&self, id: u64) {
        if let Some(commands) = &self.0.commands {
            // A thread that is gone has no requests left to cancel.
            let _ = commands.send(Command::Cancel(id));
        }
    }

    /// The natural logarithm of the probability of each `tokens[i]`, `i >= from`, given all tokens before it: an exact
    /// log-softmax in f64. `from` is at least 1, for nothing precedes the first token. Waits for the result.
    pub fn score(&self, tokens: Vec<u32>, from: usize) -> Result<Vec<f64>> {
        self.check_length(&tokens)?;
        if from == 0 || from >= tokens.len() {
            let value = format!("{from} of {} tokens", tokens.len());
            return Err(Error::Field { field: "from", value, range: "1 or more, and a token's position" });
        }
        let (reply, answer) = sync_channel(1);
        self.send(Work::Score { tokens, from, reply })?;
        answer.recv().unwrap_or_else(|_| Err(self.0.shared.why_down()))
    }

    /// The model's logits after `tokens`, `[vocab]`. Waits for the result.
    pub fn logits(&self, tokens: Vec<u32>) -> Result<Vec<f32>> {
        self.check_length(&tokens)?;
        let (reply, answer) = sync_channel(1);
        self.send(Work::Logits { tokens, reply })?;
        answer.recv().unwrap_or_else(|_| Err(self.0.shared.why_down()))
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

    fn send(&self, work: Work) -> Result<(u64, Arc<AtomicBool>)> {
        let place = Place::take(&self.0.waiting, self.0.queue_max)?;
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = Job { id, work, submitted: Instant::now(), cancelled: cancelled.clone(), place };
        let commands = self.0.commands.as_ref().ok_or(Error::Down)?;
        commands.send(Command::Run(Box::new(job))).map_err(|_| self.0.shared.why_down())?;
        Ok((id, cancelled))
    }
}

/// The events of one request, in order; the iterator blocks for the next one and ends after `Done` or `Failed`.
pub struct Stream {
    id: u64,
    events: Receiver<Event>,
    cancelled: Arc<AtomicBool>,
    shared: Arc<Shared>,
    over: bool,
}

impl Stream {
    /// Names the request for [`Handle::cancel`].
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Iterator for Stream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| Event::Failed(self.shared.why_down()));
        self.over = matches!(event, Event::Done { .. } | Event::Failed(_));
        Some(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Release);
    }
}
