//! The manifest `dataset.json`: what makes a folder of shards a dataset. It is written last, so a folder without it is
//! unfinished.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic::{AtomicFile, Existing};
use crate::error::ShardError;
use crate::layout::{DATASET_FORMAT, VERSION};
use crate::quote;
use crate::schema::{Schema, check_format};
use crate::statistics::{self, ChannelStats, Histogram};
use crate::write::ShardEntry;

/// Name of the manifest in a dataset's folder.
pub const MANIFEST: &str = "dataset.json";
/// Largest manifest in bytes: 256 MiB, room for a few million skipped files.
pub const MAX_MANIFEST_LEN: u64 = 1 << 28;

/// A file of the source that is not in the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// Its name in the source.
    pub key: String,
    /// Why it was left out.
    pub reason: String,
}

/// The contents of `dataset.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `"latent-dataset"`; [`Manifest::new`] sets it.
    pub format: String,
    /// Always [`crate::VERSION`]; [`Manifest::new`] sets it.
    pub version: u32,
    /// Samples in all shards.
    pub samples: u64,
    /// The same as in the header of every shard.
    pub schema: Schema,
    /// By name of the column, one entry for each channel (first dimension); columns may be absent.
    pub stats: BTreeMap<String, Vec<ChannelStats>>,
    /// By name of the column; columns may be absent.
    pub histograms: BTreeMap<String, Histogram>,
    /// Free form, sorted by key; what the headers of the shards say, and more.
    pub provenance: BTreeMap<String, serde_json::Value>,
    /// In the order of the dataset.
    pub shards: Vec<ShardEntry>,
    /// Names of the classes; a label is an index of this list. Empty where labels have no names: then any label goes.
    pub classes: Vec<String>,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

impl Manifest {
    /// A manifest of this version with the sum of `shards` as its total, and no statistics, histograms, classes, or
    /// skipped files.
    pub fn new(schema: Schema, shards: Vec<ShardEntry>, provenance: BTreeMap<String, serde_json::Value>) -> Self {
        Self {
            format: DATASET_FORMAT.to_owned(),
            version: VERSION,
            samples: shards.iter().map(|shard| u64::from(shard.samples)).sum(),
            schema,
            stats: BTreeMap::new(),
            histograms: BTreeMap::new(),
            provenance,
            shards,
            classes: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Reads and checks `dir/dataset.json`. No shard is looked at.
    ///
    /// # Errors
    /// [`ShardError::NoManifest`] where there is none; [`ShardError::NotAFile`], [`ShardError::TooLarge`],
    /// [`ShardError::Json`], or what [`Manifest::check`] finds.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self, ShardError> {
        let dir = dir.as_ref();
        let path = &dir.join(MANIFEST);
        let wrong = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound if dir.is_dir() => ShardError::NoManifest { path: dir.to_owned() },
            _ => ShardError::Io { path: path.to_owned(), action: "open it", source },
        };
        let too_large = |got| {
            let what = "the length of the manifest".to_owned();
            ShardError::TooLarge { path: path.to_owned(), what, max: MAX_MANIFEST_LEN, got }
        };
        // Before opening: opening a pipe would wait for its other end.
        let metadata = fs::metadata(path).map_err(wrong)?;
        if !metadata.is_file() {
            return Err(ShardError::NotAFile { path: path.to_owned() });
        }
        if metadata.len() > MAX_MANIFEST_LEN {
            return Err(too_large(metadata.len()));
        }
        let mut bytes = Vec::new();
        // The file may have grown.
        let read = File::open(path).map_err(wrong)?.take(MAX_MANIFEST_LEN + 1).read_to_end(&mut bytes);
        let len = read.map_err(|source| ShardError::Io { path: path.to_owned(), action: "read it", source })? as u64;
        if len > MAX_MANIFEST_LEN {
            return Err(too_large(len));
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|reason| quote::json(path, &reason))?;
        manifest.check(path)?;
        Ok(manifest)
    }

    /// Checks the manifest and writes it to `dir/dataset.json`, indented, in one step that replaces an older one. Call
    /// it last, when every shard is finished.
    ///
    /// # Errors
    /// [`ShardError::Io`], [`ShardError::Busy`], [`ShardError::TooLarge`], or what [`Manifest::check`] finds.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<(), ShardError> {
        let path = &dir.as_ref().join(MANIFEST);
        self.check(path)?;
        let mut sorted = self.clone();
        sorted.provenance.values_mut().for_each(serde_json::Value::sort_all_objects);
        let mut text = serde_json::to_vec_pretty(&sorted).map_err(|reason| quote::json(path, &reason))?;
        text.push(b'\n');
        if text.len() as u64 > MAX_MANIFEST_LEN {
            let (what, got) = ("the length of the manifest".to_owned(), text.len() as u64);
            return Err(ShardError::TooLarge { path: path.to_owned(), what, max: MAX_MANIFEST_LEN, got });
        }
        let out = AtomicFile::create(path)?;
        let io = |source| ShardError::Io { path: path.to_owned(), action: "write to its .tmp file", source };
        out.file().write_all(&text).map_err(io)?;
        out.commit(Existing::Replace)
    }

    /// Checks format, version, schema, file names, the total, statistics and histograms; `path` is the file that the
    /// error names.
    ///
    /// # Errors
    /// [`ShardError::Field`], [`ShardError::Version`], [`ShardError::ShardName`], [`ShardError::ManifestSum`].
    pub fn check(&self, path: &Path) -> Result<(), ShardError> {
        check_format(path, &self.format, DATASET_FORMAT, self.version)?;
        self.schema.check(path)?;
        let mut seen = HashSet::new();
        for ShardEntry { file, .. } in &self.shards {
            let wrong =
                |expected| Err(ShardError::ShardName { path: path.to_owned(), name: quote::excerpt(file), expected });
            let plain = !file.is_empty() && file != "." && file != ".." && file != MANIFEST;
            // Control characters would reach the terminal with the next error message.
            if !plain || file.contains(|c: char| c == '/' || c == '\\' || c.is_control()) {
                return wrong("a file name without a folder or control characters");
            }
            if !seen.insert(file) {
                return wrong("a name that is used once");
            }
        }
        // Every entry is below 2^32 and there are far fewer than 2^32 of them.
        let expected = self.shards.iter().map(|shard| u64::from(shard.samples)).sum();
        if self.samples != expected {
            return Err(ShardError::ManifestSum { path: path.to_owned(), expected, got: self.samples });
        }
        statistics::check(&self.schema, self.samples, &self.stats, &self.histograms).map_err(
            |(field, expected, got)| {
                let got = quote::excerpt(&got);
                ShardError::Field { path: path.to_owned(), field, expected, got }
            },
        )
    }
}
