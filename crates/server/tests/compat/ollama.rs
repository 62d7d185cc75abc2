//! `POST /api/chat` and `/api/generate`, and what is told of models.

use serde_json::{Value, json};

use crate::common::{CONTEXT, MODEL, call, post, schema, server, with};

fn chat() -> Value {
    json!({
        "model": MODEL, "messages": [{ "role": "user", "content": "the town" }],
        "options": { "temperature": 0, "num_predict": 10, "num_ctx": CONTEXT, "repeat_last_n": -1, "repeat_penalty": 1.0 },
        "keep_alive": "5m",
    })
}

fn generate() -> Value {
    json!({ "model": "tiny:latest", "prompt": "the town", "options": { "temperature": 0, "num_predict": 10 } })
}

#[test]
fn chat_streams_lines_unless_told_otherwise() {
    let lines = post("/api/chat", &chat()).lines();
    let whole = post("/api/chat", &with(&chat(), json!({ "stream": false }))).json();
    let streamed: String = lines.iter().map(|l| l["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(Some(streamed.as_str()), whole["message"]["content"].as_str());
    assert!(lines[..lines.len() - 1].iter().all(|l| l["done"] == false));
    for last in [lines.last().unwrap(), &whole] {
        assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")));
        assert_eq!((&last["eval_count"], &last["model"]), (&json!(10), &json!(MODEL)));
        for name in
            ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_duration"]
        {
            assert!(last[name].is_u64(), "{name}: {last}");
        }
    }
}

#[test]
fn generate_takes_prompts_with_and_without_template() {
    let lines = post("/api/generate", &generate()).lines();
    let whole = post("/api/generate", &with(&generate(), json!({ "stream": false }))).json();
    let streamed: String = lines.iter().map(|l| l["response"].as_str().unwrap()).collect();
    assert_eq!(Some(streamed.as_str()), whole["response"].as_str());
    let raw = post("/api/generate", &with(&generate(), json!({ "stream": false, "raw": true }))).json();
    let count = |v: &Value| v["prompt_eval_count"].as_u64().unwrap();
    assert!(count(&raw) < count(&whole), "{raw} {whole}");
    let told = post("/api/generate", &with(&generate(), json!({ "stream": false, "system": "a" }))).json();
    assert!(count(&told) > count(&whole));
    for body in [json!({ "model": MODEL }), json!({ "model": MODEL, "prompt": "" })] {
        let loaded = post("/api/generate", &body).json();
        assert_eq!(
            (&loaded["done"], &loaded["done_reason"], &loaded["response"]),
            (&json!(true), &json!("load"), &json!(""))
        );
    }
}

#[test]
fn the_form_of_the_answer_is_forced() {
    let schema = json!({ "type": "object", "properties": { "n": { "type": "boolean" } }, "required": ["n"], "additionalProperties": false });
    let ask = with(
        &chat(),
        json!({ "format": schema, "stream": false, "options": { "num_predict": 200, "temperature": 0 }, "think": false }),
    );
    let answer = post("/api/chat", &ask).json();
    let value: Value = serde_json::from_str(answer["message"]["content"].as_str().unwrap()).unwrap();
    assert!(value["n"].is_boolean(), "{value}");
}

#[test]
fn calls_and_their_results_go_round() {
    let tool = json!({ "type": "function", "function": { "name": "weather", "description": "d", "parameters": schema() } });
    // A model of random weights calls nothing by itself: what it is told of calls is looked at.
    let call = json!({ "function": { "name": "weather", "arguments": { "city": "Rome" } } });
    let ask = with(
        &chat(),
        json!({ "tools": [tool], "stream": false, "messages": [
        { "role": "user", "content": "a" }, { "role": "assistant", "content": "", "tool_calls": [call] },
        { "role": "tool", "content": "sun", "tool_name": "weather" }] }),
    );
    let reply = post("/api/chat", &ask);
    assert_eq!(reply.status, 200, "{}", reply.text);
    let mut lost = ask.clone();
    lost["messages"][2]["tool_name"] = "other".into();
    let reply = post("/api/chat", &lost);
    assert!(reply.status == 400 && reply.text.contains("messages[2]"), "{}", reply.text);
}

#[test]
fn reasoning_is_told_apart() {
    // The template opens it at this effort.
    let ask = with(&chat(), json!({ "think": "low" }));
    let whole = post("/api/chat", &with(&ask, json!({ "stream": false }))).json()["message"].clone();
    let lines = post("/api/chat", &ask).lines();
    let streamed: String = lines.iter().filter_map(|l| l["message"]["thinking"].as_str()).collect();
    assert_eq!((&whole["thinking"], &whole["content"]), (&json!(streamed), &json!("")));
    assert!(!streamed.is_empty());
}

#[test]
fn errors_are_in_ollamas_form() {
    for (path, more, status, words) in [
        ("/api/chat", json!({ "foo": 1 }), 400, "foo: this field is not known"),
        ("/api/chat", json!({ "model": "other" }), 404, "\"other\""),
        ("/api/chat", json!({ "options": { "mirostat": 3 } }), 400, "options.mirostat"),
        ("/api/chat", json!({ "options": { "tfs_z": 1 } }), 400, "options.tfs_z"),
        ("/api/chat", json!({ "options": { "num_ctx": 100_000 } }), 400, "options.num_ctx"),
        ("/api/chat", json!({ "options": { "temperature": -1 } }), 400, "options.temperature"),
        ("/api/chat", json!({ "options": { "repeat_penalty": -1 } }), 400, "options.repeat_penalty"),
        ("/api/chat", json!({ "options": { "num_predict": 0 } }), 400, "options.num_predict"),
        ("/api/chat", json!({ "format": "yaml" }), 400, "format"),
        ("/api/chat", json!({ "think": 3 }), 400, "think"),
        (
            "/api/chat",
            json!({ "messages": [{ "role": "user", "content": "a", "images": ["AA=="] }] }),
            400,
            "messages[0].images",
        ),
        ("/api/chat", json!({ "messages": [], "keep_alive": 0 }), 400, "keep_alive"),
        ("/api/generate", json!({ "template": "{{ .Prompt }}" }), 400, "template"),
        ("/api/generate", json!({ "suffix": "b" }), 400, "suffix"),
        ("/api/generate", json!({ "context": [1, 2] }), 400, "context"),
        ("/api/generate", json!({ "raw": true, "system": "a" }), 400, "system"),
    ] {
        let body = if path == "/api/chat" { chat() } else { generate() };
        let reply = post(path, &with(&body, more));
        let error = reply.json();
        assert_eq!(reply.status, status, "{error}");
        assert!(error["error"].as_str().unwrap().contains(words), "{words}: {error}");
        assert_eq!(error.as_object().unwrap().len(), 1, "{error}");
    }
    assert!(call(server(), "GET", "/api/nothing", None, None).json()["error"].is_string());
}

#[test]
fn models_are_told() {
    let get = |path: &str| call(server(), "GET", path, None, None).json();
    // Loaded by being asked.
    let show = post("/api/show", &json!({ "model": MODEL })).json();
    assert_eq!(show["details"]["family"], "llama");
    assert_eq!(show["model_info"]["llama.context_length"], 256);
    assert_eq!(show["capabilities"], json!(["completion", "tools", "thinking"]));
    assert!(show["template"].as_str().unwrap().contains("tool_calls"));
    for path in ["/api/tags", "/api/ps"] {
        let list = get(path);
        assert_eq!(
            (&list["models"][0]["name"], &list["models"][0]["details"]["format"]),
            (&json!(MODEL), &json!("gguf"))
        );
    }
    assert_eq!(get("/api/ps")["models"][0]["context_length"], CONTEXT);
    assert_eq!(get("/api/version"), json!({ "version": env!("CARGO_PKG_VERSION") }));
    assert_eq!(post("/api/show", &json!({ "model": "other" })).status, 404);
}
