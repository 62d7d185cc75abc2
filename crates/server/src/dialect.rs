//! Errors in the forms of the APIs that are not OpenAI's. A route fails with an [`ApiError`] whatever API it belongs to; here
//! the body becomes what that API's clients read.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::{ApiError, Failure};

/// Whose errors a path speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
}

/// Anthropic's error.
#[derive(Serialize, ToSchema)]
pub(crate) struct AnthropicError {
    /// `error`.
    r#type: &'static str,
    error: AnthropicDetail,
}

#[derive(Serialize, ToSchema)]
struct AnthropicDetail {
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `not_found_error`, `request_too_large`, `rate_limit_error`, `timeout_error`, `api_error` or `overloaded_error`.
    r#type: &'static str,
    /// What is wrong, where, and what to do.
    message: String,
}

/// Ollama's error.
#[derive(Serialize, ToSchema)]
pub(crate) struct OllamaError {
    /// What is wrong, where, and what to do.
    error: String,
}

impl Dialect {
    /// The one of a path.
    pub(crate) fn of(path: &str) -> Dialect {
        if path == "/v1/messages" || path.starts_with("/v1/messages/") {
            Dialect::Anthropic
        } else if path.starts_with("/api/") {
            Dialect::Ollama
        } else {
            Dialect::OpenAi
        }
    }

    /// An error response in this form; other responses as they are.
    pub(crate) fn say(self, response: Response, request_id: Option<&HeaderValue>) -> Response {
        let (mut parts, body) = response.into_parts();
        if let (Dialect::Anthropic, Some(id)) = (self, request_id) {
            parts.headers.insert(HeaderName::from_static("request-id"), id.clone());
        }
        let Some(failure) = parts.extensions.get::<Failure>() else {
            return Response::from_parts(parts, body);
        };
        let value = match self {
            Dialect::OpenAi => return Response::from_parts(parts, body),
            Dialect::Anthropic => {
                let mut value = anthropic(parts.status, &failure.message);
                value["request_id"] = json!(request_id.and_then(|id| id.to_str().ok()));
                value
            }
            Dialect::Ollama => ollama(&failure.message),
        };
        parts.headers.remove(header::CONTENT_LENGTH);
        Response::from_parts(parts, Body::from(value.to_string()))
    }
}

fn anthropic(status: StatusCode, message: &str) -> Value {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    json!(AnthropicError {
        r#type: "error",
        error: AnthropicDetail { r#type: kind, message: message.into() }
    })
}

fn ollama(message: &str) -> Value {
    json!(OllamaError { error: message.into() })
}

/// Anthropic's error object, for one in the middle of a stream.
pub(crate) fn anthropic_error(error: &ApiError) -> Value {
    anthropic(error.status, &error.message)
}

/// Ollama's.
pub(crate) fn ollama_error(error: &ApiError) -> Value {
    ollama(&error.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;

    #[test]
    fn each_path_has_its_errors() {
        for (path, dialect) in [
            ("/v1/messages", Dialect::Anthropic),
            ("/v1/messages/count_tokens", Dialect::Anthropic),
            ("/v1/messagesx", Dialect::OpenAi),
            ("/v1/responses", Dialect::OpenAi),
            ("/api/chat", Dialect::Ollama),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }

    #[test]
    fn a_status_has_anthropics_word_and_headers_stay() {
        let busy = ApiError::busy("later", "queue_full", std::time::Duration::from_secs(3)).into_response();
        let id = HeaderValue::from_static("req_1");
        let response = Dialect::Anthropic.say(busy, Some(&id));
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        assert_eq!(response.headers()["request-id"], "req_1");
        assert_eq!(anthropic_error(&ApiError::server("x"))["error"]["type"], "api_error");
        assert_eq!(anthropic_error(&ApiError::unavailable("x"))["error"]["type"], "overloaded_error");
        let large = ApiError::bad("x").status(StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(anthropic_error(&large)["error"]["type"], "request_too_large");
        assert_eq!(ollama_error(&ApiError::bad("no")), json!({ "error": "no" }));
    }
}
