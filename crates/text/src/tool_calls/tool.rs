//! Tools as clients declare them, checked: what a model may be told, a grammar may be made of and a parser looks for.

use serde_json::{Map, Value as Json, json};

use crate::{Error, Result};

/// Most tools in one request.
pub const MAX_TOOLS: usize = 128;
/// Longest name of a tool.
const MAX_NAME: usize = 64;
/// Longest description of a tool.
const MAX_DESCRIPTION_BYTES: usize = 64 << 10;

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name: 1 to 64 of `[a-zA-Z0-9_-]`.
    pub name: String,
    /// What it does, in words; perhaps empty.
    pub description: String,
    /// The JSON schema of its arguments, an object schema.
    pub parameters: Json,
}

/// What the model has to do with its tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// Text or calls, as it likes.
    Auto,
    /// Text only.
    None,
    /// At least one call.
    Required,
    /// A call of this tool.
    Named(String),
}

impl Tool {
    /// The `tools` of an OpenAI request: `[{"type": "function", "function": {"name", "description", "parameters"}}]`.
    ///
    /// # Errors
    /// Not such a list, more than [`MAX_TOOLS`], a name that is not allowed or comes twice, or parameters that are no
    /// object schema; the place is named.
    pub fn list_from_openai(list: &Json) -> Result<Vec<Self>> {
        Self::list(list, |at, entry| {
            let kind = entry.get("type").and_then(Json::as_str);
            if kind != Some("function") {
                let what = match kind {
                    Some(kind) => format!("tools of type `{kind}` are not supported; use `function`"),
                    None => "a tool needs `\"type\": \"function\"`".into(),
                };
                return Err(bad(format!("{at}.type"), what));
            }
            let at = format!("{at}.function");
            let function = entry.get("function").and_then(Json::as_object);
            let function = function.ok_or_else(|| bad(at.clone(), "an object is needed".into()))?;
            known_keys(&at, function, &["name", "description", "parameters", "strict"])?;
            Self::from_parts(&at, function, "parameters")
        })
    }

    /// The `tools` of an Anthropic request: `[{"name", "description", "input_schema"}]`.
    ///
    /// # Errors
    /// As [`Self::list_from_openai`].
    pub fn list_from_anthropic(list: &Json) -> Result<Vec<Self>> {
        Self::list(list, |at, entry| {
            if let Some(kind) = entry.get("type").filter(|t| *t != "custom") {
                let what = format!("tools of type {kind} are not supported; give `name` and `input_schema`");
                return Err(bad(format!("{at}.type"), what));
            }
            let keys = ["type", "name", "description", "input_schema", "cache_control"];
            known_keys(at, entry, &keys)?;
            Self::from_parts(at, entry, "input_schema")
        })
    }

    fn list(list: &Json, one: impl Fn(&str, &Map<String, Json>) -> Result<Self>) -> Result<Vec<Self>> {
        let entries = list.as_array().ok_or_else(|| bad("tools".into(), "a list is needed".into()))?;
        if entries.len() > MAX_TOOLS {
            let what = format!("{} tools are given; at most {MAX_TOOLS} are allowed", entries.len());
            return Err(bad("tools".into(), what));
        }
        let mut tools: Vec<Self> = Vec::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            let at = format!("tools[{i}]");
            let entry = entry.as_object().ok_or_else(|| bad(at.clone(), "an object is needed".into()))?;
            let tool = one(&at, entry)?;
            if tools.iter().any(|t| t.name == tool.name) {
                return Err(bad(at, format!("the name `{}` is given twice", tool.name)));
            }
            tools.push(tool);
        }
        Ok(tools)
    }

    fn from_parts(at: &str, map: &Map<String, Json>, schema_key: &str) -> Result<Self> {
        let name = map.get("name").and_then(Json::as_str);
        let name = name.ok_or_else(|| bad(format!("{at}.name"), "a text is needed".into()))?;
        if !is_name(name) {
            let what = format!(
                "`{}` is not allowed: 1 to {MAX_NAME} letters, digits, `_` or `-` are",
                name.chars().take(MAX_NAME).collect::<String>()
            );
            return Err(bad(format!("{at}.name"), what));
        }
        let description = match map.get("description") {
            None | Some(Json::Null) => "",
            Some(Json::String(text)) if text.len() <= MAX_DESCRIPTION_BYTES => text,
            Some(Json::String(text)) => {
                let what = format!("{} bytes; at most {MAX_DESCRIPTION_BYTES} are allowed", text.len());
                return Err(bad(format!("{at}.description"), what));
            }
            Some(_) => return Err(bad(format!("{at}.description"), "a text is needed".into())),
        };
        let parameters = match map.get(schema_key) {
            None | Some(Json::Null) => json!({"type": "object", "properties": {}}),
            Some(schema) => object_schema(&format!("{at}.{schema_key}"), schema)?,
        };
        Ok(Self { name: name.into(), description: description.into(), parameters })
    }

    /// The tool as templates expect it, which is OpenAI's form.
    pub fn to_json(&self) -> Json {
        json!({"type": "function", "function": {
            "name": self.name, "description": self.description, "parameters": self.parameters,
        }})
    }

    /// The types that the schema allows for a parameter; empty where it does not say.
    pub(super) fn types_of(&self, parameter: &str) -> Vec<&str> {
        let schema = self.parameters.get("properties").and_then(|p| p.get(parameter));
        match schema.and_then(|s| s.get("type")) {
            Some(Json::String(one)) => vec![one],
            Some(Json::Array(many)) => many.iter().filter_map(Json::as_str).collect(),
            _ => {
                let values = schema.and_then(|s| s.get("enum")).and_then(Json::as_array);
                let texts = values.is_some_and(|v| !v.is_empty() && v.iter().all(Json::is_string));
                if texts { vec!["string"] } else { Vec::new() }
            }
        }
    }
}

impl ToolChoice {
    /// The `tool_choice` of an OpenAI request; `null` is `auto`.
    ///
    /// # Errors
    /// Another value, or a name that no tool has.
    pub fn from_openai(value: &Json, tools: &[Tool]) -> Result<Self> {
        let word = match value {
            Json::Null => return Ok(Self::Auto),
            Json::String(word) => word.as_str(),
            Json::Object(map) if map.get("type").is_none_or(|t| t == "function") => {
                let function = map.get("function").unwrap_or(value); // the Responses API names it at the top
                let name = function.get("name").and_then(Json::as_str);
                return Self::named(name, "tool_choice.function.name", tools);
            }
            _ => "",
        };
        Self::word(
            word,
            "required",
            tools,
            "`none`, `auto`, `required` or {\"type\": \"function\", \"function\": {\"name\": ..}}",
        )
    }

    /// The `tool_choice` of an Anthropic request: `{"type": "auto" | "any" | "none" | "tool", "name"}`.
    ///
    /// # Errors
    /// Another value, or a name that no tool has.
    pub fn from_anthropic(value: &Json, tools: &[Tool]) -> Result<Self> {
        if value.is_null() {
            return Ok(Self::Auto);
        }
        match value.get("type").and_then(Json::as_str) {
            Some("tool") => Self::named(value.get("name").and_then(Json::as_str), "tool_choice.name", tools),
            word => Self::word(
                word.unwrap_or(""),
                "any",
                tools,
                "{\"type\": ..} with `auto`, `any`, `none` or `tool`",
            ),
        }
    }

    fn word(word: &str, required: &str, tools: &[Tool], known: &str) -> Result<Self> {
        let choice = match word {
            "auto" => Self::Auto,
            "none" => Self::None,
            word if word == required => Self::Required,
            _ => return Err(bad("tool_choice".into(), format!("not understood; it may be {known}"))),
        };
        if choice == Self::Required && tools.is_empty() {
            return Err(bad("tool_choice".into(), "a call is required, but there are no tools".into()));
        }
        Ok(choice)
    }

    fn named(name: Option<&str>, at: &str, tools: &[Tool]) -> Result<Self> {
        let name = name.ok_or_else(|| bad(at.into(), "the name of a tool is needed".into()))?;
        if !tools.iter().any(|t| t.name == name) {
            let name: String = name.chars().take(MAX_NAME).collect();
            return Err(bad(at.into(), format!("no tool is called `{name}`")));
        }
        Ok(Self::Named(name.into()))
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn known_keys(at: &str, map: &Map<String, Json>, known: &[&str]) -> Result<()> {
    match map.keys().find(|k| !known.contains(&k.as_str())) {
        Some(key) => {
            let key: String = key.chars().take(MAX_NAME).collect();
            Err(bad(format!("{at}.{key}"), format!("not understood; known: {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

/// A schema whose values are objects. `{}` and a missing `type` are read as such; the type is written in.
fn object_schema(at: &str, schema: &Json) -> Result<Json> {
    let map =
        schema.as_object().ok_or_else(|| bad(at.into(), "an object (a JSON schema) is needed".into()))?;
    match map.get("type") {
        Some(kind) if kind == "object" => {}
        Some(kind) => {
            let what = format!("arguments are an object, so its `type` has to be \"object\", not {kind}");
            return Err(bad(at.into(), what));
        }
        None => {}
    }
    match map.get("properties") {
        None | Some(Json::Object(_)) => {}
        Some(_) => return Err(bad(format!("{at}.properties"), "an object is needed".into())),
    }
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    out.extend(map.iter().map(|(k, v)| (k.clone(), v.clone())));
    if !out.contains_key("properties") {
        // Nothing is declared: any object will do. A schema that declares no parameters at all says `properties: {}`.
        out.insert("properties".into(), json!({}));
        out.entry("additionalProperties").or_insert(true.into());
    }
    Ok(Json::Object(out))
}

pub(super) fn bad(at: String, what: String) -> Error {
    Error::Request { at, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_give_the_same_tool() {
        let schema =
            json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        let openai = json!([{"type": "function",
            "function": {"name": "get-weather_1", "description": "The weather", "parameters": schema, "strict": true}}]);
        let anthropic =
            json!([{"name": "get-weather_1", "description": "The weather", "input_schema": schema}]);
        let tools = Tool::list_from_openai(&openai).unwrap();
        assert_eq!(tools, Tool::list_from_anthropic(&anthropic).unwrap());
        assert_eq!(tools[0].types_of("city"), ["string"]);
        assert!(tools[0].types_of("nothing").is_empty());
        assert_eq!(tools[0].to_json()["function"]["parameters"], schema);
        let bare = json!([{"type": "function", "function": {"name": "now"}}]);
        let bare = Tool::list_from_openai(&bare).unwrap();
        assert_eq!(bare[0].parameters, json!({"type": "object", "properties": {}}));
        let any = json!([{"name": "any", "input_schema": {"type": "object"}}]);
        let any = Tool::list_from_anthropic(&any).unwrap();
        assert_eq!(any[0].parameters["additionalProperties"], true, "nothing declared, nothing refused");
    }

    #[test]
    fn what_is_refused_is_named() {
        let f = |function: Json| json!([{"type": "function", "function": function}]);
        let many: Vec<Json> =
            (0..129).map(|i| json!({"type": "function", "function": {"name": format!("f{i}")}})).collect();
        let twice = json!([{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a"}}]);
        let cases = [
            (json!({}), "tools: a list"),
            (json!([1]), "tools[0]: an object"),
            (json!([{"function": {"name": "a"}}]), "tools[0].type"),
            (json!([{"type": "web_search"}]), "`web_search`"),
            (json!([{"type": "function"}]), "tools[0].function"),
            (f(json!({})), "tools[0].function.name"),
            (f(json!({"name": "a b"})), "`a b` is not allowed"),
            (f(json!({"name": ""})), "is not allowed"),
            (f(json!({"name": "é"})), "is not allowed"),
            (f(json!({"name": "x".repeat(65)})), "is not allowed"),
            (f(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
            (f(json!({"name": "a", "parameters": {"type": "string"}})), "not \"string\""),
            (f(json!({"name": "a", "parameters": {"properties": 1}})), "parameters.properties"),
            (f(json!({"name": "a", "description": 1})), "tools[0].function.description"),
            (f(json!({"name": "a", "extra": 1})), "tools[0].function.extra"),
            (json!(many), "129 tools"),
            (twice, "given twice"),
        ];
        for (list, words) in cases {
            let error = Tool::list_from_openai(&list).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        let error =
            Tool::list_from_anthropic(&json!([{"type": "bash_20250124", "name": "bash"}])).unwrap_err();
        assert!(error.to_string().contains("bash_20250124"));
    }

    #[test]
    fn choices() {
        let tools =
            Tool::list_from_openai(&json!([{"type": "function", "function": {"name": "f"}}])).unwrap();
        let named = ToolChoice::Named("f".into());
        let openai = |v: Json| ToolChoice::from_openai(&v, &tools).map_err(|e| e.to_string());
        assert_eq!(openai(json!(null)), Ok(ToolChoice::Auto));
        assert_eq!(openai(json!("none")), Ok(ToolChoice::None));
        assert_eq!(openai(json!("required")), Ok(ToolChoice::Required));
        assert_eq!(openai(json!({"type": "function", "function": {"name": "f"}})), Ok(named.clone()));
        assert_eq!(openai(json!({"type": "function", "name": "f"})), Ok(named.clone()));
        assert!(openai(json!({"type": "function", "function": {"name": "g"}})).unwrap_err().contains("`g`"));
        assert!(openai(json!("any")).is_err() && openai(json!(1)).is_err());
        assert!(ToolChoice::from_openai(&json!("required"), &[]).is_err());
        let anthropic = |v: Json| ToolChoice::from_anthropic(&v, &tools).map_err(|e| e.to_string());
        assert_eq!(anthropic(json!({"type": "any"})), Ok(ToolChoice::Required));
        assert_eq!(anthropic(json!({"type": "tool", "name": "f"})), Ok(named));
        assert!(anthropic(json!({"type": "required"})).is_err() && anthropic(json!("auto")).is_err());
    }
}
