//! Grammars of tool calls on a real vocabulary: they compile within the limits for strangers, let a call through token by
//! token, and what they let through is read.

use std::sync::Arc;

use quarrel_formats::gguf::Gguf;
use quarrel_text::tool_calls::{Arguments, control_token, tool_grammar};
use quarrel_text::{
    Ends, GrammarFactory, GrammarSpec, OutputEvent, OutputParser, Prompt, Special, Tokenizer, Tool,
    ToolChoice, ToolFormat,
};
use serde_json::json;

fn tokenizer() -> Arc<Tokenizer> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokens/bpe-qwen2.gguf");
    let gguf = Gguf::parse(&std::fs::read(path).unwrap()).unwrap();
    Arc::new(Tokenizer::from_gguf(&gguf.metadata).unwrap())
}

fn tools(n: usize) -> Vec<Tool> {
    let schema = json!({"type": "object", "properties": {
        "city": {"type": "string", "description": "Where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "of": {"type": "array", "items": {"$ref": "#/$defs/kind"}}},
        "required": ["city"], "$defs": {"kind": {"enum": ["rain", "wind"]}}});
    let one =
        |i| json!({"type": "function", "function": {"name": format!("weather_{i}"), "parameters": schema}});
    Tool::list_from_openai(&(0..n).map(one).collect()).unwrap()
}

#[test]
fn a_call_is_forced_and_read() {
    let tokenizer = tokenizer();
    let factory = GrammarFactory::new(tokenizer.clone()).unwrap();
    let grammar =
        tool_grammar(ToolFormat::Hermes, &tools(2), &ToolChoice::Required, true, &control_token(&tokenizer));
    let compiled = factory.compile(&GrammarSpec::Lark(grammar)).unwrap();
    let text = "<tool_call>\n{\"name\": \"weather_1\", \"arguments\": {\"city\": \"Paris é\", \"of\": [\"rain\"]}}\n</tool_call>";
    let mut parser =
        OutputParser::new(ToolFormat::Hermes, None, Prompt::Silent, tools(2), Arguments::Streamed);
    let mut follower = compiled.deep_clone();
    let mut decoder = quarrel_text::StreamDecoder::new(
        quarrel_text::stream_decoder::Leading::Keep,
        quarrel_text::stream_decoder::Control::Show,
    );
    let mut events = Vec::new();
    for id in tokenizer.encode(text, Special::Plain, Ends::None).unwrap() {
        follower.accept(id).unwrap();
        events.extend(parser.push(&decoder.push(&tokenizer, id).unwrap()));
    }
    assert!(follower.is_complete());
    events.extend(parser.finish(false));
    assert_eq!(events.first(), Some(&OutputEvent::ToolCallBegin { index: 0, name: "weather_1".into() }));
    assert_eq!(events.last(), Some(&OutputEvent::ToolCallEnd { index: 0 }));
    assert!(events.len() > 5, "arguments come as they are written: {events:?}");

    let wrong = tokenizer.encode(&text.replace("rain", "snow"), Special::Plain, Ends::None).unwrap();
    let mut follower = compiled.deep_clone();
    assert!(wrong.into_iter().any(|id| follower.accept(id).is_err()), "the schema's definitions hold");
}

#[test]
fn grammars_of_all_families_compile() {
    let tokenizer = tokenizer();
    let factory = GrammarFactory::new(tokenizer.clone()).unwrap();
    let control = control_token(&tokenizer);
    for format in ToolFormat::ALL {
        for choice in
            [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named("weather_0".into()), ToolChoice::None]
        {
            for n in [1, 24] {
                let grammar = tool_grammar(format, &tools(n), &choice, true, &control);
                if let Err(e) = factory.compile(&GrammarSpec::Lark(grammar.clone())) {
                    panic!("{format:?} {choice:?} {n}: {e}\n{grammar}");
                }
            }
        }
    }
}

#[test]
fn marks_that_are_control_tokens_stand_as_tokens() {
    let tokenizer = tokenizer();
    let control = control_token(&tokenizer);
    let name = "<|im_start|>";
    assert!(control(name).is_some() && control("<tool_call>").is_none());
    assert!(!ToolFormat::Hermes.needs_control_tokens(&tokenizer), "its marks are text in this vocabulary");
}
