//! The fixed parts of a shard file, prefix and tail, as bytes; and the limits that bound what a reader allocates.
//!
//! The picture of the whole file is in the crate's documentation. The footer is in `footer.rs`.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Place, ShardError};

/// Version of the format: the last byte of the magic, and `version` in the header and in the manifest.
pub const VERSION: u32 = 1;
/// First eight and last eight bytes of a shard.
pub const MAGIC: [u8; 8] = *b"LATSHRD\x01";
/// `format` in a shard's header.
pub(crate) const SHARD_FORMAT: &str = "latent-shard";
/// `format` in a manifest.
pub(crate) const DATASET_FORMAT: &str = "latent-dataset";

/// Length of the prefix in bytes.
pub(crate) const PREFIX_LEN: usize = 32;
/// Bytes of the four counts with which the footer begins.
pub(crate) const COUNTS_LEN: usize = 16;
/// Length of the tail in bytes.
pub(crate) const TAIL_LEN: usize = 64;
/// The payload begins at a multiple of this many bytes, so that a raw column can be mapped by page.
pub(crate) const ALIGNMENT: usize = 4096;
/// Where the footer offset is in the prefix; it is patched in when the shard is finished.
pub(crate) const FOOTER_OFF_AT: u64 = 16;

/// Largest padded JSON header in bytes: 1 MiB less the prefix.
pub const MAX_HEADER_LEN: usize = (1 << 20) - PREFIX_LEN;
/// Most columns in a schema.
pub const MAX_COLUMNS: usize = 64;
/// Longest name of a column in bytes.
pub const MAX_NAME: usize = 64;
/// Most dimensions of a sample.
pub const MAX_RANK: usize = 8;
/// Most samples in a block.
pub const MAX_BLOCK_SAMPLES: u32 = 65_536;
/// Most bytes of one column of one block, uncompressed: 256 MiB.
pub const MAX_BLOCK_BYTES: usize = 1 << 28;
/// Most samples in a shard: 1,048,576.
pub const MAX_SAMPLES: u32 = 1 << 20;
/// Most frames, which is blocks times columns, in a shard: 1,048,576.
pub const MAX_FRAMES: usize = 1 << 20;
/// Longest key in bytes.
pub const MAX_KEY_LEN: usize = 4096;
/// Largest key table in bytes, uncompressed: 64 MiB.
pub const MAX_KEYS_LEN: usize = 1 << 26;

/// Longest zstd frame in which `raw` bytes may be stored: a little over zstd's own bound, and simpler to state.
pub(crate) const fn max_frame_len(raw: usize) -> usize {
    raw + raw / 256 + 64
}

/// Longest footer in bytes, about 100 MiB: the most frames, each in a block of its own; the most samples; the largest
/// key table.
pub(crate) const MAX_FOOTER_LEN: usize =
    COUNTS_LEN + MAX_FRAMES * 24 + MAX_SAMPLES as usize * 9 + max_frame_len(MAX_KEYS_LEN);

/// Bytes 0..32 of a shard, less the magic and the reserved field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// Length of the padded JSON header.
    pub(crate) header_len: u32,
    /// Where the footer begins; 0 while the shard is being written.
    pub(crate) footer_off: u64,
    /// xxh3 of the padded JSON header.
    pub(crate) header_xxh3: u64,
}

impl Prefix {
    pub(crate) fn to_bytes(self) -> [u8; PREFIX_LEN] {
        let mut bytes = [0; PREFIX_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.header_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.footer_off.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.header_xxh3.to_le_bytes());
        bytes
    }

    /// Parses and checks the prefix, as far as it can be checked by itself.
    pub(crate) fn from_bytes(path: &Path, bytes: &[u8; PREFIX_LEN]) -> Result<Self, ShardError> {
        check_magic(path, Place::Prefix, array(bytes, 0))?;
        let reserved = u32::from_le_bytes(array(bytes, 12));
        if reserved != 0 {
            return Err(ShardError::Reserved { path: path.to_owned(), place: Place::Prefix, got: reserved.into() });
        }
        let header_len = u32::from_le_bytes(array(bytes, 8));
        let end = header_len as usize + PREFIX_LEN;
        if header_len as usize > MAX_HEADER_LEN || !end.is_multiple_of(ALIGNMENT) {
            let (max, got) = (MAX_HEADER_LEN as u64, header_len.into());
            return Err(ShardError::HeaderLength { path: path.to_owned(), max, got });
        }
        let footer_off = u64::from_le_bytes(array(bytes, 16));
        if footer_off == 0 {
            return Err(ShardError::Unfinished { path: path.to_owned() });
        }
        Ok(Self { header_len, footer_off, header_xxh3: u64::from_le_bytes(array(bytes, 24)) })
    }
}

/// The last 64 bytes of a shard, less the reserved field, its own checksum and the magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Where the footer begins.
    pub(crate) footer_off: u64,
    /// Length of the footer.
    pub(crate) footer_len: u64,
    /// xxh3 of the footer.
    pub(crate) footer_xxh3: u64,
    /// xxh3 of everything between prefix and tail.
    pub(crate) body_xxh3: u64,
    /// Samples in the shard.
    pub(crate) samples: u64,
}

impl Tail {
    pub(crate) fn to_bytes(self) -> [u8; TAIL_LEN] {
        let mut bytes = [0; TAIL_LEN];
        let fields = [self.footer_off, self.footer_len, self.footer_xxh3, self.body_xxh3, self.samples];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        let own = xxh3_64(&bytes[..48]);
        bytes[48..56].copy_from_slice(&own.to_le_bytes());
        bytes[56..64].copy_from_slice(&MAGIC);
        bytes
    }

    /// Parses and checks the tail, as far as it can be checked by itself.
    pub(crate) fn from_bytes(path: &Path, bytes: &[u8; TAIL_LEN]) -> Result<Self, ShardError> {
        check_magic(path, Place::Tail, array(bytes, 56))?;
        let (expected, got) = (u64::from_le_bytes(array(bytes, 48)), xxh3_64(&bytes[..48]));
        if expected != got {
            return Err(ShardError::Checksum { path: path.to_owned(), place: Place::Tail, expected, got });
        }
        let field = |at: usize| u64::from_le_bytes(array(bytes, at));
        if field(40) != 0 {
            return Err(ShardError::Reserved { path: path.to_owned(), place: Place::Tail, got: field(40) });
        }
        let samples = field(32);
        if samples > MAX_SAMPLES.into() {
            return Err(ShardError::TooLarge {
                path: path.to_owned(),
                what: "the number of samples".into(),
                max: MAX_SAMPLES.into(),
                got: samples,
            });
        }
        Ok(Self { footer_off: field(0), footer_len: field(8), footer_xxh3: field(16), body_xxh3: field(24), samples })
    }
}

fn check_magic(path: &Path, place: Place, got: [u8; 8]) -> Result<(), ShardError> {
    if got[..7] != MAGIC[..7] {
        return Err(ShardError::Magic { path: path.to_owned(), place, got });
    }
    if got[7] != MAGIC[7] {
        return Err(ShardError::Version { path: path.to_owned(), expected: VERSION, got: got[7].into() });
    }
    Ok(())
}

/// `N` bytes of a fixed-size array from `at`, which the callers above keep inside it.
fn array<const N: usize, const M: usize>(bytes: &[u8; M], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_and_tail_are_read_back_as_written() {
        let prefix = Prefix { header_len: 4064, footer_off: 1 << 40, header_xxh3: u64::MAX };
        assert_eq!(Prefix::from_bytes(Path::new("x"), &prefix.to_bytes()).unwrap(), prefix);
        let tail = Tail { footer_off: 4096, footer_len: 77, footer_xxh3: 1, body_xxh3: 2, samples: 130 };
        assert_eq!(Tail::from_bytes(Path::new("x"), &tail.to_bytes()).unwrap(), tail);
    }

    #[test]
    fn the_frame_bound_is_not_below_the_one_of_zstd() {
        for raw in (0..1 << 19).step_by(7).chain([MAX_BLOCK_BYTES]) {
            assert!(max_frame_len(raw) >= zstd::zstd_safe::compress_bound(raw), "{raw}");
        }
    }
}
