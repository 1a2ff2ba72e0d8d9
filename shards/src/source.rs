//! Where a reader takes its bytes from: the file, a mapping of it, or a copy of it in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Place, ShardError};
#[cfg(target_os = "linux")]
use crate::map::{self, Map};

/// How a reader gets at the bytes of a file. The choice never changes what is read, only how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Io {
    /// [`Io::Mmap`] for a file on a local file system of a Linux machine, [`Io::Pread`] otherwise: on a network file system a
    /// page fault is a round trip.
    #[default]
    Auto,
    /// The file is mapped and read in place, guarded against being cut short. [`Io::Pread`] where the machine is not Linux.
    Mmap,
    /// One `pread` per frame, into scratch: for every file system.
    Pread,
    /// The whole file is read into memory when it is opened.
    Ram,
}

/// An open file of known length.
#[derive(Debug)]
pub(crate) enum Source {
    Pread(File),
    #[cfg(target_os = "linux")]
    Mmap(Map),
    Ram(Vec<u8>),
}

impl Source {
    pub(crate) fn open(path: &Path, file: File, len: u64, io: Io) -> Result<Self, ShardError> {
        let wrong = |source| ShardError::Io { path: path.to_owned(), action: "hold it in memory", source };
        let len = usize::try_from(len).map_err(|error| wrong(io::Error::other(error)))?;
        match io {
            #[cfg(target_os = "linux")]
            Io::Mmap => Map::open(&file, len).map(Self::Mmap).map_err(wrong),
            #[cfg(target_os = "linux")]
            Io::Auto if map::is_local(&file) => {
                // Reading always works, so a refusal (an address space limit, too many mappings) is not worth an error here.
                Ok(Map::open(&file, len).map_or_else(|_| Self::Pread(file), Self::Mmap))
            }
            #[cfg(not(target_os = "linux"))]
            Io::Mmap => Ok(Self::Pread(file)),
            Io::Auto | Io::Pread => Ok(Self::Pread(file)),
            Io::Ram => {
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(len).map_err(|error| wrong(error.into()))?;
                bytes.resize(len, 0);
                read_exact_at(path, &file, &mut bytes, 0, Place::Body)?;
                Ok(Self::Ram(bytes))
            }
        }
    }

    /// `len` bytes from `off`, in place where they are in memory, otherwise in `buffer`. The range lies in the file as it was
    /// when it was opened.
    pub(crate) fn bytes<'a>(
        &'a self,
        path: &Path,
        off: u64,
        len: usize,
        buffer: &'a mut Vec<u8>,
        place: Place,
    ) -> Result<&'a [u8], ShardError> {
        let shrank = || ShardError::Shrank { path: path.to_owned(), place };
        match self {
            Self::Pread(file) => {
                if buffer.len() < len {
                    buffer.resize(len, 0);
                }
                let target = buffer.get_mut(..len).ok_or_else(shrank)?;
                read_exact_at(path, file, target, off, place)?;
                Ok(target)
            }
            #[cfg(target_os = "linux")]
            Self::Mmap(map) => {
                let bytes = self.in_place(off, len).ok_or_else(shrank)?;
                map.read_ahead(off as usize, len);
                Ok(bytes)
            }
            Self::Ram(_) => self.in_place(off, len).ok_or_else(shrank),
        }
    }

    /// `len` bytes from `off` where they are in memory; `None` where they are not, or outside of the file. Nothing is read
    /// ahead: the caller may want only some of them.
    pub(crate) fn in_place(&self, off: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(off).ok()?;
        match self {
            Self::Pread(_) => None,
            #[cfg(target_os = "linux")]
            Self::Mmap(map) => map.bytes(start, len),
            Self::Ram(bytes) => bytes.get(start..start.checked_add(len)?),
        }
    }

    /// Passes `result` on, which was made from bytes of this source, unless some of them may have been zeros in place of
    /// what could not be read.
    pub(crate) fn unless_faulted<T>(
        &self,
        path: &Path,
        place: Place,
        result: Result<T, ShardError>,
    ) -> Result<T, ShardError> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Mmap(map) if map.faulted() => Err(ShardError::Shrank { path: path.to_owned(), place }),
            _ => result,
        }
    }
}

fn read_exact_at(path: &Path, file: &File, out: &mut [u8], off: u64, place: Place) -> Result<(), ShardError> {
    file.read_exact_at(out, off).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => ShardError::Shrank { path: path.to_owned(), place },
        _ => ShardError::Io { path: path.to_owned(), action: "read it", source },
    })
}
