//! `quarrel serve`: models over HTTP.

use std::collections::HashSet;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quarrel_engine::DiskCache;
use quarrel_hub::Hub;
use quarrel_runtime::memory::Pool;
use quarrel_runtime::{EngineOptions, Talk};
use quarrel_server::{
    Audit, AuditSettings, Compat, ModelSettings, ModelSource, ServeConfig, Times, Tls, TraceSettings, Traces,
};
use quarrel_store::presets::Presets;
use quarrel_store::{Limits, Store};
use tracing_subscriber::EnvFilter;

use crate::args::{FetchArgs, LogFormat, MetricsCompat, Serve};
use crate::data::data_dir;
use crate::{input, models, render};

/// What a server says goes to its log.
const TALK: Talk = Talk { note: |line| tracing::info!("{line}"), detail: |line| tracing::debug!("{line}") };

pub(crate) fn run(args: Serve) -> Result<()> {
    log(&args)?;
    let engine = EngineOptions {
        exits: args.dola_layers.clone(),
        exit_layers: args.exit_layer,
        target_itl: args.target_itl_ms.map(|ms| Duration::from_millis(ms.into())),
        host_cache: args.host_cache.unwrap_or(0),
        state_cache: args.state_cache,
        disk_cache: args
            .disk_cache
            .clone()
            .map(|directory| DiskCache { dir: directory, bytes: args.disk_cache_bytes }),
        ..args.engine.options()
    };
    let keys = args.api_key.iter().filter(|k| !k.is_empty()).cloned().collect::<Vec<_>>();
    if keys.is_empty() && !args.host.is_loopback() {
        render::note(format!("{} can be reached from other machines, and no --api-key is set", args.host));
    }
    let (models, embedding_model) = sources(&args)?;
    let config = ServeConfig {
        address: (args.host, args.port).into(),
        models,
        settings: ModelSettings {
            engine,
            draft: draft(&args)?,
            parallel: args.parallel.into(),
            pool: args.kv_pool.map_or(Pool::Fits, |n| Pool::Tokens(n as usize)),
            guesses: args.draft_max.into(),
            keep_alive: args.keep_alive.map(|m| Duration::from_secs(60 * u64::from(m))),
            loaded_max: args.models_max.into(),
            embedding_model,
        },
        keys,
        store: store(&args)?,
        presets: presets(&args)?,
        body_bytes_max: usize::try_from(args.max_body)?,
        connections_max: args.max_connections as usize,
        times: Times {
            head: seconds(args.head_timeout),
            body: seconds(args.body_timeout),
            write: seconds(args.write_timeout),
            ..Times::default()
        },
        drain: seconds(args.drain),
        audit: audit(&args)?,
        traces: traces(&args)?,
        tls: tls(&args)?,
        origins: args.cors_origin.iter().cloned().collect(),
        hosts: args.allowed_host.iter().cloned().collect(),
        resume_window: seconds(args.resume_window),
        compat: args.metrics_compat.map(|MetricsCompat::Vllm| Compat::Vllm),
        talk: TALK,
    };
    // The engine has the processors; the server's own work is small.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("cannot start the server's thread")?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let listening = |address| {
        render::note(format!(
            "listening on {scheme}://{address}: a web page there, OpenAI's API under {scheme}://{address}/v1"
        ));
    };
    let (audit, traces) = (config.audit.clone(), config.traces.clone());
    let served = runtime.block_on(quarrel_server::serve(config, listening));
    // What still runs ends here, and is told of.
    drop(runtime);
    audit.iter().for_each(|a| a.close());
    traces.iter().for_each(|t| t.close());
    served
}

fn audit(args: &Serve) -> Result<Option<Arc<Audit>>> {
    let Some(path) = &args.audit_log else { return Ok(None) };
    let settings = AuditSettings {
        path: path.clone(),
        bytes_max: args.audit_bytes,
        files: args.audit_files,
        prompts: args.audit_prompts,
    };
    Ok(Some(Arc::new(Audit::open(settings)?)))
}

fn traces(args: &Serve) -> Result<Option<Arc<Traces>>> {
    let Some(endpoint) = &args.otlp_endpoint else { return Ok(None) };
    let settings = TraceSettings { endpoint: endpoint.clone(), headers: args.otlp_header.clone() };
    Ok(Some(Arc::new(Traces::start(&settings)?)))
}

fn seconds(n: u32) -> Duration {
    Duration::from_secs(n.into())
}

fn tls(args: &Serve) -> Result<Option<Arc<Tls>>> {
    let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    Ok(Some(Arc::new(Tls::open(cert, key)?)))
}

fn store(args: &Serve) -> Result<Option<Arc<Store>>> {
    if args.no_store {
        return Ok(None);
    }
    let dir = data_dir(args.data.clone())?;
    Ok(Some(Arc::new(Store::open(&dir, Limits::default()).context("--no-store serves without it")?)))
}

fn presets(args: &Serve) -> Result<Presets> {
    let all = all_presets(args)?;
    match &args.preset {
        Some(name) => all.with_default(name).context("--preset"),
        None => Ok(all),
    }
}

fn all_presets(args: &Serve) -> Result<Presets> {
    let Some(path) = &args.presets else { return Ok(Presets::built_in()) };
    let presets = Presets::with_toml(&input::text_file(path)?).with_context(|| path.display().to_string())?;
    if let Some(p) = presets.list().find(|p| p.template.is_some()) {
        bail!(
            "{}: preset {:?} has a template; a template cannot be chosen by a preset",
            path.display(),
            p.name
        );
    }
    Ok(presets)
}

/// The models by the names that requests call them by; they are looked for when they are loaded.
fn sources(args: &Serve) -> Result<(Vec<ModelSource>, Option<String>)> {
    let mut names = args.models.clone();
    if names.is_empty() {
        names.push(match args.model.clone() {
            Some(name) => name,
            None => Hub::from_env()?.default_model().to_owned(),
        });
    }
    let mut ids = HashSet::new();
    let mut sources = Vec::new();
    let mut embedding = None;
    for (at, name) in names.iter().chain(&args.embedding_model).enumerate() {
        let (id, model) = match name.split_once('=') {
            Some((id, model)) if !id.is_empty() && !id.contains(['/', ':']) => (id.to_owned(), model),
            _ => (short_id(name), name.as_str()),
        };
        if at == names.len() {
            embedding = Some(id.clone());
            if args.models.contains(name) {
                break; // served anyway
            }
        }
        if !ids.insert(id.clone()) {
            bail!("two models are called {id:?}; give one another name: NAME={model}");
        }
        // The first is needed at once, so that a name that cannot be had is said at once.
        let (fetch, model) = (args.fetch, model.to_owned());
        if at == 0 {
            resolve(&model, fetch)?;
        }
        sources.push(ModelSource { id, resolve: Arc::new(move || resolve(&model, fetch)) });
    }
    Ok((sources, embedding))
}

/// The draft model; a name that cannot be had is said at once.
fn draft(args: &Serve) -> Result<Option<ModelSource>> {
    let (fetch, Some(model)) = (args.fetch, args.draft.clone()) else { return Ok(None) };
    resolve(&model, fetch).context("--draft")?;
    Ok(Some(ModelSource { id: model.clone(), resolve: Arc::new(move || resolve(&model, fetch)) }))
}

fn resolve(model: &str, fetch: FetchArgs) -> Result<quarrel_hub::LocalModel> {
    models::fetch(&Hub::from_env()?, model, fetch, false)
}

/// A path is called by its file's name; other names stay.
fn short_id(name: &str) -> String {
    let path = std::path::Path::new(name);
    if !path.exists() {
        return name.to_owned();
    }
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    stem.map_or_else(|| name.to_owned(), |s| s.to_string_lossy().into_owned())
}

fn log(args: &Serve) -> Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    set.map_err(|e| anyhow::anyhow!("cannot start the log: {e}"))
}
