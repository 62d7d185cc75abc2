//! A model that runs: file, tokenizer, template and engine; and one answer from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use quarrel_engine::{
    Beams, ConstraintBox, Event, EvictionStats, FinishReason, Guide, GuideStats, Handle, LogprobsOf, Request,
    RequestStats, Speculate, Trace,
};
use quarrel_runtime::memory::Use;
use quarrel_runtime::{Embedder, EngineOptions, GuideOptions, Sentences, Talk, TextStream, process};
use quarrel_text::Tokenizer;
use quarrel_text::stream_decoder::{Control, Leading};
use serde_json::{Value, json};

pub(crate) use quarrel_runtime::Opened;

use crate::adapter::Lora;
use crate::args::{EngineArgs, EvictArgs, GuessArgs, GuideArgs, ModelArgs};
use crate::interrupt::Answering;
use crate::settings::Settings;
use crate::{models, render};

/// From this loading time on a person is shown that something happens.
const PATIENCE: Duration = Duration::from_millis(300);

/// Who hears what happens while a model is opened and loaded.
pub(crate) const TALK: Talk = Talk { note: |line| render::note(line), detail: |line| render::detail(line) };

/// Opens the model that the flags name, fetched if need be.
pub(crate) fn open(args: &ModelArgs) -> Result<Opened> {
    Opened::new(models::resolve(args)?, TALK)
}

/// Loads the weights, for one conversation at a time.
pub(crate) fn load(opened: &Opened, args: &EngineArgs, lora: Option<&Lora>) -> Result<Running> {
    load_for(opened, args, Use::ONE, lora)
}

/// Loads the weights, and those of a draft model, for one conversation at a time, with so many answers that are made at once.
pub(crate) fn load_to_guess(
    opened: &Opened,
    args: &EngineArgs,
    guess: &GuessArgs,
    guide: &GuideArgs,
    model: &ModelArgs,
    lora: Option<&Lora>,
    width: u32,
) -> Result<Running> {
    let speculate = guess.mode();
    if guess.draft.is_some() && matches!(speculate, Speculate::Lookup | Speculate::Ngram) {
        bail!("--draft guesses with --speculate auto (beside the others) or off (alone)");
    }
    if guide.needs_amateur() && guess.draft.is_none() && guide.exit_layer.is_none() {
        bail!("--contrast is with another model: --draft MODEL, or --exit-layer N for a part of this one");
    }
    let guesses = if speculate == Speculate::Off { 0 } else { guess.draft_max.into() };
    let draft = guess.draft.as_ref().map(|name| open(&model.clone().or_named(Some(name.clone()))));
    // A negative prompt has a sequence of its own beside the answer's, and so have sentences that are scored.
    let each = 1 + usize::from(guide.negative_prompt.is_some()) + usize::from(guide.scores_sentences());
    let batch = each * width as usize;
    // The candidates of a search share all but their last token.
    let batch = batch.max(guide.candidates().unwrap_or(1) as usize);
    // A sentence's tokens are scored all at once.
    let outputs = if guide.scores_sentences() { Use::SCORE.outputs } else { batch };
    let usage = Use { guesses, batch, outputs, spare: width as usize, ..Use::ONE };
    let options = EngineOptions {
        exit_layers: guide.exit_layer,
        exits: guide.exits(),
        embeddings: guide.candidates().is_some(),
        ..args.options()
    };
    let running = load_with(opened, &options, usage, draft.transpose()?.as_ref(), lora)?;
    if running.handle.info().speculates {
        return Ok(Running { speculate, ..running });
    }
    if guess.draft.is_some() && !guide.needs_amateur() {
        bail!(
            "sequences of this model have states, out of which a wrong guess cannot be taken: leave --draft out"
        );
    }
    // The default is no request for guesses; others are refused with the reason.
    let speculate = if guess.speculate.is_none() { Speculate::Auto } else { speculate };
    Ok(Running { speculate, ..running })
}

/// The embedding model that guidance asks for, loaded.
pub(crate) fn asked(guide: &GuideArgs, model: &ModelArgs) -> Result<Option<Embedder>> {
    let Some(name) = guide.embedding_model.as_ref().filter(|_| guide.compares()) else { return Ok(None) };
    embedder(&open(&model.clone().or_named(Some(name.clone())))?, None).map(Some)
}

/// Guidance of the answers to a prompt, with who compares their sentences.
pub(crate) fn compared(
    options: GuideOptions,
    by: Option<&Embedder>,
    opened: &Opened,
    prompt: &str,
) -> GuideOptions {
    let Some(by) = by else { return options };
    let sentences = Sentences::new(by.clone(), opened.tokenizer.clone(), prompt.into());
    GuideOptions { meaning: Some(Arc::new(sentences)), ..options }
}

/// Loads a model that makes embeddings of sentences.
pub(crate) fn embedder(opened: &Opened, threads: Option<u16>) -> Result<Embedder> {
    let options = EngineOptions { embeddings: true, encoder: true, threads, ..EngineOptions::default() };
    // A sentence, the one before it and the prompt.
    let usage = Use { batch: 3, ..Use::ONE };
    let running = opened.load(&options, usage, None, 0, TALK, |_| {})?;
    Embedder::new(opened, &running)
}

/// Loads the weights, with the sizes that flags and memory allow.
pub(crate) fn load_for(
    opened: &Opened,
    args: &EngineArgs,
    usage: Use,
    lora: Option<&Lora>,
) -> Result<Running> {
    load_with(opened, &args.options(), usage, None, lora)
}

fn load_with(
    opened: &Opened,
    options: &EngineOptions,
    usage: Use,
    draft: Option<&Opened>,
    lora: Option<&Lora>,
) -> Result<Running> {
    let extra = lora.map(Lora::bytes).transpose()?.unwrap_or(0);
    let mut bar = LoadBar { total: opened.source.total_bytes(), done: 0, started: Instant::now(), bar: None };
    let draft = draft.map(|d| opened.drafted_by(d)).transpose()?;
    let loaded = opened.load(options, usage, draft, extra, TALK, |bytes| bar.advance(bytes));
    bar.finish();
    let quarrel_runtime::Running { handle, trained, load, .. } = loaded?;
    let adapter = lora.map(|l| l.load(&handle)).transpose()?;
    Ok(Running { handle, trained, adapter, load, speculate: Speculate::Off })
}

/// Shown once loading takes longer than [`PATIENCE`].
struct LoadBar {
    total: u64,
    done: u64,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl LoadBar {
    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.bar.is_none() && self.started.elapsed() > PATIENCE {
            self.bar = Some(render::transfer(Some(self.total), "loading"));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done.min(self.total));
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The engine of a model.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    /// Context that the model was trained for, in tokens.
    pub(crate) trained: usize,
    /// Name of the adapter to answer with.
    pub(crate) adapter: Option<String>,
    pub(crate) load: Duration,
    /// How answers are guessed ahead.
    pub(crate) speculate: Speculate,
}

/// What to answer and how.
pub(crate) struct Ask<'a> {
    pub(crate) prompt: Vec<u32>,
    pub(crate) settings: &'a Settings,
    pub(crate) evict: EvictArgs,
    pub(crate) guide: Option<Box<Guide>>,
    pub(crate) leading: Leading,
    pub(crate) logprobs: Option<u32>,
    pub(crate) logprobs_of: LogprobsOf,
    /// Tell how each token was drawn, with so many candidates.
    pub(crate) explain: Option<u32>,
    /// Answers, and the width of a search for them.
    pub(crate) n: u32,
    pub(crate) beams: Option<Beams>,
    /// What each token must obey.
    pub(crate) constraint: Option<ConstraintBox>,
    /// Ends of the model's are tokens as others.
    pub(crate) ignore_eos: bool,
}

impl<'a> Ask<'a> {
    /// With nothing out of the ordinary.
    pub(crate) fn new(prompt: Vec<u32>, settings: &'a Settings) -> Ask<'a> {
        Ask {
            prompt,
            settings,
            evict: EvictArgs::default(),
            guide: None,
            leading: Leading::Keep,
            logprobs: None,
            logprobs_of: LogprobsOf::default(),
            explain: None,
            n: 1,
            beams: None,
            constraint: None,
            ignore_eos: false,
        }
    }
}

/// What comes while an answer is made.
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Trace(&'a Trace),
}

impl Piece<'_> {
    /// The text, if it is one.
    pub(crate) fn text(&self) -> &str {
        if let Piece::Text(text) = self { text } else { "" }
    }
}

/// An answer that is over.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) end: End,
    /// Tokens taken into the answer, those of a stop string included.
    pub(crate) tokens: usize,
    pub(crate) stats: RequestStats,
    pub(crate) logprobs: Vec<Value>,
}

/// Why an answer is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The model, or a stop string.
    Stop,
    /// --max-tokens.
    Length,
    /// The context is full.
    Full,
    /// It repeated itself without end.
    Loop,
    /// Ctrl-C.
    Interrupted,
}

impl End {
    pub(crate) fn of(reason: FinishReason) -> End {
        match reason {
            FinishReason::Stop => End::Stop,
            FinishReason::Length => End::Length,
            FinishReason::ContextFull => End::Full,
            FinishReason::Repetition => End::Loop,
            FinishReason::Aborted | FinishReason::Deadline => End::Interrupted,
        }
    }

    /// `stop`, `length` or `repetition`.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            End::Length | End::Full => "length",
            End::Loop => "repetition",
            End::Stop | End::Interrupted => "stop",
        }
    }
}

impl Running {
    /// The request of an answer.
    pub(crate) fn request(&self, tokenizer: &Tokenizer, ask: Ask<'_>) -> Result<Request> {
        let (best_of, best_of_by) = ask.settings.best_of();
        Ok(Request {
            sampling: ask.settings.sampling_for(tokenizer)?,
            best_of,
            best_of_by,
            logprobs_of: if ask.logprobs.is_some() { ask.logprobs_of } else { LogprobsOf::Unreported },
            explain: ask.explain,
            max_tokens: ask.settings.max_tokens,
            stop_ids: tokenizer.end_of_generation().to_vec(),
            logprobs: ask.logprobs.map(|n| n as u8), // the flag allows what the engine does
            speculate: self.speculate,
            eviction: ask.evict.policy(),
            kv_tokens: ask.evict.kv_tokens,
            adapter: self.adapter.clone(),
            guide: ask.guide,
            n: ask.n,
            beams: ask.beams,
            constraint: ask.constraint,
            ignore_eos: ask.ignore_eos,
            ..Request::new(ask.prompt)
        })
    }

    /// Makes an answer and gives its text to `show` as it comes.
    pub(crate) fn answer(
        &self,
        tokenizer: &Tokenizer,
        ask: Ask<'_>,
        mut show: impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<Answer> {
        let (leading, stop, wanted) = (ask.leading, ask.settings.stop.clone(), ask.logprobs);
        let request = self.request(tokenizer, ask)?;
        let answering = Answering::begin();
        let stream = self.handle.submit(request).map_err(|e| self.explain(e))?;
        let id = stream.id();
        let mut texts = TextStream::new(leading, Control::Hide, stop);
        let (mut text, mut tokens, mut logprobs, mut end) = (String::new(), 0, Vec::new(), None);
        let give = |piece: String, text: &mut String, show: &mut dyn FnMut(Piece<'_>) -> Result<()>| {
            text.push_str(&piece);
            show(Piece::Text(&piece))
        };
        for event in stream {
            if end.is_none() && answering.stopped() {
                end = Some(End::Interrupted);
                self.handle.cancel(id);
            }
            match event {
                Event::Token { id: token, logprob, top, trace, .. } if end.is_none() => {
                    tokens += 1;
                    if let Some(trace) = trace {
                        show(Piece::Trace(&trace))?;
                    }
                    if wanted.is_some() {
                        logprobs.push(token_logprobs(tokenizer, token, logprob, &top)?);
                    }
                    give(texts.push(tokenizer, token)?, &mut text, &mut show)?;
                    if texts.stopped().is_some() {
                        end = Some(End::Stop);
                        self.handle.cancel(id);
                    }
                }
                Event::Prefill { .. }
                | Event::Token { .. }
                | Event::Finished { .. }
                | Event::Evicted { .. } => {}
                Event::Failed(e) => return Err(self.explain(e)),
                Event::Done { reason, stats } => {
                    give(texts.finish(), &mut text, &mut show)?;
                    let end = end.unwrap_or(End::of(reason));
                    return Ok(Answer { text, end, tokens, stats, logprobs });
                }
            }
        }
        bail!("the engine ended without an answer")
    }

    /// Says what to do about a prompt that is too long, in the words of the flags.
    pub(crate) fn explain(&self, e: quarrel_engine::Error) -> anyhow::Error {
        let quarrel_engine::Error::PromptTooLong { prompt, context } = e else { return e.into() };
        let more = match prompt < self.trained {
            true => format!("or give --ctx {}", (prompt + 512).next_multiple_of(256).min(self.trained)),
            false => format!("for the model was trained for {} (--ctx can force more)", self.trained),
        };
        anyhow::anyhow!(
            "the prompt has {prompt} tokens and the context holds {context}, the answer included; shorten the prompt, {more}"
        )
    }
}

fn token_json(tokenizer: &Tokenizer, id: u32, logprob: Option<f32>) -> Result<Value> {
    let text = String::from_utf8_lossy(tokenizer.token_bytes(id)?);
    Ok(json!({ "id": id, "text": text, "logprob": logprob }))
}

pub(crate) fn token_logprobs(
    tokenizer: &Tokenizer,
    id: u32,
    logprob: Option<f32>,
    top: &[(u32, f32)],
) -> Result<Value> {
    let mut value = token_json(tokenizer, id, logprob)?;
    let top: Result<Vec<Value>> = top.iter().map(|(id, l)| token_json(tokenizer, *id, Some(*l))).collect();
    value["top"] = top?.into();
    Ok(value)
}

impl Answer {
    /// See [`End::reason`].
    pub(crate) fn finish_reason(&self) -> &'static str {
        self.end.reason()
    }

    /// What was dropped from the cache, in one line.
    pub(crate) fn evicted(&self) -> Option<String> {
        evicted(&self.stats.eviction)
    }
}

/// Prompt tokens that were computed, per second.
fn prompt_speed(stats: &RequestStats) -> Option<f64> {
    speed(stats.prompt_tokens.saturating_sub(stats.cached_tokens), stats.prefill)
}

/// Tokens after the first, per second.
fn decode_speed(stats: &RequestStats) -> Option<f64> {
    speed(stats.completion_tokens.saturating_sub(1), stats.decode)
}

/// Durations, speeds and memory for scripts.
pub(crate) fn timings(stats: &RequestStats, load: Duration) -> Value {
    let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    let tenth = |v: Option<f64>| v.map(|v| (v * 10.0).round() / 10.0);
    json!({
        "load_ms": ms(load),
        "first_token_ms": ms(stats.ttft),
        "prompt_ms": ms(stats.prefill),
        "decode_ms": ms(stats.decode),
        "prompt_tokens_per_s": tenth(prompt_speed(stats)),
        "decode_tokens_per_s": tenth(decode_speed(stats)),
        "drafted_tokens": stats.drafted_tokens,
        "accepted_tokens": stats.accepted_tokens,
        "peak_rss_bytes": process::peak_rss_bytes(),
    })
}

/// What guidance cost, in one line, if it did anything.
pub(crate) fn guided(stats: &GuideStats) -> Option<String> {
    let GuideStats { rewinds, retries, withdrawn_tokens, extra_rows, time } = *stats;
    (rewinds + extra_rows > 0).then(|| {
        let tries = if retries > 0 { format!(" ({retries} for another try)") } else { String::new() };
        format!(
            "guidance: {withdrawn_tokens} tokens taken back in {rewinds} rewinds{tries}, {extra_rows} rows \
             beside the answer's; about {:.2} s",
            time.as_secs_f64()
        )
    })
}

/// Speeds and memory in one line for people.
pub(crate) fn figures(stats: &RequestStats, tokens: usize) -> String {
    let per_s = |v: Option<f64>| v.map(|v| format!(" at {v:.1}/s")).unwrap_or_default();
    let cached = match stats.cached_tokens {
        0 => String::new(),
        n => format!(" ({n} cached)"),
    };
    let memory = process::peak_rss_bytes().map(quarrel_hub::human_bytes);
    let guessed = match (stats.accepted_tokens, stats.drafted_tokens) {
        (_, 0) => String::new(),
        (accepted, drafted) => format!(", {accepted} of {drafted} guesses right"),
    };
    format!(
        "prompt {} tokens{cached}{}, first token after {:.2} s; answer {tokens} tokens{}{guessed}{}",
        stats.prompt_tokens,
        per_s(prompt_speed(stats)),
        stats.ttft.as_secs_f64(),
        per_s(decode_speed(stats)),
        memory.map(|m| format!("; memory {m}")).unwrap_or_default()
    )
}

/// What was dropped from the cache, in one line, if anything was.
pub(crate) fn evicted(e: &EvictionStats) -> Option<String> {
    let times = if e.evictions == 1 { "once" } else { "each time, on average" };
    (e.evictions > 0).then(|| {
        format!(
            "{} tokens were dropped from the full cache, in {} evictions; {:.1}% of attention was on them {times}",
            e.evicted_tokens,
            e.evictions,
            100.0 * e.mass_lost
        )
    })
}

/// What guidance cost, for scripts.
pub(crate) fn guided_json(g: &GuideStats, into: &mut Value) {
    if g.rewinds + g.extra_rows > 0 {
        into["guidance"] = json!({
            "rewinds": g.rewinds,
            "retries": g.retries,
            "withdrawn_tokens": g.withdrawn_tokens,
            "extra_rows": g.extra_rows,
            "ms": (g.time.as_secs_f64() * 1e6).round() / 1e3,
        });
    }
}

/// The same for scripts.
pub(crate) fn evicted_json(e: &EvictionStats, into: &mut Value) {
    if e.evictions > 0 {
        into["evictions"] = e.evictions.into();
        into["evicted_tokens"] = e.evicted_tokens.into();
        into["attention_lost"] = e.mass_lost.into();
    }
}

fn speed(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}
