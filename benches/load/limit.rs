//! The limit: what reading compressed shards costs at the least. Plain threads, each with its share of the blocks; for
//! every frame xxh3 of the stored bytes, zstd into scratch planes, and the planes unshuffled into a batch. There is no
//! order, no queue and no consumer.
//!
//! The files are mapped and taken apart here, after the specification; of the crate `shards` only `interleave` is used,
//! the fastest way known to unshuffle. So the limit does not depend on what is measured against it.

use std::fs::File;
use std::ops::Range;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use memmap2::Mmap;
use serde_json::{Value, json};
use shards::{DType, interleave};
use xxhash_rust::xxh3::xxh3_64;

use crate::measure::{self, Options};
use crate::records::{self, BLOCK, COLUMN_BYTES};

/// Batch buffers that a thread fills in turns: as many as the loader has on their way to a consumer.
const BUFFERS: usize = 5;
/// How long is measured; one pass over the share comes before.
const TIME: Duration = Duration::from_secs(3);

/// Stored bytes of one column of one block.
struct Frame {
    shard: usize,
    bytes: Range<usize>,
    xxh3: u64,
}

/// Runs it; the keys are some of those of a loader.
pub fn run(options: &Options) -> Value {
    let folder = options.data.join("shards-zstd");
    let manifest = records::manifest(&options.data, "shards-zstd");
    let shards: Vec<Mmap> = manifest
        .shards
        .iter()
        .map(|shard| {
            let path = folder.join(&shard.file);
            let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            map(&file)
        })
        .collect();
    let frames: Vec<Frame> = shards.iter().enumerate().flat_map(|(number, shard)| frames(number, shard)).collect();
    // Both columns of a block go to one thread. With fewer blocks than threads the barrier would never open.
    assert!(frames.len() / 2 >= options.workers, "fewer blocks than workers");
    let share = (frames.len() / 2).div_ceil(options.workers) * 2;
    let start = Barrier::new(options.workers);
    let cpu = measure::cpu_seconds();
    let begun = Instant::now();
    let done: Vec<(usize, Duration)> = std::thread::scope(|scope| {
        let threads: Vec<_> = frames
            .chunks(share)
            .map(|share| {
                let (shards, start) = (&shards, &start);
                scope.spawn(move || thread(shards, share, options.batch, start))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread of the limit panicked")).collect()
    });
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), measure::cpu_seconds() - cpu);
    let samples: usize = done.iter().map(|(samples, _)| samples).sum();
    let rate: f64 = done.iter().map(|(samples, time)| *samples as f64 / time.as_secs_f64()).sum();
    let all = (samples + frames.len() / 2 * BLOCK) as f64;
    json!({
        "samples": samples,
        "wall_s": wall,
        "samples_per_s": rate,
        "cpu_s": cpu,
        "cpu_s_per_million": cpu / all * 1e6,
        "peak_rss_bytes": measure::peak_rss(),
    })
}

/// Goes through a share once, and then for [`TIME`]: samples and time of the latter.
fn thread(shards: &[Mmap], share: &[Frame], batch: usize, start: &Barrier) -> (usize, Duration) {
    let mut inflater = zstd::bulk::Decompressor::new().expect("memory for a context");
    let mut planes = vec![0; BLOCK * COLUMN_BYTES];
    // Mean and logvar of a batch, `BUFFERS` times.
    let mut buffers = vec![0; BUFFERS * batch * COLUMN_BYTES * 2];
    let places = buffers.len() / planes.len();
    let mut pass = |until: Option<Instant>| {
        let mut blocks = 0;
        loop {
            for (at, frame) in share.iter().enumerate() {
                let stored = &shards[frame.shard][frame.bytes.clone()];
                assert_eq!(xxh3_64(stored), frame.xxh3, "a frame is damaged");
                let len = inflater.decompress_to_buffer(stored, &mut planes[..]).expect("a frame of zstd");
                assert_eq!(len, planes.len(), "a frame of another length");
                let place = (2 * blocks + at % 2) % places * planes.len();
                interleave(&planes, DType::F16, 0..planes.len() / 2, &mut buffers[place..place + planes.len()])
                    .expect("two planes of one block");
                blocks += at % 2;
                if at % 2 == 1 && until.is_some_and(|until| Instant::now() >= until) {
                    return blocks * BLOCK;
                }
            }
            if until.is_none() {
                return blocks * BLOCK;
            }
        }
    };
    pass(None);
    start.wait();
    let begun = Instant::now();
    (pass(Some(begun + TIME)), begun.elapsed())
}

/// The frames of a shard, block by block, mean before logvar.
fn frames(shard: usize, file: &[u8]) -> Vec<Frame> {
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("4 bytes")) as usize;
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"));
    let footer = u64_at(file.len() - 64) as usize;
    let frames = u32_at(footer) * u32_at(footer + 4);
    let (off, xxh3, len) = (footer + 16, footer + 16 + 8 * frames, footer + 16 + 16 * frames);
    let frame = |number: usize| {
        let begin = u64_at(off + 8 * number) as usize;
        Frame { shard, bytes: begin..begin + u32_at(len + 4 * number), xxh3: u64_at(xxh3 + 8 * number) }
    };
    (0..frames).map(frame).collect()
}

#[expect(unsafe_code, reason = "memory maps")]
fn map(file: &File) -> Mmap {
    // SAFETY: the bench wrote the file, and nothing changes a finished shard.
    unsafe { Mmap::map(file) }.expect("a file can be mapped")
}
