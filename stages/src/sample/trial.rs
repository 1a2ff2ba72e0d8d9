//! A network with random weights that samples, to be timed and to be compared with other implementations of the same sampler.

use std::path::{Path, PathBuf};

use pipeline::{BoxError, Stage};
use tch::{Device, Kind, TchError, Tensor, no_grad};

use super::generate::{Generate, SampleSettings, Weights};
use super::request::SampleRequest;
use crate::method::config::{LatentShape, ModelConfig};
use crate::method::layout::layout;
use crate::method::parameters::{Parameters, views};
use crate::method::random;
use crate::native::NativeError;

/// Deviation of the noise on the initial weights: a fresh network predicts 0 everywhere.
const PERTURBATION: f64 = 0.02;

/// Why a trial could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("{path}: the record of the samples cannot be written: {source}", path = .path.display())]
pub struct RecordError {
    /// The file.
    path: PathBuf,
    /// libtorch's reason.
    source: TchError,
}

/// A sampler over a network that was never trained.
#[derive(Debug)]
pub struct Trial {
    generate: Generate,
    weights: Tensor,
    model: ModelConfig,
    data: LatentShape,
    batch: u64,
    next: u64,
}

impl Trial {
    /// A network of `model`'s initial weights with N(0, 0.02^2) added; `kind` is the compute dtype.
    pub fn new(
        model: ModelConfig,
        data: LatentShape,
        settings: SampleSettings,
        batch: u64,
        (device, kind): (Device, Kind),
    ) -> Result<Self, NativeError> {
        let initial = Parameters::init(layout(&model, &data), settings.seed, Device::Cpu, Kind::Float)?.master;
        let weights =
            no_grad(|| Ok(&initial + random::normal(&initial.size(), Device::Cpu, settings.seed ^ 1)? * PERTURBATION))?;
        let network = no_grad(|| Weights::new(model.clone(), data, &weights).network(device, kind));
        Ok(Self { generate: Generate::over(network, settings, device), weights, model, data, batch, next: 0 })
    }

    /// The next images, on the host: f32 `[B, C, h, w]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn sample(&mut self) -> Result<Tensor, BoxError> {
        let request = self.request();
        self.next += self.batch;
        let latents = self.generate.process(request)?.latents;
        let shape: Vec<i64> = latents.shape().iter().map(|&side| side as i64).collect();
        Ok(Tensor::from_slice(latents.as_slice().expect("the stage makes it in its order")).view(&shape[..]))
    }

    fn request(&self) -> SampleRequest {
        let indices: Vec<u64> = (self.next..self.next + self.batch).collect();
        let labels = indices.iter().map(|i| *i as i64 % self.data.classes).collect();
        SampleRequest { indices, labels }
    }

    /// Samples, and writes all that the samples depend on and the samples to a safetensors file: `model.<name>` for every
    /// parameter, `noise` f64 `[B, C, h, w]`, `labels` i64 `[B]`, `latents` f32 `[B, C, h, w]`. Of the SDE the noise of the steps is
    /// not there.
    ///
    /// # Errors
    /// libtorch's, and [`RecordError`].
    pub fn record(&mut self, path: &Path) -> Result<(), BoxError> {
        let request = self.request();
        let (noise, labels) = (self.generate.start(&request)?, Tensor::from_slice(&request.labels));
        let latents = self.sample()?;
        let named = views(&layout(&self.model, &self.data), &self.weights);
        let mut tensors: Vec<_> =
            named.into_iter().map(|(name, tensor)| (format!("model.{name}"), tensor.contiguous())).collect();
        tensors.extend(
            [("noise", noise.to_device(Device::Cpu)), ("labels", labels), ("latents", latents)]
                .map(|(name, tensor)| (name.to_owned(), tensor)),
        );
        Tensor::write_safetensors(&tensors, path).map_err(|source| RecordError { path: path.to_owned(), source })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::sampler::{Diffusion, Guidance, Integrator};

    #[test]
    fn a_record_holds_what_the_samples_were_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.safetensors");
        let data = LatentShape { channels: 2, height: 4, width: 4, classes: 3 };
        let guidance = Guidance { scale: 1.0, low: 0.0, high: 1.0 };
        let (sampler, diffusion) = (Integrator::Ode, Diffusion::TwoSigma);
        let settings = SampleSettings { sampler, diffusion, steps: 3, guidance, share_encoder: 1, seed: 0 };
        let trial = || Trial::new(ModelConfig::demo(), data, settings, 4, (Device::Cpu, Kind::Float)).unwrap();
        trial().record(&path).unwrap();
        let stored: std::collections::BTreeMap<_, _> = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
        let mut again = trial();
        assert!(again.sample().unwrap().equal(&stored["latents"]));
        assert!(!again.sample().unwrap().equal(&stored["latents"]));
        assert_eq!(Vec::<i64>::try_from(&stored["labels"]).unwrap(), [0, 1, 2, 0]);
        // Without a field the samples would be the noise that they start from.
        assert!((&stored["latents"] - &stored["noise"]).norm().double_value(&[]) > 0.1);
    }
}
