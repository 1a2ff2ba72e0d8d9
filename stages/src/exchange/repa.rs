//! REPA's form: one `.npy` file a sample.
//!
//! ```text
//! OUT/vae-sd/00000/img-mean-std-00000000.npy   f32 [2C, h, w]: posterior mean, then standard deviation, unscaled
//! OUT/vae-sd/00000/..                          the number of a file is that of its sample; a thousand in a folder
//! OUT/vae-sd/dataset.json                      {"labels": [["00000/img-mean-std-00000000.npy", 3], ..]}
//! ```
//!
//! This is what `preprocessing/dataset_tools.py encode` of REPA (67f7145) writes and its `dataset.py` reads with
//! `--data-dir OUT`. The loader sorts the names of `vae-sd` and those of `images` and pairs them by their rank, so the
//! PNGs that it gives to its visual encoder must be numbered as the samples are here: `keys.json` is that order.
//!
//! A standard deviation is `exp(logvar / 2)` of the stored log-variance, computed in f64 and rounded once to f32. A
//! column of standard deviations is widened to f32, which is exact; f32 columns keep every bit. Means alone are refused,
//! since REPA would draw from whatever stood in place of the deviations.
//!
//! The arrays are not made durable one by one, which on most disks takes longer than writing them: after a power cut
//! a folder counts as finished only if each of its files has its length.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use shards::{DType, Dataset, Schema, Scratch, Semantics, ShardReader};

use super::ExportError;
use super::export::{at, temporary, write_elements, write_whole};
use super::npy;

/// Samples in one folder.
pub const FOLDER: usize = 1000;
/// The folder of arrays and labels.
pub const FEATURES: &str = "vae-sd";
/// The labels, in [`FEATURES`].
pub const LABELS: &str = "dataset.json";

/// Which columns become an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepaColumns {
    mean: usize,
    spread: usize,
    /// `[C, h, w]` of both.
    shape: [usize; 3],
}

impl RepaColumns {
    /// The first column of means and the first of standard deviations, else of log-variances; those of mirrored images
    /// are left out.
    ///
    /// # Errors
    /// [`ExportError::NotRepa`].
    pub fn of(schema: &Schema) -> Result<Self, ExportError> {
        let refuse = |reason: &str| Err(ExportError::NotRepa { reason: reason.to_owned() });
        let first = |semantics| {
            let plain = |column: &shards::Column| column.semantics == semantics && !column.name.ends_with("_flip");
            schema.columns.iter().position(plain)
        };
        let Some(mean) = first(Semantics::PosteriorMean) else {
            return refuse("it has no means, only drawn samples; encode the images with --store moments");
        };
        let Some(spread) = first(Semantics::PosteriorStd).or_else(|| first(Semantics::PosteriorLogvar)) else {
            return refuse(
                "it has means alone, without log-variances or standard deviations; encode the images with --store \
                 moments, or export --to safetensors",
            );
        };
        if schema.scaling_applied {
            return refuse("its values are scaled already; export --to safetensors");
        }
        let (mean_shape, spread_shape) = (&schema.columns[mean].shape, &schema.columns[spread].shape);
        let &[channels, height, width] = mean_shape.as_slice() else {
            return refuse("its means are not of shape [channels, height, width]; export --to safetensors");
        };
        if spread_shape != mean_shape {
            return refuse("its means and deviations differ in shape; export --to safetensors");
        }
        Ok(Self { mean, spread, shape: [channels, height, width].map(|side| side as usize) })
    }

    /// What each file begins with.
    fn header(&self) -> Vec<u8> {
        let [channels, height, width] = self.shape;
        npy::header("<f4", &[2 * channels, height, width].map(|dim| dim as u64))
    }

    /// Bytes of one file.
    fn file_len(&self) -> u64 {
        let values: usize = self.shape.iter().product();
        (self.header().len() + 2 * 4 * values) as u64
    }
}

/// Samples of the folder `part`.
pub(super) fn range(dataset: &Dataset, part: usize) -> Range<usize> {
    let end = dataset.len();
    (part * FOLDER).min(end)..((part + 1) * FOLDER).min(end)
}

/// Name of a sample's array in [`FEATURES`].
pub fn file(sample: usize) -> String {
    format!("{:05}/img-mean-std-{sample:08}.npy", sample / FOLDER)
}

fn folder(dir: &Path, part: usize) -> PathBuf {
    dir.join(FEATURES).join(format!("{part:05}"))
}

/// Whether the folder `part` is there with all its files.
pub(super) fn is_written(
    dir: &Path,
    dataset: &Dataset,
    columns: &RepaColumns,
    part: usize,
) -> Result<bool, ExportError> {
    let folder = folder(dir, part);
    if !folder.exists() {
        return Ok(false);
    }
    let whole = range(dataset, part).all(|sample| {
        let file = dir.join(FEATURES).join(file(sample));
        fs::metadata(file).is_ok_and(|metadata| metadata.len() == columns.file_len())
    });
    if !whole {
        fs::remove_dir_all(&folder).map_err(at(&folder))?;
    }
    Ok(whole)
}

/// Writes the folder `part`; bytes written.
pub(super) fn write(
    dir: &Path,
    dataset: &Dataset,
    columns: &RepaColumns,
    part: usize,
    scratch: &mut Scratch,
) -> Result<u64, ExportError> {
    let place = folder(dir, part);
    let temporary = temporary(&place);
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(at(&temporary))?;
    }
    fs::create_dir_all(&temporary).map_err(at(&temporary))?;
    let (header, range) = (columns.header(), range(dataset, part));
    let (mut means, mut spreads, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    let values: usize = columns.shape.iter().product();
    let mut loaded = None;
    for sample in range.clone() {
        // Positions below the dataset's length have a block.
        let Some(found) = dataset.block_of(sample) else { break };
        if loaded != Some(found.block) {
            let shard = &dataset.shards[found.block.shard];
            read_f32(shard, found.block.block, columns.mean, scratch, &mut bytes, &mut means)?;
            read_f32(shard, found.block.block, columns.spread, scratch, &mut bytes, &mut spreads)?;
            loaded = Some(found.block);
        }
        let row = found.index * 4 * values..(found.index + 1) * 4 * values;
        let path = temporary.join(Path::new(&file(sample)).file_name().unwrap_or_default());
        File::create(&path)
            .and_then(|mut out| out.write_all(&[&header, &means[row.clone()], &spreads[row]].concat()))
            .map_err(at(&path))?;
    }
    fs::rename(&temporary, &place).map_err(at(&place))?;
    Ok(range.len() as u64 * columns.file_len())
}

/// One column of one block as little-endian f32; log-variances as standard deviations.
fn read_f32(
    shard: &ShardReader,
    block: usize,
    column: usize,
    scratch: &mut Scratch,
    bytes: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), ExportError> {
    let declared = &shard.columns()[column];
    bytes.resize(shard.block_len(block) * declared.sample_bytes(), 0);
    shard.read_block(block, column, bytes, scratch)?;
    out.clear();
    match (declared.dtype, declared.semantics == Semantics::PosteriorLogvar) {
        // Bits, not values: a NaN keeps its payload.
        (DType::F32, false) => out.extend_from_slice(bytes),
        (DType::F16, false) => {
            let values = bytes.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f32());
            out.extend(values.flat_map(f32::to_le_bytes));
        }
        (DType::F32, true) => {
            let values = bytes.as_chunks().0.iter().map(|four| f64::from(f32::from_le_bytes(*four)));
            out.extend(values.flat_map(|logvar| deviation(logvar).to_le_bytes()));
        }
        (DType::F16, true) => {
            let values = bytes.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f64());
            out.extend(values.flat_map(|logvar| deviation(logvar).to_le_bytes()));
        }
    }
    Ok(())
}

/// The standard deviation of a log-variance, rounded once.
fn deviation(logvar: f64) -> f32 {
    (logvar / 2.0).exp() as f32
}

/// Writes `vae-sd/dataset.json`.
pub(super) fn write_labels(dir: &Path, dataset: &Dataset) -> Result<(), ExportError> {
    let labels = dataset.shards.iter().flat_map(|shard| shard.labels());
    let pairs = labels.enumerate().map(|(sample, label)| (file(sample), label));
    write_whole(&dir.join(FEATURES).join(LABELS), |out| {
        out.write_all(b"{\"labels\": ")?;
        write_elements(out, pairs)?;
        out.write_all(b"}\n")
    })
}
