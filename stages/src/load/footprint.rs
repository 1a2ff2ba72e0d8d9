//! What the load side holds in memory at most, from its configuration alone. `memory.rs` holds it to that.

use std::sync::Arc;

use half::f16;
use shards::Dataset;

use super::order::Steps;
use super::read::MOST_PICKS;
use super::{LoadConfig, LoadError, Loader, in_flight};
use crate::data::{BlockBuffer, BlockPlace, Pick, Target};
use crate::native::memory::footprint;
use crate::native::rows::Filling;

/// Memory that [`super::batches`] holds at most, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadMemory {
    /// The shuffle pool: batches that are being filled, or inflated blocks if all of them stay in memory.
    pub pool_bytes: u64,
    /// Batches that wait for their consumers, and one with each.
    pub batch_bytes: u64,
    /// The order, the lists of rows on their way, and the handles of slices.
    pub order_bytes: u64,
    /// What workers read into and convert in. Contexts of zstd, 0.1 MB a worker, are not counted.
    pub worker_bytes: u64,
    /// The index of the dataset: labels, keys and places of all samples and blocks.
    pub index_bytes: u64,
    /// The shards as they are stored, where they are held in memory (`--io ram`).
    pub stored_bytes: u64,
}

impl LoadMemory {
    /// The figures for `dataset` and `config`; the same errors as [`super::batches`].
    pub fn of(dataset: &Arc<Dataset>, config: &LoadConfig) -> Result<Self, LoadError> {
        Ok(Loader::new(dataset, config)?.memory())
    }

    /// All of it.
    pub fn total(self) -> u64 {
        self.pool_bytes + self.batch_bytes + self.order_bytes + self.worker_bytes + self.index_bytes + self.stored_bytes
    }
}

impl Loader {
    pub(super) fn memory(&self) -> LoadMemory {
        let schema = &self.dataset.manifest.schema;
        let values = self.columns.shape.iter().product::<usize>() as u64;
        let largest = u64::from(self.plan.largest_block());
        let loaded: Vec<usize> = self.columns.loaded().collect();
        let is_copied = |column: usize| {
            let in_place = |shard: &shards::ShardReader| shard.is_empty() || shard.in_place(0, column).is_some();
            !self.dataset.shards.iter().all(in_place) || self.converts(column)
        };
        let copied = loaded.iter().filter(|&&column| is_copied(column)).count() as u64;
        let largest_bytes = largest * values * 2 * copied;
        let ranks = self.config.ranks.ranks.len() as u64;
        let slice = self.slice_shape()[0] as u64;
        let array = |values: u64, bytes: u64| match self.config.pinned {
            // libtorch rounds pinned memory up to powers of two.
            true => (values * bytes).next_power_of_two(),
            false if bytes == 2 => footprint::<f16>(values as usize),
            false => footprint::<i64>(values as usize),
        };
        let moments = (1 + u64::from(self.columns.spread.is_some())) * array(slice * values, 2);
        let batch = moments + array(slice, 8) + slice * (size_of::<u64>() + size_of::<u32>()) as u64;
        let in_flight = in_flight(self.config.workers) as u64;
        // Where everything stays, blocks have memory; where the pool slides, it is the slices that are being filled.
        let (pool_bytes, waiting, lists, worker_block) = if self.plan.holds_everything() {
            let blocks = self.plan.pool_blocks() as u64;
            let handles = blocks * (size_of::<BlockBuffer>() + 3 * size_of::<usize>()) as u64;
            let picks = in_flight * (MOST_PICKS * size_of::<Pick>()) as u64;
            let rows = self.drafts() as u64 * slice * size_of::<(Arc<()>, u32)>() as u64;
            (blocks * largest_bytes + handles, self.batch_buffers() as u64, picks + rows, 0)
        } else {
            let waiting = ranks * (self.config.prefetch as u64 + 1);
            let filling = self.batch_buffers() as u64 - waiting;
            let targets = self.plan.pool_blocks() as u64 + in_flight * self.reads() as u64;
            // A handle of each slice, with two maps of its rows.
            let handle = size_of::<Filling>() as u64 + 2 * size_of::<usize>() as u64 + 2 * slice.div_ceil(64) * 8;
            let lists = targets * largest * size_of::<Target>() as u64 + self.batch_buffers() as u64 * handle;
            (filling * batch, waiting, lists, largest_bytes)
        };
        // A worker holds one column of one block at a time: as stored, where that is not in memory; if it is converted,
        // as byte planes, as values and as f32.
        let stored = |column: usize| {
            let shards = self.dataset.shards.iter();
            let frames = shards.flat_map(|shard| (0..shard.blocks()).filter_map(move |b| shard.stored_len(b, column)));
            frames.max().unwrap_or(0)
        };
        let scratch = |&column: &usize| {
            let shards::Column { dtype, codec, .. } = schema.columns[column];
            let copies = 1 + usize::from(codec.planes(dtype) > 1);
            let converted = if self.converts(column) { (4 + copies * dtype.width()) as u64 } else { 0 };
            stored(column) + converted * largest * values
        };
        let shards = self.dataset.shards.iter();
        let index = shards.map(|shard| {
            let keys: usize = (0..shard.len()).filter_map(|sample| shard.key(sample)).map(str::len).sum();
            let per_sample = 3 * size_of::<u32>() + size_of::<u8>();
            let per_block = size_of::<BlockPlace>() + 3 * size_of::<u64>() + 24 * shard.columns().len();
            (keys + shard.len() * per_sample + shard.blocks() * per_block) as u64
        });
        LoadMemory {
            pool_bytes,
            batch_bytes: waiting * batch,
            order_bytes: Steps::bytes(&self.plan) + lists,
            worker_bytes: self.config.workers as u64 * (worker_block + loaded.iter().map(scratch).max().unwrap_or(0)),
            index_bytes: index.sum(),
            stored_bytes: self.dataset.shards.iter().map(shards::ShardReader::held_bytes).sum(),
        }
    }

    /// Whether the values of `column` are computed on the way into the pool.
    fn converts(&self, column: usize) -> bool {
        let declared = &self.dataset.manifest.schema.columns[column];
        declared.dtype != shards::DType::F16 || declared.semantics == shards::Semantics::PosteriorStd
    }
}
