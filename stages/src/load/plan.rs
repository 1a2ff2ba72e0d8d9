//! The order of samples: a pure function of (seed, epoch, position).
//!
//! # The contract
//!
//! A run that stops and goes on must see the samples that it would have seen, on another machine and by a later
//! version too. So this text is a specification, and the literal numbers in the tests pin it.
//!
//! *Generator.* `stream(purpose, epoch, item)` is splitmix64 whose state starts at
//! `xxh3_64(seed ‖ epoch ‖ item ‖ purpose)`, each of the four a little-endian u64. A draw below `n` is the high half of
//! the 128-bit product of an output and `n`; outputs whose low half falls below `2^64 mod n` are rejected (Lemire,
//! "Fast random integer generation in an interval", 2019), so every value is equally likely.
//! A permutation of `n` things is Fisher and Yates from the front: for i = 0, 1, .. n-1 swap i with i plus a draw below n-i.
//!
//! *Order of an epoch.* With a pool of `P` blocks, and fewer in the pool than in the dataset:
//! 1. The blocks of the dataset, in dataset order, are permuted by `stream(1, epoch, 0)`.
//! 2. Row i of the j-th block of these, both counted from 0, has the key `j * 2^32 + d`, where d is a draw below
//!    `min(P, 64 + j) * 2^32`; the rows of a block draw one after the other from `stream(2, epoch, j)`.
//! 3. The samples are ordered by (key, j, i).
//!
//! Two samples can change places if their blocks are less than P apart in 1. (less than `64 + j`, where that is fewer),
//! and at no time are more than P blocks begun and not finished: the pool slides over the blocks, and there are no
//! windows with edges. It begins with 64 blocks and grows by one with each block that follows, and shrinks over the
//! last samples of an epoch, while that of the next grows: the first batch does not wait for the whole pool, and after
//! it blocks are begun at an even pace, about twice the mean until the pool has its size.
//!
//! With a pool of all blocks or more, the samples of the dataset in its order are permuted by `stream(3, epoch, 0)`: a
//! uniform permutation.
//!
//! *Mirror images.* Where they are asked for, row k of global batch b is one if output k, from 0, of `stream(4, 0, b)`
//! is at least 2^63: a coin for every visit of an image. A sample that fills in for an unreadable one keeps its side.
//!
//! *Batches.* An epoch has `floor(samples / batch)` batches; batch i of an epoch is positions `[i * batch, (i + 1) * batch)`
//! of its order. What remains at the end is dropped: fewer than `batch` samples, others in every epoch, since the order
//! is another. Batches are counted over all epochs: [`Cursor`] is this count, and epoch and position follow from it.
//!
//! *Ranks.* Rank r of a world of w takes rows `[r * batch / w, (r + 1) * batch / w)` of every batch ([`Ranks`]); w divides the
//! batch. So the slices of all ranks are the batch, and a run may go on with another w.
//!
//! Workers, devices, buffers, ways of reading and where a run was resumed do not appear: the order cannot depend on
//! them.
//!
//! [`Plan::epoch`] and [`Plan::batch`] say this directly. [`super::order`] streams the same from any cursor; the tests
//! compare the two.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use crate::splitmix::SplitMix64;

/// Blocks of the pool unless asked otherwise: 65,536 samples of 64-sample blocks.
pub const DEFAULT_POOL_BLOCKS: usize = 1024;

/// Blocks that the pool of an epoch begins with.
const FIRST_POOL: u64 = 64;

/// Most blocks of a dataset: keys are 64 bits, of which the block has the upper half with room for the pool.
const MOST_BLOCKS: usize = 1 << 31;

/// Most samples of a pool of everything, if all blocks had the size of the largest.
const MOST_IN_ONE_POOL: u64 = u32::MAX as u64;

/// Everything that the order depends on.
#[derive(Debug, Clone)]
pub struct PlanConfig {
    /// Samples in each block of the dataset, in dataset order. Blocks of any size may be anywhere.
    pub blocks: Vec<u32>,
    /// The seed of the run.
    pub seed: u64,
    /// Samples in a global batch, at least 1.
    pub batch: usize,
    /// Blocks of the pool, at least 1.
    pub pool_blocks: usize,
}

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A batch of nothing.
    #[error("the batch size is 0; it must be at least 1")]
    EmptyBatch,
    /// A pool of nothing.
    #[error("the shuffle pool has 0 blocks; it must have at least 1")]
    EmptyPool,
    /// Not one batch.
    #[error(
        "the dataset has {samples} samples, less than one batch of {batch}; use a batch of at most {samples} or more data"
    )]
    LessThanOneBatch {
        /// Samples of the dataset.
        samples: u64,
        /// Samples of a batch.
        batch: usize,
    },
    /// More than can be numbered.
    #[error("the dataset has {got} {what}; at most {most} can be ordered")]
    TooMany {
        /// Blocks, or samples of a pool of everything.
        what: &'static str,
        /// As found.
        got: u64,
        /// The limit.
        most: u64,
    },
    /// Slices of different sizes.
    #[error("a batch of {batch} cannot be cut into {world} equal slices; use a batch that {world} divides")]
    Uneven {
        /// Samples of a global batch.
        batch: usize,
        /// Number of ranks.
        world: usize,
    },
    /// A rank that there is not.
    #[error("ranks {}..{} were asked for, of a world of {world}", ranks.start, ranks.end)]
    NoSuchRank {
        /// As asked.
        ranks: Range<usize>,
        /// Number of ranks.
        world: usize,
    },
}

/// Where a run is: all the state that the order has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Cursor {
    /// The next global batch, counted from 0 at the start of training over all epochs.
    pub batch: u64,
}

/// Which slices of every global batch one process takes: those of some ranks in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// The ranks, from 0.
    pub ranks: Range<usize>,
    /// How many there are in all processes.
    pub world: usize,
}

impl Ranks {
    /// All of a world that is this process: one rank for each of its `devices`.
    pub fn all(devices: usize) -> Self {
        Self { ranks: 0..devices, world: devices }
    }

    /// Rows of one rank's slice of a batch of `batch`.
    pub fn slice_rows(&self, batch: usize) -> usize {
        batch / self.world
    }

    /// Rows of a batch of `batch` that `rank` takes.
    pub fn rows_of(&self, rank: usize, batch: usize) -> Range<usize> {
        let rows = self.slice_rows(batch);
        rank * rows..(rank + 1) * rows
    }

    /// Rows of a batch of `batch` that this process takes.
    pub fn rows(&self, batch: usize) -> Range<usize> {
        let rows = self.slice_rows(batch);
        self.ranks.start * rows..self.ranks.end * rows
    }

    /// The slices of this process of batches of `size`, from `cursor` on.
    pub fn slices(&self, cursor: Cursor, size: usize) -> Slices {
        Slices { ranks: self.clone(), size, batch: cursor.batch, rank: self.ranks.start }
    }

    /// Refuses what does not tile a batch.
    pub fn check(&self, batch: usize) -> Result<(), PlanError> {
        let Self { ranks, world } = self;
        if ranks.is_empty() || ranks.end > *world {
            return Err(PlanError::NoSuchRank { ranks: ranks.clone(), world: *world });
        }
        match batch % world {
            0 => Ok(()),
            _ => Err(PlanError::Uneven { batch, world: *world }),
        }
    }
}

/// Slices without end, rank after rank, batch after batch: number of the batch, and the slice's rows of it.
#[derive(Debug, Clone)]
pub struct Slices {
    ranks: Ranks,
    /// Samples of a global batch.
    size: usize,
    batch: u64,
    rank: usize,
}

impl Iterator for Slices {
    type Item = (u64, Range<usize>);

    fn next(&mut self) -> Option<(u64, Range<usize>)> {
        let slice = (self.batch, self.ranks.rows_of(self.rank, self.size));
        self.rank += 1;
        if self.rank == self.ranks.ranks.end {
            self.rank = self.ranks.ranks.start;
            self.batch += 1;
        }
        Some(slice)
    }
}

/// One sample of the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleRef {
    /// Block of the dataset, counted over all shards.
    pub block: u32,
    /// Row of the block.
    pub index: u32,
    /// Position in the dataset: samples of all blocks before this one, plus `index`.
    pub position: u64,
}

/// The order of samples for one dataset, seed, batch size and pool (module doc).
#[derive(Debug)]
pub struct Plan {
    config: PlanConfig,
    /// Dataset position of the first sample of each block.
    first: Vec<u64>,
    samples: u64,
}

impl Plan {
    /// Refuses a dataset smaller than one batch, and sizes of 0.
    pub fn new(config: PlanConfig) -> Result<Self, PlanError> {
        if config.batch == 0 {
            return Err(PlanError::EmptyBatch);
        }
        if config.pool_blocks == 0 {
            return Err(PlanError::EmptyPool);
        }
        let mut first = Vec::with_capacity(config.blocks.len());
        let mut samples = 0;
        for &size in &config.blocks {
            first.push(samples);
            samples += u64::from(size);
        }
        let plan = Self { config, first, samples };
        let too_many = |what, got, most| Err(PlanError::TooMany { what, got, most });
        match (plan.config.blocks.len(), plan.holds_everything()) {
            (blocks, _) if blocks > MOST_BLOCKS => too_many("blocks", blocks as u64, MOST_BLOCKS as u64),
            (blocks, true) if blocks as u64 * u64::from(plan.largest_block()) > MOST_IN_ONE_POOL => {
                let got = blocks as u64 * u64::from(plan.largest_block());
                too_many("rows in a pool of everything (use a smaller pool)", got, MOST_IN_ONE_POOL)
            }
            _ if samples < plan.config.batch as u64 => {
                Err(PlanError::LessThanOneBatch { samples, batch: plan.config.batch })
            }
            _ => Ok(plan),
        }
    }

    /// Samples of a batch.
    pub fn batch_size(&self) -> usize {
        self.config.batch
    }

    /// Batches of every epoch, at least 1.
    pub fn batches_per_epoch(&self) -> u64 {
        self.samples / self.config.batch as u64
    }

    /// Samples of an epoch that are trained on: all but the remainder of the last batch.
    pub fn trained(&self) -> u64 {
        self.batches_per_epoch() * self.config.batch as u64
    }

    /// Blocks that are held at a time, at most.
    pub fn pool_blocks(&self) -> usize {
        self.config.pool_blocks.min(self.config.blocks.len())
    }

    /// Whether the pool is the whole dataset: then every epoch is a uniform permutation, and blocks stay once read.
    pub fn holds_everything(&self) -> bool {
        self.config.pool_blocks >= self.config.blocks.len()
    }

    /// Samples of the dataset, those that an epoch drops included.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Samples in each block.
    pub fn blocks(&self) -> &[u32] {
        &self.config.blocks
    }

    /// Samples of the largest block.
    pub fn largest_block(&self) -> u32 {
        self.config.blocks.iter().copied().max().unwrap_or(0)
    }

    /// Dataset position of the first sample of `block`.
    pub fn first_position(&self, block: u32) -> u64 {
        self.first[block as usize]
    }

    /// Row `index` of `block`.
    fn sample(&self, block: u32, index: u32) -> SampleRef {
        SampleRef { block, index, position: self.first_position(block) + u64::from(index) }
    }

    /// The whole order of an epoch; its last `samples mod batch` entries are not trained on.
    pub fn epoch(&self, epoch: u64) -> Vec<SampleRef> {
        if self.holds_everything() {
            let rows = (0..).zip(&self.config.blocks);
            let mut order: Vec<_> =
                rows.flat_map(|(block, &rows)| (0..rows).map(move |index| self.sample(block, index))).collect();
            self.sample_stream(epoch).permute(&mut order);
            return order;
        }
        let mut blocks: Vec<u32> = (0..self.config.blocks.len() as u32).collect();
        self.block_stream(epoch).permute(&mut blocks);
        let mut keyed = Vec::with_capacity(self.samples as usize);
        for (j, block) in (0..).zip(blocks) {
            let mut keys = self.keys(epoch, j);
            let row = |index| (keys.next_key(), j, self.sample(block, index));
            keyed.extend((0..self.config.blocks[block as usize]).map(row));
        }
        keyed.sort_unstable_by_key(|&(key, j, sample)| (key, j, sample.index));
        keyed.into_iter().map(|(_, _, sample)| sample).collect()
    }

    /// The samples of global batch `batch`, in order. Costs an epoch: to stream, use [`super::order::Steps`].
    pub fn batch(&self, batch: u64) -> Vec<SampleRef> {
        let size = self.config.batch;
        let from = (batch % self.batches_per_epoch()) as usize * size;
        self.epoch(batch / self.batches_per_epoch())[from..from + size].to_vec()
    }

    /// The draws of the permutation of blocks.
    pub(super) fn block_stream(&self, epoch: u64) -> SplitMix64 {
        self.stream(1, epoch, 0)
    }

    /// The draws of the permutation of all samples.
    pub(super) fn sample_stream(&self, epoch: u64) -> SplitMix64 {
        self.stream(3, epoch, 0)
    }

    /// The keys of the rows of the j-th block of an epoch.
    pub(super) fn keys(&self, epoch: u64, j: u32) -> Keys {
        let draws = self.stream(2, epoch, u64::from(j));
        let range = (self.config.pool_blocks as u64).min(FIRST_POOL + u64::from(j));
        Keys { draws, first: u64::from(j) << 32, range: range << 32 }
    }

    fn stream(&self, purpose: u64, epoch: u64, item: u64) -> SplitMix64 {
        SplitMix64::new(state(self.config.seed, purpose, epoch, item))
    }
}

/// What a stream starts at.
fn state(seed: u64, purpose: u64, epoch: u64, item: u64) -> u64 {
    let mut key = [0; 32];
    for (bytes, value) in key.chunks_exact_mut(8).zip([seed, epoch, item, purpose]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    xxh3_64(&key)
}

/// Whether row `row` of global batch `batch` is a mirror image, where they are asked for (module doc).
pub fn is_mirrored(seed: u64, batch: u64, row: u64) -> bool {
    SplitMix64::output(state(seed, 4, 0, batch), row) >> 63 == 1
}

/// The keys of the rows of one block, one after the other.
#[derive(Debug)]
pub(super) struct Keys {
    draws: SplitMix64,
    first: u64,
    range: u64,
}

impl Keys {
    pub(super) fn next_key(&mut self) -> u64 {
        self.first + self.draws.below(self.range)
    }
}

#[cfg(test)]
mod tests;
