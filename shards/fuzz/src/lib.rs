//! What the fuzz targets share: first inputs, structured changes of shards and tars, and a limit of memory.
//!
//! `run.sh` builds and runs the targets in `targets/`. Each checks more than that nothing panics: what it asserts is
//! said there. Inputs that once broke something are tests in `shards/src/hostile.rs`, not files here.

pub mod anatomy;
pub mod archive;
pub mod memory;
pub mod seeds;

/// The allocator of every target.
#[global_allocator]
static ALLOCATOR: memory::Limited = memory::Limited;
