//! Embeddings by the engine: of a decoder beside its answers, and of a golden encoder; the same bits in any company.

mod common;

use common::{Hooked, load, program, prompt, run, spec, start_program};
use quarrel_engine::{
    EmbedRequest, Embedding, Engine, EngineConfig, Error, Handle, LoadOptions, Pooling, Request, Sampling,
    ScoreRequest,
};
use quarrel_formats::Source;
use quarrel_ir::reference::Reference;
use quarrel_ir::{Device, Limits, Program, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const POOLINGS: [Pooling; 4] = [Pooling::Mean, Pooling::Cls, Pooling::Last, Pooling::None];

fn with_hidden() -> Program {
    decoder(&spec(), &Options { hidden: true, ..Options::default() })
}

/// The hidden states of a text, from the device itself.
fn states(tokens: &[u32]) -> Vec<Vec<f64>> {
    let (mut device, program) = (Reference::default(), with_hidden());
    let (weights, view) = (load(&mut device, &program, false), program.hidden.unwrap());
    let limits = Limits { rows: tokens.len(), outputs: 1, kv_blocks: tokens.len().div_ceil(16) };
    let prepared = device.prepare(program, &weights, limits).unwrap();
    let blocks: Vec<u32> = (0..limits.kv_blocks as u32).collect();
    device.run(prepared, &StepInputs::new(tokens, &[SeqStep::new(tokens.len(), 0, &blocks)], &[])).unwrap();
    let mut out = vec![0.0; tokens.len() * view.cols as usize];
    device.read(prepared, Readout::View(view), &mut out).unwrap();
    out.chunks_exact(view.cols as usize).map(|r| r.iter().map(|x| f64::from(*x)).collect()).collect()
}

/// What pooling is to give, written down another way.
fn expected(states: &[Vec<f64>], pooling: Pooling) -> Vec<Vec<f32>> {
    let single = |r: &Vec<f64>| r.iter().map(|x| *x as f32).collect();
    match pooling {
        Pooling::Mean => {
            let mean = |c: usize| (states.iter().map(|r| r[c]).sum::<f64>() / states.len() as f64) as f32;
            vec![(0..states[0].len()).map(mean).collect()]
        }
        Pooling::Cls => vec![single(&states[0])],
        Pooling::Last => vec![single(states.last().unwrap())],
        Pooling::None => states.iter().map(single).collect(),
    }
}

fn config(step_tokens: usize, kv_blocks: usize) -> EngineConfig {
    EngineConfig {
        step_tokens,
        kv_blocks: Some(kv_blocks),
        max_running: 4,
        step_outputs: 8,
        max_queue: 64,
        ..EngineConfig::new(96)
    }
}

fn ask(tokens: Vec<u32>, pooling: Pooling) -> EmbedRequest {
    EmbedRequest { pooling, normalize: false, ..EmbedRequest::new(tokens) }
}

fn embed(handle: &Handle, request: EmbedRequest) -> Embedding {
    handle.embed(request).unwrap().wait().unwrap()
}

#[test]
fn a_decoders_hidden_states_are_pooled_in_any_company() {
    let texts: Vec<Vec<u32>> = [1, 2, 17, 40, 90].into_iter().map(|n| prompt(n, n as u32)).collect();
    let alone: Vec<_> = texts.iter().map(|t| states(t)).collect();
    // Whole and cut into small steps, with so few blocks that they push each other out, and beside answers.
    for (step_tokens, kv_blocks) in [(256, 24), (5, 7), (9, 24)] {
        let handle = start_program(Reference::default(), with_hidden(), config(step_tokens, kv_blocks));
        assert_eq!((handle.info().hidden, handle.info().generates), (Some(12), true));
        let answer =
            Request { sampling: Sampling::greedy(), max_tokens: Some(30), ..Request::new(prompt(9, 1)) };
        let plain = run(&common::start(config(step_tokens, 24)), answer.clone()).tokens;
        let stream = handle.submit(answer).unwrap();
        let asked: Vec<_> = POOLINGS
            .into_iter()
            .flat_map(|p| texts.iter().zip(&alone).map(move |(t, states)| (t.clone(), states, p)))
            .map(|(t, states, p)| (handle.embed(ask(t, p)).unwrap(), expected(states, p), p))
            .collect();
        for (embedded, want, pooling) in asked {
            assert_eq!(embedded.wait().unwrap().vectors, want, "{pooling:?}, steps of {step_tokens}");
        }
        assert_eq!(common::collect(stream).unwrap().tokens, plain, "answers do not notice");
        let stats = handle.stats();
        assert_eq!((stats.failed, stats.finished), (0, 1 + 20));
    }
}

#[test]
fn no_head_is_computed_for_an_embedding_and_nothing_stays_in_the_cache() {
    let outputs = Arc::new(Mutex::new(Vec::new()));
    let seen = outputs.clone();
    let device = Hooked::new(|_| Ok(())).stopping(move |step: &StepInputs| {
        seen.lock().unwrap().push(step.outputs.len());
        Ok(())
    });
    let handle = start_program(device, with_hidden(), config(256, 24));
    let first = embed(&handle, ask(prompt(50, 3), Pooling::Mean));
    assert_eq!(*outputs.lock().unwrap(), [0]);
    assert_eq!(embed(&handle, ask(prompt(50, 3), Pooling::Mean)), first);
    assert_eq!(handle.stats().cached_tokens, 0);
    // What an answer left there serves, where only the last token's state is wanted.
    run(&handle, Request { max_tokens: Some(1), ..Request::new(prompt(50, 3)) });
    let last = embed(&handle, ask(prompt(50, 3), Pooling::Last));
    assert_eq!(
        (handle.stats().cached_tokens, last.vectors),
        (48, expected(&states(&prompt(50, 3)), Pooling::Last))
    );
    let unit = embed(&handle, EmbedRequest::new(prompt(50, 3))).vectors;
    assert!((unit[0].iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-6);
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let handle = start_program(Reference::default(), with_hidden(), config(256, 24));
    assert!(matches!(handle.embed(EmbedRequest::new(vec![])), Err(Error::Field { .. })));
    assert!(matches!(handle.embed(EmbedRequest::new(vec![61])), Err(Error::Token { .. })));
    let long = handle.embed(EmbedRequest::new(prompt(97, 1)));
    assert!(matches!(long, Err(Error::PromptTooLong { prompt: 97, context: 96 })));
    let adapter = EmbedRequest { adapter: Some("none".into()), ..EmbedRequest::new(vec![1]) };
    assert!(matches!(handle.embed(adapter), Err(Error::Adapter { .. })));
    let late = EmbedRequest { deadline: Some(Duration::ZERO), ..EmbedRequest::new(vec![1]) };
    assert!(matches!(handle.embed(late).unwrap().wait(), Err(Error::Deadline(_))));
    let without = start_program(Reference::default(), program(), config(256, 24));
    let error = without.embed(EmbedRequest::new(vec![1])).err().unwrap().to_string();
    assert!(error.contains("hidden"), "{error}");
}

#[test]
fn dropping_an_embedding_cancels_it() {
    // The first step waits until the second request has come and gone.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let mut wait = Some(wait);
    let device = Hooked::new(move |_| {
        wait.take().map(|w| w.recv());
        Ok(())
    });
    let handle = start_program(device, with_hidden(), config(5, 24));
    let kept = handle.embed(ask(prompt(20, 1), Pooling::Mean)).unwrap();
    drop(handle.embed(ask(prompt(90, 2), Pooling::Mean)).unwrap());
    go.send(()).unwrap();
    assert_eq!(kept.wait().unwrap().vectors, expected(&states(&prompt(20, 1)), Pooling::Mean));
    embed(&handle, ask(prompt(3, 1), Pooling::Cls));
    assert_eq!((handle.stats().cancelled, handle.stats().finished), (1, 2));
}

#[test]
fn a_golden_encoder_embeds_as_transformers_does_and_answers_nothing() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/embed/bert");
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("golden.json")).unwrap()).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_value(golden["prompts"].clone()).unwrap();
    let bytes = std::fs::read(dir.join("hidden.bin")).unwrap();
    let mut rows = bytes
        .chunks_exact(4 * 36)
        .map(|r| r.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect());
    let want: Vec<Vec<Vec<f64>>> = prompts.iter().map(|p| rows.by_ref().take(p.len()).collect()).collect();
    let source = Source::open(dir.join("model.safetensors")).unwrap();
    let start = |configure: fn(&mut EngineConfig), context| {
        let options = LoadOptions { context, ..LoadOptions::default() };
        Engine::load(&source, Box::new(Reference::default()), &options, configure, |_| {})
    };
    let model = start(|c| (c.max_running, c.step_tokens) = (4, 60), None).unwrap();
    assert_eq!((model.handle.info().generates, model.handle.info().hidden), (false, Some(36)));
    assert_eq!((model.handle.info().context, model.handle.info().vocab), (48, 127));
    for pooling in POOLINGS {
        let asked: Vec<_> =
            prompts.iter().map(|p| model.handle.embed(ask(p.clone(), pooling)).unwrap()).collect();
        for (embedded, states) in asked.into_iter().zip(&want) {
            let (got, want) = (embedded.wait().unwrap().vectors, expected(states, pooling));
            let close = got.iter().flatten().zip(want.iter().flatten()).all(|(a, b)| (a - b).abs() < 2e-5);
            assert!(close && got.len() == want.len(), "{pooling:?}");
        }
    }
    let refused = [
        model.handle.submit(Request::new(vec![2])).err(),
        model.handle.score_with(ScoreRequest::new(vec![2, 3], 1)).err(),
        model.handle.logits(vec![2]).err(),
    ];
    for error in refused {
        assert!(matches!(error, Some(Error::Unsuited { .. })), "{error:?}");
    }
    let error = |e: Result<_, Error>| e.err().unwrap().to_string();
    assert!(error(start(|c| c.step_tokens = 47, None).map(|_| ())).contains("step_tokens"));
    assert!(error(start(|_| {}, Some(49)).map(|_| ())).contains("context"));
}
