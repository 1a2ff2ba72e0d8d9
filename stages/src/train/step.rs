//! One training step, and all the state that it changes.

use tch::{Device, Kind, Tensor};

use super::config::TrainConfig;
use super::optimiser::{AdamW, UpdateFigures};
use crate::data::LatentBatch;
use crate::method::algorithm::{Losses, batch_loss};
use crate::method::config::LatentShape;
use crate::method::ema;
use crate::method::layout::layout;
use crate::method::network::Network;
use crate::method::objective::features::FeatureFigures;
use crate::method::parameters::Parameters;
use crate::method::views::Views;
use crate::native::NativeError;
use crate::native::c10d::{Exchange, Group, Sent};

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
    /// Sums gradients over the ranks, where there are several.
    exchange: Option<Exchange>,
    /// How they were in the last step.
    sent: Option<Sent>,
    ranks: usize,
    network: Network,
    device: Device,
}

/// Figures of one step: f32 scalars that are still on the device, so that nothing waits for them.
#[derive(Debug)]
pub struct StepFigures {
    /// The losses, means over the global batch.
    pub losses: StepLosses,
    /// Of the aligned features of the first micro-batch of this rank, where they were asked for.
    pub features: Option<FeatureFigures>,
    /// Norm of the gradients before clipping.
    pub gradient_norm: Tensor,
    /// 1 if the update was skipped.
    pub skipped: Tensor,
}

/// The losses of one step, f32 scalars on the device, none with its weight: those of [`Losses`], as means over the
/// micro-batches.
#[derive(Debug)]
pub struct StepLosses {
    /// Eq. 7 as a mean over views, channels and pixels, however the configuration reduces it; at least 0.
    pub velocity: Tensor,
    /// Eq. 6: minus a cosine, in [-1, 1], or NT-Xent, at least 0; 0 where nothing is aligned.
    pub alignment: Tensor,
    /// The dispersive loss (Wang and He 2025), at most 0; 0 without.
    pub dispersive: Tensor,
    /// Mean squared distance to the targets of other images (Stoica et al. 2025), at least 0; 0 without.
    pub contrastive: Tensor,
}

impl StepLosses {
    fn zero(device: Device) -> Self {
        let zero = || Tensor::zeros([], (Kind::Float, device));
        Self { velocity: zero(), alignment: zero(), dispersive: zero(), contrastive: zero() }
    }

    fn add(&mut self, losses: &Losses, pieces: i64) {
        let Losses { velocity, alignment, dispersive, contrastive, .. } = losses;
        let sums = [&mut self.velocity, &mut self.alignment, &mut self.dispersive, &mut self.contrastive];
        for (sum, value) in sums.into_iter().zip([velocity, alignment, dispersive, contrastive]) {
            let _ = sum.g_add_(&(value / pieces as f64));
        }
    }
}

impl Trainer {
    /// A fresh run: initial weights from the seed, average equal to them. `kind` is the compute dtype.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn new(config: TrainConfig, data: LatentShape, device: Device, kind: Kind) -> Result<Self, NativeError> {
        let parameters = Parameters::init(layout(&config.model, &data), config.train.seed, device, kind)?;
        let optimiser = AdamW::new(config.optimiser.clone(), parameters.master.numel() as i64, device);
        let average = parameters.master.copy();
        let network = Network::new(&config.model, &data, parameters.leaves());
        Ok(Self {
            config,
            data,
            parameters,
            optimiser,
            average,
            step: 0,
            exchange: None,
            sent: None,
            ranks: 1,
            network,
            device,
        })
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// From now on this is one of `ranks` trainers, each with an equal slice of the global batch; `group` is theirs.
    /// Gradients go through it in buckets of at least `bucket` values.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn exchange_in(&mut self, group: Group, ranks: usize, bucket: i64) -> Result<(), NativeError> {
        self.exchange = Some(self.parameters.exchange_in(group, bucket)?);
        self.ranks = ranks;
        Ok(())
    }

    /// How the gradients of the last step were exchanged, where they were.
    pub fn sent(&self) -> Option<Sent> {
        self.sent
    }

    /// Leaves the others, which notice it where they wait for this one.
    pub fn leave(&mut self) {
        self.exchange = None;
    }

    /// The draws of the current step, for the global batch.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn draw_views(&self) -> Result<Views, NativeError> {
        let TrainConfig { objective, train, .. } = &self.config;
        Views::draw(objective, &self.data, train.batch as i64, train.seed, self.step, self.device)
    }

    /// Gradients of the mean loss over the global batch. `batch` and `views` are all of it, or this rank's slice of it,
    /// and go through the network in equal pieces; what they say is summed over the ranks during the last of them. The
    /// losses are means over what went through here. `look` asks for figures of the features.
    ///
    /// # Errors
    /// Another rank is gone, or does not come. The weights are as they were.
    pub fn compute_gradients(
        &mut self,
        batch: &LatentBatch,
        views: &Views,
        look: bool,
    ) -> Result<(StepLosses, Option<FeatureFigures>), NativeError> {
        let pieces = self.config.train.micro_batches as i64;
        let size = batch.labels.size()[0] / pieces;
        let (mut sums, mut features) = (StepLosses::zero(self.device), None);
        // What a pass may have left whose caller went on after its error.
        self.parameters.drop_gradients()?;
        for piece in 0..pieces {
            let start = piece * size;
            let micro_batch = LatentBatch {
                latents: batch.latents.narrow(1, start, size),
                labels: batch.labels.narrow(0, start, size),
            };
            let views = views.slice(start, size);
            let losses = batch_loss(&self.network, &micro_batch, &views, &self.config.objective, look && piece == 0);
            let loss = &losses.total / (pieces * self.ranks as i64) as f64;
            match &mut self.exchange {
                // It collects them, bucket by bucket.
                Some(exchange) if piece + 1 == pieces => {
                    exchange.arm(piece > 0)?;
                    loss.backward();
                    self.sent = Some(exchange.finish()?);
                }
                _ => {
                    loss.backward();
                    self.parameters.collect_gradients(piece > 0)?;
                }
            }
            sums.add(&losses, pieces);
            features = features.or(losses.features);
        }
        Ok((sums, features))
    }

    /// Clip, AdamW, EMA with the gradients at hand; the step is done after it, also where it was skipped: the next one
    /// has other data and other draws, and the course of the learning rate and of the average's decay goes by steps.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn update(&mut self) -> Result<UpdateFigures, NativeError> {
        let lr = self.config.optimiser.lr_at(self.step, self.config.train.steps);
        let figures = self.optimiser.update(&mut self.parameters, lr)?;
        self.step += 1;
        let decay = self.config.ema.decay_at(self.step);
        ema::update(&mut self.average, &self.parameters.master, decay, &figures.skipped);
        Ok(figures)
    }

    /// One step of training on a global batch, or this rank's slice of one. `views` are those of [`Self::draw_views`],
    /// of the same rows; `look` asks for figures of the features.
    ///
    /// # Errors
    /// Those of [`Self::compute_gradients`] and [`Self::update`].
    pub fn step(&mut self, batch: &LatentBatch, views: &Views, look: bool) -> Result<StepFigures, NativeError> {
        let (losses, features) = self.compute_gradients(batch, views, look)?;
        let UpdateFigures { gradient_norm, skipped } = self.update()?;
        Ok(StepFigures { losses, features, gradient_norm, skipped })
    }
}
