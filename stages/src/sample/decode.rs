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

/// Undoes the latents' scale and shift, decodes, and rounds.
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

    #[test]
    fn the_two_roundings_differ_by_half_a_level_and_both_clamp() {
        let x = Tensor::from_slice(&[-1.2f32, -1.0, -0.999, 0.0, 0.0039, 0.5, 0.9999, 1.0, 1.2]);
        let levels = |rounding| Vec::<u8>::try_from(to_levels(&x, rounding)).unwrap();
        assert_eq!(levels(Rounding::Repa), [0, 0, 0, 127, 127, 191, 254, 255, 255]);
        assert_eq!(levels(Rounding::Sit), [0, 0, 0, 128, 128, 191, 255, 255, 255]);
    }
}
