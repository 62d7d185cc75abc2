//! `POST /v1/messages` and `/v1/messages/count_tokens`.

use serde_json::{Value, json};

use crate::common::{MODEL, call, post, schema, start, with};

const PATH: &str = "/v1/messages";

fn body() -> Value {
    json!({
        "model": MODEL, "max_tokens": 12, "temperature": 0, "system": "a",
        "messages": [{ "role": "user", "content": "the town" }],
    })
}

fn tools(name: &str) -> Value {
    json!({
        "max_tokens": 200, "tools": [{ "name": "weather", "description": "d", "input_schema": schema() }],
        "tool_choice": { "type": name, "name": "weather", "disable_parallel_tool_use": true },
    })
}

#[test]
fn an_answer_and_its_stream_are_the_same() {
    let whole = post(PATH, &body());
    assert_eq!(whole.status, 200, "{}", whole.text);
    assert!(whole.header("request-id").is_some());
    let m = whole.json();
    let text = m["content"][0]["text"].as_str().unwrap();
    assert_eq!(
        (&m["type"], &m["role"], &m["model"]),
        (&json!("message"), &json!("assistant"), &json!(MODEL))
    );
    assert_eq!((&m["stop_reason"], &m["stop_sequence"]), (&json!("max_tokens"), &Value::Null));
    assert_eq!(m["usage"]["output_tokens"], 12);

    let reply = post(PATH, &with(&body(), json!({ "stream": true })));
    let events = reply.events();
    let names: Vec<_> = events.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names[..4], ["message_start", "ping", "content_block_start", "content_block_delta"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert!(events.iter().all(|(n, v)| v["type"] == n.as_str()));
    let streamed: String = events.iter().filter_map(|(_, v)| v["delta"]["text"].as_str()).collect();
    assert_eq!(streamed, text);
    let (start, end) = (&events[0].1["message"]["usage"], &events[events.len() - 2].1);
    let tokens = |usage: &Value| {
        usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap()
    };
    assert_eq!(end["delta"]["stop_reason"], "max_tokens");
    assert_eq!(end["usage"]["output_tokens"], 12);
    assert!(tokens(start) == tokens(&end["usage"]) && tokens(start) == tokens(&m["usage"]));

    let mut count = body();
    for name in ["max_tokens", "temperature"] {
        count.as_object_mut().unwrap().remove(name);
    }
    let counted = post("/v1/messages/count_tokens", &count);
    assert_eq!(counted.json(), json!({ "input_tokens": tokens(start) }));
}

#[test]
fn a_stop_sequence_is_told() {
    let text = post(PATH, &body()).json()["content"][0]["text"].as_str().unwrap().to_owned();
    let chars: Vec<char> = text.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 2].iter().collect();
    let more = json!({ "stop_sequences": ["never there", stop] });
    let m = post(PATH, &with(&body(), more.clone())).json();
    assert_eq!((&m["stop_reason"], &m["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let kept = m["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    assert!(text.starts_with(&kept) && !kept.contains(&stop), "{kept:?} of {text:?}");
    let events = post(PATH, &with(&with(&body(), more), json!({ "stream": true }))).events();
    let end = &events[events.len() - 2].1["delta"];
    assert_eq!(end, &json!({ "stop_reason": "stop_sequence", "stop_sequence": stop }));
}

#[test]
fn a_tool_is_called_and_its_result_taken() {
    let ask = with(&body(), tools("tool"));
    let m = post(PATH, &ask).json();
    assert_eq!(m["stop_reason"], "tool_use", "{m}");
    let used = m["content"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&used["type"], &used["name"]), (&json!("tool_use"), &json!("weather")));
    assert!(["Bonn", "Rome"].contains(&used["input"]["city"].as_str().unwrap()), "{used}");

    let events = post(PATH, &with(&ask, json!({ "stream": true }))).events();
    let json: String = events.iter().filter_map(|(_, v)| v["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), used["input"]);
    assert!(events.iter().any(|(_, v)| v["content_block"]["name"] == "weather"));

    let mut next = with(&body(), tools("none"));
    next["tool_choice"] = json!({ "type": "none" });
    next["max_tokens"] = 4.into();
    let result = json!([{ "type": "tool_result", "tool_use_id": used["id"], "content": [{ "type": "text", "text": "sun" }] }]);
    let turns = next["messages"].as_array_mut().unwrap();
    turns.push(json!({ "role": "assistant", "content": m["content"] }));
    turns.push(json!({ "role": "user", "content": result }));
    let reply = post(PATH, &next);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[test]
fn reasoning_is_a_block_of_its_own() {
    // The template opens it at this effort, and the budget ends it.
    let thinking = |display: &str| {
        json!({
            "max_tokens": 40, "thinking": { "type": "enabled", "budget_tokens": 8, "display": display },
            "output_config": { "effort": "low" },
        })
    };
    let ask = with(&body(), thinking("summarized"));
    let m = post(PATH, &ask).json();
    let kinds: Vec<_> =
        m["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "text"], "{m}");
    let thought = m["content"][0]["thinking"].as_str().unwrap();
    assert!(!thought.is_empty() && m["content"][0]["signature"] == "unsigned");
    let events = post(PATH, &with(&ask, json!({ "stream": true }))).events();
    let streamed: String = events.iter().filter_map(|(_, v)| v["delta"]["thinking"].as_str()).collect();
    assert_eq!(streamed, thought);
    let hidden = post(PATH, &with(&body(), thinking("omitted"))).json();
    assert_eq!((&hidden["content"][0]["thinking"], &hidden["content"][1]), (&json!(""), &m["content"][1]));
    // What was thought may be given back.
    let mut next = ask.clone();
    next["messages"].as_array_mut().unwrap().extend([
        json!({ "role": "assistant", "content": m["content"] }),
        json!({ "role": "user", "content": "and" }),
    ]);
    assert_eq!(post(PATH, &next).status, 200);
}

#[test]
fn errors_are_in_anthropics_form() {
    let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    for (more, status, kind, words) in [
        (json!({ "foo": 1 }), 400, "invalid_request_error", "foo: this field is not known"),
        (json!({ "model": "other" }), 404, "not_found_error", "\"other\""),
        (json!({ "max_tokens": "x" }), 400, "invalid_request_error", "max_tokens"),
        (json!({ "max_tokens": 0 }), 400, "invalid_request_error", "max_tokens"),
        (json!({ "temperature": -1 }), 400, "invalid_request_error", "temperature"),
        (json!({ "stop_sequences": [""] }), 400, "invalid_request_error", "stop_sequences"),
        (json!({ "messages": [] }), 400, "invalid_request_error", "messages"),
        (
            user(json!([{ "type": "image", "source": {} }])),
            400,
            "invalid_request_error",
            "messages[0].content[0]",
        ),
        (user("the town ".repeat(2000).into()), 400, "invalid_request_error", "tokens"),
    ] {
        for stream in [false, true] {
            let reply = post(PATH, &with(&with(&body(), more.clone()), json!({ "stream": stream })));
            let error = reply.json();
            assert_eq!((reply.status, &error["error"]["type"]), (status, &json!(kind)), "{error}");
            assert_eq!(error["type"], "error");
            assert_eq!(error["request_id"].as_str(), reply.header("request-id"));
            assert!(error["error"]["message"].as_str().unwrap().contains(words), "{error}");
        }
    }
    let mut missing = body();
    missing.as_object_mut().unwrap().remove("max_tokens");
    assert!(post(PATH, &missing).json()["error"]["message"].as_str().unwrap().contains("max_tokens"));
}

#[test]
fn keys_are_asked_for_in_each_form() {
    let at = start(vec!["secret".into()]);
    let anthropic = call(at, "POST", PATH, None, Some(&body()));
    assert_eq!((anthropic.status, &anthropic.json()["error"]["type"]), (401, &json!("authentication_error")));
    let ollama = call(at, "GET", "/api/tags", None, None);
    assert_eq!((ollama.status, ollama.json()["error"].is_string()), (401, true));
    assert_eq!(call(at, "POST", PATH, Some("secret"), Some(&body())).status, 200);
}
