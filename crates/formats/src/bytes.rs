//! `Bytes`: a cheap-to-clone range of a memory-mapped file or of a vector. The only unsafe code of the crate is here.
#![allow(unsafe_code)]

use std::{
    fmt,
    fs::File,
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

use crate::Error;

enum Owner {
    Map(memmap2::Mmap),
    Vec(Vec<u8>),
}

/// Shared, immutable bytes: a range of a mapped file or of a vector, kept alive by reference count.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

impl Bytes {
    /// Maps a whole file. The file must not be shortened while it is mapped: the system then ends the program (SIGBUS).
    pub fn map(path: &Path) -> Result<Bytes, Error> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        // SAFETY: the map is read-only. Another process that changes the file can change the bytes under us;
        // every reader here treats bytes as untrusted data, and no reference of a type with invalid bit patterns is made.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        let range = 0..map.len();
        Ok(Bytes { owner: Arc::new(Owner::Map(map)), range })
    }

    /// A part of these bytes, sharing the owner. Panics if `range` is out of bounds, as slicing does.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "range {range:?} of {} bytes",
            self.len()
        );
        let range = self.range.start + range.start..self.range.start + range.end;
        Bytes { owner: self.owner.clone(), range }
    }

    /// Whether the bytes are a mapped file rather than memory of our own.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.owner, Owner::Map(_))
    }

    /// Gives the whole pages in the range back to the system: for weights that were copied elsewhere. Reading them again is
    /// allowed and reads the file again. Does nothing for bytes that are not mapped.
    pub fn release(&self) {
        #[cfg(unix)]
        if let (Owner::Map(map), Some(page)) = (&*self.owner, page_size()) {
            let start = self.range.start.next_multiple_of(page);
            let end = if self.range.end == map.len() { map.len() } else { self.range.end / page * page };
            if start < end {
                // SAFETY: the map is read-only and backed by a file, so dropped pages come back with the same content.
                let advice = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
                debug_assert!(advice.is_ok(), "{advice:?}");
            }
        }
    }

    /// Asks the system to read the range ahead. Only a hint.
    pub fn will_need(&self) {
        #[cfg(unix)]
        if let Owner::Map(map) = &*self.owner
            && !self.range.is_empty()
        {
            // A refused hint costs time and nothing else.
            let _ = map.advise_range(memmap2::Advice::WillNeed, self.range.start, self.range.len());
        }
    }

    /// Maps the range's pages now, which costs less than doing so one by one as they are read. Only a hint.
    pub fn populate(&self) {
        #[cfg(target_os = "linux")]
        if let Owner::Map(map) = &*self.owner
            && !self.range.is_empty()
        {
            // A system that does not know it maps the pages as they are read.
            let _ = map.advise_range(memmap2::Advice::PopulateRead, self.range.start, self.range.len());
        }
    }
}

#[cfg(unix)]
fn page_size() -> Option<usize> {
    // SAFETY: sysconf has no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok().filter(|p| p.is_power_of_two())
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.owner {
            Owner::Map(map) => &map[self.range.clone()],
            Owner::Vec(vec) => &vec[self.range.clone()],
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(vec: Vec<u8>) -> Self {
        let range = 0..vec.len();
        Bytes { owner: Arc::new(Owner::Vec(vec)), range }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes{})", self.len(), if self.is_mapped() { ", mapped" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_slice_is_the_same_bytes_mapped_or_not_and_survives_release() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let data: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        for bytes in [Bytes::map(&path).unwrap(), Bytes::from(data.clone())] {
            let part = bytes.slice(10..90_000).slice(5..80_000);
            part.will_need();
            part.populate();
            assert_eq!(&part[..], &data[15..80_010]);
            part.release();
            bytes.release();
            bytes.slice(3..3).release();
            assert_eq!(&part[..], &data[15..80_010]);
        }
        assert!(Bytes::map(&path).unwrap().is_mapped());
    }

    #[test]
    #[should_panic(expected = "range")]
    fn a_slice_cannot_leave_its_parent() {
        Bytes::from(vec![0; 10]).slice(2..6).slice(0..5);
    }
}
