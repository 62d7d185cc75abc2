//! What a model is forced to write: a Lark grammar (the dialect of `llguidance`) for the calls of a family.
//!
//! Everything but the arguments is spelled out as the family was trained on it, so a model has no room to go astray. Marks
//! that are control tokens of the vocabulary stand in the grammar as tokens, the others as text.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::format::ToolFormat;
use super::tool::{Tool, ToolChoice};
use super::xml;
use crate::Tokenizer;

/// The grammar of an answer: the calls of these tools, as `choice` has it, more than one after another where `parallel`.
/// `control` gives the id of a mark that is a control token of the vocabulary ([`control_token`]).
///
/// A reasoning block is no part of it; the grammar begins after [`end`](crate::ReasoningMarks::end). For
/// [`ToolFormat::Harmony`] it is: there the grammar begins with the answer.
///
/// Arguments follow the tool's schema. Parameters that a schema does not declare are not written, unless it says
/// `additionalProperties`. Where parameters are tags, they come in the order of the schema.
pub fn tool_grammar(
    format: ToolFormat,
    tools: &[Tool],
    choice: &ToolChoice,
    parallel: bool,
    control: &dyn Fn(&str) -> Option<u32>,
) -> String {
    let mut g = Grammar { control, rules: String::from("TEXT: /(.|\\n)*/\n"), next: 0 };
    let named: Vec<&Tool> = match choice {
        ToolChoice::Named(name) => tools.iter().filter(|t| t.name == *name).collect(),
        ToolChoice::None => Vec::new(),
        ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
    };
    let many = parallel && !matches!(choice, ToolChoice::Named(_));
    let start = if named.is_empty() {
        "TEXT".into()
    } else {
        g.start(format, &named, *choice == ToolChoice::Auto, many)
    };
    format!("start: {start}\n{}", g.rules)
}

/// The id of a mark that is a control token, for [`tool_grammar`].
pub fn control_token(tokenizer: &Tokenizer) -> impl Fn(&str) -> Option<u32> {
    |mark| {
        let id = tokenizer.token_id(mark)?;
        (tokenizer.is_special(id) || tokenizer.is_end_of_generation(id)).then_some(id)
    }
}

struct Grammar<'a> {
    control: &'a dyn Fn(&str) -> Option<u32>,
    rules: String,
    next: usize,
}

/// A part of a rule before it is written.
#[derive(Clone, Copy)]
enum Part<'a> {
    /// A mark: a control token or text.
    Mark(&'a str),
    Text(&'a str),
    /// A piece of grammar.
    Raw(&'a str),
}

use Part::{Mark, Raw, Text};

/// The calls of a format: what is before the first, each, what is between them, what is after the last.
struct Calls<'a> {
    begin: Vec<Part<'a>>,
    call: String,
    between: Vec<Part<'a>>,
    end: Vec<Part<'a>>,
}

impl Grammar<'_> {
    fn start(&mut self, format: ToolFormat, tools: &[&Tool], auto: bool, many: bool) -> String {
        if format == ToolFormat::Harmony {
            return self.harmony(tools, auto);
        }
        let calls = self.calls(format, tools);
        // The first part is what a free text runs into.
        let (first, rest) = calls.begin.split_first().map_or((None, &[][..]), |(f, r)| (Some(*f), r));
        let rest = self.sequence(rest);
        let (between, end) = (self.sequence(&calls.between), self.sequence(&calls.end));
        let call = self.rule(&calls.call);
        let more = if many { format!("({between} {call})*") } else { String::new() };
        let inside = self.rule(&format!("{rest} {call} {more} {end}"));
        let Some(first) = first else {
            // The object is the whole answer.
            let tag = (self.control)("<|python_tag|>").map_or(String::new(), |id| format!("<[{id}]>? "));
            let other = "/[ \\t\\n]*[^{ \\t\\n](.|\\n)*/";
            return if auto { format!("{tag}{inside} | {other} | \"\"") } else { tag + &inside };
        };
        if !auto {
            return format!("{} {inside}", self.part(first));
        }
        match first {
            Mark(mark) if (self.control)(mark).is_some() => format!("TEXT ({} {inside})?", self.part(first)),
            _ => {
                let head = self.until(first);
                format!("TEXT | {head} {inside}")
            }
        }
    }

    fn calls(&mut self, format: ToolFormat, tools: &[&Tool]) -> Calls<'static> {
        use ToolFormat as F;
        let object = |name: &'static str, arguments: &'static str| {
            [("{\"", name, "\": \""), ("\", \"", arguments, "\": ")]
        };
        let hermes = object("name", "arguments");
        match format {
            F::Hermes | F::SmolLm3 | F::Prompted | F::Harmony => {
                // A block per call, so what is between calls closes one and opens the next.
                Calls {
                    begin: vec![Mark("<tool_call>"), Text("\n")],
                    call: self.objects(tools, hermes),
                    between: vec![
                        Text("\n"),
                        Mark("</tool_call>"),
                        Text("\n"),
                        Mark("<tool_call>"),
                        Text("\n"),
                    ],
                    end: vec![Text("\n"), Mark("</tool_call>")],
                }
            }
            F::Llama => Calls {
                begin: Vec::new(),
                call: self.objects(tools, object("name", "parameters")),
                between: vec![Text("; ")],
                end: Vec::new(),
            },
            F::Mistral => Calls {
                begin: vec![Mark("[TOOL_CALLS]"), Raw("/ ?\\[/")], // SentencePiece's models write a space
                call: self.objects(tools, hermes),
                between: vec![Text(", ")],
                end: vec![Text("]")],
            },
            F::Granite | F::Phi4 => Calls {
                begin: vec![Mark("<|tool_call|>"), Text("[")],
                call: self.objects(tools, hermes),
                between: vec![Text(", ")],
                end: if format == F::Phi4 {
                    vec![Text("]"), Mark("<|/tool_call|>")]
                } else {
                    vec![Text("]")]
                },
            },
            F::CommandR => Calls {
                begin: vec![Mark("<|START_ACTION|>"), Text("[\n    ")],
                call: {
                    let object = self.objects(
                        tools,
                        [("\", \"", "tool_name", "\": \""), ("\", \"", "parameters", "\": ")],
                    );
                    format!("\"{{\\\"tool_call_id\\\": \\\"\" /[0-9]+/ ({object})")
                },
                between: vec![Text(",\n    ")],
                end: vec![Text("\n]"), Mark("<|END_ACTION|>")],
            },
            F::MistralNamed => Calls {
                begin: vec![Mark("[TOOL_CALLS]")],
                call: self.each(tools, |g, t| {
                    let schema = g.arguments(t);
                    g.sequence(&[Text(&t.name), Mark("[ARGS]"), Raw(&schema)])
                }),
                between: vec![Mark("[TOOL_CALLS]")],
                end: Vec::new(),
            },
            F::DeepSeek | F::DeepSeekPlain => Calls {
                begin: vec![Mark("<｜tool▁calls▁begin｜>"), Mark("<｜tool▁call▁begin｜>")],
                call: self.each(tools, |g, t| {
                    let (schema, sep, end) =
                        (g.arguments(t), Mark("<｜tool▁sep｜>"), Mark("<｜tool▁call▁end｜>"));
                    if format == F::DeepSeekPlain {
                        return g.sequence(&[Text(&t.name), sep, Raw(&schema), end]);
                    }
                    let name = format!("{}\n```json\n", t.name);
                    g.sequence(&[Text("function"), sep, Text(&name), Raw(&schema), Text("\n```"), end])
                }),
                between: if format == F::DeepSeek {
                    vec![Text("\n"), Mark("<｜tool▁call▁begin｜>")]
                } else {
                    vec![Mark("<｜tool▁call▁begin｜>")]
                },
                end: vec![Mark("<｜tool▁calls▁end｜>")],
            },
            F::Kimi => Calls {
                begin: vec![Mark("<|tool_calls_section_begin|>"), Mark("<|tool_call_begin|>")],
                call: self.each(tools, |g, t| {
                    let (schema, name) = (g.arguments(t), format!("functions.{}:", t.name));
                    let (begin, end) = (Mark("<|tool_call_argument_begin|>"), Mark("<|tool_call_end|>"));
                    g.sequence(&[Text(&name), Raw("/[0-9]+/"), begin, Raw(&schema), end])
                }),
                between: vec![Mark("<|tool_call_begin|>")],
                end: vec![Mark("<|tool_calls_section_end|>")],
            },
            F::Functionary => Calls {
                begin: vec![Text("<function=")],
                call: self.each(tools, |g, t| {
                    let (schema, name) = (g.arguments(t), format!("{}>", t.name));
                    g.sequence(&[Text(&name), Raw(&schema), Text("</function>")])
                }),
                between: vec![Text("<function=")],
                end: Vec::new(),
            },
            F::Lfm2 => Calls {
                begin: vec![Mark("<|tool_call_start|>"), Text("[")],
                call: self.each(tools, Self::python),
                between: vec![Text(", ")],
                end: vec![Text("]"), Mark("<|tool_call_end|>")],
            },
            F::QwenXml => self.tagged("<tool_call>", "</tool_call>", "\n", "\n", &xml::QWEN, tools),
            F::SeedXml => self.tagged("<seed:tool_call>", "</seed:tool_call>", "\n", "", &xml::QWEN, tools),
            F::MiniMax => {
                let mut calls = self.tagged(
                    "<minimax:tool_call>",
                    "</minimax:tool_call>",
                    "\n",
                    "",
                    &xml::MINIMAX,
                    tools,
                );
                calls.between = vec![Text("\n")]; // one block for all
                calls
            }
            F::Glm => Calls {
                begin: vec![Mark("<tool_call>")],
                call: self.each(tools, |g, t| g.tags(&xml::GLM, t, "")),
                between: vec![Text("\n"), Mark("<tool_call>")],
                end: Vec::new(),
            },
        }
    }

    /// Calls as objects: what is around the name and the arguments.
    fn objects(&mut self, tools: &[&Tool], keys: [(&str, &str, &str); 2]) -> String {
        self.each(tools, |g, t| {
            let [(a, name, b), (c, arguments, d)] = keys;
            let head = format!("{a}{name}{b}{}{c}{arguments}{d}", t.name);
            let schema = g.arguments(t);
            g.sequence(&[Text(&head), Raw(&schema), Text("}")])
        })
    }

    /// One alternative per tool.
    fn each(&mut self, tools: &[&Tool], mut one: impl FnMut(&mut Self, &Tool) -> String) -> String {
        let rules: Vec<String> = tools
            .iter()
            .map(|t| {
                let body = one(self, t);
                self.rule(&body)
            })
            .collect();
        rules.join(" | ")
    }

    fn tagged(
        &mut self,
        open: &'static str,
        close: &'static str,
        line: &'static str,
        value_line: &str,
        tags: &xml::Tags,
        tools: &[&Tool],
    ) -> Calls<'static> {
        Calls {
            begin: vec![Mark(open), Text(line)],
            call: self.each(tools, |g, t| g.tags(tags, t, value_line)),
            between: vec![Text(line), Mark(close), Text(line), Mark(open), Text(line)],
            end: vec![Text(line), Mark(close)],
        }
    }

    /// A call whose parameters are tags, up to its closing tag.
    fn tags(&mut self, tags: &xml::Tags, tool: &Tool, value_line: &str) -> String {
        let name = format!("{}{}{}\n", tags.open, tool.name, tags.open_end);
        let mut body = self.sequence(&[Text(&name)]);
        for (key, schema, required) in parameters(tool) {
            let head = if tags.value.is_empty() {
                let head = format!("{}{key}{}{value_line}", tags.param, tags.param_end);
                self.sequence(&[Text(&head)])
            } else {
                self.sequence(&[
                    Mark(tags.param),
                    Text(&key),
                    Mark(tags.param_end),
                    Text("\n"),
                    Mark(tags.value),
                ])
            };
            let value = self.tag_value(tags.value_end, value_line, &schema);
            let parameter = self.rule(&format!("{head} {value} \"\\n\""));
            let _ = write!(body, " {parameter}{}", if required { "" } else { "?" });
        }
        let close = self.part(Mark(tags.close));
        format!("{body} {close}")
    }

    /// A value and its closing tag: free text for texts, the schema's JSON for the rest.
    fn tag_value(&mut self, end: &str, line: &str, schema: &Json) -> String {
        let control = (self.control)(end).is_some();
        let close = format!("{line}{end}");
        let texts = schema.get("enum").and_then(Json::as_array).cloned();
        let texts: Option<Vec<String>> =
            texts.and_then(|v| v.iter().map(|t| t.as_str().map(String::from)).collect());
        let free = match schema.get("type") {
            Some(Json::String(one)) => one == "string",
            Some(Json::Array(many)) => many.iter().any(|t| t == "string"),
            _ => {
                !["enum", "const", "$ref", "anyOf", "oneOf", "allOf"].iter().any(|k| schema.get(k).is_some())
            }
        };
        if let Some(texts) = texts.filter(|t| !t.is_empty()) {
            let words: Vec<String> = texts.iter().map(|t| quote(t)).collect();
            let (line, end) = (quote(line), self.part(Mark(end)));
            return format!("({}) {line} {end}", words.join(" | "));
        }
        match (free, control) {
            (true, true) => format!("TEXT {}", self.part(Mark(end))),
            (true, false) => self.until(Text(&close)),
            (false, _) => {
                let (line, end) = (quote(line), self.part(Mark(end)));
                format!("%json {schema} {line} {end}")
            }
        }
    }

    /// `f(a="x", b=1)`: the required parameters and any of the others, in the order of the schema.
    fn python(&mut self, tool: &Tool) -> String {
        // From the last parameter to the first, in two forms: with an argument before it, and without.
        let (mut after, mut first) = (String::new(), String::new());
        for (key, schema, required) in parameters(tool).into_iter().rev() {
            let value = self.rule(&format!("{} %json {schema}", quote(&format!("{key}="))));
            let with = format!("{value} {after}");
            let (new_after, new_first) = if required {
                (format!("\", \" {with}"), with)
            } else {
                (
                    format!("(\", \" {with} | {})", or_empty(&after)),
                    format!("({with} | {})", or_empty(&first)),
                )
            };
            after = self.rule(&or_empty(&new_after));
            first = self.rule(&or_empty(&new_first));
        }
        let name = quote(&format!("{}(", tool.name));
        format!("{name} {first} \")\"")
    }

    /// Messages in channels: reasoning and preambles as it likes, then a call, or (`auto`) an answer.
    fn harmony(&mut self, tools: &[&Tool], auto: bool) -> String {
        let text = |g: &mut Self, channel: &str| {
            let head = g.sequence(&[Mark("<|channel|>"), Text(channel), Mark("<|message|>")]);
            let body = if (g.control)("<|end|>").is_some() {
                format!("TEXT {}", g.part(Mark("<|end|>")))
            } else {
                g.until(Text("<|end|>"))
            };
            let next = g.sequence(&[Mark("<|start|>"), Text("assistant")]);
            g.rule(&format!("{head} {body} {next}"))
        };
        let (analysis, preamble) = (text(self, "analysis"), text(self, "commentary"));
        let calls = self.each(tools, |g, t| {
            let to = format!("commentary to=functions.{} ", t.name);
            let schema = g.arguments(t);
            let (json, message) = ([Mark("<|constrain|>"), Text("json")], Mark("<|message|>"));
            g.sequence(&[
                Mark("<|channel|>"),
                Text(&to),
                json[0],
                json[1],
                message,
                Raw(&schema), // and `<|call|>`, which ends the answer
            ])
        });
        let answer = self.sequence(&[Mark("<|channel|>"), Text("final"), Mark("<|message|>"), Raw("TEXT")]);
        let last = if auto { format!("{calls} | {answer}") } else { calls };
        format!("({analysis} | {preamble})* ({last})")
    }

    /// The arguments as JSON, in the spacing that templates write.
    fn arguments(&self, tool: &Tool) -> String {
        let mut schema = tool.parameters.as_object().cloned().unwrap_or_default();
        close(&mut schema);
        schema.insert("x-guidance".into(), spacing());
        format!("%json {}", Json::Object(schema))
    }

    fn sequence(&self, parts: &[Part<'_>]) -> String {
        let parts: Vec<String> = parts.iter().map(|p| self.part(*p)).filter(|p| p != "\"\"").collect();
        parts.join(" ")
    }

    fn part(&self, part: Part<'_>) -> String {
        match part {
            Mark(mark) => (self.control)(mark).map_or_else(|| quote(mark), |id| format!("<[{id}]>")),
            Text(text) => quote(text),
            Raw(rule) => rule.into(),
        }
    }

    /// A name for a piece of grammar.
    fn rule(&mut self, body: &str) -> String {
        let name = format!("r{}", self.next);
        self.next += 1;
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// Any text up to and with the first of this.
    fn until(&mut self, end: Part<'_>) -> String {
        let name = format!("r{}", self.next);
        self.next += 1;
        let end = match end {
            Mark(text) | Text(text) => quote(text),
            Raw(rule) => rule.into(),
        };
        let _ = writeln!(self.rules, "{name}[lazy]: TEXT {end}");
        name
    }
}

/// The spacing of `tojson` in templates. Free spacing lets a small model write blanks without end.
fn spacing() -> Json {
    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "})
}

fn or_empty(rule: &str) -> String {
    if rule.is_empty() { "\"\"".into() } else { rule.into() }
}

/// A text as a literal: JSON's strings, without DEL, which the grammar's reader does not take.
fn quote(text: &str) -> String {
    Json::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// An object schema without a word on other properties has none, unless it is put together from parts.
fn close(schema: &mut Map<String, Json>) {
    let open = ["additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"];
    let parts = ["allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas"];
    if !open.iter().chain(&parts).any(|k| schema.contains_key(*k)) {
        schema.insert("additionalProperties".into(), false.into());
    }
}

/// The declared parameters in order: name, schema (with the definitions it may refer to), required.
fn parameters(tool: &Tool) -> Vec<(String, Json, bool)> {
    let required: Vec<&str> = tool
        .parameters
        .get("required")
        .and_then(Json::as_array)
        .map_or(Vec::new(), |list| list.iter().filter_map(Json::as_str).collect());
    let properties = tool.parameters.get("properties").and_then(Json::as_object);
    let entries = properties.into_iter().flatten().map(|(key, schema)| {
        let mut schema = match schema {
            Json::Object(map) => map.clone(),
            _ => Map::new(),
        };
        for definitions in ["$defs", "definitions"] {
            if let Some(value) = tool.parameters.get(definitions) {
                schema.entry(definitions).or_insert_with(|| value.clone());
            }
        }
        schema.insert("x-guidance".into(), spacing());
        (key.clone(), Json::Object(schema), required.contains(&key.as_str()))
    });
    entries.collect()
}
