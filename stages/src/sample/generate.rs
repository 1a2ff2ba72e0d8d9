//! Latents from noise, by the averaged weights of a run.

use ndarray::Array4;
use pipeline::{BoxError, Stage, Worker};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::request::SampleRequest;
use crate::method::config::{LatentShape, ModelConfig};
use crate::method::network::Network;
use crate::method::parameters::views;
use crate::method::random::{self, Purpose, seed_of};
use crate::method::sampler::{self, Guidance, Integrator};
use crate::method::{layout, network};
use crate::native::NativeError;

/// How images are sampled: everything that changes them, apart from the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SampleSettings {
    /// SDE or ODE.
    pub sampler: Integrator,
    /// Evaluations of the velocity, guidance not counted.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: Guidance,
    /// Seed of noise and random classes.
    pub seed: u64,
}

/// Sampled latents on the host, in the network's scale: f32 `[B, C, h, w]`.
#[derive(Debug)]
pub struct SampleLatents {
    /// Which images.
    pub request: SampleRequest,
    /// Scaled latents (about unit variance), as the network predicts them.
    pub latents: Array4<f32>,
}

/// The averaged weights of a run, for building a [`Generate`] on each device.
#[derive(Debug)]
pub struct Weights {
    /// Sizes.
    pub model: ModelConfig,
    /// Latents and classes.
    pub data: LatentShape,
    /// Flat f32 buffer in the order of [`layout::layout`].
    pub flat: Vec<f32>,
}

impl Weights {
    /// Takes the flat buffer of a checkpoint to the host, from where any thread can read it.
    pub fn new(model: ModelConfig, data: LatentShape, flat: &Tensor) -> Self {
        let mut host = vec![0.0; flat.numel()];
        flat.to_device(Device::Cpu).copy_data(&mut host, flat.numel());
        Self { model, data, flat: host }
    }

    /// The network over these weights, in the dtype `kind`.
    pub fn network(&self, device: Device, kind: Kind) -> Network {
        let specs = layout::layout(&self.model, &self.data);
        let flat = Tensor::from_slice(&self.flat).to_device(device).to_kind(kind);
        network::Network::new(&self.model, &self.data, &views(&specs, &flat))
    }
}

/// The stage: integrates a batch of latents from noise to data.
#[derive(Debug)]
pub struct Generate {
    network: Network,
    settings: SampleSettings,
    device: Device,
}

impl Generate {
    /// A factory that builds the network on the device of each worker.
    pub fn on(
        weights: Weights,
        settings: SampleSettings,
        devices: Vec<Device>,
        kind: Kind,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |worker| {
            let device = devices[worker.index % devices.len()];
            Ok(Self { network: no_grad(|| weights.network(device, kind)), settings, device })
        }
    }

    /// Over a network that is there already, on the device of its weights.
    pub fn over(network: Network, settings: SampleSettings, device: Device) -> Self {
        Self { network, settings, device }
    }

    /// v(x, t) with guidance; both passes are one batch, conditional half first.
    fn velocity(&self, x: &Tensor, t: f64, labels: &Tensor) -> Tensor {
        let n = labels.size()[0];
        let x = x.to_kind(Kind::Float);
        let times = |n: i64| Tensor::full([n], t, (Kind::Float, self.device));
        let guidance = self.settings.guidance;
        if !guidance.applies_at(t) {
            return self.network.forward(&x, &times(n), labels).velocity;
        }
        let null = labels.full_like(self.network.null_class());
        let both = self.network.forward(&x.repeat([2, 1, 1, 1]), &times(2 * n), &Tensor::cat(&[labels, &null], 0));
        let halves = both.velocity.chunk(2, 0);
        let (class, null) = (&halves[0], &halves[1]);
        null + guidance.scale * (class - null)
    }

    /// f64 noise `[B, C, h, w]`, drawn for each image on its own.
    fn noise(&self, seeds: impl Iterator<Item = u64>) -> Result<Tensor, NativeError> {
        let LatentShape { channels, height, width, .. } = *self.network.data();
        // On the CPU, so that an image starts from the same noise on every device.
        let each = seeds
            .map(|seed| random::normal(&[channels, height, width], Device::Cpu, seed))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::stack(&each, 0).to_device(self.device).to_kind(Kind::Double))
    }

    fn generate(&self, request: &SampleRequest) -> Result<Tensor, NativeError> {
        let SampleSettings { sampler, steps, seed, .. } = self.settings;
        let labels = Tensor::from_slice(&request.labels).to_device(self.device);
        let start = self.noise(request.indices.iter().map(|&i| seed_of(seed, i, Purpose::SampleStart)))?;
        let field = |x: &Tensor, t: f64| Ok(self.velocity(x, t, &labels));
        match sampler {
            Integrator::Ode => sampler::euler(start, steps, field),
            Integrator::Sde => sampler::euler_maruyama(start, steps, field, |step| {
                let of_image =
                    |&i: &u64| seed_of(seed_of(seed, i, Purpose::SamplePath), step as u64, Purpose::SamplePath);
                self.noise(request.indices.iter().map(of_image))
            }),
        }
    }
}

impl Stage for Generate {
    type In = SampleRequest;
    type Out = SampleLatents;

    fn process(&mut self, request: SampleRequest) -> Result<SampleLatents, BoxError> {
        let latents = no_grad(|| self.generate(&request))?.to_kind(Kind::Float).to_device(Device::Cpu);
        let [b, c, h, w] = latents.size()[..] else { unreachable!("latents have four dimensions") };
        let mut values = vec![0.0; latents.numel()];
        latents.contiguous().copy_data(&mut values, latents.numel());
        let shape = (b as usize, c as usize, h as usize, w as usize);
        Ok(SampleLatents { request, latents: Array4::from_shape_vec(shape, values)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::parameters::Parameters;

    fn generate(settings: SampleSettings) -> Generate {
        let data = LatentShape { channels: 2, height: 4, width: 4, classes: 3 };
        let model = ModelConfig { depth: 2, encoder_depth: 1, hidden: 16, heads: 2, patch: 2, ..ModelConfig::demo() };
        let specs = layout::layout(&model, &data);
        let parameters = Parameters::init(specs, 0, Device::Cpu, Kind::Float).unwrap();
        let len = parameters.master.numel() as i64;
        let flat = &parameters.master + random::normal(&[len], Device::Cpu, 1).unwrap() * 0.1;
        let weights = Weights::new(model, data, &flat);
        Generate::on(weights, settings, vec![Device::Cpu], Kind::Float)(Worker { index: 0, workers: 1 }).unwrap()
    }

    fn request(indices: &[u64]) -> SampleRequest {
        SampleRequest { indices: indices.to_vec(), labels: indices.iter().map(|i| (i % 3) as i64).collect() }
    }

    #[test]
    fn an_image_does_not_depend_on_those_sampled_with_it() {
        for sampler in [Integrator::Sde, Integrator::Ode] {
            let guidance = Guidance { scale: 1.5, low: 0.0, high: 0.7 };
            let mut stage = generate(SampleSettings { sampler, steps: 8, guidance, seed: 4 });
            let together = stage.process(request(&[0, 1, 2])).unwrap().latents;
            let alone = stage.process(request(&[1])).unwrap().latents;
            let difference = (&together.index_axis(ndarray::Axis(0), 1) - &alone.index_axis(ndarray::Axis(0), 0))
                .mapv(f32::abs)
                .fold(0.0, |a: f32, &b| a.max(b));
            assert!(difference < 1e-5, "{sampler:?}: {difference}");
        }
    }

    #[test]
    fn guidance_moves_the_samples_only_inside_its_interval() {
        let sample = |scale, low, high| {
            let guidance = Guidance { scale, low, high };
            let mut stage = generate(SampleSettings { sampler: Integrator::Ode, steps: 4, guidance, seed: 4 });
            stage.process(request(&[0])).unwrap().latents
        };
        assert_eq!(sample(3.0, 2.0, 3.0), sample(1.0, 0.0, 1.0));
        assert_ne!(sample(3.0, 0.0, 1.0), sample(1.0, 0.0, 1.0));
    }
}
