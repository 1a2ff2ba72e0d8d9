//! An index of a WebDataset tar: where each sample lies, without reading the images.
//!
//! A WebDataset tar is a plain tar of files named `key.extension`; files that follow one another and share the key are
//! a sample, here an image (`jpg`, `jpeg` or `png`) and its class (`cls`, a decimal number), in any order, and whatever
//! else. This module reads the headers, and the few bytes of each `cls`, and gives for every sample the bytes of the
//! tar that hold it. So sample i is found without reading what is before it, and the images themselves are left to
//! whoever decodes them.
//!
//! **Formats.** v7, ustar with prefix, GNU (long names, base-256 sizes) and PAX (`path` and `size` of extended headers; global headers are
//! passed over). Every header's checksum is verified. Folders, links and other types are passed over and counted, sparse
//! files are refused. A tar may end without the two zero blocks where a member ends, as GNU tar accepts it too.
//!
//! **Grouping** is WebDataset's: the key is the path up to the first dot of the base name, the extension is the rest in lower case. Files
//! without an extension, and files with a component that begins with a dot or with `__` (`._x.jpg` and `__MACOSX` of
//! macOS, `__meta__`), are passed over and counted; they do not separate what is on either side of them.
//!
//! **Not here**: compressed tars, in which nothing can be found by position, and streams that cannot seek.
//!
//! A size that a header declares is compared with the length of the file before it is used, names and extended headers
//! are at most 1 MiB, and a sample is remembered with its key alone, so memory is bounded by the length of the file:
//! about 100 bytes and the key for each sample, which takes at least 2,048 bytes of the tar.

mod error;
mod header;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::num::IntErrorKind;
use std::ops::Range;
use std::path::Path;

use self::header::{BLOCK, BadChecksum, Header, Kind, Pax, until_nul};
use crate::layout::MAX_KEY_LEN;

pub use self::error::{TarError, TarFault};

/// Longest GNU long name or PAX extended header that is read, in bytes.
pub const MAX_RECORD_LEN: u64 = 1 << 20;

/// Longest `cls` member that can be a number, in bytes.
pub const MAX_LABEL_LEN: u64 = 64;

/// The samples of a tar in the tar's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarIndex {
    /// At least one; ranges ascend and do not overlap, keys are unique.
    pub samples: Vec<TarSample>,
    /// Members that belong to no sample: folders, links, hidden files, files without an extension.
    pub ignored: usize,
}

/// Where one sample lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarSample {
    /// Path of the members up to the first dot of the base name: 1 to [`MAX_KEY_LEN`] bytes.
    pub key: String,
    /// Bytes of the tar, multiples of 512: from the first header, with the long name before it, to the end of the last
    /// member's padding. By itself it is a tar without end mark.
    pub range: Range<u64>,
    /// Full name of the member with the image.
    pub image: String,
    /// Bytes of the tar that hold this member: from its first header, with the long name before it, to the end of its
    /// padding.
    pub image_range: Range<u64>,
    /// Class index, 0 or more.
    pub label: i32,
}

/// Indexes the tar at `path`.
///
/// Fails with the first thing that is wrong, see [`TarFault`].
pub fn index(path: &Path) -> Result<TarIndex, TarError> {
    let error = |fault| TarError { path: path.to_owned(), offset: 0, fault };
    let io = |source| error(TarFault::Io { source });
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(error(TarFault::NotAFile));
    }
    index_of(file, metadata.len(), path)
}

/// Indexes a tar of `len` bytes that begins at position 0 of `file`. `path` is for messages.
///
/// Fails with the first thing that is wrong, see [`TarFault`].
pub fn index_of(file: impl Read + Seek, len: u64, path: &Path) -> Result<TarIndex, TarError> {
    // A page holds a cls member and the header of the next image.
    let mut reader = Reader { file: BufReader::with_capacity(4096, file), at: 0, len: len.min(i64::MAX as u64), path };
    reader.seek(0)?;
    let mut grouping = Grouping { samples: Vec::new(), open: None, ignored: 0 };
    while let Some(member) = reader.next_member()? {
        grouping.add(member, &mut reader)?;
    }
    grouping.finish(&reader)
}

/// A member with its name resolved and its size checked; the reader stands at its data.
#[derive(Debug)]
struct Member {
    /// From the first header that belongs to it to the end of the padding.
    range: Range<u64>,
    /// Bytes of data.
    size: u64,
    /// Name as it is in the tar; `None` for what is not a regular file.
    name: Option<Vec<u8>>,
}

struct Reader<'a, R> {
    file: BufReader<R>,
    at: u64,
    len: u64,
    path: &'a Path,
}

impl<R: Read + Seek> Reader<'_, R> {
    /// The next member, or `None` at the end of the archive.
    fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut start = self.at;
        let mut records = 0_usize;
        let mut long_name = None;
        let mut pax = Pax::default();
        loop {
            let at = self.at;
            if at == self.len && records == 0 {
                // Without the end mark, which GNU tar accepts too.
                return if at == 0 { Err(self.error(0, TarFault::NotATar)) } else { Ok(None) };
            }
            let Some(header) = self.header(start)? else {
                // Records without the member that they are about.
                return if records == 0 { Ok(None) } else { Err(self.truncated(start)) };
            };
            let kind = header.kind();
            if kind == Kind::Sparse {
                return Err(self.error(at, TarFault::Sparse));
            }
            let declared = match kind {
                Kind::Empty => 0,
                _ => header.size().ok_or_else(|| self.error(at, TarFault::Number { field: "size" }))?,
            };
            match kind {
                Kind::LongName => long_name = Some(until_nul(&self.record(start, declared)?).to_vec()),
                Kind::Extended => {
                    let record = self.record(start, declared)?;
                    pax = Pax::parse(&record).ok_or_else(|| self.error(at, TarFault::Pax))?;
                    if pax.sparse {
                        return Err(self.error(at, TarFault::Sparse));
                    }
                }
                Kind::Skipped => {
                    let end = self.end_of(start, declared)?;
                    self.seek(end)?;
                    // Between a record and its member it lies in the range; before them it need not.
                    if records == 0 {
                        start = end;
                        continue;
                    }
                }
                Kind::Sparse | Kind::Regular | Kind::Empty | Kind::Other => {
                    let size = if kind == Kind::Empty { 0 } else { pax.size.unwrap_or(declared) };
                    let end = self.end_of(start, size)?;
                    let name = (kind == Kind::Regular).then(|| pax.path.or(long_name).unwrap_or_else(|| header.name()));
                    return Ok(Some(Member { range: start..end, size, name }));
                }
            }
            records += 1;
        }
    }

    /// Reads and verifies a header; `None` at the end mark. `start` is where the member begins.
    fn header(&mut self, start: u64) -> Result<Option<Header>, TarError> {
        let at = self.at;
        let mut header = Header([0; BLOCK]);
        if self.len - at < BLOCK as u64 {
            // Too short for a tar: a compressed file is named even then.
            let rest = (self.len - at) as usize;
            self.read(start, &mut header.0[..rest])?;
            let fault = if at == 0 { not_a_tar(&header) } else { TarFault::Truncated { len: self.len } };
            return Err(self.error(start, fault));
        }
        self.read(start, &mut header.0)?;
        if header.is_zero() {
            self.expect_zeros()?;
            return Ok(None);
        }
        header.verify().map_err(|bad| {
            let fault = match bad {
                _ if at == 0 => not_a_tar(&header),
                BadChecksum::NotANumber => TarFault::Number { field: "checksum" },
                BadChecksum::Differs { got, stored } => TarFault::Checksum { got, stored },
            };
            self.error(at, fault)
        })?;
        Ok(Some(header))
    }

    /// Makes sure that nothing follows the end mark: it would be lost without a word.
    fn expect_zeros(&mut self) -> Result<(), TarError> {
        let mut block = [0; BLOCK];
        while self.at < self.len {
            let at = self.at;
            let part = (self.len - at).min(BLOCK as u64) as usize;
            self.read(at, &mut block[..part])?;
            if block[..part].iter().any(|byte| *byte != 0) {
                return Err(self.error(at, TarFault::AfterEnd));
            }
        }
        Ok(())
    }

    /// Reads the data of a long name or extended header, and passes its padding.
    fn record(&mut self, start: u64, size: u64) -> Result<Vec<u8>, TarError> {
        let end = self.end_of(start, size)?;
        if size > MAX_RECORD_LEN {
            return Err(self.error(start, TarFault::RecordTooLong { got: size }));
        }
        let mut record = vec![0; size as usize];
        self.read(start, &mut record)?;
        self.seek(end)?;
        Ok(record)
    }

    /// Where `size` bytes of data that begin here end with their padding; an error if that is beyond the file.
    fn end_of(&self, start: u64, size: u64) -> Result<u64, TarError> {
        let end = size.checked_next_multiple_of(BLOCK as u64).and_then(|padded| padded.checked_add(self.at));
        end.filter(|end| *end <= self.len).ok_or_else(|| self.truncated(start))
    }

    /// Fills `out`. `start` is where the member begins, for an error.
    fn read(&mut self, start: u64, out: &mut [u8]) -> Result<(), TarError> {
        self.file.read_exact(out).map_err(|source| match source.kind() {
            // The file has become shorter than it was.
            io::ErrorKind::UnexpectedEof => self.truncated(start),
            _ => self.error(start, TarFault::Io { source }),
        })?;
        self.at += out.len() as u64;
        Ok(())
    }

    /// Moves to a byte of the file, without a call to the system if it is buffered.
    fn seek(&mut self, to: u64) -> Result<(), TarError> {
        let moved = match to.checked_sub(self.at).map(i64::try_from) {
            Some(Ok(ahead)) if self.at > 0 => self.file.seek_relative(ahead),
            _ => self.file.seek(SeekFrom::Start(to)).map(drop),
        };
        moved.map_err(|source| self.error(to, TarFault::Io { source }))?;
        self.at = to;
        Ok(())
    }

    fn truncated(&self, start: u64) -> TarError {
        self.error(start, TarFault::Truncated { len: self.len })
    }

    fn error(&self, offset: u64, fault: TarFault) -> TarError {
        TarError { path: self.path.to_owned(), offset, fault }
    }
}

/// What a file is that does not begin with a header, by the magic numbers of compressed files.
fn not_a_tar(header: &Header) -> TarFault {
    match header.0 {
        [0x1f, 0x8b, ..] => TarFault::Compressed("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => TarFault::Compressed("zstd"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => TarFault::Compressed("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => TarFault::Compressed("xz"),
        _ => TarFault::NotATar,
    }
}

/// Puts members into samples.
#[derive(Debug)]
struct Grouping {
    samples: Vec<TarSample>,
    open: Option<Open>,
    ignored: usize,
}

/// The sample whose members are being read.
#[derive(Debug)]
struct Open {
    key: String,
    range: Range<u64>,
    image: Option<(String, Range<u64>)>,
    label: Option<i32>,
}

impl Grouping {
    /// Adds a member and moves the reader behind it.
    fn add<R: Read + Seek>(&mut self, member: Member, reader: &mut Reader<'_, R>) -> Result<(), TarError> {
        let Member { range: Range { start, end }, size, name } = member;
        let Some(name) = name else {
            self.ignored += 1;
            return reader.seek(end);
        };
        let name = String::from_utf8(name).map_err(|_| reader.error(start, TarFault::NotUtf8))?;
        let Some((key, extension)) = split(&name) else {
            self.ignored += 1;
            return reader.seek(end);
        };
        if key.len() > MAX_KEY_LEN {
            return Err(reader.error(start, TarFault::KeyTooLong { got: key.len() }));
        }
        if self.open.as_ref().is_some_and(|open| open.key != key) {
            self.close(reader)?;
        }
        let open =
            self.open.get_or_insert_with(|| Open { key: key.to_owned(), range: start..end, image: None, label: None });
        open.range.end = end;
        let error = |fault| Err(reader.error(start, fault));
        match extension.to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" | "png" => {
                if let Some((first, _)) = open.image.replace((name.clone(), start..end)) {
                    return error(TarFault::TwoImages { key: key.to_owned(), first, second: name });
                }
            }
            "cls" => {
                if open.label.is_some() {
                    return error(TarFault::TwoLabels { key: key.to_owned() });
                }
                let mut text = vec![0; size.min(MAX_LABEL_LEN) as usize];
                reader.read(start, &mut text)?;
                let whole = size <= MAX_LABEL_LEN;
                open.label = Some(label(&text, whole, key).map_err(|fault| reader.error(start, fault))?);
            }
            _ => {}
        }
        reader.seek(end)
    }

    /// Finishes the sample whose last member was read.
    fn close<R: Read + Seek>(&mut self, reader: &Reader<'_, R>) -> Result<(), TarError> {
        let Some(Open { key, range, image, label }) = self.open.take() else { return Ok(()) };
        let start = range.start;
        let Some((image, image_range)) = image else { return Err(reader.error(start, TarFault::NoImage { key })) };
        let Some(label) = label else { return Err(reader.error(start, TarFault::NoLabel { key })) };
        self.samples.push(TarSample { key, range, image, image_range, label });
        Ok(())
    }

    fn finish<R: Read + Seek>(mut self, reader: &Reader<'_, R>) -> Result<TarIndex, TarError> {
        self.close(reader)?;
        let Self { samples, ignored, .. } = self;
        if samples.is_empty() {
            return Err(reader.error(0, TarFault::NoSamples { ignored }));
        }
        // Sorted positions take less memory than a set of keys.
        let mut order: Vec<_> = (0..samples.len()).collect();
        order.sort_unstable_by_key(|i| (&samples[*i].key, *i));
        let twice = order.windows(2).filter(|pair| samples[pair[0]].key == samples[pair[1]].key).min_by_key(|p| p[1]);
        if let Some([first, second]) = twice.map(|pair| [&samples[pair[0]], &samples[pair[1]]]) {
            let fault = TarFault::DuplicateKey { key: second.key.clone(), first: first.range.start };
            return Err(reader.error(second.range.start, fault));
        }
        Ok(TarIndex { samples, ignored })
    }
}

/// Key and extension of a member; `None` if it belongs to no sample.
fn split(name: &str) -> Option<(&str, &str)> {
    let hidden = |part: &str| part.starts_with("__") || part.starts_with('.') && part != "." && part != "..";
    if name.split('/').any(hidden) {
        return None;
    }
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base).then(|| (&name[..dot], &name[dot + 1..]))
}

/// The number in a `cls` member, of which `text` may be but the beginning.
fn label(text: &[u8], whole: bool, key: &str) -> Result<i32, TarFault> {
    let got = String::from_utf8_lossy(text).trim_ascii().to_owned();
    let key = key.to_owned();
    if !whole {
        return Err(TarFault::NotANumber { key, got });
    }
    match got.parse::<i64>().map(i32::try_from) {
        Ok(Ok(label @ 0..)) => Ok(label),
        Err(error) if !matches!(error.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) => {
            Err(TarFault::NotANumber { key, got })
        }
        _ => Err(TarFault::LabelRange { key, got }),
    }
}

#[cfg(test)]
mod tests;
