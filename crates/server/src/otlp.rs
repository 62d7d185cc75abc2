//! Traces for a collector: spans as OpenTelemetry's OTLP, JSON over HTTP. Requests hand them over without waiting; a thread
//! sends them in batches, and what the collector cannot take in time is dropped and counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// Requests whose spans may wait.
const QUEUE: usize = 2048;
/// Spans sent at once.
const BATCH: usize = 512;
/// How long spans wait for others.
const WAIT: Duration = Duration::from_secs(1);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where traces go.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The collector's address, to which `/v1/traces` is added.
    pub endpoint: String,
    /// `NAME=VALUE`, such as a key of the collector.
    pub headers: Vec<String>,
}

/// OpenTelemetry's kinds, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpanKind {
    Internal = 1,
    Server = 2,
}

/// Something that took time.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) trace: u128,
    pub(crate) id: u64,
    pub(crate) parent: Option<u64>,
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) begin: SystemTime,
    pub(crate) end: SystemTime,
    pub(crate) attributes: Map<String, Value>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    pub(crate) state: Option<String>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
    /// The server ends: a collector that is not there is not waited for again and again.
    closing: AtomicBool,
}

/// The way to a collector.
#[derive(Debug)]
pub struct Traces {
    counts: Arc<Counts>,
    sender: Mutex<Option<SyncSender<Vec<Span>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Traces {
    /// Starts the thread that sends. The collector need not be there yet.
    pub fn start(settings: &TraceSettings) -> Result<Traces> {
        let base = settings.endpoint.trim_end_matches('/');
        let url = if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") };
        let uri: ureq::http::Uri =
            url.parse().with_context(|| format!("--otlp-endpoint {base}: this is no address"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            bail!(
                "--otlp-endpoint {base}: http://HOST:PORT or https://.. is needed; collectors listen on 4318"
            );
        }
        let mut headers = Vec::new();
        for header in &settings.headers {
            let (name, value) = header.split_once('=').context("--otlp-header: NAME=VALUE is needed")?;
            let good = ureq::http::HeaderName::try_from(name).is_ok()
                && ureq::http::HeaderValue::try_from(value).is_ok();
            if !good {
                bail!("--otlp-header {name}: this is no header");
            }
            headers.push((name.to_owned(), value.to_owned()));
        }
        let counts = Arc::new(Counts::default());
        let (sender, receiver) = sync_channel(QUEUE);
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build();
        let exporter =
            Exporter { agent: config.into(), url, headers, counts: counts.clone(), failing: false };
        let thread = std::thread::Builder::new().name("traces".into()).spawn(move || exporter.run(&receiver));
        let thread = thread.context("cannot start the thread of the traces")?;
        Ok(Traces { counts, sender: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Has spans sent; never waits.
    pub(crate) fn send(&self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.as_ref().is_none_or(|s| s.try_send(spans).is_err()) {
            self.counts.lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Spans that the collector took, and that were dropped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.counts.sent.load(Ordering::Relaxed), self.counts.lost.load(Ordering::Relaxed))
    }

    /// Sends what waits, and ends; what is left when the collector fails once is dropped.
    pub fn close(&self) {
        self.counts.closing.store(true, Ordering::Release);
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It cannot panic; if it did, that was said then.
            let _ = thread.join();
        }
    }
}

struct Exporter {
    agent: ureq::Agent,
    url: String,
    headers: Vec<(String, String)>,
    counts: Arc<Counts>,
    failing: bool,
}

impl Exporter {
    fn run(mut self, receiver: &Receiver<Vec<Span>>) {
        while let Ok(mut batch) = receiver.recv() {
            let until = Instant::now() + WAIT;
            while batch.len() < BATCH {
                match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(more) => batch.extend(more),
                    Err(_) => break,
                }
            }
            let result = self.post(&batch);
            let over = result.is_err() && self.counts.closing.load(Ordering::Acquire);
            self.count(batch.len() as u64, result);
            if over {
                let left: usize = receiver.try_iter().map(|s| s.len()).sum();
                self.counts.lost.fetch_add(left as u64, Ordering::Relaxed);
                return;
            }
        }
    }

    fn count(&mut self, spans: u64, result: Result<(), ureq::Error>) {
        match result {
            Ok(()) => {
                self.counts.sent.fetch_add(spans, Ordering::Relaxed);
                self.failing = false;
            }
            Err(e) => {
                self.counts.lost.fetch_add(spans, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(error = %e, url = self.url, "the collector takes no traces: they are dropped");
                }
            }
        }
    }

    fn post(&self, spans: &[Span]) -> Result<(), ureq::Error> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.send(document(spans).to_string()).map(drop)
    }
}

/// OTLP's document for spans.
fn document(spans: &[Span]) -> Value {
    let resource = json!({ "service.name": "quarrel", "service.version": env!("CARGO_PKG_VERSION") });
    let resource = resource.as_object().map(attributes).unwrap_or_default();
    let spans: Vec<Value> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": { "name": "quarrel", "version": env!("CARGO_PKG_VERSION") }, "spans": spans }],
    }] })
}

fn span(s: &Span) -> Value {
    let nanos = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    let mut value = json!({
        "traceId": format!("{:032x}", s.trace),
        "spanId": format!("{:016x}", s.id),
        "name": s.name,
        "kind": s.kind as u8,
        "startTimeUnixNano": nanos(s.begin),
        "endTimeUnixNano": nanos(s.end),
        "attributes": attributes(&s.attributes),
        "status": s.error.as_ref().map_or(json!({}), |e| json!({ "code": 2, "message": e })),
    });
    if let Some(parent) = s.parent {
        value["parentSpanId"] = format!("{parent:016x}").into();
    }
    if let Some(state) = &s.state {
        value["traceState"] = state.as_str().into();
    }
    value
}

/// OTLP's list; numbers of 64 bits are strings in its JSON.
fn attributes(all: &Map<String, Value>) -> Vec<Value> {
    let one = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::Bool(b) => json!({ "boolValue": b }),
            Value::Number(n) if n.is_i64() || n.is_u64() => json!({ "intValue": n.to_string() }),
            Value::Number(n) => json!({ "doubleValue": n }),
            Value::String(s) => json!({ "stringValue": s }),
            other => json!({ "stringValue": other.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_otlps_form() {
        let begin = UNIX_EPOCH + Duration::from_secs(3);
        let attributes = json!({ "a": "x", "n": 7, "b": true }).as_object().unwrap().clone();
        let s = Span {
            trace: 1,
            id: 2,
            parent: Some(3),
            name: "decode".into(),
            kind: SpanKind::Internal,
            begin,
            end: begin + Duration::from_nanos(5),
            attributes,
            error: Some("server_error".into()),
            state: Some("v=1".into()),
        };
        let made = document(&[s]);
        assert_eq!(
            made["resourceSpans"][0]["scopeSpans"][0]["spans"][0],
            json!({
                "traceId": "00000000000000000000000000000001", "spanId": "0000000000000002", "name": "decode", "kind": 1,
                "startTimeUnixNano": "3000000000", "endTimeUnixNano": "3000000005",
                "attributes": [
                    { "key": "a", "value": { "stringValue": "x" } },
                    { "key": "n", "value": { "intValue": "7" } },
                    { "key": "b", "value": { "boolValue": true } },
                ],
                "status": { "code": 2, "message": "server_error" }, "parentSpanId": "0000000000000003", "traceState": "v=1",
            })
        );
    }

    #[test]
    fn an_address_that_is_none_is_an_error_and_a_collector_that_is_not_there_is_none() {
        let settings = |endpoint: &str, headers: &[&str]| TraceSettings {
            endpoint: endpoint.into(),
            headers: headers.iter().map(ToString::to_string).collect(),
        };
        for (endpoint, headers) in [
            ("collector", &[][..]),
            ("ftp://x", &[]),
            ("http://", &[]),
            ("http://x", &["a"]),
            ("http://x", &["a b=c"]),
        ] {
            assert!(Traces::start(&settings(endpoint, headers)).is_err(), "{endpoint} {headers:?}");
        }
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let traces = Traces::start(&settings(&format!("http://{nobody}/"), &["a=b"])).unwrap();
        let begin = UNIX_EPOCH;
        let one = Span {
            trace: 1,
            id: 2,
            parent: None,
            name: "x".into(),
            kind: SpanKind::Server,
            begin,
            end: begin,
            attributes: Map::new(),
            error: None,
            state: None,
        };
        traces.send(vec![one.clone(), one]);
        traces.close();
        assert_eq!(traces.counts(), (0, 2));
    }
}
