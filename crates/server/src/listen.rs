//! The accept loop: a bounded number of connections, TLS if asked, heads and answers that must get on in time, and a stop that
//! waits for what runs.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::app::App;
use crate::metrics::Counted;
use crate::timed::Timed;
use crate::tls::Tls;

/// How long a client may take for its part. The body's time is kept in `app`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// For a request's head, and for the next one's on a connection that is kept.
    pub head: Duration,
    /// For the body, once the head is there.
    pub body: Duration,
    /// For taking anything at all of an answer that waits to be sent.
    pub write: Duration,
    /// For TLS to be agreed on.
    pub handshake: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            head: Duration::from_secs(30),
            body: Duration::from_secs(120),
            write: Duration::from_secs(60),
            handshake: Duration::from_secs(10),
        }
    }
}

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Open connections; more wait to be accepted.
    pub(crate) connections: usize,
    pub(crate) times: Times,
    /// What runs may go on so long after the stop.
    pub(crate) drain: Duration,
}

/// Who is at the other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remote(pub(crate) SocketAddr);

/// A connection's place among all; whoever holds one holds the connection. In the extensions of its requests, so that a
/// WebSocket has it when the request is over.
#[derive(Clone)]
struct Held(
    #[allow(dead_code, reason = "given back when it is dropped")] Arc<(OwnedSemaphorePermit, Counted)>,
);

/// What all connections share.
struct Shared {
    builder: http1::Builder,
    router: Router,
    app: App,
    tls: Option<TlsAcceptor>,
    times: Times,
}

/// Serves until `stop`, then waits for what runs. Says whether all of it ended in time.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<&Tls>,
    router: Router,
    bounds: Bounds,
    app: App,
    stop: impl Future<Output = ()>,
) -> bool {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let stopped = watch::Sender::new(false);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.times.head).max_buf_size(64 << 10);
    let open = app.connection_counter();
    let tls = tls.map(|t| TlsAcceptor::from(t.config()));
    let shared = Arc::new(Shared { builder, router, app, tls, times: bounds.times });
    tokio::pin!(stop);
    loop {
        let place = tokio::select! {
            biased;
            () = &mut stop => break,
            place = places.clone().acquire_owned() => place,
        };
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                pause(&e).await;
                continue;
            }
        };
        let Ok(place) = place else { break }; // the semaphore is never closed
        let held = Held(Arc::new((place, Counted::new(open.clone()))));
        let _ = stream.set_nodelay(true); // only speed
        let (shared, mut stopping) = (shared.clone(), stopped.subscribe());
        tokio::spawn(async move {
            match &shared.tls {
                None => shared.connection(stream, remote, held, stopping).await,
                Some(tls) => {
                    // One that has asked for nothing yet need not be waited for.
                    let shaken = tokio::select! {
                        biased;
                        _ = stopping.wait_for(|s| *s) => None,
                        shaken = tokio::time::timeout(shared.times.handshake, shake(tls, stream)) => shaken.ok().flatten(),
                    };
                    match shaken {
                        Some(stream) => shared.connection(stream, remote, held, stopping).await,
                        None => shared.app.counts.handshake_failed(),
                    }
                }
            }
        });
    }
    drop(listener);
    stopped.send_replace(true);
    // When all places are free, all connections are over, those that became WebSockets too.
    let all = u32::try_from(bounds.connections).unwrap_or(u32::MAX);
    tokio::time::timeout(bounds.drain, places.acquire_many(all)).await.is_ok()
}

impl Shared {
    /// Serves a connection to its end.
    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        remote: SocketAddr,
        held: Held,
        mut stopping: watch::Receiver<bool>,
    ) {
        let (router, of_requests) = (self.router.clone(), held.clone());
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            let router = router.clone();
            request.extensions_mut().insert(of_requests.clone());
            request.extensions_mut().insert(Remote(remote));
            async move {
                Ok::<_, Infallible>(
                    router.oneshot(request.map(Body::new)).await.unwrap_or_else(|e| match e {}),
                )
            }
        });
        let stream = TokioIo::new(Timed::new(stream, self.times.write));
        let connection = self.builder.serve_connection(stream, service).with_upgrades();
        tokio::pin!(connection);
        let told = async { drop(stopping.wait_for(|s| *s).await) };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        // A connection that breaks is the client's affair.
        if let Err(e) = ended {
            tracing::debug!(error = %e, remote = %remote, "a connection broke");
        }
        drop(held);
    }
}

/// Said to a client that does not speak TLS.
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 46\r\nconnection: close\r\n\r\n\
    this address speaks HTTPS: https://, not http\n";

/// Agrees on TLS.
async fn shake(tls: &TlsAcceptor, stream: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let mut first = [0];
    // 22 begins a handshake; letters begin an HTTP request.
    if stream.peek(&mut first).await.is_ok_and(|n| n == 1) && first[0].is_ascii_uppercase() {
        let _ = stream.try_write(PLAIN); // only a courtesy
        return None;
    }
    tls.accept(stream).await.ok()
}

/// No file handles left, or the like: trying again at once would only spin.
async fn pause(e: &io::Error) {
    if !matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(error = %e, "cannot accept connections");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_courtesy_has_the_length_that_it_says() {
        let text = std::str::from_utf8(PLAIN).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
