//! What an Anthropic request says, and the same as OpenAI's messages.

use std::collections::HashSet;

use quarrel_text::{Tool, ToolChoice};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::body::{self, TextOr};
use crate::error::ApiError;
use crate::fields::ResponseFormat;
use crate::prompt::{ChatPrompt, Effort};

/// The conversation, which a request and a count of tokens have in common.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Talk {
    /// A model of `GET /v1/models`; without it the first.
    model: Option<String>,
    /// Turns of the user and the assistant. If the last is the assistant's, the answer goes on with it.
    messages: Vec<Turn>,
    /// What the model is told before them.
    system: Option<TextOr<SystemBlock>>,
    /// Tools that the model may call: `name`, `description` and `input_schema`.
    #[schema(value_type = Vec<Object>)]
    tools: Option<Value>,
    /// `{"type": "auto" | "any" | "tool" | "none"}`, with `name` and `disable_parallel_tool_use`.
    #[schema(value_type = Object)]
    tool_choice: Option<Value>,
    /// Whether the model reasons before it answers; it does not if neither this nor an effort is given.
    thinking: Option<Thinking>,
    /// The form of the answer, and how hard the model tries.
    output_config: Option<OutputConfig>,
    /// Taken, and needed for nothing: the prefix cache works by itself.
    #[schema(value_type = Object)]
    #[allow(dead_code, reason = "taken so that it may be given")]
    cache_control: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

/// One turn.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Turn {
    role: Role,
    content: TextOr<Block>,
}

/// A part of the system's words.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[allow(dead_code, reason = "some fields are taken so that they may be given")]
pub(crate) enum SystemBlock {
    Text {
        text: String,
        /// Needed for nothing.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Value>,
        /// Not made here.
        #[schema(value_type = Option<Object>)]
        citations: Option<Value>,
    },
}

/// A part of a turn.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[allow(dead_code, reason = "some fields are taken so that they may be given")]
pub(crate) enum Block {
    /// Words.
    Text {
        text: String,
        /// Needed for nothing.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Value>,
        /// Not made here.
        #[schema(value_type = Option<Object>)]
        citations: Option<Value>,
    },
    /// A call that the assistant made.
    ToolUse {
        id: String,
        name: String,
        #[schema(value_type = Object)]
        input: Map<String, Value>,
        /// Needed for nothing.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Value>,
        /// Always the model itself here.
        #[schema(value_type = Option<Object>)]
        caller: Option<Value>,
    },
    /// What came of a call.
    ToolResult {
        tool_use_id: String,
        content: Option<TextOr<SystemBlock>>,
        is_error: Option<bool>,
        /// Needed for nothing.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Value>,
    },
    /// Reasoning of the assistant's.
    Thinking {
        thinking: String,
        /// Not checked.
        signature: Option<String>,
    },
    /// Reasoning that nobody can read; it is left out.
    RedactedThinking { data: String },
}

/// Whether the model reasons.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Thinking {
    /// At most so many tokens; then it is ended.
    Enabled { budget_tokens: u32, display: Option<Display> },
    /// As much as it likes, or as the effort says.
    Adaptive { display: Option<Display> },
    /// Not at all, where its template can say so.
    Disabled {},
}

/// Whether the reasoning is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Display {
    /// As it is: there is no summary here.
    Summarized,
    /// Empty blocks.
    Omitted,
}

/// How the answer is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    /// `low`, `medium`, `high`, `xhigh` or `max`: how much a reasoning model may reason.
    effort: Option<String>,
    format: Option<Format>,
}

/// The form of the answer, forced token by token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Format {
    /// JSON that a schema accepts.
    JsonSchema {
        #[schema(value_type = Object)]
        schema: Value,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "the keys are looked at here, the values where tools are known")]
struct Choice {
    r#type: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// A request that was understood.
pub(crate) struct Asked {
    pub(crate) model: Option<String>,
    pub(crate) prompt: ChatPrompt,
    pub(crate) format: Option<ResponseFormat>,
    /// Reasoning is not given.
    pub(crate) hidden: bool,
}

impl Talk {
    /// The conversation with its tools; `max_tokens` bounds the reasoning too.
    pub(crate) fn ask(self, max_tokens: Option<u32>) -> Result<Asked, ApiError> {
        let (tools, choice, parallel) = tools(self.tools, self.tool_choice)?;
        let output = self.output_config;
        let (word, format) = output.map_or((None, None), |o| (o.effort, o.format));
        let bound = || word.as_deref().map_or(Ok(None), |w| Effort::of("output_config.effort", w));
        let (bound, display) = match self.thinking {
            None if word.is_some() => (bound()?, None),
            None | Some(Thinking::Disabled {}) => (Some(Effort::None), None),
            Some(Thinking::Adaptive { display }) => (bound()?, display),
            Some(Thinking::Enabled { budget_tokens, display }) => {
                if budget_tokens == 0 || max_tokens.is_some_and(|n| budget_tokens >= n) {
                    let name = "thinking.budget_tokens";
                    let message =
                        format!("{name} is {budget_tokens}; it must be above 0 and below max_tokens");
                    return Err(ApiError::field(name, message));
                }
                (Some(Effort::Tokens(budget_tokens)), display)
            }
        };
        let (messages, go_on) = messages(self.system, self.messages)?;
        let prompt =
            ChatPrompt { tools, choice, parallel, effort: (word, bound), go_on, ..ChatPrompt::new(messages) };
        let format = format.map(|Format::JsonSchema { schema }| ResponseFormat::of_schema(schema));
        Ok(Asked { model: self.model, prompt, format, hidden: display == Some(Display::Omitted) })
    }
}

fn tools(list: Option<Value>, choice: Option<Value>) -> Result<(Vec<Tool>, ToolChoice, bool), ApiError> {
    let mut list = list.unwrap_or_else(|| json!([]));
    // Arguments always obey their schema, and come as they are made.
    for tool in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        for name in ["strict", "eager_input_streaming"] {
            tool.retain(|k, v| k != name || !(v.is_boolean() || v.is_null()));
        }
    }
    let tools = Tool::list_from_anthropic(&list).map_err(|e| ApiError::field("tools", e.to_string()))?;
    let Some(choice) = choice.filter(|c| !c.is_null()) else { return Ok((tools, ToolChoice::Auto, true)) };
    let known: Choice = body::at("tool_choice", choice.clone())?;
    let choice = ToolChoice::from_anthropic(&choice, &tools);
    let choice = choice.map_err(|e| ApiError::field("tool_choice", e.to_string()))?;
    Ok((tools, choice, !known.disable_parallel_tool_use.unwrap_or(false)))
}

fn text(blocks: TextOr<SystemBlock>) -> String {
    match blocks {
        TextOr::Text(text) => text,
        TextOr::List(blocks) => {
            let texts: Vec<_> = blocks.into_iter().map(|SystemBlock::Text { text, .. }| text).collect();
            texts.join("\n")
        }
    }
}

/// OpenAI's messages, and whether the answer goes on with the last.
fn messages(system: Option<TextOr<SystemBlock>>, turns: Vec<Turn>) -> Result<(Vec<Value>, bool), ApiError> {
    if turns.is_empty() {
        return Err(ApiError::field("messages", "messages: at least one is needed"));
    }
    let mut out = Vec::with_capacity(turns.len() + 1);
    if let Some(system) = system.map(text).filter(|s| !s.is_empty()) {
        out.push(json!({ "role": "system", "content": system }));
    }
    let mut calls = HashSet::new();
    let mut go_on = false;
    for (i, turn) in turns.into_iter().enumerate() {
        let blocks = match turn.content {
            TextOr::Text(text) => vec![Block::Text { text, cache_control: None, citations: None }],
            TextOr::List(blocks) => blocks,
        };
        go_on = turn.role == Role::Assistant;
        match turn.role {
            Role::User => user(i, blocks, &calls, &mut out)?,
            Role::Assistant => out.push(assistant(i, blocks, &mut calls)?),
        }
    }
    if go_on && out.last().is_some_and(|m| m.get("tool_calls").is_some()) {
        let message =
            "messages: the last one calls tools; a user's message with their tool_result has to follow";
        return Err(ApiError::field("messages", message));
    }
    Ok((out, go_on))
}

fn misplaced(i: usize, j: usize, what: &str) -> ApiError {
    let place = format!("messages[{i}].content[{j}]");
    ApiError::field(&place, format!("{place}: {what}"))
}

/// A user's turn: results are messages of their own, what is said stays together.
fn user(i: usize, blocks: Vec<Block>, calls: &HashSet<String>, out: &mut Vec<Value>) -> Result<(), ApiError> {
    let mut said: Vec<String> = Vec::new();
    let say = |said: &mut Vec<String>, out: &mut Vec<Value>| {
        if !said.is_empty() {
            out.push(json!({ "role": "user", "content": std::mem::take(said).join("\n") }));
        }
    };
    let empty = blocks.is_empty();
    for (j, block) in blocks.into_iter().enumerate() {
        match block {
            Block::Text { text, .. } => said.push(text),
            Block::ToolResult { tool_use_id: id, content, is_error, .. } => {
                if !calls.contains(&id) {
                    let id: String = id.chars().take(64).collect();
                    return Err(misplaced(
                        i,
                        j,
                        &format!("no message before this one has a tool_use {id:?}"),
                    ));
                }
                say(&mut said, out);
                let result = content.map(text).unwrap_or_default();
                let failed = is_error.unwrap_or(false);
                let result = if failed { format!("Error: {result}") } else { result };
                out.push(json!({ "role": "tool", "tool_call_id": id, "content": result }));
            }
            Block::ToolUse { .. } => return Err(misplaced(i, j, "tool_use is the assistant's")),
            Block::Thinking { .. } | Block::RedactedThinking { .. } => {
                return Err(misplaced(i, j, "thinking is the assistant's"));
            }
        }
    }
    if empty {
        said.push(String::new());
    }
    say(&mut said, out);
    Ok(())
}

fn assistant(i: usize, blocks: Vec<Block>, calls: &mut HashSet<String>) -> Result<Value, ApiError> {
    let (mut said, mut thought, mut called) = (Vec::new(), Vec::new(), Vec::new());
    for (j, block) in blocks.into_iter().enumerate() {
        match block {
            Block::Text { text, .. } => said.push(text),
            Block::Thinking { thinking, .. } => thought.push(thinking),
            Block::RedactedThinking { .. } => {}
            Block::ToolUse { id, name, input, .. } => {
                let arguments = Value::Object(input).to_string();
                let function = json!({ "name": name, "arguments": arguments });
                called.push(json!({ "id": id, "type": "function", "function": function }));
                calls.insert(id);
            }
            Block::ToolResult { .. } => return Err(misplaced(i, j, "tool_result is the user's")),
        }
    }
    let mut message = json!({ "role": "assistant", "content": said.join("\n") });
    if !thought.is_empty() {
        message["reasoning_content"] = thought.join("\n").into();
    }
    if !called.is_empty() {
        message["tool_calls"] = called.into();
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(value: Value) -> Result<Asked, ApiError> {
        body::at::<Talk>("", value)?.ask(Some(100))
    }

    #[test]
    fn turns_become_messages() {
        let asked = ask(json!({
            "system": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }],
            "messages": [
                { "role": "user", "content": "Weather?" },
                { "role": "assistant", "content": [
                    { "type": "thinking", "thinking": "Ask.", "signature": "s" },
                    { "type": "text", "text": "Let me see.", "citations": null },
                    { "type": "tool_use", "id": "t1", "name": "weather", "input": { "city": "Bonn" } }] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "t1", "content": [{ "type": "text", "text": "no" }], "is_error": true },
                    { "type": "text", "text": "So?" }] },
                { "role": "assistant", "content": "It" }
            ],
            "tools": [{ "name": "weather", "input_schema": { "type": "object" }, "strict": true }],
            "tool_choice": { "type": "any", "disable_parallel_tool_use": true }
        }))
        .unwrap();
        let prompt = asked.prompt;
        assert!(prompt.go_on && !prompt.parallel && prompt.choice == ToolChoice::Required);
        assert_eq!(
            Value::Array(prompt.messages),
            json!([
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "Weather?" },
                { "role": "assistant", "content": "Let me see.", "reasoning_content": "Ask.", "tool_calls": [
                    { "id": "t1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":\"Bonn\"}" } }] },
                { "role": "tool", "tool_call_id": "t1", "content": "Error: no" },
                { "role": "user", "content": "So?" },
                { "role": "assistant", "content": "It" }
            ])
        );
    }

    #[test]
    fn thinking_bounds_reasoning() {
        for (more, bound) in [
            (json!({}), Some(Effort::None)),
            (json!({ "thinking": { "type": "disabled" } }), Some(Effort::None)),
            (json!({ "thinking": { "type": "enabled", "budget_tokens": 64 } }), Some(Effort::Tokens(64))),
            (json!({ "thinking": { "type": "adaptive" } }), None),
            (json!({ "output_config": { "effort": "low" } }), Some(Effort::Tokens(1024))),
        ] {
            let mut request = json!({ "messages": [{ "role": "user", "content": "a" }] });
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert_eq!(ask(request).unwrap().prompt.effort.1, bound, "{more}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
        let with = |name: &str, value: Value| {
            let mut request = user("a".into());
            request[name] = value;
            request
        };
        for (request, place) in [
            (user(json!([{ "type": "text", "text": "a", "color": 1 }])), "messages[0].content[0].color"),
            (user(json!([{ "type": "image", "source": {} }])), "messages[0].content[0].type"),
            (user(json!([{ "type": "tool_result", "tool_use_id": "x" }])), "messages[0].content[0]"),
            (user(json!(3)), "messages[0].content"),
            (json!({ "messages": [{ "role": "system", "content": "a" }] }), "messages[0].role"),
            (with("thinking", json!({ "type": "enabled", "budget_tokens": 100 })), "thinking.budget_tokens"),
            (with("thinking", json!({ "type": "off" })), "thinking.type"),
            (with("tool_choice", json!({ "type": "any" })), "tool_choice"),
            (with("tool_choice", json!({ "type": "auto", "x": 1 })), "tool_choice.x"),
            (with("tools", json!([{ "name": "a b", "input_schema": {} }])), "tools"),
            (with("output_config", json!({ "effort": "huge" })), "output_config.effort"),
        ] {
            let error = ask(request).map(|_| ()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(place), "{}", error.message);
            assert!(error.message.contains(place), "{}", error.message);
        }
    }
}
