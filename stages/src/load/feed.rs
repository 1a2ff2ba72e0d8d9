//! From a batch on the host to latents on the device: the only part of the load side that touches tensors.
//!
//! It is a function and not a stage: tensors are made by the thread that owns the device, on the stream that the
//! step runs on. It draws nothing: the posterior's noise comes from the step, which draws it for the global batch.

use std::ops::Range;

use shards::Schema;
use tch::{Device, Kind, TchError, Tensor};

use crate::data::{HostBatch, LatentBatch};

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
    /// Rows that the batch has not.
    #[error("rows {}..{} were asked of batch {batch}, which has {size}", rows.start, rows.end)]
    Rows {
        /// Number of the batch.
        batch: u64,
        /// As asked.
        rows: Range<usize>,
        /// Rows of the batch.
        size: usize,
    },
    /// Noise of another shape.
    #[error("the posterior noise of batch {batch} has shape {got:?}, expected {expected:?}")]
    NoiseShape {
        /// Number of the batch.
        batch: u64,
        /// `[rows, C, h, w]`.
        expected: [i64; 4],
        /// As given.
        got: Vec<i64>,
    },
    /// libtorch refused, most likely for want of memory on the device.
    #[error(transparent)]
    Torch(#[from] TchError),
}

/// Puts `rows` of `host` (the slice of a rank or micro-batch; `0..B` is all) on `device` as
/// `(mean + exp(logvar / 2) * posterior_noise - shift) * factor`, f32.
///
/// `posterior_noise`: N(0, 1), f32 `[rows, C, h, w]`, the same rows of the global draw; without it the result is the
/// posterior's mode. Datasets without log-variances (means only, or drawn samples) take no noise and ignore it.
///
/// On a CUDA device the f16 moments are copied asynchronously on the current stream, out of pinned memory of
/// libtorch's, which it keeps until the copy is done; `host` may be dropped as soon as this returns.
pub fn to_latents(
    host: &HostBatch,
    rows: Range<usize>,
    posterior_noise: Option<&Tensor>,
    scaling: Scaling,
    device: Device,
) -> Result<LatentBatch, FeedError> {
    let [size, channels, height, width] = host.shape;
    if rows.start > rows.end || rows.end > size {
        return Err(FeedError::Rows { batch: host.batch, rows, size });
    }
    let shape = [rows.len(), channels, height, width].map(|n| n as i64);
    let values = channels * height * width;
    let moments = |all: &[half::f16]| -> Result<Tensor, TchError> {
        let here = Tensor::f_from_slice(&all[rows.start * values..rows.end * values])?.f_view(shape)?;
        move_to(&here, device)?.f_to_kind(Kind::Float)
    };

    let mut latents = moments(&host.mean)?;
    if let Some(noise) = posterior_noise
        && !host.logvar.is_empty()
    {
        if noise.size() != shape {
            return Err(FeedError::NoiseShape { batch: host.batch, expected: shape, got: noise.size() });
        }
        let deviation = moments(&host.logvar)?.f_mul_scalar_(0.5)?.f_exp_()?;
        latents = latents.f_addcmul_(&deviation, noise)?;
    }
    // Without these a dataset that is scaled already would still cost two passes.
    if scaling.shift != 0.0 {
        latents = latents.f_sub_scalar_(scaling.shift)?;
    }
    if scaling.factor != 1.0 {
        latents = latents.f_mul_scalar_(scaling.factor)?;
    }
    let labels = move_to(&Tensor::f_from_slice(&host.labels[rows])?, device)?;
    Ok(LatentBatch { latents, labels })
}

fn move_to(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    if !device.is_cuda() {
        return tensor.f_to_device(device);
    }
    // libtorch's allocator of pinned memory notes the stream of a non-blocking copy, and lends the memory again only
    // when the copy is done. (The public `pin_memory` warns that its device argument is deprecated.)
    tensor.f_internal_pin_memory(device)?.f_to_device_(device, tensor.kind(), true, false)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn batch(logvar: bool) -> HostBatch {
        let ramp = |scale: f32| (0..12).map(|i| f16::from_f32(i as f32 * scale)).collect();
        HostBatch {
            batch: 5,
            mean: ramp(0.25),
            logvar: if logvar { ramp(-0.5) } else { Vec::new() },
            labels: vec![3, 1, 2],
            positions: vec![7, 8, 9],
            shape: [3, 1, 2, 2],
        }
    }

    fn noise(rows: i64) -> Tensor {
        (Tensor::arange(rows * 4, (Kind::Float, Device::Cpu)) * 0.5 - 1.0).view([rows, 1, 2, 2])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    const SD: Scaling = Scaling { factor: 0.18215, shift: 0.125 };

    #[test]
    fn a_latent_is_mean_plus_deviation_times_noise_shifted_and_scaled() {
        let latents = to_latents(&batch(true), 0..3, Some(&noise(3)), SD, Device::Cpu).unwrap();
        assert_eq!(latents.latents.size(), [3, 1, 2, 2]);
        assert_eq!((latents.latents.kind(), latents.labels.kind()), (Kind::Float, Kind::Int64));
        for (i, got) in values(&latents.latents).into_iter().enumerate() {
            let i = i as f64;
            let expected = (0.25 * i + (-0.25 * i).exp() * (0.5 * i - 1.0) - 0.125) * 0.18215;
            assert!((f64::from(got) - expected).abs() < 1e-6, "{i}: {got} for {expected}");
        }
        assert_eq!(Vec::<i64>::try_from(&latents.labels).unwrap(), [3, 1, 2]);
    }

    #[test]
    fn rows_are_the_same_rows_of_the_whole() {
        let (host, noise) = (batch(true), noise(3));
        let whole = to_latents(&host, 0..3, Some(&noise), SD, Device::Cpu).unwrap();
        let part = to_latents(&host, 1..3, Some(&noise.narrow(0, 1, 2)), SD, Device::Cpu).unwrap();
        assert!(part.latents.equal(&whole.latents.narrow(0, 1, 2)));
        assert!(part.labels.equal(&whole.labels.narrow(0, 1, 2)));
    }

    #[test]
    fn without_log_variances_noise_is_ignored_and_without_noise_the_mode_is_taken() {
        let identity = Scaling { factor: 1.0, shift: 0.0 };
        let sample = to_latents(&batch(false), 0..3, Some(&noise(3)), identity, Device::Cpu).unwrap();
        let mode = to_latents(&batch(true), 0..3, None, identity, Device::Cpu).unwrap();
        let mean: Vec<f32> = (0..12).map(|i| i as f32 * 0.25).collect();
        assert_eq!(values(&sample.latents), mean);
        assert_eq!(values(&mode.latents), mean);
    }

    #[test]
    fn wrong_rows_and_wrong_noise_are_errors_that_say_what_was_expected() {
        let rows = to_latents(&batch(true), 2..4, None, SD, Device::Cpu).unwrap_err();
        assert_eq!(rows.to_string(), "rows 2..4 were asked of batch 5, which has 3");
        let shape = to_latents(&batch(true), 0..3, Some(&noise(2)), SD, Device::Cpu).unwrap_err();
        assert_eq!(shape.to_string(), "the posterior noise of batch 5 has shape [2, 1, 2, 2], expected [3, 1, 2, 2]");
    }

    #[test]
    fn the_noise_and_the_batch_are_left_as_they_were() {
        let (host, noise) = (batch(true), noise(3));
        let before = (values(&noise), host.mean.clone());
        let _ = to_latents(&host, 0..3, Some(&noise), SD, Device::Cpu).unwrap();
        assert_eq!((values(&noise), host.mean.clone()), before);
    }
}
