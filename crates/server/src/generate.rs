//! One request to the engine, and its answers as text.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quarrel_engine::{Event, FinishReason, Request, RequestStats, Stream, Trace};
use quarrel_runtime::TextStream;
use quarrel_text::stream_decoder::{Control, Leading};
use quarrel_text::{OutputEvent, OutputParser, Tokenizer};

use crate::charge::Charge;
use crate::error::ApiError;
use crate::models::Lease;
use crate::record::{Generation, Record};

/// How often one who waits looks whether the engine hangs.
const LOOK: Duration = Duration::from_secs(2);

/// A token that was made.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) logprob: Option<f32>,
    /// The best tokens.
    pub(crate) top: Vec<(u32, f32)>,
    /// How it was drawn, if that was asked for.
    pub(crate) trace: Option<Box<Trace>>,
}

/// One thing that happened to an answer.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// More of an answer, by the token of this step; there may be no event while something is held back.
    Piece { choice: u32, events: Vec<OutputEvent>, token: Option<Token> },
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
    /// The model calls tools.
    ToolCalls,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The answer repeated itself without end.
    Repetition,
    /// The deadline.
    Deadline,
    /// Cancelled by the server: it shuts down.
    Aborted,
}

impl Finish {
    /// Whether it was ended before the model ended it, though nothing is wrong.
    pub(crate) fn is_cut(self) -> bool {
        matches!(self, Finish::Length | Finish::Repetition)
    }

    /// OpenAI's word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::ToolCalls => "tool_calls",
            Finish::Length => "length",
            Finish::Repetition => "repetition",
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
    /// Those of them that were reasoning.
    pub(crate) reasoning_tokens: usize,
    /// The stop string of each answer that one ended.
    pub(crate) stop: Vec<Option<String>>,
}

struct Choice {
    text: TextStream,
    /// Tells reasoning and tool calls from text.
    parser: Option<OutputParser>,
    over: bool,
}

impl Choice {
    fn events(&mut self, text: String) -> Vec<OutputEvent> {
        match &mut self.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![OutputEvent::Content(text)],
        }
    }
}

/// A request that runs. Dropping it aborts it.
pub(crate) struct Generating {
    lease: Lease,
    stream: Stream,
    choices: Vec<Choice>,
    prompt: usize,
    pending: std::collections::VecDeque<Step>,
    tokens: usize,
    reasoning: usize,
    charge: Option<Charge>,
    record: Option<Arc<Record>>,
    begun: SystemTime,
    stats: Option<RequestStats>,
    failed: Option<&'static str>,
    done: bool,
}

impl Drop for Generating {
    /// However it ends, its record says so.
    fn drop(&mut self) {
        let Some(record) = self.record.take() else { return };
        record.generated(Generation {
            model: self.lease.id.clone(),
            begun: self.begun,
            prompt: self.prompt,
            completion: self.tokens,
            reasoning: self.reasoning,
            stats: self.stats.take(),
            error: self.failed,
        });
    }
}

/// How tokens become text.
pub(crate) struct TextOptions {
    pub(crate) leading: Leading,
    pub(crate) control: Control,
    pub(crate) stop: Vec<String>,
    /// At the start of an answer.
    pub(crate) parser: Option<OutputParser>,
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
        let (n, prompt) = (request.n as usize, request.prompt.len());
        let begun = SystemTime::now();
        let stream = lease.handle().submit(request)?;
        let choice = || Choice {
            text: TextStream::new(text.leading, text.control, text.stop.clone()),
            parser: text.parser.clone(),
            over: false,
        };
        let choices = std::iter::repeat_with(choice).take(n).collect();
        Ok(Generating {
            lease,
            stream,
            choices,
            prompt,
            pending: Default::default(),
            tokens: 0,
            reasoning: 0,
            charge: None,
            record: None,
            begun,
            stats: None,
            failed: None,
            done: false,
        })
    }

    /// Has what it takes paid.
    pub(crate) fn paid_by(mut self, charge: Option<Charge>) -> Generating {
        self.charge = charge;
        self
    }

    /// Has it told in the record of a request.
    pub(crate) fn recorded_in(mut self, record: Option<Arc<Record>>) -> Generating {
        self.record = record;
        self
    }

    /// Tokens of the prompt.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt
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
                self.failed = Some(e.kind);
                return Some(Err(e));
            }
        }
    }

    fn take(&mut self, event: Option<Event>) -> Result<(), ApiError> {
        match event {
            None => Err(ApiError::server("the engine ended without an answer")),
            Some(Event::Failed(e)) => Err(e.into()),
            Some(Event::Prefill { total, .. }) => {
                self.charge.iter_mut().for_each(|c| c.used = c.used.max(total as u64));
                Ok(())
            }
            Some(Event::Evicted { .. }) => Ok(()),
            Some(Event::Token { choice, id, logprob, top, trace }) => {
                self.token(choice, Token { id, logprob, top, trace })
            }
            Some(Event::Finished { choice, reason }) => {
                self.finish(choice, finish(reason));
                Ok(())
            }
            Some(Event::Done { reason, stats }) => {
                for choice in 0..self.choices.len() as u32 {
                    self.finish(choice, finish(reason));
                }
                self.done = true;
                self.stats = Some(stats);
                let stop = self.choices.iter().map(|c| c.text.stopped().map(str::to_owned)).collect();
                let summary =
                    Summary { stats, completion_tokens: self.tokens, reasoning_tokens: self.reasoning, stop };
                self.pending.push_back(Step::Done(summary));
                Ok(())
            }
        }
    }

    fn token(&mut self, choice: u32, token: Token) -> Result<(), ApiError> {
        let Some(c) = self.choices.get_mut(choice as usize).filter(|c| !c.over) else { return Ok(()) };
        self.tokens += 1;
        self.charge.iter_mut().for_each(|c| c.used += 1);
        let reasons = |c: &Choice| c.parser.as_ref().is_some_and(OutputParser::in_reasoning);
        let before = reasons(c);
        let text = c.text.push(self.lease.tokenizer(), token.id)?;
        let stopped = c.text.stopped().is_some();
        let events = c.events(text);
        self.reasoning += usize::from(before || reasons(c));
        self.pending.push_back(Step::Piece { choice, events, token: Some(token) });
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
        let mut events = c.events(text);
        let cut = c.text.stopped().is_none()
            && matches!(finish, Finish::Length | Finish::Deadline | Finish::Aborted);
        events.extend(c.parser.iter_mut().flat_map(|p| p.finish(cut)));
        let finish = match finish {
            _ if c.text.stopped().is_some() => Finish::Stop,
            Finish::Stop if c.parser.as_ref().is_some_and(|p| p.calls() > 0) => Finish::ToolCalls,
            finish => finish,
        };
        if !events.is_empty() {
            self.pending.push_back(Step::Piece { choice, events, token: None });
        }
        self.pending.push_back(Step::Finished { choice, finish });
    }
}

fn finish(reason: FinishReason) -> Finish {
    match reason {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length | FinishReason::ContextFull => Finish::Length,
        FinishReason::Repetition => Finish::Repetition,
        FinishReason::Deadline => Finish::Deadline,
        FinishReason::Aborted => Finish::Aborted,
    }
}

/// A token's text, whatever its bytes.
pub(crate) fn token_text(tokenizer: &Tokenizer, id: u32) -> (String, Vec<u8>) {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}
