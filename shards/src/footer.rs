//! The footer: where every frame is and what its bytes hash to, and the label, source index, flags and key of every
//! sample.
//!
//! Parsing trusts nothing: the counts are compared with the schema and the tail before anything is allocated from them.

use std::path::Path;

use crate::codec::{Deflater, Inflater};
use crate::error::{Place, ShardError};
use crate::layout::{COUNTS_LEN, MAX_FRAMES, MAX_KEY_LEN, MAX_KEYS_LEN, max_frame_len};
use crate::schema::{Codec, Schema};

/// zstd level of the key table; keys are text, and a table is a few hundred kilobytes.
const KEYS_LEVEL: i32 = 3;

/// Where one column of one block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Offset in the file in bytes.
    pub(crate) off: u64,
    /// Stored length in bytes.
    pub(crate) len: u32,
    /// xxh3 of the stored bytes.
    pub(crate) xxh3: u64,
}

/// The footer in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    /// `[block][column]`, flattened.
    pub(crate) frames: Vec<Frame>,
    /// Samples in every block.
    pub(crate) block_samples: Vec<u32>,
    pub(crate) labels: Vec<i32>,
    pub(crate) source_indices: Vec<u32>,
    pub(crate) flags: Vec<u8>,
    /// Where the key of every sample ends in `keys`.
    pub(crate) key_ends: Vec<u32>,
    /// All keys, one after the other.
    pub(crate) keys: String,
}

impl Footer {
    /// The footer's bytes.
    pub(crate) fn to_bytes(&self, columns: u32, deflater: &mut Deflater) -> Result<Vec<u8>, &'static str> {
        let mut table = Vec::with_capacity(self.key_ends.len() * 4 + self.keys.len());
        table.extend(self.key_ends.iter().flat_map(|end| end.to_le_bytes()));
        table.extend_from_slice(self.keys.as_bytes());
        let keys = deflater.deflate(&table, KEYS_LEVEL)?;
        // The writer keeps all of these counts under limits that fit 32 bits.
        let counts = [self.block_samples.len() as u32, columns, keys.len() as u32, table.len() as u32];
        let mut bytes = Vec::new();
        bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend(self.frames.iter().flat_map(|frame| frame.off.to_le_bytes()));
        bytes.extend(self.frames.iter().flat_map(|frame| frame.xxh3.to_le_bytes()));
        bytes.extend(self.frames.iter().flat_map(|frame| frame.len.to_le_bytes()));
        bytes.extend(self.block_samples.iter().flat_map(|samples| samples.to_le_bytes()));
        bytes.extend(self.labels.iter().flat_map(|label| label.to_le_bytes()));
        bytes.extend(self.source_indices.iter().flat_map(|index| index.to_le_bytes()));
        bytes.extend_from_slice(&self.flags);
        bytes.extend_from_slice(keys);
        Ok(bytes)
    }

    /// Parses and checks a footer whose checksum has been verified. `payload` is the range that the frames must fill.
    pub(crate) fn from_bytes(
        path: &Path,
        bytes: &[u8],
        schema: &Schema,
        samples: u32,
        payload: std::ops::Range<u64>,
        inflater: &mut Inflater,
    ) -> Result<Self, ShardError> {
        let wrong_len =
            |expected: u64| ShardError::FooterLength { path: path.to_owned(), expected, got: bytes.len() as u64 };
        let count = |what: &str, expected: u64, got: u64| match expected == got {
            true => Ok(()),
            false => Err(ShardError::Count { path: path.to_owned(), what: what.to_owned(), expected, got }),
        };
        let mut fields = Fields { bytes };
        let counts: [u32; 4] = fields.array().ok_or_else(|| wrong_len(COUNTS_LEN as u64))?;
        let [blocks, columns, keys_stored, keys_len] = counts;
        count("the number of blocks", samples.div_ceil(schema.block_samples).into(), blocks.into())?;
        count("the number of columns", schema.columns.len() as u64, columns.into())?;
        let key_ends_len = samples as usize * 4;
        let too_large = |what: &str, max: usize, got: u64| match got > max as u64 {
            true => Err(ShardError::TooLarge { path: path.to_owned(), what: what.to_owned(), max: max as u64, got }),
            false => Ok(()),
        };
        too_large("the number of frames", MAX_FRAMES, u64::from(blocks) * u64::from(columns))?;
        too_large("the length of the key table", MAX_KEYS_LEN, keys_len.into())?;
        // At most 2^20 frames and 2^20 samples: none of this comes near 2^64.
        let expected = COUNTS_LEN as u64
            + u64::from(blocks) * (u64::from(columns) * 20 + 4)
            + u64::from(samples) * 9
            + u64::from(keys_stored);
        if expected != bytes.len() as u64 {
            return Err(wrong_len(expected));
        }
        let mut read = || {
            let frames = blocks as usize * columns as usize;
            let offs: Vec<u64> = fields.vec(frames, u64::from_le_bytes)?;
            let hashes: Vec<u64> = fields.vec(frames, u64::from_le_bytes)?;
            let lens: Vec<u32> = fields.vec(frames, u32::from_le_bytes)?;
            let frames = offs.into_iter().zip(hashes).zip(lens);
            let footer = Self {
                frames: frames.map(|((off, xxh3), len)| Frame { off, len, xxh3 }).collect(),
                block_samples: fields.vec(blocks as usize, u32::from_le_bytes)?,
                labels: fields.vec(samples as usize, i32::from_le_bytes)?,
                source_indices: fields.vec(samples as usize, u32::from_le_bytes)?,
                flags: fields.vec(samples as usize, |[flags]: [u8; 1]| flags)?,
                ..Self::default()
            };
            Some((footer, fields.bytes))
        };
        let (mut footer, keys) = read().ok_or_else(|| wrong_len(expected))?;
        footer.check_blocks(path, schema, samples)?;
        footer.check_frames(path, schema, payload)?;
        if (keys_len as usize) < key_ends_len {
            return Err(ShardError::Key {
                path: path.to_owned(),
                sample: 0,
                reason: "the key table has no room for it",
            });
        }
        let mut table = vec![0; keys_len as usize];
        inflater.inflate(keys, &mut table).map_err(|reason| {
            let (place, reason) = (Place::Keys, reason.to_owned());
            ShardError::Inflate { path: path.to_owned(), place, reason }
        })?;
        footer.parse_keys(path, &table, samples)?;
        Ok(footer)
    }

    /// Every block is full but the last, which holds the rest.
    fn check_blocks(&self, path: &Path, schema: &Schema, samples: u32) -> Result<(), ShardError> {
        let mut rest = samples;
        for (block, &got) in self.block_samples.iter().enumerate() {
            let expected = rest.min(schema.block_samples);
            if got != expected {
                let what = format!("the number of samples in block {block}");
                let (expected, got) = (expected.into(), got.into());
                return Err(ShardError::Count { path: path.to_owned(), what, expected, got });
            }
            rest -= expected;
        }
        Ok(())
    }

    /// Frames lie one behind the other, have possible lengths, and end where the footer begins.
    fn check_frames(&self, path: &Path, schema: &Schema, payload: std::ops::Range<u64>) -> Result<(), ShardError> {
        let path = || path.to_owned();
        let mut at = payload.start;
        let frames = self.frames.chunks(schema.columns.len());
        for (block, (row, &samples)) in frames.zip(&self.block_samples).enumerate() {
            for (column, (frame, declared)) in row.iter().zip(&schema.columns).enumerate() {
                if frame.off != at {
                    return Err(ShardError::FrameOffset { path: path(), block, column, expected: at, got: frame.off });
                }
                let raw = declared.sample_bytes().saturating_mul(samples as usize);
                let (least, most) = match declared.codec {
                    Codec::None => (raw, raw),
                    Codec::Zstd { .. } | Codec::ShuffleZstd { .. } => (1, max_frame_len(raw)),
                };
                if !(least..=most).contains(&(frame.len as usize)) {
                    let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
                    return Err(ShardError::FrameLength {
                        path: path(),
                        block,
                        column,
                        expected,
                        got: frame.len.into(),
                    });
                }
                // At most 2^20 frames of under 2^29 bytes.
                at += u64::from(frame.len);
            }
        }
        if at != payload.end {
            return Err(ShardError::PayloadEnd { path: path(), expected: payload.end, got: at });
        }
        Ok(())
    }

    /// `u32 end[samples]`, then the keys: ends must not fall, must end with the table, and must lie between characters.
    fn parse_keys(&mut self, path: &Path, table: &[u8], samples: u32) -> Result<(), ShardError> {
        let wrong = |sample: usize, reason| ShardError::Key { path: path.to_owned(), sample, reason };
        let mut fields = Fields { bytes: table };
        self.key_ends = fields
            .vec(samples as usize, u32::from_le_bytes)
            .ok_or_else(|| wrong(0, "the key table has no room for it"))?;
        let keys = fields.bytes;
        self.keys = match std::str::from_utf8(keys) {
            Ok(keys) => keys.to_owned(),
            Err(error) => {
                let sample = self.key_ends.partition_point(|&end| end as usize <= error.valid_up_to());
                return Err(wrong(sample, "it is not UTF-8"));
            }
        };
        let mut start = 0;
        for (sample, &end) in self.key_ends.iter().enumerate() {
            if self.keys.get(start..end as usize).is_none() {
                return Err(wrong(sample, "its end is not after its start, in the table, between characters"));
            }
            if end as usize - start > MAX_KEY_LEN {
                return Err(wrong(sample, "it is longer than 4096 bytes"));
            }
            start = end as usize;
        }
        if start != self.keys.len() {
            return Err(wrong(self.key_ends.len(), "bytes follow the last key"));
        }
        Ok(())
    }
}

/// Little-endian fields taken from the front of a slice; `None` where it is too short.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u32; N]> {
        self.vec(N, u32::from_le_bytes)?.try_into().ok()
    }

    fn vec<T, const W: usize>(&mut self, len: usize, value: fn([u8; W]) -> T) -> Option<Vec<T>> {
        let (values, rest) = self.bytes.split_at_checked(len.checked_mul(W)?)?;
        self.bytes = rest;
        Some(values.as_chunks().0.iter().map(|&bytes| value(bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_utf8_is_named_by_its_sample() {
        let ends = [1_u32, 3, 4].map(u32::to_le_bytes).concat();
        let table = [&ends[..], b"ab\xffd"].concat();
        match Footer::default().parse_keys(Path::new("x"), &table, 3) {
            Err(ShardError::Key { sample, reason, .. }) => assert_eq!((sample, reason), (1, "it is not UTF-8")),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_table_without_room_for_its_ends_is_refused() {
        let parsed = Footer::default().parse_keys(Path::new("x"), &[0; 11], 3);
        assert!(matches!(parsed, Err(ShardError::Key { sample: 0, .. })));
    }
}
