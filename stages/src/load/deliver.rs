//! Hands on the slices that are complete, in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use pipeline::{BoxError, Emit, Regroup, Slab};

use super::LoadError;
use super::gather::fill;
use crate::data::{HostBatch, ScatterTicket};
use crate::native::rows::Filling;

/// Keeps the slices that are being filled.
#[derive(Debug)]
pub struct DeliverBatches {
    filling: VecDeque<Arc<Filling>>,
    delivered: u64,
    faults: Vec<LoadError>,
    /// Values of one sample.
    values: usize,
}

impl DeliverBatches {
    /// Of samples of `values` values.
    pub fn new(values: usize) -> Self {
        Self { filling: VecDeque::new(), delivered: 0, faults: Vec::new(), values }
    }
}

impl Regroup for DeliverBatches {
    type In = ScatterTicket;
    type Out = Slab<HostBatch>;

    fn push(&mut self, ticket: ScatterTicket, out: &mut Emit<'_, Slab<HostBatch>>) -> Result<(), BoxError> {
        let ScatterTicket { mut lists, complete } = ticket;
        self.filling.extend(lists.begun.drain(..));
        self.faults.append(&mut lists.faults);
        // The list can be used again before the slices have found room.
        drop(lists);
        while self.delivered < complete {
            let slice = self.filling.pop_front().expect("a slice begins before it is complete");
            // Tickets come in order, and each let go of its rows before it came.
            let slice = Arc::into_inner(slice).expect("nobody fills a slice that is complete");
            let mut batch = slice.into_batch();
            fill(&mut batch, self.values)?;
            batch.faults.append(&mut self.faults);
            self.delivered += 1;
            out.send(batch)?;
        }
        Ok(())
    }
}
