//! What goes wrong with a request, as HTTP status and OpenAI's error object.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use quarrel_engine::Error as EngineError;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// An error of a request: one line that says what, where and what to do.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`, a word for programs.
    pub(crate) kind: &'static str,
    /// OpenAI's `code`, a finer word.
    pub(crate) code: Option<&'static str>,
    /// The field of the request that is to blame.
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    /// When it may be tried again.
    pub(crate) retry_after: Option<Duration>,
}

/// OpenAI's error object.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Serialize, ToSchema)]
struct ErrorDetail {
    /// What is wrong, where, and what to do.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `not_found_error`, `rate_limit_error`, `overloaded_error` or `server_error`.
    r#type: String,
    /// The field that is to blame.
    param: Option<String>,
    /// A finer word, such as `context_length_exceeded`.
    code: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, code: None, param: None, message: message.into(), retry_after: None }
    }

    /// 400 that blames a field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// 400.
    pub(crate) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 404.
    pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// 401.
    pub(crate) fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key")
    }

    /// 403.
    pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// 429: come back later.
    pub(crate) fn busy(message: impl Into<String>, code: &'static str, retry: Duration) -> ApiError {
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).code(code);
        ApiError { retry_after: Some(retry), ..error }
    }

    /// 503.
    pub(crate) fn unavailable(message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", message);
        ApiError { retry_after: Some(Duration::from_secs(1)), ..error }
    }

    /// 500.
    pub(crate) fn server(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The same with another status.
    pub(crate) fn status(self, status: StatusCode) -> ApiError {
        ApiError { status, ..self }
    }

    /// The same with a code.
    pub(crate) fn code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    /// The same where the client calls a field by another name, given as ours and theirs.
    pub(crate) fn renamed(mut self, names: &[(&str, &str)]) -> ApiError {
        let found = names.iter().find(|(ours, _)| self.param.as_deref() == Some(*ours));
        if let Some((ours, theirs)) = found {
            self.param = Some((*theirs).into());
            self.message = match self.message.contains(ours) {
                true => self.message.replacen(ours, theirs, 1),
                false => format!("{theirs}: {}", self.message),
            };
        }
        self
    }

    /// OpenAI's object.
    pub(crate) fn json(&self) -> Value {
        json!({ "error": self.detail() })
    }

    /// The inside of OpenAI's object.
    pub(crate) fn detail(&self) -> Value {
        json!({ "message": self.message, "type": self.kind, "param": self.param, "code": self.code })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.json())).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For metrics and the log, which see only the response.
        response.extensions_mut().insert(Failure { kind: self.kind, message: self.message });
        response
    }
}

/// Left in the extensions of an error response.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: &'static str,
    pub(crate) message: String,
}

impl From<EngineError> for ApiError {
    fn from(e: EngineError) -> ApiError {
        let message = e.to_string();
        match e {
            EngineError::Field { field, .. } => ApiError::field(field, message),
            EngineError::Together { a, .. } => ApiError::field(a, message),
            EngineError::Order { .. } => ApiError::field("samplers", message),
            EngineError::PromptTooLong { .. } => {
                ApiError { param: Some("messages".into()), ..ApiError::bad(message) }
                    .code("context_length_exceeded")
            }
            EngineError::Token { what, .. } => ApiError::field(what, message),
            EngineError::Width { .. } => ApiError::field("n", message),
            EngineError::Unsuited { .. } => ApiError::field("model", message),
            EngineError::Hidden { .. } => ApiError::server(message).code("bad_hidden_states"),
            EngineError::Adapter { .. } => {
                ApiError { param: Some("adapter".into()), ..ApiError::not_found(message) }
            }
            EngineError::QueueFull { retry_after, .. } => ApiError::busy(message, "queue_full", retry_after),
            EngineError::Busy { retry_after, .. } => ApiError::busy(message, "would_wait", retry_after),
            EngineError::Deadline(_) => {
                ApiError::bad(message).status(StatusCode::REQUEST_TIMEOUT).code("deadline")
            }
            EngineError::Down | EngineError::Stuck(_) | EngineError::Panicked(_) => {
                ApiError::unavailable(message)
            }
            // The request's own doing.
            EngineError::Logits { stage: "logit_bias", .. } => ApiError::field("logit_bias", message),
            EngineError::Logits { .. } => ApiError::server(message).code("bad_logits"),
            _ => ApiError::server(message),
        }
    }
}

impl From<quarrel_text::Error> for ApiError {
    fn from(e: quarrel_text::Error) -> ApiError {
        ApiError::bad(e.to_string())
    }
}
