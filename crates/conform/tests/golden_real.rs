//! SmolLM2 and Gemma 3 on the CPU device against what `transformers` computes in float32 from the same GGUF
//! (`goldens/make_real.py`): distributions over a page of text, greedy text, perplexity.
//!
//! The weights are too large to commit: `cargo xtask fixtures` fetches them. Without them these tests fail, because a
//! test that skips itself in silence proves nothing.

use quarrel_conform::compare;
use quarrel_cpu::{Cpu, CpuOptions};
use quarrel_engine::{Engine, EngineConfig, Event, FinishReason, LoadOptions, Loaded, Request, Sampling};
use quarrel_formats::Source;
use quarrel_ir::{Device, Limits, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use quarrel_text::{Ends, Special, Tokenizer};
use std::path::{Path, PathBuf};

const PAGE: usize = 512;
const TOP: usize = 64;

#[derive(serde::Deserialize)]
struct Golden {
    file: String,
    bos: Vec<u32>,
    page_ids: Vec<u32>,
    greedy: Vec<Greedy>,
    perplexity: std::collections::HashMap<String, Perplexity>,
}

#[derive(serde::Deserialize)]
struct Greedy {
    prompt: String,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    stopped: bool,
}

#[derive(serde::Deserialize)]
struct Perplexity {
    perplexity: f64,
    tokens: usize,
}

/// What the reference says of one position.
struct Position {
    ids: Vec<u32>,
    log_probs: Vec<f32>,
    tail: f32,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name)
}

fn golden(name: &str) -> (Golden, Vec<Position>) {
    let text = std::fs::read_to_string(data(&format!("real/{name}.json"))).unwrap();
    let bytes = std::fs::read(data(&format!("real/{name}.topk.bin"))).unwrap();
    let word = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
    let size = TOP * 8 + 4;
    assert_eq!(bytes.len(), PAGE * size);
    let positions = (0..PAGE)
        .map(|p| Position {
            ids: (0..TOP).map(|i| u32::from_le_bytes(word(p * size + i * 4))).collect(),
            log_probs: (TOP..2 * TOP).map(|i| f32::from_le_bytes(word(p * size + i * 4))).collect(),
            tail: f32::from_le_bytes(word(p * size + TOP * 8)),
        })
        .collect();
    (serde_json::from_str(&text).unwrap(), positions)
}

fn model(golden: &Golden) -> Source {
    let dir = std::env::var_os("QUARREL_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fixtures"), PathBuf::from);
    let path = dir.join(&golden.file);
    assert!(path.exists(), "{} is missing: run `cargo xtask fixtures` first", path.display());
    Source::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

fn cpu() -> Box<dyn Device> {
    Box::new(Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap())
}

/// `KL(reference || ours)` with all tokens outside the reference's best 64 as one: a lower bound that is close to the
/// whole, because those hold little mass.
fn kl(reference: &Position, ours: &[f64]) -> f64 {
    let mut rest = 1.0;
    let mut sum = 0.0;
    for (id, p) in reference.ids.iter().zip(&reference.log_probs) {
        let (p, q) = (f64::from(*p), ours[*id as usize]);
        sum += p.exp() * (p - q);
        rest -= q.exp();
    }
    let tail = f64::from(reference.tail);
    if tail > 0.0 { sum + tail * (tail / rest.max(1e-12)).ln() } else { sum }
}

fn page_distributions(name: &str) {
    let (golden, positions) = golden(name);
    let source = model(&golden);
    let spec = quarrel_model::spec(&source).unwrap();
    let program = decoder(&spec, &Options::default());
    let mut device = cpu();
    let weights = quarrel_model::weights::load(&source, &spec, &program, device.as_mut(), |_| {}).unwrap();
    let limits = Limits { rows: 64, outputs: 64, kv_blocks: PAGE / 16 };
    let prepared = device.prepare(program, &weights, limits).unwrap();
    let blocks: Vec<u32> = (0..limits.kv_blocks as u32).collect();
    let outputs: Vec<u32> = (0..64).collect();
    let mut row = vec![0.0; spec.vocab as usize];
    let (mut same, mut total) = (0, 0.0);
    for (c, tokens) in golden.page_ids.chunks(64).enumerate() {
        let seq = SeqStep::new(tokens.len(), c * 64, &blocks);
        device.run(prepared, &StepInputs::new(tokens, &[seq], &outputs)).unwrap();
        for i in 0..tokens.len() {
            device.read(prepared, Readout::Logits(i), &mut row).unwrap();
            let reference = &positions[c * 64 + i];
            same += usize::from(compare::argmax(&row) as u32 == reference.ids[0]);
            total += kl(reference, &compare::log_softmax(&row));
        }
    }
    let (agreement, mean_kl) = (same as f64 / PAGE as f64, total / PAGE as f64);
    println!("{name}: best token equal on {same} of {PAGE} positions, mean KL {mean_kl:.2e}");
    assert!(agreement >= 0.99, "{name}: best token equal on only {same} of {PAGE} positions");
    assert!(mean_kl < 1e-3, "{name}: mean KL {mean_kl}");
}

fn engine(golden: &Golden) -> Loaded {
    let configure = |c: &mut EngineConfig| c.step_tokens = 256;
    let options = LoadOptions { context: Some(4096), ..LoadOptions::default() };
    Engine::load(&model(golden), cpu(), &options, configure, |_| {}).unwrap()
}

fn greedy_text(name: &str, eos: &[u32]) {
    let (golden, _) = golden(name);
    let loaded = engine(&golden);
    for case in &golden.greedy {
        let request = Request {
            sampling: Sampling::greedy(),
            max_tokens: Some(if case.stopped { case.ids.len() + 1 } else { case.ids.len() } as u32),
            stop_ids: eos.to_vec(),
            ..Request::new(case.prompt_ids.clone())
        };
        let (mut ids, mut reason) = (Vec::new(), None);
        for event in loaded.handle.submit(request).unwrap() {
            match event {
                Event::Token { id, .. } => ids.push(id),
                Event::Done { reason: r, .. } => reason = Some(r),
                Event::Failed(e) => panic!("{e}"),
                Event::Prefill { .. } | Event::Finished { .. } => {}
            }
        }
        assert_eq!(ids, case.ids, "{name}: {:?}", case.prompt);
        let want = if case.stopped { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!(reason, Some(want), "{name}: {:?}", case.prompt);
    }
}

/// Sliding windows as defined at the head of `make_real.py`.
fn perplexity(name: &str) {
    const CONTEXT: usize = 512;
    let (golden, _) = golden(name);
    // The ids of the whole text are not in the golden file; the page's are its own text, so the long one is scored
    // through the tokenizer.
    let source = model(&golden);
    let tokenizer = Tokenizer::from_gguf(source.metadata().unwrap()).unwrap();
    let text = std::fs::read_to_string(data("text/long.txt")).unwrap();
    let ids = tokenizer.encode(&text, Special::Plain, Ends::None).unwrap();
    let loaded = engine(&golden);
    let b = golden.bos.len();
    let (mut scored, mut nll) = (if b == 0 { 1 } else { 0 }, 0.0);
    let mut tokens = 0;
    for start in (0..).step_by(CONTEXT / 2) {
        let end = (start + CONTEXT - b).min(ids.len());
        let window: Vec<u32> = golden.bos.iter().chain(&ids[start..end]).copied().collect();
        let log_probs = loaded.handle.score(window, scored - start + b).unwrap();
        nll -= log_probs.iter().sum::<f64>();
        tokens += log_probs.len();
        scored = end;
        if end == ids.len() {
            break;
        }
    }
    let (got, want) = ((nll / tokens as f64).exp(), &golden.perplexity["sliding"]);
    println!("{name}: perplexity {got:.4}, transformers {:.4}", want.perplexity);
    assert_eq!(tokens, want.tokens);
    assert!(
        (got / want.perplexity - 1.0).abs() < 0.005,
        "{name}: perplexity {got} instead of {}",
        want.perplexity
    );
}

#[test]
fn smollm2_distributions_equal_transformers() {
    page_distributions("smollm2-135m-instruct-q4_1");
}

#[test]
fn gemma3_distributions_equal_transformers() {
    page_distributions("gemma-3-270m-q4_k_m");
}

#[test]
fn smollm2_greedy_text_is_pinned() {
    greedy_text("smollm2-135m-instruct-q4_1", &[2]);
}

#[test]
fn gemma3_greedy_text_is_pinned() {
    greedy_text("gemma-3-270m-q4_k_m", &[1, 106]);
}

#[test]
fn smollm2_perplexity_equals_transformers() {
    perplexity("smollm2-135m-instruct-q4_1");
}

#[test]
fn gemma3_perplexity_equals_transformers() {
    perplexity("gemma-3-270m-q4_k_m");
}
