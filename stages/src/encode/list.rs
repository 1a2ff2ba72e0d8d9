//! Lists the images of a dataset in the dataset's order.
//!
//! Three kinds of sources: a class-per-folder tree (`list/tree.rs`; ImageNet's `train`), a flat folder with a file of
//! labels (`list/flat.rs`; ImageNet's `val`), and WebDataset tars (`list/tars.rs`).
//!
//! The order of files is a seeded permutation of the sorted names, so that a sequential reader sees the classes mixed.
//! Tars keep their own order, name-sorted tar after tar, since reading them otherwise would seek for each image.
//! Nothing of a file but its name is read here: sizes and contents are not part of [`ImageList::hash`].

pub mod brace;
mod error;
mod flat;
pub mod ground_truth;
pub mod tars;
mod tree;
pub mod wnids;

use std::collections::HashSet;
use std::iter::Flatten;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec::IntoIter;

use pipeline::{BoxError, Source, Stop};
use xxhash_rust::xxh3::Xxh3;

pub use self::error::ListError;
use crate::data::{ImageRef, Place};
use crate::splitmix::SplitMix64;

/// The images of a dataset in the dataset's order.
#[derive(Debug, Clone)]
pub struct ImageList {
    root: PathBuf,
    entries: Vec<Entry>,
    classes: Vec<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    key: String,
    label: i32,
    source_index: u32,
    /// Where it lies in a tar; a file is `key` below the root.
    member: Option<Box<Member>>,
}

#[derive(Debug, Clone)]
struct Member {
    tar: Arc<PathBuf>,
    range: Range<u64>,
    name: String,
}

/// How class folders become labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// ImageNet-1k's class indices if every folder is one of its wnids: a subset of the folders keeps the labels of the
    /// whole. Else as [`Numbering::Folders`].
    ImageNet,
    /// Folders are numbered in sorted order.
    Folders,
}

impl ImageList {
    /// The files of `root` with these keys and labels (indices into `classes`), in this order; at most 4294967295.
    /// Nothing is looked for on disk.
    pub fn of_files(root: &Path, files: impl IntoIterator<Item = (String, i32)>, classes: Vec<String>) -> Self {
        let entries =
            (0..).zip(files).map(|(source_index, (key, label))| Entry { key, label, source_index, member: None });
        Self { root: root.to_owned(), entries: entries.collect(), classes }
    }

    /// Puts the list into the seeded order of [`permutation`].
    #[must_use]
    pub fn permuted(mut self, seed: u64) -> Self {
        let mut sorted: Vec<_> = self.entries.drain(..).map(Some).collect();
        self.entries = permutation(sorted.len(), seed)
            .into_iter()
            .map(|index| sorted[index as usize].take().expect("a permutation names each index once"))
            .collect();
        self
    }

    /// Keeps the first `count` images of the present order; the classes stay all.
    #[must_use]
    pub fn limited(mut self, count: usize) -> Self {
        self.entries.truncate(count);
        self
    }

    /// Keeps of each class the first image in the present order.
    #[must_use]
    pub fn first_of_each_class(mut self) -> Self {
        let mut seen = vec![false; self.classes.len()];
        self.entries.retain(|entry| !std::mem::replace(&mut seen[entry.label as usize], true));
        self
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names of the classes; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// How many classes have an image.
    pub fn used_classes(&self) -> usize {
        self.entries.iter().map(|entry| entry.label).collect::<HashSet<_>>().len()
    }

    /// The image at `position` of the dataset's order; `None` past the end.
    pub fn image(&self, position: u64) -> Option<ImageRef> {
        let entry = self.entries.get(usize::try_from(position).ok()?)?;
        let place = match &entry.member {
            None => Place::File(self.root.join(&entry.key)),
            Some(member) => {
                let Member { tar, range, name } = &**member;
                Place::Member { tar: Arc::clone(tar), range: range.clone(), name: name.clone() }
            }
        };
        Some(ImageRef { position, source_index: entry.source_index, key: entry.key.clone(), label: entry.label, place })
    }

    /// xxh3 of the class names and of all keys and labels in order: the same for two lists that give the same dataset
    /// order, wherever their root folders are.
    pub fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        // The length in front keeps two names from running together.
        let name = |hash: &mut Xxh3, name: &str| {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
        };
        hash.update(&(self.classes.len() as u64).to_le_bytes());
        self.classes.iter().for_each(|class| name(&mut hash, class));
        for entry in &self.entries {
            name(&mut hash, &entry.key);
            hash.update(&entry.label.to_le_bytes());
        }
        hash.digest()
    }
}

/// The seeded order: element i says which of `0..len` comes at position i.
///
/// Fisher-Yates from the back; step i draws from `0..=i` as the upper half of `r * (i + 1)`, where r is output number i
/// of [`SplitMix64`] started at `seed`. The draw's bias is below (i + 1) / 2^64.
pub fn permutation(len: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        let draw = u128::from(SplitMix64::output(seed, i as u64)) * (i as u128 + 1);
        order.swap(i, (draw >> 64) as usize);
    }
    order
}

/// Source of a list's images, in order.
#[derive(Debug)]
pub struct ListImages {
    list: Arc<ImageList>,
    positions: Flatten<IntoIter<Range<u64>>>,
}

impl ListImages {
    /// All images.
    pub fn all(list: ImageList) -> Self {
        let whole = 0..list.len() as u64;
        Self::at(list, vec![whole])
    }

    /// The images at these positions: what a dataset that is continued still needs.
    pub fn at(list: impl Into<Arc<ImageList>>, positions: Vec<Range<u64>>) -> Self {
        Self { list: list.into(), positions: positions.into_iter().flatten() }
    }
}

impl Source for ListImages {
    type Item = ImageRef;

    fn next(&mut self, _stop: &Stop) -> Result<Option<ImageRef>, BoxError> {
        Ok(self.positions.next().and_then(|position| self.list.image(position)))
    }
}

#[cfg(test)]
mod tests;
