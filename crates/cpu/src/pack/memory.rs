//! Memory for packed weights: zeroed, aligned to cache lines, straight from the system and in huge pages where it has them, so
//! that a walk over a matrix does not spend its time on page tables.

use std::ptr::NonNull;

/// A huge page of x86-64 and of most others.
const HUGE: usize = 2 << 20;

/// An owned, zeroed block of bytes, aligned to 64.
pub(crate) struct Memory {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the block is plain bytes that nothing else owns.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads; writers have disjoint ranges (see `PackedBuilder`).
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zeroed bytes; none if the system does not have them.
    pub(crate) fn zeroed(len: usize) -> Option<Memory> {
        if len > isize::MAX as usize - 2 * HUGE {
            return None;
        }
        let ptr = system::allocate(len.max(1))?;
        Some(Memory { ptr, len })
    }

    /// The first byte.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this size.
        unsafe { system::free(self.ptr, self.len.max(1)) }
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
            let memory = Memory::zeroed(len).unwrap();
            assert!(memory.ptr().addr().is_multiple_of(64) && memory.len() == len);
            // SAFETY: the block's own bytes.
            let bytes = unsafe { std::slice::from_raw_parts_mut(memory.ptr(), len) };
            assert!(bytes.iter().all(|b| *b == 0));
            bytes.fill(7);
        }
        assert!(Memory::zeroed(usize::MAX).is_none());
    }
}
