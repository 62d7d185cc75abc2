//! What scripts rely on, run as scripts run it: the binary, a tiny model of random weights, exit codes and both streams.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use quarrel_formats::gguf::{self, NewTensor};
use quarrel_formats::{Source, Value as MetaValue};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens").join(name)
}

fn tiny() -> String {
    golden("tiny/smollm2/model.gguf").display().to_string()
}

/// A tiny model with a chat template, as instruction-tuned ones have it.
fn tiny_chat(dir: &Path) -> String {
    let Source::Gguf(source) = Source::open(tiny()).unwrap() else { panic!("not a GGUF") };
    let mut metadata = source.metadata.clone();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot|>{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    metadata.insert("tokenizer.chat_template", MetaValue::String(template.into()));
    let source = Source::Gguf(source);
    let shapes: Vec<Vec<u64>> =
        source.tensors().map(|t| t.shape.iter().map(|d| *d as u64).collect()).collect();
    let tensors: Vec<NewTensor<'_>> = source
        .tensors()
        .zip(&shapes)
        .map(|(t, shape)| NewTensor { name: &t.name, dtype: t.dtype, shape, data: &t.data })
        .collect();
    let path = dir.join("chat.gguf");
    gguf::write(&mut fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
    path.display().to_string()
}

/// The binary in an empty home, away from the settings of whoever runs the tests.
fn quarrel(home: &Path, args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_quarrel"));
    c.args(args).env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        Ran {
            code: o.status.code().unwrap_or(-1),
            out: String::from_utf8(o.stdout).unwrap(),
            err: String::from_utf8(o.stderr).unwrap(),
        }
    }
}

fn run(args: &[&str]) -> Ran {
    let home = tempfile::tempdir().unwrap();
    quarrel(home.path(), args).output().unwrap().into()
}

fn run_with_stdin(args: &[&str], stdin: &[u8]) -> Ran {
    let home = tempfile::tempdir().unwrap();
    let mut child = quarrel(home.path(), args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap().into()
}

/// The one JSON object on stdout of a run that went well.
fn object(args: &[&str]) -> Value {
    let r = run(args);
    assert_eq!(r.code, 0, "{args:?}: {}", r.err);
    assert_eq!(r.out.lines().count(), 1, "{args:?}");
    serde_json::from_str(&r.out).unwrap()
}

fn keys(v: &Value) -> Vec<&str> {
    v.as_object().unwrap().keys().map(String::as_str).collect()
}

const FIXED: [&str; 4] = ["--temp", "0", "--max-tokens", "6"];

#[test]
fn run_prints_one_object() {
    let m = tiny();
    let args = [&["run", "--model", &m, "--prompt", "in the town", "--json"][..], &FIXED].concat();
    let v = object(&args);
    assert_eq!(keys(&v), ["text", "finish_reason", "prompt_tokens", "completion_tokens", "timings"]);
    let made = v["completion_tokens"].as_u64().unwrap();
    match v["finish_reason"].as_str().unwrap() {
        "length" => assert_eq!(made, 6),
        "stop" => assert!(made < 6),
        other => panic!("{other}"),
    }
    let ids = object(&["tokenize", "--model", &m, "in the town", "--json"])["ids"].as_array().unwrap().len();
    assert_eq!(v["prompt_tokens"], ids, "no template, and no token added by this model");
    assert!(v["timings"]["load_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(object(&args)["text"], v["text"], "temperature 0 gives equal text");
}

#[test]
fn logprobs_agree_with_the_logits_command() {
    let m = tiny();
    let args =
        ["run", "--model", &m, "--prompt", "the", "--json", "--logprobs", "3", "--temp", "0", "-n", "1"];
    let first = &object(&args)["logprobs"][0];
    assert_eq!(keys(first), ["id", "text", "logprob", "top"]);
    let v = object(&["logits", "--model", &m, "--prompt", "the", "--top", "3", "--json"]);
    assert_eq!(keys(&v), ["tokens", "prompt_tokens"]);
    let tokens = v["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), keys(&tokens[0])), (3, vec!["id", "text", "logprob"]));
    assert_eq!(first["id"], tokens[0]["id"]);
    for (a, b) in first["top"].as_array().unwrap().iter().zip(tokens) {
        assert_eq!(a["id"], b["id"]);
        assert!((a["logprob"].as_f64().unwrap() - b["logprob"].as_f64().unwrap()).abs() < 1e-4);
    }
}

#[test]
fn tokenize_gives_ids_and_takes_vocabularies() {
    let m = tiny();
    let from_gguf = object(&["tokenize", "--model", &m, "the town in a", "--json"]);
    assert_eq!(keys(&from_gguf), ["ids"]);
    let json = golden("tiny/smollm2/tokenizer.json").display().to_string();
    assert_eq!(object(&["tokenize", "--model", &json, "the town in a", "--json"]), from_gguf);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "the town in a").unwrap();
    let file = file.path().display().to_string();
    assert_eq!(object(&["tokenize", "--model", &m, "--file", &file, "--json"]), from_gguf);
    let piped = run_with_stdin(&["tokenize", "--model", &m, "--json"], b"the town in a");
    assert_eq!(serde_json::from_str::<Value>(&piped.out).unwrap(), from_gguf);
    // A model that begins with bos: there by default, and not with --no-special, which reads its name as letters too.
    let gemma = golden("tiny/gemma3/model.gguf").display().to_string();
    let ids = |args: &[&str]| {
        let v = object(&[&["tokenize", "--model", &gemma, "--json"], args].concat());
        v["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let (with, without) = (ids(&["the"]), ids(&["the", "--no-special"]));
    assert_eq!((with[0], &with[1..]), (2, &without[..]));
    assert_eq!(ids(&["<eos>"]), [2, 1]);
    assert!(!ids(&["<eos>", "--no-special"]).contains(&1));
}

#[test]
fn perplexity_is_exp_of_nll_within_its_interval() {
    let m = tiny();
    let text = golden("text/page.txt").display().to_string();
    let v = object(&["perplexity", "--model", &m, "--file", &text, "--ctx", "64", "--json"]);
    assert_eq!(keys(&v), ["perplexity", "nll", "tokens", "ci95"]);
    let (ppl, nll) = (v["perplexity"].as_f64().unwrap(), v["nll"].as_f64().unwrap());
    assert!((ppl - nll.exp()).abs() < 1e-9 * ppl);
    assert!(v["ci95"][0].as_f64().unwrap() < ppl && ppl < v["ci95"][1].as_f64().unwrap());
    let ids = object(&["tokenize", "--model", &m, "--file", &text, "--no-special", "--json"]);
    assert_eq!(
        v["tokens"].as_u64().unwrap() as usize,
        ids["ids"].as_array().unwrap().len() - 1,
        "no bos: all but the first"
    );
    assert_eq!(object(&["perplexity", "--model", &m, &text, "--ctx", "64", "--json"])["nll"], v["nll"]);
}

#[test]
fn template_prints_the_text_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let t = path(
        "t.jinja",
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if tools %}{{ tools | length }} tools {% endif %}{% if add_generation_prompt %}>{% endif %}{{ strftime_now('%Y-%m-%d') }}",
    );
    let messages = path("m.json", r#"[{"role": "user", "content": "hi"}]"#);
    let tools = path("tools.json", r#"[{"type": "function"}]"#);
    let fixed =
        ["template", "--file", &t, "--messages", &messages, "--bos", "<s>", "--now", "2024-07-26T10:00:00"];
    let r = run(&fixed);
    assert_eq!((r.code, r.out.as_str(), r.err.as_str()), (0, "<s>[user] hi\n>2024-07-26", ""));
    let r = run(&[&fixed[..], &["--tools", &tools, "--no-generation-prompt"]].concat());
    assert_eq!(r.out, "<s>[user] hi\n1 tools 2024-07-26");
    // From a model; messages may also be a member of an object, and come through a pipe.
    let m = tiny_chat(dir.path());
    let r = run_with_stdin(
        &["template", "--model", &m, "--messages", "-"],
        br#"{"messages": [{"role": "user", "content": "x"}]}"#,
    );
    assert_eq!((r.code, r.out.as_str()), (0, "user: x<|eot|>assistant: "), "{}", r.err);
}

#[test]
fn a_chat_template_is_used_unless_raw() {
    let dir = tempfile::tempdir().unwrap();
    let m = tiny_chat(dir.path());
    let prompt_tokens = |args: &[&str]| {
        let v = object(&[&["run", "--model", &m, "--json"], args, &FIXED].concat());
        v["prompt_tokens"].as_u64().unwrap() as usize
    };
    let ids =
        |text: &str| object(&["tokenize", "--model", &m, text, "--json"])["ids"].as_array().unwrap().len();
    assert_eq!(prompt_tokens(&["the town"]), ids("user: the town<|eot|>assistant: "));
    assert_eq!(prompt_tokens(&["the town", "--raw"]), ids("the town"));
    assert_eq!(
        prompt_tokens(&["the town", "--system", "a"]),
        ids("system: a<|eot|>user: the town<|eot|>assistant: ")
    );
    let file = dir.path().join("p.txt");
    fs::write(&file, "a town\n").unwrap();
    let file = file.display().to_string();
    assert_eq!(
        prompt_tokens(&["-f", &file]),
        ids("user: a town<|eot|>assistant: "),
        "the last new line is the file's"
    );
    assert_eq!(prompt_tokens(&["the", "-f", &file]), ids("user: the\n\na town<|eot|>assistant: "));
}

#[test]
fn stdout_has_only_the_text_and_stderr_the_figures() {
    let m = tiny();
    let args = [&["run", "--model", &m, "--prompt", "in the town"][..], &FIXED].concat();
    let text = object(&[&args[..], &["--json"]].concat())["text"].as_str().unwrap().to_owned();
    let live = run(&args);
    assert_eq!(live.out.trim_end_matches('\n'), text.trim_end_matches('\n'));
    assert!(live.err.contains("first token after") && live.err.contains("memory"), "{}", live.err);
    assert!(!live.out.contains('\x1b') && !live.err.contains('\x1b'));
    assert_eq!(run(&[&args[..], &["--no-stream"]].concat()).out, live.out);
    let quiet = run(&[&args[..], &["-q"]].concat());
    assert_eq!((quiet.out, quiet.err.as_str()), (live.out.clone(), ""));
    // The seed's spelling, without a command.
    let seed = run(&["-model", &m, "-prompt", "in the town", "-temp", "0", "-max-tokens", "6", "-stream"]);
    assert_eq!(seed.out, live.out);
}

#[test]
fn the_model_may_come_from_the_environment() {
    let home = tempfile::tempdir().unwrap();
    let with = |value: &str| {
        let mut c = quarrel(home.path(), &["tokenize", "the town", "--offline"]);
        Ran::from(c.env("QUARREL_MODEL", value).output().unwrap())
    };
    assert_eq!(with(&tiny()).out, run(&["tokenize", "-m", &tiny(), "the town"]).out);
    assert!(with("").err.contains("smollm2:135m"), "unset means the default, which is not here");
}

#[test]
fn equal_seeds_give_equal_answers() {
    let m = tiny();
    let answer = |seed: &str, more: &[&str]| {
        let args = ["run", "--model", &m, "-p", "the", "-n", "20", "--temp", "1.5", "--seed", seed, "--json"];
        object(&[&args[..], more].concat())["text"].clone()
    };
    assert_eq!(answer("1", &[]), answer("1", &[]));
    assert_ne!(answer("1", &[]), answer("2", &[]));
    assert_eq!(answer("1", &["--quality"]), answer("1", &["--quality"]));
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let m = tiny();
    let args = ["run", "--model", &m, "--prompt", "in the town", "--temp", "0", "-n", "12", "--json"];
    let whole = object(&args)["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(3).take(2).collect();
    let v = object(&[&args[..], &["--stop", &stop]].concat());
    assert_eq!(v["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
    assert_eq!(v["finish_reason"], "stop");
}

#[test]
fn bad_input_is_one_line_and_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let m = tiny();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name).display().to_string()
    };
    let whole = fs::read(&m).unwrap();
    let truncated = file("truncated.gguf", &whole[..whole.len() / 2]);
    let not_a_model = file("text.gguf", b"hello");
    let empty = file("empty.gguf", b"");
    let not_utf8 = file("latin1.txt", b"caf\xe9");
    let not_json = file("m.json", b"{");
    let long = file("long.txt", "the town ".repeat(3000).as_bytes());
    let Source::Gguf(source) = Source::open(&m).unwrap() else { panic!("not a GGUF") };
    let mut metadata = source.metadata;
    metadata.insert("general.architecture", MetaValue::String("mamba9".into()));
    metadata.insert("mamba9.state_size", MetaValue::U32(16));
    let unknown = dir.path().join("unknown.gguf");
    let data = [0u8; 4];
    let tensor =
        NewTensor { name: "ssm.weight", dtype: quarrel_formats::DType::F32, shape: &[1], data: &data };
    gguf::write(&mut fs::File::create(&unknown).unwrap(), &metadata, &[tensor]).unwrap();
    let unknown = unknown.display().to_string();
    let cases: &[(&[&str], &[&str])] = &[
        (&["run", "-m", "./nowhere.gguf", "hi"], &["nowhere.gguf", "no such file"]),
        (&["run", "-m", "nosuchmodel:1b", "hi", "--offline"], &["nosuchmodel:1b"]),
        (&["run", "-m", &truncated, "hi"], &["truncated.gguf", "truncated"]),
        (&["run", "-m", &not_a_model, "hi"], &["text.gguf", "neither GGUF nor safetensors"]),
        (&["run", "-m", &empty, "hi"], &["empty"]),
        (&["run", "-m", &unknown, "hi"], &["mamba9", "mamba9.state_size", "ssm.weight"]),
        (&["run", "-m", &m, "-f", &long], &["tokens", "context holds", "--ctx"]),
        (&["run", "-m", &m, "-f", &not_utf8], &["latin1.txt", "not UTF-8", "offset 3"]),
        (&["run", "-m", &m, "-f", "./nowhere.txt"], &["nowhere.txt"]),
        (&["perplexity", "-m", &m, &not_utf8], &["not UTF-8"]),
        (&["tokenize", "-m", &m, "--file", &not_utf8], &["not UTF-8"]),
        (&["template", "-m", &m, "--messages", &not_json], &["m.json"]),
        (&["logits", "-m", &m, "--prompt", "", "--chat"], &["no chat template"]),
        (&["logits", "-m", &m, "--prompt", ""], &["empty"]),
        (&["chat", "-m", &m], &["no chat template"]),
        (&["show", "nosuchmodel:1b"], &["nosuchmodel"]),
        (&["rm", "nosuchmodel:1b"], &["nosuchmodel"]),
    ];
    for (args, words) in cases {
        let r = run(args);
        assert_eq!(r.code, 1, "{args:?}: {}", r.err);
        assert_eq!((r.out.as_str(), r.err.lines().count()), ("", 1), "{args:?}: {}", r.err);
        assert!(r.err.starts_with("quarrel: error: "), "{args:?}: {}", r.err);
        for word in *words {
            assert!(r.err.contains(word), "{args:?}: no {word:?} in {}", r.err);
        }
    }
}

#[test]
fn another_precision_is_never_taken_silently() {
    let r = run(&["run", "-m", "smollm2:135m-instruct-fp16", "--offline", "hi"]);
    assert_eq!((r.code, r.err.lines().count()), (1, 1), "{}", r.err);
    assert!(r.err.contains("smollm2:135m-instruct-fp16"), "{}", r.err);
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let home = tempfile::tempdir().unwrap();
    let m = tiny();
    let mut child =
        quarrel(home.path(), &["run", "-m", &m, "-p", "the", "-n", "60", "--temp", "1"]).spawn().unwrap();
    drop(child.stdout.take());
    let r: Ran = child.wait_with_output().unwrap().into();
    assert_eq!((r.code, r.err.as_str()), (0, ""));
}

#[test]
fn a_full_disk_is_said() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else { return };
    let home = tempfile::tempdir().unwrap();
    let m = tiny();
    let r: Ran = quarrel(home.path(), &["tokenize", "-m", &m, "the"]).stdout(full).output().unwrap().into();
    assert_eq!(r.code, 1);
    assert!(r.err.contains("stdout") && r.err.contains("No space left"), "{}", r.err);
}

#[test]
fn a_conversation_through_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let m = tiny_chat(dir.path());
    let saved = dir.path().join("talk.json");
    let lines = format!(
        "/set temp 0\n/set max-tokens 5\n/system a\nthe town\n/regenerate\n/nope\n/save {0}\n/clear\n/load {0}\n/set temp\n/exit\nnever\n",
        saved.display()
    );
    let r = run_with_stdin(&["chat", "-m", &m], lines.as_bytes());
    assert_eq!(r.code, 0, "{}", r.err);
    assert!(r.err.contains("there is no /nope") && r.out.contains("temp 0"), "{}{}", r.out, r.err);
    let talk: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    assert_eq!(keys(&talk), ["model", "settings", "messages"]);
    let roles: Vec<_> = talk["messages"].as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    let answer = talk["messages"][2]["content"].as_str().unwrap();
    assert_eq!(r.out.matches(answer.trim_end()).count(), 2, "the answer and the same again: {}", r.out);
}

#[test]
fn inspect_as_json_and_the_program() {
    let m = tiny();
    let v = object(&["inspect", &m, "--json"]);
    assert_eq!(keys(&v), ["format", "files", "bytes", "parameters", "metadata", "tensors"]);
    assert_eq!(v["metadata"]["general.architecture"], "llama");
    assert_eq!(keys(&v["tensors"][0]), ["name", "dtype", "shape", "bytes"]);
    let r = run(&["inspect", &m, "--program"]);
    assert!(r.code == 0 && r.out.starts_with("program:") && r.out.contains("attend"), "{}", r.err);
}

#[test]
fn completions_and_man_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).out;
        assert!(script.contains("perplexity") && script.contains("repeat-penalty"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let r = run(&["man", &dir.path().join("man").display().to_string()]);
    assert_eq!((r.code, r.out.as_str()), (0, ""));
    let page = fs::read_to_string(dir.path().join("man/quarrel-run.1")).unwrap();
    assert!(page.contains("quarrel\\-run") && page.contains("\\-\\-top\\-p"), "{page}");
    assert!(run(&["man"]).out.contains(".TH"));
}

#[test]
fn an_empty_machine_has_no_models() {
    assert_eq!(object(&["list", "--json"]), serde_json::json!({ "models": [] }));
    let catalog = object(&["list", "--catalog", "--json"]);
    assert!(catalog["models"].as_array().unwrap().iter().any(|m| m["name"] == "smollm2:135m-instruct-q4_1"));
    let shown = object(&["show", "--json"]);
    assert_eq!(
        (shown["name"].as_str(), &shown["here"]),
        (Some("smollm2:135m-instruct-q4_1"), &Value::Bool(false))
    );
}

#[test]
fn instructions_are_chosen_once_and_can_be_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let m = tiny();
    let ask = |more: &[&str]| -> Ran {
        let args = [&["run", "--verbose", "--model", &m, "-n", "2", "hi"], more].concat();
        quarrel(home.path(), &args).output().unwrap().into()
    };
    let (forced, first, second) = (ask(&["--isa", "portable"]), ask(&[]), ask(&[]));
    for (r, measures) in [(&forced, false), (&first, true), (&second, false)] {
        assert_eq!((r.code, r.err.contains("measuring which")), (0, measures), "{}", r.err);
    }
    assert!(forced.err.contains("portable)") && first.out == second.out, "{}", forced.err);
    let r = ask(&["--isa", "mmx"]);
    assert_eq!((r.code, r.err.lines().count()), (2, 1), "{}", r.err);
    assert!(r.err.contains("mmx") && r.err.contains("this processor has"), "{}", r.err);
}

/// A home that is kept from run to run, so that the machine's peaks are measured once.
fn bench(home: &Path, args: &[&str]) -> Ran {
    let m = tiny();
    let small =
        ["bench", "--model", &m, "--threads", "1", "--prompt", "32", "--decode", "4", "--batch", "1,3"];
    quarrel(home, &[&small, args].concat()).output().unwrap().into()
}

#[test]
fn bench_prints_its_frame_and_checks_against_it() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str| home.path().join(name).display().to_string();
    let (plot, base) = (file("a.svg"), file("base.json"));
    let r = bench(home.path(), &["--depth", "64", "--repeat", "2", "--ops", "--plot", &plot, "--json"]);
    assert_eq!((r.code, r.out.lines().count()), (0, 1), "{}", r.err);
    let v: Value = serde_json::from_str(&r.out).unwrap();
    let frame = [
        "machine",
        "model",
        "prompt",
        "decode",
        "decode_at",
        "batch",
        "latency",
        "startup",
        "memory",
        "ops",
        "version",
    ];
    assert_eq!(keys(&v), frame);
    let speed = [
        "tokens",
        "tokens_per_s",
        "min",
        "max",
        "runs",
        "gb_per_s",
        "gop_per_s",
        "ops_per_byte",
        "share_of_peak",
        "bound",
    ];
    assert_eq!((keys(&v["prompt"]), keys(&v["decode"])), (speed.to_vec(), speed.to_vec()));
    assert_eq!((&v["prompt"]["tokens"], v["decode"]["runs"].as_array().unwrap().len()), (&32.into(), 2));
    let list = |part: &str, key: &str| {
        v[part].as_array().unwrap().iter().map(|e| e[key].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (list("decode_at", "depth"), list("batch", "sequences")),
        (vec![0.into(), 64.into()], vec![1.into(), 3.into()])
    );
    for rate in [&v["prompt"], &v["decode"], &v["batch"][1]] {
        assert!(rate["tokens_per_s"].as_f64().unwrap() > 0.0, "{rate}");
    }
    assert!(
        v["startup"]["seconds"].as_f64().unwrap() > 0.0 && v["latency"]["itl_p99_ms"].as_f64().unwrap() > 0.0
    );
    assert!(v["memory"]["peak_rss_bytes"].as_u64().unwrap() > v["model"]["weight_bytes"].as_u64().unwrap());
    assert!(v["machine"]["peaks"]["read_gb_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (v["machine"]["threads"].clone(), list("ops", "name")),
        (1.into(), ["prompt 32", "decode 4", "batch 1", "batch 3"].map(Into::into).to_vec())
    );
    assert!(fs::read_to_string(&plot).unwrap().starts_with("<svg"));

    // As text, and compared with a baseline in which everything was slower, or the prompt was faster.
    let with = |v: &Value, part: &str, factor: f64| {
        let mut v = v.clone();
        for key in ["tokens_per_s", "min", "max"] {
            v[part][key] = (v[part][key].as_f64().unwrap() * factor).into();
        }
        v
    };
    let mut slow = with(&v, "prompt", 1e-3);
    for part in ["decode_at", "batch"] {
        slow[part] = Vec::<Value>::new().into();
    }
    for part in ["latency", "startup", "memory", "decode"] {
        slow[part] = Value::Null;
    }
    let check = |baseline: &Value| {
        fs::write(&base, baseline.to_string()).unwrap();
        bench(home.path(), &["--speeds-only", "--depth", "0", "--repeat", "1", "--check", &base])
    };
    let r = check(&slow);
    assert!(r.code == 0 && r.err.contains("no regression: 1 figures compared"), "{}", r.err);
    assert!(
        r.out.contains("prompt 32") && r.out.contains("batch 3") && !r.out.contains("start-up"),
        "{}",
        r.out
    );
    let r = check(&with(&slow, "prompt", 1e9));
    assert_eq!((r.code, r.err.lines().count()), (1, 2), "{}", r.err);
    assert!(r.err.contains("prompt of 32 tokens") && r.err.contains("1 of 1 figures are worse"), "{}", r.err);
    let mut other = slow.clone();
    other["machine"]["threads"] = 64.into();
    let r = check(&other);
    assert_eq!(
        (r.code, r.out.as_str(), r.err.lines().count()),
        (1, "", 1),
        "refused before anything is measured"
    );
    assert!(r.err.contains("threads is 64, and here it is 1"), "{}", r.err);
}

#[test]
fn bench_refuses_before_it_measures() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("report.json");
    fs::write(&file, "{}").unwrap();
    let file = file.display().to_string();
    let nowhere = home.path().join("no/such/folder/a.svg").display().to_string();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--prompt", "257"], &["--prompt 257", "context of 256"]),
        (&["--decode", "300"], &["--decode 300", "256"]),
        (&["--depth", "16000000"], &["--depth 16000000", "256"]),
        (&["--prompt", "0", "--decode", "0", "--batch", "none"], &["nothing is left to measure"]),
        (&["--plot", &nowhere], &["cannot write", "a.svg"]),
        (&["--threads", "1024"], &["--threads 1024", "processors"]),
        (&["--check", &nowhere], &["cannot read", "a.svg"]),
        (&["--check", &file], &["report.json", "no report"]),
        (
            &["--against", "llama-cpp-python", "--python", &nowhere],
            &["llama-cpp-python", "--python", "pip install"],
        ),
    ];
    for (args, words) in cases {
        let m = tiny();
        let r: Ran = quarrel(home.path(), &[&["bench", &m], *args].concat()).output().unwrap().into();
        assert_eq!((r.code, r.out.as_str()), (1, ""), "{args:?}: {}", r.err);
        let last = r.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("quarrel: error: ") && !r.err.contains("measuring"), "{args:?}: {}", r.err);
        for word in *words {
            assert!(last.contains(word), "{args:?}: no {word:?} in {}", r.err);
        }
    }
}

/// With real weights: `QUARREL_FIXTURES` is a folder that holds the two GGUF files of `goldens/make_real.py`.
#[test]
fn real_models_answer_as_transformers_does() {
    let Some(folder) = std::env::var_os("QUARREL_FIXTURES").map(PathBuf::from) else {
        eprintln!("skipped: QUARREL_FIXTURES is not set");
        return;
    };
    let text = golden("text/long.txt").display().to_string();
    for (file, name) in [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct-q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "gemma-3-270m-q4_k_m"),
    ] {
        let m = folder.join(file).display().to_string();
        let expected: Value =
            serde_json::from_slice(&fs::read(golden(&format!("real/{name}.json"))).unwrap()).unwrap();
        let v = object(&["perplexity", "-m", &m, "--file", &text, "--json"]);
        let want = expected["perplexity"]["sliding"]["perplexity"].as_f64().unwrap();
        let got = v["perplexity"].as_f64().unwrap();
        assert!((got / want - 1.0).abs() < 0.005, "{name}: {got}, transformers {want}");
        assert_eq!(v["tokens"], expected["perplexity"]["sliding"]["tokens"], "{name}");
    }
    let m = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf").display().to_string();
    let v = object(&["run", "-m", &m, "What is the capital of France?", "--temp", "0", "-n", "24", "--json"]);
    assert!(v["text"].as_str().unwrap().contains("Paris"), "{v}");
    assert_eq!(v["finish_reason"], "stop");
}
