//! The source of the load side where everything stays in memory: which block to read next, if any, and which rows to
//! take then. Reads nothing itself.

use pipeline::{BoxError, Slab, Slabs, Source, Stop};

use super::order::{Step, Steps};
use crate::data::{BlockTicket, Pick};

/// Rows that one ticket lists at most: the lists are a bounded part of the memory.
pub(super) const MOST_PICKS: usize = 256;

/// Makes one ticket for each block that is to be read, with the rows that can be taken from then on; tickets without a
/// block where more rows follow than one lists.
#[derive(Debug)]
pub struct BlockTickets {
    steps: Steps,
    /// A step that begins the next ticket.
    held: Option<Step>,
    lists: Slabs<Vec<Pick>>,
}

impl BlockTickets {
    /// Tickets for all of `steps`, of a plan whose pool is the whole dataset.
    pub fn new(steps: Steps, lists: Slabs<Vec<Pick>>) -> Self {
        Self { steps, held: None, lists }
    }
}

impl Source for BlockTickets {
    type Item = BlockTicket;

    fn next(&mut self, stop: &Stop) -> Result<Option<BlockTicket>, BoxError> {
        let mut picks: Slab<Vec<Pick>> = self.lists.take(stop)?;
        picks.clear();
        let mut block = None;
        while picks.len() < MOST_PICKS {
            let Some(step) = self.held.take().or_else(|| self.steps.next()) else { break };
            if step.read.is_some() {
                if !picks.is_empty() {
                    self.held = Some(step);
                    break;
                }
                block = step.read;
            }
            picks.extend(step.row.map(|row| Pick { block: step.slot, row }));
        }
        Ok((!picks.is_empty()).then_some(BlockTicket { block, buffer: None, picks }))
    }
}
