//! `run` with a form of the answer that is forced token by token, and searches, as a script runs them.

use std::path::Path;
use std::process::Command;

fn run(args: &[&str]) -> (i32, String, String) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/tiny/smollm2/model.gguf");
    let home = tempfile::tempdir().unwrap();
    let mut c = Command::new(env!("CARGO_BIN_EXE_quarrel"));
    c.env_clear().env("HOME", home.path()).args([
        "run",
        "-q",
        "--raw",
        "--prompt",
        "in the town",
        "--seed",
        "3",
    ]);
    let o = c.arg("--model").arg(model).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (o.status.code().unwrap(), text(o.stdout), text(o.stderr))
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let schema =
        r#"{"type":"object","properties":{"n":{"enum":[7]}},"required":["n"],"additionalProperties":false}"#;
    let (at, lark) = (file("s.json", schema), file("g.lark", "start: \"yes\" | \"no\"\n"));
    for given in [schema, &at] {
        let (code, out, err) = run(&[&format!("--json-schema={given}")]);
        let value: serde_json::Value =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
        assert_eq!((code, value), (0, serde_json::json!({ "n": 7 })), "{err}");
    }
    let (_, out, err) = run(&["--regex", "[0-9]{4}", "--n", "2"]);
    let digits = out.lines().filter(|l| l.len() == 4 && l.bytes().all(|b| b.is_ascii_digit())).count();
    assert_eq!(digits, 2, "{out} {err}");
    let (_, out, err) = run(&["--grammar", &lark]);
    assert!(["yes", "no"].contains(&out.trim()), "{out} {err}");
    for (args, words) in [
        (vec!["--regex", "(a"], "regular expression: unclosed group"),
        (vec!["--json-schema={"], "--json-schema is no JSON"),
        (vec!["--json-schema=/nowhere.json"], "cannot read /nowhere.json"),
        (vec!["--grammar", &at], "Lark grammar"),
    ] {
        let (code, _, err) = run(&args);
        assert!(code == 1 && err.contains(words) && err.lines().count() == 1, "{args:?}: {code} {err}");
    }
}

/// An end that the model wants is a token as others; a search needs no bound to find room for its beams.
#[test]
fn ends_may_be_ignored_and_searches_need_no_bound() {
    let (code, out, err) = run(&["--beams", "3", "--ctx", "48", "--n", "2"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("[1 of 2:") && out.contains("[2 of 2:"), "{out}");
    let (code, _, err) = run(&["--contrastive-search", "--ctx", "48"]);
    assert_eq!(code, 0, "{err}");
    // Every token but the end is forbidden, so the answer is empty, or is all ends.
    let count = |more: &[&str]| {
        let (code, out, err) =
            run(&[&["--logit-bias", "2=100", "--max-tokens", "5", "--json"], more].concat());
        assert_eq!(code, 0, "{err}");
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        value["completion_tokens"].as_u64().unwrap()
    };
    assert_eq!((count(&[]), count(&["--ignore-eos"])), (0, 5));
}
