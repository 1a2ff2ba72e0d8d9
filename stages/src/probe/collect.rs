//! All latents of a small dataset, or of a sample of a large one, in one tensor.

use std::ops::ControlFlow;

use pipeline::{BoxError, End, Sink, Slab};
use tch::Tensor;

use crate::data::HostBatch;
use crate::load::feed::Feeder;

/// Latents on a device.
#[derive(Debug)]
pub struct Latents {
    /// f32 `[N, C, h, w]`: modes of the posteriors, scaled.
    pub latents: Tensor,
    /// i64 `[N]`, class indices.
    pub labels: Tensor,
}

impl Latents {
    /// How many.
    pub fn len(&self) -> i64 {
        self.labels.size()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Share of the most frequent class, in 0..=1; `classes` is more than any label.
    pub fn most_frequent(&self, classes: i64) -> f64 {
        self.labels.bincount(None::<&Tensor>, classes).max().double_value(&[]) / self.len() as f64
    }

    /// Those from `start` on, `len` of them.
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        Self { latents: self.latents.narrow(0, start, len), labels: self.labels.narrow(0, start, len) }
    }
}

/// Keeps every batch.
#[derive(Debug)]
pub struct CollectLatents {
    feeder: Feeder,
    latents: Vec<Tensor>,
    labels: Vec<Tensor>,
}

impl CollectLatents {
    /// `feeder` puts them on its device.
    pub fn new(feeder: Feeder) -> Self {
        Self { feeder, latents: Vec::new(), labels: Vec::new() }
    }
}

impl Sink for CollectLatents {
    type In = Slab<HostBatch>;
    /// `None` if no batch came.
    type Output = Option<Latents>;

    fn consume(&mut self, batch: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        let batch = self.feeder.feed(batch, None)?;
        self.latents.push(batch.latents.squeeze_dim(0));
        self.labels.push(batch.labels);
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Option<Latents>, BoxError> {
        let join = |parts: &[Tensor]| Tensor::cat(parts, 0);
        Ok((!self.labels.is_empty()).then(|| Latents { latents: join(&self.latents), labels: join(&self.labels) }))
    }
}
