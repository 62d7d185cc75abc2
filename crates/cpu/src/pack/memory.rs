//! Memory for packed weights: zeroed, aligned to cache lines, straight from the system and in huge pages where it has them, so
//! that a walk over a matrix does not spend its time on page tables. Weights lie side by side in large maps.

use std::{ptr::NonNull, sync::Arc};

/// A huge page of x86-64 and of most others.
const HUGE: usize = 2 << 20;

/// Address space that a [`Slab`] takes at a time; what is not written costs nothing.
const SLAB: usize = 256 << 20;

/// A zeroed block of bytes, aligned to 64.
pub(crate) struct Memory {
    map: Arc<Map>,
    at: usize,
    len: usize,
}

impl Memory {
    /// The first byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        // SAFETY: `Slab::take` cut the block out of the map.
        unsafe { self.map.ptr.as_ptr().add(self.at) }
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    /// The map may live on for its other blocks; the pages of this one need not.
    fn drop(&mut self) {
        system::forget(self.ptr(), self.len);
    }
}

/// Cuts blocks out of large maps, so that huge pages are shared by neighbours instead of each block wasting half of one.
#[derive(Default)]
pub(crate) struct Slab {
    map: Option<Arc<Map>>,
    used: usize,
    /// About how much will still be taken.
    expected: usize,
}

impl Slab {
    /// For blocks of about `expected` bytes in all.
    pub(crate) fn new(expected: usize) -> Slab {
        Slab { expected: expected.min(SLAB), ..Slab::default() }
    }

    /// `len` zeroed bytes; none if the system does not have them.
    pub(crate) fn take(&mut self, len: usize) -> Option<Memory> {
        if len > isize::MAX as usize - 2 * HUGE {
            return None;
        }
        let at = self.used.next_multiple_of(64);
        if let Some(map) = self.map.as_ref().filter(|m| at <= m.len && len <= m.len - at) {
            self.used = at + len;
            return Some(Memory { map: map.clone(), at, len });
        }
        let size = len.max(self.expected).max(1);
        let map = Arc::new(Map { ptr: system::allocate(size)?, len: size });
        self.used = len;
        self.map = Some(map.clone());
        Some(Memory { map, at: 0, len })
    }
}

/// An owned map.
struct Map {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the map is plain bytes that nothing else owns.
unsafe impl Send for Map {}
// SAFETY: shared access only reads; writers have disjoint blocks and ranges (see `PackedBuilder`).
unsafe impl Sync for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: allocated with this size.
        unsafe { system::free(self.ptr, self.len) }
    }
}

/// Gives freed memory of the heap back to the system where it keeps it otherwise: after much has been parsed and dropped.
pub fn trim_heap() {
    // SAFETY: no preconditions; the function locks what it changes.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Maps of the system.
#[cfg(target_os = "linux")]
mod system {
    use std::ptr::{NonNull, null_mut};

    use super::HUGE;

    /// At least the system's page: what is smaller is not given back early.
    const PAGE: usize = 64 << 10;

    /// The map of a large block begins and ends at a huge page, so that the system can use them.
    fn size(len: usize) -> usize {
        if len >= HUGE { len.next_multiple_of(HUGE) } else { len }
    }

    pub(super) fn allocate(len: usize) -> Option<NonNull<u8>> {
        let size = size(len);
        let spare = if len >= HUGE { HUGE } else { 0 };
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new map anywhere.
        let map = unsafe { libc::mmap(null_mut(), size + spare, access, kind, -1, 0) };
        if map == libc::MAP_FAILED {
            return None;
        }
        let mut first = map.cast::<u8>();
        if spare > 0 {
            // SAFETY: the parts before and behind the aligned one are ours, and unused. Advice that is refused costs speed only.
            unsafe {
                let before = first.align_offset(HUGE);
                first = first.add(before);
                if before > 0 {
                    libc::munmap(map, before);
                }
                if spare > before {
                    libc::munmap(first.add(size).cast(), spare - before);
                }
                libc::madvise(first.cast(), size, libc::MADV_HUGEPAGE);
            }
        }
        NonNull::new(first)
    }

    /// Gives the whole pages inside a block back.
    pub(super) fn forget(ptr: *mut u8, len: usize) {
        let before = ptr.align_offset(PAGE);
        if let Some(inner) = len.checked_sub(before).map(|n| n / PAGE * PAGE).filter(|n| *n > 0) {
            // SAFETY: pages of a private map that only the block's owner, who is leaving, could see.
            unsafe { libc::madvise(ptr.add(before).cast(), inner, libc::MADV_DONTNEED) };
        }
    }

    /// # Safety
    /// `ptr` is from `allocate(len)`.
    pub(super) unsafe fn free(ptr: NonNull<u8>, len: usize) {
        // SAFETY: the map of `allocate`.
        unsafe { libc::munmap(ptr.as_ptr().cast(), size(len)) };
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::{
        alloc::{Layout, alloc_zeroed, dealloc},
        ptr::NonNull,
    };

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, 64).expect("`Slab` checked the size")
    }

    pub(super) fn allocate(len: usize) -> Option<NonNull<u8>> {
        // SAFETY: `Slab` asks for at least one byte.
        NonNull::new(unsafe { alloc_zeroed(layout(len)) })
    }

    pub(super) fn forget(_: *mut u8, _: usize) {}

    /// # Safety
    /// `ptr` is from `allocate(len)`.
    pub(super) unsafe fn free(ptr: NonNull<u8>, len: usize) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(ptr.as_ptr(), layout(len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_any_size_are_zero_and_writable_to_the_end_and_never_overlap() {
        for expected in [0, 3 * HUGE] {
            let mut slab = Slab::new(expected);
            let mut blocks = Vec::new();
            for (i, len) in
                [0, 1, 4097, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + 12345, 5].into_iter().enumerate()
            {
                let memory = slab.take(len).unwrap();
                assert!(memory.ptr().addr().is_multiple_of(64) && memory.len() == len);
                // SAFETY: the block's own bytes.
                let bytes = unsafe { std::slice::from_raw_parts_mut(memory.ptr(), len) };
                assert!(bytes.iter().all(|b| *b == 0));
                bytes.fill(i as u8 + 1);
                blocks.push(memory);
            }
            // One that goes takes nothing from its neighbours.
            drop(blocks.remove(4));
            for (memory, i) in blocks.iter().zip([1, 2, 3, 4, 6, 7, 8]) {
                // SAFETY: the block's own bytes.
                let bytes = unsafe { std::slice::from_raw_parts(memory.ptr(), memory.len()) };
                assert!(bytes.iter().all(|b| *b == i));
            }
        }
        assert!(Slab::default().take(usize::MAX).is_none());
    }
}
