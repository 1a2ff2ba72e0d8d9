//! A batch that several threads fill at once, each of its rows by one of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use pipeline::Slab;

use crate::data::HostBatch;

/// A batch whose rows are handed out, each once.
pub struct Filling {
    batch: Slab<HostBatch>,
    /// Of the global batch.
    number: u64,
    /// Row of the global batch that is the first here.
    first: usize,
    mean: *mut f16,
    /// Null if the batch has no log-variances.
    logvar: *mut f16,
    labels: *mut i64,
    positions: *mut u64,
    rows: usize,
    /// Values of a row.
    values: usize,
    /// A bit for each row that was handed out.
    claimed: Box<[AtomicU64]>,
    /// A bit for each row that nobody can fill.
    lost: Box<[AtomicU64]>,
}

// SAFETY: the pointers lead to memory of `batch`, which may cross threads. Through a shared `Filling` that memory is
// reached by `claim` alone, which hands out each row once; the bits are atomic, and `batch` itself is not touched until
// `into_batch` owns it.
unsafe impl Send for Filling {}
// SAFETY: as above.
unsafe impl Sync for Filling {}

/// The memory of one row, which nobody else has.
#[derive(Debug)]
pub struct Row<'a> {
    /// `C * h * w` values.
    pub mean: &'a mut [f16],
    /// The same number, or none.
    pub logvar: &'a mut [f16],
    /// Class index.
    pub label: &'a mut i64,
    /// Position in the dataset.
    pub position: &'a mut u64,
}

impl Filling {
    /// Takes a batch to be filled, which knows its number and its rows already; what else it held is overwritten row by
    /// row.
    pub fn new(mut batch: Slab<HostBatch>) -> Self {
        let rows = batch.positions.len();
        let values = batch.shape[1..].iter().product();
        let has_logvar = !batch.logvar.is_empty();
        let (mean, labels, positions) =
            (batch.mean.as_mut_ptr(), batch.labels.as_mut_ptr(), batch.positions.as_mut_ptr());
        let logvar = if has_logvar { batch.logvar.as_mut_ptr() } else { std::ptr::null_mut() };
        assert_eq!((batch.mean.len(), batch.labels.len()), (rows * values, rows), "the arrays have the batch's shape");
        assert!(!has_logvar || batch.logvar.len() == rows * values, "the arrays have the batch's shape");
        let bits = || (0..rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let (number, first) = (batch.batch, batch.rows.start);
        Self { batch, number, first, mean, logvar, labels, positions, rows, values, claimed: bits(), lost: bits() }
    }

    /// The memory of row `at`, for the first who asks; `None` for all others, and where there is no such row.
    pub fn claim(&self, at: usize) -> Option<Row<'_>> {
        let bit = 1 << (at % 64);
        if at >= self.rows || self.claimed[at / 64].fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return None;
        }
        let (first, values) = (at * self.values, self.values);
        // SAFETY: row `at` lies within all arrays, whose lengths `new` has compared; their memory is on the heap, does
        // not move with `batch`, and lives as long as `self`. The bit was not set before, so nobody else has this row.
        unsafe {
            Some(Row {
                mean: std::slice::from_raw_parts_mut(self.mean.add(first), values),
                logvar: match self.logvar.is_null() {
                    true => &mut [],
                    false => std::slice::from_raw_parts_mut(self.logvar.add(first), values),
                },
                label: &mut *self.labels.add(at),
                position: &mut *self.positions.add(at),
            })
        }
    }

    /// Where row `at` lies: the global batch, and its row of that.
    pub fn place(&self, at: usize) -> (u64, usize) {
        (self.number, self.first + at)
    }

    /// Notes that row `at` cannot be filled.
    pub fn lose(&self, at: usize) {
        self.lost[at / 64].fetch_or(1 << (at % 64), Ordering::AcqRel);
    }

    /// The batch, when nobody fills it any more; its `filled` lists the rows that were lost.
    pub fn into_batch(mut self) -> Slab<HostBatch> {
        self.batch.filled.clear();
        let is_lost = |row: &u32| self.lost[*row as usize / 64].load(Ordering::Acquire) >> (row % 64) & 1 == 1;
        let lost = (0..self.rows as u32).filter(is_lost);
        self.batch.filled.extend(lost);
        self.batch
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("rows", &self.rows).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use pipeline::{Slabs, Stop};

    use super::*;

    fn filling(logvar: bool) -> Filling {
        let mut batch = Some(HostBatch::with_room([70, 1, 1, 2], logvar, false).unwrap());
        Filling::new(Slabs::new(1, || batch.take().unwrap()).take(&Stop::never()).unwrap())
    }

    #[test]
    fn a_row_is_handed_out_once() {
        let filling = filling(true);
        assert!(filling.claim(69).is_some() && filling.claim(5).is_some());
        assert!(filling.claim(69).is_none() && filling.claim(70).is_none());
    }

    #[test]
    fn what_threads_write_to_their_rows_is_in_the_batch_and_the_lost_are_listed() {
        for logvar in [false, true] {
            let filling = filling(logvar);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let filling = &filling;
                    scope.spawn(move || {
                        for at in (0..70).filter(|at| at % 4 == thread) {
                            let row = filling.claim(at).unwrap();
                            row.mean.fill(f16::from_f32(at as f32));
                            row.logvar.fill(f16::from_f32(-(at as f32)));
                            (*row.label, *row.position) = (at as i64, 2 * at as u64);
                        }
                    });
                }
            });
            filling.lose(3);
            filling.lose(66);
            let batch = filling.into_batch();
            assert_eq!(batch.filled, [3, 66]);
            for at in 0..70 {
                assert_eq!(batch.mean[2 * at + 1].to_f32(), at as f32);
                assert_eq!((batch.labels[at], batch.positions[at]), (at as i64, 2 * at as u64));
                assert!(!logvar || batch.logvar[2 * at].to_f32() == -(at as f32));
            }
        }
    }
}
