//! Streams the order of [`super::plan`] from any cursor, step by step, in constant time a sample.
//!
//! Keys are dealt out to as many buckets as the pool has blocks: bucket c holds the keys of `[c * 2^32, (c + 1) * 2^32)`, to
//! which only blocks j of `(c - P, c]` contribute. So block c is dealt out when bucket c is due, the bucket is sorted, and
//! that is all the order there is in memory. To begin in the middle, the P blocks before are dealt out; those before them
//! are done, whatever they drew.
//!
//! Nothing is read here: a step says which block to read and which row to take.

use std::ops::Range;
use std::sync::Arc;

use super::plan::{Cursor, Plan, Ranks};
use crate::splitmix::SplitMix64;

/// One position of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where the block is held, below [`Plan::pool_blocks`]: one block at a time.
    pub slot: u32,
    /// The block of the dataset, if it is to be read for this step.
    pub read: Option<u32>,
    /// The row of the block to take; none if it belongs to a rank elsewhere, or was dropped at the end of an epoch.
    pub row: Option<u32>,
    /// Whether the slot is done with its block.
    pub done: bool,
}

/// The steps from a cursor on, for some batches or without end.
#[derive(Debug)]
pub struct Steps {
    plan: Arc<Plan>,
    /// Rows of each batch that are taken here.
    rows: Range<u64>,
    epoch: u64,
    /// Next position of the epoch.
    position: u64,
    /// The stream ends before this position of this epoch.
    end: (u64, u64),
    pass: Pass,
}

#[derive(Debug)]
enum Pass {
    Whole(Whole),
    Sliding(Sliding),
}

impl Steps {
    /// Steps from `cursor` on, for `batches` batches or without end, with the rows of `ranks`, which fit the plan's batch.
    pub fn new(plan: &Arc<Plan>, cursor: Cursor, batches: Option<u64>, ranks: &Ranks) -> Self {
        let (size, per_epoch) = (plan.batch_size() as u64, plan.batches_per_epoch());
        let end = batches.map_or(u64::MAX, |batches| cursor.batch.saturating_add(batches));
        let (epoch, position) = (cursor.batch / per_epoch, cursor.batch % per_epoch * size);
        let mut pass =
            if plan.holds_everything() { Pass::Whole(Whole::new(plan)) } else { Pass::Sliding(Sliding::new(plan)) };
        match &mut pass {
            Pass::Whole(whole) => whole.begin(plan, epoch, position),
            Pass::Sliding(sliding) => sliding.begin(plan, epoch, position),
        }
        let rows = ranks.rows(plan.batch_size());
        let rows = rows.start as u64..rows.end as u64;
        Self { plan: Arc::clone(plan), rows, epoch, position, end: (end / per_epoch, end % per_epoch * size), pass }
    }

    /// Memory that the order of `plan` takes, in bytes.
    pub fn bytes(plan: &Plan) -> u64 {
        let blocks = plan.blocks().len();
        let bytes = match plan.holds_everything() {
            true => plan.samples() as usize * size_of::<u32>() + blocks * size_of::<bool>(),
            false => {
                let bucket = size_of::<Vec<Keyed>>() + bucket_room(plan) * size_of::<Keyed>();
                size_of_val(plan.blocks()) + (plan.pool_blocks() + 1) * bucket + plan.pool_blocks() * size_of::<Held>()
            }
        };
        bytes as u64
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if (self.epoch, self.position) >= self.end {
            return None;
        }
        let plan = &self.plan;
        if self.position == plan.trained() {
            if (self.epoch + 1, 0) >= self.end {
                return None;
            }
            if let Pass::Sliding(sliding) = &mut self.pass
                && let Some(step) = sliding.clear()
            {
                return Some(step);
            }
            self.epoch += 1;
            self.position = 0;
            match &mut self.pass {
                Pass::Whole(whole) => whole.begin(plan, self.epoch, 0),
                Pass::Sliding(sliding) => sliding.begin(plan, self.epoch, 0),
            }
            return self.next();
        }
        let taken = self.rows.contains(&(self.position % plan.batch_size() as u64));
        self.position += 1;
        Some(match &mut self.pass {
            Pass::Whole(whole) => whole.step(taken),
            Pass::Sliding(sliding) => sliding.step(plan, taken),
        })
    }
}

/// A permutation whose first entries are there before the last are drawn.
#[derive(Debug)]
struct Permutation {
    values: Vec<u32>,
    /// Entries that are in place.
    placed: usize,
    draws: SplitMix64,
}

impl Permutation {
    fn of(n: usize) -> Self {
        Self { values: Vec::with_capacity(n), placed: 0, draws: SplitMix64::new(0) }
    }

    /// Begins again with `things` to permute, `n` of them.
    fn begin(&mut self, things: impl Iterator<Item = u32>, draws: SplitMix64) {
        self.values.clear();
        self.values.extend(things);
        (self.placed, self.draws) = (0, draws);
    }

    /// Entry number `placed`; none at the end.
    fn place(&mut self) -> Option<u32> {
        if self.placed == self.values.len() {
            return None;
        }
        self.draws.place(self.placed, &mut self.values);
        self.placed += 1;
        Some(self.values[self.placed - 1])
    }
}

/// The pool is the dataset: slots are blocks, and a block that was read stays.
#[derive(Debug)]
struct Whole {
    /// All samples, as block times `largest` plus row.
    samples: Permutation,
    largest: u32,
    /// By block.
    read: Vec<bool>,
}

impl Whole {
    fn new(plan: &Plan) -> Self {
        let samples = Permutation::of(plan.samples() as usize);
        Self { samples, largest: plan.largest_block(), read: vec![false; plan.blocks().len()] }
    }

    fn begin(&mut self, plan: &Plan, epoch: u64, position: u64) {
        let samples = (0..).zip(plan.blocks()).flat_map(|(block, &rows)| {
            let first = block * self.largest;
            first..first + rows
        });
        self.samples.begin(samples, plan.sample_stream(epoch));
        for _ in 0..position {
            self.samples.place();
        }
    }

    fn step(&mut self, taken: bool) -> Step {
        let sample = self.samples.place().expect("positions end before the samples do");
        let (block, row) = (sample / self.largest, sample % self.largest);
        let read = &mut self.read[block as usize];
        let first = taken && !*read;
        *read |= taken;
        Step { slot: block, read: first.then_some(block), row: taken.then_some(row), done: false }
    }
}

/// A row and its key, in the order of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Keyed {
    key: u64,
    j: u32,
    row: u32,
}

/// A block that is begun and not finished.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    block: u32,
    /// Rows that were not passed yet.
    left: u32,
    /// Whether a row of it was taken.
    read: bool,
}

/// The pool slides over the blocks of an epoch.
#[derive(Debug)]
struct Sliding {
    /// P, which is less than the number of blocks.
    pool: usize,
    epoch: u64,
    blocks: Permutation,
    /// By j modulo P.
    held: Vec<Held>,
    /// By c modulo P.
    buckets: Vec<Vec<Keyed>>,
    /// The next bucket.
    next: usize,
    /// The bucket before it, in order, and the row that is next.
    due: Vec<Keyed>,
    at: usize,
    /// Slots below this were cleared at the end of the epoch.
    cleared: usize,
}

/// Rows that fit into a bucket without a second allocation: twice the mean, which a Poisson count hardly ever exceeds.
fn bucket_room(plan: &Plan) -> usize {
    2 * plan.largest_block() as usize + 32
}

impl Sliding {
    fn new(plan: &Plan) -> Self {
        let (pool, room) = (plan.pool_blocks(), bucket_room(plan));
        Self {
            pool,
            epoch: 0,
            blocks: Permutation::of(plan.blocks().len()),
            held: vec![Held::default(); pool],
            buckets: (0..pool).map(|_| Vec::with_capacity(room)).collect(),
            next: 0,
            due: Vec::with_capacity(room),
            at: 0,
            cleared: 0,
        }
    }

    /// Goes to `position` of `epoch`.
    fn begin(&mut self, plan: &Plan, epoch: u64, position: u64) {
        self.epoch = epoch;
        self.blocks.begin(0..plan.blocks().len() as u32, plan.block_stream(epoch));
        self.held.fill(Held::default());
        self.buckets.iter_mut().for_each(Vec::clear);
        self.due.clear();
        (self.at, self.cleared) = (0, 0);

        // The blocks before the j-th have at most `position` samples, so the position is in bucket j or behind it.
        let size = |block: u32| u64::from(plan.blocks()[block as usize]);
        let (mut j, mut before) = (0, 0);
        while let Some(block) = self.blocks.place() {
            if before + size(block) > position {
                break;
            }
            before += size(block);
            j += 1;
        }
        // Blocks that have nothing in that bucket or behind it are passed as a whole.
        let first = (j + 1usize).saturating_sub(self.pool);
        let mut passed: u64 = self.blocks.values[..first].iter().map(|&block| size(block)).sum();
        for dealt in first..j {
            passed += self.deal(plan, dealt, j);
        }
        self.next = j;
        for _ in passed..position {
            self.pass(plan);
        }
    }

    /// Deals out the rows of the j-th block; returns how many had their turn in a bucket before `from`.
    fn deal(&mut self, plan: &Plan, j: usize, from: usize) -> u64 {
        while self.blocks.placed <= j {
            self.blocks.place();
        }
        let block = self.blocks.values[j];
        let rows = plan.blocks()[block as usize];
        let mut keys = plan.keys(self.epoch, j as u32);
        let mut left = 0;
        for row in 0..rows {
            let key = keys.next_key();
            let bucket = (key >> 32) as usize;
            if bucket >= from {
                self.buckets[bucket % self.pool].push(Keyed { key, j: j as u32, row });
                left += 1;
            }
        }
        self.held[j % self.pool] = Held { block, left, read: false };
        u64::from(rows - left)
    }

    /// The next row.
    fn pass(&mut self, plan: &Plan) -> Keyed {
        while self.at == self.due.len() {
            if self.next < plan.blocks().len() {
                self.deal(plan, self.next, self.next);
            }
            self.due.clear();
            self.at = 0;
            std::mem::swap(&mut self.due, &mut self.buckets[self.next % self.pool]);
            self.due.sort_unstable();
            self.next += 1;
        }
        let row = self.due[self.at];
        self.at += 1;
        self.held[row.j as usize % self.pool].left -= 1;
        row
    }

    fn step(&mut self, plan: &Plan, taken: bool) -> Step {
        let Keyed { j, row, .. } = self.pass(plan);
        let slot = j as usize % self.pool;
        let held = &mut self.held[slot];
        let first = taken && !held.read;
        held.read |= taken;
        let done = held.read && held.left == 0;
        Step { slot: slot as u32, read: first.then_some(held.block), row: taken.then_some(row), done }
    }

    /// At the end of an epoch: the next slot whose block has rows that are dropped.
    fn clear(&mut self) -> Option<Step> {
        let open = self.held[self.cleared..].iter().position(|held| held.read && held.left > 0)?;
        let slot = self.cleared + open;
        self.cleared = slot + 1;
        Some(Step { slot: slot as u32, read: None, row: None, done: true })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::plan::{PlanConfig, SampleRef};
    use super::*;

    fn plan(blocks: &[u32], seed: u64, batch: usize, pool_blocks: usize) -> Arc<Plan> {
        Arc::new(Plan::new(PlanConfig { blocks: blocks.to_vec(), seed, batch, pool_blocks }).unwrap())
    }

    /// Follows the steps as a loader would: the samples that are taken, and the most blocks that were held.
    fn follow(steps: impl Iterator<Item = Step>) -> (Vec<(u32, u32)>, usize) {
        let (mut held, mut taken, mut most) = (HashMap::new(), Vec::new(), 0);
        for step in steps {
            if let Some(block) = step.read {
                assert_eq!(held.insert(step.slot, block), None, "a slot is free before a block is read into it");
                assert!(step.row.is_some(), "a block is read for a row of it");
            }
            most = most.max(held.len());
            taken.extend(step.row.map(|row| (held[&step.slot], row)));
            if step.done {
                held.remove(&step.slot).expect("what is done was read");
            }
        }
        (taken, most)
    }

    fn rows(samples: impl IntoIterator<Item = SampleRef>) -> Vec<(u32, u32)> {
        samples.into_iter().map(|sample| (sample.block, sample.index)).collect()
    }

    fn everything() -> Ranks {
        Ranks::all(1)
    }

    #[test]
    fn a_cursor_far_away_is_reached_at_once() {
        for pool in [64, 300] {
            let plan = plan(&[64; 300], 9, 32, pool);
            let far = u64::MAX - 10;
            let steps = Steps::new(&plan, Cursor { batch: far }, Some(1), &everything());
            assert_eq!(follow(steps).0, rows(plan.batch(far)));
        }
    }

    #[test]
    fn the_first_batch_needs_a_small_part_of_the_pool_and_a_resumed_one_no_block_that_is_done() {
        let plan = plan(&[64; 4096], 3, 256, 1024);
        let blocks = |batch| {
            let steps = Steps::new(&plan, Cursor { batch }, Some(1), &everything());
            steps.filter(|step| step.read.is_some()).count()
        };
        assert!(blocks(0) < 48, "{}", blocks(0));
        assert!(blocks(512) <= 256);
    }

    #[test]
    fn blocks_are_begun_at_an_even_pace() {
        let plan = plan(&[64; 4096], 3, 256, 1024);
        let mut steps = Steps::new(&plan, Cursor::default(), None, &everything());
        let reads: Vec<usize> = (0..2 * plan.batches_per_epoch())
            .map(|_| steps.by_ref().filter(|step| step.row.is_some()).take(256).filter(|s| s.read.is_some()).count())
            .collect();
        // 4 blocks are used up a batch, and twice as many are begun while the pool grows: means over 8 batches.
        let means: Vec<f64> = reads.windows(8).map(|eight| eight.iter().sum::<usize>() as f64 / 8.0).collect();
        assert!(means[..1000].iter().skip(8).all(|&mean| mean < 10.0), "{means:?}");
        // The first batches of the second epoch begin more, but those before them none: they were read ahead.
        let turn = plan.batches_per_epoch() as usize;
        assert!(reads[turn - 64..turn].iter().sum::<usize>() < 8, "{:?}", &reads[turn - 64..turn]);
        assert!(reads[turn] < 48, "{}", reads[turn]);
    }

    prop_compose! {
        fn plans()(blocks in prop::collection::vec(1u32..9, 1..24), seed in any::<u64>(), pool_blocks in 1usize..26)
            (batch in 1..=blocks.iter().sum::<u32>() as usize, blocks in Just(blocks), seed in Just(seed), pool_blocks in Just(pool_blocks))
            -> Arc<Plan> { plan(&blocks, seed, batch, pool_blocks) }
    }

    proptest! {
        #[test]
        fn the_steps_from_any_cursor_are_the_batches_from_there(plan in plans(), cursor in 0u64..40, batches in 0u64..20) {
            let expected: Vec<_> = (cursor..cursor + batches).flat_map(|batch| plan.batch(batch)).collect();
            let (taken, most) = follow(Steps::new(&plan, Cursor { batch: cursor }, Some(batches), &everything()));
            prop_assert_eq!(taken, rows(expected));
            prop_assert!(most <= plan.pool_blocks());
        }

        #[test]
        fn ranks_take_their_slices_and_hold_no_more(
            blocks in prop::collection::vec(1u32..9, 1..24), seed in any::<u64>(), pool_blocks in 1usize..26,
            world in 1usize..5, slice in 1usize..5, cursor in 0u64..20, batches in 0u64..20,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 2),
        ) {
            let size = world * slice;
            prop_assume!(blocks.iter().sum::<u32>() as usize >= size);
            let plan = plan(&blocks, seed, size, pool_blocks);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(world + 1)).collect();
            cuts.sort_unstable();
            prop_assume!(cuts[0] < cuts[1]);
            let ranks = Ranks { ranks: cuts[0]..cuts[1], world };
            let expected: Vec<_> =
                (cursor..cursor + batches).flat_map(|batch| plan.batch(batch)[ranks.rows(size)].to_vec()).collect();
            let (taken, most) = follow(Steps::new(&plan, Cursor { batch: cursor }, Some(batches), &ranks));
            prop_assert_eq!(taken, rows(expected));
            prop_assert!(most <= plan.pool_blocks());
        }

        #[test]
        fn memory_is_within_the_figure(plan in plans(), cursor in 0u64..40) {
            let mut steps = Steps::new(&plan, Cursor { batch: cursor }, Some(30), &everything());
            while steps.next().is_some() {}
            let held = match &steps.pass {
                Pass::Whole(whole) => 4 * whole.samples.values.capacity() + whole.read.capacity(),
                Pass::Sliding(sliding) => {
                    let buckets = sliding.buckets.iter().chain([&sliding.due]);
                    let rows: usize = buckets.map(|bucket| 24 + 16 * bucket.capacity()).sum();
                    4 * sliding.blocks.values.capacity() + rows + 12 * sliding.held.capacity()
                }
            };
            prop_assert!(held as u64 <= Steps::bytes(&plan), "{held} bytes, stated {}", Steps::bytes(&plan));
        }
    }

    /// docs/scaling.md: a block is read whole, for the rows of it that are a process's own.
    #[test]
    fn one_process_of_several_reads_most_blocks() {
        let plan = plan(&[64; 2048], 5, 256, 64);
        for world in [1, 2, 8, 64] {
            let ranks = Ranks { ranks: 0..1, world };
            let steps = Steps::new(&plan, Cursor::default(), Some(plan.batches_per_epoch()), &ranks);
            let read = steps.filter(|step| step.read.is_some()).count() as f64 / 2048.0;
            let expected = 1.0 - (1.0 - 1.0 / world as f64).powi(64);
            assert!((read - expected).abs() < 0.04, "{world}: {read} for {expected}");
        }
    }
}
