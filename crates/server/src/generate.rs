//! One request to the engine, and its answers as text.

use std::future::poll_fn;
use std::time::Duration;

use quarrel_engine::{Event, FinishReason, Request, RequestStats, Stream};
use quarrel_runtime::TextStream;
use quarrel_text::Tokenizer;
use quarrel_text::stream_decoder::{Control, Leading};

use crate::error::ApiError;
use crate::models::Lease;

/// How often one who waits looks whether the engine hangs.
const LOOK: Duration = Duration::from_secs(2);

/// A token that was made.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    /// The model's best tokens.
    pub(crate) top: Vec<(u32, f32)>,
}

/// One thing that happened to an answer.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Text that is free, of the tokens of this step; may be empty while something is held back.
    Text { choice: u32, text: String, token: Option<Token> },
    /// An answer is over.
    Finished { choice: u32, finish: Finish },
    /// All are.
    Done(Summary),
}

/// Why an answer is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it, or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The deadline.
    Deadline,
    /// Cancelled by the server: it shuts down.
    Aborted,
}

impl Finish {
    /// OpenAI's word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Deadline | Finish::Aborted => "aborted",
        }
    }
}

/// Counts of a request that is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Summary {
    pub(crate) stats: RequestStats,
    /// Tokens of all answers, those of stop strings included.
    pub(crate) completion_tokens: usize,
    /// The stop string of each answer that one ended.
    pub(crate) stop: Vec<Option<String>>,
}

struct Choice {
    text: TextStream,
    over: bool,
}

/// A request that runs. Dropping it aborts it.
pub(crate) struct Generating {
    lease: Lease,
    stream: Stream,
    choices: Vec<Choice>,
    pending: std::collections::VecDeque<Step>,
    tokens: usize,
    done: bool,
}

/// How tokens become text.
pub(crate) struct TextOptions {
    pub(crate) leading: Leading,
    pub(crate) control: Control,
    pub(crate) stop: Vec<String>,
}

impl Generating {
    /// Submits a request.
    pub(crate) fn start(
        lease: Lease,
        mut request: Request,
        text: TextOptions,
    ) -> Result<Generating, ApiError> {
        if !request.ignore_eos {
            request.stop_ids = lease.tokenizer().end_of_generation().to_vec();
        }
        let n = request.n as usize;
        let stream = lease.handle().submit(request)?;
        let choice =
            || Choice { text: TextStream::new(text.leading, text.control, text.stop.clone()), over: false };
        let choices = std::iter::repeat_with(choice).take(n).collect();
        Ok(Generating { lease, stream, choices, pending: Default::default(), tokens: 0, done: false })
    }

    /// The model.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The next step; `None` after [`Step::Done`] or an error.
    pub(crate) async fn next(&mut self) -> Option<Result<Step, ApiError>> {
        loop {
            if let Some(step) = self.pending.pop_front() {
                return Some(Ok(step));
            }
            if self.done {
                return None;
            }
            let event = poll_fn(|context| self.stream.poll_next(context));
            let event = match tokio::time::timeout(LOOK, event).await {
                Ok(event) => event,
                Err(_) => match self.stream.poll() {
                    Some(event) => Some(event),
                    None => continue,
                },
            };
            if let Err(e) = self.take(event) {
                self.done = true;
                return Some(Err(e));
            }
        }
    }

    fn take(&mut self, event: Option<Event>) -> Result<(), ApiError> {
        match event {
            None => Err(ApiError::server("the engine ended without an answer")),
            Some(Event::Failed(e)) => Err(e.into()),
            Some(Event::Prefill { .. } | Event::Evicted { .. }) => Ok(()),
            Some(Event::Token { choice, id, logprob, top }) => self.token(choice, Token { id, logprob, top }),
            Some(Event::Finished { choice, reason }) => {
                self.finish(choice, finish(reason));
                Ok(())
            }
            Some(Event::Done { reason, stats }) => {
                for choice in 0..self.choices.len() as u32 {
                    self.finish(choice, finish(reason));
                }
                self.done = true;
                let stop = self.choices.iter().map(|c| c.text.stopped().map(str::to_owned)).collect();
                let summary = Summary { stats, completion_tokens: self.tokens, stop };
                self.pending.push_back(Step::Done(summary));
                Ok(())
            }
        }
    }

    fn token(&mut self, choice: u32, token: Token) -> Result<(), ApiError> {
        let Some(c) = self.choices.get_mut(choice as usize).filter(|c| !c.over) else { return Ok(()) };
        self.tokens += 1;
        let text = c.text.push(self.lease.tokenizer(), token.id)?;
        let stopped = c.text.stopped().is_some();
        self.pending.push_back(Step::Text { choice, text, token: Some(token) });
        if stopped {
            self.finish(choice, Finish::Stop);
            if self.choices.iter().all(|c| c.over) {
                self.lease.handle().cancel(self.stream.id());
            }
        }
        Ok(())
    }

    fn finish(&mut self, choice: u32, finish: Finish) {
        let Some(c) = self.choices.get_mut(choice as usize).filter(|c| !c.over) else { return };
        c.over = true;
        let text = c.text.finish();
        let finish = if c.text.stopped().is_some() { Finish::Stop } else { finish };
        if !text.is_empty() {
            self.pending.push_back(Step::Text { choice, text, token: None });
        }
        self.pending.push_back(Step::Finished { choice, finish });
    }
}

fn finish(reason: FinishReason) -> Finish {
    match reason {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length | FinishReason::ContextFull => Finish::Length,
        FinishReason::Deadline => Finish::Deadline,
        FinishReason::Aborted => Finish::Aborted,
    }
}

/// A token's text, whatever its bytes.
pub(crate) fn token_text(tokenizer: &Tokenizer, id: u32) -> (String, Vec<u8>) {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}
