//! Copies rows of blocks into batches; by itself the stage that does the work where everything stays in memory.
//!
//! What was inflated lies there as byte planes, and is interleaved on its way into the batch; values of shards that lie
//! in memory uncompressed are copied from there. A batch is written past the caches: it is larger than they are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::f16;
use pipeline::{BoxError, Slab, Stage};
use shards::{Column, Dataset};

use super::inflate::LatentColumns;
use super::plan::is_mirrored;
use super::{LoadError, OnBadBlock};
use crate::data::{BatchDraft, BlockBuffer, BlockPlace, ColumnBuffer, ColumnForm, HostBatch, LatentBuffers};
use crate::native::rows::Row;

/// Fills batches; one worker's own.
#[derive(Debug)]
pub struct Gather {
    dataset: Arc<Dataset>,
    columns: LatentColumns,
    on_bad_block: OnBadBlock,
    /// Of the coins that choose mirror images.
    seed: u64,
    /// Values of one sample.
    values: usize,
}

impl Gather {
    /// Copies `columns` of `dataset`; the mirrored ones, if they are among them, as `seed` says.
    pub fn new(dataset: Arc<Dataset>, columns: LatentColumns, on_bad_block: OnBadBlock, seed: u64) -> Self {
        let values = columns.shape.iter().product();
        Self { dataset, columns, on_bad_block, seed, values }
    }

    /// What of `block` becomes row `row` of global batch `batch`: columns, and where they were read to.
    fn side<'a>(&self, block: &'a BlockBuffer, batch: u64, row: usize) -> (usize, Option<usize>, &'a LatentBuffers) {
        match self.columns.mirrored {
            Some((mean, spread)) if is_mirrored(self.seed, batch, row as u64) => (mean, spread, &block.mirrored),
            _ => (self.columns.mean, self.columns.spread, &block.latents),
        }
    }

    /// Row `row` of `block` becomes row `at` of `batch`.
    fn copy(&self, block: &BlockBuffer, row: usize, batch: &mut HostBatch, at: usize) -> Result<(), LoadError> {
        let HostBatch { batch, rows, mean, logvar, labels, positions, .. } = batch;
        let to = at * self.values..(at + 1) * self.values;
        let logvar = if logvar.is_empty() { &mut [] } else { &mut logvar[to.clone()] };
        let (label, position) = (&mut labels[at], &mut positions[at]);
        let place = (*batch, rows.start + at);
        self.copy_row(block, row, place, &mut Row { mean: &mut mean[to], logvar, label, position })
    }

    /// Row `row` of `block` goes to `to`, which is at `place`: a global batch and a row of it.
    pub(super) fn copy_row(
        &self,
        block: &BlockBuffer,
        row: usize,
        place: (u64, usize),
        to: &mut Row<'_>,
    ) -> Result<(), LoadError> {
        let (mean, spread, from) = self.side(block, place.0, place.1);
        self.copy_values(block.place, &from.mean, mean, row, to.mean)?;
        if let Some(spread) = spread {
            self.copy_values(block.place, &from.logvar, spread, row, to.logvar)?;
        }
        let labels = self.dataset.shards[block.place.shard].labels();
        *to.label = labels[block.place.row + row].into();
        *to.position = block.place.position + row as u64;
        Ok(())
    }

    fn copy_values(
        &self,
        place: BlockPlace,
        values: &ColumnBuffer,
        number: usize,
        row: usize,
        out: &mut [f16],
    ) -> Result<(), LoadError> {
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        match self.stored(place, values, number) {
            Some((column, bytes)) => {
                column.copy_sample(bytes, row, out).expect("the row is in the block and fits the batch");
            }
            None => out.copy_from_slice(&values.bytes[row * out.len()..(row + 1) * out.len()]),
        }
        if values.form == ColumnForm::InPlace {
            // Zeros may have been read in place of what the file no longer has.
            let reader = &self.dataset.shards[place.shard];
            reader.intact(place.block, number).map_err(|cause| LoadError::block(place, cause))?;
        }
        Ok(())
    }

    /// Tells the processor that `row` of `block` will be copied to `place` soon.
    fn prefetch(&self, block: &BlockBuffer, row: usize, place: (u64, usize)) {
        let (mean, spread, from) = self.side(block, place.0, place.1);
        let columns = [(Some(mean), &from.mean), (spread, &from.logvar)];
        for (number, values) in columns {
            if let Some((column, bytes)) = number.and_then(|number| self.stored(block.place, values, number)) {
                column.prefetch_sample(bytes, row);
            }
        }
    }

    /// The bytes of a block as its codec has them; none if they were converted to f16 on the way.
    fn stored<'a>(
        &'a self,
        place: BlockPlace,
        values: &'a ColumnBuffer,
        number: usize,
    ) -> Option<(&'a Column, &'a [u8])> {
        let column = &self.dataset.manifest.schema.columns[number];
        let len = place.samples as usize * self.values * size_of::<f16>();
        match values.form {
            ColumnForm::Converted => None,
            ColumnForm::Stored => Some((column, &values.bytes[..len])),
            ColumnForm::InPlace => {
                let bytes = self.dataset.shards[place.shard].in_place(place.block, number);
                Some((column, bytes.expect("it was in memory when it was checked")))
            }
        }
    }
}

impl Stage for Gather {
    type In = BatchDraft;
    type Out = Slab<HostBatch>;

    fn process(&mut self, draft: BatchDraft) -> Result<Slab<HostBatch>, BoxError> {
        let BatchDraft { mut batch, mut rows } = draft;
        for (at, (block, row)) in rows.iter().enumerate() {
            if let Some((next, row)) = rows.get(at + 1).filter(|(next, _)| !next.is_bad) {
                self.prefetch(next, *row as usize, (batch.batch, batch.rows.start + at + 1));
            }
            let done = match block.is_bad {
                true => Err(None),
                false => self.copy(block, *row as usize, &mut batch, at).map_err(Some),
            };
            match (done, self.on_bad_block) {
                (Ok(()), _) => {}
                (Err(Some(error)), OnBadBlock::Fail) => return Err(error.into()),
                (Err(error), _) => {
                    batch.filled.push(at as u32);
                    // A block that went away after it had been read has many rows, and is told of once.
                    batch.faults.extend(error.filter(|_| !block.told.swap(true, Ordering::Relaxed)));
                }
            }
        }
        rows.clear();
        fill(&mut batch, self.values)?;
        Ok(batch)
    }
}

/// Puts copies of readable rows where samples could not be read.
pub(super) fn fill(batch: &mut HostBatch, values: usize) -> Result<(), LoadError> {
    let HostBatch { mean, logvar, labels, positions, filled, .. } = batch;
    if filled.is_empty() {
        return Ok(());
    }
    // `filled` is in ascending order.
    let first = (0..positions.len()).find(|&row| filled.binary_search(&(row as u32)).is_err());
    let Some(first) = first else {
        return Err(LoadError::NothingReadable { batch: batch.batch, rows: batch.rows.clone() });
    };
    for &row in &*filled {
        let row = row as usize;
        // The row before was filled already, if it had to be.
        let from = if row == 0 || row < first { first } else { row - 1 };
        mean.copy_within(from * values..(from + 1) * values, row * values);
        if !logvar.is_empty() {
            logvar.copy_within(from * values..(from + 1) * values, row * values);
        }
        labels[row] = labels[from];
        positions[row] = positions[from];
    }
    Ok(())
}
