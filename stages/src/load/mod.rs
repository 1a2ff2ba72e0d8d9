//! Load: from shards to batches on the host, in an order that is a pure function of (seed, epoch, position).
//!
//! ```text
//! WindowTickets    which block next, and where each of its rows goes       window.rs     1 thread
//!   Scatter        read, check, inflate, write the rows where they stay    scatter.rs    `workers` threads
//! DeliverBatches   hand on the batches that are complete                   deliver.rs    1 thread
//! Feeder           copy to the device, draw from the posterior             feed.rs       the consumer's thread
//! ```
//!
//! The shuffle pool is the batches that are being filled: a value goes from the file through the caches of one core to
//! the batch that it belongs to. With a pool of the whole dataset blocks stay in memory, inflated, and batches are
//! gathered from them:
//!
//! ```text
//! BlockTickets     which block next, which rows then                       read.rs       1 thread
//!   Inflate        read, check, inflate                                    inflate.rs    `workers` threads
//! AssembleBatches  keep the blocks, list the rows of a batch               assemble.rs   1 thread
//!   Gather         copy the rows into the batch                            gather.rs     `workers` threads
//! ```
//!
//! [`plan`] states the order, [`order`] streams it. The rest obeys it for any number of workers and buffers: what comes
//! out of [`batches`] is `Plan::batch(cursor.batch)`, `Plan::batch(cursor.batch + 1)`, and so on, for several ranks cut
//! into their slices, rank after rank: [`Flow::split`] deals them out to as many consumers.
//!
//! A block that cannot be read ends the flow with its place, or with [`OnBadBlock::Skip`] its samples are replaced by
//! their neighbours in the rank's slice ([`HostBatch::filled`]): all other rows stay where they are.
//!
//! # Memory, and why the flow cannot stall
//!
//! *Sliding.* Slices of batches are the memory: `prefetch` and one for each consumer, and as many as a pool of rows fills, and
//! a few. A slice begins in order, in the hands of the source, and comes back from its consumer. A block is read when all
//! its rows have their places. If memory ends before that, slices that are complete and more than consumers may keep will
//! come back, and the source waits for one. If there are none, the first block is read for the rows that have their
//! places, and again later for the others: the slices in front of it become complete, and are handed on. So one slice more
//! than consumers keep suffices for progress, and the more there are the less is read twice; with the pool's own memory
//! that is next to nothing. Nothing bars slices of the next epoch, so the end of an epoch does not drain the flow.
//!
//! *Everything in memory.* Blocks have memory of their own for good. Batches live in `ranks * (prefetch + 1) + 2 * workers + 2`
//! buffers: those for consumers, and those being listed and filled. A draft takes its buffer when its first row is
//! listed, in order, and waits for nothing then.
//!
//! A consumer may keep up to `prefetch` batches besides the one that it is at; the flow waits for it when it keeps
//! more. The link to it is one with [`Flow::prefetch`]: taking a batch wakes nobody. (Giving it back may wake the
//! source.)
//!
//! Memory of batches begins with small pages where the system has both, so that the first batch waits only for the
//! pages that it needs, and is exchanged for huge pages when it first comes back: the second lap through the batches is
//! slower where new memory is slow.
//!
//! In steady state nothing is allocated for a sample or a block; for a batch, a handle and two maps of its rows. To
//! begin elsewhere costs the draws of a pool (a few milliseconds); in a pool of everything, those of the epoch until
//! there (20 ns a sample), and the turn of an epoch a few nanoseconds a sample.
//!
//! Not here: draws, but for the coin that chooses between an image and its mirror image.

pub mod assemble;
pub mod deliver;
pub mod feed;
pub mod footprint;
pub mod gather;
pub mod inflate;
pub mod order;
pub mod plan;
pub mod quality;
pub mod read;
pub mod scatter;
pub mod synthetic;
pub mod waits;
pub mod window;

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

use pipeline::{Flow, Slab, Slabs};
use shards::{Dataset, ShardError};

pub use footprint::LoadMemory;

use crate::data::{BlockPlace, HostBatch, Pick, ScatterLists};
use crate::native::NativeError;
use assemble::{AssembleBatches, Rows};
use deliver::DeliverBatches;
use gather::Gather;
use inflate::{BlockTable, Inflate, LatentColumns};
use order::Steps;
use plan::{Cursor, Plan, PlanConfig, PlanError, Ranks};
use read::{BlockTickets, MOST_PICKS};
use scatter::Scatter;
use window::WindowTickets;

/// How a dataset is streamed. Only `seed`, `batch`, `pool_blocks`, `cursor`, `ranks` and `flip` decide what comes; the
/// rest how fast.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// The seed of the run.
    pub seed: u64,
    /// Samples in a global batch, at least 1 and at most the dataset.
    pub batch: usize,
    /// Blocks that are shuffled together ([`plan::DEFAULT_POOL_BLOCKS`]); from the number of blocks on, the
    /// shuffle is a permutation of the whole dataset and all of it stays in memory, inflated.
    pub pool_blocks: usize,
    /// Threads that read, inflate and write, at least 1; where everything stays in memory as many again that copy.
    pub workers: usize,
    /// Finished batches that wait for each consumer, at least [`LEAST_PREFETCH`].
    pub prefetch: usize,
    /// The first batch.
    pub cursor: Cursor,
    /// How many batches; without end if `None`.
    pub batches: Option<u64>,
    /// Whose slices come.
    pub ranks: Ranks,
    /// Whether half of the visits are to mirror images ([`plan`]), whose latents the dataset then has to have.
    pub flip: bool,
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
            flip: false,
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

/// A disk that is slow now and then, to see what prefetch is worth: one in `one_in` blocks, by number, comes `delay`
/// late.
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
    /// Mirror images are asked for, and were not encoded.
    #[error(
        "the dataset has no latents of mirrored images (no column {column}); encode it again with --flip, or train without train.flip"
    )]
    NotMirrored {
        /// The name that it would have.
        column: String,
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
pub fn batches(dataset: &Arc<Dataset>, config: &LoadConfig) -> Result<Flow<Slab<HostBatch>>, LoadError> {
    let loader = Loader::new(dataset, config)?;
    loader.flow()
}

/// Tickets at a time: one in the hands of the source, `workers` in the link behind it, `2 * workers` that are worked on
/// or in the link behind that, and one in the hands of who takes them.
fn in_flight(workers: usize) -> usize {
    3 * workers + 2
}

/// A checked configuration and its order.
struct Loader {
    dataset: Arc<Dataset>,
    config: LoadConfig,
    plan: Arc<Plan>,
    columns: LatentColumns,
    table: Arc<BlockTable>,
    /// Slices in memory where the pool slides.
    slices: usize,
}

impl Loader {
    fn new(dataset: &Arc<Dataset>, config: &LoadConfig) -> Result<Self, LoadError> {
        let LoadConfig { seed, batch, pool_blocks, workers, prefetch, .. } = *config;
        for (setting, got, least) in [("workers", workers, 1), ("prefetch", prefetch, LEAST_PREFETCH)] {
            if got < least {
                return Err(LoadError::TooSmall { setting, got, least });
            }
        }
        let schema = &dataset.manifest.schema;
        let columns = LatentColumns::of(schema)?;
        let columns = if config.flip { columns.and_mirrored(schema)? } else { columns };
        let table = Arc::new(BlockTable::of(dataset));
        let plan = Arc::new(Plan::new(PlanConfig { blocks: table.sizes(), seed, batch, pool_blocks })?);
        config.ranks.check(batch)?;
        let slices = config.ranks.ranks.len() * window::slices_of_rank(&plan, prefetch);
        Ok(Self { dataset: Arc::clone(dataset), config: config.clone(), plan, columns, table, slices })
    }

    /// Batches in memory at most.
    fn batch_buffers(&self) -> usize {
        if !self.plan.holds_everything() {
            return self.slices;
        }
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

    /// Blocks in a ticket where the pool slides.
    fn reads(&self) -> usize {
        let LoadConfig { prefetch, workers, .. } = self.config;
        window::reads_of_ticket(&self.plan, self.config.ranks.ranks.len(), prefetch, workers)
    }

    fn batch_slabs(&self) -> Result<Slabs<HostBatch>, LoadError> {
        let (shape, has_logvar) = (self.slice_shape(), self.columns.spread.is_some());
        let room = || HostBatch::with_room(shape, has_logvar, self.config.pinned);
        let mut made = (0..self.batch_buffers()).map(|_| room()).collect::<Result<Vec<_>, _>>()?.into_iter();
        Ok(Slabs::new(self.batch_buffers(), || made.next().expect("as many were made as are asked for")))
    }

    fn flow(self) -> Result<Flow<Slab<HostBatch>>, LoadError> {
        if self.plan.holds_everything() { self.whole() } else { self.sliding() }
    }

    /// Blocks are read straight into the batches that their rows belong to.
    fn sliding(self) -> Result<Flow<Slab<HostBatch>>, LoadError> {
        let (free, reads) = (self.batch_slabs()?, self.reads());
        let lists: Slabs<ScatterLists> = Slabs::new(in_flight(self.config.workers), ScatterLists::default);
        let Self { dataset, config, plan, columns, table, slices } = self;
        let LoadConfig { seed, cursor, batches, workers, prefetch, ranks, on_bad_block, slow, .. } = config;
        let steps = Steps::new(&plan, cursor, batches, &ranks);
        let deliver = DeliverBatches::new(columns.shape.iter().product());
        let tickets = WindowTickets::new(steps, &plan, cursor, &ranks, prefetch, slices, free, lists, reads);
        let scatter = move |_| {
            let (dataset, columns) = (Arc::clone(&dataset), columns.clone());
            let inflate = Inflate::new(Arc::clone(&dataset), Arc::clone(&table), columns.clone(), on_bad_block, slow);
            Ok(Scatter::new(inflate, Gather::new(dataset, columns, on_bad_block, seed), on_bad_block))
        };
        Ok(Flow::from(tickets) //     -> ScatterTicket   blocks to read, and where their rows go
            .depth(workers)
            .then(scatter) //         -> ScatterTicket   the rows are in their batches
            .workers(workers)
            .depth(workers)
            .regroup(deliver) //      -> HostBatch       f16 [B, C, h, w], in order
            .prefetch(prefetch))
    }

    /// All blocks stay in memory once they were read, and batches are gathered from them.
    fn whole(self) -> Result<Flow<Slab<HostBatch>>, LoadError> {
        let free = self.batch_slabs()?;
        let picks: Slabs<Vec<Pick>> = Slabs::new(in_flight(self.config.workers), || Vec::with_capacity(MOST_PICKS));
        let rows: Slabs<Rows> = Slabs::new(self.drafts(), || Vec::with_capacity(self.slice_shape()[0]));
        let Self { dataset, config, plan, columns, table, .. } = self;
        let LoadConfig { seed, cursor, batches, workers, prefetch, ranks, on_bad_block, slow, .. } = config;
        let steps = Steps::new(&plan, cursor, batches, &ranks);
        let assemble = AssembleBatches::new(ranks.slices(cursor, plan.batch_size()), plan.blocks().len(), free, rows);
        let (data, wanted) = (Arc::clone(&dataset), columns.clone());
        let inflate =
            move |_| Ok(Inflate::new(Arc::clone(&data), Arc::clone(&table), wanted.clone(), on_bad_block, slow));
        let gather = move |_| Ok(Gather::new(Arc::clone(&dataset), columns.clone(), on_bad_block, seed));
        Ok(Flow::from(BlockTickets::new(steps, picks)) // -> BlockTicket   a block to read, and a buffer for it
            .depth(workers)
            .then(inflate) //                                     -> BlockTicket   f16 [<=64, C, h, w], read and inflated
            .workers(workers)
            .depth(workers)
            .regroup(assemble) //                                 -> BatchDraft    which rows, in order
            .depth(workers)
            .then(gather) //                                      -> HostBatch     f16 [B, C, h, w], in order
            .workers(workers)
            .prefetch(prefetch)
            .fixed())
    }
}
