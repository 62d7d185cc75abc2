//! Grammars on a small vocabulary: whatever is drawn among the allowed tokens is text that the specification accepts, the
//! answer may end exactly where it is complete, and specifications made to hurt give an error or finish.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use quarrel_text::grammar::{Grammar, GrammarFactory, GrammarSpec, Guided, Phase, Reasoning};
use quarrel_text::tokenizer::{Scheme, TokenType, Vocab};
use quarrel_text::{Ends, Special, Tokenizer};
use regex_automata::meta::Regex;
use serde_json::{Map, Value, json};

/// Tokens that close what is open come first, so that taking the lowest allowed id ends a JSON text. All bytes are there.
const PIECES: &[&str] = &[
    "\"", "}", "]", "\":", "\",\"", "{\"", "{", "[", ",", ":", "true", "false", "null", "tr", "ue", "0", "1",
    "12", "-", ".5", "a", "ab", "abc", "b", "é", "日本", "\n\n", " ", "  ", ">\n", "><", "thi", "nk", "x</",
    ".", "\\n", "\\u00",
];
const SPECIAL: &[(&str, TokenType)] = &[
    ("<s>", TokenType::Control),
    ("<|im_end|>", TokenType::Control),
    ("<|endoftext|>", TokenType::Control),
    ("<tool>", TokenType::Control),
    ("[UNUSED_1]", TokenType::Unused),
    ("<think>", TokenType::UserDefined),
    ("</think>", TokenType::UserDefined),
];

fn tokenizer(special: &[(&str, TokenType)]) -> Tokenizer {
    let mut tokens: Vec<String> = PIECES.iter().map(|p| p.replace(' ', "▁")).collect();
    let mut types = vec![TokenType::Normal; tokens.len()];
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    types.resize(tokens.len(), TokenType::Byte);
    for (text, kind) in special {
        tokens.push(text.to_string());
        types.push(*kind);
    }
    let mut vocab = Vocab::new(Scheme::Spm, &tokens);
    vocab.scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    vocab.types = types;
    vocab.add_bos = Some(false);
    vocab.add_space_prefix = Some(false);
    Tokenizer::from_vocab(&vocab).unwrap()
}

struct Setup {
    tokenizer: Arc<Tokenizer>,
    factory: GrammarFactory,
}

static SETUP: LazyLock<Setup> = LazyLock::new(|| {
    let tokenizer = Arc::new(tokenizer(SPECIAL));
    Setup { factory: GrammarFactory::new(tokenizer.clone()).unwrap(), tokenizer }
});

fn id(text: &str) -> u32 {
    SETUP.tokenizer.token_id(text).unwrap_or_else(|| panic!("{text} is no token"))
}

fn ids(text: &str) -> Vec<u32> {
    SETUP.tokenizer.encode(text, Special::Parse, Ends::None).unwrap()
}

fn compile(spec: &GrammarSpec) -> Grammar {
    SETUP.factory.compile(spec).unwrap_or_else(|e| panic!("{e}: {spec:?}"))
}

fn list(bits: &[u32]) -> Vec<u32> {
    (0..bits.len() as u32 * 32).filter(|i| bits[*i as usize / 32] >> (i % 32) & 1 == 1).collect()
}

fn allowed(grammar: &mut Grammar) -> Vec<u32> {
    list(grammar.mask().unwrap())
}

fn next(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 16) as usize
}

/// Draws among the allowed tokens until the end, which is taken when it can be from step `steps` on; from then on the lowest
/// id is taken if `close`. `check` sees the text at every step and whether the answer may end there.
fn walk(
    grammar: &mut Grammar,
    mut seed: u64,
    steps: usize,
    close: bool,
    mut check: impl FnMut(&[u8], bool),
) -> Option<Vec<u8>> {
    let ends = SETUP.tokenizer.end_of_generation();
    let mut text = Vec::new();
    for step in 0..1000 {
        let can = allowed(grammar);
        let complete = grammar.is_complete();
        for end in ends {
            assert_eq!(can.contains(end), complete, "{:?}", String::from_utf8_lossy(&text));
        }
        check(&text, complete);
        assert!(!can.is_empty());
        let only_ends = can.len() == ends.len() && complete;
        if complete && (step >= steps || only_ends || next(&mut seed).is_multiple_of(8)) {
            grammar.accept(ends[next(&mut seed) % ends.len()]).unwrap();
            assert_eq!(allowed(grammar), ends);
            assert!(grammar.is_complete() && grammar.accept(id("a")).is_err());
            return Some(text);
        }
        let can: Vec<u32> = can.into_iter().filter(|t| !ends.contains(t)).collect();
        let token = if close && step >= steps { can[0] } else { can[next(&mut seed) % can.len()] };
        assert!(!SETUP.tokenizer.is_special(token) && token != id("[UNUSED_1]"));
        grammar.accept(token).unwrap();
        text.extend_from_slice(SETUP.tokenizer.token_bytes(token).unwrap());
    }
    None
}

/// Whether a value is one of a schema, for the keywords of [`schemas`].
fn accepts(schema: &Value, value: &Value) -> bool {
    let Some(s) = schema.as_object() else { return schema == &Value::Bool(true) };
    let number = |key: &str| s.get(key).and_then(Value::as_f64);
    let kind = match s.get("type").and_then(Value::as_str) {
        None => true,
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("{other}"),
    };
    let within = |n: f64, least: &str, most: &str| {
        number(least).is_none_or(|l| n >= l) && number(most).is_none_or(|m| n <= m)
    };
    let sizes = match value {
        Value::Number(n) => within(n.as_f64().unwrap(), "minimum", "maximum"),
        Value::String(t) => within(t.chars().count() as f64, "minLength", "maxLength"),
        Value::Array(a) => {
            within(a.len() as f64, "minItems", "maxItems")
                && s.get("items").is_none_or(|i| a.iter().all(|v| accepts(i, v)))
        }
        Value::Object(o) => {
            let none = Map::new();
            let properties = s.get("properties").and_then(Value::as_object).unwrap_or(&none);
            let required = s.get("required").and_then(Value::as_array);
            required.into_iter().flatten().all(|k| o.contains_key(k.as_str().unwrap()))
                && o.iter().all(|(k, v)| match properties.get(k) {
                    Some(p) => accepts(p, v),
                    None => s.get("additionalProperties").is_none_or(|a| accepts(a, v)),
                })
        }
        _ => true,
    };
    kind && sizes
        && s.get("enum").and_then(Value::as_array).is_none_or(|e| e.contains(value))
        && s.get("const").is_none_or(|c| c == value)
        && s.get("anyOf").and_then(Value::as_array).is_none_or(|any| any.iter().any(|a| accepts(a, value)))
}

fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "number"})),
        Just(json!({"enum": ["a", "é\"", 12, null]})),
        Just(json!({"const": "ab 日本"})),
        (-20i64..20, 0i64..200).prop_map(|(a, n)| json!({"type": "integer", "minimum": a, "maximum": a + n})),
        (0u32..4, 0u32..6).prop_map(|(a, n)| json!({"type": "string", "minLength": a, "maxLength": a + n})),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![Just("a"), Just("ab"), Just("x\n"), Just("é")];
        let properties = prop::collection::btree_map(key, (inner.clone(), any::<bool>()), 0..4);
        prop_oneof![
            (inner.clone(), 0u32..3, 0u32..3)
                .prop_map(|(i, a, n)| json!({"type": "array", "items": i, "minItems": a, "maxItems": a + n})),
            (properties, prop_oneof![Just(json!(false)), Just(json!(true)), inner.clone()]).prop_map(|(p, more)| {
                let required: Vec<&str> = p.iter().filter(|(_, v)| v.1).map(|(k, _)| *k).collect();
                let properties: Map<String, Value> = p.iter().map(|(k, v)| (k.to_string(), v.0.clone())).collect();
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": more})
            }),
            prop::collection::vec(inner, 1..3).prop_map(|any| json!({"anyOf": any})),
        ]
    })
}

fn regexes() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("a".to_string()),
        Just("b".into()),
        Just("é".into()),
        Just("[a-c]".into()),
        Just(r"\d".into()),
        Just("[^a\\n]".into()),
        Just("日".into()),
        Just(r"\.".into()),
        Just("/".into()),
    ];
    leaf.prop_recursive(4, 20, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|v| v.concat()),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|v| format!("({})", v.join("|"))),
            (inner, prop_oneof![Just("*"), Just("+"), Just("?"), Just("{2,3}"), Just("{0,7}")])
                .prop_map(|(r, n)| format!("({r}){n}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_drawn_is_accepted_by_the_schema(schema in schemas(), seed in 1u64..) {
        let mut grammar = compile(&GrammarSpec::JsonSchema(schema.clone()));
        let text = walk(&mut grammar, seed, 30, true, |text, complete| {
            if complete {
                let value: Value = match serde_json::from_slice(text) {
                    Err(e) if e.to_string().contains("number out of range") => return, // 1e999 is JSON, if no f64
                    value => value.unwrap(),
                };
                assert!(accepts(&schema, &value), "{value} is not of {schema}");
            }
        });
        prop_assert!(text.is_some(), "it did not end: {schema}");
    }

    #[test]
    fn what_is_drawn_is_matched_by_the_regex_and_ends_where_it_matches(regex in regexes(), seed in 1u64..) {
        let mut grammar = compile(&GrammarSpec::Regex(regex.clone()));
        let whole = Regex::new(&format!("^(?:{regex})$")).unwrap();
        walk(&mut grammar, seed, 20, false, |text, complete| {
            assert_eq!(whole.is_match(text), complete, "{regex} {:?}", String::from_utf8_lossy(text));
        });
    }

    #[test]
    fn any_bytes_as_specification_are_an_error_or_a_grammar(text in ".{0,60}", kind in 0..3) {
        let spec = match kind {
            0 => GrammarSpec::Regex(text),
            1 => GrammarSpec::Lark(format!("start: {text}")),
            _ => GrammarSpec::JsonSchema(serde_json::from_str(&text).unwrap_or(json!({"pattern": text, "type": "string"}))),
        };
        if let Err(e) = SETUP.factory.compile(&spec) {
            let e = e.to_string();
            prop_assert!(!e.contains('\n') && !e.contains("panic") && e.len() > 20, "{e}");
        }
    }
}

#[test]
fn any_object_of_json_and_only_that() {
    for seed in 1..40 {
        let text = walk(&mut compile(&GrammarSpec::JsonObject), seed, 25, true, |_, _| {}).unwrap();
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert!(value.is_object());
    }
    let mut grammar = compile(&GrammarSpec::JsonObject);
    assert!(grammar.accept(id("[")).is_err());
    grammar.accept(id("{")).unwrap();
    assert!(!grammar.is_complete() && grammar.accept(id("<|im_end|>")).is_err());
    assert!(grammar.accept(9_999_999).is_err(), "an id that the vocabulary does not have");
}

#[test]
fn a_context_free_grammar() {
    let lark = "start: sum\nsum: NUMBER (\"-\" NUMBER)* | \"[\" sum \"]\"\nNUMBER: /[0-9]+/".to_string();
    let mut grammar = compile(&GrammarSpec::Lark(lark));
    for (text, complete) in
        [("[", false), ("[", false), ("12", false), ("-", false), ("0", false), ("]", false), ("]", true)]
    {
        grammar.accept(id(text)).unwrap();
        assert_eq!(grammar.is_complete(), complete, "after {text}");
    }
    assert_eq!(allowed(&mut grammar), SETUP.tokenizer.end_of_generation());
}

#[test]
fn clones_go_their_own_way_and_deep_ones_on_another_thread() {
    let mut grammar = compile(&GrammarSpec::Regex("a(b|1)*".into()));
    grammar.accept(id("a")).unwrap();
    let (mut left, deep) = (grammar.clone(), grammar.deep_clone());
    left.accept(id("b")).unwrap();
    left.accept(id("<|im_end|>")).unwrap();
    assert_eq!(allowed(&mut left).len(), 2);
    let other = std::thread::spawn(move || {
        let mut deep = deep;
        deep.accept(id("12")).unwrap_err();
        deep.accept(id("1")).unwrap();
        allowed(&mut deep)
    });
    assert_eq!(other.join().unwrap(), allowed(&mut grammar));
    fn shared<T: Send + Sync>() {}
    shared::<GrammarFactory>();
    shared::<Guided>();
}

#[test]
fn a_vocabulary_without_an_end_has_no_grammars() {
    let e = GrammarFactory::new(Arc::new(tokenizer(&[]))).unwrap_err().to_string();
    assert!(e.contains("no token ends an answer"), "{e}");
}

#[test]
fn errors_say_what_is_wrong() {
    for (spec, what) in [
        (GrammarSpec::Regex("(?=a)b".into()), "regular expression: look-around"),
        (GrammarSpec::Regex("(a".into()), "regular expression: unclosed group"),
        (GrammarSpec::Lark("start: /a/ x".into()), "unknown name: \"x\""),
        (GrammarSpec::JsonSchema(json!({"not": {}})), "JSON schema: Unimplemented keys: [\"not\"]"),
        (GrammarSpec::JsonSchema(json!({"$ref": "x.json"})), "`$ref` to \"x.json\": only references within"),
    ] {
        let e = SETUP.factory.compile(&spec).unwrap_err().to_string();
        assert!(e.contains(what), "{e}");
    }
}

fn nested(open: &str, close: &str, n: usize) -> String {
    format!("{}a{}", open.repeat(n), close.repeat(n))
}

#[test]
fn hostile_specifications_are_refused_or_finish() {
    let mut deep = json!({"type": "string"});
    for _ in 0..200 {
        deep = json!({"type": "array", "items": deep});
    }
    let mut doubling = Map::new();
    for i in 0..40 {
        let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
        doubling
            .insert(format!("d{i}"), json!({"allOf": [next, next, {"properties": {format!("p{i}"): next}}]}));
    }
    doubling.insert("d40".into(), json!({"type": "object"}));
    let chain: Map<String, Value> = (0..1500)
        .map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", (i + 1) % 1500)})))
        .collect();
    let wide: Map<String, Value> =
        (0..3000).map(|i| (format!("key {i}"), json!({"type": "integer"}))).collect();
    let schemas = [
        deep,
        json!({"$defs": doubling, "$ref": "#/$defs/d0"}),
        json!({"$defs": chain, "$ref": "#/$defs/d0"}),
        json!({"$ref": "#"}),
        json!({"$ref": "https://example.org/schema.json"}),
        json!({"$ref": "#/nowhere"}),
        json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"properties": wide, "type": "object"}),
        json!({"type": "array", "minItems": 4_000_000_000u64}),
        json!({"type": "array", "items": {"type": "array", "items": {}, "minItems": 99999}, "minItems": 99999, "maxItems": 999_999_999}),
        json!({"type": "string", "minLength": 1_000_000_000, "maxLength": 2_000_000_000}),
        json!({"type": "string", "pattern": "((a*)*)*$(b{1,999}){1,999}"}),
        json!({"type": "object", "patternProperties": {"(x+x+)+y": {}, "(x|xx)*z{500}": {}}}),
        json!({"type": "object", "minProperties": 100_000}),
        json!({"type": "integer", "multipleOf": 1e-300, "minimum": -1e308, "maximum": 1e308}),
        json!({"type": "integer", "multipleOf": 999_983, "minimum": 1, "maximum": 9_007_199_254_740_993i64}),
        json!({"enum": (0..20_000).map(|i| format!("value {i}")).collect::<Vec<_>>()}),
        json!({"not": {"type": "string"}}),
        json!({"x-guidance": {"lenient": true}}),
        json!({"const": "é".repeat(300_000)}),
        json!([1, 2]),
        json!(false),
    ];
    let regexes = [
        nested("(", ")", 5000),
        nested("(", ")*", 200),
        nested("(?:", "){1,9}", 12),
        "(a{1,1000}){1,1000}".into(),
        "a{1000000000}".into(),
        "(((a{100}){100}){100}){100}".into(),
        "(a|aa|aaa)*b(a|aa)*(a|b|ab)*c".into(),
        "(.*a){30}".into(),
        "(a|b)*a(a|b){40}".into(),
        "[a-z]*".repeat(500),
        r"\p{L}{1,500}\p{N}{1,500}".into(),
        "(?=a)b".into(),
        "(a".into(),
        "[z-a]".into(),
        "a&&b".into(),
        "\u{0}\u{ffff}*".into(),
        "x".repeat(100_000),
        String::new(),
    ];
    let larks = [
        "".to_string(),
        "start: start".into(),
        "start: start start | \"a\"".into(),
        "start: start start start | /[a-z ]/".into(),
        "start: a\na: b\nb: a".into(),
        format!("start: {}", nested("(", ")", 3000)),
        "start: \"a\"{1000000,2000000000}".into(),
        "start: %json {\"$ref\": \"#\"}".into(),
        "start: <|nothing|>".into(),
        "start: /a/ x".into(),
        "%import nowhere.THING\nstart: THING".into(),
    ];
    let all = schemas.into_iter().map(GrammarSpec::JsonSchema);
    let all = all
        .chain(regexes.into_iter().map(GrammarSpec::Regex))
        .chain(larks.into_iter().map(GrammarSpec::Lark));
    let (mut refused, mut compiled) = (0, 0);
    for spec in all {
        match SETUP.factory.compile(&spec) {
            Ok(mut grammar) => {
                compiled += 1;
                let mut seed = 7;
                for _ in 0..60 {
                    let Ok(mask) = grammar.mask() else { break };
                    let can = list(mask);
                    if grammar.accept(can[next(&mut seed) % can.len()]).is_err() {
                        break;
                    }
                }
            }
            Err(e) => {
                let e = e.to_string();
                assert!(!e.contains('\n') && !e.contains("panic") && e.len() < 500, "{e}");
                refused += 1;
            }
        }
    }
    assert!(refused > 10 && compiled > 10, "{refused} refused, {compiled} compiled");
}

fn reasoning(budget: Option<u32>) -> Reasoning {
    Reasoning { start: String::new(), end: "</think>".into(), budget, then: "\n\n".into() }
}

fn guided(regex: Option<&str>, reasoning: Option<Reasoning>) -> Guided {
    let grammar = regex.map(|r| compile(&GrammarSpec::Regex(r.into())));
    Guided::new(&SETUP.factory, grammar, reasoning).unwrap()
}

/// What may come next; `None` is anything.
fn can(g: &mut Guided) -> Option<Vec<u32>> {
    let mut bits = vec![0; SETUP.factory.vocab_size().div_ceil(32) + 3];
    g.mask(&mut bits).unwrap().then(|| list(&bits))
}

fn take(g: &mut Guided, tokens: &[u32]) {
    for t in tokens {
        let can = can(g);
        assert!(can.as_ref().is_none_or(|c| c.contains(t)), "{t} in {can:?}");
        g.accept(*t).unwrap();
    }
}

#[test]
fn reasoning_is_free_until_its_end_and_the_grammar_follows() {
    let mut g = guided(Some("ab*"), Some(reasoning(None)));
    let all = can(&mut g).unwrap();
    assert_eq!(all.len(), SETUP.factory.vocab_size() - 2, "all but the two ends");
    take(&mut g, &ids("b 12 {é"));
    assert!(g.accept(id("<|im_end|>")).is_err());
    assert_eq!(g.phase(), Phase::Reasoning);
    take(&mut g, &[id("</think>")]);
    assert_eq!((g.phase(), can(&mut g)), (Phase::Closing, Some(vec![id("\n\n")])));
    assert!(!g.is_complete() && g.accept(id("a")).is_err());
    take(&mut g, &[id("\n\n")]);
    assert_eq!((g.phase(), can(&mut g)), (Phase::Answer, Some(vec![id("a"), id("ab"), id("<0x61>")])));
    take(&mut g, &[id("ab")]);
    assert!(g.is_complete());
    take(&mut g, &[id("<|im_end|>"), id("<|endoftext|>")]);
}

#[test]
fn the_end_may_come_in_pieces_with_white_space_but_not_with_text() {
    let mut g = guided(Some("ab"), Some(reasoning(None)));
    take(&mut g, &[id("x</"), id("thi"), id("nk")]);
    assert!(!can(&mut g).unwrap().contains(&id("><")), "`<` would be in the answer unseen");
    let mut plain = g.clone();
    // What the marker's token brings is not forced again.
    take(&mut g, &[id(">\n")]);
    assert_eq!(can(&mut g), Some(vec![id("<0x0A>")]));
    take(&mut g, &[id("<0x0A>"), id("ab")]);
    take(&mut plain, &[id("<0x3E>"), id("\n\n"), id("ab")]);
}

#[test]
fn a_budget_that_is_used_up_forces_the_end() {
    for (budget, text) in [(0, ""), (1, "a"), (3, "abc12a")] {
        let mut g = guided(Some("ab"), Some(reasoning(Some(budget))));
        take(&mut g, &ids(text));
        assert_eq!((g.phase(), can(&mut g)), (Phase::Closing, Some(vec![id("</think>")])), "{budget}");
        take(&mut g, &[id("</think>"), id("\n\n"), id("ab"), id("<|im_end|>")]);
    }
    // What the model has begun is finished, and a character is not cut.
    let mut g = guided(None, Some(reasoning(Some(1))));
    take(&mut g, &[id("x</")]);
    let mut text = b"x</".to_vec();
    while let Some(forced) = can(&mut g) {
        text.extend_from_slice(SETUP.tokenizer.token_bytes(forced[0]).unwrap());
        take(&mut g, &forced[..1]);
    }
    assert_eq!(text, b"x</think>\n\n");
    assert_eq!((g.phase(), g.is_complete()), (Phase::Answer, true));
    let mut g = guided(None, Some(reasoning(Some(1))));
    take(&mut g, &[id("<0xC3>")]);
    assert_eq!(g.phase(), Phase::Reasoning);
    take(&mut g, &[id("<0xA9>")]);
    assert_eq!(g.phase(), Phase::Closing);
}

#[test]
fn a_model_may_reason_or_answer_at_once() {
    let both = || Some(Reasoning { start: "<think>".into(), ..reasoning(Some(2)) });
    let mut g = guided(Some("ab"), both());
    assert_eq!(can(&mut g), Some(vec![id("a"), id("ab"), id("<0x61>"), id("<think>")]));
    let mut answer = g.clone();
    take(&mut g, &[id("<think>"), id("a"), id("b"), id("</think>"), id("\n\n"), id("a"), id("b")]);
    assert!(g.is_complete());
    take(&mut answer, &[id("a")]);
    assert_eq!(can(&mut answer).unwrap(), [id("b"), id("<0x62>")]);
    // Without a grammar nothing is forbidden but for the budget.
    let mut g = guided(None, both());
    assert_eq!(can(&mut g), None);
    let mut answer = g.clone();
    take(
        &mut g,
        &[
            id("\n\n"),
            id("<think>"),
            id("a"),
            id("a"),
            id("</think>"),
            id("\n\n"),
            id("<think>"),
            id("a"),
            id("a"),
        ],
    );
    assert_eq!((can(&mut g), g.phase()), (None, Phase::Answer));
    take(&mut answer, &[id("a"), id("<think>"), id("a"), id("a"), id("a"), id("<|im_end|>")]);
    assert_eq!(answer.phase(), Phase::Answer);
    assert!(Guided::new(&SETUP.factory, None, Some(Reasoning::default())).is_err());
}

#[test]
fn an_object_of_hundreds_of_optional_properties_can_be_written() {
    let keys: Map<String, Value> = (0..400).map(|i| (format!("a{i}"), json!({"type": "integer"}))).collect();
    let schema = json!({"type": "object", "properties": keys, "additionalProperties": false});
    for seed in 1..6 {
        let mut grammar = compile(&GrammarSpec::JsonSchema(schema.clone()));
        let text = walk(&mut grammar, seed, 40, true, |_, _| {}).unwrap();
        assert!(serde_json::from_slice::<Value>(&text).unwrap().is_object());
    }
}
