//! The audit log: one line of JSON for each request that needs a key, in a file that is only appended to. A thread of its own
//! writes it, so that a slow disk holds up nobody; what cannot be written is counted and said, and the service goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

/// Lines that may wait to be written.
const QUEUE: usize = 4096;

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct AuditSettings {
    /// The file.
    pub path: PathBuf,
    /// A file that would grow beyond this is put aside.
    pub bytes_max: u64,
    /// Files put aside that are kept: `FILE.1` is the newest.
    pub files: u32,
    /// Bodies of requests too, prompts with them.
    pub prompts: bool,
}

enum Message {
    Line(String),
    Reopen,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
}

/// A log that is open.
#[derive(Debug)]
pub struct Audit {
    prompts: bool,
    counts: Arc<Counts>,
    sender: Mutex<Option<SyncSender<Message>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Opens the file; one that cannot be written is an error.
    pub fn open(settings: AuditSettings) -> Result<Audit> {
        let counts = Arc::new(Counts::default());
        let prompts = settings.prompts;
        let writer = Writer::new(settings, counts.clone())?;
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receiver));
        let thread = thread.context("cannot start the thread of the audit log")?;
        Ok(Audit { prompts, counts, sender: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Whether bodies are wanted.
    pub(crate) fn prompts(&self) -> bool {
        self.prompts
    }

    /// Has a line written; never waits.
    pub(crate) fn write(&self, line: String) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender.as_ref().is_some_and(|s| s.try_send(Message::Line(line)).is_ok());
        if !sent && self.counts.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!("the audit log cannot keep up: lines are lost");
        }
    }

    /// Opens the file by its name again, which another program may have moved.
    pub(crate) fn reopen(&self) {
        if let Some(sender) = &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
            // A queue that is full is the writer's trouble already, and it opens the file again after any error.
            let _ = sender.try_send(Message::Reopen);
        }
    }

    /// Lines that were written, and that were lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.counts.written.load(Ordering::Relaxed), self.counts.lost.load(Ordering::Relaxed))
    }

    /// Writes what waits, and ends. Lines that come later are lost.
    pub fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It cannot panic; if it did, that was said then.
            let _ = thread.join();
        }
    }
}

struct Writer {
    settings: AuditSettings,
    counts: Arc<Counts>,
    file: Option<File>,
    len: u64,
    /// Only a file can be put aside: not a pipe, not `/dev/stdout`.
    rotates: bool,
    /// The last write broke off within a line.
    torn: bool,
    /// Lines lost since the last good one.
    failing: u64,
}

impl Writer {
    fn new(settings: AuditSettings, counts: Arc<Counts>) -> Result<Writer> {
        let (file, len, rotates) = open(&settings.path)
            .with_context(|| format!("--audit-log {}: it cannot be written", settings.path.display()))?;
        Ok(Writer { settings, counts, file: Some(file), len, rotates, torn: false, failing: 0 })
    }

    fn run(mut self, receiver: &Receiver<Message>) {
        while let Ok(message) = receiver.recv() {
            let done = match message {
                Message::Reopen => {
                    self.file = None;
                    self.opened().map(drop)
                }
                Message::Line(line) => self.line(line).inspect(|()| {
                    self.counts.written.fetch_add(1, Ordering::Relaxed);
                    if self.failing > 0 {
                        tracing::warn!(lost = self.failing, "the audit log is written again");
                        self.failing = 0;
                    }
                }),
            };
            if let Err(e) = done {
                self.file = None;
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                self.failing += 1;
                if self.failing == 1 {
                    let path = self.settings.path.display();
                    tracing::error!(error = %e, %path, "the audit log cannot be written: lines are lost");
                }
            }
        }
    }

    fn opened(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let (file, len, rotates) = open(&self.settings.path)?;
            (self.file, self.len, self.rotates) = (Some(file), len, rotates);
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("the file is not open"))
    }

    /// Appends a line with one call of the system, so that none is within another.
    fn line(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        self.opened()?;
        let long = self.len + line.len() as u64 > self.settings.bytes_max;
        if self.rotates && self.len > 0 && long {
            self.rotate()?;
        }
        if self.torn {
            line.insert(0, '\n');
        }
        let file = self.opened()?;
        let written = loop {
            match file.write(line.as_bytes()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.len += written as u64;
        if written < line.len() {
            self.torn = written > 0 || self.torn;
            return Err(io::Error::new(io::ErrorKind::StorageFull, "only a part of a line could be written"));
        }
        self.torn = false;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let path = &self.settings.path;
        match self.settings.files {
            0 => fs::remove_file(path)?,
            files => {
                for n in (1..files).rev() {
                    let from = aside(path, n);
                    if from.exists() {
                        fs::rename(from, aside(path, n + 1))?;
                    }
                }
                fs::rename(path, aside(path, 1))?;
            }
        }
        self.opened().map(drop)
    }
}

fn aside(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// The file to append to, its length, and whether it is one that can be put aside.
fn open(path: &Path) -> io::Result<(File, u64, bool)> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    // It says who asked what, and when.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    let data = file.metadata()?;
    Ok((file, data.len(), data.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(path: &Path, bytes_max: u64, files: u32) -> AuditSettings {
        AuditSettings { path: path.to_owned(), bytes_max, files, prompts: false }
    }

    #[test]
    fn a_long_file_is_put_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(settings(&path, 25, 2)).unwrap();
        (0..10).for_each(|i| audit.write(format!("line number {i}"))); // 14 bytes each with their end
        audit.close();
        assert_eq!(audit.counts(), (10, 0));
        let text = |p: PathBuf| fs::read_to_string(p).unwrap();
        assert_eq!(text(path.clone()), "line number 9\n");
        assert_eq!(
            (text(aside(&path, 1)), text(aside(&path, 2))),
            ("line number 8\n".into(), "line number 7\n".into())
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        // What is there stays, and is gone on with.
        let again = Audit::open(settings(&path, 1000, 2)).unwrap();
        again.write("more".into());
        again.close();
        assert_eq!(text(path), "line number 9\nmore\n");
    }

    #[test]
    fn a_file_that_was_moved_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("a"), dir.path().join("b"));
        let audit = Audit::open(settings(&path, 1000, 2)).unwrap();
        audit.write("one".into());
        while audit.counts().0 == 0 {
            std::thread::yield_now();
        }
        fs::rename(&path, &moved).unwrap();
        audit.reopen();
        audit.write("two".into());
        audit.close();
        let text = |p| fs::read_to_string(p).unwrap();
        assert_eq!((text(&moved), text(&path)), ("one\n".into(), "two\n".into()));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("no/such/folder/a"), dir.path().to_owned()] {
            let said = format!("{:#}", Audit::open(settings(&path, 1000, 2)).unwrap_err());
            assert!(
                said.starts_with(&format!("--audit-log {}: it cannot be written", path.display())),
                "{said}"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_counted() {
        let audit = Audit::open(settings(Path::new("/dev/full"), 10, 2)).unwrap();
        (0..3).for_each(|_| audit.write("more than ten bytes".into()));
        audit.close();
        assert_eq!(audit.counts(), (0, 3));
        assert!(Path::new("/dev/full").exists());
    }
}
