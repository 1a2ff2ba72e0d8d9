//! Writes blocks of posteriors as latent shards, and continues a dataset whose encoding was interrupted.
//!
//! Shard s is finished as soon as each of its positions is accounted for, as a sample or as a skipped file. A run that is
//! interrupted keeps its finished shards and drops the one that is under way; [`WriteShards::open`] then finds those
//! shards again, checks that they are what it would write itself, and says from which position to go on. Everything that
//! the manifest needs of them is recomputed: statistics from the stored values, the reason of a skipped file by decoding
//! it again. So a dataset has the same bytes however often it was interrupted.
//!
//! `dataset.json` is written last; a folder without it is unfinished.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use half::f16;
use ndarray::Array4;
use pipeline::{BoxError, End, Sink};
use serde_json::Value;
use shards::{
    Codec, Column, DType, Dataset, Header, Io, MANIFEST, Manifest, SampleMeta, Schema, Scratch, Semantics, ShardEntry,
    ShardError, ShardReader, ShardWriter, Skipped,
};

use super::decode;
use super::gather::Layout;
use super::list::ImageList;
use super::stats::Stats;
use super::vae::PIXEL_RANGE;
use crate::data::{ImageRef, MomentsBatch};

/// Why a dataset cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The folder holds something else.
    #[error("{dir}: the folder is not empty (it holds {found}); give a new or empty folder, or that of an encode to continue",
            dir = .dir.display())]
    Occupied {
        /// The output folder.
        dir: PathBuf,
        /// The first foreign name.
        found: String,
    },
    /// The folder holds a dataset that was encoded otherwise.
    #[error("{path}: was encoded with {what} = {found} where this command says {wanted}; give another folder, or the settings of that dataset",
            path = .path.display())]
    Different {
        /// The shard or manifest.
        path: PathBuf,
        /// Which part of the configuration.
        what: String,
        /// Its value in the folder.
        found: String,
        /// Its value in this command.
        wanted: String,
    },
    /// A finished shard does not hold the files that the list gives.
    #[error("{path}: holds {found} at sample {sample} where the list of images has {wanted}; the images changed since: delete the shard, or give another folder",
            path = .path.display())]
    OtherSamples {
        /// The shard.
        path: PathBuf,
        /// Sample in the shard.
        sample: usize,
        /// What it holds.
        found: String,
        /// What it should hold.
        wanted: String,
    },
    /// A file was skipped when a finished shard was written, and can be decoded now.
    #[error("{image}: was skipped when {shard} was written and can be decoded now; delete that shard and those after it to encode them again",
            image = .image.display(), shard = .shard.display())]
    NoLongerSkipped {
        /// The image.
        image: PathBuf,
        /// The shard.
        shard: PathBuf,
    },
    /// A shard is missing before one that exists.
    #[error("{missing} is missing where {later} exists; delete the later shards to encode them again", missing = .missing.display(), later = .later.display())]
    Gap {
        /// The first missing shard.
        missing: PathBuf,
        /// A shard after it.
        later: PathBuf,
    },
    /// No image of a shard could be decoded.
    #[error(
        "none of the {files} images of shard {shard} can be decoded (the first: {key}: {reason}); give images, or a smaller selection"
    )]
    NothingDecoded {
        /// The shard.
        shard: u64,
        /// Files in it.
        files: usize,
        /// Key of the first.
        key: String,
        /// Why it was skipped.
        reason: String,
    },
    /// There is no image to encode.
    #[error("the list of images is empty; raise the limit")]
    NoImages,
    /// The dataset would have more shards than can be numbered.
    #[error("{0} images do not fit in 2^32 shards")]
    TooMany(u64),
    /// The stream ended before the list did.
    #[error("the stream ended at position {at} of {of}; this is a defect of the program")]
    Short {
        /// Positions seen.
        at: u64,
        /// Length of the list.
        of: u64,
    },
    /// The folder could not be read or made.
    #[error("{path}: {source}; check the path, its permissions and the free space", path = .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A skipped file could not be read again.
    #[error(transparent)]
    Decode(#[from] decode::DecodeError),
    /// The shard format's own errors.
    #[error("{0}")]
    Shard(#[from] ShardError),
}

/// Which posterior columns are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// f16 `mean` and `logvar`: training draws from the posterior.
    Moments,
    /// f16 `mean` alone: half the size, no draws.
    Mean,
}

impl Store {
    /// The schema of a dataset of latents `[channels, height, width]`.
    pub fn schema(self, latent: [usize; 3], scaling_factor: f64, shift_factor: f64, layout: Layout) -> Schema {
        let column = |name: &str, semantics| Column {
            name: name.to_owned(),
            dtype: DType::F16,
            shape: latent.map(|side| side as u32).to_vec(),
            codec: Codec::ShuffleZstd { level: 1 },
            semantics,
        };
        let mut columns = vec![column("mean", Semantics::PosteriorMean)];
        if self == Self::Moments {
            columns.push(column("logvar", Semantics::PosteriorLogvar));
        }
        Schema {
            columns,
            block_samples: layout.block as u32,
            scaling_factor,
            shift_factor,
            scaling_applied: false,
            pixel_range: PIXEL_RANGE,
        }
    }
}

/// All that decides a dataset's bytes besides the pixels.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What is stored: of [`Store::schema`].
    pub schema: Schema,
    /// How positions become blocks and shards.
    pub layout: Layout,
    /// Autoencoder, preprocessing and source: whatever must be equal for an encode to be continued.
    pub provenance: BTreeMap<String, Value>,
}

/// What [`WriteShards::open`] found in the folder.
#[derive(Debug)]
pub enum Opened {
    /// The dataset is complete, and made by the same recipe: nothing to do.
    Complete(Box<Manifest>),
    /// Something is left to encode.
    Unfinished(Box<WriteShards>),
}

/// What a run left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Samples in finished shards, those of earlier runs included.
    pub samples: u64,
    /// Finished shards.
    pub shards: usize,
    /// Files that were skipped in them.
    pub skipped: usize,
    /// True if the dataset is complete; false if it was interrupted and can be continued.
    pub complete: bool,
}

/// Sink: latent shards in a folder.
#[derive(Debug)]
pub struct WriteShards {
    dir: PathBuf,
    recipe: Recipe,
    classes: Vec<String>,
    /// Images in the list.
    total: u64,
    finished: Vec<ShardEntry>,
    skipped: Vec<Skipped>,
    stats: Stats,
    /// Positions accounted for, from 0 without gaps.
    next: u64,
    current: Option<Current>,
}

/// The shard under way.
#[derive(Debug)]
struct Current {
    writer: ShardWriter,
    /// Of the means of this shard and all before it: becomes [`WriteShards::stats`] when it is finished.
    stats: Stats,
    skipped: Vec<Skipped>,
}

impl WriteShards {
    /// Prepares `dir` (made if it does not exist) for the images of `list`.
    pub fn open(dir: &Path, recipe: Recipe, list: &ImageList) -> Result<Opened, WriteError> {
        let total = list.len() as u64;
        if total == 0 {
            return Err(WriteError::NoImages);
        }
        if u32::try_from(total.div_ceil(recipe.layout.shard)).is_err() {
            return Err(WriteError::TooMany(total));
        }
        recipe.schema.check(&dir.join(MANIFEST))?;
        let failed = |source| WriteError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        let ours = |name: &str| {
            let name = name.strip_suffix(".tmp").unwrap_or(name);
            name == MANIFEST || (name.starts_with("shard-") && name.ends_with(".lat"))
        };
        if let Some(found) = names.iter().find(|name| !ours(name)) {
            return Err(WriteError::Occupied { dir: dir.to_owned(), found: found.clone() });
        }

        let recipe = Recipe { provenance: as_stored(recipe.provenance), ..recipe };
        if names.iter().any(|name| name == MANIFEST) {
            let manifest = Manifest::load(dir)?;
            recipe.check_same(&dir.join(MANIFEST), &manifest.schema, &manifest.provenance)?;
            // Whether its shards are all there, and are those of the manifest.
            Dataset::open(dir, Io::Auto)?;
            return Ok(Opened::Complete(Box::new(manifest)));
        }

        let mean = &recipe.schema.columns[0].shape;
        let area = mean[1..].iter().map(|side| *side as usize).product();
        let stats = Stats::new(mean[0] as usize, area);
        let mut writer = Self {
            dir: dir.to_owned(),
            recipe,
            classes: list.classes().to_vec(),
            total,
            finished: Vec::new(),
            skipped: Vec::new(),
            stats,
            next: 0,
            current: None,
        };
        writer.take_finished(list)?;
        if let Some(later) = names.iter().find(|name| name.ends_with(".lat") && **name > writer.file(writer.shard())) {
            return Err(WriteError::Gap { missing: dir.join(writer.file(writer.shard())), later: dir.join(later) });
        }
        Ok(Opened::Unfinished(Box::new(writer)))
    }

    /// The position of the list to begin at: the first that no finished shard accounts for.
    pub fn first_position(&self) -> u64 {
        self.next
    }

    /// Number of the shard that `next` belongs to.
    fn shard(&self) -> u64 {
        self.next / self.recipe.layout.shard
    }

    fn file(&self, shard: u64) -> String {
        format!("shard-{shard:05}.lat")
    }

    /// Position after the last of the shard.
    fn end_of(&self, shard: u64) -> u64 {
        ((shard + 1) * self.recipe.layout.shard).min(self.total)
    }

    fn header(&self, shard: u64) -> Header {
        let shards = self.total.div_ceil(self.recipe.layout.shard);
        Header::new(self.recipe.schema.clone(), shard as u32, shards as u32, self.recipe.provenance.clone())
    }

    /// Takes over the shards that an earlier run finished.
    fn take_finished(&mut self, list: &ImageList) -> Result<(), WriteError> {
        while self.next < self.total {
            let shard = self.shard();
            let file = self.file(shard);
            let path = self.dir.join(&file);
            if !path.exists() {
                break;
            }
            let reader = ShardReader::open(&path, Io::Pread)?;
            let header = reader.header();
            self.recipe.check_same(&path, &header.schema, &header.provenance)?;
            let wanted = self.header(shard);
            check_equal(&path, "shard", &header.shard.into(), &wanted.shard.into())?;
            check_equal(&path, "shards", &header.shards.into(), &wanted.shards.into())?;
            self.take_samples(&reader, list)?;
            self.finished.push(ShardEntry {
                file,
                samples: reader.len() as u32,
                bytes: reader.file_len(),
                xxh3: reader.xxh3(),
            });
            self.next = self.end_of(shard);
        }
        Ok(())
    }

    /// Checks a finished shard's samples against the list; adds to the statistics and to the skipped files.
    fn take_samples(&mut self, reader: &ShardReader, list: &ImageList) -> Result<(), WriteError> {
        let other = |sample: usize, wanted: &str| WriteError::OtherSamples {
            path: reader.path().to_owned(),
            sample,
            found: reader.key(sample).unwrap_or("nothing").to_owned(),
            wanted: wanted.to_owned(),
        };
        let mut sample = 0;
        for image in (self.next..self.end_of(self.shard())).filter_map(|position| list.image(position)) {
            if reader.source_indices().get(sample) == Some(&image.source_index) {
                if reader.key(sample) != Some(&image.key) || reader.labels().get(sample) != Some(&image.label) {
                    return Err(other(sample, &image.key));
                }
                sample += 1;
                continue;
            }
            let Some(fault) = decode::fault_of(&image.path)? else {
                let shard = reader.path().to_owned();
                return Err(WriteError::NoLongerSkipped { image: image.path, shard });
            };
            self.skipped.push(Skipped { key: image.key, reason: fault.to_string() });
        }
        if sample != reader.len() {
            return Err(other(sample, "no more"));
        }

        let (mut bytes, mut scratch) = (Vec::new(), Scratch::new());
        for block in 0..reader.blocks() {
            bytes.resize(reader.block_len(block) * self.recipe.schema.columns[0].sample_bytes(), 0);
            reader.read_block(block, 0, &mut bytes, &mut scratch)?;
            self.stats.add(&bytes);
        }
        Ok(())
    }

    fn write(&mut self, block: &MomentsBatch) -> Result<(), WriteError> {
        let shard = self.shard();
        let mut current = match self.current.take() {
            Some(current) => current,
            None => Current {
                writer: ShardWriter::create(self.dir.join(self.file(shard)), self.header(shard))?,
                stats: self.stats.clone(),
                skipped: Vec::new(),
            },
        };
        if !block.images.is_empty() {
            let columns = [to_bytes(&block.mean), to_bytes(&block.logvar)];
            current.stats.add(&columns[0]);
            let samples: Vec<_> = block
                .images
                .iter()
                .zip(&block.flags)
                .map(|(image, &flags)| {
                    let ImageRef { label, source_index, key, .. } = image;
                    SampleMeta { label: *label, source_index: *source_index, flags, key }
                })
                .collect();
            let columns: Vec<&[u8]> =
                columns.iter().map(Vec::as_slice).take(self.recipe.schema.columns.len()).collect();
            current.writer.write_block(&columns, &samples)?;
        }
        let skipped = block.skipped.iter().map(|(image, reason)| (image.key.clone(), reason.clone()));
        current.skipped.extend(skipped.map(|(key, reason)| Skipped { key, reason }));
        self.next += (block.images.len() + block.skipped.len()) as u64;

        if self.next < self.end_of(shard) {
            self.current = Some(current);
            return Ok(());
        }
        if current.writer.is_empty() {
            let files = current.skipped.len();
            let Skipped { key, reason } = current.skipped.swap_remove(0);
            return Err(WriteError::NothingDecoded { shard, files, key, reason });
        }
        self.finished.push(current.writer.finish()?);
        self.skipped.append(&mut current.skipped);
        self.stats = current.stats;
        Ok(())
    }

    fn save_manifest(&self) -> Result<(), WriteError> {
        let Recipe { schema, provenance, .. } = &self.recipe;
        let mut manifest = Manifest::new(schema.clone(), self.finished.clone(), provenance.clone());
        manifest.classes.clone_from(&self.classes);
        manifest.skipped.clone_from(&self.skipped);
        manifest.stats = self.stats.finish();
        Ok(manifest.save(&self.dir)?)
    }
}

impl Sink for WriteShards {
    type In = MomentsBatch;
    type Output = Written;

    fn consume(&mut self, block: MomentsBatch) -> Result<ControlFlow<()>, BoxError> {
        self.write(&block)?;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, end: End) -> Result<Written, BoxError> {
        let complete = self.next == self.total;
        if complete {
            self.save_manifest()?;
        } else if end == End::Complete {
            return Err(WriteError::Short { at: self.next, of: self.total }.into());
        }
        // Dropping the shard under way removes its file.
        Ok(Written {
            samples: self.finished.iter().map(|entry| u64::from(entry.samples)).sum(),
            shards: self.finished.len(),
            skipped: self.skipped.len(),
            complete,
        })
    }
}

impl Recipe {
    /// Refuses a shard or manifest of another recipe, and names the first difference.
    fn check_same(&self, path: &Path, schema: &Schema, provenance: &BTreeMap<String, Value>) -> Result<(), WriteError> {
        let object = |schema, provenance| serde_json::json!({ "provenance": provenance, "schema": schema });
        check_equal(path, "", &object(schema, provenance), &object(&self.schema, &self.provenance))
    }
}

/// Refuses values that differ, and names the innermost key at which they do.
fn check_equal(path: &Path, key: &str, found: &Value, wanted: &Value) -> Result<(), WriteError> {
    if let (Value::Object(found), Value::Object(wanted)) = (found, wanted) {
        for name in found.keys().chain(wanted.keys()) {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let value = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or(Value::Null);
            check_equal(path, &key, &value(found), &value(wanted))?;
        }
        return Ok(());
    }
    if found == wanted {
        return Ok(());
    }
    Err(WriteError::Different {
        path: path.to_owned(),
        what: key.to_owned(),
        found: found.to_string(),
        wanted: wanted.to_string(),
    })
}

/// Provenance as it will be read back: a number may change by its last bit on its way through JSON.
fn as_stored(provenance: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let read_back = |value: Value| serde_json::from_str(&value.to_string()).unwrap_or(value);
    provenance.into_iter().map(|(key, value)| (key, read_back(value))).collect()
}

fn to_bytes(values: &Array4<f16>) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
