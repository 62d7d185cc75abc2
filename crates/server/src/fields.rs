//! The fields that chat and plain completions share: how much to make, how to draw, how urgent it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quarrel_engine::{Beams, Class, Eviction, Request, Retention, Sampling, Speculate};
use quarrel_text::GrammarSpec;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::guidance::Guidance;
use crate::sampling::{Best, Bias, DynamicTemp, LogprobsChoice};

/// Most stop strings, and bytes of each.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;
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

/// How urgent a request is.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Priority {
    Interactive,
    Batch,
    Background,
}

impl From<Priority> for Class {
    fn from(priority: Priority) -> Class {
        match priority {
            Priority::Interactive => Class::Interactive,
            Priority::Batch => Class::Batch,
            Priority::Background => Class::Background,
        }
    }
}

/// How tokens are guessed ahead; the answer is the same.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Guess {
    Off,
    Lookup,
    Ngram,
    /// By the server's draft model.
    Draft,
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
pub(crate) const ALIASES: [(&str, &str); 7] = [
    ("repeat_penalty", "repetition_penalty"),
    ("repeat_last_n", "penalty_window"),
    ("dry_penalty_last_n", "dry_window"),
    ("typ_p", "typical_p"),
    ("top_nsigma", "top_n_sigma"),
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
    /// Keep the smallest set with this mass of the tokens whose surprise is nearest to the expected one; 1 keeps all.
    pub(crate) typical_p: Option<f32>,
    /// Keep tokens whose logit is at most this many standard deviations below the best; 0 keeps all.
    pub(crate) top_n_sigma: Option<f32>,
    /// How often XTC drops the top choices; 0 is never.
    pub(crate) xtc_probability: Option<f32>,
    /// Of the tokens of at least this probability XTC leaves the least likely; 0.1 if not given.
    pub(crate) xtc_threshold: Option<f32>,
    /// 1 or 2: Mirostat, which takes the place of the other truncations; 0 is off.
    pub(crate) mirostat: Option<u8>,
    /// The surprise that Mirostat aims at, in bits; 5 if not given.
    pub(crate) mirostat_tau: Option<f32>,
    /// How fast Mirostat learns; 0.1 if not given.
    pub(crate) mirostat_eta: Option<f32>,
    /// Divides the logits of tokens that were there; 1 is off.
    pub(crate) repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that the answer has; 0 is off.
    pub(crate) presence_penalty: Option<f32>,
    /// Subtracted for each time that the answer has a token; 0 is off.
    pub(crate) frequency_penalty: Option<f32>,
    /// The penalties look at this many last tokens; without it at all.
    pub(crate) penalty_window: Option<u32>,
    /// The penalties on a token are halved with each so many tokens since it was there; without it never.
    pub(crate) penalty_half_life: Option<u32>,
    /// DRY's penalty on a token that makes a repeat longer; 0 is off.
    pub(crate) dry_multiplier: Option<f32>,
    /// It grows by this factor with each token of the repeat; 1.75 if not given.
    pub(crate) dry_base: Option<f32>,
    /// ... from repeats of this length on; 2 if not given.
    pub(crate) dry_allowed_length: Option<u32>,
    /// DRY looks at this many last tokens; -1 is all, 0 none.
    pub(crate) dry_window: Option<i64>,
    /// No repeat goes over a token with one of these texts in it; line break, colon, quotation mark and asterisk if not given.
    pub(crate) dry_sequence_breakers: Option<Vec<String>>,
    /// Temperature by entropy, instead of `temperature`.
    pub(crate) dynamic_temperature: Option<DynamicTemp>,
    /// llama.cpp's way to say it: so much below and above `temperature`; 0 is off.
    pub(crate) dynatemp_range: Option<f32>,
    /// ... and what bends the curve between them.
    pub(crate) dynatemp_exponent: Option<f32>,
    /// EDT: `temperature` is lowered the more, the surer the model is; 0 is off.
    pub(crate) edt_theta: Option<f32>,
    /// How much repeats and doubt in the answer may change temperature and penalties, up to 1; 0 is off.
    pub(crate) adaptive: Option<f32>,
    /// The stages in their order; those that are not named are off.
    pub(crate) samplers: Option<OneOrMany>,
    /// Added to the logits, by token id.
    pub(crate) logit_bias: Option<BTreeMap<String, Bias>>,
    /// The same seed gives the same answer.
    pub(crate) seed: Option<i64>,
    /// The answer ends where one of these would begin.
    pub(crate) stop: Option<OneOrMany>,
    /// Answers to make; they share what is computed of the prompt.
    pub(crate) n: Option<u32>,
    /// Make so many and give the `n` best.
    pub(crate) best_of: Option<u32>,
    /// What is best: the highest mean log-probability, if not given.
    pub(crate) best_of_by: Option<Best>,
    /// Search with so many beams instead of drawing; the `n` best answers come at the end.
    pub(crate) beams: Option<u32>,
    /// With `beams`: scores are divided by the length to this power, so more prefers long answers; 1 if not given.
    pub(crate) length_penalty: Option<f32>,
    /// Whose log-probabilities are given: those of the model, if not given.
    pub(crate) logprobs_of: Option<LogprobsChoice>,
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
    /// How tokens are guessed ahead: changes the speed, never the answer; `lookup` if not given, `auto` where the server has a draft model.
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
    /// Candidates to tell of with each token; the route for that sets it.
    #[serde(skip)]
    pub(crate) explain: Option<u32>,
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

    /// The search, if one is asked for; the engine knows what it goes with.
    fn beams(&self) -> Result<Option<Beams>, ApiError> {
        match (self.beams, self.length_penalty) {
            (Some(width), penalty) => Ok(Some(Beams { width, length_penalty: penalty.unwrap_or(1.0) })),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                let message = "length_penalty: it belongs to a search; give beams too, 2 to 128";
                Err(ApiError::field("length_penalty", message))
            }
        }
    }

    /// The engine's request; its tokens are guessed in the `usual` way where it does not say how.
    pub(crate) fn request(
        &self,
        prompt: Vec<u32>,
        base: &Sampling,
        usual: Speculate,
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
            best_of_by: self.best_of_by.map(Into::into).unwrap_or_default(),
            logprobs_of: self.logprobs_of.map(Into::into).unwrap_or_default(),
            class: priority.into(),
            key: key.clone(),
            deadline: self.deadline_ms.map(Duration::from_millis),
            adapter: self.adapter.clone(),
            beams: self.beams()?,
            speculate: self.speculate.map_or(usual, |guess| match guess {
                Guess::Off => Speculate::Off,
                Guess::Lookup => Speculate::Lookup,
                Guess::Ngram => Speculate::Ngram,
                Guess::Draft => Speculate::Draft,
                Guess::Auto => Speculate::Auto,
            }),
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
            explain: self.explain,
            ..Request::new(prompt)
        })
    }
}
