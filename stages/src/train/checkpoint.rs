//! Checkpoints: all that a run needs to go on bit for bit, in one safetensors file.
//!
//! Tensors, f32: `model.<name>`, `ema.<name>`, `exp_avg.<name>`, `exp_avg_sq.<name>` for every parameter of
//! [`crate::method::layout`], and the scalar `count`. Metadata:
//!
//! | key | what |
//! |---|---|
//! | `format` | `dualpath-checkpoint-1`; a greater number is of a newer program |
//! | `step` | steps done, which is the loader's cursor too: a step consumes one global batch |
//! | `data` | identity of the dataset |
//! | `arithmetic` | what computed: device, dtype, kind of processor; a run that goes on elsewhere differs by rounding |
//! | `config` | the resolved TOML of the run, so that the file alone says what it is |
//! | `xxh3.<group>` | of `model`, `ema`, `exp_avg`, `exp_avg_sq` and `count`: xxh3-64 of the values in the layout's order |
//!
//! No generator state, since every draw is a function of (seed, step, purpose), and no clock and no host: the same state
//! has the same bytes.
//!
//! A file is written beside its place, synced and renamed: a checkpoint that exists is whole, but for a disk that loses
//! what it was given. Against that there are the checksums, and more than one checkpoint.
//!
//! A checkpoint of a newer program is passed over for the one before it, with a warning, and stays where it is: it does not
//! count among those that are kept, and is not removed. Where a run writes the checkpoint of the same step, the newer file
//! becomes `step-<step>.safetensors.newer-1` first.

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor, no_grad};

use super::step::Trainer;
use crate::method::layout::ParameterSpec;
use crate::method::parameters::flat_len;

use read::CheckpointFile;
pub(crate) use read::{check_format, check_values};
pub use write::{Keep, Snapshot, Writer};

/// What every version of the format begins with; its number follows.
pub(crate) const FORMAT_PREFIX: &str = "dualpath-checkpoint-";
/// The version that is written, and the newest that is read.
const VERSION: u64 = 1;
/// The flat buffers that are stored, in their order in the file.
const BUFFERS: [&str; 4] = ["model", "ema", "exp_avg", "exp_avg_sq"];

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Not a checkpoint, cut short, or with other bytes than were written.
    #[error("{path} is not a readable checkpoint: {what}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The newest checkpoint is not readable, and no older one is.
    #[error("{newest}, and there is no older one to go on from; remove the file to begin anew")]
    NoneReadable {
        /// Why the newest is not.
        newest: Box<Self>,
    },
    /// Written by a program that is newer than this one.
    #[error("{path} has format {found:?}, and this program knows {known:?}; use the program that wrote it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: String,
        /// The newest that is known here.
        known: String,
    },
    /// A tensor is not there or has another shape: the checkpoint belongs to another model.
    #[error("{path}: tensor {name} is {found}, this model needs {expected:?}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Its key.
        name: String,
        /// Shape found, or "missing".
        found: String,
        /// Shape of the model.
        expected: Vec<i64>,
    },
    /// The checkpoint was trained on other data.
    #[error("{path}: was trained on dataset {found}, this dataset is {expected}; use the data that the run began with")]
    OtherData {
        /// The file.
        path: PathBuf,
        /// Identity stored.
        found: String,
        /// Identity of the data given.
        expected: String,
    },
}

/// What a checkpoint says of where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// Identity of the dataset. Another one is refused.
    pub data: String,
    /// Device, dtype and kind of processor. Bits are the same only on the same.
    pub arithmetic: String,
    /// The resolved configuration, as TOML.
    pub config: String,
}

/// The checkpoints of a folder with their steps, oldest first. A folder that does not exist holds none.
///
/// # Errors
/// The folder cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io_error(folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".safetensors"));
        if let Some(step) = step.and_then(|digits| digits.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint of a folder that can be read, and what of it was asked for.
#[derive(Debug)]
pub struct Newest<T> {
    /// Its step.
    pub step: u64,
    /// Its file.
    pub path: PathBuf,
    /// What was read of it.
    pub content: T,
    /// Newer files that are not readable or of a newer program, newest first; each is worth a warning.
    pub passed_over: Vec<CheckpointError>,
}

/// Reads the newest checkpoint of a folder, or the one before it where that is not readable or of a newer program, and so
/// on. `None` where there is none.
///
/// # Errors
/// [`CheckpointError::NoneReadable`], or [`CheckpointError::Newer`] where all are passed over and one of them is of a newer
/// program; and whatever `read` says that is neither of the two: a file of another model is not passed over.
pub fn newest<T>(
    folder: &Path,
    mut read: impl FnMut(&Path) -> Result<T, CheckpointError>,
) -> Result<Option<Newest<T>>, CheckpointError> {
    let mut passed_over = Vec::new();
    for (step, path) in list(folder)?.into_iter().rev() {
        match read(&path) {
            Ok(content) => return Ok(Some(Newest { step, path, content, passed_over })),
            Err(error @ (CheckpointError::Unreadable { .. } | CheckpointError::Newer { .. })) => {
                passed_over.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    // That one is whole: to begin anew would leave it behind.
    if let Some(newer) = passed_over.iter().position(|error| matches!(error, CheckpointError::Newer { .. })) {
        return Err(passed_over.swap_remove(newer));
    }
    match passed_over.into_iter().next() {
        Some(newest) => Err(CheckpointError::NoneReadable { newest: Box::new(newest) }),
        None => Ok(None),
    }
}

/// Puts the newest readable state of a folder into a trainer of the same configuration; its content is the arithmetic of
/// the checkpoint if that is another than `arithmetic`. Newer files that are not readable are set aside as `<name>.bad`, so
/// that the run can write theirs again; those of a newer program stay. `None`, and the trainer as it was, where there is no
/// checkpoint.
///
/// # Errors
/// Those of [`newest`] and [`load`]; the trainer is then of no use.
pub fn restore(
    trainer: &mut Trainer,
    folder: &Path,
    data: &str,
    arithmetic: &str,
) -> Result<Option<Newest<Option<String>>>, CheckpointError> {
    let newest = newest(folder, |path| load(trainer, path, data, arithmetic))?;
    for error in newest.iter().flat_map(|newest| &newest.passed_over) {
        if let CheckpointError::Unreadable { path, .. } = error {
            fs::rename(path, path.with_extension("safetensors.bad")).map_err(io_error(path))?;
        }
    }
    Ok(newest)
}

/// Puts the state of a checkpoint into a trainer of the same configuration. Returns the arithmetic of the checkpoint
/// if it is another than `arithmetic`.
///
/// # Errors
/// Any [`CheckpointError`]; the trainer may then hold a part of the checkpoint.
pub fn load(
    trainer: &mut Trainer,
    path: &Path,
    data: &str,
    arithmetic: &str,
) -> Result<Option<String>, CheckpointError> {
    let file = CheckpointFile::open(path)?;
    if file.data != data {
        return Err(CheckpointError::OtherData {
            path: path.to_path_buf(),
            found: file.data,
            expected: data.to_owned(),
        });
    }
    let specs = trainer.parameters.specs().to_vec();
    let adamw = &mut trainer.optimiser;
    let flats = [&mut trainer.parameters.master, &mut trainer.average, &mut adamw.exp_avg, &mut adamw.exp_avg_sq];
    for (group, flat) in BUFFERS.iter().zip(flats) {
        no_grad(|| file.fill(group, &specs, flat))?;
    }
    no_grad(|| file.fill_scalar("count", &mut adamw.count))?;
    trainer.parameters.refresh();
    trainer.step = file.step;
    Ok((file.arithmetic != arithmetic).then_some(file.arithmetic))
}

/// Reads the averaged weights of a checkpoint into a flat f32 buffer on the CPU, for sampling. The rest of the file, three
/// quarters of it, is not read.
///
/// # Errors
/// Any [`CheckpointError`] but [`CheckpointError::OtherData`].
pub fn load_average(path: &Path, specs: &[ParameterSpec]) -> Result<Tensor, CheckpointError> {
    let file = CheckpointFile::open(path)?;
    let mut flat = Tensor::zeros([flat_len(specs)], (Kind::Float, Device::Cpu));
    no_grad(|| file.fill("ema", specs, &mut flat))?;
    Ok(flat)
}

/// The resolved configuration of the run that wrote a checkpoint, as TOML; `None` in files of programs that did not store
/// it.
///
/// # Errors
/// [`CheckpointError::Io`], [`CheckpointError::Unreadable`] or [`CheckpointError::Newer`].
pub fn config(path: &Path) -> Result<Option<String>, CheckpointError> {
    Ok(CheckpointFile::open(path)?.config)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_path_buf(), source }
}
