//! Dual-path sampling (paper section 4.1): the K noisy views of each image of a batch.
//!
//! Everything random about a step is drawn here, for the *global* batch, before any of it is split: a micro-batch or
//! a device then takes a slice. See [`super::random`] for the keys.

use tch::{Device, Kind, Tensor};

use super::config::{LatentShape, ObjectiveConfig};
use super::random::{self, Purpose, seed_of};
use crate::native::NativeError;

/// The draws of one step; B images, K views.
#[derive(Debug)]
pub struct Views {
    /// Noise of the autoencoder's posterior: f32 `[B, C, h, w]`. One draw an image, shared by its views.
    pub posterior_noise: Tensor,
    /// t_k ~ U(0, 1): f32 `[K, B]`.
    pub t: Tensor,
    /// eps_k ~ N(0, I): f32 `[K, B, C, h, w]`.
    pub noise: Tensor,
    /// Which labels become the null class: bool `[K, B]`.
    pub drop_label: Tensor,
}

impl Views {
    /// Draws for a global batch of `batch` images at `step` of a run.
    pub fn draw(
        objective: &ObjectiveConfig,
        data: &LatentShape,
        batch: i64,
        seed: u64,
        step: u64,
        device: Device,
    ) -> Result<Self, NativeError> {
        let k = objective.views;
        let key = |purpose| seed_of(seed, step, purpose);
        let latent = [batch, data.channels, data.height, data.width];
        let per_view = |shared: bool, shape: &[i64]| [&[if shared { 1 } else { k }], shape].concat();
        let all_views = |draw: Tensor| {
            let mut shape = draw.size();
            shape[0] = k;
            draw.expand(shape.as_slice(), false)
        };

        let t = random::uniform(&per_view(!objective.resample_t, &[batch]), device, key(Purpose::Time))?;
        let noise = random::normal(&per_view(!objective.resample_noise, &latent), device, key(Purpose::Noise))?;
        let drop = random::uniform(&[k, batch], device, key(Purpose::LabelDrop))?;
        Ok(Self {
            posterior_noise: random::normal(&latent, device, key(Purpose::Posterior))?,
            t: all_views(t),
            noise: all_views(noise),
            drop_label: drop.lt(objective.label_drop),
        })
    }

    /// The draws of images `start .. start + len` of the batch.
    pub fn slice(&self, start: i64, len: i64) -> Self {
        Self {
            posterior_noise: self.posterior_noise.narrow(0, start, len),
            t: self.t.narrow(1, start, len),
            noise: self.noise.narrow(1, start, len),
            drop_label: self.drop_label.narrow(1, start, len),
        }
    }

    /// The labels that each view sees: i64 `[K, B]`, from `labels` i64 `[B]`.
    pub fn labels(&self, labels: &Tensor, null_class: i64) -> Tensor {
        let null = Tensor::full([1], null_class, (Kind::Int64, labels.device()));
        null.where_self(&self.drop_label, &labels.unsqueeze(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: LatentShape = LatentShape { channels: 2, height: 3, width: 3, classes: 5 };

    fn draw(objective: &ObjectiveConfig, step: u64) -> Views {
        Views::draw(objective, &DATA, 6, 9, step, Device::Cpu).unwrap()
    }

    #[test]
    fn a_step_draws_the_same_whatever_was_drawn_before() {
        let objective = ObjectiveConfig::default();
        let first = draw(&objective, 3);
        let _ = draw(&objective, 4);
        let again = draw(&objective, 3);
        assert!(first.noise.equal(&again.noise) && first.t.equal(&again.t));
        assert!(!first.noise.equal(&draw(&objective, 4).noise));
    }

    #[test]
    fn views_share_exactly_what_is_not_resampled() {
        let same = |x: &Tensor| x.get(0).equal(&x.get(1));
        let both = draw(&ObjectiveConfig::default(), 0);
        assert!(!same(&both.t) && !same(&both.noise));
        let only_t = draw(&ObjectiveConfig { resample_noise: false, ..Default::default() }, 0);
        assert!(!same(&only_t.t) && same(&only_t.noise));
        let only_noise = draw(&ObjectiveConfig { resample_t: false, ..Default::default() }, 0);
        assert!(same(&only_noise.t) && !same(&only_noise.noise));
    }

    #[test]
    fn dropped_labels_become_the_null_class() {
        let views = draw(&ObjectiveConfig { label_drop: 1.0, ..Default::default() }, 0);
        let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 0]);
        assert!(views.labels(&labels, 5).eq(5).all().int64_value(&[]) == 1);
        let views = draw(&ObjectiveConfig { label_drop: 0.0, ..Default::default() }, 0);
        assert!(views.labels(&labels, 5).get(1).equal(&labels));
    }
}
