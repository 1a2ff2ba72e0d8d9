//! Load: from shards to batches on the host, in an order that is a pure function of (seed, epoch, position).
//!
//! ```text
//! BlockTickets     which block next, a buffer for it, which rows then    read.rs       1 thread
//!   Inflate        read, check, inflate                                  inflate.rs    `workers` threads
//!   AssembleBatches   hold the pool, list the rows of a batch            assemble.rs   1 thread
//!   Gather         copy the rows into the batch                          gather.rs     `workers` threads
//! Feeder           copy to the device, draw from the posterior           feed.rs       the consumer's thread
//! ```
//!
//! [`plan`] states the order, [`order`] streams it. The rest obeys it for any number of workers and buffers: what comes
//! out of [`batches`] is `Plan::batch(cursor.batch)`, `Plan::batch(cursor.batch + 1)`, and so on, for several ranks cut into
//! their slices, rank after rank: [`Flow::split`] deals them out to as many consumers.
//!
//! A block that cannot be read ends the flow with its place, or with [`OnBadBlock::Skip`] its samples are replaced by
//! their neighbours in the rank's slice ([`HostBatch::filled`]): all other rows stay where they are.
//!
//! # Memory, and why the flow cannot stall
//!
//! Blocks live in `P + D + F` buffers: P is the number of blocks of the pool, D = 16 the finished blocks that an
//! incomplete draft of a batch may keep, and F = [`in_flight`] those that tickets, workers and links can hold. A ticket takes
//! its buffer before it is sent, and blocks are read in the order of their first rows. A buffer goes back when its block
//! is finished and the last row is copied.
//!
//! Let s be the next row to list. At most P blocks are begun before s and not finished, that of s among them. If the
//! block of s has a ticket, the ticket has a buffer, and since links keep order it arrives. If it has none, it is the
//! next to get one, and every block that was read before it is begun; of all other buffers at most P - 1 are held for blocks that are begun and less than D for finished ones in
//! the draft of s, and those of all other finished blocks come back: their rows are in complete drafts, which have their
//! memory and wait for nothing. So the ticket gets a buffer, and s is listed: P + D buffers suffice for progress, and F
//! more keep the workers busy. Nothing bars blocks of the next epoch: they are asked for as soon as buffers come back
//! ([`read`]), so the end of an epoch does not drain the flow.
//!
//! With a pool of the whole dataset a block stays in its buffer once it was read.
//!
//! Batches live in `ranks * (prefetch + 1) + 2 * workers + 2` buffers: `prefetch` for each consumer and one with
//! it, and those being listed and filled. A consumer that keeps batches may keep up to `prefetch` besides the one it is
//! at; the flow waits for it when it keeps more.
//!
//! In steady state nothing is allocated for a sample or a batch; for a block, one handle of a few hundred bytes. To
//! begin elsewhere costs the draws of a pool (a few milliseconds); in a pool of everything, those of the epoch until
//! there (20 ns a sample), and the turn of an epoch a few nanoseconds a sample.
//!
//! Not here: the mirrored columns of `encode --flip` (not read), draws of any kind.

pub mod assemble;
pub mod feed;
pub mod footprint;
pub mod gather;
pub mod inflate;
pub mod order;
pub mod plan;
pub mod quality;
pub mod read;
pub mod synthetic;
pub mod waits;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod properties;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pipeline::{Flow, Parallel, Slab, Slabs};
use shards::{Dataset, ShardError};

pub use footprint::LoadMemory;

use crate::data::{BlockBuffer, BlockPlace, HostBatch, Pick};
use crate::native::NativeError;
use assemble::{AssembleBatches, MOST_FINISHED, Rows};
use gather::Gather;
use inflate::{BlockTable, Inflate, LatentColumns};
use order::Steps;
use plan::{Cursor, Plan, PlanConfig, PlanError, Ranks};
use read::{BlockTickets, MOST_PICKS};

/// How a dataset is streamed. Only `seed`, `batch`, `pool_blocks`, `cursor` and `ranks` decide what comes; the rest how
/// fast.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// The seed of the run.
    pub seed: u64,
    /// Samples in a global batch, at least 1 and at most the dataset.
    pub batch: usize,
    /// Blocks that are shuffled together ([`plan::DEFAULT_POOL_BLOCKS`]); from the number of blocks on, the
    /// shuffle is a permutation of the whole dataset and all of it stays in memory, inflated.
    pub pool_blocks: usize,
    /// Threads that read and inflate, and as many that copy, at least 1.
    pub workers: usize,
    /// Finished batches that wait for each consumer, at least [`LEAST_PREFETCH`].
    pub prefetch: usize,
    /// The first batch.
    pub cursor: Cursor,
    /// How many batches; without end if `None`.
    pub batches: Option<u64>,
    /// Whose slices come.
    pub ranks: Ranks,
    /// What is done about blocks that cannot be read.
    pub on_bad_block: OnBadBlock,
    /// Batches in memory that a GPU copies by itself; needs the CUDA side of libtorch.
    pub pinned: bool,
    /// Makes reading slower than it is.
    pub slow: Option<SlowReads>,
}

impl LoadConfig {
    /// Everything from the first batch on, for one consumer on the CPU, with all else as a run has it by default.
    pub fn new(seed: u64, batch: usize) -> Self {
        Self {
            seed,
            batch,
            pool_blocks: plan::DEFAULT_POOL_BLOCKS,
            workers: 2,
            prefetch: DEFAULT_PREFETCH,
            cursor: Cursor::default(),
            batches: None,
            ranks: Ranks::all(1),
            on_bad_block: OnBadBlock::Fail,
            pinned: false,
            slow: None,
        }
    }
}

/// The least [`LoadConfig::prefetch`]: with fewer a copy to the device that is still under way holds up the next batch.
pub const LEAST_PREFETCH: usize = 3;

/// [`LoadConfig::prefetch`] unless asked otherwise: a consumer of 5 ms a batch does not notice a pause of 40 ms.
pub const DEFAULT_PREFETCH: usize = 8;

/// What is done about a block that cannot be had: its checksum is wrong, it does not inflate, the file no longer has it,
/// the disk fails, or its values do not fit f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBadBlock {
    /// The flow ends with an error that names shard, block and file.
    #[default]
    Fail,
    /// The samples are replaced by others of their batch, and counted.
    Skip,
}

/// A disk that is slow now and then, to see what prefetch is worth: one in `one_in` blocks, by number, comes `delay` late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowReads {
    /// At least 1.
    pub one_in: u64,
    /// How late.
    pub delay: Duration,
}

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
    /// All samples of a rank's slice lie in blocks that cannot be read.
    #[error("no sample of batch {batch}, rows {}..{}, can be read; `pipeline verify` lists what is damaged", rows.start, rows.end)]
    NothingReadable {
        /// Number of the batch.
        batch: u64,
        /// Rows of the slice.
        rows: Range<usize>,
    },
    /// No memory for batches.
    #[error("memory for batches: {0}")]
    Memory(#[from] NativeError),
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

impl LoadError {
    /// Whether the data are damaged, as far as [`ShardError::is_corrupt`] does not say so already.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::NothingReadable { .. } | Self::NotFinite { .. })
    }

    /// What is wrong with the block at `place`.
    pub(crate) fn block(place: BlockPlace, cause: ShardError) -> Self {
        Self::Block { shard: place.shard, block: place.block, cause }
    }
}

/// Streams `dataset` from `config.cursor` on (module doc).
///
/// Errors of reading come from running the flow: they name shard, block and file.
pub fn batches(dataset: &Arc<Dataset>, config: &LoadConfig) -> Result<Flow<Slab<HostBatch>, Parallel>, LoadError> {
    let loader = Loader::new(dataset, config)?;
    loader.flow()
}

/// Blocks that tickets, workers and links hold beside the pool: one in the hands of the source, `workers` in the link
/// behind it, `2 * workers` that are worked on or in the link behind that, and one in the hands of the assembler.
pub fn in_flight(workers: usize) -> usize {
    3 * workers + 2
}

/// Blocks in memory at most. A pool of the whole dataset needs no more than there are.
fn block_buffers(plan: &Plan, workers: usize) -> usize {
    let blocks = plan.pool_blocks() + MOST_FINISHED + in_flight(workers);
    if plan.holds_everything() { plan.pool_blocks() } else { blocks }
}

/// A checked configuration and its order.
struct Loader {
    dataset: Arc<Dataset>,
    config: LoadConfig,
    plan: Arc<Plan>,
    columns: LatentColumns,
    table: Arc<BlockTable>,
    /// Memory for blocks, made as it is needed.
    blocks: Slabs<BlockBuffer>,
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
        config.ranks.check(batch)?;
        let blocks = Slabs::new(block_buffers(&plan, workers), BlockBuffer::default);
        Ok(Self { dataset: Arc::clone(dataset), config: config.clone(), plan, columns, table, blocks })
    }

    /// Batches in memory at most.
    fn batch_buffers(&self) -> usize {
        self.config.ranks.ranks.len() * (self.config.prefetch + 1) + self.drafts()
    }

    /// Drafts at most: one being listed, `workers` in the link, one with each worker, and one more on its way.
    fn drafts(&self) -> usize {
        2 * self.config.workers + 2
    }

    /// `[B, C, h, w]` of one rank's slice.
    fn slice_shape(&self) -> [usize; 4] {
        let [channels, height, width] = self.columns.shape;
        [self.config.ranks.slice_rows(self.config.batch), channels, height, width]
    }

    fn batch_slabs(&self) -> Result<Slabs<HostBatch>, LoadError> {
        let (shape, has_logvar) = (self.slice_shape(), self.columns.spread.is_some());
        let room = || HostBatch::with_room(shape, has_logvar, self.config.pinned);
        let mut made = (0..self.batch_buffers()).map(|_| room()).collect::<Result<Vec<_>, _>>()?.into_iter();
        Ok(Slabs::new(self.batch_buffers(), || made.next().expect("as many were made as are asked for")))
    }

    fn flow(self) -> Result<Flow<Slab<HostBatch>, Parallel>, LoadError> {
        let free = self.batch_slabs()?;
        let picks: Slabs<Vec<Pick>> = Slabs::new(in_flight(self.config.workers), || Vec::with_capacity(MOST_PICKS));
        let rows: Slabs<Rows> = Slabs::new(self.drafts(), || Vec::with_capacity(self.slice_shape()[0]));
        let Self { dataset, config, plan, columns, table, blocks } = self;
        let LoadConfig { cursor, batches, workers, prefetch, ranks, on_bad_block, slow, .. } = config;
        let steps = Steps::new(&plan, cursor, batches, &ranks);
        let here = Gather::new(Arc::clone(&dataset), columns.clone(), on_bad_block);
        let assemble = AssembleBatches::new(cursor, plan.batch_size(), ranks, plan.pool_blocks(), here, free, rows);
        let (data, wanted) = (Arc::clone(&dataset), columns.clone());
        let inflate =
            move |_| Ok(Inflate::new(Arc::clone(&data), Arc::clone(&table), wanted.clone(), on_bad_block, slow));
        let gather = move |_| Ok(Gather::new(Arc::clone(&dataset), columns.clone(), on_bad_block));
        Ok(
            Flow::from(BlockTickets::new(steps, &plan, blocks, picks)) // -> BlockTicket   a block to read, and a buffer for it
                .depth(workers)
                .then(inflate) //                                     -> BlockTicket   f16 [<=64, C, h, w], read and inflated
                .workers(workers)
                .depth(workers)
                .regroup(assemble) //                                 -> BatchDraft    which rows, in order
                .depth(workers)
                .then(gather) //                                      -> HostBatch     f16 [B, C, h, w], in order
                .workers(workers)
                .depth(prefetch),
        )
    }
}
