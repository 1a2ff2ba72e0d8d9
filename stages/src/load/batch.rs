//! The shuffle pool: holds the blocks of a window and gathers its samples into batches.

use std::collections::VecDeque;
use std::sync::Arc;

use pipeline::{BoxError, Emit, Regroup, Slab, Slabs};

use super::inflate::LatentColumns;
use super::plan::{Cursor, Window};
use crate::data::{BlockBuffer, HostBatch, MomentsBlock};

/// Copies the samples of the order into batches, each as soon as its block is there, and gives a block back with
/// its last sample. Blocks of later windows wait here until the window before them is done.
#[derive(Debug)]
pub struct AssembleBatches {
    /// The window that is gathered, then those after it.
    pools: VecDeque<Pool>,
    filling: Option<Slab<HostBatch>>,
    free: Slabs<HostBatch>,
    next_batch: u64,
    /// `[B, C, h, w]`.
    shape: [usize; 4],
    has_logvar: bool,
}

impl AssembleBatches {
    /// Batches of `size` samples of the columns, numbered from `cursor` on, in buffers from `free`.
    pub fn new(cursor: Cursor, size: usize, columns: &LatentColumns, free: Slabs<HostBatch>) -> Self {
        let [channels, height, width] = columns.shape;
        Self {
            pools: VecDeque::new(),
            filling: None,
            free,
            next_batch: cursor.batch,
            shape: [size, channels, height, width],
            has_logvar: columns.spread.is_some(),
        }
    }

    /// Makes an empty batch of whatever the buffer held.
    fn begin(&mut self, mut batch: Slab<HostBatch>) -> Slab<HostBatch> {
        batch.batch = self.next_batch;
        batch.shape = self.shape;
        batch.mean.clear();
        batch.logvar.clear();
        batch.labels.clear();
        batch.positions.clear();
        // Exact, since a vector that grows by doubling would hold up to twice the stated memory.
        let [size, sample @ ..] = self.shape;
        let values = size * sample.iter().product::<usize>();
        batch.mean.reserve_exact(values);
        batch.logvar.reserve_exact(if self.has_logvar { values } else { 0 });
        batch.labels.reserve_exact(size);
        batch.positions.reserve_exact(size);
        self.next_batch += 1;
        batch
    }
}

impl Regroup for AssembleBatches {
    type In = MomentsBlock;
    type Out = Slab<HostBatch>;

    fn push(&mut self, block: MomentsBlock, out: &mut Emit<'_, Slab<HostBatch>>) -> Result<(), BoxError> {
        // Blocks come window by window and by slot, so a block extends the last pool or opens the next.
        match self.pools.back_mut() {
            Some(pool) if Arc::ptr_eq(&pool.window, &block.window) => pool.add(block),
            _ => self.pools.push_back(Pool::open(block)),
        }
        let [size, sample_shape @ ..] = self.shape;
        let values: usize = sample_shape.iter().product();
        while let Some(mut pool) = self.pools.pop_front() {
            while pool.has_next() {
                let mut batch = match self.filling.take() {
                    Some(batch) => batch,
                    None => {
                        let free = self.free.take(out.stop())?;
                        self.begin(free)
                    }
                };
                pool.copy_next(&mut batch, values);
                if batch.labels.len() == size {
                    out.send(batch)?;
                } else {
                    self.filling = Some(batch);
                }
            }
            if !pool.is_done() {
                self.pools.push_front(pool);
                break;
            }
        }
        Ok(())
    }
}

/// The blocks of one window that have come so far.
#[derive(Debug)]
struct Pool {
    window: Arc<Window>,
    /// Next entry of the window's samples.
    next: usize,
    /// By slot. `None` once the last sample is copied.
    blocks: Vec<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    buffer: Slab<BlockBuffer>,
    /// Samples that are still to be copied.
    left: u32,
}

impl Pool {
    fn open(first: MomentsBlock) -> Self {
        let blocks = Vec::with_capacity(first.window.blocks.len());
        let mut pool = Self { window: Arc::clone(&first.window), next: 0, blocks };
        pool.add(first);
        pool
    }

    fn add(&mut self, block: MomentsBlock) {
        debug_assert_eq!(block.slot as usize, self.blocks.len(), "the engine keeps order");
        let left = self.window.blocks[self.blocks.len()].uses;
        self.blocks.push(Some(Held { buffer: block.buffer, left }));
    }

    fn is_done(&self) -> bool {
        self.next == self.window.samples.len()
    }

    /// Whether the next sample of the order is here.
    fn has_next(&self) -> bool {
        self.window.samples.get(self.next).is_some_and(|pick| (pick.slot as usize) < self.blocks.len())
    }

    /// Appends the next sample, of `values` values, to `batch`.
    fn copy_next(&mut self, batch: &mut HostBatch, values: usize) {
        let pick = self.window.samples[self.next];
        let entry = &mut self.blocks[pick.slot as usize];
        let held = entry.as_mut().expect("a block is held until its last use, which the window counts");
        let row = pick.index as usize;
        let range = row * values..(row + 1) * values;
        batch.mean.extend_from_slice(&held.buffer.mean[range.clone()]);
        if !held.buffer.logvar.is_empty() {
            batch.logvar.extend_from_slice(&held.buffer.logvar[range]);
        }
        batch.labels.push(held.buffer.labels[row]);
        batch.positions.push(held.buffer.first_position + u64::from(pick.index));
        self.next += 1;
        held.left -= 1;
        if held.left == 0 {
            *entry = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use pipeline::Stop;

    use super::super::plan::{BlockUse, Pick};
    use super::*;

    #[test]
    fn a_block_goes_back_with_its_last_sample_and_not_before() {
        let pick = |slot, index| Pick { slot, index };
        let window = Arc::new(Window {
            epoch: 0,
            index: 0,
            samples: vec![pick(0, 1), pick(1, 0), pick(0, 0), pick(1, 1)],
            blocks: vec![BlockUse { block: 7, uses: 2 }, BlockUse { block: 3, uses: 2 }],
        });
        let slabs = Slabs::new(2, BlockBuffer::default);
        let block = |slot: u32| {
            let mut buffer = slabs.take(&Stop::never()).unwrap();
            buffer.mean = vec![f16::ZERO, f16::ONE];
            buffer.labels = vec![4, 5];
            buffer.first_position = 100 * u64::from(slot);
            MomentsBlock { window: Arc::clone(&window), slot, buffer }
        };
        let mut batch = HostBatch::default();
        let mut pool = Pool::open(block(0));
        assert!(pool.has_next());
        pool.copy_next(&mut batch, 1);
        assert!(!pool.has_next(), "the second sample is in a block that has not come");
        pool.add(block(1));
        let mut available = Vec::new();
        while pool.has_next() {
            pool.copy_next(&mut batch, 1);
            available.push(slabs.available());
        }
        assert_eq!(available, [0, 1, 2]);
        assert!(pool.is_done());
        assert_eq!(batch.positions, [1, 100, 0, 101]);
        assert_eq!(batch.labels, [5, 4, 4, 5]);
        assert_eq!(batch.mean, [f16::ONE, f16::ZERO, f16::ZERO, f16::ONE]);
    }
}
