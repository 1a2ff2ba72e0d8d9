//! Brings the encoded bytes of one image: a file of a folder, or a member of a WebDataset tar.
//!
//! [`Anywhere`] takes whichever implementation of [`Fetch`] fits. Members are read by the `webdataset` family's tar
//! parser, which is given no more than the bytes of one sample, as [`shards::tar`] found them. The parser takes sizes
//! from headers alone, so a member whose size stands in a PAX record only (as for 8 GiB and more) is an error.
//!
//! Not here: what the bytes are (`decode`), which images there are (`list`), and how tars are indexed.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use webdataset_shard::TarEntries;

use crate::data::{ImageRef, Place};

/// Largest file that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1 << 30;

/// Most tars that a worker keeps open.
pub(super) const MAX_OPEN: usize = 4;

/// Bytes that are read at a time from a tar: one call to the system brings most images of 256 pixels whole.
const BUFFER: usize = 64 << 10;

/// A way to the bytes of an image.
pub(super) trait Fetch {
    /// Replaces `bytes` with the encoded image: at most [`MAX_FILE`] + 1 bytes, where the last one says that the image
    /// is too large.
    ///
    /// The error says which place it is about, and has the kind of what caused it.
    fn fetch(&mut self, image: &ImageRef, bytes: &mut Vec<u8>) -> io::Result<()>;
}

/// Fetches images from wherever they are.
#[derive(Debug, Default)]
pub(super) struct Anywhere {
    files: Files,
    members: Members,
}

impl Fetch for Anywhere {
    fn fetch(&mut self, image: &ImageRef, bytes: &mut Vec<u8>) -> io::Result<()> {
        match &image.place {
            Place::File(_) => self.files.fetch(image, bytes),
            Place::Member { .. } => self.members.fetch(image, bytes),
        }
    }
}

/// Fetches files of a folder.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Files;

impl Fetch for Files {
    fn fetch(&mut self, image: &ImageRef, bytes: &mut Vec<u8>) -> io::Result<()> {
        let Place::File(path) = &image.place else { return Err(misplaced(&image.place, "files")) };
        bytes.clear();
        let mut read = || File::open(path)?.take(MAX_FILE + 1).read_to_end(bytes);
        read().map(drop).map_err(|source| unreadable(&image.place, &source))
    }
}

/// Fetches members of tars, and keeps the last [`MAX_OPEN`] tars open.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// The one used last at the end.
    open: Vec<(Arc<PathBuf>, BufReader<File>)>,
}

impl Members {
    fn tar(&mut self, path: &Arc<PathBuf>) -> io::Result<&mut BufReader<File>> {
        let entry = match self.open.iter().position(|(open, _)| open == path) {
            Some(at) => self.open.remove(at),
            None => {
                let file = BufReader::with_capacity(BUFFER, File::open(path.as_path())?);
                if self.open.len() == MAX_OPEN {
                    self.open.remove(0);
                }
                (Arc::clone(path), file)
            }
        };
        Ok(&mut self.open.push_mut(entry).1)
    }
}

impl Fetch for Members {
    fn fetch(&mut self, image: &ImageRef, bytes: &mut Vec<u8>) -> io::Result<()> {
        let Place::Member { tar, range, name } = &image.place else {
            return Err(misplaced(&image.place, "members of tars"));
        };
        let mut read = || {
            let len = range.end.saturating_sub(range.start);
            if len > MAX_FILE {
                let reason = format!("the member has {len} bytes and at most {MAX_FILE} are read; make it smaller");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
            }
            let file = self.tar(tar)?;
            file.seek(SeekFrom::Start(range.start))?;
            match TarEntries::new(file.take(len)).next() {
                Some(Ok(entry)) if base(&entry.name) == base(name) => {
                    *bytes = entry.data;
                    Ok(())
                }
                Some(Err(error)) => {
                    let reason = format!("{error}; was the tar changed after it was indexed? encode anew");
                    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
                }
                Some(Ok(_)) | None => {
                    let reason = "no such member where it was; the tar was changed after it was indexed: encode anew";
                    Err(io::Error::new(io::ErrorKind::NotFound, reason))
                }
            }
        };
        read().map_err(|source| unreadable(&image.place, &source))
    }
}

/// Behind the last slash. Parsers differ in what they put before a name, in old kinds of tars.
fn base(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, base)| base)
}

fn unreadable(place: &Place, source: &io::Error) -> io::Error {
    io::Error::new(source.kind(), format!("{place}: cannot be read: {source}"))
}

fn misplaced(place: &Place, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{place}: the images of this source are {what}, and this is none"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::ops::Range;
    use std::path::Path;

    use shards::tar;

    use super::*;

    fn image(place: Place) -> ImageRef {
        ImageRef { position: 0, source_index: 0, key: String::new(), label: 0, place }
    }

    fn member(tar: &Arc<PathBuf>, range: Range<u64>, name: &str) -> ImageRef {
        image(Place::Member { tar: Arc::clone(tar), range, name: name.into() })
    }

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    /// A tar of `samples` samples; image i has i + 1 bytes of value i, and the order of the members alternates.
    fn write(path: &Path, samples: u8) {
        let mut bytes = Vec::new();
        for i in 0..samples {
            let image = entry(&format!("a/{i:03}.png"), &vec![i; usize::from(i) + 1]);
            let rest = [entry(&format!("a/{i:03}.cls"), b"1"), entry(&format!("a/{i:03}.json"), b"{}")].concat();
            bytes.extend(if i % 2 == 0 { [image, rest] } else { [rest, image] }.concat());
        }
        bytes.extend([0; 1024]);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn every_member_of_an_index_is_fetched_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = Arc::new(dir.path().join("a.tar"));
        write(&path, 200);
        let samples = tar::index(&path).unwrap().samples;
        let (mut members, mut bytes) = (Members::default(), vec![9; 9]);
        for i in (0..200).map(|i| i * 77 % 200) {
            members.fetch(&member(&path, samples[i].image_range.clone(), &samples[i].image), &mut bytes).unwrap();
            assert_eq!(bytes, vec![i as u8; i + 1]);
        }
    }

    #[test]
    fn only_a_few_tars_stay_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut members = Members::default();
        let paths: Vec<_> = (0..3 * MAX_OPEN).map(|i| Arc::new(dir.path().join(format!("{i}.tar")))).collect();
        for path in paths.iter().chain(&paths) {
            write(path, 1);
            members.fetch(&member(path, 0..3072, "a/000.png"), &mut Vec::new()).unwrap();
        }
        assert_eq!(
            members.open.iter().map(|(path, _)| path).collect::<Vec<_>>(),
            paths[2 * MAX_OPEN..].iter().collect::<Vec<_>>()
        );
        members.fetch(&member(&paths[2 * MAX_OPEN], 0..3072, "a/000.png"), &mut Vec::new()).unwrap();
        assert_eq!(members.open.last().unwrap().0, paths[2 * MAX_OPEN], "used last");
        assert_eq!(members.open.len(), MAX_OPEN);
    }

    #[test]
    fn errors_name_the_tar_and_the_member() {
        let dir = tempfile::tempdir().unwrap();
        let path = Arc::new(dir.path().join("a.tar"));
        write(&path, 2);
        let fetch = |image: &ImageRef| Members::default().fetch(image, &mut Vec::new()).unwrap_err();
        let missing = Arc::new(dir.path().join("none.tar"));
        OpenOptions::new().write(true).open(&*path).unwrap().set_len(5600).unwrap();
        let cases = [
            (io::ErrorKind::NotFound, member(&missing, 0..3072, "a/000.png")),
            (io::ErrorKind::NotFound, member(&path, 0..3072, "a/001.png")),
            (io::ErrorKind::NotFound, member(&path, 8192..9000, "a/000.png")),
            (io::ErrorKind::InvalidData, member(&path, 100..3072, "a/000.png")),
            (io::ErrorKind::InvalidData, member(&path, 5120..6144, "a/001.png")),
            (io::ErrorKind::FileTooLarge, member(&path, 0..MAX_FILE + 1, "a/000.png")),
            (io::ErrorKind::Unsupported, image(Place::File("a.tar: a/000.png".into()))),
        ];
        for (kind, image) in cases {
            let error = fetch(&image);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with(&image.place.to_string()), "{error}");
        }
    }

    #[test]
    fn a_file_is_fetched_whole_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        fs::write(&path, [1, 2, 3]).unwrap();
        let mut bytes = vec![9; 9];
        Files.fetch(&image(Place::File(path.clone())), &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3]);
        fs::remove_file(&path).unwrap();
        let error = Files.fetch(&image(Place::File(path.clone())), &mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        let member = member(&Arc::new(path), 0..512, "a.png");
        assert_eq!(Files.fetch(&member, &mut bytes).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
