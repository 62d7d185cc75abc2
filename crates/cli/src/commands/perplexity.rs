//! `quarrel perplexity`: exp of the mean negative log-likelihood over sliding windows; the definition is in its help.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Result, bail};
use quarrel_engine::{EvictionStats, ScoreRequest};
use quarrel_text::{Ends, Special};
use serde_json::json;

use crate::args::{EngineArgs, Kv, Perplexity};
use crate::failure::Usage;
use crate::render::{self, Out};
use crate::session::{self, evicted_json};
use crate::{input, interrupt};
use quarrel_runtime::devices::Place;
use quarrel_runtime::memory::Use;

/// Windows where the model's context allows, and nothing else is said.
const CONTEXT: usize = 512;

pub(crate) fn run(args: Perplexity) -> Result<()> {
    let path = args.path.as_deref().or(args.file.as_deref()).unwrap_or(Path::new("-"));
    let text = input::text_file(path)?;
    interrupt::install()?;
    let opened = session::open(&args.model)?;
    let ids = opened.tokenizer.encode(&text, Special::Plain, Ends::None)?;
    let bos = opened.tokenizer.bos().filter(|_| opened.tokenizer.adds_bos());
    let trained = quarrel_model::spec(&opened.source)?.context as usize;
    let context = args.ctx.map_or(CONTEXT.min(trained), |c| c as usize).max(2);
    let stride = args.stride.map_or(context.div_ceil(2), |s| s as usize);
    if stride > context {
        let what = format!(
            "--stride {stride} is more than the window of {context} tokens; some would not be scored"
        );
        return Err(Usage(what).into());
    }
    if ids.len() + usize::from(bos.is_some()) < 2 {
        bail!("{} has {} tokens; at least 2 are needed", path.display(), ids.len());
    }
    let engine = EngineArgs {
        ctx: u32::try_from(context).ok(),
        threads: args.threads,
        memory_budget: args.memory_budget,
        kv: Some(Kv::F16),
        device: Place::Cpu,
        deterministic: false,
        isa: args.isa,
    };
    let running = session::load_for(&opened, &engine, Use::SCORE, args.adapter.lora.as_ref())?;
    let bar = render::steps(ids.len() as u64, "perplexity");
    let mut scores = Vec::with_capacity(ids.len());
    let mut evicted = EvictionStats::default();
    for window in windows(ids.len(), context, stride, usize::from(bos.is_some())) {
        let tokens: Vec<u32> = bos.iter().chain(&ids[window.start..window.end]).copied().collect();
        let part = running.handle.score_with(ScoreRequest {
            eviction: args.evict.policy(),
            kv_tokens: args.evict.kv_tokens,
            adapter: running.adapter.clone(),
            ..ScoreRequest::new(tokens, window.from)
        })?;
        scores.extend(part.log_probs);
        evicted.merge(&part.eviction);
        bar.set_position(window.end as u64);
    }
    bar.finish_and_clear();
    let s = Summary::of(&scores);
    let mut out = Out::new();
    if args.json {
        let mut object =
            json!({ "perplexity": s.perplexity(), "nll": s.nll, "tokens": s.tokens, "ci95": s.ci95() });
        evicted_json(&evicted, &mut object);
        return out.json(&object);
    }
    let [low, high] = s.ci95();
    let line = format!(
        "perplexity {:.4} (95% {low:.4} to {high:.4}), nll {:.5}, {} tokens",
        s.perplexity(),
        s.nll,
        s.tokens
    );
    if std::io::stdout().is_terminal() {
        render::detail(format!("windows of {context} tokens, one every {stride}"));
    }
    session::evicted(&evicted).into_iter().for_each(render::note);
    Ok(out.line(&line)?)
}

/// A window of the text: its ids are `start..end`, and its tokens (bos included) from `from` on are scored.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    start: usize,
    end: usize,
    from: usize,
}

/// Windows of `context` tokens, `bos` (0 or 1) of them in front, over `n` ids; each id is scored once.
fn windows(n: usize, context: usize, stride: usize, bos: usize) -> Vec<Window> {
    let room = context - bos;
    let step = stride.min(room);
    let (mut out, mut scored, mut start) = (Vec::new(), 0, 0);
    while scored < n {
        let end = (start + room).min(n);
        // The first token of a window can be scored only behind bos.
        let from = (scored - start + bos).max(1);
        if from < end - start + bos {
            out.push(Window { start, end, from });
        }
        (scored, start) = (end, start + step);
    }
    out
}

struct Summary {
    nll: f64,
    /// Standard error of `nll`, from the spread over tokens.
    error: f64,
    tokens: usize,
}

impl Summary {
    fn of(log_probs: &[f64]) -> Summary {
        let n = log_probs.len() as f64;
        let nll = -log_probs.iter().sum::<f64>() / n;
        let squares: f64 = log_probs.iter().map(|l| (l + nll) * (l + nll)).sum();
        let variance = squares / (n - 1.0).max(1.0);
        Summary { nll, error: (variance / n).sqrt(), tokens: log_probs.len() }
    }

    fn perplexity(&self) -> f64 {
        self.nll.exp()
    }

    fn ci95(&self) -> [f64; 2] {
        [(self.nll - 1.96 * self.error).exp(), (self.nll + 1.96 * self.error).exp()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_scored_once_with_enough_before_it() {
        for (n, context, stride, bos) in [
            (1000, 512, 256, 0),
            (1000, 512, 256, 1),
            (513, 512, 1, 0),
            (7, 512, 256, 1),
            (2, 512, 256, 0),
            (1, 4, 2, 1),
        ] {
            let mut scored = Vec::new();
            for w in windows(n, context, stride, bos) {
                assert!(w.end - w.start + bos <= context, "{w:?}");
                for at in w.from..w.end - w.start + bos {
                    scored.push(w.start + at - bos);
                    assert!(w.start == 0 || at >= context - stride - bos, "{w:?} {at}");
                }
            }
            assert_eq!(scored, (1 - bos..n).collect::<Vec<_>>(), "{n} {context} {stride} {bos}");
        }
    }

    #[test]
    fn windows_side_by_side() {
        let w = |start, end, from| Window { start, end, from };
        assert_eq!(windows(10, 4, 4, 0), [w(0, 4, 1), w(4, 8, 1), w(8, 10, 1)]);
        assert_eq!(windows(7, 4, 4, 1), [w(0, 3, 1), w(3, 6, 1), w(6, 7, 1)]);
        assert_eq!(windows(9, 4, 4, 0).last(), Some(&w(4, 8, 1)), "a last token alone has nothing before it");
    }

    #[test]
    fn summary_of_known_numbers() {
        let s = Summary::of(&[-1.0, -3.0]);
        assert_eq!((s.nll, s.tokens), (2.0, 2));
        assert!((s.error - 1.0).abs() < 1e-12);
        assert!((s.ci95()[1] - 3.96f64.exp()).abs() < 1e-9);
        assert!((s.perplexity() - 2f64.exp()).abs() < 1e-12);
        assert_eq!(Summary::of(&[-1.0]).error, 0.0);
    }
}
