//! The cache directory of this program: blobs named by their SHA-256, one small JSON manifest per model name, and locks
//! so that two processes never fetch the same thing at once. Nothing becomes visible before it is whole and verified.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, digest_file};
use crate::error::{Error, Result};
use crate::hf::is_module;
use crate::progress::Progress;

/// A manifest is small; anything larger was not written by us.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// What a file of a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Weights.
    Model,
    /// A file that belongs beside the weights (`config.json`, `tokenizer.json`, ...).
    Beside,
    /// A prompt template in Ollama's language (Go text/template).
    Template,
    /// A system prompt.
    System,
    /// Sampling parameters as JSON.
    Params,
    /// The licence's text.
    Licence,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// What it is for.
    pub role: Role,
    /// Its own name, without directories.
    pub name: String,
    /// What its bytes hash to.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The blob's modification time when it was last verified, in nanoseconds since 1970: an equal size and time let
    /// an opening skip the hash.
    pub mtime_ns: u64,
}

/// What we know of one fetched model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name without its tag (`smollm2`, `wheel:PACKAGE==VERSION`).
    pub name: String,
    /// The exact tag; empty for names that have none.
    pub tag: String,
    /// Where it came from.
    pub source: String,
    /// When, in seconds since 1970.
    pub fetched_s: u64,
    /// The precision, where the source says it.
    pub precision: Option<String>,
    /// The licence, where the source says it.
    pub licence: Option<String>,
    /// Its files; the weights come first.
    pub files: Vec<FileEntry>,
    /// What of it is left out, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Manifest {
    /// `NAME:TAG`, or the name alone.
    pub fn full_name(&self) -> String {
        if self.tag.is_empty() { self.name.clone() } else { format!("{}:{}", self.name, self.tag) }
    }

    /// The weights.
    pub fn weights(&self) -> impl Iterator<Item = &FileEntry> {
        self.files.iter().filter(|f| f.role == Role::Model)
    }

    /// The sum of all files' sizes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Held while something is fetched; released when dropped, also when the process dies.
pub struct Lock {
    _file: File,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The names whose manifests are gone.
    pub names: Vec<String>,
    /// Bytes given back.
    pub bytes: u64,
    /// Blobs that stay because another model uses them.
    pub kept: usize,
}

impl Cache {
    /// The cache at `root`; nothing is created before something is written.
    pub fn new(root: impl Into<PathBuf>) -> Cache {
        Cache { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob with this digest lives.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.to_string().replace(':', "-"))
    }

    /// Where an unfinished download of it lives.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(format!("{}.partial", digest.to_string().replace(':', "-")))
    }

    /// A directory for the pieces of something that is being put together; made if it is not there.
    pub(crate) fn stage(&self, key: &str) -> Result<PathBuf> {
        let dir = self.root.join("partial").join(escape(key));
        make_dir(&dir)?;
        Ok(dir)
    }

    fn manifest_path(&self, name: &str, tag: &str) -> PathBuf {
        let tag = if tag.is_empty() { "_" } else { tag };
        self.root.join("models").join(escape(name)).join(format!("{}.json", escape(tag)))
    }

    /// Takes the lock of `key`, waiting for another process that holds it.
    ///
    /// # Errors
    /// When the lock's file cannot be made.
    pub fn lock(&self, key: &str, progress: &mut dyn Progress) -> Result<Lock> {
        lock_file(&self.root.join("locks").join(format!("{}.lock", escape(key))), key, progress)
    }

    /// Moves a verified file into the blobs, atomically.
    pub(crate) fn adopt(&self, from: &Path, digest: &Digest) -> Result<PathBuf> {
        let to = self.blob(digest);
        make_dir(&self.root.join("blobs"))?;
        File::open(from).and_then(|f| f.sync_all()).map_err(|e| Error::io("write", from, e))?;
        fs::rename(from, &to).map_err(|e| Error::io("move the download to", &to, e))?;
        Ok(to)
    }

    /// An entry for a blob that is there and verified.
    pub(crate) fn entry(&self, role: Role, name: &str, digest: Digest) -> Result<FileEntry> {
        let path = self.blob(&digest);
        let meta = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?;
        Ok(FileEntry { role, name: name.into(), digest, size: meta.len(), mtime_ns: mtime_ns(&meta) })
    }

    /// The manifest of a model, or nothing.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn manifest(&self, name: &str, tag: &str) -> Result<Option<Manifest>> {
        read_manifest(&self.manifest_path(name, tag))
    }

    /// All manifests, by name.
    ///
    /// # Errors
    /// When the directory or one of them cannot be read.
    pub fn manifests(&self) -> Result<Vec<Manifest>> {
        let mut all = Vec::new();
        for dir in read_dir(&self.root.join("models"))? {
            for file in read_dir(&dir)? {
                if file.extension().is_some_and(|e| e == "json") {
                    all.extend(read_manifest(&file)?);
                }
            }
        }
        all.sort_by_key(Manifest::full_name);
        Ok(all)
    }

    /// Writes a manifest, replacing an older one.
    pub(crate) fn write(&self, manifest: &Manifest) -> Result<()> {
        let path = self.manifest_path(&manifest.name, &manifest.tag);
        let text = serde_json::to_vec_pretty(manifest).map_err(|e| Error::malformed(path.display(), e))?;
        write_atomically(&path, &text)
    }

    /// The path to open for a model, after a quick check of its files: sizes, and modification times against the last
    /// verification (a file whose time moved is hashed again). Nothing when a file is missing, so that it is fetched anew.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when a file's bytes are not what they were; that file is removed, so a new fetch brings it back.
    pub fn open(&self, manifest: &Manifest) -> Result<Option<PathBuf>> {
        let mut stamped = manifest.clone();
        for file in &mut stamped.files {
            let path = self.blob(&file.digest);
            let Ok(meta) = fs::metadata(&path) else { return Ok(None) };
            if meta.len() != file.size {
                return Err(self.discard(
                    manifest,
                    file,
                    format!("{} bytes", meta.len()),
                    format!("{} bytes", file.size),
                ));
            }
            if mtime_ns(&meta) != file.mtime_ns {
                self.check_digest(manifest, file)?;
                file.mtime_ns = mtime_ns(&meta);
            }
        }
        if stamped != *manifest {
            let _ = self.write(&stamped); // in a cache that may only be read, the next opening hashes again
        }
        let mut weights = manifest.weights();
        match (
            weights.next(),
            manifest.files.iter().any(|f| f.role == Role::Beside) || weights.next().is_some(),
        ) {
            (Some(only), false) => Ok(Some(self.blob(&only.digest))),
            (Some(first), true) => self.snapshot(manifest, first).map(Some),
            (None, _) => Err(Error::malformed(
                format!("the manifest of {}", manifest.full_name()),
                "it lists no weights",
            )),
        }
    }

    /// Hashes every file of a model.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first wrong file, which is removed.
    pub fn verify(&self, manifest: &Manifest, progress: &mut dyn Progress) -> Result<()> {
        progress.start(Some(manifest.size()), &format!("checking {}", manifest.full_name()));
        for file in &manifest.files {
            self.check_digest_with(manifest, file, |n| progress.advance(n))
                .inspect_err(|_| progress.finish())?;
        }
        progress.finish();
        Ok(())
    }

    fn check_digest(&self, manifest: &Manifest, file: &FileEntry) -> Result<()> {
        self.check_digest_with(manifest, file, |_| ())
    }

    fn check_digest_with(&self, manifest: &Manifest, file: &FileEntry, seen: impl FnMut(u64)) -> Result<()> {
        let found = digest_file(&self.blob(&file.digest), Some(&file.digest), seen)?;
        if found == file.digest {
            return Ok(());
        }
        Err(self.discard(manifest, file, found.to_string(), file.digest.to_string()))
    }

    fn discard(&self, manifest: &Manifest, file: &FileEntry, found: String, expected: String) -> Error {
        let path = self.blob(&file.digest);
        let after = match fs::remove_file(&path) {
            Ok(()) => "it was removed; run the same command again to fetch it anew".to_string(),
            Err(e) => format!("remove it by hand ({e}) and run the same command again"),
        };
        Error::Corrupt {
            what: format!("{} of {} ({})", file.name, manifest.full_name(), path.display()),
            expected,
            found,
            after,
        }
    }

    /// A directory in which the files have their own names, as links to the blobs. Named by its content.
    fn snapshot(&self, manifest: &Manifest, first: &FileEntry) -> Result<PathBuf> {
        let files = || manifest.files.iter().filter(|f| matches!(f.role, Role::Model | Role::Beside));
        let key: String = files().map(|f| format!("{} {}\n", f.digest, f.name)).collect();
        let dir = self.root.join("snapshots").join(Digest::of(key.as_bytes()).short());
        make_dir(&dir)?;
        for file in files() {
            let at = dir.join(&file.name);
            make_dir(at.parent().unwrap_or(&dir))?;
            let blob = self.blob(&file.digest);
            let up = "../".repeat(2 + file.name.matches('/').count()) + "blobs";
            link(&Path::new(&up).join(blob.file_name().unwrap_or_default()), &blob, &at)?;
        }
        let is_gguf = first.name.ends_with(".gguf");
        Ok(if is_gguf { dir.join(&first.name) } else { dir })
    }

    /// Removes a model: its manifest, and the blobs that no other manifest uses.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove(&self, manifest: &Manifest) -> Result<Removed> {
        let _lock = self.lock(&manifest.full_name(), &mut ())?;
        let path = self.manifest_path(&manifest.name, &manifest.tag);
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        let used: HashSet<Digest> =
            self.manifests()?.iter().flat_map(|m| &m.files).map(|f| f.digest).collect();
        let mut removed = Removed { names: vec![manifest.full_name()], ..Removed::default() };
        for file in &manifest.files {
            let blob = self.blob(&file.digest);
            if used.contains(&file.digest) {
                removed.kept += 1;
            } else if blob.exists() {
                fs::remove_file(&blob).map_err(|e| Error::io("remove", &blob, e))?;
                removed.bytes += file.size;
            }
        }
        self.drop_dead_snapshots()?;
        if let Some(dir) = path.parent() {
            let _ = fs::remove_dir(dir); // fails, rightly, while other tags are there
        }
        Ok(removed)
    }

    fn drop_dead_snapshots(&self) -> Result<()> {
        for dir in read_dir(&self.root.join("snapshots"))? {
            if read_dir(&dir)?.iter().any(|link| !link.exists()) {
                fs::remove_dir_all(&dir).map_err(|e| Error::io("remove", &dir, e))?;
            }
        }
        Ok(())
    }
}

/// Takes an exclusive lock on the file at `path` (made if needed), saying so when it has to wait.
pub(crate) fn lock_file(path: &Path, what: &str, progress: &mut dyn Progress) -> Result<Lock> {
    make_dir(path.parent().unwrap_or(Path::new(".")))?;
    let io = |e| Error::io("lock", path, e);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.note(&format!("another process is fetching {what}; waiting for it"));
            file.lock().map_err(io)?;
        }
        Err(TryLockError::Error(e)) => return Err(io(e)),
    }
    Ok(Lock { _file: file })
}

/// Writes a whole file or nothing.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    make_dir(dir)?;
    let io = |e| Error::io("write", path, e);
    let mut tmp = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir).map_err(io)?;
    tmp.write_all(bytes).map_err(io)?;
    tmp.as_file().sync_all().map_err(io)?;
    share(tmp.path());
    tmp.persist(path).map_err(|e| Error::io("write", path, e.error))?;
    Ok(())
}

/// Lets other users of a shared cache read a file that began as a private temporary one.
fn share(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o644)); // a private file still works
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// Puts a link at `at` that points to `target` (relative to it); a copy of `real` where links do not exist. Keeps what is
/// already there when it leads to the same file.
pub(crate) fn link(target: &Path, real: &Path, at: &Path) -> Result<()> {
    if fs::canonicalize(at).ok().is_some_and(|there| fs::canonicalize(real).is_ok_and(|r| r == there)) {
        return Ok(());
    }
    if fs::symlink_metadata(at).is_ok() {
        fs::remove_file(at).map_err(|e| Error::io("replace", at, e))?;
    }
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(target, at);
    #[cfg(not(unix))]
    let made = {
        let _ = target;
        fs::copy(real, at).map(|_| ())
    };
    match made {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()), // another process made it just now
        other => other.map_err(|e| Error::io("link", at, e)),
    }
}

pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))
}

/// The entries of a directory in order; none when it does not exist.
pub(crate) fn read_dir(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(Error::io("read", dir, e)),
    };
    let mut paths: Vec<_> = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::io("read", dir, e))?;
    paths.sort();
    Ok(paths)
}

/// A file that must be small, as text; nothing when it does not exist.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> Result<Option<String>> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(Error::io("read", path, e)),
    };
    if meta.len() > bytes_max {
        return Err(Error::malformed(
            path.display(),
            format!("{} bytes; at most {bytes_max} are expected", meta.len()),
        ));
    }
    fs::read_to_string(path).map(Some).map_err(|e| Error::io("read", path, e))
}

fn read_manifest(path: &Path) -> Result<Option<Manifest>> {
    let Some(text) = read_small(path, MANIFEST_BYTES_MAX)? else { return Ok(None) };
    let manifest: Manifest = serde_json::from_str(&text).map_err(|e| {
        Error::malformed(path.display(), format!("{e}; remove this file and pull the model again"))
    })?;
    for file in &manifest.files {
        // Modules of sentence-transformers alone have folders of their own.
        let flat = !file.name.contains('/') || is_module(&file.name);
        if crate::name::check_relative(&file.name).is_err() || !flat {
            return Err(Error::malformed(
                path.display(),
                format!("the file name {:?} is not allowed", file.name),
            ));
        }
    }
    Ok(Some(manifest))
}

pub(crate) fn mtime_ns(meta: &fs::Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| d.as_nanos() as u64)
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Any text as one file name: letters, digits and `. _ - = +` stay, the rest becomes `%XX`. Long texts end in a digest.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::new();
    for (i, b) in text.bytes().enumerate() {
        if b.is_ascii_alphanumeric() || b"_-=+".contains(&b) || (b == b'.' && i > 0) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    if out.len() > 180 {
        out.truncate(160);
        out.push_str(&Digest::of(text.as_bytes()).short());
    }
    out
}
