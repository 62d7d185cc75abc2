//! Models whose sequences have states: what is refused, and what is found again by the copies that blocks own.

mod common;

use common::{Answer, collect, gated_program, hybrid, prompt, run, start_program};
use quarrel_engine::{EngineConfig, Handle, Request, Retention, Sampling, Speculate};
use quarrel_ir::reference::Reference;

#[test]
fn guesses_that_are_asked_for_are_refused_and_others_are_not_made() {
    let engine = start_program(Reference::default(), hybrid(), EngineConfig::new(128));
    assert!(!engine.info().speculates);
    let sampling = Sampling { seed: Some(5), ..Sampling::default() };
    let ask = |speculate| Request {
        speculate,
        sampling: sampling.clone(),
        max_tokens: Some(12),
        ..Request::new(prompt(20, 1))
    };
    let plain = run(&engine, ask(Speculate::Off));
    let auto = run(&engine, ask(Speculate::Auto));
    assert_eq!((auto.tokens, auto.stats.drafted_tokens), (plain.tokens, 0));
    for (speculate, name) in
        [(Speculate::Lookup, "lookup"), (Speculate::Ngram, "ngram"), (Speculate::Draft, "draft")]
    {
        let error = engine.submit(ask(speculate)).err().unwrap().to_string();
        assert!(error.starts_with(&format!("speculate is {name}; it must be off or auto: ")), "{error}");
        assert!(error.contains("states"), "{error}");
    }
    let free = common::start(EngineConfig::new(128));
    assert!(free.info().speculates && free.submit(ask(Speculate::Lookup)).is_ok());
}

fn start(config: EngineConfig) -> Handle {
    start_program(Reference::default(), hybrid(), config)
}

fn ask(prompt: Vec<u32>, max_tokens: u32) -> Request {
    let sampling = Sampling { seed: Some(9), ..Sampling::default() };
    Request { sampling, max_tokens: Some(max_tokens), logprobs: Some(2), ..Request::new(prompt) }
}

/// Bytes of a sequence's states.
fn bytes() -> usize {
    4 * hybrid().states.iter().map(|n| *n as usize).sum::<usize>()
}

fn same(a: &Answer, b: &Answer) {
    let bits = |a: &Answer| a.logprobs.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
    assert_eq!((&a.tokens, bits(a)), (&b.tokens, bits(b)));
}

/// What an engine says that shares nothing.
fn alone(request: Request) -> Answer {
    run(&start(EngineConfig { prefix_cache: false, ..EngineConfig::new(256) }), request)
}

#[test]
fn a_second_turn_costs_its_new_tokens_alone() {
    // Copies for all blocks, for a few, and for the end of the prompt and the answer alone.
    for copies in [100, 5, 2] {
        let engine = start(EngineConfig { snapshot_bytes: copies * bytes(), ..EngineConfig::new(256) });
        let mut text = prompt(70, 1);
        let mut rows = 0;
        for (turn, cached) in [0, 96, 128].into_iter().enumerate() {
            let request = ask(text.clone(), 30);
            let answer = run(&engine, request.clone());
            same(&answer, &alone(request));
            // The last token of an answer is not computed.
            let computed = (text.len() + 29 - cached) as u64;
            let stats = engine.stats();
            assert_eq!(
                (answer.stats.cached_tokens, stats.rows - rows),
                (cached, computed),
                "{copies}, turn {turn}"
            );
            rows = stats.rows;
            text.extend(answer.tokens);
            text.extend(prompt(5, turn as u32));
        }
        let stats = engine.stats();
        assert!(stats.snapshots <= copies && stats.snapshot_bytes == stats.snapshots * bytes(), "{stats:?}");
        assert_eq!((stats.looked_up_tokens, stats.cached_tokens), (70 + 105 + 140, 96 + 128));
    }
}

#[test]
fn copies_are_bounded_and_the_oldest_make_room() {
    let sizes = EngineConfig { kv_blocks: Some(64), ..EngineConfig::new(128) };
    let engine = start(EngineConfig { snapshot_bytes: 3 * bytes() + 1, ..sizes });
    for salt in 0..6 {
        run(&engine, ask(prompt(40, salt), 3));
    }
    let stats = engine.stats();
    assert_eq!((stats.snapshots, stats.snapshot_bytes), (3, 3 * bytes()));
    assert!(stats.snapshots_evicted > 0 && stats.snapshots_made == 3 + stats.snapshots_evicted, "{stats:?}");
    let cached = |salt| run(&engine, ask(prompt(40, salt), 3)).stats.cached_tokens;
    assert_eq!((cached(5), cached(0)), (32, 0));
    // Without room, without a cache and without the wish there are none.
    let discard = |r| Request { retention: Retention::Discard, ..r };
    for (config, discards) in [
        (EngineConfig { snapshot_bytes: bytes() - 1, ..EngineConfig::new(128) }, false),
        (EngineConfig { prefix_cache: false, ..EngineConfig::new(128) }, false),
        (EngineConfig::new(128), true),
    ] {
        let engine = start(config);
        for _ in 0..2 {
            let request = ask(prompt(40, 1), 3);
            run(&engine, if discards { discard(request) } else { request });
        }
        let stats = engine.stats();
        assert_eq!((stats.snapshots_made, stats.cached_tokens), (0, 0));
    }
}

#[test]
fn one_that_comes_while_another_answers_begins_where_its_blocks_have_copies() {
    let (engine, gate) = gated_program(hybrid(), EngineConfig::new(256));
    let first = ask(prompt(48, 2), 40);
    let stream = engine.submit(first.clone()).unwrap();
    while engine.stats().sampled_tokens < 3 {
        gate.allow(1);
        gate.wait();
    }
    let second = ask([prompt(48, 2), prompt(10, 7)].concat(), 20);
    let other = engine.submit(second.clone()).unwrap();
    gate.open();
    let (a, b) = (collect(stream).unwrap(), collect(other).unwrap());
    assert_eq!((a.stats.cached_tokens, b.stats.cached_tokens), (0, 48));
    same(&a, &alone(first));
    same(&b, &alone(second));
}

#[test]
fn one_that_was_sent_back_goes_on_from_its_last_copy() {
    // Each fits alone, and both do not.
    let (engine, gate) =
        gated_program(hybrid(), EngineConfig { kv_blocks: Some(8), ..EngineConfig::new(128) });
    let requests = [ask(prompt(40, 3), 60), ask(prompt(40, 4), 60)];
    let streams = requests.clone().map(|r| engine.submit(r).unwrap());
    gate.open();
    for (stream, request) in streams.into_iter().zip(requests) {
        same(&collect(stream).unwrap(), &alone(request));
    }
    let stats = engine.stats();
    assert!(stats.preemptions > 0 && stats.cached_tokens == 0, "{stats:?}");
    // What was given up was not all computed again: whole blocks came back.
    let again = stats.rows - 2 * (40 + 59);
    assert!(
        again < stats.preempted_tokens && (stats.preempted_tokens - again).is_multiple_of(16),
        "{stats:?}"
    );
}
