//! An allocator that ends the process where a target holds more memory than its input can be worth.
//!
//! libFuzzer's `-malloc_limit_mb` works only under a sanitizer, and its `-rss_limit_mb` sees only memory that is
//! touched. What zstd allocates by itself is not seen here.

#![expect(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes that may be allocated at a time.
pub const LIMIT: usize = 512 << 20;
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with [`LIMIT`].
#[derive(Debug)]
pub struct Limited;

/// Counts `size` bytes; over the limit libFuzzer sees SIGABRT, and keeps the input.
fn take(size: usize) {
    if LIVE.fetch_add(size, Ordering::Relaxed).saturating_add(size) > LIMIT {
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        take(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}
