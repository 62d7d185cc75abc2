//! Vectors by OpenAI's and Ollama's APIs, of a golden encoder and of a decoder; documents in order; quotas.

use serde_json::{Value, json};

use crate::common::{ENCODER, MODEL, call, post, server, with};

fn ask(input: Value) -> Value {
    json!({ "model": ENCODER, "input": input })
}

fn vectors(reply: &Value) -> Vec<Vec<f64>> {
    let one = |item: &Value| {
        item["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>()
    };
    reply["data"].as_array().unwrap().iter().map(one).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn texts_tokens_and_lists_of_them_become_vectors() {
    let one = post("/v1/embeddings", &ask(json!("cat and cats"))).json();
    assert_eq!((&one["object"], &one["model"]), (&json!("list"), &json!(ENCODER)));
    assert_eq!((&one["data"][0]["object"], &one["data"][0]["index"]), (&json!("embedding"), &json!(0)));
    let vector = vectors(&one).remove(0);
    assert!(vector.len() == 36 && (dot(&vector, &vector) - 1.0).abs() < 1e-5);
    let several = post("/v1/embeddings", &ask(json!(["to be on", "cat and cats", ""]))).json();
    let (of, used) = (vectors(&several), &several["usage"]);
    assert_eq!((of.len(), &of[1]), (3, &vector), "company changes nothing");
    assert!(used["prompt_tokens"] == used["total_tokens"] && used["total_tokens"].as_u64() > Some(10));
    // The same text as tokens, with what the model wants around it.
    let text =
        json!({ "model": ENCODER, "content": "cat and cats", "add_special": true, "parse_special": false });
    let ids = post("/tokenize", &text).json()["tokens"].clone();
    let by_tokens = post("/v1/embeddings", &ask(ids.clone())).json();
    assert_eq!(vectors(&by_tokens)[0], vector);
    assert_eq!(vectors(&post("/v1/embeddings", &ask(json!([ids, [2, 3]]))).json())[0], vector);
    // Without a name it is the model for embeddings.
    assert_eq!(post("/v1/embeddings", &json!({ "input": "a" })).json()["model"], ENCODER);
    // A decoder's hidden states, as they were pooled.
    let decoder =
        post("/v1/embeddings", &json!({ "model": MODEL, "input": ["the town", "the town"] })).json();
    let of = vectors(&decoder);
    assert_eq!((of[0].len(), of[0] == of[1]), (72, true));
    let last = json!({ "model": MODEL, "input": "the town", "pooling": "last", "normalize": false });
    let last = vectors(&post("/v1/embeddings", &last).json()).remove(0);
    assert!((dot(&last, &last) - 1.0).abs() > 1e-3 && last != of[0]);
}

#[test]
fn base64_has_the_same_numbers() {
    let plain = vectors(&post("/v1/embeddings", &ask(json!("on"))).json()).remove(0);
    let coded =
        post("/v1/embeddings", &with(&ask(json!("on")), json!({ "encoding_format": "base64" }))).json();
    let text = coded["data"][0]["embedding"].as_str().unwrap();
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits = text.bytes().filter(|c| *c != b'=').map(|c| u32::from(value(c)));
    let bits: Vec<u32> = bits.collect();
    let bytes: Vec<u8> = bits
        .chunks(4)
        .flat_map(|c| {
            let word = c.iter().fold(0, |w, b| w << 6 | b) << (6 * (4 - c.len()));
            word.to_be_bytes()[1..c.len()].to_vec()
        })
        .collect();
    let numbers: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(numbers, plain.iter().map(|x| *x as f32).collect::<Vec<_>>());
}

#[test]
fn what_is_too_long_is_refused_or_told() {
    let long = "cat ".repeat(60);
    let reply = post("/v1/embeddings", &ask(json!(["on", long])));
    let error = reply.json()["error"].clone();
    assert_eq!(
        (reply.status, &error["param"], &error["code"]),
        (400, &json!("input[1]"), &json!("context_length_exceeded"))
    );
    assert!(error["message"].as_str().unwrap().contains("62 tokens and the model takes 48"), "{error}");
    let cut = post("/v1/embeddings", &with(&ask(json!(["on", long])), json!({ "truncate": true }))).json();
    assert_eq!(cut["truncated"], json!([{ "index": 1, "tokens": 14 }]));
    let ollama = post("/api/embed", &ask(json!(["on", long]))).json();
    assert_eq!(ollama["truncated"], cut["truncated"]);
}

#[test]
fn errors_name_the_field() {
    for (more, param, words) in [
        (json!({ "foo": 1 }), "foo", "not known"),
        (json!({ "input": [] }), "input", "0 texts"),
        (json!({ "input": [[]] }), "input[0]", "no tokens"),
        (json!({ "input": [99_999] }), "input", "vocabulary"),
        (json!({ "input": { "a": 1 } }), "input", "input"),
        (json!({ "dimensions": 12 }), "dimensions", "36"),
        (json!({ "encoding_format": "hex" }), "encoding_format", "hex"),
        (json!({ "pooling": "max" }), "pooling", "max"),
    ] {
        let reply = post("/v1/embeddings", &with(&ask(json!("on")), more));
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let chat = json!({ "model": ENCODER, "prompt": "on", "max_tokens": 1 });
    let error = post("/v1/completions", &chat).json()["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("encoder"), "{error}");
    assert_eq!(post("/v1/embeddings", &json!({ "model": "other", "input": "a" })).status, 404);
}

#[test]
fn ollama_has_its_own_forms() {
    let plain = vectors(&post("/v1/embeddings", &ask(json!(["cat", "on"]))).json());
    let reply = post(
        "/api/embed",
        &with(&ask(json!(["cat", "on"])), json!({ "keep_alive": "5m", "options": { "num_ctx": 48 } })),
    );
    let reply = reply.json();
    let of = |v: &Value| -> Vec<f64> { serde_json::from_value(v.clone()).unwrap() };
    assert_eq!(of(&reply["embeddings"][1]), plain[1]);
    assert!(reply["total_duration"].is_u64() && reply["load_duration"].is_u64());
    assert_eq!(reply["prompt_eval_count"], 6);
    assert_eq!(of(&post("/api/embed", &ask(json!("cat"))).json()["embeddings"][0]), plain[0]);
    let old = post("/api/embeddings", &json!({ "model": ENCODER, "prompt": "cat" })).json();
    let old = of(&old["embedding"]);
    assert!((dot(&old, &plain[0]) / dot(&old, &old).sqrt() - 1.0).abs() < 1e-6 && dot(&old, &old) > 1.1);
    for (path, body, words) in [
        (
            "/api/embed",
            with(&ask(json!("a")), json!({ "options": { "temperature": 0 } })),
            "options.temperature",
        ),
        ("/api/embed", with(&ask(json!("a")), json!({ "options": { "num_ctx": 9999 } })), "options.num_ctx"),
        ("/api/embed", with(&ask(json!("a")), json!({ "foo": 0 })), "foo"),
        ("/api/embed", with(&ask(json!("cat ".repeat(60))), json!({ "truncate": false })), "62 tokens"),
        ("/api/embeddings", json!({ "model": ENCODER, "prompt": "cat ".repeat(60) }), "62 tokens"),
    ] {
        let reply = post(path, &body);
        let error = reply.json()["error"].clone();
        assert!(reply.status == 400 && error.as_str().unwrap().contains(words), "{words}: {error}");
    }
    let show = post("/api/show", &json!({ "model": ENCODER })).json();
    assert_eq!(show["capabilities"], json!(["embedding"]));
}

#[test]
fn documents_come_in_the_order_of_their_likeness() {
    let documents = json!(["to be on", { "text": "cat and cats" }, "dog", "cat and cats"]);
    let ask = json!({ "model": ENCODER, "query": "cat and cats", "documents": documents });
    let all = post("/v1/rerank", &ask).json();
    let results = all["results"].as_array().unwrap();
    let score = |r: &Value| r["relevance_score"].as_f64().unwrap();
    // The query's own text is first; of two that are alike the earlier one.
    assert_eq!((&results[0]["index"], &results[1]["index"], results.len()), (&json!(1), &json!(3), 4));
    assert!(
        (score(&results[0]) - 1.0).abs() < 1e-5 && results.windows(2).all(|w| score(&w[0]) >= score(&w[1]))
    );
    assert!(results[0].get("document").is_none() && all["usage"]["total_tokens"].as_u64() > Some(12));
    assert_eq!(all["meta"]["method"], "embedding-cosine");
    let best = post("/v1/rerank", &with(&ask, json!({ "top_n": 1, "return_documents": true }))).json();
    assert_eq!(best["results"].as_array().unwrap().len(), 1);
    assert_eq!(best["results"][0]["document"], json!({ "text": "cat and cats" }));
    for (more, param) in [
        (json!({ "documents": [] }), "documents"),
        (json!({ "top_n": 0 }), "top_n"),
        (json!({ "rank": 1 }), "rank"),
        (json!({ "query": "cat ".repeat(60), "truncate": false }), "query"),
        (json!({ "documents": ["cat ".repeat(60)], "truncate": false }), "documents[0]"),
    ] {
        let reply = post("/v1/rerank", &with(&ask, more));
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{}", reply.text);
    }
}

#[test]
fn what_was_embedded_is_counted() {
    post("/v1/embeddings", &ask(json!("on")));
    let page = call(server(), "GET", "/metrics", None, None).text;
    let line = page.lines().find(|l| l.starts_with("quarrel_embedded_texts_total{model=\"bert\"}")).unwrap();
    assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 1.0, "{line}");
}

#[test]
fn old_turns_of_a_conversation_are_found_by_meaning_too() {
    let id = post("/v1/conversations", &json!({})).json()["id"].as_str().unwrap().to_owned();
    let say = |text: String| {
        let messages = json!([{ "role": "user", "content": text }]);
        let body = json!({ "model": MODEL, "messages": messages, "conversation": id, "max_tokens": 1 });
        let reply = post("/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()["conversation"].clone()
    };
    let embedded = || -> f64 {
        let page = call(server(), "GET", "/metrics", None, None).text;
        let line = page.lines().find(|l| l.starts_with("quarrel_embedded_texts_total{model=\"bert\"}"));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    };
    let before = embedded();
    let mut told = Value::Null;
    for i in 0..8 {
        told = say(format!("{i} {}", "the cat is on the mat and the dog is not there ".repeat(12)));
    }
    assert_eq!(told["retrieval"], "words and meaning", "{told}");
    assert!(told["left_out"]["messages"].as_u64() > Some(0), "{told}");
    // Made in the background, a text each, and no text twice.
    let begun = std::time::Instant::now();
    while embedded() < before + 8.0 && begun.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(embedded() >= before + 8.0);
}
