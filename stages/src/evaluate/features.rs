//! Pictures to Inception's features, and these to what the metrics need.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pipeline::{BoxError, End, Sink, Stage, Worker};
use tch::{Device, Kind, Tensor};

use super::frechet::Gaussian;
use super::inception_score::InceptionScore;
use super::moments::Moments;
use super::pictures::PictureBatch;
use crate::native;
use crate::nets::inception::{Inception, InceptionFeatures, POOL, SPATIAL};

/// The features of some pictures in their order, f32 on the host; see [`InceptionFeatures`].
#[derive(Debug)]
pub struct FeatureBatch {
    /// `[B, 2048]`.
    pub pool: Tensor,
    /// `[B, 2023]`; features that were stored may lack it.
    pub spatial: Option<Tensor>,
    /// `[B, 1008]`; features that were stored may lack it.
    pub logits: Option<Tensor>,
}

/// A network gave a value that is not finite.
#[derive(Debug, thiserror::Error)]
#[error(
    "a feature of picture {picture} (counted from 0) is not finite; the Inception weights are damaged or of another network"
)]
pub struct NotFinite {
    /// Number of the picture, from 0.
    picture: u64,
}

/// Stage: the network on a device.
#[derive(Debug)]
pub struct ExtractFeatures {
    network: Inception,
}

impl ExtractFeatures {
    /// A factory that reads the weights to the device of each worker, and forbids cuDNN to use TF32.
    pub fn on(
        weights: PathBuf,
        devices: Vec<Device>,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        // Its 10 bits of mantissa would move the features by more than the published tolerances.
        native::allow_tf32(false);
        move |worker| Ok(Self { network: Inception::open(&weights, devices[worker.index % devices.len()])? })
    }
}

impl Stage for ExtractFeatures {
    type In = PictureBatch;
    type Out = FeatureBatch;

    fn process(&mut self, pictures: PictureBatch) -> Result<FeatureBatch, BoxError> {
        let PictureBatch { first, count, height, width, values } = pictures;
        let pixels = Tensor::from_slice(&values).view([count as i64, height as i64, width as i64, 3]);
        let InceptionFeatures { pool, spatial, logits } = self.network.features(&pixels)?;
        let [pool, spatial, logits] = [pool, spatial, logits].map(|features| features.to_device(Device::Cpu));
        check_finite([&pool, &spatial, &logits], first)?;
        Ok(FeatureBatch { pool, spatial: Some(spatial), logits: Some(logits) })
    }
}

/// Looks at features `[B, ..]` of the pictures from number `first` on.
fn check_finite<'a>(all: impl IntoIterator<Item = &'a Tensor>, first: u64) -> Result<(), NotFinite> {
    for features in all {
        let finite = features.isfinite().all_dim(1, false);
        if let Some(row) = (0..features.size()[0]).find(|&row| finite.int64_value(&[row]) == 0) {
            return Err(NotFinite { picture: first + row as u64 });
        }
    }
    Ok(())
}

/// What is kept of a set of pictures.
#[derive(Debug)]
pub struct Statistics {
    /// Number of pictures.
    pub count: u64,
    /// Of `pool`; with two pictures at least.
    pub pool: Option<Gaussian>,
    /// Of `spatial`; with two pictures at least.
    pub spatial: Option<Gaussian>,
    /// Inception Score and the number of parts that it is the mean of; with one picture at least.
    pub score: Option<(f64, usize)>,
    /// All of `pool`, f32 `[N, 2048]`; no rows where the sink was told to keep none.
    pub features: Tensor,
    /// All of `spatial`, f32 `[N, 2023]`, and of `logits`, `[N, 1008]`, where there are any and the sink was told to
    /// keep them.
    pub kept: [Option<Tensor>; 2],
}

/// Which features outlast their batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None: statistics are all that is wanted.
    Nothing,
    /// `pool`, for precision and recall: 8 kB a picture.
    Pooled,
    /// All: 20 kB a picture.
    All,
}

/// Rows that come in parts, in a tensor that has room for all of them: parts that are joined at the end are in memory
/// twice. A number of rows that a file states and does not hold costs no more than one such tensor.
#[derive(Debug)]
struct Rows {
    full: Vec<Tensor>,
    values: Option<Tensor>,
    room: i64,
    filled: i64,
}

/// Rows of one tensor, at most: 540 MB of `pool`.
const ROOM: u64 = 65_536;

impl Rows {
    fn with_room_for(count: u64) -> Self {
        Self { full: Vec::new(), values: None, room: count.min(ROOM) as i64, filled: 0 }
    }

    fn push(&mut self, part: &Tensor) {
        let (rows, width) = part.size2().expect("features have two dimensions");
        if self.filled + rows > self.room {
            self.full.extend(self.values.take().map(|values| values.narrow(0, 0, self.filled)));
            (self.room, self.filled) = (rows.max(ROOM as i64), 0);
        }
        let options = (Kind::Float, Device::Cpu);
        let values = self.values.get_or_insert_with(|| Tensor::empty([self.room, width], options));
        values.narrow(0, self.filled, rows).copy_(part);
        self.filled += rows;
    }

    fn finish(mut self) -> Option<Tensor> {
        let last = self.values?.narrow(0, 0, self.filled);
        if self.full.is_empty() {
            return Some(last);
        }
        self.full.push(last);
        Some(Tensor::cat(&self.full, 0))
    }
}

/// Sink: adds up, and keeps what it was told to.
#[derive(Debug)]
pub struct CollectFeatures {
    count: u64,
    pool: Moments,
    spatial: Moments,
    score: InceptionScore,
    keep: Keep,
    features: Rows,
    kept: [Rows; 2],
}

impl CollectFeatures {
    /// For `count` pictures at most.
    pub fn of(count: u64, keep: Keep) -> Self {
        let rows = || Rows::with_room_for(count);
        Self {
            count: 0,
            pool: Moments::new(POOL),
            spatial: Moments::new(SPATIAL),
            score: InceptionScore::default(),
            keep,
            features: rows(),
            kept: [rows(), rows()],
        }
    }

    /// What no pictures give.
    pub fn nothing() -> Statistics {
        let features = Tensor::zeros([0, POOL], (Kind::Float, Device::Cpu));
        Statistics { count: 0, pool: None, spatial: None, score: None, features, kept: [None, None] }
    }
}

impl Sink for CollectFeatures {
    type In = FeatureBatch;
    type Output = Statistics;

    fn consume(&mut self, batch: FeatureBatch) -> Result<ControlFlow<()>, BoxError> {
        let FeatureBatch { pool, spatial, logits } = batch;
        self.count += pool.size()[0] as u64;
        self.pool.push(&pool);
        if self.keep != Keep::Nothing {
            self.features.push(&pool);
        }
        if let Some(spatial) = &spatial {
            self.spatial.push(spatial);
        }
        if let Some(logits) = &logits {
            self.score.push(logits);
        }
        if self.keep == Keep::All {
            for (rows, part) in self.kept.iter_mut().zip([spatial, logits]) {
                part.iter().for_each(|part| rows.push(part));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Statistics, BoxError> {
        if self.count == 0 {
            return Ok(Self::nothing());
        }
        Ok(Statistics {
            count: self.count,
            pool: self.pool.finish(),
            spatial: self.spatial.finish(),
            score: self.score.finish(),
            features: self.features.finish().unwrap_or_else(|| Self::nothing().features),
            kept: self.kept.map(Rows::finish),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random;

    fn batch(rows: i64, seed: u64) -> FeatureBatch {
        let features = |width| random::normal(&[rows, width], Device::Cpu, seed).unwrap();
        FeatureBatch { pool: features(POOL), spatial: Some(features(SPATIAL)), logits: None }
    }

    #[test]
    fn rows_beyond_the_room_of_one_tensor_are_all_there_in_their_order() {
        for stated in [0, 5, u64::MAX] {
            let mut rows = Rows::with_room_for(stated);
            let parts = [40_000, 25_536, 1, 70_000, 3].map(|n| random::normal(&[n, 2], Device::Cpu, n as u64).unwrap());
            parts.iter().for_each(|part| rows.push(part));
            assert!(rows.finish().unwrap().equal(&Tensor::cat(&parts, 0)), "{stated}");
        }
        assert!(Rows::with_room_for(7).finish().is_none());
    }

    #[test]
    fn what_is_kept_changes_no_statistic_and_an_interrupted_set_has_the_rows_that_came() {
        let collected = |keep| {
            let mut sink = CollectFeatures::of(9, keep);
            for (rows, seed) in [(3, 0), (2, 1)] {
                let _ = sink.consume(batch(rows, seed)).unwrap();
            }
            sink.finish(End::Interrupted).unwrap()
        };
        let [nothing, pooled, all] = [Keep::Nothing, Keep::Pooled, Keep::All].map(collected);
        let rows = |features: &Tensor| features.size()[0];
        assert_eq!(
            [&nothing, &pooled, &all].map(|found| (found.count, rows(&found.features))),
            [(5, 0), (5, 5), (5, 5)]
        );
        assert!(all.features.equal(&Tensor::cat(&[batch(3, 0).pool, batch(2, 1).pool], 0)));
        assert!(all.kept[1].is_none() && pooled.kept[0].is_none());
        assert_eq!(all.kept[0].as_ref().map(rows), Some(5));
        let mean = |found: &Statistics| found.pool.as_ref().unwrap().mean().copy();
        assert!(mean(&nothing).equal(&mean(&all)));
    }

    #[test]
    fn a_feature_that_is_not_finite_names_the_picture() {
        let weights = |width| Tensor::full([1, width], 1.0, (Kind::Float, Device::Cpu));
        let features = FeatureBatch { pool: weights(POOL), spatial: Some(weights(SPATIAL)), logits: None };
        check_finite([&features.pool, features.spatial.as_ref().unwrap()], 40).unwrap();
        let _ = features.spatial.as_ref().unwrap().get(0).get(7).fill_(f64::NAN);
        let error = check_finite([&features.pool, features.spatial.as_ref().unwrap()], 40).unwrap_err();
        assert!(error.to_string().starts_with("a feature of picture 40 (counted from 0) is not finite"), "{error}");
    }
}
