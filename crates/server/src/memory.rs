//! Conversations that the server remembers: their history before a request's messages, as much of it as the window holds, and
//! the answer behind them. What was left out is told; a summary of it is made in the background.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use quarrel_engine::{Class, Request, Sampling};
use quarrel_runtime::prompt::{encode_chat, message};
use quarrel_store::bm25::Bm25;
use quarrel_store::context::{Entry, KnownSummary, Part, Plan, Policy, SummaryWanted, plan};
use quarrel_store::fusion::{rank_by_cosine, reciprocal_rank_fusion};
use quarrel_store::{Conversation, Message, NewMessage, Place, Role, Store, Summary};
use quarrel_text::stream_decoder::{Control, Leading};
use quarrel_text::{Ends, Special, Tokenizer};
use serde_json::{Value, json};

use crate::app::{App, Caller};
use crate::embed::{self, Ask, Text};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generate::{Generating, TextOptions};
use crate::models::{Lease, Live};
use crate::prompt::blocking;
use crate::routes::chat::{Gathered, gather};
use crate::store::now;

/// What a template puts around a message, about.
const AROUND: u32 = 8;
/// Turns that a search may bring back.
const HITS_MAX: usize = 8;
/// Messages that are less like the question than this say nothing about it.
const LEAST_COSINE: f64 = 0.2;
/// Messages whose vectors are made at once.
const VECTORS_AT_ONCE: u32 = 64;

/// A conversation that a request goes on with.
pub(crate) struct Remembered {
    store: Arc<Store>,
    app: App,
    owner: Arc<str>,
    id: String,
    model: String,
    /// The last message, behind which the answer goes.
    last: String,
    wanted: Option<SummaryWanted>,
    /// What the client is told.
    pub(crate) told: Value,
    kept: bool,
}

/// Tokens of a text in a prompt.
fn count(tokenizer: &Tokenizer, text: &str) -> u32 {
    let ids = tokenizer.encode(text, Special::Plain, Ends::None);
    ids.map_or(u32::MAX / 4, |ids| ids.len() as u32 + AROUND)
}

/// A message of a request as it is stored.
fn stored(at: usize, m: &Value, live: &Live) -> Result<NewMessage, ApiError> {
    let wrong = |what: &str| ApiError::field(format!("messages[{at}]"), format!("messages[{at}]{what}"));
    let role = m["role"]
        .as_str()
        .and_then(Role::by_name)
        .ok_or_else(|| wrong(".role: user, assistant or tool is needed"))?;
    let mut new = NewMessage::text(role, "");
    new.content = m["content"].clone();
    new.tool_calls = Some(m["tool_calls"].clone()).filter(|c| !c.is_null());
    new.tool_call_id = m["tool_call_id"].as_str().map(str::to_owned);
    new.model = Some(live.id.clone());
    new.tokens = Some(tokens_of(&new, live.tokenizer()));
    Ok(new)
}

fn tokens_of(m: &NewMessage, tokenizer: &Tokenizer) -> u32 {
    let calls = m.tool_calls.as_ref().map_or(0, |c| count(tokenizer, &c.to_string()));
    count(tokenizer, &m.plain_text()) + calls
}

/// Puts the history before a request's messages, and stores these.
pub(crate) async fn recall(
    app: &App,
    caller: &Caller,
    lease: Lease,
    id: String,
    messages: Vec<Value>,
    max_tokens: Option<u32>,
) -> Result<(Lease, Vec<Value>, Remembered), ApiError> {
    let (app, store, owner) = (app.clone(), app.store()?, caller.owner.clone());
    let embedder = embedder(&app).await;
    blocking(move || {
        let before = store.conversation(&owner, &id)?;
        let is_system = |m: &Value| matches!(m["role"].as_str(), Some("system" | "developer"));
        let (system, new): (Vec<Value>, Vec<Value>) = messages.into_iter().partition(is_system);
        if new.is_empty() {
            return Err(ApiError::field("messages", "messages: a message of the user is needed to go on"));
        }
        let new: Vec<_> =
            new.iter().enumerate().map(|(i, m)| stored(i, m, &lease)).collect::<Result<_, _>>()?;
        // Stored first: whatever happens from here on, what the user said is kept.
        let place = before.info.last_message.as_deref().map_or(Place::First, Place::After);
        store.append(&owner, &id, place, &new, now())?;
        let whole = store.conversation(&owner, &id)?;
        let system = system.into_iter().filter_map(|m| m["content"].as_str().map(str::to_owned));
        let system: Vec<String> = system.collect();
        let meaning =
            embedder.as_ref().map(|e| Meaning { embedder: e, store: &store, owner: &owner, id: &id });
        let (prompt, plan) = window(&whole, &system.join("\n\n"), &lease, max_tokens, meaning)?;
        let retrieval = if embedder.is_some() { "words and meaning" } else { "words" };
        let told = json!({
            "id": id, "left_out": plan.left_out, "prompt_tokens_planned": plan.tokens, "retrieval": retrieval,
        });
        let last = whole.messages.last().map(|m| m.id.clone()).unwrap_or_default();
        let model = lease.id.clone();
        let wanted = plan.summary_wanted;
        Ok((lease, prompt, Remembered { store, app, owner, id, model, last, wanted, told, kept: false }))
    })
    .await
}

/// The model that finds old turns by what they mean, if there is one. Without it they are found by their words, so that a
/// conversation goes on whatever is wrong with it.
async fn embedder(app: &App) -> Option<Lease> {
    let id = app.models.embedding_model()?.to_owned();
    match app.models.lease(Some(&id)).await {
        Ok(lease) => Some(lease),
        Err(e) => {
            tracing::warn!(error = e.message, "old turns are found by words alone");
            None
        }
    }
}

/// Finds messages of a conversation by what they mean.
struct Meaning<'a> {
    embedder: &'a Lease,
    store: &'a Store,
    owner: &'a str,
    id: &'a str,
}

impl Meaning<'_> {
    /// Places in `left` by their likeness to a question, the best first. Messages whose vector is not made yet are not among
    /// them.
    fn rank(&self, question: &str, left: &[&Message]) -> Vec<usize> {
        let rank = || -> Result<Vec<usize>, ApiError> {
            let have = self.store.vectors(self.owner, self.id, self.embedder.identity())?;
            if have.is_empty() || question.is_empty() {
                return Ok(Vec::new());
            }
            let question = vectors(self.embedder, vec![question.to_owned()], self.owner, Class::Interactive)?;
            let none: &[f32] = &[];
            let candidates = left.iter().map(|m| have.get(&m.id).map_or(none, Vec::as_slice));
            let found = question.first().map(|q| rank_by_cosine(q, candidates, LEAST_COSINE));
            Ok(found.unwrap_or_default().into_iter().map(|(i, _)| i).collect())
        };
        rank().unwrap_or_else(|e| {
            tracing::warn!(error = e.message, "old turns are found by words alone");
            Vec::new()
        })
    }
}

/// Vectors of texts, of long ones that of their beginning; for the server's own use, so nobody's quota pays. Blocks.
fn vectors(
    embedder: &Lease,
    texts: Vec<String>,
    owner: &str,
    class: Class,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let texts = texts.into_iter().map(Text::Words).collect();
    let caller = Caller { key: owner.into(), owner: owner.into(), account: None };
    let ask = Ask { truncate: true, class, ..Ask::new(texts, "messages") };
    Ok(embed::run(embedder, ask, &caller, &AtomicBool::new(false))?.vectors)
}

/// Makes the vectors that the messages of a conversation do not have yet, of this model, when it has nothing else to do.
async fn index(app: App, owner: Arc<str>, id: String) -> Result<(), ApiError> {
    let (store, Some(mut embedder)) = (app.store()?, embedder(&app).await) else { return Ok(()) };
    loop {
        let (store, owner, id) = (store.clone(), owner.clone(), id.clone());
        let (lease, more) = blocking(move || {
            let open = store.without_vectors(&owner, &id, embedder.identity(), VECTORS_AT_ONCE)?;
            if open.is_empty() {
                return Ok((embedder, false));
            }
            let (ids, texts): (Vec<String>, Vec<String>) = open.into_iter().unzip();
            let made = vectors(&embedder, texts, &owner, Class::Background)?;
            let made: Vec<_> = ids.into_iter().zip(made).collect();
            // Those of messages that are gone meanwhile are not kept; if none is, there is nothing left to do.
            let kept = store.set_vectors(&owner, &id, embedder.identity(), &made)?;
            Ok((embedder, kept > 0))
        })
        .await?;
        if !more {
            return Ok(());
        }
        embedder = lease;
    }
}

/// What of a conversation goes into the window, as messages for the template.
fn window(
    c: &Conversation,
    system: &str,
    live: &Live,
    max_tokens: Option<u32>,
    meaning: Option<Meaning<'_>>,
) -> Result<(Vec<Value>, Plan), ApiError> {
    let tokenizer = live.tokenizer();
    let context = live.handle().info().context as u32;
    let answer = max_tokens.unwrap_or(1024).min(context / 4);
    let policy = Policy::for_budget(context.saturating_sub(answer + 4 * AROUND));
    let entries: Vec<Entry<'_>> = c
        .messages
        .iter()
        .map(|m| Entry::new(m, m.body.tokens.unwrap_or_else(|| tokens_of(&m.body, tokenizer))))
        .collect();
    let system_tokens = if system.is_empty() { 0 } else { count(tokenizer, system) };
    let summary = c.summary.as_ref().map(|s| KnownSummary { up_to: &s.up_to, tokens: s.tokens });
    let mut chosen = plan(system_tokens, &entries, summary, &[], &policy)?;
    if chosen.left_out.messages > 0 {
        let left: Vec<_> = c.messages.iter().filter(|m| chosen.left_out.ids.contains(&m.id)).collect();
        let texts: Vec<String> = left.iter().map(|m| m.body.plain_text()).collect();
        let question = c.messages.iter().rfind(|m| m.body.role == Role::User);
        let question = question.map(|m| m.body.plain_text()).unwrap_or_default();
        let found = Bm25::new(texts.iter().map(String::as_str)).search(&question);
        let by_words: Vec<usize> = found.into_iter().map(|(i, _)| i).collect();
        let by_meaning = meaning.map(|m| m.rank(&question, &left)).unwrap_or_default();
        let found = reciprocal_rank_fusion(&[&by_words, &by_meaning]);
        let hits: Vec<&str> = found.iter().take(HITS_MAX).map(|(i, _)| left[*i].id.as_str()).collect();
        chosen = plan(system_tokens, &entries, summary, &hits, &policy)?;
    }
    Ok((lay_out(c, system, &chosen), chosen))
}

/// The messages of a plan. The summary is part of the system prompt and old turns are part of the user's question, because
/// templates want turns to alternate.
fn lay_out(c: &Conversation, system: &str, plan: &Plan) -> Vec<Value> {
    let mut head = system.to_owned();
    let (mut out, mut found) = (Vec::new(), String::new());
    for part in &plan.parts {
        match *part {
            Part::System => {}
            Part::Summary => {
                if let Some(s) = &c.summary {
                    let gap = if head.is_empty() { "" } else { "\n\n" };
                    head += &format!("{gap}Summary of the conversation so far:\n{}", s.text);
                }
            }
            Part::Retrieved(i) => {
                let m = &c.messages[i].body;
                found += &format!("{}: {}\n", m.role.name(), m.plain_text());
            }
            Part::Message(i) => {
                let m = &c.messages[i].body;
                let mut content = m.content.clone();
                if m.role == Role::User && !found.is_empty() {
                    let found = std::mem::take(&mut found);
                    content =
                        format!("From earlier in this conversation:\n{found}\n{}", m.plain_text()).into();
                }
                let mut value = json!({ "role": m.role.name(), "content": content });
                if let Some(calls) = &m.tool_calls {
                    value["tool_calls"] = calls.clone();
                }
                if let Some(id) = &m.tool_call_id {
                    value["tool_call_id"] = id.as_str().into();
                }
                out.push(value);
            }
        }
    }
    if !head.is_empty() {
        out.insert(0, message("system", &head));
    }
    out
}

impl Remembered {
    /// Stores the answer, whole or as far as it came. Blocks for the time of a disk's write.
    pub(crate) fn keep(&mut self, answer: &Gathered, tokens: usize) -> Result<(), ApiError> {
        if std::mem::replace(&mut self.kept, true) {
            return Ok(());
        }
        let mut new = NewMessage::text(Role::Assistant, answer.content.clone());
        new.reasoning = Some(answer.reasoning.clone()).filter(|r| !r.is_empty());
        new.tool_calls = Some(answer.calls_json()).filter(|_| !answer.whole_calls().is_empty());
        new.model = Some(self.model.clone());
        new.tokens = Some(tokens as u32 + AROUND);
        let (store, owner, id, last) = (&self.store, &self.owner, &self.id, &self.last);
        tokio::task::block_in_place(|| store.append(owner, id, Place::After(last), &[new], now()))?;
        if self.app.models.embedding_model().is_some() {
            let (app, owner, id) = (self.app.clone(), self.owner.clone(), self.id.clone());
            tokio::spawn(async move {
                if let Err(e) = index(app, owner, id).await {
                    tracing::warn!(error = e.message, "vectors of a conversation were not made");
                }
            });
        }
        if let Some(wanted) = self.wanted.take() {
            let (app, owner) = (self.app.clone(), self.owner.clone());
            let (id, model) = (self.id.clone(), self.model.clone());
            tokio::spawn(async move {
                if let Err(e) = summarise(app, owner, id, model, wanted).await {
                    tracing::warn!(error = e.message, "the summary of a conversation was not made");
                }
            });
        }
        Ok(())
    }
}

/// Has the model write what was left out of a conversation, when it has nothing else to do.
async fn summarise(
    app: App,
    owner: Arc<str>,
    id: String,
    model: String,
    wanted: SummaryWanted,
) -> Result<(), ApiError> {
    let store = app.store()?;
    let lease = app.models.lease(Some(&model)).await?;
    let (from, by, conversation) = (store.clone(), owner.clone(), id.clone());
    let c = blocking(move || Ok(from.conversation(&by, &conversation)?)).await?;
    let mut text = String::new();
    if let Some(s) = c.summary.as_ref().filter(|_| wanted.extends) {
        text += &format!("Summary so far:\n{}\n\n", s.text);
    }
    for m in c.messages.iter().filter(|m| wanted.ids.contains(&m.id)) {
        text += &format!("{}: {}\n", m.body.role.name(), m.body.plain_text());
    }
    text +=
        "\nSummarise this conversation in a few sentences: facts, names, decisions, and what the user wants.";
    let (lease, prompt) = blocking(move || {
        let template = lease.template().ok_or_else(|| ApiError::bad("the model has no chat template"))?;
        let ids = encode_chat(lease.tokenizer(), template, &[message("user", &text)]);
        let ids = ids.map_err(|e| ApiError::bad(format!("{e:#}")))?;
        Ok((lease, ids))
    })
    .await?;
    let request = Request {
        sampling: Sampling { repetition_penalty: 1.05, ..Sampling::greedy() },
        max_tokens: Some(wanted.tokens_max.saturating_sub(AROUND).max(16)),
        class: Class::Background,
        key: owner.clone(),
        ..Request::new(prompt)
    };
    let options = TextOptions {
        leading: Leading::Strip,
        control: Control::Hide,
        stop: Fields::default().stops()?,
        parser: None,
    };
    let mut generating = Generating::start(lease, request, options)?;
    let (answers, summary) = gather(&mut generating).await?;
    let text = answers.into_iter().next().map(|a| a.content).unwrap_or_default();
    let new = Summary { text, up_to: wanted.up_to, tokens: summary.completion_tokens as u32 + AROUND };
    blocking(move || Ok(store.set_summary(&owner, &id, &new)?)).await
}
