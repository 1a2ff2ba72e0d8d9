//! Makes drafts of batches: which row of which block goes where. The bytes are moved by [`super::gather`], on several
//! threads; what must be in order is done here, on one.

use std::sync::Arc;

use pipeline::{BoxError, Emit, Regroup, Slabs, Stop, Stopped};

use super::LoadError;
use super::plan::Slices;
use crate::data::{BatchDraft, BlockBuffer, BlockTicket, HostBatch, Pick};

/// A block and a row of it, for each row of a batch.
pub type Rows = Vec<(Arc<BlockBuffer>, u32)>;

/// Holds all blocks that were read, and lists their rows in the order of the plan, a rank's slice at a time.
#[derive(Debug)]
pub struct AssembleBatches {
    /// By block.
    held: Vec<Option<Arc<BlockBuffer>>>,
    draft: Option<BatchDraft>,
    free: Slabs<HostBatch>,
    lists: Slabs<Rows>,
    /// Those of the next drafts.
    slices: Slices,
    faults: Vec<LoadError>,
}

impl AssembleBatches {
    /// Drafts of `slices`, in memory from `free` and `lists`, of a dataset of `blocks` blocks.
    pub fn new(slices: Slices, blocks: usize, free: Slabs<HostBatch>, lists: Slabs<Rows>) -> Self {
        Self { held: vec![None; blocks], draft: None, free, lists, slices, faults: Vec::new() }
    }

    fn begin(&mut self, stop: &Stop) -> Result<BatchDraft, Stopped> {
        let mut rows = self.lists.take(stop)?;
        rows.clear();
        let mut batch = self.free.take(stop)?;
        let (number, slice) = self.slices.next().expect("slices have no end");
        batch.begin(number, slice);
        Ok(BatchDraft { batch, rows })
    }
}

impl Regroup for AssembleBatches {
    type In = BlockTicket;
    type Out = BatchDraft;

    fn push(&mut self, ticket: BlockTicket, out: &mut Emit<'_, BatchDraft>) -> Result<(), BoxError> {
        let BlockTicket { block, buffer, picks } = ticket;
        if let (Some(block), Some(mut buffer)) = (block, buffer) {
            self.faults.extend(buffer.fault.take());
            self.held[block as usize] = Some(Arc::new(buffer));
        }
        for &Pick { block, row } in picks.iter() {
            let mut draft = match self.draft.take() {
                Some(draft) => draft,
                None => self.begin(out.stop())?,
            };
            let block = self.held[block as usize].as_ref().expect("a block is read before a row of it is taken");
            draft.rows.push((Arc::clone(block), row));
            if draft.rows.len() == draft.batch.rows.len() {
                draft.batch.faults.append(&mut self.faults);
                out.send(draft)?;
            } else {
                self.draft = Some(draft);
            }
        }
        Ok(())
    }
}
