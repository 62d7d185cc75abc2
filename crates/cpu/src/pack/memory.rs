//! Memory for packed weights: zeroed, aligned to cache lines, straight from the system and in huge pages where it has them, so
//! that a walk over a matrix does not spend its time on page tables. Weights that are packed together share one block, for
//! most are smaller than a huge page.

use std::{ptr::NonNull, sync::Arc};

/// A huge page of x86-64 and of most others.
const HUGE: usize = 2 << 20;
/// A cache line.
const LINE: usize = 64;

/// A block of the system's.
struct Map {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the block is plain bytes that nothing else owns.
unsafe impl Send for Map {}
// SAFETY: shared access only reads; writers have disjoint ranges (see `PackedBuilder`).
unsafe impl Sync for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: allocated with this size.
        unsafe { system::free(self.ptr, self.len) }
    }
}

/// A block of zeroed bytes that is given away part by part.
pub(crate) struct Arena {
    map: Arc<Map>,
    used: usize,
}

impl Arena {
    /// `len` bytes; none if the system does not have them.
    pub(crate) fn new(len: usize) -> Option<Arena> {
        if len > isize::MAX as usize - 2 * HUGE {
            return None;
        }
        let len = len.max(1);
        Some(Arena { map: Arc::new(Map { ptr: system::allocate(len)?, len }), used: 0 })
    }

    /// The next `len` bytes, aligned to 64; none if there are not so many.
    pub(crate) fn take(&mut self, len: usize) -> Option<Memory> {
        let left = self.map.len - self.used;
        let memory = (len <= left).then(|| Memory { map: self.map.clone(), at: self.used, len })?;
        self.used += len.next_multiple_of(LINE).min(left);
        Some(memory)
    }
}

/// Bytes of an [`Arena`], which live as long as the last of its parts.
pub(crate) struct Memory {
    map: Arc<Map>,
    at: usize,
    len: usize,
}

impl Memory {
    /// The first byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        // SAFETY: inside the block, by `take`.
        unsafe { self.map.ptr.as_ptr().add(self.at) }
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Maps of the system. A small one takes whole pages: weights are few and large.
#[cfg(target_os = "linux")]
mod system {
    use std::ptr::{NonNull, null_mut};

    use super::HUGE;

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
        Layout::from_size_align(len, 64).expect("`Memory` checked the size")
    }

    pub(super) fn allocate(len: usize) -> Option<NonNull<u8>> {
        // SAFETY: `Memory` asks for at least one byte.
        NonNull::new(unsafe { alloc_zeroed(layout(len)) })
    }

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
    fn blocks_of_any_size_are_zero_and_writable_to_the_end() {
        for len in [0, 1, 4097, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + 12345] {
            let mut arena = Arena::new(len).unwrap();
            let parts = [arena.take(len / 3).unwrap(), arena.take(len / 2).unwrap()];
            for memory in &parts {
                assert!(memory.ptr().addr().is_multiple_of(LINE));
                // SAFETY: the part's own bytes.
                let bytes = unsafe { std::slice::from_raw_parts_mut(memory.ptr(), memory.len()) };
                assert!(bytes.iter().all(|b| *b == 0));
                bytes.fill(7);
            }
            assert!(arena.take(len / 2 + 64).is_none());
        }
        assert!(Arena::new(usize::MAX).is_none());
    }
}
