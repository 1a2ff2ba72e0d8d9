//! Features in files: those of another network, to be compared with, and ours, for others to compare with.
//!
//! A file to read is `.npy`, or else safetensors: f32 `[N, D]`, N images in some order. If a safetensors file has `positions`,
//! i64 `[N]`, row i belongs to the sample at that position of the dataset. Without it row i belongs to sample i, so that
//! there must be a row for each: positions are the order of the shards, which `pipeline export` keeps.
//!
//! A file that is written has one tensor for each layer and time, named by [`tensor_name`], with `positions` and `labels`.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use tch::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::collect::Latents;
use super::layers::LayerFeatures;
use crate::exchange::npy::{Npy, NpyError};

/// Names of the tensors that are no features.
const POSITIONS: &str = "positions";
const LABELS: &str = "labels";

/// A file of features cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FeatureFileError {
    /// The file system refused.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A `.npy` file is not what is wanted.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// It is not what is wanted.
    #[error("{path}: {reason}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// Features by another network.
#[derive(Debug)]
pub struct GivenFeatures {
    path: PathBuf,
    /// Of the tensor, as far as it has one.
    pub name: Option<String>,
    /// xxh3-64 of the values, f32 in their order, little-endian.
    pub xxh3: u64,
    /// f32 `[N, D]`, finite.
    values: Tensor,
    positions: Option<Vec<i64>>,
}

impl GivenFeatures {
    /// Opens a file; `tensor` names one where it has several.
    ///
    /// # Errors
    /// [`FeatureFileError`]: also where a value is not finite.
    pub fn open(path: &Path, tensor: Option<&str>) -> Result<Self, FeatureFileError> {
        let content = |reason: String| FeatureFileError::Content { path: path.to_owned(), reason };
        let (name, shape, bytes, positions) = match path.extension() == Some(OsStr::new("npy")) {
            true => {
                let Npy { shape, bytes } = Npy::read(path)?;
                (None, shape, bytes, None)
            }
            false => {
                let file = fs::read(path).map_err(|source| FeatureFileError::Io { path: path.to_owned(), source })?;
                let (name, shape, bytes, positions) = from_safetensors(&file, tensor).map_err(content)?;
                (Some(name), shape, bytes, positions)
            }
        };
        let [rows, width] = shape[..] else {
            return Err(content(format!("features have shape {shape:?}, and must be [N, D], one row an image")));
        };
        if rows == 0 || width == 0 {
            return Err(content(format!("features have shape {shape:?}: there are none")));
        }
        let floats: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        if let Some(at) = floats.iter().position(|value| !value.is_finite()) {
            let value = floats[at];
            return Err(content(format!(
                "row {} of the features holds {value}; every value must be finite",
                at / width
            )));
        }
        let values = Tensor::from_slice(&floats).view([rows as i64, width as i64]);
        Ok(Self { path: path.to_owned(), name, xxh3: xxh3_64(&bytes), values, positions })
    }

    /// The rows of the samples at `positions` of a dataset of `samples`: f32 `[positions, D]`, on the CPU.
    ///
    /// # Errors
    /// Without positions of its own, the file must have a row for each sample; with them, one for each that is asked for.
    pub fn rows(&self, positions: &[u64], samples: u64) -> Result<Tensor, FeatureFileError> {
        let content = |reason: String| FeatureFileError::Content { path: self.path.clone(), reason };
        let rows: Vec<i64> = match &self.positions {
            Some(own) => {
                let of: BTreeMap<i64, i64> = own.iter().copied().zip(0..).collect();
                let find = |position: &u64| {
                    let found = i64::try_from(*position).ok().and_then(|position| of.get(&position).copied());
                    found.ok_or_else(|| {
                        let rows = own.len();
                        content(format!(
                            "none of its {rows} rows is of the sample at position {position}, which is measured; save features \
                             of the same data and --count"
                        ))
                    })
                };
                positions.iter().map(find).collect::<Result<_, _>>()?
            }
            None => {
                let rows = self.values.size()[0];
                if rows as u64 != samples {
                    return Err(content(format!(
                        "it has {rows} rows, and the dataset {samples} samples; row i must belong to sample i of the dataset, or \
                         a tensor `{POSITIONS}` say which"
                    )));
                }
                positions.iter().map(|position| *position as i64).collect()
            }
        };
        Ok(self.values.index_select(0, &Tensor::from_slice(&rows)))
    }
}

type Found = (String, Vec<usize>, Vec<u8>, Option<Vec<i64>>);

/// The error is what is wrong.
fn from_safetensors(file: &[u8], asked: Option<&str>) -> Result<Found, String> {
    let file = SafeTensors::deserialize(file).map_err(|e| format!("not a safetensors file: {e}"))?;
    let mut names: Vec<_> = file.names().into_iter().filter(|name| ![POSITIONS, LABELS].contains(name)).collect();
    names.sort_unstable();
    let name = match (asked, &names[..]) {
        (Some(asked), _) if names.contains(&asked) => asked,
        (Some(asked), _) => return Err(format!("has no features {asked:?}, only {names:?}")),
        (None, [only]) => only,
        (None, []) => return Err("has no features".to_owned()),
        (None, _) => return Err(format!("has several features; name one with --cknna-tensor: {names:?}")),
    };
    let tensor = file.tensor(name).map_err(|e| e.to_string())?;
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("{name} is of type {:?}, and must be F32", tensor.dtype()));
    }
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let positions = match file.tensor(POSITIONS) {
        Err(_) => None,
        Ok(own) if own.dtype() != Dtype::I64 || own.shape() != [rows] => {
            return Err(format!("{POSITIONS} are {:?} {:?}, and must be I64 [{rows}]", own.dtype(), own.shape()));
        }
        Ok(own) => Some(own.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect::<Vec<i64>>()),
    };
    let mut seen = HashSet::new();
    if let Some(twice) = positions.iter().flatten().find(|position| !seen.insert(**position)) {
        return Err(format!("{POSITIONS} name the sample at {twice} twice"));
    }
    Ok((name.to_owned(), tensor.shape().to_vec(), tensor.data().to_vec(), positions))
}

/// `layer.8.t.0.25`.
pub fn tensor_name(layer: i64, t: f64) -> String {
    format!("layer.{layer}.t.{t}")
}

/// Writes the features of `data`; the file has its name when it is whole.
///
/// # Errors
/// [`FeatureFileError::Io`], where the path cannot be written, or exists.
pub fn save(path: &Path, data: &Latents, features: &[LayerFeatures]) -> Result<(), FeatureFileError> {
    let io = |source| FeatureFileError::Io { path: path.to_owned(), source };
    if path.exists() {
        let reason = "exists already; remove it, or name another file".to_owned();
        return Err(FeatureFileError::Content { path: path.to_owned(), reason });
    }
    let positions: Vec<i64> = data.positions.iter().map(|position| *position as i64).collect();
    let mut tensors = vec![
        (LABELS.to_owned(), data.labels.to_device(Device::Cpu)),
        (POSITIONS.to_owned(), Tensor::from_slice(&positions)),
    ];
    let named = |f: &LayerFeatures| (tensor_name(f.layer, f.t), f.values.to_device(Device::Cpu).contiguous());
    tensors.extend(features.iter().map(named));
    let part = PathBuf::from(format!("{}.part", path.display()));
    let written = Tensor::write_safetensors(&tensors, &part).map_err(io::Error::other);
    let done = written.and_then(|()| fs::rename(&part, path));
    done.map_err(|source| {
        let _ = fs::remove_file(&part);
        io(source)
    })
}

#[cfg(test)]
mod tests {
    use tch::Kind;
    use tempfile::{TempDir, tempdir};

    use super::*;

    fn written(tensors: &[(&str, Tensor)]) -> (TempDir, PathBuf) {
        let folder = tempdir().unwrap();
        let path = folder.path().join("features.safetensors");
        Tensor::write_safetensors(tensors, &path).unwrap();
        (folder, path)
    }

    fn counted() -> Tensor {
        Tensor::arange(6, (Kind::Float, Device::Cpu)).view([3, 2])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn rows_are_those_of_samples_by_number_or_by_the_positions_beside_them() {
        let (_folder, path) = written(&[("dino", counted())]);
        let given = GivenFeatures::open(&path, None).unwrap();
        assert_eq!(given.name.as_deref(), Some("dino"));
        assert_eq!(values(&given.rows(&[2, 0], 3).unwrap()), [4.0, 5.0, 0.0, 1.0]);
        let text = given.rows(&[2, 0], 4).unwrap_err().to_string();
        assert!(text.contains("it has 3 rows, and the dataset 4 samples"), "{text}");

        let positions = Tensor::from_slice(&[7i64, 30, 2]);
        let (_folder, path) = written(&[("dino", counted()), ("positions", positions)]);
        let given = GivenFeatures::open(&path, Some("dino")).unwrap();
        assert_eq!(values(&given.rows(&[2, 7], 100).unwrap()), [4.0, 5.0, 0.0, 1.0]);
        let text = given.rows(&[7, 8], 100).unwrap_err().to_string();
        assert!(text.contains("none of its 3 rows is of the sample at position 8"), "{text}");
    }

    #[test]
    fn what_was_saved_is_read_again_and_nothing_is_overwritten() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("saved");
        let data = Latents {
            latents: Tensor::zeros([3, 1, 2, 2], (Kind::Float, Device::Cpu)),
            labels: Tensor::from_slice(&[1i64, 0, 1]),
            positions: vec![5, 1, 9],
        };
        let layer = |layer, t, scale: f64| LayerFeatures { layer, t, values: counted() * scale };
        let features = [layer(2, 0.0, 1.0), layer(2, 0.25, 2.0)];
        save(&path, &data, &features).unwrap();
        let given = GivenFeatures::open(&path, Some(&tensor_name(2, 0.25))).unwrap();
        assert_eq!(values(&given.rows(&[9, 5], 10).unwrap()), [8.0, 10.0, 0.0, 2.0]);
        let several = GivenFeatures::open(&path, None).unwrap_err().to_string();
        assert!(several.contains(r#"--cknna-tensor: ["layer.2.t.0", "layer.2.t.0.25"]"#), "{several}");
        let other = GivenFeatures::open(&path, Some("layer.3.t.0")).unwrap_err().to_string();
        assert!(other.contains("has no features \"layer.3.t.0\", only"), "{other}");
        assert!(save(&path, &data, &features).unwrap_err().to_string().contains("exists already"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
    }

    #[test]
    fn what_does_not_fit_is_refused_in_a_sentence() {
        let refused = |tensors: &[(&str, Tensor)], part: &str| {
            let (_folder, path) = written(tensors);
            let text = GivenFeatures::open(&path, None).unwrap_err().to_string();
            assert!(text.contains("features.safetensors: ") && text.contains(part), "{text}");
        };
        refused(&[("x", counted().to_kind(Kind::Double))], "x is of type F64, and must be F32");
        refused(&[("x", counted().view([3, 2, 1]))], "shape [3, 2, 1], and must be [N, D]");
        refused(&[("x", Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)))], "there are none");
        let broken = counted();
        let _ = broken.get(1).fill_(f64::NAN);
        refused(&[("x", broken)], "row 1 of the features holds NaN; every value must be finite");
        refused(&[("positions", Tensor::from_slice(&[1i64]))], "has no features");
        refused(&[("x", counted()), ("positions", Tensor::from_slice(&[1i64]))], "I64 [1], and must be I64 [3]");

        let folder = tempdir().unwrap();
        let path = folder.path().join("text");
        assert!(GivenFeatures::open(&path, None).unwrap_err().to_string().contains("No such file"));
        fs::write(&path, "no features").unwrap();
        assert!(GivenFeatures::open(&path, None).unwrap_err().to_string().contains("not a safetensors file"));
    }

    #[test]
    fn arrays_of_numpy_are_read_and_fortran_order_is_refused() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("features.npy");
        let mut bytes = crate::exchange::npy::header("<f4", &[3, 2]);
        bytes.extend((0..6u8).flat_map(|value| f32::from(value).to_le_bytes()));
        fs::write(&path, &bytes).unwrap();
        let given = GivenFeatures::open(&path, None).unwrap();
        assert_eq!((values(&given.rows(&[1], 3).unwrap()), &given.name), (vec![2.0, 3.0], &None));
        for (text, part) in
            [("'fortran_order': True ", "it is in Fortran order"), ("'descr': '<f8'", "dtype is \"<f8\"")]
        {
            let old = if part.contains("Fortran") { "'fortran_order': False" } else { "'descr': '<f4'" };
            let header = String::from_utf8_lossy(&bytes[10..128]).replace(old, text);
            let changed = [&bytes[..10], header.as_bytes(), &bytes[128..]].concat();
            fs::write(&path, changed).unwrap();
            let error = GivenFeatures::open(&path, None).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("C-ordered float32"), "{error}");
        }
    }
}
