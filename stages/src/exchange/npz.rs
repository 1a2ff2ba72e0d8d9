//! Arrays in NumPy's `.npz` format, a zip archive of `.npy` files: what `numpy.savez` and `numpy.savez_compressed` write;
//! [`NpzFile`] writes one.
//!
//! Samples of ImageNet's size are one array of 10 GB in a zip64 archive, so an array is read in parts, front to back, and nothing
//! is held but the part. Stored and deflated members, versions 1 to 3 of the header, little-endian `u1`, `f4`, `f8`, `i4` and
//! `i8`; Fortran order for whole matrices. Pickled objects are refused. A member's checksum is looked at where it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::DeflateDecoder;
use xxhash_rust::xxh3::Xxh3;

pub use self::write::NpzFile;
use super::npy::{Header, MAGIC, MAX_HEADER, parse_header};
use super::weights::ArchiveError;
use super::weights::archive::{Member, all_members};

mod write;

/// Why an archive or one of its arrays cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The system refused.
    #[error("{path}: cannot be read: {source}; check the path and its permissions", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("{path}: cannot be written: {source}; give a path in a folder with room and permission to write", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is no zip archive, or a damaged one.
    #[error("{path}: {source}", path = .path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ArchiveError,
    },
    /// It has no array of this name.
    #[error("{path}: has no array {name:?}, but {found}", path = .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        name: String,
        /// The names that are there.
        found: String,
    },
    /// An array is not what is expected.
    #[error("{path}: array {name:?}: {reason}", path = .path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// An archive of arrays.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    file: Arc<File>,
    members: BTreeMap<String, Member>,
}

impl Npz {
    /// Reads the directory of the archive, and no array.
    ///
    /// # Errors
    /// [`NpzError::Io`], [`NpzError::Archive`].
    pub fn open(path: &Path) -> Result<Self, NpzError> {
        let file = File::open(path).map_err(|source| NpzError::Io { path: path.to_owned(), source })?;
        let members = all_members(&file).map_err(|source| NpzError::Archive { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// Names of the arrays, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(|name| name.strip_suffix(".npy").unwrap_or(name))
    }

    /// Whether there is an array of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    /// xxh3 of the names, lengths and checksums of all arrays: what the file holds, however it is packed.
    pub fn identity(&self) -> u64 {
        let mut hash = Xxh3::new();
        for (name, member) in &self.members {
            hash.update(name.as_bytes());
            hash.update(&member.len.to_le_bytes());
            hash.update(&member.crc32.to_le_bytes());
        }
        hash.digest()
    }

    /// The array `name`, of which the header is read.
    ///
    /// # Errors
    /// [`NpzError`], also where the array's length is not that of its shape.
    pub fn array(&self, name: &str) -> Result<NpzArray, NpzError> {
        let member = [format!("{name}.npy"), name.to_owned()].into_iter().find_map(|key| self.members.get(&key));
        let Some(member) = member else {
            let found = self.names().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            return Err(NpzError::Missing { path: self.path.clone(), name: name.to_owned(), found });
        };
        NpzArray::open(Arc::clone(&self.file), *member, self.path.clone(), name)
    }
}

/// Part of a file, from a position of its own.
struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut into[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

enum Bytes {
    Stored(BufReader<Part>),
    Deflated(DeflateDecoder<BufReader<Part>>),
}

impl Read for Bytes {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stored(bytes) => bytes.read(into),
            Self::Deflated(bytes) => bytes.read(into),
        }
    }
}

/// One array, read from its beginning to its end.
pub struct NpzArray {
    path: PathBuf,
    name: String,
    header: Header,
    /// Bytes of a value.
    width: usize,
    bytes: Bytes,
    /// Of what was read so far.
    checksum: crc32fast::Hasher,
    expected: u32,
    /// Bytes of values that are left.
    left: u64,
}

impl std::fmt::Debug for NpzArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NpzArray")
            .field("path", &self.path)
            .field("name", &self.name)
            .field("header", &self.header)
            .finish()
    }
}

impl NpzArray {
    fn open(file: Arc<File>, member: Member, path: PathBuf, name: &str) -> Result<Self, NpzError> {
        let part =
            BufReader::with_capacity(1 << 18, Part { file, at: member.start, end: member.start + member.stored_len });
        let bytes = match member.deflated {
            true => Bytes::Deflated(DeflateDecoder::new(part)),
            false => Bytes::Stored(part),
        };
        let header = Header { descr: String::new(), fortran_order: false, shape: Vec::new() };
        let checksum = crc32fast::Hasher::new();
        let mut array =
            Self { path, name: name.to_owned(), header, width: 1, bytes, checksum, expected: member.crc32, left: 0 };
        let begun = array.read_header()?;
        let Header { descr, shape, .. } = &array.header;
        array.width = match descr.as_str() {
            "|u1" | "<u1" | "u1" => 1,
            "<f4" | "<i4" => 4,
            "<f8" | "<i8" => 8,
            "|O" => return Err(array.wrong("it holds pickled Python objects; save plain numbers".to_owned())),
            other => {
                return Err(array.wrong(format!("its dtype {other:?} is not one that is read (u1, f4, f8, i4, i8)")));
            }
        };
        let len = shape.iter().try_fold(array.width as u64, |bytes, &dim| bytes.checked_mul(dim as u64));
        let held = member.len.saturating_sub(begun);
        if len != Some(held) {
            return Err(array.wrong(format!("its shape {shape:?} is not that of the {held} bytes that it holds")));
        }
        array.left = held;
        Ok(array)
    }

    /// Reads up to the first value; how many bytes that were.
    fn read_header(&mut self) -> Result<u64, NpzError> {
        let mut start = [0; 8];
        self.fill(&mut start)?;
        if !start.starts_with(MAGIC) {
            return Err(self.wrong("this is no .npy file".to_owned()));
        }
        let mut len = [0; 4];
        let width = match start[6] {
            1 => 2,
            2 | 3 => 4,
            version => return Err(self.wrong(format!("version {version} of the .npy format is unknown"))),
        };
        self.fill(&mut len[..width])?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_HEADER {
            return Err(self.wrong(format!("its header says that it has {len} bytes, more than {MAX_HEADER}")));
        }
        let mut text = vec![0; len];
        self.fill(&mut text)?;
        let text = String::from_utf8(text).map_err(|_| self.wrong("its header is not text".to_owned()))?;
        self.header = parse_header(&text).map_err(|reason| self.wrong(reason))?;
        Ok((8 + width + len) as u64)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), NpzError> {
        self.bytes.read_exact(into).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.wrong("it is cut short; copy or make the file again".to_owned()),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                self.wrong(format!("it cannot be inflated ({source}); copy or make the file again"))
            }
            _ => NpzError::Io { path: self.path.clone(), source },
        })?;
        self.checksum.update(into);
        Ok(())
    }

    /// An error about this array.
    pub fn wrong(&self, reason: String) -> NpzError {
        NpzError::Array { path: self.path.clone(), name: self.name.clone(), reason }
    }

    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// NumPy's name of the dtype.
    pub fn descr(&self) -> &str {
        &self.header.descr
    }

    /// Whether the first dimension is the one whose values lie side by side.
    pub fn is_fortran(&self) -> bool {
        self.header.fortran_order
    }

    /// Reads the next values as they are stored; `into` is no longer than what is left.
    ///
    /// # Errors
    /// [`NpzError`]; where the array ends also if the bytes have another checksum than the archive says.
    pub fn read(&mut self, into: &mut [u8]) -> Result<(), NpzError> {
        self.fill(into)?;
        self.left -= into.len() as u64;
        if self.left == 0 && self.checksum.clone().finalize() != self.expected {
            return Err(self.wrong("its checksum is wrong; copy or make the file again".to_owned()));
        }
        Ok(())
    }

    /// All values of an array of numbers as f64 in C order.
    ///
    /// # Errors
    /// [`NpzError`], and Fortran order of more than two dimensions.
    pub fn into_f64(mut self) -> Result<Vec<f64>, NpzError> {
        let mut bytes = vec![0; self.left as usize];
        self.read(&mut bytes)?;
        let values: Vec<f64> = match self.descr() {
            "<f4" => bytes.as_chunks().0.iter().map(|value| f64::from(f32::from_le_bytes(*value))).collect(),
            "<f8" => bytes.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value)).collect(),
            "<i4" => bytes.as_chunks().0.iter().map(|value| f64::from(i32::from_le_bytes(*value))).collect(),
            "<i8" => bytes.as_chunks().0.iter().map(|value| i64::from_le_bytes(*value) as f64).collect(),
            _ => bytes.iter().map(|value| f64::from(*value)).collect(),
        };
        match (self.is_fortran(), self.shape()) {
            (false, _) | (true, [] | [_]) => Ok(values),
            (true, &[rows, columns]) => {
                Ok((0..rows * columns).map(|at| values[at % columns * rows + at / columns]).collect())
            }
            (true, shape) => {
                Err(self.wrong(format!("Fortran order of a shape {shape:?} is not read; save it in C order")))
            }
        }
    }
}

#[cfg(test)]
mod tests;
