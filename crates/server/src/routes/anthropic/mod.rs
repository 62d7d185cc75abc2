//! Anthropic's API: `POST /v1/messages` and `/v1/messages/count_tokens`.

mod ask;
mod events;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::dialect::AnthropicError;
use crate::error::ApiError;
use crate::fields::{Fields, OneOrMany};
use crate::generate::{Finish, Generating, Summary};
use crate::resume::Resume;
use crate::routes::chat::gather;
use crate::routes::streams::MESSAGES;
use crate::{body, ids, prompt, sse};

use ask::{Asked, Talk};
use events::Events;

/// What a request has beside the conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Most tokens to make.
    max_tokens: u32,
    /// The answer ends where one of these would begin.
    stop_sequences: Option<Vec<String>>,
    /// Send the answer as it comes, as server-sent events.
    stream: Option<bool>,
    /// Divides the logits: 0 is greedy, 1 is the model's own distribution.
    temperature: Option<f32>,
    /// Keep the smallest set of best tokens with this mass; 1 keeps all.
    top_p: Option<f32>,
    /// Keep this many best tokens; 0 keeps all.
    top_k: Option<u32>,
    metadata: Option<Metadata>,
    #[allow(dead_code, reason = "there is one tier")]
    service_tier: Option<AnthropicTier>,
}

/// Of the request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    /// Whose request it is: for the log, nothing else.
    user_id: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AnthropicTier {
    Auto,
    StandardOnly,
}

/// A request.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the schema of the two parts together")]
pub(crate) struct MessagesRequest {
    #[serde(flatten)]
    talk: Talk,
    #[serde(flatten)]
    settings: Settings,
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct AnthropicMessage {
    id: String,
    /// `message`.
    r#type: &'static str,
    role: &'static str,
    model: String,
    /// Blocks of type `thinking`, `text` and `tool_use`.
    #[schema(value_type = Vec<Object>)]
    content: Vec<Value>,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    stop_reason: Option<&'static str>,
    /// Which one ended it.
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

/// Tokens of a request.
#[derive(Default, Serialize, ToSchema)]
struct MessageUsage {
    /// Those of the prompt that were computed.
    input_tokens: usize,
    /// Always 0: nothing is paid for being kept.
    cache_creation_input_tokens: usize,
    /// Those of the prompt that the prefix cache had.
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

impl MessageUsage {
    fn new(summary: &Summary) -> MessageUsage {
        let cached = summary.stats.cached_tokens;
        MessageUsage {
            input_tokens: summary.stats.prompt_tokens.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: summary.completion_tokens,
        }
    }
}

/// What vouches for reasoning elsewhere. Nothing is signed here and nothing checked, but clients drop reasoning without one.
const SIGNATURE: &str = "unsigned";

/// What our names of settings are here.
const NAMES: [(&str, &str); 2] = [("stop", "stop_sequences"), ("response_format", "output_config.format")];

/// Answer a conversation, by Anthropic's API.
#[utoipa::path(
    post, path = "/v1/messages", tag = "Anthropic", request_body = MessagesRequest,
    params(("x-quarrel-resume" = Option<String>, Header, description = "`1`: a stream that can be come back to")),
    responses(
        (status = 200, body = AnthropicMessage, description = "The answer; with `stream`, `text/event-stream` of `message_start` to `message_stop`"),
        (status = "4XX", body = AnthropicError), (status = "5XX", body = AnthropicError)
    )
)]
pub(crate) async fn messages(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    resume: Resume,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let mut object = body::object(&bytes)?;
    drop_nulls(&mut object);
    let (talk, own): (Talk, Settings) = body::parts(object, &[])?;
    let Asked { model, prompt, format, hidden } = talk.ask(Some(own.max_tokens))?;
    let mut fields = Fields {
        max_tokens: Some(own.max_tokens),
        temperature: own.temperature,
        top_p: own.top_p,
        top_k: own.top_k,
        stop: own.stop_sequences.map(OneOrMany::Many),
        response_format: format,
        user: own.metadata.and_then(|m| m.user_id),
        ..Fields::default()
    };
    fields.take_preset(&app.presets)?;
    let lease = app.models.lease(model.as_deref()).await?;
    let model = lease.id.clone();
    let id = ids::new("msg_");
    let keep = resume.keep(&app, &caller, MESSAGES, &id);
    let generating = prompt::chat(lease, prompt, fields, None, caller).await;
    let generating = generating.map_err(|e| e.renamed(&NAMES))?;
    if own.stream.unwrap_or(false) {
        let input = generating.prompt_tokens();
        return sse::response(keep, generating, Events::new(id, model, input, hidden));
    }
    whole(generating, id, model, hidden).await
}

/// Why the answer ended, and the stop sequence that ended it.
fn stop_reason(
    finish: Option<Finish>,
    summary: &Summary,
) -> Result<(&'static str, Option<String>), ApiError> {
    let sequence = summary.stop.first().cloned().flatten();
    match finish {
        _ if sequence.is_some() => Ok(("stop_sequence", sequence)),
        None | Some(Finish::Stop) => Ok(("end_turn", None)),
        Some(Finish::ToolCalls) => Ok(("tool_use", None)),
        // Anthropic has no word for an answer that was cut because it repeated itself.
        Some(Finish::Length | Finish::Repetition) => Ok(("max_tokens", None)),
        Some(Finish::Deadline | Finish::Aborted) => {
            Err(ApiError::unavailable("the answer was broken off: the server is shutting down"))
        }
    }
}

async fn whole(
    mut generating: Generating,
    id: String,
    model: String,
    hidden: bool,
) -> Result<Response, ApiError> {
    let (answers, summary) = gather(&mut generating).await?;
    let answer = answers.into_iter().next().unwrap_or_default();
    let (stop_reason, stop_sequence) = stop_reason(answer.finish, &summary)?;
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        let thinking = if hidden { String::new() } else { answer.reasoning };
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": SIGNATURE }));
    }
    if !answer.content.is_empty() {
        content.push(json!({ "type": "text", "text": answer.content, "citations": null }));
    }
    for (_, name, arguments) in answer.calls {
        let input = members(&arguments);
        content.push(json!({ "type": "tool_use", "id": ids::new("toolu_"), "name": name, "input": input }));
    }
    Ok(Json(AnthropicMessage {
        id,
        r#type: "message",
        role: "assistant",
        model,
        content,
        stop_reason: Some(stop_reason),
        stop_sequence,
        usage: MessageUsage::new(&summary),
    })
    .into_response())
}

/// How many.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenCount {
    input_tokens: usize,
}

/// Count the tokens of a conversation, with its tools and the model's template.
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", tag = "Anthropic", request_body = Talk,
    responses(
        (status = 200, body = TokenCount),
        (status = "4XX", body = AnthropicError), (status = "5XX", body = AnthropicError)
    )
)]
pub(crate) async fn count_tokens(State(app): State<App>, bytes: Bytes) -> Result<Json<TokenCount>, ApiError> {
    let mut object = body::object(&bytes)?;
    drop_nulls(&mut object);
    let talk: Talk = body::typed(object)?;
    let Asked { model, prompt, .. } = talk.ask(None)?;
    let lease = app.models.lease(model.as_deref()).await?;
    Ok(Json(TokenCount { input_tokens: prompt::count(lease, prompt).await? }))
}

/// Clients give blocks of an answer back with all that they may have; what is null is not there.
fn drop_nulls(body: &mut serde_json::Map<String, Value>) {
    let messages = body.get_mut("messages").and_then(Value::as_array_mut);
    let contents = messages.into_iter().flatten().filter_map(|m| m.get_mut("content")?.as_array_mut());
    for block in contents.flatten().filter_map(Value::as_object_mut) {
        block.retain(|_, value| !value.is_null());
    }
}

/// A call's arguments; of those that were cut, the members that are whole. `stop_reason` says which of both they are.
fn members(arguments: &str) -> Value {
    if let Ok(whole) = serde_json::from_str(arguments) {
        return whole;
    }
    // Behind each member that is whole, at any depth: where it ends, and what closes all that is open there.
    let (mut best, mut open) = (None, Vec::new());
    let (mut text, mut escaped) = (false, false);
    for (at, c) in arguments.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if text => escaped = true,
            '"' => text = !text,
            _ if text => {}
            '{' => open.push('}'),
            '[' => open.push(']'),
            '}' | ']' => {
                open.pop();
                best = Some((at + 1, open.clone()));
            }
            ',' => best = Some((at, open.clone())),
            _ => {}
        }
    }
    let repaired =
        best.map(|(end, open)| arguments[..end].to_owned() + &open.iter().rev().collect::<String>());
    repaired.and_then(|r| serde_json::from_str(&r).ok()).unwrap_or_else(|| json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_cut_call_are_those_that_are_whole() {
        for (cut, members_are) in [
            ("", "{}"),
            ("{", "{}"),
            (r#"{"a"#, "{}"),
            (r#"{"a": "x, }"#, "{}"),
            (r#"{"a": 12"#, "{}"),
            (r#"{"a": 12, "b": "y"#, r#"{"a":12}"#),
            (r#"{"a": {"b": [1, 2"#, r#"{"a":{"b":[1]}}"#),
            (r#"{"a": {"b": [1, 2]}"#, r#"{"a":{"b":[1,2]}}"#),
            (r#"{"a": "\", {", "b": tr"#, r#"{"a":"\", {"}"#),
            (r#"{"a": 1}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(members(cut).to_string(), members_are, "{cut}");
        }
    }
}
