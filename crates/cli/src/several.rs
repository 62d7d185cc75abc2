//! Several answers to one prompt: drawn each with a seed of its own, or the best of a beam search.

use anyhow::{Result, bail};
use quarrel_engine::{Event, FinishReason, LogprobsOf, RequestStats};
use quarrel_runtime::TextStream;
use quarrel_text::Tokenizer;
use quarrel_text::stream_decoder::Control;
use serde_json::{Value, json};

use crate::interrupt::Answering;
use crate::render::Out;
use crate::session::{Ask, End, Running, token_logprobs};

/// One of them.
pub(crate) struct One {
    pub(crate) text: String,
    pub(crate) end: End,
    pub(crate) tokens: usize,
    /// Sum of the log-probabilities of its tokens.
    logprob: f64,
    logprobs: Vec<Value>,
}

impl One {
    /// The mean log-probability of its tokens.
    fn score(&self) -> f64 {
        self.logprob / self.tokens.max(1) as f64
    }

    fn json(&self, logprobs: bool) -> Value {
        let mut object = json!({
            "text": self.text,
            "finish_reason": self.end.reason(),
            "completion_tokens": self.tokens,
            "logprob": self.logprob,
            "mean_logprob": self.score(),
        });
        if logprobs {
            object["logprobs"] = self.logprobs.clone().into();
        }
        object
    }
}

/// All of them; those of a search, and of the best of many, the best first.
pub(crate) struct Several {
    pub(crate) answers: Vec<One>,
    pub(crate) stats: RequestStats,
}

impl Several {
    /// For scripts.
    pub(crate) fn json(&self, logprobs: bool) -> Value {
        self.answers.iter().map(|a| a.json(logprobs)).collect()
    }

    /// For people: each under a line with its number and its score.
    pub(crate) fn print(&self, out: &mut Out) -> Result<()> {
        let n = self.answers.len();
        for (i, a) in self.answers.iter().enumerate() {
            let gap = if i > 0 { "\n" } else { "" };
            let tokens = if a.tokens == 1 { "token" } else { "tokens" };
            let head = format!("{gap}[{} of {n}: {:.3} a token, {} {tokens}]\n", i + 1, a.score(), a.tokens);
            out.text(&head)?;
            out.text(&a.text)?;
            out.end_line()?;
        }
        Ok(())
    }

    /// Whether one was cut short by Ctrl-C.
    pub(crate) fn interrupted(&self) -> bool {
        self.answers.iter().any(|a| a.end == End::Interrupted)
    }
}

impl Running {
    /// Makes the answers; they are known when all are complete.
    pub(crate) fn answers(&self, tokenizer: &Tokenizer, ask: Ask<'_>) -> Result<Several> {
        let (n, stop, leading, wanted) = (ask.n, ask.settings.stop.clone(), ask.leading, ask.logprobs);
        let mut request = self.request(tokenizer, ask)?;
        if request.logprobs_of == LogprobsOf::Unreported {
            request.logprobs_of = LogprobsOf::Raw; // for the scores
        }
        let answering = Answering::begin();
        let stream = self.handle.submit(request).map_err(|e| self.explain(e))?;
        let (id, mut interrupted) = (stream.id(), false);
        let one =
            || One { text: String::new(), end: End::Length, tokens: 0, logprob: 0.0, logprobs: Vec::new() };
        let mut open: Vec<(One, TextStream, Option<End>)> =
            (0..n).map(|_| (one(), TextStream::new(leading, Control::Hide, stop.clone()), None)).collect();
        for event in stream {
            if !interrupted && answering.stopped() {
                interrupted = true;
                self.handle.cancel(id);
            }
            match event {
                Event::Token { choice, id: token, logprob, top, .. } => {
                    let (one, text, end) = &mut open[choice as usize];
                    if end.is_some() {
                        continue;
                    }
                    one.tokens += 1;
                    one.logprob += f64::from(logprob.unwrap_or_default());
                    if wanted.is_some() {
                        one.logprobs.push(token_logprobs(tokenizer, token, logprob, &top)?);
                    }
                    one.text += &text.push(tokenizer, token)?;
                    if text.stopped().is_some() {
                        *end = Some(End::Stop);
                    }
                    if open.iter().all(|o| o.2.is_some()) {
                        self.handle.cancel(id);
                    }
                }
                Event::Finished { choice, reason } => {
                    open[choice as usize].2.get_or_insert(End::of(reason));
                }
                Event::Prefill { .. } | Event::Evicted { .. } => {}
                Event::Failed(e) => return Err(self.explain(e)),
                Event::Done { reason, stats } => {
                    let close = |(one, mut text, end): (One, TextStream, Option<End>)| {
                        let end = match reason {
                            FinishReason::Aborted if interrupted => End::Interrupted,
                            _ => end.unwrap_or(End::of(reason)),
                        };
                        One { text: one.text + &text.finish(), end, ..one }
                    };
                    return Ok(Several { answers: open.into_iter().map(close).collect(), stats });
                }
            }
        }
        bail!("the engine ended without an answer")
    }
}
