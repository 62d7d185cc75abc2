//! Several answers to one request, urgency and deadlines, the tiers of the cache, and devices that hang.

mod common;

use common::{Answer, Gate, Hooked, collect, gated, load, program, prompt, run, start, start_on};
use quarrel_engine::{
    Beams, Class, DiskCache, Engine, EngineConfig, Error, Event, FinishReason, Handle, Request, Retention,
    Sampling,
};
use quarrel_ir::reference::Reference;
use std::{
    collections::HashMap,
    sync::mpsc::channel,
    time::{Duration, Instant},
};

fn config() -> EngineConfig {
    EngineConfig { step_tokens: 32, step_outputs: 8, max_running: 8, max_queue: 8, ..EngineConfig::new(96) }
}

fn sampled(prompt: Vec<u32>, seed: u64, n: u32) -> Request {
    let sampling = Sampling { seed: Some(seed), ..Sampling::default() };
    Request { sampling, max_tokens: Some(n), ..Request::new(prompt) }
}

fn greedy(prompt: Vec<u32>, n: u32) -> Request {
    Request { sampling: Sampling::greedy(), max_tokens: Some(n), ..Request::new(prompt) }
}

/// The answers of a request by choice: tokens and log-probabilities, and why they ended.
type Choices = HashMap<u32, (Vec<u32>, Vec<f32>, Option<FinishReason>)>;

fn choices(handle: &Handle, request: Request) -> Choices {
    let mut out = Choices::new();
    for event in handle.submit(request).unwrap() {
        match event {
            Event::Token { choice, id, logprob, .. } => {
                let entry = out.entry(choice).or_default();
                assert!(entry.2.is_none(), "a token after the end");
                entry.0.push(id);
                entry.1.extend(logprob);
            }
            Event::Finished { choice, reason } => out.entry(choice).or_default().2 = Some(reason),
            Event::Failed(e) => panic!("{e}"),
            Event::Prefill { .. } | Event::Evicted { .. } | Event::Done { .. } => {}
        }
    }
    assert_eq!(handle.stats().blocks_used, 0);
    out
}

#[test]
fn n_answers_are_those_of_their_seeds_and_share_the_prompt() {
    let handle = start(EngineConfig { kv_blocks: Some(64), ..config() });
    let many = choices(&handle, Request { n: 5, ..sampled(prompt(37, 3), 40, 20) });
    assert_eq!((many.len(), handle.stats().prompt_rows), (5, 37), "the prompt is computed once");
    assert!(handle.stats().copied_blocks >= 4);
    for (choice, (tokens, _, reason)) in &many {
        let alone = run(&start(config()), sampled(prompt(37, 3), 40 + u64::from(*choice), 20));
        assert_eq!((tokens, reason), (&alone.tokens, &Some(alone.reason)), "choice {choice}");
    }
    assert!(many.values().any(|a| a.0 != many[&0].0));
    // In a cache that is too small for all at once, too.
    let tight = start(EngineConfig { kv_blocks: Some(6), ..config() });
    assert_eq!(choices(&tight, Request { n: 5, ..sampled(prompt(37, 3), 40, 20) }), many);
    assert!(tight.stats().preemptions > 0);
}

#[test]
fn best_of_reports_the_likeliest() {
    let handle = start(config());
    let all = choices(&handle, Request { n: 6, ..sampled(prompt(9, 1), 7, 12) });
    let best = choices(&handle, Request { n: 2, best_of: Some(6), ..sampled(prompt(9, 1), 7, 12) });
    let mean = |lps: &[f32]| lps.iter().map(|l| f64::from(*l)).sum::<f64>() / lps.len() as f64;
    let mut order: Vec<_> = all.values().map(|a| (mean(&a.1), a.0.clone())).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    assert_eq!(best.len(), 2);
    assert_eq!((&best[&0].0, &best[&1].0), (&order[0].1, &order[1].1));
}

#[test]
fn beams_find_likelier_answers_than_greed_and_the_same_in_company() {
    let handle = start(EngineConfig { kv_blocks: Some(64), ..config() });
    let request = |salt| Request {
        n: 2,
        beams: Some(Beams { width: 4, length_penalty: 0.0 }),
        ..greedy(prompt(21, salt), 10)
    };
    let sum = |lps: &[f32]| lps.iter().map(|l| f64::from(*l)).sum::<f64>();
    let (mut better, mut alone) = (0, Vec::new());
    for salt in 0..5 {
        let found = choices(&handle, request(salt));
        let single = run(&handle, greedy(prompt(21, salt), 10));
        let (first, second) = (sum(&found[&0].1), sum(&found[&1].1));
        assert!(first >= second && found[&0].0.len() == 10 && found[&0].2 == Some(FinishReason::Length));
        better += usize::from(first > sum(&single.logprobs) + 1e-6);
        alone.push(found);
    }
    assert!(better > 0, "a search that is never better than greed is none");
    // All at once, in a cache that holds hardly more than one search.
    let tight = start(EngineConfig { kv_blocks: Some(13), ..config() });
    let streams: Vec<_> = (0..5).map(|salt| tight.submit(request(salt)).unwrap()).collect();
    for (stream, want) in streams.into_iter().zip(&alone) {
        let mut tokens: HashMap<u32, Vec<u32>> = HashMap::new();
        for event in stream {
            match event {
                Event::Token { choice, id, .. } => tokens.entry(choice).or_default().push(id),
                Event::Failed(e) => panic!("{e}"),
                _ => {}
            }
        }
        assert_eq!((&tokens[&0], &tokens[&1]), (&want[&0].0, &want[&1].0));
    }
    let error = tight.submit(Request { max_tokens: Some(60), ..request(0) }).err().unwrap().to_string();
    assert!(error.contains("28 KV blocks; there are 13"), "{error}");
    let wide = Request { n: 9, ..greedy(prompt(3, 0), 2) };
    assert!(tight.submit(wide).err().unwrap().to_string().contains("9 places; there are 8"));
}

#[test]
fn deadlines_are_kept_or_refused_early() {
    let device = Hooked::new(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Ok(())
    });
    let handle =
        start_on(device, EngineConfig { max_running: 1, step_outputs: 1, step_tokens: 2, ..config() });
    let deadline = |ms| Some(Duration::from_millis(ms));
    let late = Request { deadline: deadline(400), ..greedy(prompt(3, 1), 80) };
    let got = collect(handle.submit(late).unwrap()).unwrap();
    assert!(got.reason == FinishReason::Deadline && (1..80).contains(&got.tokens.len()), "{got:?}");
    // One that never comes to its turn fails.
    let mut first = handle.submit(greedy(prompt(3, 2), 80)).unwrap();
    while !matches!(first.next(), Some(Event::Token { .. })) {}
    let never = handle.submit(Request { deadline: deadline(30), ..greedy(prompt(3, 3), 5) }).unwrap();
    let error = collect(never).unwrap_err();
    assert!(matches!(error, Error::Deadline(_)) && error.to_string().contains("30 ms"), "{error}");
    // A backlog of some 80 steps of 10 ms.
    let queue: Vec<_> = (0..2).map(|i| handle.submit(greedy(prompt(80, i), 1)).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(30)); // they are in the queue
    let error = handle.submit(Request { deadline: deadline(20), ..greedy(prompt(3, 3), 5) }).err().unwrap();
    assert!(
        matches!(error, Error::Busy { retry_after, .. } if retry_after > Duration::from_millis(20)),
        "{error}"
    );
    drop((first, queue));
    assert_eq!(run(&handle, greedy(prompt(3, 1), 2)).tokens.len(), 2);
    assert_eq!(handle.stats().expired, 2);
}

#[test]
fn the_queue_keeps_room_for_the_urgent() {
    let (handle, gate) = gated(EngineConfig { max_running: 1, step_outputs: 1, max_queue: 8, ..config() });
    let request = |class| Request { class, ..greedy(prompt(3, 1), 2) };
    let mut streams = vec![handle.submit(request(Class::Interactive)).unwrap()];
    gate.wait(); // it has been taken, and its first step begins
    let mut fill = |class, most: usize| {
        let before = streams.len();
        loop {
            match handle.submit(request(class)) {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    assert!(matches!(error, Error::QueueFull { .. }), "{error}");
                    break;
                }
            }
            assert!(streams.len() - before <= most);
        }
        streams.len() - before
    };
    let background = fill(Class::Background, 5);
    assert!((3..=5).contains(&background), "half of the queue");
    assert!((1..=2).contains(&fill(Class::Batch, 3)), "three quarters");
    assert!((1..=2).contains(&fill(Class::Interactive, 3)), "all of it");
    gate.open();
    for stream in streams {
        assert_eq!(collect(stream).unwrap().tokens.len(), 2);
    }
}

/// A device that stays in a step until it is told to stop, or for ever.
#[test]
fn a_cancelled_prompt_leaves_its_step_and_the_others_go_on() {
    let reference = start(config());
    let want = run(&reference, greedy(prompt(5, 2), 30)).tokens;
    let (entered, steps) = channel();
    let device = Hooked::new(move |_| Ok(())).stopping(move |step| {
        let _ = entered.send(step.tokens.len());
        let began = Instant::now();
        // Only prompts are waited with; a step of decodes goes on at once.
        while step.tokens.len() > 20 && began.elapsed() < Duration::from_secs(20) {
            match step.stop {
                Some(stop) if stop.0() => return Err(quarrel_ir::Error::Stopped),
                _ => std::thread::yield_now(),
            }
        }
        Ok(())
    });
    let target = Some(Duration::from_secs(1));
    let handle = start_on(device, EngineConfig { target_itl: target, ..config() });
    let other = handle.submit(greedy(prompt(5, 2), 30)).unwrap();
    let victim = handle.submit(greedy(prompt(80, 1), 30)).unwrap();
    while steps.recv().unwrap() <= 20 {}
    let began = Instant::now();
    drop(victim);
    let got = collect(other).unwrap();
    assert_eq!(got.tokens, want);
    while handle.stats().cancelled == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(began.elapsed() < Duration::from_secs(15), "the step was not left");
    let stats = handle.stats();
    assert_eq!((stats.steps_stopped, stats.cancelled, stats.blocks_used), (1, 1, 0));
}

#[test]
fn a_device_that_hangs_is_noticed_and_welcome_again() {
    let (free, gate) = channel::<()>();
    let device = Hooked::new(move |step| {
        if step == 2 {
            let _ = gate.recv();
        }
        Ok(())
    });
    let handle = start_on(device, EngineConfig { step_limit: Duration::from_millis(700), ..config() });
    let stream = handle.submit(greedy(prompt(5, 1), 9)).unwrap();
    let error = collect(stream).unwrap_err();
    assert!(matches!(error, Error::Stuck(_)), "{error}");
    assert!(matches!(handle.submit(greedy(prompt(5, 1), 9)), Err(Error::Stuck(_))));
    free.send(()).unwrap();
    let began = Instant::now();
    let got = loop {
        match handle.submit(greedy(prompt(5, 1), 9)) {
            Ok(stream) => break collect(stream),
            Err(_) => assert!(began.elapsed() < Duration::from_secs(20)),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(got.unwrap().tokens, run(&start(config()), greedy(prompt(5, 1), 9)).tokens);
    // One that never comes back does not hold the process up.
    let device = Hooked::new(|_| {
        loop {
            std::thread::park();
        }
    });
    let handle = start_on(device, EngineConfig { step_limit: Duration::from_millis(50), ..config() });
    assert!(collect(handle.submit(greedy(prompt(5, 1), 9)).unwrap()).is_err());
    drop(handle);
}

fn same(a: &Answer, b: &Answer) {
    assert_eq!(a.tokens, b.tokens);
    let bits = |x: &[f32]| x.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&a.logprobs), bits(&b.logprobs));
}

#[test]
fn preempted_sequences_spill_and_come_back_with_the_same_bytes() {
    let roomy = start(EngineConfig { kv_blocks: Some(64), prefix_cache: false, ..config() });
    // Computing a block takes longer than moving one.
    let (gate, mut pass) = Gate::new();
    let slow = Hooked::new(move |_| {
        pass();
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    });
    let tight = start_on(slow, EngineConfig { kv_blocks: Some(9), host_cache: 10 << 20, ..config() });
    let request = |salt| greedy(prompt(40, salt), 50);
    let streams: Vec<_> = (0..4).map(|salt| tight.submit(request(salt)).unwrap()).collect();
    gate.open(); // all are there before the first step
    for (salt, stream) in (0..).zip(streams) {
        same(&collect(stream).unwrap(), &run(&roomy, request(salt)));
    }
    let stats = tight.stats();
    assert!(stats.preemptions > 0 && stats.saved_blocks > 0 && stats.loaded_blocks > 0, "{stats:?}");
    assert!(stats.host_blocks > 0 && stats.blocks_used == 0);
}

fn with_disk(dir: &std::path::Path, identity: u8) -> Handle {
    let disk = DiskCache { dir: dir.into(), bytes: 10 << 20 };
    start(EngineConfig { disk_cache: Some(disk), identity: Some([identity; 32]), ..config() })
}

#[test]
fn the_cache_survives_the_process_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let request = || greedy(prompt(70, 4), 12);
    let want = run(&start(config()), request());
    let first = with_disk(dir.path(), 1);
    same(&run(&first, request()), &want);
    drop(first);
    let second = with_disk(dir.path(), 1);
    let got = run(&second, request());
    same(&got, &want);
    let stats = second.stats();
    assert_eq!((got.stats.cached_tokens, stats.cached_below_tokens, stats.loaded_blocks), (64, 64, 4));
    drop(second);
    // Another model must not find it.
    let other = with_disk(dir.path(), 2);
    assert_eq!(run(&other, request()).stats.cached_tokens, 0);
    drop(other);
    // A damaged file is as if it were not there.
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    let third = with_disk(dir.path(), 1);
    let got = run(&third, request());
    same(&got, &want);
    assert_eq!((got.stats.cached_tokens, third.stats().disk_damaged), (0, 1));
    let error = Engine::start(
        Box::<Reference>::default(),
        program(),
        &load(&mut Reference::default(), &program(), false),
        EngineConfig { disk_cache: Some(DiskCache { dir: dir.path().into(), bytes: 1 << 20 }), ..config() },
    );
    assert!(error.is_err(), "a cache on disk without an identity");
}

#[test]
fn hints_decide_what_the_cache_keeps() {
    let handle = start(EngineConfig { kv_blocks: Some(8), ..config() });
    let with = |salt, retention| Request { retention, ..greedy(prompt(40, salt), 2) };
    run(&handle, with(1, Retention::Keep));
    run(&handle, with(2, Retention::Discard));
    for salt in 3..8 {
        run(&handle, with(salt, Retention::Usual));
    }
    assert_eq!(run(&handle, with(1, Retention::Keep)).stats.cached_tokens, 32);
    assert_eq!(run(&handle, with(2, Retention::Discard)).stats.cached_tokens, 0);
    assert_eq!(run(&handle, with(2, Retention::Usual)).stats.cached_tokens, 0);
    assert_eq!(run(&handle, with(2, Retention::Usual)).stats.cached_tokens, 32);
}
