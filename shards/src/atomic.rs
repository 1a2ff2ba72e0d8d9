//! A file that appears under its name only when it is whole: temporary sibling, fsync, rename, fsync of the folder.
//!
//! A crash at any point leaves either no file or the whole file, and at worst a `.tmp` that the next writer takes over.
//! Two processes that write the same file are kept apart by a lock on the temporary file, which the kernel drops when a
//! process dies; on file systems without locks that protection is missing, the rest holds.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::ShardError;

/// The file being written. Dropping it without [`AtomicFile::commit`] removes the temporary file.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    file: File,
    temp: PathBuf,
    path: PathBuf,
    committed: bool,
}

/// What [`AtomicFile::commit`] does with a file that already has the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and the commit is an error.
    Keep,
    /// It is replaced in one step.
    Replace,
}

impl AtomicFile {
    /// Begins `path` as `path.tmp`.
    pub(crate) fn create(path: &Path) -> Result<Self, ShardError> {
        let mut temp = path.as_os_str().to_owned();
        temp.push(".tmp");
        let temp = PathBuf::from(temp);
        let io = |action| move |source| ShardError::Io { path: path.to_owned(), action, source };
        let create = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&temp);
        let file = create().map_err(io("create its .tmp file"))?;
        let busy = || Err(ShardError::Busy { path: path.to_owned() });
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return busy(),
            // A file system without locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // Between open and lock another writer may have committed: then our handle is on the file that now has the final
        // name, and must not be truncated.
        let (held, named) = (file.metadata().map_err(io("inspect its .tmp file"))?, fs::metadata(&temp));
        if !named.is_ok_and(|named| (named.dev(), named.ino()) == (held.dev(), held.ino())) {
            return busy();
        }
        file.set_len(0).map_err(io("empty its .tmp file"))?;
        Ok(Self { file, temp, path: path.to_owned(), committed: false })
    }

    /// The open temporary file, for reading and writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The final name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the contents durable and gives the file its name.
    pub(crate) fn commit(mut self, existing: Existing) -> Result<(), ShardError> {
        let io = |action| {
            let path = self.path.clone();
            move |source| ShardError::Io { path, action, source }
        };
        if existing == Existing::Keep && exists(&self.path)? {
            return Err(ShardError::Exists { path: self.path.clone() });
        }
        self.file.sync_all().map_err(io("write it to the disk"))?;
        fs::rename(&self.temp, &self.path).map_err(io("rename its .tmp file"))?;
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(io("write its folder to the disk"))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing is lost if this fails: a stale temporary file is taken over by the next writer.
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// Whether anything has this name, a broken link included.
pub(crate) fn exists(path: &Path) -> Result<bool, ShardError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ShardError::Io { path: path.to_owned(), action: "inspect it", source }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_that_is_dropped_leaves_nothing_and_one_that_is_committed_leaves_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(AtomicFile::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = AtomicFile::create(&path).unwrap();
        file.file().write_all(b"whole").unwrap();
        assert!(!path.exists());
        file.commit(Existing::Keep).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stale_temporary_file_is_taken_over_and_emptied() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.tmp"), b"left by a crash").unwrap();
        let file = AtomicFile::create(&dir.path().join("a")).unwrap();
        file.commit(Existing::Keep).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"");
    }

    #[test]
    fn a_second_writer_is_refused_and_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let first = AtomicFile::create(&path).unwrap();
        first.file().write_all(b"first").unwrap();
        assert!(matches!(AtomicFile::create(&path), Err(ShardError::Busy { .. })));
        first.commit(Existing::Keep).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn an_existing_file_is_kept_or_replaced_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"old").unwrap();
        let kept = AtomicFile::create(&path).unwrap().commit(Existing::Keep);
        assert!(matches!(kept, Err(ShardError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        AtomicFile::create(&path).unwrap().commit(Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
