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
    /// Position of each in its dataset (`HostBatch::positions`), all different.
    pub positions: Vec<u64>,
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
        let positions = self.positions[start as usize..(start + len) as usize].to_vec();
        Self { latents: self.latents.narrow(0, start, len), labels: self.labels.narrow(0, start, len), positions }
    }
}

/// Keeps every batch. What stands in the place of a sample that could not be read is left out: no latent counts twice.
#[derive(Debug)]
pub struct CollectLatents {
    feeder: Feeder,
    latents: Vec<Tensor>,
    labels: Vec<Tensor>,
    positions: Vec<u64>,
}

impl CollectLatents {
    /// `feeder` puts them on its device.
    pub fn new(feeder: Feeder) -> Self {
        Self { feeder, latents: Vec::new(), labels: Vec::new(), positions: Vec::new() }
    }
}

impl Sink for CollectLatents {
    type In = Slab<HostBatch>;
    /// `None` if no batch came.
    type Output = Option<Latents>;

    fn consume(&mut self, batch: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        let rows: Vec<i64> = (0..).take(batch.shape[0]).filter(|row| !batch.filled.contains(&(*row as u32))).collect();
        self.positions.extend(rows.iter().map(|row| batch.positions[*row as usize]));
        let batch = self.feeder.feed(batch, None)?;
        let rows = Tensor::from_slice(&rows).to_device(batch.labels.device());
        self.latents.push(batch.latents.squeeze_dim(0).index_select(0, &rows));
        self.labels.push(batch.labels.index_select(0, &rows));
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Option<Latents>, BoxError> {
        let join = |parts: &[Tensor]| Tensor::cat(parts, 0);
        let positions = self.positions;
        Ok((!self.labels.is_empty()).then(|| Latents {
            latents: join(&self.latents),
            labels: join(&self.labels),
            positions,
        }))
    }
}

#[cfg(test)]
mod tests {
    use pipeline::{Slabs, Stop};
    use tch::Device;

    use super::*;
    use crate::load::feed::Scaling;

    #[test]
    fn what_stands_in_for_a_lost_sample_is_left_out() {
        let mut made = HostBatch::with_room([3, 1, 2, 2], false, false).unwrap();
        made.labels.copy_from_slice(&[4, 4, 2]);
        (made.positions, made.filled) = (vec![9, 9, 5], vec![1]);
        let mut made = Some(made);
        let slabs = Slabs::new(1, || made.take().unwrap());
        let scaling = Scaling { factor: 1.0, shift: 0.0 };
        let mut sink = CollectLatents::new(Feeder::new(Device::Cpu, scaling));
        let _ = sink.consume(slabs.take(&Stop::never()).unwrap()).unwrap();
        let latents = sink.finish(End::Complete).unwrap().unwrap();
        assert_eq!((latents.len(), latents.latents.size()), (2, vec![2, 1, 2, 2]));
        assert_eq!((latents.positions, Vec::<i64>::try_from(latents.labels).unwrap()), (vec![9, 5], vec![4, 2]));
    }
}
