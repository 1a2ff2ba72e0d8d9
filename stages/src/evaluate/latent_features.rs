//! Pictures to averaged latents of the autoencoder, for a Frechet distance that needs no Inception weights.
//!
//! It says whether samples have the colours and the layout of real images, is no FID, and is comparable only with itself: same
//! autoencoder, same size of pictures.

use std::ops::ControlFlow;

use pipeline::{BoxError, End, Sink, Stage, Worker};
use tch::{Device, Kind, Tensor, no_grad};

use super::frechet::pooled_latents;
use super::pictures::PictureBatch;
use crate::nets::autoencoder::{AutoencoderKl, VaeChoice};

/// The autoencoder gave a value that is not finite.
#[derive(Debug, thiserror::Error)]
#[error(
    "a latent of the pictures {first} to {last} (counted from 0) is not finite; the autoencoder's weights are damaged"
)]
pub struct NotFinite {
    first: u64,
    last: u64,
}

/// Stage: the modes of the posteriors, scaled as a network sees them and averaged to 4 x 4; f32 `[B, 16 C]` on the host.
#[derive(Debug)]
pub struct EncodePictures {
    vae: AutoencoderKl,
}

impl EncodePictures {
    /// A factory that opens the autoencoder on the device of each worker, in f32.
    pub fn on(
        choice: VaeChoice,
        devices: Vec<Device>,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |worker| Ok(Self { vae: choice.open(devices[worker.index % devices.len()], Kind::Float)? })
    }
}

impl Stage for EncodePictures {
    type In = PictureBatch;
    type Out = Tensor;

    fn process(&mut self, pictures: PictureBatch) -> Result<Tensor, BoxError> {
        let PictureBatch { first, count, height, width, values } = pictures;
        let shape = [count, height, width, 3].map(|side| side as i64);
        no_grad(|| {
            let pixels = Tensor::f_from_slice(&values)?.f_view(shape)?.f_permute([0, 3, 1, 2])?;
            let pixels = pixels.f_to_device(self.vae.device())?.f_to_kind(Kind::Float)? / 127.5 - 1.0;
            let (mean, _) = self.vae.encode_moments(&pixels)?;
            let latents = (mean - self.vae.shift_factor()) * self.vae.scaling_factor();
            let features = pooled_latents(&latents).to_device(Device::Cpu);
            match features.isfinite().all().int64_value(&[]) {
                0 => Err(NotFinite { first, last: first + count as u64 - 1 }.into()),
                _ => Ok(features),
            }
        })
    }
}

/// Sink: all of them, f32 `[N, 16 C]`; `None` for no pictures.
#[derive(Debug, Default)]
pub struct CollectLatentFeatures(Vec<Tensor>);

impl Sink for CollectLatentFeatures {
    type In = Tensor;
    type Output = Option<Tensor>;

    fn consume(&mut self, features: Tensor) -> Result<ControlFlow<()>, BoxError> {
        self.0.push(features);
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Option<Tensor>, BoxError> {
        Ok((!self.0.is_empty()).then(|| Tensor::cat(&self.0, 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::frechet::LatentDistance;
    use crate::procedural::image;

    fn features(class: usize, seeds: std::ops::Range<u64>) -> Tensor {
        let mut stage = EncodePictures { vae: AutoencoderKl::tiny(Device::Cpu, Kind::Float).unwrap() };
        let (count, values) = (seeds.clone().count(), seeds.flat_map(|seed| image(class, seed, 32, 32)).collect());
        stage.process(PictureBatch { first: 0, count, height: 32, width: 32, values }).unwrap()
    }

    #[test]
    fn pictures_of_one_class_are_nearer_than_those_of_another() {
        let (real, same, other) = (features(0, 0..100), features(0, 100..200), features(5, 0..100));
        assert_eq!(real.size(), [100, 64]);
        let distance = |samples: &Tensor| LatentDistance::of_features(samples, &real).unwrap().samples;
        assert!(3.0 * distance(&same) < distance(&other), "{} {}", distance(&same), distance(&other));
        assert!(distance(&real).abs() < 1e-6);
    }
}
