//! `POST /v1/chat/completions`: OpenAI's.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use quarrel_text::{OutputEvent, Tool, ToolChoice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{ALIASES, Fields};
use crate::generate::{Finish, Generating, Step, Summary, Token, token_text};
use crate::memory::{self, Remembered};
use crate::prompt::{self, ChatPrompt, Effort};
use crate::resume::Resume;
use crate::routes::streams::CHAT;
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
    /// Functions that the model may call.
    #[schema(value_type = Vec<Object>)]
    pub(crate) tools: Option<Value>,
    /// `auto`, `none`, `required`, or one function.
    #[schema(value_type = Object)]
    pub(crate) tool_choice: Option<Value>,
    /// Several calls in one answer; on if not given.
    pub(crate) parallel_tool_calls: Option<bool>,
    /// How much a reasoning model may reason: `none`, `minimal`, `low`, `medium`, `high`.
    pub(crate) reasoning_effort: Option<String>,
    /// Most tokens of reasoning; then it is ended.
    pub(crate) reasoning_budget: Option<u32>,
    /// Variables for the model's template, such as `{"enable_thinking": false}`.
    #[schema(value_type = Object)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Go on with the last message, which is the assistant's, instead of beginning a new one.
    pub(crate) continue_final_message: Option<bool>,
    /// A stored conversation to go on with: its history comes before the messages, and these and the answer are stored.
    pub(crate) conversation: Option<String>,
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
    /// The stored conversation, and what of it did not fit into the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    conversation: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: u32,
    message: ChatMessage,
    #[schema(value_type = Object)]
    logprobs: Option<Value>,
    finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Default, Serialize, ToSchema)]
struct ChatMessage {
    role: &'static str,
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    refusal: Option<String>,
}

/// A call of a function.
#[derive(Default, Serialize, ToSchema)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: FunctionCall,
}

#[derive(Default, Serialize, ToSchema)]
struct FunctionCall {
    name: String,
    /// JSON text.
    arguments: String,
}

/// What changes the bytes of an answer.
pub(crate) const FINGERPRINT: &str = concat!("quarrel-", env!("CARGO_PKG_VERSION"));

/// Answer a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest,
    params(("x-quarrel-resume" = Option<String>, Header, description = "`1`: a stream that can be come back to")),
    responses(
        (status = 200, body = ChatCompletion, description = "The answer; with `stream`, `text/event-stream` of chunks and `[DONE]`"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)
    )
)]
pub(crate) async fn chat(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    resume: Resume,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let (mut fields, mut chat): (Fields, ChatBody) = body::parts(body::object(&bytes)?, &ALIASES)?;
    let preset = fields.take_preset(&app.presets)?;
    fields.max_tokens = chat.max_completion_tokens.or(fields.max_tokens);
    let top = top(&chat)?;
    let named = chat.model.clone().or(preset.as_ref().and_then(|p| p.model.clone()));
    let mut lease = app.models.lease(named.as_deref()).await?;
    let told = chat.messages.iter().any(|m| matches!(m["role"].as_str(), Some("system" | "developer")));
    if let Some(system) = preset.and_then(|p| p.system).filter(|_| !told) {
        chat.messages.insert(0, quarrel_runtime::prompt::message("system", &system));
    }
    let mut remembered = None;
    if let Some(id) = chat.conversation.take() {
        if fields.n.is_some_and(|n| n != 1) {
            return Err(ApiError::field("n", "n: a conversation goes on with one answer"));
        }
        let (held, messages, memory) =
            memory::recall(&app, &caller, lease, id, chat.messages, fields.max_tokens).await?;
        (lease, chat.messages, remembered) = (held, messages, Some(memory));
    }
    let metadata = chat.metadata.clone();
    let model = lease.id.clone();
    let shape =
        Shape { id: ids::new("chatcmpl-"), created: models::unix_seconds(), model, logprobs: top.is_some() };
    let keep = resume.keep(&app, &caller, CHAT, &shape.id);
    let generating = prompt::chat(lease, ask(chat)?, fields.clone(), top, caller).await?;
    if fields.stream.unwrap_or(false) {
        let usage = fields.stream_options.unwrap_or_default().include_usage;
        let n = fields.n.unwrap_or(1);
        let answer = Gathered::default();
        return sse::response(keep, generating, Chunks { shape, usage, n, metadata, remembered, answer });
    }
    whole(generating, shape, metadata, remembered).await
}

/// How many best tokens are wanted.
fn top(chat: &ChatBody) -> Result<Option<u8>, ApiError> {
    match (chat.logprobs, chat.top_logprobs) {
        (_, Some(n)) if n > 20 => {
            Err(ApiError::field("top_logprobs", format!("top_logprobs is {n}; it must be 0 to 20")))
        }
        (Some(true), n) => Ok(Some(n.unwrap_or(0))),
        (_, Some(_)) => Err(ApiError::field("top_logprobs", "top_logprobs needs \"logprobs\": true")),
        (_, None) => Ok(None),
    }
}

/// The conversation with its tools.
fn ask(chat: ChatBody) -> Result<ChatPrompt, ApiError> {
    let tools = chat.tools.as_ref().map(Tool::list_from_openai).transpose();
    let tools = tools.map_err(|e| ApiError::field("tools", e.to_string()))?.unwrap_or_default();
    let choice = chat.tool_choice.as_ref().map(|c| ToolChoice::from_openai(c, &tools)).transpose();
    let choice = choice.map_err(|e| ApiError::field("tool_choice", e.to_string()))?;
    let bound = match (chat.reasoning_effort.as_deref(), chat.reasoning_budget) {
        (_, Some(0)) => Some(Effort::None),
        (_, Some(n)) => Some(Effort::Tokens(n)),
        (Some(word), None) => Effort::of("reasoning_effort", word)?,
        (None, None) => None,
    };
    Ok(ChatPrompt {
        tools,
        choice: choice.unwrap_or(ToolChoice::Auto),
        parallel: chat.parallel_tool_calls.unwrap_or(true),
        effort: (chat.reasoning_effort, bound),
        extra: chat.chat_template_kwargs.unwrap_or_default(),
        go_on: chat.continue_final_message.unwrap_or(false),
        ..ChatPrompt::new(chat.messages)
    })
}

/// What all parts of an answer have in common.
struct Shape {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
}

/// An answer as it grows.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    /// Ids, names and arguments of calls.
    pub(crate) calls: Vec<(String, String, String)>,
    pub(crate) tokens: Vec<Token>,
    /// How many tokens.
    pub(crate) count: usize,
    pub(crate) finish: Option<Finish>,
    /// The last call is not whole.
    pub(crate) cut: bool,
}

impl Gathered {
    /// The calls that are whole.
    pub(crate) fn whole_calls(&self) -> &[(String, String, String)] {
        &self.calls[..self.calls.len() - usize::from(self.cut && !self.calls.is_empty())]
    }

    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    /// OpenAI's form of the calls that are whole.
    pub(crate) fn calls_json(&self) -> Value {
        let call = |(id, name, arguments): &(String, String, String)| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
        self.whole_calls().iter().map(call).collect()
    }

    /// Takes what has come.
    pub(crate) fn take(&mut self, events: Vec<OutputEvent>) {
        for event in events {
            match event {
                OutputEvent::Content(text) => self.content += &text,
                OutputEvent::Reasoning(text) => self.reasoning += &text,
                OutputEvent::ToolCallBegin { name, .. } => {
                    self.calls.push((ids::new("call_"), name, String::new()));
                }
                OutputEvent::ToolCallArguments { index, delta } => {
                    if let Some(call) = self.calls.get_mut(index) {
                        call.2 += &delta;
                    }
                }
                OutputEvent::ToolCallEnd { .. } => {}
                OutputEvent::ToolCallCut { .. } => self.cut = true,
                OutputEvent::ToolCallBroken { index, text } => {
                    self.calls.truncate(index);
                    self.content += &text;
                }
            }
        }
    }
}

/// Waits for all answers.
pub(crate) async fn gather(generating: &mut Generating) -> Result<(Vec<Gathered>, Summary), ApiError> {
    let (mut answers, mut summary) = (Vec::<Gathered>::new(), Summary::default());
    while let Some(step) = generating.next().await {
        let step = step?;
        if let Step::Piece { choice, .. } | Step::Finished { choice, .. } = &step
            && answers.len() <= *choice as usize
        {
            answers.resize_with(*choice as usize + 1, Gathered::default);
        }
        match step {
            Step::Piece { choice, events, token } => {
                let answer = &mut answers[choice as usize];
                answer.take(events);
                answer.tokens.extend(token);
            }
            Step::Finished { choice, finish } => answers[choice as usize].finish = Some(finish),
            Step::Done(s) => summary = s,
        }
    }
    Ok((answers, summary))
}

async fn whole(
    mut generating: Generating,
    shape: Shape,
    metadata: Option<Map<String, Value>>,
    mut remembered: Option<Remembered>,
) -> Result<Response, ApiError> {
    let (answers, summary) = gather(&mut generating).await?;
    if let (Some(memory), Some(answer)) = (&mut remembered, answers.first()) {
        memory.keep(answer, summary.completion_tokens)?;
    }
    let choice = |(index, a): (usize, Gathered)| {
        let calls = a.calls.into_iter().map(|(id, name, arguments)| ToolCall {
            id,
            r#type: "function",
            function: FunctionCall { name, arguments },
        });
        let tool_calls: Vec<_> = calls.collect();
        let logs = || a.tokens.iter().map(|t| logprob(&generating, t)).collect::<Vec<_>>();
        ChatChoice {
            index: index as u32,
            logprobs: shape.logprobs.then(|| json!({ "content": logs(), "refusal": null })),
            message: ChatMessage {
                role: "assistant",
                content: Some(a.content).filter(|c| !c.is_empty() || tool_calls.is_empty()),
                reasoning_content: Some(a.reasoning).filter(|r| !r.is_empty()),
                tool_calls,
                refusal: None,
            },
            finish_reason: a.finish.map_or("stop", Finish::word),
        }
    };
    let choices = answers.into_iter().enumerate().map(choice).collect();
    Ok(Json(ChatCompletion {
        id: shape.id.clone(),
        object: "chat.completion",
        created: shape.created,
        model: shape.model.clone(),
        choices,
        usage: Usage::new(&summary),
        timings: Timings::new(&summary),
        system_fingerprint: FINGERPRINT,
        metadata,
        conversation: remembered.map(|r| r.told.clone()),
    })
    .into_response())
}

/// OpenAI's object for a token.
fn logprob(generating: &Generating, token: &Token) -> Value {
    let object = |id: u32, logprob: Option<f32>| {
        let (text, bytes) = token_text(generating.lease().tokenizer(), id);
        json!({ "token": text, "logprob": logprob, "bytes": bytes })
    };
    let mut value = object(token.id, token.logprob);
    value["top_logprobs"] = token.top.iter().map(|(id, l)| object(*id, Some(*l))).collect();
    value
}

/// The answer as chunks.
struct Chunks {
    shape: Shape,
    usage: bool,
    n: u32,
    metadata: Option<Map<String, Value>>,
    remembered: Option<Remembered>,
    /// What has come, for the store.
    answer: Gathered,
}

impl Drop for Chunks {
    /// A client that leaves finds what had come.
    fn drop(&mut self) {
        if let Some(memory) = &mut self.remembered
            && !self.answer.is_empty()
            && let Err(e) = memory.keep(&self.answer, self.answer.count)
        {
            tracing::error!(error = e.message, "an answer that was broken off could not be stored");
        }
    }
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

impl Chunks {
    /// What a chunk says of an event.
    fn event(event: OutputEvent) -> Option<Value> {
        Some(match event {
            OutputEvent::Content(text) => json!({ "content": text }),
            OutputEvent::Reasoning(text) => json!({ "reasoning_content": text }),
            OutputEvent::ToolCallBegin { index, name } => {
                let function = json!({ "name": name, "arguments": "" });
                json!({ "tool_calls": [{ "index": index, "id": ids::new("call_"), "type": "function", "function": function }] })
            }
            OutputEvent::ToolCallArguments { index, delta } => {
                json!({ "tool_calls": [{ "index": index, "function": { "arguments": delta } }] })
            }
            // The finish reason says that a call is cut.
            OutputEvent::ToolCallEnd { .. } | OutputEvent::ToolCallCut { .. } => return None,
            // The call cannot be taken back; its text shows what happened.
            OutputEvent::ToolCallBroken { text, .. } => json!({ "content": text }),
        })
    }
}

impl Protocol for Chunks {
    fn begin(&mut self, out: &mut Vec<Sent>) {
        for choice in 0..self.n {
            let delta = json!({ "role": "assistant", "content": "" });
            let mut chunk = self.delta(choice, delta, Value::Null, None);
            if let Some(memory) = &self.remembered {
                chunk["conversation"] = memory.told.clone();
            }
            out.push(Sent::json(&chunk));
        }
    }

    fn step(&mut self, generating: &Generating, step: Step, out: &mut Vec<Sent>) -> Result<(), ApiError> {
        match step {
            Step::Piece { choice, events, token } => {
                let mut logs = token.filter(|_| self.shape.logprobs).map_or(
                    Value::Null,
                    |t| json!({ "content": [logprob(generating, &t)], "refusal": null }),
                );
                if self.remembered.is_some() {
                    self.answer.take(events.clone());
                    self.answer.count += 1;
                }
                let deltas: Vec<Value> = events.into_iter().filter_map(Chunks::event).collect();
                if deltas.is_empty() && !logs.is_null() {
                    out.push(Sent::json(&self.delta(choice, json!({}), logs.take(), None)));
                }
                for delta in deltas {
                    out.push(Sent::json(&self.delta(choice, delta, logs.take(), None)));
                }
            }
            Step::Finished { choice, finish } => {
                out.push(Sent::json(&self.delta(choice, json!({}), Value::Null, Some(finish))));
            }
            Step::Done(summary) => {
                if let Some(memory) = &mut self.remembered {
                    memory.keep(&self.answer, summary.completion_tokens)?;
                }
                if self.usage {
                    let mut chunk = self.chunk(json!([]));
                    chunk["usage"] = json!(Usage::new(&summary));
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
