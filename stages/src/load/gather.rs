//! Copies rows of blocks into batches; by itself the stage that does the work where everything stays in memory.
//!
//! What was inflated lies there as byte planes, and is interleaved on its way into the batch; values of shards that lie in
//! memory uncompressed are copied from there. A batch is written past the caches: it is larger than they are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::f16;
use pipeline::{BoxError, Slab, Stage};
use shards::{Column, Dataset};

use super::inflate::LatentColumns;
use super::{LoadError, OnBadBlock};
use crate::data::{BatchDraft, BlockBuffer, BlockPlace, ColumnBuffer, ColumnForm, HostBatch};
use crate::native::rows::Row;

/// Fills batches; one worker's own.
#[derive(Debug)]
pub struct Gather {
    dataset: Arc<Dataset>,
    columns: LatentColumns,
    on_bad_block: OnBadBlock,
    /// Values of one sample.
    values: usize,
}

impl Gather {
    /// Copies `columns` of `dataset`.
    pub fn new(dataset: Arc<Dataset>, columns: LatentColumns, on_bad_block: OnBadBlock) -> Self {
        let values = columns.shape.iter().product();
        Self { dataset, columns, on_bad_block, values }
    }

    /// Row `row` of `block` becomes row `at` of `batch`.
    fn copy(&self, block: &BlockBuffer, row: usize, batch: &mut HostBatch, at: usize) -> Result<(), LoadError> {
        let HostBatch { mean, logvar, labels, positions, .. } = batch;
        let to = at * self.values..(at + 1) * self.values;
        let logvar = if logvar.is_empty() { &mut [] } else { &mut logvar[to.clone()] };
        let (label, position) = (&mut labels[at], &mut positions[at]);
        self.copy_row(block, row, &mut Row { mean: &mut mean[to], logvar, label, position })
    }

    /// Row `row` of `block` goes to `to`.
    pub(super) fn copy_row(&self, block: &BlockBuffer, row: usize, to: &mut Row<'_>) -> Result<(), LoadError> {
        self.copy_values(block.place, &block.mean, self.columns.mean, row, to.mean)?;
        if let Some(spread) = self.columns.spread {
            self.copy_values(block.place, &block.logvar, spread, row, to.logvar)?;
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

    /// Tells the processor that `row` of `block` will be copied soon.
    fn prefetch(&self, block: &BlockBuffer, row: usize) {
        let columns = [(Some(self.columns.mean), &block.mean), (self.columns.spread, &block.logvar)];
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
                self.prefetch(next, *row as usize);
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
