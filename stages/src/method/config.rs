//! What is trained: the model's sizes and the objective, as keys of the run's TOML file.

use serde::{Deserialize, Serialize};

/// The transformer that carries the method. Both are built from the same SiT blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// SiT: one stream of tokens; the aligned condition is the output of block `encoder_depth`.
    Sit,
    /// Decoupled diffusion transformer on SiT blocks: a condition encoder, then a velocity decoder that starts from
    /// the noisy latent again and is modulated by the condition of each token.
    Ddt,
}

/// Sizes of the network (paper Table 5) and of the projector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// `ddt` or `sit`.
    pub backbone: Backbone,
    /// Number of blocks, encoder and decoder together.
    pub depth: i64,
    /// Number of blocks of the condition encoder, whose output is aligned.
    pub encoder_depth: i64,
    /// Width D of a token.
    pub hidden: i64,
    /// Attention heads; divides `hidden`.
    pub heads: i64,
    /// Side of a patch, in latent pixels; divides the latent's side.
    pub patch: i64,
    /// Width of the MLP over `hidden`.
    pub mlp_ratio: i64,
    /// Hidden width of the projector z_phi. 0 leaves the projector out (no alignment).
    pub projector_hidden: i64,
    /// Output width of the projector.
    pub projector_out: i64,
}

impl ModelConfig {
    /// The sizes of Table 5 by name, for example `xl/2` (`s`, `b`, `l`, `xl` with patch 2, 4 or 8).
    pub fn named(backbone: Backbone, size: &str) -> Option<Self> {
        let (letter, patch) = size.split_once('/')?;
        let (depth, hidden, heads, encoder_depth) = match letter {
            "s" => (12, 384, 6, 4),
            "b" => (12, 768, 12, 4),
            "l" => (24, 1024, 16, 8),
            "xl" => (28, 1152, 16, 8),
            _ => return None,
        };
        let patch = match patch {
            "2" => 2,
            "4" => 4,
            "8" => 8,
            _ => return None,
        };
        Some(Self {
            backbone,
            depth,
            encoder_depth,
            hidden,
            heads,
            patch,
            mlp_ratio: 4,
            // The projector of REPA: Linear(D, 2048), SiLU, Linear(2048, 2048), SiLU, Linear(2048, 768).
            projector_hidden: 2048,
            projector_out: 768,
        })
    }

    /// The size of the demonstration: 64 tokens of a 16 x 16 latent, which train in minutes on two cores.
    pub fn demo() -> Self {
        Self {
            backbone: Backbone::Ddt,
            depth: 6,
            encoder_depth: 2,
            hidden: 128,
            heads: 4,
            patch: 2,
            mlp_ratio: 4,
            projector_hidden: 256,
            projector_out: 128,
        }
    }

    /// Whether the network has a projector.
    pub fn has_projector(&self) -> bool {
        self.projector_hidden > 0
    }

    /// One sentence that says which sizes do not fit together, if any.
    pub fn problem(&self, data: &LatentShape) -> Option<String> {
        let positive = [
            ("depth", self.depth),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("patch", self.patch),
            ("mlp_ratio", self.mlp_ratio),
        ];
        if let Some((key, value)) = positive.iter().find(|(_, value)| *value < 1) {
            return Some(format!("model.{key} = {value} must be at least 1"));
        }
        if self.encoder_depth < 1 || self.encoder_depth > self.depth {
            return Some(format!(
                "model.encoder_depth = {} must lie in 1..={} (model.depth)",
                self.encoder_depth, self.depth
            ));
        }
        if self.hidden % self.heads != 0 {
            return Some(format!("model.hidden = {} is not divisible by model.heads = {}", self.hidden, self.heads));
        }
        if self.hidden % 4 != 0 {
            return Some(format!(
                "model.hidden = {} is not divisible by 4, which the position embedding needs",
                self.hidden
            ));
        }
        if data.height % self.patch != 0 || data.width % self.patch != 0 {
            return Some(format!(
                "latents of {} x {} cannot be cut into patches of model.patch = {}",
                data.height, data.width, self.patch
            ));
        }
        if data.height != data.width {
            return Some(format!("latents of {} x {} are not square", data.height, data.width));
        }
        if self.has_projector() && self.projector_out < 1 {
            return Some("model.projector_out must be at least 1".to_owned());
        }
        None
    }
}

/// What the dataset says about its latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentShape {
    /// Channels C.
    pub channels: i64,
    /// Rows.
    pub height: i64,
    /// Columns.
    pub width: i64,
    /// Number of classes; the null class of guidance has this index.
    pub classes: i64,
}

/// The training objective (Eq. 8) and how views are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// K, noisy views of one image in a step.
    pub views: i64,
    /// Weight of the alignment loss in Eq. 8.
    pub lambda: f64,
    /// Whether every view draws its own time t (Table 2, "Resampling").
    pub resample_t: bool,
    /// Whether every view draws its own noise eps.
    pub resample_noise: bool,
    /// Probability that the label of a view is replaced by the null class, drawn for each view.
    pub label_drop: f64,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self { views: 2, lambda: 0.5, resample_t: true, resample_noise: true, label_drop: 0.1 }
    }
}

impl ObjectiveConfig {
    /// Whether the step aligns the conditions of its views.
    pub fn aligns(&self) -> bool {
        self.views > 1 && self.lambda > 0.0
    }

    /// One sentence that says what is out of range, if anything.
    pub fn problem(&self, model: &ModelConfig) -> Option<String> {
        if !(1..=4).contains(&self.views) {
            return Some(format!("objective.views = {} must lie in 1..=4", self.views));
        }
        if !(self.lambda >= 0.0 && self.lambda.is_finite()) {
            return Some(format!("objective.lambda = {} must be a number of at least 0", self.lambda));
        }
        if !(0.0..=1.0).contains(&self.label_drop) {
            return Some(format!("objective.label_drop = {} must lie in 0..=1", self.label_drop));
        }
        if self.aligns() && !model.has_projector() {
            return Some("objective.lambda > 0 aligns conditions and needs model.projector_hidden > 0".to_owned());
        }
        None
    }
}
