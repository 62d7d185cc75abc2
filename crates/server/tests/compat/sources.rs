//! A model whose encoder reads the prompt: completions of text and of tokens, what it refuses, and its encoder alone as the model
//! for embeddings.

use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

use crate::common::{call, local, start_with};
use quarrel_server::ModelSource;

#[test]
fn a_prompt_is_a_source_that_ends_with_eos_and_the_encoder_alone_embeds() {
    let at = start_with(|config| {
        let model = |id: &str| {
            let tiny =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/encdec/flan-t5/model.gguf");
            ModelSource { id: id.into(), resolve: Arc::new(move || Ok(local(tiny.clone()))) }
        };
        config.models = vec![model("t5"), model("encoder")];
        config.settings.embedding_model = Some("encoder".into());
    });
    let post = |path: &str, body: Value| call(at, "POST", path, None, Some(&body));
    let ask = |prompt: Value| json!({ "model": "t5", "prompt": prompt, "max_tokens": 8, "temperature": 0 });
    let answer = post("/v1/completions", ask(json!("the cat and the dog"))).json();
    // What `transformers` says.
    let said = "<extra_id_3><extra_id_34><extra_id_34><extra_id_2><extra_id_25><extra_id_25><extra_id_25><extra_id_25>";
    assert_eq!(answer["choices"][0]["text"], said, "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], 10);
    let ids = json!([3, 4, 11, 8, 3, 11, 15, 26, 18, 1]);
    let by_ids = post("/v1/completions", ask(ids)).json();
    assert_eq!((&by_ids["choices"][0]["text"], &by_ids["usage"]), (&json!(said), &answer["usage"]));
    let several =
        json!({ "model": "t5", "prompt": "the cat", "max_tokens": 8, "n": 3, "seed": 4, "temperature": 1.5 });
    assert_eq!(post("/v1/completions", several).json()["choices"].as_array().unwrap().len(), 3);
    let chat = json!({ "model": "t5", "messages": [{ "role": "user", "content": "hi" }] });
    let refused = post("/v1/chat/completions", chat);
    assert!(refused.status == 400 && refused.text.contains("no chat template"), "{}", refused.text);
    let embed = |model: &str| post("/v1/embeddings", json!({ "model": model, "input": "the cat" }));
    assert_eq!(embed("encoder").json()["data"][0]["embedding"].as_array().unwrap().len(), 24);
    let refused = embed("t5");
    assert!(refused.status == 400 && refused.text.contains("encoder alone"), "{}", refused.text);
}
