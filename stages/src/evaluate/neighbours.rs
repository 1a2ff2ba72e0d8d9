//! The nearest neighbour in pixel space: of which class it is, and how far away.
//!
//! Pictures are compared at 32 x 32 pixels, after ADM's centre crop. The distance of two pictures is the root mean
//! square difference of their 3,072 values, in levels: 0 is a copy, 255 is black against white.
//!
//! # How the search is fast and still exact
//!
//! With `|a|^2 + |b|^2 - 2 ab`, the products of many pictures with many others are one product of matrices. It is
//! computed in f32 and in blocks, so memory beyond the pictures is bounded: 20 MB a worker, for any number of them.
//!
//! The mean picture, rounded to whole levels, is subtracted first: the terms shrink, and stay integers of at most 255,
//! which f32 holds exactly, as it holds their products. Only the sum of a product's n = 3,072 terms rounds, by at most
//! `n u / (1 - n u) |a| |b|` in any order of summation, u = 2^-24 (Higham, *Accuracy and Stability of Numerical
//! Algorithms*, 2nd edition, section 3.1). So each product gives a distance below which the pair cannot be, and every
//! pair that this leaves in the running is measured again in integers. What is found is the nearest picture, not
//! probably the nearest: ties go to the lower index, and a copy has distance 0.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use ndarray::{Array2, ArrayView1};
use pipeline::{BoxError, End, Sink, Source, Stage, Stop, Worker};
use serde::{Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

use crate::data::{Decoded, Pixels, Place};

/// Pixels a side at which pictures are compared.
pub const SIDE: usize = 32;
/// Values of a picture: [`SIDE`] squared times RGB.
pub const VALUES: usize = SIDE * SIDE * 3;

/// Rows that [`QueryBlocks`] gives at a time: 3 MB as f32.
pub const QUERY_BLOCK: usize = 256;
/// Pictures that they are compared with at a time: 12 MB as f32.
const AMONG_BLOCK: usize = 1024;
/// What rounds off a dot product, as a part of `|a| |b|`: `n u / (1 - n u)` is 1.8314e-4, rounded up for the f64
/// arithmetic that it is used in.
const ROUNDING: f64 = 1.832e-4;

/// Why there are no pictures to compare.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// A file could not be decoded.
    #[error("{place}: {reason}; mend or replace the file")]
    Undecodable {
        /// The file.
        place: Place,
        /// What is wrong with it.
        reason: String,
    },
    /// The flow has no crop to [`SIDE`].
    #[error("{place}: {width}x{height} pixels where {SIDE}x{SIDE} were expected")]
    Size {
        /// The file.
        place: Place,
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// A label is not an index into the names.
    #[error("{place}: class index {label}, of {classes} classes")]
    Label {
        /// The file.
        place: Place,
        /// Its class index.
        label: i32,
        /// How many classes there are.
        classes: usize,
    },
}

/// Pictures of [`SIDE`] x [`SIDE`] pixels with their classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pictures {
    /// `N * VALUES` values 0..=255: a picture is `[SIDE, SIDE, 3]`, RGB interleaved, row by row. Bytes, because sets of
    /// 50,000 are 154 MB so, and 614 MB as f32.
    values: Vec<u8>,
    /// Indices into `classes`, one for each picture.
    labels: Vec<usize>,
    classes: Vec<String>,
}

impl Pictures {
    fn none(classes: Vec<String>) -> Self {
        Self { values: Vec::new(), labels: Vec::new(), classes }
    }

    fn push(&mut self, pixels: &Pixels) -> Result<(), PictureError> {
        let Pixels { image, height, width, rgb, .. } = pixels;
        let (place, label) = (|| image.place.clone(), image.label);
        if (*width, *height) != (SIDE, SIDE) {
            return Err(PictureError::Size { place: place(), width: *width, height: *height });
        }
        let known = usize::try_from(label).ok().filter(|index| *index < self.classes.len());
        let unknown = || PictureError::Label { place: place(), label, classes: self.classes.len() };
        self.labels.push(known.ok_or_else(unknown)?);
        self.values.extend_from_slice(rgb);
        Ok(())
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// xxh3-64 of all values, and of the class of each picture.
    pub fn xxh3(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&self.values);
        for &label in &self.labels {
            hash.update(self.classes[label].as_bytes());
            hash.update(&[0]);
        }
        hash.digest()
    }

    /// The name of the class of picture `index`, which must be below [`Self::len`].
    pub fn class(&self, index: usize) -> &str {
        &self.classes[self.labels[index]]
    }

    /// `VALUES` values of picture `index`.
    fn row(&self, index: usize) -> &[u8] {
        &self.values[index * VALUES..(index + 1) * VALUES]
    }

    /// The mean of all pictures, rounded to levels; black if there is none.
    fn mean(&self) -> Vec<u8> {
        let mut sums = vec![0u64; VALUES];
        for row in self.values.chunks_exact(VALUES) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += u64::from(*value));
        }
        let count = (self.len() as u64).max(1);
        sums.iter().map(|sum| ((sum + count / 2) / count) as u8).collect()
    }

    /// Some of the pictures less `mean`: f32 `[rows, VALUES]`, integers in -255..=255.
    fn centred(&self, rows: Range<usize>, mean: &[u8]) -> Array2<f32> {
        let values = self.values[rows.start * VALUES..rows.end * VALUES].chunks_exact(VALUES);
        let values = values.flat_map(|row| row.iter().zip(mean).map(|(v, m)| f32::from(i16::from(*v) - i16::from(*m))));
        Array2::from_shape_vec((rows.len(), VALUES), values.collect()).expect("each row has VALUES values")
    }
}

/// Sink of cropped images: all of them, in memory.
#[derive(Debug)]
pub struct CollectPictures(Pictures);

impl CollectPictures {
    /// For images whose labels are indices into `classes`, cropped to [`SIDE`].
    pub fn of(classes: Vec<String>) -> Self {
        Self(Pictures::none(classes))
    }
}

impl Sink for CollectPictures {
    type In = Decoded;
    type Output = Pictures;

    fn consume(&mut self, item: Decoded) -> Result<ControlFlow<()>, BoxError> {
        match item {
            Decoded::Pixels(pixels) => self.0.push(&pixels)?,
            Decoded::Skipped { image, reason } => {
                return Err(PictureError::Undecodable { place: image.place, reason }.into());
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _end: End) -> Result<Pictures, BoxError> {
        Ok(self.0)
    }
}

/// The nearest picture of a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nearest {
    /// Which one, from 0; the lowest of several that are equally near.
    pub index: usize,
    /// Root mean square difference of a value, in levels: 0 is a copy, 255 the most.
    pub distance: f64,
}

/// A set of pictures to search in.
#[derive(Debug)]
pub struct Neighbourhood {
    among: Arc<Pictures>,
    mean: Vec<u8>,
    /// Squared length of each picture less the mean, exact.
    squares: Vec<f64>,
}

impl Neighbourhood {
    /// Prepares the search; `None` if there is nothing to find.
    pub fn of(among: Arc<Pictures>) -> Option<Self> {
        if among.is_empty() {
            return None;
        }
        let mean = among.mean();
        let squares = among.values.chunks_exact(VALUES).map(|row| f64::from(squared_distance(row, &mean))).collect();
        Some(Self { among, mean, squares })
    }

    /// The nearest picture for each of `rows` of `queries` (in `0..queries.len()`), in their order.
    pub fn nearest(&self, queries: &Pictures, rows: Range<usize>) -> Vec<Nearest> {
        self.nearest_by(queries, rows, AMONG_BLOCK)
    }

    fn nearest_by(&self, queries: &Pictures, rows: Range<usize>, block: usize) -> Vec<Nearest> {
        let centred = queries.centred(rows.clone(), &self.mean);
        let mut found: Vec<Candidate> = rows.map(|row| Candidate::none(queries.row(row), &self.mean)).collect();
        for first in (0..self.among.len()).step_by(block) {
            let others = first..(first + block).min(self.among.len());
            let products = centred.dot(&self.among.centred(others, &self.mean).t());
            for (candidate, products) in found.iter_mut().zip(products.outer_iter()) {
                self.improve(candidate, first, products);
            }
        }
        let distance = |squared: u32| (f64::from(squared) / VALUES as f64).sqrt();
        found.iter().map(|c| Nearest { index: c.index, distance: distance(c.squared_distance) }).collect()
    }

    /// Takes the pictures from `first` on into account, given their products with the query.
    fn improve(&self, candidate: &mut Candidate<'_>, first: usize, products: ArrayView1<'_, f32>) {
        let squares = &self.squares[first..first + products.len()];
        let least = |(product, square): (&f32, &f64)| {
            let rounding = ROUNDING * (candidate.square * square).sqrt();
            candidate.square + square - 2.0 * (f64::from(*product) + rounding)
        };
        let bounds: Vec<f64> = products.iter().zip(squares).map(least).collect();
        // The most promising first: after it, hardly any other is left in the running.
        let best = bounds.iter().enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(i, _)| i);
        for i in best.into_iter().chain(0..bounds.len()) {
            if bounds[i] <= f64::from(candidate.squared_distance) {
                candidate.measure(first + i, self.among.row(first + i));
            }
        }
    }
}

/// The nearest picture so far of one query.
#[derive(Debug)]
struct Candidate<'a> {
    query: &'a [u8],
    /// Squared length of the query less the mean, exact.
    square: f64,
    squared_distance: u32,
    index: usize,
}

impl<'a> Candidate<'a> {
    fn none(query: &'a [u8], mean: &[u8]) -> Self {
        let square = f64::from(squared_distance(query, mean));
        Self { query, square, squared_distance: u32::MAX, index: usize::MAX }
    }

    fn measure(&mut self, index: usize, picture: &[u8]) {
        let found = (squared_distance(self.query, picture), index);
        (self.squared_distance, self.index) = found.min((self.squared_distance, self.index));
    }
}

/// Exact: at most 3,072 * 255^2, which is below 2^32.
fn squared_distance(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
}

/// Source of the rows of a set, a block at a time.
#[derive(Debug)]
pub struct QueryBlocks {
    next: usize,
    count: usize,
}

impl QueryBlocks {
    /// The rows `0..count`.
    pub fn of(count: usize) -> Self {
        Self { next: 0, count }
    }
}

impl Source for QueryBlocks {
    type Item = Range<usize>;

    fn next(&mut self, _stop: &Stop) -> Result<Option<Range<usize>>, BoxError> {
        let rows = self.next..(self.next + QUERY_BLOCK).min(self.count);
        self.next = rows.end;
        Ok((!rows.is_empty()).then_some(rows))
    }
}

/// Stage: the nearest neighbour of each picture of a block.
#[derive(Debug)]
pub struct FindNearest {
    queries: Arc<Pictures>,
    among: Arc<Neighbourhood>,
}

impl FindNearest {
    /// Factory: searches for rows of `queries` in `among`.
    pub fn of(
        queries: Arc<Pictures>,
        among: Arc<Neighbourhood>,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        move |_worker| Ok(Self { queries: Arc::clone(&queries), among: Arc::clone(&among) })
    }
}

impl Stage for FindNearest {
    type In = Range<usize>;
    type Out = Vec<Nearest>;

    fn process(&mut self, rows: Range<usize>) -> Result<Vec<Nearest>, BoxError> {
        Ok(self.among.nearest(&self.queries, rows))
    }
}

/// Sink of what was found, in the order of the queries.
#[derive(Debug, Default)]
pub struct CollectNearest(Vec<Nearest>);

impl Sink for CollectNearest {
    type In = Vec<Nearest>;
    type Output = Vec<Nearest>;

    fn consume(&mut self, mut found: Vec<Nearest>) -> Result<ControlFlow<()>, BoxError> {
        self.0.append(&mut found);
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _end: End) -> Result<Vec<Nearest>, BoxError> {
        Ok(self.0)
    }
}

/// How many of how many; serialised as the share, a number in 0..=1 (`null` for 0 of 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accuracy {
    /// Pictures whose nearest neighbour is of their own class.
    pub hits: usize,
    /// All pictures.
    pub count: usize,
}

impl Accuracy {
    /// `hits / count`; not a number for 0 of 0.
    pub fn share(self) -> f64 {
        self.hits as f64 / self.count as f64
    }
}

impl std::iter::Sum for Accuracy {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |a, b| Self { hits: a.hits + b.hits, count: a.count + b.count })
    }
}

impl Serialize for Accuracy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.share())
    }
}

/// For each class of `queries`, by name, how many of its pictures have a nearest neighbour in `among` of the same name.
/// `nearest` is what was found for each of `queries`.
pub fn class_accuracy(queries: &Pictures, nearest: &[Nearest], among: &Pictures) -> BTreeMap<String, Accuracy> {
    let mut by_class = BTreeMap::<String, Accuracy>::new();
    for (query, found) in nearest.iter().enumerate() {
        let class = queries.class(query);
        let accuracy = by_class.entry(class.to_owned()).or_default();
        accuracy.hits += usize::from(among.class(found.index) == class);
        accuracy.count += 1;
    }
    by_class
}

/// The accuracy, in 0..=1, that is expected of a picture of `among` drawn at random in place of the nearest: the share
/// of each query's class in `among`, in the mean over `queries`. Not a number where one of the two is empty.
pub fn chance(queries: &Pictures, among: &Pictures) -> f64 {
    let mut shares = BTreeMap::<&str, f64>::new();
    for index in 0..among.len() {
        *shares.entry(among.class(index)).or_default() += 1.0 / among.len() as f64;
    }
    let expected = (0..queries.len()).map(|index| shares.get(queries.class(index)).copied().unwrap_or(0.0));
    expected.sum::<f64>() / queries.len() as f64
}

/// A summary of distances, in levels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distances {
    /// The shortest.
    pub least: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
}

impl Distances {
    /// Of what was found; `None` for nothing.
    pub fn of(nearest: &[Nearest]) -> Option<Self> {
        let mut sorted: Vec<f64> = nearest.iter().map(|found| found.distance).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted.get(middle.checked_sub(1)?)? + sorted[middle]) / 2.0,
        };
        Some(Self { least: *sorted.first()?, median })
    }
}

#[cfg(test)]
mod tests;
