//! Streams that outlive their connection: whoever asked for it may come back for what was missed. The request goes on for a
//! bounded time without a reader, and its events are kept in a bounded buffer, byte for byte as they were sent.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::app::{App, Caller};
use crate::error::ApiError;
use crate::sse::{self, KEEP_ALIVE, Next, PING, Protocol, Source};

/// Asks for a stream that can be come back to.
const HEADER: HeaderName = HeaderName::from_static("x-quarrel-resume");
/// Says where it can be.
const PLACE: HeaderName = HeaderName::from_static("x-quarrel-stream");
/// The last event that the client has.
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");

/// Most streams that are held, and most of one key.
const STREAMS_MAX: usize = 128;
const OF_A_KEY_MAX: usize = 32;
/// Most bytes of events that are kept of a stream.
const BYTES_MAX: usize = 1 << 20;
/// Most bytes that are given at once.
const GIVE_MAX: usize = 64 << 10;

/// Whether a request wants to be able to come back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resume(bool);

impl FromRequestParts<App> for Resume {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Resume, ApiError> {
        let Some(value) = parts.headers.get(&HEADER) else { return Ok(Resume(false)) };
        match value.as_bytes() {
            b"0" | b"false" => Ok(Resume(false)),
            b"1" | b"true" if app.streams.window.is_zero() => Err(ApiError::field(
                HEADER.as_str(),
                "x-quarrel-resume: off here (--resume-window 0); leave it out",
            )),
            b"1" | b"true" => Ok(Resume(true)),
            _ => Err(ApiError::field(HEADER.as_str(), "x-quarrel-resume: 1 or 0 is needed")),
        }
    }
}

impl Resume {
    /// What keeps the stream at this place, if it is to be kept.
    pub(crate) fn keep(self, app: &App, caller: &Caller, place: &str, id: &str) -> Option<Keep> {
        let keep = || Keep { app: app.clone(), owner: caller.owner.clone(), place: format!("{place}/{id}") };
        self.0.then(keep)
    }

    /// That a stream of this form cannot be come back to.
    pub(crate) fn refuse(self) -> Result<(), ApiError> {
        match self.0 {
            true => Err(ApiError::field(
                HEADER.as_str(),
                "x-quarrel-resume: lines of JSON have no ids; leave it out",
            )),
            false => Ok(()),
        }
    }
}

/// Where a stream is kept, and for whom.
pub(crate) struct Keep {
    app: App,
    owner: Arc<str>,
    place: String,
}

/// All streams that are held.
pub(crate) struct Streams {
    window: Duration,
    held: Mutex<HashMap<String, Arc<Held>>>,
    resumed: AtomicU64,
    abandoned: AtomicU64,
}

/// For the metrics.
pub(crate) struct StreamCounts {
    pub(crate) held: usize,
    pub(crate) bytes: usize,
    pub(crate) resumed: u64,
    pub(crate) abandoned: u64,
}

struct Held {
    owner: Arc<str>,
    log: watch::Sender<Log>,
}

/// The events of a stream.
#[derive(Default)]
struct Log {
    events: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
    /// The first event that no reader was given yet; those before it make room.
    given: u64,
    /// No more come.
    over: bool,
    /// The reader that has the stream; each new one takes it over.
    reader: u64,
    /// When the last one left.
    left: Option<Instant>,
}

impl Log {
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn push(&mut self, events: Vec<Bytes>) {
        self.bytes += events.iter().map(Bytes::len).sum::<usize>();
        self.events.extend(events);
        self.trim();
    }

    fn trim(&mut self) {
        while self.bytes > BYTES_MAX && self.first < self.given {
            self.bytes -= self.events.pop_front().map_or(0, |e| e.len());
            self.first += 1;
        }
    }

    /// Events from `next` on, and the number behind them.
    fn give(&mut self, next: u64) -> (Vec<u8>, u64) {
        let mut out = Vec::new();
        let from = next.saturating_sub(self.first) as usize;
        let mut end = next;
        for event in self.events.iter().skip(from) {
            if !out.is_empty() && out.len() + event.len() > GIVE_MAX {
                break;
            }
            out.extend_from_slice(event);
            end += 1;
        }
        self.given = self.given.max(end);
        self.trim();
        (out, end)
    }
}

impl Streams {
    pub(crate) fn new(window: Duration) -> Streams {
        Streams { window, held: Mutex::default(), resumed: AtomicU64::new(0), abandoned: AtomicU64::new(0) }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> StreamCounts {
        let held = self.held();
        StreamCounts {
            held: held.len(),
            bytes: held.values().map(|h| h.log.borrow().bytes).sum(),
            resumed: self.resumed.load(Ordering::Relaxed),
            abandoned: self.abandoned.load(Ordering::Relaxed),
        }
    }

    fn insert(&self, place: &str, owner: Arc<str>) -> Result<Arc<Held>, ApiError> {
        let mut held = self.held();
        let own = held.values().filter(|h| h.owner == owner).count();
        if held.len() >= STREAMS_MAX || own >= OF_A_KEY_MAX {
            let message = format!(
                "x-quarrel-resume: {own} of this key's streams are held, {} of all; at most {OF_A_KEY_MAX} and {STREAMS_MAX} are",
                held.len()
            );
            return Err(ApiError::busy(message, "too_many_streams", self.window));
        }
        let new = Arc::new(Held { owner, log: watch::Sender::new(Log::default()) });
        held.insert(place.to_owned(), new.clone());
        Ok(new)
    }
}

/// Takes a stream out when its task is over, however that ends.
struct Entry(App, String);

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.streams.held().remove(&self.1);
    }
}

impl Keep {
    /// Starts the stream, whose events go on without their reader.
    pub(crate) fn start<P: Protocol>(self, source: Source<P>) -> Result<Response, ApiError> {
        let Keep { app, owner, place } = self;
        let place_header = HeaderValue::from_str(&place).map_err(|e| ApiError::server(e.to_string()))?;
        let held = app.streams.insert(&place, owner)?;
        let entry = Entry(app, place);
        let reader = Reader::new(&held, 0)?;
        tokio::spawn(pump(source, held, entry));
        let mut response = reader.response();
        response.headers_mut().insert(PLACE, place_header);
        Ok(response)
    }
}

/// Waits until something is so, or the stream is gone.
async fn until(log: &mut watch::Receiver<Log>, is: impl FnMut(&Log) -> bool) {
    let _ = log.wait_for(is).await;
}

/// Waits until nobody has read for the whole window.
async fn abandoned(mut log: watch::Receiver<Log>, window: Duration) {
    loop {
        let left = log.borrow().left;
        match left {
            None => until(&mut log, |l| l.left.is_some()).await,
            Some(at) => tokio::select! {
                () = tokio::time::sleep_until(at + window) => return,
                () = until(&mut log, |l| l.left != Some(at)) => {}
            },
        }
    }
}

/// Moves events from the engine into the buffer as long as somebody reads, or may come back.
async fn pump<P: Protocol>(mut source: Source<P>, held: Arc<Held>, entry: Entry) {
    let streams = &entry.0.streams;
    let gone = abandoned(held.log.subscribe(), streams.window);
    tokio::pin!(gone);
    let mut room = held.log.subscribe();
    loop {
        // Only events that a reader has had make room: a reader that is slow slows the stream, one that is gone ends it in time.
        let next = async {
            until(&mut room, |l| l.bytes <= BYTES_MAX).await;
            source.next().await
        };
        let next = tokio::select! {
            next = next => next,
            () = &mut gone => {
                streams.abandoned.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        match next {
            Next::Events(events) => held.log.send_modify(|l| l.push(events)),
            Next::Quiet => {}
            Next::Over => break,
        }
    }
    drop(source); // the model is free
    held.log.send_modify(|l| l.over = true);
    gone.await;
}

/// The one who reads a stream. When it is dropped, the window begins.
struct Reader {
    held: Arc<Held>,
    log: watch::Receiver<Log>,
    me: u64,
    next: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.held.log.send_if_modified(|l| {
            let mine = l.reader == self.me;
            if mine {
                l.left = Some(Instant::now());
            }
            mine
        });
    }
}

impl Reader {
    fn new(held: &Arc<Held>, next: u64) -> Result<Reader, ApiError> {
        let mut taken = Err(ApiError::server("the stream was not looked at"));
        held.log.send_if_modified(|l| {
            taken = if next < l.first {
                let message = format!("the events before {} are no longer held", l.first);
                Err(ApiError::bad(message).status(StatusCode::GONE).code("events_gone"))
            } else if next > l.end() {
                let message = format!("Last-Event-ID: only {} events were sent", l.end());
                Err(ApiError::field(LAST_EVENT.as_str(), message))
            } else {
                l.reader += 1;
                l.left = None;
                Ok(l.reader)
            };
            taken.is_ok()
        });
        Ok(Reader { held: held.clone(), log: held.log.subscribe(), me: taken?, next })
    }

    /// What comes next: events, or a comment after a silence.
    async fn read(&mut self) -> Option<io::Result<Bytes>> {
        let (me, next) = (self.me, self.next);
        let news = until(&mut self.log, |l| l.reader != me || l.end() > next || l.over);
        if tokio::time::timeout(KEEP_ALIVE, news).await.is_err() {
            return Some(Ok(PING));
        }
        let mut given = None;
        self.held.log.send_modify(|l| {
            if l.reader == me {
                given = Some(l.give(next));
            }
        });
        match given {
            // Not the end of the answer, so it must not look like that.
            None => Some(Err(io::Error::other("the stream is read by another connection now"))),
            Some((bytes, _)) if bytes.is_empty() => None,
            Some((bytes, end)) => {
                self.next = end;
                Some(Ok(bytes.into()))
            }
        }
    }

    fn response(self) -> Response {
        let events = stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            let read = reader.read().await?;
            let reader = read.is_ok().then_some(reader);
            Some((read, reader))
        });
        sse::answer(sse::Wire::Events, events)
    }
}

/// The number behind the last event that a client has.
fn behind(headers: &HeaderMap, query: Option<u64>) -> Result<u64, ApiError> {
    let Some(value) = headers.get(&LAST_EVENT) else { return Ok(query.map_or(0, |n| n.saturating_add(1))) };
    let number = value.to_str().ok().and_then(|v| v.trim().parse::<u64>().ok());
    let wrong = || ApiError::field(LAST_EVENT.as_str(), "Last-Event-ID: the number of an event is needed");
    Ok(number.ok_or_else(wrong)?.saturating_add(1))
}

/// Whether a request is one for the rest of a stream.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    headers.contains_key(&LAST_EVENT)
}

/// The rest of the stream at a place, behind `Last-Event-ID` or `after`.
pub(crate) fn resume(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    place: &str,
    after: Option<u64>,
) -> Result<Response, ApiError> {
    let next = behind(headers, after)?;
    let held = app.streams.held().get(place).filter(|h| h.owner == caller.owner).cloned();
    let held = held.ok_or_else(|| {
        ApiError::not_found(
            "this stream is not held: it was asked for without \"X-Quarrel-Resume: 1\", or nobody read it for too long",
        )
        .code("stream_not_held")
    })?;
    let reader = Reader::new(&held, next)?;
    app.streams.resumed.fetch_add(1, Ordering::Relaxed);
    Ok(reader.response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64, size: usize) -> Bytes {
        format!("id: {n}\ndata: {}\n\n", "x".repeat(size)).into()
    }

    fn held() -> Arc<Held> {
        Arc::new(Held { owner: "a".into(), log: watch::Sender::new(Log::default()) })
    }

    #[test]
    fn only_what_was_given_makes_room() {
        let mut log = Log::default();
        for n in 0..40 {
            log.push(vec![event(n, 64 << 10)]);
        }
        assert_eq!((log.first, log.end()), (0, 40), "no reader has had them");
        assert!(log.bytes > BYTES_MAX);
        let mut next = 0;
        while next < 40 {
            let (bytes, end) = log.give(next);
            assert!(bytes.starts_with(format!("id: {next}\n").as_bytes()));
            next = end;
        }
        assert!(log.bytes <= BYTES_MAX && log.first > 20, "{} {}", log.bytes, log.first);
        assert_eq!(log.end(), 40);
    }

    #[tokio::test]
    async fn a_reader_takes_a_stream_over_and_reads_the_same_bytes() {
        let held = held();
        held.log.send_modify(|l| l.push((0..3).map(|n| event(n, 5)).collect()));
        let mut first = Reader::new(&held, 0).unwrap();
        let all = first.read().await.unwrap().unwrap();
        let mut second = Reader::new(&held, 1).unwrap();
        assert!(first.read().await.unwrap().is_err(), "it is told that it has lost the stream");
        drop(first);
        assert_eq!(held.log.borrow().left, None, "the window begins when the last reader leaves");
        held.log.send_modify(|l| l.over = true);
        let rest = second.read().await.unwrap().unwrap();
        assert!(all.ends_with(&rest) && rest.starts_with(b"id: 1\n"));
        assert!(second.read().await.is_none());
        drop(second);
        assert!(held.log.borrow().left.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_ends_unless_somebody_comes_back() {
        let held = held();
        let window = Duration::from_secs(30);
        let gone = tokio::spawn(abandoned(held.log.subscribe(), window));
        drop(Reader::new(&held, 0).unwrap());
        tokio::time::sleep(window / 2).await;
        let back = Reader::new(&held, 0).unwrap();
        tokio::time::sleep(window * 2).await;
        assert!(!gone.is_finished());
        drop(back);
        tokio::time::sleep(window * 2).await;
        assert!(gone.is_finished());
    }

    #[test]
    fn events_that_are_not_there_are_told() {
        let held = held();
        held.log.send_modify(|l| {
            l.first = 5;
            l.push(vec![event(5, 1)]);
        });
        let status = |next| Reader::new(&held, next).err().map(|e| e.status.as_u16());
        assert_eq!([4, 5, 6, 7].map(status), [Some(410), None, None, Some(400)]);
    }
}
