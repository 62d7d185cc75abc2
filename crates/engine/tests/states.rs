//! Models whose sequences have states: what is refused, and what is found again by the copies that blocks own.

mod common;

use common::{hybrid, prompt, run, start_program};
use quarrel_engine::{EngineConfig, Request, Sampling, Speculate};
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
