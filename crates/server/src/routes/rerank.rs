//! `POST /v1/rerank`, in the form of Cohere and Jina: documents by their likeness to a query. What is compared are embeddings:
//! the relevance is the cosine of the two vectors, not the score of a cross-encoder.

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::embed::{Ask, TEXTS_MAX, Text, embed, likeness};
use crate::error::{ApiError, ErrorBody};
use crate::routes::embeddings::{EmbeddingUsage, Truncated};
use crate::{body, ids};

/// Documents to put in order.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RerankRequest {
    /// A model of `GET /v1/models`; without it the one for embeddings, or the first.
    model: Option<String>,
    /// What is looked for.
    query: String,
    /// Texts, or objects with a `text`; 2,047 at most.
    documents: Vec<Document>,
    /// Give so many of the best; all if not given.
    top_n: Option<usize>,
    /// Give the texts too.
    #[serde(default)]
    return_documents: bool,
    /// Leave out the end of a text that is too long, instead of an error; `meta.truncated` tells of it. On if not given.
    truncate: Option<bool>,
}

/// A document.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Document {
    Text(String),
    Object(DocumentText),
}

/// A document as an object.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DocumentText {
    text: String,
}

/// Documents in order, the most relevant first.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ranking {
    id: String,
    model: String,
    results: Vec<Ranked>,
    usage: EmbeddingUsage,
    meta: RankingMeta,
}

/// A document's place.
#[derive(Serialize, ToSchema)]
struct Ranked {
    /// Its place in `documents`.
    index: usize,
    /// The cosine of its vector and the query's, -1 to 1.
    relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<DocumentText>,
}

/// How it was done.
#[derive(Serialize, ToSchema)]
struct RankingMeta {
    /// `embedding-cosine`.
    method: &'static str,
    /// Documents whose end was left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    truncated: Vec<Truncated>,
}

/// Put documents in the order of their relevance to a query.
#[utoipa::path(
    post, path = "/v1/rerank", tag = "Embeddings", request_body = RerankRequest,
    responses((status = 200, body = Ranking), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(crate) async fn rerank(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
) -> Result<Json<Ranking>, ApiError> {
    let ask: RerankRequest = body::parse(&bytes)?;
    if ask.documents.is_empty() || ask.documents.len() >= TEXTS_MAX {
        let most = TEXTS_MAX - 1;
        let why = format!("documents: {} of them; 1 to {most} are needed", ask.documents.len());
        return Err(ApiError::field("documents", why));
    }
    if ask.top_n == Some(0) {
        return Err(ApiError::field("top_n", "top_n is 0; it must be 1 or more"));
    }
    let lease = app.embedding_lease(ask.model.as_deref()).await?;
    let model = lease.id.clone();
    let documents: Vec<String> = ask
        .documents
        .into_iter()
        .map(|d| match d {
            Document::Text(text) | Document::Object(DocumentText { text }) => text,
        })
        .collect();
    // The query last, so that places in errors are those of the documents.
    let texts = documents.iter().chain([&ask.query]).cloned().map(Text::Words).collect();
    let truncate = ask.truncate.unwrap_or(true);
    let made = embed(lease, Ask { truncate, ..Ask::new(texts, "documents") }, caller).await;
    let query = format!("documents[{}]", documents.len());
    let mut made = made.map_err(|e| e.renamed(&[(&query, "query")]))?;
    let Some(query) = made.vectors.pop() else { return Err(ApiError::server("the query has no vector")) };
    let mut order: Vec<(usize, f64)> = made.vectors.iter().map(|v| likeness(v, &query)).enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(ask.top_n.unwrap_or(usize::MAX));
    let result = |(index, relevance_score): (usize, f64)| Ranked {
        index,
        relevance_score,
        document: ask.return_documents.then(|| DocumentText { text: documents[index].clone() }),
    };
    Ok(Json(Ranking {
        id: ids::new("rerank-"),
        model,
        results: order.into_iter().map(result).collect(),
        usage: EmbeddingUsage { prompt_tokens: made.tokens, total_tokens: made.tokens },
        meta: RankingMeta { method: "embedding-cosine", truncated: Truncated::list(&made.cut) },
    }))
}
