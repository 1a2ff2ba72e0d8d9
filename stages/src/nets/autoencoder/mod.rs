//! `AutoencoderKL`: the variational autoencoder between images and latents, as diffusers defines it.
//!
//! Configured by the `config.json` of a diffusers directory and filled strictly from its safetensors file, whichever of
//! the three namings that file uses. The weights that the project trained itself are embedded and read by the very same
//! path: [`AutoencoderKl::tiny`]. Tiling and per-channel normalisation are not here.
//!
//! ```text
//! image f32 [B,3,H,W] in [-1,1]  --encode_moments-->  mean, logvar  f32 [B,C,H/f,W/f]
//! draw  f32 [B,C,h,w]            --decode---------->  image         f32 [B,3,h*f,w*f], about [-1,1], not clamped
//! ```
//!
//! Moments and draws are *unscaled*. The latent of a diffusion model is `(draw - shift_factor) * scaling_factor`.
//!
//! Tensors loaded from files require no gradient, so inference records nothing. An autoencoder made of tensors that do
//! (see [`Weights::from_tensors`]) is trained through the same two methods: `examples/train_tiny_vae.rs`.

mod choice;
mod config;
mod hub;
mod layers;
mod names;

use std::path::Path;

use tch::{Device, Kind, TchError, Tensor};

pub use self::choice::VaeChoice;
pub use self::config::AutoencoderConfig;
use self::layers::{Conv, Decoder, Encoder};
use super::weights::{Weights, WeightsError, channels_last, first_line};

/// Bounds of the log-variance, as in latent diffusion: keeps the deviation between 3e-7 and 22026.
const LOGVAR_RANGE: (f64, f64) = (-30.0, 20.0);

const CONFIG_FILE: &str = "config.json";
const WEIGHTS_FILE: &str = "diffusion_pytorch_model.safetensors";

/// Why an autoencoder cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum AutoencoderError {
    /// The text that chooses an autoencoder, or what it names, is not usable.
    #[error("--vae {choice}: {reason}")]
    Choice {
        /// What the user wrote.
        choice: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The `config.json` cannot be read, or asks for what is not built here.
    #[error("{place}: {reason}")]
    Config {
        /// The file.
        place: String,
        /// Key, what was expected, what was found.
        reason: String,
    },
    /// The weights cannot be read or do not fit the configuration.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor handed to the autoencoder does not fit it.
    #[error("autoencoder: expected {expected}, got {got}")]
    Input {
        /// Shape, dtype and device that are needed.
        expected: String,
        /// Those of the tensor.
        got: String,
    },
    /// libtorch failed, for example for want of memory.
    #[error("autoencoder: libtorch: {0}")]
    Torch(String),
}

impl From<TchError> for AutoencoderError {
    fn from(error: TchError) -> Self {
        Self::Torch(first_line(&error))
    }
}

/// Which autoencoder made some latents, for the provenance of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaeIdentity {
    /// What it was asked for by: `tiny`, the directory, or the hub id.
    pub name: String,
    /// xxh3 of all tensors under their names of today, as stored: the same whichever naming the file uses.
    pub weights_xxh3: u64,
}

/// The autoencoder on one device. Owned by one thread: `tch` tensors may be sent but not shared.
///
/// It takes and gives f32, and computes in the dtype that it was opened for, channels last.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: AutoencoderConfig,
    device: Device,
    /// Dtype of its layers.
    kind: Kind,
    encoder: Encoder,
    quant_conv: Option<Conv>,
    post_quant_conv: Option<Conv>,
    decoder: Decoder,
    identity: VaeIdentity,
}

impl AutoencoderKl {
    /// The autoencoder that the project trained on its own procedural images: f8, 4 channels, 2 MB, embedded. It
    /// computes in `kind`.
    ///
    /// # Errors
    /// Only libtorch's own, for example a device that is not there.
    pub fn tiny(device: Device, kind: Kind) -> Result<Self, AutoencoderError> {
        let config = include_str!("../../../assets/tiny-vae/config.json");
        let weights = include_bytes!("../../../assets/tiny-vae/diffusion_pytorch_model.safetensors");
        let config = AutoencoderConfig::from_json(config, "the embedded autoencoder's config.json")?;
        let weights = Weights::from_bytes(weights.as_slice(), "the embedded autoencoder's weights", device)?;
        Self::new(config, weights.for_inference(kind), "tiny")
    }

    /// Reads a diffusers directory: `config.json` and `diffusion_pytorch_model.safetensors`, the latter in any of the
    /// three namings and in f32, f16 or bf16. It computes in `kind`; `name` becomes the name of its [`VaeIdentity`].
    ///
    /// # Errors
    /// [`AutoencoderError::Config`] or [`AutoencoderError::Weights`], naming the file.
    pub fn open(dir: &Path, name: &str, device: Device, kind: Kind) -> Result<Self, AutoencoderError> {
        let path = dir.join(CONFIG_FILE);
        let place = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|e| {
            let nested = dir.join("vae");
            let advice = if nested.join(CONFIG_FILE).is_file() {
                format!("; this looks like a whole pipeline, pass {}", nested.display())
            } else {
                format!("; expected a diffusers directory with {CONFIG_FILE} and {WEIGHTS_FILE}")
            };
            AutoencoderError::Config { place: place.clone(), reason: format!("cannot be read: {e}{advice}") }
        })?;
        let config = AutoencoderConfig::from_json(&text, &place)?;
        let weights = Weights::open(&dir.join(WEIGHTS_FILE), device)?;
        Self::new(config, weights.for_inference(kind), name)
    }

    /// Builds the autoencoder from tensors that fit `config` exactly, on the device of `weights`. `name` becomes the
    /// name of its [`VaeIdentity`].
    ///
    /// # Errors
    /// [`AutoencoderError::Config`] if `config` cannot be built, [`AutoencoderError::Weights`] naming every tensor that
    /// is missing, unexpected or misshapen.
    pub fn new(config: AutoencoderConfig, weights: Weights, name: &str) -> Result<Self, AutoencoderError> {
        if let Some(reason) = config.problem() {
            return Err(AutoencoderError::Config { place: name.to_owned(), reason });
        }
        let blocks = config.block_out_channels.len();
        // A whole LDM checkpoint holds other networks too, under other prefixes: they are none of ours.
        let prefixed = weights.names().any(|name| name.starts_with(names::LDM_PREFIX));
        let mut weights = weights.rename(|name| {
            let name = if prefixed { name.strip_prefix(names::LDM_PREFIX)? } else { name };
            names::current(name, blocks)
        });
        let (encoder, quant_conv, post_quant_conv, decoder) = build(&config, &mut weights);
        let (device, kind) = (weights.device(), weights.kind());
        let identity = VaeIdentity { name: name.to_owned(), weights_xxh3: weights.finish()? };
        Ok(Self { config, device, kind, encoder, quant_conv, post_quant_conv, decoder, identity })
    }

    /// Name and shape of every parameter of an autoencoder of this configuration, in the order of construction.
    ///
    /// # Errors
    /// [`AutoencoderError::Config`] if it cannot be built.
    pub fn parameters(config: &AutoencoderConfig) -> Result<Vec<(String, Vec<i64>)>, AutoencoderError> {
        if let Some(reason) = config.problem() {
            return Err(AutoencoderError::Config { place: "autoencoder".to_owned(), reason });
        }
        let mut nothing = Weights::from_tensors([], "no weights", Device::Cpu);
        build(config, &mut nothing);
        Ok(nothing.expected().to_vec())
    }

    /// The posterior of each image: mean and log-variance (clamped to [-30, 20]), f32 `[B, C, H/f, W/f]`, unscaled.
    ///
    /// `images` are f32 `[B, 3, H, W]` in [-1, 1] on the autoencoder's device, with B >= 1 and H, W positive multiples
    /// of [`downsample`](Self::downsample).
    ///
    /// # Errors
    /// [`AutoencoderError::Input`] if they are not; [`AutoencoderError::Torch`] for want of memory.
    pub fn encode_moments(&self, images: &Tensor) -> Result<(Tensor, Tensor), AutoencoderError> {
        self.check(images, self.config.in_channels, self.downsample())?;
        let mut parameters = self.encoder.forward(&channels_last(&images.f_to_kind(self.kind)?)?)?;
        if let Some(quant_conv) = &self.quant_conv {
            parameters = quant_conv.forward(&parameters)?;
        }
        let parameters = parameters.f_to_kind(Kind::Float)?;
        let channels = self.latent_channels();
        let mean = parameters.f_narrow(1, 0, channels)?;
        let logvar = parameters.f_narrow(1, channels, channels)?;
        Ok((mean, logvar.f_clamp(LOGVAR_RANGE.0, LOGVAR_RANGE.1)?))
    }

    /// The images of unscaled draws: f32 `[B, C, h, w]` on the autoencoder's device -> f32 `[B, 3, h*f, w*f]`, about
    /// [-1, 1] and not clamped.
    ///
    /// # Errors
    /// [`AutoencoderError::Input`] if the draws are not of that shape; [`AutoencoderError::Torch`] for want of memory.
    pub fn decode(&self, draws: &Tensor) -> Result<Tensor, AutoencoderError> {
        self.check(draws, self.latent_channels(), 1)?;
        let draws = channels_last(&draws.f_to_kind(self.kind)?)?;
        let image = match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(&draws)?)?,
            None => self.decoder.forward(&draws)?,
        };
        Ok(image.f_to_kind(Kind::Float)?)
    }

    /// A diffusion model's latent is `(draw - shift_factor) * scaling_factor`.
    pub fn scaling_factor(&self) -> f64 {
        self.config.scaling_factor()
    }

    /// See [`scaling_factor`](Self::scaling_factor).
    pub fn shift_factor(&self) -> f64 {
        self.config.shift_factor()
    }

    /// f: image pixels for each latent pixel along one side.
    pub fn downsample(&self) -> i64 {
        self.config.downsample()
    }

    /// C: channels of a latent.
    pub fn latent_channels(&self) -> i64 {
        self.config.latent_channels
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// The device that its inputs must be on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Which autoencoder this is, for the record.
    pub fn identity(&self) -> &VaeIdentity {
        &self.identity
    }

    /// libtorch would raise a C++ exception at the first layer that does not fit; this says it in one sentence.
    fn check(&self, tensor: &Tensor, channels: i64, multiple: i64) -> Result<(), AutoencoderError> {
        let side = |n: i64| n > 0 && n % multiple == 0;
        let size = tensor.size();
        let fits = matches!(size[..], [b, c, h, w] if b > 0 && c == channels && side(h) && side(w));
        if fits && tensor.kind() == Kind::Float && tensor.device() == self.device {
            return Ok(());
        }
        Err(AutoencoderError::Input {
            expected: format!(
                "a Float tensor [B, {channels}, H, W] on {:?}, B >= 1, H and W multiples of {multiple}",
                self.device
            ),
            got: format!("a {:?} tensor {size:?} on {:?}", tensor.kind(), tensor.device()),
        })
    }
}

/// The one place that says which parts there are.
fn build(config: &AutoencoderConfig, weights: &mut Weights) -> (Encoder, Option<Conv>, Option<Conv>, Decoder) {
    let latent = config.latent_channels;
    let encoder = Encoder::new(weights, config);
    let quant_conv = config.use_quant_conv.then(|| Conv::new(weights, "quant_conv", 2 * latent, 2 * latent, 1));
    let post_quant_conv = config.use_post_quant_conv.then(|| Conv::new(weights, "post_quant_conv", latent, latent, 1));
    let decoder = Decoder::new(weights, config);
    (encoder, quant_conv, post_quant_conv, decoder)
}

#[cfg(test)]
mod tests;
