//! Pictures to be measured: an array in an `.npz` file, or the image files of a folder.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, fs, io};

use pipeline::{BoxError, Emit, Regroup, Source, Stop};
use xxhash_rust::xxh3::Xxh3;

use crate::data::{Decoded, Pixels, Place};
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
    #[error("{place}: {reason}; mend or replace the file")]
    Undecodable {
        /// The file.
        place: Place,
        /// What is wrong with it.
        reason: String,
    },
    /// Pictures of two sizes.
    #[error(
        "{place}: {width}x{height} pixels, and those before it have {expected_width}x{expected_height}; features are of pictures of one size"
    )]
    Size {
        /// The file.
        place: Place,
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
            [_, _, _, channels] if channels != 3 => {
                format!("pictures are RGB, [N, H, W, 3], and its shape is {:?}", array.shape())
            }
            [_, _, _, 3] if array.is_fortran() => {
                "it is in Fortran order; save numpy.ascontiguousarray of it".to_owned()
            }
            [_, height, width, 3] if height * width > 0 && array.shape()[0] == 0 => {
                "it holds no pictures; save one row for each".to_owned()
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

/// What identifies pictures: xxh3 of rows and columns, and then of the values of all of them in their order. Clones are one and
/// the same, so that it can be asked when the pictures have gone by.
#[derive(Debug, Clone, Default)]
pub struct PictureHash(Arc<AtomicU64>);

impl PictureHash {
    /// Of all pictures that have gone by; 0 if none has.
    pub fn digest(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Regroup: decoded files, which have one size, to batches.
pub struct GatherPictures {
    hash: Xxh3,
    told: PictureHash,
    batch: usize,
    size: Option<(usize, usize)>,
    first: u64,
    count: usize,
    values: Vec<u8>,
}

impl fmt::Debug for GatherPictures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatherPictures").field("batch", &self.batch).field("size", &self.size).finish_non_exhaustive()
    }
}

impl GatherPictures {
    /// Batches of `batch`, which `told` is told of.
    pub fn of(batch: usize, told: PictureHash) -> Self {
        Self { hash: Xxh3::new(), told, batch: batch.max(1), size: None, first: 0, count: 0, values: Vec::new() }
    }

    fn send(&mut self, out: &mut Emit<'_, PictureBatch>) -> Result<(), BoxError> {
        let Some((height, width)) = self.size.filter(|_| self.count > 0) else { return Ok(()) };
        let (first, count) = (self.first, std::mem::take(&mut self.count));
        if self.first == 0 {
            [height, width].iter().for_each(|side| self.hash.update(&(*side as u64).to_le_bytes()));
        }
        self.first += count as u64;
        self.hash.update(&self.values);
        self.told.0.store(self.hash.digest(), Ordering::Release);
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
                return Err(PicturesError::Undecodable { place: image.place, reason }.into());
            }
        };
        let (expected_height, expected_width) = *self.size.get_or_insert((height, width));
        if (height, width) != (expected_height, expected_width) {
            let place = image.place;
            return Err(PicturesError::Size { place, width, height, expected_width, expected_height }.into());
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use pipeline::{End, Flow, Runtime, Sink};

    use super::*;
    use crate::encode::decode::Decode;
    use crate::encode::list::ListImages;
    use crate::exchange::npz::NpzFile;

    fn written(folder: &Path, descr: &str, shape: &[u64]) -> PathBuf {
        let path = folder.join("pictures.npz");
        let mut file = NpzFile::create(&path).unwrap();
        file.array("arr_0", descr, shape).unwrap();
        let width = u64::from(descr.as_bytes()[2] - b'0');
        file.append(&vec![7; (shape.iter().product::<u64>() * width) as usize]).unwrap();
        file.finish().unwrap();
        path
    }

    #[test]
    fn arrays_that_are_no_pictures_are_refused_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &Path| {
            let npz = Npz::open(path).map_err(|error| error.to_string())?;
            NpzPictures::open(&npz, 2).map(|pictures| pictures.count()).map_err(|error| error.to_string())
        };
        assert_eq!(open(&written(folder.path(), "|u1", &[3, 4, 5, 3])), Ok(3));
        for (descr, shape, part) in [
            ("|u1", &[3, 4, 5, 1][..], "pictures are RGB, [N, H, W, 3], and its shape is [3, 4, 5, 1]"),
            ("|u1", &[3, 3, 4, 5], "pictures are RGB, [N, H, W, 3], and its shape is [3, 3, 4, 5]"),
            ("|u1", &[4, 5, 3], "pictures are [N, H, W, 3], and its shape is [4, 5, 3]"),
            ("|u1", &[3, 0, 5, 3], "pictures are [N, H, W, 3], and its shape is [3, 0, 5, 3]"),
            ("|u1", &[0, 4, 5, 3], "it holds no pictures; save one row for each"),
            ("<f4", &[3, 4, 5, 3], "pictures are uint8 0 to 255, and its dtype is \"<f4\"; save arr_0 as uint8"),
        ] {
            let error = open(&written(folder.path(), descr, shape)).unwrap_err();
            assert!(error.contains("pictures.npz: array \"arr_0\": ") && error.contains(part), "{error} lacks {part}");
        }
        // The header says it, and the values lie in whatever order.
        let path = written(folder.path(), "|u1", &[3, 4, 5, 3]);
        let bytes = fs::read(&path).unwrap();
        let at = bytes.windows(5).position(|window| window == b"False").unwrap();
        let fortran = [&bytes[..at], b"True ", &bytes[at + 5..]].concat();
        fs::write(&path, &fortran).unwrap();
        assert!(open(&path).unwrap_err().contains("it is in Fortran order; save numpy.ascontiguousarray of it"));
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = open(&path).unwrap_err();
        assert!(error.contains("pictures.npz: "), "{error}");
    }

    /// Counts pictures.
    #[derive(Default)]
    struct Count(usize);

    impl Sink for Count {
        type In = PictureBatch;
        type Output = usize;

        fn consume(&mut self, batch: PictureBatch) -> Result<ControlFlow<()>, BoxError> {
            assert_eq!(batch.first, self.0 as u64);
            self.0 += batch.count;
            Ok(ControlFlow::Continue(()))
        }

        fn finish(self, _: End) -> Result<usize, BoxError> {
            Ok(self.0)
        }
    }

    fn gathered(folder: &Path, batch: usize) -> Result<u64, String> {
        let (hash, files) = (PictureHash::default(), list(folder).unwrap());
        let count = files.len();
        let flow = Flow::from(ListImages::all(files))
            .then(Decode::skipping)
            .regroup(GatherPictures::of(batch, hash.clone()))
            .into(Count::default());
        let finished = flow.run(&Runtime::default()).map_err(|error| error.to_string())?;
        assert_eq!(finished.output, count);
        Ok(hash.digest())
    }

    #[test]
    fn the_hash_is_of_the_pixels_and_not_of_names_or_batches() {
        let folder = tempfile::tempdir().unwrap();
        let save = |name: &str, value: u8| {
            let picture = image::RgbImage::from_pixel(6, 4, image::Rgb([value, 3, 5]));
            picture.save(folder.path().join(name)).unwrap();
        };
        let of = |batch| gathered(folder.path(), batch).unwrap();
        (0..5).for_each(|i| save(&format!("{i:06}.png"), 10 * i));
        let first = of(2);
        assert_eq!([of(1), of(5)], [first, first]);
        save("000003.png", 31);
        assert_ne!(of(2), first, "the same names with another pixel");
        save("000003.png", 30);
        fs::rename(folder.path().join("000004.png"), folder.path().join("last.png")).unwrap();
        assert_eq!(of(2), first, "the same pixels under another name");
        save("000005.png", 0);
        assert_ne!(of(2), first, "one picture more");
    }

    #[test]
    fn files_that_do_not_fit_are_named_by_their_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        image::RgbImage::new(6, 4).save(at("0.png")).unwrap();
        image::RgbImage::new(5, 4).save(at("1.png")).unwrap();
        let refused = |part: &str| {
            let error = gathered(folder.path(), 2).unwrap_err();
            assert!(error.contains(&format!("{}: {part}", at("1.png").display())), "{error}");
        };
        refused("5x4 pixels, and those before it have 6x4");
        fs::write(at("1.png"), "no picture").unwrap();
        refused("");
    }
}
