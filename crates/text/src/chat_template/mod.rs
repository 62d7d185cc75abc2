//! Chat templates: a model's own Jinja, rendered as `transformers` renders it with Python's jinja2.
//!
//! A template comes with the model, from a stranger. It has no files, no clock and no other templates; its work is
//! bounded by fuel (instructions and bytes), its output by a size, its nesting by a depth.

mod defaults;
mod pydate;
mod pyjson;
mod pymethods;
mod rewrite;

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use quarrel_formats::gguf::{Metadata, Value as MetaValue};
use serde_json::Value as Json;

pub use defaults::{DEFAULTS, DefaultTemplate};
pub use pydate::DateTime;

use crate::{Error, Result};

/// Longest template source.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Longest rendered text.
const MAX_OUTPUT_BYTES: usize = 32 << 20;
/// Work of one rendering: instructions, and 64 bytes of data each. Published templates need a few hundred a message.
const FUEL: u64 = 1_000_000;
/// Stack of a rendering: deeper than a value can be nested with [`FUEL`].
const STACK_BYTES: usize = 1 << 30;
/// Nesting of blocks, macros and loops.
const RECURSION: usize = 200;

/// ChatML, the layout most small models know; see [`ChatTemplate::chatml`].
const CHATML: &str = "{%- for message in messages -%}\
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

/// A model's template, or its named templates.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    sources: Vec<(String, String)>,
}

/// What a template is rendered with. `Default` is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenderInput<'a> {
    /// The conversation: a list of objects with `role`, `content` and whatever else the template reads.
    pub messages: Option<&'a Json>,
    /// Tool definitions, a list; `None` is the template's `none`.
    pub tools: Option<&'a Json>,
    /// End with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Text of the bos token (`bos_token`), where the model has one.
    pub bos: Option<&'a str>,
    /// Text of the eos token (`eos_token`), where the model has one.
    pub eos: Option<&'a str>,
    /// What `strftime_now` tells. Without it a template that asks for the date fails.
    pub now: Option<DateTime>,
    /// Further variables (`enable_thinking`, `documents`, ..), an object; they win over the ones above.
    pub extra: Option<&'a Json>,
}

/// The words of a `raise_exception`, to be found again in the error's sources.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl ChatTemplate {
    /// A template from its Jinja source.
    ///
    /// # Errors
    /// The source is too long, does not parse (with the line), or is not Jinja but an Ollama template.
    pub fn new(source: &str) -> Result<Self> {
        Self::named(vec![("default".into(), source.into())])
    }

    /// Several templates by name. `tool_use` is used for conversations with tools, `default` for the others; with one
    /// template only, that one.
    ///
    /// # Errors
    /// As [`Self::new`]; or there is no template, or several and none called `default`.
    pub fn named(sources: Vec<(String, String)>) -> Result<Self> {
        if sources.len() != 1 && !sources.iter().any(|(name, _)| name == "default") {
            let names: Vec<&str> = sources.iter().map(|(n, _)| n.as_str()).collect();
            return Err(Error::Template(format!(
                "none of its templates is called `default`: [{}]",
                names.join(", ")
            )));
        }
        let mut env = environment();
        for (name, source) in &sources {
            if source.len() > MAX_SOURCE_BYTES {
                let what = format!("the source has {} bytes (at most {MAX_SOURCE_BYTES})", source.len());
                return Err(Error::Template(what));
            }
            let rewritten = rewrite::rewrite(source).map_err(Error::Template)?;
            env.add_template_owned(name.clone(), rewritten).map_err(|e| {
                if looks_like_go(source) {
                    let what =
                        "this is an Ollama template (Go), not Jinja; give the model's Jinja template instead";
                    return Error::Template(what.into());
                }
                Error::TemplateSyntax { line: e.line().unwrap_or(0), what: describe(&e) }
            })?;
        }
        Ok(Self { env, sources })
    }

    /// The value of `chat_template` in a `tokenizer_config.json`: a text, or a list of `{name, template}`.
    ///
    /// # Errors
    /// As [`Self::named`], or the value is neither.
    pub fn from_config(value: &Json) -> Result<Self> {
        if let Some(source) = value.as_str() {
            return Self::new(source);
        }
        let entry =
            |v: &Json| Some((v.get("name")?.as_str()?.to_string(), v.get("template")?.as_str()?.to_string()));
        let list = value.as_array().and_then(|list| list.iter().map(entry).collect::<Option<Vec<_>>>());
        let what = "`chat_template` is neither a text nor a list of {name, template}";
        Self::named(list.ok_or_else(|| Error::Template(what.into()))?)
    }

    /// The template of a GGUF file (`tokenizer.chat_template` and `tokenizer.chat_template.NAME`), if it has one.
    ///
    /// # Errors
    /// As [`Self::named`].
    pub fn from_gguf(meta: &Metadata) -> Result<Option<Self>> {
        let key = "tokenizer.chat_template";
        let mut sources = Vec::new();
        for (name, value) in meta.iter() {
            let MetaValue::String(source) = value else { continue };
            if name == key {
                sources.push(("default".to_string(), source.clone()));
            } else if let Some(name) = name.strip_prefix(key).and_then(|n| n.strip_prefix('.')) {
                sources.push((name.to_string(), source.clone()));
            }
        }
        if sources.is_empty() { Ok(None) } else { Self::named(sources).map(Some) }
    }

    /// ChatML, for a model that comes without a template. To be chosen knowingly: a model that was not trained on
    /// ChatML answers worse with it.
    ///
    /// # Errors
    /// None in practice: the source is built in.
    pub fn chatml() -> Result<Self> {
        Self::new(CHATML)
    }

    /// The source of the template that is used with or without tools.
    pub fn source(&self, with_tools: bool) -> &str {
        &self.pick(with_tools).1
    }

    fn pick(&self, with_tools: bool) -> &(String, String) {
        let by_name = |wanted: &str| self.sources.iter().find(|(name, _)| name == wanted);
        let tool_use = if with_tools { by_name("tool_use") } else { None };
        tool_use.or_else(|| by_name("default")).unwrap_or(&self.sources[0])
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// The template refuses the conversation, fails on it (with the line), or needs too much work.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String> {
        // Values that a template nests a million deep are dropped and compared by recursion in the engine, so a
        // rendering has a stack of its own that its fuel cannot exhaust (reserved, not used, memory).
        std::thread::scope(|scope| {
            let thread =
                std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || self.run(input));
            match thread.map(|thread| thread.join()) {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(Error::Template("rendering failed inside the template engine".into())),
                Err(e) => Err(Error::Template(format!("no thread to render on: {e}"))),
            }
        })
    }

    fn run(&self, input: &RenderInput<'_>) -> Result<String> {
        let (name, _) = self.pick(input.tools.is_some());
        let fail = |e| error(&e, false);
        let template = self.env.get_template(name).map_err(fail)?;
        let none = Json::Null;
        let mut vars: Vec<(&str, Value)> = vec![
            ("messages", value(input.messages.unwrap_or(&none))),
            ("tools", value(input.tools.unwrap_or(&none))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            (NOW, input.now.map_or(Value::UNDEFINED, Value::from_object)),
        ];
        vars.extend(input.bos.map(|t| ("bos_token", Value::from(t))));
        vars.extend(input.eos.map(|t| ("eos_token", Value::from(t))));
        if let Some(extra) = input.extra {
            let extra =
                extra.as_object().ok_or_else(|| Error::Template("`extra` is not an object".into()))?;
            vars.extend(extra.iter().map(|(k, v)| (k.as_str(), value(v))));
        }
        let mut out = Limited { text: Vec::new(), full: false };
        match template.render_captured_to(Value::from_pairs(vars), &mut out) {
            Ok(_) => {}
            Err(e) => return Err(error(&e, out.full)),
        }
        String::from_utf8(out.text).map_err(|_| Error::Template("the rendered text is not UTF-8".into()))
    }
}

/// The hidden variable that carries [`RenderInput::now`]; no template can spell it.
const NOW: &str = "\u{0}now";

/// JSON as template values; objects keep the order of their keys.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), value(v)))),
    }
}

struct Limited {
    text: Vec<u8>,
    full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.full = true;
            return Err(io::Error::other("the rendered text is too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As `transformers` sets jinja2 up: `trim_blocks`, `lstrip_blocks`, loop controls, no escaping, its own `tojson`,
/// `raise_exception` and `strftime_now`.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax); // the delimiters are the usual ones, so building cannot fail
    }
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(FUEL));
    env.set_debug(false); // debug builds would otherwise print all variables into errors
    env.set_recursion_limit(RECURSION);
    env.set_unknown_method_callback(pymethods::call);
    env.remove_global("debug"); // prints the whole state; Python has no such thing
    env.add_filter("tojson", pyjson::tojson);
    env.add_filter("trim", pymethods::trim);
    env.add_filter(rewrite::SIZED, rewrite::sized);
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refused(message)))
    });
    env.add_function("strftime_now", |state: &minijinja::State, format: &str| {
        let invalid = |what: String| minijinja::Error::new(ErrorKind::InvalidOperation, what);
        let now = state.lookup(NOW);
        let now = now.as_ref().and_then(|v| v.downcast_object_ref::<DateTime>());
        let now = now.ok_or_else(|| {
            invalid("the template asks for the date (strftime_now), and none was given".into())
        })?;
        now.strftime(format).map_err(invalid)
    });
    env.add_function("dict", |kwargs: Kwargs| {
        let pairs: Result<Vec<_>, minijinja::Error> =
            kwargs.args().map(|k| Ok((k, kwargs.get::<Value>(k)?))).collect();
        pairs.map(Value::from_pairs)
    });
    env
}

/// Ollama's templates are Go's: `{{ .Prompt }}`, `{{- range .Messages }}`.
fn looks_like_go(source: &str) -> bool {
    source.split("{{").skip(1).any(|expr| {
        let expr = expr.trim_start_matches('-').trim_start();
        let word = expr.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("");
        expr.starts_with(['.', '$'])
            || matches!(word, "range" | "end")
            || (word == "if" && !expr.contains("{%"))
    })
}

/// What an error says, without the library's own frame.
fn describe(e: &minijinja::Error) -> String {
    match e.detail() {
        Some(detail) => format!("{}: {detail}", e.kind()),
        None => e.kind().to_string(),
    }
}

fn error(e: &minijinja::Error, full: bool) -> Error {
    let line = e.line().unwrap_or(0);
    if full {
        return Error::TemplateLimit { line, what: format!("{} MiB of text", MAX_OUTPUT_BYTES >> 20) };
    }
    if e.kind() == ErrorKind::OutOfFuel {
        return Error::TemplateLimit { line, what: format!("{FUEL} steps") };
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
    let mut what = describe(e);
    while let Some(cause) = source {
        if let Some(Refused(message)) = cause.downcast_ref::<Refused>() {
            return Error::TemplateRefused { line, message: message.clone() };
        }
        if let Some(inner) = cause.downcast_ref::<minijinja::Error>() {
            what = describe(inner);
        }
        source = cause.source();
    }
    Error::TemplateRender { line, what }
}

#[cfg(test)]
mod tests;
