//! Reading: the header first, then only the ranges of the file that are asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use tch::{Kind, Tensor};
use xxhash_rust::xxh3::Xxh3;

use super::{CheckpointError, FORMAT_PREFIX, VERSION, io_error};
use crate::method::layout::ParameterSpec;
use crate::method::parameters::{in_order, views};

/// Bytes of the length that a safetensors file begins with.
const LENGTH: u64 = 8;
/// No header of ours is larger; what claims to be is damaged.
const MOST_HEADER: u64 = 100_000_000;

/// An open checkpoint whose header was read, and fits the length of the file.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the tensors begin.
    data_at: u64,
    pub(super) step: u64,
    pub(super) data: String,
    pub(super) arithmetic: String,
    pub(super) config: Option<String>,
}

impl CheckpointFile {
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let unreadable = |what: String| CheckpointError::Unreadable { path: path.to_path_buf(), what };
        let file = File::open(path).map_err(io_error(path))?;
        let len = file.metadata().map_err(io_error(path))?.len();
        let header_len = match len {
            0..LENGTH => return Err(unreadable(format!("it has {len} bytes"))),
            _ => {
                let mut bytes = [0; LENGTH as usize];
                file.read_exact_at(&mut bytes, 0).map_err(io_error(path))?;
                u64::from_le_bytes(bytes)
            }
        };
        if header_len > MOST_HEADER.min(len - LENGTH) {
            return Err(unreadable(format!("it is cut short in its header, at {len} bytes")));
        }
        let mut bytes = vec![0; header_len as usize];
        file.read_exact_at(&mut bytes, LENGTH).map_err(io_error(path))?;
        let header: Metadata =
            serde_json::from_slice(&bytes).map_err(|e| unreadable(format!("its header is damaged ({e})")))?;

        let marks = header.metadata().clone().unwrap_or_default();
        check_format(path, marks.get("format").map(String::as_str))?;
        let data_at = LENGTH + header_len;
        let expected = data_at + header.data_len() as u64;
        if len != expected {
            return Err(unreadable(format!("it has {len} bytes, and its header says {expected}")));
        }
        let step = marks.get("step").and_then(|step| step.parse().ok());
        let text = |key: &str| marks.get(key).cloned();
        Ok(Self {
            step: step.ok_or_else(|| unreadable("its header names no step".to_owned()))?,
            data: text("data").unwrap_or_default(),
            arithmetic: text("arithmetic").unwrap_or_default(),
            config: text("config"),
            path: path.to_path_buf(),
            file,
            data_at,
            header,
        })
    }

    /// Reads the tensors `<group>.<name>` into the views of a flat buffer, on any device.
    pub(super) fn fill(&self, group: &str, specs: &[ParameterSpec], flat: &mut Tensor) -> Result<(), CheckpointError> {
        let names: Vec<_> = specs.iter().map(|spec| format!("{group}.{}", spec.name)).collect();
        // Another model is no damage, so shapes come before checksums.
        let ranges = names.iter().zip(specs).map(|(name, spec)| self.range(name, &spec.shape));
        let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
        let (mut bytes, mut hash) = (Vec::new(), Xxh3::new());
        let views = views(specs, flat);
        for ((view, spec), (start, len)) in in_order(specs, &views).zip(specs).zip(ranges) {
            bytes.resize(len, 0);
            self.read(&mut bytes, start)?;
            hash.update(&bytes);
            view.shallow_clone().copy_(&Tensor::from_data_size(&bytes, &spec.shape, Kind::Float));
        }
        self.check(group, &hash)
    }

    /// Reads a tensor without dimensions.
    pub(super) fn fill_scalar(&self, name: &str, scalar: &mut Tensor) -> Result<(), CheckpointError> {
        let (start, len) = self.range(name, &[])?;
        let (mut bytes, mut hash) = (vec![0; len], Xxh3::new());
        self.read(&mut bytes, start)?;
        hash.update(&bytes);
        scalar.copy_(&Tensor::from_data_size(&bytes, &[], Kind::Float));
        self.check(name, &hash)
    }

    /// Where a tensor of this shape lies in the file, and its bytes.
    fn range(&self, name: &str, shape: &[i64]) -> Result<(u64, usize), CheckpointError> {
        let mismatch = |found: String| CheckpointError::Mismatch {
            path: self.path.clone(),
            name: name.to_owned(),
            found,
            expected: shape.to_vec(),
        };
        let info = self.header.info(name).ok_or_else(|| mismatch("missing".to_owned()))?;
        if !info.shape.iter().map(|&n| n as i64).eq(shape.iter().copied()) || info.dtype != Dtype::F32 {
            return Err(mismatch(format!("{:?} {:?}", info.shape, info.dtype)));
        }
        let (start, end) = info.data_offsets;
        Ok((self.data_at + start as u64, end - start))
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), CheckpointError> {
        self.file.read_exact_at(bytes, at).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                CheckpointError::Unreadable { path: self.path.clone(), what: "it became shorter meanwhile".to_owned() }
            }
            _ => io_error(&self.path)(source),
        })
    }

    fn check(&self, group: &str, hash: &Xxh3) -> Result<(), CheckpointError> {
        self.header.metadata().as_ref().map_or(Ok(()), |marks| check_values(&self.path, marks, group, hash))
    }
}

/// Whether a file is a checkpoint of a newer program, which is none of ours to replace or to remove.
pub(super) fn is_newer(path: &Path) -> bool {
    matches!(CheckpointFile::open(path), Err(CheckpointError::Newer { .. }))
}

/// Compares the hash of a group's values, in the layout's order, with what the metadata of the file state. Files of
/// programs that stored no checksums have nothing to check.
///
/// # Errors
/// [`CheckpointError::Unreadable`] where they differ.
pub(crate) fn check_values(
    path: &Path,
    marks: &HashMap<String, String>,
    group: &str,
    hash: &Xxh3,
) -> Result<(), CheckpointError> {
    match marks.get(&format!("xxh3.{group}")) {
        Some(stored) if *stored != format!("{:016x}", hash.digest()) => Err(CheckpointError::Unreadable {
            path: path.to_path_buf(),
            what: format!("the values of {group} are not those that were written (checksum)"),
        }),
        _ => Ok(()),
    }
}

/// Whether `format`, of the metadata of a file, is that of checkpoints which are read here.
///
/// # Errors
/// [`CheckpointError::Newer`] or [`CheckpointError::Unreadable`].
pub(crate) fn check_format(path: &Path, format: Option<&str>) -> Result<(), CheckpointError> {
    let known = format!("{FORMAT_PREFIX}{VERSION}");
    let version = format.and_then(|format| format.strip_prefix(FORMAT_PREFIX)?.parse::<u64>().ok());
    match (format, version) {
        (_, Some(version)) if version == VERSION => Ok(()),
        (Some(found), Some(version)) if version > VERSION => {
            Err(CheckpointError::Newer { path: path.to_path_buf(), found: found.to_owned(), known })
        }
        (Some(found), _) => {
            let what = format!("its format is {found:?}, expected {known:?}");
            Err(CheckpointError::Unreadable { path: path.to_path_buf(), what })
        }
        (None, _) => {
            let what = format!("its header names no format, expected {known:?}");
            Err(CheckpointError::Unreadable { path: path.to_path_buf(), what })
        }
    }
}
