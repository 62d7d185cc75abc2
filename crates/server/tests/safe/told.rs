//! What is told of requests: the audit log, and traces for a collector in this process.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use quarrel_server::{Audit, AuditSettings, TraceSettings, Traces};
use serde_json::{Value, json};

use crate::common::{ENCODER, MODEL, call, start_with};
use crate::wire::{connect, exchange, header, request, status};

fn audited(path: &Path, prompts: bool) -> SocketAddr {
    let settings = AuditSettings { path: path.to_owned(), bytes_max: 1 << 20, files: 1, prompts };
    let audit = Arc::new(Audit::open(settings).unwrap());
    start_with(move |config| {
        config.keys = vec!["secret".into()];
        config.audit = Some(audit);
    })
}

/// Lines of a log, once there are so many.
fn lines(path: &Path, count: usize) -> Vec<Value> {
    for _ in 0..1200 {
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        if lines.len() >= count {
            return lines;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no {count} lines: {}", fs::read_to_string(path).unwrap());
}

fn ask(stream: bool) -> Value {
    json!({ "model": MODEL, "messages": [{ "role": "user", "content": "a quiet word" }], "max_tokens": 3,
        "temperature": 0, "ignore_eos": true, "stream": stream })
}

#[test]
fn each_request_is_a_line_without_its_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let at = audited(&path, false);
    let chat = "/v1/chat/completions";
    assert_eq!(call(at, "GET", "/health", None, None).status, 200);
    assert_eq!(call(at, "POST", chat, Some("secret"), Some(&ask(false))).status, 200);
    lines(&path, 1);
    assert_eq!(call(at, "POST", chat, Some("secret"), Some(&ask(true))).status, 200);
    lines(&path, 2);
    assert_eq!(call(at, "POST", chat, Some("wrong"), Some(&ask(true))).status, 401);
    lines(&path, 3);
    assert_eq!(call(at, "POST", "/v1/nothing", Some("secret"), Some(&json!({}))).status, 404);
    lines(&path, 4);
    let odd = json!({ "model": MODEL, "messages": [], "temprature": 1 });
    assert_eq!(call(at, "POST", chat, Some("secret"), Some(&odd)).status, 400);
    let all = lines(&path, 5);
    assert_eq!(all.len(), 5);
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("quiet") && !text.contains("secret\"") && !text.contains("temprature"), "{text}");
    for (line, (status, outcome, key, tokens)) in all.iter().zip([
        (200, "ok", json!("key 1"), 3),
        (200, "ok", json!("key 1"), 3),
        (401, "error", Value::Null, 0),
        (404, "error", json!("key 1"), 0),
        (400, "error", json!("key 1"), 0),
    ]) {
        assert_eq!(
            (&line["status"], &line["outcome"], &line["key"]),
            (&json!(status), &json!(outcome), &key),
            "{line}"
        );
        assert_eq!(line["completion_tokens"], tokens, "{line}");
        assert_eq!(line["model"], if tokens > 0 { json!(MODEL) } else { Value::Null }, "{line}");
        assert_eq!(line["prompt_tokens"].as_u64().unwrap() > 0, tokens > 0, "{line}");
        assert_eq!(line["first_token_ms"].is_f64(), tokens > 0, "{line}");
        assert!(
            line["remote"].as_str().unwrap().starts_with("127.0.0.1:") && line["total_ms"].is_f64(),
            "{line}"
        );
        assert!(line["request_id"].as_str().unwrap().starts_with("req_"), "{line}");
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
    }
    assert_eq!(all[2]["error"], "authentication_error");
    let page = call(at, "GET", "/metrics", Some("secret"), None).text;
    assert!(
        page.contains("\nquarrel_audit_lines_total 5\n") && page.contains("\nquarrel_audit_lost_total 0\n")
    );
}

#[test]
fn texts_that_are_only_read_have_their_tokens_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let at = audited(&path, false);
    let score =
        json!({ "model": MODEL, "prompt": "a quiet word", "max_tokens": 0, "echo": true, "logprobs": 0 });
    let embed = json!({ "model": ENCODER, "input": ["a", "the town"] });
    let rerank = json!({ "model": ENCODER, "query": "a", "documents": ["b", "the town"] });
    let usage = |reply: &Value| reply["usage"]["prompt_tokens"].clone();
    for (i, (route, body)) in [
        ("/v1/completions", score),
        ("/v1/embeddings", embed),
        ("/v1/rerank", rerank),
        ("/api/embed", json!({ "model": ENCODER, "input": "the town" })),
    ]
    .into_iter()
    .enumerate()
    {
        let reply = call(at, "POST", route, Some("secret"), Some(&body));
        assert_eq!(reply.status, 200, "{route}: {}", reply.text);
        let line = lines(&path, i + 1).remove(i);
        let reply = reply.json();
        let tokens =
            if route.starts_with("/api") { reply["prompt_eval_count"].clone() } else { usage(&reply) };
        assert!(tokens.as_u64().unwrap() > 1, "{route}: {reply}");
        assert_eq!((&line["prompt_tokens"], &line["completion_tokens"]), (&tokens, &json!(0)), "{line}");
        assert_eq!((&line["model"], &line["outcome"]), (&body["model"], &json!("ok")), "{line}");
    }
    let long = json!({ "model": ENCODER, "input": "x ".repeat(5000) });
    assert_eq!(call(at, "POST", "/v1/embeddings", Some("secret"), Some(&long)).status, 400);
    assert_eq!(lines(&path, 5)[4]["outcome"], "error");
}

#[test]
fn a_client_that_leaves_is_told_of_and_prompts_are_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let at = audited(&path, true);
    let mut long = ask(true);
    long["max_tokens"] = 1500.into();
    let mut stream = connect(at);
    let bytes = long.to_string();
    stream
        .write_all(&request("POST", "/v1/chat/completions", &[("x-api-key", "secret")], bytes.as_bytes()))
        .unwrap();
    let mut begun = [0; 64];
    stream.read_exact(&mut begun).unwrap();
    drop(stream);
    let line = lines(&path, 1).remove(0);
    assert_eq!(
        (&line["status"], &line["outcome"], &line["request"]),
        (&json!(200), &json!("left"), &long),
        "{line}"
    );
    assert!(line["completion_tokens"].as_u64().unwrap() < 1500);
    let said = exchange(at, &request("POST", "/tokenize", &[("x-api-key", "secret")], b"{\"text\": \xff}"));
    assert_eq!(status(&said), 400);
    let line = lines(&path, 2).remove(1);
    assert!(line["request"].as_str().unwrap().starts_with("{\"text\": "), "{line}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_figure_and_the_service_goes_on() {
    let at = audited(Path::new("/dev/full"), false);
    for _ in 0..3 {
        assert_eq!(call(at, "POST", "/v1/chat/completions", Some("secret"), Some(&ask(false))).status, 200);
    }
    let lost = (0..1200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        let page = call(at, "GET", "/metrics", Some("secret"), None).text;
        let lost = page.lines().find_map(|l| l.strip_prefix("quarrel_audit_lost_total ")).unwrap();
        lost.parse::<f64>().unwrap() >= 3.0
    });
    assert!(lost);
}

/// Headers and body of a post.
type Posted = (HashMap<String, String>, Value);

/// A collector: gives the documents that are posted to it.
fn collector() -> (String, mpsc::Receiver<Posted>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    break;
                }
                assert_eq!(line.trim_end(), "POST /v1/traces HTTP/1.1");
                let mut headers = HashMap::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    let Some((name, value)) = line.trim_end().split_once(": ") else { break };
                    headers.insert(name.to_ascii_lowercase(), value.to_owned());
                }
                let mut body = vec![0; headers["content-length"].parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
                if tell.send((headers, serde_json::from_slice(&body).unwrap())).is_err() {
                    return;
                }
            }
        }
    });
    (address, told)
}

/// An attribute's value.
fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a str> {
    let value = &span["attributes"].as_array()?.iter().find(|a| a["key"] == key)?["value"];
    value.as_object()?.values().next()?.as_str()
}

#[test]
fn a_request_is_a_trace_of_queue_prefill_and_decode() {
    let (endpoint, told) = collector();
    let settings = TraceSettings { endpoint, headers: vec!["authorization=Bearer x".into()] };
    let traces = Arc::new(Traces::start(&settings).unwrap());
    let at = start_with(move |config| config.traces = Some(traces));
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let post = |context: &str| {
        let headers = [("traceparent", context), ("tracestate", "v=1")];
        exchange(at, &request("POST", "/v1/chat/completions", &headers, ask(true).to_string().as_bytes()))
    };
    // Not wanted by the caller: nothing comes of it, but the answer goes on with the trace.
    let quiet = post(&format!("00-{}-{parent}-00", trace.replace('4', "5")));
    assert!(header(&quiet, "traceparent").unwrap().starts_with(&format!("00-{}-", trace.replace('4', "5"))));
    let answer = post(&format!("00-{trace}-{parent}-01"));
    let context = header(&answer, "traceparent").unwrap();
    assert!(context.starts_with(&format!("00-{trace}-")) && !context.contains(parent), "{context}");
    let (headers, document) = told.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(
        (headers["content-type"].as_str(), headers["authorization"].as_str()),
        ("application/json", "Bearer x")
    );
    let resource = &document["resourceSpans"][0];
    assert_eq!(attribute(&resource["resource"], "service.name"), Some("quarrel"));
    let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<_> = spans.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POST /v1/chat/completions", "queue", "prefill", "decode"]);
    let id = context.split('-').nth(2).unwrap();
    assert_eq!(
        (&spans[0]["spanId"], &spans[0]["parentSpanId"], &spans[0]["traceState"]),
        (&json!(id), &json!(parent), &json!("v=1"))
    );
    assert_eq!(attribute(&spans[0], "http.response.status_code"), Some("200"));
    for span in spans {
        assert_eq!(span["traceId"], trace);
        let time = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(time("startTimeUnixNano") <= time("endTimeUnixNano"), "{span}");
    }
    for (at, key, wanted) in [(1, "gen_ai.request.model", MODEL), (3, "gen_ai.usage.output_tokens", "3")] {
        assert_eq!(attribute(&spans[at], key), Some(wanted));
    }
    assert!(attribute(&spans[2], "gen_ai.usage.input_tokens").unwrap().parse::<u32>().unwrap() > 0);
    assert!(spans[1..].iter().all(|s| s["parentSpanId"] == id && s["spanId"] != id));
    // One that begins here, and fails.
    let answer = exchange(at, &request("POST", "/v1/chat/completions", &[], b"{"));
    assert_eq!(status(&answer), 400);
    let (_, document) = told.recv_timeout(Duration::from_secs(60)).unwrap();
    let span = &document["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(attribute(span, "error.type"), Some("invalid_request_error"));
    assert!(
        span.get("parentSpanId").is_none()
            && header(&answer, "traceparent").unwrap().contains(span["traceId"].as_str().unwrap())
    );
}
