//! `quarrel eval`: what a model says, measured.

use anyhow::{Context, Result, bail};
use quarrel_bench::svg::file_name;
use quarrel_engine::Handle;
use quarrel_eval::study::{self, Party, Plan};
use quarrel_eval::{Method, PROMPTS, report};
use quarrel_runtime::memory::Use;
use quarrel_runtime::{EngineOptions, Exits, Opened};
use serde_json::json;

use crate::args::{Eval, EvalCommand, EvalQuality};
use crate::failure::{Interrupted, Usage};
use crate::render::{self, Out};
use crate::session::{self, TALK};
use crate::{input, interrupt};

/// Tokens of a prompt with its template, at most, and of an answer in the second model's tokens for each of the model's.
const PROMPT_MAX: u32 = 512;
const JUDGE_TOKENS: u32 = 3;

pub(crate) fn run(args: Eval) -> Result<()> {
    match args.command {
        EvalCommand::Quality(args) => quality(*args),
    }
}

fn quality(args: EvalQuality) -> Result<()> {
    let methods = methods(&args.methods)?;
    let prompts = match &args.prompts {
        Some(path) => input::text_file(path)?,
        None => PROMPTS.into(),
    };
    let prompts: Vec<String> =
        prompts.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if prompts.is_empty() {
        bail!("there are no prompts: a line of the file is one");
    }
    let plan = Plan { prompts, samples: args.samples, tokens: args.max_tokens, seed: args.seed };
    interrupt::install()?;
    let model = session::open(&args.model)?;
    let other = |name: &String| session::open(&args.model.clone().or_named(Some(name.clone())));
    let judge = other(&args.judge)?;
    let embedder = args.embedding_model.as_ref().map(other).transpose()?;
    let embedder = embedder.as_ref().map(|opened| session::embedder(opened, args.threads)).transpose()?;
    if let (None, Some(m)) = (&embedder, methods.iter().find(|m| m.needs_embedder())) {
        let what =
            format!("method {:?} compares sentences: give --embedding-model, or other --methods", m.name);
        return Err(Usage(what).into());
    }
    // Beams and searches hold four sequences for each answer, and sentences are scored beside them.
    let batch = 5 * args.samples as usize;
    let usage = Use { batch, outputs: batch.max(Use::SCORE.outputs), ..Use::ONE };
    let context = PROMPT_MAX + args.max_tokens;
    let half = (quarrel_model::spec(&model.source)?.layers.len() as u32 / 2).max(1);
    let options = EngineOptions { threads: args.threads, ..EngineOptions::default() };
    let usual = EngineOptions { embeddings: true, exit_layers: Some(half), ..options.clone() };
    let usual = engine(&model, &usual, context, usage)?;
    let reader = engine(&judge, &options, PROMPT_MAX + JUDGE_TOKENS * args.max_tokens, Use::SCORE)?;
    // One with exits is slower, for all.
    let exits = EngineOptions { exits: Some(Exits::High), ..options };
    let exits = match methods.iter().any(|m| m.needs_exits()) {
        true => Some(engine(&model, &exits, context, usage)?),
        false => None,
    };
    let reader = Party { opened: &judge, handle: &reader, embedder: None };
    let bar = render::steps((methods.len() * plan.prompts.len()) as u64, "methods x prompts");
    let mut outcomes = Vec::with_capacity(methods.len());
    for method in methods {
        if interrupt::stopped() {
            bar.finish_and_clear();
            return Err(Interrupted.into());
        }
        let handle = exits.as_ref().filter(|_| method.needs_exits()).unwrap_or(&usual);
        let speaker = Party { opened: &model, handle, embedder: embedder.as_ref() };
        outcomes.push(study::run(speaker, reader, &plan, method, || bar.inc(1))?);
    }
    bar.finish_and_clear();
    let (name, by) = (&model.local.name, &judge.local.name);
    if let Some(path) = &args.plot {
        let svg = report::svg(&format!("{}, read by {}", file_name(name), file_name(by)), &outcomes);
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
        render::note(format!("the picture is in {}", path.display()));
    }
    let mut out = Out::new();
    if args.json {
        return out.json(&json!({
            "model": name,
            "judge": by,
            "prompts": plan.prompts.len(),
            "samples": plan.samples,
            "max_tokens": plan.tokens,
            "seed": plan.seed,
            "methods": outcomes,
        }));
    }
    out.text(&format!(
        "{name}, read by {by}: {} prompts, {} answers to each of at most {} tokens, seed {}\n\n{}",
        plan.prompts.len(),
        plan.samples,
        plan.tokens,
        plan.seed,
        report::table(&outcomes)
    ))?;
    Ok(())
}

fn methods(names: &[String]) -> Result<Vec<&'static Method>> {
    if names.is_empty() {
        return Ok(Method::ALL.iter().collect());
    }
    let find = |name: &String| {
        Method::find(name.trim()).ok_or_else(|| {
            let all: Vec<&str> = Method::ALL.iter().map(|m| m.name).collect();
            Usage(format!("no method is called {name:?}; there are {}", all.join(", "))).into()
        })
    };
    names.iter().map(find).collect()
}

fn engine(opened: &Opened, options: &EngineOptions, context: u32, usage: Use) -> Result<Handle> {
    let trained = quarrel_model::spec(&opened.source)?.context;
    let options = EngineOptions { ctx: Some(context.min(trained)), ..options.clone() };
    Ok(opened.load(&options, usage, None, 0, TALK, |_| {})?.handle)
}
