//! Adapters of a running engine: chosen by request, mixed in a step, loaded and unloaded meanwhile, and never confused by the
//! prefix cache.

mod common;

use common::{Hooked, collect, element, gated, program, prompt, run, start, start_on};
use quarrel_engine::{AdapterLimits, EngineConfig, Error, Event, Handle, Request, Sampling, ScoreRequest};
use quarrel_ir::{AdapterPart, Op, WeightId};
use std::sync::mpsc::channel;

const RANK: usize = 3;

/// Changes every matrix; `seed` names its numbers.
fn adapter(seed: &str) -> Vec<AdapterPart> {
    let p = program();
    let products = p.ops.iter().filter_map(|n| match n.op {
        Op::MatMul { weight, .. } => Some(weight),
        _ => None,
    });
    let part = |WeightId(w): WeightId, part: usize| {
        let (decl, values) = (&p.weights[w as usize], |what: &str, n: usize| {
            (0..n).map(|i| element(&format!("{seed}{what}{w}.{part}"), i)).collect::<Vec<f32>>()
        });
        let rows = decl.parts[part].rows as usize;
        let (a, b) = (values("a", RANK * decl.cols as usize), values("b", rows * RANK));
        AdapterPart { weight: WeightId(w), part, a, b, scale: 0.5 }
    };
    products
        .flat_map(|w| (0..p.weights[w.0 as usize].parts.len()).map(move |i| (w, i)))
        .map(|(w, i)| part(w, i))
        .collect()
}

fn load(handle: &Handle, name: &str, seed: &str) {
    let info = handle.load_adapter_parts(name, adapter(seed), RANK).unwrap();
    assert_eq!((info.name.as_str(), info.rank, info.uses), (name, (RANK, RANK), 0));
    assert!(info.bytes > 0 && info.targets > 8);
}

fn greedy(prompt: Vec<u32>, n: u32, adapter: Option<&str>) -> Request {
    let (sampling, adapter) = (Sampling::greedy(), adapter.map(String::from));
    Request { sampling, max_tokens: Some(n), adapter, ..Request::new(prompt) }
}

/// Ids and log-probabilities of an answer.
fn answer(handle: &Handle, request: Request) -> (Vec<u32>, Vec<u32>) {
    let a = run(handle, request);
    (a.tokens, a.logprobs.iter().map(|l| l.to_bits()).collect())
}

fn config() -> EngineConfig {
    EngineConfig { step_tokens: 24, max_running: 8, ..EngineConfig::new(96) }
}

fn score(tokens: Vec<u32>, from: usize, adapter: Option<&str>) -> ScoreRequest {
    ScoreRequest { adapter: adapter.map(Into::into), ..ScoreRequest::new(tokens, from) }
}

#[test]
fn requests_with_different_adapters_share_steps_and_each_is_as_alone() {
    let names = [None, Some("a"), Some("b"), Some("c")];
    let request = |i: usize| greedy(prompt(9 + 5 * i, i as u32), 20, names[i % 4]);
    let alone = start(EngineConfig { prefix_cache: false, ..config() });
    // Few blocks, so that some are sent back and computed again.
    let (together, gate) = gated(EngineConfig { kv_blocks: Some(9), ..config() });
    for handle in [&alone, &together] {
        ["a", "b", "c"].iter().for_each(|n| load(handle, n, n));
    }
    let want: Vec<_> = (0..8).map(|i| answer(&alone, request(i))).collect();
    let streams: Vec<_> = (0..8).map(|i| together.submit(request(i)).unwrap()).collect();
    gate.open(); // all are there before the first step
    for (i, stream) in streams.into_iter().enumerate() {
        let got = collect(stream).unwrap();
        let bits: Vec<u32> = got.logprobs.iter().map(|l| l.to_bits()).collect();
        assert!((got.tokens, bits) == want[i], "request {i}");
    }
    let stats = together.stats();
    assert!(stats.preemptions > 0 && stats.adapters == 3 && stats.adapter_bytes > 0, "{stats:?}");
    let same: Vec<_> = names.iter().map(|n| answer(&alone, greedy(prompt(30, 1), 12, *n))).collect();
    for (i, a) in same.iter().enumerate() {
        assert!(same[..i].iter().all(|b| a.1 != b.1), "every adapter changes the answer");
    }
    let listed = together.adapters();
    let uses: Vec<_> = listed.iter().map(|a| (a.name.as_str(), a.uses, a.requests)).collect();
    assert_eq!(uses, ["a", "b", "c"].map(|name| (name, 0, 2)));
}

#[test]
fn forks_keep_their_adapter() {
    let handle = start(config());
    load(&handle, "a", "a");
    let request = |n: u32, seed: u64, adapter: &str| {
        let sampling = Sampling { seed: Some(seed), ..Sampling::default() };
        Request { n, sampling, ..greedy(prompt(21, 3), 15, Some(adapter)) }
    };
    let mut both = [Vec::new(), Vec::new()];
    for event in handle.submit(request(2, 5, "a")).unwrap() {
        match event {
            Event::Token { choice, id, .. } => both[choice as usize].push(id),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    assert_eq!(both, [5, 6].map(|seed| run(&handle, request(1, seed, "a")).tokens));
}

#[test]
fn the_prefix_cache_is_never_shared_between_adapters_nor_between_loads() {
    let request = |adapter: Option<&str>| greedy(prompt(60, 4), 10, adapter);
    let uncached = |seed: Option<&str>| {
        let fresh = start(EngineConfig { prefix_cache: false, ..config() });
        seed.iter().for_each(|s| load(&fresh, "x", s));
        answer(&fresh, request(seed.map(|_| "x")))
    };
    let (plain, first, second) = (uncached(None), uncached(Some("1")), uncached(Some("2")));
    let handle = start(EngineConfig { kv_blocks: Some(64), ..config() });
    let check = |adapter: Option<&str>, want: &(Vec<u32>, Vec<u32>), cached: bool| {
        let got = run(&handle, request(adapter));
        assert_eq!(got.stats.cached_tokens > 0, cached, "{adapter:?}");
        let bits: Vec<u32> = got.logprobs.iter().map(|l| l.to_bits()).collect();
        assert!((got.tokens, bits) == *want, "{adapter:?}");
    };
    load(&handle, "x", "1");
    load(&handle, "y", "2");
    for cached in [false, true] {
        check(None, &plain, cached);
        check(Some("x"), &first, cached);
        check(Some("y"), &second, cached);
    }
    // Another adapter under the name, then the first again.
    handle.unload_adapter("x").unwrap();
    load(&handle, "x", "2");
    check(Some("x"), &second, false);
    check(Some("x"), &second, true);
    handle.unload_adapter("x").unwrap();
    load(&handle, "x", "1");
    check(Some("x"), &first, false);
    check(None, &plain, true);
}

#[test]
fn an_adapter_unloaded_in_use_serves_its_request_to_the_end() {
    let (permit, permits) = channel::<()>();
    // Waits for a permit before each step; without a sender any step may go.
    let wait = move |_| {
        let _ = permits.recv();
        Ok(())
    };
    let handle = start_on(Hooked::new(wait), config());
    let want = {
        let alone = start(config());
        load(&alone, "a", "a");
        answer(&alone, greedy(prompt(12, 1), 30, Some("a")))
    };
    load(&handle, "a", "a");
    let stream = handle.submit(greedy(prompt(12, 1), 30, Some("a"))).unwrap();
    let waiting = handle.submit(greedy(prompt(12, 1), 30, Some("a"))).unwrap();
    permit.send(()).unwrap();
    let uses = std::thread::scope(|s| {
        let unload = s.spawn(|| handle.unload_adapter("a").unwrap());
        while !handle.adapters().is_empty() {
            std::thread::yield_now();
        }
        drop(permit);
        unload.join().unwrap()
    });
    assert_eq!(uses, 2);
    let refused = handle.submit(greedy(prompt(12, 1), 5, Some("a"))).err().unwrap();
    assert!(matches!(&refused, Error::Adapter { name, .. } if name == "a"), "{refused}");
    // The name is free while the old one still works.
    load(&handle, "a", "other");
    let other = answer(&handle, greedy(prompt(12, 1), 30, Some("a")));
    for stream in [stream, waiting] {
        let got = collect(stream).unwrap();
        let bits: Vec<u32> = got.logprobs.iter().map(|l| l.to_bits()).collect();
        assert!((got.tokens, bits) == want && want != other);
    }
    handle.unload_adapter("a").unwrap();
    assert_eq!(run(&handle, greedy(prompt(3, 1), 1, None)).tokens.len(), 1);
    assert_eq!((handle.stats().adapters, handle.stats().adapter_bytes), (0, 0));
}

#[test]
fn a_request_that_is_dropped_gives_its_adapter_back() {
    let handle = start(config());
    load(&handle, "a", "a");
    for _ in 0..5 {
        let mut stream = handle.submit(greedy(prompt(12, 1), 60, Some("a"))).unwrap();
        stream.next();
    }
    while handle.adapters()[0].uses > 0 {
        std::thread::yield_now();
    }
    assert_eq!(handle.unload_adapter("a").unwrap(), 0);
}

#[test]
fn what_cannot_be_loaded_or_chosen_is_one_clear_error() {
    let one = 4 * adapter("a").iter().map(|p| p.a.len() + p.b.len()).sum::<usize>();
    let adapters = AdapterLimits { count: 9, bytes: one + one / 2 };
    let handle = start(EngineConfig { adapters, ..config() });
    let text = |e: Error| e.to_string();
    let submit = |name| text(handle.submit(greedy(prompt(5, 1), 5, Some(name))).err().unwrap());
    assert!(submit("poems").contains("adapter \"poems\": is not loaded; none is"));
    load(&handle, "a", "a");
    assert!(submit("poems").contains("loaded are a"));
    assert!(
        text(handle.score_with(score(prompt(5, 1), 1, Some("b"))).unwrap_err()).contains("is not loaded")
    );
    assert!(text(handle.unload_adapter("b").unwrap_err()).contains("is not loaded"));
    let load = |name, parts| text(handle.load_adapter_parts(name, parts, RANK).unwrap_err());
    assert!(load("a", adapter("b")).contains("is loaded already"));
    assert!(load("b", adapter("b")).contains("unload one"));
    let mut wrong = adapter("b");
    wrong.truncate(1);
    wrong[0].a.pop();
    assert!(load("b", wrong).contains("are not A [rank, 12] and B"));
    let e = text(handle.load_adapter("c", "nowhere.gguf", 1.0).unwrap_err());
    assert!(e.contains("without its model's specification"), "{e}");
    // Nothing of it has hurt.
    let scored = [None, Some("a")].map(|a| handle.score_with(score(prompt(20, 1), 5, a)).unwrap().log_probs);
    let logits = [None, Some("a")].map(|a| handle.logits_with(prompt(20, 1), a).unwrap());
    assert!(scored[0] != scored[1] && logits[0] != logits[1]);
}
