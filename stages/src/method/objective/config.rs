//! The objective as keys of the run's TOML file: Eq. 8, how views are drawn, what the paper leaves open, and the losses
//! that it is compared with.

use serde::{Deserialize, Serialize};

use crate::method::config::ModelConfig;

/// sim(.,.) of Eq. 6 (Table 2, "Objective").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Similarity {
    /// Cosine.
    Cosine,
    /// NT-Xent of SimCLR: cosine over a temperature, against all other images of the batch.
    NtXent,
}

/// Which tensor is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aligned {
    /// z_t, the raw output of the last encoder block.
    Output,
    /// SiLU(t + z_t), which is what modulates the decoder.
    Modulation,
}

/// How a term of Eq. 7 is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Mean.
    Mean,
    /// Sum.
    Sum,
}

/// Distribution of the times t.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeDistribution {
    /// U(0, 1), the paper's.
    Uniform,
    /// sigmoid(N(0, 1)), as Stable Diffusion 3.
    LogitNormal,
}

/// The training objective and how views are drawn. What the paper leaves open says so, with the reason for its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// K, noisy views of one image in a step: 1 to 4. One view has nothing to be aligned with: `lambda` then counts for nothing, and
    /// what is trained is SiT or DDT (K = 1 of Figure 3a).
    pub views: i64,
    /// Weight of the alignment loss in Eq. 8, at least 0.
    pub lambda: f64,
    /// `cosine` or `nt-xent`.
    pub similarity: Similarity,
    /// Temperature of `nt-xent`. Open in the paper; 0.5 is SimCLR's without tuning.
    pub temperature: f64,
    /// Whether `nt-xent` compares images by the mean of their tokens, and not token by token as Eq. 6 does.
    pub pool_tokens: bool,
    /// `output` or `modulation`. Open: Eq. 6 says "conditions z_t", and DDT's own code takes the raw output.
    pub aligned: Aligned,
    /// Whether the earlier view of each pair is a constant. Open: Eq. 6 and line 15 of Algorithm 1 differentiate both. In
    /// expectation this is half of lambda, since views are exchangeable and a similarity is symmetric. With `nt-xent`, which has
    /// every view for an anchor once, all that an anchor is compared with are constants.
    pub stop_gradient: bool,
    /// An experiment, not the paper's: the mean over the batch and its views is taken off at each position before the cosine, or before
    /// `nt-xent`, so that what all images share at a position counts for nothing.
    pub centre: bool,
    /// Whether every view draws its own time t (Table 2, "Resampling").
    pub resample_t: bool,
    /// Whether every view draws its own noise eps.
    pub resample_noise: bool,
    /// Whether every view draws its own latent from the autoencoder's posterior. Open: the paper has one x_*.
    pub resample_posterior: bool,
    /// `uniform` or `logit-normal`.
    pub time: TimeDistribution,
    /// Probability that the label is replaced by the null class.
    pub label_drop: f64,
    /// Whether the views of an image lose their labels together. Open: Algorithm 1 calls the network for each view, and its
    /// label embedding drops by row.
    pub share_label_drop: bool,
    /// Eq. 7 over views. The text above it says "average" and the formula sums; the mean is the loss of a batch of B K
    /// images. The sum makes velocity K times as heavy against the alignment and against clipping.
    pub velocity_views: Reduction,
    /// Eq. 7 over channels and pixels. It prints a squared norm, which is the sum; all code of this family takes the mean.
    pub velocity_elements: Reduction,
    /// Comparator: weight of the dispersive loss (Wang and He 2025) at the encoder's output; 0 is none, 0.5 theirs.
    pub dispersive: f64,
    /// Its temperature.
    pub dispersive_temperature: f64,
    /// Comparator: weight of contrastive flow matching (Delta-FM, Stoica et al. 2025); 0 is none, 0.05 theirs.
    pub contrastive: f64,
}

impl Default for ObjectiveConfig {
    /// The paper's, with two views.
    fn default() -> Self {
        Self {
            views: 2,
            lambda: 0.5,
            similarity: Similarity::Cosine,
            temperature: 0.5,
            pool_tokens: false,
            aligned: Aligned::Output,
            stop_gradient: false,
            centre: false,
            resample_t: true,
            resample_noise: true,
            resample_posterior: false,
            time: TimeDistribution::Uniform,
            label_drop: 0.1,
            share_label_drop: false,
            velocity_views: Reduction::Mean,
            velocity_elements: Reduction::Mean,
            dispersive: 0.0,
            dispersive_temperature: 0.5,
            contrastive: 0.0,
        }
    }
}

impl ObjectiveConfig {
    /// One view and the velocity loss alone: SiT and DDT.
    pub fn plain() -> Self {
        Self { views: 1, lambda: 0.0, ..Self::default() }
    }

    /// Whether the step aligns the conditions of its views.
    pub fn aligns(&self) -> bool {
        self.views > 1 && self.lambda > 0.0
    }

    /// The key that compares images of a batch with each other, if any: such a loss cannot be split into micro-batches.
    pub fn across_images(&self) -> Option<&'static str> {
        [
            (self.aligns() && self.similarity == Similarity::NtXent, "objective.similarity = \"nt-xent\""),
            (self.aligns() && self.centre, "objective.centre"),
            (self.dispersive > 0.0, "objective.dispersive"),
            (self.contrastive > 0.0, "objective.contrastive"),
        ]
        .into_iter()
        .find_map(|(is_on, key)| is_on.then_some(key))
    }

    /// One sentence that says what is out of range, if anything.
    pub fn problem(&self, model: &ModelConfig, batch: u64, micro_batches: u64) -> Option<String> {
        if !(1..=4).contains(&self.views) {
            return Some(format!("objective.views = {} must lie in 1..=4", self.views));
        }
        if self.views > 1 && !self.resample_t && !self.resample_noise && !self.resample_posterior {
            return Some(
                "objective.resample_t = false and objective.resample_noise = false make all views of an image the same; set \
                 one of them to true, or objective.views = 1"
                    .to_owned(),
            );
        }
        let weights = [("lambda", self.lambda), ("dispersive", self.dispersive), ("contrastive", self.contrastive)];
        if let Some((key, value)) = weights.into_iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
            return Some(format!("objective.{key} = {value} must be a number of at least 0"));
        }
        let temperatures = [("temperature", self.temperature), ("dispersive_temperature", self.dispersive_temperature)];
        if let Some((key, value)) = temperatures.into_iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            return Some(format!("objective.{key} = {value} must be a number above 0"));
        }
        if !(0.0..=1.0).contains(&self.label_drop) {
            return Some(format!("objective.label_drop = {} must lie in 0..=1", self.label_drop));
        }
        if self.aligns() && !model.has_projector() {
            return Some("objective.lambda > 0 aligns conditions and needs model.projector_hidden > 0".to_owned());
        }
        match self.across_images() {
            Some(key) if micro_batches > 1 => Some(format!(
                "{key} compares the images of a batch with each other, and train.micro_batches = {micro_batches} would \
                 hide most of them; set train.micro_batches = 1"
            )),
            Some(key) if batch < 2 => Some(format!("{key} compares the images of a batch, and train.batch is {batch}")),
            _ => None,
        }
    }
}
