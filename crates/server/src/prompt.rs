//! From a request's words to the engine's request.

use std::sync::Arc;

use quarrel_engine::{Request, Sampling};
use quarrel_runtime::prompt::{encode_prompt, render};
use quarrel_text::RenderInput;
use quarrel_text::stream_decoder::{Control, Leading};
use serde_json::{Map, Value};

use crate::app::Caller;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generate::TextOptions;
use crate::models::{Lease, Live};

/// Most messages of a conversation.
const MESSAGES_MAX: usize = 4096;

/// A conversation to go on with.
pub(crate) struct ChatPrompt {
    pub(crate) messages: Vec<Value>,
    /// Variables for the template.
    pub(crate) extra: Option<Map<String, Value>>,
    /// Go on with the assistant's last message.
    pub(crate) go_on: bool,
}

/// A prompt in tokens, and how the answer's text begins.
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    pub(crate) leading: Leading,
}

/// Work that takes longer than an async task may: on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| ApiError::server(format!("a bug in preparing the request: {e}")))?
}

/// Renders and tokenizes a conversation.
pub(crate) async fn chat(lease: Lease, ask: ChatPrompt) -> Result<(Lease, Encoded), ApiError> {
    blocking(move || {
        let text = chat_text(&lease, ask)?;
        let ids = encode_prompt(lease.tokenizer(), &text).map_err(|e| ApiError::bad(format!("{e:#}")))?;
        Ok((lease, Encoded { ids, leading: Leading::Strip }))
    })
    .await
}

/// The text of a conversation.
pub(crate) fn chat_text(live: &Live, ask: ChatPrompt) -> Result<String, ApiError> {
    let Some(template) = live.template() else {
        let message =
            format!("{} has no chat template; use /v1/completions, which takes plain text", live.id);
        return Err(ApiError::bad(message).code("no_chat_template"));
    };
    let ChatPrompt { mut messages, extra, go_on } = ask;
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let message = format!("messages has {} entries; 1 to {MESSAGES_MAX} are needed", messages.len());
        return Err(ApiError::field("messages", message));
    }
    for (i, message) in messages.iter_mut().enumerate() {
        normalise(i, message)?;
    }
    let system = live.opened.local.system.as_ref();
    if let Some(system) = system.filter(|_| messages[0]["role"] != "system") {
        messages.insert(0, quarrel_runtime::prompt::message("system", system));
    }
    let last = match (go_on, messages.last()) {
        (false, _) => None,
        (true, Some(m)) if m["role"] == "assistant" => messages.pop(),
        (true, _) => {
            let message = "continue_final_message: the last message must be the assistant's";
            return Err(ApiError::field("continue_final_message", message));
        }
    };
    let (messages, extra) = (Value::Array(messages), extra.map(Value::Object));
    let input = RenderInput {
        messages: Some(&messages),
        add_generation_prompt: true,
        extra: extra.as_ref(),
        ..RenderInput::default()
    };
    let text = render(live.tokenizer(), template, &input).map_err(|e| {
        ApiError::field("messages", format!("the model's template refuses the conversation: {e:#}"))
    })?;
    let begun = last.as_ref().and_then(|m| m["content"].as_str()).unwrap_or_default();
    Ok(text + begun)
}

/// A message as templates know it: content is a text.
fn normalise(i: usize, message: &mut Value) -> Result<(), ApiError> {
    let wrong = |what: String| Err(ApiError::field(format!("messages[{i}]"), format!("messages[{i}]{what}")));
    let Some(object) = message.as_object_mut() else { return wrong(" is not an object".into()) };
    let role = match object.get("role").and_then(Value::as_str) {
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role.to_owned(),
        Some("developer") => "system".into(),
        Some(other) => {
            return wrong(format!(
                ".role is {other:?}; system, developer, user, assistant and tool are known"
            ));
        }
        None => return wrong(".role is missing".into()),
    };
    for key in object.keys() {
        if !["role", "content", "name", "tool_call_id", "tool_calls", "reasoning_content", "refusal"]
            .contains(&key.as_str())
        {
            return wrong(format!(".{key}: this field is not known here; leave it out"));
        }
    }
    let content = match object.remove("content") {
        Some(Value::String(s)) => s,
        Some(Value::Null) | None if role == "assistant" => String::new(),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for part in parts {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text" | "input_text" | "output_text"), Some(t)) => text += t,
                    (kind, _) => {
                        let kind = kind.unwrap_or("without a type");
                        return wrong(format!(".content has a part {kind:?}; this model takes text only"));
                    }
                }
            }
            text
        }
        _ => return wrong(".content must be a text or a list of text parts".into()),
    };
    object.insert("role".into(), role.into());
    object.insert("content".into(), content.into());
    Ok(())
}

/// The sampling that a request changes: what came with the model over the house's defaults.
fn base(live: &Live) -> Sampling {
    let mut s = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Sampling::default() };
    for (name, value) in live.opened.local.params.iter().flatten() {
        let Some(v) = value.as_f64() else { continue };
        match name.as_str() {
            "temperature" => s.temperature = v as f32,
            "top_k" => s.top_k = v as u32,
            "top_p" => s.top_p = v as f32,
            "min_p" => s.min_p = v as f32,
            "repeat_penalty" => s.repetition_penalty = v as f32,
            "presence_penalty" => s.presence_penalty = v as f32,
            "frequency_penalty" => s.frequency_penalty = v as f32,
            _ => {}
        }
    }
    s
}

/// The engine's request, and how its answers become text.
pub(crate) fn request(
    live: &Live,
    fields: &Fields,
    prompt: Encoded,
    logprobs: Option<u8>,
    caller: &Caller,
) -> Result<(Request, TextOptions), ApiError> {
    if prompt.ids.is_empty() {
        return Err(ApiError::bad("the prompt is empty, and this model has no token to begin with"));
    }
    let key: Arc<str> = caller.key.clone();
    let mut request = fields.request(prompt.ids, &base(live), &key)?;
    request.logprobs = logprobs;
    let stop = fields.stops()?;
    Ok((request, TextOptions { leading: prompt.leading, control: Control::Hide, stop }))
}
