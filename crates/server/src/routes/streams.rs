//! `GET` of the place of a stream: what a client missed of it.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;

use crate::app::{App, Caller};
use crate::dialect::AnthropicError;
use crate::error::{ApiError, ErrorBody};
use crate::resume::resume;

/// Where streams are, by their route.
pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";
pub(crate) const RESPONSES: &str = "/v1/responses";
pub(crate) const MESSAGES: &str = "/v1/messages";

/// The rest of a chat's stream.
#[utoipa::path(
    get, path = "/v1/chat/completions/{id}", tag = "OpenAI",
    params(
        ("id" = String, Path, description = "its id, or `x-quarrel-stream` of the response"),
        ("last-event-id" = Option<u64>, Header, description = "Only events after this one; without it all that are held")
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "The same events, byte for byte, and those that follow"),
        (status = 410, body = ErrorBody, description = "Older events than are held"), (status = "4XX", body = ErrorBody)
    )
)]
pub(crate) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    resume(&app, &caller, &headers, &format!("{CHAT}/{id}"), None)
}

/// The rest of a completion's stream.
#[utoipa::path(
    get, path = "/v1/completions/{id}", tag = "OpenAI",
    params(
        ("id" = String, Path, description = "its id, or `x-quarrel-stream` of the response"),
        ("last-event-id" = Option<u64>, Header, description = "Only events after this one; without it all that are held")
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "The same events, byte for byte, and those that follow"),
        (status = 410, body = ErrorBody, description = "Older events than are held"), (status = "4XX", body = ErrorBody)
    )
)]
pub(crate) async fn completion(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    resume(&app, &caller, &headers, &format!("{COMPLETIONS}/{id}"), None)
}

/// The rest of a message's stream.
#[utoipa::path(
    get, path = "/v1/messages/{id}", tag = "Anthropic",
    params(
        ("id" = String, Path, description = "its id, or `x-quarrel-stream` of the response"),
        ("last-event-id" = Option<u64>, Header, description = "Only events after this one; without it all that are held")
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "The same events, byte for byte, and those that follow"),
        (status = 410, body = AnthropicError, description = "Older events than are held"), (status = "4XX", body = AnthropicError)
    )
)]
pub(crate) async fn message(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    resume(&app, &caller, &headers, &format!("{MESSAGES}/{id}"), None)
}
