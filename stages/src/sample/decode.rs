//! Latents to pixels, by the decoder of the autoencoder.

use ndarray::Array4;
use pipeline::{BoxError, Stage, Worker};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::generate::SampleLatents;
use super::write::SamplePixels;
use crate::load::feed::Scaling;
use crate::nets::autoencoder::{AutoencoderKl, VaeChoice};

/// How a decoded value x, of about [-1, 1], becomes one of the 256 levels. Both truncate what is left of the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// 255 clamp((x + 1) / 2), of REPA: on average half a level darker than the nearest.
    #[default]
    Repa,
    /// clamp(127.5 x + 128), of SiT, DiT and ADM: nearly the nearest.
    Sit,
}

/// A value that was decoded is not finite.
#[derive(Debug, thiserror::Error)]
#[error(
    "image {index}: its latents are finite, and what the autoencoder decodes them to is not; its weights are damaged, or of \
     another scale than the latents (--vae)"
)]
pub struct NotFinite {
    /// Number of the image.
    index: u64,
}

/// Stage: undoes the latents' scale and shift, decodes, and rounds; f32 `[B, C, h, w]` to u8 `[B, 3, H, W]`, RGB, where H and W
/// are h and w times what the autoencoder enlarges by, on one device in f32. What is decoded is about -1 to 1 and is clamped to
/// that; a value that is not finite is an error.
#[derive(Debug)]
pub struct DecodeLatents {
    vae: AutoencoderKl,
    device: Device,
    scaling: Scaling,
    rounding: Rounding,
}

impl DecodeLatents {
    /// A factory that loads the autoencoder on the device of each worker. Scale and shift are those that the
    /// training data were made with.
    pub fn on(
        choice: VaeChoice,
        devices: Vec<Device>,
        scaling: Scaling,
        rounding: Rounding,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |worker| {
            let device = devices[worker.index % devices.len()];
            Ok(Self { vae: choice.open(device, Kind::Float)?, device, scaling, rounding })
        }
    }

    /// With an autoencoder that is open already, on `device`; rounds as REPA.
    pub fn over(vae: AutoencoderKl, device: Device, scaling: Scaling) -> Self {
        Self { vae, device, scaling, rounding: Rounding::Repa }
    }
}

/// From about [-1, 1] to u8 0..=255.
pub(super) fn to_levels(decoded: &Tensor, rounding: Rounding) -> Tensor {
    let levels = match rounding {
        Rounding::Repa => ((decoded + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0,
        Rounding::Sit => (decoded * 127.5 + 128.0).clamp(0.0, 255.0),
    };
    levels.to_kind(Kind::Uint8)
}

impl Stage for DecodeLatents {
    type In = SampleLatents;
    type Out = SamplePixels;

    fn process(&mut self, samples: SampleLatents) -> Result<SamplePixels, BoxError> {
        let (b, c, h, w) = samples.latents.dim();
        let shape = [b as i64, c as i64, h as i64, w as i64];
        let values = samples.latents.as_standard_layout();
        let latents = Tensor::from_slice(values.as_slice().ok_or("latents are not contiguous")?).view(shape);
        let pixels = no_grad(|| -> Result<Tensor, BoxError> {
            let unscaled = latents.to_device(self.device) / self.scaling.factor + self.scaling.shift;
            let decoded = self.vae.decode(&unscaled)?;
            let finite = decoded.isfinite().flatten(1, -1).all_dim(1, false).to_device(Device::Cpu);
            if let Some(row) = (0..b as i64).find(|&row| finite.int64_value(&[row]) == 0) {
                return Err(NotFinite { index: samples.request.indices[row as usize] }.into());
            }
            Ok(to_levels(&decoded, self.rounding).to_device(Device::Cpu))
        })?;
        let [_, channels, height, width] = pixels.size()[..] else { unreachable!("pixels have four dimensions") };
        let mut values = vec![0u8; pixels.numel()];
        pixels.contiguous().copy_data(&mut values, pixels.numel());
        let shape = (b, channels as usize, height as usize, width as usize);
        let pixels = Array4::from_shape_vec(shape, values)?;
        Ok(SamplePixels { request: samples.request, latents: samples.latents, pixels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::request::SampleRequest;

    #[test]
    fn what_decodes_to_no_number_is_refused_with_the_number_of_the_image() {
        let scaling = Scaling { factor: 1.0, shift: 0.0 };
        let vae = AutoencoderKl::tiny(Device::Cpu, Kind::Float).unwrap();
        let mut stage = DecodeLatents::over(vae, Device::Cpu, scaling);
        let mut process = |value: f32| {
            let mut latents = Array4::zeros((2, 4, 4, 4));
            latents[[1, 2, 3, 0]] = value;
            stage.process(SampleLatents { request: SampleRequest { indices: vec![6, 7], labels: vec![0, 0] }, latents })
        };
        assert_eq!(process(3.0).unwrap().pixels.dim(), (2, 3, 32, 32));
        let error = process(f32::MAX).unwrap_err().to_string();
        assert!(error.starts_with("image 7: its latents are finite"), "{error}");
    }

    #[test]
    fn the_two_roundings_differ_by_half_a_level_and_both_clamp() {
        let x = Tensor::from_slice(&[-1.2f32, -1.0, -0.999, 0.0, 0.0039, 0.5, 0.9999, 1.0, 1.2]);
        let levels = |rounding| Vec::<u8>::try_from(to_levels(&x, rounding)).unwrap();
        assert_eq!(levels(Rounding::Repa), [0, 0, 0, 127, 127, 191, 254, 255, 255]);
        assert_eq!(levels(Rounding::Sit), [0, 0, 0, 128, 128, 191, 255, 255, 255]);
    }
}
