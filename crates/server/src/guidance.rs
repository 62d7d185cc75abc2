//! The field `guidance`: what steers an answer beside the sampler, and what it cost, in `usage`.

use std::sync::Arc;

use quarrel_engine::{Amateur, Confidence, ContrastiveSearch, Dola, Guide, GuideStats, Meaning, Repetition};
use quarrel_runtime::{CoherenceOptions, GuideOptions};
use quarrel_text::Tokenizer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::fields::Fields;

/// Most banned texts of a request.
const BANNED_MAX: usize = 256;

/// What steers an answer; each part is off without its field, and at its identity the answer is that of plain sampling.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guidance {
    /// End an answer that repeats itself; the finish reason is `repetition`.
    repetition: Option<RepetitionField>,
    /// Draw segments again whose confidence is out of a band.
    confidence: Option<ConfidenceField>,
    /// Draw sentences again that are hardly likelier in their context than alone.
    coherence: Option<CoherenceField>,
    /// Away from the answer to this text: it takes the place of the prompt, or of the last message.
    pub(crate) negative_prompt: Option<String>,
    /// How far; 1 is not at all.
    scale: Option<f32>,
    /// Contrastive decoding against the draft model.
    contrast: Option<Contrast>,
    /// Contrast with the model's own layers, those of the server's --dola-layers.
    dola: Option<DolaField>,
    /// A search for what is likely and unlike the text before, in the place of drawing.
    contrastive_search: Option<SearchField>,
}

/// When an answer is a loop.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RepetitionField {
    /// Times that the same tokens follow each other; 5 if not given.
    repeats: Option<u32>,
    /// Tokens that they are together at least; 96 if not given.
    tokens: Option<u32>,
}

/// When a segment is drawn again.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ConfidenceField {
    /// Times that it may be; 4 if not given.
    tries: Option<u32>,
    /// Tokens of a segment; 16 if not given.
    window: Option<u32>,
    /// Best tokens whose log-probabilities are averaged; 20 if not given.
    best: Option<u8>,
    /// Least mean confidence, in nats.
    min: Option<f32>,
    /// Largest.
    max: Option<f32>,
}

/// When a sentence is drawn again.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CoherenceField {
    /// Times that it may be; 2 if not given.
    tries: Option<u32>,
    /// Least conditional PMI in nats a token; 0 if nothing else is given.
    min: Option<f32>,
    /// Least cosine with the sentence before, by the server's embedding model.
    adjacent: Option<f32>,
    /// Least cosine with the prompt.
    prompt: Option<f32>,
    /// Shorter sentences are joined to the next; 6 tokens if not given.
    tokens: Option<u32>,
}

/// How far away from the draft model.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Contrast {
    /// Tokens below this share of the best one's probability cannot come; 0.1 if not given.
    alpha: Option<f32>,
    /// How far; 0 is not at all, 0.5 if not given.
    beta: Option<f32>,
}

/// How far away from the farthest of the model's own layers.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DolaField {
    /// Tokens below this share of the best one's probability cannot come; 0.1 if not given.
    alpha: Option<f32>,
    /// How far; 0 is not at all, 1 if not given.
    beta: Option<f32>,
}

/// How much likeness costs.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SearchField {
    /// Share of the score; 0 is greedy, 0.6 if not given.
    alpha: Option<f32>,
    /// Candidates for each token; 1 is greedy, 4 if not given.
    k: Option<u32>,
}

impl Guidance {
    fn options(&self, negative: Option<Vec<u32>>) -> GuideOptions {
        GuideOptions {
            repetition: self.repetition.map(|r| {
                let d = Repetition::default();
                Repetition { repeats: r.repeats.unwrap_or(d.repeats), tokens: r.tokens.unwrap_or(d.tokens) }
            }),
            confidence: self.confidence.map(|c| {
                let d = Confidence::default();
                Confidence {
                    tries: c.tries.unwrap_or(4),
                    window: c.window.unwrap_or(d.window),
                    best: c.best.unwrap_or(d.best),
                    min: c.min.unwrap_or(d.min),
                    max: c.max.unwrap_or(d.max),
                }
            }),
            coherence: self.coherence.map(|c| {
                let compares = c.adjacent.is_some() || c.prompt.is_some();
                CoherenceOptions {
                    tries: c.tries.unwrap_or(2),
                    min: c.min.or((!compares).then_some(0.0)),
                    adjacent: c.adjacent,
                    prompt: c.prompt,
                    tokens: c.tokens.unwrap_or(6),
                }
            }),
            negative: negative.map(|ids| (ids, self.scale.unwrap_or(1.5))),
            amateur: self.contrast.map(|c| {
                let d = Amateur::default();
                Amateur { alpha: c.alpha.unwrap_or(d.alpha), beta: c.beta.unwrap_or(d.beta) }
            }),
            dola: self.dola.map(|d| {
                let usual = Dola::default();
                Dola { alpha: d.alpha.unwrap_or(usual.alpha), beta: d.beta.unwrap_or(usual.beta) }
            }),
            search: self.contrastive_search.map(|s| {
                let usual = ContrastiveSearch::default();
                ContrastiveSearch { alpha: s.alpha.unwrap_or(usual.alpha), k: s.k.unwrap_or(usual.k) }
            }),
            ..GuideOptions::default()
        }
    }
}

impl Fields {
    /// Whether sentences are compared by an embedding model.
    pub(crate) fn compares(&self) -> bool {
        let coherence = self.guidance.as_ref().and_then(|g| g.coherence);
        coherence.is_some_and(|c| c.adjacent.is_some() || c.prompt.is_some())
    }

    /// What the request says about guidance; sentences are compared by `meaning`, and `negative` makes tokens of a negative prompt.
    pub(crate) fn guide(
        &self,
        tokenizer: &Arc<Tokenizer>,
        meaning: Option<Arc<dyn Meaning>>,
        negative: impl FnOnce(&str) -> Result<Vec<u32>, ApiError>,
    ) -> Result<Option<Box<Guide>>, ApiError> {
        let guidance = self.guidance.clone().unwrap_or_default();
        if guidance.scale.is_some() && guidance.negative_prompt.is_none() {
            let message = "guidance.scale: without guidance.negative_prompt there is nothing to go away from";
            return Err(ApiError::field("guidance.scale", message));
        }
        let own =
            |field: &str, list: &Option<Vec<String>>| match list.as_ref().filter(|l| l.len() > BANNED_MAX) {
                Some(l) => {
                    let message = format!("{field}: {} texts; at most {BANNED_MAX} can be banned", l.len());
                    Err(ApiError::field(field, message))
                }
                None => Ok(list.clone().unwrap_or_default()),
            };
        let options = GuideOptions {
            banned_strings: own("banned_strings", &self.banned_strings)?,
            banned_regexes: own("banned_regexes", &self.banned_regexes)?,
            meaning,
            ..guidance.options(guidance.negative_prompt.as_deref().map(negative).transpose()?)
        };
        let field = match (options.coherence, &self.banned_regexes) {
            (Some(_), _) => "guidance.coherence",
            (None, Some(_)) => "banned_regexes",
            (None, None) => "banned_strings",
        };
        options.guide(tokenizer).map_err(|e| ApiError::field(field, format!("{e:#}")))
    }
}

/// What guidance cost.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct GuidanceUsage {
    /// Times that tokens were taken back.
    rewinds: u64,
    /// Segments that were drawn again.
    retries: u64,
    /// Tokens that were drawn and taken back; they are not among `completion_tokens`.
    withdrawn_tokens: u64,
    /// Rows computed beside those of the answer.
    extra_rows: u64,
    /// About what both took, in milliseconds.
    ms: f64,
}

impl GuidanceUsage {
    /// None if guidance did nothing.
    pub(crate) fn new(s: &GuideStats) -> Option<GuidanceUsage> {
        (s.rewinds + s.extra_rows > 0).then(|| GuidanceUsage {
            rewinds: s.rewinds,
            retries: s.retries,
            withdrawn_tokens: s.withdrawn_tokens,
            extra_rows: s.extra_rows,
            ms: (s.time.as_secs_f64() * 1e6).round() / 1e3,
        })
    }
}
