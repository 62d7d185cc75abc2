//! The one error type of this crate, and the kinds by which a server chooses its status. A message says what, where and
//! what to do; none of them repeats what a person wrote in a message, or a secret.

use std::path::{Path, PathBuf};

use crate::UnixMs;
use crate::time::iso;

/// The result of every function here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such thing, or it is another owner's.
    #[error("there is no {what} {id:?}")]
    NotFound {
        /// `conversation`, `message`, `response` or `key`.
        what: &'static str,
        /// The id that was asked for.
        id: String,
    },
    /// Somebody else wrote in between, or the place is taken.
    #[error("{what}: expected {expected}, found {found}; read it again and repeat the change")]
    Conflict {
        /// The thing that changed.
        what: String,
        /// What the caller took to be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// One value is larger than a value may be.
    #[error("{what} has {size}, and at most {limit} are allowed")]
    TooLarge {
        /// The value, with its unit.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// A count or total would pass its limit; deleting something makes room.
    #[error("{what}: the limit of {limit} is reached; delete some, or raise the limit")]
    Full {
        /// What is full, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The disk is full, as SQLite says it. It may also say so of a file whose map of pages is damaged;
    /// [`crate::Store::check`] knows the difference.
    #[error("{}: no room left on the disk; nothing was changed, free some space and repeat (if there is space, the file \
             is damaged)", .0.display())]
    DiskFull(PathBuf),
    /// A tokens quota is used up.
    #[error("key {key}: {used} of {quota} tokens of this {period} are used, {asked} more do not fit; \
             the next {period} begins at {}", iso(*.resets_at))]
    Quota {
        /// The id of the key.
        key: String,
        /// Which of the quotas.
        period: Period,
        /// Used and reserved up to now.
        used: u64,
        /// The most that is allowed.
        quota: u64,
        /// What was asked for.
        asked: u64,
        /// When the next period begins.
        resets_at: UnixMs,
    },
    /// An argument is not what it must be.
    #[error("{field}: {why}")]
    Invalid {
        /// The argument.
        field: String,
        /// What it must be.
        why: String,
    },
    /// The prompt does not fit whatever is left out.
    #[error(
        "the system prompt ({system} tokens), the last user message and the newest message ({newest} tokens) do not \
             fit into {budget} tokens; shorten them, or use a longer window"
    )]
    WindowTooSmall {
        /// Tokens of the system prompt.
        system: u64,
        /// Tokens of the messages that cannot be left out.
        newest: u64,
        /// Tokens that the prompt may have.
        budget: u64,
    },
    /// The file is not sound.
    #[error("{}: the file is damaged ({why}); move it and its -wal and -shm away, and restore a copy", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What did not fit.
        why: String,
    },
    /// A sound SQLite file that is not ours.
    #[error("{}: this is a database of another program (application id {id:#x}); name another directory",
            path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Its application id.
        id: i64,
    },
    /// Written by a later version of the program.
    #[error("{}: its schema is version {found}, and this program knows versions up to {known}; use the newer program, \
             or another directory", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The newest version that is known.
        known: i64,
    },
    /// Another process held the file for too long.
    #[error("{}: another process kept it locked for {waited_ms} ms; repeat later", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
        /// How long we waited.
        waited_ms: u64,
    },
    /// The file system refused.
    #[error("{}: {doing} failed: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The step.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite refused for another reason.
    #[error("{}: {source}; check the disk, and who may write to the directory", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

/// The period of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// From midnight to midnight, UTC.
    Day,
    /// A month of the calendar, UTC.
    Month,
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Period::Day => "day",
            Period::Month => "month",
        })
    }
}

/// What a caller can do about an error: one for each status of HTTP that a server would choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Change the argument (400).
    Invalid,
    /// There is no such thing (404).
    NotFound,
    /// Read again and repeat (409).
    Conflict,
    /// Send less (413).
    TooLarge,
    /// Wait for the next period (429).
    Quota,
    /// Repeat later (503).
    Busy,
    /// Delete something, or give more room (507).
    Full,
    /// The operator must look (500).
    Internal,
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Error::NotFound { .. } => Kind::NotFound,
            Error::Conflict { .. } => Kind::Conflict,
            Error::TooLarge { .. } => Kind::TooLarge,
            Error::Full { .. } | Error::DiskFull(_) => Kind::Full,
            Error::Quota { .. } => Kind::Quota,
            Error::Invalid { .. } | Error::WindowTooSmall { .. } => Kind::Invalid,
            Error::Busy { .. } => Kind::Busy,
            Error::Damaged { .. }
            | Error::Foreign { .. }
            | Error::Newer { .. }
            | Error::Io { .. }
            | Error::Sqlite { .. }
            | Error::Random(_) => Kind::Internal,
        }
    }

    pub(crate) fn not_found(what: &'static str, id: &str) -> Error {
        Error::NotFound { what, id: shortened(id) }
    }

    pub(crate) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Invalid { field: field.into(), why: why.into() }
    }
}

/// An id from a stranger, cut to what fits in a line.
fn shortened(id: &str) -> String {
    match id.char_indices().nth(64) {
        Some((end, _)) => format!("{}...", &id[..end]),
        None => id.to_owned(),
    }
}

/// What a transaction ends with: our own refusal, or SQLite's, which learns its file in [`Fault::at`].
pub(crate) enum Fault {
    Ours(Error),
    Sqlite(rusqlite::Error),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Fault {
        Fault::Ours(e)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Fault {
        Fault::Sqlite(e)
    }
}

impl Fault {
    /// The error for a caller, naming the file.
    pub(crate) fn at(self, path: &Path, waited_ms: u64) -> Error {
        use rusqlite::{Error as S, ErrorCode as C};
        let source = match self {
            Fault::Ours(e) => return e,
            Fault::Sqlite(e) => e,
        };
        let path = path.to_owned();
        match (&source, source.sqlite_error_code()) {
            (_, Some(C::DatabaseBusy | C::DatabaseLocked)) => Error::Busy { path, waited_ms },
            (_, Some(C::DiskFull)) => Error::DiskFull(path),
            (_, Some(C::DatabaseCorrupt | C::NotADatabase))
            | (
                S::FromSqlConversionFailure(..) | S::InvalidColumnType(..) | S::IntegralValueOutOfRange(..),
                _,
            )
            | (S::Utf8Error(..) | S::QueryReturnedNoRows, _) => {
                Error::Damaged { path, why: source.to_string() }
            }
            // The file ends before the page that is asked for.
            (S::SqliteFailure(e, _), _) if e.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ => {
                Error::Damaged { path, why: "it is shorter than it should be".into() }
            }
            // A table or column that is missing although the version is ours.
            (S::SqlInputError { msg, .. }, _) => Error::Damaged { path, why: msg.clone() },
            _ => Error::Sqlite { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_strangers_stay_short() {
        assert_eq!(Error::not_found("message", "msg_x").to_string(), "there is no message \"msg_x\"");
        let long = Error::not_found("message", &"ü".repeat(1 << 16)).to_string();
        assert!(long.len() < 200 && long.contains("..."), "{long}");
    }

    #[test]
    fn quota_says_when_it_ends() {
        let e = Error::Quota {
            key: "key_1".into(),
            period: Period::Day,
            used: 90,
            quota: 100,
            asked: 20,
            resets_at: 86_400_000,
        };
        assert_eq!(e.kind(), Kind::Quota);
        assert!(e.to_string().ends_with("the next day begins at 1970-01-02T00:00:00Z"), "{e}");
    }
}
