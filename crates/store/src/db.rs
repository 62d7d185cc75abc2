//! The file: opening, permissions, migrations, transactions and room. One connection writes and one reads, so that a
//! long search never holds up an append.
//!
//! `synchronous=FULL` in WAL mode: a commit returns when the log is on the disk. For a SIGKILL alone `NORMAL` would do,
//! because what was written is the kernel's; `FULL` keeps an acknowledged message through a power cut too, and its one
//! fsync per append is nothing beside the answer of a model. Counters of tokens, two for each request, are `NORMAL`: a
//! SIGKILL loses none, a power cut the last few.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::error::Fault;
use crate::{Error, Result, UnixMs};

/// `Qrrl`: in the header of the file, so that nobody's else database is changed.
const APPLICATION_ID: i64 = 0x5172_726c;
/// Each brings the schema from the version of its index to the next one. Never edited once released, only added to.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql"), include_str!("vectors.sql")];
const BUSY_MS: u64 = 10_000;
/// The smallest page that SQLite has.
const PAGE_BYTES_MIN: u64 = 512;

/// What may be stored. Every write is checked against these before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message: its text, reasoning, tool calls and metadata together.
    pub message_bytes: u64,
    /// Messages of one conversation.
    pub messages_per_conversation: u64,
    /// Bytes of all messages of one conversation, and of the chain of one response.
    pub conversation_bytes: u64,
    /// Conversations of one owner.
    pub conversations_per_owner: u64,
    /// Stored responses of one owner.
    pub responses_per_owner: u64,
    /// Responses in one chain of `previous_response_id`.
    pub response_chain: u64,
    /// Bytes of the database.
    pub store_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: 4 << 20,
            messages_per_conversation: 10_000,
            conversation_bytes: 64 << 20,
            conversations_per_owner: 10_000,
            responses_per_owner: 50_000,
            response_chain: 500,
            store_bytes: 8 << 30,
        }
    }
}

/// What [`Store::maintain`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Responses past their time, removed.
    pub responses_removed: u64,
    /// Counters of past periods, removed.
    pub counters_removed: u64,
    /// Keys that ended more than 400 days ago, removed.
    pub keys_removed: u64,
    /// Bytes given back to the file system.
    pub bytes_freed: u64,
}

/// The database of one directory. Shared between threads by reference; several processes may open the same one.
pub struct Store {
    path: PathBuf,
    limits: Limits,
    write: Mutex<Connection>,
    read: Mutex<Connection>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens `conversations.db` in `dir`, and makes both where they are missing. An empty file is a new store; one that is
    /// damaged, another program's or of a newer version is an error, and is not changed.
    pub fn open(dir: &Path, limits: Limits) -> Result<Store> {
        make_directory(dir)?;
        let path = dir.join("conversations.db");
        static OPENING: Mutex<()> = Mutex::new(()); // see `make_file`
        let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        make_file(&path)?;
        let at = |fault: Fault| fault.at(&path, BUSY_MS);
        let mut write = connect(&path, false).map_err(at)?;
        check_header(&write, &path)?;
        set_up(&mut write, &path, &limits)?;
        let read = connect(&path, true).map_err(at)?;
        Ok(Store { limits, write: Mutex::new(write), read: Mutex::new(read), path })
    }

    /// What may be stored.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are in use, as counted against [`Limits::store_bytes`].
    pub fn bytes(&self) -> Result<u64> {
        self.read(|tx| Ok(bytes_used(tx)?))
    }

    /// Reads the whole file and the indexes and says what is wrong with them. Takes as long as reading does.
    pub fn check(&self) -> Result<()> {
        let why: Option<String> = self.read(|tx| {
            let first: String = tx.query_row("PRAGMA integrity_check(1)", [], |r| r.get(0))?;
            if first != "ok" {
                return Ok(Some(first));
            }
            let lost: i64 =
                tx.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |r| r.get(0))?;
            Ok((lost > 0).then(|| format!("{lost} rows belong to nothing")))
        })?;
        why.map_or(Ok(()), |why| Err(Error::Damaged { path: self.path.clone(), why }))
    }

    /// Removes responses past their time, counters and keys of long ago, and gives free pages back. To be called now and
    /// then, every few minutes say; nothing depends on when, but the words of deleted messages stay in the search index
    /// (not their text, which goes at once) until it was.
    pub fn maintain(&self, now: UnixMs) -> Result<Maintained> {
        let responses_removed = self.write(|tx| Ok(crate::responses::remove_expired(tx, now)?))?;
        let (counters_removed, keys_removed) = self.write(|tx| Ok(crate::keys::remove_old(tx, now)?))?;
        // A negative number merges towards one segment, which has no deleted words; of at most so many pages at a time.
        self.write(|tx| {
            tx.execute("INSERT INTO titles_words (titles_words, rank) VALUES ('merge', -500)", [])?;
            tx.execute("INSERT INTO messages_words (messages_words, rank) VALUES ('merge', -2000)", [])?;
            Ok(())
        })?;
        let connection = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || -> Result<u64, Fault> {
            let pages = pragma(&connection, "page_count")?;
            // At most 16 MiB at a time, so that writers wait for moments only. Each step frees one page.
            let mut vacuum = connection.prepare("PRAGMA incremental_vacuum(4096)")?;
            let mut steps = vacuum.query([])?;
            while steps.next()?.is_some() {}
            connection.execute_batch("PRAGMA optimize")?;
            let freed = (pages - pragma(&connection, "page_count")?).max(0);
            Ok(freed as u64 * pragma(&connection, "page_size")?.max(0) as u64)
        };
        let bytes_freed = work().map_err(|f| f.at(&self.path, BUSY_MS))?;
        Ok(Maintained { responses_removed, counters_removed, keys_removed, bytes_freed })
    }

    /// A transaction that sees one state of everything and changes nothing.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T> {
        run(&self.read, &self.path, TransactionBehavior::Deferred, f)
    }

    /// A transaction that holds the write lock from its beginning and is on the disk when this returns `Ok`.
    pub(crate) fn write<T>(&self, f: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T> {
        run(&self.write, &self.path, TransactionBehavior::Immediate, f)
    }

    /// As [`Store::write`], but in the kernel's hands, not yet on the disk, when it returns.
    pub(crate) fn count<T>(&self, f: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T> {
        let mut connection = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |e: rusqlite::Error| Fault::from(e).at(&self.path, BUSY_MS);
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(at)?;
        let value = transact(&mut connection, &self.path, TransactionBehavior::Immediate, f);
        connection.pragma_update(None, "synchronous", "FULL").map_err(at)?;
        value
    }

    /// Refuses what would make the database larger than it may be. A row fills whole pages, each with the number of the next,
    /// and may open one of its table and of its indexes.
    pub(crate) fn room(&self, tx: &Transaction<'_>, more: u64) -> Result<(), Fault> {
        let page = pragma(tx, "page_size")?.max(PAGE_BYTES_MIN as i64) as u64;
        let more = (more.div_ceil(page - 4) + 3).saturating_mul(page);
        if bytes_used(tx)?.saturating_add(more) > self.limits.store_bytes {
            return Err(Error::Full { what: "bytes of the store", limit: self.limits.store_bytes }.into());
        }
        Ok(())
    }
}

fn run<T>(
    connection: &Mutex<Connection>,
    path: &Path,
    behavior: TransactionBehavior,
    f: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
) -> Result<T> {
    // A panic inside a transaction rolled it back, so the connection is as good as before.
    let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
    transact(&mut connection, path, behavior, f)
}

fn transact<T>(
    connection: &mut Connection,
    path: &Path,
    behavior: TransactionBehavior,
    f: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
) -> Result<T> {
    let work = || -> Result<T, Fault> {
        let tx = connection.transaction_with_behavior(behavior)?;
        let value = f(&tx)?;
        tx.commit()?;
        Ok(value)
    };
    work().map_err(|fault| fault.at(path, BUSY_MS))
}

fn pragma(c: &Connection, name: &str) -> rusqlite::Result<i64> {
    c.pragma_query_value(None, name, |r| r.get(0))
}

fn bytes_used(c: &Connection) -> rusqlite::Result<u64> {
    let pages = pragma(c, "page_count")? - pragma(c, "freelist_count")?;
    Ok(pages.saturating_mul(pragma(c, "page_size")?).max(0) as u64)
}

fn connect(path: &Path, reader: bool) -> Result<Connection, Fault> {
    // No SQLITE_OPEN_URI: a directory named `file:...` is a directory. NO_MUTEX: the mutex of `Store` is enough.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let c = Connection::open_with_flags(path, flags)?;
    c.busy_timeout(Duration::from_millis(BUSY_MS))?;
    c.pragma_update(None, "trusted_schema", false)?; // what a stranger put into the schema runs nothing
    c.pragma_update(None, "cell_size_check", true)?;
    c.pragma_update(None, "foreign_keys", true)?;
    c.pragma_update(None, "query_only", reader)?;
    Ok(c)
}

/// Refuses what is not ours before anything is written.
fn check_header(c: &Connection, path: &Path) -> Result<()> {
    let read = || -> rusqlite::Result<(i64, i64, i64)> {
        let tables = c.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
        Ok((pragma(c, "application_id")?, pragma(c, "user_version")?, tables))
    };
    let (id, version, tables) = read().map_err(|e| Fault::from(e).at(path, BUSY_MS))?;
    if id != APPLICATION_ID && (id != 0 || version != 0 || tables != 0) {
        return Err(Error::Foreign { path: path.to_owned(), id });
    }
    Ok(())
}

fn set_up(c: &mut Connection, path: &Path, limits: &Limits) -> Result<()> {
    let at = |fault: Fault| fault.at(path, BUSY_MS);
    // Only an empty file takes this; it has to come before the first table.
    c.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(|e| at(e.into()))?;
    switch_to_wal(c, path)?;
    let set = |c: &Connection| -> rusqlite::Result<()> {
        c.pragma_update(None, "synchronous", "FULL")?;
        c.pragma_update(None, "secure_delete", true)?; // a deleted text is gone from the file
        c.pragma_update(None, "journal_size_limit", 64 << 20)?;
        // The second fence behind `Store::room`; the slack lets a full store still delete.
        let page = pragma(c, "page_size")?.max(512);
        let most = limits.store_bytes.saturating_add(limits.store_bytes / 8).saturating_add(16 << 20);
        let pages = i64::try_from(most).unwrap_or(i64::MAX) / page;
        c.query_row(&format!("PRAGMA max_page_count={}", pages.min(u32::MAX as i64 - 1)), [], |_| Ok(()))
    };
    set(c).map_err(|e| at(e.into()))?;
    migrate(c, path, MIGRATIONS)
}

/// SQLite does not wait by itself when two processes switch a new file at once.
fn switch_to_wal(c: &Connection, path: &Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        match c.pragma_update_and_check(None, "journal_mode", "WAL", |r| r.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                let why = format!(
                    "the file system does not allow write-ahead logging (mode {mode}); use a local disk"
                );
                return Err(Error::invalid(path.display().to_string(), why));
            }
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                if begun.elapsed() > Duration::from_millis(BUSY_MS) {
                    return Err(Error::Busy { path: path.to_owned(), waited_ms: BUSY_MS });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(Fault::from(e).at(path, BUSY_MS)),
        }
    }
}

/// Brings the schema to the newest version in one transaction, which another process may have done meanwhile.
fn migrate(c: &mut Connection, path: &Path, migrations: &[&str]) -> Result<()> {
    let mut work = || -> Result<(), Fault> {
        let tx = c.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (found, known) = (pragma(&tx, "user_version")?, migrations.len() as i64);
        if found < 0 || found > known {
            return Err(Error::Newer { path: path.to_owned(), found, known }.into());
        }
        for (version, sql) in migrations.iter().enumerate().skip(found as usize) {
            tx.execute_batch(sql)?;
            tx.pragma_update(None, "user_version", version as i64 + 1)?;
        }
        if found < known {
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        }
        tx.commit()?;
        Ok(())
    };
    work().map_err(|f| f.at(path, BUSY_MS))
}

fn make_directory(dir: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|source| Error::Io {
        path: dir.to_owned(),
        doing: "making the directory",
        source,
    })
}

/// Makes the file before SQLite would, so that at no moment others may read it; `-wal` and `-shm` take its permissions.
/// A file that is there is not opened: closing it would drop the locks of every connection that this process has to it.
fn make_file(path: &Path) -> Result<()> {
    let io = |doing| move |source| Error::Io { path: path.to_owned(), doing, source };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io("making the file")(e)),
    }
    let found = fs::metadata(path).map_err(io("reading the permissions"))?;
    if (1..PAGE_BYTES_MIN).contains(&found.len()) {
        // SQLite would take it for an empty one, and write over it.
        let why = format!("{} bytes are less than one page", found.len());
        return Err(Error::Damaged { path: path.to_owned(), why });
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if found.permissions().mode() & 0o077 != 0 {
            let own = fs::Permissions::from_mode(0o600);
            fs::set_permissions(path, own).map_err(io("taking others' permissions away"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_run_once_in_order_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Limits::default()).unwrap();
        let mut c = store.write.into_inner().unwrap();
        let version = |c: &Connection| pragma(c, "user_version").unwrap();
        assert_eq!(version(&c), MIGRATIONS.len() as i64);
        // STRICT knows no column without a type: nothing of it stays, not even the step that was right.
        let bad = [MIGRATIONS, &["CREATE TABLE first (a INT)", "CREATE TABLE second (a) STRICT"]].concat();
        let e = migrate(&mut c, &store.path, &bad);
        assert!(e.is_err());
        assert_eq!(version(&c), MIGRATIONS.len() as i64);
        let good =
            [MIGRATIONS, &["CREATE TABLE extra (a INT) STRICT", "INSERT INTO extra VALUES (1)"]].concat();
        for _ in 0..2 {
            migrate(&mut c, &store.path, &good).unwrap();
            assert_eq!(version(&c), MIGRATIONS.len() as i64 + 2);
            assert_eq!(c.query_row("SELECT count(*) FROM extra", [], |r| r.get::<_, i64>(0)).unwrap(), 1);
        }
        let tables = c.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'first'", [], |r| r.get(0));
        assert_eq!(tables, Ok(0));
        drop(c);
        let e = Store::open(dir.path(), Limits::default()).unwrap_err();
        assert!(matches!(e, Error::Newer { found: 4, known: 2, .. }), "{e:?}");
    }

    #[test]
    fn messages_are_on_the_disk_and_others_wait() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Limits::default()).unwrap();
        assert!(store.count(|_| Err::<(), _>(Error::not_found("key", "x").into())).is_err());
        let c = store.write.lock().unwrap();
        let text = |name| c.pragma_query_value(None, name, |r| r.get::<_, String>(0)).unwrap();
        assert_eq!((text("journal_mode").as_str(), pragma(&c, "synchronous").unwrap()), ("wal", 2));
        assert_eq!((pragma(&c, "busy_timeout").unwrap(), pragma(&c, "secure_delete").unwrap()), (10_000, 1));
        assert_eq!((pragma(&c, "foreign_keys").unwrap(), pragma(&c, "auto_vacuum").unwrap()), (1, 2));
        let e = store.read(|tx| Ok(tx.execute("DELETE FROM messages", [])?)).unwrap_err();
        assert!(e.to_string().contains("readonly"), "the reading connection changes nothing: {e}");
    }

    #[test]
    fn a_lock_that_stays_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (
            Store::open(dir.path(), Limits::default()).unwrap(),
            Store::open(dir.path(), Limits::default()).unwrap(),
        );
        two.write.lock().unwrap().busy_timeout(Duration::from_millis(1)).unwrap();
        let e = one.write(|_| Ok(two.write(|_| Ok(())).unwrap_err())).unwrap();
        assert_eq!(e.kind(), crate::Kind::Busy, "{e:?}");
        two.read(|_| Ok(())).unwrap();
        two.write(|_| Ok(())).unwrap();
    }
}
