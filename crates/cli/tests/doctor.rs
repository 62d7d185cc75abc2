//! `quarrel doctor` on tiny models with what people meet wrong in them: each fault is found, and named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use quarrel_formats::gguf::{self, NewTensor};
use quarrel_formats::{Metadata, Source, Value as MetaValue};
use serde_json::Value;

/// The model of the tests with another header.
fn model(dir: &Path, change: impl Fn(&mut Metadata)) -> PathBuf {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../conform/goldens/tiny/smollm2/model.gguf");
    let Source::Gguf(source) = Source::open(golden).unwrap() else { panic!("not a GGUF") };
    let mut metadata = source.metadata.clone();
    change(&mut metadata);
    let source = Source::Gguf(source);
    let shapes: Vec<Vec<u64>> =
        source.tensors().map(|t| t.shape.iter().map(|d| *d as u64).collect()).collect();
    let tensors = source.tensors().zip(&shapes);
    let tensors = tensors.map(|(t, shape)| NewTensor { name: &t.name, dtype: t.dtype, shape, data: &t.data });
    let path = dir.join("model.gguf");
    gguf::write(&mut fs::File::create(&path).unwrap(), &metadata, &tensors.collect::<Vec<_>>()).unwrap();
    path
}

/// The exit code and the findings as `what: grade: said`.
fn doctor(change: impl Fn(&mut Metadata), more: &[&str]) -> (i32, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path(), change);
    let output = Command::new(env!("CARGO_BIN_EXE_quarrel"))
        .args(["doctor", "--json", path.to_str().unwrap()])
        .args(more)
        .env_clear()
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let word = |f: &Value, key: &str| f[key].as_str().unwrap().to_string();
    let findings = json["findings"].as_array().unwrap();
    let findings = findings.iter().map(|f| [word(f, "what"), word(f, "grade"), word(f, "said")].join(": "));
    (output.status.code().unwrap(), findings.collect())
}

fn has(findings: &[String], parts: &[&str]) -> bool {
    findings.iter().any(|f| parts.iter().all(|p| f.contains(p)))
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot|>{% endfor %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";

fn put(meta: &mut Metadata, key: &str, value: MetaValue) {
    meta.insert(key, value);
}

fn set(meta: &mut Metadata, key: &str, value: &str) {
    put(meta, key, MetaValue::String(value.into()));
}

#[test]
fn a_model_without_faults_in_its_header_has_none() {
    let (code, findings) = doctor(
        |m| {
            set(m, "tokenizer.chat_template", TEMPLATE);
            m.insert("tokenizer.ggml.eot_token_id", MetaValue::U32(2));
        },
        &["--no-run"],
    );
    assert_eq!(code, 0, "{findings:#?}");
    assert!(has(&findings, &["turns: ok", "<|eot|>"]), "{findings:#?}");
    assert!(has(&findings, &["architecture: ok", "layers"]) && has(&findings, &["rope: ok", "100000"]));
}

#[test]
fn each_fault_is_found_and_named() {
    for (change, parts) in [
        // The token behind an answer ends none: the model would speak on for the user.
        (
            (|m: &mut Metadata| set(m, "tokenizer.chat_template", &TEMPLATE.replace("<|eot|>", "<|begin|>")))
                as fn(&mut Metadata),
            &["turns: wrong", "<|begin|>", "--stop"][..],
        ),
        (|m| set(m, "tokenizer.chat_template", "{% if %}"), &["template: wrong", "line"]),
        (|m| set(m, "tokenizer.chat_template", "hello"), &["template: wrong", "leaves the question out"]),
        (|m| put(m, "llama.rope.freq_base", MetaValue::F32(10.0)), &["rope: wrong", "base 10"]),
        (|m| put(m, "llama.strange_key", MetaValue::U32(1)), &["architecture: wrong", "strange_key"]),
    ] {
        let (code, findings) = doctor(change, &["--no-run"]);
        assert!(code == 1 && has(&findings, parts), "{parts:?}: {findings:#?}");
    }
}

#[test]
fn random_weights_know_no_english() {
    let (code, findings) = doctor(|_| (), &["--threads", "1"]);
    assert_eq!(code, 1);
    assert!(has(&findings, &["prose: wrong", "little better than a guess"]), "{findings:#?}");
    assert!(has(&findings, &["generation", "goes on with"]), "{findings:#?}");
    assert!(has(&findings, &["template: note", "does not converse"]), "{findings:#?}");
}
