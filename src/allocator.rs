//! jemalloc in place of malloc, for libtorch's tensors too: the program exports the C functions themselves.
//!
//! A training step frees what it allocated, and the next one asks for the same sizes again. glibc hands large blocks back to
//! the kernel meanwhile, which then clears every page once more (docs/benchmarks.md says what that costs). jemalloc is told to
//! keep what it once had: the program stays as large as it was at its largest.

#![allow(unsafe_code)] // The name under which jemalloc looks for its settings.

use std::ffi::c_char;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A C string that never changes.
#[repr(transparent)]
struct Settings(*const c_char);

// SAFETY: it points to a constant.
unsafe impl Sync for Settings {}

/// Settings of this program; `MALLOC_CONF` in the environment has the last word.
///
/// * `dirty_decay_ms:-1`, `muzzy_decay_ms:-1`: freed pages stay. Any time, also of minutes, loses most of the gain.
/// * `oversize_threshold:0`: blocks of 8 MB and more, which most tensors of a step are, are kept as the others are.
// SAFETY: jemalloc declares `const char *malloc_conf`, and nothing else has that name.
#[unsafe(export_name = "malloc_conf")]
static SETTINGS: Settings = Settings(c"dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0".as_ptr());
