//! `pipeline export-weights`: weights of ours for programs in Python.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use stages::exchange::weights::{self, Form, ImportOptions};
use stages::method::config::{LatentShape, ModelConfig};
use stages::train::checkpoint;
use stages::train::run_dir::RunDir;

use crate::commands::import_weights::{self, NetworkArgs, WhichArgs};
use crate::config::RunConfig;
use crate::exit::Outcome;
use crate::show;

/// Export weights with SiT's names for programs in Python, as safetensors or .pt.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExportWeightsArgs {
    /// Run directory (its newest checkpoint), a checkpoint, or a file that `import-weights` reads
    #[arg(value_name = "RUN|FILE")]
    pub(crate) source: PathBuf,
    /// File to write; one named .pt or .pth is what torch.load(weights_only=True) reads
    #[arg(long, value_name = "F.safetensors|F.pt")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

pub(crate) fn run(args: &ExportWeightsArgs) -> Result<Outcome> {
    let (file, known) = locate(&args.source)?;
    let extension = args.out.extension().unwrap_or_default();
    let form = if extension == "pt" || extension == "pth" { Form::Torch } else { Form::Safetensors };
    let hints = args.network.hints();
    let options = ImportOptions { which: args.which.which(), hints, known, ..ImportOptions::default() };
    let imported = weights::import(&file, &options)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    weights::write(&imported.weights, form, &name, &args.out)?;
    import_weights::tell_notes(&imported);
    let described = import_weights::described(&imported);
    show::result(&format!("exported {described} from {} to {}", file.display(), args.out.display()));
    Ok(Outcome::Done)
}

/// The file to read, and the network of the run that it belongs to.
fn locate(source: &Path) -> Result<(PathBuf, Option<(ModelConfig, LatentShape)>)> {
    if source.is_dir() {
        let run = RunDir::at(source);
        let known = network(source)?.with_context(|| {
            format!("{} holds no run (it has no config.toml); name a run directory or a file", source.display())
        })?;
        let Some((_, file)) = checkpoint::list(&run.checkpoints())?.pop() else {
            bail!("{} has no checkpoint yet; `pipeline train` writes one when it ends or is stopped", source.display());
        };
        return Ok((file, Some(known)));
    }
    // A checkpoint where a run keeps it.
    let folder = source.parent().filter(|folder| folder.file_name().is_some_and(|name| name == "checkpoints"));
    let known = match folder.and_then(Path::parent) {
        Some(run) => network(run)?,
        None => None,
    };
    Ok((source.to_owned(), known))
}

fn network(run: &Path) -> Result<Option<(ModelConfig, LatentShape)>> {
    let Some(text) = RunDir::at(run).config()? else { return Ok(None) };
    let config = RunConfig::parse(&text, run)?;
    Ok(Some((config.model, config.data.latent)))
}
