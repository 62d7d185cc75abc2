//! Clients that are slow, and requests that are wrong in their bytes or their depth: an answer or an end, and the server goes on.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use quarrel_server::Times;
use serde_json::{Value, json};

use crate::common::{MODEL, call, post, server, start_with};
use crate::wire::{connect, exchange, header, request, rest, status};

/// A server with little patience.
fn hasty() -> SocketAddr {
    static HASTY: OnceLock<SocketAddr> = OnceLock::new();
    *HASTY.get_or_init(|| {
        start_with(|config| {
            let short = Duration::from_millis(400);
            config.times = Times { head: short, body: short, write: short, ..Times::default() };
        })
    })
}

fn lives(at: SocketAddr) {
    assert_eq!(call(at, "GET", "/health", None, None).status, 200);
}

#[test]
fn a_head_that_does_not_come_ends_the_connection() {
    for begun in ["", "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-slow: "] {
        let mut stream = connect(hasty());
        stream.write_all(begun.as_bytes()).unwrap();
        let said = rest(&mut stream);
        assert!(said.is_empty() || status(&said) == 408, "{said}");
    }
    // A connection that is kept ends the same way after its answer.
    let mut stream = connect(hasty());
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert_eq!(status(&rest(&mut stream)), 200);
}

#[test]
fn a_body_that_does_not_come_is_answered_with_408() {
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{\"messages\":";
    let chunked =
        b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"mes\r\n";
    for begun in [&head[..], &chunked[..]] {
        let said = exchange(hasty(), begun);
        assert_eq!(status(&said), 408, "{said}");
        assert!(said.contains("--body-timeout") && header(&said, "connection") == Some("close"), "{said}");
    }
    lives(hasty());
}

#[test]
fn a_reader_that_takes_nothing_loses_its_connection() {
    // More than the buffers of both ends hold, none of it read.
    let path = "/openapi.json";
    let mut stream = connect(hasty());
    let ask = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").repeat(400);
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server stops reading when it cannot write, and ends: then writing fails too.
    let _ = stream.write_all(ask.as_bytes());
    let gone = (0..400).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        let page = call(hasty(), "GET", "/metrics", None, None).text;
        let open = page.lines().find_map(|l| l.strip_prefix("quarrel_http_connections ")).unwrap();
        open.parse::<f64>().unwrap() <= 1.0
    });
    assert!(gone, "the connection is still open");
    let mut taken = 0;
    let mut piece = vec![0; 1 << 16];
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        taken += n;
    }
    let whole = call(hasty(), "GET", path, None, None).text.len();
    assert!(taken < 400 * whole, "all of it came");
}

#[test]
fn bytes_that_are_no_text_are_errors() {
    let post = |path: &str, body: &[u8]| exchange(server(), &request("POST", path, &[], body));
    let mut odd =
        json!({ "model": MODEL, "messages": [{ "role": "user", "content": "X" }] }).to_string().into_bytes();
    let x = odd.iter().position(|b| *b == b'X').unwrap();
    odd[x] = 0xff;
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat", "/tokenize"] {
        for body in [&odd[..], b"\xff\xfe", b"{\"model\": \"\\ud800\"}", b"nul\0"] {
            let said = post(path, body);
            assert_eq!(status(&said), 400, "{path} {body:?}: {said}");
        }
    }
    // In the head of a request.
    for (bytes, wanted) in [
        (&b"GET /v1/models/%ff%fe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"[..], 400..=404),
        (b"GET /v1/conversations?limit=%ff HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 400..=400),
        (
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-request-id: \xff\xfe\r\nconnection: close\r\n\r\n",
            200..=200,
        ),
        (b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-api-key: \xff\r\nconnection: close\r\n\r\n", 200..=200),
        (b"GET /v1/\xff HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 400..=404),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400..=400),
    ] {
        let said = exchange(server(), bytes);
        assert!(wanted.contains(&status(&said)), "{:?}: {said}", String::from_utf8_lossy(bytes));
    }
    lives(server());
}

#[test]
fn heads_and_bodies_have_a_longest_length() {
    let long = "x".repeat(1 << 20);
    let mut stream = connect(server());
    // The server may be gone before all of it was sent, and what it said with it.
    let _ = stream.write_all(&request("GET", "/v1/models", &[("x-long", &long)], b""));
    let said = rest(&mut stream);
    assert!(said.is_empty() || status(&said) == 431, "{said}");
    let said = exchange(
        server(),
        &request("POST", "/tokenize", &[("content-type", "application/json")], &vec![b' '; (1 << 20) + 1]),
    );
    assert!(status(&said) == 413 && said.contains("--max-body"), "{said}");
    // One that only says that it is long.
    let claim =
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 99999999999\r\n\r\n";
    assert_eq!(status(&exchange(server(), claim)), 413);
    lives(server());
}

fn nested(depth: usize, inner: Value, around: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(inner, |value, _| around(value))
}

#[test]
fn depth_has_a_bound_wherever_it_comes() {
    let deep = |open: &str, close: &str, n: usize| open.repeat(n) + "0" + &close.repeat(n);
    let messages = r#"[{"role":"user","content":"a"}]"#;
    for (field, value) in [
        ("logit_bias", deep("{\"1\":", "}", 100_000)),
        ("response_format", deep("[", "]", 100_000)),
        ("metadata", deep("{\"a\":", "}", 10_000)),
    ] {
        let body = format!("{{\"model\":\"{MODEL}\",\"messages\":{messages},\"{field}\":{value}}}");
        let said = exchange(server(), &request("POST", "/v1/chat/completions", &[], body.as_bytes()));
        assert_eq!(status(&said), 400, "{field}: {}", &said[..said.len().min(300)]);
    }
    // As deep as JSON may be here, and more alternatives than can be tried.
    let object = |inner| json!({ "type": "object", "properties": { "a": inner }, "required": ["a"], "additionalProperties": false });
    let any = |inner: Value| json!({ "anyOf": [inner.clone(), { "type": "array", "items": inner }] });
    for schema in [
        nested(35, json!({ "type": "boolean" }), object),
        nested(14, json!({ "type": "boolean" }), any),
        json!({ "$ref": "#" }),
        json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
        json!({ "type": "string", "pattern": "(a*)*(b|a?){1000}c{5000}" }),
        json!({ "type": "array", "minItems": 4_000_000_000u64 }),
        json!({ "enum": (0..20_000).map(|i| i.to_string()).collect::<Vec<_>>() }),
    ] {
        let body = json!({
            "model": MODEL, "messages": [{ "role": "user", "content": "a" }], "max_tokens": 4, "temperature": 0,
            "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } },
        });
        let reply = post("/v1/chat/completions", &body);
        assert!([200, 400].contains(&reply.status), "{}: {}", reply.status, reply.text);
    }
    for regex in
        ["(a{1000}){1000}{1000}", "((((((((((a*)*)*)*)*)*)*)*)*)*)*b", "(?=x)y", "(", "[\\p{L}\\p{N}]{60000}"]
    {
        let body =
            json!({ "model": MODEL, "prompt": "a", "max_tokens": 4, "temperature": 0, "regex": regex });
        let reply = post("/v1/completions", &body);
        assert!([200, 400].contains(&reply.status), "{regex}: {} {}", reply.status, reply.text);
    }
    let grammar = "start: ".to_owned() + &"(".repeat(20_000) + "\"a\"" + &")".repeat(20_000);
    let reply = post(
        "/v1/completions",
        &json!({ "model": MODEL, "prompt": "a", "max_tokens": 4, "grammar": grammar }),
    );
    assert_eq!(reply.status, 400, "{}", reply.text);
    lives(server());
}
