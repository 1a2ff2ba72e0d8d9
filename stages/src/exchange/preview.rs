//! Pictures of some samples of a dataset, as the autoencoder decodes them, each above the name of its class.
//!
//! ```text
//! RandomSamples   seeded, without repetition             -> SampleLatents  f32 [1, C, h, w], as stored
//! DecodeLatents   the autoencoder of the sampling line   -> SamplePixels   u8 [1, 3, H, W]
//! LabelledGrid    one PNG
//! ```
//!
//! What is decoded is the first column of posterior means, or of drawn samples: nothing is drawn here.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use image::{Rgb, RgbImage};
use ndarray::Array4;
use pipeline::{BoxError, End, Sink, Source, Stop};
use shards::{DType, Dataset, Schema, Scratch, ShardError};

use super::font;
use crate::load::LoadError;
use crate::load::feed::Scaling;
use crate::load::inflate::LatentColumns;
use crate::sample::generate::SampleLatents;
use crate::sample::request::SampleRequest;
use crate::sample::write::{SamplePixels, grid};
use crate::splitmix::SplitMix64;

/// Source: some samples of a dataset.
#[derive(Debug)]
pub struct RandomSamples {
    dataset: Arc<Dataset>,
    column: usize,
    shape: [usize; 3],
    positions: std::vec::IntoIter<usize>,
    scratch: Scratch,
}

impl RandomSamples {
    /// `count` samples, or all if there are not so many, in the dataset's order; which, is a function of `seed`.
    ///
    /// # Errors
    /// As [`LatentColumns::of`], where there is nothing to decode.
    pub fn of(dataset: &Arc<Dataset>, count: usize, seed: u64) -> Result<Self, LoadError> {
        let LatentColumns { shape, mean, .. } = LatentColumns::of(&dataset.manifest.schema)?;
        let positions = choose(dataset.len(), count, seed).into_iter();
        Ok(Self { dataset: Arc::clone(dataset), column: mean, shape, positions, scratch: Scratch::new() })
    }

    fn read(&mut self, position: usize) -> Result<Option<SampleLatents>, ShardError> {
        let Some(place) = self.dataset.block_of(position) else { return Ok(None) };
        let shard = &self.dataset.shards[place.block.shard];
        let declared = &shard.columns()[self.column];
        let mut block = vec![0; shard.block_len(place.block.block) * declared.sample_bytes()];
        shard.read_block(place.block.block, self.column, &mut block, &mut self.scratch)?;
        let bytes = &block[place.index * declared.sample_bytes()..(place.index + 1) * declared.sample_bytes()];
        let values: Vec<f32> = match declared.dtype {
            DType::F16 => bytes.as_chunks().0.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect(),
            DType::F32 => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        };
        let [channels, height, width] = self.shape;
        let latents = Array4::from_shape_vec((1, channels, height, width), values)
            .expect("the schema says how many values a sample has");
        let row = place.block.block * self.dataset.manifest.schema.block_samples as usize + place.index;
        let labels = vec![shard.labels()[row].into()];
        Ok(Some(SampleLatents { request: SampleRequest { indices: vec![position as u64], labels }, latents }))
    }
}

impl Source for RandomSamples {
    type Item = SampleLatents;

    fn next(&mut self, _stop: &Stop) -> Result<Option<SampleLatents>, BoxError> {
        match self.positions.next() {
            Some(position) => Ok(self.read(position)?),
            None => Ok(None),
        }
    }
}

/// `count` different numbers below `of`, sorted: a set that grows by one random number at a time (Floyd's sampling).
fn choose(of: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut random = SplitMix64::new(seed);
    let mut chosen = std::collections::BTreeSet::new();
    for last in of.saturating_sub(count)..of {
        let draw = random.below(last as u64 + 1) as usize;
        if !chosen.insert(draw) {
            chosen.insert(last);
        }
    }
    chosen.into_iter().collect()
}

/// How [`DecodeLatents`](crate::sample::decode::DecodeLatents) undoes what the stored values went through: nothing,
/// unless they are scaled.
pub fn stored_scaling(schema: &Schema) -> Scaling {
    match schema.scaling_applied {
        true => Scaling { factor: schema.scaling_factor, shift: schema.shift_factor },
        false => Scaling { factor: 1.0, shift: 0.0 },
    }
}

/// The picture could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; check the path and its permissions", path = .path.display())]
pub struct PreviewError {
    path: PathBuf,
    source: image::ImageError,
}

/// Sink: all pictures on one PNG, each above the name of its class.
#[derive(Debug)]
pub struct LabelledGrid {
    path: PathBuf,
    classes: Vec<String>,
    pictures: Vec<RgbImage>,
}

impl LabelledGrid {
    /// Into the file `path`; a label without a name in `classes` is written as its number.
    pub fn create(path: &Path, classes: &[String]) -> Self {
        Self { path: path.to_owned(), classes: classes.to_vec(), pictures: Vec::new() }
    }
}

impl Sink for LabelledGrid {
    type In = SamplePixels;
    type Output = usize;

    fn consume(&mut self, samples: SamplePixels) -> Result<ControlFlow<()>, BoxError> {
        for (planes, label) in samples.pixels.outer_iter().zip(&samples.request.labels) {
            let (_, height, width) = planes.dim();
            let picture = RgbImage::from_fn(width as u32, height as u32, |x, y| {
                Rgb([0, 1, 2].map(|channel| planes[[channel, y as usize, x as usize]]))
            });
            let name = usize::try_from(*label).ok().and_then(|label| self.classes.get(label));
            self.pictures.push(labelled(&picture, &name.cloned().unwrap_or_else(|| label.to_string())));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The number of pictures; without any, or after an interrupt, no file is written.
    fn finish(self, end: End) -> Result<usize, BoxError> {
        if end == End::Complete && !self.pictures.is_empty() {
            let columns = (self.pictures.len() as f64).sqrt().ceil() as usize;
            let saved = grid(&self.pictures, columns).save_with_format(&self.path, image::ImageFormat::Png);
            saved.map_err(|source| PreviewError { path: self.path, source })?;
        }
        Ok(self.pictures.len())
    }
}

/// A picture above a line of text; a text that is too long ends in two dots.
fn labelled(picture: &RgbImage, text: &str) -> RgbImage {
    let (width, height) = picture.dimensions();
    let scale = (width / 256).max(1);
    let room = (width / (font::ADVANCE * scale)) as usize;
    let text = match text.chars().count() > room {
        true => text.chars().take(room.saturating_sub(2)).chain("..".chars()).collect(),
        false => text.to_owned(),
    };
    let mut canvas = RgbImage::from_pixel(width, height + (font::HEIGHT + 4) * scale, Rgb([255; 3]));
    image::imageops::replace(&mut canvas, picture, 0, 0);
    font::write(&mut canvas, &text, 0, height + 2 * scale, scale, Rgb([0; 3]));
    canvas
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, LOGVAR, MEAN};
    use super::*;

    #[test]
    fn the_same_seed_chooses_the_same_samples_and_none_twice() {
        for (of, count) in [(10, 3), (10, 10), (10, 50), (0, 4), (1000, 999)] {
            let chosen = choose(of, count, 7);
            assert_eq!(chosen.len(), count.min(of));
            assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]) && chosen.iter().all(|position| *position < of));
            assert_eq!(chosen, choose(of, count, 7));
        }
        assert_ne!(choose(1000, 8, 1), choose(1000, 8, 2));
    }

    #[test]
    fn a_sample_comes_with_its_own_values_and_label() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = fixture::dataset(dir.path(), &fixture::schema(&[LOGVAR, MEAN], DType::F32), &[70, 65]);
        let mut source = RandomSamples::of(&dataset, 135, 0).unwrap();
        let mut seen = 0;
        while let Some(sample) = source.next(&Stop::never()).unwrap() {
            let (shard, row) = if seen < 70 { (0, seen) } else { (1, seen - 70) };
            let expected =
                &fixture::values(DType::F32, [70, 65][shard], 100 * shard as u64 + 1)[72 * row..72 * (row + 1)];
            let bytes: Vec<u8> = sample.latents.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(bytes, expected);
            assert_eq!(sample.request, SampleRequest { indices: vec![seen as u64], labels: vec![(seen % 3) as i64] });
            seen += 1;
        }
        assert_eq!(seen, 135);
    }

    #[test]
    fn the_name_of_the_class_is_below_the_picture_and_is_cut_to_it() {
        let picture = RgbImage::from_pixel(30, 8, Rgb([50; 3]));
        let (short, long) = (labelled(&picture, "cat"), labelled(&picture, "caterpillar"));
        assert_eq!(short.dimensions(), (30, 19));
        assert!(short.enumerate_pixels().filter(|(_, y, _)| *y < 8).all(|(_, _, pixel)| pixel.0 == [50; 3]));
        let black = |picture: &RgbImage, from: u32, to: u32| {
            picture.enumerate_pixels().filter(|(x, y, p)| (from..to).contains(x) && *y >= 8 && p.0 == [0; 3]).count()
        };
        assert!(black(&short, 0, 18) > 20);
        assert_eq!(black(&short, 18, 30), 0);
        // Three letters and two dots of four pixels each.
        assert_eq!(black(&long, 18, 30), 8);
        assert_eq!(black(&long, 0, 18), black(&short, 0, 18));
    }
}
