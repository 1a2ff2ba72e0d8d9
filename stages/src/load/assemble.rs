//! Makes drafts of batches: which row of which block goes where. The bytes are moved by [`super::gather`], on several
//! threads; what must be in order is done here, on one.

use std::collections::VecDeque;
use std::sync::Arc;

use pipeline::{BoxError, Emit, Regroup, Slab, Slabs, Stop, Stopped};

use super::LoadError;
use super::gather::Gather;
use super::plan::{Cursor, Ranks};
use crate::data::{BatchDraft, BlockBuffer, BlockTicket, HostBatch, Pick};

/// A block and a row of it, for each row of a batch.
pub type Rows = Vec<(Arc<Slab<BlockBuffer>>, u32)>;

/// Finished blocks that one draft keeps from the pool at most.
pub(super) const MOST_FINISHED: usize = 16;

/// Holds the blocks that are begun and not finished, and lists their rows in the order of the plan, a rank's slice at a
/// time. A block goes back to the pool when it is finished here and its last row is copied.
///
/// A draft that is not complete waits for blocks, so it must not keep many that are finished: where the pool is small
/// beside the batch, rows are copied here. With 1,024 blocks and batches of some hundred that does not happen.
#[derive(Debug)]
pub struct AssembleBatches {
    /// By slot.
    held: Vec<Option<Arc<Slab<BlockBuffer>>>>,
    /// Blocks that were read and are not begun, in the order in which they will be.
    read: VecDeque<Slab<BlockBuffer>>,
    draft: Option<BatchDraft>,
    /// Finished blocks with rows in the draft.
    finished: usize,
    gather: Gather,
    free: Slabs<HostBatch>,
    lists: Slabs<Rows>,
    ranks: Ranks,
    /// Samples of a global batch.
    size: usize,
    /// Of the next draft.
    batch: u64,
    rank: usize,
    faults: Vec<LoadError>,
}

impl AssembleBatches {
    /// Drafts of the slices of `ranks` of batches of `size`, numbered from `cursor` on, in memory from `free` and
    /// `lists`, with up to `slots` blocks at a time; `gather` copies like the stage behind.
    pub fn new(
        cursor: Cursor,
        size: usize,
        ranks: Ranks,
        slots: usize,
        gather: Gather,
        free: Slabs<HostBatch>,
        lists: Slabs<Rows>,
    ) -> Self {
        let (batch, rank) = (cursor.batch, ranks.ranks.start);
        let (held, read, draft, finished, faults) = (vec![None; slots], VecDeque::new(), None, 0, Vec::new());
        Self { held, read, draft, finished, gather, free, lists, ranks, size, batch, rank, faults }
    }

    fn begin(&mut self, stop: &Stop) -> Result<BatchDraft, Stopped> {
        let mut rows = self.lists.take(stop)?;
        rows.clear();
        let mut batch = self.free.take(stop)?;
        batch.batch = self.batch;
        batch.rows = self.ranks.rows_of(self.rank, self.size);
        batch.filled.clear();
        batch.faults.clear();
        self.rank += 1;
        if self.rank == self.ranks.ranks.end {
            self.rank = self.ranks.ranks.start;
            self.batch += 1;
        }
        Ok(BatchDraft { batch, copied: 0, rows })
    }

    fn take(&mut self, slot: u32, row: u32, out: &mut Emit<'_, BatchDraft>) -> Result<(), Stopped> {
        let mut draft = match self.draft.take() {
            Some(draft) => draft,
            None => self.begin(out.stop())?,
        };
        let block = self.held[slot as usize].as_ref().expect("a block is read before a row of it is taken");
        draft.rows.push((Arc::clone(block), row));
        if draft.copied + draft.rows.len() == draft.batch.rows.len() {
            self.finished = 0;
            draft.batch.faults.append(&mut self.faults);
            out.send(draft)
        } else {
            self.draft = Some(draft);
            Ok(())
        }
    }

    /// Lets go of the block in `slot`.
    fn finish(&mut self, slot: u32) -> Result<(), LoadError> {
        self.held[slot as usize] = None;
        if let Some(draft) = &mut self.draft {
            self.finished += 1;
            if self.finished == MOST_FINISHED {
                self.finished = 0;
                self.gather.settle(draft)?;
            }
        }
        Ok(())
    }
}

impl Regroup for AssembleBatches {
    type In = BlockTicket;
    type Out = BatchDraft;

    fn push(&mut self, ticket: BlockTicket, out: &mut Emit<'_, BatchDraft>) -> Result<(), BoxError> {
        if let Some(mut read) = ticket.read {
            self.faults.extend(read.buffer.fault.take());
            self.read.push_back(read.buffer);
        }
        for &pick in ticket.picks.iter() {
            match pick {
                Pick::Begin { slot } => {
                    let block = self.read.pop_front().expect("a block is read before a row of it is listed");
                    self.held[slot as usize] = Some(Arc::new(block));
                }
                Pick::Take { slot, row } => self.take(slot, row, out)?,
                Pick::Done { slot } => self.finish(slot)?,
            }
        }
        Ok(())
    }
}
