//! Load: from shards to batches on the host, in an order that is a pure function of (seed, epoch, position).
//!
//! ```text
//! BlockTickets     which block next, and a buffer for it              read.rs      1 thread
//!   Inflate        read, check, inflate                               inflate.rs   `workers` threads
//!   AssembleBatches   hold a window of blocks, gather its samples     batch.rs     1 thread
//! to_latents       copy to the device, draw from the posterior        feed.rs      the consumer's thread
//! ```
//!
//! [`plan`] states the order. The rest obeys it for any number of workers and buffers: what comes out of
//! [`batches`] is `Plan::batch(cursor.batch)`, `Plan::batch(cursor.batch + 1)`, and so on.
//!
//! # Memory, and why the flow cannot stall
//!
//! Blocks live in `W + F` buffers, where W is the number of blocks of the largest window and F = [`in_flight`] those
//! that tickets, workers and links can hold. A ticket takes its buffer before it is sent, tickets are made in the
//! order of first use, and a block's buffer goes back with its last sample.
//!
//! Let p be the next sample to gather, in window w. Every sample before p is gathered, so every block of an earlier
//! window is back, and a block of w is held only if it was used before p and is used again: at most W - 1 blocks,
//! since that of p is not among them. If the block of p has a ticket, the ticket has a buffer, and since links keep
//! order it arrives. If it has none, it is the next ticket, since every block of earlier first use has one;
//! all buffers that are not among the W - 1 come to rest in the pool, at least F + 1 of W + F, so the ticket
//! gets one. In both cases p is gathered: W buffers suffice for progress, and F more keep the workers busy.
//! Nothing bars blocks of the next window or epoch: they are asked for as soon as buffers of this one come back, so
//! the end of an epoch does not drain the flow.
//!
//! Batches live in `prefetch + 2` buffers: one being gathered, `prefetch` waiting, one with the consumer. A consumer
//! that keeps batches may keep up to `prefetch + 1` at a time; the flow waits for it when it keeps more.
//!
//! Not here: the mirrored columns of `encode --flip` (not read), ranks (they slice a global batch in
//! [`feed::to_latents`]), draws of any kind.

pub mod batch;
pub mod feed;
pub mod inflate;
pub mod plan;
pub mod read;

#[cfg(test)]
mod properties;

use std::path::PathBuf;
use std::sync::Arc;

use pipeline::{Flow, Slab, Slabs};
use shards::{Dataset, ShardError};

use crate::data::{BlockBuffer, HostBatch};
use batch::AssembleBatches;
use inflate::{BlockTable, Inflate, LatentColumns};
use plan::{Cursor, Plan, PlanConfig, PlanError};
use read::BlockTickets;

/// How a dataset is streamed. Only `seed`, `batch`, `pool_blocks` and `cursor` decide what comes; the rest how fast.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// The seed of the run.
    pub seed: u64,
    /// Samples in a global batch, at least 1 and at most the dataset.
    pub batch: usize,
    /// Blocks that are shuffled together ([`plan::DEFAULT_POOL_BLOCKS`]); from the number of blocks on, the
    /// shuffle is a permutation of the whole dataset and all of it is held in memory.
    pub pool_blocks: usize,
    /// Threads that read and inflate, at least 1.
    pub workers: usize,
    /// Finished batches that wait for the consumer, at least [`LEAST_PREFETCH`].
    pub prefetch: usize,
    /// The first batch.
    pub cursor: Cursor,
    /// How many batches; without end if `None`.
    pub batches: Option<u64>,
}

/// The least [`LoadConfig::prefetch`]: with fewer a copy to the device that is still under way holds up the next batch.
pub const LEAST_PREFETCH: usize = 3;

/// Why a dataset cannot be streamed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The order is impossible.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A setting is too small.
    #[error("{setting} is {got}; it must be at least {least}")]
    TooSmall {
        /// Name in [`LoadConfig`].
        setting: &'static str,
        /// As given.
        got: usize,
        /// The smallest that works.
        least: usize,
    },
    /// No column to train on.
    #[error("the dataset has no column of posterior means or drawn samples, only {found}; encode or import it again")]
    NoLatents {
        /// Names and semantics of its columns.
        found: String,
    },
    /// Not one `[C, h, w]` for all.
    #[error("column {column} has shape {got:?} per sample, expected {expected}; encode or import the dataset again")]
    ColumnShape {
        /// Its name.
        column: String,
        /// In words, with the column that it must equal.
        expected: String,
        /// As declared.
        got: Vec<u32>,
    },
    /// A block could not be read, or its checksum is wrong.
    #[error("shard {shard}, block {block}: {cause}")]
    Block {
        /// Number of the shard, from 0.
        shard: usize,
        /// Number of the block in the shard, from 0.
        block: usize,
        /// What is wrong, with the file.
        #[source]
        cause: ShardError,
    },
    /// An f32 value that f16 cannot hold.
    #[error("shard {shard}, block {block}: {file}: column {column} holds {value}, outside f16's range; encode or import the dataset again", file = file.display())]
    NotFinite {
        /// Number of the shard, from 0.
        shard: usize,
        /// Number of the block in the shard, from 0.
        block: usize,
        /// The shard's file.
        file: PathBuf,
        /// Name of the column.
        column: String,
        /// The value.
        value: f32,
    },
}

/// Streams `dataset` from `config.cursor` on (module doc).
///
/// Errors of reading come from running the flow: they name shard, block and file.
pub fn batches(dataset: &Arc<Dataset>, config: &LoadConfig) -> Result<Flow<Slab<HostBatch>>, LoadError> {
    let loader = Loader::new(dataset, config)?;
    Ok(loader.flow())
}

/// Memory that [`batches`] holds at most, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadMemory {
    /// Inflated blocks: the shuffle pool and what is on its way into it.
    pub pool_bytes: u64,
    /// Batches: waiting, being gathered, and with the consumer.
    pub batch_bytes: u64,
    /// The order of the windows in use.
    pub order_bytes: u64,
}

impl LoadMemory {
    /// The figures for `dataset` and `config`; the same errors as [`batches`].
    pub fn of(dataset: &Arc<Dataset>, config: &LoadConfig) -> Result<Self, LoadError> {
        Ok(Loader::new(dataset, config)?.memory())
    }

    /// All of it.
    pub fn total(self) -> u64 {
        self.pool_bytes + self.batch_bytes + self.order_bytes
    }
}

/// Blocks that tickets, workers and links hold beside the pool: one in the hands of the source, `workers` in the link
/// behind it, one with each worker, `2 * workers` in the link behind them, and one in the hands of the assembler.
pub fn in_flight(workers: usize) -> usize {
    4 * workers + 2
}

/// A checked configuration and its buffers.
struct Loader {
    dataset: Arc<Dataset>,
    config: LoadConfig,
    plan: Arc<Plan>,
    columns: LatentColumns,
    table: Arc<BlockTable>,
    blocks: Slabs<BlockBuffer>,
    batches: Slabs<HostBatch>,
}

impl Loader {
    fn new(dataset: &Arc<Dataset>, config: &LoadConfig) -> Result<Self, LoadError> {
        let LoadConfig { seed, batch, pool_blocks, workers, prefetch, .. } = *config;
        for (setting, got, least) in [("workers", workers, 1), ("prefetch", prefetch, LEAST_PREFETCH)] {
            if got < least {
                return Err(LoadError::TooSmall { setting, got, least });
            }
        }
        let columns = LatentColumns::of(&dataset.manifest.schema)?;
        let table = Arc::new(BlockTable::of(dataset));
        let plan = Arc::new(Plan::new(PlanConfig { blocks: table.sizes(), seed, batch, pool_blocks })?);
        let blocks = Slabs::new(plan.window_blocks() + in_flight(workers), BlockBuffer::default);
        let batches = Slabs::new(prefetch + 2, HostBatch::default);
        Ok(Self { dataset: Arc::clone(dataset), config: config.clone(), plan, columns, table, blocks, batches })
    }

    fn flow(self) -> Flow<Slab<HostBatch>> {
        let LoadConfig { cursor, batches, workers, prefetch, .. } = self.config;
        let Self { dataset, plan, columns, table, .. } = self;
        let assemble = AssembleBatches::new(cursor, plan.batch_size(), &columns, self.batches);
        let inflate = move |_| Ok(Inflate::new(Arc::clone(&dataset), Arc::clone(&table), columns.clone()));
        Flow::from(BlockTickets::new(plan.windows(cursor, batches), self.blocks)) // -> BlockTicket   which block, and a buffer
            .depth(workers)
            .then(inflate) //                                                        -> MomentsBlock  f16 [<=64, C, h, w]
            .workers(workers)
            .depth(2 * workers)
            .regroup(assemble) //                                                    -> HostBatch     f16 [B, C, h, w], in order
            .depth(prefetch)
    }

    fn memory(&self) -> LoadMemory {
        let bytes_per_sample = self.columns.bytes_per_sample() as u64;
        let largest_block = self.table.sizes().into_iter().max().unwrap_or(0);
        let blocks = (self.plan.window_blocks() + in_flight(self.config.workers)) as u64;
        let window_samples = (self.plan.window_blocks() as u64 * u64::from(largest_block)).min(self.plan.samples());
        LoadMemory {
            pool_bytes: blocks * u64::from(largest_block) * (bytes_per_sample + size_of::<i64>() as u64),
            batch_bytes: (self.config.prefetch as u64 + 2)
                * self.plan.batch_size() as u64
                * (bytes_per_sample + (size_of::<i64>() + size_of::<u64>()) as u64),
            // The window that is gathered and the next. (Windows smaller than what is in flight can be more, and small.)
            order_bytes: 2 * window_samples * size_of::<plan::Pick>() as u64,
        }
    }
}
