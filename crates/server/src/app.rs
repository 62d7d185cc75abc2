//! What all routes share, and the router: who calls, how long a body may be, what is counted and logged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Bytes, HttpBody as _};
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use quarrel_store::presets::Presets;
use quarrel_store::{ApiKey, Lookup, Scope, Store};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::charge::Account;
use crate::cors::{self, Origins};
use crate::dialect::Dialect;
use crate::error::{ApiError, Failure};
use crate::hosts::Hosts;
use crate::ids;
use crate::metrics::HttpCounts;
use crate::models::Models;
use crate::record::{Listeners, Record};
use crate::resume::Streams;
use crate::routes::{
    anthropic, chat, completions, conversations, embeddings, explain, health, models, ollama, presets,
    rerank, responses, streams, tokens, ws,
};
use crate::trace::{Context, TRACEPARENT};
use crate::{ServeConfig, arrival, page, store};

/// Names of metrics of another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// vLLM's, which routers know.
    Vllm,
}

/// Who calls.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// What the scheduler shares the device by.
    pub(crate) key: Arc<str>,
    /// Whose what is stored is.
    pub(crate) owner: Arc<str>,
    /// Whose quota pays.
    pub(crate) account: Option<Account>,
    /// What is told of the request.
    pub(crate) record: Option<Arc<Record>>,
}

/// What all routes share.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) models: Arc<Models>,
    pub(crate) counts: HttpCounts,
    pub(crate) compat: Option<Compat>,
    /// Streams that may be come back to.
    pub(crate) streams: Streams,
    draining: watch::Sender<bool>,
    warmed: AtomicBool,
    connections: Arc<AtomicUsize>,
    sockets: Arc<AtomicUsize>,
    keys: Vec<String>,
    /// Whether the store has keys, from which time on every request needs one.
    stored_keys: AtomicBool,
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) presets: Presets,
    rates: Mutex<HashMap<String, Bucket>>,
    /// Whose web pages may call.
    pub(crate) origins: Origins,
    /// What it is called.
    hosts: Hosts,
    /// Whether it can be reached from this machine only.
    loopback: bool,
    /// How long a body may take.
    body_time: Duration,
    /// How many bytes it may have.
    body_bytes_max: usize,
    /// Who is told of requests.
    pub(crate) listeners: Listeners,
}

impl std::ops::Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl App {
    pub(crate) fn new(models: Arc<Models>, config: &ServeConfig) -> quarrel_store::Result<App> {
        let store = config.store.clone();
        // A store that cannot say must not be one without keys: that would let everybody in.
        let has_keys = store.as_ref().map_or(Ok(false), |s| s.keys().map(|k| !k.is_empty()))?;
        Ok(App(Arc::new(Shared {
            stored_keys: AtomicBool::new(has_keys),
            models,
            compat: config.compat,
            keys: config.keys.clone(),
            store,
            presets: config.presets.clone(),
            rates: Mutex::default(),
            counts: HttpCounts::default(),
            streams: Streams::new(config.resume_window),
            draining: watch::Sender::new(false),
            warmed: AtomicBool::new(false),
            connections: Arc::default(),
            origins: config.origins.clone(),
            hosts: config.hosts.clone(),
            loopback: config.address.ip().is_loopback(),
            body_time: config.times.body,
            body_bytes_max: config.body_bytes_max,
            listeners: Listeners { audit: config.audit.clone(), traces: config.traces.clone() },
            sockets: Arc::default(),
        })))
    }

    /// Whether new work is refused because the server shuts down.
    pub(crate) fn draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub(crate) fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Hears when the server shuts down.
    pub(crate) fn drained(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Whether a token was made.
    pub(crate) fn warmed(&self) -> bool {
        self.warmed.load(Ordering::Acquire)
    }

    pub(crate) fn warm(&self) {
        self.warmed.store(true, Ordering::Release);
    }

    /// Looks whether the store has keys by now.
    pub(crate) async fn look_for_keys(&self) {
        if self.store.is_some()
            && !self.stored_keys.load(Ordering::Acquire)
            && let Ok(true) = self.stored(|s| Ok(!s.keys()?.is_empty())).await
        {
            self.stored_keys.store(true, Ordering::Release);
        }
    }

    /// Whether requests need a key.
    fn needs_key(&self) -> bool {
        !self.keys.is_empty() || self.stored_keys.load(Ordering::Acquire)
    }

    /// Refuses a page that reaches a server without keys by a name of its own; with a key it could do nothing.
    fn check_host(&self, request: &Request) -> Result<(), ApiError> {
        let open = self.loopback && !self.needs_key();
        if open || self.hosts.are_named() { self.hosts.check(request) } else { Ok(()) }
    }

    /// Open connections.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The counter of open WebSockets.
    pub(crate) fn sockets(&self) -> Arc<AtomicUsize> {
        self.sockets.clone()
    }

    /// The counter of open connections.
    pub(crate) fn connection_counter(&self) -> Arc<AtomicUsize> {
        self.connections.clone()
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Longbow Quarrel",
        description = "Language models served by `quarrel serve`. Unknown fields are refused with their names.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(ws::SocketRequest, ws::SocketEvent))
)]
struct Api;

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(chat::chat))
        .routes(routes!(completions::completions))
        .routes(routes!(responses::create))
        .routes(routes!(responses::read, responses::delete))
        .routes(routes!(responses::input_items))
        .routes(routes!(anthropic::messages))
        .routes(routes!(anthropic::count_tokens))
        .routes(routes!(streams::chat))
        .routes(routes!(streams::completion))
        .routes(routes!(streams::message))
        .routes(routes!(ws::open))
        .routes(routes!(ollama::chat))
        .routes(routes!(ollama::generate))
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(rerank::rerank))
        .routes(routes!(ollama::embed::embed_texts))
        .routes(routes!(ollama::embed::embed_prompt))
        .routes(routes!(ollama::about::tags))
        .routes(routes!(ollama::about::show))
        .routes(routes!(ollama::about::ps))
        .routes(routes!(ollama::about::version))
        .routes(routes!(models::list))
        .routes(routes!(models::one))
        .routes(routes!(models::load))
        .routes(routes!(models::unload))
        .routes(routes!(models::adapters, models::load_adapter))
        .routes(routes!(models::unload_adapter))
        .routes(routes!(conversations::list, conversations::create))
        .routes(routes!(conversations::read, conversations::rename, conversations::delete))
        .routes(routes!(conversations::delete_from))
        .routes(routes!(conversations::export))
        .routes(routes!(presets::list))
        .routes(routes!(explain::explain))
        .routes(routes!(tokens::tokenize))
        .routes(routes!(tokens::detokenize))
        .routes(routes!(tokens::apply_template))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
}

/// The OpenAPI document.
pub fn openapi() -> Value {
    merged(&routes().split_for_parts().1)
}

/// The document with one object where two types share a body: each alone allows no fields but its own, so both together
/// would allow none.
fn merged(document: &Document) -> Value {
    let mut document = json!(document);
    let schemas = document["components"]["schemas"].clone();
    let parts = |schema: &Value| {
        let parts = schema["allOf"].as_array()?.iter();
        parts
            .map(|p| schemas.get(p["$ref"].as_str()?.rsplit('/').next()?).filter(|s| s["type"] == "object"))
            .collect()
    };
    for (_, schema) in document["components"]["schemas"].as_object_mut().into_iter().flatten() {
        let Some(parts): Option<Vec<&Value>> = parts(schema) else { continue };
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for part in parts {
            properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
            required.extend(part["required"].as_array().cloned().unwrap_or_default());
        }
        let description = schema["description"].clone();
        *schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        if !description.is_null() {
            schema["description"] = description;
        }
    }
    document
}

/// The router.
pub(crate) fn router(app: App) -> Router {
    let bytes_max = app.body_bytes_max;
    let (router, document) = routes().split_for_parts();
    let document = Bytes::from(merged(&document).to_string());
    let router = router
        .route("/openapi.json", axum::routing::get(async move || json_bytes(document.clone())))
        .route("/", axum::routing::get(page::index))
        .route("/{file}", axum::routing::get(page::asset))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .layer(DefaultBodyLimit::max(app.body_bytes_max))
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .layer(middleware::from_fn_with_state(app.clone(), cors::share))
        .with_state(app);
    // A WebSocket's requests go through the router itself.
    let api = ws::Api { router: router.clone(), bytes_max };
    router.layer(Extension(api))
}

/// JSON that is written already.
fn json_bytes(bytes: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response()
}

async fn unknown(request: Request) -> ApiError {
    ApiError::not_found(format!(
        "there is no {} here; GET /openapi.json lists what there is",
        request.uri().path()
    ))
}

async fn wrong_method(request: Request) -> ApiError {
    let (path, method) = (request.uri().path(), request.method());
    let message = format!("{path} does not take {method}; the header Allow says what it takes");
    ApiError::bad(message).status(StatusCode::METHOD_NOT_ALLOWED)
}

/// Routes that need no key: probes.
const OPEN: [&str; 3] = ["/health", "/ready", "/openapi.json"];

/// Whether a path needs no key.
fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || page::is_page(path)
}

/// Lets in whom the keys allow, and nobody new while the server shuts down.
async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Result<Response, ApiError> {
    app.check_host(&request)?;
    app.origins.check(&request)?;
    let path = request.uri().path();
    if !is_open(path) {
        if app.draining() && request.method() == Method::POST {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        let key = key_of(&request);
        // Browsers cannot send a key with a WebSocket: it comes in the first frame.
        if key.is_some() || path != ws::PATH || !app.needs_key() {
            let mut caller = admit(&app, request.method().clone(), path.to_owned(), key).await?;
            caller.record = request.extensions_mut().remove::<Arc<Record>>();
            caller.record.iter().for_each(|r| r.key(&caller.key));
            request.extensions_mut().insert(caller);
        }
    }
    Ok(next.run(request).await)
}

/// What a key must be allowed for a route.
fn scope(method: &Method, path: &str) -> Scope {
    if path.starts_with("/v1/conversations") {
        Scope::Conversations
    } else if path == "/metrics" {
        Scope::Metrics
    } else if path.starts_with("/v1/models/") && method != Method::GET {
        Scope::Models
    } else {
        Scope::Inference
    }
}

/// The key that a request brings.
fn key_of(request: &Request) -> Option<String> {
    let text = |name: HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok());
    let bearer = text(header::AUTHORIZATION).and_then(|v| v.strip_prefix("Bearer "));
    bearer.or_else(|| text(HeaderName::from_static("x-api-key"))).map(str::to_owned)
}

/// Who calls with a key, if it may.
pub(crate) async fn admit(
    app: &App,
    method: Method,
    path: String,
    given: Option<String>,
) -> Result<Caller, ApiError> {
    let stored = app.stored_keys.load(Ordering::Acquire);
    if !app.needs_key() {
        return Ok(Caller { key: "".into(), owner: "local".into(), account: None, record: None });
    }
    let given =
        given.ok_or_else(|| ApiError::unauthorized("an API key is needed: Authorization: Bearer KEY"))?;
    // Every key is compared whole, so that the time says nothing.
    let same = |key: &String| bool::from(key.as_bytes().ct_eq(given.as_bytes()));
    let found = app.keys.iter().enumerate().fold(None, |found, (i, k)| if same(k) { Some(i) } else { found });
    if let Some(i) = found {
        let name: Arc<str> = format!("key {}", i + 1).into();
        return Ok(Caller { key: name.clone(), owner: name, account: None, record: None });
    }
    let unknown = || ApiError::unauthorized("this API key is not known here");
    if !stored {
        return Err(unknown());
    }
    let key = match app.stored(move |s| s.lookup_key(&given, store::now())).await? {
        Lookup::Good(key) => key,
        Lookup::Unknown => return Err(unknown()),
        Lookup::Revoked => return Err(ApiError::unauthorized("this API key was revoked")),
        Lookup::Expired => return Err(ApiError::unauthorized("this API key has expired")),
    };
    let needed = scope(&method, &path);
    if !key.allows(needed) {
        let message = format!("this API key may not do that: it needs the scope {}", needed.name());
        return Err(ApiError::forbidden(message));
    }
    app.pace(&key)?;
    let id: Arc<str> = key.id.into();
    let account = Some(Account { store: app.store()?, key: id.clone() });
    Ok(Caller { key: id.clone(), owner: id, account, record: None })
}

/// Requests that a key has left, refilled as time goes by.
struct Bucket {
    left: f64,
    at: Instant,
}

impl App {
    /// Refuses a request beyond its key's requests a minute.
    fn pace(&self, key: &ApiKey) -> Result<(), ApiError> {
        let Some(most) = key.requests_per_minute.map(f64::from) else { return Ok(()) };
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let bucket = rates.entry(key.id.clone()).or_insert(Bucket { left: most, at: now });
        let refilled = bucket.left + most * (now - bucket.at).as_secs_f64() / 60.0;
        (bucket.left, bucket.at) = (refilled.min(most), now);
        if bucket.left < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - bucket.left) * 60.0 / most.max(1e-3));
            let message = format!("this API key may make {most} requests a minute");
            return Err(ApiError::busy(message, "rate_limit_exceeded", wait));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

/// The longest id of a request that is taken from its header.
const REQUEST_ID_MAX: usize = 128;

/// Gives each request an id, counts it and logs it.
async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let name = HeaderName::from_static("x-request-id");
    let given = request.headers().get(&name).filter(|v| v.len() <= REQUEST_ID_MAX && v.to_str().is_ok());
    let id = given.cloned().or_else(|| HeaderValue::from_str(&ids::new("req_")).ok());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let route = route.as_deref().unwrap_or("other");
    let shown = id.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default();
    let dialect = Dialect::of(request.uri().path());
    // Probes and the page's files are not worth a line.
    let told = !is_open(request.uri().path());
    let record = if told { app.listeners.record(&request, shown, route) } else { None };
    let context = match &record {
        Some(record) => record.context.clone(),
        None => Context::of(request.headers()),
    };
    if let Some(record) = &record {
        request.extensions_mut().insert(record.clone());
    }
    let late = arrival::limit(&mut request, app.body_time, record.clone());
    // One that says that it is too long need not come.
    let mut response = match request.body().size_hint().lower() > app.body_bytes_max as u64 {
        true => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        false => next.run(request).await,
    };
    if late.is_late() {
        response = late.answer();
    }
    response = dialect.say(named_error(response), id.as_ref());
    let (status, time) = (response.status().as_u16(), started.elapsed());
    let failure = response.extensions().get::<Failure>().cloned();
    app.counts.observe(route, method.as_str(), status, time, failure.as_ref().map(|f| f.kind));
    log(shown, method.as_str(), route, status, time, failure.as_ref());
    let headers = response.headers_mut();
    if let Some(value) = context.as_ref().and_then(Context::header) {
        headers.insert(TRACEPARENT, value);
    }
    if let Some(id) = id {
        headers.insert(name, id);
    }
    match record {
        Some(record) => record.answered(response),
        None => response,
    }
}

fn log(id: &str, method: &str, route: &str, status: u16, time: Duration, failure: Option<&Failure>) {
    let ms = (time.as_secs_f64() * 1e4).round() / 10.0;
    match failure {
        Some(f) if status >= 500 => {
            tracing::error!(id, method, route, status, ms, error = f.message, "request")
        }
        Some(f) => tracing::info!(id, method, route, status, ms, error = f.message, "request"),
        None => tracing::info!(id, method, route, status, ms, "request"),
    }
}

/// Errors that axum makes by itself, as ours.
fn named_error(response: Response) -> Response {
    let status = response.status();
    if response.extensions().get::<Failure>().is_some()
        || !status.is_client_error() && !status.is_server_error()
    {
        return response;
    }
    if response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/json"))
    {
        return response;
    }
    let message = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "the body is longer than this server takes (--max-body)".into(),
        _ => format!("{}: the request could not be read", status),
    };
    let kind = if status.is_client_error() { ApiError::bad(message) } else { ApiError::server(message) };
    kind.status(status).into_response()
}
