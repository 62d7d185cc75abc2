//! From files to answers: golden tiny models, loaded by the engine, give the greedy tokens that `transformers` gave.

mod common;

use common::run;
use quarrel_engine::{CONTEXT_DEFAULT_MAX, Engine, Error, LoadOptions, Request, Sampling};
use quarrel_formats::Source;
use quarrel_ir::reference::Reference;
use std::path::{Path, PathBuf};

fn golden(name: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/tiny").join(name).join(file)
}

#[test]
fn golden_models_answer_as_transformers_does() {
    // A window, plain ones, experts, latent attention with experts, attention by blocks.
    let blocks = ("phi3-small", "model.safetensors");
    let ggufs = ["gemma3", "smollm2", "llama3", "qwen3moe", "deepseek-v3"].map(|name| (name, "model.gguf"));
    for (name, file) in ggufs.into_iter().chain([blocks]) {
        let text = std::fs::read_to_string(golden(name, "golden.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ids = |v: &serde_json::Value| -> Vec<Vec<u32>> { serde_json::from_value(v.clone()).unwrap() };
        let (prompts, answers) = (ids(&expected["prompts"]), ids(&expected["greedy"]));
        let source = Source::open(golden(name, file)).unwrap();
        let mut bytes = 0;
        let device = Box::new(Reference::default());
        let small = |c: &mut quarrel_engine::EngineConfig| (c.step_tokens, c.max_running) = (8, 4);
        let options = LoadOptions { context: Some(100), ..LoadOptions::default() };
        let model = Engine::load(&source, device, &options, small, |b| bytes += b).unwrap();
        assert!(bytes > 0 && model.handle.info().context == 100 && model.handle.info().kv_blocks == 7);
        let streams: Vec<_> = prompts
            .iter()
            .zip(&answers)
            .map(|(prompt, answer)| Request {
                sampling: Sampling::greedy(),
                max_tokens: Some(answer.len() as u32),
                ..Request::new(prompt.clone())
            })
            .map(|request| model.handle.submit(request).unwrap())
            .collect();
        for (stream, want) in streams.into_iter().zip(&answers) {
            assert_eq!(&common::collect(stream).unwrap().tokens, want, "{name}");
        }
    }
}

#[test]
fn the_default_context_is_the_models_own_up_to_a_bound() {
    let source = Source::open(golden("gemma3", "model.gguf")).unwrap();
    let device = Box::new(Reference::default());
    let model = Engine::load(&source, device, &LoadOptions::default(), |_| {}, |_| {}).unwrap();
    assert_eq!(model.handle.info().context, (model.spec.context as usize).min(CONTEXT_DEFAULT_MAX));
    assert_eq!(model.handle.info().vocab, model.spec.vocab as usize);
    let request = Request { max_tokens: Some(3), ..Request::new(vec![1, 2, 3]) };
    assert_eq!(run(&model.handle, request).tokens.len(), 3);
}

#[test]
fn a_context_of_one_token_is_refused() {
    let source = Source::open(golden("gemma3", "model.gguf")).unwrap();
    let options = LoadOptions { context: Some(1), ..LoadOptions::default() };
    let error =
        Engine::load(&source, Box::new(Reference::default()), &options, |_| {}, |_| {}).err().unwrap();
    assert!(matches!(error, Error::Config { field: "context", value: 1, .. }), "{error}");
}
