//! Ollama's API: `POST /api/chat` and `/api/generate`, and in `about` what it tells of models.

pub(crate) mod about;
mod ask;
pub(crate) mod embed;

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use quarrel_runtime::prompt::{encode_prompt, message};
use quarrel_text::OutputEvent;
use quarrel_text::stream_decoder::Leading;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::dialect::{OllamaError, ollama_error};
use crate::error::ApiError;
use crate::generate::{Finish, Generating, Step, Summary};
use crate::models::Lease;
use crate::prompt::{self, ChatPrompt, Encoded, blocking};
use crate::resume::Resume;
use crate::routes::chat::gather;
use crate::sse::{self, Protocol, Sent, Wire};
use crate::{body, store};

use ask::{Message, NAMES, Shared};

/// What chat has of its own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OllamaChatBody {
    /// The conversation; without one the model is loaded and nothing made.
    messages: Option<Vec<Message>>,
    /// Functions that the model may call.
    #[schema(value_type = Vec<Object>)]
    tools: Option<Value>,
}

/// A conversation to answer.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the schema of the two parts together")]
pub(crate) struct OllamaChat {
    #[serde(flatten)]
    chat: OllamaChatBody,
    #[serde(flatten)]
    shared: Shared,
}

/// What generate has of its own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OllamaGenerateBody {
    /// What to answer; without it the model is loaded and nothing made.
    prompt: Option<String>,
    /// What the model is told before it.
    system: Option<String>,
    /// Go on with the prompt as it is, without the model's template.
    raw: Option<bool>,
    /// None: models here read text only.
    #[schema(value_type = Option<Vec<Object>>)]
    images: Option<Vec<Value>>,
    /// Refused: the model's own template is used.
    template: Option<String>,
    /// Refused: nothing is put into the middle of a text here.
    suffix: Option<String>,
    /// Refused: `/api/chat` takes the messages of a conversation.
    #[schema(value_type = Option<Vec<Object>>)]
    context: Option<Vec<Value>>,
}

/// A prompt to answer.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the schema of the two parts together")]
pub(crate) struct OllamaGenerate {
    #[serde(flatten)]
    generate: OllamaGenerateBody,
    #[serde(flatten)]
    shared: Shared,
}

/// Answer a conversation, by Ollama's API.
#[utoipa::path(
    post, path = "/api/chat", tag = "Ollama", request_body = OllamaChat,
    responses(
        (status = 200, body = Object, description = "Lines of JSON with parts of a `message`, the last with `done` and counts; one object with `\"stream\": false`"),
        (status = "4XX", body = OllamaError), (status = "5XX", body = OllamaError)
    )
)]
pub(crate) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    resume: Resume,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    resume.refuse()?;
    let (mut shared, own): (Shared, OllamaChatBody) = body::parts(body::object(&bytes)?, &[])?;
    let lease = app.models.lease(shared.model.as_deref()).await?;
    let shape = Shape { chat: true, model: lease.id.clone(), started, load: started.elapsed() };
    let messages = own.messages.unwrap_or_default();
    if messages.is_empty() {
        return shape.loaded(&shared);
    }
    let prompt = ChatPrompt {
        tools: ask::tools(own.tools)?,
        effort: shared.effort()?,
        ..ChatPrompt::new(ask::messages(messages)?)
    };
    let mut fields = shared.fields(&lease)?;
    fields.take_preset(&app.presets)?;
    let generating = prompt::chat(lease, prompt, fields, None, caller).await;
    shape.answer(generating.map_err(|e| e.renamed(&NAMES))?, &shared).await
}

/// Answer a prompt, by Ollama's API.
#[utoipa::path(
    post, path = "/api/generate", tag = "Ollama", request_body = OllamaGenerate,
    responses(
        (status = 200, body = Object, description = "Lines of JSON with parts of a `response`, the last with `done` and counts; one object with `\"stream\": false`"),
        (status = "4XX", body = OllamaError), (status = "5XX", body = OllamaError)
    )
)]
pub(crate) async fn generate(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    resume: Resume,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    resume.refuse()?;
    let (mut shared, own): (Shared, OllamaGenerateBody) = body::parts(body::object(&bytes)?, &[])?;
    refuse(&own)?;
    let lease = app.models.lease(shared.model.as_deref()).await?;
    let shape = Shape { chat: false, model: lease.id.clone(), started, load: started.elapsed() };
    let Some(text) = own.prompt.filter(|p| !p.is_empty()) else { return shape.loaded(&shared) };
    let mut fields = shared.fields(&lease)?;
    fields.take_preset(&app.presets)?;
    let system = own.system.filter(|s| !s.is_empty());
    let generating = if own.raw.unwrap_or(false) || (lease.template().is_none() && system.is_none()) {
        let (lease, ids) = encode(lease, text).await?;
        prompt::plain(lease, Encoded { ids, leading: Leading::Keep }, fields, None, caller).await
    } else {
        let mut messages: Vec<Value> = system.iter().map(|s| message("system", s)).collect();
        messages.push(message("user", &text));
        let prompt = ChatPrompt { effort: shared.effort()?, ..ChatPrompt::new(messages) };
        prompt::chat(lease, prompt, fields, None, caller).await
    };
    shape.answer(generating.map_err(|e| e.renamed(&NAMES))?, &shared).await
}

async fn encode(lease: Lease, text: String) -> Result<(Lease, Vec<u32>), ApiError> {
    blocking(move || {
        let ids = encode_prompt(lease.tokenizer(), &text);
        let ids = ids.map_err(|e| ApiError::field("prompt", format!("prompt: {e:#}")))?;
        Ok((lease, ids))
    })
    .await
}

/// What Ollama has and this server has not.
fn refuse(own: &OllamaGenerateBody) -> Result<(), ApiError> {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    ask::no_images("images", own.images.as_ref())?;
    if given(&own.template) {
        let message =
            "template: the model's own chat template is used; \"raw\": true takes a prompt as it is";
        return Err(ApiError::field("template", message));
    }
    if given(&own.suffix) {
        return Err(ApiError::field("suffix", "suffix: no text is put before a suffix here; leave it out"));
    }
    if own.context.as_ref().is_some_and(|c| !c.is_empty()) {
        let message = "context: send the messages of the conversation to /api/chat instead";
        return Err(ApiError::field("context", message));
    }
    if own.raw.unwrap_or(false) && given(&own.system) {
        return Err(ApiError::field("system", "system: not with \"raw\", which takes the prompt as it is"));
    }
    Ok(())
}

/// What all parts of an answer have in common.
struct Shape {
    /// `message` objects, not `response` texts.
    chat: bool,
    model: String,
    started: Instant,
    load: Duration,
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

fn done_reason(finish: Option<Finish>) -> Result<&'static str, ApiError> {
    match finish {
        None | Some(Finish::Stop | Finish::ToolCalls) => Ok("stop"),
        // Ollama has no word for an answer that was cut because it repeated itself.
        Some(Finish::Length | Finish::Repetition) => Ok("length"),
        Some(Finish::Deadline | Finish::Aborted) => {
            Err(ApiError::unavailable("the answer was broken off: the server is shutting down"))
        }
    }
}

/// A whole call. Arguments are an object here, not text.
fn call(name: &str, arguments: &str) -> Value {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
    json!({ "function": { "name": name, "arguments": arguments } })
}

impl Shape {
    /// A line with a part of the answer.
    fn line(&self, content: &str, thinking: &str, calls: Vec<Value>) -> Value {
        let mut line = json!({ "model": self.model, "created_at": quarrel_store::iso(store::now()) });
        let mut message = json!({ "role": "assistant", "content": content });
        if self.chat {
            if !thinking.is_empty() {
                message["thinking"] = thinking.into();
            }
            if !calls.is_empty() {
                message["tool_calls"] = calls.into();
            }
            line["message"] = message;
        } else {
            line["response"] = content.into();
            if !thinking.is_empty() {
                line["thinking"] = thinking.into();
            }
        }
        line["done"] = false.into();
        line
    }

    /// Makes a line the last one.
    fn end(&self, line: &mut Value, reason: &str, summary: Option<&Summary>) {
        line["done"] = true.into();
        line["done_reason"] = reason.into();
        let Some(summary) = summary else { return };
        line["total_duration"] = nanos(self.started.elapsed()).into();
        line["load_duration"] = nanos(self.load).into();
        line["prompt_eval_count"] = summary.stats.prompt_tokens.into();
        line["prompt_eval_duration"] = nanos(summary.stats.prefill).into();
        line["eval_count"] = summary.completion_tokens.into();
        line["eval_duration"] = nanos(summary.stats.decode).into();
    }

    /// Nothing was asked, so the model was only loaded.
    fn loaded(&self, shared: &Shared) -> Result<Response, ApiError> {
        if shared.keep_alive.as_ref().is_some_and(|k| k.as_f64() == Some(0.0)) {
            let message = format!("keep_alive: POST /v1/models/{}/unload unloads a model here", self.model);
            return Err(ApiError::field("keep_alive", message));
        }
        let mut line = self.line("", "", Vec::new());
        self.end(&mut line, "load", None);
        Ok(Json(line).into_response())
    }

    async fn answer(self, mut generating: Generating, shared: &Shared) -> Result<Response, ApiError> {
        if shared.stream.unwrap_or(true) {
            return sse::response(None, generating, Lines { shape: self, call: None, finish: None });
        }
        let (answers, summary) = gather(&mut generating).await?;
        let answer = answers.into_iter().next().unwrap_or_default();
        let reason = done_reason(answer.finish)?;
        let calls = answer.whole_calls().iter().map(|(_, name, arguments)| call(name, arguments)).collect();
        let mut line = self.line(&answer.content, &answer.reasoning, calls);
        self.end(&mut line, reason, Some(&summary));
        Ok(Json(line).into_response())
    }
}

/// The answer as lines.
struct Lines {
    shape: Shape,
    /// The call that comes, until it is whole.
    call: Option<(String, String)>,
    finish: Option<Finish>,
}

impl Protocol for Lines {
    const WIRE: Wire = Wire::Lines;

    fn begin(&mut self, _: &mut Vec<Sent>) {}

    fn step(&mut self, _: &Generating, step: Step, out: &mut Vec<Sent>) -> Result<(), ApiError> {
        match step {
            Step::Piece { events, .. } => {
                for event in events {
                    let line = match event {
                        OutputEvent::Content(text) => self.shape.line(&text, "", Vec::new()),
                        OutputEvent::Reasoning(text) => self.shape.line("", &text, Vec::new()),
                        OutputEvent::ToolCallBegin { name, .. } => {
                            self.call = Some((name, String::new()));
                            continue;
                        }
                        OutputEvent::ToolCallArguments { delta, .. } => {
                            self.call.iter_mut().for_each(|c| c.1 += &delta);
                            continue;
                        }
                        OutputEvent::ToolCallEnd { .. } => {
                            let Some((name, arguments)) = self.call.take() else { continue };
                            self.shape.line("", "", vec![call(&name, &arguments)])
                        }
                        // Arguments are an object here: there is no form for a part of them.
                        OutputEvent::ToolCallCut { .. } => {
                            self.call = None;
                            continue;
                        }
                        OutputEvent::ToolCallBroken { text, .. } => {
                            self.call = None;
                            self.shape.line(&text, "", Vec::new())
                        }
                    };
                    out.push(Sent::json(&line));
                }
            }
            Step::Finished { finish, .. } => self.finish = Some(finish),
            Step::Done(summary) => {
                let mut line = self.shape.line("", "", Vec::new());
                self.shape.end(&mut line, done_reason(self.finish)?, Some(&summary));
                out.push(Sent::json(&line));
            }
        }
        Ok(())
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<Sent>) {
        out.push(Sent::json(&ollama_error(error)));
    }
}
