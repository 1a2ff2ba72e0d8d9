//! Reading one shard: everything but the frames is validated when it is opened, a frame when it is read.
//!
//! A reader has no interior mutability and can be shared by any number of threads; what a thread needs for itself is in
//! its [`Scratch`]. Nothing here decides the order of samples.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::codec::{Inflater, Scratch};
use crate::error::{Place, ShardError};
use crate::footer::{Footer, Frame};
use crate::layout::{COUNTS_LEN, MAX_FOOTER_LEN, PREFIX_LEN, Prefix, TAIL_LEN, Tail};
use crate::schema::{Codec, Column, Header};
use crate::source::{Io, Source};
use crate::verify::Verified;

/// An open, validated shard.
#[derive(Debug)]
pub struct ShardReader {
    path: PathBuf,
    source: Source,
    len: u64,
    header: Header,
    footer: Footer,
    tail: Tail,
}

impl ShardReader {
    /// Opens a shard and checks everything but the frames and the checksum of the body; no frame is read.
    ///
    /// # Errors
    /// Any of [`ShardError`] that speaks of a file; which check gives which is in the crate's documentation.
    pub fn open(path: impl AsRef<Path>, io: Io) -> Result<Self, ShardError> {
        let path = path.as_ref();
        let wrong = |action| move |source| ShardError::Io { path: path.to_owned(), action, source };
        // Before opening: opening a pipe would wait for its other end.
        if !fs::metadata(path).map_err(wrong("open it"))?.is_file() {
            return Err(ShardError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(wrong("open it"))?;
        let len = file.metadata().map_err(wrong("inspect it"))?.len();
        let least = (PREFIX_LEN + COUNTS_LEN + TAIL_LEN) as u64;
        if len < least {
            return Err(ShardError::TooShort { path: path.to_owned(), expected: least, got: len });
        }
        let source = Source::open(path, file, len, io)?;
        let mut scratch = Scratch::new();
        let mut bytes = |off, len, place| source.bytes(path, off, len, &mut scratch.frame, place).map(<[u8]>::to_vec);

        let prefix = Prefix::from_bytes(path, &fixed(path, &bytes(0, PREFIX_LEN, Place::Prefix)?, Place::Prefix)?)?;
        let payload = PREFIX_LEN as u64 + u64::from(prefix.header_len);
        if len < payload + (COUNTS_LEN + TAIL_LEN) as u64 {
            let expected = payload + (COUNTS_LEN + TAIL_LEN) as u64;
            return Err(ShardError::TooShort { path: path.to_owned(), expected, got: len });
        }
        let json = bytes(PREFIX_LEN as u64, prefix.header_len as usize, Place::Header)?;
        check_hash(path, Place::Header, prefix.header_xxh3, xxh3_64(&json))?;
        let header = Header::from_bytes(path, &json)?;

        let tail_off = len - TAIL_LEN as u64;
        let tail = Tail::from_bytes(path, &fixed(path, &bytes(tail_off, TAIL_LEN, Place::Tail)?, Place::Tail)?)?;
        let position = |expected: String, got: u64| ShardError::FooterPosition { path: path.to_owned(), expected, got };
        if prefix.footer_off != tail.footer_off {
            return Err(position(format!("{}, as the tail says,", tail.footer_off), prefix.footer_off));
        }
        if tail.footer_off < payload || tail.footer_off.checked_add(tail.footer_len) != Some(tail_off) {
            let last = tail_off.saturating_sub(tail.footer_len);
            return Err(position(format!("{last}, not below {payload},"), tail.footer_off));
        }
        // Within the file, but a file can be sparse: a few bytes on the disk of any length.
        let footer_len = match usize::try_from(tail.footer_len) {
            Ok(len) if len <= MAX_FOOTER_LEN => len,
            _ => {
                let (what, max) = ("the length of the footer".to_owned(), MAX_FOOTER_LEN as u64);
                return Err(ShardError::TooLarge { path: path.to_owned(), what, max, got: tail.footer_len });
            }
        };
        let bytes = bytes(tail.footer_off, footer_len, Place::Footer)?;
        check_hash(path, Place::Footer, tail.footer_xxh3, xxh3_64(&bytes))?;
        // The tail has been checked to hold at most 2^20 samples.
        let samples = tail.samples as u32;
        let payload = payload..tail.footer_off;
        let footer = Footer::from_bytes(path, &bytes, &header.schema, samples, payload, &mut scratch.inflater)?;
        Ok(Self { path: path.to_owned(), source, len, header, footer, tail })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Schema, number and provenance.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Columns of the schema.
    pub fn columns(&self) -> &[Column] {
        &self.header.schema.columns
    }

    /// Samples in the shard.
    pub fn len(&self) -> usize {
        self.footer.labels.len()
    }

    /// True for a shard without samples.
    pub fn is_empty(&self) -> bool {
        self.footer.labels.is_empty()
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// Bytes of the file that are held in memory: all with [`Io::Ram`], else none.
    pub fn held_bytes(&self) -> u64 {
        match &self.source {
            Source::Ram(bytes) => bytes.len() as u64,
            _ => 0,
        }
    }

    /// Checksum of the file's body as the tail states it; [`ShardReader::verify`] checks it.
    pub fn xxh3(&self) -> u64 {
        self.tail.body_xxh3
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.footer.block_samples.len()
    }

    /// Samples in block `block`; 0 where there is no such block.
    pub fn block_len(&self, block: usize) -> usize {
        self.footer.block_samples.get(block).map_or(0, |&samples| samples as usize)
    }

    /// Bytes that one column of one block takes in the file; `None` where there is no such block or column.
    pub fn stored_len(&self, block: usize, column: usize) -> Option<u64> {
        let columns = self.columns().len();
        let frame = self.footer.frames.get(block.checked_mul(columns)? + column).filter(|_| column < columns)?;
        Some(frame.len.into())
    }

    /// Labels of all samples.
    pub fn labels(&self) -> &[i32] {
        &self.footer.labels
    }

    /// Numbers of all samples in the source list.
    pub fn source_indices(&self) -> &[u32] {
        &self.footer.source_indices
    }

    /// Flags of all samples; the bits are [`crate::flags`].
    pub fn flags(&self) -> &[u8] {
        &self.footer.flags
    }

    /// Name of a sample in its source; `None` where there is no such sample.
    pub fn key(&self, sample: usize) -> Option<&str> {
        let end = *self.footer.key_ends.get(sample)?;
        let start = match sample.checked_sub(1) {
            Some(before) => *self.footer.key_ends.get(before)?,
            None => 0,
        };
        self.footer.keys.get(start as usize..end as usize)
    }

    /// Reads one column of one block into `out`: `block_len * sample_bytes` raw little-endian bytes, one sample after
    /// the other. The stored bytes are verified before they are inflated. On an error the contents of `out` are
    /// unspecified.
    ///
    /// # Errors
    /// [`ShardError::NoSuchBlock`], [`ShardError::NoSuchColumn`], [`ShardError::BufferLength`];
    /// [`ShardError::Checksum`], [`ShardError::Inflate`], [`ShardError::Shrank`], [`ShardError::Io`].
    pub fn read_block(
        &self,
        block: usize,
        column: usize,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), ShardError> {
        let decode = |inflater: &mut Inflater, declared: &Column, frame: &[u8], out: &mut [u8]| {
            inflater.decode(declared.codec, declared.dtype, frame, out)
        };
        self.read(block, column, out, scratch, decode)
    }

    /// As [`ShardReader::read_block`], but [`Codec::ShuffleZstd`] is inflated straight into `out` and left as byte
    /// planes: all first bytes of the block's values, then all second bytes, and so on ([`Codec::planes`] of them). With
    /// the other codecs there is one plane, and it holds the values as they are.
    ///
    /// # Errors
    /// Those of [`ShardReader::read_block`].
    pub fn read_planes(
        &self,
        block: usize,
        column: usize,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), ShardError> {
        let decode = |inflater: &mut Inflater, declared: &Column, frame: &[u8], out: &mut [u8]| {
            inflater.decode_planes(declared.codec, frame, out)
        };
        self.read(block, column, out, scratch, decode)
    }

    /// Compares the checksum of the stored bytes of one column of one block. Nothing is inflated: this is all that
    /// there is to check with [`Codec::None`], and not enough with the other codecs.
    ///
    /// # Errors
    /// [`ShardError::NoSuchBlock`], [`ShardError::NoSuchColumn`]; [`ShardError::Checksum`], [`ShardError::Shrank`],
    /// [`ShardError::Io`].
    pub fn verify_block(&self, block: usize, column: usize, scratch: &mut Scratch) -> Result<(), ShardError> {
        let (_, frame) = self.locate(block, column)?;
        let place = Place::Frame { block, column };
        let checked = self.checked(frame, place, &mut scratch.frame).map(|_| ());
        self.source.unless_faulted(&self.path, place, checked)
    }

    /// The values of one column of one block where they lie: `block_len * sample_bytes` bytes, one sample after the
    /// other. `None` where the codec is not [`Codec::None`], where the file is neither mapped nor in memory, and where
    /// there is no such block or column.
    ///
    /// The bytes are **not verified**: call [`ShardReader::verify_block`] before they are used for the first time, and
    /// [`ShardReader::intact`] whenever some have been copied.
    pub fn in_place(&self, block: usize, column: usize) -> Option<&[u8]> {
        let (declared, frame) = self.locate(block, column).ok()?;
        match declared.codec {
            // Opening has checked that the frame has the length that the schema gives.
            Codec::None => self.source.in_place(frame.off, frame.len as usize),
            Codec::Zstd { .. } | Codec::ShuffleZstd { .. } => None,
        }
    }

    /// Whether what has been taken from [`ShardReader::in_place`] until now was in the file. Block and column are only
    /// named in the error: a file that was cut short is in doubt as a whole, and remains so.
    ///
    /// # Errors
    /// [`ShardError::Shrank`]: bytes may have been zeros in place of what could not be read.
    pub fn intact(&self, block: usize, column: usize) -> Result<(), ShardError> {
        self.source.unless_faulted(&self.path, Place::Frame { block, column }, Ok(()))
    }

    /// Bytes that were read and checked when it was opened: all but the frames.
    pub(crate) fn index_len(&self) -> u64 {
        self.len - self.footer.frames.iter().map(|frame| u64::from(frame.len)).sum::<u64>()
    }

    /// Reads every byte of the file, verifies and inflates every frame, and compares the checksum of the body. It goes
    /// on after damage: `report` is given one error for each bad frame, as [`ShardReader::read_block`] would return it,
    /// and then one for the body ([`Place::Body`]), whose checksum is wrong too where the bytes of a frame are.
    ///
    /// [`ShardError::Shrank`] is the last report: nothing is left to read. With [`Io::Pread`] a disk error costs only
    /// the frame it is in; behind a mapping it cannot be told from a file that was cut short.
    pub fn verify(&self, report: &mut dyn FnMut(ShardError)) -> Verified {
        let mut verified =
            Verified { shards: 1, samples: self.len() as u64, bytes: self.index_len(), ..Verified::default() };
        let mut scratch = Scratch::new();
        let mut out = Vec::new();
        for (block, frames) in self.footer.frames.chunks(self.columns().len()).enumerate() {
            for (column, (declared, frame)) in self.columns().iter().zip(frames).enumerate() {
                out.resize(self.block_len(block) * declared.sample_bytes(), 0);
                verified.bytes += u64::from(frame.len);
                if let Err(error) = self.read_block(block, column, &mut out, &mut scratch) {
                    let gone = matches!(error, ShardError::Shrank { .. });
                    verified.bad += 1;
                    report(error);
                    if gone {
                        return verified;
                    }
                }
            }
            verified.blocks += 1;
        }
        if let Err(error) = self.verify_body(&mut scratch) {
            verified.bad += 1;
            report(error);
        }
        verified
    }

    fn verify_body(&self, scratch: &mut Scratch) -> Result<(), ShardError> {
        let (mut hasher, mut at) = (Xxh3::new(), PREFIX_LEN as u64);
        let end = self.len - TAIL_LEN as u64;
        while at < end {
            let len = (end - at).min(1 << 20);
            hasher.update(self.source.bytes(&self.path, at, len as usize, &mut scratch.frame, Place::Body)?);
            at += len;
        }
        let checked = check_hash(&self.path, Place::Body, self.tail.body_xxh3, hasher.digest());
        self.source.unless_faulted(&self.path, Place::Body, checked)
    }

    /// What the schema and the footer say of one column of one block.
    fn locate(&self, block: usize, column: usize) -> Result<(&Column, Frame), ShardError> {
        let path = || self.path.clone();
        let columns = self.columns().len();
        let declared = self.columns().get(column);
        let declared = declared.ok_or_else(|| ShardError::NoSuchColumn { path: path(), column, columns })?;
        let frame = block.checked_mul(columns).and_then(|row| self.footer.frames.get(row + column));
        let frame = *frame.ok_or_else(|| ShardError::NoSuchBlock { path: path(), block, blocks: self.blocks() })?;
        Ok((declared, frame))
    }

    /// Reads one column of one block, verifies it, and has `decode` make `out` of it.
    fn read(
        &self,
        block: usize,
        column: usize,
        out: &mut [u8],
        scratch: &mut Scratch,
        decode: impl FnOnce(&mut Inflater, &Column, &[u8], &mut [u8]) -> Result<(), &'static str>,
    ) -> Result<(), ShardError> {
        let (declared, frame) = self.locate(block, column)?;
        let (expected, got) = (self.block_len(block) * declared.sample_bytes(), out.len());
        if expected != got {
            return Err(ShardError::BufferLength { path: self.path.clone(), block, column, expected, got });
        }
        let Scratch { frame: buffer, inflater } = scratch;
        let place = Place::Frame { block, column };
        let decoded = self.checked(frame, place, buffer).and_then(|bytes| {
            let inflate = |reason: &str| {
                let (path, reason) = (self.path.clone(), reason.to_owned());
                ShardError::Inflate { path, place, reason }
            };
            decode(inflater, declared, bytes, out).map_err(inflate)
        });
        // Even a success is in doubt: the file may have been cut short between the checksum and the end of the frame.
        self.source.unless_faulted(&self.path, place, decoded)
    }

    /// The stored bytes of a frame, in place or in `buffer`, with the right checksum.
    fn checked<'a>(&'a self, frame: Frame, place: Place, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], ShardError> {
        let bytes = self.source.bytes(&self.path, frame.off, frame.len as usize, buffer, place)?;
        check_hash(&self.path, place, frame.xxh3, xxh3_64(bytes))?;
        Ok(bytes)
    }
}

fn check_hash(path: &Path, place: Place, expected: u64, got: u64) -> Result<(), ShardError> {
    match expected == got {
        true => Ok(()),
        false => Err(ShardError::Checksum { path: path.to_owned(), place, expected, got }),
    }
}

fn fixed<const N: usize>(path: &Path, bytes: &[u8], place: Place) -> Result<[u8; N], ShardError> {
    bytes.try_into().map_err(|_| ShardError::Shrank { path: path.to_owned(), place })
}

#[cfg(test)]
mod tests;
