//! Counts and times of an answer, as OpenAI's `usage` and as our `timings`.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::generate::Summary;
use crate::guidance::GuidanceUsage;

/// Tokens of a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
    /// What guidance cost, if it did anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance: Option<GuidanceUsage>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct PromptDetails {
    /// Those that the prefix cache had.
    cached_tokens: usize,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct CompletionDetails {
    /// Tokens of the reasoning before the answer.
    reasoning_tokens: usize,
    /// Guessed ahead and right.
    accepted_prediction_tokens: u64,
    /// Guessed ahead and wrong.
    rejected_prediction_tokens: u64,
}

/// Where the time went.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Timings {
    /// Waiting for a place, in milliseconds.
    queue_ms: f64,
    /// From admission to the first token.
    prompt_ms: f64,
    /// From submission to the first token.
    first_token_ms: f64,
    /// From the first token to the last.
    decode_ms: f64,
    /// Prompt tokens that were computed, in a second.
    prompt_tokens_per_s: Option<f64>,
    /// Tokens after the first, in a second.
    decode_tokens_per_s: Option<f64>,
    /// The seed of the first answer: the same one gives the same answer.
    seed: u64,
}

impl Usage {
    pub(crate) fn new(s: &Summary) -> Usage {
        Usage {
            prompt_tokens: s.stats.prompt_tokens,
            completion_tokens: s.completion_tokens,
            total_tokens: s.stats.prompt_tokens + s.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: s.stats.cached_tokens },
            guidance: GuidanceUsage::new(&s.stats.guide),
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: s.reasoning_tokens,
                accepted_prediction_tokens: s.stats.accepted_tokens,
                rejected_prediction_tokens: s.stats.drafted_tokens.saturating_sub(s.stats.accepted_tokens),
            },
        }
    }
}

impl Timings {
    pub(crate) fn new(s: &Summary) -> Timings {
        let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        let per_s = |n: usize, d: Duration| {
            (n > 0 && !d.is_zero()).then(|| (n as f64 / d.as_secs_f64() * 10.0).round() / 10.0)
        };
        let stats = &s.stats;
        Timings {
            queue_ms: ms(stats.queue),
            prompt_ms: ms(stats.prefill),
            first_token_ms: ms(stats.ttft),
            decode_ms: ms(stats.decode),
            prompt_tokens_per_s: per_s(
                stats.prompt_tokens.saturating_sub(stats.cached_tokens),
                stats.prefill,
            ),
            decode_tokens_per_s: per_s(stats.completion_tokens.saturating_sub(1), stats.decode),
            seed: stats.seed,
        }
    }
}
