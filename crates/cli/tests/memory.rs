//! `quarrel plan` against what the process then takes, and budgets, as a person meets them.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn tiny() -> String {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/tiny/smollm2/model.gguf");
    tiny.display().to_string()
}

fn quarrel(args: &[&str]) -> (Option<i32>, String, String) {
    let home = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_quarrel"))
        .args(args)
        .env_clear()
        .env("HOME", home.path())
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn object(args: &[&str]) -> Value {
    let (code, out, err) = quarrel(args);
    assert_eq!(code, Some(0), "{args:?}: {err}");
    serde_json::from_str(&out).unwrap()
}

fn total(args: &[&str]) -> u64 {
    object(args)["total_bytes"].as_u64().unwrap()
}

#[test]
fn a_plan_adds_up_and_grows_with_what_is_asked_for() {
    let m = tiny();
    let v = object(&["plan", &m, "--json"]);
    let keys: Vec<_> = v.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["model", "context", "batch", "kv", "step_tokens", "bytes", "total_bytes"]);
    let sum: u64 = v["bytes"].as_object().unwrap().values().map(|b| b.as_u64().unwrap()).sum();
    assert_eq!(v["total_bytes"], sum);
    let kv = |args: &[&str]| {
        object(&[&["plan", &m, "--json"][..], args].concat())["bytes"]["kv"].as_u64().unwrap()
    };
    let base = kv(&["--ctx", "256"]);
    assert_eq!(kv(&["--ctx", "512"]), 2 * base);
    assert_eq!(kv(&["--ctx", "256", "--batch", "3"]), 3 * base);
    assert_eq!(kv(&["--ctx", "256", "--kv", "f32"]), 2 * base);
    let (code, out, _) = quarrel(&["plan", &m]);
    assert_eq!(code, Some(0));
    assert!(out.contains("KV cache, when full") && out.lines().last().unwrap().starts_with("total"), "{out}");
}

#[test]
fn states_and_their_copies_are_planned() {
    let hybrid = tiny().replace("smollm2", "granitehybrid");
    let parts = |m: &str, batch: &str| {
        let plan = object(&["plan", m, "--json", "--ctx", "256", "--batch", batch]);
        ["states", "snapshots"].map(|part| plan["bytes"][part].as_u64())
    };
    assert_eq!(parts(&tiny(), "1"), [None; 2]);
    let [Some(state), Some(copies)] = parts(&hybrid, "1") else { panic!("a model with states") };
    // They are small: one for each block.
    assert!(state > 0 && copies == 16 * state, "{state}, {copies}");
    assert_eq!(parts(&hybrid, "4"), [Some(4 * state), Some(64 * state)]);
}

#[test]
fn a_budget_is_kept_and_what_was_chosen_is_said() {
    let m = tiny();
    let asked = ["plan", &m, "--json", "--ctx", "65536", "--batch", "4", "--kv", "f32"];
    let all = object(&asked);
    let kv = all["bytes"]["kv"].as_u64().unwrap();
    let budget = (all["total_bytes"].as_u64().unwrap() - kv * 3 / 5).to_string();
    let (code, out, err) = quarrel(&[&asked[..], &["--memory-budget", &budget]].concat());
    assert_eq!(code, Some(0), "{err}");
    let v: Value = serde_json::from_str(&out).unwrap();
    assert!(v["total_bytes"].as_u64().unwrap() <= budget.parse().unwrap());
    assert_eq!((&v["context"], v["batch"].as_u64().unwrap() < 4), (&65536.into(), true), "{out}");
    assert!(err.contains("to fit") && err.contains("context 65536"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    // Precision of the cache when one sequence alone is too large.
    let one = total(&["plan", &m, "--json", "--ctx", "4000000", "--kv", "f32"]).to_string();
    let less = (one.parse::<u64>().unwrap() * 2 / 3).to_string();
    let v = object(&["plan", &m, "--json", "--ctx", "4000000", "--kv", "f32", "--memory-budget", &less]);
    assert_eq!((&v["kv"], &v["context"]), (&"f16".into(), &4_000_000.into()));
}

#[test]
fn what_does_not_fit_is_refused_with_numbers_before_it_is_loaded() {
    let m = tiny();
    for args in [
        ["run", "-m", &m, "-p", "x", "--memory-budget", "1MB"],
        ["run", "-m", &m, "-p", "x", "--ctx", "16000000"],
        ["logits", "-m", &m, "-p", "x", "--memory-budget", "1MB"],
    ] {
        // The second needs more than its budget only with an explicit context.
        let args = if args[5] == "--ctx" {
            [&args[..], &["--memory-budget", "100MB"]].concat()
        } else {
            args.to_vec()
        };
        let (code, out, err) = quarrel(&args);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}: {err}");
        for part in ["weights", "KV cache", "working memory", "the least that works needs"] {
            assert!(err.contains(part), "{args:?}: {err}");
        }
    }
    let (code, _, err) = quarrel(&["run", "-m", &m, "-p", "x", "--memory-budget", "lots"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("write for example 500MB"), "{err}");
}

/// The peak of a process with a full step and a part of a long context in use is what `plan` says of that context, within
/// 3%, and no more than the weights, the cache and 60 MB.
#[cfg(target_os = "linux")]
#[test]
fn real_models_take_what_plan_says() {
    let dir = std::env::var_os("QUARREL_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fixtures"), PathBuf::from);
    for file in ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"] {
        let path = dir.join(file);
        assert!(path.exists(), "{} is missing: run `cargo xtask fixtures` first", path.display());
        let model = path.display().to_string();
        let text = "the quick brown fox jumps over the lazy dog and then goes home , ".repeat(60);
        let run = object(&["run", "--raw", "-m", &model, "-p", &text, "-n", "2", "--ctx", "2048", "--json"]);
        let used = run["prompt_tokens"].as_u64().unwrap() + 2;
        let plan = object(&["plan", &model, "--ctx", &used.to_string(), "--json"]);
        let peak = run["timings"]["peak_rss_bytes"].as_u64().unwrap();
        let planned = plan["total_bytes"].as_u64().unwrap();
        let off = peak as f64 / planned as f64 - 1.0;
        assert!(off.abs() < 0.03, "{file}: planned {planned}, took {peak}: {:.1}%", 100.0 * off);
        let bytes = |part: &str| plan["bytes"][part].as_u64().unwrap();
        let most = bytes("weights_packed")
            + bytes("weights_mapped")
            + bytes("weights_f32")
            + bytes("kv")
            + 60_000_000;
        assert!(peak <= most, "{file}: took {peak}, at most {most}");
    }
}
