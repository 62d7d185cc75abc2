//! SHA-256 digests (and the SHA-1 of git blobs, which Hugging Face uses for small files): parse, print, compute while
//! streaming. Everything that this crate downloads goes through a `Hasher`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// What a file's bytes must hash to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Digest {
    /// SHA-256 of the bytes.
    Sha256([u8; 32]),
    /// SHA-1 of `blob SIZE\0` and the bytes: git's object name.
    GitSha1([u8; 20]),
}

impl Digest {
    /// The digest in lower-case hexadecimal, without its kind.
    pub fn hex(&self) -> String {
        let bytes: &[u8] = match self {
            Digest::Sha256(b) => b,
            Digest::GitSha1(b) => b,
        };
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The first twelve hexadecimal digits, as lists show them.
    pub fn short(&self) -> String {
        self.hex()[..12].to_string()
    }

    /// The SHA-256 of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Digest::Sha256(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Digest::Sha256(_) => "sha256",
            Digest::GitSha1(_) => "git-sha1",
        };
        write!(f, "{kind}:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> String {
        d.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl FromStr for Digest {
    type Err = String;

    /// Reads `sha256:HEX`, `sha256-HEX`, `git-sha1:HEX`, or bare hexadecimal of either length.
    fn from_str(s: &str) -> Result<Self, String> {
        let (kind, hex) = match s.rsplit_once([':', '-']) {
            Some((kind, hex)) => (Some(kind), hex),
            None => (None, s),
        };
        let bytes =
            unhex(hex).ok_or_else(|| format!("`{s}` is not a digest (sha256: and 64 hexadecimal digits)"))?;
        match (kind, bytes.len()) {
            (None | Some("sha256"), 32) => {
                Ok(Digest::Sha256(bytes.try_into().map_err(|_| "wrong length".to_string())?))
            }
            (None | Some("git-sha1"), 20) => {
                Ok(Digest::GitSha1(bytes.try_into().map_err(|_| "wrong length".to_string())?))
            }
            _ => Err(format!("`{s}` is not a digest (sha256: and 64 hexadecimal digits)")),
        }
    }
}

fn unhex(s: &str) -> Option<Vec<u8>> {
    if !s.len().is_multiple_of(2) || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).ok()).collect()
}

/// Computes a digest while bytes go by.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    /// A hasher of the kind that `expected` needs; SHA-256 when nothing is expected. `size` is the whole file's size,
    /// which git puts before the bytes.
    pub(crate) fn new(expected: Option<&Digest>, size: Option<u64>) -> Self {
        match (expected, size) {
            (Some(Digest::GitSha1(_)), Some(size)) => {
                let mut h = Sha1::new();
                h.update(format!("blob {size}\0").as_bytes());
                Hasher::GitSha1(h)
            }
            _ => Hasher::Sha256(Sha256::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::GitSha1(h) => h.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(h) => Digest::Sha256(h.finalize().into()),
            Hasher::GitSha1(h) => Digest::GitSha1(h.finalize().into()),
        }
    }
}

/// Feeds everything left in `reader` to `hasher`; returns the number of bytes.
pub(crate) fn hash_into(
    hasher: &mut Hasher,
    mut reader: impl Read,
    mut seen: impl FnMut(u64),
) -> io::Result<u64> {
    let mut buf = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        match reader.read(&mut buf) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                hasher.update(&buf[..n]);
                total += n as u64;
                seen(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The digest of a whole file, of the same kind as `like`.
///
/// # Errors
/// When the file cannot be read.
pub fn digest_file(path: &Path, like: Option<&Digest>, seen: impl FnMut(u64)) -> Result<Digest> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let size = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let mut hasher = Hasher::new(like, Some(size));
    hash_into(&mut hasher, file, seen).map_err(|e| Error::io("read", path, e))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let want = Digest::of(b"abc");
        for text in [hex.to_string(), format!("sha256:{hex}"), format!("sha256-{hex}"), hex.to_uppercase()] {
            assert_eq!(text.parse::<Digest>().unwrap(), want, "{text}");
        }
        assert_eq!(want.to_string(), format!("sha256:{hex}"));
        for bad in [
            "",
            "abc",
            "sha256:zz",
            "md5:00",
            &hex[..40],
            &format!("sha1:{hex}"),
            &format!("sha256:{}", &hex[2..]),
        ] {
            let parsed = bad.parse::<Digest>();
            // 40 bare digits are a git object name, everything else is refused.
            assert_eq!(parsed.is_ok(), bad.len() == 40, "{bad} -> {parsed:?}");
        }
    }

    #[test]
    fn git_object_name() {
        // `printf 'hello\n' | git hash-object --stdin`
        let want: Digest = "ce013625030ba8dba906f756967f9e9ca394464a".parse().unwrap();
        let mut h = Hasher::new(Some(&want), Some(6));
        h.update(b"hello\n");
        assert_eq!(h.finish(), want);
    }
}
