//! Items of the Responses API as OpenAI's messages, and the settings that have another form there.

use std::collections::HashSet;

use quarrel_text::{Tool, ToolChoice};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::body::{self, TextOr};
use crate::error::ApiError;
use crate::fields::ResponseFormat;
use crate::ids;

/// A message.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: TextOr<Part>,
    #[allow(dead_code, reason = "comes with items that are given back")]
    id: Option<String>,
    #[allow(dead_code, reason = "comes with items that are given back")]
    status: Option<String>,
    #[allow(dead_code, reason = "comes with items that are given back")]
    phase: Option<String>,
}

/// A part of a message or a result.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[allow(dead_code, reason = "some fields come with items that are given back")]
enum Part {
    InputText { text: String },
    OutputText { text: String, annotations: Option<Value>, logprobs: Option<Value> },
    Refusal { refusal: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    call_id: String,
    name: String,
    arguments: String,
    #[allow(dead_code, reason = "comes with items that are given back")]
    id: Option<String>,
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallOutput {
    call_id: String,
    output: TextOr<Part>,
    #[allow(dead_code, reason = "comes with items that are given back")]
    id: Option<String>,
    #[allow(dead_code, reason = "comes with items that are given back")]
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reasoning {
    #[serde(default)]
    summary: Vec<Thought>,
    content: Option<Vec<Thought>>,
    #[allow(dead_code, reason = "nothing is encrypted here")]
    encrypted_content: Option<String>,
    #[allow(dead_code, reason = "comes with items that are given back")]
    id: Option<String>,
    #[allow(dead_code, reason = "comes with items that are given back")]
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Thought {
    SummaryText { text: String },
    ReasoningText { text: String },
}

/// A request's input as items, which are stored: each has an id.
pub(super) fn items(input: TextOr<Value>) -> Result<Vec<Value>, ApiError> {
    let items = match input {
        TextOr::Text(text) => vec![json!({
            "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }],
        })],
        TextOr::List(items) => items,
    };
    let named = |(i, mut item): (usize, Value)| {
        let place = format!("input[{i}]");
        let object = item.as_object_mut();
        let object =
            object.ok_or_else(|| ApiError::field(&place, format!("{place}: an object is needed")))?;
        let kind = object.get("type").filter(|t| !t.is_null()).cloned().unwrap_or_else(|| "message".into());
        let prefix = match kind.as_str() {
            Some("message") => "msg_",
            Some("function_call") => "fc_",
            Some("function_call_output") => "fco_",
            Some("reasoning") => "rs_",
            _ => {
                let known = "message, function_call, function_call_output and reasoning are known";
                let message = format!("{place}.type: {kind} is not taken here; {known}");
                return Err(ApiError::field(format!("{place}.type"), message));
            }
        };
        object.insert("type".into(), kind);
        if object.get("id").is_none_or(Value::is_null) {
            object.insert("id".into(), ids::new(prefix).into());
        }
        Ok(item)
    };
    items.into_iter().enumerate().map(named).collect()
}

fn text(parts: TextOr<Part>) -> String {
    let parts = match parts {
        TextOr::Text(text) => return text,
        TextOr::List(parts) => parts,
    };
    let text = |p| match p {
        Part::InputText { text } | Part::OutputText { text, .. } => text,
        Part::Refusal { refusal } => refusal,
    };
    parts.into_iter().map(text).collect::<Vec<_>>().join("\n")
}

/// OpenAI's messages of items of which the first `known` are of earlier requests. What the assistant did in a row is one.
pub(super) fn messages(
    items: &[Value],
    known: usize,
    instructions: Option<&str>,
) -> Result<Vec<Value>, ApiError> {
    let mut out: Vec<Value> = Vec::with_capacity(items.len() + 1);
    if let Some(instructions) = instructions.filter(|i| !i.is_empty()) {
        out.push(json!({ "role": "system", "content": instructions }));
    }
    let mut turn = Map::new();
    let mut called = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let place = match i.checked_sub(known) {
            Some(i) => format!("input[{i}]"),
            None => format!("previous_response_id: item {i}"),
        };
        let mut object = item.as_object().cloned().unwrap_or_default();
        let kind = object.remove("type");
        let value = Value::Object(object);
        match kind.as_ref().and_then(Value::as_str) {
            Some("function_call") => {
                let call: Call = body::at(&place, value)?;
                if call.status.as_deref() == Some("incomplete") {
                    continue; // cut by a bound: it was never made
                }
                called.insert(call.call_id.clone());
                let function = json!({ "name": call.name, "arguments": call.arguments });
                let call = json!({ "id": call.call_id, "type": "function", "function": function });
                if let Value::Array(calls) = turn.entry("tool_calls").or_insert_with(|| json!([])) {
                    calls.push(call);
                }
            }
            Some("reasoning") => {
                let r: Reasoning = body::at(&place, value)?;
                let thoughts = r.content.filter(|c| !c.is_empty()).unwrap_or(r.summary).into_iter();
                let thoughts = thoughts.map(|t| match t {
                    Thought::SummaryText { text } | Thought::ReasoningText { text } => text,
                });
                flush(&mut turn, &mut out);
                turn.insert("reasoning_content".into(), thoughts.collect::<Vec<_>>().join("\n").into());
            }
            Some("function_call_output") => {
                let result: CallOutput = body::at(&place, value)?;
                if !called.contains(&result.call_id) {
                    let (place, id) = (format!("{place}.call_id"), result.call_id.chars().take(64));
                    let message =
                        format!("{place}: no item before this one calls {:?}", id.collect::<String>());
                    return Err(ApiError::field(place, message));
                }
                flush(&mut turn, &mut out);
                let content = text(result.output);
                out.push(json!({ "role": "tool", "tool_call_id": result.call_id, "content": content }));
            }
            _ => {
                let message: Message = body::at(&place, value)?;
                let content = text(message.content);
                if message.role == "assistant" {
                    if turn.contains_key("content") || turn.contains_key("tool_calls") {
                        flush(&mut turn, &mut out);
                    }
                    turn.insert("content".into(), content.into());
                } else if ["user", "system", "developer"].contains(&message.role.as_str()) {
                    flush(&mut turn, &mut out);
                    out.push(json!({ "role": message.role, "content": content }));
                } else {
                    let place = format!("{place}.role");
                    let known = "user, assistant, system and developer are known";
                    return Err(ApiError::field(&place, format!("{place}: {known}")));
                }
            }
        }
    }
    flush(&mut turn, &mut out);
    Ok(out)
}

fn flush(turn: &mut Map<String, Value>, out: &mut Vec<Value>) {
    if !turn.is_empty() {
        let mut message = std::mem::take(turn);
        message.insert("role".into(), "assistant".into());
        out.push(Value::Object(message));
    }
}

/// The tools, which are flat here, and whether they have to be called.
pub(super) fn tools(
    list: Option<&Vec<Value>>,
    choice: Option<&Value>,
) -> Result<(Vec<Tool>, ToolChoice), ApiError> {
    let nested = |tool: &Value| match tool.as_object() {
        Some(object) if object.get("type").is_some_and(|t| t == "function") => {
            let function: Map<_, _> =
                object.iter().filter(|(k, _)| *k != "type").map(|(k, v)| (k.clone(), v.clone())).collect();
            json!({ "type": "function", "function": function })
        }
        _ => tool.clone(),
    };
    let list: Value = list.into_iter().flatten().map(nested).collect();
    let tools = Tool::list_from_openai(&list);
    // Its places are those of the nested form.
    let tools = tools.map_err(|e| ApiError::field("tools", e.to_string().replace("].function", "]")))?;
    let choice = choice.map(|c| ToolChoice::from_openai(c, &tools)).transpose();
    let choice =
        choice.map_err(|e| ApiError::field("tool_choice", e.to_string().replace(".function", "")))?;
    Ok((tools, choice.unwrap_or(ToolChoice::Auto)))
}

/// What the answer's text is to be.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextConfig {
    format: Option<TextFormat>,
}

/// The form of the answer, forced token by token.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[allow(dead_code, reason = "some fields are for people")]
pub(crate) enum TextFormat {
    /// As the model likes.
    Text {},
    /// A JSON object.
    JsonObject {},
    /// JSON that a schema accepts.
    JsonSchema {
        name: Option<String>,
        description: Option<String>,
        #[schema(value_type = Object)]
        schema: Value,
        /// Always on here.
        strict: Option<bool>,
    },
}

impl TextConfig {
    pub(super) fn format(self) -> Option<ResponseFormat> {
        match self.format? {
            TextFormat::Text {} => None,
            TextFormat::JsonObject {} => Some(ResponseFormat::JsonObject),
            TextFormat::JsonSchema { schema, .. } => Some(ResponseFormat::of_schema(schema)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(input: Value) -> Result<Vec<Value>, ApiError> {
        messages(&items(body::at("input", input)?)?, 0, Some("Be brief."))
    }

    #[test]
    fn items_become_messages() {
        let messages = ask(json!([
            { "role": "user", "content": "Weather?" },
            { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "Ask." }] },
            { "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
              "content": [{ "type": "output_text", "text": "I ask.", "annotations": [], "logprobs": [] }] },
            { "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}" },
            { "type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}", "status": "completed" },
            { "type": "function_call_output", "call_id": "c1", "output": "1" },
            { "type": "function_call_output", "call_id": "c2", "output": [{ "type": "input_text", "text": "2" }] },
            { "role": "assistant", "content": "a" },
            { "role": "assistant", "content": "b" }
        ]))
        .unwrap();
        let call = |id: &str| json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": "{}" } });
        assert_eq!(
            Value::Array(messages),
            json!([
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "Weather?" },
                { "role": "assistant", "reasoning_content": "Ask.", "content": "I ask.", "tool_calls": [call("c1"), call("c2")] },
                { "role": "tool", "tool_call_id": "c1", "content": "1" },
                { "role": "tool", "tool_call_id": "c2", "content": "2" },
                { "role": "assistant", "content": "a" },
                { "role": "assistant", "content": "b" }
            ])
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (input, place) in [
            (json!([1]), "input[0]"),
            (json!([{ "type": "computer_call" }]), "input[0].type"),
            (json!([{ "type": "function_call_output", "call_id": "c", "output": "" }]), "input[0].call_id"),
            (json!([{ "role": "tool", "content": "a" }]), "input[0].role"),
            (
                json!([{ "role": "user", "content": [{ "type": "input_image", "image_url": "x" }] }]),
                "input[0].content[0].type",
            ),
            (json!([{ "role": "user", "content": "a", "color": 1 }]), "input[0].color"),
            (json!([{ "type": "function_call", "call_id": "c", "name": "f" }]), "input[0].arguments"),
        ] {
            let error = ask(input).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(place), "{}", error.message);
        }
    }

    #[test]
    fn flat_tools_are_read_and_blamed_where_they_stand() {
        let list = vec![
            json!({ "type": "function", "name": "f", "parameters": { "type": "object" }, "strict": true }),
        ];
        let (tools, choice) = tools(Some(&list), Some(&json!({ "type": "function", "name": "f" }))).unwrap();
        assert_eq!((tools[0].name.as_str(), choice), ("f", ToolChoice::Named("f".into())));
        let list = vec![json!({ "type": "function", "name": "f", "parameters": 1 })];
        let error = super::tools(Some(&list), None).unwrap_err();
        assert!(error.message.contains("tools[0].parameters"), "{}", error.message);
        let error = super::tools(Some(&vec![json!({ "type": "web_search" })]), None).unwrap_err();
        assert!(error.message.contains("web_search"), "{}", error.message);
    }
}
