//! `GET /v1/ws`: requests and their streams over one WebSocket. Each request goes through the same router as it would over
//! HTTP, with the socket's key, so that limits, errors and metrics are the same; its events come back as frames.

use std::collections::HashMap;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::MatchedPathRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::{Extensions, HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use axum::{Router, extract::MatchedPath};
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite;
use tower::ServiceExt as _;
use utoipa::ToSchema;

use crate::app::{App, Caller, admit};
use crate::body;
use crate::cors::Origins;
use crate::error::{ApiError, ErrorBody};
use crate::metrics::Counted;

use super::streams::{CHAT, COMPLETIONS, MESSAGES, RESPONSES};

/// Its path.
pub(crate) const PATH: &str = "/v1/ws";
/// Requests that run at once on one socket.
const REQUESTS_MAX: usize = 32;
/// Longest id of a request.
const ID_MAX: usize = 64;
/// Frames that wait to be sent.
const QUEUE: usize = 32;
/// How often the client is pinged, and how long it may say nothing at all.
const PING: Duration = Duration::from_secs(10);
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// How long a frame may take to be sent, the key to come, and the client to close.
const SEND_MAX: Duration = Duration::from_secs(30);
const AUTHORIZE_MAX: Duration = Duration::from_secs(10);
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Close codes of RFC 6455.
const GOING_AWAY: u16 = 1001;
const PROTOCOL: u16 = 1002;
const UNSUPPORTED: u16 = 1003;
const NOT_TEXT: u16 = 1007;
const POLICY: u16 = 1008;
const TOO_BIG: u16 = 1009;
const TOO_LONG: &str = "the frame is longer than --max-body";

/// What runs requests: the router itself.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) router: Router,
    /// Longest frame of a client.
    pub(crate) bytes_max: usize,
}

/// A frame of the client.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SocketRequest {
    r#type: SocketRequestType,
    /// The client's name for the request, at most 64 bytes; not for `authorize`.
    #[allow(dead_code, reason = "looked at before, so that an error has it")]
    id: Option<String>,
    /// The body that the route takes; `stream` is on if not given.
    #[schema(value_type = Option<Object>)]
    request: Option<Map<String, Value>>,
    /// An API key; only for `authorize`, which is the first frame where no header can be sent.
    key: Option<String>,
}

/// What a frame asks for: the answer of a route, the end of a request, or to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub(crate) enum SocketRequestType {
    #[serde(rename = "chat.completions")]
    Chat,
    #[serde(rename = "completions")]
    Completions,
    #[serde(rename = "responses")]
    Responses,
    #[serde(rename = "messages")]
    Messages,
    #[serde(rename = "cancel")]
    Cancel,
    #[serde(rename = "authorize")]
    Authorize,
}

/// A frame of the server.
#[derive(ToSchema)]
#[allow(dead_code, reason = "the schema of what `told` writes")]
pub(crate) struct SocketEvent {
    /// `event`, or one that ends a request, whose id is free then: `done`, `error`, `cancelled`; or `authorized`.
    r#type: String,
    /// The request's; none where the frame could not be read.
    id: Option<String>,
    /// Counts the events of a request from 0, as the ids of server-sent events do.
    number: Option<u64>,
    /// The event's name, where its API names events.
    event: Option<String>,
    /// What the same event has over HTTP, or the error's body.
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
    /// The HTTP status of an error.
    status: Option<u16>,
    /// When an error may be tried again, in seconds.
    retry_after: Option<u64>,
}

/// Several streams over one WebSocket: frames are JSON texts, `SocketRequest` to the server and `SocketEvent` back. Closing it
/// ends all its requests.
#[utoipa::path(
    get, path = "/v1/ws", tag = "OpenAI",
    responses(
        (status = 101, description = "A WebSocket. It is closed with 1001 when the server stops, 1003 for a binary frame, 1008 without a key or an answer to pings, 1009 for a frame that is too long"),
        (status = 403, body = ErrorBody, description = "A page of another origin"), (status = "4XX", body = ErrorBody)
    )
)]
pub(crate) async fn open(
    State(app): State<App>,
    Extension(api): Extension<Api>,
    caller: Option<Extension<Caller>>,
    path: Result<MatchedPath, MatchedPathRejection>,
    headers: HeaderMap,
    mut extensions: Extensions,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    same_origin(&headers, &app.origins)?;
    let upgrade =
        upgrade.map_err(|e| ApiError::bad(format!("a WebSocket is needed: {e}")).status(e.status()))?;
    drop((path, extensions.remove::<MatchedPath>())); // requests have their own
    let key = headers.get(header::AUTHORIZATION).cloned();
    let key = key.or_else(|| {
        HeaderValue::from_str(&format!("Bearer {}", headers.get("x-api-key")?.to_str().ok()?)).ok()
    });
    let session = Session {
        app,
        extensions,
        key,
        admitted: caller.is_some(),
        router: api.router,
        bytes_max: api.bytes_max,
    };
    // One that is a little too long is read, so that the client hears why its socket is closed.
    let limits = upgrade.max_message_size(2 * api.bytes_max).max_frame_size(2 * api.bytes_max);
    Ok(limits.max_write_buffer_size(4 << 20).on_upgrade(move |socket| serve(socket, session)))
}

/// Browsers send cookies and reach private addresses for any page, and say whose page it is: the server's own, or one that
/// may call.
fn same_origin(headers: &HeaderMap, others: &Origins) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    if others.allow(origin) {
        return Ok(());
    }
    let text =
        |v: Option<&HeaderValue>| v.and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let (origin, host) = (text(Some(origin)), text(headers.get(header::HOST)));
    match origin.split_once("://") {
        Some((_, from)) if !host.is_empty() && from == host => Ok(()),
        _ => {
            let message =
                "a page of another origin may not open a WebSocket here; --cors-origin names those that may";
            Err(ApiError::forbidden(message).code("origin_not_allowed"))
        }
    }
}

struct Session {
    app: App,
    /// Of the request that opened it: they hold its place among the connections.
    extensions: Extensions,
    key: Option<HeaderValue>,
    admitted: bool,
    router: Router,
    /// Longest frame.
    bytes_max: usize,
}

/// A frame for the client.
fn told(kind: &str, id: Option<&str>, rest: &str) -> Message {
    Message::text(format!("{{\"type\":\"{kind}\",\"id\":{}{rest}}}", json!(id)))
}

fn failed(id: Option<&str>, e: &ApiError) -> Message {
    let after = e.retry_after.map(|d| d.as_secs_f64().ceil() as u64);
    let after = after.map(|s| format!(",\"retry_after\":{s}")).unwrap_or_default();
    told("error", id, &format!(",\"status\":{}{after},\"data\":{}", e.status.as_u16(), e.json()))
}

fn close(code: u16, why: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: why.into() }))
}

/// Serves a socket to its end. Dropping the tasks aborts their requests.
async fn serve(socket: WebSocket, mut session: Session) {
    let _counted = Counted::new(session.app.sockets());
    let (mut sink, mut frames) = socket.split();
    let (out, mut queue) = mpsc::channel::<Message>(QUEUE);
    let writer = tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            let last = matches!(message, Message::Close(_));
            let sent = tokio::time::timeout(SEND_MAX, sink.send(message)).await;
            if last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    let mut running = Running::default();
    let (opened, mut heard) = (Instant::now(), Instant::now());
    let mut tick = tokio::time::interval(PING);
    let mut draining = session.app.drained();
    let mut stopping = false;
    let last = loop {
        if stopping && running.ids.is_empty() {
            break close(GOING_AWAY, "the server is shutting down");
        }
        tokio::select! {
            () = out.closed() => return, // the client takes nothing any more
            Some(over) = running.tasks.join_next() => {
                // A task that was cancelled has told so, and its id is free.
                if let Ok((id, last)) = over {
                    running.ids.remove(&id);
                    let _ = out.send(last).await;
                }
            }
            () = async { drop(draining.wait_for(|d| *d).await) }, if !stopping => stopping = true,
            _ = tick.tick() => {
                if heard.elapsed() > SILENCE_MAX {
                    break close(POLICY, "no answer to pings");
                }
                if !session.admitted && opened.elapsed() > AUTHORIZE_MAX {
                    break close(POLICY, "no key came in time");
                }
                let _ = out.try_send(Message::Ping(Bytes::new())); // a full queue keeps the connection alive too
            }
            frame = frames.next() => {
                heard = Instant::now();
                match frame {
                    None | Some(Ok(Message::Close(_))) => return,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Binary(_))) => break close(UNSUPPORTED, "frames are JSON texts"),
                    Some(Ok(Message::Text(text))) => match session.take(text.as_str(), &mut running, &out).await {
                        Ok(None) => {}
                        Ok(Some(answer)) => drop(out.send(answer).await),
                        Err(last) => break last,
                    },
                    Some(Err(e)) => match refused(&e.into_inner()) {
                        Some(last) => break last,
                        None => return,
                    },
                }
            }
        }
    };
    drop(running);
    let _ = out.send(last).await;
    let _ = writer.await;
    // The client's own close, so that ours is not lost with the connection.
    let _ = tokio::time::timeout(CLOSE_MAX, async { while let Some(Ok(_)) = frames.next().await {} }).await;
}

/// The close frame for what a client sent; none if the connection broke.
fn refused(e: &axum::BoxError) -> Option<Message> {
    match e.downcast_ref::<tungstenite::Error>()? {
        tungstenite::Error::Capacity(_) => Some(close(TOO_BIG, TOO_LONG)),
        tungstenite::Error::Utf8(_) => Some(close(NOT_TEXT, "the text is not UTF-8")),
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => None,
        tungstenite::Error::Protocol(_) => Some(close(PROTOCOL, "not the WebSocket protocol")),
        _ => None,
    }
}

/// Requests that run, by the client's ids.
#[derive(Default)]
struct Running {
    tasks: JoinSet<(String, Message)>,
    ids: HashMap<String, AbortHandle>,
}

impl Session {
    /// Does what a frame says. Gives the answer, if it has one by itself; the error is the socket's last frame.
    async fn take(
        &mut self,
        text: &str,
        running: &mut Running,
        out: &mpsc::Sender<Message>,
    ) -> Result<Option<Message>, Message> {
        if text.len() > self.bytes_max {
            return Err(close(TOO_BIG, TOO_LONG));
        }
        let frame = serde_json::from_str::<Value>(text);
        let frame = frame.map_err(|e| ApiError::bad(format!("the frame is not valid JSON: {e}")));
        let id = frame
            .as_ref()
            .ok()
            .and_then(|f| f["id"].as_str())
            .filter(|id| id.len() <= ID_MAX)
            .map(str::to_owned);
        let frame = frame.and_then(|f| body::at::<SocketRequest>("", f));
        let frame = match frame {
            Ok(frame) if frame.r#type == SocketRequestType::Authorize => {
                return self.authorize(frame).await.map(Some);
            }
            _ if !self.admitted => return Err(close(POLICY, "an API key is needed: authorize first")),
            Ok(frame) => frame,
            Err(e) => return Ok(Some(failed(id.as_deref(), &e))),
        };
        let answer = match (frame.r#type, &id) {
            (_, None) => {
                let message = format!("id: the client's name for the request is needed, 1 to {ID_MAX} bytes");
                Err(ApiError::field("id", message))
            }
            (SocketRequestType::Cancel, Some(id)) => match running.ids.remove(id) {
                Some(task) => {
                    task.abort();
                    Ok(Some(told("cancelled", Some(id), "")))
                }
                None => Err(ApiError::not_found(format!("id: no request {id:?} runs on this socket"))),
            },
            (_, Some(id)) => self.start(frame, id, running, out).map(|()| None),
        };
        Ok(answer.unwrap_or_else(|e| Some(failed(id.as_deref(), &e))))
    }

    async fn authorize(&mut self, frame: SocketRequest) -> Result<Message, Message> {
        let key = frame.key.unwrap_or_default();
        let header = HeaderValue::from_str(&format!("Bearer {key}"));
        let admitted = admit(&self.app, Method::GET, PATH.into(), Some(key)).await;
        match (admitted, header) {
            (Ok(_), Ok(header)) => {
                (self.key, self.admitted) = (Some(header), true);
                Ok(told("authorized", None, ""))
            }
            _ => Err(close(POLICY, "this API key is not known here, or may not do that")),
        }
    }

    fn start(
        &self,
        frame: SocketRequest,
        id: &str,
        running: &mut Running,
        out: &mpsc::Sender<Message>,
    ) -> Result<(), ApiError> {
        if running.ids.contains_key(id) {
            return Err(
                ApiError::field("id", format!("id: {id:?} runs already")).status(StatusCode::CONFLICT)
            );
        }
        if running.ids.len() >= REQUESTS_MAX {
            let message =
                format!("{REQUESTS_MAX} requests run on this socket; wait for one, or open another");
            return Err(ApiError::busy(message, "too_many_requests", Duration::from_secs(1)));
        }
        let needed = || ApiError::field("request", "request: the route's body is needed");
        let mut asked = frame.request.ok_or_else(needed)?;
        asked.entry("stream").or_insert(true.into());
        let path = match frame.r#type {
            SocketRequestType::Chat => CHAT,
            SocketRequestType::Completions => COMPLETIONS,
            SocketRequestType::Responses => RESPONSES,
            _ => MESSAGES,
        };
        let request = Request::post(path).body(Body::from(Value::Object(asked).to_string()));
        let mut request = request.map_err(|e| ApiError::server(e.to_string()))?;
        *request.extensions_mut() = self.extensions.clone();
        request.headers_mut().extend(self.key.clone().map(|key| (header::AUTHORIZATION, key)));
        let relay = relay(self.router.clone(), request, id.to_owned(), out.clone());
        running.ids.insert(id.to_owned(), running.tasks.spawn(relay));
        Ok(())
    }
}

/// One request and its answer, up to its last frame. A client that does not read slows it down.
async fn relay(
    router: Router,
    request: Request<Body>,
    id: String,
    out: mpsc::Sender<Message>,
) -> (String, Message) {
    let done = told("done", Some(&id), "");
    let response = router.oneshot(request).await.unwrap_or_else(|e| match e {});
    let (parts, body) = response.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !kind.starts_with(b"text/event-stream") {
        let whole = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let data = String::from_utf8_lossy(&whole);
        if !parts.status.is_success() {
            let after = parts.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
            let after = after.map(|s| format!(",\"retry_after\":{s}")).unwrap_or_default();
            let rest = format!(",\"status\":{}{after},\"data\":{data}", parts.status.as_u16());
            let last = told("error", Some(&id), &rest);
            return (id, last);
        }
        let _ = out.send(told("event", Some(&id), &format!(",\"number\":0,\"data\":{data}"))).await;
        return (id, done);
    }
    let mut body = body.into_data_stream();
    while let Some(Ok(bytes)) = body.next().await {
        // What the server sends at once are whole events.
        for event in String::from_utf8_lossy(&bytes).split_terminator("\n\n") {
            let Some(rest) = event_json(event) else { continue };
            if out.send(told("event", Some(&id), &rest)).await.is_err() {
                return (id, done);
            }
        }
    }
    (id, done)
}

/// A server-sent event as members of a frame; none for comments and for the mark of the end.
fn event_json(event: &str) -> Option<String> {
    let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(str::trim_start);
    let (number, data) = (field("id:")?, field("data:")?);
    let named = field("event:").map(|n| format!(",\"event\":{}", json!(n))).unwrap_or_default();
    (data != "[DONE]").then(|| format!(",\"number\":{number}{named},\"data\":{data}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_members_of_a_frame() {
        let event = "id: 3\nevent: ping\ndata: {\"type\":\"ping\"}";
        assert_eq!(
            event_json(event).unwrap(),
            ",\"number\":3,\"event\":\"ping\",\"data\":{\"type\":\"ping\"}"
        );
        for nothing in [": ping", "id: 4\ndata: [DONE]"] {
            assert_eq!(event_json(nothing), None, "{nothing}");
        }
        let Message::Text(text) = told("event", Some("a\"b"), &event_json(event).unwrap()) else { panic!() };
        assert_eq!(serde_json::from_str::<Value>(text.as_str()).unwrap()["id"], "a\"b");
    }

    #[test]
    fn only_pages_of_this_server_and_of_named_origins_may() {
        let listed = ["https://app.example".parse().unwrap()].into_iter().collect();
        for (origin, host, may) in [
            (None, "127.0.0.1:8080", true),
            (Some("https://app.example"), "127.0.0.1:8080", true),
            (Some("https://app.example.evil"), "127.0.0.1:8080", false),
            (Some("http://127.0.0.1:8080"), "127.0.0.1:8080", true),
            (Some("https://Example.org"), "example.org", true),
            (Some("http://evil.example"), "127.0.0.1:8080", false),
            (Some("http://127.0.0.1:8081"), "127.0.0.1:8080", false),
            (Some("null"), "127.0.0.1:8080", false),
            (Some("http://"), "", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(origin.map(|o| (header::ORIGIN, HeaderValue::from_static(o))));
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(same_origin(&headers, &listed).is_ok(), may, "{origin:?} {host}");
        }
    }
}
