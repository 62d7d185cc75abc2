//! `/v1/conversations`: list, read, rename, delete, export. A chat request with `conversation` goes on with one.
#![allow(unused_qualifications, reason = "in what utoipa makes of parameters")]

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use quarrel_store::{ConversationInfo, ListQuery, Message, NewConversation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::app::{App, Caller};
use crate::body;
use crate::error::{ApiError, ErrorBody};
use crate::store::now;

/// A conversation as lists show it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConversationObject {
    id: String,
    object: &'static str,
    title: String,
    model: Option<String>,
    /// Seconds since 1970.
    created_at: f64,
    updated_at: f64,
    message_count: u64,
}

/// A page of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConversationList {
    object: &'static str,
    data: Vec<ConversationObject>,
    has_more: bool,
    /// `before` for the next page.
    next: Option<String>,
}

/// A conversation with its messages.
#[derive(Serialize, ToSchema)]
pub(crate) struct FullConversation {
    #[serde(flatten)]
    info: ConversationObject,
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    /// What a model wrote about its beginning.
    #[schema(value_type = Object)]
    summary: Option<Value>,
}

fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

impl From<ConversationInfo> for ConversationObject {
    fn from(c: ConversationInfo) -> ConversationObject {
        let model = c.metadata.as_ref().and_then(|m| m["model"].as_str().map(str::to_owned));
        ConversationObject {
            id: c.id,
            object: "conversation",
            title: c.title,
            model,
            created_at: seconds(c.created_at),
            updated_at: seconds(c.updated_at),
            message_count: c.messages,
        }
    }
}

fn message(m: Message) -> Value {
    let mut value = json!(m);
    value["created_at"] = json!(seconds(m.created_at));
    value
}

/// Which conversations.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// At most so many, 1 to 200; 50 if not given.
    limit: Option<u32>,
    /// Those after this one in the list: an id, or `next` of the page before.
    before: Option<String>,
    /// Only those with these words.
    q: Option<String>,
}

/// The caller's conversations, the last changed first.
#[utoipa::path(
    get, path = "/v1/conversations", tag = "Conversations", params(Which),
    responses((status = 200, body = ConversationList), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<ConversationList>, ApiError> {
    let Query(which) = query.map_err(|e| ApiError::bad(e.body_text()))?;
    let page = app
        .stored(move |store| {
            let cursor = match which.before.filter(|b| !b.is_empty()) {
                Some(id) if !id.contains('.') => {
                    let info = store.info(&caller.owner, &id)?;
                    Some(format!("{}.{}", info.updated_at, info.id))
                }
                cursor => cursor,
            };
            let search = which.q.as_deref().filter(|q| !q.trim().is_empty());
            let query = ListQuery { search, cursor: cursor.as_deref(), limit: which.limit.unwrap_or(50) };
            store.list(&caller.owner, &query)
        })
        .await?;
    Ok(Json(ConversationList {
        object: "list",
        data: page.conversations.into_iter().map(Into::into).collect(),
        has_more: page.next.is_some(),
        next: page.next,
    }))
}

/// A new conversation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Create {
    /// Empty: the first message gives it.
    #[serde(default)]
    title: String,
    /// The model that it is held with.
    model: Option<String>,
}

/// Begin a conversation.
#[utoipa::path(
    post, path = "/v1/conversations", tag = "Conversations", request_body = Create,
    responses((status = 201, body = ConversationObject), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
) -> Result<(StatusCode, Json<ConversationObject>), ApiError> {
    let new: Create = if bytes.is_empty() { body::typed(Default::default())? } else { body::parse(&bytes)? };
    let metadata = new.model.map(|m| json!({ "model": m }));
    let new = NewConversation { title: new.title, metadata };
    let info = app.stored(move |store| store.create(&caller.owner, &new, now())).await?;
    Ok((StatusCode::CREATED, Json(info.into())))
}

/// A conversation with its messages.
#[utoipa::path(
    get, path = "/v1/conversations/{id}", tag = "Conversations", params(("id" = String, Path)),
    responses((status = 200, body = FullConversation), (status = 404, body = ErrorBody))
)]
pub(crate) async fn read(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<FullConversation>, ApiError> {
    let c = app.stored(move |store| store.conversation(&caller.owner, &id)).await?;
    Ok(Json(FullConversation {
        info: c.info.into(),
        messages: c.messages.into_iter().map(message).collect(),
        summary: c.summary.map(|s| json!(s)),
    }))
}

/// What can be changed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    title: String,
}

/// Rename a conversation.
#[utoipa::path(
    patch, path = "/v1/conversations/{id}", tag = "Conversations", params(("id" = String, Path)), request_body = Change,
    responses((status = 200, body = ConversationObject), (status = 404, body = ErrorBody))
)]
pub(crate) async fn rename(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> Result<Json<ConversationObject>, ApiError> {
    let change: Change = body::parse(&bytes)?;
    let info = app.stored(move |store| store.rename(&caller.owner, &id, &change.title, now())).await?;
    Ok(Json(info.into()))
}

/// Delete a conversation.
#[utoipa::path(
    delete, path = "/v1/conversations/{id}", tag = "Conversations", params(("id" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody))
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let gone = id.clone();
    app.stored(move |store| store.delete(&caller.owner, &id)).await?;
    Ok(Json(json!({ "id": gone, "object": "conversation.deleted", "deleted": true })))
}

/// Delete a message and all after it: what an edit or another answer begins with.
#[utoipa::path(
    delete, path = "/v1/conversations/{id}/messages/{message}", tag = "Conversations",
    params(("id" = String, Path), ("message" = String, Path)),
    responses((status = 200, body = ConversationObject), (status = 404, body = ErrorBody))
)]
pub(crate) async fn delete_from(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((id, message)): Path<(String, String)>,
) -> Result<Json<ConversationObject>, ApiError> {
    let info = app.stored(move |store| {
        store.remove_from(&caller.owner, &id, &message, now())?;
        store.info(&caller.owner, &id)
    });
    Ok(Json(info.await?.into()))
}

/// The form of an export.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct Form {
    /// `json` or `markdown`.
    format: Option<String>,
}

/// A conversation to keep elsewhere.
#[utoipa::path(
    get, path = "/v1/conversations/{id}/export", tag = "Conversations", params(("id" = String, Path), Form),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn export(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<Form>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(form) = query.map_err(|e| ApiError::bad(e.body_text()))?;
    match form.format.as_deref() {
        None | Some("json") => {
            Ok(Json(app.stored(move |store| store.export_json(&caller.owner, &id)).await?).into_response())
        }
        Some("markdown") => {
            let text = app.stored(move |store| store.export_markdown(&caller.owner, &id)).await?;
            let mut response = text.into_response();
            let kind = HeaderValue::from_static("text/markdown; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            Ok(response)
        }
        Some(other) => {
            Err(ApiError::field("format", format!("format is {other:?}; json and markdown are known")))
        }
    }
}
