//! One training step, and all the state that it changes.

use tch::{Device, Kind, Tensor};

use super::config::TrainConfig;
use super::optimiser::AdamW;
use crate::data::LatentBatch;
use crate::method::algorithm::batch_loss;
use crate::method::config::LatentShape;
use crate::method::ema;
use crate::method::layout::layout;
use crate::method::network::Network;
use crate::method::parameters::Parameters;
use crate::method::views::Views;
use crate::native::NativeError;

/// A network in training on one device: weights, moments, average and step. Owned by one thread.
#[derive(Debug)]
pub struct Trainer {
    /// The run's configuration.
    pub config: TrainConfig,
    /// Shape of the latents and number of classes.
    pub data: LatentShape,
    /// Weights and gradients.
    pub parameters: Parameters,
    /// AdamW's moments.
    pub optimiser: AdamW,
    /// Flat f32 average of the master weights.
    pub average: Tensor,
    /// Steps done: the next step uses global batch number `step`.
    pub step: u64,
    network: Network,
    device: Device,
}

/// Figures of one step: f32 scalars that are still on the device, so that nothing waits for them.
#[derive(Debug)]
pub struct StepFigures {
    /// Eq. 7, mean over the global batch.
    pub velocity: Tensor,
    /// Eq. 6.
    pub alignment: Tensor,
    /// Cosine between views before the projector.
    pub condition_cosine: Tensor,
    /// Norm of the gradients before clipping.
    pub gradient_norm: Tensor,
    /// 1 if the update was skipped.
    pub skipped: Tensor,
}

impl Trainer {
    /// A fresh run: initial weights from the seed, average equal to them. `kind` is the compute dtype.
    pub fn new(config: TrainConfig, data: LatentShape, device: Device, kind: Kind) -> Result<Self, NativeError> {
        let parameters = Parameters::init(layout(&config.model, &data), config.train.seed, device, kind)?;
        let optimiser = AdamW::new(config.optimiser.clone(), parameters.master.numel() as i64, device);
        let average = parameters.master.copy();
        let network = Network::new(&config.model, &data, parameters.leaves());
        Ok(Self { config, data, parameters, optimiser, average, step: 0, network, device })
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The draws of the current step, for the global batch.
    pub fn draw_views(&self) -> Result<Views, NativeError> {
        let TrainConfig { objective, train, .. } = &self.config;
        Views::draw(objective, &self.data, train.batch as i64, train.seed, self.step, self.device)
    }

    /// Gradients of the mean loss over the global batch, which goes through the network in equal pieces.
    pub fn compute_gradients(&mut self, batch: &LatentBatch, views: &Views) -> [Tensor; 3] {
        let pieces = self.config.train.micro_batches as i64;
        let size = batch.latents.size()[0] / pieces;
        let mut sums = [(); 3].map(|()| Tensor::zeros([], (Kind::Float, self.device)));
        self.parameters.zero_gradients();
        for piece in 0..pieces {
            let start = piece * size;
            let micro_batch = LatentBatch {
                latents: batch.latents.narrow(0, start, size),
                labels: batch.labels.narrow(0, start, size),
            };
            let losses = batch_loss(&self.network, &micro_batch, &views.slice(start, size), &self.config.objective);
            (losses.total / pieces as f64).backward();
            self.parameters.collect_gradients();
            for (sum, value) in sums.iter_mut().zip([losses.velocity, losses.alignment, losses.condition_cosine]) {
                let _ = sum.g_add_(&(value / pieces as f64));
            }
        }
        sums
    }

    /// Clip, AdamW, EMA with the gradients at hand; the step is done after it.
    pub fn update(&mut self) -> Result<[Tensor; 2], NativeError> {
        let lr = self.config.optimiser.lr_at(self.step, self.config.train.steps);
        let figures = self.optimiser.update(&mut self.parameters, lr)?;
        self.step += 1;
        let decay = self.config.ema.decay_at(self.step);
        ema::update(&mut self.average, &self.parameters.master, decay, &figures.skipped);
        Ok([figures.gradient_norm, figures.skipped])
    }

    /// One step of training on a global batch. `views` are those of [`Self::draw_views`].
    pub fn step(&mut self, batch: &LatentBatch, views: &Views) -> Result<StepFigures, NativeError> {
        let [velocity, alignment, condition_cosine] = self.compute_gradients(batch, views);
        let [gradient_norm, skipped] = self.update()?;
        Ok(StepFigures { velocity, alignment, condition_cosine, gradient_norm, skipped })
    }
}
