//! Lists the samples of WebDataset tars, by an index of their headers.
//!
//! Tars are given by a pattern (`train-{0000..1023}.tar`) or as a folder that holds them; they are taken in the order of
//! their names, and their samples as they lie. Labels are the numbers in the `cls` members. Tars may be indexed by any
//! number of threads. Compressed tars are refused: finding a sample would mean to inflate all before it.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipeline::{BoxError, End, Flow, FlowError, Runtime, Sink, Source, Stage, Stop, Worker};
use shards::MAX_KEY_LEN;
use shards::tar::{self, TarIndex};

use super::brace;
use super::tree::children;
use super::{Entry, ImageList, ListError, Member};

/// The tars that `--images` names: those of a folder, or those of a brace pattern, sorted. `None` if it names none: a
/// folder without tars.
///
/// # Errors
/// A malformed pattern, or a folder that cannot be read.
pub fn named(images: &Path) -> Result<Option<Vec<PathBuf>>, ListError> {
    let is_tar = |name: &str| [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| name.ends_with(end));
    if images.is_dir() {
        let (folders, files): (Vec<_>, Vec<_>) = children(images)?.into_iter().partition(|child| child.is_dir);
        let tars: Vec<_> = files.into_iter().filter(|child| is_tar(&child.name)).map(|child| child.path).collect();
        return match (tars.first(), folders.first()) {
            (Some(tar), Some(folder)) => {
                Err(ListError::TarsAndFolders { tar: tar.clone(), folder: folder.path.clone() })
            }
            (None, _) => Ok(None),
            (Some(_), None) => Ok(Some(tars)),
        };
    }
    match images.to_str() {
        Some(pattern) if is_tar(pattern) && pattern.contains(['*', '?']) && !images.exists() => {
            Err(ListError::Glob { pattern: pattern.to_owned() })
        }
        Some(pattern) if is_tar(pattern) || pattern.contains('{') => {
            let mut tars: Vec<_> = brace::expand(pattern)?.into_iter().map(PathBuf::from).collect();
            tars.sort_unstable();
            tars.dedup();
            Ok(Some(tars))
        }
        _ => Ok(None),
    }
}

impl ImageList {
    /// Lists the samples of `tars` in their order, indexing `workers` tars at once. `classes` names the labels; without
    /// it they are called by their numbers, from 0 to the largest. `None` if an interrupt was requested.
    ///
    /// # Errors
    /// The first tar that cannot be indexed, by a [`FlowError`] around a [`ListError`].
    pub fn tars(
        tars: Vec<PathBuf>,
        classes: Option<Vec<String>>,
        workers: usize,
        runtime: &Runtime,
    ) -> Result<Option<Self>, FlowError> {
        let list = Self { root: PathBuf::new(), entries: Vec::new(), classes: Vec::new() };
        let finished = Flow::from(Tars(tars.into_iter()))
            .then(|_: Worker| Ok(Index))
            .workers(workers)
            .into(Collect { list, classes })
            .run(runtime)?;
        Ok(finished.output)
    }
}

/// Source: the tars.
struct Tars(std::vec::IntoIter<PathBuf>);

impl Source for Tars {
    type Item = PathBuf;

    fn next(&mut self, _: &Stop) -> Result<Option<PathBuf>, BoxError> {
        Ok(self.0.next())
    }
}

/// Stage: a tar to its index.
struct Index;

impl Stage for Index {
    type In = PathBuf;
    type Out = (PathBuf, TarIndex);

    fn process(&mut self, path: PathBuf) -> Result<(PathBuf, TarIndex), BoxError> {
        let index = tar::index(&path).map_err(ListError::from)?;
        Ok((path, index))
    }
}

/// Sink: the list.
struct Collect {
    list: ImageList,
    classes: Option<Vec<String>>,
}

impl Sink for Collect {
    type In = (PathBuf, TarIndex);
    type Output = Option<ImageList>;

    fn consume(&mut self, (path, index): (PathBuf, TarIndex)) -> Result<ControlFlow<()>, BoxError> {
        let tar = Arc::new(path);
        let first = self.list.entries.len();
        if u32::try_from(first + index.samples.len()).is_err() {
            let (path, count) = (tar.to_path_buf(), first + index.samples.len());
            return Err(ListError::TooMany { path, count, classes: 0 }.into());
        }
        // Names in one tar say nothing about those in another: many begin at 000000.jpg in each.
        let stem =
            tar.file_stem().and_then(OsStr::to_str).ok_or_else(|| ListError::NotUtf8 { path: tar.to_path_buf() })?;
        for (source_index, sample) in (first as u32..).zip(index.samples) {
            let key = format!("{stem}/{}", sample.image);
            if key.len() > MAX_KEY_LEN {
                return Err(ListError::LongKey { path: tar.to_path_buf(), key, max: MAX_KEY_LEN }.into());
            }
            let member = Box::new(Member { tar: Arc::clone(&tar), range: sample.image_range, name: sample.image });
            self.list.entries.push(Entry { key, label: sample.label, source_index, member: Some(member) });
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(mut self, end: End) -> Result<Option<ImageList>, BoxError> {
        let largest = self.list.entries.iter().max_by_key(|entry| entry.label);
        let Some(Entry { key, label, .. }) = largest.filter(|_| end == End::Complete) else { return Ok(None) };
        self.list.classes = match self.classes {
            Some(classes) if (*label as usize) < classes.len() => classes,
            Some(classes) => {
                let (key, label, classes) = (key.clone(), *label, classes.len());
                return Err(ListError::LabelWithoutName { key, label, classes }.into());
            }
            None if *label > MAX_UNNAMED => {
                return Err(ListError::LargeLabel { key: key.clone(), label: *label, max: MAX_UNNAMED }.into());
            }
            None => (0..=*label).map(|label| label.to_string()).collect(),
        };
        Ok(Some(self.list))
    }
}

/// Largest label that is named by its number: a table of names up to any i32 would exhaust memory.
const MAX_UNNAMED: i32 = 1_000_000;
