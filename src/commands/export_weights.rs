//! `pipeline export-weights`: weights of ours for programs in Python.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use stages::exchange::weights::{self, Form, ImportOptions, Imported, WeightsFileError};
use stages::train::checkpoint::{self, Newest};
use stages::train::run_dir::RunDir;

use crate::commands::import_weights::{self, NetworkArgs, WhichArgs};
use crate::exit::Outcome;
use crate::show;
use crate::trained::tell_passed_over;

/// Export weights with SiT's names for programs in Python, as safetensors or .pt.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExportWeightsArgs {
    /// Run directory (its newest readable checkpoint), a checkpoint, or a file that `import-weights` reads
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
    let extension = args.out.extension().unwrap_or_default();
    let form = if extension == "pt" || extension == "pth" { Form::Torch } else { Form::Safetensors };
    let options = ImportOptions { which: args.which.which(), hints: args.network.hints(), ..ImportOptions::default() };
    let (file, imported) = match args.source.is_dir() {
        true => newest(&args.source, options)?,
        false => {
            let known = import_weights::known(&args.source)?;
            (args.source.clone(), weights::import(&args.source, &ImportOptions { known, ..options })?)
        }
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    weights::write(&imported.weights, form, &name, &args.out)?;
    import_weights::tell_notes(&imported);
    let described = import_weights::described(&imported);
    show::result(&format!("exported {described} from {} to {}", file.display(), args.out.display()));
    Ok(Outcome::Done)
}

/// The newest checkpoint of a run whose weights can be read. Those that cannot are passed over with a warning.
fn newest(run: &Path, options: ImportOptions) -> Result<(PathBuf, Imported)> {
    let known = import_weights::of_run(run)?.with_context(|| {
        format!("{} holds no run (it has no config.toml); name a run directory or a file", run.display())
    })?;
    let options = ImportOptions { known: Some(known), ..options };
    let found = checkpoint::newest(&RunDir::at(run).checkpoints(), |path| {
        // A file that is no checkpoint, or was cut short, is told from one that does not fit the options.
        checkpoint::config(path)?;
        match weights::import(path, &options) {
            Err(WeightsFileError::Checkpoint(error)) => Err(error),
            read => Ok(read),
        }
    })?;
    let Some(Newest { step, path, content, passed_over }) = found else {
        bail!("{} has no checkpoint yet; `pipeline train` writes one when it ends or is stopped", run.display());
    };
    tell_passed_over(&passed_over, step);
    Ok((path, content?))
}
