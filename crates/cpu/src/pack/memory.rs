//! Memory for packed weights: zeroed, 64-byte aligned, straight from the system and in huge pages where it has them, so that
//! a walk over a matrix does not spend its time on page tables.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
};

/// An owned, zeroed block of bytes.
pub(crate) struct Memory {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the block is plain bytes that nothing else owns.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads; writers have disjoint ranges (see `PackedBuilder`).
unsafe impl Sync for Memory {}

/// Blocks of at least a huge page are aligned to one, so that the system can use them.
fn layout(len: usize) -> Layout {
    let align = if len >= 2 << 20 { 2 << 20 } else { 64 };
    Layout::from_size_align(len.max(64), align).expect("the caller checked the size")
}

impl Memory {
    /// `len` zeroed bytes; none if the size is impossible.
    pub(crate) fn zeroed(len: usize) -> Option<Memory> {
        if len > isize::MAX as usize - (4 << 20) {
            return None;
        }
        let layout = layout(len);
        // SAFETY: the layout's size is not zero.
        let Some(ptr) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.align() >= 2 << 20 {
            // SAFETY: the range is ours. Advice that is refused costs speed and nothing else.
            unsafe { libc::madvise(ptr.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
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
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), layout(self.len)) }
    }
}
