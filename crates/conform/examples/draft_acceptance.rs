//! How often a draft model's guess comes true when both draw with the same random number, against the most that any rule
//! that keeps the distribution could accept, 1 - TV: `draft_acceptance MODEL.gguf DRAFT.gguf [TEMPERATURE]`.

use quarrel_cpu::{Cpu, CpuOptions};
use quarrel_engine::{
    DraftConfig, DraftModel, Engine, EngineConfig, Event, Handle, LoadOptions, Request, Sampling, Speculate,
};
use quarrel_formats::Source;
use quarrel_text::{Ends, Special, Tokenizer};
use std::path::Path;

const PROMPTS: [&str; 6] = [
    "The capital of France is a city where",
    "Once upon a time, in a small village by the sea,",
    "To make bread you need flour, water, salt and",
    "The second law of thermodynamics says that",
    "Dear Sir or Madam, I am writing to you because",
    "def fibonacci(n):\n    ",
];
const TOKENS: u32 = 160;

fn engine(source: &Source, draft: Option<DraftModel>) -> Handle {
    let cpu = || Box::new(Cpu::new(CpuOptions::default()).expect("a CPU"));
    let options = LoadOptions { context: Some(512), ..LoadOptions::default() };
    let configure = |c: &mut EngineConfig| (c.guesses, c.row_cost_permille) = (1, Some(0));
    Engine::load_with_draft(source, cpu(), &options, draft, configure, |_| {}).expect("a model").handle
}

/// The probabilities that a row of logits stands for.
fn softmax(row: &[f32], temperature: f64) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = row.iter().map(|l| (f64::from(l - max) / temperature).exp()).collect();
    let z: f64 = e.iter().sum();
    e.into_iter().map(|e| e / z).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, draft, rest @ ..] = &args[..] else { panic!("MODEL.gguf DRAFT.gguf [TEMPERATURE]") };
    let temperature: f32 = rest.first().map_or(0.8, |t| t.parse().expect("a temperature"));
    let open = |path: &String| Source::open(Path::new(path)).expect("a model file");
    let (model, draft) = (open(model), open(draft));
    let tokenizer = Tokenizer::from_gguf(model.metadata().expect("a GGUF file")).expect("a tokenizer");
    let drafting = DraftModel::load(
        &draft,
        Box::new(Cpu::new(CpuOptions::default()).expect("a CPU")),
        DraftConfig::new(512),
    );
    let guessed = engine(&model, Some(drafting.expect("a draft model")));
    let (p, q) = (engine(&model, None), engine(&draft, None));
    let (mut drafted, mut accepted, mut overlap, mut rows) = (0, 0, 0.0, 0);
    for (i, prompt) in PROMPTS.iter().enumerate() {
        let ids = tokenizer.encode(prompt, Special::Plain, Ends::Model).expect("a prompt");
        let request = Request {
            sampling: Sampling { temperature, seed: Some(i as u64), ..Sampling::default() },
            max_tokens: Some(TOKENS),
            speculate: Speculate::Draft,
            ..Request::new(ids.clone())
        };
        let mut all = ids.clone();
        for event in guessed.submit(request).expect("a request") {
            match event {
                Event::Token { id, .. } => all.push(id),
                Event::Done { stats, .. } => {
                    drafted += stats.drafted_tokens;
                    accepted += stats.accepted_tokens;
                }
                _ => {}
            }
        }
        for n in (ids.len()..all.len()).step_by(4) {
            let row = |h: &Handle| softmax(&h.logits(all[..n].to_vec()).expect("logits"), temperature.into());
            overlap += row(&p).iter().zip(row(&q)).map(|(p, q)| p.min(q)).sum::<f64>();
            rows += 1;
        }
    }
    println!(
        "temperature {temperature}: {accepted} of {drafted} guesses came true ({:.1}%); 1 - TV is {:.1}% over {rows} rows",
        100.0 * accepted as f64 / drafted as f64,
        100.0 * overlap / f64::from(rows)
    );
}
