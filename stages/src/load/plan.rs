//! The order of samples: a pure function of (seed, epoch, position).
//!
//! # The contract
//!
//! A run that stops and goes on must see the samples that it would have seen, on another machine and by a later
//! version too. So this text is a specification, and the literal numbers in the tests pin it.
//!
//! *Generator.* `stream(purpose, epoch, window)` is splitmix64 whose state starts at
//! `xxh3_64(seed ‖ epoch ‖ window ‖ purpose)`, each of the four a little-endian u64. A draw below `n` is the high half of
//! the 128-bit product of an output and `n`; outputs whose low half falls below `2^64 mod n` are rejected (Lemire,
//! "Fast random integer generation in an interval", 2019), so every value is equally likely.
//! A permutation of `n` things is Fisher and Yates from the end: for i = n-1 down to 1, swap i with a draw below i+1.
//!
//! *Order of an epoch.*
//! 1. The blocks of the dataset, in dataset order, are permuted by `stream(1, epoch, 0)`.
//! 2. Each `pool_blocks` of the permuted blocks in a row are a window; the last one may be smaller.
//! 3. The samples of window w, block after block, are permuted by `stream(2, epoch, w)`.
//!
//! With `pool_blocks` no less than the number of blocks this is a uniform permutation of the whole dataset.
//!
//! *Batches.* An epoch has `floor(samples / batch)` batches; batch i of an epoch is positions `[i * batch, (i + 1) * batch)`
//! of its order. What remains at the end is dropped: fewer than `batch` samples, others in every epoch, since the order
//! is another. Batches are counted over all epochs: [`Cursor`] is this count, and epoch and position follow from it.
//! Workers, devices, buffers and where a run was resumed do not appear: the order cannot depend on them.
//!
//! [`Plan::epoch`] and [`Plan::batch`] say this directly. [`Plan::windows`] streams the same order from any cursor at
//! the cost of one window; the tests compare the two.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::splitmix::SplitMix64;

/// Blocks of a window unless asked otherwise: 65,536 samples of 64-sample blocks.
pub const DEFAULT_POOL_BLOCKS: usize = 1024;

/// Everything that the order depends on.
#[derive(Debug, Clone)]
pub struct PlanConfig {
    /// Samples in each block of the dataset, in dataset order. Blocks of any size may be anywhere.
    pub blocks: Vec<u32>,
    /// The seed of the run.
    pub seed: u64,
    /// Samples in a global batch, at least 1.
    pub batch: usize,
    /// Blocks of a window, at least 1.
    pub pool_blocks: usize,
}

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A batch of nothing.
    #[error("the batch size is 0; it must be at least 1")]
    EmptyBatch,
    /// A window of nothing.
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
    /// Block numbers are u32.
    #[error("the dataset has {blocks} blocks; at most {max} can be ordered", max = u32::MAX)]
    TooManyBlocks {
        /// Blocks of the dataset.
        blocks: usize,
    },
}

/// Where a run is: all the state that the order has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Cursor {
    /// The next global batch, counted from 0 at the start of training over all epochs.
    pub batch: u64,
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
        if u32::try_from(config.blocks.len()).is_err() {
            return Err(PlanError::TooManyBlocks { blocks: config.blocks.len() });
        }
        let mut first = Vec::with_capacity(config.blocks.len());
        let mut samples = 0;
        for &size in &config.blocks {
            first.push(samples);
            samples += u64::from(size);
        }
        if samples < config.batch as u64 {
            return Err(PlanError::LessThanOneBatch { samples, batch: config.batch });
        }
        Ok(Self { config, first, samples })
    }

    /// Samples of a batch.
    pub fn batch_size(&self) -> usize {
        self.config.batch
    }

    /// Batches of every epoch, at least 1.
    pub fn batches_per_epoch(&self) -> u64 {
        self.samples / self.config.batch as u64
    }

    /// Blocks of the largest window.
    pub fn window_blocks(&self) -> usize {
        self.config.pool_blocks.min(self.config.blocks.len())
    }

    /// Samples of the dataset, those that an epoch drops included.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Dataset position of the first sample of `block`.
    pub fn first_position(&self, block: u32) -> u64 {
        self.first[block as usize]
    }

    /// The whole order of an epoch; its last `samples mod batch` entries are not trained on.
    pub fn epoch(&self, epoch: u64) -> Vec<SampleRef> {
        let mut order = Vec::with_capacity(self.samples as usize);
        for (window, blocks) in self.block_order(epoch).chunks(self.config.pool_blocks).enumerate() {
            let from = order.len();
            for &block in blocks {
                let first = self.first[block as usize];
                let size = self.config.blocks[block as usize];
                order.extend((0..size).map(|index| SampleRef { block, index, position: first + u64::from(index) }));
            }
            self.stream(SAMPLES, epoch, window as u64).permute(&mut order[from..]);
        }
        order
    }

    /// The samples of global batch `batch`, in order. Costs an epoch: to stream, use [`Plan::windows`].
    pub fn batch(&self, batch: u64) -> Vec<SampleRef> {
        let size = self.config.batch;
        let from = (batch % self.batches_per_epoch()) as usize * size;
        self.epoch(batch / self.batches_per_epoch())[from..from + size].to_vec()
    }

    /// Streams the order from `cursor` on, for `batches` batches or without end.
    pub fn windows(self: &Arc<Self>, cursor: Cursor, batches: Option<u64>) -> Windows {
        let per_epoch = self.batches_per_epoch();
        let end = batches.map_or(u64::MAX, |batches| cursor.batch.saturating_add(batches));
        let epoch = cursor.batch / per_epoch;
        Windows {
            plan: Arc::clone(self),
            current: self.epoch_windows(epoch),
            position: cursor.batch % per_epoch * self.config.batch as u64,
            end_epoch: end / per_epoch,
            end_position: end % per_epoch * self.config.batch as u64,
        }
    }

    fn block_order(&self, epoch: u64) -> Vec<u32> {
        let mut blocks: Vec<u32> = (0..self.config.blocks.len() as u32).collect();
        self.stream(BLOCKS, epoch, 0).permute(&mut blocks);
        blocks
    }

    fn epoch_windows(&self, epoch: u64) -> EpochWindows {
        let blocks = self.block_order(epoch);
        let mut start = 0;
        let starts = blocks
            .chunks(self.config.pool_blocks)
            .map(|window| {
                let at = start;
                start += window.iter().map(|&block| u64::from(self.config.blocks[block as usize])).sum::<u64>();
                at
            })
            .collect();
        EpochWindows { epoch, blocks, starts }
    }

    fn stream(&self, purpose: u64, epoch: u64, window: u64) -> SplitMix64 {
        let mut key = [0; 32];
        for (bytes, value) in key.chunks_exact_mut(8).zip([self.config.seed, epoch, window, purpose]) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        SplitMix64::new(xxh3_64(&key))
    }
}

/// Part of a window of one epoch: the samples that are used, and the blocks that they need.
///
/// The part is the whole window except where a stream begins, where it ends, and at the dropped end of an epoch.
#[derive(Debug, PartialEq, Eq)]
pub struct Window {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The window of the epoch, from 0.
    pub index: u64,
    /// The samples in order.
    pub samples: Vec<Pick>,
    /// The blocks in order of first use. A block that no sample comes from is not here.
    pub blocks: Vec<BlockUse>,
}

/// A sample by its place in a [`Window`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Entry of [`Window::blocks`].
    pub slot: u32,
    /// Row of the block.
    pub index: u32,
}

/// A block that a [`Window`] needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockUse {
    /// Block of the dataset, counted over all shards.
    pub block: u32,
    /// Samples of the window that come from it, at least 1: the block can go after so many.
    pub uses: u32,
}

/// An endless or bounded stream of the windows of a plan, made by [`Plan::windows`].
#[derive(Debug)]
pub struct Windows {
    plan: Arc<Plan>,
    current: EpochWindows,
    /// Next position of the current epoch.
    position: u64,
    /// The stream ends before this position of this epoch.
    end_epoch: u64,
    end_position: u64,
}

/// The windows of one epoch.
#[derive(Debug)]
struct EpochWindows {
    epoch: u64,
    /// All blocks, permuted.
    blocks: Vec<u32>,
    /// Position of the first sample of each window.
    starts: Vec<u64>,
}

impl Iterator for Windows {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        let plan = Arc::clone(&self.plan);
        let trained = plan.batches_per_epoch() * plan.config.batch as u64;
        if self.position == trained {
            self.current = plan.epoch_windows(self.current.epoch + 1);
            self.position = 0;
        }
        let EpochWindows { epoch, ref blocks, ref starts } = self.current;
        let limit = if epoch == self.end_epoch { self.end_position } else { trained };
        if epoch > self.end_epoch || self.position >= limit {
            return None;
        }
        let index = starts.partition_point(|&start| start <= self.position) - 1;
        let start = starts[index];
        let end = starts.get(index + 1).map_or(limit, |&next| next.min(limit));
        let pool = plan.config.pool_blocks;
        let blocks = &blocks[index * pool..blocks.len().min((index + 1).saturating_mul(pool))];
        let samples = (self.position - start) as usize..(end - start) as usize;
        self.position = end;
        Some(plan.window(epoch, index as u64, blocks, samples))
    }
}

impl Plan {
    /// Positions `used` of the window `index` of `epoch`, whose permuted blocks are `blocks`.
    fn window(&self, epoch: u64, index: u64, blocks: &[u32], used: std::ops::Range<usize>) -> Window {
        // At first `slot` is the block's number within the window; below it becomes that of its first use.
        let mut samples: Vec<Pick> = (0..)
            .zip(blocks)
            .flat_map(|(slot, &block)| (0..self.config.blocks[block as usize]).map(move |index| Pick { slot, index }))
            .collect();
        self.stream(SAMPLES, epoch, index).permute(&mut samples);
        samples.truncate(used.end);
        samples.drain(..used.start);

        let mut slots: Vec<Option<u32>> = vec![None; blocks.len()];
        let mut by_first_use: Vec<BlockUse> = Vec::with_capacity(blocks.len());
        for pick in &mut samples {
            let number = pick.slot as usize;
            pick.slot = *slots[number].get_or_insert_with(|| {
                by_first_use.push(BlockUse { block: blocks[number], uses: 0 });
                by_first_use.len() as u32 - 1
            });
            by_first_use[pick.slot as usize].uses += 1;
        }
        Window { epoch, index, samples, blocks: by_first_use }
    }
}

/// Purpose of the permutation of blocks.
const BLOCKS: u64 = 1;
/// Purpose of the permutation of the samples of a window.
const SAMPLES: u64 = 2;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn plan(blocks: &[u32], seed: u64, batch: usize, pool_blocks: usize) -> Arc<Plan> {
        Arc::new(Plan::new(PlanConfig { blocks: blocks.to_vec(), seed, batch, pool_blocks }).unwrap())
    }

    /// The order of a stream of windows, as references into the dataset.
    fn streamed(plan: &Arc<Plan>, cursor: u64, batches: u64) -> Vec<SampleRef> {
        let mut order = Vec::new();
        for window in plan.windows(Cursor { batch: cursor }, Some(batches)) {
            order.extend(window.samples.iter().map(|pick| {
                let block = window.blocks[pick.slot as usize].block;
                SampleRef { block, index: pick.index, position: plan.first_position(block) + u64::from(pick.index) }
            }));
        }
        order
    }

    #[test]
    fn the_order_never_changes() {
        let plan = plan(&[4, 4, 3, 4, 1], 42, 5, 2);
        let positions = |epoch| plan.epoch(epoch).iter().map(|s| s.position).collect::<Vec<_>>();
        // Computed from the module doc by another program (Python, with the xxhash package).
        assert_eq!(positions(0), [2, 3, 1, 15, 0, 9, 10, 8, 11, 13, 14, 12, 7, 6, 5, 4]);
        assert_eq!(positions(1), [11, 12, 13, 9, 14, 8, 10, 15, 0, 2, 1, 3, 5, 6, 7, 4]);
    }

    #[test]
    fn every_permutation_is_equally_likely() {
        // 24 permutations of 4 things, 24,000 draws: chi-squared with 23 degrees of freedom is below 49.7 with
        // probability 0.999.
        let plan = plan(&[4], 7, 1, 1);
        let mut seen = std::collections::HashMap::new();
        for epoch in 0..24_000 {
            *seen.entry(plan.epoch(epoch).iter().map(|s| s.index).collect::<Vec<_>>()).or_insert(0u32) += 1;
        }
        assert_eq!(seen.len(), 24);
        let chi_squared: f64 = seen.values().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_squared < 49.7, "{chi_squared}");
    }

    #[test]
    fn two_epochs_differ_and_drop_other_samples() {
        let plan = plan(&[64; 10], 0, 100, 4);
        let (a, b) = (plan.epoch(0), plan.epoch(1));
        assert_ne!(a, b);
        assert_ne!(a[600..], b[600..]);
    }

    #[test]
    fn less_than_one_batch_is_an_error_that_says_so() {
        let error = Plan::new(PlanConfig { blocks: vec![3, 4], seed: 0, batch: 8, pool_blocks: 1 }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the dataset has 7 samples, less than one batch of 8; use a batch of at most 7 or more data"
        );
    }

    #[test]
    fn a_stream_asks_for_blocks_in_order_of_first_use_and_only_for_those_used() {
        let plan = plan(&[8; 6], 3, 4, 6);
        let window = plan.windows(Cursor { batch: 11 }, Some(1)).next().unwrap();
        assert_eq!(window.samples.len(), 4);
        assert!(window.blocks.len() <= 4);
        assert_eq!(window.samples[0].slot, 0);
        assert_eq!(window.blocks.iter().map(|b| b.uses).sum::<u32>(), 4);
    }

    #[test]
    fn a_cursor_far_away_is_reached_at_once() {
        let plan = plan(&[64; 300], 9, 32, 64);
        let far = u64::MAX - 10;
        assert_eq!(streamed(&plan, far, 1), plan.batch(far));
        assert_eq!(plan.windows(Cursor { batch: far }, None).next().unwrap().epoch, far / 600);
    }

    prop_compose! {
        fn plans()(blocks in prop::collection::vec(1u32..9, 1..12), seed in any::<u64>(), pool_blocks in 1usize..14)
            (batch in 1..=blocks.iter().sum::<u32>() as usize, blocks in Just(blocks), seed in Just(seed), pool_blocks in Just(pool_blocks))
            -> Arc<Plan> { plan(&blocks, seed, batch, pool_blocks) }
    }

    proptest! {
        #[test]
        fn an_epoch_holds_every_sample_once(plan in plans(), epoch in 0u64..4) {
            let mut positions: Vec<u64> = plan.epoch(epoch).iter().map(|s| s.position).collect();
            positions.sort_unstable();
            prop_assert_eq!(positions, (0..plan.samples()).collect::<Vec<_>>());
        }

        #[test]
        fn a_stream_from_any_cursor_is_the_batches_from_there(plan in plans(), cursor in 0u64..40, batches in 0u64..20) {
            let expected: Vec<_> = (cursor..cursor + batches).flat_map(|batch| plan.batch(batch)).collect();
            prop_assert_eq!(streamed(&plan, cursor, batches), expected);
        }

        #[test]
        fn windows_are_no_larger_than_the_pool_and_count_their_uses(plan in plans(), cursor in 0u64..40) {
            for window in plan.windows(Cursor { batch: cursor }, Some(9)) {
                prop_assert!(window.blocks.len() <= plan.window_blocks());
                let distinct: HashSet<_> = window.blocks.iter().map(|b| b.block).collect();
                prop_assert_eq!(distinct.len(), window.blocks.len());
                let mut next = 0;
                let mut uses = vec![0; window.blocks.len()];
                for pick in &window.samples {
                    prop_assert!(pick.slot <= next, "blocks come in order of first use");
                    next = next.max(pick.slot + 1);
                    uses[pick.slot as usize] += 1;
                }
                prop_assert_eq!(uses, window.blocks.iter().map(|b| b.uses).collect::<Vec<_>>());
            }
        }
    }
}
