//! `pipeline bench load`: how fast batches come off a dataset, and how long a consumer waits for them.
//!
//! The consumer takes batches and sleeps as long as it is told in place of a training step; on a GPU it copies them to
//! the device too and draws from the posterior, as training does. What is reported is about the batches behind the
//! first one and behind the warm epochs; the time to the first batch counts from before the dataset is opened.

mod figures;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pipeline::{BoxError, End, Flow, Line, Runtime, Sink, Slab, Watchdog};
use shards::Dataset;
use stages::data::HostBatch;
use stages::device::{Device, parse_devices};
use stages::load::feed::{Feeder, Scaling};
use stages::load::plan::{Cursor, DEFAULT_POOL_BLOCKS, Ranks};
use stages::load::synthetic::{self, Synthetic};
use stages::load::waits::Waits;
use stages::load::{self, LoadConfig, LoadMemory, SlowReads};
use xxhash_rust::xxh3::Xxh3;

use crate::commands::reading::ReadingArgs;
use crate::exit::Outcome;
use crate::show;

/// After so long without a batch the run says what holds it up.
const STALL: Duration = Duration::from_secs(10);

/// Measure how fast batches come off a dataset, and how long a consumer waits for them.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchLoadArgs {
    /// Dataset that `pipeline encode` or `pipeline import` wrote; `synthetic`: noise that costs nothing to load
    #[arg(value_name = "DATA|synthetic")]
    data: PathBuf,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Samples in a global batch
    #[arg(long, value_name = "N", default_value_t = 256)]
    batch: usize,
    /// Blocks that are shuffled together; from the number of blocks on everything stays in memory, inflated
    #[arg(long, value_name = "N", default_value_t = DEFAULT_POOL_BLOCKS)]
    pool_blocks: usize,
    /// The seed of the order
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Batches to measure [default: an epoch, from 200 to 2000]
    #[arg(long, value_name = "N")]
    batches: Option<u64>,
    /// Epochs to go through before anything is measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    warm_epochs: u64,
    /// Begin at this batch, as a resumed run does
    #[arg(long, value_name = "N", default_value_t = 0)]
    start_batch: u64,
    /// Milliseconds that the consumer sleeps after each batch, in place of a training step
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    consumer_ms: f64,
    /// cpu, cpu:2, cuda:0, cuda:0,cuda:1: one consumer each, and each gets its slice of every batch
    #[arg(long, default_value = "cpu")]
    devices: String,
    /// A slow disk: one in N blocks comes MS milliseconds late
    #[arg(long, value_name = "N:MS", value_parser = slow_reads)]
    slow_reads: Option<SlowReads>,
    /// Take mirror images at half of the visits, as train.flip=true does
    #[arg(long)]
    flip: bool,
    /// Add up a checksum of every sample, which takes longer than loading it
    #[arg(long)]
    check: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BenchLoadArgs, runtime: &Runtime) -> Result<Outcome> {
    let began = Instant::now();
    if args.consumer_ms.is_nan() || !(0.0..=60_000.0).contains(&args.consumer_ms) {
        bail!("--consumer-ms {} must be from 0 to 60000", args.consumer_ms);
    }
    let devices = parse_devices(&args.devices)?;
    let config = args.reading.apply(LoadConfig {
        pool_blocks: args.pool_blocks,
        cursor: Cursor { batch: args.start_batch },
        ranks: Ranks::all(devices.len()),
        flip: args.flip,
        pinned: devices.iter().any(|device| device.is_cuda()),
        slow: args.slow_reads,
        ..LoadConfig::new(args.seed, args.batch)
    });
    let synthetic = args.data == Path::new("synthetic");
    let (line, memory, plan) = if synthetic {
        let what = Synthetic::IMAGENET;
        let plan = Counts { warm: args.warm_epochs, measured: args.batches.unwrap_or(2000), per_epoch: None };
        let config = LoadConfig { batches: Some(plan.total()?), ..config };
        (
            end(args, synthetic::batches(what, &config)?, &devices, Scaling { factor: 1.0, shift: 0.0 }, plan, began),
            None,
            plan,
        )
    } else {
        let dataset = Arc::new(Dataset::open(&args.data, args.reading.io())?);
        let per_epoch = (dataset.len() / args.batch.max(1)) as u64;
        let plan = Counts {
            warm: args.warm_epochs.saturating_mul(per_epoch),
            measured: args.batches.unwrap_or(per_epoch.clamp(200, 2000)),
            per_epoch: Some(per_epoch),
        };
        let config = LoadConfig { batches: Some(plan.total()?), ..config };
        let memory = LoadMemory::of(&dataset, &config)?;
        let scaling = Scaling::of(&dataset.manifest.schema);
        (end(args, load::batches(&dataset, &config)?, &devices, scaling, plan, began), Some(memory), plan)
    };
    let mut watchdog = Watchdog::new(STALL.max(Duration::from_secs_f64(args.consumer_ms / 50.0)));
    let watched = line.observe(STALL / 10, move |report| {
        if let Some(stall) = watchdog.look(report) {
            show::say(&stall.to_string());
        }
    });
    let finished = watched.run(runtime)?;
    if finished.interrupted {
        return Ok(Outcome::Interrupted("stopped; nothing was measured".to_owned()));
    }
    let found = figures::of(args, &devices, &finished.output, &finished.report, memory, plan)?;
    match args.json {
        true => show::result(&found.to_string()),
        false => show::result(&figures::table(&found)),
    }
    Ok(Outcome::Done)
}

/// Batches at the beginning of an epoch that are looked at by themselves.
const TURN: u64 = 8;

/// Batches that are gone through.
#[derive(Debug, Clone, Copy)]
struct Counts {
    warm: u64,
    /// Behind the warm ones, the first included.
    measured: u64,
    /// In an epoch; none of noise.
    per_epoch: Option<u64>,
}

impl Counts {
    fn total(self) -> Result<u64> {
        if self.measured < 2 {
            bail!("--batches {} must be at least 2: what is measured begins behind the first", self.measured);
        }
        self.warm.checked_add(self.measured).context("so many batches cannot be counted")
    }
}

/// One consumer for each device.
fn end<M>(
    args: &BenchLoadArgs,
    batches: Flow<Slab<HostBatch>, M>,
    devices: &[Device],
    scaling: Scaling,
    counts: Counts,
    began: Instant,
) -> Line<Vec<Consumed>> {
    let pause = Duration::from_secs_f64(args.consumer_ms / 1e3);
    let check = args.check;
    let consumer = |device: Device| Consumer {
        devices: devices.len() as i64,
        ..Consumer::new(device, scaling, counts, pause, check, began)
    };
    let prefetch = args.reading.prefetch;
    match devices {
        &[device] => batches.into(consumer(device)).map(|found| vec![found]),
        _ => batches.split(devices.len(), |rank, branch| {
            branch.named(rank.to_string()).prefetch(prefetch).into(consumer(devices[rank]))
        }),
    }
}

/// What one consumer saw.
#[derive(Debug)]
struct Consumed {
    first: Duration,
    samples: u64,
    wall: Duration,
    waits: Waits,
    /// From one batch to the next.
    intervals: Waits,
    /// The longest of these among the first [`TURN`] batches of an epoch, if an epoch turned.
    turn: Option<Duration>,
    usage: Used,
    check: Check,
    filled: u64,
}

/// What the process and the consumer's thread used meanwhile.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    cpu_s: f64,
    /// Times that a thread of the process gave up its core to wait.
    process_waits: i64,
    /// The same of the consumer's thread.
    thread_waits: i64,
}

impl Used {
    fn now() -> Result<Self, BoxError> {
        let (process, thread) = (getrusage(UsageWho::RUSAGE_SELF)?, getrusage(UsageWho::RUSAGE_THREAD)?);
        Ok(Self {
            cpu_s: cpu_seconds(&process),
            process_waits: process.voluntary_context_switches(),
            thread_waits: thread.voluntary_context_switches(),
        })
    }
}

fn cpu_seconds(usage: &Usage) -> f64 {
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}

/// A sum over samples that does not depend on their order: of xxh3 over position, mean, log-variance and label.
#[derive(Debug, Clone, Default)]
struct Check {
    sum: u64,
    /// Bit for each position that came.
    seen: Vec<u64>,
    samples: u64,
}

impl Check {
    fn add(&mut self, batch: &HostBatch) {
        let values: usize = batch.shape[1..].iter().product();
        for (row, &position) in batch.positions.iter().enumerate() {
            let mut hasher = Xxh3::new();
            hasher.update(&position.to_le_bytes());
            for moments in [&batch.mean, &batch.logvar] {
                let of_row = moments.get(row * values..(row + 1) * values).unwrap_or_default();
                of_row.chunks(256).for_each(|part| {
                    let mut bytes = [0; 512];
                    bytes.as_chunks_mut().0.iter_mut().zip(part).for_each(|(to, value)| *to = value.to_le_bytes());
                    hasher.update(&bytes[..2 * part.len()]);
                });
            }
            hasher.update(&batch.labels[row].to_le_bytes());
            self.sum = self.sum.wrapping_add(hasher.digest());
            let word = (position / 64) as usize;
            if self.seen.len() <= word {
                self.seen.resize(word + 1, 0);
            }
            self.seen[word] |= 1 << (position % 64);
            self.samples += 1;
        }
    }
}

struct Consumer {
    device: Device,
    /// Consumers in all.
    devices: i64,
    feeder: Feeder,
    counts: Counts,
    pause: Duration,
    checks: bool,
    began: Instant,
    /// Batches that came.
    count: u64,
    idle_since: Option<Instant>,
    last: Instant,
    started: Option<(Instant, Used)>,
    found: Consumed,
}

impl Consumer {
    fn new(device: Device, scaling: Scaling, counts: Counts, pause: Duration, checks: bool, began: Instant) -> Self {
        let found = Consumed {
            first: Duration::ZERO,
            samples: 0,
            wall: Duration::ZERO,
            waits: Waits::new(),
            intervals: Waits::new(),
            turn: None,
            usage: Used::default(),
            check: Check::default(),
            filled: 0,
        };
        let feeder = Feeder::new(device, scaling);
        Self {
            device,
            devices: 1,
            feeder,
            counts,
            pause,
            checks,
            began,
            count: 0,
            idle_since: None,
            last: began,
            started: None,
            found,
        }
    }
}

impl Sink for Consumer {
    type In = Slab<HostBatch>;
    type Output = Consumed;

    fn consume(&mut self, batch: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        let now = Instant::now();
        if self.count == 0 {
            self.found.first = self.began.elapsed();
        }
        match (self.started, self.idle_since) {
            (None, _) if self.count == self.counts.warm => self.started = Some((now, Used::now()?)),
            (Some(_), Some(since)) => {
                self.found.waits.add(now - since);
                let interval = now - self.last;
                self.found.intervals.add(interval);
                let turns = |per_epoch| batch.batch >= per_epoch && batch.batch % per_epoch < TURN.min(per_epoch);
                if self.counts.per_epoch.is_some_and(turns) {
                    self.found.turn = self.found.turn.max(Some(interval));
                }
                self.found.samples += batch.rows.len() as u64;
            }
            _ => {}
        }
        self.last = now;
        self.count += 1;
        self.found.filled += batch.filled.len() as u64;
        for fault in &batch.faults {
            show::say(&format!("skipped: {fault}"));
        }
        if self.checks && self.started.is_some() {
            self.found.check.add(&batch);
        }
        if self.device.is_cuda() {
            let seed = batch.batch;
            self.feeder.draw(batch, seed)?;
        } else {
            drop(batch);
        }
        if !self.pause.is_zero() && self.started.is_some() {
            std::thread::sleep(self.pause);
        }
        self.idle_since = Some(Instant::now());
        if let Some((at, before)) = self.started
            && self.count == self.counts.warm + self.counts.measured
        {
            let after = Used::now()?;
            let sleeps = if self.pause.is_zero() { 0 } else { self.counts.measured as i64 };
            self.found.wall = at.elapsed();
            self.found.usage = Used {
                cpu_s: after.cpu_s - before.cpu_s,
                process_waits: after.process_waits - before.process_waits - sleeps * self.devices,
                thread_waits: after.thread_waits - before.thread_waits - sleeps,
            };
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Consumed, BoxError> {
        Ok(self.found)
    }
}

fn slow_reads(text: &str) -> Result<SlowReads, String> {
    let wrong = || "write N:MS, for example 100:50".to_owned();
    let (one_in, delay) = text.split_once(':').ok_or_else(wrong)?;
    let one_in = one_in.parse().ok().filter(|&n| n > 0).ok_or_else(wrong)?;
    let delay = delay.parse().ok().filter(|&ms| ms <= 600_000).ok_or_else(wrong)?;
    Ok(SlowReads { one_in, delay: Duration::from_millis(delay) })
}
