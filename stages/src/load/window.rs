//! The source of the load side where the pool slides: which block to read next, and where each of its rows goes.
//!
//! The order is walked as far ahead as there is memory for batches. A block is asked for when all its rows have their
//! places, so that it is read once and its rows are written where they stay: the pool is the batches that are being
//! filled. Where memory ends before the last row of a block has its place, and nothing else can go on, the block is read
//! for the rows that have one, and once more later: that is rare with the pool's own memory, and what lets a flow go on
//! with any.

use std::collections::VecDeque;
use std::sync::Arc;

use pipeline::{BoxError, Slab, Slabs, Source, Stop, Stopped};

use super::order::{Step, Steps};
use super::plan::{Cursor, Plan, Ranks, Slices};
use crate::data::{BlockRead, HostBatch, ScatterLists, ScatterTicket, Target};
use crate::native::rows::Filling;

/// Slices of a rank beyond those that a pool of rows fills: the rows between the first and the last of a block are P
/// blocks in the mean, with a deviation of less than a batch.
const SPARE: usize = 4;

/// Blocks in a ticket at most: about a batch of the usual size. To hand on a ticket wakes a thread or two, at a few
/// per cent of what a block takes.
const MOST_READS: usize = 4;

/// Blocks in a ticket: with small slices fewer than [`MOST_READS`], or the slices that are open beyond the pool would not
/// give all workers something to do.
pub(super) fn reads_of_ticket(plan: &Plan, ranks: usize, prefetch: usize, workers: usize) -> usize {
    let rows = (SPARE + ranks * (prefetch + 1)) * plan.batch_size() / ranks;
    (rows / (plan.largest_block() as usize * 2 * workers)).clamp(1, MOST_READS)
}

/// Slices in memory for each rank where `prefetch` wait for its consumer.
pub(super) fn slices_of_rank(plan: &Plan, prefetch: usize) -> usize {
    let pool = plan.pool_blocks() * plan.largest_block() as usize;
    pool.div_ceil(plan.batch_size()) + SPARE + prefetch + 1
}

/// Makes tickets of the blocks in the order of their first rows.
#[derive(Debug)]
pub struct WindowTickets {
    steps: Steps,
    /// A step that waits for memory.
    held: Option<Step>,
    free: Slabs<HostBatch>,
    /// Memory that was waited for.
    fresh: Option<Slab<HostBatch>>,
    lists: Slabs<ScatterLists>,
    /// Blocks in a ticket at most, and rows in a block.
    reads: usize,
    most_rows: usize,
    /// Those that have not begun.
    slices: Slices,
    /// Rows of a slice.
    rows: u32,
    /// Slices that have memory, and how many of them consumers may keep.
    memory: u64,
    kept: u64,
    /// The slice that is walked through, and its rows that have their samples.
    current: Option<(Arc<Filling>, u32)>,
    /// Slices begun, all in all.
    begun_count: u64,
    begun: Vec<Arc<Filling>>,
    /// Blocks that were not asked for, in the order of their first rows.
    blocks: VecDeque<Pending>,
    /// How many were asked for before them.
    asked: u64,
    /// By slot: the block, and its number in the order of asking if it is among `blocks`.
    slots: Vec<(u32, Option<u64>)>,
    /// Empty lists.
    spare: Vec<Vec<Target>>,
    /// Slices that are complete as far as was told.
    told: u64,
    ended: bool,
}

/// A block whose rows are getting their places.
#[derive(Debug)]
struct Pending {
    read: BlockRead,
    slot: u32,
    /// The slice of its first row.
    first: u64,
    /// Whether all rows have their places.
    closed: bool,
}

enum Walked {
    On,
    NoMemory,
    Ended,
}

impl WindowTickets {
    /// Tickets for all of `steps` of `plan` from `cursor` on, with memory from `free`, for `memory` slices, and `lists`,
    /// and up to `reads` blocks in a ticket; each consumer may keep `prefetch` slices and the one that it is at, and there is one more at least.
    #[expect(clippy::too_many_arguments, reason = "all of the order and all of the memory meet here")]
    pub fn new(
        steps: Steps,
        plan: &Plan,
        cursor: Cursor,
        ranks: &Ranks,
        prefetch: usize,
        memory: usize,
        free: Slabs<HostBatch>,
        lists: Slabs<ScatterLists>,
        reads: usize,
    ) -> Self {
        Self {
            steps,
            held: None,
            free,
            fresh: None,
            lists,
            reads,
            most_rows: plan.largest_block() as usize,
            slices: ranks.slices(cursor, plan.batch_size()),
            rows: ranks.slice_rows(plan.batch_size()) as u32,
            memory: memory as u64,
            kept: (ranks.ranks.len() * (prefetch + 1)) as u64,
            current: None,
            begun_count: 0,
            begun: Vec::new(),
            blocks: VecDeque::new(),
            asked: 0,
            slots: vec![(0, None); plan.pool_blocks()],
            spare: Vec::new(),
            told: 0,
            ended: false,
        }
    }

    /// Slices that are walked through.
    fn passed(&self) -> u64 {
        self.begun_count - u64::from(self.current.is_some())
    }

    /// Slices of which every row is in a ticket that was made.
    fn complete(&self) -> u64 {
        self.blocks.front().map_or(self.passed(), |front| front.first.min(self.passed()))
    }

    fn begin(&mut self, memory: Slab<HostBatch>) -> Arc<Filling> {
        let mut slice = memory;
        let (number, rows) = self.slices.next().expect("slices have no end");
        slice.begin(number, rows);
        let slice = Arc::new(Filling::new(slice));
        self.begun.push(Arc::clone(&slice));
        self.begun_count += 1;
        slice
    }

    /// One step further.
    fn walk(&mut self, stop: &Stop) -> Result<Walked, Stopped> {
        let Some(step) = self.held.take().or_else(|| self.steps.next()) else { return Ok(Walked::Ended) };
        let slot = step.slot as usize;
        if let Some(row) = step.row {
            let (slice, at) = match self.current.take() {
                Some(current) => current,
                None => {
                    let memory = match self.fresh.take() {
                        Some(memory) => memory,
                        None if self.free.available() > 0 => self.free.take(stop)?,
                        None => {
                            self.held = Some(step);
                            return Ok(Walked::NoMemory);
                        }
                    };
                    (self.begin(memory), 0)
                }
            };
            if let Some(block) = step.read {
                self.slots[slot] = (block, None);
            }
            let number = match self.slots[slot].1 {
                Some(number) => number,
                None => {
                    let number = self.asked + self.blocks.len() as u64;
                    let targets = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.most_rows));
                    let (block, first) = (self.slots[slot].0, self.begun_count - 1);
                    let read = BlockRead { block, targets };
                    self.blocks.push_back(Pending { read, slot: step.slot, first, closed: false });
                    self.slots[slot].1 = Some(number);
                    number
                }
            };
            self.blocks[(number - self.asked) as usize].read.targets.push(Target {
                batch: Arc::clone(&slice),
                at,
                row,
            });
            self.current = (at + 1 < self.rows).then_some((slice, at + 1));
        }
        if step.done
            && let Some(number) = self.slots[slot].1.take()
        {
            self.blocks[(number - self.asked) as usize].closed = true;
        }
        Ok(Walked::On)
    }

    /// Walks until there is a block to ask for (`On`) or there can be none: waits for nothing.
    fn look_ahead(&mut self, stop: &Stop) -> Result<Walked, Stopped> {
        loop {
            match self.blocks.front() {
                Some(front) if front.closed || self.ended => return Ok(Walked::On),
                None if self.ended => return Ok(Walked::Ended),
                _ => {}
            }
            match self.walk(stop)? {
                Walked::On => {}
                Walked::Ended => self.ended = true,
                Walked::NoMemory => return Ok(Walked::NoMemory),
            }
        }
    }

    /// Walks until there is a block to ask for; `false` at the end.
    fn find(&mut self, stop: &Stop) -> Result<bool, Stopped> {
        loop {
            match self.look_ahead(stop)? {
                // Slices that are complete and beyond what consumers keep come back. If there are none of these, nothing
                // moves unless the first block is read for the rows that have their places.
                Walked::NoMemory if self.told + self.memory > self.begun_count + self.kept => {
                    self.fresh = Some(self.free.take(stop)?);
                }
                Walked::NoMemory | Walked::On => return Ok(true),
                Walked::Ended => return Ok(false),
            }
        }
    }
}

impl Source for WindowTickets {
    type Item = ScatterTicket;

    fn next(&mut self, stop: &Stop) -> Result<Option<ScatterTicket>, BoxError> {
        let mut lists = self.lists.take(stop)?;
        if !self.find(stop)? {
            return Ok(None);
        }
        // Empty, but for those of a ticket that failed: the run is being taken down then.
        lists.begun.clear();
        self.spare.extend(lists.reads.drain(..).map(|read| read.targets).filter(Vec::is_empty));
        while let Some(front) = self.blocks.pop_front() {
            self.asked += 1;
            if !front.closed {
                self.slots[front.slot as usize].1 = None;
            }
            lists.reads.push(front.read);
            if lists.reads.len() >= self.reads || !matches!(self.look_ahead(stop)?, Walked::On) {
                break;
            }
        }
        lists.begun.append(&mut self.begun);
        self.told = self.complete();
        Ok(Some(ScatterTicket { lists, complete: self.told }))
    }
}
