//! The memory of the load side, counted: a run of its own process, whose every allocation is noted.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use half::f16;
use pipeline::Runtime;
use shards::{Codec, DType, Io, Semantics};

use super::fixture::{column, config, schema, write};
use super::*;

/// Counts what Rust code allocates. Buffers inside libtorch and zstd are not seen.
struct Counting;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        let now = NOW.fetch_add(layout.size() as u64, Relaxed) + layout.size() as u64;
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as u64, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Set in the child process.
const CHILD: &str = "LOAD_MEMORY_CHILD";

/// Runs `test` again in a process of its own, where nothing else allocates; true in that process.
fn is_child(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("load::memory::{test}"), "--nocapture"]);
    let output = command.env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// 4,096 samples of mean and log-variance of 2 KiB each, in blocks of 32; and those of mirror images.
fn dataset(dir: &std::path::Path, dtype: DType, codec: Codec, io: Io, flip: bool) -> Arc<Dataset> {
    let kinds = [
        ("mean", Semantics::PosteriorMean),
        ("logvar", Semantics::PosteriorLogvar),
        ("mean_flip", Semantics::PosteriorMean),
        ("logvar_flip", Semantics::PosteriorLogvar),
    ];
    let columns = kinds[..if flip { 4 } else { 2 }].iter().map(|(name, semantics)| {
        let mut column = column(name, dtype, *semantics);
        (column.shape, column.codec) = (vec![4, 16, 16], codec);
        column
    });
    write(dir, &schema(columns.collect(), 32), &[2048, 2048], |_, position| match dtype {
        DType::F16 => (0..1024).flat_map(|i| f16::from_f32((position + i) as f32 / 64.0).to_le_bytes()).collect(),
        DType::F32 => (0..1024).flat_map(|i| ((position + i) as f32 / 64.0).to_le_bytes()).collect(),
    });
    Arc::new(Dataset::open(dir, io).unwrap())
}

/// Most bytes that were allocated at a time beyond those before, and how often, while `config` ran.
fn measure(dataset: &Arc<Dataset>, config: &LoadConfig) -> (u64, u64) {
    let (before, calls) = (NOW.load(Relaxed), CALLS.load(Relaxed));
    PEAK.store(before, Relaxed);
    let ranks = config.ranks.ranks.len();
    let line =
        batches(dataset, config).unwrap().split(ranks, |_, branch| branch.prefetch(config.prefetch).into(Forget));
    line.run(&Runtime::default()).unwrap();
    (PEAK.load(Relaxed) - before, CALLS.load(Relaxed) - calls)
}

/// Drops what comes.
struct Forget;

impl pipeline::Sink for Forget {
    type In = Slab<HostBatch>;
    type Output = ();

    fn consume(&mut self, _: Slab<HostBatch>) -> Result<std::ops::ControlFlow<()>, pipeline::BoxError> {
        Ok(std::ops::ControlFlow::Continue(()))
    }

    fn finish(self, _: pipeline::End) -> Result<(), pipeline::BoxError> {
        Ok(())
    }
}

const ZSTD: Codec = Codec::ShuffleZstd { level: 1 };

#[test]
fn the_peak_is_within_a_tenth_of_the_figure_and_not_above_it() {
    if !is_child("the_peak_is_within_a_tenth_of_the_figure_and_not_above_it") {
        return;
    }
    let base = LoadConfig { batch: 64, pool_blocks: 48, workers: 2, prefetch: 4, batches: Some(320), ..config() };
    let ram = LoadConfig { batch: 128, batches: Some(64), ..base.clone() };
    let cases = [
        (DType::F16, ZSTD, Io::Ram, ram),
        (DType::F16, ZSTD, Io::Mmap, base.clone()),
        (DType::F16, ZSTD, Io::Pread, base.clone()),
        (DType::F32, ZSTD, Io::Mmap, base.clone()),
        (DType::F16, Codec::None, Io::Mmap, LoadConfig { batch: 512, batches: Some(40), ..base.clone() }),
        (DType::F16, ZSTD, Io::Mmap, LoadConfig { pool_blocks: 1000, ..base.clone() }),
        (DType::F16, ZSTD, Io::Mmap, LoadConfig { ranks: Ranks::all(2), ..base.clone() }),
        (DType::F16, ZSTD, Io::Mmap, LoadConfig { flip: true, ..base.clone() }),
        (DType::F16, ZSTD, Io::Mmap, LoadConfig { flip: true, pool_blocks: 1000, ..base }),
    ];
    for (dtype, codec, io, config) in cases {
        let dir = tempfile::tempdir().unwrap();
        let dataset = dataset(dir.path(), dtype, codec, io, config.flip);
        let stated = LoadMemory::of(&dataset, &config).unwrap();
        // The index and what is held of the files was there before.
        let figure = stated.total() - stated.index_bytes - stated.stored_bytes;
        let (peak, _) = measure(&dataset, &config);
        let ratio = peak as f64 / figure as f64;
        assert!((0.9..=1.01).contains(&ratio), "{dtype:?} {codec:?} {io:?}: {peak} bytes, stated {figure}");
    }
}

#[test]
fn the_index_is_within_a_tenth_of_the_figure() {
    if !is_child("the_index_is_within_a_tenth_of_the_figure") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    drop(dataset(dir.path(), DType::F16, ZSTD, Io::Mmap, false));
    let before = NOW.load(Relaxed);
    let dataset = Arc::new(Dataset::open(dir.path(), Io::Mmap).unwrap());
    let taken = NOW.load(Relaxed) - before;
    let stated = LoadMemory::of(&dataset, &config()).unwrap().index_bytes;
    assert!((0.9..1.1).contains(&(taken as f64 / stated as f64)), "{taken} bytes, stated {stated}");
    let before = NOW.load(Relaxed);
    let dataset = Arc::new(Dataset::open(dir.path(), Io::Ram).unwrap());
    let taken = NOW.load(Relaxed) - before;
    let memory = LoadMemory::of(&dataset, &config()).unwrap();
    let stated = memory.index_bytes + memory.stored_bytes;
    assert!(memory.stored_bytes > 100_000 && (0.9..1.1).contains(&(taken as f64 / stated as f64)), "{taken}, {stated}");
}

#[test]
fn nothing_is_allocated_for_a_sample_or_a_block_and_little_for_a_batch() {
    if !is_child("nothing_is_allocated_for_a_sample_or_a_block_and_little_for_a_batch") {
        return;
    }
    for (codec, pool_blocks) in [(ZSTD, 48), (Codec::None, 48), (ZSTD, 1000)] {
        let dir = tempfile::tempdir().unwrap();
        let dataset = dataset(dir.path(), DType::F16, codec, Io::Mmap, false);
        let config = LoadConfig { batch: 64, pool_blocks, workers: 2, ..config() };
        let epochs = |count: u64| measure(&dataset, &LoadConfig { batches: Some(64 * count), ..config.clone() }).1;
        let (few, many) = (epochs(4), epochs(24));
        // Where the pool slides, a batch that begins to be filled has a handle and two maps of its rows.
        let batches = if pool_blocks < 128 { 20 * 64 * 3 } else { 0 };
        // Some of crossbeam's waits allocate, now and then.
        let spare = 20 * 64 / 4;
        let more = many.saturating_sub(few);
        assert!(more <= batches + spare, "{more} allocations for 1,280 batches, 2,560 blocks and 81,920 samples");
    }
}
