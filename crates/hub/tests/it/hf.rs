//! The Hugging Face hub and the cache that is shared with its own tools.

use std::fs;

use quarrel_hub::digest::Digest;
use quarrel_hub::{Error, Options, Store};

use crate::support::{Home, Req, Resp, Server, files, noise};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// `printf '{}' | git hash-object --stdin`
const EMPTY_JSON_GIT: &str = "9e26dfeeb6e641a33dae4961196235bdb965b21b";

/// A hub with one repository, `org/tiny`. Large files redirect to storage of another host, small ones come directly.
fn hub(contents: Vec<(&'static str, Vec<u8>)>, storage: &Server) -> Server {
    let storage = storage.url.clone();
    Server::start(move |req: &Req| {
        if req.path == "/api/models/org/tiny/revision/main?blobs=true" {
            let one = |(name, bytes): &(&str, Vec<u8>)| match name.ends_with(".json") {
                true => format!(r#"{{"rfilename":"{name}","size":{}}}"#, bytes.len()),
                false => {
                    let hex = Digest::of(bytes).hex();
                    format!(
                        r#"{{"rfilename":"{name}","size":{0},"lfs":{{"sha256":"{hex}","size":{0}}}}}"#,
                        bytes.len()
                    )
                }
            };
            let list: Vec<_> = contents.iter().map(one).collect();
            return Resp::ok(format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, list.join(",")));
        }
        let name = req.path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).unwrap_or_default();
        match contents.iter().find(|(n, _)| *n == name) {
            None => Resp::status(404),
            Some((_, bytes)) if name.ends_with(".json") => {
                Resp::ok(bytes.clone()).with("etag", &format!("\"{EMPTY_JSON_GIT}\""))
            }
            Some((_, bytes)) => Resp::redirect(&format!("{storage}/{name}?signature=abc"))
                .with("x-linked-etag", &format!("\"{}\"", Digest::of(bytes).hex()))
                .with("x-linked-size", &bytes.len().to_string()),
        }
    })
}

fn storage(contents: Vec<(&'static str, Vec<u8>)>) -> Server {
    Server::start(move |req| {
        let name = req.path.trim_start_matches('/').split('?').next().unwrap();
        contents.iter().find(|(n, _)| *n == name).map_or(Resp::status(404), |(_, b)| Resp::file(req, b))
    })
}

fn ggufs() -> Vec<(&'static str, Vec<u8>)> {
    vec![("tiny-Q4_1.gguf", noise(2000)), ("tiny-f16.gguf", noise(5000)), ("README.md", b"hi".to_vec())]
}

fn with(contents: Vec<(&'static str, Vec<u8>)>) -> (Home, Server, Server) {
    let mut home = Home::new();
    let store = storage(contents.clone());
    let server = hub(contents, &store);
    home.config.hf.endpoint = server.url.clone();
    (home, server, store)
}

#[test]
fn a_file_lands_in_the_shared_layout() {
    let (home, server, store) = with(ggufs());
    for name in ["hf:org/tiny:Q4_1", "hf:org/tiny:tiny-Q4_1.gguf", "hf.co/org/tiny:q4_1"] {
        let m = home.ready(name).unwrap();
        assert_eq!(fs::read(&m.path).unwrap(), noise(2000));
        assert_eq!((m.store, m.name.as_str()), (Store::HuggingFace, "hf:org/tiny:tiny-Q4_1.gguf"));
        assert_eq!((m.precision.as_deref(), m.digest), (Some("Q4_1"), Some(Digest::of(&noise(2000)))));
    }
    let repo = home.at("hf/models--org--tiny");
    let hex = Digest::of(&noise(2000)).hex();
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(repo.join(format!("snapshots/{COMMIT}/tiny-Q4_1.gguf"))).unwrap();
    assert_eq!(link.to_str().unwrap(), format!("../../blobs/{hex}"));
    assert_eq!(files(&repo.join("blobs")), [hex.as_str()]);
    assert_eq!(server.log().len(), 3, "listing, head and get; the second and third name find it here");
    assert!(server.log().iter().all(|r| r.header("authorization") == Some("Bearer secret")));
    assert!(store.log().iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn an_incomplete_file_of_another_tool_is_gone_on_with() {
    let (home, _server, store) = with(ggufs());
    let blobs = home.at("hf/models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let hex = Digest::of(&noise(2000)).hex();
    fs::write(blobs.join(format!("{hex}.incomplete")), &noise(2000)[..700]).unwrap();
    home.ready("hf:org/tiny:Q4_1").unwrap();
    assert_eq!(store.log()[0].header("range"), Some("bytes=700-"));
    assert_eq!(files(&blobs), [hex]);
}

#[test]
fn several_precisions_are_listed() {
    let (home, _server, store) = with(ggufs());
    let e = home.failure("hf:org/tiny");
    assert!(
        e.contains("hf:org/tiny:tiny-Q4_1.gguf")
            && e.contains("hf:org/tiny:tiny-f16.gguf")
            && e.contains("2.0 kB"),
        "{e}"
    );
    let e = home.failure("hf:org/tiny:Q8_0");
    assert!(e.contains("no such file or precision") && e.contains("tiny-f16.gguf"), "{e}");
    assert!(store.log().is_empty());
}

#[test]
fn a_safetensors_repository_comes_with_its_files() {
    let contents = vec![
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", noise(3000)),
        ("pytorch_model.bin", noise(9)),
    ];
    let (home, _server, _store) = with(contents);
    let m = home.ready("hf:org/tiny").unwrap();
    assert_eq!(files(&m.path), ["config.json", "model.safetensors"]);
    assert_eq!(fs::read(m.path.join("config.json")).unwrap(), b"{}");
    assert_eq!((m.size, m.name.as_str()), (3002, "hf:org/tiny"));
    let offline = Options { offline: true, ..Options::default() };
    assert_eq!(home.ready_with("hf:org/tiny", offline).unwrap().path, m.path);
    home.hub().verify("hf:org/tiny", &mut ()).unwrap();
}

#[test]
fn a_checkpoint_of_sentence_transformers_comes_with_its_modules() {
    let contents = vec![
        ("config.json", b"{}".to_vec()),
        ("modules.json", b"{}".to_vec()),
        ("sentence_bert_config.json", b"{}".to_vec()),
        ("1_Pooling/config.json", b"{}".to_vec()),
        ("onnx/config.json", b"{}".to_vec()),
        ("model.safetensors", noise(3000)),
    ];
    let (home, _server, _store) = with(contents);
    let m = home.ready("hf:org/tiny").unwrap();
    assert_eq!(fs::read(m.path.join("1_Pooling/config.json")).unwrap(), b"{}");
    assert!(m.path.join("modules.json").exists() && m.path.join("sentence_bert_config.json").exists());
    assert!(!m.path.join("onnx").exists());
    home.hub().verify("hf:org/tiny", &mut ()).unwrap();
}

#[test]
fn hostile_names_are_not_offered() {
    let (home, _server, _store) =
        with(vec![("../../../evil.gguf", noise(10)), ("/etc/evil.gguf", noise(10))]);
    let e = home.failure("hf:org/tiny");
    assert!(e.contains("it has no files"), "{e}");
}

#[test]
fn refusals_are_explained() {
    for (status, part) in [
        (401, "check HF_TOKEN"),
        (403, "accept the terms at huggingface.co/org/tiny"),
        (404, "at revision main (404)"),
    ] {
        let mut home = Home::new();
        home.config.hf.endpoint = Server::start(move |_| Resp::status(status)).url.clone();
        let e = home.failure("hf:org/tiny");
        assert!(e.contains(part) && !e.contains("secret"), "{e}");
    }
    let mut home = Home::new();
    assert!(home.failure("hf:org/tiny").contains("the connection was refused"));
    let offline = Options { offline: true, ..Options::default() };
    let e = home.ready_with("hf:org/tiny", offline).unwrap_err().to_string();
    assert_eq!(e, "offline: hf:org/tiny is not on this machine, and the network may not be used");
    home.config.hf.offline = true;
    assert!(home.failure("hf:org/tiny").contains("HF_HUB_OFFLINE"));
}

#[test]
fn a_file_that_nobody_gives_a_digest_for_is_not_taken() {
    let mut home = Home::new();
    let server = Server::start(|req| match req.path.starts_with("/api/") {
        true => Resp::ok(format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"a.gguf"}}]}}"#)),
        false => Resp::ok("weights").with("etag", "W/\"weak\""),
    });
    home.config.hf.endpoint = server.url.clone();
    assert!(home.failure("hf:org/tiny").contains("cannot be verified"));
    assert_eq!(server.count("GET", "/org/tiny/resolve"), 0);
}

#[test]
fn a_corrupt_blob_is_named_and_fetched_anew() {
    let (home, _server, _store) = with(ggufs());
    let m = home.ready("hf:org/tiny:Q4_1").unwrap();
    let blob = fs::canonicalize(&m.path).unwrap();
    fs::write(&blob, vec![0; 2000]).unwrap();
    let e = home.hub().verify("hf:org/tiny:Q4_1", &mut ()).unwrap_err();
    assert!(matches!(e, Error::Corrupt { .. }) && e.to_string().contains(blob.to_str().unwrap()), "{e}");
    assert_eq!(fs::read(home.ready("hf:org/tiny:Q4_1").unwrap().path).unwrap(), noise(2000));
}

#[test]
fn removal_names_the_shared_cache_and_keeps_other_files() {
    let (home, _server, _store) = with(ggufs());
    home.ready("hf:org/tiny:Q4_1").unwrap();
    home.ready("hf:org/tiny:tiny-f16.gguf").unwrap();
    assert_eq!(home.hub().list().unwrap().len(), 2);
    let e = home.hub().remove("tiny:1m").unwrap_err().to_string();
    assert!(e.contains("Hugging Face cache") && e.contains("hf:org/tiny:tiny-Q4_1.gguf"), "{e}");
    let removed = home.hub().remove("hf:org/tiny:Q4_1").unwrap();
    assert_eq!((removed.bytes, removed.names[0].as_str()), (2000, "hf:org/tiny:tiny-Q4_1.gguf"));
    let left: Vec<_> = home.hub().list().unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(left, ["hf:org/tiny:tiny-f16.gguf"]);
}
