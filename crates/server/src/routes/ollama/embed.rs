//! Ollama's `POST /api/embed`, and `/api/embeddings`, its older form for one text.

use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::body;
use crate::dialect::OllamaError;
use crate::embed::{Ask, Text, embed};
use crate::error::ApiError;
use crate::fields::OneOrMany;
use crate::models::Live;
use crate::routes::embeddings::Truncated;

/// Texts to embed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OllamaEmbed {
    /// A model of `GET /api/tags`; without it the one for embeddings, or the first.
    model: Option<String>,
    /// A text or several.
    input: OneOrMany,
    /// Leave out the end of a text that is too long, instead of an error; `truncated` tells of it. On if not given.
    truncate: Option<bool>,
    /// Numbers of a vector, where the model has shorter ones than its own.
    dimensions: Option<usize>,
    /// `num_ctx` alone: the context that is needed.
    #[schema(value_type = Object)]
    options: Option<Map<String, Value>>,
    /// Taken, and needed for nothing: how long models are kept is the server's setting.
    #[schema(value_type = Object)]
    #[allow(dead_code, reason = "taken so that it may be given")]
    keep_alive: Option<Value>,
}

/// Vectors of length 1.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaVectors {
    model: String,
    embeddings: Vec<Vec<f32>>,
    /// Nanoseconds.
    total_duration: u64,
    /// Nanoseconds.
    load_duration: u64,
    /// Tokens of all texts.
    prompt_eval_count: usize,
    /// Texts whose end was left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    truncated: Vec<Truncated>,
}

/// A text to embed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OllamaEmbeddings {
    /// A model of `GET /api/tags`; without it the one for embeddings, or the first.
    model: Option<String>,
    /// The text.
    prompt: String,
    /// `num_ctx` alone: the context that is needed.
    #[schema(value_type = Object)]
    options: Option<Map<String, Value>>,
    /// Taken, and needed for nothing: how long models are kept is the server's setting.
    #[schema(value_type = Object)]
    #[allow(dead_code, reason = "taken so that it may be given")]
    keep_alive: Option<Value>,
}

/// A vector as the model gives it, not scaled.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaVector {
    embedding: Vec<f32>,
}

/// No option but the context has a meaning here.
fn check(options: Option<&Map<String, Value>>, live: &Live) -> Result<(), ApiError> {
    for (name, value) in options.into_iter().flatten() {
        let field = format!("options.{name}");
        let context = live.handle().info().context as u64;
        let why = match (name.as_str(), value.as_u64()) {
            ("num_ctx", Some(n)) if n <= context => continue,
            ("num_ctx", _) => format!("{field} is {value}; the model is loaded with a context of {context}"),
            _ => format!("{field}: this field means nothing for embeddings; leave it out"),
        };
        return Err(ApiError::field(field, why));
    }
    Ok(())
}

/// Turn texts into vectors, by Ollama's API.
#[utoipa::path(
    post, path = "/api/embed", tag = "Ollama", request_body = OllamaEmbed,
    responses((status = 200, body = OllamaVectors), (status = "4XX", body = OllamaError), (status = "5XX", body = OllamaError))
)]
pub(crate) async fn embed_texts(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
) -> Result<Json<OllamaVectors>, ApiError> {
    let started = Instant::now();
    let ask: OllamaEmbed = body::parse(&bytes)?;
    let lease = app.embedding_lease(ask.model.as_deref()).await?;
    check(ask.options.as_ref(), &lease)?;
    let (model, load) = (lease.id.clone(), started.elapsed());
    let texts = ask.input.into_vec().into_iter().map(Text::Words).collect();
    let (truncate, dimensions) = (ask.truncate.unwrap_or(true), ask.dimensions);
    let made = embed(lease, Ask { truncate, dimensions, ..Ask::new(texts, "input") }, caller).await?;
    Ok(Json(OllamaVectors {
        model,
        embeddings: made.vectors,
        total_duration: started.elapsed().as_nanos() as u64,
        load_duration: load.as_nanos() as u64,
        prompt_eval_count: made.tokens,
        truncated: Truncated::list(&made.cut),
    }))
}

/// Turn one text into a vector, by Ollama's older API.
#[utoipa::path(
    post, path = "/api/embeddings", tag = "Ollama", request_body = OllamaEmbeddings,
    responses((status = 200, body = OllamaVector), (status = "4XX", body = OllamaError), (status = "5XX", body = OllamaError))
)]
pub(crate) async fn embed_prompt(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
) -> Result<Json<OllamaVector>, ApiError> {
    let ask: OllamaEmbeddings = body::parse(&bytes)?;
    let lease = app.embedding_lease(ask.model.as_deref()).await?;
    check(ask.options.as_ref(), &lease)?;
    let texts = vec![Text::Words(ask.prompt)];
    // This form has no place to tell of what was left out, so nothing is.
    let made = embed(lease, Ask { normalize: false, ..Ask::new(texts, "prompt") }, caller).await;
    let made = made.map_err(|e| e.renamed(&[("prompt[0]", "prompt")]))?;
    Ok(Json(OllamaVector { embedding: made.vectors.into_iter().next().unwrap_or_default() }))
}
