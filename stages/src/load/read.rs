//! The source of the load side: which block next. Reads nothing itself.

use std::sync::Arc;

use pipeline::{BoxError, Slabs, Source, Stop};

use super::plan::{Window, Windows};
use crate::data::{BlockBuffer, BlockTicket};

/// Makes one ticket for each block of each window, in the order of first use.
///
/// A ticket takes its buffer here, at a serial point: taken by the workers, a late ticket could hold the last buffer
/// while an early one waits.
#[derive(Debug)]
pub struct BlockTickets {
    windows: Windows,
    current: Option<Arc<Window>>,
    /// Entry of the current window's blocks.
    slot: usize,
    free: Slabs<BlockBuffer>,
}

impl BlockTickets {
    /// Tickets for all of `windows`, with buffers from `free`.
    pub fn new(windows: Windows, free: Slabs<BlockBuffer>) -> Self {
        Self { windows, current: None, slot: 0, free }
    }
}

impl Source for BlockTickets {
    type Item = BlockTicket;

    fn next(&mut self, stop: &Stop) -> Result<Option<BlockTicket>, BoxError> {
        let window = match &self.current {
            Some(window) if self.slot < window.blocks.len() => Arc::clone(window),
            _ => match self.windows.next() {
                Some(window) => {
                    self.slot = 0;
                    Arc::clone(self.current.insert(Arc::new(window)))
                }
                None => return Ok(None),
            },
        };
        let slot = self.slot as u32;
        self.slot += 1;
        Ok(Some(BlockTicket { window, slot, buffer: self.free.take(stop)? }))
    }
}
