//! A client's conversation as a model's template wants it: texts for parts, objects for arguments, names for results, and
//! tools in the system prompt where the template does not know them.

use std::collections::HashMap;
use std::io;

use serde_json::{Map, Value as Json};

use super::format::ToolFormat;
use super::parser::{Arguments, OutputParser};
use super::tool::{Tool, bad};
use crate::reasoning::{Prompt, ReasoningMarks};
use crate::{ChatTemplate, Result, Tokenizer};

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 100_000;

/// How a template takes conversations with tools, read from its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatStyle {
    /// How calls are written.
    pub format: ToolFormat,
    /// The marks around reasoning, if the template knows any.
    pub reasoning: Option<ReasoningMarks>,
    /// How the tools reach the model.
    pub telling: Telling,
    /// The template does not write `tool_calls`; they are put in the content.
    calls_in_content: bool,
    /// The template has no role `tool`; results are a user's message.
    results_from_user: bool,
    /// The template joins arguments as a text.
    text_arguments: bool,
    /// The template looks for calls only where the content is `none`.
    null_content: bool,
    /// The template wants ids of nine letters and digits.
    short_ids: bool,
    developer_role: bool,
    system_role: bool,
}

/// How the tools reach the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// By the template's own `tools`.
    Tools,
    /// By its `xml_tools` (SmolLM3).
    XmlTools,
    /// As `tools` of the system message (Phi-4-mini).
    SystemMessage,
    /// The template ignores tools, so they are described in the system prompt. A client may want to know: the model was
    /// perhaps not trained for it.
    SystemPrompt,
}

/// What a template is rendered with.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// For [`RenderInput::messages`](crate::RenderInput::messages).
    pub messages: Json,
    /// For [`RenderInput::tools`](crate::RenderInput::tools).
    pub tools: Option<Json>,
    /// To be added to [`RenderInput::extra`](crate::RenderInput::extra).
    pub extra: Map<String, Json>,
}

impl ChatStyle {
    /// The style of a template that is used with tools.
    pub fn of(template: &ChatTemplate) -> Self {
        Self::detect(template.source(true))
    }

    /// The style of a template, from its source.
    pub fn detect(source: &str) -> Self {
        let has = |text: &str| source.contains(text);
        let format = ToolFormat::detect(source);
        let telling = if format == ToolFormat::SmolLm3 {
            Telling::XmlTools
        } else if format == ToolFormat::Phi4 && (has("message['tools']") || has("message.tools")) {
            Telling::SystemMessage
        } else if format != ToolFormat::Prompted && has_word(source, "tools") {
            Telling::Tools
        } else {
            Telling::SystemPrompt
        };
        Self {
            format,
            reasoning: ReasoningMarks::detect(source),
            telling,
            calls_in_content: !has("tool_calls"),
            results_from_user: !(has("'tool'") || has("\"tool\"")),
            text_arguments: joins_arguments(source),
            null_content: [
                "message['content'] is none",
                "message.content is none",
                "message[\"content\"] is none",
            ]
            .iter()
            .any(|t| has(t)),
            short_ids: has("length != 9"),
            developer_role: has("developer"),
            system_role: !has("System role not supported")
                && (has("system") || has("message.role +") || has("message['role'] +")),
        }
    }

    /// A parser for the answer to this rendered prompt.
    pub fn parser(&self, rendered: &str, tools: Vec<Tool>, arguments: Arguments) -> OutputParser {
        OutputParser::new(self.format, self.reasoning, self.prompt(rendered), tools, arguments)
    }

    /// Where a rendered prompt leaves the model.
    pub fn prompt(&self, rendered: &str) -> Prompt {
        self.reasoning.map_or(Prompt::Silent, |r| r.after(rendered))
    }

    /// Whether reasoning, or calls where there are tools, can only be seen when control tokens show (`Control::Show`).
    pub fn needs_control_tokens(&self, tokenizer: &Tokenizer, tools: bool) -> bool {
        let calls = tools && self.format.needs_control_tokens(tokenizer);
        calls || self.reasoning.is_some_and(|r| r.needs_control_tokens(tokenizer))
    }

    /// An OpenAI conversation (`messages` of `/v1/chat/completions`) for this template.
    ///
    /// # Errors
    /// Something that is no such conversation, or parts that are not text; the place is named.
    pub fn conversation(&self, messages: &Json, tools: &[Tool]) -> Result<Conversation> {
        let list = messages.as_array().ok_or_else(|| bad("messages".into(), "a list is needed".into()))?;
        if list.len() > MAX_MESSAGES {
            return Err(bad(
                "messages".into(),
                format!("{} messages; at most {MAX_MESSAGES} are allowed", list.len()),
            ));
        }
        let mut out: Vec<Json> = Vec::with_capacity(list.len() + 1);
        let mut names: HashMap<String, String> = HashMap::new();
        let mut after_result = false;
        for (i, message) in list.iter().enumerate() {
            let mut message = self.message(&format!("messages[{i}]"), message, &mut names)?;
            let is_result = message.get("role").is_some_and(|r| r == "tool");
            if is_result && self.results_from_user {
                let result = format!("<tool_response>\n{}\n</tool_response>", text_of(&message));
                message = Map::new();
                message.insert("role".into(), "user".into());
                message.insert("content".into(), result.into());
            }
            let from_user = message.get("role").is_some_and(|r| r == "user");
            if self.results_from_user && after_result && from_user {
                // Templates without tools often insist on turns, so neighbours are one message.
                let more = text_of(&message);
                if let Some(Json::String(last)) = out.last_mut().and_then(|m| m.get_mut("content")) {
                    last.push('\n');
                    last.push_str(&more);
                }
            } else {
                out.push(Json::Object(message));
            }
            after_result = is_result || (after_result && from_user);
        }
        let mut extra = Map::new();
        let functions = || tools.iter().map(|t| t.to_json()["function"].take()).collect::<Vec<Json>>();
        let mut listed = None;
        match self.telling {
            _ if tools.is_empty() => {}
            Telling::Tools => listed = Some(tools.iter().map(Tool::to_json).collect()),
            Telling::XmlTools => {
                extra.insert("xml_tools".into(), functions().into());
            }
            Telling::SystemMessage => {
                let system = system_message(&mut out);
                system.insert("tools".into(), spaced(&functions().into()).into());
            }
            Telling::SystemPrompt => self.describe(&mut out, tools),
        }
        Ok(Conversation { messages: Json::Array(out), tools: listed, extra })
    }

    fn message(
        &self,
        at: &str,
        message: &Json,
        names: &mut HashMap<String, String>,
    ) -> Result<Map<String, Json>> {
        let message = message.as_object().ok_or_else(|| bad(at.into(), "an object is needed".into()))?;
        let mut out: Map<String, Json> =
            message.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
        let role = match message.get("role").and_then(Json::as_str) {
            Some("developer") if !self.developer_role => "system",
            Some(role @ ("system" | "developer" | "user" | "assistant" | "tool")) => role,
            Some(role) => {
                let role: String = role.chars().take(40).collect();
                let what = format!("`{role}` is not known; use system, developer, user, assistant or tool");
                return Err(bad(format!("{at}.role"), what));
            }
            None => return Err(bad(format!("{at}.role"), "a text is needed".into())),
        };
        out.insert("role".into(), role.into());
        let calls = match message.get("tool_calls") {
            None | Some(Json::Null) => Vec::new(),
            Some(Json::Array(calls)) if role == "assistant" => calls
                .iter()
                .enumerate()
                .map(|(i, call)| self.call(&format!("{at}.tool_calls[{i}]"), call, names))
                .collect::<Result<Vec<Json>>>()?,
            Some(_) => {
                let what = "a list is needed, and only messages of the assistant have one";
                return Err(bad(format!("{at}.tool_calls"), what.into()));
            }
        };
        if message.get("function_call").is_some_and(|c| !c.is_null()) {
            return Err(bad(format!("{at}.function_call"), "not supported; use `tool_calls`".into()));
        }
        let content = content_text(at, message.get("content"))?;
        if content.is_none() && calls.is_empty() && role != "assistant" {
            return Err(bad(format!("{at}.content"), "a text or a list of text parts is needed".into()));
        }
        let mut content = content.unwrap_or_default();
        if calls.is_empty() {
            out.remove("tool_calls"); // templates ask whether the key is there
        } else if self.calls_in_content {
            out.remove("tool_calls");
            for call in &calls {
                if !content.is_empty() {
                    content.push('\n');
                }
                content.push_str(&self.written(&call["function"]));
            }
        } else {
            out.insert("tool_calls".into(), calls.into());
        }
        let none = content.is_empty() && self.null_content && out.contains_key("tool_calls");
        out.insert("content".into(), if none { Json::Null } else { content.into() });
        if role == "tool" {
            self.result(at, &mut out, names)?;
        }
        Ok(out)
    }

    /// A result: its call has to be known, and gives it its name.
    fn result(&self, at: &str, out: &mut Map<String, Json>, names: &HashMap<String, String>) -> Result<()> {
        let at = format!("{at}.tool_call_id");
        let id = out.get("tool_call_id").and_then(Json::as_str);
        let id =
            id.ok_or_else(|| bad(at.clone(), "the id of the call that this answers is needed".into()))?;
        let Some(name) = names.get(id) else {
            let id: String = id.chars().take(64).collect();
            return Err(bad(at, format!("no message before this one has a call `{id}`")));
        };
        let id = self.id(id);
        out.entry("name").or_insert_with(|| name.as_str().into());
        out.insert("tool_call_id".into(), id.into());
        Ok(())
    }

    fn call(&self, at: &str, call: &Json, names: &mut HashMap<String, String>) -> Result<Json> {
        let function = call.get("function").and_then(Json::as_object);
        let function = function.ok_or_else(|| bad(format!("{at}.function"), "an object is needed".into()))?;
        let name = function.get("name").and_then(Json::as_str);
        let name = name.ok_or_else(|| bad(format!("{at}.function.name"), "a text is needed".into()))?;
        let id = call.get("id").and_then(Json::as_str);
        let id = id.ok_or_else(|| bad(format!("{at}.id"), "a text is needed".into()))?;
        names.insert(id.into(), name.into());
        let wrong = || bad(format!("{at}.function.arguments"), "the JSON text of an object is needed".into());
        let object = match function.get("arguments") {
            None | Some(Json::Null) => Json::Object(Map::new()),
            Some(Json::String(text)) if text.trim().is_empty() => Json::Object(Map::new()),
            Some(Json::String(text)) => serde_json::from_str(text).map_err(|_| wrong())?,
            Some(object) => object.clone(),
        };
        if !object.is_object() {
            return Err(wrong());
        }
        let arguments = if self.text_arguments { spaced(&object).into() } else { object };
        Ok(serde_json::json!({
            "id": self.id(id), "type": "function", "function": {"name": name, "arguments": arguments},
        }))
    }

    /// An id that the template takes. Equal ids stay equal.
    fn id(&self, id: &str) -> String {
        if !self.short_ids || (id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return id.into();
        }
        let mut hash = id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let letters = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let mut short = String::new();
        for _ in 0..9 {
            short.push(char::from(letters[(hash % 62) as usize]));
            hash /= 62;
        }
        short
    }

    /// A call as the model would write it in its content.
    fn written(&self, function: &Json) -> String {
        let arguments = match &function["arguments"] {
            Json::String(text) => text.clone(),
            object => spaced(object),
        };
        format!("<tool_call>\n{{\"name\": {}, \"arguments\": {arguments}}}\n</tool_call>", function["name"])
    }

    /// Tools in the system prompt, in Hermes' words; DeepSeek is shown its own form.
    fn describe(&self, messages: &mut Vec<Json>, tools: &[Tool]) {
        let mut text = String::from(
            "# Tools\n\nYou may call one or more functions to help with the user's request. These are the functions, \
             each as a JSON schema, within <tools></tools>:\n<tools>",
        );
        for tool in tools {
            text.push('\n');
            text.push_str(&spaced(&tool.to_json()));
        }
        let form = match self.format {
            ToolFormat::DeepSeek => {
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME\n```json\nARGUMENTS_AS_JSON\n\
                 ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            }
            ToolFormat::DeepSeekPlain => {
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>FUNCTION_NAME<｜tool▁sep｜>ARGUMENTS_AS_JSON<｜tool▁call▁end｜>\
                 <｜tool▁calls▁end｜>"
            }
            _ => "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>",
        };
        text.push_str(
            "\n</tools>\n\nTo call a function, write its name and its arguments in exactly this form:\n",
        );
        text.push_str(form);
        if !self.system_role {
            let first = messages.iter_mut().find(|m| m["role"] == "user");
            if let Some(message) = first {
                message["content"] =
                    format!("{text}\n\n{}", message["content"].as_str().unwrap_or("")).into();
                return;
            }
        }
        let system = system_message(messages);
        let content = system.get("content").and_then(Json::as_str).unwrap_or("");
        let content = if content.is_empty() { text } else { format!("{content}\n\n{text}") };
        system.insert("content".into(), content.into());
    }
}

/// The first message, which is the system's; a new one where there is none.
fn system_message(messages: &mut Vec<Json>) -> &mut Map<String, Json> {
    let first = messages.first().and_then(|m| m.get("role")).and_then(Json::as_str);
    if !matches!(first, Some("system" | "developer")) {
        messages.insert(0, serde_json::json!({"role": "system", "content": ""}));
    }
    messages[0].as_object_mut().expect("messages were made as objects")
}

fn text_of(message: &Map<String, Json>) -> String {
    message.get("content").and_then(Json::as_str).unwrap_or("").into()
}

/// The content of a message: a text, or text parts, one per line.
fn content_text(at: &str, content: Option<&Json>) -> Result<Option<String>> {
    let at = format!("{at}.content");
    let parts = match content {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(text)) => return Ok(Some(text.clone())),
        Some(Json::Array(parts)) => parts,
        Some(_) => return Err(bad(at, "a text or a list of text parts is needed".into())),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let kind = part.get("type").and_then(Json::as_str).unwrap_or("");
        let text = part.get(if kind == "refusal" { "refusal" } else { "text" }).and_then(Json::as_str);
        match (kind, text) {
            ("text" | "input_text" | "output_text" | "refusal", Some(text)) => texts.push(text),
            (
                "image" | "image_url" | "input_image" | "input_audio" | "audio" | "video" | "video_url"
                | "file" | "input_file",
                _,
            ) => {
                let what = format!("a part of type `{kind}`: this model reads text only");
                return Err(bad(format!("{at}[{i}]"), what));
            }
            _ => {
                let what = "a part `{\"type\": \"text\", \"text\": ..}` is needed";
                return Err(bad(format!("{at}[{i}]"), what.into()));
            }
        }
    }
    Ok(Some(texts.join("\n")))
}

/// Whether `word` stands in the source by itself.
fn has_word(source: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    source.match_indices(word).any(|(at, _)| {
        !part(source[..at].chars().next_back()) && !part(source[at + word.len()..].chars().next())
    })
}

/// Whether the template joins `arguments` to texts with `+`, and does not look at what they are.
fn joins_arguments(source: &str) -> bool {
    if source.contains("arguments is string") || source.contains("arguments'] is string") {
        return false;
    }
    source.match_indices("arguments").any(|(at, word)| {
        source[at + word.len()..].trim_start_matches(['\'', '"', ']', ' ']).starts_with('+')
    })
}

/// JSON with Python's spacing, as templates write it.
fn spaced(value: &Json) -> String {
    struct Python;
    impl serde_json::ser::Formatter for Python {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
            w.write_all(b": ")
        }
    }
    let mut out = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut out, Python);
    let written = serde::Serialize::serialize(value, &mut writer);
    written.ok().and_then(|()| String::from_utf8(out).ok()).unwrap_or_else(|| value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{OutputEvent, RenderInput};

    const HERMES: &str = "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}\
        {% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} \
        {{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% if m.role == 'tool' %}({{ m.name }}){% endif %}{% endfor %}";
    const GEMMA: &str = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
        {% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}\
        <{{ m.role }}>{{ m.content }}{% endfor %}";
    const DEEPSEEK: &str = "{% for message in messages %}{% if message['content'] is none %}{% for tool in message['tool_calls'] %}\
        <｜tool▁calls▁begin｜>{{ tool['function']['name'] + '```json' + tool['function']['arguments'] + '```' }}{% endfor %}\
        {% elif message['role'] == 'tool' %}<out>{{ message['content'] }}{% else %}{{ message['content'] }}{% endif %}{% endfor %}";

    fn conversation() -> Json {
        json!([
            {"role": "user", "content": [{"type": "text", "text": "The weather"}, {"type": "text", "text": "in Paris?"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Paris\"}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
            {"role": "user", "content": "And now?"},
        ])
    }

    fn render(source: &str, messages: &Json) -> String {
        let template = ChatTemplate::new(source).unwrap();
        let tools = super::super::tests::tools();
        let input = ChatStyle::of(&template).conversation(messages, &tools[1..]).unwrap();
        let extra = Json::Object(input.extra);
        let input = RenderInput {
            messages: Some(&input.messages),
            tools: input.tools.as_ref(),
            extra: Some(&extra),
            ..Default::default()
        };
        template.render(&input).unwrap()
    }

    #[test]
    fn for_a_template_with_tools() {
        let text = render(HERMES, &conversation());
        assert!(
            text.starts_with("<tools>{\"type\": \"function\", \"function\": {\"name\": \"now\""),
            "{text}"
        );
        let rest = "[user]The weather\nin Paris?[assistant]<tool_call>get_weather {\"city\": \"Paris\"}</tool_call>\
            [tool]Rain(get_weather)[user]And now?";
        assert!(text.ends_with(rest), "{text}");
        assert_eq!(ChatStyle::detect(HERMES).telling, Telling::Tools);
    }

    #[test]
    fn for_a_template_without_tools() {
        let style = ChatStyle::detect(GEMMA);
        assert_eq!((style.format, style.telling), (ToolFormat::Prompted, Telling::SystemPrompt));
        let text = render(GEMMA, &conversation());
        assert!(text.starts_with("<user># Tools"), "no system role, so the user's message: {text}");
        let rest = "The weather\nin Paris?<assistant><tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n\
            </tool_call><user><tool_response>\nRain\n</tool_response>\nAnd now?";
        assert!(text.ends_with(rest), "{text}");
        let chatml = ChatStyle::of(&ChatTemplate::chatml().unwrap());
        let tools = super::super::tests::tools();
        let short = json!([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
        let out = chatml.conversation(&short, &tools).unwrap();
        assert_eq!(out.messages[0]["role"], "system");
        let system = out.messages[0]["content"].as_str().unwrap();
        assert!(
            system.starts_with("Be brief.\n\n# Tools") && system.contains("\"name\": \"get_weather\""),
            "{system}"
        );
        assert_eq!(out.tools, None);
    }

    #[test]
    fn arguments_and_contents_as_a_template_takes_them() {
        let text = render(DEEPSEEK, &conversation());
        assert!(
            text.contains(
                "<｜tool▁calls▁begin｜>get_weather```json{\"city\": \"Paris\"}```<out>RainAnd now?"
            ),
            "{text}"
        );
        assert!(
            text.contains("function<｜tool▁sep｜>FUNCTION_NAME"),
            "the tools, which it does not tell itself: {text}"
        );
        let mistral = "[TOOL_CALLS]{{ tools }}{% if tool_call.id|length != 9 %}{% endif %} tool_calls 'tool'";
        let out = ChatStyle::detect(mistral).conversation(&conversation(), &[]).unwrap().messages;
        let id = out[1]["tool_calls"][0]["id"].as_str().unwrap();
        assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
        assert_eq!(out[2]["tool_call_id"], id);
        let phi = "{% if 'tools' in message and message['tools'] %}<|tool|>{{ message['tools'] }}<|/tool|>{% endif %}";
        let tools = super::super::tests::tools();
        let out =
            ChatStyle::detect(phi).conversation(&json!([{"role": "user", "content": "Hi"}]), &tools).unwrap();
        assert!(out.messages[0]["tools"].as_str().unwrap().starts_with("[{\"name\": \"get_weather\""));
        let smol = "{{ xml_tools }} <tool_call> message.role == \"tool\"";
        let out = ChatStyle::detect(smol).conversation(&conversation(), &tools).unwrap();
        assert_eq!(out.extra["xml_tools"][1]["name"], "now");
        assert_eq!(
            out.messages[1]["content"],
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>"
        );
        assert_eq!(out.messages[2]["role"], "tool");
    }

    #[test]
    fn a_parser_starts_where_the_prompt_ends() {
        let style = ChatStyle::detect("{{ tools }}<tool_call><think>");
        let mut parser = style.parser("<|im_start|>assistant\n<think>\n", Vec::new(), Arguments::Whole);
        assert_eq!(
            parser.push("Hm</think>Yes"),
            [OutputEvent::Reasoning("Hm".into()), OutputEvent::Content("Yes".into())]
        );
        assert_eq!(style.prompt("<|im_start|>assistant\n<think>\n\n</think>\n\n"), Prompt::Closed);
        assert_eq!(
            ChatStyle::detect("{{ tools }}<tool_call>").prompt("<think>"),
            Prompt::Silent,
            "it knows no reasoning"
        );
    }

    #[test]
    fn what_is_refused_is_named() {
        let style = ChatStyle::detect(HERMES);
        let call = |arguments: Json| json!([{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]}]);
        let cases = [
            (json!("hello"), "messages: a list"),
            (json!([1]), "messages[0]: an object"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([{"role": "function", "content": "x"}]), "`function` is not known"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 1}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                "`image_url`: this model reads text only",
            ),
            (json!([{"role": "user", "content": [{"type": "input_audio"}]}]), "messages[0].content[0]"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0]"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
            (json!([{"role": "tool", "content": "x", "tool_call_id": "q"}]), "a call `q`"),
            (json!([{"role": "user", "content": "x", "tool_calls": [{}]}]), "messages[0].tool_calls"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function"),
            (json!([{"role": "assistant", "content": "", "function_call": {}}]), "function_call"),
            (call(json!("{")), "tool_calls[0].function.arguments"),
            (call(json!("[1]")), "tool_calls[0].function.arguments"),
        ];
        for (messages, words) in cases {
            let error = style.conversation(&messages, &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(style.conversation(&call(json!("")), &[]).is_ok());
        assert!(style.conversation(&json!([{"role": "assistant", "content": null}]), &[]).is_ok());
    }
}
