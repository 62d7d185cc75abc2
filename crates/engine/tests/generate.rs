//! What the engine generates and scores equals a hand-written loop over the device, alone or in company.

mod common;

use common::{Answer, VOCAB, collect, load, program, prompt, run, start};
use proptest::prelude::*;
use quarrel_engine::{Engine, EngineConfig, Error, Event, FinishReason, Request, Sampling};
use quarrel_ir::reference::Reference;
use quarrel_ir::{Device, Limits, Readout, SeqStep, StepInputs};

/// The logits after each of `tokens`, all in one step of a device of its own.
fn all_logits(tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut device = Reference::default();
    let program = program();
    let weights = load(&mut device, &program, false);
    let n = tokens.len();
    let limits = Limits { rows: n, outputs: n, kv_blocks: n.div_ceil(16) };
    let prepared = device.prepare(program, &weights, limits).unwrap();
    // Blocks in an order that is not the natural one.
    let blocks: Vec<u32> = (0..limits.kv_blocks as u32).rev().collect();
    let outputs: Vec<u32> = (0..n as u32).collect();
    let seqs = [SeqStep::new(n, 0, &blocks)];
    device.run(prepared, &StepInputs::new(tokens, &seqs, &outputs)).unwrap();
    (0..n)
        .map(|i| {
            let mut row = vec![0.0; VOCAB as usize];
            device.read(prepared, Readout::Logits(i), &mut row).unwrap();
            row
        })
        .collect()
}

fn log_softmax(row: &[f32], id: u32) -> f64 {
    let z: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
    f64::from(row[id as usize]) - z.ln()
}

/// Greedy tokens with their log-probabilities, recomputing everything for every token.
fn hand_loop(prompt: &[u32], n: usize) -> (Vec<u32>, Vec<f64>) {
    let (mut tokens, mut logprobs) = (prompt.to_vec(), Vec::new());
    for _ in 0..n {
        let row = all_logits(&tokens).pop().unwrap();
        let best = (0..VOCAB).reduce(|a, b| if row[b as usize] > row[a as usize] { b } else { a }).unwrap();
        logprobs.push(log_softmax(&row, best));
        tokens.push(best);
    }
    (tokens.split_off(prompt.len()), logprobs)
}

fn greedy(prompt: Vec<u32>, n: u32) -> Request {
    Request { sampling: Sampling::greedy(), max_tokens: Some(n), ..Request::new(prompt) }
}

/// Small steps, so that prompts of a few dozen tokens come in chunks.
fn small() -> EngineConfig {
    EngineConfig { step_tokens: 7, step_outputs: 5, max_running: 4, ..EngineConfig::new(96) }
}

#[test]
fn greedy_decoding_equals_a_hand_loop() {
    for config in [small(), EngineConfig::new(96)] {
        let handle = start(config);
        for n in [1, 16, 37] {
            let (tokens, logprobs) = hand_loop(&prompt(n, 3), 20);
            let got = run(&handle, greedy(prompt(n, 3), 20));
            assert_eq!(got.tokens, tokens);
            assert_eq!((got.reason, got.stats.prompt_tokens), (FinishReason::Length, n));
            for (g, w) in got.logprobs.iter().zip(&logprobs) {
                assert!((f64::from(*g) - w).abs() < 1e-5);
            }
        }
        assert_eq!(handle.stats().blocks_used, 0);
    }
}

#[test]
fn logits_and_scores_equal_a_hand_loop() {
    let handle = start(small());
    let tokens = prompt(50, 9);
    let rows = all_logits(&tokens);
    assert_eq!(handle.logits(tokens.clone()).unwrap(), rows[49]);
    for from in [1, 17, 33, 49] {
        let got = handle.score(tokens.clone(), from).unwrap();
        let want: Vec<f64> = (from..50).map(|i| log_softmax(&rows[i - 1], tokens[i])).collect();
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() < 1e-9, "{g} {w}");
        }
    }
    // The second run found its prefix in the cache, and yet computed every row that it needed.
    assert!(handle.stats().cached_tokens >= 16 + 32 + 48);
    assert!(matches!(handle.score(tokens.clone(), 0), Err(Error::Field { field: "from", .. })));
    assert!(matches!(handle.score(tokens, 50), Err(Error::Field { field: "from", .. })));
    assert!(matches!(handle.logits(prompt(97, 1)), Err(Error::PromptTooLong { prompt: 97, context: 96 })));
}

#[test]
fn a_prefix_from_the_cache_changes_nothing() {
    let cached = start(small());
    let plain = start(EngineConfig { prefix_cache: false, ..small() });
    let request =
        |tail: u32| Request { logprobs: Some(3), ..greedy([prompt(40, 5), vec![tail]].concat(), 12) };
    let first = run(&cached, request(1));
    assert_eq!(first.stats.cached_tokens, 0);
    for tail in [1, 2] {
        let hit = run(&cached, request(tail));
        let miss = run(&plain, request(tail));
        assert_eq!((hit.stats.cached_tokens, miss.stats.cached_tokens), (32, 0));
        assert_eq!((&hit.tokens, &hit.logprobs), (&miss.tokens, &miss.logprobs));
    }
    // A whole prompt that is cached still has its last token computed.
    let aligned = run(&cached, greedy(prompt(32, 5), 4));
    assert_eq!((aligned.stats.cached_tokens, aligned.tokens), (16, hand_loop(&prompt(32, 5), 4).0));
    // What was generated is cached too: prompt and answer as the next turn's prompt.
    let turn = [prompt(40, 5), vec![1], first.tokens].concat();
    assert_eq!(run(&cached, greedy(turn, 2)).stats.cached_tokens, 48);
}

#[test]
fn an_answer_ends_for_the_right_reason() {
    let handle = start(small());
    let free = run(&handle, greedy(prompt(10, 2), 30));
    let end = free.tokens[7];
    let first = free.tokens.iter().position(|t| *t == end).unwrap();
    let stop = Request { stop_ids: vec![VOCAB - 1, end], ..greedy(prompt(10, 2), 30) };
    let stopped = run(&handle, stop.clone());
    assert_eq!((stopped.reason, &stopped.tokens[..]), (FinishReason::Stop, &free.tokens[..first]));
    let ignored = run(&handle, Request { ignore_eos: true, ..stop });
    assert_eq!((ignored.reason, &ignored.tokens), (FinishReason::Length, &free.tokens));
    let full = run(&handle, Request { max_tokens: None, ..greedy(prompt(80, 2), 1) });
    assert_eq!((full.reason, full.tokens.len()), (FinishReason::ContextFull, 16));
    let e = handle.submit(greedy(prompt(96, 2), 1)).err().unwrap().to_string();
    assert!(e.contains("96 tokens") && e.contains("shorten"), "{e}");
}

#[test]
fn a_seed_repeats_an_answer_and_its_absence_is_reported() {
    let handle = start(small());
    let request = |seed| Request {
        sampling: Sampling { seed, ..Sampling::quality() },
        max_tokens: Some(30),
        ..Request::new(prompt(9, 4))
    };
    let drawn = run(&handle, request(None));
    let again = run(&handle, request(Some(drawn.stats.seed)));
    assert_eq!((drawn.tokens, drawn.logprobs), (again.tokens, again.logprobs));
    let plain = |seed| Request { sampling: Sampling { seed, ..Sampling::default() }, ..request(None) };
    assert_ne!(run(&handle, plain(Some(1))).tokens, run(&handle, plain(Some(2))).tokens);
}

#[test]
fn prefill_reports_progress_and_logprobs_come_sorted() {
    let handle = start(small());
    let request = Request { logprobs: Some(4), ..greedy(prompt(20, 8), 2) };
    let events: Vec<Event> = handle.submit(request).unwrap().collect();
    let done: Vec<(usize, usize)> = events
        .iter()
        .filter_map(|e| if let Event::Prefill { done, total } = e { Some((*done, *total)) } else { None })
        .collect();
    assert_eq!(done, [(7, 20), (14, 20), (20, 20)]);
    for e in &events {
        if let Event::Token { id, logprob, top, .. } = e {
            assert_eq!((top.len(), top[0]), (4, (*id, logprob.unwrap())));
            assert!(top.windows(2).all(|w| w[0].1 >= w[1].1));
        }
    }
}

#[test]
fn logits_that_are_no_numbers_fail_the_request_with_their_count() {
    let mut device = Reference::default();
    let program = program();
    let weights = load(&mut device, &program, true);
    let handle = Engine::start(Box::new(device), program, &weights, small()).unwrap();
    let error = collect(handle.submit(greedy(prompt(5, 1), 4)).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Logits { step: 5, nan: 1, vocab: 61, .. }), "{error}");
    assert!(matches!(handle.score(prompt(5, 1), 1), Err(Error::Logits { step: 1, nan: 1, .. })));
    assert_eq!(handle.stats().blocks_used, 0);
}

#[derive(Debug, Clone)]
struct Arrival {
    request: Request,
    /// Events to read from the oldest stream before this request is submitted.
    wait: usize,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let one = (
        1usize..50,
        0u32..3,
        1u32..24,
        prop_oneof![Just(0.0f32), 0.5f32..1.5],
        any::<u64>(),
        1.0f32..1.4,
        0usize..12,
    );
    let one = one.prop_map(|(n, salt, max_tokens, temperature, seed, repetition_penalty, wait)| Arrival {
        request: Request {
            sampling: Sampling { temperature, seed: Some(seed), repetition_penalty, ..Sampling::default() },
            max_tokens: Some(max_tokens),
            ..Request::new(prompt(n, salt))
        },
        wait,
    });
    prop::collection::vec(one, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever else runs, whatever is cached and whoever is preempted: the same tokens and the same bits of log-probability.
    #[test]
    fn requests_in_company_equal_requests_alone(arrivals in arrivals(), blocks in 6usize..16, step in 4usize..20) {
        let alone = start(EngineConfig { prefix_cache: false, ..EngineConfig::new(96) });
        let config = EngineConfig {
            kv_blocks: Some(blocks), step_tokens: step, step_outputs: 3, max_running: 3, ..EngineConfig::new(96)
        };
        let company = start(config);
        let mut streams: Vec<quarrel_engine::Stream> = Vec::new();
        let mut read: Vec<Vec<Event>> = Vec::new();
        for a in &arrivals {
            if let Some(oldest) = streams.first_mut() {
                read[0].extend(Iterator::by_ref(oldest).take(a.wait));
            }
            streams.push(company.submit(a.request.clone()).unwrap());
            read.push(Vec::new());
        }
        // Scoring among them.
        let scores = company.score(prompt(40, 1), 3).unwrap();
        prop_assert_eq!(scores, alone.score(prompt(40, 1), 3).unwrap());
        for ((a, stream), mut events) in arrivals.iter().zip(streams).zip(read) {
            events.extend(stream);
            let want: Answer = run(&alone, a.request.clone());
            let got: Vec<(u32, f32)> = events
                .iter()
                .filter_map(|e| if let Event::Token { id, logprob, .. } = e { Some((*id, logprob.unwrap())) } else { None })
                .collect();
            let want: Vec<(u32, f32)> = want.tokens.into_iter().zip(want.logprobs).collect();
            prop_assert_eq!(got, want);
            let length = Event::Done { reason: FinishReason::Length, stats: Default::default() };
            prop_assert_eq!(
                events.last().map(std::mem::discriminant), Some(std::mem::discriminant(&length)), "{:?}", events.last()
            );
        }
        prop_assert_eq!(company.stats().blocks_used, 0);
    }
}
