//! `POST /v1/completions`: OpenAI's older way, plain text or token ids in, several prompts at once.

use std::collections::VecDeque;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use quarrel_engine::ScoreRequest;
use quarrel_runtime::prompt::encode_prompt;
use quarrel_text::OutputEvent;
use quarrel_text::stream_decoder::Leading;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{ALIASES, Fields};
use crate::generate::{Finish, Generating, Step, Summary, Token, token_text};
use crate::models::Lease;
use crate::prompt::{self, Encoded, blocking};
use crate::record::Generation;
use crate::resume::Resume;
use crate::routes::chat::{FINGERPRINT, Gathered, gather};
use crate::routes::streams::COMPLETIONS;
use crate::sse::{self, Protocol, Sent};
use crate::usage::{Timings, Usage};
use crate::{body, ids, models};

/// Most prompts of a request.
const PROMPTS_MAX: usize = 64;

/// A text, texts, token ids, or lists of token ids.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

/// What plain completions have of their own.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionBody {
    /// A model of `GET /v1/models`; without it the first.
    pub(crate) model: Option<String>,
    /// What to go on with.
    pub(crate) prompt: Prompt,
    /// Give the prompt back before the answer.
    pub(crate) echo: Option<bool>,
    /// Log-probabilities of each token and of so many best ones, at most 20.
    pub(crate) logprobs: Option<u8>,
}

/// A request for plain text.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the schema of the two parts together")]
pub(crate) struct CompletionRequest {
    #[serde(flatten)]
    completion: CompletionBody,
    #[serde(flatten)]
    fields: Fields,
}

/// A whole answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
    timings: Timings,
    system_fingerprint: &'static str,
}

#[derive(Serialize, ToSchema)]
struct CompletionChoice {
    index: u32,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

/// Token by token: texts, log-probabilities, best tokens, and where each begins in the text, in characters.
#[derive(Clone, Default, Serialize, ToSchema)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    #[schema(value_type = Vec<Object>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
    #[serde(skip)]
    at: usize,
}

impl Logprobs {
    fn push(&mut self, live: &models::Live, id: u32, logprob: Option<f32>, top: &[(u32, f32)], wanted: bool) {
        let (text, _) = token_text(live.tokenizer(), id);
        self.text_offset.push(self.at);
        self.at += text.chars().count();
        self.tokens.push(text.clone());
        self.token_logprobs.push(logprob);
        let best = logprob.filter(|_| wanted).map(|l| {
            let mut best: Map<String, Value> =
                top.iter().map(|(id, l)| (token_text(live.tokenizer(), *id).0, json!(l))).collect();
            // OpenAI's has the token itself too, whatever its rank.
            best.entry(text).or_insert(json!(l));
            best
        });
        self.top_logprobs.push(best);
    }
}

/// Go on with a text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest,
    params(("x-quarrel-resume" = Option<String>, Header, description = "`1`: a stream that can be come back to")),
    responses(
        (status = 200, body = Completion, description = "The answer; with `stream`, `text/event-stream` of chunks and `[DONE]`"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)
    )
)]
pub(crate) async fn completions(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    resume: Resume,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let (mut fields, own): (Fields, CompletionBody) = body::parts(body::object(&bytes)?, &ALIASES)?;
    if let Some(n) = own.logprobs.filter(|n| *n > 20) {
        return Err(ApiError::field("logprobs", format!("logprobs is {n}; it must be 0 to 20")));
    }
    let (echo, stream) = (own.echo.unwrap_or(false), fields.stream.unwrap_or(false));
    if echo && stream {
        return Err(ApiError::field("echo", "echo: not with \"stream\"; ask for one of them"));
    }
    let preset = fields.take_preset(&app.presets)?;
    let named = own.model.or(preset.and_then(|p| p.model));
    let lease = app.models.lease(named.as_deref()).await?;
    let model = lease.id.clone();
    let (lease, prompts) = encode(lease, own.prompt).await?;
    if stream {
        let [prompt] = <[_; 1]>::try_from(prompts)
            .map_err(|_| ApiError::field("prompt", "prompt: one prompt can be streamed, not several"))?;
        let (id, created) = (ids::new("cmpl-"), models::unix_seconds());
        let keep = resume.keep(&app, &caller, COMPLETIONS, &id);
        let generating = prompt::plain(lease, prompt, fields.clone(), own.logprobs, caller).await?;
        let usage = fields.stream_options.unwrap_or_default().include_usage;
        let logs = (0..fields.n.unwrap_or(1)).map(|_| Logprobs::default()).collect();
        let chunks = Chunks { id, created, model, usage, logprobs: own.logprobs, logs };
        return sse::response(keep, generating, chunks);
    }
    // All are submitted at once, so that they share steps and prefixes; the answers are awaited in order.
    let mut running = VecDeque::new();
    for prompt in prompts {
        let ids = prompt.ids.clone();
        // Nothing to make: only the prompt's own probabilities are asked for.
        let generating = if fields.max_tokens == Some(0) {
            None
        } else {
            let lease = app.models.lease(Some(&model)).await?;
            Some(prompt::plain(lease, prompt, fields.clone(), own.logprobs, caller.clone()).await?)
        };
        running.push_back((ids, generating));
    }
    let (mut choices, mut total) = (Vec::new(), Summary::default());
    let mut first = None;
    for (ids, generating) in running {
        let reader = if generating.is_none() { Some(&caller) } else { None };
        let echoed = match echo {
            true => Some(echo_of(&app, &model, &fields, ids.clone(), own.logprobs, reader).await?),
            false => None,
        };
        let (answers, summary) = match generating {
            Some(generating) => collect(generating, own.logprobs, echoed).await?,
            None => {
                let (text, logprobs) = echoed.unwrap_or_default();
                let mut summary = Summary::default();
                summary.stats.prompt_tokens = ids.len();
                (vec![CompletionChoice { index: 0, text, logprobs, finish_reason: "length" }], summary)
            }
        };
        total.completion_tokens += summary.completion_tokens;
        total.stats.prompt_tokens += summary.stats.prompt_tokens;
        total.stats.cached_tokens += summary.stats.cached_tokens;
        total.stats.accepted_tokens += summary.stats.accepted_tokens;
        total.stats.drafted_tokens += summary.stats.drafted_tokens;
        total.stats.guide = total.stats.guide.plus(summary.stats.guide);
        first.get_or_insert(summary.stats);
        for answer in answers {
            let index = choices.len() as u32;
            choices.push(CompletionChoice { index, ..answer });
        }
    }
    let timed = Summary { stats: first.unwrap_or_default(), ..Summary::default() };
    Ok(Json(Completion {
        id: ids::new("cmpl-"),
        object: "text_completion",
        created: models::unix_seconds(),
        model,
        choices,
        usage: Usage::new(&total),
        timings: Timings::new(&timed),
        system_fingerprint: FINGERPRINT,
    })
    .into_response())
}

async fn encode(lease: Lease, prompt: Prompt) -> Result<(Lease, Vec<Encoded>), ApiError> {
    let count = match &prompt {
        Prompt::Text(_) | Prompt::Ids(_) => 1,
        Prompt::Texts(t) => t.len(),
        Prompt::IdLists(l) => l.len(),
    };
    if count == 0 || count > PROMPTS_MAX {
        return Err(ApiError::field(
            "prompt",
            format!("prompt: {count} prompts; 1 to {PROMPTS_MAX} are needed"),
        ));
    }
    blocking(move || {
        let text = |t: &String| {
            encode_prompt(lease.tokenizer(), t)
                .map_err(|e| ApiError::field("prompt", format!("prompt: {e:#}")))
        };
        let ids = match prompt {
            Prompt::Text(t) => vec![text(&t)?],
            Prompt::Texts(t) => t.iter().map(text).collect::<Result<_, _>>()?,
            Prompt::Ids(ids) => vec![ids],
            Prompt::IdLists(lists) => lists,
        };
        let encoded = ids.into_iter().map(|ids| Encoded { ids, leading: Leading::Keep }).collect();
        Ok((lease, encoded))
    })
    .await
}

/// The prompt as text, and its tokens' log-probabilities if they are wanted. `reader` pays for the prompt and has it told,
/// where no answer does.
async fn echo_of(
    app: &App,
    model: &str,
    fields: &Fields,
    ids: Vec<u32>,
    logprobs: Option<u8>,
    reader: Option<&Caller>,
) -> Result<(String, Option<Logprobs>), ApiError> {
    let lease = app.models.lease(Some(model)).await?;
    let (adapter, reader) = (fields.adapter.clone(), reader.cloned());
    blocking(move || {
        let text = ids.iter().map(|id| token_text(lease.tokenizer(), *id).0).collect();
        let Some(n) = logprobs else { return Ok((text, None)) };
        let mut logs = Logprobs::default();
        let mut scores = None;
        let account = reader.as_ref().and_then(|c| c.account.as_ref());
        let mut charge = account.map(|a| a.reserve(ids.len() as u64)).transpose()?;
        let mut told = Generation::of_prompt(&lease.id, ids.len());
        if ids.len() > 1 {
            let request = ScoreRequest { adapter, top: n, ..ScoreRequest::new(ids.clone(), 1) };
            let scored = lease.handle().score_with(request).map_err(ApiError::from);
            told.error = scored.as_ref().err().map(|e| e.kind);
            reader.iter().filter_map(|c| c.record.as_ref()).for_each(|r| r.generated(told.clone()));
            scores = Some(scored?);
        }
        charge.iter_mut().for_each(|c| c.used = ids.len() as u64);
        for (i, id) in ids.iter().enumerate() {
            let of = scores.as_ref().filter(|_| i > 0);
            let logprob = of.map(|s| s.log_probs[i - 1] as f32);
            let top = of.and_then(|s| s.top.get(i - 1)).map_or(&[][..], Vec::as_slice);
            logs.push(&lease, *id, logprob, top, n > 0);
        }
        Ok((text, Some(logs)))
    })
    .await
}

/// The text of events of plain text, which are of one kind.
fn content(events: Vec<OutputEvent>) -> String {
    let text = |e| if let OutputEvent::Content(text) = e { Some(text) } else { None };
    events.into_iter().filter_map(text).collect()
}

/// All answers, each behind what is echoed.
async fn collect(
    mut generating: Generating,
    logprobs: Option<u8>,
    echoed: Option<(String, Option<Logprobs>)>,
) -> Result<(Vec<CompletionChoice>, Summary), ApiError> {
    let (answers, summary) = gather(&mut generating).await?;
    let (prompt, scores) = echoed.unwrap_or_default();
    let choice = |(index, answer): (usize, Gathered)| {
        let mut logs = scores.clone().or_else(|| logprobs.map(|_| Logprobs::default()));
        if let (Some(logs), Some(n)) = (&mut logs, logprobs) {
            for t in &answer.tokens {
                logs.push(generating.lease(), t.id, t.logprob, &t.top, n > 0);
            }
        }
        CompletionChoice {
            index: index as u32,
            text: prompt.clone() + &answer.content,
            logprobs: logs,
            finish_reason: answer.finish.map_or("stop", Finish::word),
        }
    };
    Ok((answers.into_iter().enumerate().map(choice).collect(), summary))
}

/// The answer as chunks.
struct Chunks {
    id: String,
    created: u64,
    model: String,
    usage: bool,
    logprobs: Option<u8>,
    logs: Vec<Logprobs>,
}

impl Chunks {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        });
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn piece(&self, choice: u32, text: &str, logprobs: Value, finish: Option<Finish>) -> Sent {
        let finish = finish.map(Finish::word);
        let choices =
            json!([{ "index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish }]);
        Sent::json(&self.chunk(choices))
    }

    fn logs(&mut self, generating: &Generating, choice: u32, token: Option<Token>) -> Value {
        let (Some(n), Some(token), Some(place)) = (self.logprobs, token, self.logs.get_mut(choice as usize))
        else {
            return Value::Null;
        };
        let mut one = Logprobs { at: place.at, ..Logprobs::default() };
        one.push(generating.lease(), token.id, token.logprob, &token.top, n > 0);
        place.at = one.at;
        json!(one)
    }
}

impl Protocol for Chunks {
    fn begin(&mut self, _: &mut Vec<Sent>) {}

    fn step(&mut self, generating: &Generating, step: Step, out: &mut Vec<Sent>) -> Result<(), ApiError> {
        match step {
            Step::Piece { choice, events, token } => {
                let text = content(events);
                let logs = self.logs(generating, choice, token);
                if !text.is_empty() || !logs.is_null() {
                    out.push(self.piece(choice, &text, logs, None));
                }
            }
            Step::Finished { choice, finish } => out.push(self.piece(choice, "", Value::Null, Some(finish))),
            Step::Done(summary) => {
                if self.usage {
                    let mut chunk = self.chunk(json!([]));
                    chunk["usage"] = json!(Usage::new(&summary));
                    chunk["timings"] = json!(Timings::new(&summary));
                    out.push(Sent::json(&chunk));
                }
                out.push(Sent { name: None, data: "[DONE]".into() });
            }
        }
        Ok(())
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<Sent>) {
        out.push(Sent::json(&error.json()));
    }
}
