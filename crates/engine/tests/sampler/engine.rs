//! The chain inside the engine: what events say of it, several answers with stages that learn, and the best of them.

use crate::common::{VOCAB, collect, prompt, run, start};
use quarrel_engine::{
    Beams, BestBy, EngineConfig, Error, Event, Handle, LogprobsOf, Request, Sampling, Speculate, Trace,
};
use std::collections::HashMap;

/// A token with what its event says.
type Told = (u32, f32, Vec<(u32, f32)>, Option<Box<Trace>>);

fn told(handle: &Handle, request: Request) -> HashMap<u32, Vec<Told>> {
    let mut out: HashMap<u32, Vec<Told>> = HashMap::new();
    for event in handle.submit(request).unwrap() {
        match event {
            Event::Token { choice, id, logprob, top, trace } => {
                out.entry(choice).or_default().push((id, logprob.unwrap_or(f32::NAN), top, trace));
            }
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    out
}

fn request(sampling: Sampling) -> Request {
    let sampling = Sampling { seed: Some(11), ..sampling };
    Request { sampling, max_tokens: Some(30), ..Request::new(prompt(12, 3)) }
}

fn everything() -> Sampling {
    Sampling {
        temperature: 0.9,
        dry_multiplier: 0.5,
        frequency_penalty: 0.2,
        penalty_half_life: Some(6),
        top_p: 0.95,
        xtc_probability: 0.4,
        xtc_threshold: 0.05,
        adaptive: 0.5,
        ..Sampling::default()
    }
}

#[test]
fn a_trace_comes_with_each_token_that_wants_one_and_changes_none() {
    let handle = start(EngineConfig::new(64));
    for sampling in [everything(), Sampling::greedy(), Sampling { mirostat: 2, ..Sampling::default() }] {
        let plain = &told(&handle, request(sampling.clone()))[&0];
        for speculate in [Speculate::Off, Speculate::Auto] {
            let explain = Some(4);
            let got = &told(&handle, Request { explain, speculate, ..request(sampling.clone()) })[&0];
            assert_eq!(got.len(), 30);
            for (n, (got, plain)) in got.iter().zip(plain).enumerate() {
                let trace = got.3.as_ref().unwrap();
                assert_eq!((got.0, got.1, trace.step), (plain.0, plain.1, 12 + n));
                assert_eq!((trace.draw.id, trace.draw.logprob), (got.0, got.1));
                assert!(plain.3.is_none() && trace.candidates.len() <= 4 && !trace.stages.is_empty());
            }
        }
    }
    let error = handle.submit(Request { explain: Some(9999), ..request(Sampling::default()) }).err().unwrap();
    assert!(error.to_string().starts_with("explain"), "{error}");
}

#[test]
fn log_probabilities_after_the_chain_are_of_what_was_drawn_from() {
    let handle = start(EngineConfig::new(64));
    let sampled = |sampling| Request {
        logprobs: Some(VOCAB as u8),
        logprobs_of: LogprobsOf::Sampled,
        ..request(sampling)
    };
    for (id, logprob, top, _) in
        &told(&handle, sampled(Sampling { top_k: 7, temperature: 0.6, ..Sampling::default() }))[&0]
    {
        let mass: f32 = top.iter().map(|t| t.1.exp()).sum();
        assert!(top.len() == 7 && (mass - 1.0).abs() < 1e-5, "{top:?}");
        assert!(top.windows(2).all(|w| w[0].1 >= w[1].1) && top.contains(&(*id, *logprob)));
    }
    // Who reports none draws the same.
    for sampling in [everything(), Sampling { top_k: 7, ..Sampling::default() }, Sampling::greedy()] {
        let none = Request { logprobs_of: LogprobsOf::Unreported, ..request(sampling.clone()) };
        let none = &told(&handle, none)[&0];
        assert!(none.iter().all(|t| t.1.is_nan() && t.2.is_empty()));
        let ids = |told: &[Told]| told.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(ids(none), ids(&told(&handle, request(sampling))[&0]));
    }
    for (id, logprob, top, _) in &told(&handle, sampled(Sampling::greedy()))[&0] {
        assert_eq!((*logprob, &top[..]), (0.0, &[(*id, 0.0)][..]));
    }
}

#[test]
fn each_of_several_answers_learns_for_itself() {
    let handle = start(EngineConfig { kv_blocks: Some(16), ..EngineConfig::new(64) });
    for sampling in [everything(), Sampling { mirostat: 1, mirostat_tau: 3.0, ..Sampling::default() }] {
        let many = Request { n: 4, ..request(sampling) };
        for (choice, got) in told(&handle, many.clone()) {
            let sampling = Sampling { seed: Some(11 + u64::from(choice)), ..many.sampling.clone() };
            let alone = run(&handle, Request { n: 1, sampling, ..many.clone() });
            assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), alone.tokens);
        }
    }
}

#[test]
fn the_best_answer_is_that_of_the_highest_mean() {
    let handle = start(EngineConfig { kv_blocks: Some(24), ..EngineConfig::new(64) });
    let all = told(&handle, Request { n: 5, ..request(Sampling::default()) });
    // By the definition, from the logits of each step.
    let certainty = |tokens: &[Told]| {
        let mut text = prompt(12, 3);
        let mut sum = 0.0;
        for t in tokens {
            let row = handle.logits(text.clone()).unwrap();
            let z: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            let v = f64::from(VOCAB);
            sum -= row.iter().map(|l| (v * f64::from(*l).exp() / z).ln()).sum::<f64>() / v;
            text.push(t.0);
        }
        sum / tokens.len() as f64
    };
    let likelihood =
        |tokens: &[Told]| tokens.iter().map(|t| f64::from(t.1)).sum::<f64>() / tokens.len() as f64;
    let best = |score: &dyn Fn(&[Told]) -> f64| {
        let best = all.values().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap();
        best.iter().map(|t| t.0).collect::<Vec<_>>()
    };
    let got = |best_of_by| {
        let request = Request { best_of: Some(5), best_of_by, ..request(Sampling::default()) };
        told(&handle, request)[&0].iter().map(|t| t.0).collect::<Vec<_>>()
    };
    assert_eq!(got(BestBy::Likelihood), best(&likelihood));
    assert_eq!(got(BestBy::SelfCertainty), best(&certainty));
    assert_ne!(got(BestBy::SelfCertainty), got(BestBy::Likelihood));
}

#[test]
fn a_search_refuses_what_only_a_draw_uses() {
    let handle = start(EngineConfig { kv_blocks: Some(16), ..EngineConfig::new(64) });
    let beams = Some(Beams { width: 3, length_penalty: 1.0 });
    for (sampling, field) in [
        (Sampling { mirostat: 2, ..Sampling::default() }, "mirostat"),
        (Sampling { xtc_probability: 0.1, ..Sampling::default() }, "xtc_probability"),
        (Sampling { adaptive: 0.1, ..Sampling::default() }, "adaptive"),
    ] {
        let error = handle.submit(Request { beams, ..request(sampling) }).err().unwrap();
        assert!(matches!(error, Error::Together { a, b: "beams", .. } if a == field), "{error}");
    }
    // Penalties, DRY and biases are for both.
    let dry = Sampling { dry_multiplier: 1.0, repetition_penalty: 1.2, ..Sampling::default() };
    assert_eq!(collect(handle.submit(Request { beams, ..request(dry) }).unwrap()).unwrap().tokens.len(), 30);
}
