//! What is sampled from: the newest checkpoint of a run, or a file of weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use stages::device::{Device, Kind};
use stages::exchange::weights::{self, NetworkWeights};
use stages::load::feed::Scaling;
use stages::method::config::{Backbone, ModelConfig};
use stages::nets::autoencoder::{AutoencoderKl, VaeChoice};
use stages::sample::generate::Weights;
use toml::Table;

use super::{SampleArgs, autoencoder};
use crate::config;
use crate::trained::Trained;

/// Weights, and what turns their latents into pictures.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) weights: Weights,
    /// Where they lie.
    pub(super) file: PathBuf,
    /// Steps that were trained, where that is known.
    pub(super) step: Option<u64>,
    pub(super) scaling: Scaling,
    pub(super) vae: VaeChoice,
    /// The same, opened on the CPU.
    pub(super) opened: AutoencoderKl,
    pub(super) vae_name: String,
    /// Name of each class, by index.
    pub(super) class_names: Vec<String>,
}

impl Source {
    pub(super) fn open(args: &SampleArgs) -> Result<Self> {
        match (&args.run, &args.weights) {
            (Some(run), None) => Self::of_run(run, args.vae.as_deref()),
            (None, Some(file)) => Self::of_file(file, args),
            _ => bail!("give either --run or --weights"),
        }
    }

    fn of_run(run: &Path, vae: Option<&str>) -> Result<Self> {
        let Trained { config, weights, file, step } = Trained::open(run)?;
        let (vae, vae_name) = autoencoder(vae, &config.data.vae, &config.data.vae_xxh3)?;
        let opened = vae.open(Device::Cpu, Kind::Float)?;
        check_channels(&vae_name, &opened, weights.data.channels)?;
        Ok(Self {
            weights,
            file,
            step: Some(step),
            scaling: Scaling { factor: config.data.scaling_factor, shift: config.data.shift_factor },
            vae,
            opened,
            vae_name,
            class_names: config.data.class_names,
        })
    }

    fn of_file(file: &Path, args: &SampleArgs) -> Result<Self> {
        let name = args.vae.as_deref().context("--weights needs --vae: the autoencoder that made the latents")?;
        let NetworkWeights { model, latent, flat } = weights::open(file)?;
        if let Some(preset) = &args.preset {
            let wanted = config::resolve(Some(preset), None, &args.set)?.model;
            check(&model, &wanted, preset).with_context(|| file.display().to_string())?;
        }
        let vae = VaeChoice::parse(name)?;
        let opened = vae.open(Device::Cpu, Kind::Float)?;
        check_channels(name, &opened, latent.channels)?;
        Ok(Self {
            weights: Weights { model, data: latent, flat },
            file: file.to_owned(),
            step: None,
            scaling: Scaling { factor: opened.scaling_factor(), shift: opened.shift_factor() },
            vae,
            opened,
            vae_name: name.to_owned(),
            class_names: (0..latent.classes).map(|class| class.to_string()).collect(),
        })
    }
}

/// Refuses an autoencoder that decodes other latents than the weights make.
fn check_channels(name: &str, vae: &AutoencoderKl, made: i64) -> Result<()> {
    let decoded = vae.latent_channels();
    if decoded != made {
        bail!(
            "--vae {name} decodes latents of {decoded} channels, and the weights make {made}; name the autoencoder that made \
             their training data"
        );
    }
    Ok(())
}

/// Whether the network is the preset's in all that sampling sees: not in its projector, nor in which block of a plain
/// SiT is aligned.
fn check(found: &ModelConfig, wanted: &ModelConfig, preset: &str) -> Result<()> {
    let one_stream = found.backbone == Backbone::Sit;
    let (found, wanted) = (Table::try_from(found)?, Table::try_from(wanted)?);
    let unseen = |key: &str| key.starts_with("projector") || (one_stream && key == "encoder_depth");
    for (key, wanted) in wanted.iter().filter(|(key, _)| !unseen(key)) {
        if let Some(found) = found.get(key)
            && found != wanted
        {
            bail!("model.{key} is {found}, and {wanted} by --preset {preset}; name the preset that the weights are of");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoencoder_of_other_channels_is_refused() {
        let vae = VaeChoice::parse("tiny").unwrap().open(Device::Cpu, Kind::Float).unwrap();
        check_channels("tiny", &vae, 4).unwrap();
        let error = check_channels("tiny", &vae, 16).unwrap_err().to_string();
        assert!(error.starts_with("--vae tiny decodes latents of 4 channels, and the weights make 16; "), "{error}");
    }
}
