//! `GET /v1/ws`: the same answers as over HTTP, several at once; what is wrong is told, and a socket that closes ends its work.

use std::collections::HashMap;
use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use quarrel_server::Origin;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::common::{MODEL, metric, post, server, start, start_with, wait_until, with};

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn try_open(at: SocketAddr, headers: &[(&'static str, &str)]) -> Result<Socket, u16> {
        let mut request = format!("ws://{at}/v1/ws").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match client_async(request, TcpStream::connect(at).await.unwrap()).await {
            Ok((socket, _)) => Ok(Socket(socket)),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(e) => panic!("{e}"),
        }
    }

    async fn open(at: SocketAddr) -> Socket {
        Socket::try_open(at, &[]).await.unwrap()
    }

    async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame, or the code that it was closed with.
    async fn hear(&mut self) -> Result<Value, u16> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(frame)))) => return Err(frame.code.into()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Frames until so many requests are over, by their ids.
    async fn until_done(&mut self, mut count: usize) -> HashMap<String, Vec<Value>> {
        let mut all: HashMap<String, Vec<Value>> = HashMap::new();
        while count > 0 {
            let frame = self.hear().await.unwrap();
            count -= usize::from(frame["type"] == "done");
            all.entry(frame["id"].as_str().unwrap().into()).or_default().push(frame);
        }
        all
    }
}

fn chat(more: Value) -> Value {
    let ask = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "the town" }], "temperature": 0, "max_tokens": 12 });
    with(&ask, more)
}

/// Four answers, which take all places; several of these are work for a while.
fn long() -> Value {
    chat(json!({ "max_tokens": 1900, "ignore_eos": true, "n": 4 }))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_http_and_several_come_at_once() {
    let mut socket = Socket::open(server()).await;
    let messages = chat(json!({}));
    let responses = json!({ "model": MODEL, "input": "the town", "temperature": 0, "max_output_tokens": 12 });
    let plain = json!({ "model": MODEL, "prompt": "the town", "temperature": 0, "max_tokens": 12 });
    socket.say(json!({ "type": "messages", "id": "m", "request": messages })).await;
    socket.say(json!({ "type": "responses", "id": "r", "request": responses })).await;
    socket.say(json!({ "type": "chat.completions", "id": "c", "request": chat(json!({})) })).await;
    socket.say(json!({ "type": "completions", "id": "p", "request": plain })).await;
    socket
        .say(json!({ "type": "chat.completions", "id": "w", "request": chat(json!({ "stream": false })) }))
        .await;
    let all = socket.until_done(5).await;
    for (id, frames) in &all {
        assert_eq!(frames.last().unwrap()["type"], "done");
        for (i, frame) in frames[..frames.len() - 1].iter().enumerate() {
            assert_eq!((&frame["type"], &frame["number"]), (&json!("event"), &json!(i)), "{id} {frame}");
        }
    }
    // The same events as over HTTP, but for ids and times.
    for (id, path, body) in [("m", "/v1/messages", messages), ("r", "/v1/responses", responses)] {
        let http = post(path, &with(&body, json!({ "stream": true }))).events();
        let frames = &all[id][..all[id].len() - 1];
        let names = |frames: &[Value]| {
            frames.iter().map(|f| f["event"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(frames), http.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>());
        let deltas = |v: &Value| v["delta"].as_str().or(v["delta"]["text"].as_str()).map(str::to_owned);
        let over: Vec<_> = http.iter().filter_map(|(_, v)| deltas(v)).collect();
        assert_eq!(frames.iter().filter_map(|f| deltas(&f["data"])).collect::<Vec<_>>(), over);
        assert!(!over.is_empty());
    }
    let whole = &all["w"][0]["data"];
    let content = |f: &Value| f["data"]["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    let streamed: String = all["c"].iter().filter_map(content).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], streamed, "a whole answer is one event");
    assert!(all["p"].iter().any(|f| f["data"]["choices"][0]["text"].is_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_cancelled_and_a_closed_socket_ends_its_work() {
    let at = start(Vec::new());
    let mut socket = Socket::open(at).await;
    assert_eq!(metric(at, "quarrel_websockets"), 1.0);
    for id in ["a", "b", "c", "d", "e", "f"] {
        socket.say(json!({ "type": "chat.completions", "id": id, "request": long() })).await;
    }
    while socket.hear().await.unwrap()["id"] != "c" {} // the engine has it now
    socket.say(json!({ "type": "messages", "id": "c", "request": {} })).await;
    socket.say(json!({ "type": "cancel", "id": "c" })).await;
    let (mut twice, mut over) = (0, false);
    while !over {
        let frame = socket.hear().await.unwrap();
        twice += usize::from(frame["type"] == "error" && frame["status"] == 409);
        over = frame["type"] == "cancelled" && frame["id"] == "c";
    }
    assert_eq!(twice, 1, "one id is one request");
    wait_until("the request is gone", || metric(at, "quarrel_requests_cancelled_total") >= 1.0);
    // The id is free again.
    socket.say(json!({ "type": "chat.completions", "id": "c", "request": long() })).await;
    while socket.hear().await.unwrap()["id"] != "c" {}
    drop(socket);
    wait_until("the work is freed", || metric(at, "quarrel_requests_running") == 0.0);
    assert_eq!(metric(at, "quarrel_requests_waiting"), 0.0);
    assert!(metric(at, "quarrel_requests_cancelled_total") >= 4.0, "they did not end by themselves");
    wait_until("no socket is left", || metric(at, "quarrel_websockets") == 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told() {
    let mut socket = Socket::open(server()).await;
    for (frame, id, status, words) in [
        (json!({ "type": "nothing", "id": "1" }), json!("1"), 400, "type"),
        (json!({ "type": "cancel", "id": "2" }), json!("2"), 404, "no request"),
        (json!({ "type": "messages", "request": {} }), Value::Null, 400, "id"),
        (json!({ "type": "messages", "id": "x".repeat(65), "request": {} }), Value::Null, 400, "id"),
        (json!({ "type": "messages", "id": "3" }), json!("3"), 400, "request"),
        (json!({ "type": "messages", "id": "4", "request": {}, "more": 1 }), json!("4"), 400, "more"),
        (json!([1]), Value::Null, 400, ""),
    ] {
        socket.say(frame.clone()).await;
        let told = socket.hear().await.unwrap();
        assert_eq!(
            (&told["type"], &told["id"], &told["status"]),
            (&json!("error"), &id, &json!(status)),
            "{frame} {told}"
        );
        assert!(told["data"]["error"]["message"].as_str().unwrap().contains(words), "{told}");
    }
    // A route's own errors, in its own form.
    socket.say(json!({ "type": "messages", "id": "5", "request": chat(json!({ "foo": 1 })) })).await;
    let told = socket.hear().await.unwrap();
    assert_eq!((&told["status"], &told["data"]["type"]), (&json!(400), &json!("error")), "{told}");
    socket.0.send(Message::text("{")).await.unwrap();
    assert_eq!(socket.hear().await.unwrap()["id"], Value::Null);

    socket.0.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(socket.hear().await, Err(1003));
    let mut socket = Socket::open(server()).await;
    let _ = socket.0.send(Message::text("x".repeat(3 << 19))).await;
    assert_eq!(socket.hear().await, Err(1009));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_comes_with_the_socket_or_in_its_first_frame() {
    let at = start(vec!["secret".into()]);
    let ask = json!({ "type": "chat.completions", "id": "a", "request": chat(json!({})) });
    assert_eq!(Socket::try_open(at, &[("authorization", "Bearer wrong")]).await.err(), Some(401));
    for header in [("authorization", "Bearer secret"), ("x-api-key", "secret")] {
        let mut socket = Socket::try_open(at, &[header]).await.unwrap();
        socket.say(ask.clone()).await;
        assert!(socket.until_done(1).await["a"].len() > 3);
    }
    let mut socket = Socket::open(at).await;
    socket.say(json!({ "type": "authorize", "key": "secret" })).await;
    assert_eq!(socket.hear().await.unwrap()["type"], "authorized");
    socket.say(ask.clone()).await;
    assert!(socket.until_done(1).await["a"].len() > 3);
    for first in [ask, json!({ "type": "authorize", "key": "wrong" }), json!({ "type": "authorize" })] {
        let mut socket = Socket::open(at).await;
        socket.say(first).await;
        assert_eq!(socket.hear().await, Err(1008));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused() {
    let own = format!("http://{}", server());
    assert!(Socket::try_open(server(), &[("origin", &own)]).await.is_ok());
    assert_eq!(Socket::try_open(server(), &[("origin", "http://example.org")]).await.err(), Some(403));
    assert_eq!(Socket::try_open(server(), &[("host", "example.org")]).await.err(), Some(403));
    let at =
        start_with(|c| c.origins = ["https://app.example".parse::<Origin>().unwrap()].into_iter().collect());
    assert!(Socket::try_open(at, &[("origin", "https://app.example")]).await.is_ok());
    assert_eq!(Socket::try_open(at, &[("origin", "http://example.org")]).await.err(), Some(403));
}
