//! Sampled latents to a safetensors file, a row at a time.
//!
//! The number of rows is known, so the header comes first and row i has its place from the beginning. While rows are
//! missing the file is `<name>.part`; it gets its name when the last one is in.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::method::config::LatentShape;

/// A file of latents cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LatentsError {
    /// The file system refused.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another file is in the way.
    #[error("{path} exists already; remove it, or name another file", path = .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Images were sampled, and their latents are gone.
    #[error("{path} with the latents of the images so far is missing or is another file's; sample into a new folder",
            path = .path.display())]
    Lost {
        /// `<name>.part`.
        path: PathBuf,
    },
}

/// `latents`, f32 `[N, C, h, w]`, scaled as the network predicts them.
#[derive(Debug)]
pub struct LatentsFile {
    path: PathBuf,
    part: PathBuf,
    /// `None` if the file is whole already.
    file: Option<File>,
    /// Where the first row begins.
    at: u64,
    /// Bytes of a row.
    row: u64,
}

impl LatentsFile {
    /// Begins `path` with room for `count` rows, or goes on with `<path>.part` where `kept` of the images are there.
    ///
    /// # Errors
    /// As [`LatentsError`] says.
    pub fn open(path: &Path, count: u64, kept: u64, latent: &LatentShape) -> Result<Self, LatentsError> {
        let part = PathBuf::from(format!("{}.part", path.display()));
        let io = |source| LatentsError::Io { path: part.clone(), source };
        let LatentShape { channels, height, width, .. } = *latent;
        let row = (channels * height * width * 4) as u64;
        let header = header([count, channels as u64, height as u64, width as u64], count * row);
        let (at, len) = (header.len() as u64, header.len() as u64 + count * row);
        let holds = |path: &Path| -> io::Result<bool> {
            let (file, mut found) = (File::open(path)?, vec![0; header.len()]);
            Ok(file.metadata()?.len() == len && file.read_exact_at(&mut found, 0).is_ok() && found == header)
        };
        let file = if path.try_exists().map_err(io)? {
            if kept < count || !holds(path).map_err(io)? {
                return Err(LatentsError::Exists { path: path.to_owned() });
            }
            None
        } else if kept == 0 {
            if let Some(folder) = part.parent() {
                fs::create_dir_all(folder).map_err(io)?;
            }
            let file = File::create(&part).map_err(io)?;
            file.write_all_at(&header, 0).and_then(|()| file.set_len(len)).map_err(io)?;
            Some(file)
        } else {
            if !holds(&part).unwrap_or(false) {
                return Err(LatentsError::Lost { path: part });
            }
            Some(File::options().write(true).open(&part).map_err(io)?)
        };
        Ok(Self { path: path.to_owned(), part, file, at, row })
    }

    /// Whether nothing is left to do.
    pub fn is_whole(&self) -> bool {
        self.file.is_none()
    }

    /// Writes the latents of image `index`, `C h w` values.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, index: u64, values: &[f32]) -> Result<(), LatentsError> {
        let Some(file) = &self.file else { return Ok(()) };
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all_at(&bytes, self.at + index * self.row)
            .map_err(|source| LatentsError::Io { path: self.part.clone(), source })
    }

    /// All rows are in: the file gets its name.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(&mut self) -> Result<(), LatentsError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        file.sync_all()
            .and_then(|()| fs::rename(&self.part, &self.path))
            .map_err(|source| LatentsError::Io { path: self.path.clone(), source })
    }
}

fn header(shape: [u64; 4], bytes: u64) -> Vec<u8> {
    let tensor = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [0, bytes] });
    let mut text = serde_json::json!({ "latents": tensor }).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    const LATENT: LatentShape = LatentShape { channels: 1, height: 2, width: 2, classes: 3 };

    #[test]
    fn rows_written_in_any_order_and_after_a_resume_are_one_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l.safetensors");
        let first = LatentsFile::open(&path, 3, 0, &LATENT).unwrap();
        first.write(2, &[8.0, 9.0, 10.0, 11.0]).unwrap();
        first.write(0, &[0.0, 1.0, 2.0, 3.0]).unwrap();
        drop(first);
        assert!(!path.exists());
        let mut second = LatentsFile::open(&path, 3, 2, &LATENT).unwrap();
        second.write(1, &[4.0, 5.0, 6.0, 7.0]).unwrap();
        second.finish().unwrap();
        let stored = Tensor::read_safetensors(&path).unwrap();
        assert!(stored.len() == 1 && stored[0].0 == "latents" && stored[0].1.size() == [3, 1, 2, 2]);
        let expected: Vec<f32> = (0u8..12).map(f32::from).collect();
        assert_eq!(Vec::<f32>::try_from(stored[0].1.flatten(0, -1)).unwrap(), expected);

        assert!(LatentsFile::open(&path, 3, 3, &LATENT).unwrap().is_whole());
        let refused = |count, kept| LatentsFile::open(&path, count, kept, &LATENT).unwrap_err().to_string();
        assert!(refused(3, 0).contains("exists already") && refused(4, 4).contains("exists already"));
        fs::remove_file(&path).unwrap();
        assert!(refused(3, 2).contains("sample into a new folder"));
    }
}
