//! `POST /v1/sampling/explain`: how each token of a short answer was drawn, stage by stage.

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use quarrel_runtime::prompt::encode_prompt;
use quarrel_runtime::trace_json;
use quarrel_text::OutputEvent;
use quarrel_text::stream_decoder::Leading;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::body;
use crate::error::{ApiError, ErrorBody};
use crate::fields::{ALIASES, Fields};
use crate::generate::{Step, Summary};
use crate::prompt::{self, ChatPrompt, Encoded, blocking};
use crate::usage::Usage;

/// Tokens if a request does not say, and most of them.
const TOKENS: u32 = 16;
const TOKENS_MAX: u32 = 256;
/// Candidates of each step if a request does not say, and most of them.
const CANDIDATES: u32 = 10;
const CANDIDATES_MAX: u32 = 100;

/// What is to be explained.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExplainBody {
    /// A model of `GET /v1/models`; without it the first.
    model: Option<String>,
    /// A text to go on with, or ...
    prompt: Option<String>,
    /// ... a conversation to answer.
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Vec<Value>>,
    /// How many of the candidates that were left to show in each step, at most 100; 10 if not given.
    candidates: Option<u32>,
}

/// A request for an explanation.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the schema of the two parts together")]
pub(crate) struct ExplainRequest {
    #[serde(flatten)]
    explain: ExplainBody,
    #[serde(flatten)]
    fields: Fields,
}

/// How an answer was drawn.
#[derive(Serialize, ToSchema)]
pub(crate) struct Explanation {
    object: &'static str,
    model: String,
    /// The answer.
    text: String,
    finish_reason: &'static str,
    /// What its random numbers began with.
    seed: u64,
    /// One for each token: `token` with its probability, rank and the random number; `entropy` of the model in nats;
    /// `temperature`; `edits`, the logits that biases and penalties changed; `stages`, each with the tokens, mass and entropy
    /// that it left; `candidates`, the best of those that were drawn from.
    #[schema(value_type = Vec<Object>)]
    steps: Vec<Value>,
    usage: Usage,
}

/// Draw a few tokens and say how. Takes the fields of the other ways to make text, but no `stream`, and one answer.
#[utoipa::path(
    post, path = "/v1/sampling/explain", tag = "Tokens", request_body = ExplainRequest,
    responses((status = 200, body = Explanation), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(crate) async fn explain(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
) -> Result<Json<Explanation>, ApiError> {
    let (mut fields, own): (Fields, ExplainBody) = body::parts(body::object(&bytes)?, &ALIASES)?;
    if fields.stream == Some(true) {
        return Err(ApiError::field("stream", "stream: an explanation comes as a whole; leave it out"));
    }
    if fields.n.unwrap_or(1) != 1 || fields.best_of.unwrap_or(1) != 1 || fields.beams.is_some() {
        return Err(ApiError::field("n", "n: one answer is explained; leave out n, best_of and beams"));
    }
    let preset = fields.take_preset(&app.presets)?;
    let tokens = *fields.max_tokens.get_or_insert(TOKENS);
    if tokens > TOKENS_MAX {
        let message = format!("max_tokens is {tokens}; at most {TOKENS_MAX} tokens are explained");
        return Err(ApiError::field("max_tokens", message));
    }
    let candidates = own.candidates.unwrap_or(CANDIDATES);
    if candidates > CANDIDATES_MAX {
        let message = format!("candidates is {candidates}; it must be 0 to {CANDIDATES_MAX}");
        return Err(ApiError::field("candidates", message));
    }
    fields.explain = Some(candidates);
    let named = own.model.or(preset.and_then(|p| p.model));
    let lease = app.models.lease(named.as_deref()).await?;
    let model = lease.id.clone();
    let mut generating = match (own.prompt, own.messages) {
        (Some(text), None) => {
            let (lease, ids) = blocking(move || {
                let ids = encode_prompt(lease.tokenizer(), &text);
                Ok((lease, ids.map_err(|e| ApiError::field("prompt", format!("prompt: {e:#}")))?))
            })
            .await?;
            prompt::plain(lease, Encoded { ids, leading: Leading::Keep }, fields, None, caller).await?
        }
        (None, Some(messages)) => {
            prompt::chat(lease, ChatPrompt::new(messages), fields, None, caller).await?
        }
        (None, None) => return Err(ApiError::field("prompt", "prompt: a prompt or messages are needed")),
        (Some(_), Some(_)) => {
            return Err(ApiError::field("messages", "messages: not with a prompt; give one of them"));
        }
    };
    let (mut text, mut steps) = (String::new(), Vec::new());
    let (mut finish_reason, mut summary) = ("stop", Summary::default());
    while let Some(step) = generating.next().await {
        match step? {
            Step::Piece { events, token, .. } => {
                let pieces = events.into_iter().filter_map(|e| match e {
                    OutputEvent::Content(text) | OutputEvent::Reasoning(text) => Some(text),
                    _ => None,
                });
                text.extend(pieces);
                if let Some(trace) = token.and_then(|t| t.trace) {
                    steps.push(trace_json(generating.lease().tokenizer(), &trace));
                }
            }
            Step::Finished { finish, .. } => finish_reason = finish.word(),
            Step::Done(done) => summary = done,
        }
    }
    let (object, seed) = ("sampling.explanation", summary.stats.seed);
    Ok(Json(Explanation { object, model, text, finish_reason, seed, steps, usage: Usage::new(&summary) }))
}
