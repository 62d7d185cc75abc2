//! Serves models over HTTP. `app` is what routes share, `routes/` has one file for each endpoint, `fields` the settings that
//! they have in common, `generate` the way from an engine's events to text, `models` who is loaded.
#![forbid(unsafe_code)]

mod app;
mod body;
mod charge;
mod dialect;
mod error;
mod fields;
mod generate;
mod guidance;
mod ids;
mod listen;
mod memory;
pub mod metrics;
mod models;
mod page;
mod prompt;
pub mod reference;
mod routes;
mod sse;
mod store;
mod usage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quarrel_engine::{Request, Sampling};
use quarrel_runtime::Talk;
use quarrel_store::Store;
use quarrel_store::presets::Presets;
use tokio::net::TcpListener;

pub use app::{Compat, openapi};
pub use models::{ModelSettings, ModelSource};

use app::App;
use listen::Bounds;
use models::Models;

/// How to serve.
#[derive(Clone)]
pub struct ServeConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// What is served; the first is the default.
    pub models: Vec<ModelSource>,
    /// How models are held.
    pub settings: ModelSettings,
    /// Keys of which a request must have one, beside those of the store; none in both lets everybody in.
    pub keys: Vec<String>,
    /// What is kept on disk.
    pub store: Option<Arc<Store>>,
    /// Named settings.
    pub presets: Presets,
    /// Longest body in bytes.
    pub body_bytes_max: usize,
    /// Most open connections.
    pub connections_max: usize,
    /// What runs may go on so long after the stop.
    pub drain: Duration,
    /// Metrics by another server's names too.
    pub compat: Option<Compat>,
    /// Who hears of models.
    pub talk: Talk,
}

/// Serves until the process is told to stop. `listening` hears the address, whose port may have been chosen by the system, as
/// soon as it is open; the first model is loaded after that.
pub async fn serve(config: ServeConfig, listening: impl FnOnce(SocketAddr)) -> Result<()> {
    let listener = TcpListener::bind(config.address).await;
    let listener = listener.with_context(|| {
        format!(
            "cannot listen on {}: is another server running there? --port chooses another",
            config.address
        )
    })?;
    listening(listener.local_addr().context("the address of the listener")?);
    let models = Arc::new(Models::new(config.models, config.settings, config.talk));
    let app = App::new(models.clone(), config.compat, config.keys, config.store, config.presets)
        .context("the keys of the store cannot be read")?;
    let router = app::router(app.clone(), config.body_bytes_max);
    tokio::spawn(warm_up(app.clone(), config.talk));
    let swept = app.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            swept.look_for_keys().await;
            models.sweep().await;
        }
    });
    if let Some(store) = app.store.clone() {
        tokio::spawn(maintain(store));
    }
    let stopped = app.clone();
    let stop = async move {
        signal().await;
        stopped.drain();
        tracing::info!("stopping: no new requests, those that run go on");
    };
    let bounds =
        Bounds { connections: config.connections_max, head: Duration::from_secs(30), drain: config.drain };
    if !listen::serve(listener, router, bounds, app.connection_counter(), stop).await {
        tracing::warn!("requests that still ran after {} s were left", config.drain.as_secs());
    }
    Ok(())
}

/// Old responses go, and the store's file is kept small.
async fn maintain(store: Arc<Store>) {
    loop {
        tokio::time::sleep(Duration::from_secs(300)).await;
        let store = store.clone();
        match tokio::task::spawn_blocking(move || store.maintain(store::now())).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => tracing::warn!(error = %e, "the store could not be kept in order"),
            Err(e) => tracing::error!(error = %e, "a bug in the store"),
        }
    }
}

/// Loads the first model and makes a token, so that the first request waits for nothing.
async fn warm_up(app: App, talk: Talk) {
    let made = async {
        let lease = app.models.lease(None).await?;
        let token = lease.tokenizer().bos().unwrap_or(0);
        let request =
            Request { sampling: Sampling::greedy(), max_tokens: Some(1), ..Request::new(vec![token]) };
        let mut stream = lease.handle().submit(request)?;
        while let Some(event) = std::future::poll_fn(|context| stream.poll_next(context)).await {
            if let quarrel_engine::Event::Failed(e) = event {
                return Err(e.into());
            }
        }
        Ok::<(), error::ApiError>(())
    };
    match made.await {
        Ok(()) => app.warm(),
        Err(e) => (talk.note)(&e.message),
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn signal() {
    let interrupt = async {
        // Without the handler a Ctrl-C ends the process, which is a stop too.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
