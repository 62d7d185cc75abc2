//! `GET /v1/models` and what can be done with models and adapters while they are served.

use std::path::PathBuf;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::App;
use crate::body;
use crate::error::{ApiError, ErrorBody};
use crate::models::Standing;
use crate::prompt::blocking;

/// A model, in OpenAI's words and some of ours.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Whether it is in memory; the first request loads it.
    loaded: bool,
    /// Longest prompt and answer together, in tokens; known when it is loaded.
    context_length: Option<usize>,
    /// Requests that use it now.
    in_flight: usize,
    /// Why it could not be loaded the last time.
    error: Option<String>,
}

/// All of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

impl From<Standing> for ModelObject {
    fn from(s: Standing) -> ModelObject {
        let live = s.live.as_deref();
        ModelObject {
            id: s.id,
            object: "model",
            created: live.map_or(0, |l| l.loaded_at),
            owned_by: "quarrel",
            loaded: live.is_some(),
            context_length: live.map(|l| l.handle().info().context),
            in_flight: live.map_or(0, |l| l.in_flight()),
            error: s.failed,
        }
    }
}

/// The models that are served.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = ModelList)))]
pub(crate) async fn list(State(app): State<App>) -> Json<ModelList> {
    let data = app.models.list().into_iter().map(ModelObject::from).collect();
    Json(ModelList { object: "list", data })
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "OpenAI", params(("model" = String, Path, description = "its id")),
    responses((status = 200, body = ModelObject), (status = 404, body = ErrorBody))
)]
pub(crate) async fn one(
    State(app): State<App>,
    Path(model): Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    Ok(Json(app.models.get(&model)?.into()))
}

/// Load a model now, or load its file again: new requests get the new version, those that run keep the old one.
#[utoipa::path(
    post, path = "/v1/models/{model}/load", tag = "Models", params(("model" = String, Path, description = "its id")),
    responses((status = 200, body = ModelObject), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody))
)]
pub(crate) async fn load(
    State(app): State<App>,
    Path(model): Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    app.models.swap(&model).await?;
    Ok(Json(app.models.get(&model)?.into()))
}

/// Take a model out of memory when the requests that use it are over.
#[utoipa::path(
    post, path = "/v1/models/{model}/unload", tag = "Models", params(("model" = String, Path, description = "its id")),
    responses((status = 200, body = ModelObject), (status = 404, body = ErrorBody))
)]
pub(crate) async fn unload(
    State(app): State<App>,
    Path(model): Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    app.models.unload(&model).await?;
    Ok(Json(app.models.get(&model)?.into()))
}

/// An adapter to load.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewAdapter {
    /// What requests choose it by.
    name: String,
    /// PEFT's directory or a GGUF file, on the server.
    path: String,
    /// How strongly it works; 1 is as trained.
    scale: Option<f32>,
}

fn adapters_json(app: &App, model: &str) -> Result<Value, ApiError> {
    let standing = app.models.get(model)?;
    let live = standing.live.ok_or_else(|| ApiError::not_found(format!("{model} is not loaded")))?;
    let adapters = live.handle().adapters().into_iter().map(|a| {
        json!({
            "name": a.name, "path": a.path, "rank": a.rank.1, "scale": a.scale, "bytes": a.bytes,
            "in_flight": a.uses, "requests": a.requests,
        })
    });
    Ok(json!({ "object": "list", "data": adapters.collect::<Vec<_>>() }))
}

/// The LoRA adapters of a model.
#[utoipa::path(
    get, path = "/v1/models/{model}/adapters", tag = "Models", params(("model" = String, Path, description = "its id")),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody))
)]
pub(crate) async fn adapters(
    State(app): State<App>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(adapters_json(&app, &model)?))
}

/// Load a LoRA adapter while the model runs.
#[utoipa::path(
    post, path = "/v1/models/{model}/adapters", tag = "Models", request_body = NewAdapter,
    params(("model" = String, Path, description = "its id")),
    responses((status = 200, body = Object), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
pub(crate) async fn load_adapter(
    State(app): State<App>,
    Path(model): Path<String>,
    bytes: Bytes,
) -> Result<Json<Value>, ApiError> {
    let new: NewAdapter = body::parse(&bytes)?;
    let lease = app.models.lease(Some(&model)).await?;
    blocking(move || {
        let path = PathBuf::from(&new.path);
        let loaded = lease.handle().load_adapter(&new.name, path, new.scale.unwrap_or(1.0));
        loaded.map_err(|e| ApiError::field("path", e.to_string()))
    })
    .await?;
    Ok(Json(adapters_json(&app, &model)?))
}

/// Unload a LoRA adapter; requests that have it keep it to their end.
#[utoipa::path(
    delete, path = "/v1/models/{model}/adapters/{name}", tag = "Models",
    params(("model" = String, Path, description = "its id"), ("name" = String, Path, description = "the adapter's")),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody))
)]
pub(crate) async fn unload_adapter(
    State(app): State<App>,
    Path((model, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let lease = app.models.lease(Some(&model)).await?;
    blocking(move || Ok(lease.handle().unload_adapter(&name)?)).await?;
    Ok(Json(adapters_json(&app, &model)?))
}
