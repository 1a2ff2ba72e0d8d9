//! A dataset: the manifest and all of its shards, open and checked against each other.

use std::io;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use crate::error::ShardError;
use crate::manifest::Manifest;
use crate::read::ShardReader;
use crate::source::Io;
use crate::write::ShardEntry;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Index into [`Dataset::shards`].
    pub shard: usize,
    /// Block of that shard.
    pub block: usize,
}

/// Where a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SampleRef {
    /// The block that holds it.
    pub block: BlockRef,
    /// Its place in the block.
    pub index: usize,
}

/// An open dataset. Samples and blocks are numbered through all shards in the order of the manifest.
#[derive(Debug)]
pub struct Dataset {
    /// The manifest.
    pub manifest: Manifest,
    /// Its shards, in its order.
    pub shards: Vec<ShardReader>,
    /// Samples and blocks before every shard, and at the end their totals.
    starts: Vec<(usize, usize)>,
}

impl Dataset {
    /// Opens `dir/dataset.json` and every shard it lists; no frame is read.
    ///
    /// # Errors
    /// What [`Manifest::load`] and [`ShardReader::open`] find; [`ShardError::ShardMissing`],
    /// [`ShardError::ShardMismatch`], [`ShardError::Label`] where the shards are not those that the manifest describes.
    pub fn open(dir: impl AsRef<Path>, io: Io) -> Result<Self, ShardError> {
        let dir = dir.as_ref();
        let manifest = Manifest::load(dir)?;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut starts = vec![(0, 0)];
        let (mut samples, mut blocks) = (0, 0);
        for (number, entry) in manifest.shards.iter().enumerate() {
            let shard = open_listed(&dir.join(&entry.file), io)?;
            if let Some(error) = differences(&manifest, number, entry, &shard).into_iter().next() {
                return Err(error);
            }
            samples += shard.len();
            blocks += shard.blocks();
            starts.push((samples, blocks));
            shards.push(shard);
        }
        Ok(Self { manifest, shards, starts })
    }

    /// Samples in all shards.
    pub fn len(&self) -> usize {
        self.starts.last().map_or(0, |&(samples, _)| samples)
    }

    /// True without samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks in all shards.
    pub fn blocks(&self) -> usize {
        self.starts.last().map_or(0, |&(_, blocks)| blocks)
    }

    /// Samples in every block, in order: full blocks, and a short one at the end of a shard.
    pub fn block_lens(&self) -> impl Iterator<Item = usize> + '_ {
        self.shards.iter().flat_map(|shard| (0..shard.blocks()).map(|block| shard.block_len(block)))
    }

    /// The block with this number, counted through all shards; `None` past the end.
    pub fn block(&self, number: usize) -> Option<BlockRef> {
        // The last shard that begins at or before it: shards without blocks begin where the next one does.
        let shard = self.starts.partition_point(|&(_, start)| start <= number).checked_sub(1)?;
        let (_, start) = *self.starts.get(shard)?;
        (shard < self.shards.len()).then_some(BlockRef { shard, block: number - start })
    }

    /// Where the sample with this number is, counted through all shards; `None` past the end.
    pub fn block_of(&self, position: usize) -> Option<SampleRef> {
        let shard = self.starts.partition_point(|&(start, _)| start <= position).checked_sub(1)?;
        let (start, _) = *self.starts.get(shard)?;
        let block_samples = self.manifest.schema.block_samples as usize;
        let (block, index) = ((position - start) / block_samples, (position - start) % block_samples);
        (shard < self.shards.len()).then_some(SampleRef { block: BlockRef { shard, block }, index })
    }

    /// Identifies the contents: xxh3 over samples (u32), bytes (u64) and xxh3 (u64) of every shard, little-endian, in
    /// order. File names and the manifest's other fields do not enter.
    pub fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        for entry in &self.manifest.shards {
            hasher.update(&entry.samples.to_le_bytes());
            hasher.update(&entry.bytes.to_le_bytes());
            hasher.update(&entry.xxh3.to_le_bytes());
        }
        hasher.digest()
    }
}

/// Opens a shard that the manifest lists.
pub(crate) fn open_listed(path: &Path, io: Io) -> Result<ShardReader, ShardError> {
    ShardReader::open(path, io).map_err(|error| match error {
        ShardError::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            ShardError::ShardMissing { path }
        }
        other => other,
    })
}

/// Everything in which a shard is not the one that the manifest lists as `entry`, its number `number`; of its labels,
/// the first that is no class.
pub(crate) fn differences(
    manifest: &Manifest,
    number: usize,
    entry: &ShardEntry,
    shard: &ShardReader,
) -> Vec<ShardError> {
    let path = || shard.path().to_owned();
    let header = shard.header();
    let count = |number: u64| number.to_string();
    let of = |shard: usize, shards: usize| format!("{shard} of {shards}");
    let fields = [
        ("length in bytes", count(entry.bytes), count(shard.file_len())),
        ("number of samples", count(entry.samples.into()), count(shard.len() as u64)),
        ("checksum", format!("{:016x}", entry.xxh3), format!("{:016x}", shard.xxh3())),
        ("number", of(number, manifest.shards.len()), of(header.shard as usize, header.shards as usize)),
        ("schema", format!("{:?}", manifest.schema), format!("{:?}", header.schema)),
    ];
    let different = fields.into_iter().filter(|(_, expected, got)| expected != got);
    let mismatch = |(field, expected, got)| ShardError::ShardMismatch { path: path(), field, expected, got };
    let mut errors: Vec<_> = different.map(mismatch).collect();
    let classes = manifest.classes.len();
    let outside = |label: i32| usize::try_from(label).map_or(true, |label| label >= classes);
    let mut labels = shard.labels().iter().copied().enumerate();
    if let Some((sample, got)) = labels.find(|&(_, label)| classes > 0 && outside(label)) {
        errors.push(ShardError::Label { path: path(), sample, classes, got });
    }
    errors
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{MANIFEST, fixture};

    #[test]
    fn samples_and_blocks_are_numbered_through_all_shards() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = [10, 0, 3, 4];
        fixture::write_dataset(dir.path(), &sizes).unwrap();
        let dataset = Dataset::open(dir.path(), Io::Auto).unwrap();
        assert_eq!((dataset.len(), dataset.blocks()), (17, 5));
        assert_eq!(dataset.block_lens().collect::<Vec<_>>(), [4, 4, 2, 3, 4]);
        let mut position = 0;
        for (shard, &samples) in sizes.iter().enumerate() {
            for sample in 0..samples as usize {
                let block = BlockRef { shard, block: sample / 4 };
                assert_eq!(dataset.block_of(position), Some(SampleRef { block, index: sample % 4 }), "{position}");
                position += 1;
            }
        }
        assert_eq!(dataset.block_of(17), None);
        let blocks: Vec<_> = (0..6).map(|number| dataset.block(number)).collect();
        let expected = [(0, 0), (0, 1), (0, 2), (2, 0), (3, 0)].map(|(shard, block)| Some(BlockRef { shard, block }));
        assert_eq!(blocks, [&expected[..], &[None]].concat());
    }

    #[test]
    fn the_hash_changes_with_the_data_and_with_nothing_else() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        fixture::write_dataset(dirs[0].path(), &[10, 3]).unwrap();
        fixture::write_dataset(dirs[1].path(), &[10, 4]).unwrap();
        let mut manifest = fixture::write_dataset(dirs[2].path(), &[10, 3]).unwrap();
        manifest.classes.clear();
        manifest.save(dirs[2].path()).unwrap();
        let hashes = dirs.each_ref().map(|dir| Dataset::open(dir.path(), Io::Ram).unwrap().hash());
        assert_eq!(hashes[0], hashes[2]);
        assert_ne!(hashes[0], hashes[1]);
    }

    #[test]
    fn an_empty_dataset_opens() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_dataset(dir.path(), &[]).unwrap();
        let dataset = Dataset::open(dir.path(), Io::Auto).unwrap();
        assert!(dataset.is_empty() && dataset.block(0).is_none() && dataset.block_of(0).is_none());
    }

    #[test]
    fn a_missing_folder_is_not_called_an_unfinished_dataset() {
        let dir = tempfile::tempdir().unwrap();
        let error = Dataset::open(dir.path().join("none"), Io::Auto).unwrap_err();
        assert!(matches!(error, ShardError::Io { .. }), "{error}");
    }

    #[test]
    fn the_same_dataset_gives_the_same_manifest_byte_for_byte() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let texts = dirs.each_ref().map(|dir| {
            fixture::write_dataset(dir.path(), &[10, 3]).unwrap();
            fs::read_to_string(dir.path().join(MANIFEST)).unwrap()
        });
        assert_eq!(texts[0], texts[1]);
        assert!(texts[0].starts_with("{\n  \"format\": \"latent-dataset\",\n  \"version\": 1,\n  \"samples\": 13,\n"));
    }
}
