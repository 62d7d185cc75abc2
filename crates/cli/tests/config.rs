//! Flags, environment, file and defaults as the binary takes them, and what it says of them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs the binary in a home of its own, with these variables alone.
fn run(home: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quarrel"));
    command.args(args).env_clear().env("HOME", home).envs(variables.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// Value and source of a key in `config show --json`.
fn shown(ran: &Ran, key: &str) -> (Value, String) {
    assert_eq!(ran.code, 0, "{}", ran.err);
    let all: Value = serde_json::from_str(&ran.out).unwrap();
    let found = all["settings"].as_array().unwrap().iter().find(|s| s["key"] == key);
    let found = found.unwrap_or_else(|| panic!("{key} is not shown: {}", ran.out));
    (found["value"].clone(), found["source"].as_str().unwrap().to_owned())
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_defaults() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".config/quarrel");
    fs::create_dir_all(&dir).unwrap();
    let text =
        "port = 9000\nctx = 512\napi-key = ['secret-one']\noffline = true\n[serve]\nmodels = ['a', 'b']\n";
    fs::write(dir.join("config.toml"), text).unwrap();
    let variables = [("QUARREL_PORT", "9001"), ("QUARREL_KV_POOL", "64"), ("QUARREL_CTX", "")];
    let show = run(home.path(), &["config", "show", "--json"], &variables);
    for (key, value, source) in [
        ("port", Value::from("9001"), "environment"),
        ("kv-pool", "64".into(), "environment"),
        ("ctx", "512".into(), "file"),
        ("models", vec!["a", "b"].into(), "file"),
        ("offline", true.into(), "file"),
        ("api-key", "(hidden)".into(), "file"),
        ("host", "127.0.0.1".into(), "default"),
        ("threads", Value::Null, "default"),
    ] {
        assert_eq!(shown(&show, key), (value, source.to_owned()), "{key}");
    }
    let table = run(home.path(), &["config", "show", "chat"], &[]);
    let line = table.out.lines().find(|l| l.starts_with("ctx ")).unwrap();
    assert!(line.contains("512") && line.contains("config.toml line 2"), "{line}");
    for ran in [&show, &table] {
        assert!(!ran.out.contains("secret-one") && !ran.err.contains("secret-one"));
    }
    let other = run(home.path(), &["config", "show", "--json", "--config", "/dev/null"], &[]);
    assert_eq!(shown(&other, "port").1, "default");
}

#[test]
fn a_value_that_cannot_be_says_where_it_stands() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("c.toml");
    let config = path.display().to_string();
    for (text, wanted) in [
        ("\nport = 99999\n", "c.toml line 2: invalid value '99999' for '--port <PORT>'"),
        ("hots = 'x'\n", "c.toml line 1: no key is called \"hots\"; host is near it"),
        (
            "data = '/x'\nno-store = true\n",
            "c.toml line 1: the argument '--data <DIR>' cannot be used with '--no-store'",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let ran = run(home.path(), &["serve", "--config", &config], &[]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.err);
        assert!(ran.err.contains(wanted) && ran.err.lines().count() == 1, "{wanted}: {}", ran.err);
    }
    for (name, value, wanted) in [
        ("QUARREL_PORT", "http", "the variable QUARREL_PORT: invalid value 'http' for '--port <PORT>'"),
        ("QUARREL_NO_STORE", "perhaps", "QUARREL_NO_STORE: \"perhaps\" is neither true nor false"),
        ("QUARREL_CONFIG", "/no/such/file", "the configuration /no/such/file"),
    ] {
        let ran = run(home.path(), &["serve"], &[(name, value)]);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(ran.err.contains(wanted), "{wanted}: {}", ran.err);
    }
}

#[test]
fn init_writes_every_key_once_and_overwrites_nothing() {
    let home = tempfile::tempdir().unwrap();
    let made = run(home.path(), &["config", "init"], &[]);
    assert_eq!(made.code, 0, "{}", made.err);
    let path = home.path().join(".config/quarrel/config.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text, run(home.path(), &["config", "init", "-"], &[]).out);
    let show = run(home.path(), &["config", "show", "--json"], &[]);
    for setting in serde_json::from_str::<Value>(&show.out).unwrap()["settings"].as_array().unwrap() {
        let line = format!("\n#{} =", setting["key"].as_str().unwrap());
        assert_eq!(text.matches(&line).count(), 1, "{line}");
        assert_eq!(setting["source"], "default");
    }
    fs::write(&path, "port = 1\n").unwrap();
    let again = run(home.path(), &["config", "init"], &[]);
    assert!(again.code == 1 && again.err.contains("is there already"), "{}", again.err);
    assert_eq!(fs::read_to_string(&path).unwrap(), "port = 1\n");
}
