//! Blocks as files, named by their digests: bounded, verified when read, and shared by all processes that use the directory.
//!
//! A file is `QRLKV001`, the digest, the length, SHA-256 of digest and bytes, and the bytes. It is written beside its place
//! and moved there, so that a reader sees all of it or nothing. One that is damaged is deleted and counted.

use super::{Bytes, Fetched, Figures, Host, lock};
use crate::block_manager::Digest;
use crate::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    fs::{self, File, FileTimes},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender},
    },
    time::{Duration, SystemTime},
};

const MAGIC: &[u8; 8] = b"QRLKV001";
const HEADER: usize = 8 + 32 + 8 + 32;
/// Files that a directory may hold at most, whatever their size.
const FILES_MAX: usize = 1 << 20;

/// A directory for the prefix cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCache {
    /// Made if it is not there.
    pub dir: PathBuf,
    /// Most bytes that the files may take; the longest unused go first.
    pub bytes: u64,
}

/// What the thread is asked to do.
pub(super) enum Request {
    Write(Digest, Bytes),
    /// Brings these blocks into memory for a request.
    Read(u64, Vec<Digest>),
}

/// A file that is there.
#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    used: SystemTime,
}

/// The files and their bytes in all.
#[derive(Debug, Default)]
struct Entries {
    of: HashMap<Digest, Entry>,
    bytes: u64,
}

impl Entries {
    fn insert(&mut self, digest: Digest, entry: Entry) {
        self.remove(&digest);
        self.bytes += entry.bytes;
        self.of.insert(digest, entry);
    }

    fn remove(&mut self, digest: &Digest) {
        self.bytes -= self.of.remove(digest).map_or(0, |e| e.bytes);
    }
}

/// The directory.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    limit: u64,
    block_bytes: usize,
    entries: Mutex<Entries>,
    damaged: AtomicU64,
    dropped: AtomicU64,
}

impl Disk {
    pub(super) fn open(cache: &DiskCache, block_bytes: usize) -> Result<Disk> {
        let dir = cache.dir.clone();
        let file_bytes = (HEADER + block_bytes) as u64;
        let refuse = |why| Error::Store { path: dir.clone(), why };
        if cache.bytes < file_bytes {
            return Err(refuse(format!(
                "may take {} bytes, and one block needs {file_bytes}; allow more",
                cache.bytes
            )));
        }
        fs::create_dir_all(&dir).map_err(|e| refuse(format!("cannot be made: {e}")))?;
        let mut entries = Entries::default();
        for file in fs::read_dir(&dir).map_err(|e| refuse(format!("cannot be read: {e}")))? {
            let Ok((path, Ok(meta))) = file.map(|f| (f.path(), f.metadata())) else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match digest_of(&path) {
                // Of another model or number type, perhaps: it counts for the limit and is not read.
                Some(digest) if entries.of.len() < FILES_MAX => {
                    entries.insert(digest, Entry { bytes: meta.len(), used });
                }
                // Left behind by a process that ended while it wrote.
                None if is_abandoned(&path, used) => drop(fs::remove_file(&path)),
                _ => {}
            }
        }
        let disk = Disk {
            dir: dir.clone(),
            limit: cache.bytes,
            block_bytes,
            entries: Mutex::new(entries),
            damaged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        };
        disk.make_room(0);
        Ok(disk)
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.entries().of.contains_key(digest)
    }

    pub(super) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn figures(&self) -> Figures {
        let entries = self.entries();
        Figures {
            disk_blocks: entries.of.len(),
            disk_bytes: entries.bytes,
            damaged: self.damaged.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            ..Figures::default()
        }
    }

    /// The thread: does what it is asked until nobody can ask any more.
    pub(super) fn serve(&self, requests: &Receiver<Request>, host: &Mutex<Host>, done: &Sender<Fetched>) {
        for request in requests {
            match request {
                Request::Write(digest, data) => {
                    if !self.has(&digest) && self.write(&digest, &data).is_err() {
                        self.note_dropped();
                    }
                }
                Request::Read(id, digests) => {
                    for digest in digests {
                        let Some(data) = self.read(&digest) else { break };
                        lock(host).put(digest, data);
                    }
                    // An engine that is gone needs no answer.
                    let _ = done.send(id);
                }
            }
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        self.dir.join(name + ".kv")
    }

    fn write(&self, digest: &Digest, data: &[u8]) -> io::Result<()> {
        let bytes = (HEADER + data.len()) as u64;
        self.make_room(bytes);
        let path = self.path(digest);
        let aside = path.with_extension(format!("{}.part", std::process::id()));
        let written = File::create(&aside).and_then(|mut f| {
            f.write_all(MAGIC)?;
            f.write_all(digest)?;
            f.write_all(&(data.len() as u64).to_le_bytes())?;
            f.write_all(&checksum(digest, data))?;
            f.write_all(data)
        });
        if let Err(e) = written.and_then(|()| fs::rename(&aside, &path)) {
            let _ = fs::remove_file(&aside); // the first error says why
            return Err(e);
        }
        self.entries().insert(*digest, Entry { bytes, used: SystemTime::now() });
        Ok(())
    }

    /// The block, if it is there and what it should be.
    fn read(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.path(digest);
        let data = match self.read_file(&path, digest) {
            Ok(data) => data,
            Err(e) => {
                self.entries().remove(digest);
                // Another process may have made room.
                if e.kind() != io::ErrorKind::NotFound {
                    self.damaged.fetch_add(1, Ordering::Relaxed);
                    let _ = fs::remove_file(&path);
                }
                return None;
            }
        };
        let used = SystemTime::now();
        if let Some(entry) = self.entries().of.get_mut(digest) {
            entry.used = used;
        }
        // So that the next process knows, too; if not, it is only forgotten sooner.
        let _ = File::open(&path).and_then(|f| f.set_times(FileTimes::new().set_modified(used)));
        Some(data)
    }

    fn read_file(&self, path: &Path, digest: &Digest) -> io::Result<Bytes> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let mut file = File::open(path)?;
        let mut header = [0; HEADER];
        file.read_exact(&mut header).map_err(|_| bad())?;
        let length = (self.block_bytes as u64).to_le_bytes();
        if header[..8] != MAGIC[..] || header[8..40] != digest[..] || header[40..48] != length[..] {
            return Err(bad());
        }
        let mut data = vec![0; self.block_bytes];
        file.read_exact(&mut data).map_err(|_| bad())?;
        let more = file.read(&mut [0])? > 0;
        if more || header[48..] != checksum(digest, &data)[..] { Err(bad()) } else { Ok(data.into()) }
    }

    /// Deletes the longest unused until `bytes` more fit, a twentieth of the limit at once.
    fn make_room(&self, bytes: u64) {
        let mut entries = self.entries();
        if entries.bytes + bytes <= self.limit {
            return;
        }
        let mut oldest: Vec<(SystemTime, Digest)> = entries.of.iter().map(|(d, e)| (e.used, *d)).collect();
        oldest.sort_unstable();
        for (_, digest) in oldest {
            if entries.bytes + bytes <= self.limit - self.limit / 20 {
                break;
            }
            // One that is gone already is as good.
            let _ = fs::remove_file(self.path(&digest));
            entries.remove(&digest);
        }
    }
}

fn checksum(digest: &Digest, data: &[u8]) -> Digest {
    Sha256::new().chain_update(digest).chain_update(data).finalize().into()
}

/// The digest that a file of ours is named by.
fn digest_of(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?.strip_suffix(".kv")?;
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    let mut digest = [0; 32];
    for (i, d) in digest.iter_mut().enumerate() {
        *d = u8::from_str_radix(&name[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(digest)
}

fn is_abandoned(path: &Path, used: SystemTime) -> bool {
    let part = path.extension().is_some_and(|e| e == "part");
    part && used.elapsed().is_ok_and(|age| age > Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn digest(i: u8) -> Digest {
        [i; 32]
    }

    fn open(dir: &Path, blocks: u64) -> Disk {
        let bytes = blocks * (HEADER + 100) as u64;
        Disk::open(&DiskCache { dir: dir.into(), bytes }, 100).unwrap()
    }

    #[test]
    fn blocks_survive_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path(), 100);
        (0..6).for_each(|i| disk.write(&digest(i), &[i; 100]).unwrap());
        let disk = open(dir.path(), 100);
        assert_eq!(&*disk.read(&digest(3)).unwrap(), &[3; 100]);
        let path = |i| disk.path(&digest(i));
        let whole = fs::read(path(0)).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let spoiled = [
            whole[..HEADER + 99].to_vec(),
            [&whole[..], &[0]].concat(),
            flipped(HEADER + 50),
            flipped(41),
            Vec::new(),
        ];
        for (n, bytes) in spoiled.iter().enumerate() {
            fs::write(path(0), bytes).unwrap();
            let disk = open(dir.path(), 100);
            assert!(disk.read(&digest(0)).is_none() && !disk.has(&digest(0)), "case {n}");
            assert_eq!(disk.figures().damaged, 1);
            assert!(!path(0).exists(), "a damaged file goes");
        }
        // One block's file under another's name.
        fs::copy(path(1), path(2)).unwrap();
        assert!(disk.read(&digest(2)).is_none());
        // Deleted by somebody else: no damage.
        fs::remove_file(path(4)).unwrap();
        assert!(disk.read(&digest(4)).is_none());
        assert_eq!(disk.figures().damaged, 1);
        let too_small = DiskCache { dir: dir.path().into(), bytes: 10 };
        assert!(Disk::open(&too_small, 100).unwrap_err().to_string().contains("allow more"));
    }

    #[test]
    fn the_directory_is_bounded_and_the_longest_unused_goes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path(), 10);
        for i in 0..10 {
            disk.write(&digest(i), &[i; 100]).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        disk.read(&digest(0)).unwrap();
        disk.write(&digest(10), &[10; 100]).unwrap();
        assert!(disk.has(&digest(0)) && disk.has(&digest(10)) && !disk.has(&digest(1)));
        assert!(disk.figures().disk_bytes <= disk.limit);
        let files = || fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files(), disk.figures().disk_blocks);
        // A smaller limit is met when the directory is opened.
        open(dir.path(), 3);
        assert!(files() <= 3);
    }

    #[test]
    fn the_thread_brings_blocks_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path(), 100);
        let host = Mutex::new(Host { limit: 1000, ..Host::default() });
        let (requests, receiver) = channel();
        let (done, fetched) = channel();
        for i in 0..3 {
            requests.send(Request::Write(digest(i), vec![i; 100].into())).unwrap();
        }
        requests.send(Request::Read(7, vec![digest(0), digest(1), digest(9), digest(2)])).unwrap();
        drop(requests);
        disk.serve(&receiver, &host, &done);
        assert_eq!(fetched.try_recv(), Ok(7));
        let mut host = lock(&host);
        assert!(host.get(&digest(1)).is_some());
        assert!(host.get(&digest(2)).is_none(), "nothing after a gap is of use");
    }
}
