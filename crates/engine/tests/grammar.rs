//! A grammar of `quarrel-text` as an engine's constraint: a model of random weights writes JSON of a schema, after reasoning
//! that its budget ends, the same with guesses and in company.

mod common;

use common::{collect, run, spec, start_program};
use quarrel_engine::{Constraint, ConstraintBox, EngineConfig, FinishReason, Request, Sampling, Speculate};
use quarrel_ir::reference::Reference;
use quarrel_model::{ModelSpec, decoder};
use quarrel_text::tokenizer::{Scheme, TokenType, Vocab};
use quarrel_text::{GrammarFactory, GrammarSpec, Guided, Reasoning, Tokenizer};
use serde_json::{Value, json};
use std::sync::Arc;

struct Glue(Guided);

impl Constraint for Glue {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<bool, String> {
        self.0.mask(allowed).map_err(|e| e.to_string())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        self.0.accept(id).map_err(|e| e.to_string())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Glue(self.0.clone()))
    }
}

/// All bytes, some longer tokens, and the special ones.
fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
    let mut types = vec![TokenType::Byte; tokens.len()];
    for (text, kind) in [
        ("{\"", TokenType::Normal),
        ("\":", TokenType::Normal),
        ("true", TokenType::Normal),
        ("</think>", TokenType::UserDefined),
        ("<|im_end|>", TokenType::Control),
    ] {
        tokens.push(text.into());
        types.push(kind);
    }
    let mut vocab = Vocab::new(Scheme::Spm, &tokens);
    vocab.scores = vec![0.0; tokens.len()].into();
    vocab.types = types;
    (vocab.add_bos, vocab.add_space_prefix) = (Some(false), Some(false));
    Tokenizer::from_vocab(&vocab).unwrap()
}

#[test]
fn a_model_of_random_weights_writes_json_of_a_schema_after_its_reasoning() {
    let tokenizer = Arc::new(tokenizer());
    let factory = GrammarFactory::new(tokenizer.clone()).unwrap();
    // The rows of logits are longer than the vocabulary, as those of many models.
    let vocab = tokenizer.vocab_size() as u32 + 11;
    let program = decoder::decoder(&ModelSpec { vocab, ..spec() }, &decoder::Options::default());
    let config = EngineConfig { row_cost_permille: Some(0), ..EngineConfig::new(256) };
    let handle = start_program(Reference::default(), program, config);
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["done", "n"],
        "properties": {"done": {"type": "boolean"}, "n": {"type": "integer", "minimum": 10, "maximum": 99}}});
    let grammar = factory.compile(&GrammarSpec::JsonSchema(schema)).unwrap();
    let reasoning =
        Reasoning { start: String::new(), end: "</think>".into(), budget: Some(6), then: "\n\n".into() };
    for seed in 0..8 {
        let guided = Guided::new(&factory, Some(grammar.deep_clone()), Some(reasoning.clone())).unwrap();
        let request = Request {
            sampling: Sampling {
                seed: Some(seed),
                logit_bias: vec![(32, -9.0), (9, -9.0), (10, -9.0), (13, -9.0)],
                ..Sampling::default()
            },
            max_tokens: Some(240),
            stop_ids: tokenizer.end_of_generation().to_vec(),
            constraint: Some(ConstraintBox::new(Glue(guided))),
            ..Request::new(vec![65, 66, 67])
        };
        let plain = run(&handle, request.clone());
        assert_eq!(plain.reason, FinishReason::Stop);
        let text = String::from_utf8_lossy(&tokenizer.decode_bytes(&plain.tokens).unwrap()).into_owned();
        let (_, answer) = text.split_once("</think>\n\n").unwrap_or_else(|| panic!("{text:?}"));
        let value: Value = serde_json::from_str(answer).unwrap();
        let object = value.as_object().unwrap();
        assert!(object.len() == 2 && object["done"].is_boolean());
        assert!((10..100).contains(&object["n"].as_i64().unwrap()));
        let guesses = Request { speculate: Speculate::Lookup, ..request.clone() };
        let (guessed, beside) = (handle.submit(guesses).unwrap(), handle.submit(request).unwrap());
        for stream in [guessed, beside] {
            let got = collect(stream).unwrap();
            assert_eq!((got.tokens, got.logprobs), (plain.tokens.clone(), plain.logprobs.clone()));
        }
    }
}
