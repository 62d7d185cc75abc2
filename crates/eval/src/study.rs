//! Answers to a fixed set of prompts with each method, read by a second model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quarrel_engine::{Event, Handle, Request, ScoreRequest, Stream};
use quarrel_runtime::{Embedder, GuideOptions, Opened, Sentences, TextStream, prompt};
use quarrel_text::stream_decoder::{Control, Leading};
use quarrel_text::{Ends, Special};
use serde::Serialize;

use crate::interval::Interval;
use crate::metrics::{distinct, repetition, sentences, words};
use crate::{Method, Setting, self_bleu};

/// A model that answers or reads.
#[derive(Clone, Copy)]
pub struct Party<'a> {
    /// Its words.
    pub opened: &'a Opened,
    /// Its engine.
    pub handle: &'a Handle,
    /// Who compares sentences, where a method asks for that.
    pub embedder: Option<&'a Embedder>,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What people ask.
    pub prompts: Vec<String>,
    /// Answers to each prompt with each method.
    pub samples: u32,
    /// Most tokens of an answer.
    pub tokens: u32,
    /// Seed of the first answer.
    pub seed: u64,
}

/// Requests in flight.
const AT_ONCE: usize = 4;

/// What a method's answers are like; means over prompts.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// [`Method::name`].
    pub method: &'static str,
    /// [`Method::about`].
    pub about: &'static str,
    /// Share of 4-grams of an answer that it had before.
    pub rep_4: Interval,
    /// Distinct 2-grams of the answers to a prompt over all of theirs.
    pub distinct_2: Interval,
    /// How alike the answers to a prompt are, 0 to 1.
    pub self_bleu: Interval,
    /// Mean negative log-likelihood of a token of the answers behind their prompts, under the second model, in nats.
    pub nll: Interval,
    /// Conditional pointwise mutual information of sentences and what precedes them, under the second model, in nats per
    /// token: how much a sentence follows from what came before.
    pub coherence: Interval,
    /// Words of an answer.
    pub words: Interval,
    /// Tokens that were computed for each that the answers have.
    pub tokens_per_token: f64,
    /// Seconds for each token of the answers, all prompts together.
    pub seconds_per_token: f64,
}

/// One answer.
#[derive(Debug, Clone, Default)]
struct Answer {
    text: String,
    tokens: usize,
}

/// Runs a method; `progress` is called for each prompt that has been answered and read.
pub fn run(
    model: Party,
    judge: Party,
    plan: &Plan,
    method: &'static Method,
    progress: impl Fn(),
) -> Result<Outcome> {
    if plan.prompts.is_empty() || plan.samples == 0 || plan.tokens == 0 {
        bail!("a study needs prompts, samples and tokens, at least one of each");
    }
    let (mut answers, mut elapsed, mut computed, mut kept) = (Vec::new(), Duration::ZERO, 0, 0);
    for (at, prompts) in plan.prompts.chunks(AT_ONCE).enumerate() {
        let began = Instant::now();
        let ask = |(i, p): (usize, &String)| submit(model, plan, method, p, at * AT_ONCE + i);
        let streams: Vec<(Stream, Leading)> = prompts.iter().enumerate().map(ask).collect::<Result<_>>()?;
        for (stream, leading) in streams {
            let count = if method.searches() { 1 } else { plan.samples };
            let (mut texts, made) = gather(model.opened, stream, leading, count)?;
            kept += texts.iter().map(|a| a.tokens).sum::<usize>();
            computed += made;
            texts.resize(plan.samples as usize, texts[0].clone());
            answers.push(texts);
        }
        elapsed += began.elapsed();
    }
    if kept == 0 {
        bail!("{} says nothing to any prompt with the method {:?}", model.opened.local.name, method.name);
    }
    let mut of = Columns::default();
    for (prompt, answers) in plan.prompts.iter().zip(&answers) {
        let texts: Vec<Vec<String>> = answers.iter().map(|a| words(&a.text)).collect();
        let mean = |f: &dyn Fn(&Vec<String>) -> f64| texts.iter().map(f).sum::<f64>() / texts.len() as f64;
        of.rep_4.push(mean(&|t| repetition(t, 4)));
        of.words.push(mean(&|t| t.len() as f64));
        of.distinct_2.push(distinct(&texts, 2));
        of.self_bleu.push(self_bleu(&texts));
        let readings: Vec<Reading> =
            answers.iter().map(|a| read(judge, prompt, &a.text)).collect::<Result<_>>()?;
        of.nll.extend(mean_of(readings.iter().filter_map(|r| r.nll)));
        of.coherence.extend(mean_of(readings.iter().filter_map(|r| r.coherence)));
        progress();
    }
    Ok(Outcome {
        method: method.name,
        about: method.about,
        rep_4: Interval::of(&of.rep_4),
        distinct_2: Interval::of(&of.distinct_2),
        self_bleu: Interval::of(&of.self_bleu),
        nll: Interval::of(&of.nll),
        coherence: Interval::of(&of.coherence),
        words: Interval::of(&of.words),
        tokens_per_token: computed as f64 / kept as f64,
        seconds_per_token: elapsed.as_secs_f64() / kept as f64,
    })
}

/// A value for each prompt.
#[derive(Default)]
struct Columns {
    rep_4: Vec<f64>,
    distinct_2: Vec<f64>,
    self_bleu: Vec<f64>,
    nll: Vec<f64>,
    coherence: Vec<f64>,
    words: Vec<f64>,
}

fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.fold((0, 0.0), |(n, sum), v| (n + 1, sum + v));
    (n > 0).then(|| sum / f64::from(n))
}

/// A prompt in the model's form.
fn encode(model: Party, text: &str) -> Result<(Vec<u32>, Leading)> {
    let tokenizer = &model.opened.tokenizer;
    Ok(match &model.opened.template {
        Some(template) => {
            (prompt::encode_chat(tokenizer, template, &[prompt::message("user", text)])?, Leading::Strip)
        }
        None => (prompt::encode_prompt(tokenizer, text)?, Leading::Keep),
    })
}

fn submit(model: Party, plan: &Plan, method: &Method, text: &str, at: usize) -> Result<(Stream, Leading)> {
    let tokenizer = &model.opened.tokenizer;
    let (ids, leading) = encode(model, text)?;
    let mut request = Request {
        n: plan.samples,
        max_tokens: Some(plan.tokens),
        stop_ids: tokenizer.end_of_generation().to_vec(),
        ..Request::new(ids)
    };
    let mut options = GuideOptions::default();
    (method.set)(&mut request, &mut options, &Setting { blank: encode(model, "")?.0 });
    if let Some(by) = model.embedder.filter(|_| method.needs_embedder()) {
        options.meaning = Some(Arc::new(Sentences::new(by.clone(), tokenizer.clone(), text.into())));
    }
    if method.searches() {
        // Each would be the same, so one stands for all.
        request.n = 1;
    }
    request.guide = options.guide(tokenizer)?;
    // Every method sees the same random numbers.
    request.sampling.seed = Some(plan.seed + 1000 * at as u64);
    let stream = model.handle.submit(request).with_context(|| format!("method {:?}", method.name))?;
    Ok((stream, leading))
}

/// The answers of a stream and the tokens that were made for them.
fn gather(opened: &Opened, stream: Stream, leading: Leading, samples: u32) -> Result<(Vec<Answer>, usize)> {
    let mut answers = vec![Answer::default(); samples as usize];
    let mut texts = vec![TextStream::new(leading, Control::Hide, Vec::new()); samples as usize];
    for event in stream {
        match event {
            Event::Token { choice, id, .. } => {
                let (answer, text) = (&mut answers[choice as usize], &mut texts[choice as usize]);
                answer.text += &text.push(&opened.tokenizer, id)?;
                answer.tokens += 1;
            }
            Event::Done { stats, .. } => {
                for (answer, text) in answers.iter_mut().zip(&mut texts) {
                    answer.text += &text.finish();
                }
                let beside = (stats.guide.withdrawn_tokens + stats.guide.extra_rows) as usize;
                return Ok((answers, stats.completion_tokens + beside));
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Prefill { .. } | Event::Evicted { .. } | Event::Finished { .. } => {}
        }
    }
    bail!("the engine was shut down")
}

/// What the second model makes of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Reading {
    /// `None` where the answer has no tokens.
    nll: Option<f64>,
    /// `None` where it has fewer than two sentences.
    coherence: Option<f64>,
}

/// Reads an answer behind its prompt, as plain text: the second model need not know the first one's template.
fn read(judge: Party, question: &str, answer: &str) -> Result<Reading> {
    let tokenizer = &judge.opened.tokenizer;
    let plain = |text: &str| tokenizer.encode(text, Special::Plain, Ends::None);
    let mut tokens = prompt::encode_prompt(tokenizer, "")?;
    let blank = tokens.len();
    tokens.extend(plain(&format!("{question}\n\n"))?);
    // Sentence by sentence, so that each one's tokens are known.
    let (from, mut parts) = (tokens.len(), Vec::new());
    for (i, s) in sentences(answer).into_iter().enumerate() {
        let part = plain(&if i == 0 { s.into() } else { format!(" {s}") })?;
        parts.push((tokens.len(), part.len()));
        tokens.extend(part);
    }
    if tokens.len() == from || from == 0 {
        return Ok(Reading::default());
    }
    let room = judge.handle.info().context;
    if tokens.len() > room {
        bail!(
            "{} has a context of {room} tokens, and prompt and answer are {} of its tokens",
            judge.opened.local.name,
            tokens.len()
        );
    }
    let together = judge.handle.score_with(ScoreRequest::new(tokens.clone(), from))?.log_probs;
    let mut pmi = Vec::new();
    for (at, len) in parts.into_iter().skip(1) {
        let alone: Vec<u32> = tokens[..blank].iter().chain(&tokens[at..at + len]).copied().collect();
        // Nothing precedes the first token of a model without a token to begin with: it counts in neither.
        let skip = usize::from(blank == 0);
        if len <= skip {
            continue;
        }
        let alone = judge.handle.score_with(ScoreRequest::new(alone, blank + skip))?.log_probs;
        let behind = &together[at + skip - from..at + len - from];
        let sum = |p: &[f64]| p.iter().sum::<f64>();
        pmi.push((sum(behind) - sum(&alone)) / (len - skip) as f64);
    }
    let nll = -together.iter().sum::<f64>() / together.len() as f64;
    Ok(Reading { nll: Some(nll), coherence: mean_of(pmi.into_iter()) })
}
