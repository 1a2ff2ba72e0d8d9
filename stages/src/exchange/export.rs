//! The flow of an export: which parts are missing, the folder that they go into, and what is written last.
//!
//! ```text
//! OUT/export.json         which dataset in which form; written first, so that the same command can go on
//! OUT/..                  the parts, see `tensors` and `repa`
//! OUT/keys.json           names of the samples in their source, in order: a JSON list
//! OUT/dataset_info.json   what dataset.json knew: schema, provenance, classes, statistics, skipped files; written last
//! ```
//!
//! An export is complete when it has its `dataset_info.json`. One that was interrupted or killed leaves whole parts and
//! `.tmp` files beside them, which the next run replaces.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipeline::{BoxError, End, Sink, Source, Stage, Stop, Worker};
use serde_json::{Value, json};
use shards::{Dataset, Scratch};

use super::repa::{self, RepaColumns};
use super::{ExportError, tensors};

/// The record that an export begins with.
const RECORD: &str = "export.json";
/// What completes it.
pub(super) const INFO: &str = "dataset_info.json";

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A file of tensors for each shard: [`tensors`].
    Safetensors,
    /// A file for each sample: [`repa`].
    Repa,
}

impl Format {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Repa => "repa",
        }
    }
}

/// What [`Export::open`] found in the folder.
#[derive(Debug)]
pub enum Opened {
    /// Everything is there already.
    Complete,
    /// Something is left to write.
    Unfinished(Box<Export>),
}

/// What an export left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    /// Samples in whole parts, those of earlier runs included.
    pub samples: u64,
    /// Files that hold them.
    pub files: u64,
    /// Bytes that this run wrote.
    pub bytes: u64,
    /// True if everything is written; false if the export was interrupted and can be continued.
    pub complete: bool,
}

/// One part, written.
#[derive(Debug, Clone, Copy)]
pub struct WrittenPart {
    samples: u64,
    files: u64,
    bytes: u64,
}

/// What is exported, and where to.
#[derive(Debug, Clone)]
struct Plan {
    dataset: Arc<Dataset>,
    format: Form,
    dir: PathBuf,
}

/// [`Format`] with what it needs of the schema.
#[derive(Debug, Clone, Copy)]
enum Form {
    Safetensors,
    Repa(RepaColumns),
}

/// Sink: counts the parts, and completes the export when all are there.
#[derive(Debug)]
pub struct Export {
    plan: Plan,
    missing: Vec<usize>,
    done: Exported,
    /// Locked while the export runs.
    _record: File,
}

/// Source: numbers of the parts that are not there yet.
#[derive(Debug)]
pub struct Parts(std::vec::IntoIter<usize>);

/// Stage: writes one part.
#[derive(Debug)]
pub struct WritePart {
    plan: Plan,
    scratch: Scratch,
}

impl Export {
    /// Prepares `dir` (made if it does not exist) for `dataset`.
    ///
    /// # Errors
    /// [`ExportError`], also where the dataset has no form of that kind.
    pub fn open(dataset: Arc<Dataset>, format: Format, dir: &Path) -> Result<Opened, ExportError> {
        let layout = match format {
            Format::Safetensors => {
                tensors::check_names(&dataset.manifest.schema)?;
                Form::Safetensors
            }
            Format::Repa => Form::Repa(RepaColumns::of(&dataset.manifest.schema)?),
        };
        fs::create_dir_all(dir).map_err(at(dir))?;
        let record = claim(dir, &dataset, format)?;
        if dir.join(INFO).exists() {
            return Ok(Opened::Complete);
        }
        let plan = Plan { dataset, format: layout, dir: dir.to_owned() };
        let (mut missing, mut done) = (Vec::new(), Exported::default());
        for part in 0..plan.parts() {
            if plan.is_written(part)? {
                done.samples += plan.samples(part);
                done.files += plan.files(part);
            } else {
                missing.push(part);
            }
        }
        Ok(Opened::Unfinished(Box::new(Self { plan, missing, done, _record: record })))
    }

    /// Samples that are there already.
    pub fn samples_written(&self) -> u64 {
        self.done.samples
    }

    /// Parts that are not there yet.
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// The source of this export.
    pub fn parts(&self) -> Parts {
        Parts(self.missing.clone().into_iter())
    }

    /// The stage of this export, for any number of workers.
    pub fn writer(&self) -> impl Fn(Worker) -> Result<WritePart, BoxError> + Send + Sync + 'static {
        let plan = self.plan.clone();
        move |_| Ok(WritePart { plan: plan.clone(), scratch: Scratch::new() })
    }
}

impl Plan {
    fn parts(&self) -> usize {
        match self.format {
            Form::Safetensors => self.dataset.shards.len(),
            Form::Repa(_) => self.dataset.len().div_ceil(repa::FOLDER),
        }
    }

    fn samples(&self, part: usize) -> u64 {
        match self.format {
            Form::Safetensors => self.dataset.shards[part].len() as u64,
            Form::Repa(_) => repa::range(&self.dataset, part).len() as u64,
        }
    }

    fn files(&self, part: usize) -> u64 {
        match self.format {
            Form::Safetensors => 1,
            Form::Repa(_) => self.samples(part),
        }
    }

    fn is_written(&self, part: usize) -> Result<bool, ExportError> {
        match &self.format {
            Form::Safetensors => Ok(self.dir.join(tensors::file(part)).exists()),
            Form::Repa(columns) => repa::is_written(&self.dir, &self.dataset, columns, part),
        }
    }

    fn complete(&self) -> Result<(), ExportError> {
        let shards = &self.dataset.shards;
        let keys = shards.iter().flat_map(|shard| (0..shard.len()).map(|sample| shard.key(sample).unwrap_or_default()));
        write_list(&self.dir.join("keys.json"), keys)?;
        if let Form::Repa(_) = self.format {
            repa::write_labels(&self.dir, &self.dataset)?;
        }
        write_whole(&self.dir.join(INFO), |out| {
            serde_json::to_writer_pretty(out, &info(&self.dataset)).map_err(io::Error::from)
        })
    }
}

impl Source for Parts {
    type Item = usize;

    fn next(&mut self, _stop: &Stop) -> Result<Option<usize>, BoxError> {
        Ok(self.0.next())
    }
}

impl Stage for WritePart {
    type In = usize;
    type Out = WrittenPart;

    fn process(&mut self, part: usize) -> Result<WrittenPart, BoxError> {
        let Plan { dataset, format, dir } = &self.plan;
        let bytes = match format {
            Form::Safetensors => tensors::write(dir, dataset, part, &mut self.scratch)?,
            Form::Repa(columns) => repa::write(dir, dataset, columns, part, &mut self.scratch)?,
        };
        Ok(WrittenPart { samples: self.plan.samples(part), files: self.plan.files(part), bytes })
    }
}

impl Sink for Export {
    type In = WrittenPart;
    type Output = Exported;

    fn consume(&mut self, part: WrittenPart) -> Result<ControlFlow<()>, BoxError> {
        self.done.samples += part.samples;
        self.done.files += part.files;
        self.done.bytes += part.bytes;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, end: End) -> Result<Exported, BoxError> {
        // An interrupt behind the last part has nothing left to save.
        let complete = end == End::Complete || self.done.samples == self.plan.dataset.len() as u64;
        if complete {
            self.plan.complete()?;
        }
        Ok(Exported { complete, ..self.done })
    }
}

/// Takes the folder for this export: writes its record, or compares the one that is there. The file stays locked.
fn claim(dir: &Path, dataset: &Dataset, format: Format) -> Result<File, ExportError> {
    let path = dir.join(RECORD);
    let wanted = json!({
        "format": format.name(), "dataset": format!("{:016x}", dataset.hash()), "samples": dataset.len(), "version": 1,
    });
    if !path.exists() {
        let mut names: Vec<_> = fs::read_dir(dir)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>())
            .map_err(at(dir))?;
        names.retain(|name| *name != temporary(Path::new(RECORD)).as_os_str());
        if let Some(found) = names.iter().min() {
            return Err(ExportError::Occupied { dir: dir.to_owned(), found: found.to_string_lossy().into_owned() });
        }
        write_whole(&path, |out| serde_json::to_writer(out, &wanted).map_err(io::Error::from))?;
    }
    let record = File::open(&path).map_err(at(&path))?;
    match record.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(ExportError::Busy { dir: dir.to_owned() }),
        // A file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    let found: Value =
        fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)).map_err(at(&path))?;
    if found != wanted {
        let words = |record: &Value| {
            let field =
                |name: &str| record.get(name).map_or("?".to_owned(), |value| value.to_string().replace('"', ""));
            format!("{} samples ({}) as {}", field("samples"), field("dataset"), field("format"))
        };
        return Err(ExportError::Different { path, found: words(&found), wanted: words(&wanted) });
    }
    Ok(record)
}

/// What `dataset.json` knew, without what concerns the shards as files.
fn info(dataset: &Dataset) -> Value {
    let mut facts = serde_json::to_value(&dataset.manifest).unwrap_or_default();
    if let Some(object) = facts.as_object_mut() {
        object.retain(|name, _| !["format", "version", "shards"].contains(&name.as_str()));
        object.insert("dataset".to_owned(), format!("{:016x}", dataset.hash()).into());
        let per_shard = dataset.shards.iter().map(|shard| shard.len().into()).collect::<Vec<Value>>();
        object.insert("samples_per_shard".to_owned(), per_shard.into());
    }
    facts
}

/// Writes a JSON list, one element after the other and a line for each.
pub(super) fn write_list<T: serde::Serialize>(
    path: &Path,
    items: impl IntoIterator<Item = T>,
) -> Result<(), ExportError> {
    write_whole(path, |out| write_elements(out, items))
}

/// `[`, the items, and `]`.
pub(super) fn write_elements<T: serde::Serialize>(
    out: &mut impl Write,
    items: impl IntoIterator<Item = T>,
) -> io::Result<()> {
    out.write_all(b"[")?;
    for (i, item) in items.into_iter().enumerate() {
        out.write_all(if i == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &item)?;
    }
    out.write_all(b"\n]\n")
}

/// Lets a file appear when it is whole: written beside its place, made durable, renamed.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), ExportError> {
    let temporary = temporary(path);
    let file = File::create(&temporary).map_err(at(&temporary))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)
        .and_then(|()| out.flush())
        .and_then(|()| out.get_ref().sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(at(path))
}

/// Where a file or folder is made before it has its name.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Says where the system refused.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> ExportError + '_ {
    move |source| ExportError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
