//! Batches of noise that cost nothing to load: what a consumer can do at most, to compare a run on data with.
//!
//! Noise is its own mirror image: [`LoadConfig::flip`] changes nothing. The buffers are filled once and come around
//! again, so which numbers a step sees depends on timing. Positions count up.

use half::f16;
use pipeline::{BoxError, Flow, Slab, Slabs, Source, Stop};

use super::plan::{Cursor, PlanError, Slices};
use super::{LEAST_PREFETCH, LoadConfig, LoadError};
use crate::data::HostBatch;
use crate::splitmix::SplitMix64;

/// What a synthetic dataset looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synthetic {
    /// `[C, h, w]` of a latent.
    pub shape: [usize; 3],
    /// Number of classes, at least 1.
    pub classes: u32,
}

impl Synthetic {
    /// Latents of 256 x 256 pictures of ImageNet's classes.
    pub const IMAGENET: Self = Self { shape: [4, 32, 32], classes: 1000 };
}

/// Batches as [`super::batches`] makes them, of unit-variance means and log-variances of -14.
///
/// # Errors
/// [`LoadError::Plan`] for ranks that do not tile a batch; [`LoadError::Memory`].
pub fn batches(what: Synthetic, config: &LoadConfig) -> Result<Flow<Slab<HostBatch>>, LoadError> {
    let LoadConfig { batch, prefetch, .. } = *config;
    if batch == 0 {
        return Err(PlanError::EmptyBatch.into());
    }
    if prefetch < LEAST_PREFETCH {
        return Err(LoadError::TooSmall { setting: "prefetch", got: prefetch, least: LEAST_PREFETCH });
    }
    config.ranks.check(batch)?;
    // As many as with a dataset: for each consumer `prefetch` and the one that it is at.
    let buffers = config.ranks.ranks.len() * (prefetch + 1) + 2;
    let [channels, height, width] = what.shape;
    let shape = [config.ranks.slice_rows(config.batch), channels, height, width];
    let mut draws = SplitMix64::new(config.seed);
    let mut free = Vec::new();
    for _ in 0..buffers {
        let mut batch = HostBatch::with_room(shape, true, config.pinned)?;
        batch.mean.iter_mut().for_each(|value| *value = f16::from_f32(unit(&mut draws)));
        batch.logvar.fill(f16::from_f32(-14.0));
        batch.labels.iter_mut().for_each(|label| *label = draws.below(what.classes.into()) as i64);
        free.push(batch);
    }
    let mut filled = free.into_iter();
    let free = Slabs::new(buffers, || filled.next().expect("as many were made"));
    let Cursor { batch } = config.cursor;
    let end = config.batches.map_or(u64::MAX, |batches| batch.saturating_add(batches));
    let slices = config.ranks.slices(config.cursor, config.batch);
    Ok(Flow::from(SyntheticBatches { free, slices, size: config.batch, end }).prefetch(config.prefetch))
}

/// A uniform draw of variance 1.
fn unit(draws: &mut SplitMix64) -> f32 {
    let uniform = (draws.bits() >> 40) as f32 / (1u32 << 24) as f32;
    (uniform - 0.5) * 12f32.sqrt()
}

struct SyntheticBatches {
    free: Slabs<HostBatch>,
    slices: Slices,
    /// Samples of a global batch.
    size: usize,
    /// The first batch that does not come.
    end: u64,
}

impl Source for SyntheticBatches {
    type Item = Slab<HostBatch>;

    fn next(&mut self, stop: &Stop) -> Result<Option<Slab<HostBatch>>, BoxError> {
        let Some((number, rows)) = self.slices.next().filter(|(number, _)| *number < self.end) else { return Ok(None) };
        let mut batch = self.free.take(stop)?;
        (batch.batch, batch.rows) = (number, rows);
        let first = number.wrapping_mul(self.size as u64);
        (first + batch.rows.start as u64..).zip(&mut batch.positions).for_each(|(position, at)| *at = position);
        Ok(Some(batch))
    }
}
