//! The cache directory of the Hugging Face tools: `models--ORG--REPO/{refs,blobs,snapshots}`. A blob is named by its ETag
//! (the SHA-256 of large files, git's SHA-1 of small ones); a snapshot is a directory of links to blobs.

use std::fs;
use std::path::{Path, PathBuf};

use super::pick::{RepoFile, pick};
use crate::cache::{link, make_dir, read_dir, read_small, write_atomically};
use crate::digest::{Digest, digest_file};
use crate::error::{Error, Result};
use crate::hub::{LocalModel, Store};
use crate::name::HfRef;
use crate::quant;

/// Directories below a snapshot deeper than this are not looked at.
const DEPTH_MAX: u32 = 6;

/// The cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HfCache {
    root: PathBuf,
}

/// A model found in the cache.
#[derive(Debug, Clone)]
pub struct Cached {
    /// How to name it.
    pub what: HfRef,
    /// The files, as links in the snapshot.
    pub files: Vec<PathBuf>,
    /// What to open.
    pub path: PathBuf,
}

impl HfCache {
    /// The cache at `root` (`.../huggingface/hub`).
    pub fn new(root: impl Into<PathBuf>) -> HfCache {
        HfCache { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn repo(&self, what: &HfRef) -> PathBuf {
        self.root.join(format!("models--{}--{}", what.org, what.repo))
    }

    pub(super) fn blob(&self, what: &HfRef, etag: &str) -> PathBuf {
        self.repo(what).join("blobs").join(etag)
    }

    /// The lock file that the Python tools use for the same blob.
    pub(super) fn lock(&self, what: &HfRef, etag: &str) -> PathBuf {
        self.root
            .join(".locks")
            .join(format!("models--{}--{}", what.org, what.repo))
            .join(format!("{etag}.lock"))
    }

    pub(super) fn snapshot(&self, what: &HfRef, commit: &str) -> PathBuf {
        self.repo(what).join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last fetched.
    pub(super) fn commit(&self, what: &HfRef) -> Result<Option<String>> {
        let revision = what.revision();
        if is_commit(revision) && self.snapshot(what, revision).is_dir() {
            return Ok(Some(revision.into()));
        }
        let text = read_small(&self.repo(what).join("refs").join(revision), 4096)?;
        Ok(text.map(|t| t.trim().to_string()).filter(|c| is_commit(c)))
    }

    pub(super) fn set_commit(&self, what: &HfRef, commit: &str) -> Result<()> {
        if what.revision() == commit {
            return Ok(());
        }
        write_atomically(&self.repo(what).join("refs").join(what.revision()), commit.as_bytes())
    }

    /// Links a blob into a snapshot under its own path.
    pub(super) fn place(&self, what: &HfRef, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let at = self.snapshot(what, commit).join(file);
        make_dir(at.parent().unwrap_or(&self.root))?;
        let up = "../".repeat(2 + file.matches('/').count());
        link(Path::new(&format!("{up}blobs/{etag}")), &self.blob(what, etag), &at)?;
        Ok(at)
    }

    /// The model as it is here; nothing when it, or a part of it, is not.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] when several that are here fit.
    pub fn find(&self, what: &HfRef) -> Result<Option<Cached>> {
        let Some(commit) = self.commit(what)? else { return Ok(None) };
        let snapshot = self.snapshot(what, &commit);
        let mut files = Vec::new();
        walk(&snapshot, "", 0, &mut files)?;
        match pick(what, &files) {
            Ok(picked) => Ok(Some(Cached {
                files: picked.files.iter().map(|f| snapshot.join(f)).collect(),
                path: if picked.directory { snapshot } else { snapshot.join(&picked.files[0]) },
                what: HfRef {
                    file: if picked.directory { what.file.clone() } else { picked.files.first().cloned() },
                    ..what.clone()
                },
            })),
            Err(e @ Error::Ambiguous { .. }) => Err(e),
            Err(_) => Ok(None), // what is not here may still be in the repository
        }
    }

    /// Every model in the cache: each GGUF of the newest known `main`, and each whole safetensors repository.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn models(&self) -> Result<Vec<Cached>> {
        let mut all = Vec::new();
        for dir in read_dir(&self.root)? {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((org, repo)) = name.strip_prefix("models--").and_then(|n| n.split_once("--")) else {
                continue;
            };
            let what = HfRef { org: org.into(), repo: repo.into(), revision: None, file: None };
            let names = match self.find(&what) {
                Ok(Some(one)) => {
                    all.push(one);
                    continue;
                }
                Ok(None) => continue,
                Err(Error::Ambiguous { candidates, .. }) => candidates,
                Err(e) => return Err(e),
            };
            for candidate in names {
                let file = candidate.name.rsplit_once(':').map(|(_, f)| f.to_string());
                all.extend(self.find(&HfRef { file, ..what.clone() })?);
            }
        }
        Ok(all)
    }
}

impl Cached {
    /// The digest of the weights, from the name of the blob behind the link.
    pub fn digest(&self) -> Option<Digest> {
        let weights =
            self.files.iter().find(|f| f.extension().is_some_and(|e| e == "gguf" || e == "safetensors"))?;
        blob_digest(weights)
    }

    /// The model as the hub hands it out.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn local(&self) -> Result<LocalModel> {
        let sizes =
            self.files.iter().map(|f| fs::metadata(f).map(|m| m.len()).map_err(|e| Error::io("read", f, e)));
        Ok(LocalModel {
            path: self.path.clone(),
            name: self.what.to_string(),
            store: Store::HuggingFace,
            source: format!("Hugging Face repository {}", self.what.id()),
            digest: self.digest(),
            size: sizes.sum::<Result<u64>>()?,
            precision: self.what.file.as_deref().and_then(quant::in_name),
            licence: None,
            template: None,
            system: None,
            params: None,
            substitute_for: None,
            notes: Vec::new(),
        })
    }

    /// Hashes every file. A wrong blob is removed, so that the next fetch (by any tool) brings it back.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first wrong one.
    pub fn verify(&self, mut seen: impl FnMut(u64)) -> Result<()> {
        for file in &self.files {
            let Some(expected) = blob_digest(file) else { continue };
            let found = digest_file(file, Some(&expected), &mut seen)?;
            if found != expected {
                let blob = fs::canonicalize(file).map_err(|e| Error::io("read", file, e))?;
                fs::remove_file(&blob).map_err(|e| Error::io("remove", &blob, e))?;
                let after = "it was removed; run the same command again to fetch it anew";
                return Err(Error::corrupt_digest(blob.display(), &expected, &found, after));
            }
        }
        Ok(())
    }

    /// Removes the links of this model, and the blobs that no other link leads to. Returns the bytes given back.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(&self) -> Result<u64> {
        let mut bytes = 0;
        for file in &self.files {
            let blob = fs::canonicalize(file).map_err(|e| Error::io("read", file, e))?;
            fs::remove_file(file).map_err(|e| Error::io("remove", file, e))?;
            let Some(repo) = blob.parent().and_then(Path::parent) else { continue };
            let mut others = Vec::new();
            walk(&repo.join("snapshots"), "", 0, &mut others)?;
            let used = |f: &RepoFile| {
                fs::canonicalize(repo.join("snapshots").join(&f.path)).is_ok_and(|p| p == blob)
            };
            if blob.exists() && !others.iter().any(used) {
                bytes += fs::metadata(&blob).map_err(|e| Error::io("read", &blob, e))?.len();
                fs::remove_file(&blob).map_err(|e| Error::io("remove", &blob, e))?;
            }
        }
        Ok(bytes)
    }
}

fn blob_digest(link: &Path) -> Option<Digest> {
    fs::canonicalize(link).ok()?.file_name()?.to_str()?.parse().ok()
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The files below a directory with their sizes. Links that lead nowhere (a removed blob) are left out.
fn walk(dir: &Path, prefix: &str, depth: u32, into: &mut Vec<RepoFile>) -> Result<()> {
    for path in read_dir(dir)? {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let inside = format!("{prefix}{name}");
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() && depth < DEPTH_MAX => {
                walk(&path, &format!("{inside}/"), depth + 1, into)?
            }
            Ok(meta) if meta.is_file() => into.push(RepoFile { path: inside, size: Some(meta.len()) }),
            _ => {}
        }
    }
    Ok(())
}
