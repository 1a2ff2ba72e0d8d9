//! An `.npz` file as it is written: array by array, each front to back. It gets its name when it is whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::NpzError;
use crate::exchange::npy;
use crate::exchange::zip::{CRC_AT, Member, directory};

/// A file that is not finished; one that is dropped is removed.
#[derive(Debug)]
pub struct NpzFile {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    members: Vec<Member>,
    /// Of the last member.
    checksum: Hasher,
    /// Bytes of the last member that are still to come.
    left: u64,
    /// Bytes written.
    at: u64,
}

impl NpzFile {
    /// Begins `<path>.part`, over one that is left from before.
    ///
    /// # Errors
    /// [`NpzError::Write`].
    pub fn create(path: &Path) -> Result<Self, NpzError> {
        let temporary = PathBuf::from(format!("{}.part", path.display()));
        let file = File::create(&temporary).map_err(|source| NpzError::Write { path: path.to_owned(), source })?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let (members, checksum) = (Vec::new(), Hasher::new());
        Ok(Self { path: path.to_owned(), temporary, out, members, checksum, left: 0, at: 0 })
    }

    /// Begins the array `name` with values of NumPy's dtype `descr` (`|u1`, `<f4`, `<f8`, ..), in C order. The one before is
    /// whole.
    ///
    /// # Errors
    /// [`NpzError::Write`].
    pub fn array(&mut self, name: &str, descr: &str, shape: &[u64]) -> Result<(), NpzError> {
        self.close_member().map_err(|source| self.failed(source))?;
        let header = npy::header(descr, shape);
        let width = u64::from(descr.as_bytes().last().map_or(1, |digit| digit - b'0'));
        self.left = header.len() as u64 + shape.iter().product::<u64>() * width;
        let member = Member { name: format!("{name}.npy"), size: self.left, crc: 0, at: self.at };
        self.put(&member.local_header()).map_err(|source| self.failed(source))?;
        self.members.push(member);
        self.append(&header)
    }

    /// The next values of the array, little-endian.
    ///
    /// # Errors
    /// [`NpzError::Write`]; `InvalidInput` for more bytes than the array has.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), NpzError> {
        if bytes.len() as u64 > self.left {
            let reason = format!("{} bytes more, where {} are left of the array", bytes.len(), self.left);
            return Err(self.failed(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        self.checksum.update(bytes);
        self.left -= bytes.len() as u64;
        self.put(bytes).map_err(|source| self.failed(source))
    }

    /// Ends the archive, which then has its name.
    ///
    /// # Errors
    /// [`NpzError::Write`].
    pub fn finish(mut self) -> Result<(), NpzError> {
        self.end().map_err(|source| self.failed(source))
    }

    fn end(&mut self) -> io::Result<()> {
        self.close_member()?;
        let directory = directory(&self.members, self.at);
        self.put(&directory)?;
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.path)
    }

    /// Puts the checksum of the last member into its header.
    fn close_member(&mut self) -> io::Result<()> {
        let Some(member) = self.members.last_mut() else { return Ok(()) };
        if self.left > 0 {
            let reason = format!("{} bytes of {} are missing", self.left, member.name);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        member.crc = std::mem::take(&mut self.checksum).finalize();
        self.out.seek(SeekFrom::Start(member.at + CRC_AT as u64))?;
        self.out.write_all(&member.crc.to_le_bytes())?;
        self.out.seek(SeekFrom::Start(self.at))?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn failed(&self, source: io::Error) -> NpzError {
        NpzError::Write { path: self.path.clone(), source }
    }
}

impl Drop for NpzFile {
    fn drop(&mut self) {
        // A finished one has another name.
        let _ = fs::remove_file(&self.temporary);
    }
}
