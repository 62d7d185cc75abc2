//! From a request's words to the engine's request: the conversation rendered and tokenized, grammars compiled, and how the
//! answer is to be read.

use std::sync::Arc;

use quarrel_engine::{LogprobsOf, Meaning, Request, Speculate};
use quarrel_runtime::prompt::{
    encode_prompt, message, quote, quote_all, quote_answer, quote_answers, render,
};
use quarrel_runtime::{Embedder, Sentences};
use quarrel_text::grammar::Reasoning;
use quarrel_text::stream_decoder::{Control, Leading};
use quarrel_text::tool_calls::{Arguments, control_token, tool_grammar};
use quarrel_text::{
    GrammarSpec, Guided, OutputParser, Prompt as PromptEnd, ReasoningMarks, RenderInput, Tool, ToolChoice,
};
use serde_json::{Map, Value};

use crate::app::Caller;
use crate::charge::Charge;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generate::{Generating, TextOptions};
use crate::models::{Lease, Live};
use crate::sampling;

/// Most messages of a conversation.
const MESSAGES_MAX: usize = 4096;

/// How much a model may reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Not at all, where its template can say so.
    None,
    /// At most so many tokens.
    Tokens(u32),
}

impl Effort {
    /// What a word of OpenAI's bounds reasoning to.
    pub(crate) fn of(field: &str, word: &str) -> Result<Option<Effort>, ApiError> {
        match word {
            "none" => Ok(Some(Effort::None)),
            "minimal" => Ok(Some(Effort::Tokens(128))),
            "low" => Ok(Some(Effort::Tokens(1024))),
            "medium" => Ok(Some(Effort::Tokens(4096))),
            "high" | "xhigh" | "max" => Ok(None),
            other => {
                let other: String = other.chars().take(40).collect();
                let known = "none, minimal, low, medium, high, xhigh and max are known";
                Err(ApiError::field(field, format!("{field} is {other:?}; {known}")))
            }
        }
    }
}

/// A conversation to go on with.
#[derive(Clone)]
pub(crate) struct ChatPrompt {
    /// OpenAI's messages.
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    /// Several calls in one answer.
    pub(crate) parallel: bool,
    /// The word that the template is told, and the bound that is kept.
    pub(crate) effort: (Option<String>, Option<Effort>),
    /// Variables for the template.
    pub(crate) extra: Map<String, Value>,
    /// Go on with the assistant's last message.
    pub(crate) go_on: bool,
}

impl ChatPrompt {
    /// A conversation and nothing else.
    pub(crate) fn new(messages: Vec<Value>) -> ChatPrompt {
        ChatPrompt {
            messages,
            tools: Vec::new(),
            choice: ToolChoice::Auto,
            parallel: true,
            effort: (None, None),
            extra: Map::new(),
            go_on: false,
        }
    }
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

/// Submits a conversation.
pub(crate) async fn chat(
    lease: Lease,
    ask: ChatPrompt,
    fields: Fields,
    logprobs: Option<u8>,
    caller: Caller,
) -> Result<Generating, ApiError> {
    let record = caller.record.clone();
    let embedder = if fields.compares() { lease.embedder().await? } else { None };
    let (lease, request, text, charge) = blocking(move || {
        let asked = embedder.map(|e| (e, last_text(&ask.messages)));
        let guided = fields.guidance.as_ref().is_some_and(|g| g.negative_prompt.is_some());
        let instead = guided.then(|| ask.clone());
        let Rendered { text, tools, choice, parallel, reasoning } = conversation(&lease, ask)?;
        let ids = encode_prompt(lease.tokenizer(), &text).map_err(|e| ApiError::bad(format!("{e:#}")))?;
        let prompt = Encoded { ids, leading: Leading::Strip };
        let (mut request, mut options) = request(&lease, &fields, prompt, logprobs, &caller)?;
        let meaning = asked.map(|(e, text)| meaning(&e, &lease, text)).transpose()?;
        request.guide = fields.guide(&lease.opened.tokenizer, meaning, |text| {
            // The same conversation with another last message.
            let mut ask = instead.unwrap_or_else(|| ChatPrompt::new(Vec::new()));
            ask.messages.pop();
            ask.messages.push(message("user", text));
            let text = conversation(&lease, ChatPrompt { go_on: false, ..ask })?.text;
            encode_prompt(lease.tokenizer(), &text).map_err(|e| ApiError::bad(format!("{e:#}")))
        })?;
        let style = lease.style.ok_or_else(|| no_template(&lease))?;
        let calls = !tools.is_empty() && choice != ToolChoice::None;
        let forms = fields.grammar()?;
        if calls && forms.is_some() {
            let message = "response_format: not with tools that may be called; leave out one of the two";
            return Err(ApiError::field("response_format", message));
        }
        let tokenizer = lease.tokenizer();
        let spec = match calls {
            true => Some(GrammarSpec::Lark(tool_grammar(
                style.format,
                &tools,
                &choice,
                parallel,
                &control_token(tokenizer),
            ))),
            false => forms,
        };
        let (marks, end, budget) = reasoning;
        request.constraint =
            constraint(&lease, spec, marks.filter(|_| end != PromptEnd::Closed), end, budget)?;
        let shown = calls && style.format.needs_control_tokens(tokenizer)
            || marks.is_some_and(|m| m.needs_control_tokens(tokenizer));
        options.control = if shown { Control::Show } else { Control::Hide };
        if calls || marks.is_some() {
            let tools = if calls { tools } else { Vec::new() };
            options.parser = Some(OutputParser::new(style.format, marks, end, tools, Arguments::Streamed));
        }
        let charge = pay(&lease, &request, &caller)?;
        Ok((lease, request, options, charge))
    })
    .await?;
    Ok(Generating::start(lease, request, text)?.paid_by(charge).recorded_in(record))
}

/// How many tokens a conversation has as a prompt.
pub(crate) async fn count(lease: Lease, ask: ChatPrompt) -> Result<usize, ApiError> {
    blocking(move || {
        let text = conversation(&lease, ask)?.text;
        let ids = encode_prompt(lease.tokenizer(), &text).map_err(|e| ApiError::bad(format!("{e:#}")))?;
        Ok(ids.len())
    })
    .await
}

/// Most tokens that are reserved for an answer without a bound.
const ANSWER_RESERVED: usize = 4096;

/// What a request may take of its key's quota.
fn pay(live: &Live, request: &Request, caller: &Caller) -> Result<Option<Charge>, ApiError> {
    let Some(account) = &caller.account else { return Ok(None) };
    let room = live.handle().info().context.saturating_sub(request.prompt.len());
    let answer = request.max_tokens.map_or(room.min(ANSWER_RESERVED), |n| room.min(n as usize));
    let answers = request.width() as usize;
    account.reserve((request.prompt.len() + answer * answers) as u64).map(Some)
}

/// What forces the answer into a form, and ends reasoning in time.
fn constraint(
    live: &Live,
    spec: Option<GrammarSpec>,
    marks: Option<ReasoningMarks>,
    end: PromptEnd,
    budget: Option<u32>,
) -> Result<Option<quarrel_engine::ConstraintBox>, ApiError> {
    let budget = budget.filter(|_| marks.is_some());
    if spec.is_none() && budget.is_none() {
        return Ok(None);
    }
    let factory = live.grammars()?;
    let blame =
        |e: quarrel_text::Error| ApiError::field("response_format", e.to_string()).code("invalid_grammar");
    let grammar = spec.map(|s| factory.compile(&s)).transpose().map_err(blame)?;
    let reasoning = marks.map(|m| Reasoning {
        start: if end == PromptEnd::Open { String::new() } else { m.start.into() },
        end: m.end.into(),
        budget,
        then: m.answer.into(),
    });
    let guided = Guided::new(factory, grammar, reasoning).map_err(blame)?;
    Ok(Some(quarrel_runtime::obey(guided)))
}

fn no_template(live: &Live) -> ApiError {
    let message = format!("{} has no chat template; use /v1/completions, which takes plain text", live.id);
    ApiError::bad(message).code("no_chat_template")
}

/// A conversation as text, and what is needed to read the answer.
pub(crate) struct Rendered {
    pub(crate) text: String,
    tools: Vec<Tool>,
    choice: ToolChoice,
    parallel: bool,
    /// The marks, where the prompt leaves the model, and the bound.
    reasoning: (Option<ReasoningMarks>, PromptEnd, Option<u32>),
}

/// Renders a conversation by the model's template.
pub(crate) fn conversation(live: &Live, ask: ChatPrompt) -> Result<Rendered, ApiError> {
    let (Some(template), Some(style)) = (live.template(), live.style) else { return Err(no_template(live)) };
    let ChatPrompt { mut messages, tools, choice, parallel, effort: (word, bound), extra, go_on } = ask;
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let message = format!("messages has {} entries; 1 to {MESSAGES_MAX} are needed", messages.len());
        return Err(ApiError::field("messages", message));
    }
    let system = live.opened.local.system.as_ref();
    let has_system = matches!(messages[0]["role"].as_str(), Some("system" | "developer"));
    if let Some(system) = system.filter(|_| !has_system) {
        messages.insert(0, message("system", system));
    }
    let last = match (go_on, messages.last()) {
        (false, _) => None,
        (true, Some(m)) if m["role"] == "assistant" && m["content"].is_string() => messages.pop(),
        (true, _) => {
            let message = "continue_final_message: the last message must be a text of the assistant's";
            return Err(ApiError::field("continue_final_message", message));
        }
    };
    // Before the template's style puts marks of its own into it.
    quote_answers(live.tokenizer(), style.reasoning, &mut messages);
    let told = if choice == ToolChoice::None { &[][..] } else { &tools[..] };
    let wrong = |e: quarrel_text::Error| ApiError::field("messages", e.to_string());
    let mut chat = style.conversation(&Value::Array(messages), told).map_err(wrong)?;
    if let Some(word) = word {
        chat.extra.insert("reasoning_effort".into(), word.into());
    }
    if bound == Some(Effort::None) {
        // The names that templates have for it.
        for name in ["enable_thinking", "thinking"] {
            chat.extra.insert(name.into(), false.into());
        }
    }
    chat.extra.extend(extra);
    let extra = Value::Object(chat.extra);
    quote(live.tokenizer(), &mut chat.messages);
    chat.tools.iter_mut().for_each(|t| quote_all(live.tokenizer(), t));
    let input = RenderInput {
        messages: Some(&chat.messages),
        tools: chat.tools.as_ref(),
        add_generation_prompt: true,
        extra: Some(&extra),
        ..RenderInput::default()
    };
    let text = render(live.tokenizer(), template, &input).map_err(|e| {
        ApiError::field("messages", format!("the model's template refuses the conversation: {e:#}"))
    })?;
    let end = style.reasoning.map_or(PromptEnd::Silent, |m| m.after(&text));
    let begun = last.as_ref().and_then(|m| m["content"].as_str());
    // An answer that has begun is past its reasoning.
    let end = if begun.is_some() { PromptEnd::Closed } else { end };
    let budget = match bound {
        Some(Effort::Tokens(n)) => Some(n),
        Some(Effort::None) => Some(0).filter(|_| end == PromptEnd::Open),
        None => None,
    };
    let text = text + &begun.map_or_else(String::new, |b| quote_answer(live.tokenizer(), style.reasoning, b));
    Ok(Rendered { text, tools, choice, parallel, reasoning: (style.reasoning, end, budget) })
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
    // Who has not asked for guesses does not have to know of a model that takes none.
    let info = live.handle().info();
    let usual = if info.draft || !info.speculates { Speculate::Auto } else { Speculate::Lookup };
    let mut request = fields.request(prompt.ids, &sampling::base(live), usual, &caller.key)?;
    fields.resolve_breakers(live.tokenizer(), &mut request.sampling)?;
    request.logprobs = logprobs;
    if logprobs.is_none() {
        request.logprobs_of = LogprobsOf::Unreported;
    }
    request.max_tokens = request.max_tokens.or(live.opened.params.max_tokens);
    let mut stop = fields.stops()?;
    if fields.stop.is_none() {
        stop.clone_from(&live.opened.params.stop);
    }
    Ok((request, TextOptions { leading: prompt.leading, control: Control::Hide, stop, parser: None }))
}

/// Who compares the sentences of an answer with each other and with what was asked.
fn meaning(embedder: &Lease, lease: &Lease, asked: String) -> Result<Arc<dyn Meaning>, ApiError> {
    let by = Embedder::new(&embedder.opened, &embedder.running);
    let by = by.map_err(|e| ApiError::field("guidance.coherence", format!("{e:#}")))?;
    Ok(Arc::new(Sentences::new(by, lease.opened.tokenizer.clone(), asked)))
}

/// The text of a conversation's last message.
fn last_text(messages: &[Value]) -> String {
    match messages.last().map(|m| &m["content"]) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts.iter().filter_map(|p| p["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn plain_text(lease: &Lease, ids: &[u32]) -> String {
    let bytes = ids.iter().filter_map(|id| lease.tokenizer().token_bytes(*id).ok());
    String::from_utf8_lossy(&bytes.flatten().copied().collect::<Vec<u8>>()).into_owned()
}

/// Submits plain text.
pub(crate) async fn plain(
    lease: Lease,
    prompt: Encoded,
    fields: Fields,
    logprobs: Option<u8>,
    caller: Caller,
) -> Result<Generating, ApiError> {
    let record = caller.record.clone();
    let embedder = if fields.compares() { lease.embedder().await? } else { None };
    let (lease, request, text, charge) = blocking(move || {
        let asked = embedder.map(|e| (e, plain_text(&lease, &prompt.ids)));
        let (mut request, text) = request(&lease, &fields, prompt, logprobs, &caller)?;
        request.constraint = constraint(&lease, fields.grammar()?, None, PromptEnd::Silent, None)?;
        let meaning = asked.map(|(e, text)| meaning(&e, &lease, text)).transpose()?;
        request.guide = fields.guide(&lease.opened.tokenizer, meaning, |text| {
            encode_prompt(lease.tokenizer(), text).map_err(|e| ApiError::bad(format!("{e:#}")))
        })?;
        let charge = pay(&lease, &request, &caller)?;
        Ok((lease, request, text, charge))
    })
    .await?;
    Ok(Generating::start(lease, request, text)?.paid_by(charge).recorded_in(record))
}
