//! Reads blocks and writes their rows where they stay: the stage that does the work where the pool slides.
//!
//! What zstd has inflated is still in the caches when it is interleaved into the batches, and those are written past the
//! caches: a value goes to memory once.

use pipeline::{BoxError, Stage};

use super::OnBadBlock;
use super::gather::Gather;
use super::inflate::Inflate;
use crate::data::{BlockBuffer, BlockRead, ScatterLists, ScatterTicket};

/// One worker's own.
#[derive(Debug)]
pub struct Scatter {
    inflate: Inflate,
    gather: Gather,
    on_bad_block: OnBadBlock,
    buffer: BlockBuffer,
}

impl Scatter {
    /// Reads with `inflate`, writes with `gather`.
    pub fn new(inflate: Inflate, gather: Gather, on_bad_block: OnBadBlock) -> Self {
        Self { inflate, gather, on_bad_block, buffer: BlockBuffer::default() }
    }
}

impl Stage for Scatter {
    type In = ScatterTicket;
    type Out = ScatterTicket;

    fn process(&mut self, mut ticket: ScatterTicket) -> Result<ScatterTicket, BoxError> {
        let ScatterLists { reads, faults, .. } = &mut *ticket.lists;
        for BlockRead { block, targets } in reads {
            let mut done = self.inflate.inflate(*block, &mut self.buffer);
            for target in &*targets {
                let at = target.at as usize;
                if done.is_ok() {
                    let mut to = target.batch.claim(at).expect("the order has each place once");
                    done = self.gather.copy_row(&self.buffer, target.row as usize, target.batch.place(at), &mut to);
                }
                if done.is_err() {
                    target.batch.lose(at);
                }
            }
            // Before the ticket goes on: whoever delivers a batch must be its only owner.
            targets.clear();
            match (done, self.on_bad_block) {
                (Ok(()), _) => {}
                (Err(fault), OnBadBlock::Skip) => faults.push(fault),
                (Err(fault), OnBadBlock::Fail) => return Err(fault.into()),
            }
        }
        Ok(ticket)
    }
}
