//! Writes posteriors as latent shards, block by block, and continues a dataset whose encoding was interrupted.
//!
//! Shard s is finished as soon as each of its positions is accounted for, as a sample or as a skipped file. A run that
//! is interrupted keeps its finished shards and drops the one that is under way; [`WriteShards::open`] then finds those
//! shards again (`write/resume.rs`), checks that they are what it would write itself, and says which positions are
//! left. Everything that the manifest needs of them is recomputed: statistics from the stored values, the reason of a
//! skipped file by decoding it again. So a dataset has the same bytes however often it was interrupted.
//!
//! Several processes may write one dataset, each the shards of its [`Share`]; whoever then finds all of them in the folder
//! completes it ([`WriteShards::complete`]).
//!
//! `dataset.json` is written last; a folder without it is unfinished. A process that is killed leaves at most a `.tmp`
//! file beside its finished shards, which the next run takes over.

mod error;
mod resume;

use std::collections::BTreeMap;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use pipeline::{BoxError, End, Sink};
use serde_json::Value;
use shards::{
    Dataset, Header, Histogram, Io, MANIFEST, Manifest, SampleMeta, Schema, ShardEntry, ShardError, ShardWriter,
    Skipped,
};

pub use self::error::WriteError;
use super::gather::Layout;
use super::list::ImageList;
use super::stats::Stats;
use crate::data::{ImageRef, MomentsBatch};
use crate::world::share::Share;

/// All that decides a dataset's bytes besides the pixels.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What is stored: of [`Store::schema`](super::store::Store::schema).
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

/// What became of a dataset after a share of it was written.
#[derive(Debug)]
pub enum Completed {
    /// Shards of other processes are not there yet.
    Missing {
        /// How many.
        shards: u64,
    },
    /// All were there, and the dataset is whole.
    Here(Box<Written>),
    /// Another process found all of them first.
    Elsewhere,
}

/// What a run left behind, of its share.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Samples in finished shards, those of earlier runs included.
    pub samples: u64,
    /// Finished shards.
    pub shards: usize,
    /// Files that were skipped in them, in the dataset's order.
    pub skipped: Vec<Skipped>,
    /// Log-variances of the posteriors in them; `None` if they are not stored.
    pub logvar: Option<Histogram>,
    /// Standard deviation of the means in them, root mean square over the channels; `None` if there are none.
    pub spread: Option<f64>,
    /// True if all shards are finished; false if it was interrupted and can be continued.
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
    share: Share,
    /// By number.
    finished: BTreeMap<u64, Finished>,
    /// The position that comes next: of the shard under way, or the first of the next that is missing.
    next: u64,
    current: Option<Current>,
}

/// A shard that is whole. Statistics are kept shard by shard and added up in their order at the end, so that the sums do
/// not depend on which shards an earlier run wrote.
#[derive(Debug)]
struct Finished {
    entry: ShardEntry,
    skipped: Vec<Skipped>,
    stats: Stats,
}

/// The shard under way.
#[derive(Debug)]
struct Current {
    writer: ShardWriter,
    stats: Stats,
    skipped: Vec<Skipped>,
    /// Of the block under way: its images with their flags, and their values, column by column.
    images: Vec<(ImageRef, u8)>,
    columns: Vec<Vec<u8>>,
}

impl WriteShards {
    /// Prepares `dir` (made if it does not exist) for those shards of the images of `list` that are of this share.
    pub fn open(dir: &Path, recipe: Recipe, list: &ImageList, share: Share) -> Result<Opened, WriteError> {
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

        let mut writer = Self {
            dir: dir.to_owned(),
            recipe,
            classes: list.classes().to_vec(),
            total,
            share,
            finished: BTreeMap::new(),
            next: 0,
            current: None,
        };
        for shard in writer.own_shards() {
            if let Some(finished) = writer.take_finished(shard, list)? {
                writer.finished.insert(shard, finished);
            }
        }
        let number = |name: &str| name.strip_prefix("shard-")?.strip_suffix(".lat")?.parse::<u64>().ok();
        if let Some(found) = names.iter().find(|name| number(name).is_some_and(|number| number >= writer.shards())) {
            return Err(WriteError::Surplus { path: dir.join(found), shards: writer.shards() });
        }
        writer.next = writer.missing_from(0);
        Ok(Opened::Unfinished(Box::new(writer)))
    }

    /// Completes a dataset whose shards are all there, whichever processes made them: they are read once for their statistics.
    pub fn complete(dir: &Path, recipe: Recipe, list: &ImageList) -> Result<Completed, WriteError> {
        let shards = (list.len() as u64).div_ceil(recipe.layout.shard);
        let shards = (0..shards).filter(|&shard| !dir.join(file_name(shard)).exists()).count() as u64;
        if shards > 0 {
            return Ok(Completed::Missing { shards });
        }
        let Opened::Unfinished(writer) = Self::open(dir, recipe, list, Share::ALL)? else {
            return Ok(Completed::Elsewhere);
        };
        match writer.save_manifest(&writer.stats()) {
            // It is the same that this process would write.
            Err(WriteError::Shard(ShardError::Busy { .. })) => Ok(Completed::Elsewhere),
            Err(error) => Err(error),
            Ok(()) => Ok(Completed::Here(Box::new(writer.written(true)))),
        }
    }

    /// The positions of this share that no finished shard accounts for, in order: what is to be encoded.
    pub fn positions(&self) -> Vec<Range<u64>> {
        let missing = self.own_shards().filter(|shard| !self.finished.contains_key(shard));
        missing.map(|shard| self.range_of(shard)).collect()
    }

    /// Images of this share.
    pub fn images(&self) -> u64 {
        self.own_shards().map(|shard| self.range_of(shard)).map(|range| range.end - range.start).sum()
    }

    fn own_shards(&self) -> impl Iterator<Item = u64> + use<> {
        let share = self.share;
        (0..self.shards()).filter(move |&shard| share.has(shard))
    }

    /// Shards of the whole dataset.
    fn shards(&self) -> u64 {
        self.total.div_ceil(self.recipe.layout.shard)
    }

    /// First position of this share's first shard from `shard` on that is missing; the total if none is.
    fn missing_from(&self, shard: u64) -> u64 {
        let missing = self.own_shards().find(|own| *own >= shard && !self.finished.contains_key(own));
        missing.map_or(self.total, |shard| shard * self.recipe.layout.shard)
    }

    /// Number of the shard that `next` belongs to.
    fn shard(&self) -> u64 {
        self.next / self.recipe.layout.shard
    }

    /// Position after the last of the shard.
    fn end_of(&self, shard: u64) -> u64 {
        ((shard + 1) * self.recipe.layout.shard).min(self.total)
    }

    fn range_of(&self, shard: u64) -> Range<u64> {
        shard * self.recipe.layout.shard..self.end_of(shard)
    }

    fn header(&self, shard: u64) -> Header {
        Header::new(self.recipe.schema.clone(), shard as u32, self.shards() as u32, self.recipe.provenance.clone())
    }

    fn write(&mut self, batch: MomentsBatch) -> Result<(), WriteError> {
        let shard = self.shard();
        let mut current = match self.current.take() {
            Some(current) => current,
            None => Current {
                writer: ShardWriter::create(self.dir.join(file_name(shard)), self.header(shard))?,
                stats: Stats::new(&self.recipe.schema),
                skipped: Vec::new(),
                images: Vec::new(),
                columns: vec![Vec::new(); self.recipe.schema.columns.len()],
            },
        };
        let MomentsBatch { images, flags, columns, skipped } = batch;
        self.next += (images.len() + skipped.len()) as u64;
        current.skipped.extend(skipped.into_iter().map(|(image, reason)| Skipped { key: image.key, reason }));
        current.images.extend(images.into_iter().zip(flags));
        for (block, values) in current.columns.iter_mut().zip(columns) {
            block.extend(values);
        }
        let ends = self.next == self.end_of(shard);
        if current.images.len() == self.recipe.layout.block || (ends && !current.images.is_empty()) {
            current.write_block()?;
        }
        if !ends {
            self.current = Some(current);
            return Ok(());
        }
        if current.writer.is_empty() {
            let files = current.skipped.len();
            let Skipped { key, reason } = current.skipped.swap_remove(0);
            return Err(WriteError::NothingDecoded { shard, files, key, reason });
        }
        let Current { writer, stats, skipped, .. } = current;
        self.finished.insert(shard, Finished { entry: writer.finish()?, skipped, stats });
        self.next = self.missing_from(shard + 1);
        Ok(())
    }

    /// Of all finished shards, in their order.
    fn stats(&self) -> Stats {
        let mut all = Stats::new(&self.recipe.schema);
        self.finished.values().for_each(|shard| all.merge(&shard.stats));
        all
    }

    fn skipped(&self) -> Vec<Skipped> {
        self.finished.values().flat_map(|shard| shard.skipped.iter().cloned()).collect()
    }

    /// What this run leaves behind.
    fn written(&self, complete: bool) -> Written {
        let stats = self.stats();
        Written {
            samples: self.finished.values().map(|shard| u64::from(shard.entry.samples)).sum(),
            shards: self.finished.len(),
            spread: stats.channels().get("mean").map(|channels| {
                let squares: f64 = channels.iter().map(|channel| channel.std * channel.std).sum();
                (squares / channels.len() as f64).sqrt()
            }),
            logvar: stats.histograms().remove("logvar"),
            skipped: self.skipped(),
            complete,
        }
    }

    fn save_manifest(&self, stats: &Stats) -> Result<(), WriteError> {
        let Recipe { schema, provenance, .. } = &self.recipe;
        let entries = self.finished.values().map(|shard| shard.entry.clone()).collect();
        let mut manifest = Manifest::new(schema.clone(), entries, provenance.clone());
        manifest.classes.clone_from(&self.classes);
        manifest.skipped = self.skipped();
        (manifest.stats, manifest.histograms) = (stats.channels(), stats.histograms());
        Ok(manifest.save(&self.dir)?)
    }
}

impl Sink for WriteShards {
    type In = MomentsBatch;
    type Output = Written;

    fn consume(&mut self, batch: MomentsBatch) -> Result<ControlFlow<()>, BoxError> {
        self.write(batch)?;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, end: End) -> Result<Written, BoxError> {
        let complete = self.finished.len() == self.own_shards().count();
        if complete && self.share.is_all() {
            self.save_manifest(&self.stats())?;
        } else if !complete && end == End::Complete {
            return Err(WriteError::Short { at: self.next, of: self.total }.into());
        }
        // Dropping the shard under way removes its file.
        Ok(self.written(complete))
    }
}

impl Current {
    fn write_block(&mut self) -> Result<(), ShardError> {
        let samples = self.images.iter().map(|(image, flags)| {
            let ImageRef { label, source_index, key, .. } = image;
            SampleMeta { label: *label, source_index: *source_index, flags: *flags, key }
        });
        let samples: Vec<_> = samples.collect();
        let columns: Vec<_> = self.columns.iter().map(Vec::as_slice).collect();
        self.writer.write_block(&columns, &samples)?;
        for (column, values) in self.columns.iter_mut().enumerate() {
            self.stats.add(column, values);
            values.clear();
        }
        self.images.clear();
        Ok(())
    }
}

fn file_name(shard: u64) -> String {
    format!("shard-{shard:05}.lat")
}

/// Provenance as it will be read back: a number may change by its last bit on its way through JSON.
fn as_stored(provenance: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let read_back = |value: Value| serde_json::from_str(&value.to_string()).unwrap_or(value);
    provenance.into_iter().map(|(key, value)| (key, read_back(value))).collect()
}
