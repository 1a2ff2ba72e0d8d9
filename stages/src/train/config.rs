//! What a run trains: everything that decides its numbers, and nothing about the machine it runs on.

use serde::{Deserialize, Serialize};

use super::optimiser::OptimiserConfig;
use crate::method::config::{LatentShape, ModelConfig};
use crate::method::ema::EmaConfig;
use crate::method::objective::config::ObjectiveConfig;

/// The resolved configuration of a run, as `config.toml` in its directory holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Network and projector.
    pub model: ModelConfig,
    /// Losses and views.
    pub objective: ObjectiveConfig,
    /// AdamW, clipping and the learning rate.
    pub optimiser: OptimiserConfig,
    /// Moving average of the weights.
    pub ema: EmaConfig,
    /// Length, batch and seed of the run.
    pub train: ScheduleConfig,
}

/// No run has more steps, and no batch more images: within this, images can be counted.
const MOST_STEPS: u64 = 1 << 40;
const MOST_IMAGES: u64 = 1 << 20;

/// Length, batch and seed of a run, and what it writes on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Images in a global batch; each counts `objective.views` times for the network.
    pub batch: u64,
    /// Pieces in which the batch goes through the network, to save memory; changes results by rounding only (of a rank,
    /// its slice of the batch).
    pub micro_batches: u64,
    /// Seed of the order, the initial weights and every draw.
    pub seed: u64,
    /// Blocks of 64 samples in the shuffle pool; as many as the dataset has make a full permutation.
    pub pool_blocks: u64,
    /// Whether every visit of an image is to its mirror image with a probability of 1/2, which wants a dataset of
    /// `encode --flip`. Of the paper's open questions A11; `false`, as REPA trains.
    #[serde(default)]
    pub flip: bool,
    /// Steps between lines of `metrics.jsonl`; their figures are means over these steps.
    pub log_every: u64,
    /// Steps between checkpoints; one more is written at the end and at an interruption.
    pub checkpoint_every: u64,
    /// Checkpoints kept, the newest.
    pub keep_checkpoints: u64,
    /// Checkpoints whose step is a multiple of this stay for ever; 0 for none.
    #[serde(default)]
    pub keep_every: u64,
    /// Steps between sample grids from the averaged weights; one more is made at the end. 0 for none.
    #[serde(default)]
    pub sample_every: u64,
    /// Evaluations of the velocity for a grid (ODE, Euler), guidance not counted.
    #[serde(default = "default_sample_steps")]
    pub sample_steps: u64,
    /// Scale of classifier-free guidance in grids, at all times; 1 is none.
    #[serde(default = "default_sample_guidance")]
    pub sample_guidance: f64,
}

/// That of REPA's samples in training.
fn default_sample_steps() -> u64 {
    50
}

/// That of REPA's samples in training.
fn default_sample_guidance() -> f64 {
    4.0
}

impl TrainConfig {
    /// One sentence that says why the global batch cannot be divided among `ranks`, if anything.
    pub fn problem_of_ranks(&self, ranks: usize) -> Option<String> {
        let ScheduleConfig { batch, micro_batches, .. } = self.train;
        match self.objective.across_images() {
            Some(key) if ranks > 1 => Some(format!(
                "{key} compares the images of a batch with each other, and {ranks} ranks would each see their own; train it on one"
            )),
            _ if !batch.is_multiple_of(ranks as u64 * micro_batches) => Some(format!(
                "train.batch = {batch} is not divisible by {ranks} ranks of train.micro_batches = {micro_batches}"
            )),
            _ => None,
        }
    }

    /// One sentence that says what is out of range, if anything.
    pub fn problem(&self, data: &LatentShape) -> Option<String> {
        let at_least_one = [
            ("batch", self.train.batch),
            ("micro_batches", self.train.micro_batches),
            ("pool_blocks", self.train.pool_blocks),
            ("log_every", self.train.log_every),
            ("checkpoint_every", self.train.checkpoint_every),
            ("keep_checkpoints", self.train.keep_checkpoints),
            ("sample_steps", self.train.sample_steps),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value < 1) {
            return Some(format!("train.{key} must be at least 1"));
        }
        for (key, value, most) in [("steps", self.train.steps, MOST_STEPS), ("batch", self.train.batch, MOST_IMAGES)] {
            if value > most {
                return Some(format!("train.{key} = {value} must be at most {most}"));
            }
        }
        if !self.train.batch.is_multiple_of(self.train.micro_batches) {
            return Some(format!(
                "train.batch = {} is not divisible by train.micro_batches = {}",
                self.train.batch, self.train.micro_batches
            ));
        }
        let guidance = self.train.sample_guidance;
        if !(guidance >= 1.0 && guidance.is_finite()) {
            return Some(format!("train.sample_guidance = {guidance} must be at least 1, which is no guidance"));
        }
        if !(0.0..=1.0).contains(&self.ema.decay) {
            return Some(format!("ema.decay = {} must lie in 0..=1", self.ema.decay));
        }
        let ScheduleConfig { batch, micro_batches, .. } = self.train;
        self.model
            .problem(data)
            .or_else(|| self.objective.problem(&self.model, batch, micro_batches))
            .or_else(|| self.optimiser.problem())
    }
}

#[cfg(test)]
mod tests {
    use super::super::equality::{DATA, config};
    use super::*;
    use crate::method::config::{DEEPEST, LARGEST};

    fn problem(change: impl FnOnce(&mut TrainConfig)) -> String {
        let mut config = config(1);
        change(&mut config);
        config.problem(&DATA).unwrap_or_default()
    }

    #[test]
    fn sizes_that_no_machine_could_hold_are_refused_by_their_key() {
        assert_eq!(problem(|_| ()), "");
        let hidden = problem(|config| config.model.hidden = 4_000_000_000);
        assert_eq!(hidden, "model.hidden = 4000000000 must lie in 1..=1048576");
        for (expected, found) in [
            ("model.depth = 9223372036854775807 must", problem(|config| config.model.depth = i64::MAX)),
            ("model.mlp_ratio = 9223372036854775807 must", problem(|config| config.model.mlp_ratio = i64::MAX)),
            ("an MLP wider than 1048576", problem(|config| config.model.mlp_ratio = LARGEST)),
            ("model.heads = 0 must lie in 1..=", problem(|config| config.model.heads = 0)),
            ("model.projector_hidden = -5 must lie in 0..=", problem(|config| config.model.projector_hidden = -5)),
            ("model.projector_out = -1 must lie in 0..=", problem(|config| config.model.projector_out = -1)),
            ("train.steps = 18446744073709551615 must be at most", problem(|config| config.train.steps = u64::MAX)),
            ("train.batch = 18446744073709551615 must be at most", problem(|config| config.train.batch = u64::MAX)),
        ] {
            assert!(found.contains(expected), "{found:?} for {expected:?}");
        }
        let patches = config(1).problem(&LatentShape { channels: LARGEST, ..DATA }).unwrap_or_default();
        assert!(patches.starts_with("patches of model.patch = 2 of 1048576 channels"), "{patches}");
        let large = problem(|config| (config.model.hidden, config.model.depth) = (1 << 18, DEEPEST));
        assert!(large.starts_with("the network would have ") && large.contains("model.depth"), "{large}");
    }

    #[test]
    fn latents_of_no_network_are_refused() {
        let problem = |latent: LatentShape| config(1).problem(&latent).unwrap_or_default();
        assert!(problem(LatentShape { classes: -1, ..DATA }).starts_with("the latents have -1 classes"));
        assert!(problem(LatentShape { channels: 1 << 40, ..DATA }).contains("channels"));
        let wide = LatentShape { height: 1024, width: 1024, ..DATA };
        assert!(problem(wide).contains("are 262144 tokens, more than 65536"), "{}", problem(wide));
    }

    #[test]
    fn views_that_share_all_that_is_drawn_are_refused() {
        let same = |config: &mut TrainConfig| {
            (config.objective.resample_t, config.objective.resample_noise) = (false, false);
        };
        let message = problem(same);
        assert!(message.contains("objective.resample_t") && message.contains("objective.resample_noise"), "{message}");
        let each_its_own_latent = problem(|config| {
            same(config);
            config.objective.resample_posterior = true;
        });
        let one_view = problem(|config| {
            same(config);
            config.objective.views = 1;
        });
        assert_eq!((each_its_own_latent.as_str(), one_view.as_str()), ("", ""));
    }
}
