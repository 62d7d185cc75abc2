//! Chat templates against what Python's jinja2 renders (`generate_templates.py` makes the goldens).
//! The shared templates and the ones inside model files are compared by digest, with `QUARREL_SHARED` and
//! `QUARREL_FIXTURES` set to their folders; without them those tests say that they are skipped.

use std::path::Path;

use quarrel_formats::gguf::Gguf;
use quarrel_text::chat_template::DateTime;
use quarrel_text::{ChatTemplate, Error, RenderInput};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn data(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

fn render(template: &ChatTemplate, case: &Value) -> Result<String, Error> {
    let mut extra = case.as_object().unwrap().clone();
    let mut take = |key: &str| extra.shift_remove(key);
    let (messages, tools) = (take("messages").unwrap(), take("tools"));
    let token = |value: Option<Value>, default: &str| match value {
        None => Some(default.to_string()),
        Some(value) => value.as_str().map(str::to_string),
    };
    let (bos, eos) = (token(take("bos"), "<s>"), token(take("eos"), "</s>"));
    let add_generation_prompt = take("add_generation_prompt").is_none_or(|v| v.as_bool().unwrap());
    let extra = Value::Object(extra);
    template.render(&RenderInput {
        messages: Some(&messages),
        tools: tools.as_ref(),
        add_generation_prompt,
        bos: bos.as_deref(),
        eos: eos.as_deref(),
        now: DateTime::parse("2024-07-26T15:04:09"),
        extra: Some(&extra),
    })
}

/// Empty if the results are the same; a failure of Python must be one here, a refusal in the same words.
fn difference(got: &Result<String, Error>, want: &Value) -> Option<String> {
    let same = match got {
        Ok(text) => {
            let digest = Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect::<String>();
            want.get("text").is_some_and(|w| w == text) || want.get("sha256").is_some_and(|w| *w == digest)
        }
        Err(Error::TemplateRefused { message, .. }) => want.get("refused").is_some_and(|w| w == message),
        Err(_) => want.get("error").is_some(),
    };
    if same {
        return None;
    }
    let got = got.as_ref().map_err(ToString::to_string);
    let Some(want) = want.get("text").and_then(Value::as_str) else {
        return Some(format!("want {want}\n got {got:?}"));
    };
    let lines = got.iter().flat_map(|g| g.lines()).chain(std::iter::repeat("(nothing)"));
    let differ: Vec<_> = want.lines().zip(lines).filter(|(w, g)| w != g).take(20).collect();
    Some(format!("python, ours: {differ:#?} {:?}", got.as_ref().err()))
}

fn check(name: &str, template: &ChatTemplate, goldens: &Value, problems: &mut Vec<String>) {
    let cases = data("cases.json");
    for (case, input) in cases.as_object().unwrap() {
        if let Some(what) = difference(&render(template, input), &goldens[name][case]) {
            problems.push(format!("{name}, case {case}: {what}"));
        }
    }
}

#[test]
fn own_templates_equal_python() {
    let goldens = data("goldens.json");
    let mut problems = Vec::new();
    for name in goldens.as_object().unwrap().keys() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates").join(name);
        let template = ChatTemplate::new(&std::fs::read_to_string(path).unwrap()).unwrap();
        check(name, &template, &goldens, &mut problems);
    }
    assert!(problems.is_empty(), "{} differ, the first: {}", problems.len(), problems[0]);
}

#[test]
fn shared_templates_equal_python() {
    let Ok(shared) = std::env::var("QUARREL_SHARED") else {
        println!("skipped: QUARREL_SHARED is not set");
        return;
    };
    let goldens = data("goldens_shared.json");
    let mut problems = Vec::new();
    let names = goldens.as_object().unwrap().keys().filter(|n| n.ends_with(".jinja"));
    for name in names {
        let source = std::fs::read_to_string(Path::new(&shared).join("chat_templates").join(name)).unwrap();
        check(name, &ChatTemplate::new(&source).unwrap(), &goldens, &mut problems);
    }
    assert!(problems.is_empty(), "{} differ, the first: {}", problems.len(), problems[0]);
}

#[test]
fn templates_inside_model_files_equal_python() {
    let Ok(fixtures) = std::env::var("QUARREL_FIXTURES") else {
        println!("skipped: QUARREL_FIXTURES is not set");
        return;
    };
    let goldens = data("goldens_shared.json");
    let mut problems = Vec::new();
    for name in goldens.as_object().unwrap().keys().filter(|n| n.ends_with(".gguf")) {
        let Ok(bytes) = std::fs::read(Path::new(&fixtures).join(name)) else {
            println!("skipped: {name} is not in QUARREL_FIXTURES");
            continue;
        };
        let gguf = Gguf::parse(&bytes).unwrap();
        let template = ChatTemplate::from_gguf(&gguf.metadata).unwrap().unwrap();
        check(name, &template, &goldens, &mut problems);
    }
    assert!(problems.is_empty(), "{} differ, the first: {}", problems.len(), problems[0]);
}
