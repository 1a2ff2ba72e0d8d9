//! REPA's form to a dataset: every `.npy` file a sample, with its label from `dataset.json`.
//!
//! ```text
//! RepaFolder    labels, sorted names, shape of the first array
//! ListImages    the names in order            -> ImageRef
//! ReadNpy       read, check, convert          -> ReadSample
//! ImportShards  [`WriteShards`], and the largest errors of the conversion
//! ```
//!
//! The columns are `mean` and `std`. In f32 they keep every bit, so that exporting them again gives the same files. With
//! `--to f16` each value is rounded to the nearest, ties to even; a finite value that f16 cannot hold is an error.
//!
//! Samples are in the order of their sorted names, which is how REPA's loader numbers them, and are not shuffled: what a
//! reader that goes through the shards in order sees is as mixed as the names are. Keys are the names. The form does not
//! name its classes, so class 7 is called "7". Which autoencoder made the values, the form does not say either. An export
//! of ours says all that in `dataset_info.json`, which is read if it is there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};

use half::f16;
use pipeline::{BoxError, End, Sink, Stage, Worker};
use serde::Deserialize;
use serde_json::Value;
use shards::{Codec, Column, DType, Schema, Semantics};

use super::export::INFO;
use super::npy::{Npy, NpyError};
use super::repa::{FEATURES, LABELS};
use crate::data::{ImageRef, MomentsBatch, Place};
use crate::encode::gather::Layout;
use crate::encode::list::ImageList;
use crate::encode::write::{WriteShards, Written};

/// Names of the columns: the two halves of an array.
pub const COLUMNS: [&str; 2] = ["mean", "std"];
/// Largest `dataset.json` that is read, in bytes; that of ImageNet has 59 MB.
const MAX_LABELS_LEN: u64 = 1 << 30;
/// Most classes: a label that is larger is taken for a mistake.
const MAX_CLASSES: i64 = 1_000_000;

/// Why a folder cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// No labels.
    #[error("{dir}: holds neither vae-sd/dataset.json nor dataset.json; give the folder that REPA's --data-dir names, or its vae-sd",
            dir = .dir.display())]
    NoLabels {
        /// The folder.
        dir: PathBuf,
    },
    /// The labels cannot be used.
    #[error("{path}: {reason}; expected {{\"labels\": [[\"00000/img-mean-std-00000000.npy\", 0], ..]}} with one entry for each array",
            path = .path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An array has no label.
    #[error("{path}: this array is not in {LABELS}; add its label or remove the file", path = .path.display())]
    Unlabelled {
        /// The array.
        path: PathBuf,
    },
    /// An array cannot be read.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// An array is no mean and standard deviation, or not like the first.
    #[error("{path}: has shape {got:?} where {expected} is expected; every array holds mean and standard deviation of one image",
            path = .path.display())]
    Shape {
        /// The array.
        path: PathBuf,
        /// Its shape.
        got: Vec<usize>,
        /// In words.
        expected: String,
    },
    /// A value cannot be stored in f16.
    #[error("{path}: the {column} holds {value}, which f16 (largest value 65504) cannot store; import without --to f16",
            path = .path.display())]
    Overflow {
        /// The array.
        path: PathBuf,
        /// `mean` or `std`.
        column: &'static str,
        /// The value.
        value: f32,
    },
    /// The system refused.
    #[error("{path}: cannot be read: {source}; check the path and its permissions", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Reads what an export of ours put beside the files; `None` where there is nothing.
fn read_info(dir: &Path) -> Result<Option<Info>, ImportError> {
    let path = dir.join(INFO);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ImportError::Io { path, source }),
    };
    match serde_json::from_str(&text) {
        Ok(info) => Ok(Some(info)),
        Err(error) => Err(ImportError::Labels { path, reason: error.to_string() }),
    }
}

/// `dataset.json` of REPA.
#[derive(Deserialize)]
struct Labels {
    /// Null where some image had no label.
    labels: Option<Vec<(String, i64)>>,
}

/// What an export of ours says beside the files that REPA reads.
#[derive(Debug, Deserialize)]
struct Info {
    schema: Schema,
    classes: Vec<String>,
    provenance: BTreeMap<String, Value>,
}

/// A folder in REPA's form, listed.
#[derive(Debug)]
pub struct RepaFolder {
    list: ImageList,
    /// `None` for what REPA's own preprocessing wrote.
    info: Option<Info>,
    /// `[C, h, w]` of the mean, and of the standard deviation.
    shape: [usize; 3],
}

impl RepaFolder {
    /// Lists `dir`, or `dir/vae-sd` where that exists: reads the labels, looks for arrays without one, and reads the
    /// first array for its shape.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn open(dir: &Path) -> Result<Self, ImportError> {
        let inner = dir.join(FEATURES);
        let root = if inner.join(LABELS).is_file() { inner } else { dir.to_owned() };
        let path = root.join(LABELS);
        if !path.is_file() {
            return Err(ImportError::NoLabels { dir: dir.to_owned() });
        }
        let wrong = |reason: String| ImportError::Labels { path: path.clone(), reason };
        let mut entries = read_labels(&path)?;
        entries.sort_unstable();
        let (Some((first, _)), Some(highest)) = (entries.first(), entries.iter().map(|(_, label)| *label).max()) else {
            return Err(wrong("it lists no arrays".to_owned()));
        };
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(wrong(format!("it lists {} twice", pair[0].0)));
        }
        if u32::try_from(entries.len()).is_err() {
            return Err(wrong(format!("it lists {} arrays, more than 4294967295", entries.len())));
        }
        for (name, label) in &entries {
            let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            if !plain || !is_array(name) {
                return Err(wrong(format!("{name:?} is not the name of an .npy file below the folder")));
            }
            if !(0..MAX_CLASSES).contains(label) {
                return Err(wrong(format!(
                    "the label of {name} is {label}, not a class from 0 to {}",
                    MAX_CLASSES - 1
                )));
            }
        }
        find_unlabelled(&root, &entries)?;
        let first = root.join(first);
        let shape = halves(&Npy::read(&first)?, &first)?;
        let info = read_info(dir)?;
        let named = info.as_ref().map(|info| &info.classes).filter(|classes| classes.len() as i64 > highest);
        let classes = named.cloned().unwrap_or_else(|| (0..=highest).map(|class| class.to_string()).collect());
        let files = entries.into_iter().map(|(name, label)| (name, label as i32));
        Ok(Self { list: ImageList::of_files(&root, files, classes), info, shape })
    }

    /// The arrays in order, with their labels.
    pub fn list(&self) -> &ImageList {
        &self.list
    }

    /// What the latents are to be multiplied with, if the files are an export of ours, which says it beside them.
    pub fn scaling_factor(&self) -> Option<f64> {
        self.info.as_ref().map(|info| info.schema.scaling_factor)
    }

    /// Which autoencoder made the latents, as an export of ours says it.
    pub fn autoencoder(&self) -> Option<&Value> {
        self.info.as_ref()?.provenance.get("vae")
    }

    /// The schema of the dataset that becomes of it, with values of `dtype`.
    pub fn schema(&self, dtype: DType, scaling_factor: f64) -> Schema {
        let column = |(name, semantics): (&str, Semantics)| Column {
            name: name.to_owned(),
            dtype,
            shape: self.shape.map(|side| side as u32).to_vec(),
            codec: Codec::ShuffleZstd { level: 1 },
            semantics,
        };
        let semantics = [Semantics::PosteriorMean, Semantics::PosteriorStd];
        Schema {
            columns: COLUMNS.into_iter().zip(semantics).map(column).collect(),
            block_samples: Layout::default().block as u32,
            scaling_factor,
            shift_factor: self.info.as_ref().map_or(0.0, |info| info.schema.shift_factor),
            scaling_applied: false,
            // REPA's preprocessing gives the autoencoder u8 / 127.5 - 1.
            pixel_range: [-1.0, 1.0],
        }
    }

    /// The stage that reads the arrays of this folder.
    pub fn reader(&self, dtype: DType) -> impl Fn(Worker) -> Result<ReadNpy, BoxError> + Send + Sync + 'static {
        let shape = self.shape;
        move |_| Ok(ReadNpy { shape, dtype })
    }
}

fn read_labels(path: &Path) -> Result<Vec<(String, i64)>, ImportError> {
    let wrong = |reason: String| ImportError::Labels { path: path.to_owned(), reason };
    let failed = |source| ImportError::Io { path: path.to_owned(), source };
    let len = fs::metadata(path).map_err(failed)?.len();
    if len > MAX_LABELS_LEN {
        return Err(wrong(format!("it has {len} bytes, more than {MAX_LABELS_LEN}")));
    }
    let bytes = fs::read(path).map_err(failed)?;
    let Labels { labels } = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    labels.ok_or_else(|| wrong("`labels` is null or missing: some image had none".to_owned()))
}

fn is_array(name: &str) -> bool {
    name.len() > 4 && name.to_ascii_lowercase().ends_with(".npy")
}

/// Refuses a folder with an array that is not among the sorted `entries`: it would be lost without a word.
fn find_unlabelled(root: &Path, entries: &[(String, i64)]) -> Result<(), ImportError> {
    let mut folders = vec![(root.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let failed = |source| ImportError::Io { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push((entry.path(), format!("{name}/")));
            } else if is_array(&name) && entries.binary_search_by(|(listed, _)| listed.cmp(&name)).is_err() {
                return Err(ImportError::Unlabelled { path: entry.path() });
            }
        }
    }
    Ok(())
}

/// `[C, h, w]` of the two halves of an array `[2C, h, w]`.
fn halves(npy: &Npy, path: &Path) -> Result<[usize; 3], ImportError> {
    match npy.shape[..] {
        [both, height, width] if both % 2 == 0 && both * height * width > 0 => Ok([both / 2, height, width]),
        _ => Err(ImportError::Shape {
            path: path.to_owned(),
            got: npy.shape.clone(),
            expected: "[2 * channels, height, width]".to_owned(),
        }),
    }
}

/// The largest errors of a conversion to f16, over finite values.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rounding {
    /// Largest |stored - value|.
    pub absolute: f64,
    /// Largest |stored - value| / |value|, over values that are not 0; 1 where a value became 0.
    pub relative: f64,
}

impl Rounding {
    fn largest(&mut self, other: Self) {
        self.absolute = self.absolute.max(other.absolute);
        self.relative = self.relative.max(other.relative);
    }
}

/// One array, read.
#[derive(Debug)]
pub struct ReadSample {
    batch: MomentsBatch,
    rounding: [Rounding; 2],
}

/// Stage: one `.npy` file to the columns of one sample.
#[derive(Debug)]
pub struct ReadNpy {
    shape: [usize; 3],
    dtype: DType,
}

impl ReadNpy {
    fn read(&self, image: ImageRef) -> Result<ReadSample, ImportError> {
        let path = match &image.place {
            Place::File(path) => path.clone(),
            Place::Member { tar, .. } => tar.to_path_buf(),
        };
        let npy = Npy::read(&path)?;
        let shape = halves(&npy, &path)?;
        if shape != self.shape {
            let expected = format!("that of the first, [{}, {}, {}],", 2 * self.shape[0], self.shape[1], self.shape[2]);
            return Err(ImportError::Shape { path, got: npy.shape, expected });
        }
        let (mean, std) = npy.bytes.split_at(npy.bytes.len() / 2);
        let mut rounding = [Rounding::default(); 2];
        let mut columns = Vec::new();
        for ((half, column), rounding) in [mean, std].into_iter().zip(COLUMNS).zip(&mut rounding) {
            columns.push(match self.dtype {
                DType::F32 => half.to_vec(),
                DType::F16 => {
                    let overflow = |value| ImportError::Overflow { path: path.clone(), column, value };
                    to_f16(half, rounding).map_err(overflow)?
                }
            });
        }
        let batch = MomentsBatch { images: vec![image], flags: vec![0], columns, skipped: Vec::new() };
        Ok(ReadSample { batch, rounding })
    }
}

/// Little-endian f32 to little-endian f16; the error is a finite value that becomes infinite.
fn to_f16(bytes: &[u8], rounding: &mut Rounding) -> Result<Vec<u8>, f32> {
    let mut out = Vec::with_capacity(bytes.len() / 2);
    for four in bytes.as_chunks::<4>().0 {
        let value = f32::from_le_bytes(*four);
        let stored = f16::from_f32(value);
        if value.is_finite() {
            if !stored.is_finite() {
                return Err(value);
            }
            let absolute = (stored.to_f64() - f64::from(value)).abs();
            let relative = if value == 0.0 { 0.0 } else { absolute / f64::from(value).abs() };
            rounding.largest(Rounding { absolute, relative });
        }
        out.extend(stored.to_le_bytes());
    }
    Ok(out)
}

impl Stage for ReadNpy {
    type In = ImageRef;
    type Out = ReadSample;

    fn process(&mut self, image: ImageRef) -> Result<ReadSample, BoxError> {
        Ok(self.read(image)?)
    }
}

/// What an import left behind.
#[derive(Debug)]
pub struct Imported {
    /// As of an encode.
    pub written: Written,
    /// By column, the largest errors of the values that this run converted; 0 without a conversion.
    pub rounding: BTreeMap<&'static str, Rounding>,
}

/// Sink: [`WriteShards`], and the largest errors of the conversion.
#[derive(Debug)]
pub struct ImportShards {
    writer: WriteShards,
    rounding: [Rounding; 2],
}

impl ImportShards {
    /// Into the shards of `writer`.
    pub fn new(writer: WriteShards) -> Self {
        Self { writer, rounding: [Rounding::default(); 2] }
    }
}

impl Sink for ImportShards {
    type In = ReadSample;
    type Output = Imported;

    fn consume(&mut self, sample: ReadSample) -> Result<ControlFlow<()>, BoxError> {
        self.rounding.iter_mut().zip(sample.rounding).for_each(|(all, one)| all.largest(one));
        self.writer.consume(sample.batch)
    }

    fn finish(self, end: End) -> Result<Imported, BoxError> {
        let rounding = COLUMNS.into_iter().zip(self.rounding).collect();
        Ok(Imported { written: self.writer.finish(end)?, rounding })
    }
}

#[cfg(test)]
mod tests;
