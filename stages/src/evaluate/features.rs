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
        for features in [&pool, &spatial, &logits] {
            let finite = features.isfinite().all_dim(1, false);
            if let Some(row) = (0..count as i64).find(|&row| finite.int64_value(&[row]) == 0) {
                return Err(NotFinite { picture: first + row as u64 }.into());
            }
        }
        Ok(FeatureBatch { pool, spatial: Some(spatial), logits: Some(logits) })
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
    /// All of `spatial`, f32 `[N, 2023]`, and of `logits`, `[N, 1008]`, where there are any and the sink was told to keep them.
    pub kept: [Option<Tensor>; 2],
}

/// Sink: adds up, and keeps the pooled features for precision and recall, 8 kB a picture; if told so all of them, 20 kB.
#[derive(Debug)]
pub struct CollectFeatures {
    count: u64,
    pool: Moments,
    spatial: Moments,
    score: InceptionScore,
    features: Vec<Tensor>,
    keeps: bool,
    kept: [Vec<Tensor>; 2],
}

impl CollectFeatures {
    /// One that keeps all features if `keeps`.
    pub fn keeping(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// What no pictures give.
    pub fn nothing() -> Statistics {
        let features = Tensor::zeros([0, POOL], (Kind::Float, Device::Cpu));
        Statistics { count: 0, pool: None, spatial: None, score: None, features, kept: [None, None] }
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
            keeps: false,
            kept: [Vec::new(), Vec::new()],
        }
    }
}

impl Sink for CollectFeatures {
    type In = FeatureBatch;
    type Output = Statistics;

    fn consume(&mut self, batch: FeatureBatch) -> Result<ControlFlow<()>, BoxError> {
        let FeatureBatch { pool, spatial, logits } = batch;
        self.count += pool.size()[0] as u64;
        self.pool.push(&pool);
        self.features.push(pool);
        if let Some(spatial) = &spatial {
            self.spatial.push(spatial);
        }
        if let Some(logits) = &logits {
            self.score.push(logits);
        }
        if self.keeps {
            self.kept[0].extend(spatial);
            self.kept[1].extend(logits);
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
            features: Tensor::cat(&self.features, 0),
            kept: self.kept.map(|parts| (!parts.is_empty()).then(|| Tensor::cat(&parts, 0))),
        })
    }
}
