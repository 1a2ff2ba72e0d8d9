//! The source of the load side: which block to read next, and which rows to take meanwhile. Reads nothing itself.

use std::collections::VecDeque;

use pipeline::{BoxError, Slab, Slabs, Source, Stop};

use super::order::{Step, Steps};
use super::plan::Plan;
use crate::data::{BlockBuffer, BlockRead, BlockTicket, Pick};

/// Entries of a ticket's list at most: the lists are a bounded part of the memory.
pub(super) const MOST_PICKS: usize = 256;

/// Looks ahead in the order, and makes a ticket for the next block as soon as there is a buffer for it; each ticket takes
/// some of the rows along that wait for no block, and where no buffer is free a ticket has rows alone.
///
/// At the end of an epoch, when the pool shrinks, blocks of the next are read that way, long before their rows are due.
///
/// A ticket takes its buffer here, at a serial point: taken by the workers, a late ticket could hold the last buffer
/// while an early one waits.
#[derive(Debug)]
pub struct BlockTickets {
    steps: Steps,
    /// Steps that are not in tickets yet. Only the last can be one whose block was not asked for.
    ahead: VecDeque<Step>,
    /// How many are looked at.
    look: usize,
    /// Entries of a ticket that has a block: half of what a block brings, so that reading gets ahead of taking.
    beside_block: usize,
    /// The block of the last step of `ahead`, if it was not asked for.
    unread: Option<u32>,
    buffers: Slabs<BlockBuffer>,
    lists: Slabs<Vec<Pick>>,
}

/// Steps that are looked ahead: the end of an epoch is half a pool of rows in which no block begins. A pool of everything
/// begins no block after the first epoch, so a few are enough.
pub(super) fn look_ahead(plan: &Plan) -> usize {
    let pool = plan.pool_blocks() * plan.largest_block() as usize;
    if plan.holds_everything() { pool.min(4096) } else { pool }
}

impl BlockTickets {
    /// Tickets for all of `steps` of `plan`, with memory from `buffers` and `lists`.
    pub fn new(steps: Steps, plan: &Plan, buffers: Slabs<BlockBuffer>, lists: Slabs<Vec<Pick>>) -> Self {
        let look = look_ahead(plan).max(1);
        // A step makes three entries at most.
        let beside_block = (plan.largest_block() as usize / 2).clamp(3, MOST_PICKS);
        Self { steps, ahead: VecDeque::with_capacity(look), look, beside_block, unread: None, buffers, lists }
    }

    /// Walks on until a step wants a block, as far as is looked.
    fn look(&mut self) {
        while self.unread.is_none() && self.ahead.len() < self.look {
            let Some(step) = self.steps.next() else { return };
            // Most rows of ranks elsewhere ask for nothing.
            if step.row.is_some() || step.done {
                self.unread = step.read;
                self.ahead.push_back(step);
            }
        }
    }
}

impl Source for BlockTickets {
    type Item = BlockTicket;

    fn next(&mut self, stop: &Stop) -> Result<Option<BlockTicket>, BoxError> {
        let mut picks: Slab<Vec<Pick>> = self.lists.take(stop)?;
        picks.clear();
        self.look();
        let mut read = None;
        // Without a free buffer the rows at hand come first; where there are none, the buffer has to be waited for.
        if let Some(block) = self.unread
            && (self.ahead.len() == 1 || self.buffers.available() > 0)
        {
            read = Some(BlockRead { block, buffer: self.buffers.take(stop)? });
            self.unread = None;
        }
        let room = if read.is_some() { self.beside_block } else { MOST_PICKS };
        let waits = usize::from(self.unread.is_some());
        while picks.len() + 3 <= room && self.ahead.len() > waits {
            let Some(Step { slot, read, row, done }) = self.ahead.pop_front() else { break };
            picks.extend(read.map(|_| Pick::Begin { slot }));
            picks.extend(row.map(|row| Pick::Take { slot, row }));
            picks.extend(done.then_some(Pick::Done { slot }));
        }
        Ok((read.is_some() || !picks.is_empty()).then_some(BlockTicket { read, picks }))
    }
}
