//! The fields of guidance in OpenAI's forms: what is banned never shows, whole or streamed; identities are plain; errors name
//! the field.

use serde_json::{Value, json};

use std::sync::Arc;

use quarrel_server::ModelSource;

use crate::common::{self, ENCODER, post, with};

const PATH: &str = "/v1/completions";

fn body() -> Value {
    json!({ "prompt": "The quick brown fox", "max_tokens": 60, "seed": 3, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
            "min_p": 0.0, "ignore_eos": true })
}

fn text(value: &Value) -> &str {
    value["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn what_is_banned_never_shows_whole_or_streamed() {
    let plain = post(PATH, &body()).json();
    assert!(plain["usage"].get("guidance").is_none(), "{plain}");
    // Three characters of the answer, and every digit.
    let chars: Vec<char> = text(&plain).chars().filter(|c| *c != '\u{FFFD}').collect();
    let word: String =
        chars.windows(3).find(|w| w.iter().all(char::is_ascii_alphabetic)).unwrap().iter().collect();
    let banned =
        with(&body(), json!({ "banned_strings": [word.to_uppercase()], "banned_regexes": ["[0-9]+"] }));
    let whole = post(PATH, &banned).json();
    let clean = text(&whole).to_lowercase();
    assert!(
        !clean.contains(&word.to_lowercase()) && !clean.contains(|c: char| c.is_ascii_digit()),
        "{whole}"
    );
    let cost = &whole["usage"]["guidance"];
    assert!(
        cost["rewinds"].as_u64().unwrap() > 0 && cost["withdrawn_tokens"].as_u64().unwrap() > 0,
        "{whole}"
    );
    assert_eq!(whole["usage"]["completion_tokens"], 60);
    let streamed = post(PATH, &with(&banned, json!({ "stream": true }))).text;
    let chunks = streamed.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|l| *l != "[DONE]");
    let parts = chunks.map(|l| serde_json::from_str::<Value>(l).unwrap());
    let parts: String = parts.filter_map(|v| v["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(parts, text(&whole));
}

#[test]
fn a_loop_ends_the_answer_and_says_so() {
    let looping = json!({ "logit_bias": { "42": 100.0 }, "guidance": { "repetition": { "tokens": 20 } } });
    let answer = post(PATH, &with(&body(), looping)).json();
    assert_eq!(answer["choices"][0]["finish_reason"], "repetition", "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 20);
}

#[test]
fn a_negative_prompt_of_scale_one_is_plain_and_of_two_is_not() {
    let chat = json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 24, "seed": 5,
                       "temperature": 0.7, "ignore_eos": true });
    let of = |more: Value| {
        let answer = post("/v1/chat/completions", &with(&chat, more)).json();
        (answer["choices"][0]["message"].clone(), answer["usage"].clone())
    };
    let guided = |scale: f64| of(json!({ "guidance": { "negative_prompt": "Be rude", "scale": scale } }));
    let plain = of(json!({}));
    assert_eq!(guided(1.0).0, plain.0);
    let (message, usage) = guided(2.5);
    assert_ne!(message, plain.0);
    assert!(usage["guidance"]["extra_rows"].as_u64().unwrap() >= 24, "{usage}");
    // One sentence after the other is scored; nothing is so bad that it is drawn again.
    let (message, usage) = of(json!({ "guidance": { "coherence": { "min": -1e6 } } }));
    assert_eq!(message, plain.0);
    assert!(usage["guidance"]["extra_rows"].as_u64().unwrap() > 0, "{usage}");
}

/// Requests of a server with a draft model: it guesses, the answer is the same, and they may go away from it.
#[test]
fn a_draft_model_guesses_and_is_gone_away_from() {
    let whole = common::start_with(|config| {
        let first = config.models[0].clone();
        config.settings.draft = Some(ModelSource { id: "draft".into(), resolve: Arc::clone(&first.resolve) });
    });
    let early = common::start_with(|config| config.settings.engine.exit_layers = Some(1));
    let of = |at, more: Value| {
        let reply = common::call(at, "POST", PATH, None, Some(&with(&body(), more)));
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    };
    let greedy = |more: Value| with(&json!({ "temperature": 0 }), more);
    let plain = post(PATH, &with(&body(), greedy(json!({})))).json();
    for at in [whole, early] {
        for how in [json!({}), json!({ "speculate": "draft" }), json!({ "speculate": "off" })] {
            assert_eq!(text(&of(at, greedy(how.clone()))), text(&plain), "{how}");
        }
        let off = of(at, greedy(json!({ "guidance": { "contrast": { "beta": 0 } } })));
        assert_eq!(text(&off), text(&plain));
    }
    // The model less itself is the model; less its first layer it is not.
    let contrast = json!({ "guidance": { "contrast": { "beta": 2.0, "alpha": 0.0 } } });
    let (same, other) = (of(whole, greedy(contrast.clone())), of(early, greedy(contrast)));
    assert!(text(&same) == text(&plain) && text(&other) != text(&plain), "{same} {other}");
    for answer in [same, other] {
        assert!(answer["usage"]["guidance"]["extra_rows"].as_u64().unwrap() >= 60, "{answer}");
    }
    // An encoder beside them has no draft model.
    let ask = json!({ "model": ENCODER, "input": "a text" });
    for at in [whole, early] {
        let vectors = common::call(at, "POST", "/v1/embeddings", None, Some(&ask));
        assert_eq!(vectors.status, 200, "{}", vectors.text);
    }
    let none = post(PATH, &with(&body(), json!({ "speculate": "draft" })));
    assert_eq!(none.status, 400);
    assert!(none.text.contains("no draft model"), "{}", none.text);
}

#[test]
fn errors_name_the_field() {
    for (more, param, words) in [
        (json!({ "banned_regexes": ["(a"] }), "banned_regexes", "unclosed group"),
        (json!({ "banned_strings": [""] }), "banned_strings", "a pattern of 0 bytes"),
        (json!({ "guidance": { "scale": 2.0 } }), "guidance.scale", "guidance.negative_prompt"),
        (json!({ "guidance": { "contrast": {} } }), "", "no draft model"),
        (json!({ "guidance": { "confidence": { "tries": 99 } } }), "", "guidance.confidence.tries is 99"),
        (json!({ "guidance": { "confidence": {} }, "temperature": 0 }), "", "temperature"),
        (json!({ "guidance": { "what": 1 } }), "guidance.what", "not known"),
    ] {
        let reply = post(PATH, &with(&body(), more.clone()));
        let error = &reply.json()["error"];
        assert_eq!(reply.status, 400, "{more} {error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{more} {error}");
        assert!(param.is_empty() || error["param"] == param, "{more} {error}");
    }
}
