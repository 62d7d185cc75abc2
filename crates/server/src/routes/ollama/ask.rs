//! What an Ollama request says, and the same as OpenAI's messages and our settings.

use quarrel_text::Tool;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::{Fields, OneOrMany, ResponseFormat};
use crate::models::Live;
use crate::prompt::Effort;

/// What chat and generate have in common.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shared {
    /// A model of `GET /api/tags`; without it the first.
    pub(super) model: Option<String>,
    pub(super) options: Option<Options>,
    /// `json`, or a JSON schema that the answer obeys.
    #[schema(value_type = Object)]
    pub(super) format: Option<Value>,
    /// Send the answer as it comes, as lines of JSON; on if not given.
    pub(super) stream: Option<bool>,
    /// Taken, and needed for nothing: how long models are kept is the server's setting.
    #[schema(value_type = Object)]
    #[allow(dead_code, reason = "taken so that it may be given")]
    pub(super) keep_alive: Option<Value>,
    /// `true`, `false`, or how much a reasoning model may reason: `low`, `medium`, `high`.
    #[schema(value_type = Object)]
    pub(super) think: Option<Value>,
}

/// How to draw, and how much.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// Divides the logits: 0 is greedy, 1 is the model's own distribution.
    temperature: Option<f32>,
    /// Keep this many best tokens; 0 keeps all.
    top_k: Option<u32>,
    /// Keep the smallest set of best tokens with this mass; 1 keeps all.
    top_p: Option<f32>,
    /// Keep tokens of at least this share of the best one's probability; 0 keeps all.
    min_p: Option<f32>,
    /// Keep the tokens whose surprise is nearest to the expected one, up to this mass; 1 keeps all.
    typical_p: Option<f32>,
    /// 1 or 2: Mirostat, which takes the place of the other truncations; 0 is off.
    mirostat: Option<u8>,
    /// The surprise that Mirostat aims at, in bits.
    mirostat_tau: Option<f32>,
    /// How fast Mirostat learns.
    mirostat_eta: Option<f32>,
    /// The same seed gives the same answer.
    seed: Option<i64>,
    /// Most tokens to make; -1 and -2 go on to the end of the context.
    num_predict: Option<i64>,
    /// The answer ends where one of these would begin.
    stop: Option<OneOrMany>,
    /// Divides the logits of tokens that were there; 1 is off.
    repeat_penalty: Option<f32>,
    /// The penalties look at this many last tokens; 0 is off, -1 all.
    repeat_last_n: Option<i64>,
    /// Subtracted from the logits of tokens that the answer has; 0 is off.
    presence_penalty: Option<f32>,
    /// Subtracted for each time that the answer has a token; 0 is off.
    frequency_penalty: Option<f32>,
    /// The context that is needed; one that is longer than the model's here is refused.
    num_ctx: Option<u64>,
}

/// What our names of settings are here.
pub(super) const NAMES: [(&str, &str); 16] = [
    ("temperature", "options.temperature"),
    ("top_k", "options.top_k"),
    ("top_p", "options.top_p"),
    ("min_p", "options.min_p"),
    ("typical_p", "options.typical_p"),
    ("mirostat", "options.mirostat"),
    ("mirostat_tau", "options.mirostat_tau"),
    ("mirostat_eta", "options.mirostat_eta"),
    ("seed", "options.seed"),
    ("max_tokens", "options.num_predict"),
    ("stop", "options.stop"),
    ("repetition_penalty", "options.repeat_penalty"),
    ("penalty_window", "options.repeat_last_n"),
    ("presence_penalty", "options.presence_penalty"),
    ("frequency_penalty", "options.frequency_penalty"),
    ("response_format", "format"),
];

fn option(name: &str, what: impl std::fmt::Display) -> ApiError {
    let name = format!("options.{name}");
    ApiError::field(&name, format!("{name} {what}"))
}

impl Shared {
    /// The settings.
    pub(super) fn fields(&mut self, live: &Live) -> Result<Fields, ApiError> {
        let o = self.options.take().unwrap_or_default();
        let context = live.handle().info().context;
        if let Some(n) = o.num_ctx.filter(|n| *n > context as u64) {
            let message = format!("is {n}; {} is served with a context of {context} tokens (--ctx)", live.id);
            return Err(option("num_ctx", message));
        }
        let count = |name: &str, n: i64| {
            u32::try_from(n).map_err(|_| option(name, format!("is {n}, which is no number of tokens")))
        };
        let max_tokens = match o.num_predict {
            None | Some(-1 | -2) => None,
            Some(0) => return Err(option("num_predict", "is 0; an answer has at least one token")),
            Some(n) => Some(count("num_predict", n)?),
        };
        let window = o.repeat_last_n.filter(|n| *n != -1);
        let penalty_window = window.map(|n| count("repeat_last_n", n)).transpose()?;
        let response_format = match self.format.take() {
            None | Some(Value::Null) => None,
            Some(Value::String(word)) if word.is_empty() => None,
            Some(Value::String(word)) if word == "json" => Some(ResponseFormat::JsonObject),
            Some(schema @ Value::Object(_)) => Some(ResponseFormat::of_schema(schema)),
            Some(_) => {
                return Err(ApiError::field("format", "format: \"json\" or a JSON schema is needed"));
            }
        };
        Ok(Fields {
            max_tokens,
            temperature: o.temperature,
            top_k: o.top_k,
            top_p: o.top_p,
            min_p: o.min_p,
            typical_p: o.typical_p,
            mirostat: o.mirostat,
            mirostat_tau: o.mirostat_tau,
            mirostat_eta: o.mirostat_eta,
            seed: o.seed,
            stop: o.stop,
            repetition_penalty: o.repeat_penalty,
            penalty_window,
            presence_penalty: o.presence_penalty,
            frequency_penalty: o.frequency_penalty,
            response_format,
            ..Fields::default()
        })
    }

    /// How much the model may reason.
    pub(super) fn effort(&self) -> Result<(Option<String>, Option<Effort>), ApiError> {
        match &self.think {
            None | Some(Value::Null | Value::Bool(true)) => Ok((None, None)),
            Some(Value::Bool(false)) => Ok((None, Some(Effort::None))),
            Some(Value::String(word)) => Ok((Some(word.clone()), Effort::of("think", word)?)),
            Some(_) => {
                Err(ApiError::field("think", "think: true, false or a word such as \"low\" is needed"))
            }
        }
    }
}

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    role: String,
    content: Option<String>,
    /// Reasoning of the assistant's.
    thinking: Option<String>,
    /// None: models here read text only.
    #[schema(value_type = Option<Vec<Object>>)]
    images: Option<Vec<Value>>,
    /// Calls that the assistant made.
    tool_calls: Option<Vec<Call>>,
    /// Whose result it is; without it that of the first call without one.
    tool_name: Option<String>,
    /// ... or by the call's id.
    tool_call_id: Option<String>,
}

/// A call.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    id: Option<String>,
    #[allow(dead_code, reason = "always a function")]
    r#type: Option<String>,
    function: Function,
}

/// What is called.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    name: String,
    #[schema(value_type = Object)]
    arguments: Option<Value>,
    #[allow(dead_code, reason = "calls are in order")]
    index: Option<u32>,
}

/// That there is no image.
pub(super) fn no_images(place: &str, images: Option<&Vec<Value>>) -> Result<(), ApiError> {
    match images {
        Some(images) if !images.is_empty() => {
            Err(ApiError::field(place, format!("{place}: this model reads text only")))
        }
        _ => Ok(()),
    }
}

/// OpenAI's messages. Calls have no ids here, or need none: they get some, and results are matched by name and order.
pub(super) fn messages(list: Vec<Message>) -> Result<Vec<Value>, ApiError> {
    let mut open: Vec<(String, String)> = Vec::new();
    let mut count = 0;
    let mut out = Vec::with_capacity(list.len());
    for (i, m) in list.into_iter().enumerate() {
        no_images(&format!("messages[{i}].images"), m.images.as_ref())?;
        let mut message = json!({ "role": m.role, "content": m.content.unwrap_or_default() });
        if let Some(thinking) = m.thinking.filter(|t| !t.is_empty()) {
            message["reasoning_content"] = thinking.into();
        }
        let mut calls = Vec::new();
        for call in m.tool_calls.unwrap_or_default() {
            let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{count}"));
            count += 1;
            open.push((id.clone(), call.function.name.clone()));
            let arguments = call.function.arguments.unwrap_or_else(|| json!({}));
            let function = json!({ "name": call.function.name, "arguments": arguments });
            calls.push(json!({ "id": id, "type": "function", "function": function }));
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if m.role == "tool" {
            let at = match (&m.tool_call_id, &m.tool_name) {
                (Some(id), _) => open.iter().position(|(i, _)| i == id),
                (None, Some(name)) => open.iter().position(|(_, n)| n == name),
                (None, None) => (!open.is_empty()).then_some(0),
            };
            let Some(at) = at else {
                let place = format!("messages[{i}]");
                let message =
                    format!("{place}: no message before it has a call that this could be the result of");
                return Err(ApiError::field(place, message));
            };
            message["tool_call_id"] = open.remove(at).0.into();
        }
        out.push(message);
    }
    Ok(out)
}

/// The tools of a request.
pub(super) fn tools(list: Option<Value>) -> Result<Vec<Tool>, ApiError> {
    let Some(mut list) = list.filter(|l| !l.is_null()) else { return Ok(Vec::new()) };
    for tool in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        tool.entry("type").or_insert_with(|| "function".into());
    }
    Tool::list_from_openai(&list).map_err(|e| ApiError::field("tools", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body;

    fn ask(list: Value) -> Result<Vec<Value>, ApiError> {
        messages(body::at("messages", list)?)
    }

    #[test]
    fn results_find_their_calls() {
        let call = |name: &str| json!({ "function": { "name": name, "arguments": { "a": 1 } } });
        let messages = ask(json!([
            { "role": "user", "content": "hi" },
            { "role": "assistant", "thinking": "hm", "tool_calls": [call("f"), call("g"), call("f")] },
            { "role": "tool", "content": "1", "tool_name": "g" },
            { "role": "tool", "content": "2" },
            { "role": "tool", "content": "3", "tool_name": "f" }
        ]))
        .unwrap();
        let ids: Vec<_> = messages.iter().filter_map(|m| m["tool_call_id"].as_str()).collect();
        assert_eq!(ids, ["call_1", "call_0", "call_2"]);
        assert_eq!(messages[1]["reasoning_content"], "hm");
        assert_eq!(messages[1]["tool_calls"][2]["id"], "call_2");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, place) in [
            (json!([{ "role": "tool", "content": "1" }]), "messages[0]"),
            (json!([{ "role": "user", "content": "1", "images": ["AA=="] }]), "messages[0].images"),
            (json!([{ "role": "user", "text": "1" }]), "messages[0].text"),
            (json!([{ "role": "user", "content": 1 }]), "messages[0].content"),
        ] {
            let error = ask(list).unwrap_err();
            // The list itself has no name when it is read alone.
            let param = error.param.unwrap().replace("messages.[", "messages[");
            assert_eq!(param, place, "{}", error.message);
        }
    }
}
