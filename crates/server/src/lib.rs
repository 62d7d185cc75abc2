//! Serves models over HTTP. `app` is what routes share, `routes/` has one file for each endpoint, `fields` the settings that
//! they have in common, `generate` the way from an engine's events to text, `models` who is loaded.
#![forbid(unsafe_code)]

mod app;
mod arrival;
mod audit;
mod body;
mod charge;
mod cors;
mod dialect;
mod embed;
mod error;
mod fields;
mod generate;
mod guidance;
mod hosts;
mod ids;
mod listen;
mod memory;
pub mod metrics;
mod models;
mod otlp;
mod page;
mod prompt;
mod record;
pub mod reference;
mod resume;
mod routes;
mod sampling;
mod sse;
mod store;
mod timed;
mod tls;
mod trace;
mod usage;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quarrel_engine::{EmbedRequest, Request, Sampling};
use quarrel_runtime::Talk;
use quarrel_store::Store;
use quarrel_store::presets::Presets;
use tokio::net::TcpListener;

pub use app::{Compat, openapi};
pub use audit::{Audit, AuditSettings};
pub use cors::{Origin, Origins};
pub use hosts::{AllowedHost, Hosts};
pub use listen::Times;
pub use models::{ModelSettings, ModelSource};
pub use otlp::{TraceSettings, Traces};
pub use tls::Tls;

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
    /// How long a client may take for its part.
    pub times: Times,
    /// What runs may go on so long after the stop.
    pub drain: Duration,
    /// Who asked what; closed by whoever opened it, when the server and its runtime have ended.
    pub audit: Option<Arc<Audit>>,
    /// Where the time went, for a collector; closed like `audit`.
    pub traces: Option<Arc<Traces>>,
    /// HTTPS instead of HTTP.
    pub tls: Option<Arc<Tls>>,
    /// Whose web pages may call, beside the server's own.
    pub origins: Origins,
    /// Names that it answers to beside those of the loopback.
    pub hosts: Hosts,
    /// A stream that asked for it may be come back to for so long.
    pub resume_window: Duration,
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
    let models = Arc::new(Models::new(config.models.clone(), config.settings.clone(), config.talk));
    let app = App::new(models.clone(), &config).context("the keys of the store cannot be read")?;
    let router = app::router(app.clone());
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
    // Of a server in a terminal that is closed nothing should stay, unless there is something to read again.
    if config.tls.is_some() || config.audit.is_some() || !std::io::stderr().is_terminal() {
        tokio::spawn(renew(app.clone(), config.tls.clone()));
    }
    let bounds = Bounds { connections: config.connections_max, times: config.times, drain: config.drain };
    if !listen::serve(listener, config.tls.as_deref(), router, bounds, app, stop).await {
        tracing::warn!("requests that still ran after {} s were left", config.drain.as_secs());
    }
    Ok(())
}

/// How often files are looked at that may change.
const LOOK: Duration = Duration::from_secs(2);

/// Reads files again when they change, or on SIGHUP.
async fn renew(app: App, tls: Option<Arc<Tls>>) {
    let mut hangup = Hangup::new();
    loop {
        let told = tokio::select! {
            () = hangup.wait() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let (app, tls) = (app.clone(), tls.clone());
        if let Some(audit) = app.listeners.audit.as_ref().filter(|_| told) {
            audit.reopen();
        }
        let work = move || {
            let Some(tls) = tls.filter(|t| told || t.changed()) else { return };
            match tls.reload() {
                Ok(()) => tracing::info!("the certificate was read again"),
                Err(e) => {
                    app.counts.reload_failed();
                    tracing::error!(error = format!("{e:#}"), "the certificate stays as it was");
                }
            }
        };
        if let Err(e) = tokio::task::spawn_blocking(work).await {
            tracing::error!(error = %e, "a bug in what reads files again");
        }
    }
}

/// SIGHUP, where there is one.
struct Hangup(#[cfg(unix)] Option<tokio::signal::unix::Signal>);

impl Hangup {
    #[cfg(unix)]
    fn new() -> Hangup {
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        Hangup(signal.inspect_err(|e| tracing::warn!(error = %e, "SIGHUP is not heard")).ok())
    }

    #[cfg(not(unix))]
    fn new() -> Hangup {
        Hangup()
    }

    /// Until the next one.
    async fn wait(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.0 {
            signal.recv().await;
            return;
        }
        std::future::pending().await
    }
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
        if !lease.handle().info().generates {
            let embedded = lease.handle().embed(EmbedRequest::new(vec![token]))?;
            prompt::blocking(move || Ok(embedded.wait()?)).await?;
            return Ok(());
        }
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
