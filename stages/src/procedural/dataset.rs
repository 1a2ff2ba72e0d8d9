//! A folder of procedural images, one sub-folder for each class.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::random::Random;
use super::{CLASSES, image};

/// Quality of the JPEG files: as photographs usually are.
const QUALITY: u8 = 92;

/// Sides of the images, in pixels.
const SIDES: (u64, u64) = (180, 420);

/// Why the images could not be written.
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

/// Writes `per_class` images of each class as `dir/<class>/<class>-00000.jpg`, with sides of 180 to 420 pixels and
/// mixed aspect ratios. Names, sizes and pixels depend on `seed` and the place in the class alone, so a larger
/// `per_class` only adds files. Returns how many files there are. Existing files of these names are overwritten.
///
/// # Errors
/// [`ProceduralError`] with the path.
pub fn write_dataset(dir: &Path, per_class: usize, seed: u64) -> Result<usize, ProceduralError> {
    for (class, name) in CLASSES.iter().enumerate() {
        let folder = dir.join(name);
        fs::create_dir_all(&folder).map_err(|source| ProceduralError::Write { path: folder.clone(), source })?;
        for index in 0..per_class {
            // One number for each image; its low bits also serve as the image's own seed.
            let mut random = Random::new(seed, (class as u64) << 40 | index as u64);
            let mut side = || (SIDES.0 + random.below(SIDES.1 - SIDES.0 + 1)) as usize;
            let (width, height) = (side(), side());
            let path = folder.join(format!("{name}-{index:05}.jpg"));
            write_jpeg(&path, &image(class, random.bits(), width, height), width, height)?;
        }
    }
    Ok(per_class * CLASSES.len())
}

fn write_jpeg(path: &Path, rgb: &[u8], width: usize, height: usize) -> Result<(), ProceduralError> {
    let file = File::create(path).map_err(|source| ProceduralError::Write { path: path.to_owned(), source })?;
    let mut encoder = JpegEncoder::new_with_quality(BufWriter::new(file), QUALITY);
    encoder
        .encode(rgb, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|source| ProceduralError::Encode { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_for_the_same_seed_and_decode_to_mixed_sizes() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(write_dataset(first.path(), 2, 5).unwrap(), 2 * CLASSES.len());
        write_dataset(second.path(), 1, 5).unwrap();
        let mut sizes = std::collections::BTreeSet::new();
        for name in CLASSES {
            let file = Path::new(name).join(format!("{name}-00000.jpg"));
            let bytes = fs::read(first.path().join(&file)).unwrap();
            assert_eq!(bytes, fs::read(second.path().join(&file)).unwrap());
            let decoded = image::load_from_memory(&bytes).unwrap();
            for side in [decoded.width(), decoded.height()] {
                assert!((180..=420).contains(&side));
            }
            sizes.insert((decoded.width(), decoded.height()));
        }
        assert!(sizes.len() > CLASSES.len() / 2, "{sizes:?}");
    }

    #[test]
    fn a_jpeg_is_close_to_the_image_that_it_was_made_from() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.jpg");
        let rgb = image(0, 1, 64, 48);
        write_jpeg(&path, &rgb, 64, 48).unwrap();
        let decoded = image::open(&path).unwrap().to_rgb8();
        let error: f64 = rgb.iter().zip(decoded.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        assert!(error / (rgb.len() as f64) < 6.0, "{}", error / rgb.len() as f64);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = write_dataset(file.path(), 1, 0).unwrap_err().to_string();
        assert!(error.contains(&file.path().join(CLASSES[0]).display().to_string()), "{error}");
    }
}
