//! `--data synthetic`: batches of made-up moments, to measure what a step costs when data cost nothing.

use half::f16;
use pipeline::{BoxError, Slab, Slabs, Source, Stop};

use super::plan::Cursor;
use crate::data::HostBatch;

/// Log-variance of every made-up value: a deviation of 5e-4, about that of the SD autoencoder.
const LOGVAR: f32 = -15.0;

/// What synthetic batches look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticConfig {
    /// `[B, C, h, w]`.
    pub shape: [usize; 4],
    /// Labels are in `0..classes`; at least 1.
    pub classes: u32,
    /// Batches that the consumer and the link may hold, at least 2.
    pub buffers: usize,
    /// The first batch.
    pub cursor: Cursor,
    /// How many batches; without end if `None`.
    pub batches: Option<u64>,
}

/// The same content in every batch, under consecutive numbers: unscaled means of about SD's spread (unit variance
/// after its factor), one log-variance, labels that go round the classes, positions from 0.
#[derive(Debug)]
pub struct SyntheticBatches {
    free: Slabs<HostBatch>,
    next: u64,
    end: u64,
}

impl SyntheticBatches {
    /// Fills the buffers; after this a batch costs nothing.
    pub fn new(config: &SyntheticConfig) -> Self {
        let SyntheticConfig { shape, classes, buffers, cursor, batches } = *config;
        let values: usize = shape.iter().product();
        let content = HostBatch {
            batch: 0,
            // A low-discrepancy sequence, uniform with the variance of N(0, 1 / 0.18215).
            mean: (0..values)
                .map(|i| ((i as f64 * 0.618_033_988_749_895).fract() - 0.5) * 12.0_f64.sqrt() / 0.18215)
                .map(f16::from_f64)
                .collect(),
            logvar: vec![f16::from_f32(LOGVAR); values],
            labels: (0..shape[0] as i64).map(|i| i % i64::from(classes.max(1))).collect(),
            positions: (0..shape[0] as u64).collect(),
            shape,
        };
        let end = batches.map_or(u64::MAX, |batches| cursor.batch.saturating_add(batches));
        Self { free: Slabs::new(buffers.max(2), || content.clone()), next: cursor.batch, end }
    }
}

impl Source for SyntheticBatches {
    type Item = Slab<HostBatch>;

    fn next(&mut self, stop: &Stop) -> Result<Option<Slab<HostBatch>>, BoxError> {
        if self.next == self.end {
            return Ok(None);
        }
        let mut batch = self.free.take(stop)?;
        batch.batch = self.next;
        self.next += 1;
        Ok(Some(batch))
    }
}
