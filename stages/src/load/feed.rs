//! From a batch on the host to latents on the device: the only part of the load side that touches tensors.
//!
//! It is no stage: tensors are made by the thread that owns the device, on the stream that the step runs on. It draws
//! nothing: the posterior's noise comes from the step, which draws it for the global batch.

use std::collections::VecDeque;

use pipeline::Slab;
use shards::Schema;
use tch::{Device, Kind, TchError, Tensor, no_grad};

use super::LEAST_PREFETCH;
use crate::data::{HostBatch, LatentBatch};
use crate::native::memory::{Element, Event, with_tensor};
use crate::native::{NativeError, fill_normal};

/// How stored values become latents: `(z - shift) * factor`, for about unit variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaling {
    /// Scaling factor of the autoencoder: 0.18215 for SD.
    pub factor: f64,
    /// Shift of the autoencoder: 0 for SD.
    pub shift: f64,
}

impl Scaling {
    /// That of a dataset: nothing is left to do where its values are scaled already (then its posterior is that
    /// of the scaled latents).
    pub fn of(schema: &Schema) -> Self {
        if schema.scaling_applied {
            Self { factor: 1.0, shift: 0.0 }
        } else {
            Self { factor: schema.scaling_factor, shift: schema.shift_factor }
        }
    }
}

/// Why a batch did not reach the device.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// Noise of another shape.
    #[error("the posterior noise of batch {batch} has shape {got:?}, expected [draws, {}, {}, {}, {}]", expected[0], expected[1], expected[2], expected[3])]
    NoiseShape {
        /// Number of the batch.
        batch: u64,
        /// `[rows, C, h, w]`, after the number of draws.
        expected: [i64; 4],
        /// As given.
        got: Vec<i64>,
    },
    /// libtorch refused, most likely for want of memory on the device.
    #[error(transparent)]
    Torch(#[from] TchError),
    /// A copy to the device failed.
    #[error(transparent)]
    Copy(#[from] NativeError),
}

/// Batches that the device may still be copying; more wait for the oldest copy.
const MOST_LENT: usize = LEAST_PREFETCH - 1;

/// One device's end of the load side, on the thread that owns it.
#[derive(Debug)]
pub struct Feeder {
    device: Device,
    scaling: Scaling,
    /// Batches whose copy was asked for, oldest first.
    lent: VecDeque<(Event, Slab<HostBatch>)>,
}

impl Feeder {
    /// For `device`; `scaling` makes latents of stored values.
    pub fn new(device: Device, scaling: Scaling) -> Self {
        Self { device, scaling, lent: VecDeque::with_capacity(MOST_LENT + 1) }
    }

    /// Puts `host` on the device as `(mean + exp(logvar / 2) * posterior_noise - shift) * factor`, f32.
    ///
    /// `posterior_noise`: N(0, 1), f32 `[V, rows, C, h, w]`, the same rows of the global draw, once or for each view; without
    /// it the result is the posterior's mode, with V = 1. Datasets without log-variances (means only, or drawn samples) take no noise and ignore it.
    ///
    /// On a CUDA device the f16 moments are copied asynchronously on the current stream, out of pinned memory if the
    /// loader made it so; the buffer goes back to the loader when an event says that the copy is done, which is looked
    /// at here. On the CPU it goes back at once.
    pub fn feed(&mut self, host: Slab<HostBatch>, posterior_noise: Option<&Tensor>) -> Result<LatentBatch, FeedError> {
        let batch = no_grad(|| to_latents(&host, posterior_noise, self.scaling, self.device));
        if let Device::Cuda(index) = self.device {
            // Also after an error: a copy may have been asked for.
            self.lent.push_back((Event::record(index)?, host));
            while let Some((event, _)) = self.lent.front() {
                if !event.is_done()? {
                    if self.lent.len() <= MOST_LENT {
                        break;
                    }
                    event.wait()?;
                }
                self.lent.pop_front();
            }
        }
        batch
    }

    /// As [`Self::feed`], with noise that is drawn on the device from `seed`: what a step does, for where there is none.
    pub fn draw(&mut self, host: Slab<HostBatch>, seed: u64) -> Result<LatentBatch, FeedError> {
        let shape = [&[1], host.shape.map(|n| n as i64).as_slice()].concat();
        let mut noise = Tensor::f_empty(shape, (Kind::Float, self.device))?;
        fill_normal(&mut noise, seed)?;
        self.feed(host, Some(&noise))
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        for (event, _) in &self.lent {
            // Memory must not be written or freed under a copy. An error means that CUDA has failed and copies nothing.
            let _ = event.wait();
        }
    }
}

fn to_latents(
    host: &HostBatch,
    posterior_noise: Option<&Tensor>,
    scaling: Scaling,
    device: Device,
) -> Result<LatentBatch, FeedError> {
    let shape = host.shape.map(|n| n as i64);
    let mut latents = copied(&host.mean, &shape, device)?.f_to_kind(Kind::Float)?.f_unsqueeze(0)?;
    if let Some(noise) = posterior_noise
        && !host.logvar.is_empty()
    {
        if noise.size().get(1..) != Some(&shape[..]) {
            return Err(FeedError::NoiseShape { batch: host.batch, expected: shape, got: noise.size() });
        }
        let deviation = copied(&host.logvar, &shape, device)?.f_to_kind(Kind::Float)?.f_mul_scalar_(0.5)?.f_exp_()?;
        latents = match noise.size()[0] {
            1 => latents.f_addcmul_(&deviation, noise)?,
            _ => latents.f_addcmul(&deviation, noise)?,
        };
    }
    // Without these a dataset that is scaled already would still cost two passes.
    if scaling.shift != 0.0 {
        latents = latents.f_sub_scalar_(scaling.shift)?;
    }
    if scaling.factor != 1.0 {
        latents = latents.f_mul_scalar_(scaling.factor)?;
    }
    Ok(LatentBatch { latents, labels: copied(&host.labels, &shape[..1], device)? })
}

/// A tensor of its own on `device`; the copy to a CUDA device is only asked for.
fn copied<T: Element>(values: &[T], shape: &[i64], device: Device) -> Result<Tensor, TchError> {
    with_tensor(values, shape, |tensor| tensor.f_to_device_(device, T::KIND, true, true))
}

#[cfg(test)]
mod tests {
    use half::f16;
    use pipeline::{Slabs, Stop};

    use super::*;

    fn batch(logvar: bool) -> HostBatch {
        let mut batch = HostBatch::with_room([3, 1, 2, 2], logvar, false).unwrap();
        batch.batch = 5;
        let fill = |values: &mut [f16], scale: f32| {
            (0..).zip(values).for_each(|(i, value)| *value = f16::from_f32(i as f32 * scale));
        };
        fill(&mut batch.mean, 0.25);
        fill(&mut batch.logvar, -0.5);
        batch.labels.copy_from_slice(&[3, 1, 2]);
        batch
    }

    fn noise(rows: i64) -> Tensor {
        (Tensor::arange(rows * 4, (Kind::Float, Device::Cpu)) * 0.5 - 1.0).view([1, rows, 1, 2, 2])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    const SD: Scaling = Scaling { factor: 0.18215, shift: 0.125 };

    #[test]
    fn a_latent_is_mean_plus_deviation_times_noise_shifted_and_scaled() {
        let latents = to_latents(&batch(true), Some(&noise(3)), SD, Device::Cpu).unwrap();
        assert_eq!(latents.latents.size(), [1, 3, 1, 2, 2]);
        assert_eq!((latents.latents.kind(), latents.labels.kind()), (Kind::Float, Kind::Int64));
        for (i, got) in values(&latents.latents).into_iter().enumerate() {
            let i = i as f64;
            let expected = (0.25 * i + (-0.25 * i).exp() * (0.5 * i - 1.0) - 0.125) * 0.18215;
            assert!((f64::from(got) - expected).abs() < 1e-6, "{i}: {got} for {expected}");
        }
        assert_eq!(Vec::<i64>::try_from(&latents.labels).unwrap(), [3, 1, 2]);
    }

    #[test]
    fn without_log_variances_noise_is_ignored_and_without_noise_the_mode_is_taken() {
        let identity = Scaling { factor: 1.0, shift: 0.0 };
        let sample = to_latents(&batch(false), Some(&noise(3)), identity, Device::Cpu).unwrap();
        let mode = to_latents(&batch(true), None, identity, Device::Cpu).unwrap();
        let mean: Vec<f32> = (0..12).map(|i| i as f32 * 0.25).collect();
        assert_eq!(values(&sample.latents), mean);
        assert_eq!(values(&mode.latents), mean);
    }

    #[test]
    fn wrong_noise_is_an_error_that_says_what_was_expected() {
        let shape = to_latents(&batch(true), Some(&noise(2)), SD, Device::Cpu).unwrap_err();
        assert_eq!(
            shape.to_string(),
            "the posterior noise of batch 5 has shape [1, 2, 1, 2, 2], expected [draws, 3, 1, 2, 2]"
        );
    }

    #[test]
    fn on_the_cpu_the_buffer_is_back_at_once_and_the_latents_keep_their_values() {
        let mut made = Some(batch(true));
        let slabs = Slabs::new(1, || made.take().unwrap());
        let mut feeder = Feeder::new(Device::Cpu, SD);
        let fed = feeder.feed(slabs.take(&Stop::never()).unwrap(), None).unwrap();
        assert_eq!(slabs.available(), 1);
        let before = values(&fed.latents);
        slabs.take(&Stop::never()).unwrap().mean.fill(f16::ONE);
        assert_eq!(values(&fed.latents), before);
        assert_eq!(Vec::<i64>::try_from(&fed.labels).unwrap(), [3, 1, 2]);
    }

    #[test]
    fn the_noise_and_the_batch_are_left_as_they_were() {
        let (host, noise) = (batch(true), noise(3));
        let before = (values(&noise), host.mean.to_vec());
        let _ = to_latents(&host, Some(&noise), SD, Device::Cpu).unwrap();
        assert_eq!((values(&noise), host.mean.to_vec()), before);
    }
}
