//! A dataset of procedural images on disk: JPEG files in class folders, a part to train on and a part held out.
//!
//! ```text
//! DIR/train/red-dotted-disc/red-dotted-disc-00000.jpg ..
//! DIR/held-out/red-dotted-disc/red-dotted-disc-00200.jpg ..
//! ```

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use pipeline::{BoxError, End, Sink, Source, Stage, Stop, Worker};

use super::Classes;
use super::random::Random;

/// Quality of the JPEG files: as photographs usually are.
const QUALITY: u8 = 92;

/// Sides of the images, in pixels.
const SIDES: (u64, u64) = (180, 420);

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProceduralError {
    /// A folder or file could not be made.
    #[error("{path}: cannot be written: {source}; expected a folder with room and permission to write")]
    Write {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The encoder refused.
    #[error("{path}: the JPEG cannot be written: {source}")]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        source: image::ImageError,
    },
}

/// Which images there are. Names, sizes and pixels depend on the seed, the class and the place in the class alone.
#[derive(Debug, Clone)]
pub struct Portfolio {
    /// Folder of the two parts.
    pub dir: PathBuf,
    /// Which classes.
    pub classes: Classes,
    /// Images of each class to train on: places 0 to this, in `train`.
    pub per_class: usize,
    /// Images of each class that are held out: the places after those, in `held-out`.
    pub held_out_per_class: usize,
    /// Seed of all.
    pub seed: u64,
}

impl Portfolio {
    /// The part to train on: one folder a class.
    pub fn train(&self) -> PathBuf {
        self.dir.join("train")
    }

    /// The part held out, laid out like the other.
    pub fn held_out(&self) -> PathBuf {
        self.dir.join("held-out")
    }

    /// Images in all.
    pub fn count(&self) -> usize {
        self.classes.count() * (self.per_class + self.held_out_per_class)
    }

    /// Makes the folders; then hands out what is to be drawn, class by class.
    ///
    /// # Errors
    /// [`ProceduralError::Write`] with the folder.
    pub fn commissions(&self) -> Result<Commissions, ProceduralError> {
        let folders = [self.train(), self.held_out()];
        let names: Vec<_> = (0..self.classes.count()).map(|class| self.classes.name(class)).collect();
        for folder in folders.iter().flat_map(|part| names.iter().map(|name| part.join(name))) {
            fs::create_dir_all(&folder).map_err(|source| ProceduralError::Write { path: folder.clone(), source })?;
        }
        Ok(Commissions { portfolio: self.clone(), next: 0 })
    }
}

/// One image to draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commission {
    classes: Classes,
    class: usize,
    seed: u64,
    width: usize,
    height: usize,
    path: PathBuf,
}

/// The source of [`Commission`]s: every image of a [`Portfolio`].
#[derive(Debug)]
pub struct Commissions {
    portfolio: Portfolio,
    next: usize,
}

impl Source for Commissions {
    type Item = Commission;

    fn next(&mut self, _: &Stop) -> Result<Option<Commission>, BoxError> {
        let portfolio = &self.portfolio;
        let per_class = portfolio.per_class + portfolio.held_out_per_class;
        if self.next == portfolio.count() {
            return Ok(None);
        }
        let (class, index) = (self.next / per_class, self.next % per_class);
        self.next += 1;
        let part = if index < portfolio.per_class { portfolio.train() } else { portfolio.held_out() };
        let mut random = Random::new(portfolio.seed, (class as u64) << 40 | index as u64);
        let mut side = || (SIDES.0 + random.below(SIDES.1 - SIDES.0 + 1)) as usize;
        let (width, height) = (side(), side());
        let name = portfolio.classes.name(class);
        let path = part.join(&name).join(format!("{name}-{index:05}.jpg"));
        Ok(Some(Commission { classes: portfolio.classes, class, seed: random.bits(), width, height, path }))
    }
}

/// Draws a [`Commission`] and compresses it.
#[derive(Debug)]
pub struct Draw;

/// A JPEG file in memory, and where it belongs.
#[derive(Debug)]
pub struct Drawn {
    path: PathBuf,
    jpeg: Vec<u8>,
}

impl Draw {
    /// A worker's own.
    ///
    /// # Errors
    /// None.
    pub fn new(_: Worker) -> Result<Self, BoxError> {
        Ok(Self)
    }
}

impl Stage for Draw {
    type In = Commission;
    type Out = Drawn;

    fn process(&mut self, commission: Commission) -> Result<Drawn, BoxError> {
        let Commission { classes, class, seed, width, height, path } = commission;
        let jpeg = jpeg(&classes.image(class, seed, width, height), width, height)
            .map_err(|source| ProceduralError::Encode { path: path.clone(), source })?;
        Ok(Drawn { path, jpeg })
    }
}

fn jpeg(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, image::ImageError> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
    encoder.encode(rgb, width as u32, height as u32, ExtendedColorType::Rgb8)?;
    Ok(bytes)
}

/// Writes each file, replacing one of the same name; hands out how many.
#[derive(Debug, Default)]
pub struct WriteFiles {
    written: usize,
}

impl Sink for WriteFiles {
    type In = Drawn;
    type Output = usize;

    fn consume(&mut self, Drawn { path, jpeg }: Drawn) -> Result<ControlFlow<()>, BoxError> {
        fs::write(&path, jpeg).map_err(|source| ProceduralError::Write { path, source })?;
        self.written += 1;
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<usize, BoxError> {
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use std::path::Path;

    use pipeline::{Flow, Runtime};

    use super::*;
    use crate::procedural::{CLASSES, image};

    fn write(dir: &Path, per_class: usize, held_out_per_class: usize, workers: usize) -> usize {
        let portfolio =
            Portfolio { dir: dir.to_owned(), classes: Classes::Named, per_class, held_out_per_class, seed: 5 };
        let flow = Flow::from(portfolio.commissions().unwrap()).then(Draw::new).workers(workers);
        flow.into(WriteFiles::default()).run(&Runtime::default()).unwrap().output
    }

    /// Every file below a folder, by its path from there.
    fn files(dir: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for part in fs::read_dir(dir).unwrap() {
            for class in fs::read_dir(part.unwrap().path()).unwrap() {
                found.extend(fs::read_dir(class.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
            }
        }
        found.iter().map(|path| path.strip_prefix(dir).unwrap().to_owned()).collect()
    }

    #[test]
    fn files_depend_on_the_seed_and_not_on_the_workers_and_have_mixed_sizes() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(write(first.path(), 1, 1, 3), 2 * CLASSES.len());
        write(second.path(), 1, 1, 1);
        assert_eq!(files(first.path()), files(second.path()));
        let mut sizes = BTreeSet::new();
        for file in files(first.path()) {
            let bytes = fs::read(first.path().join(&file)).unwrap();
            assert_eq!(bytes, fs::read(second.path().join(&file)).unwrap());
            let decoded = image::load_from_memory(&bytes).unwrap();
            for side in [decoded.width(), decoded.height()] {
                assert!((180..=420).contains(&side));
            }
            sizes.insert((decoded.width(), decoded.height()));
        }
        assert!(sizes.len() > CLASSES.len(), "{sizes:?}");
    }

    #[test]
    fn no_image_is_in_both_parts() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 2, 2, 2);
        let files = files(dir.path());
        let contents: BTreeSet<_> = files.iter().map(|file| fs::read(dir.path().join(file)).unwrap()).collect();
        assert_eq!((files.len(), contents.len()), (4 * CLASSES.len(), 4 * CLASSES.len()));
        assert_eq!(files.iter().filter(|file| file.starts_with("held-out")).count(), 2 * CLASSES.len());
    }

    #[test]
    fn a_jpeg_is_close_to_the_image_that_it_was_made_from() {
        let rgb = image(0, 1, 64, 48);
        let decoded = image::load_from_memory(&jpeg(&rgb, 64, 48).unwrap()).unwrap().to_rgb8();
        let error: f64 = rgb.iter().zip(decoded.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        assert!(error / (rgb.len() as f64) < 6.0, "{}", error / rgb.len() as f64);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let portfolio = Portfolio {
            dir: file.path().to_owned(),
            classes: Classes::Named,
            per_class: 1,
            held_out_per_class: 0,
            seed: 0,
        };
        let error = portfolio.commissions().unwrap_err().to_string();
        assert!(error.contains(&file.path().join("train").join(CLASSES[0]).display().to_string()), "{error}");
    }
}
