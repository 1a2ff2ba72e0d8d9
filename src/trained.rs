//! What a run has trained so far: the averaged weights of its newest checkpoint, for the commands that use them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use stages::method::layout::layout;
use stages::sample::generate::Weights;
use stages::train::checkpoint::{self, CheckpointError, Newest};
use stages::train::run_dir::RunDir;

use crate::config::RunConfig;
use crate::show;

/// A run and its averaged weights.
#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) config: RunConfig,
    pub(crate) weights: Weights,
    /// The checkpoint.
    pub(crate) file: PathBuf,
    /// Its steps.
    pub(crate) step: u64,
}

impl Trained {
    /// Opens the run directory `run`. Checkpoints that cannot be read are passed over with a warning.
    pub(crate) fn open(run: &Path) -> Result<Self> {
        let run_dir = RunDir::at(run);
        let text = run_dir.config()?.with_context(|| {
            format!("{} holds no run (it has no config.toml); `pipeline train --run` makes one", run.display())
        })?;
        let config = RunConfig::parse(&text, run)?;
        let latent = config.data.latent;
        let specs = layout(&config.model, &latent);
        let found = checkpoint::newest(&run_dir.checkpoints(), |path| checkpoint::load_average(path, &specs))?;
        let Some(Newest { step, path: file, content: average, passed_over }) = found else {
            bail!("{} has no checkpoint yet; `pipeline train` writes one when it ends or is stopped", run.display());
        };
        tell_passed_over(&passed_over, step);
        let weights = Weights::new(config.model.clone(), latent, &average);
        Ok(Self { config, weights, file, step })
    }
}

/// Says why the checkpoint of `step` is used, and none of those behind it.
pub(crate) fn tell_passed_over(errors: &[CheckpointError], step: u64) {
    for error in errors {
        show::say(&format!("warning: {error}; the one of step {step} is used"));
    }
}
