//! Pictures to be measured: an array in an `.npz` file, or the image files of a folder.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{fs, io};

use pipeline::{BoxError, Emit, Regroup, Source, Stop};

use crate::data::{Decoded, Pixels};
use crate::encode::list::ImageList;
use crate::exchange::npz::{Npz, NpzArray, NpzError};

/// Some pictures of one size in their order: u8 `[count, height, width, 3]`, RGB, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureBatch {
    /// Number of the first, from 0.
    pub first: u64,
    /// How many.
    pub count: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `count * height * width * 3` values.
    pub values: Vec<u8>,
}

/// Why there are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum PicturesError {
    /// A folder cannot be listed.
    #[error("{path}: cannot be listed: {source}; check the path and its permissions", path = .path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Nothing to measure.
    #[error("{path}: holds no image files (.png, .jpg, .jpeg); give a folder of pictures, or an .npz file with arr_0", path = .path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be decoded.
    #[error("{key}: {reason}; mend or replace the file")]
    Undecodable {
        /// The file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Pictures of two sizes.
    #[error(
        "{key}: {width}x{height} pixels, and those before it have {expected_width}x{expected_height}; features are of pictures of one size"
    )]
    Size {
        /// The file.
        key: String,
        /// Its columns.
        width: usize,
        /// Its rows.
        height: usize,
        /// Columns of the others.
        expected_width: usize,
        /// Rows of the others.
        expected_height: usize,
    },
}

/// The image files of a folder and of those in it, sorted by their paths; `grid.png` of `pipeline sample` is none.
///
/// # Errors
/// [`PicturesError::List`], [`PicturesError::Empty`].
pub fn list(folder: &Path) -> Result<ImageList, PicturesError> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(path) = folders.pop() {
        let failed = |source| PicturesError::List { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            let is_picture = ["png", "jpg", "jpeg"].contains(&extension.as_str()) && entry.file_name() != "grid.png";
            if let (true, Ok(key)) = (is_picture, path.strip_prefix(folder)) {
                files.push((key.to_string_lossy().into_owned(), 0));
            }
        }
    }
    if files.is_empty() {
        return Err(PicturesError::Empty { path: folder.to_owned() });
    }
    files.sort();
    Ok(ImageList::of_files(folder, files, vec![String::new()]))
}

/// Source: `arr_0` of an `.npz` file, read as it is needed.
#[derive(Debug)]
pub struct NpzPictures {
    array: NpzArray,
    batch: usize,
    left: Range<u64>,
}

impl NpzPictures {
    /// In batches of `batch`.
    ///
    /// # Errors
    /// [`NpzError`]; also where `arr_0` is not u8 `[N, H, W, 3]` in C order with an N, H and W of at least 1.
    pub fn open(npz: &Npz, batch: usize) -> Result<Self, NpzError> {
        let array = npz.array("arr_0")?;
        let reason = match *array.shape() {
            _ if array.descr().trim_start_matches(['|', '<']) != "u1" => {
                format!("pictures are uint8 0 to 255, and its dtype is {:?}; save arr_0 as uint8", array.descr())
            }
            [_, _, _, 3] if array.is_fortran() => {
                "it is in Fortran order; save numpy.ascontiguousarray of it".to_owned()
            }
            [count, height, width, 3] if count * height * width > 0 => {
                let left = 0..array.shape()[0] as u64;
                return Ok(Self { array, batch: batch.max(1), left });
            }
            _ => format!("pictures are [N, H, W, 3], and its shape is {:?}", array.shape()),
        };
        Err(array.wrong(reason))
    }

    /// Number of pictures.
    pub fn count(&self) -> u64 {
        self.array.shape()[0] as u64
    }

    /// Columns and rows of each.
    pub fn size(&self) -> (u64, u64) {
        let shape = self.array.shape();
        (shape[2] as u64, shape[1] as u64)
    }
}

impl Source for NpzPictures {
    type Item = PictureBatch;

    fn next(&mut self, _: &Stop) -> Result<Option<PictureBatch>, BoxError> {
        let [_, height, width, _] = *self.array.shape() else { unreachable!("`open` has looked at the shape") };
        let count = self.batch.min((self.left.end - self.left.start) as usize);
        if count == 0 {
            return Ok(None);
        }
        let mut values = vec![0; count * height * width * 3];
        self.array.read(&mut values)?;
        let first = self.left.start;
        self.left.start += count as u64;
        Ok(Some(PictureBatch { first, count, height, width, values }))
    }
}

/// Regroup: decoded files, which have one size, to batches.
#[derive(Debug)]
pub struct GatherPictures {
    batch: usize,
    size: Option<(usize, usize)>,
    first: u64,
    count: usize,
    values: Vec<u8>,
}

impl GatherPictures {
    /// Batches of `batch`.
    pub fn of(batch: usize) -> Self {
        Self { batch: batch.max(1), size: None, first: 0, count: 0, values: Vec::new() }
    }

    fn send(&mut self, out: &mut Emit<'_, PictureBatch>) -> Result<(), BoxError> {
        let Some((height, width)) = self.size.filter(|_| self.count > 0) else { return Ok(()) };
        let (first, count) = (self.first, std::mem::take(&mut self.count));
        self.first += count as u64;
        out.send(PictureBatch { first, count, height, width, values: std::mem::take(&mut self.values) })?;
        Ok(())
    }
}

impl Regroup for GatherPictures {
    type In = Decoded;
    type Out = PictureBatch;

    fn push(&mut self, item: Decoded, out: &mut Emit<'_, PictureBatch>) -> Result<(), BoxError> {
        let Pixels { image, height, width, rgb, .. } = match item {
            Decoded::Pixels(pixels) => pixels,
            Decoded::Skipped { image, reason } => {
                return Err(PicturesError::Undecodable { key: image.key, reason }.into());
            }
        };
        let (expected_height, expected_width) = *self.size.get_or_insert((height, width));
        if (height, width) != (expected_height, expected_width) {
            let key = image.key;
            return Err(PicturesError::Size { key, width, height, expected_width, expected_height }.into());
        }
        self.values.extend(rgb);
        self.count += 1;
        if self.count == self.batch {
            self.send(out)?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Emit<'_, PictureBatch>) -> Result<(), BoxError> {
        self.send(out)
    }
}
