//! Speculation changes the speed of answers and nothing else: whatever guesses, tokens and log-probabilities are those of plain
//! decoding, greedy and sampled, with penalties, alone and among others; and no block is lost.

mod common;

use common::{Answer, Gate, Hooked, VOCAB, collect, load_salted, program, prompt, start};
use quarrel_engine::{
    BriefBias, DraftConfig, DraftModel, Engine, EngineConfig, Error, Handle, Request, Sampling, Speculate,
    Stage,
};
use quarrel_ir::{Device, reference::Reference};
use std::time::{Duration, Instant};

/// Every guess is taken, as if rows cost nothing.
fn eager(config: EngineConfig) -> EngineConfig {
    EngineConfig { row_cost_permille: Some(0), ..config }
}

/// A draft model: with salt 0 the weights of the model itself.
fn draft(salt: u32, config: DraftConfig) -> DraftModel {
    let (mut device, program) = (Reference::default(), program());
    let weights = load_salted(&mut device, &program, salt);
    DraftModel::new(Box::new(device), program, &weights, config).unwrap()
}

fn with_draft(config: EngineConfig, draft: DraftModel) -> Handle {
    drafted_on(Reference::default(), config, draft)
}

fn drafted_on(mut device: impl Device + 'static, config: EngineConfig, draft: DraftModel) -> Handle {
    let program = program();
    let weights = load_salted(&mut device, &program, 0);
    Engine::start_with_draft(Box::new(device), program, &weights, config, Some(draft)).unwrap()
}

/// Few tokens are allowed, so that even a model of random weights repeats itself.
fn samplings() -> Vec<Sampling> {
    let logit_bias = (5..VOCAB).map(|t| (t, f32::NEG_INFINITY)).collect();
    let sampled = Sampling { temperature: 0.8, seed: Some(5), logit_bias, ..Sampling::default() };
    vec![
        Sampling { temperature: 0.0, ..sampled.clone() },
        sampled.clone(),
        Sampling { top_p: 0.8, top_k: 20, temperature: 1.3, ..sampled.clone() },
        Sampling {
            repetition_penalty: 1.2,
            frequency_penalty: 0.4,
            presence_penalty: -0.5,
            penalty_window: Some(9),
            ..sampled.clone()
        },
        Sampling {
            dry_multiplier: 0.3,
            dry_allowed_length: 3,
            dry_breakers: [2].into(),
            frequency_penalty: 0.1,
            penalty_half_life: Some(8),
            typical_p: 0.95,
            xtc_probability: 0.2,
            ..sampled.clone()
        },
        Sampling { mirostat: 2, mirostat_tau: 2.0, mirostat_eta: 0.3, ..sampled.clone() },
        Sampling { mirostat: 1, mirostat_tau: 1.5, edt_theta: 0.2, ..sampled.clone() },
        Sampling { adaptive: 0.6, top_n_sigma: 1.5, ..sampled.clone() },
        Sampling {
            brief_bias: vec![BriefBias { id: 1, bias: 3.0, tokens: 9 }],
            samplers: Some(Stage::list(["logit_bias", "top_p", "xtc", "temperature"]).unwrap()),
            top_p: 0.9,
            xtc_probability: 0.3,
            ..sampled
        },
    ]
}

/// A text that goes over itself, so that there is something to look up.
fn repetitive(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i % 7 * (salt + 3) + salt) % 5).collect()
}

fn request(prompt: Vec<u32>, sampling: &Sampling, speculate: Speculate) -> Request {
    let (sampling, max_tokens) = (sampling.clone(), Some(70));
    Request { sampling, max_tokens, logprobs: Some(3), speculate, ..Request::new(prompt) }
}

fn is_same(got: &Answer, want: &Answer) {
    assert_eq!(got.tokens, want.tokens);
    assert_eq!(got.logprobs, want.logprobs);
    assert_eq!(got.reason, want.reason);
}

/// Waits for the engine to be idle, where a debug build checks all its books.
fn settle(handle: &Handle) {
    let limit = Instant::now() + Duration::from_secs(20);
    while handle.stats().blocks_used > 0 {
        assert!(Instant::now() < limit, "blocks are still in use: {:?}", handle.stats());
        std::thread::yield_now();
    }
}

#[test]
fn every_kind_of_guess_leaves_the_answer_as_it_is() {
    let config = || eager(EngineConfig::new(160));
    let drafts = [
        (Speculate::Lookup, None),
        (Speculate::Ngram, None),
        (Speculate::Auto, None),
        (Speculate::Draft, Some(0)),
        (Speculate::Draft, Some(3)),
        (Speculate::Auto, Some(0)),
    ];
    let plain = start(config());
    for (mode, salt) in drafts {
        let handle = match salt {
            Some(salt) => with_draft(config(), draft(salt, DraftConfig::new(160))),
            None => start(config()),
        };
        for (i, sampling) in samplings().iter().enumerate() {
            // Twice: the second time the n-gram cache knows the answer.
            for prompt in [repetitive(21, 2), prompt(37, i as u32), repetitive(21, 2)] {
                let got = common::run(&handle, request(prompt.clone(), sampling, mode));
                is_same(&got, &common::run(&plain, request(prompt, sampling, Speculate::Off)));
                assert!(got.stats.accepted_tokens <= got.stats.drafted_tokens);
            }
        }
        settle(&handle);
        let stats = handle.stats();
        assert!(stats.accepted_tokens > 100, "{mode:?} {salt:?}: {stats:?}");
        assert!(stats.drafted_tokens > stats.accepted_tokens || salt == Some(0), "{mode:?}: {stats:?}");
        assert_eq!(stats.draft_steps > 0, salt.is_some());
    }
    assert_eq!(plain.stats().drafted_tokens, 0);
}

/// A draft that is the model itself draws the same tokens, because it draws with the same random numbers.
#[test]
fn a_draft_of_the_same_distribution_is_always_right() {
    for sampling in samplings() {
        let config = EngineConfig { guesses: 5, prefix_cache: false, ..eager(EngineConfig::new(160)) };
        let handle = with_draft(config, draft(0, DraftConfig::new(160)));
        let got = common::run(&handle, request(prompt(30, 1), &sampling, Speculate::Draft));
        assert_eq!(got.stats.accepted_tokens, got.stats.drafted_tokens, "{sampling:?}");
        assert!(got.stats.drafted_tokens >= 50, "{:?}", got.stats);
        // Prompt, first token, and six tokens a step.
        assert!(handle.stats().steps < 20, "{:?}", handle.stats());
    }
}

#[test]
fn many_at_once_with_few_blocks_and_cancellations_answer_the_same_and_lose_nothing() {
    let config = EngineConfig {
        kv_blocks: Some(16),
        step_tokens: 24,
        step_outputs: 14,
        max_running: 4,
        ..eager(EngineConfig::new(128))
    };
    let drafting =
        DraftConfig { kv_blocks: Some(9), step_tokens: 16, max_running: 3, ..DraftConfig::new(128) };
    let (gate, mut pass) = Gate::new();
    let device = Hooked::new(move |_| {
        pass();
        Ok(())
    });
    let handle = drafted_on(device, config, draft(1, drafting));
    let plain = start(EngineConfig::new(128));
    let modes = Speculate::ALL;
    // What is dropped is then in the queue, in its prompt, or anywhere in its answer.
    for (round, steps) in [0, 9, 30].into_iter().enumerate() {
        let round = round as u32;
        gate.close();
        let requests: Vec<Request> = (0..10u32)
            .map(|i| {
                let n = 9 + 11 * (i as usize % 5);
                let text = if i % 2 == 0 { repetitive(n, i % 3) } else { prompt(n, i % 4) };
                let sampling = &samplings()[(i + round) as usize % 4];
                Request {
                    n: 1 + u32::from(i == 7),
                    ..request(text, sampling, modes[(i + round) as usize % 5])
                }
            })
            .collect();
        let mut streams: Vec<_> = requests.iter().map(|r| Some(handle.submit(r.clone()).unwrap())).collect();
        gate.allow(steps);
        gate.wait();
        streams.iter_mut().skip(3).step_by(4).for_each(|stream| drop(stream.take()));
        gate.open();
        for (stream, request) in streams.into_iter().zip(&requests) {
            let Some(stream) = stream else { continue };
            let unguessed = Request { speculate: Speculate::Off, ..request.clone() };
            assert_eq!(request.n, 1, "those with several answers are dropped");
            is_same(&collect(stream).unwrap(), &common::run(&plain, unguessed));
        }
        settle(&handle);
    }
    let stats = handle.stats();
    assert!(stats.preemptions > 0 && stats.accepted_tokens > 100 && stats.cancelled > 0, "{stats:?}");
}

/// Guesses never go past the end of the context or of the answer.
#[test]
fn an_answer_that_fills_its_context_ends_as_it_would() {
    for (context, max_tokens) in [(48, None), (160, Some(1)), (160, Some(2)), (47, None)] {
        let run = |speculate| {
            let handle = start(eager(EngineConfig::new(context)));
            let r = Request { max_tokens, ..request(repetitive(30, 1), &Sampling::greedy(), speculate) };
            common::run(&handle, r)
        };
        is_same(&run(Speculate::Lookup), &run(Speculate::Off));
    }
}

#[test]
fn drafts_that_do_not_fit_are_refused() {
    let handle = start(EngineConfig::new(64));
    let r = request(vec![1, 2], &Sampling::greedy(), Speculate::Draft);
    let error = handle.submit(r).map(drop).unwrap_err().to_string();
    assert!(error.contains("no draft model"), "{error}");
    let (mut device, program) = (Reference::default(), program());
    let weights = load_salted(&mut device, &program, 0);
    let config = DraftConfig { kv_blocks: Some(1), ..DraftConfig::new(64) };
    let made = DraftModel::new(Box::new(device), program, &weights, config);
    assert!(matches!(made.map(drop), Err(Error::Config { field: "draft.kv_blocks", .. })));
}
