//! `POST /v1/responses`: OpenAI's newer API, which remembers answers so that a request may go on from one.

mod events;
mod items;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use quarrel_store::{NewResponse, Store, StoredResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::app::{App, Caller};
use crate::body::{self, TextOr};
use crate::error::{ApiError, ErrorBody};
use crate::fields::{ALIASES, Fields};
use crate::generate::{Finish, Step, Summary};
use crate::prompt::{self, ChatPrompt, Effort};
use crate::resume::Resume;
use crate::routes::streams::RESPONSES;
use crate::usage::Timings;
use crate::{ids, models, resume, sse, store};

use events::{Events, Items};
use items::TextConfig;

/// How long a response is kept.
const KEEP_MS: i64 = 30 * 24 * 3600 * 1000;

/// What a request has of its own.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "some fields are only given back, others are taken so that they may be given")]
pub(crate) struct ResponseBody {
    /// A model of `GET /v1/models`; without it the first.
    model: Option<String>,
    /// What to answer: a text, or items of type `message`, `function_call`, `function_call_output` and `reasoning`.
    #[schema(value_type = Object)]
    input: TextOr<Value>,
    /// What the model is told before it; not kept for the responses that follow.
    instructions: Option<String>,
    /// Go on from this response.
    previous_response_id: Option<String>,
    /// Keep the answer for 30 days, so that a request can go on from it; on if not given and the server stores anything.
    store: Option<bool>,
    /// Most tokens to make.
    max_output_tokens: Option<u32>,
    /// Functions that the model may call.
    #[schema(value_type = Vec<Object>)]
    tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, or one function.
    #[schema(value_type = Object)]
    tool_choice: Option<Value>,
    /// Several calls in one answer; on if not given.
    parallel_tool_calls: Option<bool>,
    /// The form of the answer.
    text: Option<TextConfig>,
    reasoning: Option<Reasoning>,
    /// Kept with the answer and given back.
    #[schema(value_type = Object)]
    metadata: Option<Map<String, Value>>,
    /// `disabled`: an input that does not fit is refused.
    truncation: Option<Truncation>,
    /// Only `false`: a request is answered while its client waits.
    background: Option<bool>,
    /// `reasoning.encrypted_content` or nothing: reasoning is given as it is.
    include: Option<Vec<Include>>,
    /// Needed for nothing: the prefix cache works by itself.
    prompt_cache_key: Option<String>,
    /// Needed for nothing.
    safety_identifier: Option<String>,
    service_tier: Option<Tier>,
}

/// How a model reasons.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "one field is taken so that it may be given")]
pub(crate) struct Reasoning {
    /// How much: `none`, `minimal`, `low`, `medium`, `high`.
    effort: Option<String>,
    /// Needed for nothing: the reasoning itself is given.
    summary: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Truncation {
    Disabled,
}

#[derive(Debug, Deserialize, ToSchema)]
enum Include {
    #[serde(rename = "reasoning.encrypted_content")]
    Reasoning,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Tier {
    Auto,
    Default,
}

/// A request.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "the schema of the two parts together")]
pub(crate) struct ResponseRequest {
    #[serde(flatten)]
    response: ResponseBody,
    #[serde(flatten)]
    fields: Fields,
}

/// Fields of the other APIs that have another name here, or no meaning.
const NOT_HERE: [(&str, &str); 7] = [
    ("max_tokens", "use max_output_tokens"),
    ("response_format", "use text.format"),
    ("n", "a response is one answer"),
    ("best_of", "a response is one answer"),
    ("beams", "a response is one answer that is drawn; /v1/completions and /v1/chat/completions search"),
    ("stream_options", "response.completed always has the usage"),
    ("messages", "use input"),
];

/// What our names of settings are here.
const NAMES: [(&str, &str); 3] =
    [("max_tokens", "max_output_tokens"), ("response_format", "text.format"), ("messages", "input")];

/// An answer that is being made.
struct Answering {
    /// OpenAI's object as far as it is known.
    response: Value,
    /// Where it will be kept.
    keep: Option<Keep>,
}

struct Keep {
    store: Arc<Store>,
    owner: Arc<str>,
    input: Vec<Value>,
}

impl Answering {
    /// The answer is whole: it is kept and given.
    fn finish(
        &mut self,
        output: Vec<Value>,
        finish: Option<Finish>,
        summary: &Summary,
    ) -> Result<Value, ApiError> {
        let status = match finish {
            Some(finish @ (Finish::Length | Finish::Repetition)) => {
                let reason = if finish == Finish::Length { "max_output_tokens" } else { finish.word() };
                self.response["incomplete_details"] = json!({ "reason": reason });
                "incomplete"
            }
            Some(Finish::Deadline | Finish::Aborted) => {
                return Err(ApiError::unavailable("the answer was broken off before its end"));
            }
            None | Some(Finish::Stop | Finish::ToolCalls) => "completed",
        };
        let response = &mut self.response;
        response["status"] = status.into();
        response["completed_at"] = models::unix_seconds().into();
        response["usage"] = json!({
            "input_tokens": summary.stats.prompt_tokens,
            "input_tokens_details": { "cached_tokens": summary.stats.cached_tokens },
            "output_tokens": summary.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": summary.reasoning_tokens },
            "total_tokens": summary.stats.prompt_tokens + summary.completion_tokens,
        });
        response["timings"] = json!(Timings::new(summary));
        let text = |key: &str| response[key].as_str().map(str::to_owned);
        if let Some(keep) = self.keep.take() {
            let new = NewResponse {
                id: text("id").unwrap_or_default(),
                previous: text("previous_response_id"),
                model: text("model").unwrap_or_default(),
                input: keep.input,
                output: output.clone(),
                settings: response.clone(),
                ttl_ms: KEEP_MS,
            };
            keep.store.put_response(&keep.owner, &new, store::now())?;
        }
        response["output"] = output.into();
        Ok(response.clone())
    }
}

/// Answer an input, by OpenAI's Responses API.
#[utoipa::path(
    post, path = "/v1/responses", tag = "OpenAI", request_body = ResponseRequest,
    params(("x-quarrel-resume" = Option<String>, Header, description = "`1`: a stream that can be come back to")),
    responses(
        (status = 200, body = Object, description = "The response; with `stream`, `text/event-stream` of `response.created` to `response.completed`"),
        (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    resume: Resume,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    let object = body::object(&bytes)?;
    if let Some((name, what)) = NOT_HERE.iter().find(|(name, _)| object.contains_key(*name)) {
        let message = format!("{name}: this field is not known here; {what}");
        return Err(ApiError::field(*name, message).code("unknown_field"));
    }
    let echo = echo(&object);
    let (mut fields, mut own): (Fields, ResponseBody) = body::parts(object, &ALIASES)?;
    if own.background == Some(true) {
        return Err(ApiError::field("background", "background: nothing runs without its client here"));
    }
    fields.max_tokens = own.max_output_tokens;
    let preset = fields.take_preset(&app.presets)?;
    fields.response_format = own.text.take().and_then(TextConfig::format);
    let input = items::items(own.input)?;
    let mut all = match own.previous_response_id.clone() {
        None => Vec::new(),
        Some(id) => {
            let owner = caller.owner.clone();
            let chain = app.stored(move |s| s.chain(&owner, &id, store::now())).await;
            chain.map_err(|e| ApiError { param: Some("previous_response_id".into()), ..e })?.items
        }
    };
    let known = all.len();
    all.extend_from_slice(&input);
    let (preset_model, preset_system) = preset.map_or((None, None), |p| (p.model, p.system));
    let instructions = own.instructions.or(preset_system);
    let messages = items::messages(&all, known, instructions.as_deref())?;
    let (tools, choice) = items::tools(own.tools.as_ref(), own.tool_choice.as_ref())?;
    let word = own.reasoning.as_ref().and_then(|r| r.effort.clone());
    let bound = word.as_deref().map_or(Ok(None), |w| Effort::of("reasoning.effort", w))?;
    let parallel = own.parallel_tool_calls.unwrap_or(true);
    let prompt = ChatPrompt { tools, choice, parallel, effort: (word, bound), ..ChatPrompt::new(messages) };
    let keep = match own.store {
        Some(false) => None,
        None if app.store.is_none() => None,
        None | Some(true) => Some(Keep { store: app.store()?, owner: caller.owner.clone(), input }),
    };
    let lease = app.models.lease(own.model.or(preset_model).as_deref()).await?;
    let mut response = echo;
    let id = ids::new("resp_");
    let kept = resume.keep(&app, &caller, RESPONSES, &id);
    response["id"] = id.into();
    response["model"] = lease.id.clone().into();
    response["store"] = keep.is_some().into();
    let stream = fields.stream.unwrap_or(false);
    let generating = prompt::chat(lease, prompt, fields, None, caller).await;
    let mut generating = generating.map_err(|e| e.renamed(&NAMES))?;
    let mut answering = Answering { response, keep };
    if stream {
        let events = Events { answering, items: Items::default(), finish: None };
        return sse::response(kept, generating, events);
    }
    let (mut items, mut finish, mut summary) = (Items::default(), None, Summary::default());
    let mut unheard = Vec::new();
    while let Some(step) = generating.next().await {
        match step? {
            Step::Piece { events, .. } => events.into_iter().for_each(|e| items.event(e, &mut unheard)),
            Step::Finished { finish: f, .. } => finish = Some(f),
            Step::Done(s) => summary = s,
        }
        unheard.clear();
    }
    items.end(finish.is_some_and(Finish::is_cut), &mut unheard);
    let response = prompt::blocking(move || answering.finish(items.done, finish, &summary)).await?;
    Ok(Json(response).into_response())
}

/// What a response repeats of its request, with OpenAI's defaults.
fn echo(body: &Map<String, Value>) -> Value {
    let given =
        |name: &str, default: Value| body.get(name).filter(|v| !v.is_null()).cloned().unwrap_or(default);
    let mut text = given("text", json!({}));
    if let Some(text) = text.as_object_mut() {
        text.entry("format").or_insert_with(|| json!({ "type": "text" }));
    }
    let reasoning = body.get("reasoning").cloned().unwrap_or_default();
    json!({
        "object": "response",
        "created_at": models::unix_seconds(),
        "status": "in_progress",
        "completed_at": null,
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": given("instructions", Value::Null),
        "max_output_tokens": given("max_output_tokens", Value::Null),
        "metadata": given("metadata", json!({})),
        "output": [],
        "parallel_tool_calls": given("parallel_tool_calls", true.into()),
        "previous_response_id": given("previous_response_id", Value::Null),
        "prompt_cache_key": given("prompt_cache_key", Value::Null),
        "reasoning": { "effort": reasoning["effort"], "summary": null },
        "safety_identifier": given("safety_identifier", Value::Null),
        "service_tier": "default",
        "temperature": given("temperature", Value::Null),
        "text": text,
        "tool_choice": given("tool_choice", "auto".into()),
        "tools": given("tools", json!([])),
        "top_p": given("top_p", Value::Null),
        "truncation": "disabled",
        "usage": null,
        "user": given("user", Value::Null),
    })
}

/// What of a response is read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseQuery {
    /// Its stream, if it was asked for with `X-Quarrel-Resume: 1` and is held, instead of the response.
    #[serde(default)]
    stream: bool,
    /// Only events after this `sequence_number`; with `stream`.
    starting_after: Option<u64>,
}

/// A stored response, or the rest of its stream.
#[utoipa::path(
    get, path = "/v1/responses/{response}", tag = "OpenAI",
    params(
        ("response" = String, Path, description = "its id"),
        ("stream" = Option<bool>, Query, description = "Its stream, which was asked for with `X-Quarrel-Resume: 1`"),
        ("starting_after" = Option<u64>, Query, description = "Only events after this `sequence_number`; with `stream`"),
        ("last-event-id" = Option<u64>, Header, description = "The rest of the stream: only events after this one")
    ),
    responses((status = 200, body = Object), (status = "4XX", body = ErrorBody))
)]
pub(crate) async fn read(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    query: Result<Query<ResponseQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::bad(e.body_text()))?;
    if query.stream || resume::is_wanted(&headers) {
        let place = format!("{RESPONSES}/{id}");
        return resume::resume(&app, &caller, &headers, &place, query.starting_after);
    }
    if query.starting_after.is_some() {
        return Err(ApiError::field("starting_after", "starting_after: only with stream=true"));
    }
    let StoredResponse { mut settings, output, .. } =
        app.stored(move |s| s.response(&caller.owner, &id, store::now())).await?;
    settings["output"] = output.into();
    Ok(Json(settings).into_response())
}

/// What became of a response.
#[derive(Serialize, ToSchema)]
pub(crate) struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// Forget a stored response. Those that go on from it stay, and nothing can go on from them any more.
#[utoipa::path(
    delete, path = "/v1/responses/{response}", tag = "OpenAI",
    params(("response" = String, Path, description = "its id")),
    responses((status = 200, body = Deleted), (status = 404, body = ErrorBody))
)]
pub(crate) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    let name = id.clone();
    app.stored(move |s| s.delete_response(&caller.owner, &id)).await?;
    Ok(Json(Deleted { id: name, object: "response", deleted: true }))
}

/// The items that a stored response was asked with, without those of the responses before it.
#[utoipa::path(
    get, path = "/v1/responses/{response}/input_items", tag = "OpenAI",
    params(("response" = String, Path, description = "its id")),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody))
)]
pub(crate) async fn input_items(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let mut items = app.stored(move |s| s.response(&caller.owner, &id, store::now())).await?.input;
    items.reverse(); // the newest first, as OpenAI gives them
    let id = |item: Option<&Value>| item.map(|i| i["id"].clone()).unwrap_or_default();
    let (first, last) = (id(items.first()), id(items.last()));
    Ok(Json(
        json!({ "object": "list", "data": items, "first_id": first, "last_id": last, "has_more": false }),
    ))
}
