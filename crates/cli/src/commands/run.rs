//! `quarrel run`: one prompt, one answer.

use std::path::Path;

use anyhow::{Result, bail};
use quarrel_engine::{Beams, ConstraintBox};
use quarrel_hub::Hub;
use quarrel_text::stream_decoder::Leading;
use quarrel_text::tool_calls::ChatStyle;
use quarrel_text::{Ends, GrammarFactory, Guided, Prompt, Special};
use serde_json::{Value, json};

use quarrel_runtime::prompt as chat_format;

use crate::args::Run;
use crate::failure::{Interrupted, Usage};
use crate::render::{self, Out};
use crate::session::{
    self, Answer, Ask, End, Opened, Piece, Running, evicted_json, figures, guided, guided_json, timings,
};
use crate::settings::Settings;
use crate::several::Several;
use crate::{explain, input, interrupt};

pub(crate) fn run(args: Run) -> Result<()> {
    let prompt = prompt(&args)?;
    interrupt::install()?;
    let opened = session::open(&args.model)?;
    let settings = Settings::new(Settings::one_shot(&args.sample), &args.sample, &opened.params)?;
    let (mut ids, leading) = encode(&args, &opened, &prompt)?;
    let constraint = form(&args, &opened, &mut ids)?;
    if ids.is_empty() {
        bail!("the prompt is empty, and this model has no token to begin with; give it a text");
    }
    let negative = args.guide.negative_prompt.as_ref().map(|text| encode(&args, &opened, text));
    let negative = negative.transpose()?.map(|(ids, _)| ids);
    let embedder = session::asked(&args.guide, &args.model)?;
    let options = session::compared(args.guide.options(negative), embedder.as_ref(), &opened, &prompt);
    let guide = options.guide(&opened.tokenizer)?;
    let lora = args.adapter.lora.as_ref();
    let (n, beams) = (args.n.unwrap_or(1), beams(&args)?);
    let width = beams.map_or(settings.best_of().0.unwrap_or(n), |b| b.width);
    let (guess, guided) = (&args.guess, &args.guide);
    let running = session::load_to_guess(&opened, &args.engine, guess, guided, &args.model, lora, width)?;
    render::detail(format!("sampling {}", Value::from(settings.values())));
    let ask = Ask {
        evict: args.evict,
        guide,
        leading,
        logprobs: args.logprobs,
        logprobs_of: args.logprobs_of.map(Into::into).unwrap_or_default(),
        explain: args.explain,
        n,
        beams,
        constraint,
        ignore_eos: args.ignore_eos,
        ..Ask::new(ids, &settings)
    };
    let mut out = Out::new();
    if args.n.is_some() || beams.is_some() {
        let several = running.answers(&opened.tokenizer, ask)?;
        return finish_several(&args, &running, &several, &mut out);
    }
    let live = !args.json && !args.no_stream && args.explain.is_none();
    let mut explained = Vec::new();
    let answer = running.answer(&opened.tokenizer, ask, |piece| match piece {
        Piece::Text(text) if live => Ok(out.text(text)?),
        Piece::Text(_) => Ok(()),
        Piece::Trace(trace) if args.json => {
            explained.push(quarrel_runtime::trace_json(&opened.tokenizer, trace));
            Ok(())
        }
        Piece::Trace(trace) => Ok(out.text(&explain::view(&opened.tokenizer, trace))?),
    })?;
    finish(&args, &running, &answer, explained, &mut out)
}

/// What forces the answer into the form that the flags ask for. It has no reasoning before it: where the prompt opens that, it closes it.
fn form(args: &Run, opened: &Opened, prompt: &mut Vec<u32>) -> Result<Option<ConstraintBox>> {
    let Some(spec) = args.form.spec()? else { return Ok(None) };
    let tokenizer = &opened.tokenizer;
    let template = opened.template.as_ref().filter(|_| !args.raw);
    if let Some(marks) = template.and_then(|t| ChatStyle::of(t).reasoning)
        && marks.after(&tokenizer.decode(&prompt[prompt.len().saturating_sub(32)..])?) == Prompt::Open
    {
        prompt.extend(tokenizer.encode(
            &format!("{}{}", marks.end, marks.answer),
            Special::Parse,
            Ends::None,
        )?);
    }
    let factory = GrammarFactory::new(tokenizer.clone())?;
    let grammar = factory.compile(&spec)?;
    Ok(Some(quarrel_runtime::obey(Guided::new(&factory, Some(grammar), None)?)))
}

/// The search that the flags ask for.
fn beams(args: &Run) -> Result<Option<Beams>> {
    let Some(width) = args.beams else { return Ok(None) };
    if let Some(n) = args.n.filter(|n| *n > width) {
        return Err(
            Usage(format!("--n {n} of --beams {width}: a search finds no more than its width")).into()
        );
    }
    Ok(Some(Beams { width, length_penalty: args.length_penalty.unwrap_or(1.0) }))
}

/// Several answers, when all are complete.
fn finish_several(args: &Run, running: &Running, several: &Several, out: &mut Out) -> Result<()> {
    if several.interrupted() {
        return Err(Interrupted.into());
    }
    let stats = &several.stats;
    if args.json {
        let mut object = json!({
            "answers": several.json(args.logprobs.is_some()),
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.completion_tokens,
            "timings": timings(stats, running.load),
        });
        guided_json(&stats.guide, &mut object);
        return out.json(&object);
    }
    several.print(out)?;
    guided(&stats.guide).into_iter().for_each(render::note);
    render::note(figures(stats, stats.completion_tokens));
    render::detail(format!("seed {}", stats.seed));
    Ok(())
}

/// What is left to say when the answer is over.
fn finish(
    args: &Run,
    running: &Running,
    answer: &Answer,
    explained: Vec<Value>,
    out: &mut Out,
) -> Result<()> {
    let interrupted = answer.end == End::Interrupted;
    if args.json && !interrupted {
        let mut object = json!({
            "text": answer.text,
            "finish_reason": answer.finish_reason(),
            "prompt_tokens": answer.stats.prompt_tokens,
            "completion_tokens": answer.tokens,
            "timings": timings(&answer.stats, running.load),
        });
        evicted_json(&answer.stats.eviction, &mut object);
        guided_json(&answer.stats.guide, &mut object);
        if args.logprobs.is_some() {
            object["logprobs"] = answer.logprobs.clone().into();
        }
        if args.explain.is_some() {
            object["explain"] = explained.into();
        }
        return out.json(&object);
    }
    if args.no_stream || args.explain.is_some() {
        out.text(&answer.text)?;
    }
    out.end_line()?;
    if answer.end == End::Full {
        render::note(format!(
            "the context of {} tokens is full; --ctx gives more, --evict slide goes on",
            running.handle.info().context
        ));
    }
    if answer.end == End::Loop {
        render::note("the answer repeated itself and was ended (--stop-loops)");
    }
    answer.evicted().into_iter().chain(guided(&answer.stats.guide)).for_each(render::note);
    render::note(figures(&answer.stats, answer.tokens));
    render::detail(format!("seed {}", answer.stats.seed));
    if interrupted { Err(Interrupted.into()) } else { Ok(()) }
}

fn prompt(args: &Run) -> Result<String> {
    let given = match (&args.words[..], &args.prompt) {
        ([], prompt) => prompt.clone(),
        ([one], _) => Some(one.clone()),
        ([first, ..], _) => {
            let model = if is_model(first)? {
                format!("; to choose the model: --model {first}")
            } else {
                String::new()
            };
            return Err(Usage(format!("a prompt is one argument: put it in quotes{model}")).into());
        }
    };
    if let ([word], None, None) = (&args.words[..], &args.model.name(), &args.file)
        && is_model(word)?
    {
        let what = format!(
            "{word:?} is a model's name, and the prompt is missing: quarrel run --model {word} \"...\""
        );
        return Err(Usage(what).into());
    }
    input::prompt(given, args.file.as_deref())
}

/// Whether a word can only be meant as a model: a model file, or a name of the catalog with its tag.
fn is_model(word: &str) -> Result<bool> {
    if Path::new(word).extension().is_some_and(|e| e == "gguf" || e == "safetensors") {
        return Ok(true);
    }
    let Some((name, tag)) = word.split_once(':') else { return Ok(false) };
    let hub = Hub::from_env()?;
    Ok(hub.config().catalog.models.iter().any(|m| m.name == name && m.variant(tag).is_some()))
}

fn encode(args: &Run, opened: &Opened, prompt: &str) -> Result<(Vec<u32>, Leading)> {
    let Some(template) = opened.template.as_ref().filter(|_| !args.raw) else {
        if args.system.is_some() {
            bail!("{} has no chat template, so it knows no system prompt", opened.local.name);
        }
        if !args.raw {
            render::detail("the model has no chat template; it goes on with the prompt as it stands");
        }
        return Ok((chat_format::encode_prompt(&opened.tokenizer, prompt)?, Leading::Keep));
    };
    let system = args.system.as_ref().or(opened.local.system.as_ref());
    let mut messages: Vec<_> = system.map(|s| chat_format::message("system", s)).into_iter().collect();
    messages.push(chat_format::message("user", prompt));
    Ok((chat_format::encode_chat(&opened.tokenizer, template, &messages)?, Leading::Strip))
}
