//! The measured loop and the check for the loaders in Rust that this bench runs itself; what
//! `benches/peers/load_measure.py` is for those in Python, with the same keys. Each runs in a process of its own.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::records;

/// What one run is asked for; the flags are those of the Python peers.
pub struct Options {
    /// The bench's folder.
    pub data: PathBuf,
    /// Threads that load.
    pub workers: usize,
    /// Samples in a batch.
    pub batch: usize,
    /// What the consumer sleeps after a batch, in place of a step.
    pub consumer: Duration,
    /// Batches to load.
    pub batches: usize,
    /// Check one epoch instead.
    pub check: bool,
}

/// A batch on the host: columns of f16 in bytes, one sample after the other.
#[derive(Default)]
pub struct Batch {
    /// [B, 4, 32, 32].
    pub mean: Vec<u8>,
    /// [B, 4, 32, 32].
    pub logvar: Vec<u8>,
    /// [B].
    pub labels: Vec<i64>,
    /// [B], positions in the dataset.
    pub ids: Vec<i64>,
}

/// Times or checks a loader. `open` begins an epoch.
pub fn run<I: Iterator<Item = Batch>>(options: &Options, open: impl Fn() -> I) -> Value {
    if options.check { json!({"check": check(open())}) } else { timed(options, open) }
}

fn timed<I: Iterator<Item = Batch>>(options: &Options, open: impl Fn() -> I) -> Value {
    let begun = Instant::now();
    let mut batches = open();
    let mut batch = batches.next().expect("an epoch has a batch");
    let first = begun.elapsed();
    assert_eq!(batch.mean.len(), options.batch * records::COLUMN_BYTES, "bytes of means in the first batch");

    let mut waits = Vec::with_capacity(options.batches);
    let mut samples = 0;
    let (cpu, start) = (cpu_seconds(), Instant::now());
    for _ in 1..options.batches {
        let before = Instant::now();
        batch = batches.next().unwrap_or_else(|| {
            batches = open();
            batches.next().expect("an epoch has a batch")
        });
        waits.push(before.elapsed());
        samples += batch.labels.len();
        if !options.consumer.is_zero() {
            std::thread::sleep(options.consumer);
        }
    }
    let (wall, cpu) = (start.elapsed(), cpu_seconds() - cpu);
    drop(batch);

    waits.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // The smallest wait that `share` of them do not exceed.
    let quantile = |share: f64| ms(waits[((share * waits.len() as f64).ceil() as usize).max(1) - 1]);
    let total: Duration = waits.iter().sum();
    json!({
        "samples": samples,
        "first_batch_ms": ms(first),
        "wall_s": wall.as_secs_f64(),
        "samples_per_s": samples as f64 / wall.as_secs_f64(),
        "wait_ms": {
            "p50": quantile(0.5), "p99": quantile(0.99), "p999": quantile(0.999), "max": quantile(1.0),
            "total": ms(total), "share": total.as_secs_f64() / wall.as_secs_f64(),
        },
        "cpu_s": cpu,
        "cpu_s_per_million": cpu / samples as f64 * 1e6,
        "peak_rss_bytes": peak_rss(),
    })
}

fn check(batches: impl Iterator<Item = Batch>) -> Value {
    let mut ids: Vec<i64> = Vec::new();
    let mut sum = 0u64;
    for batch in batches {
        let latents =
            batch.mean.chunks_exact(records::COLUMN_BYTES).zip(batch.logvar.chunks_exact(records::COLUMN_BYTES));
        for ((&id, &label), (mean, logvar)) in batch.ids.iter().zip(&batch.labels).zip(latents) {
            sum = sum.wrapping_add(records::digest(id as u64, mean, logvar, label));
            ids.push(id);
        }
    }
    let seen = ids.len();
    ids.sort_unstable();
    ids.dedup();
    json!({"ids": seen, "distinct": ids.len(), "sum": format!("{sum:016x}")})
}

/// User and system time of this process.
pub fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux has it");
    // The second field is a name in brackets; utime and stime are fields 14 and 15, in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The largest resident set of this process, in bytes.
pub fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}
