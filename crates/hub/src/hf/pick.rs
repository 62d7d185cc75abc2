//! Which files of a repository make up the model that was asked for. Pure: names in, names out.

use std::collections::BTreeMap;

use crate::error::{Candidate, Error, Result};
use crate::name::HfRef;
use crate::quant;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RepoFile {
    pub(super) path: String,
    pub(super) size: Option<u64>,
}

/// The files to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picked {
    /// Repository paths; the one to open first, or all of a safetensors model.
    pub(super) files: Vec<String>,
    /// Whether the directory, not the first file, is what to open.
    pub(super) directory: bool,
}

/// Files that a safetensors model needs or may need beside its weights.
const BESIDE: [&str; 15] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "model.safetensors.index.json",
    // Of sentence-transformers: the modules behind the model, the longest text, prompts.
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// The settings of a module of sentence-transformers: `1_Pooling/config.json`.
pub(crate) fn is_module(path: &str) -> bool {
    let module = path.strip_suffix("/config.json").and_then(|m| m.split_once('_'));
    module.is_some_and(|(number, name)| {
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && !name.contains('/')
    })
}

/// The stem, number and count of `stem-00001-of-00003.gguf`.
fn split_part(path: &str) -> Option<(&str, u32, u32)> {
    let stem = path.strip_suffix(".gguf").or_else(|| path.strip_suffix(".safetensors"))?;
    let (head, count) = stem.rsplit_once("-of-")?;
    let (head, number) = head.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
    Some((head, digits(number)?, digits(count)?))
}

/// Weights of language models: not image projectors, and not the statistics that quantisers leave beside them.
fn is_model_gguf(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let file = lower.rsplit('/').next().unwrap_or(&lower);
    file.ends_with(".gguf") && !file.contains("mmproj") && !file.contains("imatrix")
}

/// Whole GGUF models: key, paths in order, size. A split one counts only when all its parts are there.
fn gguf_models(files: &[RepoFile]) -> BTreeMap<String, (Vec<&RepoFile>, u32)> {
    let mut models: BTreeMap<String, (Vec<&RepoFile>, u32)> = BTreeMap::new();
    for file in files.iter().filter(|f| is_model_gguf(&f.path)) {
        let (key, count) = match split_part(&file.path) {
            Some((stem, _, count)) => (format!("{stem}-*-of-{count:05}.gguf"), count),
            None => (file.path.clone(), 1),
        };
        models.entry(key).or_insert((Vec::new(), count)).0.push(file);
    }
    for (parts, _) in models.values_mut() {
        parts.sort_by(|a, b| a.path.cmp(&b.path));
    }
    models.retain(|_, (parts, count)| parts.len() as u32 == *count);
    models
}

fn safetensors(files: &[RepoFile]) -> Option<Picked> {
    let at_root = |name: &str| files.iter().any(|f| f.path == name);
    let mut weights: Vec<&str> = match at_root("model.safetensors") {
        true => vec!["model.safetensors"],
        false => {
            let shard = |f: &&RepoFile| f.path.starts_with("model-") && f.path.ends_with(".safetensors");
            let shards: Vec<_> = files
                .iter()
                .filter(shard)
                .filter_map(|f| Some((f.path.as_str(), split_part(&f.path)?)))
                .collect();
            let count = shards.first().map_or(0, |(_, (_, _, count))| *count);
            if count == 0 || shards.len() as u32 != count || !at_root("model.safetensors.index.json") {
                return None;
            }
            shards.into_iter().map(|(path, _)| path).collect()
        }
    };
    weights.sort_unstable();
    if !at_root("config.json") {
        return None;
    }
    let beside = BESIDE.into_iter().filter(|b| at_root(b));
    let modules = files.iter().map(|f| f.path.as_str()).filter(|p| at_root("modules.json") && is_module(p));
    Some(Picked {
        files: beside.chain(modules).chain(weights).map(str::to_string).collect(),
        directory: true,
    })
}

/// Chooses among the files of a repository (or those of it that are here).
///
/// # Errors
/// [`Error::Ambiguous`] with every candidate, or [`Error::Malformed`] with what there is when nothing fits.
pub(super) fn pick(what: &HfRef, files: &[RepoFile]) -> Result<Picked> {
    let models = gguf_models(files);
    let gguf = |parts: &[&RepoFile]| Picked {
        files: parts.iter().map(|f| f.path.clone()).collect(),
        directory: false,
    };
    let nothing = |why: String| Error::malformed(what, why);
    if let Some(spec) = &what.file {
        if let Some(file) = files.iter().find(|f| f.path == *spec) {
            let whole = models.values().find(|(parts, _)| parts.iter().any(|p| p.path == *spec));
            return match (whole, split_part(spec)) {
                (Some((parts, _)), _) => Ok(gguf(parts)),
                (None, Some((_, _, n))) if spec.ends_with(".gguf") => {
                    Err(nothing(format!("it is one of {n} parts, and the others are not all there")))
                }
                _ if spec == "model.safetensors" || spec == "config.json" => safetensors(files)
                    .ok_or_else(|| nothing("config.json or a shard is missing beside it".into())),
                _ => Ok(gguf(&[file])),
            };
        }
        if spec.eq_ignore_ascii_case("safetensors") {
            return safetensors(files)
                .ok_or_else(|| nothing("the repository has no whole safetensors model".into()));
        }
        let named: Vec<_> = models.iter().filter(|(key, _)| quant::names(key, spec)).collect();
        return match named[..] {
            [(_, (parts, _))] => Ok(gguf(parts)),
            [] => Err(nothing(format!(
                "the repository has no such file or precision; it has {}",
                inventory(files)
            ))),
            _ => Err(ambiguous(what, &named, false)),
        };
    }
    let tensors = safetensors(files);
    let all: Vec<_> = models.iter().collect();
    match (&all[..], tensors) {
        ([], Some(picked)) => Ok(picked),
        ([(_, (parts, _))], None) => Ok(gguf(parts)),
        ([], None) => Err(nothing(format!(
            "the repository has no whole GGUF or safetensors model; it has {}",
            inventory(files)
        ))),
        (_, tensors) => Err(ambiguous(what, &all, tensors.is_some())),
    }
}

fn ambiguous(what: &HfRef, models: &[(&String, &(Vec<&RepoFile>, u32))], tensors: bool) -> Error {
    let name = |file: &str| HfRef { file: Some(file.into()), ..what.clone() }.to_string();
    let mut candidates: Vec<Candidate> = models
        .iter()
        .map(|(_, (parts, _))| {
            let size = parts.iter().try_fold(0u64, |sum, f| sum.checked_add(f.size?));
            let several = if parts.len() > 1 { format!(" in {} files", parts.len()) } else { String::new() };
            Candidate {
                name: name(&parts[0].path),
                detail: format!("{}{several}", size.map_or("size unknown".into(), quant::human_bytes)),
            }
        })
        .collect();
    if tensors {
        candidates.push(Candidate { name: name("safetensors"), detail: "safetensors".into() });
    }
    Error::Ambiguous { name: what.to_string(), candidates }
}

/// A few file names, for a message.
fn inventory(files: &[RepoFile]) -> String {
    const SHOWN_MAX: usize = 8;
    let weights: Vec<_> =
        files.iter().filter(|f| f.path.ends_with(".gguf") || f.path.ends_with(".safetensors")).collect();
    let all: Vec<_> = if weights.is_empty() { files.iter().collect() } else { weights };
    let mut names: Vec<_> = all.iter().take(SHOWN_MAX).map(|f| f.path.as_str()).collect();
    let more = format!("{} more", all.len().saturating_sub(SHOWN_MAX));
    if all.len() > SHOWN_MAX {
        names.push(&more);
    }
    if names.is_empty() { "no files".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(paths: &str) -> Vec<RepoFile> {
        paths.split_whitespace().map(|p| RepoFile { path: p.into(), size: Some(1000) }).collect()
    }

    fn want(file: &str) -> HfRef {
        let file = (!file.is_empty()).then(|| file.into());
        HfRef { org: "o".into(), repo: "r".into(), revision: None, file }
    }

    const QUANTS: &str = "README.md m-Q4_K_M.gguf m-Q8_0.gguf mmproj-m-f16.gguf m.imatrix.gguf";
    const SPLIT: &str = "Q8_0/m-Q8_0-00001-of-00002.gguf Q8_0/m-Q8_0-00002-of-00002.gguf m-q4_k_m.gguf";
    const TENSORS: &str = "config.json tokenizer.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json x.bin";

    const SENTENCES: &str = "config.json modules.json sentence_bert_config.json 1_Pooling/config.json 2_Dense/config.json \
        2_Dense/model.safetensors onnx/config.json a/1_b/config.json _x/config.json model.safetensors";

    #[test]
    fn picks() {
        for (files, file, first, count, directory) in [
            (QUANTS, "Q4_K_M", "m-Q4_K_M.gguf", 1, false),
            (QUANTS, "q8_0", "m-Q8_0.gguf", 1, false),
            (QUANTS, "m-Q8_0.gguf", "m-Q8_0.gguf", 1, false),
            (QUANTS, "mmproj-m-f16.gguf", "mmproj-m-f16.gguf", 1, false),
            (SPLIT, "Q8_0", "Q8_0/m-Q8_0-00001-of-00002.gguf", 2, false),
            (SPLIT, "Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", 2, false),
            ("only.gguf README.md", "", "only.gguf", 1, false),
            (TENSORS, "", "config.json", 5, true),
            ("config.json model.safetensors", "", "config.json", 2, true),
            ("config.json model.safetensors", "model.safetensors", "config.json", 2, true),
            ("config.json model.safetensors a.gguf", "safetensors", "config.json", 2, true),
            (SENTENCES, "", "config.json", 6, true),
            ("config.json model.safetensors 1_Pooling/config.json", "", "config.json", 2, true),
        ] {
            let got = pick(&want(file), &repo(files)).unwrap_or_else(|e| panic!("{files} {file}: {e}"));
            assert_eq!(
                (got.files[0].as_str(), got.files.len(), got.directory),
                (first, count, directory),
                "{files} {file}"
            );
        }
    }

    #[test]
    fn refusals_list_what_is_there() {
        for (files, file, parts) in [
            (QUANTS, "", vec!["several things", "hf:o/r:m-Q4_K_M.gguf", "hf:o/r:m-Q8_0.gguf"]),
            (QUANTS, "Q5_0", vec!["no such file or precision", "m-Q4_K_M.gguf"]),
            ("a-Q4_0.gguf b-Q4_0.gguf", "Q4_0", vec!["hf:o/r:a-Q4_0.gguf", "hf:o/r:b-Q4_0.gguf"]),
            ("config.json model.safetensors a.gguf", "", vec!["hf:o/r:a.gguf", "hf:o/r:safetensors"]),
            ("m-00001-of-00002.gguf", "", vec!["no whole GGUF"]),
            ("m-00001-of-00002.gguf", "m-00001-of-00002.gguf", vec!["others are not all there"]),
            ("model.safetensors", "", vec!["no whole GGUF or safetensors"]),
            ("pytorch_model.bin", "", vec!["it has pytorch_model.bin"]),
            ("", "", vec!["no files"]),
        ] {
            let e = pick(&want(file), &repo(files)).expect_err(files).to_string();
            assert!(parts.iter().all(|p| e.contains(p)), "{files} {file}: {e}");
            assert!(!e.contains("mmproj") || file.is_empty() || !e.contains("several"), "{e}");
        }
    }
}
