//! Checkpoints: all that a run needs to go on bit for bit, in one safetensors file.
//!
//! Tensors, f32: `model.<name>`, `ema.<name>`, `exp_avg.<name>`, `exp_avg_sq.<name>` for every parameter of
//! [`crate::method::layout`], and the scalar `count`. Metadata: `format`, `step` (which is the loader's cursor too: a
//! step consumes one global batch), `data` (identity of the dataset) and `arithmetic` (what computed: device, dtype,
//! kind of processor; a run that goes on elsewhere differs by rounding). No generator state, since every draw is a
//! function of (seed, step, purpose).
//!
//! A file is written beside its place, synced and renamed: a checkpoint that exists is whole.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor, no_grad};

use super::step::Trainer;
use crate::method::layout::ParameterSpec;
use crate::method::parameters::{flat_len, in_order, views};

const FORMAT: &str = "dualpath-checkpoint-1";
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
    /// Not a checkpoint of this format, or cut short.
    #[error("{path}: not a readable checkpoint ({what}); remove the file to go on from the one before it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
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
}

/// Writes the trainer's state as `<folder>/step-<step>.safetensors` and removes all but the newest `keep`.
pub fn save(trainer: &Trainer, folder: &Path, marks: &Marks, keep: u64) -> Result<PathBuf, CheckpointError> {
    let specs = trainer.parameters.specs();
    let adamw = &trainer.optimiser;
    let flats = [&trainer.parameters.master, &trainer.average, &adamw.exp_avg, &adamw.exp_avg_sq];
    let bytes = flats.map(|flat| bytes_of(&flat.to_device(Device::Cpu)));
    let count = bytes_of(&adamw.count.to_device(Device::Cpu));

    let path = folder.join(format!("step-{:08}.safetensors", trainer.step));
    let unreadable =
        |e: safetensors::SafeTensorError| CheckpointError::Unreadable { path: path.clone(), what: e.to_string() };
    let mut tensors = vec![("count".to_owned(), TensorView::new(Dtype::F32, vec![], &count).map_err(unreadable)?)];
    for (prefix, bytes) in BUFFERS.iter().zip(&bytes) {
        let mut offset = 0;
        for spec in specs {
            let len = spec.len() as usize * 4;
            let shape = spec.shape.iter().map(|&n| n as usize).collect();
            let view = TensorView::new(Dtype::F32, shape, &bytes[offset..offset + len]).map_err(unreadable)?;
            tensors.push((format!("{prefix}.{}", spec.name), view));
            offset += len;
        }
    }
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("step".to_owned(), trainer.step.to_string()),
        ("data".to_owned(), marks.data.clone()),
        ("arithmetic".to_owned(), marks.arithmetic.clone()),
    ]);

    fs::create_dir_all(folder).map_err(io_error(folder))?;
    let temporary = path.with_extension("tmp");
    safetensors::serialize_to_file(tensors, Some(metadata), &temporary).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => CheckpointError::Io { path: temporary.clone(), source },
        other => unreadable(other),
    })?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(io_error(&temporary))?;
    fs::rename(&temporary, &path).map_err(io_error(&path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))?;

    remove_unfinished(folder)?;
    let all = list(folder)?;
    let surplus = all.len().saturating_sub(keep as usize);
    for (_, old) in &all[..surplus] {
        fs::remove_file(old).map_err(io_error(old))?;
    }
    Ok(path)
}

/// A run that was killed while it wrote leaves a part of a checkpoint behind, under its temporary name.
fn remove_unfinished(folder: &Path) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
    }
    Ok(())
}

/// The checkpoints of a folder with their steps, oldest first. A folder that does not exist holds none.
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

/// Puts the state of a checkpoint into a trainer of the same configuration. Returns the arithmetic of the checkpoint
/// if it is another than `arithmetic`.
pub fn load(
    trainer: &mut Trainer,
    path: &Path,
    data: &str,
    arithmetic: &str,
) -> Result<Option<String>, CheckpointError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    let file = parse(path, &bytes)?;
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
    for (prefix, flat) in BUFFERS.iter().zip(flats) {
        no_grad(|| fill(path, &file.tensors, prefix, &specs, flat))?;
    }
    let count = tensor(path, &file.tensors, "count", &[])?;
    no_grad(|| adamw.count.copy_(&count));
    trainer.parameters.refresh();
    trainer.step = file.step;
    Ok((file.arithmetic != arithmetic).then_some(file.arithmetic))
}

/// Reads the averaged weights of a checkpoint into a flat f32 buffer on the CPU, for sampling.
pub fn load_average(path: &Path, specs: &[ParameterSpec]) -> Result<Tensor, CheckpointError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    let file = parse(path, &bytes)?;
    let mut flat = Tensor::zeros([flat_len(specs)], (Kind::Float, Device::Cpu));
    no_grad(|| fill(path, &file.tensors, "ema", specs, &mut flat))?;
    Ok(flat)
}

struct Parsed<'a> {
    tensors: SafeTensors<'a>,
    step: u64,
    data: String,
    arithmetic: String,
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Parsed<'a>, CheckpointError> {
    let unreadable = |what: String| CheckpointError::Unreadable { path: path.to_path_buf(), what };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| unreadable(e.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    match metadata.get("format") {
        Some(format) if format == FORMAT => {}
        other => return Err(unreadable(format!("format is {other:?}, expected {FORMAT:?}"))),
    }
    let step = metadata.get("step").and_then(|step| step.parse().ok());
    Ok(Parsed {
        tensors: SafeTensors::deserialize(bytes).map_err(|e| unreadable(e.to_string()))?,
        step: step.ok_or_else(|| unreadable("no step in its metadata".to_owned()))?,
        data: metadata.get("data").cloned().unwrap_or_default(),
        arithmetic: metadata.get("arithmetic").cloned().unwrap_or_default(),
    })
}

fn fill(
    path: &Path,
    tensors: &SafeTensors<'_>,
    prefix: &str,
    specs: &[ParameterSpec],
    flat: &mut Tensor,
) -> Result<(), CheckpointError> {
    for (spec, view) in specs.iter().zip(in_order(specs, &views(specs, flat))) {
        let value = tensor(path, tensors, &format!("{prefix}.{}", spec.name), &spec.shape)?;
        view.shallow_clone().copy_(&value);
    }
    Ok(())
}

fn tensor(path: &Path, tensors: &SafeTensors<'_>, name: &str, shape: &[i64]) -> Result<Tensor, CheckpointError> {
    let mismatch = |found: String| CheckpointError::Mismatch {
        path: path.to_path_buf(),
        name: name.to_owned(),
        found,
        expected: shape.to_vec(),
    };
    let view = tensors.tensor(name).map_err(|_| mismatch("missing".to_owned()))?;
    let found: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    if found != shape || view.dtype() != Dtype::F32 {
        return Err(mismatch(format!("{found:?} {:?}", view.dtype())));
    }
    Ok(Tensor::from_data_size(view.data(), shape, Kind::Float))
}

/// Little-endian bytes of a f32 tensor on the CPU.
fn bytes_of(values: &Tensor) -> Vec<u8> {
    let count = values.numel();
    let mut bytes = vec![0; count * 4];
    values.contiguous().copy_data_u8(&mut bytes, count);
    bytes
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    move |source| CheckpointError::Io { path: path.to_path_buf(), source }
}
