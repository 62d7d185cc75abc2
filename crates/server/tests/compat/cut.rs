//! Tool calls that `max_tokens` cuts: each API gives them as far as they came, and none makes text of them.

use serde_json::{Value, json};

use crate::common::{MODEL, post, schema, with};

fn text_has_no_call(text: &str) {
    assert!(!text.contains("weather") && !text.contains("tool_call"), "{text:?}");
}

/// The arguments of a chat's call as far as they came, the same whole and in parts, and why it ended.
fn chat(most: u32) -> (Option<String>, Value) {
    let tool = json!({ "type": "function", "function": { "name": "weather", "parameters": schema() } });
    let ask = json!({
        "model": MODEL, "messages": [{ "role": "user", "content": "the town" }], "temperature": 0, "max_tokens": most,
        "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false,
    });
    let whole = post("/v1/chat/completions", &ask).json()["choices"][0].clone();
    text_has_no_call(whole["message"]["content"].as_str().unwrap_or_default());
    let arguments = whole["message"]["tool_calls"][0]["function"]["arguments"].as_str().map(str::to_owned);
    let stream = post("/v1/chat/completions", &with(&ask, json!({ "stream": true }))).text;
    let chunks = stream.lines().filter_map(|l| serde_json::from_str::<Value>(l.strip_prefix("data: ")?).ok());
    let (mut streamed, mut finish) = (None::<String>, Value::Null);
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        text_has_no_call(choice["delta"]["content"].as_str().unwrap_or_default());
        if let Some(delta) = choice["delta"]["tool_calls"][0]["function"]["arguments"].as_str() {
            *streamed.get_or_insert_default() += delta;
        }
        finish = choice["finish_reason"].clone();
    }
    assert_eq!((&streamed, &finish), (&arguments, &whole["finish_reason"]));
    let complete = arguments.as_ref().is_some_and(|a| serde_json::from_str::<Value>(a).is_ok());
    assert!(complete || finish == "length", "{whole}");
    (arguments, finish)
}

#[test]
fn a_cut_call_is_given_as_far_as_it_came() {
    let mut cut = 0;
    for most in (1..64).step_by(3) {
        let (arguments, finish) = chat(most);
        let broken = arguments.as_ref().is_some_and(|a| serde_json::from_str::<Value>(a).is_err());
        cut += usize::from(broken);

        let tool = json!({ "type": "function", "name": "weather", "parameters": schema() });
        let ask = json!({
            "model": MODEL, "input": "the town", "temperature": 0, "max_output_tokens": most, "tools": [tool],
            "tool_choice": "required", "parallel_tool_calls": false,
        });
        let response = post("/v1/responses", &ask).json();
        let call = response["output"].as_array().unwrap().iter().find(|i| i["type"] == "function_call");
        assert_eq!(call.map(|c| c["arguments"].as_str().unwrap()), arguments.as_deref(), "{response}");
        if broken {
            assert_eq!(
                (&call.unwrap()["status"], &response["status"]),
                (&json!("incomplete"), &json!("incomplete"))
            );
            // What goes on from it does not stumble over it.
            let next = json!({ "model": MODEL, "input": "so", "max_output_tokens": 1, "previous_response_id": response["id"] });
            assert_eq!(post("/v1/responses", &next).status, 200);
        }
        text_has_no_call(
            &response["output"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|i| i["type"] == "message")
                .map(Value::to_string)
                .collect::<String>(),
        );

        let tool = json!({ "name": "weather", "input_schema": schema() });
        let ask = json!({
            "model": MODEL, "messages": [{ "role": "user", "content": "the town" }], "temperature": 0, "max_tokens": most,
            "tools": [tool], "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
        });
        let message = post("/v1/messages", &ask).json();
        for block in message["content"].as_array().unwrap() {
            text_has_no_call(block["text"].as_str().unwrap_or_default());
            assert!(block["type"] == "text" || block["input"].is_object(), "{block}");
        }
        let reason = if finish == "tool_calls" { "tool_use" } else { "max_tokens" };
        assert_eq!(message["stop_reason"], reason);
    }
    assert!(cut > 1, "{cut}");
}
