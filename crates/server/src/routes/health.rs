//! `GET /health`: the engines' heartbeats; `GET /ready`: whether a request would be answered; `GET /metrics`.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::App;
use crate::metrics;

/// Alive: no engine hangs. For liveness probes.
#[utoipa::path(
    get, path = "/health", tag = "Operation",
    responses((status = 200, body = Object), (status = 503, body = Object, description = "An engine hangs or is down"))
)]
pub(crate) async fn health(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let down: Vec<Value> = app
        .models
        .list()
        .into_iter()
        .filter_map(|s| Some((s.id, s.live?.handle().check().err()?)))
        .map(|(id, e)| json!({ "model": id, "error": e.to_string() }))
        .collect();
    if down.is_empty() {
        (StatusCode::OK, Json(json!({ "status": "ok" })))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "down", "engines": down })))
    }
}

/// Ready: a model made a token, and the server takes requests. For readiness probes.
#[utoipa::path(
    get, path = "/ready", tag = "Operation",
    responses((status = 200, body = Object), (status = 503, body = Object, description = "Loading, or shutting down"))
)]
pub(crate) async fn ready(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let no =
        |why: &str| (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "not ready", "why": why })));
    if app.draining() {
        return no("shutting down");
    }
    if !app.warmed() {
        return no("no token has been made yet");
    }
    (StatusCode::OK, Json(json!({ "status": "ready" })))
}

/// Figures for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Operation", responses((status = 200, content_type = "text/plain", body = String)))]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let mut response = metrics::render(&app).into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
