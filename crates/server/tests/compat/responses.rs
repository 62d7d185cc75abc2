//! `POST /v1/responses`, and what is kept of it.

use serde_json::{Value, json};

use crate::common::{MODEL, Reply, call, post, schema, server, with};

const PATH: &str = "/v1/responses";

fn body() -> Value {
    json!({ "model": MODEL, "input": "the town", "max_output_tokens": 12, "temperature": 0 })
}

fn text(response: &Value) -> &str {
    let message = response["output"].as_array().unwrap().iter().find(|i| i["type"] == "message");
    message.unwrap_or_else(|| panic!("{response}"))["content"][0]["text"].as_str().unwrap()
}

fn on(method: &str, id: &Value, more: &str) -> Reply {
    call(server(), method, &format!("{PATH}/{}{more}", id.as_str().unwrap()), None, None)
}

#[test]
fn an_answer_and_its_stream_are_the_same() {
    let whole = post(PATH, &with(&body(), json!({ "metadata": { "k": "v" }, "instructions": "a" }))).json();
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")), "{whole}");
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!((&whole["usage"]["output_tokens"], &whole["metadata"]["k"]), (&json!(12), &json!("v")));

    let events = post(PATH, &with(&body(), json!({ "instructions": "a", "stream": true }))).events();
    let names: Vec<_> = events.iter().map(|(n, _)| n.as_str()).collect();
    let first = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
    ];
    let last = [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!((&names[..5], &names[names.len() - 4..]), (&first[..], &last[..]));
    for (i, (name, event)) in events.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(i)));
    }
    let deltas = events.iter().filter(|(n, _)| n == "response.output_text.delta");
    let streamed: String = deltas.map(|(_, v)| v["delta"].as_str().unwrap()).collect();
    let done = &events.last().unwrap().1["response"];
    assert_eq!((streamed.as_str(), text(done)), (text(&whole), text(&whole)));
    assert_eq!(events[0].1["response"]["id"], done["id"]);
}

#[test]
fn responses_go_on_from_each_other() {
    let first = post(PATH, &body()).json();
    let next = with(&body(), json!({ "input": "and", "previous_response_id": first["id"] }));
    let second = post(PATH, &next).json();
    let asked = |input: Value| post(PATH, &with(&body(), json!({ "input": input, "store": false }))).json();
    // The same as if all had been sent again.
    let answer = json!({ "role": "assistant", "content": text(&first) });
    let again = asked(
        json!([{ "role": "user", "content": "the town" }, answer, { "role": "user", "content": "and" }]),
    );
    assert_eq!(second["usage"]["input_tokens"], again["usage"]["input_tokens"]);
    assert_eq!(text(&second), text(&again));
    assert_eq!(second["previous_response_id"], first["id"]);

    let read = on("GET", &second["id"], "").json();
    assert_eq!(read, second);
    let items = on("GET", &second["id"], "/input_items").json();
    assert_eq!(items["data"][0]["content"][0]["text"], "and");
    assert_eq!(again["store"], false);
    assert_eq!(on("GET", &again["id"], "").status, 404);

    let streamed = post(PATH, &with(&next, json!({ "stream": true }))).events();
    let id = &streamed.last().unwrap().1["response"]["id"];
    assert_eq!(on("GET", id, "").json()["id"], *id);

    assert_eq!(
        on("DELETE", &first["id"], "").json(),
        json!({ "id": first["id"], "object": "response", "deleted": true })
    );
    assert_eq!(on("GET", &first["id"], "").status, 404);
    let lost = post(PATH, &next);
    assert_eq!((lost.status, &lost.json()["error"]["param"]), (404, &json!("previous_response_id")));
}

#[test]
fn a_function_is_called_and_its_result_taken() {
    let tool = json!({ "type": "function", "name": "weather", "description": "d", "parameters": schema(), "strict": true });
    let ask = with(
        &body(),
        json!({ "tools": [tool], "tool_choice": { "type": "function", "name": "weather" }, "parallel_tool_calls": false, "max_output_tokens": 200 }),
    );
    let response = post(PATH, &ask).json();
    assert_eq!(response["status"], "completed", "{response}");
    let called = response["output"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&called["type"], &called["name"]), (&json!("function_call"), &json!("weather")));
    let arguments: Value = serde_json::from_str(called["arguments"].as_str().unwrap()).unwrap();
    assert!(["Bonn", "Rome"].contains(&arguments["city"].as_str().unwrap()));

    let events = post(PATH, &with(&ask, json!({ "stream": true }))).events();
    let deltas = events.iter().filter(|(n, _)| n == "response.function_call_arguments.delta");
    let streamed: String = deltas.map(|(_, v)| v["delta"].as_str().unwrap()).collect();
    let done = events.iter().find(|(n, _)| n == "response.function_call_arguments.done").unwrap();
    assert_eq!(done.1["arguments"], streamed);
    assert_eq!(called["arguments"], streamed);

    let result = json!([{ "type": "function_call_output", "call_id": called["call_id"], "output": "sun" }]);
    let next = with(
        &body(),
        json!({ "input": result, "previous_response_id": response["id"], "tools": [tool], "tool_choice": "none" }),
    );
    let reply = post(PATH, &next);
    assert_eq!(reply.status, 200, "{}", reply.text);
}

#[test]
fn the_form_of_the_answer_is_forced() {
    let schema = json!({ "type": "object", "properties": { "n": { "type": "boolean" } }, "required": ["n"], "additionalProperties": false });
    let format = json!({ "text": { "format": { "type": "json_schema", "name": "n", "schema": schema, "strict": true } },
        "max_output_tokens": 200, "reasoning": { "effort": "none", "summary": "auto" } });
    let response = post(PATH, &with(&body(), format.clone())).json();
    assert!(serde_json::from_str::<Value>(text(&response)).unwrap()["n"].is_boolean(), "{response}");
    assert_eq!(response["text"], format["text"]);
}

#[test]
fn reasoning_is_an_item_of_its_own() {
    // The template opens it at this effort.
    let ask = with(&body(), json!({ "reasoning": { "effort": "low" } }));
    let response = post(PATH, &ask).json();
    let item = &response["output"][0];
    assert_eq!((&item["type"], &response["reasoning"]["effort"]), (&json!("reasoning"), &json!("low")));
    assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], 12);
    let events = post(PATH, &with(&ask, json!({ "stream": true }))).events();
    let deltas = events.iter().filter(|(n, _)| n == "response.reasoning_text.delta");
    let streamed: String = deltas.map(|(_, v)| v["delta"].as_str().unwrap()).collect();
    assert_eq!(item["content"][0]["text"], streamed);
    // Reasoning may be given back.
    let input = json!([item, { "role": "user", "content": "and" }]);
    assert_eq!(post(PATH, &with(&body(), json!({ "input": input }))).status, 200);
}

#[test]
fn errors_name_the_field() {
    for (more, status, param) in [
        (json!({ "foo": 1 }), 400, "foo"),
        (json!({ "max_tokens": 1 }), 400, "max_tokens"),
        (json!({ "n": 2 }), 400, "n"),
        (json!({ "model": "other" }), 404, "model"),
        (json!({ "max_output_tokens": 0 }), 400, "max_output_tokens"),
        (json!({ "temperature": -1 }), 400, "temperature"),
        (json!({ "background": true }), 400, "background"),
        (json!({ "truncation": "auto" }), 400, "truncation"),
        (json!({ "text": { "format": { "type": "xml" } } }), 400, "text.format.type"),
        (json!({ "tools": [{ "type": "web_search" }] }), 400, "tools"),
        (json!({ "tool_choice": "required" }), 400, "tool_choice"),
        (json!({ "reasoning": { "effort": "huge" } }), 400, "reasoning.effort"),
        (json!({ "input": [{ "type": "item_reference", "id": "x" }] }), 400, "input[0].type"),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }),
            400,
            "input[0].content[0].type",
        ),
        (json!({ "input": "the town ".repeat(2000) }), 400, "input"),
        (json!({ "previous_response_id": "resp_none" }), 404, "previous_response_id"),
    ] {
        let reply = post(PATH, &with(&body(), more));
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, error["param"].as_str()), (status, Some(param)), "{error}");
    }
}
