//! `quarrel logits`: the most likely next tokens, from an exact log-softmax over the whole vocabulary.

use anyhow::{Result, bail};
use serde_json::json;

use quarrel_runtime::prompt as chat_format;

use crate::args::Logits;
use crate::render::Out;
use crate::session;
use crate::{input, interrupt};

pub(crate) fn run(args: Logits) -> Result<()> {
    let prompt = input::exact(args.words.or(args.prompt), args.file.as_deref(), "prompt")?;
    interrupt::install()?;
    let opened = session::open(&args.model)?;
    let ids = match (&opened.template, args.chat) {
        (_, false) => chat_format::encode_prompt(&opened.tokenizer, &prompt)?,
        (Some(t), true) => {
            chat_format::encode_chat(&opened.tokenizer, t, &[chat_format::message("user", &prompt)])?
        }
        (None, true) => bail!("{} has no chat template", opened.local.name),
    };
    if ids.is_empty() {
        bail!("the prompt is empty, and this model has no token to begin with; give it a text");
    }
    let prompt_tokens = ids.len();
    let running = session::load(&opened, &args.engine, None)?;
    let logits = running.handle.logits(ids).map_err(|e| running.explain(e))?;
    let best = log_softmax_top(&logits, args.top as usize);
    let text = |id: u32| opened.tokenizer.token_bytes(id).map(|b| String::from_utf8_lossy(b).into_owned());
    let mut out = Out::new();
    if args.json {
        let mut tokens = Vec::with_capacity(best.len());
        for (id, logprob) in best {
            tokens.push(json!({ "id": id, "text": text(id).unwrap_or_default(), "logprob": logprob }));
        }
        return out.json(&json!({ "tokens": tokens, "prompt_tokens": prompt_tokens }));
    }
    let mut rows = vec![["ID", "LOGPROB", "PROBABILITY", "TEXT"].map(String::from).to_vec()];
    rows.extend(best.into_iter().map(|(id, l)| {
        let piece = text(id).map_or_else(|_| "(not in the vocabulary)".into(), |t| format!("{t:?}"));
        vec![id.to_string(), format!("{l:.4}"), format!("{:.2}%", 100.0 * l.exp()), piece]
    }));
    Ok(out.table(&rows, &[0, 1, 2])?)
}

/// The `n` best ids with their natural log-probabilities, best first; of equals the lower id.
fn log_softmax_top(logits: &[f32], n: usize) -> Vec<(u32, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let lse = f64::from(max) + sum.ln();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    order.into_iter().take(n).map(|id| (id, f64::from(logits[id as usize]) - lse)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_of_the_whole_vocabulary() {
        let top = log_softmax_top(&[0.0, 2.0, 1.0, 2.0], 2);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3]);
        let z = 1.0 + 2.0 * 2f64.exp() + 1f64.exp();
        assert!((top[0].1 - (2.0 - z.ln())).abs() < 1e-12);
        assert_eq!(log_softmax_top(&[1.0], 9).len(), 1);
    }
}
