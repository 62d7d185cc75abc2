//! The sampling chain in requests, and `POST /v1/sampling/explain`.

use serde_json::{Value, json};

use crate::common::{MODEL, post, with};

fn ask() -> Value {
    json!({ "model": MODEL, "prompt": "the town", "max_tokens": 8, "seed": 3 })
}

fn text(fields: Value) -> String {
    let whole = post("/v1/completions", &with(&ask(), fields)).json();
    whole["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{whole}")).to_owned()
}

#[test]
fn an_explanation_is_of_the_answer_that_would_be_made() {
    let fields = json!({
        "temperature": 1.2, "dry_multiplier": 0.8, "xtc_probability": 0.5, "typical_p": 0.9, "adaptive": 0.3,
        "dry_sequence_breakers": ["."],
        "samplers": ["penalties", "dry", "temperature", "top_k", "typical_p", "xtc"], "top_k": 20,
    });
    let got =
        post("/v1/sampling/explain", &with(&with(&ask(), fields.clone()), json!({ "candidates": 4 }))).json();
    assert_eq!(got["text"].as_str().unwrap(), text(fields));
    assert_eq!((&got["seed"], &got["finish_reason"]), (&json!(3), &json!("length")));
    let steps = got["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 8);
    for step in steps {
        let stages: Vec<_> =
            step["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
        assert_eq!(stages, ["scores", "temperature", "top_k", "typical_p", "xtc"]);
        assert!(step["stages"][2]["tokens"].as_u64().unwrap() == 20, "{step}");
        assert!(step["stages"][4]["acted"].is_boolean() && step["token"]["uniform"].is_number());
        assert!(step["candidates"].as_array().unwrap().len() <= 4);
    }
}

#[test]
fn conversations_are_explained_too() {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let got =
        post("/v1/sampling/explain", &json!({ "messages": messages, "max_tokens": 3, "temperature": 0 }))
            .json();
    assert_eq!(got["steps"].as_array().unwrap().len(), 3, "{got}");
    assert_eq!(got["steps"][0]["temperature"], 0.0);
}

#[test]
fn identity_settings_give_the_same_text() {
    let plain = json!({ "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0 });
    let off = json!({
        "typical_p": 1, "top_n_sigma": 0, "xtc_probability": 0, "dry_multiplier": 0, "edt_theta": 0, "adaptive": 0,
        "mirostat": 0, "penalty_half_life": 5, "logit_bias": {}, "best_of_by": "likelihood",
    });
    assert_eq!(text(with(&plain, off)), text(plain));
}

#[test]
fn log_probabilities_are_of_the_model_or_of_the_draw() {
    let fields = |of: &str| json!({ "temperature": 0, "logprobs": 2, "logprobs_of": of });
    let logprobs = |of: &str| {
        let whole = post("/v1/completions", &with(&ask(), fields(of))).json();
        whole["choices"][0]["logprobs"]["token_logprobs"][0].as_f64().unwrap()
    };
    assert!(logprobs("raw") < -0.1);
    assert_eq!(logprobs("sampled"), 0.0);
}

/// A search gives the likeliest answers, the best first, whole or as a stream, whatever the sampling is.
#[test]
fn beams_find_what_is_likelier_than_greed() {
    let fields = |more: Value| {
        with(&with(&ask(), json!({ "max_tokens": 12, "logprobs": 0, "ignore_eos": true })), more)
    };
    let of = |more: Value| {
        let whole = post("/v1/completions", &fields(more));
        assert_eq!(whole.status, 200, "{}", whole.text);
        let choices = whole.json()["choices"].as_array().unwrap().clone();
        let mut found: Vec<(u64, String, f64)> = choices
            .iter()
            .map(|c| {
                let all = c["logprobs"]["token_logprobs"].as_array().unwrap();
                let sum = all.iter().map(|l| l.as_f64().unwrap()).sum();
                (c["index"].as_u64().unwrap(), c["text"].as_str().unwrap().to_owned(), sum)
            })
            .collect();
        found.sort_by_key(|c| c.0);
        found
    };
    let greedy = of(json!({ "temperature": 0 }));
    let found = of(json!({ "beams": 4, "n": 3, "length_penalty": 0.0 }));
    assert_eq!(found.len(), 3);
    assert!(found[0].2 > greedy[0].2 + 0.01, "{found:?} {greedy:?}");
    assert!(found.windows(2).all(|w| w[0].2 >= w[1].2 && w[0].1 != w[1].1), "{found:?}");
    let streamed =
        post("/v1/completions", &fields(json!({ "beams": 4, "length_penalty": 0.0, "stream": true }))).text;
    let chunks = streamed.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|l| *l != "[DONE]");
    let parts = chunks.map(|l| serde_json::from_str::<Value>(l).unwrap());
    let parts: String = parts.filter_map(|v| v["choices"][0]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(parts, found[0].1);
}

#[test]
fn what_is_wrong_is_named() {
    for (path, fields, param) in [
        ("/v1/completions", json!({ "length_penalty": 2.0 }), "length_penalty"),
        ("/v1/completions", json!({ "beams": 1 }), "beams"),
        ("/v1/completions", json!({ "beams": 4, "n": 5 }), "beams"),
        (
            "/v1/completions",
            json!({ "beams": 4, "xtc_probability": 0.5, "temperature": 0.5 }),
            "xtc_probability",
        ),
        ("/v1/sampling/explain", json!({ "beams": 2 }), "n"),
        ("/v1/completions", json!({ "samplers": ["luck"] }), "samplers"),
        ("/v1/completions", json!({ "mirostat": 2, "top_p": 0.5 }), "mirostat"),
        ("/v1/completions", json!({ "typical_p": 1.5 }), "typical_p"),
        (
            "/v1/completions",
            json!({ "dry_multiplier": 1, "dry_sequence_breakers": ["\u{1}\u{2}\u{3}"] }),
            "dry_sequence_breakers",
        ),
        ("/v1/completions", json!({ "logprobs_of": "both" }), "logprobs_of"),
        ("/v1/sampling/explain", json!({ "stream": true }), "stream"),
        ("/v1/sampling/explain", json!({ "n": 2 }), "n"),
        ("/v1/sampling/explain", json!({ "max_tokens": 1000 }), "max_tokens"),
        ("/v1/sampling/explain", json!({ "candidates": 1000 }), "candidates"),
        ("/v1/sampling/explain", json!({ "messages": [] }), "messages"),
        ("/v1/sampling/explain", json!({ "luck": 1 }), "luck"),
    ] {
        let reply = post(path, &with(&ask(), fields));
        assert_eq!(
            (reply.status, reply.json()["error"]["param"].as_str()),
            (400, Some(param)),
            "{}",
            reply.text
        );
    }
}
