//! A training step on noise, to be timed and to be compared with other implementations of the same step.
//!
//! The whole step is here, posterior draw, views, loss, backward, clip, AdamW and average; loading and logging are not.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, TchError, Tensor, no_grad};

use super::config::TrainConfig;
use super::step::Trainer;
use crate::data::LatentBatch;
use crate::method::config::LatentShape;
use crate::method::parameters::views;
use crate::method::random;
use crate::native::NativeError;
use crate::native::reads::reads_during;

/// Deviation of the noise on the initial weights. Gates and output of a fresh network are 0, so that most gradients are 0
/// too: a comparison would show nothing.
const PERTURBATION: f64 = 0.02;

/// Deviation of the posterior, that of a log-variance of -14.
const POSTERIOR: f64 = 9.1e-4;

/// Why a trial failed.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// libtorch refused.
    #[error(transparent)]
    Native(#[from] NativeError),
    /// The record could not be written.
    #[error("{path}: the record of the step cannot be written: {source}", path = .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// libtorch's reason.
        source: TchError,
    },
}

/// The losses of a step, read back from the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrialFigures {
    /// Eq. 7.
    pub velocity: f64,
    /// Eq. 6.
    pub alignment: f64,
    /// Norm of the gradients before clipping.
    pub gradient_norm: f64,
}

/// A network in training on one batch of noise.
#[derive(Debug)]
pub struct Trial {
    trainer: Trainer,
    /// Means of the posterior, f32 `[B, C, h, w]`.
    mean: Tensor,
    /// i64 `[B]`.
    labels: Tensor,
}

impl Trial {
    /// A network of `config` whose initial weights got N(0, 0.02^2) added, and `config.train.batch` means from N(0, 1).
    /// `kind` is the compute dtype.
    pub fn new(config: TrainConfig, data: LatentShape, device: Device, kind: Kind) -> Result<Self, NativeError> {
        let (batch, seed) = (config.train.batch as i64, config.train.seed);
        let mut trainer = Trainer::new(config, data, device, kind)?;
        // Drawn on the CPU, so that a trial is the same on every device.
        let noise = random::normal(&[trainer.parameters.master.numel() as i64], Device::Cpu, seed ^ 1)? * PERTURBATION;
        no_grad(|| {
            let _ = trainer.parameters.master.g_add_(&noise.to_device(device));
            trainer.average.copy_(&trainer.parameters.master);
        });
        trainer.parameters.refresh();
        let shape = [batch, data.channels, data.height, data.width];
        let mean = random::normal(&shape, Device::Cpu, seed ^ 2)?.to_device(device);
        let labels = Tensor::arange(batch, (Kind::Int64, device)).remainder(data.classes);
        Ok(Self { trainer, mean, labels })
    }

    /// One step, and the wait until the device has done it.
    pub fn step(&mut self) -> Result<TrialFigures, NativeError> {
        let views = self.trainer.draw_views()?;
        let latents = &self.mean + &views.posterior_noise * POSTERIOR;
        let batch = LatentBatch { latents, labels: self.labels.shallow_clone() };
        let figures = self.trainer.step(&batch, &views, false)?;
        Ok(TrialFigures {
            velocity: figures.losses.velocity.double_value(&[]),
            alignment: figures.losses.alignment.double_value(&[]),
            gradient_norm: figures.gradient_norm.double_value(&[]),
        })
    }

    /// One step, and how many values the host asked the device for in it, see [`reads_during`].
    pub fn count_reads(&mut self) -> Result<u64, NativeError> {
        let (done, reads) = reads_during(|| {
            let views = self.trainer.draw_views()?;
            let latents = &self.mean + &views.posterior_noise * POSTERIOR;
            let batch = LatentBatch { latents, labels: self.labels.shallow_clone() };
            self.trainer.step(&batch, &views, false)
        })?;
        done?;
        Ok(reads)
    }

    /// Does a step, and writes all that it depends on and what it gave to the safetensors file `path`, so that another
    /// implementation can do the same.
    ///
    /// Keys: `model.<name>` for every parameter before the step; `latents` f32 `[B, C, h, w]`; of K views `t` f32 `[K, B]`,
    /// `noise` f32 `[K, B, C, h, w]`, `view_labels` i64 `[K, B]`; and the scalars `velocity_loss`, `alignment_loss` and
    /// `gradient_norm`, f64.
    pub fn record(&mut self, path: &Path) -> Result<TrialFigures, TrialError> {
        let weights = self.trainer.parameters.master.to_device(Device::Cpu).copy();
        let draws = self.trainer.draw_views()?;
        let latents = &self.mean + &draws.posterior_noise * POSTERIOR;
        let view_labels = draws.labels(&self.labels, self.trainer.data.classes);
        let figures = self.step()?;

        let named = views(self.trainer.parameters.specs(), &weights);
        let mut tensors: Vec<_> = named.into_iter().map(|(name, tensor)| (format!("model.{name}"), tensor)).collect();
        let scalar = |value: f64| Tensor::from(value);
        tensors.extend(
            [
                ("latents", latents.squeeze_dim(0)),
                ("t", draws.t),
                ("noise", draws.noise),
                ("view_labels", view_labels),
                ("velocity_loss", scalar(figures.velocity)),
                ("alignment_loss", scalar(figures.alignment)),
                ("gradient_norm", scalar(figures.gradient_norm)),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor.to_device(Device::Cpu).contiguous())),
        );
        Tensor::write_safetensors(&tensors, path)
            .map_err(|source| TrialError::Record { path: path.to_owned(), source })?;
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::super::equality::{DATA, config};
    use super::*;

    #[test]
    fn a_record_holds_what_the_step_was_done_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step.safetensors");
        let trial = || Trial::new(config(1), DATA, Device::Cpu, Kind::Float).unwrap();
        let figures = trial().record(&path).unwrap();
        assert_eq!(trial().step().unwrap(), figures);
        let stored: std::collections::BTreeMap<_, _> = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
        assert_eq!(stored["gradient_norm"].double_value(&[]), figures.gradient_norm);
        assert_eq!(stored["noise"].size(), [2, 8, 4, 8, 8]);
        assert_eq!(stored["view_labels"].size(), [2, 8]);
        let before = trial().trainer.parameters.leaves()["blocks.0.attn.qkv.weight"].copy();
        assert!(stored["model.blocks.0.attn.qkv.weight"].equal(&before));
        assert!(figures.gradient_norm > 0.0);
    }
}
