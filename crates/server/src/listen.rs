//! The accept loop: a bounded number of connections, heads and bodies that must come in time, and a stop that waits for what
//! runs.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::ServiceExt as _;

use crate::metrics::Counted;

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Open connections; more wait to be accepted.
    pub(crate) connections: usize,
    /// A request's head must come in so much time, and the next one's on a connection that is kept.
    pub(crate) head: Duration,
    /// What runs may go on so long after the stop.
    pub(crate) drain: Duration,
}

/// A connection's place among all; whoever holds one holds the connection. In the extensions of its requests, so that a
/// WebSocket has it when the request is over.
#[derive(Clone)]
struct Held(
    #[allow(dead_code, reason = "given back when it is dropped")] Arc<(OwnedSemaphorePermit, Counted)>,
);

/// Serves until `stop`, then waits for what runs. Says whether all of it ended in time.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    open: Arc<AtomicUsize>,
    stop: impl Future<Output = ()>,
) -> bool {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let stopped = watch::Sender::new(false);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.head).max_buf_size(64 << 10);
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
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                pause(&e).await;
                continue;
            }
        };
        let Ok(place) = place else { break }; // the semaphore is never closed
        let held = Held(Arc::new((place, Counted::new(open.clone()))));
        let of_requests = held.clone();
        let router = router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(of_requests.clone());
            let router = router.clone();
            async move {
                Ok::<_, Infallible>(
                    router.oneshot(request.map(Body::new)).await.unwrap_or_else(|e| match e {}),
                )
            }
        });
        let _ = stream.set_nodelay(true); // only speed
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let mut stopping = stopped.subscribe();
        tokio::spawn(async move {
            tokio::pin!(connection);
            let told = async { drop(stopping.wait_for(|s| *s).await) };
            // A connection that breaks is the client's affair.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = told => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(held);
        });
    }
    drop(listener);
    stopped.send_replace(true);
    // When all places are free, all connections are over, those that became WebSockets too.
    let all = u32::try_from(bounds.connections).unwrap_or(u32::MAX);
    tokio::time::timeout(bounds.drain, places.acquire_many(all)).await.is_ok()
}

/// No file handles left, or the like: trying again at once would only spin.
async fn pause(e: &io::Error) {
    if !matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(error = %e, "cannot accept connections");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
