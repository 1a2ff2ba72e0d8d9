//! Latents to pixels, by the decoder of the autoencoder.

use ndarray::Array4;
use pipeline::{BoxError, Stage, Worker};
use tch::{Device, Kind, Tensor, no_grad};

use super::generate::SampleLatents;
use super::write::SamplePixels;
use crate::load::feed::Scaling;
use crate::nets::autoencoder::{AutoencoderKl, VaeChoice};

/// Undoes the latents' scale and shift, decodes, and rounds as REPA does.
#[derive(Debug)]
pub struct DecodeLatents {
    vae: AutoencoderKl,
    device: Device,
    scaling: Scaling,
}

impl DecodeLatents {
    /// A factory that loads the autoencoder on the device of each worker. Scale and shift are those that the
    /// training data were made with.
    pub fn on(
        choice: VaeChoice,
        devices: Vec<Device>,
        scaling: Scaling,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |worker| {
            let device = devices[worker.index % devices.len()];
            Ok(Self { vae: choice.open(device, Kind::Float)?, device, scaling })
        }
    }

    /// With an autoencoder that is open already, on `device`.
    pub fn over(vae: AutoencoderKl, device: Device, scaling: Scaling) -> Self {
        Self { vae, device, scaling }
    }
}

/// From about [-1, 1] to u8 0..=255: 255 clamp((x + 1) / 2), truncated, the rule of REPA.
pub(super) fn to_levels(decoded: &Tensor) -> Tensor {
    (((decoded + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0).to_kind(Kind::Uint8)
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
            Ok(to_levels(&decoded).to_device(Device::Cpu))
        })?;
        let [_, channels, height, width] = pixels.size()[..] else { unreachable!("pixels have four dimensions") };
        let mut values = vec![0u8; pixels.numel()];
        pixels.contiguous().copy_data(&mut values, pixels.numel());
        let shape = (b, channels as usize, height as usize, width as usize);
        Ok(SamplePixels { request: samples.request, pixels: Array4::from_shape_vec(shape, values)? })
    }
}
