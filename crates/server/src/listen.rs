//! The accept loop: a bounded number of connections, heads and bodies that must come in time, and a stop that waits for what
//! runs.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

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

/// Counts a connection while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves until `stop`, then waits for what runs. Says whether all of it ended in time.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    open: Arc<AtomicUsize>,
    stop: impl Future<Output = ()>,
) -> bool {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let graceful = GracefulShutdown::new();
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
        open.fetch_add(1, Ordering::Relaxed);
        let counted = Open(open.clone());
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let router = router.clone();
            async move {
                Ok::<_, Infallible>(
                    router.oneshot(request.map(Body::new)).await.unwrap_or_else(|e| match e {}),
                )
            }
        });
        let _ = stream.set_nodelay(true); // only speed
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A connection that breaks is the client's affair.
            let _ = connection.await;
            drop((place, counted));
        });
    }
    drop(listener);
    tokio::time::timeout(bounds.drain, graceful.shutdown()).await.is_ok()
}

/// No file handles left, or the like: trying again at once would only spin.
async fn pause(e: &io::Error) {
    if !matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(error = %e, "cannot accept connections");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
