//! Requests that are refused, cancelled or preempted, and devices that fail: nothing leaks and nobody hangs.

mod common;

use common::{Gate, Hooked, collect, gated, prompt, run, start, start_on};
use quarrel_engine::{EngineConfig, Error, Event, FinishReason, Request, Sampling};
use std::{
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

fn greedy(prompt: Vec<u32>, n: u32) -> Request {
    Request { sampling: Sampling::greedy(), max_tokens: Some(n), ..Request::new(prompt) }
}

fn config() -> EngineConfig {
    EngineConfig { step_tokens: 8, step_outputs: 4, max_running: 2, max_queue: 3, ..EngineConfig::new(96) }
}

#[test]
fn a_dropped_stream_frees_its_blocks_in_the_middle_of_its_prompt() {
    let (handle, gate) = gated(config());
    let mut stream = handle.submit(greedy(prompt(80, 1), 5)).unwrap();
    gate.allow(2);
    let progress = |e| matches!(e, Some(Event::Prefill { done: 8 | 16, total: 80 }));
    assert!(progress(stream.next()) && progress(stream.next()));
    assert!(handle.stats().blocks_used > 0);
    drop(stream);
    gate.open();
    // The engine is at most one step further when it sees this one; then the other is gone.
    assert_eq!(run(&handle, greedy(prompt(3, 2), 2)).tokens.len(), 2);
    let stats = handle.stats();
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
    // 80 tokens would have been ten steps; three is what was allowed, and two for the second request.
    assert!(stats.steps <= 5, "{stats:?}");
}

#[test]
fn cancel_ends_a_stream_with_its_figures() {
    let (handle, gate) = gated(config());
    let mut stream = handle.submit(greedy(prompt(8, 1), 50)).unwrap();
    gate.allow(1);
    assert!(matches!(stream.next(), Some(Event::Prefill { done: 8, total: 8 })));
    assert!(matches!(stream.next(), Some(Event::Token { .. })));
    handle.cancel(stream.id());
    gate.open();
    let mut events: Vec<Event> = stream.collect();
    match events.pop() {
        Some(Event::Done { reason: FinishReason::Aborted, stats }) => {
            assert_eq!(stats.completion_tokens, 1 + events.len());
            assert!(stats.completion_tokens < 50);
        }
        other => panic!("{other:?}"),
    }
    handle.cancel(12345); // no such request
    assert_eq!(run(&handle, greedy(prompt(3, 2), 2)).tokens.len(), 2);
}

#[test]
fn a_full_queue_refuses_at_once_and_has_room_again_later() {
    let (handle, gate) = gated(EngineConfig { max_running: 1, ..config() });
    let mut first = handle.submit(greedy(prompt(9, 1), 3)).unwrap();
    gate.allow(1);
    // One step has run, so this one is admitted and not in the queue.
    assert!(matches!(first.next(), Some(Event::Prefill { done: 8, total: 9 })));
    let waiting: Vec<_> = (0..3).map(|i| handle.submit(greedy(prompt(5, i), 2)).unwrap()).collect();
    assert!(matches!(handle.submit(greedy(prompt(5, 9), 2)), Err(Error::QueueFull { limit: 3, .. })));
    assert!(matches!(handle.logits(prompt(5, 9)), Err(Error::QueueFull { limit: 3, .. })));
    gate.open();
    assert_eq!(collect(first).unwrap().tokens.len(), 3);
    for stream in waiting {
        assert_eq!(collect(stream).unwrap().tokens.len(), 2);
    }
    assert_eq!(run(&handle, greedy(prompt(5, 9), 2)).tokens.len(), 2);
}

#[test]
fn running_out_of_blocks_preempts_and_recovers() {
    let roomy = start(EngineConfig { kv_blocks: Some(64), ..config() });
    let (tight, gate) = gated(EngineConfig { kv_blocks: Some(6), ..config() });
    let request = |salt| greedy(prompt(20, salt), 60);
    let streams: Vec<_> = (0..3).map(|salt| tight.submit(request(salt)).unwrap()).collect();
    gate.open(); // all are there before the first step
    for (salt, stream) in (0..).zip(streams) {
        let got = collect(stream).unwrap();
        assert_eq!(got.tokens, run(&roomy, request(salt)).tokens);
    }
    assert!(tight.stats().preemptions > 0 && roomy.stats().preemptions == 0);
    assert_eq!(tight.stats().blocks_used, 0);
}

#[test]
fn a_device_error_fails_what_runs_and_the_engine_goes_on() {
    let (gate, mut pass) = Gate::new();
    let device = Hooked::new(move |step| {
        pass();
        match step {
            4 => Err(quarrel_ir::Error::Device { device: "test".into(), why: "broken cable".into() }),
            _ => Ok(()),
        }
    });
    let handle = start_on(device, config());
    let streams: Vec<_> = (0..2).map(|i| handle.submit(greedy(prompt(30, i), 5)).unwrap()).collect();
    gate.open(); // both are there before the first step
    for stream in streams {
        let error = collect(stream).unwrap_err();
        assert!(matches!(error, Error::Device(_)) && error.to_string().contains("broken cable"), "{error}");
    }
    // What the cache had may be spoiled, so it is not used.
    let got = run(&handle, greedy(prompt(30, 0), 5));
    assert_eq!(got.stats.cached_tokens, 0);
    assert_eq!(got.tokens, run(&start(config()), greedy(prompt(30, 0), 5)).tokens);
    assert_eq!(handle.stats().blocks_used, 0);
}

#[test]
fn a_panic_in_the_device_is_an_error_for_everyone_and_never_a_hang() {
    let (gate, mut pass) = Gate::new();
    let device = Hooked::new(move |step| {
        pass();
        assert!(step < 2, "index out of range in a kernel");
        Ok(())
    });
    let handle = start_on(device, config());
    let streams: Vec<_> = (0..3).map(|i| handle.submit(greedy(prompt(30, i), 5)).unwrap()).collect();
    gate.open();
    for stream in streams {
        let error = collect(stream).unwrap_err();
        assert!(error.to_string().contains("index out of range in a kernel"), "{error}");
    }
    // Refused when submitted or, if the thread was just ending, by the stream.
    let late = handle.submit(greedy(prompt(5, 1), 5)).and_then(collect).unwrap_err();
    assert!(matches!(late, Error::Panicked(_)), "{late}");
    assert!(matches!(handle.score(prompt(5, 1), 1), Err(Error::Panicked(_))));
    handle.cancel(1);
}

#[test]
fn dropping_the_last_handle_aborts_what_runs() {
    let (handle, gate) = gated(config());
    let stream = handle.submit(greedy(prompt(20, 1), 40)).unwrap();
    let clone = handle.clone();
    drop(handle);
    assert!(clone.submit(greedy(prompt(5, 1), 5)).is_ok());
    gate.open();
    drop(clone);
    let events: Vec<Event> = stream.collect();
    assert!(
        matches!(events.last(), Some(Event::Done { reason: FinishReason::Aborted, .. })),
        "{:?}",
        events.last()
    );
}

#[test]
fn contradictory_sizes_are_refused_by_name() {
    let base = config();
    for (field, config) in [
        ("context", EngineConfig { context: 1, ..base.clone() }),
        ("kv_blocks", EngineConfig { kv_blocks: Some(5), ..base.clone() }),
        ("step_tokens", EngineConfig { step_tokens: 2, ..base.clone() }),
        ("step_outputs", EngineConfig { step_outputs: 1, ..base.clone() }),
        ("max_running", EngineConfig { max_running: 0, ..base.clone() }),
        ("max_queue", EngineConfig { max_queue: 0, ..base }),
    ] {
        let mut device = quarrel_ir::reference::Reference::default();
        let program = common::program();
        let weights = common::load(&mut device, &program, false);
        let error = quarrel_engine::Engine::start(Box::new(device), program, &weights, config).err().unwrap();
        assert!(error.to_string().contains(field), "{error}");
    }
}

/// What an async runtime does, with a thread for a task.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn a_task_is_woken_for_every_event_and_for_the_end() {
    let handle = start(config());
    let want = run(&handle, greedy(prompt(9, 1), 30)).tokens;
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut stream = handle.submit(greedy(prompt(9, 1), 30)).unwrap();
    let mut got = Vec::new();
    loop {
        match stream.poll_next(&mut context) {
            Poll::Ready(Some(Event::Token { id, .. })) => got.push(id),
            Poll::Ready(Some(_)) => {}
            Poll::Ready(None) => break,
            Poll::Pending => thread::park(),
        }
    }
    assert_eq!(got, want);
}
