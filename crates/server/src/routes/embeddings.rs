//! `POST /v1/embeddings`: OpenAI's, of an encoder or of a decoder's hidden states.

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::embed::{Ask, PoolingName, Text, base64, embed};
use crate::error::{ApiError, ErrorBody};
use crate::fields::Priority;
use crate::routes::completions::Prompt;
use crate::{body, models};

/// How the numbers of a vector are written.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Their bytes, little-endian f32, as base64.
    Base64,
}

/// Texts to embed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingRequest {
    /// A model of `GET /v1/models`; without it the one for embeddings, or the first.
    model: Option<String>,
    /// A text, texts, token ids, or lists of token ids; 2,048 at most.
    input: Prompt,
    #[serde(default)]
    encoding_format: Encoding,
    /// Numbers of a vector, where the model has shorter ones than its own.
    dimensions: Option<usize>,
    /// Whose it is, for the log.
    user: Option<String>,
    /// How the hidden states of a text become one vector; the model's own way if not given.
    pooling: Option<PoolingName>,
    /// Scale vectors to length 1; on if not given.
    normalize: Option<bool>,
    /// Leave out the end of a text that is too long, instead of an error; `truncated` tells of it.
    #[serde(default)]
    truncate: bool,
    /// How urgent it is.
    priority: Option<Priority>,
}

/// Vectors.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmbeddingList {
    object: &'static str,
    data: Vec<EmbeddingItem>,
    model: String,
    usage: EmbeddingUsage,
    /// Texts whose end was left out, with `truncate`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    truncated: Vec<Truncated>,
}

/// The vector of one text.
#[derive(Serialize, ToSchema)]
struct EmbeddingItem {
    object: &'static str,
    /// The text's place in `input`.
    index: usize,
    embedding: EmbeddingVector,
}

/// A vector, in the form that was asked for.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum EmbeddingVector {
    Numbers(Vec<f32>),
    Bytes(String),
}

/// Tokens of a request.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
}

/// A text that was too long.
#[derive(Serialize, ToSchema)]
pub(crate) struct Truncated {
    /// Its place.
    index: usize,
    /// Tokens of its end that are not in the vector.
    tokens: usize,
}

impl Truncated {
    pub(crate) fn list(cut: &[(usize, usize)]) -> Vec<Truncated> {
        cut.iter().map(|(index, tokens)| Truncated { index: *index, tokens: *tokens }).collect()
    }
}

/// Turn texts into vectors.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest,
    responses((status = 200, body = EmbeddingList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(crate) async fn embeddings(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
) -> Result<Json<EmbeddingList>, ApiError> {
    let ask: EmbeddingRequest = body::parse(&bytes)?;
    if let Some(user) = &ask.user {
        tracing::info!(user, key = %caller.key, "embeddings for this user");
    }
    let lease = app.embedding_lease(ask.model.as_deref()).await?;
    let model = lease.id.clone();
    let texts = match ask.input {
        Prompt::Text(text) => vec![Text::Words(text)],
        Prompt::Texts(texts) => texts.into_iter().map(Text::Words).collect(),
        Prompt::Ids(ids) if ids.is_empty() => Vec::new(),
        Prompt::Ids(ids) => vec![Text::Tokens(ids)],
        Prompt::IdLists(lists) => lists.into_iter().map(Text::Tokens).collect(),
    };
    let made = embed(
        lease,
        Ask {
            pooling: ask.pooling.map(Into::into),
            normalize: ask.normalize.unwrap_or(true),
            dimensions: ask.dimensions,
            truncate: ask.truncate,
            class: ask.priority.map(Into::into).unwrap_or_default(),
            ..Ask::new(texts, "input")
        },
        caller,
    )
    .await?;
    let item = |(index, vector): (usize, Vec<f32>)| EmbeddingItem {
        object: "embedding",
        index,
        embedding: match ask.encoding_format {
            Encoding::Float => EmbeddingVector::Numbers(vector),
            Encoding::Base64 => EmbeddingVector::Bytes(base64(&vector)),
        },
    };
    Ok(Json(EmbeddingList {
        object: "list",
        data: made.vectors.into_iter().enumerate().map(item).collect(),
        model,
        usage: EmbeddingUsage { prompt_tokens: made.tokens, total_tokens: made.tokens },
        truncated: Truncated::list(&made.cut),
    }))
}

impl App {
    /// The model of a request for vectors: the one that it names, else the one that is served for them, else the first.
    pub(crate) async fn embedding_lease(&self, name: Option<&str>) -> Result<models::Lease, ApiError> {
        let name = name.filter(|n| !n.is_empty()).or(self.models.embedding_model());
        self.models.lease(name).await
    }
}
