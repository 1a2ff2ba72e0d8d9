//! Dual-path sampling (paper section 4.1): the K noisy views of each image of a batch.
//!
//! Everything random about a step is drawn here, for the *global* batch, before any of it is split: a micro-batch or
//! a device then takes a slice. See [`super::random`] for the keys.

use tch::{Device, Kind, Tensor};

use super::config::LatentShape;
use super::objective::config::{ObjectiveConfig, TimeDistribution};
use super::random::{self, Purpose, seed_of};
use crate::native::NativeError;

/// The draws of one step; B images, K views.
#[derive(Debug)]
pub struct Views {
    /// Noise of the autoencoder's posterior: f32 `[1, B, C, h, w]`, one draw an image, shared by its views; or one for each
    /// view, `[K, B, C, h, w]`.
    pub posterior_noise: Tensor,
    /// t_k ~ U(0, 1): f32 `[K, B]`.
    pub t: Tensor,
    /// eps_k ~ N(0, I): f32 `[K, B, C, h, w]`.
    pub noise: Tensor,
    /// Which labels become the null class: bool `[K, B]`.
    pub drop_label: Tensor,
    /// Another image of the batch for each, i64 `[B]`; only drawn where the objective contrasts images.
    pub others: Option<Tensor>,
}

impl Views {
    /// Draws for a global batch of `batch` images at `step` of a run, on `device`, whose kind decides the values
    /// ([`random::normal`]).
    ///
    /// # Errors
    /// libtorch's; none are known.
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

        let times = per_view(!objective.resample_t, &[batch]);
        let t = match objective.time {
            TimeDistribution::Uniform => random::uniform(&times, device, key(Purpose::Time))?,
            TimeDistribution::LogitNormal => random::normal(&times, device, key(Purpose::Time))?.sigmoid(),
        };
        let noise = random::normal(&per_view(!objective.resample_noise, &latent), device, key(Purpose::Noise))?;
        let drops = per_view(objective.share_label_drop, &[batch]);
        let drop = random::uniform(&drops, device, key(Purpose::LabelDrop))?;
        let posterior = per_view(!objective.resample_posterior, &latent);
        let others = match objective.contrastive > 0.0 {
            // Uniform among the others: from 1 to B - 1 places on.
            true => {
                let draw = random::uniform(&[batch], device, key(Purpose::OtherImage))?;
                let places = (draw * (batch - 1) as f64).floor().to_kind(Kind::Int64) + 1;
                Some((Tensor::arange(batch, (Kind::Int64, device)) + places).remainder(batch))
            }
            false => None,
        };
        Ok(Self {
            posterior_noise: random::normal(&posterior, device, key(Purpose::Posterior))?,
            t: all_views(t),
            noise: all_views(noise),
            drop_label: all_views(drop).lt(objective.label_drop),
            others,
        })
    }

    /// The draws of images `start .. start + len` of the batch. `others` are numbers of the whole batch and stay only with
    /// all of it: [`ObjectiveConfig::across_images`].
    pub fn slice(&self, start: i64, len: i64) -> Self {
        let whole = len == self.t.size()[1];
        Self {
            posterior_noise: self.posterior_noise.narrow(1, start, len),
            t: self.t.narrow(1, start, len),
            noise: self.noise.narrow(1, start, len),
            drop_label: self.drop_label.narrow(1, start, len),
            others: self.others.as_ref().filter(|_| whole).map(Tensor::shallow_clone),
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
    fn what_the_paper_leaves_open_is_drawn_as_the_keys_say() {
        let same = |x: &Tensor| x.get(0).equal(&x.get(1));
        let half = ObjectiveConfig { label_drop: 0.5, ..Default::default() };
        let shared = ObjectiveConfig { share_label_drop: true, ..half.clone() };
        let many = |objective: &ObjectiveConfig| Views::draw(objective, &DATA, 64, 9, 1, Device::Cpu).unwrap();
        assert!(!same(&many(&half).drop_label) && same(&many(&shared).drop_label));
        assert_eq!(many(&half).posterior_noise.size()[0], 1);
        let posterior = many(&ObjectiveConfig { resample_posterior: true, ..Default::default() }).posterior_noise;
        assert!(posterior.size()[0] == 2 && !same(&posterior));
        let t = many(&ObjectiveConfig { time: TimeDistribution::LogitNormal, ..Default::default() }).t;
        assert!(t.min().double_value(&[]) > 0.0 && t.max().double_value(&[]) < 1.0);
        // The logit of the logit-normal has variance 1, that of U(0, 1) has pi^2 / 3.
        let spread = t.logit(None::<f64>).std(false).double_value(&[]);
        assert!((0.8..1.2).contains(&spread), "{spread}");
    }

    #[test]
    fn every_image_is_contrasted_with_another_one_and_with_any() {
        let objective = ObjectiveConfig { contrastive: 0.05, ..Default::default() };
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..64 {
            let others: Vec<i64> = Vec::try_from(draw(&objective, step).others.unwrap()).unwrap();
            for (image, other) in (0..).zip(others) {
                assert!(other != image && (0..6).contains(&other));
                seen.insert((image, other));
            }
        }
        assert_eq!(seen.len(), 6 * 5);
        assert!(draw(&ObjectiveConfig::default(), 0).others.is_none());
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
