//! Writing one shard, block by block.
//!
//! No list of files, no pixels, no threads: the caller brings raw little-endian bytes in order, and the same calls give
//! the same file, byte for byte, with one version of zstd.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::atomic::{self, AtomicFile, Existing};
use crate::codec::Deflater;
use crate::error::ShardError;
use crate::footer::{Footer, Frame};
use crate::layout::{FOOTER_OFF_AT, MAX_FRAMES, MAX_KEY_LEN, MAX_KEYS_LEN, MAX_SAMPLES, Prefix, Tail};
use crate::schema::Header;

/// What is known of a sample besides its latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleMeta<'a> {
    /// Class number, an index of the manifest's `classes`.
    pub label: i32,
    /// Number of the sample in the source list, before any permutation.
    pub source_index: u32,
    /// What was odd about the image: bits of [`flags`].
    pub flags: u8,
    /// Name of the sample in its source, such as `n01440764/n01440764_10026.JPEG`; at most 4,096 bytes, may be empty.
    pub key: &'a str,
}

/// Bits of [`SampleMeta::flags`]. A reader ignores bits that it does not know.
pub mod flags {
    /// The file was a PNG, whatever its name said.
    pub const PNG: u8 = 1;
    /// The file was a CMYK or YCCK JPEG.
    pub const CMYK: u8 = 2;
    /// The file had one channel.
    pub const GRAY: u8 = 4;
    /// The file had an alpha channel, which was dropped without compositing.
    pub const ALPHA: u8 = 8;
}

/// One line of the manifest: a finished shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name in the dataset's folder.
    pub file: String,
    /// Samples in the shard.
    pub samples: u32,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// xxh3 of the file's body, bytes 32 to length - 64; 16 hexadecimal digits in the JSON. It identifies the contents.
    #[serde(with = "hexadecimal")]
    pub xxh3: u64,
}

/// Writes one shard. The file appears under its name when [`ShardWriter::finish`] returns; dropping the writer before
/// that leaves nothing behind.
pub struct ShardWriter {
    out: AtomicFile,
    header: Header,
    /// Where the next byte goes.
    at: u64,
    body: Xxh3,
    footer: Footer,
    deflater: Deflater,
    /// False from the start of a call that can fail to its success.
    sound: bool,
}

impl fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardWriter")
            .field("out", &self.out)
            .field("header", &self.header)
            .field("at", &self.at)
            .field("sound", &self.sound)
            .finish_non_exhaustive()
    }
}

impl ShardWriter {
    /// Begins the shard `path` as `path.tmp` and writes its header. The folder must exist; a `.tmp` that a crash left
    /// is replaced.
    ///
    /// # Errors
    /// [`ShardError::Exists`], [`ShardError::Busy`], [`ShardError::Io`], or what [`Header::check`] finds.
    pub fn create(path: impl AsRef<Path>, header: Header) -> Result<Self, ShardError> {
        let path = path.as_ref();
        file_name(path)?;
        let json = header.to_bytes(path)?;
        if atomic::exists(path)? {
            return Err(ShardError::Exists { path: path.to_owned() });
        }
        let prefix = Prefix { header_len: json.len() as u32, footer_off: 0, header_xxh3: xxh3_64(&json) };
        let mut writer = Self {
            out: AtomicFile::create(path)?,
            header,
            at: 0,
            body: Xxh3::new(),
            footer: Footer::default(),
            deflater: Deflater::new(),
            sound: true,
        };
        writer.append(&prefix.to_bytes())?;
        writer.body.update(&json);
        writer.append(&json)?;
        Ok(writer)
    }

    /// Appends one block: `columns[c]` holds `samples.len()` samples of column `c`, raw and little-endian, one sample
    /// after the other. Every block but the last has `block_samples` samples.
    ///
    /// # Errors
    /// [`ShardError::BlockColumns`], [`ShardError::BlockSamples`], [`ShardError::BufferLength`],
    /// [`ShardError::TooLarge`], [`ShardError::Io`]. After an error the writer accepts nothing more.
    pub fn write_block(&mut self, columns: &[&[u8]], samples: &[SampleMeta<'_>]) -> Result<(), ShardError> {
        self.begin()?;
        self.check_block(columns, samples)?;
        for (declared, raw) in self.header.schema.columns.iter().zip(columns) {
            let frame = self.deflater.encode(declared.codec, declared.dtype, raw);
            let frame = frame.map_err(|reason| compression(self.out.path(), reason))?;
            let entry = Frame { off: self.at, len: frame.len() as u32, xxh3: xxh3_64(frame) };
            self.body.update(frame);
            write_all(&self.out, &mut self.at, frame)?;
            self.footer.frames.push(entry);
        }
        self.footer.block_samples.push(samples.len() as u32);
        for sample in samples {
            self.footer.labels.push(sample.label);
            self.footer.source_indices.push(sample.source_index);
            self.footer.flags.push(sample.flags);
            self.footer.keys.push_str(sample.key);
            self.footer.key_ends.push(self.footer.keys.len() as u32);
        }
        self.sound = true;
        Ok(())
    }

    /// Samples written so far.
    pub fn len(&self) -> u32 {
        self.footer.labels.len() as u32
    }

    /// True before the first block.
    pub fn is_empty(&self) -> bool {
        self.footer.labels.is_empty()
    }

    /// Writes footer and tail, makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`ShardError::WriterFailed`], [`ShardError::Exists`], [`ShardError::Io`]; the shard is then not there.
    pub fn finish(mut self) -> Result<ShardEntry, ShardError> {
        self.begin()?;
        let path = self.out.path().to_owned();
        let columns = self.header.schema.columns.len() as u32;
        let footer = self.footer.to_bytes(columns, &mut self.deflater).map_err(|reason| compression(&path, reason))?;
        self.body.update(&footer);
        let tail = Tail {
            footer_off: self.at,
            footer_len: footer.len() as u64,
            footer_xxh3: xxh3_64(&footer),
            body_xxh3: self.body.digest(),
            samples: self.footer.labels.len() as u64,
        };
        self.append(&footer)?;
        self.append(&tail.to_bytes())?;
        let io = |source| ShardError::Io { path: path.clone(), action: "write its footer offset", source };
        self.out.file().write_all_at(&tail.footer_off.to_le_bytes(), FOOTER_OFF_AT).map_err(io)?;
        let entry = ShardEntry {
            file: file_name(&path)?,
            samples: self.footer.labels.len() as u32,
            bytes: self.at,
            xxh3: tail.body_xxh3,
        };
        self.out.commit(Existing::Keep)?;
        Ok(entry)
    }

    /// Refuses after an error; otherwise the writer counts as failed until the call has succeeded.
    fn begin(&mut self) -> Result<(), ShardError> {
        if !std::mem::replace(&mut self.sound, false) {
            return Err(ShardError::WriterFailed { path: self.out.path().to_owned() });
        }
        Ok(())
    }

    fn check_block(&self, columns: &[&[u8]], samples: &[SampleMeta<'_>]) -> Result<(), ShardError> {
        let path = || self.out.path().to_owned();
        let schema = &self.header.schema;
        let block = self.footer.block_samples.len();
        let short_before = self.footer.block_samples.last().is_some_and(|&last| last < schema.block_samples);
        if short_before || samples.is_empty() || samples.len() > schema.block_samples as usize {
            let expected = match short_before {
                true => "no more, after a short block,".to_owned(),
                false => format!("1 to {}", schema.block_samples),
            };
            return Err(ShardError::BlockSamples { path: path(), block, expected, got: samples.len() });
        }
        let too_large = |what: String, max: usize, got: usize| match got > max {
            true => Err(ShardError::TooLarge { path: path(), what, max: max as u64, got: got as u64 }),
            false => Ok(()),
        };
        let total = self.footer.labels.len() + samples.len();
        too_large("the number of samples".into(), MAX_SAMPLES as usize, total)?;
        too_large("the number of frames".into(), MAX_FRAMES, (block + 1) * schema.columns.len())?;
        for (i, sample) in samples.iter().enumerate() {
            let number = self.footer.labels.len() + i;
            too_large(format!("the length of the key of sample {number}"), MAX_KEY_LEN, sample.key.len())?;
        }
        let keys = self.footer.keys.len() + samples.iter().map(|sample| sample.key.len()).sum::<usize>();
        too_large("the length of the key table".into(), MAX_KEYS_LEN, total * 4 + keys)?;
        if columns.len() != schema.columns.len() {
            let (expected, got) = (schema.columns.len(), columns.len());
            return Err(ShardError::BlockColumns { path: path(), block, expected, got });
        }
        for (column, (declared, raw)) in schema.columns.iter().zip(columns).enumerate() {
            let (expected, got) = (declared.sample_bytes() * samples.len(), raw.len());
            if expected != got {
                return Err(ShardError::BufferLength { path: path(), block, column, expected, got });
            }
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ShardError> {
        write_all(&self.out, &mut self.at, bytes)
    }
}

fn compression(path: &Path, reason: &'static str) -> ShardError {
    ShardError::Io { path: path.to_owned(), action: "compress its contents", source: io::Error::other(reason) }
}

/// Part of a path that goes into the manifest.
fn file_name(path: &Path) -> Result<String, ShardError> {
    let name = path.file_name().unwrap_or_default();
    match name.to_str() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(ShardError::ShardName {
            path: path.to_owned(),
            name: name.to_string_lossy().into_owned(),
            expected: "a UTF-8 file name",
        }),
    }
}

fn write_all(out: &AtomicFile, at: &mut u64, bytes: &[u8]) -> Result<(), ShardError> {
    let io = |source| ShardError::Io { path: out.path().to_owned(), action: "write to its .tmp file", source };
    out.file().write_all(bytes).map_err(io)?;
    *at += bytes.len() as u64;
    Ok(())
}

/// A checksum as 16 hexadecimal digits: JSON numbers are exact only up to 2^53 in most readers.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(&text, 16) {
            Ok(value) if digits => Ok(value),
            _ => Err(D::Error::custom(format!("{text:?} is not 16 hexadecimal digits"))),
        }
    }
}
