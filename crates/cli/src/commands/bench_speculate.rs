//! `quarrel bench --speculate`: what guessing tokens ahead gains, on texts from those that repeat themselves to random ones.

use anyhow::{Result, bail};
use quarrel_bench::speculate::{Gain, pair, table};
use quarrel_engine::{Request, Sampling, Speculate};
use serde_json::json;
use std::time::Instant;

use quarrel_runtime::devices::Place;
use quarrel_runtime::prompt as chat_format;

use crate::args::{Bench, BenchText, DRAFT_MAX, EngineArgs, Guess, GuessArgs, GuideArgs};
use crate::interrupt::Answering;
use crate::render::{self, Out, Parts};
use crate::session::{self, Opened};

const WORDS: [&str; 24] = [
    "apple", "river", "stone", "window", "candle", "garden", "pencil", "mountain", "bottle", "forest",
    "ladder", "ocean", "mirror", "basket", "thunder", "pillow", "engine", "feather", "lantern", "meadow",
    "harbor", "saddle", "velvet", "walnut",
];

pub(crate) fn run(args: &Bench) -> Result<()> {
    let opened = session::open(&args.model)?;
    let engine = EngineArgs {
        ctx: None,
        threads: args.threads,
        memory_budget: None,
        kv: None,
        device: Place::Cpu,
        deterministic: false,
        isa: args.isa,
    };
    let guess = GuessArgs { speculate: Some(Guess::Auto), draft: args.draft.clone(), draft_max: DRAFT_MAX };
    let guide = GuideArgs::default();
    let running = session::load_to_guess(&opened, &engine, &guess, &guide, &args.model, None, 1)?;
    let mut modes = vec![Speculate::Lookup, Speculate::Auto];
    if args.draft.is_some() {
        modes.insert(1, Speculate::Draft);
    }
    use BenchText::{Random, Repeat, Rewrite, Story};
    let texts = args.texts.clone().unwrap_or_else(|| vec![Repeat, Rewrite, Story, Random]);
    let answer = args.decode.unwrap_or(192);
    let rounds = args.repeat as usize;
    let total = (texts.len() * modes.len() * rounds) as u32;
    let bar = Parts::new(total.into(), "starting");
    let (began, mut done) = (Instant::now(), 0);
    let stop = Answering::begin();
    let mut pairs = vec![vec![Vec::new(); modes.len()]; texts.len()];
    for round in 0..rounds {
        for (t, text) in texts.iter().enumerate() {
            for (m, mode) in modes.iter().enumerate() {
                if stop.stopped() {
                    bail!(crate::failure::Interrupted);
                }
                let left = began.elapsed().as_secs_f64() / f64::from(done.max(1)) * f64::from(total - done);
                bar.begin(&format!("{text:?}, {}", mode.name()), done as usize, left);
                done += 1;
                // A request of its own for each pair, so that no cache of guesses knows the answer.
                let request = request(*text, round * modes.len() + m, answer, &opened)?;
                pairs[t][m].push(pair(&running.handle, &request, *mode, round % 2 == 0)?);
            }
        }
    }
    bar.finish();
    let mut gains = Vec::new();
    for (text, pairs) in texts.iter().zip(&pairs) {
        let name = format!("{text:?}").to_lowercase();
        gains.extend(modes.iter().zip(pairs).filter_map(|(mode, pairs)| Gain::of(&name, *mode, pairs)));
    }
    let mut out = Out::new();
    match args.json {
        true => out.json(&json!({ "model": opened.local.name, "speculate": gains })),
        false => {
            render::note(format!("{}, {} threads", opened.local.name, running.handle.info().device.threads));
            Ok(out.text(&table(&gains))?)
        }
    }
}

/// The `n`-th request of a kind of text: all differ.
fn request(text: BenchText, n: usize, max_tokens: u32, opened: &Opened) -> Result<Request> {
    let words: Vec<&str> = (0..WORDS.len()).map(|i| WORDS[(i * (2 * n + 5) + 7 * n) % WORDS.len()]).collect();
    let sampled = |temperature| Sampling { temperature, seed: Some(n as u64 + 1), ..Sampling::default() };
    let (prompt, sampling) = match text {
        BenchText::Repeat => {
            let list: Vec<String> =
                words.iter().enumerate().map(|(i, w)| format!("{}. {w}", i + 1)).collect();
            (format!("Repeat this list exactly as it is:\n\n{}", list.join("\n")), Sampling::greedy())
        }
        BenchText::Rewrite => {
            let (a, b, c) = (words[0], words[1], words[2]);
            let code = format!(
                "def {a}({b}_list, {c}):\n    total = 0\n    for {b} in {b}_list:\n        if {b} > {c}:\n            \
                 total = total + {b} * {c}\n        else:\n            total = total - {b}\n    print(\"{a}\", total)\n    \
                 return total\n\n\ndef main():\n    {b}_list = [1, 2, 3, 4, 5]\n    {c} = 3\n    \
                 result = {a}({b}_list, {c})\n    print(\"result\", result)\n"
            );
            let ask = format!(
                "Write this program again with `total` renamed to `{}`:\n\n```python\n{code}```",
                words[3]
            );
            (ask, Sampling::greedy())
        }
        BenchText::Story => (format!("Write a story about a {} and a {}.", words[0], words[1]), sampled(0.8)),
        BenchText::Random => {
            let size = opened.tokenizer.vocab_size() as u64;
            // Weyl numbers: no two neighbours come again.
            let id = |i: u64| ((i + 1000 * n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % size;
            let ids = (0..128).map(|i| id(i) as u32).collect();
            let request = Request::new(ids);
            // Few tokens at random: pairs of them come again all the time, and nothing follows from it.
            return Ok(Request {
                sampling: Sampling { top_k: 8, ..sampled(100.0) },
                max_tokens: Some(max_tokens),
                ignore_eos: true,
                ..request
            });
        }
    };
    let ids = match &opened.template {
        Some(t) => chat_format::encode_chat(&opened.tokenizer, t, &[chat_format::message("user", &prompt)])?,
        None => chat_format::encode_prompt(&opened.tokenizer, &prompt)?,
    };
    let stop_ids = opened.tokenizer.end_of_generation().to_vec();
    Ok(Request { sampling, max_tokens: Some(max_tokens), stop_ids, ..Request::new(ids) })
}
