//! Starting noise from a file, so that samples can be compared with another program's.
//!
//! A safetensors file with `noise`, f32 or f64 `[N, C, h, w]`, and perhaps `labels`, i64 `[N]`: image i starts from row i,
//! and has class `labels[i]`. Rows are read when they are needed; 50,000 of them are never in memory together.
//! The noise of the SDE's steps is not in the file: it is drawn from the seed, as always.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use xxhash_rust::xxh3::Xxh3;

use crate::method::config::LatentShape;

/// Larger headers are refused: ours has two tensors.
const MAX_HEADER: u64 = 1 << 20;

/// A file of noise cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The file system refused.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// It is not what is wanted.
    #[error("{path}: {reason}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// An open file of noise.
#[derive(Debug)]
pub struct NoiseFile {
    path: PathBuf,
    file: File,
    /// Where the first row begins.
    at: u64,
    double: bool,
    row: usize,
    labels: Option<Vec<i64>>,
}

impl NoiseFile {
    /// Opens `path`, which must have `count` rows or more, of latents of this shape.
    ///
    /// # Errors
    /// A file that cannot be read, is no safetensors file, lacks `noise`, or has tensors of another shape or dtype, too
    /// few rows, or a label outside `0 .. classes`.
    pub fn open(path: &Path, count: u64, latent: &LatentShape) -> Result<Self, NoiseError> {
        let io = |source| NoiseError::Io { path: path.to_owned(), source };
        let content = |reason: String| NoiseError::Content { path: path.to_owned(), reason };
        let file = File::open(path).map_err(io)?;
        let (header, data) = header(&file).map_err(io)?.map_err(|e| content(format!("not a safetensors file: {e}")))?;
        let info = |name: &str| header.info(name);
        let noise = info("noise").ok_or_else(|| {
            let names: Vec<_> = header.tensors().into_keys().collect();
            content(format!("has no tensor \"noise\", only {names:?}"))
        })?;
        let double = noise.dtype == Dtype::F64;
        if !double && noise.dtype != Dtype::F32 {
            return Err(content(format!("noise is of type {:?}, and must be F32 or F64", noise.dtype)));
        }
        let LatentShape { channels, height, width, classes } = *latent;
        let each = [channels, height, width].map(|side| side as usize);
        if noise.shape.len() != 4 || noise.shape[1..] != each {
            let [c, h, w] = each;
            return Err(content(format!("noise has shape {:?}, and the weights need [N, {c}, {h}, {w}]", noise.shape)));
        }
        let rows = noise.shape[0];
        if (rows as u64) < count {
            return Err(content(format!("holds noise for {rows} images, and --count asks for {count}")));
        }
        let labels =
            info("labels").map(|labels| read_labels(&file, data, labels, rows).map_err(content)).transpose()?;
        if let Some(wrong) = labels.iter().flatten().find(|label| !(0..classes).contains(*label)) {
            return Err(content(format!("a label is {wrong}, and the weights have classes 0 to {}", classes - 1)));
        }
        let row = each.iter().product();
        Ok(Self { path: path.to_owned(), at: data + noise.data_offsets.0 as u64, file, double, row, labels })
    }

    /// The class of each row, if the file says it.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    /// The noise of image `index`, `C h w` values.
    ///
    /// # Errors
    /// The file cannot be read, or holds a value that is not finite.
    pub fn row(&self, index: u64) -> Result<Vec<f64>, NoiseError> {
        let size = if self.double { 8 } else { 4 };
        let mut bytes = vec![0; self.row * size];
        let at = self.at + index * bytes.len() as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(|source| NoiseError::Io { path: self.path.clone(), source })?;
        let values: Vec<f64> = match self.double {
            true => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            false => bytes.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
        };
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => {
                let reason = format!("row {index} of noise holds {value}; every value must be finite");
                Err(NoiseError::Content { path: self.path.clone(), reason })
            }
            None => Ok(values),
        }
    }

    /// xxh3-64 of the whole file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn xxh3(&self) -> Result<u64, NoiseError> {
        let io = |source| NoiseError::Io { path: self.path.clone(), source };
        let (mut hash, mut buffer) = (Xxh3::new(), vec![0; 1 << 20]);
        let mut file = File::open(&self.path).map_err(io)?;
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => return Ok(hash.digest()),
                n => hash.update(&buffer[..n]),
            }
        }
    }
}

/// The header and where the tensors begin; the inner error says what is wrong with the header.
fn header(file: &File) -> io::Result<Result<(Metadata, u64), String>> {
    let file_len = file.metadata()?.len();
    if file_len < 8 {
        return Ok(Err(format!("it has {file_len} bytes")));
    }
    let mut len = [0; 8];
    file.read_exact_at(&mut len, 0)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER.min(file_len - 8) {
        return Ok(Err(format!("a header of {len} bytes in a file of {file_len}")));
    }
    let mut text = vec![0; len as usize];
    file.read_exact_at(&mut text, 8)?;
    Ok(match serde_json::from_slice::<Metadata>(&text) {
        Err(e) => Err(e.to_string()),
        Ok(header) if 8 + len + header.data_len() as u64 != file_len => {
            Err("it is cut short, or longer than stated".into())
        }
        Ok(header) => Ok((header, 8 + len)),
    })
}

fn read_labels(file: &File, data: u64, info: &TensorInfo, rows: usize) -> Result<Vec<i64>, String> {
    if info.dtype != Dtype::I64 || info.shape != [rows] {
        return Err(format!(
            "labels are {:?} {:?}, and must be I64 [{rows}], one for each row",
            info.dtype, info.shape
        ));
    }
    let mut bytes = vec![0; rows * 8];
    file.read_exact_at(&mut bytes, data + info.data_offsets.0 as u64).map_err(|e| e.to_string())?;
    Ok(bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    const LATENT: LatentShape = LatentShape { channels: 2, height: 3, width: 4, classes: 5 };

    fn open(tensors: &[(&str, Tensor)], count: u64) -> Result<NoiseFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.safetensors");
        Tensor::write_safetensors(tensors, &path).unwrap();
        NoiseFile::open(&path, count, &LATENT).map_err(|e| e.to_string())
    }

    fn noise(kind: Kind) -> Tensor {
        Tensor::arange(3 * 24, (kind, Device::Cpu)).view([3, 2, 3, 4])
    }

    #[test]
    fn rows_of_either_dtype_come_back_with_their_labels() {
        for kind in [Kind::Float, Kind::Double] {
            let labels = Tensor::from_slice(&[4i64, 0, 2]);
            let file = open(&[("labels", labels), ("noise", noise(kind))], 3).unwrap();
            assert_eq!(file.labels(), Some(&[4, 0, 2][..]));
            assert_eq!(file.row(2).unwrap(), (48..72).map(f64::from).collect::<Vec<_>>(), "{kind:?}");
        }
        assert_eq!(open(&[("noise", noise(Kind::Float))], 2).unwrap().labels(), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_a_sentence() {
        let refused = |tensors: &[(&str, Tensor)], count, part: &str| {
            let text = open(tensors, count).unwrap_err();
            assert!(text.contains("noise.safetensors: ") && text.contains(part), "{text}");
        };
        let float = || noise(Kind::Float);
        refused(&[("latents", float())], 1, "has no tensor \"noise\", only [\"latents\"]");
        refused(&[("noise", float())], 4, "holds noise for 3 images, and --count asks for 4");
        refused(
            &[("noise", float().transpose(2, 3).contiguous())],
            1,
            "[3, 2, 4, 3], and the weights need [N, 2, 3, 4]",
        );
        refused(&[("noise", noise(Kind::Half))], 1, "F32 or F64");
        let with = |labels: Tensor| [("noise", float()), ("labels", labels)];
        refused(&with(Tensor::from_slice(&[0i64, 1])), 1, "I64 [2], and must be I64 [3]");
        refused(&with(Tensor::from_slice(&[0i64, 5, 0])), 1, "a label is 5, and the weights have classes 0 to 4");
        let file = open(&[("noise", float() / 0.0)], 1).unwrap();
        assert!(file.row(1).unwrap_err().to_string().contains("must be finite"));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, "no safetensors file at all").unwrap();
        assert!(NoiseFile::open(&path, 1, &LATENT).unwrap_err().to_string().contains("not a safetensors file"));
    }
}
