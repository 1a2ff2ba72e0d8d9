//! What decides the structure of an [`AutoencoderKl`](super::AutoencoderKl): the `config.json` of diffusers.

use serde::{Deserialize, Serialize};

use super::AutoencoderError;

/// The keys of a diffusers `config.json` that this autoencoder honours. Keys that are absent have the defaults of
/// diffusers 0.35; keys that say nothing about the network (`sample_size`, `force_upcast`, ..) are ignored; kinds of
/// layers that are not built here are refused by [`AutoencoderConfig::from_json`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutoencoderConfig {
    /// `AutoencoderKL`, if written.
    #[serde(rename = "_class_name", default = "class_name")]
    pub class_name: String,
    /// `silu`, or its other name `swish`.
    #[serde(default = "act_fn")]
    pub act_fn: String,
    /// Channels of each resolution, finest first. All but the last halve the image, so four blocks make f8.
    pub block_out_channels: Vec<i64>,
    /// One kind for each block, all `DownEncoderBlock2D`; empty if not written.
    #[serde(default)]
    pub down_block_types: Vec<String>,
    /// One kind for each block, all `UpDecoderBlock2D`; empty if not written.
    #[serde(default)]
    pub up_block_types: Vec<String>,
    /// Image channels: 3.
    #[serde(default = "rgb")]
    pub in_channels: i64,
    /// Image channels: 3.
    #[serde(default = "rgb")]
    pub out_channels: i64,
    /// Channels of a latent.
    #[serde(default = "latent_channels")]
    pub latent_channels: i64,
    /// Residual blocks of each resolution in the encoder; the decoder has one more.
    #[serde(default = "layers_per_block")]
    pub layers_per_block: i64,
    /// Groups of every group normalisation.
    #[serde(default = "norm_num_groups")]
    pub norm_num_groups: i64,
    /// Whether the middle of encoder and decoder attends over all positions.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Latent = (draw - shift) * scale. If not written 0.18215, the value of Stable Diffusion 1 and 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f64>,
    /// Latent = (draw - shift) * scale. If not written 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift_factor: Option<f64>,
    /// Per-channel normalisation, which is not supported: must be absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_mean: Option<Vec<f64>>,
    /// Per-channel normalisation, which is not supported: must be absent or null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_std: Option<Vec<f64>>,
}

fn class_name() -> String {
    "AutoencoderKL".to_owned()
}

fn act_fn() -> String {
    "silu".to_owned()
}

fn rgb() -> i64 {
    3
}

fn latent_channels() -> i64 {
    4
}

fn layers_per_block() -> i64 {
    1
}

fn norm_num_groups() -> i64 {
    32
}

fn yes() -> bool {
    true
}

impl AutoencoderConfig {
    /// Reads a `config.json`. `place` names it in messages.
    ///
    /// # Errors
    /// [`AutoencoderError::Config`] if the text is not such a JSON object, or asks for what is not built here.
    pub fn from_json(text: &str, place: &str) -> Result<Self, AutoencoderError> {
        let wrong = |reason: String| AutoencoderError::Config { place: place.to_owned(), reason };
        let config: Self = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        match config.problem() {
            None => Ok(config),
            Some(reason) => Err(wrong(reason)),
        }
    }

    /// What keeps this configuration from being built, if anything. The bounds are far above any published model and
    /// keep a hostile file from asking for absurd amounts of memory.
    pub(super) fn problem(&self) -> Option<String> {
        let blocks = self.block_out_channels.len();
        if self.class_name != "AutoencoderKL" {
            return Some(format!("_class_name: expected AutoencoderKL, got {}", self.class_name));
        }
        if !matches!(self.act_fn.as_str(), "silu" | "swish") {
            return Some(format!("act_fn: expected silu, got {}", self.act_fn));
        }
        if !(1..=8).contains(&blocks) {
            return Some(format!("block_out_channels: expected 1 to 8 entries, got {blocks}"));
        }
        for (key, kinds, kind) in [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            if let Some(other) = kinds.iter().find(|k| *k != kind) {
                return Some(format!("{key}: expected only {kind}, got {other}"));
            }
            if !kinds.is_empty() && kinds.len() != blocks {
                return Some(format!("{key}: expected {blocks} entries as in block_out_channels, got {}", kinds.len()));
            }
        }
        for (key, value, range) in [
            ("in_channels", self.in_channels, 3..=3),
            ("out_channels", self.out_channels, 3..=3),
            ("latent_channels", self.latent_channels, 1..=256),
            ("layers_per_block", self.layers_per_block, 1..=16),
            ("norm_num_groups", self.norm_num_groups, 1..=4096),
        ] {
            if !range.contains(&value) {
                return Some(format!("{key}: expected {} to {}, got {value}", range.start(), range.end()));
            }
        }
        for &channels in &self.block_out_channels {
            if !(1..=8192).contains(&channels) || channels % self.norm_num_groups != 0 {
                return Some(format!(
                    "block_out_channels: expected multiples of norm_num_groups = {} up to 8192, got {channels}",
                    self.norm_num_groups
                ));
            }
        }
        if !(self.scaling_factor().is_finite() && self.scaling_factor() > 0.0 && self.shift_factor().is_finite()) {
            return Some("scaling_factor: expected a positive number, and shift_factor a finite one".to_owned());
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return Some("latents_mean, latents_std: per-channel normalisation is not supported".to_owned());
        }
        None
    }

    /// What a latent is multiplied with to get about unit variance.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor.unwrap_or(0.18215)
    }

    /// What is subtracted before that.
    pub fn shift_factor(&self) -> f64 {
        self.shift_factor.unwrap_or(0.0)
    }

    /// Image pixels for each latent pixel along one side: 8 for four blocks.
    pub fn downsample(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As published with sd-vae-ft-mse and -ema, which were written by diffusers 0.4.2.
    const SD: &str = r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

    #[test]
    fn the_published_config_is_read_and_absent_keys_have_their_defaults() {
        let config = AutoencoderConfig::from_json(SD, "config.json").unwrap();
        assert_eq!(config.scaling_factor(), 0.18215);
        assert_eq!(config.shift_factor(), 0.0);
        assert_eq!(config.downsample(), 8);
        assert!(config.mid_block_add_attention && config.use_quant_conv && config.use_post_quant_conv);
    }

    #[test]
    fn null_means_absent() {
        let text = r#"{"block_out_channels": [32], "scaling_factor": 1.5, "shift_factor": null, "latents_mean": null}"#;
        let config = AutoencoderConfig::from_json(text, "config.json").unwrap();
        assert_eq!((config.scaling_factor(), config.shift_factor()), (1.5, 0.0));
    }

    #[test]
    fn what_is_not_built_here_is_refused_by_name() {
        for (key, wrong) in [
            ("_class_name", r#""AutoencoderTiny""#),
            ("act_fn", r#""relu""#),
            ("block_out_channels", "[]"),
            ("block_out_channels", "[32, 48]"),
            ("block_out_channels", "[32, -32]"),
            ("block_out_channels", "[9223372036854775776]"),
            ("down_block_types", r#"["AttnDownEncoderBlock2D"]"#),
            ("up_block_types", r#"["UpDecoderBlock2D", "UpDecoderBlock2D"]"#),
            ("in_channels", "4"),
            ("latent_channels", "0"),
            ("layers_per_block", "0"),
            ("norm_num_groups", "0"),
            ("scaling_factor", "0"),
            ("latents_mean", "[0.0]"),
        ] {
            let mut config = serde_json::json!({"block_out_channels": [32]});
            config[key] = serde_json::from_str(wrong).unwrap();
            let error = AutoencoderConfig::from_json(&config.to_string(), "there/config.json").unwrap_err();
            assert!(error.to_string().starts_with(&format!("there/config.json: {key}")), "{key} {wrong}: {error}");
        }
        assert!(AutoencoderConfig::from_json("{}", "c").unwrap_err().to_string().contains("block_out_channels"));
        assert!(AutoencoderConfig::from_json("[", "c").is_err());
    }

    #[test]
    fn a_config_survives_writing_and_reading() {
        let config = AutoencoderConfig::from_json(SD, "config.json").unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(AutoencoderConfig::from_json(&text, "again").unwrap(), config);
    }
}
