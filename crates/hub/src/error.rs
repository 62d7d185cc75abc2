//! The one error type of this crate. Every message names what was asked for, which file or address failed, and what
//! to do about it; nothing here is shown to a user with more than its own text.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// A source that was tried for a model, and why it did not give it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The source, as a person would write it (`hf:ORG/REPO:FILE`, `wheel:...`, `registry.ollama.ai/...`).
    pub source: String,
    /// One sentence on why it failed.
    pub why: String,
}

/// One of several things that a name could mean.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What to type to get exactly this one.
    pub name: String,
    /// Where it is and what it is: store, precision, size.
    pub detail: String,
}

struct Lines<'a, T>(&'a [T]);

impl fmt::Display for Lines<'_, Attempt> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .enumerate()
            .try_for_each(|(i, a)| write!(f, "{}{}: {}", if i > 0 { "; " } else { " " }, a.source, a.why))
    }
}

impl fmt::Display for Lines<'_, Candidate> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|c| c.name.len()).max().unwrap_or(0);
        self.0.iter().try_for_each(|c| write!(f, "\n  {:width$}  {}", c.name, c.detail))
    }
}

/// Writes ` Did you mean A, B?` or nothing.
struct Suggest<'a>(&'a [String]);

impl fmt::Display for Suggest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            names => write!(f, "; did you mean {}?", names.join(" or ")),
        }
    }
}

/// What can go wrong between a model's name and a verified file on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no model reference at all.
    #[error("`{text}` is not a model name: {why}")]
    BadName {
        /// What was given.
        text: String,
        /// Which rule it breaks and what would be right.
        why: String,
    },
    /// Nothing has this name.
    #[error("no model is called `{name}`{}", Suggest(.suggestions))]
    NoSuchModel {
        /// What was asked for.
        name: String,
        /// Names that look alike.
        suggestions: Vec<String>,
    },
    /// The path given does not exist or holds no model.
    #[error("{}: {why}", .path.display())]
    BadPath {
        /// The path as given.
        path: PathBuf,
        /// Why it is no model.
        why: String,
    },
    /// The name means several things; nothing was chosen.
    #[error("`{name}` could be several things; give one of these:{}", Lines(.candidates))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Everything that it could mean.
        candidates: Vec<Candidate>,
    },
    /// Every source failed.
    #[error("`{name}` could not be fetched; tried:{}{}", Lines(.attempts), Suggest(.suggestions))]
    Unreachable {
        /// What was asked for.
        name: String,
        /// Each source, with its reason.
        attempts: Vec<Attempt>,
        /// Names that look alike, when the name is in no catalog.
        suggestions: Vec<String>,
    },
    /// The network was needed and `--offline` forbids it.
    #[error("offline: {what} is not on this machine, and the network may not be used")]
    Offline {
        /// What would have been fetched.
        what: String,
    },
    /// An HTTP exchange failed.
    #[error("{url}: {why}")]
    Http {
        /// The address, without query or user information.
        url: String,
        /// The status and what to do, or the transport's reason.
        why: String,
        /// The status code, when the server answered.
        status: Option<u16>,
    },
    /// The bytes are not the ones that were asked for.
    #[error("{what} is corrupt: expected {expected}, found {found}; {after}")]
    Corrupt {
        /// The file or download.
        what: String,
        /// The digest or size that it should have.
        expected: String,
        /// What it has.
        found: String,
        /// What became of the file and what to do.
        after: String,
    },
    /// A disk filled up.
    #[error("no space left while writing {}: {after}", .path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// What was kept or removed, and how to go on.
        after: String,
    },
    /// A file operation failed.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// The verb: read, write, create, ...
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A manifest, catalog, index or archive does not have the shape it should.
    #[error("{what}: {why}")]
    Malformed {
        /// The file or address.
        what: String,
        /// The field and what is wrong with it.
        why: String,
    },
    /// The thing exists but this engine cannot use it.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// The thing.
        what: String,
        /// Why, and what to do instead.
        why: String,
    },
    /// The user's Python package installer is missing or failed.
    #[error("{what}: {why}")]
    Pip {
        /// The package.
        what: String,
        /// The reason, in one line.
        why: String,
    },
    /// Refused because the file belongs to another program.
    #[error("{0}")]
    NotOurs(String),
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error on `path`; a full disk becomes [`Error::DiskFull`] with nothing said to be kept.
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull {
                path: path.into(),
                after: "free some space and run the same command again".into(),
            },
            _ => Error::Io { doing, path: path.into(), source },
        }
    }

    /// The error as the reason of an attempt, whose source is named beside it: the host alone stands for the address.
    pub(crate) fn brief(&self) -> String {
        match self {
            Error::Http { url, why, .. } => {
                let host = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
                format!("{}: {why}", host.split('/').next().unwrap_or(host))
            }
            other => other.to_string(),
        }
    }

    pub(crate) fn malformed(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Error::Malformed { what: what.to_string(), why: why.to_string() }
    }

    pub(crate) fn corrupt_digest(
        what: impl fmt::Display,
        expected: &Digest,
        found: &Digest,
        after: &str,
    ) -> Self {
        Error::Corrupt {
            what: what.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
            after: after.into(),
        }
    }
}
