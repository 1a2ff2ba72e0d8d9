//! `pipeline import-weights`: weights that another program trained become ours.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use stages::exchange::weights::{self, Form, Hints, ImportOptions, Imported, Time, Which};
use stages::method::config::{Backbone, LatentShape, ModelConfig};
use stages::train::checkpoint;
use stages::train::run_dir::RunDir;

use crate::exit::Outcome;
use crate::show;

/// Import weights of SiT or REPA, as .pt or safetensors, for `pipeline sample --weights`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImportWeightsArgs {
    /// File of torch.save (nothing in it is executed) or safetensors, with SiT's names
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// File to write
    #[arg(long, value_name = "F.safetensors")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// Which way time runs in the file
    #[arg(long, value_enum, default_value_t = TimeArg::Auto)]
    pub(crate) time: TimeArg,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// The average or what the optimiser changes.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WhichArgs {
    /// The averaged weights of a training checkpoint (the default)
    #[arg(long, conflicts_with = "raw")]
    pub(crate) ema: bool,
    /// Its weights as the optimiser left them
    #[arg(long)]
    pub(crate) raw: bool,
}

impl WhichArgs {
    pub(crate) fn which(self) -> Which {
        match (self.ema, self.raw) {
            (_, true) => Which::Raw,
            (_, false) => Which::Ema,
        }
    }
}

/// What no shape of a tensor tells.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkArgs {
    /// `ddt` makes plain SiT weights a ddt, by a copy of the patch embedding [default: what the weights are]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) backbone: Option<BackboneArg>,
    /// Attention heads [default: those of Table 5 for the width]
    #[arg(long, value_name = "N")]
    pub(crate) heads: Option<i64>,
    /// Blocks of the condition encoder [default: those of Table 5]
    #[arg(long, value_name = "N")]
    pub(crate) encoder_depth: Option<i64>,
    /// Side of the latents, where the file has no pos_embed [default: 32]
    #[arg(long, value_name = "N")]
    pub(crate) latent: Option<i64>,
}

impl NetworkArgs {
    pub(crate) fn hints(&self) -> Hints {
        let backbone = self.backbone.map(|backbone| match backbone {
            BackboneArg::Sit => Backbone::Sit,
            BackboneArg::Ddt => Backbone::Ddt,
        });
        Hints { backbone, heads: self.heads, encoder_depth: self.encoder_depth, latent: self.latent }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TimeArg {
    /// SiT's if the last layer predicts a variance, as that of the official SiT does, else REPA's
    Auto,
    /// t = 0 is data, as in REPA and here
    Repa,
    /// t = 0 is noise, as in SiT
    Reversed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BackboneArg {
    Sit,
    Ddt,
}

pub(crate) fn run(args: &ImportWeightsArgs) -> Result<Outcome> {
    if args.out.extension().is_some_and(|extension| extension == "pt" || extension == "pth") {
        bail!("--out {}: import-weights writes safetensors; `pipeline export-weights` writes .pt", args.out.display());
    }
    let known = known(&args.file)?;
    let time = match args.time {
        TimeArg::Auto => Time::Auto,
        TimeArg::Repa => Time::Ours,
        TimeArg::Reversed => Time::Reversed,
    };
    let options = ImportOptions { which: args.which.which(), time, hints: args.network.hints(), known };
    let imported = weights::import(&args.file, &options)?;
    let source = args.file.file_name().unwrap_or_default().to_string_lossy();
    weights::write(&imported.weights, Form::Own, &source, &args.out)?;
    tell_notes(&imported);
    show::result(&format!(
        "imported {} from {} into {}",
        described(&imported),
        args.file.display(),
        args.out.display()
    ));
    Ok(Outcome::Done)
}

/// The network of a checkpoint: as the file says itself, else as the run does that keeps it. `None` for other files.
pub(crate) fn known(file: &Path) -> Result<Option<(ModelConfig, LatentShape)>> {
    // What is wrong with a file is said when its weights are read.
    if let Ok(Some(text)) = checkpoint::config(file) {
        return Ok(Some(network(&text, file)?));
    }
    let folder = file.parent().filter(|folder| folder.file_name().is_some_and(|name| name == "checkpoints"));
    folder.and_then(Path::parent).map_or(Ok(None), of_run)
}

/// The network of a run directory; `None` if it is none.
pub(crate) fn of_run(run: &Path) -> Result<Option<(ModelConfig, LatentShape)>> {
    RunDir::at(run).config()?.map(|text| network(&text, &run.join("config.toml"))).transpose()
}

/// The network in the configuration of a run, whatever the rest of it is.
fn network(text: &str, place: &Path) -> Result<(ModelConfig, LatentShape)> {
    #[derive(Deserialize)]
    struct Trained {
        model: ModelConfig,
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        latent: LatentShape,
    }
    let Trained { model, data } = toml::from_str(text).with_context(|| {
        format!("{} does not describe a network of this program; use the program that wrote it", place.display())
    })?;
    Ok((model, data.latent))
}

/// Says what was changed on the way.
pub(crate) fn tell_notes(imported: &Imported) {
    for note in &imported.notes {
        show::say(note);
    }
}

/// The network in a few words.
pub(crate) fn described(imported: &Imported) -> String {
    let Imported { weights, key, floats, .. } = imported;
    let (model, latent) = (&weights.model, &weights.latent);
    let name = match model.backbone {
        Backbone::Sit => "sit",
        Backbone::Ddt => "ddt",
    };
    let encoder = match model.backbone {
        Backbone::Sit => String::new(),
        Backbone::Ddt => format!(" ({} of them encode)", model.encoder_depth),
    };
    let set = if key.is_empty() { String::new() } else { format!("{key} of ") };
    format!(
        "{set}a {name} of {} values in {floats}: {} blocks{encoder}, width {}, {} heads, patch {}, {} classes, latents {} \
         x {} x {}",
        weights.flat.len(),
        model.depth,
        model.hidden,
        model.heads,
        model.patch,
        latent.classes,
        latent.channels,
        latent.height,
        latent.width
    )
}
