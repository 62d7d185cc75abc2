//! Grammars through `llguidance` over a vocabulary of bytes, with the marks as text and as control tokens: what a family
//! writes is let through and read back, what it must not write is stopped.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::grammar::tool_grammar;
use super::tests::{read_whole, tools};
use super::*;

const MARKS: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<seed:tool_call>",
    "</seed:tool_call>",
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|tool_call|>",
    "<|/tool_call|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<|tool_call_start|>",
    "<|python_tag|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|start|>",
    "<|constrain|>",
    "<|eos|>",
];

fn id(mark: &str) -> Option<u32> {
    MARKS.iter().position(|m| *m == mark).map(|i| 256 + i as u32)
}

fn encode(text: &str, control: bool) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mark = MARKS.iter().filter(|m| control && rest.starts_with(**m)).max_by_key(|m| m.len());
        let len = mark.map_or(c.len_utf8(), |m| m.len());
        match mark {
            Some(mark) => ids.extend(id(mark)),
            None => ids.extend(rest.as_bytes()[..len].iter().map(|b| u32::from(*b))),
        }
        rest = &rest[len..];
    }
    ids
}

struct Judge(ParserFactory);

impl Judge {
    fn new() -> Self {
        let mut words: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
        words.extend(MARKS.iter().map(|m| [&[0xFF], m.as_bytes()].concat()));
        let info = TokRxInfo {
            vocab_size: words.len() as u32,
            tok_eos: words.len() as u32 - 1,
            tok_bos: None,
            tok_pad: None,
            tok_unk: None,
            tok_end_of_turn: None,
        };
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[]).unwrap();
        factory.quiet();
        Self(factory)
    }

    /// How many of the tokens are let through, and whether the text may end there.
    fn follow(&self, grammar: &str, ids: &[u32]) -> (usize, bool) {
        let parser = self.0.create_parser(TopLevelGrammar::from_lark(grammar.into()));
        let mut matcher = Matcher::new(parser);
        assert!(!matcher.is_error(), "{:?}\n{grammar}", matcher.get_error());
        let n = matcher.try_consume_tokens(ids).unwrap();
        (n, matcher.is_accepting().unwrap())
    }

    fn takes(&self, grammar: &str, text: &str, control: bool) -> bool {
        let ids = encode(text, control);
        self.follow(grammar, &ids) == (ids.len(), true)
    }

    fn stops(&self, grammar: &str, text: &str, control: bool) -> bool {
        let ids = encode(text, control);
        self.follow(grammar, &ids).0 < ids.len()
    }
}

fn grammar(format: ToolFormat, choice: &ToolChoice, parallel: bool, control: bool) -> String {
    tool_grammar(format, &tools(), choice, parallel, &|mark| id(mark).filter(|_| control))
}

/// One call and two calls, exactly as each family was trained to write them.
#[rustfmt::skip]
fn texts() -> Vec<(ToolFormat, &'static str, &'static str)> {
    use ToolFormat::*;
    const TAGS: &str = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>";
    vec![
        (Hermes, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 2, \"units\": \"C\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"),
        (SmolLm3, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"),
        (Prompted, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"),
        (QwenXml, TAGS,
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=units>\nC\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"),
        (SeedXml, "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
            "<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>"),
        (MiniMax, "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n</invoke>\n</minimax:tool_call>",
            "<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>"),
        (Glm, "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>"),
        (Llama, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}; {\"name\": \"now\", \"parameters\": {}}"),
        (Mistral, "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]",
            "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"now\", \"arguments\": {}}]"),
        (MistralNamed, "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}", "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]now[ARGS]{}"),
        (Granite, "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]",
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"now\", \"arguments\": {}}]"),
        (Phi4, "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]<|/tool_call|>",
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"now\", \"arguments\": {}}]<|/tool_call|>"),
        (DeepSeek, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
        (DeepSeekPlain, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
        (Kimi, "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Paris\"}<|tool_call_end|><|tool_calls_section_end|>",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"),
        (Functionary, "<function=get_weather>{\"city\": \"Paris\"}</function>", "<function=get_weather>{\"city\": \"Paris\"}</function><function=now>{}</function>"),
        (CommandR, "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}\n]<|END_ACTION|>",
            "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"now\", \"parameters\": {}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"now\", \"parameters\": {}}\n]<|END_ACTION|>"),
        (Lfm2, "<|tool_call_start|>[get_weather(city=\"Paris\")]<|tool_call_end|>", "<|tool_call_start|>[get_weather(city=\"Paris\", units=\"C\"), now()]<|tool_call_end|>"),
        (Harmony, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\"}", ""),
    ]
}

#[test]
fn what_a_family_writes_is_let_through_and_read() {
    let judge = Judge::new();
    for (format, one, two) in texts() {
        for control in [false, true] {
            let many = grammar(format, &ToolChoice::Required, true, control);
            let single = grammar(format, &ToolChoice::Required, false, control);
            let auto = grammar(format, &ToolChoice::Auto, true, control);
            for (name, g) in [("many", &many), ("single", &single), ("auto", &auto)] {
                assert!(judge.takes(g, one, control), "{format:?} {control} {name}: {one}\n{g}");
            }
            let calls = |text| read_whole(format, text).iter().filter(|e| e.starts_with(['0', '1'])).count();
            assert_eq!(calls(one), 1, "{format:?}: {one}");
            if !two.is_empty() {
                assert!(judge.takes(&many, two, control), "{format:?} {control}: {two}\n{many}");
                assert!(judge.takes(&auto, two, control), "{format:?} {control}: {two}\n{auto}");
                assert!(
                    !judge.takes(&single, two, control),
                    "{format:?} {control}: two calls where one is allowed"
                );
                assert_eq!(calls(two), 2, "{format:?}: {two}");
            }
        }
    }
}

#[test]
fn what_is_no_call_is_stopped() {
    let judge = Judge::new();
    for (format, one, _) in texts() {
        for control in [false, true] {
            let required = grammar(format, &ToolChoice::Required, true, control);
            let auto = grammar(format, &ToolChoice::Auto, true, control);
            assert!(!judge.takes(&required, "", control), "{format:?}: a call is required");
            assert!(judge.stops(&required, "Hello", control), "{format:?}: a call is required");
            let hello = if format == ToolFormat::Harmony {
                "<|channel|>final<|message|>Hello"
            } else {
                "Hello, you."
            };
            assert!(judge.takes(&auto, hello, control), "{format:?} {control}: text is allowed\n{auto}");
            for (from, to) in [("get_weather", "get_water"), ("city", "town")] {
                let wrong = one.replace(from, to);
                if wrong != one {
                    assert!(judge.stops(&required, &wrong, control), "{format:?} {control}: {wrong}");
                    assert!(
                        judge.stops(&auto, &wrong, control),
                        "{format:?} {control} auto: {wrong}\n{auto}"
                    );
                }
            }
            if !matches!(format, ToolFormat::Llama | ToolFormat::Harmony) {
                let late = format!("Let me look.\n{one}");
                assert!(
                    judge.takes(&auto, &late, control),
                    "{format:?} {control}: text, then a call\n{auto}"
                );
            }
            let named = grammar(format, &ToolChoice::Named("now".into()), true, control);
            assert!(
                judge.stops(&named, &one.replace("now", "get_weather"), control) || one.contains("now"),
                "{format:?}"
            );
        }
    }
}

#[test]
fn arguments_follow_the_schema() {
    let judge = Judge::new();
    let g = grammar(ToolFormat::Hermes, &ToolChoice::Required, true, false);
    let call = |arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    assert!(judge.takes(&g, &call(r#"{"city": "a \"b\"", "days": -3}"#), false));
    for wrong in [
        "{}",
        r#"{"days": 3}"#,
        r#"{"city": 3}"#,
        r#"{"city": "a", "days": "3"}"#,
        r#"{"city": "a", "units": "K"}"#,
        r#"{"city": "a", "other": 1}"#,
        r#"{"city":  "a"}"#,
        "[]",
    ] {
        assert!(judge.stops(&g, &call(wrong), false), "{wrong}");
    }
    let mistral = grammar(ToolFormat::Mistral, &ToolChoice::Required, true, true);
    for space in ["", " "] {
        let text = format!("[TOOL_CALLS]{space}[{{\"name\": \"now\", \"arguments\": {{}}}}]");
        assert!(judge.takes(&mistral, &text, true), "{text}");
    }
    let none = grammar(ToolFormat::Hermes, &ToolChoice::None, true, false);
    assert!(judge.takes(&none, "anything <tool_call>", false));
}

/// A text that the grammar lets through, drawn at random; `None` when it does not end soon.
fn draw(judge: &Judge, grammar: &str, seed: u64) -> Option<String> {
    let mut matcher = Matcher::new(judge.0.create_parser(TopLevelGrammar::from_lark(grammar.into())));
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % n
    };
    let mut text = String::new();
    for _ in 0..600 {
        if matcher.is_accepting().unwrap() && (random(2) == 0 || matcher.is_stopped()) {
            return Some(text);
        }
        let mask = matcher.compute_mask().unwrap();
        let allowed = |id: &u32| mask.is_allowed(*id) && (*id >= 256 || (32..127).contains(id) || *id == 10);
        let ids: Vec<u32> = (0..256 + MARKS.len() as u32 - 1).filter(allowed).collect();
        // Marks and quotes end what would seldom end by itself.
        let ends =
            ids.iter().copied().filter(|id| *id >= 256 || matches!(*id, 34 | 60 | 125)).collect::<Vec<u32>>();
        let from = if ends.is_empty() || random(3) > 0 { &ids } else { &ends };
        let id = from[random(from.len())];
        match MARKS.get((id as usize).wrapping_sub(256)) {
            Some(mark) => text.push_str(mark),
            None => text.push(char::from(id as u8)),
        }
        matcher.consume_token(id).unwrap();
    }
    None
}

#[test]
fn what_a_grammar_lets_through_is_read_as_calls() {
    let judge = Judge::new();
    for (format, _, _) in texts() {
        let g = grammar(format, &ToolChoice::Required, true, true);
        let drawn: Vec<String> = (0..12).filter_map(|seed| draw(&judge, &g, seed)).collect();
        assert!(!drawn.is_empty(), "{format:?}: nothing ends");
        for text in drawn {
            let events = read_whole(format, &text);
            let calls = events.iter().filter(|e| e.starts_with(|c: char| c.is_ascii_digit())).count();
            let other = events.iter().any(|e| e.starts_with(['C', '!'])) && format != ToolFormat::Harmony;
            assert!(calls > 0 && !other, "{format:?}: {text:?} gives {events:?}");
        }
    }
}
