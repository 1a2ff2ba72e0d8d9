//! Verification of a dataset that goes on after damage, so that one run names all of it.
//!
//! Shards are independent of each other: a caller with several threads gives each its own shards ([`verify_shard`]) and
//! adds up what they return. There are no threads here, and nothing is repaired. Files that the manifest does not list
//! are not looked at.

use std::ops::AddAssign;
use std::path::Path;

use crate::dataset::{differences, open_listed};
use crate::error::ShardError;
use crate::manifest::Manifest;
use crate::source::Io;

/// How much of a shard is read to verify it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Depth {
    /// Header, footer and tail: finds missing, unfinished, cut and exchanged shards, not a flipped bit in a frame.
    Fast,
    /// Every byte; every frame is inflated.
    #[default]
    Full,
}

/// What a verification has read, and how much was wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Shards that were looked for, missing ones included.
    pub shards: u64,
    /// Blocks of which every column was read; none with [`Depth::Fast`].
    pub blocks: u64,
    /// Samples in the shards that could be opened.
    pub samples: u64,
    /// Bytes that were read in the shards that could be opened.
    pub bytes: u64,
    /// Errors that were reported.
    pub bad: u64,
}

impl AddAssign for Verified {
    fn add_assign(&mut self, other: Self) {
        self.shards += other.shards;
        self.blocks += other.blocks;
        self.samples += other.samples;
        self.bytes += other.bytes;
        self.bad += other.bad;
    }
}

/// Verifies the dataset in `dir`, shard after shard in the order of the manifest. `report` is told of everything that is
/// wrong, as by [`verify_shard`].
///
/// # Errors
/// What [`Manifest::load`] finds; whatever is wrong with a shard is reported instead.
pub fn verify(
    dir: impl AsRef<Path>,
    io: Io,
    depth: Depth,
    report: &mut dyn FnMut(ShardError),
) -> Result<Verified, ShardError> {
    let dir = dir.as_ref();
    let manifest = Manifest::load(dir)?;
    let mut verified = Verified::default();
    for number in 0..manifest.shards.len() {
        verified += verify_shard(dir, &manifest, number, io, depth, report);
    }
    Ok(verified)
}

/// Verifies shard `number` of the manifest, from 0. `report` is told, in this order, of the one reason why it cannot be
/// opened, of every field in which it is not what the manifest says, of the first label that is no class, and with
/// [`Depth::Full`] of every bad frame and of the body ([`crate::ShardReader::verify`]). [`Io::Pread`] reads on behind a
/// disk error.
///
/// A number that the manifest does not have is reported as [`ShardError::ShardMismatch`].
pub fn verify_shard(
    dir: impl AsRef<Path>,
    manifest: &Manifest,
    number: usize,
    io: Io,
    depth: Depth,
    report: &mut dyn FnMut(ShardError),
) -> Verified {
    let dir = dir.as_ref();
    let unopened = Verified { shards: 1, bad: 1, ..Verified::default() };
    let Some(entry) = manifest.shards.get(number) else {
        let (expected, got) = (format!("less than {}", manifest.shards.len()), number.to_string());
        report(ShardError::ShardMismatch { path: dir.to_owned(), field: "shard number", expected, got });
        return unopened;
    };
    let shard = match open_listed(&dir.join(&entry.file), io) {
        Ok(shard) => shard,
        Err(error) => {
            report(error);
            return unopened;
        }
    };
    let differences = differences(manifest, number, entry, &shard);
    let bad = differences.len() as u64;
    differences.into_iter().for_each(&mut *report);
    let mut verified = match depth {
        Depth::Fast => {
            Verified { shards: 1, samples: shard.len() as u64, bytes: shard.index_len(), ..Verified::default() }
        }
        Depth::Full => shard.verify(report),
    };
    verified.bad += bad;
    verified
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Place, fixture};

    const EVERY_IO: [Io; 4] = [Io::Auto, Io::Mmap, Io::Pread, Io::Ram];

    /// Three shards of 10, 6 and 3 samples, 4 a block, in 3 columns.
    fn dataset() -> (tempfile::TempDir, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        let manifest = fixture::write_dataset(dir.path(), &[10, 6, 3]).unwrap();
        (dir, manifest)
    }

    fn run(dir: &Path, io: Io, depth: Depth) -> (Verified, Vec<ShardError>) {
        let mut reports = Vec::new();
        let verified = verify(dir, io, depth, &mut |error| reports.push(error)).unwrap();
        assert_eq!(verified.bad, reports.len() as u64);
        (verified, reports)
    }

    fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_whole_dataset_is_read_to_the_last_byte_and_nothing_is_reported() {
        let (dir, manifest) = dataset();
        let all: u64 = manifest.shards.iter().map(|entry| entry.bytes).sum();
        for io in EVERY_IO {
            let expected = Verified { shards: 3, blocks: 3 + 2 + 1, samples: 19, bytes: all, bad: 0 };
            assert_eq!(run(dir.path(), io, Depth::Full).0, expected);
            let (fast, _) = run(dir.path(), io, Depth::Fast);
            assert_eq!((fast.shards, fast.blocks, fast.samples, fast.bad), (3, 0, 19, 0));
            assert!(fast.bytes < all && fast.bytes > 3 * 4096, "{fast:?}");
        }
    }

    #[test]
    fn every_bad_block_of_every_shard_is_named_and_then_the_body() {
        let (dir, manifest) = dataset();
        let path = |number: usize| dir.path().join(&manifest.shards[number].file);
        let footer_at = |bytes: &[u8]| u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
        for number in [0, 2] {
            edit(&path(number), |bytes| {
                let last = footer_at(bytes) - 1;
                bytes[4096] ^= 1;
                bytes[last] ^= 1;
            });
        }
        for io in EVERY_IO {
            let (verified, reports) = run(dir.path(), io, Depth::Full);
            let places = reports.iter().map(|error| match error {
                ShardError::Checksum { path, place, .. } => (path.clone(), *place),
                other => panic!("{other}"),
            });
            let frame = |block, column| Place::Frame { block, column };
            let expected = [
                (path(0), frame(0, 0)),
                (path(0), frame(2, 2)),
                (path(0), Place::Body),
                (path(2), frame(0, 0)),
                (path(2), frame(0, 2)),
                (path(2), Place::Body),
            ];
            assert_eq!(places.collect::<Vec<_>>(), expected);
            assert_eq!((verified.shards, verified.blocks, verified.samples), (3, 6, 19));
            assert_eq!(run(dir.path(), io, Depth::Fast).1.len(), 0, "frames are not read");
        }
    }

    #[test]
    fn missing_unreadable_and_exchanged_shards_do_not_hide_the_others() {
        let (dir, manifest) = dataset();
        let path = |number: usize| dir.path().join(&manifest.shards[number].file);
        fs::remove_file(path(0)).unwrap();
        fs::copy(path(2), path(1)).unwrap();
        edit(&path(2), |bytes| bytes.truncate(4200));
        for depth in [Depth::Fast, Depth::Full] {
            let (verified, reports) = run(dir.path(), Io::Pread, depth);
            assert!(matches!(&reports[0], ShardError::ShardMissing { path: at } if *at == path(0)), "{reports:?}");
            let fields: Vec<_> = reports[1..reports.len() - 1]
                .iter()
                .map(|error| match error {
                    ShardError::ShardMismatch { path: at, field, .. } if *at == path(1) => *field,
                    other => panic!("{other}"),
                })
                .collect();
            assert_eq!(fields, ["length in bytes", "number of samples", "checksum", "number"]);
            assert!(matches!(reports.last(), Some(ShardError::Magic { place: Place::Tail, .. })), "{reports:?}");
            assert_eq!((verified.shards, verified.samples), (3, 3));
        }
    }

    #[test]
    fn a_label_that_is_no_class_and_a_schema_that_differs_are_reported_without_reading_frames() {
        let (dir, mut manifest) = dataset();
        manifest.classes.truncate(7);
        manifest.schema.scaling_factor = 0.5;
        manifest.save(dir.path()).unwrap();
        let (_, reports) = run(dir.path(), Io::Auto, Depth::Fast);
        assert_eq!(reports.len(), 6);
        for pair in reports.chunks(2) {
            assert!(matches!(&pair[0], ShardError::ShardMismatch { field: "schema", .. }), "{}", pair[0]);
            assert!(matches!(&pair[1], ShardError::Label { sample: 1, classes: 7, got: 7, .. }), "{}", pair[1]);
        }
    }

    #[test]
    fn shards_that_are_verified_one_by_one_add_up_to_the_dataset() {
        let (dir, manifest) = dataset();
        edit(&dir.path().join(&manifest.shards[1].file), |bytes| bytes[4100] ^= 1);
        let mut sum = Verified::default();
        for number in (0..3).rev() {
            sum += verify_shard(dir.path(), &manifest, number, Io::Ram, Depth::Full, &mut |_| {});
        }
        assert_eq!(sum, run(dir.path(), Io::Ram, Depth::Full).0);
        let mut reports = Vec::new();
        verify_shard(dir.path(), &manifest, 3, Io::Ram, Depth::Full, &mut |error| reports.push(error));
        assert!(matches!(reports[..], [ShardError::ShardMismatch { .. }]), "{reports:?}");
    }

    #[test]
    fn without_a_manifest_there_is_nothing_to_verify() {
        let dir = tempfile::tempdir().unwrap();
        let verified = verify(dir.path(), Io::Auto, Depth::Fast, &mut |error| panic!("{error}"));
        assert!(matches!(verified, Err(ShardError::NoManifest { .. })));
    }
}
