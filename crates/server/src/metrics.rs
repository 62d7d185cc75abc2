//! Prometheus metrics: the table of all names, and their values at the time of a scrape. `docs/metrics.md` is made of the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarrel_engine::{Class, EngineStats, Histogram};
use quarrel_runtime::process;

use crate::app::{App, Compat};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// How things stand.
    Gauge,
    /// Durations in buckets.
    Histogram,
}

impl Kind {
    /// Prometheus' word.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

enum Value {
    Number(f64),
    Histogram(Box<Histogram>),
    /// One number for each class of requests.
    Classes([f64; Class::ALL.len()]),
}

/// A metric of an engine; each has the label `model`.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it counts, and in which unit.
    pub help: &'static str,
    /// The name that vLLM has for it, which `--metrics-compat vllm` serves too.
    pub vllm: Option<&'static str>,
    value: fn(&EngineStats) -> Value,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&EngineStats) -> Value,
) -> Metric {
    Metric { name, kind, help, vllm: None, value }
}

const fn same(
    name: &'static str,
    vllm: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&EngineStats) -> Value,
) -> Metric {
    Metric { name, kind, help, vllm: Some(vllm), value }
}

fn n(v: u64) -> Value {
    Value::Number(v as f64)
}

fn share(part: usize, of: usize) -> Value {
    Value::Number(if of == 0 { 0.0 } else { part as f64 / of as f64 })
}

/// All metrics of an engine.
pub const ENGINE: &[Metric] = &[
    same(
        "quarrel_time_to_first_token_seconds",
        "vllm:time_to_first_token_seconds",
        Kind::Histogram,
        "From submission to the first token.",
        |s| Value::Histogram(Box::new(s.first_token)),
    ),
    same(
        "quarrel_inter_token_seconds",
        "vllm:inter_token_latency_seconds",
        Kind::Histogram,
        "Between the tokens of a sequence.",
        |s| Value::Histogram(Box::new(s.between_tokens)),
    ),
    same(
        "quarrel_queue_seconds",
        "vllm:request_queue_time_seconds",
        Kind::Histogram,
        "From submission to admission.",
        |s| Value::Histogram(Box::new(s.queue_time)),
    ),
    metric("quarrel_step_seconds", Kind::Histogram, "Steps of the engine.", |s| {
        Value::Histogram(Box::new(s.step))
    }),
    same(
        "quarrel_requests_running",
        "vllm:num_requests_running",
        Kind::Gauge,
        "Sequences that have a place in the cache.",
        |s| n(s.running as u64),
    ),
    same(
        "quarrel_requests_waiting",
        "vllm:num_requests_waiting",
        Kind::Gauge,
        "Sequences that wait for one.",
        |s| n(s.waiting as u64),
    ),
    metric("quarrel_requests_waiting_by_class", Kind::Gauge, "Sequences that wait, by class.", |s| {
        Value::Classes(s.waiting_by_class.map(|v| v as f64))
    }),
    metric("quarrel_requests_total", Kind::Counter, "Requests that came to the engine, by class.", |s| {
        Value::Classes(s.requests.map(|v| v as f64))
    }),
    metric("quarrel_requests_finished_total", Kind::Counter, "Requests that ended by themselves.", |s| {
        n(s.finished)
    }),
    metric(
        "quarrel_requests_cancelled_total",
        Kind::Counter,
        "Requests whose client left or whose stop string came.",
        |s| n(s.cancelled),
    ),
    metric(
        "quarrel_repetitions_total",
        Kind::Counter,
        "Requests with an answer that was ended because it repeated itself.",
        |s| n(s.repetitions),
    ),
    metric(
        "quarrel_guidance_rewinds_total",
        Kind::Counter,
        "Times that tokens of an answer were taken back: for banned texts, or to try again.",
        |s| n(s.rewinds),
    ),
    metric("quarrel_guidance_withdrawn_tokens_total", Kind::Counter, "Tokens that were taken back.", |s| {
        n(s.withdrawn_tokens)
    }),
    metric(
        "quarrel_guidance_rows_total",
        Kind::Counter,
        "Rows that guidance computed beside those of answers.",
        |s| n(s.guide_rows),
    ),
    metric("quarrel_requests_expired_total", Kind::Counter, "Requests whose deadline passed.", |s| {
        n(s.expired)
    }),
    metric("quarrel_requests_failed_total", Kind::Counter, "Requests that failed in the engine.", |s| {
        n(s.failed)
    }),
    same(
        "quarrel_prompt_tokens_total",
        "vllm:prompt_tokens_total",
        Kind::Counter,
        "Prompt tokens computed, those again after a preemption included.",
        |s| n(s.prompt_rows),
    ),
    same(
        "quarrel_generation_tokens_total",
        "vllm:generation_tokens_total",
        Kind::Counter,
        "Tokens made.",
        |s| n(s.sampled_tokens),
    ),
    same(
        "quarrel_prefix_cache_queries_total",
        "vllm:prefix_cache_queries_total",
        Kind::Counter,
        "Tokens looked up in the prefix cache.",
        |s| n(s.looked_up_tokens),
    ),
    same(
        "quarrel_prefix_cache_hits_total",
        "vllm:prefix_cache_hits_total",
        Kind::Counter,
        "Those that it had.",
        |s| n(s.cached_tokens),
    ),
    metric(
        "quarrel_prefix_cache_hits_below_total",
        Kind::Counter,
        "Those that came from memory or disk below the device.",
        |s| n(s.cached_below_tokens),
    ),
    same(
        "quarrel_kv_cache_usage_ratio",
        "vllm:kv_cache_usage_perc",
        Kind::Gauge,
        "Blocks of the KV cache in use, 0 to 1.",
        |s| share(s.blocks_used, s.blocks_total),
    ),
    metric("quarrel_kv_blocks_used", Kind::Gauge, "Blocks of 16 tokens in use.", |s| n(s.blocks_used as u64)),
    metric(
        "quarrel_kv_blocks_cached",
        Kind::Gauge,
        "Blocks that hold a prefix that can be found again.",
        |s| n(s.blocks_cached as u64),
    ),
    metric("quarrel_kv_blocks", Kind::Gauge, "All blocks.", |s| n(s.blocks_total as u64)),
    metric(
        "quarrel_state_copies",
        Kind::Gauge,
        "Copies of states that blocks own, of models whose sequences have states.",
        |s| n(s.snapshots as u64),
    ),
    metric("quarrel_state_copies_bytes", Kind::Gauge, "Their bytes.", |s| n(s.snapshot_bytes as u64)),
    metric("quarrel_state_copies_made_total", Kind::Counter, "Copies of states that were made.", |s| {
        n(s.snapshots_made)
    }),
    metric(
        "quarrel_state_copies_evicted_total",
        Kind::Counter,
        "Copies of states that made room for others.",
        |s| n(s.snapshots_evicted),
    ),
    metric("quarrel_kv_host_bytes", Kind::Gauge, "Bytes of blocks in memory below the device.", |s| {
        n(s.host_bytes as u64)
    }),
    metric("quarrel_kv_disk_bytes", Kind::Gauge, "Bytes of blocks on disk.", |s| n(s.disk_bytes)),
    same(
        "quarrel_preemptions_total",
        "vllm:num_preemptions_total",
        Kind::Counter,
        "Sequences sent back to the queue.",
        |s| n(s.preemptions),
    ),
    metric("quarrel_evictions_total", Kind::Counter, "Sequences shortened in the cache.", |s| n(s.evictions)),
    same(
        "quarrel_speculation_drafted_tokens_total",
        "vllm:spec_decode_num_draft_tokens_total",
        Kind::Counter,
        "Tokens guessed ahead and computed.",
        |s| n(s.drafted_tokens),
    ),
    same(
        "quarrel_speculation_accepted_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        Kind::Counter,
        "Those that came true.",
        |s| n(s.accepted_tokens),
    ),
    metric("quarrel_embedded_texts_total", Kind::Counter, "Texts embedded.", |s| n(s.embedded_texts)),
    metric("quarrel_embedded_tokens_total", Kind::Counter, "Their tokens.", |s| n(s.embedded_tokens)),
    metric("quarrel_steps_total", Kind::Counter, "Steps of the engine.", |s| n(s.steps)),
    metric("quarrel_device_errors_total", Kind::Counter, "Times that the device failed in a step.", |s| {
        n(s.device_errors)
    }),
    metric("quarrel_adapters", Kind::Gauge, "LoRA adapters in memory.", |s| n(s.adapters as u64)),
    metric("quarrel_adapter_bytes", Kind::Gauge, "Their bytes.", |s| n(s.adapter_bytes as u64)),
];

/// Metrics of the server: name, kind, help, labels.
pub const SERVER: &[(&str, Kind, &str, &str)] = &[
    (
        "quarrel_http_requests_total",
        Kind::Counter,
        "HTTP responses, by route, method and status.",
        "route, method, status",
    ),
    (
        "quarrel_http_request_seconds",
        Kind::Histogram,
        "From a request's head to the head of its response.",
        "route",
    ),
    ("quarrel_errors_total", Kind::Counter, "Responses with an error, by its kind.", "kind"),
    ("quarrel_http_connections", Kind::Gauge, "Open connections.", ""),
    ("quarrel_tls_handshakes_failed_total", Kind::Counter, "Connections on which TLS was not agreed on.", ""),
    ("quarrel_tls_reloads_failed_total", Kind::Counter, "Times that a changed certificate was no good.", ""),
    ("quarrel_audit_lines_total", Kind::Counter, "Lines of the audit log that were written.", ""),
    ("quarrel_audit_lost_total", Kind::Counter, "Lines that could not be written.", ""),
    ("quarrel_trace_spans_total", Kind::Counter, "Spans that the collector of traces took.", ""),
    ("quarrel_trace_spans_lost_total", Kind::Counter, "Spans that it did not take in time.", ""),
    ("quarrel_websockets", Kind::Gauge, "Open WebSockets.", ""),
    ("quarrel_streams_held", Kind::Gauge, "Streams that may be come back to (`X-Quarrel-Resume`).", ""),
    ("quarrel_streams_held_bytes", Kind::Gauge, "Bytes of their events.", ""),
    ("quarrel_streams_resumed_total", Kind::Counter, "Times that a client came back to a stream.", ""),
    (
        "quarrel_streams_abandoned_total",
        Kind::Counter,
        "Streams that were ended because nobody came back in time.",
        "",
    ),
    ("quarrel_models_loaded", Kind::Gauge, "Models in memory.", ""),
    ("quarrel_process_resident_bytes", Kind::Gauge, "Resident memory of the process.", ""),
    ("quarrel_build_info", Kind::Gauge, "1, with the version.", "version"),
];

/// Counts something while it lives.
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(crate) fn new(count: Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts of the server itself.
#[derive(Default)]
pub(crate) struct HttpCounts {
    inner: Mutex<Counts>,
    handshakes_failed: AtomicU64,
    reloads_failed: AtomicU64,
}

#[derive(Default)]
struct Counts {
    requests: BTreeMap<(String, String, u16), u64>,
    seconds: BTreeMap<String, Histogram>,
    errors: BTreeMap<&'static str, u64>,
}

impl HttpCounts {
    /// Counts a connection that came to nothing.
    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a certificate that could not be taken.
    pub(crate) fn reload_failed(&self) {
        self.reloads_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a response. `route` is a pattern of the router, so that there are few.
    pub(crate) fn observe(
        &self,
        route: &str,
        method: &str,
        status: u16,
        time: Duration,
        error: Option<&'static str>,
    ) {
        let mut c = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        *c.requests.entry((route.into(), method.into(), status)).or_default() += 1;
        c.seconds.entry(route.into()).or_default().observe(time);
        if let Some(kind) = error {
            *c.errors.entry(kind).or_default() += 1;
        }
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: Kind, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.word());
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "{name}{braces} {value}");
    }

    fn histogram(&mut self, name: &str, labels: &str, h: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut sum = 0;
        let bounds = Histogram::bounds().iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(h.counts()) {
            sum += count;
            self.value(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), sum as f64);
        }
        self.value(&format!("{name}_sum"), labels, h.sum());
        self.value(&format!("{name}_count"), labels, sum as f64);
    }
}

/// A label's value, quoted.
fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// The page that Prometheus reads.
pub(crate) fn render(app: &App) -> String {
    let mut page = Page(String::new());
    let models: Vec<_> = app.models.list().into_iter().filter_map(|s| s.live).collect();
    let stats: Vec<_> = models.iter().map(|l| (l.id.clone(), l.handle().stats())).collect();
    let compat = app.compat == Some(Compat::Vllm);
    for m in ENGINE {
        let vllm = m.vllm.filter(|_| compat).map(|name| (name, "model_name"));
        for (name, of) in [Some((m.name, "model")), vllm].into_iter().flatten() {
            page.head(name, m.kind, m.help);
            for (model, stats) in &stats {
                let labels = label(of, model);
                match (m.value)(stats) {
                    Value::Number(v) => page.value(name, &labels, v),
                    Value::Histogram(h) => page.histogram(name, &labels, &h),
                    Value::Classes(values) => {
                        for (class, v) in Class::ALL.iter().zip(values) {
                            page.value(name, &format!("{labels},{}", label("class", class.name())), v);
                        }
                    }
                }
            }
        }
    }
    let audit = app.listeners.audit.as_ref().map(|a| a.counts()).unwrap_or_default();
    let traces = app.listeners.traces.as_ref().map(|t| t.counts()).unwrap_or_default();
    let streams = app.streams.counts();
    let counts = app.counts.inner.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, kind, help, _) in SERVER {
        page.head(name, *kind, help);
        match *name {
            "quarrel_http_requests_total" => {
                for ((route, method, status), v) in &counts.requests {
                    let labels = [
                        label("route", route),
                        label("method", method),
                        label("status", &status.to_string()),
                    ];
                    page.value(name, &labels.join(","), *v as f64);
                }
            }
            "quarrel_http_request_seconds" => {
                for (route, h) in &counts.seconds {
                    page.histogram(name, &label("route", route), h);
                }
            }
            "quarrel_errors_total" => {
                for (kind, v) in &counts.errors {
                    page.value(name, &label("kind", kind), *v as f64);
                }
            }
            "quarrel_http_connections" => page.value(name, "", app.connections() as f64),
            "quarrel_tls_handshakes_failed_total" => {
                page.value(name, "", app.counts.handshakes_failed.load(Ordering::Relaxed) as f64);
            }
            "quarrel_tls_reloads_failed_total" => {
                page.value(name, "", app.counts.reloads_failed.load(Ordering::Relaxed) as f64);
            }
            "quarrel_audit_lines_total" => page.value(name, "", audit.0 as f64),
            "quarrel_audit_lost_total" => page.value(name, "", audit.1 as f64),
            "quarrel_trace_spans_total" => page.value(name, "", traces.0 as f64),
            "quarrel_trace_spans_lost_total" => page.value(name, "", traces.1 as f64),
            "quarrel_websockets" => page.value(name, "", app.sockets().load(Ordering::Relaxed) as f64),
            "quarrel_streams_held" => page.value(name, "", streams.held as f64),
            "quarrel_streams_held_bytes" => page.value(name, "", streams.bytes as f64),
            "quarrel_streams_resumed_total" => page.value(name, "", streams.resumed as f64),
            "quarrel_streams_abandoned_total" => page.value(name, "", streams.abandoned as f64),
            "quarrel_models_loaded" => page.value(name, "", models.len() as f64),
            "quarrel_process_resident_bytes" => {
                page.value(name, "", process::rss_bytes().unwrap_or(0) as f64);
            }
            _ => page.value(name, &label("version", env!("CARGO_PKG_VERSION")), 1.0),
        }
    }
    page.0
}
