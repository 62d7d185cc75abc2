//! A client that leaves frees its work, unless it said that it may come back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{MODEL, call, metric, server, start, start_with, wait_until, with};

/// A response as it comes.
struct Coming {
    reader: BufReader<TcpStream>,
    status: u16,
    headers: Vec<(String, String)>,
    text: String,
}

impl Coming {
    fn ask(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Coming {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let more: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: {at}\r\ncontent-length: {length}\r\n{more}\r\n{body}"
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        Coming { reader, status, headers, text: String::new() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// One more chunk; none at the end.
    fn chunk(&mut self) -> Option<()> {
        let mut size = String::new();
        self.reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim_end(), 16).ok().filter(|n| *n > 0)?;
        let mut bytes = vec![0; size + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        self.text += std::str::from_utf8(&bytes[..size]).unwrap();
        Some(())
    }

    /// At least so many events, and how many there are.
    fn events(&mut self, least: usize) -> usize {
        while self.text.matches("\n\n").count() < least {
            self.chunk().expect("more events");
        }
        self.text.matches("\n\n").count()
    }

    /// All of it, if it is a stream that was broken off nowhere.
    fn whole(mut self) -> String {
        while self.chunk().is_some() {}
        self.text
    }
}

/// Each route with a request of so many tokens.
fn dialects(tokens: u32) -> [(&'static str, Value); 4] {
    let messages = json!([{ "role": "user", "content": "the town" }]);
    let base = json!({ "model": MODEL, "stream": true, "temperature": 0 });
    let ours = json!({ "max_tokens": tokens, "ignore_eos": true });
    [
        ("/v1/chat/completions", with(&with(&base, ours.clone()), json!({ "messages": messages }))),
        ("/v1/completions", with(&with(&base, ours), json!({ "prompt": "the town" }))),
        (
            "/v1/responses",
            with(&base, json!({ "input": "the town", "max_output_tokens": tokens, "ignore_eos": true })),
        ),
        ("/v1/messages", with(&base, json!({ "messages": messages, "max_tokens": tokens }))),
    ]
}

const RESUME: (&str, &str) = ("x-quarrel-resume", "1");

#[test]
fn a_stream_that_broke_goes_on_where_it_was() {
    for (path, body) in dialects(300) {
        let mut first = Coming::ask(server(), "POST", path, &[RESUME], &body);
        assert_eq!(first.status, 200, "{path}");
        let place = first.header("x-quarrel-stream").unwrap().to_owned();
        assert!(place.starts_with(&format!("{path}/")), "{place}");
        let had = first.events(4);
        let began = first.text.clone();
        drop(first);
        let last = (had - 1).to_string();
        let rest = Coming::ask(server(), "GET", &place, &[("last-event-id", &last)], &Value::Null);
        assert_eq!(rest.status, 200, "{path}");
        assert_eq!(rest.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let rest = rest.whole();
        assert!(rest.starts_with(&format!("id: {had}\n")), "{path}: {rest:.80}");
        // All of it again, the same bytes.
        let query = if path == "/v1/responses" { "?stream=true" } else { "" };
        let again = Coming::ask(server(), "GET", &format!("{place}{query}"), &[], &Value::Null).whole();
        assert!(again == format!("{began}{rest}"), "{path}");
        assert!(
            again.lines().filter(|l| l.starts_with("id: ")).enumerate().all(|(i, l)| l == format!("id: {i}"))
        );
    }
    assert!(metric(server(), "quarrel_streams_resumed_total") >= 8.0);
}

#[test]
fn events_of_a_response_are_given_after_a_number() {
    let (path, body) = dialects(20)[2].clone();
    let stream = Coming::ask(server(), "POST", path, &[RESUME], &body);
    let place = stream.header("x-quarrel-stream").unwrap().to_owned();
    let all = stream.whole();
    let after = format!("{place}?stream=true&starting_after=4");
    let rest = Coming::ask(server(), "GET", &after, &[], &Value::Null).whole();
    assert!(
        all.ends_with(&rest) && rest.starts_with("id: 5\n") && rest.contains("\"sequence_number\":5}"),
        "{rest:.200}"
    );
    let whole = call(server(), "GET", &place, None, None).json();
    assert_eq!(whole["object"], "response", "without stream it is the response itself");
    for (query, field) in [("?starting_after=1", "starting_after"), ("?strem=true", "strem")] {
        let reply = call(server(), "GET", &format!("{place}{query}"), None, None);
        assert!(reply.status == 400 && reply.text.contains(field), "{}", reply.text);
    }
}

#[test]
fn only_its_own_key_may_come_back_and_only_to_what_is_held() {
    let at = start(vec!["mine".into(), "other".into()]);
    let (path, body) = dialects(10)[0].clone();
    let stream = Coming::ask(at, "POST", path, &[RESUME, ("x-api-key", "mine")], &body);
    let place = stream.header("x-quarrel-stream").unwrap().to_owned();
    let events = stream.whole().matches("\n\n").count();
    let get = |place: &str, key: &str, last: &str| {
        Coming::ask(at, "GET", place, &[("x-api-key", key), ("last-event-id", last)], &Value::Null).status
    };
    assert_eq!(get(&place, "other", "0"), 404);
    assert_eq!(get(&place, "wrong", "0"), 401);
    assert_eq!(get("/v1/chat/completions/chatcmpl-none", "mine", "0"), 404);
    for (last, status) in [("x", 400), ("-1", 400), (events.to_string().as_str(), 400), ("0", 200)] {
        assert_eq!(get(&place, "mine", last), status, "{last}");
    }
    // The last event is there already: nothing is missing.
    let last = (events - 1).to_string();
    let done =
        Coming::ask(at, "GET", &place, &[("x-api-key", "mine"), ("last-event-id", &last)], &Value::Null);
    assert_eq!((done.status, done.whole().as_str()), (200, ""));
    let plain = Coming::ask(at, "POST", path, &[("x-api-key", "mine")], &body);
    assert_eq!(plain.header("x-quarrel-stream"), None, "only for those that ask");
}

#[test]
fn what_cannot_be_resumed_is_refused() {
    let (path, body) = dialects(3)[0].clone();
    assert_eq!(Coming::ask(server(), "POST", path, &[("x-quarrel-resume", "maybe")], &body).status, 400);
    assert_eq!(Coming::ask(server(), "POST", path, &[("x-quarrel-resume", "0")], &body).status, 200);
    let lines = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "a" }] });
    assert_eq!(Coming::ask(server(), "POST", "/api/chat", &[RESUME], &lines).status, 400);
    let off = start_with(|config| config.resume_window = Duration::ZERO);
    assert_eq!(Coming::ask(off, "POST", path, &[RESUME], &body).status, 400);
}

/// Four answers, which take all places; several of these are work for a while.
fn long() -> Value {
    with(&dialects(1900)[0].1, json!({ "n": 4 }))
}

#[test]
fn a_client_that_leaves_frees_its_work() {
    let at = start_with(|config| config.resume_window = Duration::from_millis(300));
    let mut made = 0.0;
    for headers in [&[][..], &[RESUME][..]] {
        let before = metric(at, "quarrel_requests_cancelled_total");
        let ask = |_| Coming::ask(at, "POST", "/v1/chat/completions", headers, &long());
        let mut streams: Vec<Coming> = (0..6).map(ask).collect();
        streams[0].events(8);
        drop(streams);
        wait_until("the work is freed", || {
            metric(at, "quarrel_requests_running") + metric(at, "quarrel_requests_waiting") == 0.0
        });
        let cancelled = metric(at, "quarrel_requests_cancelled_total") - before;
        assert!(cancelled >= 3.0, "they did not end by themselves: {cancelled}");
        wait_until("nothing is held", || metric(at, "quarrel_streams_held") == 0.0);
        let all = metric(at, "quarrel_generation_tokens_total");
        assert!(all - made < 6.0 * 4.0 * 1900.0);
        made = all;
    }
    assert!(metric(at, "quarrel_streams_abandoned_total") >= 3.0);
}
