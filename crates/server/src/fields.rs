//! The fields that chat and plain completions share: how much to make, how to draw, how urgent it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quarrel_engine::{Class, DynamicTemperature, Eviction, Request, Retention, Sampling, Speculate};
use quarrel_store::presets::{Preset, Presets};
use quarrel_text::GrammarSpec;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::guidance::Guidance;

/// Most stop strings, and bytes of each.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;
/// Most entries of `logit_bias`.
const BIAS_MAX: usize = 1024;
/// Most answers of one request.
const CHOICES_MAX: u32 = 128;

/// One string or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(s) => vec![s],
            OneOrMany::Many(v) => v,
        }
    }
}

/// What an event stream contains beside the answer.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// One more event at the end, with the counts of tokens and the times.
    #[serde(default)]
    pub(crate) include_usage: bool,
}

/// Temperature that follows the entropy of each step.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DynamicTemp {
    /// Where the model is sure.
    min: f32,
    /// Where it is as unsure as can be.
    max: f32,
    /// Bends the curve between them; 1 is a line.
    #[serde(default = "one")]
    exponent: f32,
}

fn one() -> f32 {
    1.0
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Priority {
    Interactive,
    Batch,
    Background,
}

/// How tokens are guessed ahead; the answer is the same.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Guess {
    Off,
    Lookup,
    Ngram,
    Auto,
}

/// How long the prefix cache keeps what was computed.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cache {
    Discard,
    Usual,
    Keep,
}

/// What is dropped from the cache when it is full.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Evict {
    Refuse,
    Slide,
    H2o,
    Snapkv,
}

/// A schema that the answer has to obey.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JsonSchema {
    /// Its name, for people.
    #[allow(dead_code, reason = "taken so that it may be given")]
    name: Option<String>,
    /// What it is for, for people.
    #[allow(dead_code, reason = "taken so that it may be given")]
    description: Option<String>,
    /// The JSON Schema.
    #[schema(value_type = Object)]
    schema: Value,
    /// Always on here.
    #[allow(dead_code, reason = "taken so that it may be given")]
    strict: Option<bool>,
}

/// The form of the answer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// As the model likes.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema accepts.
    JsonSchema {
        /// The schema.
        json_schema: JsonSchema,
    },
}

impl ResponseFormat {
    /// JSON that this schema accepts.
    pub(crate) fn of_schema(schema: Value) -> ResponseFormat {
        let json_schema = JsonSchema { name: None, description: None, schema, strict: None };
        ResponseFormat::JsonSchema { json_schema }
    }
}

/// Other names of fields.
pub(crate) const ALIASES: [(&str, &str); 4] = [
    ("repeat_penalty", "repetition_penalty"),
    ("repeat_last_n", "penalty_window"),
    ("guided_regex", "regex"),
    ("guided_grammar", "grammar"),
];

/// Fields that all ways of making text share.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fields {
    /// Most tokens to make; without it to the end of the context.
    pub(crate) max_tokens: Option<u32>,
    /// Divides the logits: 0 is greedy, 1 is the model's own distribution.
    pub(crate) temperature: Option<f32>,
    /// Keep the smallest set of best tokens with this mass; 1 keeps all.
    pub(crate) top_p: Option<f32>,
    /// Keep this many best tokens; 0 keeps all.
    pub(crate) top_k: Option<u32>,
    /// Keep tokens of at least this share of the best one's probability; 0 keeps all.
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens that were there; 1 is off.
    pub(crate) repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that the answer has; 0 is off.
    pub(crate) presence_penalty: Option<f32>,
    /// Subtracted for each time that the answer has a token; 0 is off.
    pub(crate) frequency_penalty: Option<f32>,
    /// The penalties look at this many last tokens; without it at all.
    pub(crate) penalty_window: Option<u32>,
    /// Temperature by entropy, instead of `temperature`.
    pub(crate) dynamic_temperature: Option<DynamicTemp>,
    /// Added to the logits, by token id.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed gives the same answer.
    pub(crate) seed: Option<i64>,
    /// The answer ends where one of these would begin.
    pub(crate) stop: Option<OneOrMany>,
    /// Answers to make; they share what is computed of the prompt.
    pub(crate) n: Option<u32>,
    /// Make so many and give the `n` of the highest mean log-probability.
    pub(crate) best_of: Option<u32>,
    /// Go on where the model wants to end, up to `max_tokens`.
    pub(crate) ignore_eos: Option<bool>,
    /// Send the answer as it comes, as server-sent events.
    pub(crate) stream: Option<bool>,
    /// What the events contain beside the answer.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Named settings of `GET /v1/presets`, for what this request does not set.
    pub(crate) preset: Option<String>,
    /// The form of the answer, forced token by token.
    pub(crate) response_format: Option<ResponseFormat>,
    /// The answer matches this regular expression.
    pub(crate) regex: Option<String>,
    /// The answer is of this grammar, in llguidance's variant of Lark.
    pub(crate) grammar: Option<String>,
    /// Whose request it is: for the log, nothing else.
    pub(crate) user: Option<String>,
    /// How urgent it is; `interactive` if not given.
    pub(crate) priority: Option<Priority>,
    /// The request ends then, with what it has.
    pub(crate) deadline_ms: Option<u64>,
    /// Name of a loaded LoRA adapter.
    pub(crate) adapter: Option<String>,
    /// How tokens are guessed ahead: changes the speed, never the answer.
    pub(crate) speculate: Option<Guess>,
    /// How long the prefix cache keeps what was computed.
    pub(crate) cache: Option<Cache>,
    /// What happens when the answer outgrows `kv_tokens`.
    pub(crate) eviction: Option<Evict>,
    /// Most tokens in the cache.
    pub(crate) kv_tokens: Option<u32>,
    /// Texts that the answer does not contain, in any case of their letters: tokens that made one are taken back before they are sent.
    pub(crate) banned_strings: Option<Vec<String>>,
    /// Regular expressions that nothing in the answer matches.
    pub(crate) banned_regexes: Option<Vec<String>>,
    /// What steers the answer beside the sampler.
    pub(crate) guidance: Option<Guidance>,
}

impl Fields {
    /// Stop strings.
    pub(crate) fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        if stops.len() > STOPS_MAX {
            let message = format!("stop: {} strings; at most {STOPS_MAX} are watched for", stops.len());
            return Err(ApiError::field("stop", message));
        }
        match stops.iter().find(|s| s.is_empty() || s.len() > STOP_BYTES_MAX) {
            Some(s) => {
                let message =
                    format!("stop: a string of {} bytes; 1 to {STOP_BYTES_MAX} are allowed", s.len());
                Err(ApiError::field("stop", message))
            }
            None => Ok(stops),
        }
    }

    /// Fills what is not set from the named settings; gives these.
    pub(crate) fn take_preset(&mut self, presets: &Presets) -> Result<Option<Preset>, ApiError> {
        let Some(name) = &self.preset else { return Ok(None) };
        let p = presets.find(name).map_err(|e| ApiError::field("preset", e.to_string()))?.clone();
        // A temperature of the request's own is not overruled by a dynamic one.
        if self.temperature.is_none() && self.dynamic_temperature.is_none() {
            self.dynamic_temperature =
                p.dynamic_temperature.map(|d| DynamicTemp { min: d.min, max: d.max, exponent: d.exponent });
        }
        self.temperature = self.temperature.or(p.temperature);
        self.top_p = self.top_p.or(p.top_p);
        self.top_k = self.top_k.or(p.top_k);
        self.min_p = self.min_p.or(p.min_p);
        self.repetition_penalty = self.repetition_penalty.or(p.repetition_penalty);
        self.presence_penalty = self.presence_penalty.or(p.presence_penalty);
        self.frequency_penalty = self.frequency_penalty.or(p.frequency_penalty);
        self.seed = self.seed.or(p.seed.map(|s| s as i64));
        self.max_tokens = self.max_tokens.or(p.max_tokens);
        Ok(Some(p))
    }

    /// What the answer must obey, if anything.
    pub(crate) fn grammar(&self) -> Result<Option<GrammarSpec>, ApiError> {
        let format = match &self.response_format {
            None | Some(ResponseFormat::Text) => None,
            Some(ResponseFormat::JsonObject) => Some(GrammarSpec::JsonObject),
            Some(ResponseFormat::JsonSchema { json_schema }) => {
                Some(GrammarSpec::JsonSchema(json_schema.schema.clone()))
            }
        };
        let regex = self.regex.clone().map(GrammarSpec::Regex);
        let lark = self.grammar.clone().map(GrammarSpec::Lark);
        let mut given = [("response_format", format), ("regex", regex), ("grammar", lark)]
            .into_iter()
            .filter_map(|(name, spec)| Some((name, spec?)));
        let first = given.next();
        match (&first, given.next()) {
            (Some((a, _)), Some((b, _))) => {
                Err(ApiError::field(b, format!("{b}: the answer cannot obey {a} too; give one of them")))
            }
            _ => Ok(first.map(|(_, spec)| spec)),
        }
    }

    /// How to draw, over the defaults of the model.
    fn sampling(&self, base: &Sampling) -> Result<Sampling, ApiError> {
        let bias = self.logit_bias.iter().flatten();
        let bias: Result<Vec<_>, _> = bias.map(|(id, b)| id.parse::<u32>().map(|id| (id, *b))).collect();
        let bias = bias.map_err(|_| {
            ApiError::field("logit_bias", "logit_bias: keys are token ids, such as \"50256\"")
        })?;
        if bias.len() > BIAS_MAX {
            let message = format!("logit_bias: {} entries; at most {BIAS_MAX} are allowed", bias.len());
            return Err(ApiError::field("logit_bias", message));
        }
        let dynamic = self.dynamic_temperature;
        let dynamic = dynamic.map(|d| DynamicTemperature { min: d.min, max: d.max, exponent: d.exponent });
        let blind = self.penalty_window == Some(0); // penalties over no tokens are none
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: match blind {
                true => 1.0,
                false => self.repetition_penalty.unwrap_or(base.repetition_penalty),
            },
            presence_penalty: if blind {
                0.0
            } else {
                self.presence_penalty.unwrap_or(base.presence_penalty)
            },
            frequency_penalty: if blind {
                0.0
            } else {
                self.frequency_penalty.unwrap_or(base.frequency_penalty)
            },
            penalty_window: self.penalty_window.or(base.penalty_window).filter(|_| !blind),
            logit_bias: bias,
            seed: self.seed.map(|s| s as u64),
            dynamic_temperature: dynamic,
        })
    }

    /// The engine's request.
    pub(crate) fn request(
        &self,
        prompt: Vec<u32>,
        base: &Sampling,
        key: &Arc<str>,
    ) -> Result<Request, ApiError> {
        if let Some(n) = self.n.filter(|n| !(1..=CHOICES_MAX).contains(n)) {
            return Err(ApiError::field("n", format!("n is {n}; it must be 1 to {CHOICES_MAX}")));
        }
        if let Some(user) = &self.user {
            tracing::info!(user, key = %key, "a request of this user");
        }
        let priority = self.priority.unwrap_or(Priority::Interactive);
        Ok(Request {
            sampling: self.sampling(base)?,
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            n: self.n.unwrap_or(1),
            best_of: self.best_of,
            class: match priority {
                Priority::Interactive => Class::Interactive,
                Priority::Batch => Class::Batch,
                Priority::Background => Class::Background,
            },
            key: key.clone(),
            deadline: self.deadline_ms.map(Duration::from_millis),
            adapter: self.adapter.clone(),
            speculate: match self.speculate.unwrap_or(Guess::Lookup) {
                Guess::Off => Speculate::Off,
                Guess::Lookup => Speculate::Lookup,
                Guess::Ngram => Speculate::Ngram,
                Guess::Auto => Speculate::Auto,
            },
            retention: match self.cache.unwrap_or(Cache::Usual) {
                Cache::Discard => Retention::Discard,
                Cache::Usual => Retention::Usual,
                Cache::Keep => Retention::Keep,
            },
            eviction: match self.eviction.unwrap_or(Evict::Refuse) {
                Evict::Refuse => Eviction::Refuse,
                Evict::Slide => Eviction::SLIDE,
                Evict::H2o => Eviction::H2O,
                Evict::Snapkv => Eviction::SNAP_KV,
            },
            kv_tokens: self.kv_tokens,
            ..Request::new(prompt)
        })
    }
}
