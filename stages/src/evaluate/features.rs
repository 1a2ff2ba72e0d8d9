//! Pictures to Inception's features, and these to what the metrics need.

use std::ops::ControlFlow;
use std::path::PathBuf;

use pipeline::{BoxError, End, Sink, Stage, Worker};
use tch::{Device, Kind, Tensor};

use super::frechet::Gaussian;
use super::inception_score::InceptionScore;
use super::moments::Moments;
use super::pictures::PictureBatch;
use crate::nets::inception::{Inception, InceptionFeatures, POOL, SPATIAL};

/// The features of a [`PictureBatch`], on the host.
#[derive(Debug)]
pub struct FeatureBatch {
    /// Number of the first picture.
    pub first: u64,
    /// f32, see [`InceptionFeatures`].
    pub features: InceptionFeatures,
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
    /// A factory that reads the weights to the device of each worker.
    pub fn on(
        weights: PathBuf,
        devices: Vec<Device>,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
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
        for features in [&pool, &spatial, &logits] {
            let finite = features.isfinite().all_dim(1, false);
            if let Some(row) = (0..count as i64).find(|&row| finite.int64_value(&[row]) == 0) {
                return Err(NotFinite { picture: first + row as u64 }.into());
            }
        }
        Ok(FeatureBatch { first, features: InceptionFeatures { pool, spatial, logits } })
    }
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
    /// All of `pool`, f32 `[N, 2048]`.
    pub features: Tensor,
}

/// Sink: adds up, and keeps the pooled features for precision and recall, 8 kB a picture.
#[derive(Debug)]
pub struct CollectFeatures {
    count: u64,
    pool: Moments,
    spatial: Moments,
    score: InceptionScore,
    features: Vec<Tensor>,
}

impl CollectFeatures {
    /// What no pictures give.
    pub fn nothing() -> Statistics {
        let features = Tensor::zeros([0, POOL], (Kind::Float, Device::Cpu));
        Statistics { count: 0, pool: None, spatial: None, score: None, features }
    }
}

impl Default for CollectFeatures {
    fn default() -> Self {
        Self {
            count: 0,
            pool: Moments::new(POOL),
            spatial: Moments::new(SPATIAL),
            score: InceptionScore::default(),
            features: Vec::new(),
        }
    }
}

impl Sink for CollectFeatures {
    type In = FeatureBatch;
    type Output = Statistics;

    fn consume(&mut self, batch: FeatureBatch) -> Result<ControlFlow<()>, BoxError> {
        let InceptionFeatures { pool, spatial, logits } = batch.features;
        self.count += pool.size()[0] as u64;
        self.pool.push(&pool);
        self.spatial.push(&spatial);
        self.score.push(&logits);
        self.features.push(pool);
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
            features: Tensor::cat(&self.features, 0),
        })
    }
}
