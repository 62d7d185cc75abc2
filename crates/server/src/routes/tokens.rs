//! `POST /tokenize`, `/detokenize` and `/apply-template`: what a model sees.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use quarrel_runtime::prompt::encode_prompt;
use quarrel_text::{Ends, Special, Tokenizer, Tool};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::app::App;
use crate::body;
use crate::error::{ApiError, ErrorBody};
use crate::generate::token_text;
use crate::prompt::{self, ChatPrompt, blocking};

/// A text to tokenize.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tokenize {
    model: Option<String>,
    /// The text.
    content: String,
    /// Begin with the model's bos, where it wants one.
    #[serde(default)]
    add_special: bool,
    /// Read names of control tokens as those tokens.
    #[serde(default = "yes")]
    parse_special: bool,
    /// Give the text of each token too.
    #[serde(default)]
    with_pieces: bool,
}

fn yes() -> bool {
    true
}

/// Token ids.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tokens {
    tokens: Vec<u32>,
    count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<Vec<String>>,
}

/// From text to token ids.
#[utoipa::path(
    post, path = "/tokenize", tag = "Tokens", request_body = Tokenize,
    responses((status = 200, body = Tokens), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn tokenize(State(app): State<App>, bytes: Bytes) -> Result<Json<Tokens>, ApiError> {
    let ask: Tokenize = body::parse(&bytes)?;
    let lease = app.models.lease(ask.model.as_deref()).await?;
    blocking(move || {
        let tokenizer = lease.tokenizer();
        let tokens = match (ask.add_special, ask.parse_special) {
            (true, true) => {
                encode_prompt(tokenizer, &ask.content).map_err(|e| ApiError::bad(format!("{e:#}")))?
            }
            (ends, parse) => {
                let special = if parse { Special::Parse } else { Special::Plain };
                tokenizer.encode(&ask.content, special, if ends { Ends::Model } else { Ends::None })?
            }
        };
        let pieces = ask.with_pieces.then(|| tokens.iter().map(|t| token_text(tokenizer, *t).0).collect());
        Ok(Json(Tokens { count: tokens.len(), tokens, pieces }))
    })
    .await
}

/// Token ids to turn into text.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// A text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Content {
    content: String,
}

/// From token ids to text.
#[utoipa::path(
    post, path = "/detokenize", tag = "Tokens", request_body = Detokenize,
    responses((status = 200, body = Content), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn detokenize(State(app): State<App>, bytes: Bytes) -> Result<Json<Content>, ApiError> {
    let ask: Detokenize = body::parse(&bytes)?;
    let lease = app.models.lease(ask.model.as_deref()).await?;
    blocking(move || {
        let decoded = lease.tokenizer().decode(&ask.tokens);
        Ok(Json(Content { content: decoded.map_err(|e| ApiError::field("tokens", e.to_string()))? }))
    })
    .await
}

/// A conversation to render.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApplyTemplate {
    model: Option<String>,
    #[schema(value_type = Vec<Object>)]
    messages: Vec<Value>,
    /// OpenAI's tools.
    #[schema(value_type = Vec<Object>)]
    tools: Option<Value>,
    /// Variables for the template.
    #[schema(value_type = Object)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// A prompt.
#[derive(Serialize, ToSchema)]
pub(crate) struct Rendered {
    prompt: String,
}

/// A conversation as the model is given it.
#[utoipa::path(
    post, path = "/apply-template", tag = "Tokens", request_body = ApplyTemplate,
    responses((status = 200, body = Rendered), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn apply_template(State(app): State<App>, bytes: Bytes) -> Result<Json<Rendered>, ApiError> {
    let ask: ApplyTemplate = body::parse(&bytes)?;
    let lease = app.models.lease(ask.model.as_deref()).await?;
    blocking(move || {
        let tools = ask.tools.as_ref().map(Tool::list_from_openai).transpose();
        let tools = tools.map_err(|e| ApiError::field("tools", e.to_string()))?.unwrap_or_default();
        let extra = ask.chat_template_kwargs.unwrap_or_default();
        let ask = ChatPrompt { tools, extra, ..ChatPrompt::new(ask.messages) };
        let text = prompt::conversation(&lease, ask)?.text;
        Ok(Json(Rendered { prompt: Tokenizer::unquote(&text) }))
    })
    .await
}
