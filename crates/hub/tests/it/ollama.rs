//! An Ollama store read in place, and pulls from a registry.

use std::fs;

use quarrel_hub::digest::Digest;
use quarrel_hub::{Error, Options, Store};

use crate::support::{Home, Req, Resp, Server, files, noise};

type Layers<'a> = &'a [(&'a str, &'a [u8])];

const CONFIG: &[u8] = br#"{"model_format":"gguf","file_type":"Q5_1"}"#;

fn manifest(layers: Layers) -> String {
    let one = |kind: &str, bytes: &[u8]| {
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
    };
    let list: Vec<_> =
        layers.iter().map(|(k, b)| one(&format!("application/vnd.ollama.image.{k}"), b)).collect();
    let config = one("application/vnd.docker.container.image.v1+json", CONFIG);
    format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, list.join(","))
}

pub(crate) fn put(home: &Home, path: &str, layers: Layers) {
    let root = home.at("ollama");
    let at = root.join("manifests").join(path);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::create_dir_all(root.join("blobs")).unwrap();
    fs::write(at, manifest(layers)).unwrap();
    for (_, bytes) in layers.iter().chain([&("", CONFIG)]) {
        fs::write(root.join("blobs").join(format!("sha256-{}", Digest::of(bytes).hex())), bytes).unwrap();
    }
}

/// A registry that has `library/tiny:1m-fp16`.
pub(crate) fn registry(layers: Vec<(&'static str, Vec<u8>)>) -> Server {
    Server::start(move |req: &Req| {
        let borrowed: Vec<_> = layers.iter().map(|(k, b)| (*k, b.as_slice())).collect();
        if req.path == "/v2/library/tiny/manifests/1m-fp16" {
            return Resp::ok(manifest(&borrowed));
        }
        let digest = req.path.strip_prefix("/v2/library/tiny/blobs/");
        let blob = borrowed
            .iter()
            .map(|(_, b)| *b)
            .chain([CONFIG])
            .find(|b| digest == Some(&Digest::of(b).to_string()));
        blob.map_or(Resp::status(404), |b| Resp::file(req, b))
    })
}

#[test]
fn a_store_is_read_in_place_with_its_layers() {
    let home = Home::new();
    let weights = noise(1000);
    let params = br#"{"temperature":0.7,"stop":["<|im_end|>"]}"#;
    put(
        &home,
        "registry.ollama.ai/library/mistral/latest",
        &[
            ("template", b"{{ .Prompt }}"),
            ("model", &weights),
            ("system", b"Be brief."),
            ("params", params),
            ("license", b"\nMIT License\nmore"),
        ],
    );
    put(&home, "registry.ollama.ai/someone/model/v1", &[("model", b"a"), ("projector", b"p")]);
    put(&home, "hub.example/team/model/v2", &[("model", b"b")]);
    let before = files(&home.at("ollama"));
    for name in ["mistral", "mistral:latest", "library/mistral", "Mistral:Latest"] {
        let m = home.ready(name).unwrap();
        assert_eq!(fs::read(&m.path).unwrap(), weights);
        assert_eq!(
            (m.store, m.name.as_str(), m.precision.as_deref()),
            (Store::Ollama, "mistral:latest", Some("Q5_1"))
        );
        assert_eq!((m.template.as_deref(), m.system.as_deref()), (Some("{{ .Prompt }}"), Some("Be brief.")));
        assert_eq!(m.params.unwrap()["temperature"], 0.7);
        assert_eq!(m.licence.as_deref(), Some("MIT License"));
        assert_eq!(m.digest, Some(Digest::of(&weights)));
    }
    let m = home.ready("someone/model:v1").unwrap();
    assert_eq!(m.notes, ["its image projector is left out: text only"]);
    assert_eq!(home.ready("hub.example/team/model:v2").unwrap().name, "hub.example/team/model:v2");
    home.hub().verify("mistral", &mut ()).unwrap();
    assert_eq!(files(&home.at("ollama")), before);
}

#[test]
fn a_damaged_or_unusable_store_says_so() {
    let home = Home::new();
    put(&home, "registry.ollama.ai/library/cut/latest", &[("model", &noise(1000))]);
    let blob = home.at("ollama/blobs").join(format!("sha256-{}", Digest::of(&noise(1000)).hex()));
    fs::write(&blob, b"short").unwrap();
    let e = home.failure("cut:latest");
    assert!(e.contains("expected 1000 bytes, found 5 bytes") && e.contains("ollama pull cut:latest"), "{e}");
    let mut wrong = noise(1000);
    wrong[1] ^= 1;
    fs::write(&blob, wrong).unwrap();
    assert!(matches!(home.hub().verify("cut:latest", &mut ()), Err(Error::Corrupt { .. })));
    assert!(blob.exists(), "the store is not ours to change");
    put(&home, "registry.ollama.ai/library/tuned/latest", &[("model", b"m"), ("adapter", b"a")]);
    assert!(home.failure("tuned:latest").contains("adapter"));
    fs::write(home.at("ollama/manifests/registry.ollama.ai/library/tuned/latest"), "{").unwrap();
    assert!(home.failure("tuned:latest").contains("tuned/latest"));
    assert_eq!(home.hub().list().unwrap().len(), 1);
}

#[test]
fn a_pull_goes_to_our_cache_and_is_verified() {
    let mut home = Home::new();
    let server = registry(vec![
        ("model", noise(3000)),
        ("system", b"Hi.".to_vec()),
        ("params", b"{\"top_k\":3}".to_vec()),
    ]);
    home.config.ollama_registry = server.url.clone();
    let m = home.ready("tiny:1m-fp16").unwrap();
    assert_eq!((m.store, m.name.as_str()), (Store::Quarrel, "tiny:1m-fp16"));
    assert_eq!(fs::read(&m.path).unwrap(), noise(3000));
    assert_eq!((m.system.as_deref(), m.precision.as_deref()), (Some("Hi."), Some("Q5_1")));
    assert!(!home.at("ollama").exists(), "nothing is written to Ollama's store");
    assert!(server.log()[0].header("accept").unwrap().contains("manifest.v2"));
    let requests = server.log().len();
    assert_eq!(home.ready("tiny:1m-fp16").unwrap().path, m.path);
    assert_eq!(server.log().len(), requests, "the second time needs no network");
    home.hub().pull("tiny:1m-fp16", Options::default(), &mut ()).unwrap();
    assert_eq!(server.log().len(), requests + 1, "a fresh pull asks for the manifest alone");
}

#[test]
fn any_registry_by_its_host() {
    let home = Home::new();
    let weights = noise(100);
    let served = weights.clone();
    let server = Server::start(move |req| match req.path.as_str() {
        "/v2/team/model/manifests/v1" => Resp::ok(manifest(&[("model", &served)])),
        path if path.ends_with(&Digest::of(&served).to_string()) => Resp::ok(served.clone()),
        _ => Resp::ok(CONFIG),
    });
    let m = home.ready(&format!("{}/team/model:v1", server.host())).unwrap();
    assert_eq!(fs::read(m.path).unwrap(), weights);
}

#[test]
fn refusals_of_a_registry_are_explained() {
    for (status, part) in [(404, "has no library/nosuch:x (404)"), (401, "asks for a login (401)")] {
        let mut home = Home::new();
        home.config.ollama_registry = Server::start(move |_| Resp::status(status)).url.clone();
        let e = home.failure("nosuch:x");
        assert!(e.contains(part) && e.contains("registry.ollama.ai/library/nosuch:x"), "{e}");
        assert!(files(&home.at("quarrel/models")).is_empty() && files(&home.at("quarrel/blobs")).is_empty());
    }
    let home = Home::new();
    let e = home.ready_with("nosuch:x", Options { offline: true, ..Options::default() }).unwrap_err();
    assert!(matches!(e, Error::Offline { .. }), "{e}");
}

#[test]
fn a_corrupt_layer_is_refused_and_the_next_pull_works() {
    let mut home = Home::new();
    let good = registry(vec![("model", noise(3000))]);
    let upstream = good.url.clone();
    let digest = Digest::of(&noise(3000)).to_string();
    let bad = Server::start(move |req| match req.path.ends_with(&digest) {
        true => Resp::ok(vec![0; 3000]),
        false => Resp::redirect(&format!("{upstream}{}", req.path)),
    });
    home.config.ollama_registry = bad.url.clone();
    let outcome = home.hub().resolve("tiny:1m-fp16", Options::default(), &mut ()).unwrap();
    let text = format!("{outcome:?}");
    assert!(text.contains("Substitute") && text.contains("is corrupt"), "{text}");
    assert!(files(&home.at("quarrel/models")).is_empty());
    home.config.ollama_registry = good.url.clone();
    assert_eq!(fs::read(home.ready("tiny:1m-fp16").unwrap().path).unwrap(), noise(3000));
}
