//! What one waits for, measured through the engine as its users reach it: first token, and pauses between tokens.

use crate::report::Latency;
use crate::session::{Session, made_up};
use crate::stats::{Spread, percentile};
use crate::work::Work;
use crate::{Progress, Result};
use quarrel_engine::{Engine, EngineConfig, Event, Request, Sampling};
use std::time::Instant;

/// Moves the session's device into an engine and sends it one request after the other; `None` where the work has neither
/// prompt nor new tokens.
///
/// # Errors
/// What the engine refuses.
pub fn latency(session: Session, work: &Work, progress: Progress<'_>) -> Result<Option<Latency>> {
    if work.prompt == 0 && work.decode == 0 {
        return Ok(None);
    }
    let (prompt_tokens, answer) = (work.prompt.max(1), work.decode.max(1));
    // Rounds have equal prompts, which a prefix cache would know.
    let config = EngineConfig { prefix_cache: false, ..EngineConfig::new(prompt_tokens + answer + 1) };
    let handle = Engine::start(session.device, session.program, &session.ids, config)?;
    let (mut first, mut pauses) = (Vec::new(), Vec::new());
    // The first round is the engine's warm-up: its cache has not been touched.
    for round in 0..=work.repeat {
        progress(if round == 0 { "warming the engine" } else { "first token and pauses" });
        let request = Request {
            sampling: Sampling::greedy(),
            max_tokens: u32::try_from(answer).ok(),
            ignore_eos: true,
            ..Request::new(made_up(prompt_tokens, session.vocab))
        };
        let mut last = Instant::now();
        let mut tokens = 0;
        for event in handle.submit(request)? {
            match event {
                Event::Token { .. } => {
                    let ms = last.elapsed().as_secs_f64() * 1e3;
                    last = Instant::now();
                    tokens += 1;
                    if round > 0 {
                        (if tokens == 1 { &mut first } else { &mut pauses }).push(ms);
                    }
                }
                Event::Failed(e) => return Err(e.into()),
                Event::Prefill { .. } | Event::Finished { .. } | Event::Done { .. } => {}
            }
        }
    }
    Ok(Spread::of(&first).map(|ttft_ms| Latency {
        prompt_tokens,
        ttft_ms,
        itl_p50_ms: percentile(&pauses, 50.0),
        itl_p99_ms: percentile(&pauses, 99.0),
    }))
}
