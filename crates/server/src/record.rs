//! What is told of a request once all of it is over, to the audit log and to the collector of traces. The request, its
//! answers in the engine and the body that is sent share one [`Record`]; the last of them to end tells it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Waker, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use quarrel_engine::RequestStats;
use serde_json::{Map, Value, json};

use crate::audit::Audit;
use crate::error::Failure;
use crate::listen::Remote;
use crate::otlp::{Span, SpanKind, Traces};
use crate::trace::{Context, new_span};

/// Answers of a request that are told one by one; of more only the sums.
const GENERATIONS_MAX: usize = 64;
/// The most of a request's body that is kept for the audit log.
const PROMPT_MAX: usize = 1 << 20;

/// Who is told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listeners {
    pub(crate) audit: Option<Arc<Audit>>,
    pub(crate) traces: Option<Arc<Traces>>,
}

/// One request's work in the engine.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    pub(crate) model: String,
    pub(crate) begun: SystemTime,
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    pub(crate) reasoning: usize,
    /// Once it is over.
    pub(crate) stats: Option<RequestStats>,
    /// The kind of error that ended it.
    pub(crate) error: Option<&'static str>,
}

/// A request as it is told.
#[derive(Debug)]
pub(crate) struct Record {
    listeners: Listeners,
    begun: SystemTime,
    started: Instant,
    /// Its place in a trace, if it has one.
    pub(crate) context: Option<Context>,
    id: String,
    remote: Option<std::net::SocketAddr>,
    method: String,
    route: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    key: Option<Arc<str>>,
    status: u16,
    error: Option<&'static str>,
    /// The client was gone before all of the answer was sent.
    left: bool,
    body: Vec<u8>,
    cut: bool,
    generations: Vec<Generation>,
    /// Tokens of prompts and of answers beyond [`GENERATIONS_MAX`].
    more: [usize; 2],
}

impl Generation {
    /// Work that begins now and makes no tokens: a text is read, for its vector or for its own probabilities.
    pub(crate) fn of_prompt(model: &str, tokens: usize) -> Generation {
        Generation {
            model: model.to_owned(),
            begun: SystemTime::now(),
            prompt: tokens,
            completion: 0,
            reasoning: 0,
            stats: None,
            error: None,
        }
    }
}

impl Listeners {
    /// A record of a request, if anybody wants one.
    pub(crate) fn record(&self, request: &Request, id: &str, route: &str) -> Option<Arc<Record>> {
        let mut context = Context::of(request.headers());
        if self.traces.is_some() && context.is_none() {
            context = Some(Context::new());
        }
        if self.audit.is_none() && self.traces.is_none() {
            return None;
        }
        Some(Arc::new(Record {
            listeners: self.clone(),
            begun: SystemTime::now(),
            started: Instant::now(),
            context,
            id: id.to_owned(),
            remote: request.extensions().get::<Remote>().map(|r| r.0),
            method: request.method().to_string(),
            route: route.to_owned(),
            inner: Mutex::default(),
        }))
    }
}

impl Record {
    fn with(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes whose key it is.
    pub(crate) fn key(&self, key: &Arc<str>) {
        self.with(|inner| inner.key = Some(key.clone()).filter(|k| !k.is_empty()));
    }

    /// Whether the body is to be kept.
    pub(crate) fn wants_body(&self) -> bool {
        self.listeners.audit.as_ref().is_some_and(|a| a.prompts())
    }

    /// Keeps a piece of the body.
    pub(crate) fn body(&self, bytes: &[u8]) {
        self.with(|inner| {
            let room = PROMPT_MAX.saturating_sub(inner.body.len());
            inner.cut |= bytes.len() > room;
            inner.body.extend_from_slice(&bytes[..bytes.len().min(room)]);
        });
    }

    /// Notes work in the engine that is over.
    pub(crate) fn generated(&self, generation: Generation) {
        self.with(|inner| {
            if inner.generations.len() < GENERATIONS_MAX {
                inner.generations.push(generation);
            } else {
                inner.more[0] += generation.prompt;
                inner.more[1] += generation.completion;
            }
        });
    }

    /// Notes the answer's head, and hears of the body's end.
    pub(crate) fn answered(self: Arc<Self>, response: Response) -> Response {
        self.with(|inner| {
            inner.status = response.status().as_u16();
            inner.error = response.extensions().get::<Failure>().map(|f| f.kind);
        });
        response.map(|body| Body::new(Sent { body: Some(body), record: self, over: false }))
    }

    fn line(&self, inner: &Inner) -> String {
        let since = self.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = quarrel_store::iso(since.as_millis() as i64);
        let time = format!("{}.{:03}Z", seconds.trim_end_matches('Z'), since.subsec_millis());
        let ms = |d: Duration| (d.as_secs_f64() * 1e4).round() / 10.0;
        let sum = |of: fn(&Generation) -> usize| inner.generations.iter().map(of).sum::<usize>();
        let stats = || inner.generations.iter().filter_map(|g| g.stats.as_ref());
        let error = inner.error.or_else(|| inner.generations.iter().find_map(|g| g.error));
        let mut line = json!({
            "time": time,
            "request_id": self.id,
            "trace_id": self.context.as_ref().map(|c| format!("{:032x}", c.trace)),
            "key": inner.key.as_deref(),
            "remote": self.remote,
            "method": self.method,
            "route": self.route,
            "model": inner.generations.first().map(|g| &g.model),
            "status": inner.status,
            "outcome": if error.is_some() { "error" } else if inner.left { "left" } else { "ok" },
            "error": error,
            "prompt_tokens": sum(|g| g.prompt) + inner.more[0],
            "cached_tokens": stats().map(|s| s.cached_tokens).sum::<usize>(),
            "completion_tokens": sum(|g| g.completion) + inner.more[1],
            "reasoning_tokens": sum(|g| g.reasoning),
            "queue_ms": stats().next().map(|s| ms(s.queue)),
            "first_token_ms": stats().next().map(|s| ms(s.ttft)),
            "total_ms": ms(self.started.elapsed()),
        });
        if self.wants_body() && !inner.body.is_empty() {
            line["request"] = match serde_json::from_slice(&inner.body).ok().filter(|_| !inner.cut) {
                Some(value) => value,
                None => String::from_utf8_lossy(&inner.body).into(),
            };
            line["request_cut"] = inner.cut.into();
        }
        line.to_string()
    }

    fn spans(&self, inner: &Inner, context: &Context) -> Vec<Span> {
        let error = inner.error.or_else(|| inner.generations.iter().find_map(|g| g.error));
        let attributes = json!({
            "http.request.method": self.method,
            "http.route": self.route,
            "http.response.status_code": inner.status,
            "client.address": self.remote.map(|r| r.ip().to_string()),
            "quarrel.request_id": self.id,
            "quarrel.key": inner.key.as_deref(),
            "quarrel.client_left": inner.left,
            "error.type": error,
        });
        let mut spans = vec![Span {
            trace: context.trace,
            id: context.span,
            parent: context.parent,
            name: format!("{} {}", self.method, self.route),
            kind: SpanKind::Server,
            begin: self.begun,
            end: self.begun + self.started.elapsed(),
            attributes: object(attributes),
            // A client's mistake is no fault of the server.
            error: error.filter(|_| inner.status >= 500 || inner.status < 400).map(str::to_owned),
            state: context.state.clone(),
        }];
        for g in &inner.generations {
            let Some(stats) = &g.stats else { continue };
            let admitted = g.begun + stats.queue;
            let first = admitted + stats.prefill;
            let of = |more: Value| {
                let mut all = object(json!({ "gen_ai.request.model": g.model }));
                all.extend(object(more));
                all
            };
            let parts = [
                ("queue", g.begun, admitted, of(json!({}))),
                (
                    "prefill",
                    admitted,
                    first,
                    of(
                        json!({ "gen_ai.usage.input_tokens": g.prompt, "quarrel.cached_tokens": stats.cached_tokens }),
                    ),
                ),
                (
                    "decode",
                    first,
                    first + stats.decode,
                    of(json!({
                        "gen_ai.usage.output_tokens": g.completion, "quarrel.reasoning_tokens": g.reasoning,
                        "quarrel.drafted_tokens": stats.drafted_tokens, "quarrel.accepted_tokens": stats.accepted_tokens,
                    })),
                ),
            ];
            spans.extend(parts.map(|(name, begin, end, attributes)| Span {
                trace: context.trace,
                id: new_span(),
                parent: Some(context.span),
                name: name.to_owned(),
                kind: SpanKind::Internal,
                begin,
                end,
                attributes,
                error: None,
                state: None,
            }));
        }
        spans
    }
}

/// The values that there are.
fn object(value: Value) -> Map<String, Value> {
    let Value::Object(all) = value else { return Map::new() };
    all.into_iter().filter(|(_, v)| !v.is_null()).collect()
}

impl Drop for Record {
    fn drop(&mut self) {
        let inner = std::mem::take(self.inner.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Some(audit) = &self.listeners.audit {
            audit.write(self.line(&inner));
        }
        if let (Some(traces), Some(context)) = (&self.listeners.traces, &self.context)
            && context.sampled
        {
            traces.send(self.spans(&inner, context));
        }
    }
}

/// The body of an answer, which tells whether all of it was taken.
struct Sent {
    body: Option<Body>,
    record: Arc<Record>,
    over: bool,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        waker: &mut Waker<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(waker);
        self.over |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.over && !self.is_end_stream() {
            self.record.with(|inner| inner.left = true);
        }
        // What it holds of the engine says its last before the record is told.
        drop(self.body.take());
    }
}
