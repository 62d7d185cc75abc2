//! Sequences longer than their budget: what stays, what others notice, what the caller hears. On the reference device.

mod common;

use common::{collect, gated, program, prompt, run, start, start_program};
use quarrel_engine::{
    EngineConfig, Error, Event, Eviction, EvictionStats, FinishReason, Request, Retention, Sampling,
    ScoreRequest,
};
use quarrel_ir::reference::Reference;
use quarrel_model::decoder;

const SNAP: Eviction = Eviction::SnapKv { window: 8, kernel: 5 };
const POLICIES: [Eviction; 3] = [Eviction::SLIDE, Eviction::H2O, SNAP];

fn request(prompt: Vec<u32>, max_tokens: u32, eviction: Eviction, kv_tokens: u32) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        sampling: Sampling { seed: Some(5), ..Sampling::default() },
        ignore_eos: true,
        eviction,
        kv_tokens: Some(kv_tokens),
        ..Request::new(prompt)
    }
}

fn config(context: usize) -> EngineConfig {
    EngineConfig { step_tokens: 32, step_outputs: 20, ..EngineConfig::new(context) }
}

fn score(tokens: &[u32], eviction: Eviction, kv_tokens: Option<u32>) -> ScoreRequest {
    ScoreRequest { eviction, kv_tokens, ..ScoreRequest::new(tokens.to_vec(), 1) }
}

#[test]
fn a_budget_that_is_not_reached_changes_nothing() {
    let handle = start(config(128));
    let plain = run(&handle, Request { kv_tokens: None, ..request(prompt(20, 1), 40, Eviction::Refuse, 0) });
    for eviction in POLICIES {
        let same = run(&handle, request(prompt(20, 1), 40, eviction, 60));
        assert_eq!((&same.tokens, &same.logprobs), (&plain.tokens, &plain.logprobs), "{eviction:?}");
        assert_eq!((same.stats.eviction, same.evictions.len()), (EvictionStats::default(), 0));
    }
    // One token less is one eviction.
    let other = run(&handle, request(prompt(20, 1), 40, Eviction::SLIDE, 58));
    assert_eq!((other.stats.eviction.evictions, &other.tokens[..39]), (1, &plain.tokens[..39]));
    assert_eq!(handle.stats().evictions, 1);
}

#[test]
fn an_answer_of_ten_budgets_stays_in_the_blocks_of_one() {
    for eviction in POLICIES {
        let handle = start(config(64));
        let mut answer = None;
        for event in handle.submit(request(prompt(9, 2), 320, eviction, 32)).unwrap() {
            assert!(handle.stats().blocks_used <= 2, "{eviction:?}");
            if let Event::Done { reason, stats } = event {
                answer = Some((reason, stats));
            }
        }
        let (reason, stats) = answer.unwrap();
        assert_eq!((reason, stats.completion_tokens), (FinishReason::Length, 320));
        // 328 rows; the cache is full after 32 and then after every 4.
        assert_eq!((stats.eviction.evictions, stats.eviction.evicted_tokens), (74, 296));
        assert!(stats.eviction.mass_lost > 0.0 && stats.eviction.mass_lost < 1.0);
        assert_eq!(handle.stats().blocks_used, 0);
    }
}

#[test]
fn a_refusal_keeps_to_the_budget() {
    let handle = start(config(64));
    let answer = run(&handle, request(prompt(9, 2), 320, Eviction::Refuse, 32));
    assert_eq!((answer.reason, answer.tokens.len()), (FinishReason::ContextFull, 23));
    let long = |eviction, kv| handle.submit(request(prompt(40, 2), 5, eviction, kv)).err();
    assert!(matches!(long(Eviction::Refuse, 32), Some(Error::PromptTooLong { prompt: 40, context: 32 })));
    assert!(matches!(long(Eviction::SLIDE, 65), Some(Error::Field { field: "kv_tokens", .. })));
}

#[test]
fn long_prompts_are_shortened_on_their_way_in_or_at_their_end() {
    let handle = start(config(64));
    for (eviction, first) in [(Eviction::SLIDE, 32), (Eviction::H2O, 32), (SNAP, 60)] {
        let (mut at, mut seen) = (Vec::new(), false);
        let length = if eviction == SNAP { 60 } else { 150 };
        for event in handle.submit(request(prompt(length, 3), 10, eviction, 32)).unwrap() {
            match event {
                Event::Evicted { at: computed, .. } => at.push((computed, seen)),
                Event::Token { .. } => seen = true,
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        assert_eq!(at[0], (first, eviction == SNAP), "{eviction:?}");
        let rows = length + 9;
        let want = if eviction == SNAP { 1 + (rows - 60) / 4 } else { 1 + (rows - 1 - 32) / 4 };
        assert_eq!(at.len(), want, "{eviction:?}");
    }
}

#[test]
fn chunks_company_preemption_and_the_prefix_cache_change_no_bytes() {
    let requests: Vec<Request> = POLICIES
        .into_iter()
        .chain([Eviction::Refuse])
        .flat_map(|eviction| {
            let n = if eviction == Eviction::Refuse { 30 } else { 50 };
            // Two with a long beginning in common.
            [1, 2].map(|salt| {
                let tokens = [prompt(n, 7), prompt(3, salt)].concat();
                request(tokens, 60, eviction, if eviction == Eviction::Refuse { 100 } else { 48 })
            })
        })
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|r| run(&start(EngineConfig { prefix_cache: false, ..config(100) }), r.clone()))
        .collect();
    let crowded = EngineConfig { kv_blocks: Some(9), step_tokens: 21, ..config(100) };
    let (handle, gate) = gated(crowded);
    for round in 0..2 {
        gate.close();
        let streams: Vec<_> = requests.iter().map(|r| handle.submit(r.clone()).unwrap()).collect();
        gate.open(); // all of a round are there before its first step
        for (i, (stream, want)) in streams.into_iter().zip(&alone).enumerate() {
            let got = collect(stream).unwrap();
            assert_eq!(
                (got.tokens, got.logprobs),
                (want.tokens.clone(), want.logprobs.clone()),
                "{i}, {round}"
            );
            assert_eq!(
                (got.stats.eviction, got.evictions),
                (want.stats.eviction, want.evictions.clone()),
                "{i}"
            );
        }
    }
    let stats = handle.stats();
    assert!(stats.preemptions > 0 && stats.cached_tokens > 0, "{stats:?}");
    assert_eq!(stats.blocks_used, 0);
}

#[test]
fn blocks_that_others_find_are_not_touched() {
    let handle = start(config(128));
    let plain = || Request { kv_tokens: None, ..request(prompt(48, 4), 8, Eviction::Refuse, 0) };
    let first = run(&handle, Request { retention: Retention::Keep, ..plain() });
    for eviction in POLICIES {
        let evicting = run(&handle, request(prompt(48, 4), 40, eviction, 64));
        assert!(evicting.stats.eviction.evictions > 0);
        assert_eq!(evicting.stats.cached_tokens > 0, eviction != Eviction::H2O, "all rows count for H2O");
    }
    let again = run(&handle, plain());
    assert_eq!((again.tokens, again.logprobs), (first.tokens, first.logprobs));
    assert_eq!(again.stats.cached_tokens, 32);
}

#[test]
fn with_one_layer_what_stays_is_as_if_the_rest_had_never_been() {
    // Keys and values of a first layer depend on their token alone.
    let mut spec = common::spec();
    spec.layers.truncate(1);
    let program = decoder::decoder(&spec, &decoder::Options::default());
    let handle = start_program(Reference::default(), program, config(64));
    let text = prompt(16, 6);
    let answer = run(&handle, request(text.clone(), 2, Eviction::SLIDE, 16));
    assert_eq!(answer.evictions.len(), 1);
    let kept = [&text[..4], &text[6..], &answer.tokens].concat();
    let want = handle.score(kept, 15).unwrap();
    assert!((f64::from(answer.logprobs[1]) - want[0]).abs() < 1e-5, "{:?} {want:?}", answer.logprobs);
}

#[test]
fn texts_are_scored_with_less_than_all_in_the_cache() {
    let handle = start(config(128));
    let text = prompt(120, 8);
    let want = handle.score(text.clone(), 1).unwrap();
    for eviction in POLICIES {
        let same = handle.score_with(score(&text, eviction, Some(120))).unwrap();
        assert_eq!((&same.log_probs, same.eviction), (&want, EvictionStats::default()));
        let less = handle.score_with(score(&text, eviction, Some(48))).unwrap();
        assert_eq!(less.log_probs.len(), 119);
        assert_eq!(less.log_probs[..48], want[..48], "nothing is lost below the budget");
        assert_ne!(less.log_probs[48..], want[48..]);
        assert_eq!(less.eviction.evictions, 1 + (119 - 1 - 48) / 6);
        // Longer than the context.
        let long = prompt(300, 8);
        assert_eq!(handle.score_with(score(&long, eviction, None)).unwrap().log_probs.len(), 299);
    }
    assert!(handle.score_with(score(&text, Eviction::Refuse, Some(48))).is_err());
}

#[test]
fn programs_of_this_model_can_be_shortened() {
    let rotations = quarrel_ir::evict::key_rotations(&program()).unwrap();
    assert!(rotations.len() == 2 && rotations.iter().all(Option::is_some));
}
