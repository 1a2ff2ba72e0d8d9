//! Samples to disk: one PNG an image, with all of them in one grid, or one npz file; and their latents if they are wanted.
//!
//! What is there already is kept, and what is there is whole: a PNG gets its name when it is written to its end, and of an
//! npz file the whole rows count. So a command that was killed goes on where it was. A power cut is another matter: images are
//! not synced one by one, so the last ones before it may be empty files, or rows of zeros; sample into a new folder then.

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::{ImageError, ImageFormat, RgbImage};
use ndarray::{Array4, ArrayView3, Axis};
use pipeline::{BoxError, End, Sink};

use super::latents::{LatentsError, LatentsFile};
use super::npz::{NpzImages, NpzWriter};
use super::request::SampleRequest;
use crate::method::config::LatentShape;

/// Decoded samples.
#[derive(Debug)]
pub struct SamplePixels {
    /// Which images.
    pub request: SampleRequest,
    /// What they were decoded from, scaled as the network predicts it: f32 `[B, C, h, w]`.
    pub latents: Array4<f32>,
    /// RGB, planar, u8 0..=255: `[B, 3, H, W]`.
    pub pixels: Array4<u8>,
}

/// Writes the images that are not there yet.
#[derive(Debug)]
pub struct WriteSamples {
    images: Images,
    latents: Option<LatentsFile>,
    /// Which images are there.
    present: Vec<bool>,
    /// How many of them are this one's.
    written: u64,
}

/// What became of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Those that are there.
    pub there: u64,
    /// Those of them that were written now.
    pub written: u64,
}

#[derive(Debug)]
enum Images {
    /// `<folder>/000000.png ..` and, for a small number of them, `<folder>/grid.png`.
    Png { folder: PathBuf, columns: usize, rank: u64 },
    /// `<folder>/samples.npz`, called `samples.npz.part` until it is whole. `None` if it is.
    Npz { folder: PathBuf, writer: Option<NpzWriter<File>> },
}

/// A file of samples could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct WriteError {
    path: PathBuf,
    source: ImageError,
}

impl WriteError {
    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |e| Self { path: path.to_path_buf(), source: ImageError::IoError(e) }
    }
}

impl WriteSamples {
    /// More images than this make no grid.
    pub const GRID_LIMIT: u64 = 400;
    /// The name of the npz file.
    pub const NPZ: &str = "samples.npz";

    /// `count` images as PNG files in `folder`, which exists; a grid has `columns` of them in a row. Several processes of different
    /// `rank` may fill one folder, each with other images: who finds all of them there makes the grid.
    ///
    /// # Errors
    /// The file system's.
    pub fn png(folder: &Path, count: u64, columns: usize, rank: u64) -> Result<Self, WriteError> {
        let present = present(folder, count)?;
        let images = Images::Png { folder: folder.to_path_buf(), columns: columns.max(1), rank };
        Ok(Self { images, latents: None, present, written: 0 })
    }

    /// These images as `samples.npz` in `folder`, which exists. One at a time can do so.
    ///
    /// # Errors
    /// The file system's; and a file of that name, or with `.part` behind it, that begins otherwise.
    pub fn npz(folder: &Path, images: NpzImages) -> Result<Self, WriteError> {
        let (count, folder) = (images.labels.len(), folder.to_path_buf());
        let path = folder.join(Self::NPZ);
        if path.try_exists().map_err(WriteError::at(&path))? {
            return Ok(Self {
                images: Images::Npz { folder, writer: None },
                latents: None,
                present: vec![true; count],
                written: 0,
            });
        }
        let part = part_of(&path);
        let writer = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .and_then(|file| match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    Err(io::Error::other("another process writes this file; let it end, or give another --out"))
                }
                // Some network file systems have no locks, and can be written to all the same.
                Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
            })
            .and_then(|file| NpzWriter::open(file, images))
            .map_err(WriteError::at(&part))?;
        let present = (0..count).map(|index| (index as u64) < writer.rows()).collect();
        Ok(Self { images: Images::Npz { folder, writer: Some(writer) }, latents: None, present, written: 0 })
    }

    /// Writes the latents to `path` as well.
    ///
    /// # Errors
    /// As [`LatentsFile::open`].
    pub fn with_latents(self, path: &Path, latent: &LatentShape) -> Result<Self, LatentsError> {
        let kept = self.present.iter().filter(|present| **present).count() as u64;
        let latents = LatentsFile::open(path, self.present.len() as u64, kept, latent)?;
        Ok(Self { latents: Some(latents), ..self })
    }

    /// Which images are there, in order.
    pub fn present(&self) -> &[bool] {
        &self.present
    }

    /// Whether nothing is left to do.
    pub fn is_whole(&self) -> bool {
        let files = match &self.images {
            Images::Png { folder, .. } => !self.wants_grid() || folder.join("grid.png").exists(),
            Images::Npz { writer, .. } => writer.is_none(),
        };
        files && self.latents.as_ref().is_none_or(LatentsFile::is_whole) && self.present.iter().all(|present| *present)
    }

    fn wants_grid(&self) -> bool {
        self.present.len() as u64 <= Self::GRID_LIMIT
    }

    fn write(&mut self, index: u64, picture: &RgbImage) -> Result<(), WriteError> {
        match &mut self.images {
            Images::Png { folder, .. } => save(picture, &folder.join(file_name(index))),
            Images::Npz { folder, writer } => {
                let Some(writer) = writer else { return Ok(()) };
                let out_of_order = || io::Error::other(format!("image {index} behind {} rows", writer.rows()));
                let order = if writer.rows() == index { Ok(()) } else { Err(out_of_order()) };
                order.and_then(|()| writer.append(picture.as_raw())).map_err(WriteError::at(&folder.join(Self::NPZ)))
            }
        }
    }

    /// All images are there: what can only be made of all of them.
    fn complete(self) -> Result<(), BoxError> {
        let wants_grid = self.wants_grid();
        // First, so that a grid or an npz file under its own name says that nothing is left to do.
        if let Some(mut latents) = self.latents {
            latents.finish()?;
        }
        match self.images {
            Images::Png { folder, columns, rank } if wants_grid => {
                let read = |index| {
                    let path = folder.join(file_name(index));
                    let picture = image::open(&path).map_err(|source| WriteError { path, source });
                    picture.map(image::DynamicImage::into_rgb8)
                };
                let pictures = (0..self.present.len() as u64).map(read).collect::<Result<Vec<_>, _>>()?;
                // Two may find all images there at the same time.
                save_by(&grid(&pictures, columns), &folder.join("grid.png"), &format!("part{rank}"))?;
            }
            Images::Npz { folder, writer: Some(writer) } => {
                let path = folder.join(Self::NPZ);
                let finished = writer.finish().and_then(|mut file| {
                    let len = io::Seek::stream_position(&mut file)?;
                    file.set_len(len)?;
                    file.sync_all()?;
                    fs::rename(part_of(&path), &path)
                });
                finished.map_err(WriteError::at(&path))?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Sink for WriteSamples {
    type In = SamplePixels;
    type Output = Written;

    fn consume(&mut self, samples: SamplePixels) -> Result<ControlFlow<()>, BoxError> {
        let latents = samples.latents.axis_iter(Axis(0));
        for ((&index, picture), latents) in samples.request.indices.iter().zip(pictures(&samples)).zip(latents) {
            if self.present[index as usize] {
                continue;
            }
            // Before the image: where the image is, the latents are.
            if let Some(file) = &self.latents {
                file.write(index, latents.as_slice().ok_or("latents are not contiguous")?)?;
            }
            self.write(index, &picture)?;
            self.present[index as usize] = true;
            self.written += 1;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(mut self, _: End) -> Result<Written, BoxError> {
        if let Images::Png { folder, .. } = &self.images {
            // Others may have written meanwhile.
            self.present = present(folder, self.present.len() as u64)?;
        }
        let written = self.written;
        let there = self.present.iter().filter(|present| **present).count();
        if there == self.present.len() {
            self.complete()?;
        }
        Ok(Written { there: there as u64, written })
    }
}

/// Which of `count` images are in a folder.
fn present(folder: &Path, count: u64) -> Result<Vec<bool>, WriteError> {
    let there = |index| {
        let path = folder.join(file_name(index));
        path.try_exists().map_err(WriteError::at(&path))
    };
    (0..count).map(there).collect()
}

/// What image `index` is called in its folder.
pub fn file_name(index: u64) -> String {
    format!("{index:06}.png")
}

/// A file under this name is whole.
fn save(picture: &RgbImage, path: &Path) -> Result<(), WriteError> {
    save_by(picture, path, "part")
}

/// The same, called with this ending until it is whole.
fn save_by(picture: &RgbImage, path: &Path, ending: &str) -> Result<(), WriteError> {
    let part = PathBuf::from(format!("{}.{ending}", path.display()));
    picture
        .save_with_format(&part, ImageFormat::Png)
        .and_then(|()| Ok(fs::rename(&part, path)?))
        .map_err(|source| WriteError { path: path.to_path_buf(), source })
}

/// What `path` is called until it is whole.
fn part_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.part", path.display()))
}

/// The samples one by one.
pub fn pictures(samples: &SamplePixels) -> impl Iterator<Item = RgbImage> + '_ {
    samples.pixels.axis_iter(Axis(0)).map(interleave)
}

fn interleave(planes: ArrayView3<'_, u8>) -> RgbImage {
    let (_, height, width) = planes.dim();
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        image::Rgb([0, 1, 2].map(|channel| planes[[channel, y as usize, x as usize]]))
    })
}

/// Pictures of one size side by side, row by row, two white pixels apart.
pub fn grid(pictures: &[RgbImage], columns: usize) -> RgbImage {
    const GAP: u32 = 2;
    let (width, height) = pictures.first().map_or((0, 0), |p| p.dimensions());
    let columns = columns.clamp(1, pictures.len().max(1)) as u32;
    let rows = (pictures.len() as u32).div_ceil(columns);
    let side = |n: u32, size: u32| n * size + (n + 1) * GAP;
    let mut canvas = RgbImage::from_pixel(side(columns, width), side(rows, height), image::Rgb([255; 3]));
    for (i, picture) in pictures.iter().enumerate() {
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        let (x, y) = (side(column, width), side(row, height));
        image::imageops::replace(&mut canvas, picture, i64::from(x), i64::from(y));
    }
    canvas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_land_row_by_row() {
        let picture = |value| RgbImage::from_pixel(3, 2, image::Rgb([value; 3]));
        let grid = grid(&[picture(10), picture(20), picture(30)], 2);
        assert_eq!(grid.dimensions(), (2 * 3 + 6, 2 * 2 + 6));
        assert_eq!(grid.get_pixel(2, 2).0, [10; 3]);
        assert_eq!(grid.get_pixel(7, 3).0, [20; 3]);
        assert_eq!(grid.get_pixel(2, 6).0, [30; 3]);
        assert_eq!(grid.get_pixel(7, 6).0, [255; 3]);
    }

    fn samples(indices: &[u64]) -> SamplePixels {
        let n = indices.len();
        let value = |i: usize| indices[i];
        SamplePixels {
            request: SampleRequest { indices: indices.to_vec(), labels: vec![0; n] },
            latents: Array4::from_shape_fn((n, 1, 2, 2), |(i, _, y, x)| value(i) as f32 + (y * 2 + x) as f32 / 8.0),
            pixels: Array4::from_shape_fn((n, 3, 2, 3), |(i, c, y, x)| {
                (value(i) * 40) as u8 + (c * 6 + y * 3 + x) as u8
            }),
        }
    }

    const LATENT: LatentShape = LatentShape { channels: 1, height: 2, width: 2, classes: 3 };

    /// Files of the folder with their bytes.
    fn files(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
    }

    #[test]
    fn two_cannot_write_one_npz_file() {
        let folder = tempfile::tempdir().unwrap();
        let open = || WriteSamples::npz(folder.path(), NpzImages { height: 2, width: 3, labels: vec![0; 4] });
        let first = open().unwrap();
        assert!(open().unwrap_err().to_string().contains("samples.npz.part: another process writes this file"));
        drop(first);
        open().unwrap();
    }

    #[test]
    fn what_was_dropped_half_way_goes_on_to_the_same_files() {
        for npz in [false, true] {
            let open = |folder: &Path| {
                let images = NpzImages { height: 2, width: 3, labels: vec![0; 4] };
                let write = if npz { WriteSamples::npz(folder, images) } else { WriteSamples::png(folder, 4, 2, 0) };
                write.unwrap().with_latents(&folder.join("l.safetensors"), &LATENT).unwrap()
            };
            let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut write = open(whole.path());
            let _ = write.consume(samples(&[0, 1, 2, 3])).unwrap();
            assert_eq!(write.finish(End::Complete).unwrap().there, 4);

            let mut write = open(stopped.path());
            let _ = write.consume(samples(&[0, 1])).unwrap();
            assert!(!write.is_whole());
            assert_eq!(write.finish(End::Interrupted).unwrap(), Written { there: 2, written: 2 });
            let kept = files(stopped.path());
            assert!(!kept.contains_key("grid.png") && !kept.contains_key("samples.npz"), "{:?}", kept.keys());
            let mut write = open(stopped.path());
            assert_eq!(write.present(), [true, true, false, false]);
            let _ = write.consume(samples(&[0, 1, 2, 3])).unwrap();
            assert_eq!(write.finish(End::Complete).unwrap().there, 4);
            assert!(files(stopped.path()) == files(whole.path()), "npz: {npz}");
            assert!(!files(whole.path()).keys().any(|name| name.ends_with(".part")));
            assert!(open(whole.path()).is_whole());
        }
    }
}
