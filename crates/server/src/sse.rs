//! Answers as they come: server-sent events, numbered and with keep-alives, or lines of JSON; and an end that is an error
//! where there was one.

use std::convert::Infallible;
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde_json::Value;

use crate::error::ApiError;
use crate::generate::{Generating, Step};
use crate::resume::Keep;

/// A comment after so much silence, so that nobody between takes the connection for dead.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// That comment.
pub(crate) const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// One event.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// `event:`, where a protocol names its events.
    pub(crate) name: Option<&'static str>,
    pub(crate) data: String,
}

impl Sent {
    /// An event with JSON.
    pub(crate) fn json(value: &Value) -> Sent {
        Sent { name: None, data: value.to_string() }
    }

    /// A named event with JSON.
    pub(crate) fn named(name: &'static str, value: &Value) -> Sent {
        Sent { name: Some(name), data: value.to_string() }
    }

    fn bytes(&self, wire: Wire, number: u64) -> Bytes {
        if wire == Wire::Lines {
            return format!("{}\n", self.data).into();
        }
        let mut out = format!("id: {number}\n");
        if let Some(name) = self.name {
            out += &format!("event: {name}\n");
        }
        // JSON has no line breaks of its own, other texts may.
        for line in self.data.split('\n') {
            out += &format!("data: {line}\n");
        }
        out.push('\n');
        out.into()
    }
}

/// How events are put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Server-sent events.
    Events,
    /// One line of JSON each.
    Lines,
}

/// How a protocol writes an answer as events.
pub(crate) trait Protocol: Send + 'static {
    const WIRE: Wire = Wire::Events;

    /// What is sent after a silence, where the protocol has an event for it; else it is a comment.
    fn ping(&self) -> Option<Sent> {
        None
    }

    /// Before the first step.
    fn begin(&mut self, out: &mut Vec<Sent>);
    /// For one step.
    fn step(&mut self, generating: &Generating, step: Step, out: &mut Vec<Sent>) -> Result<(), ApiError>;
    /// After an error; nothing follows.
    fn error(&mut self, error: &ApiError, out: &mut Vec<Sent>);
}

/// What comes next of an answer.
pub(crate) enum Next {
    /// Events, each as it goes over the wire.
    Events(Vec<Bytes>),
    /// Nothing came for a while.
    Quiet,
    /// No more comes.
    Over,
}

/// The events of a request, numbered. Dropping it aborts the request.
pub(crate) struct Source<P> {
    generating: Generating,
    protocol: P,
    begun: bool,
    over: bool,
    number: u64,
}

impl<P: Protocol> Source<P> {
    pub(crate) fn new(generating: Generating, protocol: P) -> Source<P> {
        Source { generating, protocol, begun: false, over: false, number: 0 }
    }

    /// The next events, or that there was a silence.
    pub(crate) async fn next(&mut self) -> Next {
        let mut ready = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            self.protocol.begin(&mut ready);
        }
        while ready.is_empty() {
            if self.over {
                return Next::Over;
            }
            let step = match tokio::time::timeout(KEEP_ALIVE, self.generating.next()).await {
                Err(_) if P::WIRE == Wire::Lines => continue, // there every line is part of the answer
                Err(_) => {
                    let Some(ping) = self.protocol.ping() else { return Next::Quiet };
                    ready.push(ping);
                    continue;
                }
                Ok(step) => step,
            };
            let result = match step {
                None => {
                    self.over = true;
                    Ok(())
                }
                Some(Ok(step)) => {
                    self.over = matches!(step, Step::Done(_));
                    self.protocol.step(&self.generating, step, &mut ready)
                }
                Some(Err(e)) => Err(e),
            };
            if let Err(e) = result {
                self.over = true;
                self.protocol.error(&e, &mut ready);
            }
        }
        let first = self.number;
        self.number += ready.len() as u64;
        Next::Events(ready.iter().zip(first..).map(|(event, n)| event.bytes(P::WIRE, n)).collect())
    }
}

/// The answer as an event stream. Dropping the response aborts the request, unless it is kept for one who comes back.
pub(crate) fn response<P: Protocol>(
    keep: Option<Keep>,
    generating: Generating,
    protocol: P,
) -> Result<Response, ApiError> {
    let source = Source::new(generating, protocol);
    if let Some(keep) = keep {
        return keep.start(source);
    }
    let events = stream::unfold(source, |mut source| async {
        let bytes = match source.next().await {
            Next::Events(events) => events.concat().into(),
            Next::Quiet => PING,
            Next::Over => return None,
        };
        Some((Ok::<_, Infallible>(bytes), source))
    });
    Ok(answer(P::WIRE, events))
}

/// The response around a stream of events.
pub(crate) fn answer<E: Into<BoxError>>(
    wire: Wire,
    events: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Response {
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    let kind = match wire {
        Wire::Events => "text/event-stream; charset=utf-8",
        Wire::Lines => "application/x-ndjson",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
