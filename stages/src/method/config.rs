//! The network's sizes, and what of it the paper leaves open, as keys of the run's TOML file.
//!
//! The objective's keys are in [`super::objective::config`].

use serde::{Deserialize, Serialize};

use super::layout::parameter_count;

/// No side of a weight or of a latent is longer. The bounds are far above any network there is: within them no count of values, bytes
/// or operations overflows, and a slip of the keyboard is told before memory is asked for.
pub const LARGEST: i64 = 1 << 20;

/// No network has more blocks.
pub const DEEPEST: i64 = 1 << 12;

/// No latent has more patches: a network computes for each pair of them.
pub const MOST_TOKENS: i64 = 1 << 16;

/// No network has more values.
pub const MOST_PARAMETERS: i64 = 1 << 40;

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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Linear layers of the projector, at least 2, with SiLU between them. The paper says "MLP", with "subsequent layers";
    /// REPA's has 3.
    pub projector_layers: i64,
    /// Gain of the Xavier initialisation behind the projector's first layer: section 5.1 has it "reduced" and names no
    /// number. It changes no cosine, but the gradient of the last layer grows as 1 / gain and then takes the clipped norm
    /// over, so that gains below 0.01 are no good.
    pub projector_gain: f64,
    /// Whether the layers of the projector have biases.
    pub projector_bias: bool,
    /// An experiment, not the paper's: whether the position embedding is added to the encoder's patches. Without, an encoder's token
    /// does not know where it is, so that no two views can agree on that alone; `sit` has no other stream and then knows no
    /// positions at all.
    #[serde(default = "yes")]
    pub encoder_position: bool,
    /// Whether the decoder of `ddt` sees the label by itself too: t + y + z_t in place of t + z_t. The paper writes
    /// Decoder(x_t, t, z_t).
    pub decoder_label: bool,
    /// Whether the position embedding is added to the decoder's patches too, as to the encoder's. (DDT's own blocks have
    /// rotary positions everywhere.)
    pub decoder_position: bool,
}

/// A configuration that does not name the key.
fn yes() -> bool {
    true
}

impl ModelConfig {
    /// What the paper leaves open, with sizes that mean nothing yet.
    pub(crate) const OPEN: Self = Self {
        backbone: Backbone::Ddt,
        depth: 0,
        encoder_depth: 0,
        hidden: 0,
        heads: 0,
        patch: 2,
        mlp_ratio: 4,
        // The projector of REPA: Linear(D, 2048), SiLU, Linear(2048, 2048), SiLU, Linear(2048, 768).
        projector_hidden: 2048,
        projector_out: 768,
        projector_layers: 3,
        projector_gain: 0.1,
        projector_bias: true,
        encoder_position: true,
        decoder_label: false,
        decoder_position: true,
    };

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
        Some(Self { backbone, depth, encoder_depth, hidden, heads, patch, ..Self::OPEN })
    }

    /// The size of the demonstration: 64 tokens of a 16 x 16 latent, which train in minutes on two cores.
    pub fn demo() -> Self {
        Self {
            depth: 6,
            encoder_depth: 2,
            hidden: 128,
            heads: 4,
            projector_hidden: 256,
            projector_out: 128,
            ..Self::OPEN
        }
    }

    /// Whether the network has a projector.
    pub fn has_projector(&self) -> bool {
        self.projector_hidden > 0
    }

    /// One sentence that says which sizes do not fit together, if any.
    pub fn problem(&self, data: &LatentShape) -> Option<String> {
        // Weights may know no class but the null class.
        let latent = [
            ("channels", data.channels, 1),
            ("rows", data.height, 1),
            ("columns", data.width, 1),
            ("classes", data.classes, 0),
        ];
        if let Some((what, value, least)) = latent.iter().find(|(_, value, least)| !(*least..=LARGEST).contains(value))
        {
            return Some(format!("the latents have {value} {what}, which must lie in {least}..={LARGEST}"));
        }
        let sizes = [
            ("depth", self.depth, 1, DEEPEST),
            ("hidden", self.hidden, 1, LARGEST),
            ("heads", self.heads, 1, LARGEST),
            ("patch", self.patch, 1, LARGEST),
            ("mlp_ratio", self.mlp_ratio, 1, LARGEST),
            ("projector_hidden", self.projector_hidden, 0, LARGEST),
            ("projector_out", self.projector_out, 0, LARGEST),
        ];
        if let Some((key, value, least, most)) =
            sizes.iter().find(|(_, value, least, most)| !(least..=most).contains(&value))
        {
            return Some(format!("model.{key} = {value} must lie in {least}..={most}"));
        }
        if self.hidden * self.mlp_ratio > LARGEST {
            return Some(format!(
                "model.hidden = {} with model.mlp_ratio = {} makes an MLP wider than {LARGEST}",
                self.hidden, self.mlp_ratio
            ));
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
        if self.patch * self.patch * data.channels > LARGEST {
            return Some(format!(
                "patches of model.patch = {} of {} channels have more than {LARGEST} values",
                self.patch, data.channels
            ));
        }
        let tokens = (data.height / self.patch) * (data.width / self.patch);
        if tokens > MOST_TOKENS {
            return Some(format!(
                "latents of {} x {} in patches of model.patch = {} are {tokens} tokens, more than {MOST_TOKENS}",
                data.height, data.width, self.patch
            ));
        }
        if self.has_projector() && self.projector_out < 1 {
            return Some("model.projector_out must be at least 1".to_owned());
        }
        if self.has_projector() && !(2..=8).contains(&self.projector_layers) {
            return Some(format!("model.projector_layers = {} must lie in 2..=8", self.projector_layers));
        }
        if !(self.projector_gain > 0.0 && self.projector_gain.is_finite()) {
            return Some(format!(
                "model.projector_gain = {} must be above 0: a projector of zeros aligns everything",
                self.projector_gain
            ));
        }
        let parameters = parameter_count(self, data, true);
        (parameters > MOST_PARAMETERS).then(|| {
            format!("the network would have {parameters} parameters, more than {MOST_PARAMETERS}; make model.depth or model.hidden smaller")
        })
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
