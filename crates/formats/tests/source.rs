//! Opening what users point at: files, directories, split models, and things that are not models.

use std::{fs, path::Path};

use quarrel_formats::{
    DType, Metadata, Source, Value,
    gguf::{NewTensor, write},
};
use tempfile::tempdir;

fn gguf(keys: &[(&str, Value)], tensors: &[(&str, f32)]) -> Vec<u8> {
    let metadata: Metadata = keys.iter().map(|(k, v)| (*k, v.clone())).collect();
    let data: Vec<_> = tensors.iter().map(|(_, v)| v.to_le_bytes().repeat(4)).collect();
    let new: Vec<_> = tensors
        .iter()
        .zip(&data)
        .map(|((name, _), data)| NewTensor { name, dtype: DType::F32, shape: &[2, 2], data })
        .collect();
    let mut out = Vec::new();
    write(&mut out, &metadata, &new).unwrap();
    out
}

fn part(no: u32, count: u32, total: i32, arch: &str, tensors: &[(&str, f32)]) -> Vec<u8> {
    let keys = [
        ("general.architecture", Value::String(arch.into())),
        ("split.no", Value::U16(no as u16)),
        ("split.count", Value::U16(count as u16)),
        ("split.tensors.count", Value::I32(total)),
    ];
    gguf(&keys, tensors)
}

fn safetensors(tensors: &[(&str, f32)]) -> Vec<u8> {
    let entries: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(i, (n, _))| {
            format!(r#""{n}":{{"dtype":"F32","shape":[2],"data_offsets":[{},{}]}}"#, 8 * i, 8 * i + 8)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    tensors.iter().for_each(|(_, v)| out.extend(v.to_le_bytes().repeat(2)));
    out
}

/// Writes files into a fresh directory, opens `open` in it, and gives the source or the message without the directory's path.
fn open(files: &[(&str, Vec<u8>)], open: &str) -> Result<(Source, tempfile::TempDir), String> {
    let dir = tempdir().unwrap();
    for (name, bytes) in files {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let prefix = dir.path().display().to_string();
    let path = if open.is_empty() { dir.path().to_owned() } else { dir.path().join(open) };
    match Source::open(path) {
        Ok(source) => Ok((source, dir)),
        Err(e) => Err(e.to_string().replace(&format!("{prefix}/"), "").replace(&prefix, "DIR")),
    }
}

fn values(source: &Source) -> Vec<(String, Vec<f32>)> {
    source.tensors().map(|t| (t.name.clone(), t.to_f32())).collect()
}

#[test]
fn a_gguf_opens_by_file_or_by_directory_and_is_mapped() {
    let file = gguf(&[("general.architecture", Value::String("x".into()))], &[("a", 1.0), ("b", 2.0)]);
    let size = file.len() as u64;
    for name in ["m.gguf", ""] {
        let (source, _dir) = open(&[("m.gguf", file.clone())], name).unwrap();
        assert_eq!(source.metadata().unwrap().str("general.architecture"), Some("x"));
        let b = source.tensor("b").unwrap();
        assert_eq!((b.shape.as_slice(), b.dtype, b.data.is_mapped()), (&[2, 2][..], DType::F32, true));
        b.data.release();
        assert_eq!(b.to_f32(), [2.0; 4]);
        assert_eq!((source.total_bytes(), source.tensors().len()), (size, 2));
        assert!(source.tensor("c").is_none() && source.config().is_none());
    }
}

#[test]
fn a_vocabulary_without_tensors_opens() {
    let (source, _dir) = open(&[("v.gguf", gguf(&[("k", Value::U8(1))], &[]))], "v.gguf").unwrap();
    assert_eq!(source.tensors().len(), 0);
}

#[test]
fn a_split_model_opens_by_any_part_and_by_its_directory() {
    let files = [
        ("m-00001-of-00002.gguf", part(0, 2, 3, "x", &[("a", 1.0), ("b", 2.0)])),
        ("m-00002-of-00002.gguf", part(1, 2, 3, "x", &[("c", 3.0)])),
    ];
    for name in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", ""] {
        let (source, _dir) = open(&files, name).unwrap();
        let names: Vec<_> = source.tensors().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(source.tensor("c").unwrap().to_f32(), [3.0; 4]);
        assert_eq!(source.paths().len(), 2);
        assert_eq!(source.total_bytes(), files.iter().map(|f| f.1.len() as u64).sum::<u64>());
    }
}

#[test]
fn a_split_model_that_does_not_fit_together_is_refused() {
    let (one, two) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    let first = part(0, 2, 2, "x", &[("a", 1.0)]);
    let cases = [
        (vec![(one, first.clone())], one, "split model: part 2 of 2 is missing: m-00002-of-00002.gguf"),
        (vec![(two, first.clone())], two, "split model: part 1 of 2 is missing: m-00001-of-00002.gguf"),
        (
            vec![(one, first.clone()), (two, first.clone())],
            one,
            "the name says part 2 of 2 (split.no 1), the file says",
        ),
        (
            vec![(one, first.clone()), (two, part(1, 3, 2, "x", &[("b", 1.0)]))],
            one,
            "the file says split.count U16(3)",
        ),
        (vec![(one, gguf(&[], &[]))], one, "the file says split.count nothing and split.no nothing"),
        (
            vec![(one, first.clone()), (two, part(1, 2, 2, "y", &[("b", 1.0)]))],
            one,
            "general.architecture: \"y\", but",
        ),
        (
            vec![(one, first.clone()), (two, part(1, 2, 2, "x", &[("a", 1.0)]))],
            one,
            "tensor \"a\": another file of this",
        ),
        (
            vec![(one, first.clone()), (two, part(1, 2, 2, "x", &[]))],
            one,
            "split.tensors.count: 2 tensors in all, but the parts hold 1",
        ),
        (
            vec![("renamed.gguf", first.clone())],
            "renamed.gguf",
            "split.count: one part of 2, but the name does not end",
        ),
        (vec![(one, first), (two, vec![])], one, "m-00002-of-00002.gguf: magic: needs 4 bytes"),
    ];
    for (files, name, want) in cases {
        let error = open(&files, name).map(|_| ()).expect_err(want);
        assert!(error.contains(want) && error.contains(".gguf: "), "got  {error}\nwant {want}");
    }
}

#[test]
fn checkpoints_open_whole_sharded_or_as_a_lone_file() {
    let config = ("config.json", br#"{"model_type":"x"}"#.to_vec());
    let whole = ("model.safetensors", safetensors(&[("a", 1.0), ("b", 2.0)]));
    let want = [("a".to_owned(), vec![1.0; 2]), ("b".to_owned(), vec![2.0; 2])];
    for name in ["", "model.safetensors"] {
        let (source, dir) = open(&[config.clone(), whole.clone()], name).unwrap();
        assert_eq!(values(&source), want);
        let Source::Hf(hf) = &source else { panic!() };
        assert_eq!((hf.config["model_type"].as_str(), hf.dir.as_path()), (Some("x"), dir.path()));
        assert!(source.metadata().is_none());
    }
    let index = br#"{"metadata":{},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#.to_vec();
    let shards = [
        config.clone(),
        ("model.safetensors.index.json", index),
        ("s1.safetensors", safetensors(&[("a", 1.0)])),
        ("s2.safetensors", safetensors(&[("b", 2.0)])),
    ];
    assert_eq!(values(&open(&shards, "").unwrap().0), want);
    let (lone, _dir) = open(&[("adapter.safetensors", whole.1.clone())], "adapter.safetensors").unwrap();
    assert!(lone.config().unwrap().is_null());
    assert_eq!(values(&open(&[config, ("other.safetensors", whole.1)], "").unwrap().0), want);
}

#[test]
fn checkpoints_that_do_not_fit_together_are_refused() {
    let config = || ("config.json", b"{}".to_vec());
    let index =
        |map: &str| ("model.safetensors.index.json", format!(r#"{{"weight_map":{map}}}"#).into_bytes());
    let (s1, s2) =
        (("s1.safetensors", safetensors(&[("a", 1.0)])), ("s2.safetensors", safetensors(&[("a", 2.0)])));
    let cases = [
        (vec![config()], "DIR: config.json is here but no model.safetensors"),
        (vec![("config.json", b"{".to_vec())], "config.json: JSON: EOF while parsing"),
        (
            vec![config(), s1.clone(), s2.clone()],
            "DIR: 2 safetensors files but no index; name one: s1.safetensors, s2.saf",
        ),
        (vec![config(), index("3")], "index.json: weight_map: invalid type: integer `3`"),
        (
            vec![config(), index(r#"{"a":"../x.safetensors"}"#)],
            "file \"../x.safetensors\": is not a plain file name",
        ),
        (vec![config(), index(r#"{"a":"/etc/passwd"}"#)], "file \"/etc/passwd\": is not a plain file name"),
        (vec![config(), index(r#"{"a":"s9.safetensors"}"#)], "file \"s9.safetensors\": is missing; fetch it"),
        (
            vec![config(), s1.clone(), index(r#"{"b":"s1.safetensors"}"#)],
            "tensor \"b\": is not in \"s1.safetensors\"",
        ),
        (
            vec![config(), s1, s2, index(r#"{"a":"s1.safetensors","b":"s2.safetensors"}"#)],
            "s2.safetensors: tensor \"a\": another file of this model has it too",
        ),
        (
            vec![config(), ("model.safetensors", gguf(&[], &[]))],
            "model.safetensors: a GGUF file under another name",
        ),
        (vec![config(), ("model.safetensors", vec![])], "model.safetensors: the file is empty"),
    ];
    for (files, want) in cases {
        let error = open(&files, "").map(|_| ()).expect_err(want);
        assert!(error.contains(want), "got  {error}\nwant {want}");
    }
}

#[test]
fn what_is_not_a_model_gets_one_clear_line() {
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98362432\n";
    let mut cut = gguf(&[], &[("a", 1.0)]);
    cut.truncate(cut.len() - 40);
    let mut pickle = b"PK\x03\x04".to_vec();
    pickle.resize(100, 0);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "m.gguf: the file is empty; fetch it again"),
        (b"\n<!DOCTYPE html><html>".to_vec(), "m.gguf: a web page, not a model"),
        (b"<html><body>404".to_vec(), "m.gguf: a web page, not a model"),
        (lfs.into(), "m.gguf: a git-lfs pointer, not the model itself; run `git lfs pull`"),
        (pickle, "m.gguf: a PyTorch pickle or zip archive"),
        (b"lmgg\x01\0\0\0".to_vec(), "m.gguf: a GGML file from before GGUF"),
        (b"hello".to_vec(), "m.gguf: neither GGUF nor safetensors"),
        (cut, "m.gguf: tensor \"a\", offset: 16 bytes at 0 end at byte"),
    ];
    for (bytes, want) in cases {
        let error = open(&[("m.gguf", bytes)], "m.gguf").map(|_| ()).expect_err(want);
        assert!(error.contains(want) && !error.contains('\n'), "got  {error}\nwant {want}");
    }
    let two = [("a.gguf", gguf(&[], &[])), ("b.gguf", gguf(&[], &[]))];
    assert_eq!(open(&two, "").map(|_| ()).unwrap_err(), "DIR: 2 models here, name one: a.gguf, b.gguf");
    let none = open(&[("readme.txt", vec![])], "").map(|_| ()).unwrap_err();
    assert_eq!(none, "DIR: no model here: neither config.json with safetensors nor a .gguf file");
    let missing = Source::open(Path::new("/no/such/model.gguf")).unwrap_err().to_string();
    assert_eq!(missing, "/no/such/model.gguf: cannot open: No such file or directory (os error 2)");
}

/// Every real file in `$QUARREL_SHARED/tokenizers`: `QUARREL_SHARED=../shared cargo nextest run -p quarrel-formats`.
#[test]
fn published_vocabularies_open() {
    let Some(shared) = std::env::var_os("QUARREL_SHARED") else {
        eprintln!("QUARREL_SHARED is not set: skipped");
        return;
    };
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(&shared).join("tokenizers")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "gguf") {
            let source = Source::open(&path).unwrap();
            assert!(
                source.metadata().unwrap().strings("tokenizer.ggml.tokens").is_some_and(|t| t.len() > 1000)
            );
            seen += 1;
        }
    }
    assert!(seen > 0);
}
