//! Samples to disk: one PNG an image, and all of them in one grid.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::{ImageError, RgbImage};
use ndarray::{Array4, ArrayView3, Axis};
use pipeline::{BoxError, End, Sink};

use super::request::SampleRequest;

/// Decoded samples: u8 0..=255, `[B, 3, H, W]`.
#[derive(Debug)]
pub struct SamplePixels {
    /// Which images.
    pub request: SampleRequest,
    /// RGB, planar.
    pub pixels: Array4<u8>,
}

/// Writes `<folder>/000000.png ..` and, for a small number of images, `<folder>/grid.png`.
#[derive(Debug)]
pub struct WriteSamples {
    folder: PathBuf,
    columns: usize,
    grid: Option<Vec<RgbImage>>,
    written: u64,
}

/// A picture could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct WriteError {
    path: PathBuf,
    source: ImageError,
}

impl WriteSamples {
    /// More images than this make no grid.
    pub const GRID_LIMIT: u64 = 400;

    /// Makes `folder` and removes samples of an earlier command from it: it holds exactly what this one makes. `count`
    /// images are expected; a grid has `columns` of them in a row.
    ///
    /// # Errors
    /// A folder with anything else in it, which is left as it is; and the system's own.
    pub fn create(folder: &Path, count: u64, columns: usize) -> Result<Self, std::io::Error> {
        fs::create_dir_all(folder)?;
        let mut earlier = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let sample = name.strip_suffix(".png").is_some_and(|stem| stem.len() >= 6 && stem.parse::<u64>().is_ok());
            if !sample && name != "grid.png" && name != "samples.json" {
                let reason =
                    format!("it holds {name}, which is no sample; give a folder that is new or of samples only");
                return Err(std::io::Error::other(reason));
            }
            earlier.push(path);
        }
        for path in earlier {
            fs::remove_file(path)?;
        }
        let grid = (count <= Self::GRID_LIMIT).then(Vec::new);
        Ok(Self { folder: folder.to_path_buf(), columns: columns.max(1), grid, written: 0 })
    }
}

impl Sink for WriteSamples {
    type In = SamplePixels;
    type Output = u64;

    fn consume(&mut self, samples: SamplePixels) -> Result<ControlFlow<()>, BoxError> {
        for (index, picture) in samples.request.indices.iter().zip(pictures(&samples)) {
            save(&picture, &self.folder.join(file_name(*index)))?;
            self.written += 1;
            if let Some(grid) = &mut self.grid {
                grid.push(picture);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The number of images written.
    fn finish(self, _: End) -> Result<u64, BoxError> {
        if let Some(pictures) = self.grid.filter(|pictures| !pictures.is_empty()) {
            save(&grid(&pictures, self.columns), &self.folder.join("grid.png"))?;
        }
        Ok(self.written)
    }
}

/// What image `index` is called in its folder.
pub fn file_name(index: u64) -> String {
    format!("{index:06}.png")
}

fn save(picture: &RgbImage, path: &Path) -> Result<(), WriteError> {
    picture.save(path).map_err(|source| WriteError { path: path.to_path_buf(), source })
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
}
