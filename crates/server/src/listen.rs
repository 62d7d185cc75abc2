//! The accept loop: a bounded number of connections, TLS if asked, heads and answers that must get on in time, and a stop that
//! waits for what runs.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::app::App;
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

/// Counts a connection while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

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
    let graceful = GracefulShutdown::new();
    let (stopping, stopped) = watch::channel(false);
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
        open.fetch_add(1, Ordering::Relaxed);
        let counted = Open(open.clone());
        let _ = stream.set_nodelay(true); // only speed
        let (shared, watcher, mut stopped) = (shared.clone(), graceful.watcher(), stopped.clone());
        tokio::spawn(async move {
            match &shared.tls {
                None => shared.connection(stream, remote, watcher).await,
                Some(tls) => {
                    // One that has asked for nothing yet need not be waited for.
                    let shaken = tokio::select! {
                        biased;
                        _ = stopped.changed() => None,
                        shaken = tokio::time::timeout(shared.times.handshake, shake(tls, stream)) => shaken.ok().flatten(),
                    };
                    match shaken {
                        Some(stream) => shared.connection(stream, remote, watcher).await,
                        None => shared.app.counts.handshake_failed(),
                    }
                }
            }
            drop((place, counted));
        });
    }
    drop(listener);
    stopping.send_replace(true);
    tokio::time::timeout(bounds.drain, graceful.shutdown()).await.is_ok()
}

impl Shared {
    /// Serves a connection to its end.
    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        remote: SocketAddr,
        watcher: Watcher,
    ) {
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            let router = router.clone();
            request.extensions_mut().insert(Remote(remote));
            async move {
                Ok::<_, Infallible>(
                    router.oneshot(request.map(Body::new)).await.unwrap_or_else(|e| match e {}),
                )
            }
        });
        let stream = TokioIo::new(Timed::new(stream, self.times.write));
        let connection = self.builder.serve_connection(stream, service);
        // A connection that breaks is the client's affair.
        if let Err(e) = watcher.watch(connection).await {
            tracing::debug!(error = %e, remote = %remote, "a connection broke");
        }
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
