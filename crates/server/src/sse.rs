//! Answers as they come: server-sent events, numbered and with keep-alives, or lines of JSON; and an end that is an error
//! where there was one.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;

use crate::error::ApiError;
use crate::generate::{Generating, Step};

/// A comment after so much silence, so that nobody between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

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

    fn bytes(&self, number: u64) -> Bytes {
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

/// The answer as an event stream. Dropping the response aborts the request.
pub(crate) fn response<P: Protocol>(generating: Generating, mut protocol: P) -> Response {
    let mut first = Vec::new();
    protocol.begin(&mut first);
    let state = (generating, protocol, first, 0u64, false);
    let events =
        stream::unfold(state, |(mut generating, mut protocol, mut ready, mut number, mut over)| async move {
            while ready.is_empty() {
                if over {
                    return None;
                }
                let step = match tokio::time::timeout(KEEP_ALIVE, generating.next()).await {
                    Err(_) if P::WIRE == Wire::Lines => continue, // there every line is part of the answer
                    Err(_) => {
                        if let Some(ping) = protocol.ping() {
                            ready.push(ping);
                            continue;
                        }
                        let ping = Bytes::from_static(b": ping\n\n");
                        return Some((
                            Ok::<_, Infallible>(ping),
                            (generating, protocol, ready, number, over),
                        ));
                    }
                    Ok(step) => step,
                };
                let result = match step {
                    None => {
                        over = true;
                        Ok(())
                    }
                    Some(Ok(step)) => {
                        over = matches!(step, Step::Done(_));
                        protocol.step(&generating, step, &mut ready)
                    }
                    Some(Err(e)) => Err(e),
                };
                if let Err(e) = result {
                    over = true;
                    protocol.error(&e, &mut ready);
                }
            }
            let mut bytes = Vec::new();
            for event in ready.drain(..) {
                match P::WIRE {
                    Wire::Events => bytes.extend_from_slice(&event.bytes(number)),
                    Wire::Lines => {
                        bytes.extend_from_slice(event.data.as_bytes());
                        bytes.push(b'\n');
                    }
                }
                number += 1;
            }
            Some((Ok(bytes.into()), (generating, protocol, ready, number, over)))
        });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    let kind = match P::WIRE {
        Wire::Events => "text/event-stream; charset=utf-8",
        Wire::Lines => "application/x-ndjson",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
