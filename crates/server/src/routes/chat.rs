//! `POST /v1/chat/completions`: OpenAI's.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::error::{ApiError, ErrorBody};
use crate::fields::Fields;
use crate::generate::{Finish, Generating, Step, Summary, Token, token_text};
use crate::prompt::{self, ChatPrompt};
use crate::sse::{self, Protocol, Sent};
use crate::usage::{Timings, Usage};
use crate::{body, ids, models};

/// What chat has of its own.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatBody {
    /// A model of `GET /v1/models`; without it the first.
    pub(crate) model: Option<String>,
    /// The conversation: objects with `role` and `content`.
    #[schema(value_type = Vec<Object>)]
    pub(crate) messages: Vec<Value>,
    /// Most tokens to make, by OpenAI's newer name.
    pub(crate) max_completion_tokens: Option<u32>,
    /// Give the log-probability of each token.
    pub(crate) logprobs: Option<bool>,
    /// ... and those of so many best tokens, at most 20.
    pub(crate) top_logprobs: Option<u8>,
    /// Variables for the model's template, such as `{"enable_thinking": false}`.
    #[schema(value_type = Object)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Go on with the last message, which is the assistant's, instead of beginning a new one.
    pub(crate) continue_final_message: Option<bool>,
    /// Kept with the answer and given back.
    #[schema(value_type = Object)]
    pub(crate) metadata: Option<Map<String, Value>>,
}

/// A chat request.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the schema of the two parts together")]
pub(crate) struct ChatRequest {
    #[serde(flatten)]
    chat: ChatBody,
    #[serde(flatten)]
    fields: Fields,
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    timings: Timings,
    system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    metadata: Option<Map<String, Value>>,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: u32,
    message: ChatMessage,
    #[schema(value_type = Object)]
    logprobs: Option<Value>,
    finish_reason: &'static str,
}

#[derive(Serialize, ToSchema)]
struct ChatMessage {
    role: &'static str,
    content: Option<String>,
    refusal: Option<String>,
}

/// What changes the bytes of an answer.
pub(crate) const FINGERPRINT: &str = concat!("quarrel-", env!("CARGO_PKG_VERSION"));

/// Answer a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest,
    responses(
        (status = 200, body = ChatCompletion, description = "The answer; with `stream`, `text/event-stream` of chunks and `[DONE]`"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)
    )
)]
pub(crate) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let mut object = body::object(&bytes)?;
    let mut fields: Fields = body::take(&mut object)?;
    let chat: ChatBody = body::typed(object)?;
    fields.max_tokens = chat.max_completion_tokens.or(fields.max_tokens);
    let top = match (chat.logprobs, chat.top_logprobs) {
        (_, Some(n)) if n > 20 => {
            return Err(ApiError::field("top_logprobs", format!("top_logprobs is {n}; it must be 0 to 20")));
        }
        (Some(true), n) => Some(n.unwrap_or(0)),
        (_, Some(_)) => {
            return Err(ApiError::field("top_logprobs", "top_logprobs needs \"logprobs\": true"));
        }
        (_, None) => None,
    };
    let lease = app.models.lease(chat.model.as_deref()).await?;
    let ask = ChatPrompt {
        messages: chat.messages,
        extra: chat.chat_template_kwargs,
        go_on: chat.continue_final_message.unwrap_or(false),
    };
    let (lease, prompt) = prompt::chat(lease, ask).await?;
    let (request, text) = prompt::request(&lease, &fields, prompt, top, &caller)?;
    let model = lease.id.clone();
    let generating = Generating::start(lease, request, text)?;
    let shape =
        Shape { id: ids::new("chatcmpl-"), created: models::unix_seconds(), model, logprobs: top.is_some() };
    if fields.stream.unwrap_or(false) {
        let usage = fields.stream_options.unwrap_or_default().include_usage;
        let n = fields.n.unwrap_or(1);
        return Ok(sse::response(generating, Chunks { shape, usage, n, metadata: chat.metadata }));
    }
    whole(generating, shape, chat.metadata).await
}

/// What all parts of an answer have in common.
struct Shape {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
}

async fn whole(
    mut generating: Generating,
    shape: Shape,
    metadata: Option<Map<String, Value>>,
) -> Result<Response, ApiError> {
    let (mut texts, mut logs): (Vec<String>, Vec<Vec<Value>>) = Default::default();
    let mut finishes: Vec<Finish> = Vec::new();
    let mut summary = Summary::default();
    let at =
        |choice: u32, texts: &mut Vec<String>, logs: &mut Vec<Vec<Value>>, finishes: &mut Vec<Finish>| {
            let i = choice as usize;
            if texts.len() <= i {
                texts.resize_with(i + 1, String::new);
                logs.resize_with(i + 1, Vec::new);
                finishes.resize(i + 1, Finish::Aborted);
            }
            i
        };
    while let Some(step) = generating.next().await {
        match step? {
            Step::Text { choice, text, token } => {
                let i = at(choice, &mut texts, &mut logs, &mut finishes);
                texts[i] += &text;
                if let Some(token) = token.filter(|_| shape.logprobs) {
                    logs[i].push(logprob(&generating, &token));
                }
            }
            Step::Finished { choice, finish } => {
                let i = at(choice, &mut texts, &mut logs, &mut finishes);
                finishes[i] = finish;
            }
            Step::Done(s) => summary = s,
        }
    }
    let choices = texts.into_iter().zip(logs).zip(finishes).enumerate();
    let choices = choices.map(|(index, ((content, logs), finish))| ChatChoice {
        index: index as u32,
        message: ChatMessage { role: "assistant", content: Some(content), refusal: None },
        logprobs: shape.logprobs.then(|| json!({ "content": logs, "refusal": null })),
        finish_reason: finish.word(),
    });
    Ok(Json(ChatCompletion {
        id: shape.id,
        object: "chat.completion",
        created: shape.created,
        model: shape.model,
        choices: choices.collect(),
        usage: Usage::new(&summary, 0),
        timings: Timings::new(&summary),
        system_fingerprint: FINGERPRINT,
        metadata,
    })
    .into_response())
}

/// OpenAI's object for a token.
fn logprob(generating: &Generating, token: &Token) -> Value {
    let object = |id: u32, logprob: f32| {
        let (text, bytes) = token_text(generating.lease().tokenizer(), id);
        json!({ "token": text, "logprob": logprob, "bytes": bytes })
    };
    let mut value = object(token.id, token.logprob);
    value["top_logprobs"] = token.top.iter().map(|(id, l)| object(*id, *l)).collect();
    value
}

/// The answer as chunks.
struct Chunks {
    shape: Shape,
    usage: bool,
    n: u32,
    metadata: Option<Map<String, Value>>,
}

impl Chunks {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.shape.id, "object": "chat.completion.chunk", "created": self.shape.created,
            "model": self.shape.model, "system_fingerprint": FINGERPRINT, "choices": choices,
        });
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn delta(&self, choice: u32, delta: Value, logprobs: Value, finish: Option<Finish>) -> Value {
        let finish = finish.map(Finish::word);
        self.chunk(
            json!([{ "index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish }]),
        )
    }
}

impl Protocol for Chunks {
    fn begin(&mut self, out: &mut Vec<Sent>) {
        for choice in 0..self.n {
            let delta = json!({ "role": "assistant", "content": "" });
            out.push(Sent::json(&self.delta(choice, delta, Value::Null, None)));
        }
    }

    fn step(&mut self, generating: &Generating, step: Step, out: &mut Vec<Sent>) -> Result<(), ApiError> {
        match step {
            Step::Text { choice, text, token } => {
                let logs = token.filter(|_| self.shape.logprobs);
                if text.is_empty() && logs.is_none() {
                    return Ok(());
                }
                let logs = logs.map_or(
                    Value::Null,
                    |t| json!({ "content": [logprob(generating, &t)], "refusal": null }),
                );
                out.push(Sent::json(&self.delta(choice, json!({ "content": text }), logs, None)));
            }
            Step::Finished { choice, finish } => {
                out.push(Sent::json(&self.delta(choice, json!({}), Value::Null, Some(finish))));
            }
            Step::Done(summary) => {
                if self.usage {
                    let mut chunk = self.chunk(json!([]));
                    chunk["usage"] = json!(Usage::new(&summary, 0));
                    chunk["timings"] = json!(Timings::new(&summary));
                    if let Some(metadata) = &self.metadata {
                        chunk["metadata"] = json!(metadata);
                    }
                    out.push(Sent::json(&chunk));
                }
                out.push(Sent { name: None, data: "[DONE]".into() });
            }
        }
        Ok(())
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<Sent>) {
        out.push(Sent::json(&error.json()));
    }
}
