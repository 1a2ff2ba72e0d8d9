//! Latents from noise, by the averaged weights of a run.

use std::sync::Arc;

use ndarray::Array4;
use pipeline::{BoxError, Stage, Worker};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use xxhash_rust::xxh3::xxh3_64;

use super::noise::NoiseFile;
use super::request::SampleRequest;
use crate::method::config::{LatentShape, ModelConfig};
use crate::method::network::Network;
use crate::method::parameters::views;
use crate::method::random::{self, Purpose, seed_of};
use crate::method::sampler::{self, Diffusion, Guidance, Integrator};
use crate::method::{layout, network};

/// How images are sampled: everything that changes them, apart from the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SampleSettings {
    /// How to integrate.
    pub sampler: Integrator,
    /// w_t of the SDE; the other samplers do not read it.
    pub diffusion: Diffusion,
    /// Steps, which are evaluations of the velocity but for Heun, guidance not counted.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: Guidance,
    /// DDT's encoder runs at every so-many-th evaluation, and where guidance goes on or off; the evaluations between use its
    /// last conditions. 1 is every one.
    pub share_encoder: usize,
    /// Seed of noise and random classes.
    pub seed: u64,
}

/// A latent of an image is not finite.
#[derive(Debug, thiserror::Error)]
#[error(
    "image {index}: its latents are not finite, so the network's weights have diverged or their dtype overflows; sample with \
     --precision f32, or the weights of an earlier checkpoint"
)]
pub struct NotFinite {
    /// Number of the image.
    index: u64,
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

    /// xxh3-64 of the buffer's bytes, little-endian.
    pub fn xxh3(&self) -> u64 {
        xxh3_64(bytemuck::cast_slice(&self.flat))
    }

    /// The network over these weights, in the dtype `kind`.
    pub fn network(&self, device: Device, kind: Kind) -> Network {
        let specs = layout::layout(&self.model, &self.data);
        let flat = Tensor::from_slice(&self.flat).to_device(device).to_kind(kind);
        network::Network::new(&self.model, &self.data, &views(&specs, &flat))
    }
}

/// The stage: integrates a batch of latents from noise to data. Latents that are not finite are an error.
#[derive(Debug)]
pub struct Generate {
    network: Network,
    settings: SampleSettings,
    device: Device,
    start: Option<Arc<NoiseFile>>,
}

impl Generate {
    /// A factory that builds the network on the device of each worker. Images start from the rows of `start`, or from
    /// noise drawn from the seed.
    pub fn on(
        weights: impl Into<Arc<Weights>>,
        settings: SampleSettings,
        devices: Vec<Device>,
        kind: Kind,
        start: Option<Arc<NoiseFile>>,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        let weights = weights.into();
        move |worker| {
            let device = devices[worker.index % devices.len()];
            let network = no_grad(|| weights.network(device, kind));
            Ok(Self { network, settings, device, start: start.clone() })
        }
    }

    /// Over a network that is there already, on the device of its weights.
    pub fn over(network: Network, settings: SampleSettings, device: Device) -> Self {
        Self { network, settings, device, start: None }
    }

    /// v(x, t), guided as the time `gate` is.
    fn velocity(&self, x: &Tensor, t: f64, gate: f64, labels: &Tensor, shared: &mut Shared) -> Tensor {
        let pass = |x: &Tensor, labels: &Tensor| {
            let times = Tensor::full([labels.size()[0]], t, (Kind::Float, self.device));
            if self.settings.share_encoder <= 1 {
                return self.network.forward(x, &times, labels).velocity;
            }
            let condition =
                shared.next(self.settings.share_encoder, labels, || self.network.condition(x, &times, labels));
            self.network.velocity(x, &times, labels, condition)
        };
        self.settings.guidance.velocity(gate, &x.to_kind(Kind::Float), labels, self.network.null_class(), pass)
    }

    /// f64 noise `[B, C, h, w]`, drawn for each image on its own.
    fn noise(&self, seeds: impl Iterator<Item = u64>) -> Result<Tensor, BoxError> {
        let LatentShape { channels, height, width, .. } = *self.network.data();
        // On the CPU, so that an image starts from the same noise on every device.
        let each = seeds
            .map(|seed| random::normal(&[channels, height, width], Device::Cpu, seed))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::stack(&each, 0).to_device(self.device).to_kind(Kind::Double))
    }

    /// f64 `[B, C, h, w]`: what the images of the request start from.
    pub(super) fn start(&self, request: &SampleRequest) -> Result<Tensor, BoxError> {
        let Some(file) = &self.start else {
            let seed = self.settings.seed;
            return self.noise(request.indices.iter().map(|&i| seed_of(seed, i, Purpose::SampleStart)));
        };
        let LatentShape { channels, height, width, .. } = *self.network.data();
        let rows = request.indices.iter().map(|&i| file.row(i)).collect::<Result<Vec<_>, _>>()?;
        let shape = [rows.len() as i64, channels, height, width];
        Ok(Tensor::from_slice(&rows.concat()).view(shape).to_device(self.device))
    }

    /// f64 `[B, C, h, w]`: the noise of one step of the SDE.
    fn step_noise(&self, request: &SampleRequest, step: usize) -> Result<Tensor, BoxError> {
        let seed = self.settings.seed;
        let of_image = |&i: &u64| seed_of(seed_of(seed, i, Purpose::SamplePath), step as u64, Purpose::SamplePath);
        self.noise(request.indices.iter().map(of_image))
    }

    fn generate(&self, request: &SampleRequest) -> Result<Tensor, BoxError> {
        let SampleSettings { sampler, diffusion, steps, .. } = self.settings;
        let labels = Tensor::from_slice(&request.labels).to_device(self.device);
        let start = self.start(request)?;
        let mut shared = Shared::default();
        let mut velocity = |x: &Tensor, t: f64, gate: f64| Ok(self.velocity(x, t, gate, &labels, &mut shared));
        let field = |x: &Tensor, t: f64| velocity(x, t, t);
        match sampler {
            Integrator::Ode => sampler::euler(start, steps, field),
            Integrator::Heun => sampler::heun(start, steps, velocity),
            Integrator::Sde => {
                sampler::euler_maruyama(start, steps, diffusion, field, |step| self.step_noise(request, step))
            }
        }
    }
}

/// Conditions of a batch that several evaluations use (DDT, "encoder sharing").
#[derive(Debug, Default)]
struct Shared {
    condition: Option<Tensor>,
    /// Evaluations that have used it.
    used: usize,
}

impl Shared {
    /// The conditions for the next evaluation of as many rows as `labels` has; made by `make` if those that are there have been
    /// used `every` times, or are of another number of rows.
    fn next(&mut self, every: usize, labels: &Tensor, make: impl FnOnce() -> Tensor) -> &Tensor {
        let fits = |condition: &Tensor| condition.size()[0] == labels.size()[0];
        if self.used == every || !self.condition.as_ref().is_some_and(fits) {
            (self.condition, self.used) = (None, 0);
        }
        self.used += 1;
        self.condition.get_or_insert_with(make)
    }
}

impl Stage for Generate {
    type In = SampleRequest;
    type Out = SampleLatents;

    fn process(&mut self, request: SampleRequest) -> Result<SampleLatents, BoxError> {
        let latents = no_grad(|| self.generate(&request))?.to_kind(Kind::Float).to_device(Device::Cpu);
        let [b, c, h, w] = latents.size()[..] else { unreachable!("latents have four dimensions") };
        let mut values = vec![0.0f32; latents.numel()];
        latents.contiguous().copy_data(&mut values, latents.numel());
        // A picture of such latents would be grey or black, and nobody would know why.
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(NotFinite { index: request.indices[at / (c * h * w) as usize] }.into());
        }
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
        Generate::on(weights, settings, vec![Device::Cpu], Kind::Float, None)(Worker { index: 0, workers: 1 }).unwrap()
    }

    fn settings(sampler: Integrator, steps: usize, guidance: Guidance) -> SampleSettings {
        SampleSettings { sampler, diffusion: Diffusion::TwoSigma, steps, guidance, share_encoder: 1, seed: 4 }
    }

    fn request(indices: &[u64]) -> SampleRequest {
        SampleRequest { indices: indices.to_vec(), labels: indices.iter().map(|i| (i % 3) as i64).collect() }
    }

    #[test]
    fn an_image_does_not_depend_on_those_sampled_with_it() {
        for sampler in [Integrator::Sde, Integrator::Ode, Integrator::Heun] {
            let guidance = Guidance { scale: 1.5, low: 0.0, high: 0.7 };
            let mut stage = generate(settings(sampler, 8, guidance));
            let together = stage.process(request(&[0, 1, 2])).unwrap().latents;
            let alone = stage.process(request(&[1])).unwrap().latents;
            let difference = (&together.index_axis(ndarray::Axis(0), 1) - &alone.index_axis(ndarray::Axis(0), 0))
                .mapv(f32::abs)
                .fold(0.0, |a: f32, &b| a.max(b));
            assert!(difference < 1e-5, "{sampler:?}: {difference}");
        }
    }

    /// The draws are equal bit for bit: what differs between batches is how products are summed.
    #[test]
    fn noise_of_an_image_and_of_its_steps_does_not_depend_on_those_sampled_with_it() {
        let stage = generate(settings(Integrator::Sde, 2, Guidance { scale: 1.0, low: 0.0, high: 1.0 }));
        let (together, alone) = (stage.start(&request(&[0, 1, 2])).unwrap(), stage.start(&request(&[1])).unwrap());
        assert!(together.get(1).equal(&alone.get(0)) && !together.get(0).equal(&alone.get(0)));
        let step = |indices: &[u64], step| stage.step_noise(&request(indices), step).unwrap();
        assert!(step(&[0, 1, 2], 3).get(1).equal(&step(&[1], 3).get(0)));
        assert!(!step(&[1], 3).equal(&step(&[1], 4)) && !step(&[1], 3).equal(&alone));
    }

    #[test]
    fn latents_that_are_not_finite_are_refused_with_the_number_of_the_image() {
        for sampler in [Integrator::Sde, Integrator::Ode, Integrator::Heun] {
            let mut stage = generate(settings(sampler, 2, Guidance { scale: 1.0, low: 0.0, high: 1.0 }));
            let data = *stage.network.data();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("noise.safetensors");
            let noise = Tensor::ones([3, data.channels, data.height, data.width], (Kind::Double, Device::Cpu));
            // Finite, as a file of noise must be; its squares are not.
            let _ = noise.get(2).fill_(1e308);
            Tensor::write_safetensors(&[("noise", noise)], &path).unwrap();
            stage.start = Some(Arc::new(NoiseFile::open(&path, 3, &data).unwrap()));
            assert!(stage.process(request(&[0, 1])).is_ok());
            let error = stage.process(request(&[1, 2])).unwrap_err().to_string();
            assert!(
                error.starts_with("image 2: its latents are not finite") && error.contains("--precision f32"),
                "{error}"
            );
        }
    }

    #[test]
    fn guidance_moves_the_samples_only_inside_its_interval() {
        let sample = |scale, low, high| {
            let guidance = Guidance { scale, low, high };
            let mut stage = generate(settings(Integrator::Ode, 4, guidance));
            stage.process(request(&[0])).unwrap().latents
        };
        assert_eq!(sample(3.0, 2.0, 3.0), sample(1.0, 0.0, 1.0));
        assert_ne!(sample(3.0, 0.0, 1.0), sample(1.0, 0.0, 1.0));
    }

    /// Rows that are the very numbers which the seed draws give the very same latents.
    #[test]
    fn an_image_starts_from_the_row_of_the_file_that_has_its_number() {
        let guidance = Guidance { scale: 1.0, low: 0.0, high: 1.0 };
        for sampler in [Integrator::Sde, Integrator::Heun] {
            let mut stage = generate(settings(sampler, 3, guidance));
            let expected = stage.process(request(&[1, 2])).unwrap().latents;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("noise.safetensors");
            let drawn = stage.noise((0..3).map(|i| seed_of(4, i, Purpose::SampleStart))).unwrap();
            Tensor::write_safetensors(&[("noise", drawn)], &path).unwrap();
            stage.start = Some(Arc::new(NoiseFile::open(&path, 3, stage.network.data()).unwrap()));
            stage.settings.seed = if sampler == Integrator::Sde { 4 } else { 5 };
            assert_eq!(stage.process(request(&[1, 2])).unwrap().latents, expected, "{sampler:?}");
        }
    }

    #[test]
    fn shared_conditions_are_made_at_every_nth_evaluation_and_where_guidance_goes_on_or_off() {
        let mut made = Vec::new();
        let mut shared = Shared::default();
        // Two images; guidance, which makes them four, from evaluation 4 to 6.
        for (evaluation, rows) in [2, 2, 2, 2, 4, 4, 4, 2, 2].into_iter().enumerate() {
            let labels = Tensor::zeros([rows], (Kind::Int64, Device::Cpu));
            let condition = shared.next(3, &labels, || {
                made.push(evaluation);
                labels.full_like(evaluation as i64)
            });
            assert_eq!((condition.size()[0], condition.int64_value(&[0])), (rows, *made.last().unwrap() as i64));
        }
        assert_eq!(made, [0, 3, 4, 7]);
    }

    #[test]
    fn sharing_with_nobody_changes_nothing_and_sharing_with_the_next_a_little() {
        let guidance = Guidance { scale: 1.5, low: 0.0, high: 0.7 };
        let sample = |share_encoder, sampler| {
            let mut stage = generate(SampleSettings { share_encoder, ..settings(sampler, 12, guidance) });
            Tensor::from_slice(stage.process(request(&[0, 1])).unwrap().latents.as_slice().unwrap())
        };
        for sampler in [Integrator::Sde, Integrator::Ode, Integrator::Heun] {
            let alone = sample(1, sampler);
            let stage = generate(settings(sampler, 12, guidance));
            let x = random::normal(&[2, 2, 4, 4], Device::Cpu, 0).unwrap();
            let t = Tensor::from_slice(&[0.3f32, 0.8]);
            let labels = Tensor::from_slice(&[1i64, 3]);
            let (whole, condition) = (stage.network.forward(&x, &t, &labels), stage.network.condition(&x, &t, &labels));
            assert!(whole.condition.equal(&condition));
            assert!(whole.velocity.equal(&stage.network.velocity(&x, &t, &labels, &condition)));
            let difference = (&sample(2, sampler) - &alone).norm().double_value(&[]) / alone.norm().double_value(&[]);
            assert!(difference > 0.0 && difference < 0.2, "{sampler:?}: {difference}");
        }
    }

    #[test]
    fn the_diffusion_changes_the_path_of_the_sde_alone() {
        let sample = |sampler, diffusion| {
            let guidance = Guidance { scale: 1.0, low: 0.0, high: 1.0 };
            let mut stage = generate(SampleSettings { diffusion, ..settings(sampler, 6, guidance) });
            stage.process(request(&[0])).unwrap().latents
        };
        let differ = |sampler| sample(sampler, Diffusion::TwoSigma) != sample(sampler, Diffusion::Sigma);
        assert!(differ(Integrator::Sde) && !differ(Integrator::Ode) && !differ(Integrator::Heun));
    }
}
