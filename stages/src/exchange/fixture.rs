//! Small datasets for the tests of this module.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use shards::{Codec, Column, DType, Dataset, Header, Io, Manifest, SampleMeta, Schema, Semantics, ShardWriter};

use crate::splitmix::SplitMix64;

pub(super) const MEAN: (&str, Semantics) = ("mean", Semantics::PosteriorMean);
pub(super) const LOGVAR: (&str, Semantics) = ("logvar", Semantics::PosteriorLogvar);
pub(super) const STD: (&str, Semantics) = ("std", Semantics::PosteriorStd);

/// Samples of `[2, 3, 3]` in blocks of 64.
pub(super) fn schema(columns: &[(&str, Semantics)], dtype: DType) -> Schema {
    let column = |(name, semantics): &(&str, Semantics)| Column {
        name: (*name).to_owned(),
        dtype,
        shape: vec![2, 3, 3],
        codec: Codec::ShuffleZstd { level: 1 },
        semantics: *semantics,
    };
    Schema {
        columns: columns.iter().map(column).collect(),
        block_samples: 64,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        scaling_applied: false,
        pixel_range: [-1.0, 1.0],
    }
}

/// Values of one column as little-endian bytes: f16 in [-4, 4], f32 of any bits.
pub(super) fn values(dtype: DType, samples: usize, seed: u64) -> Vec<u8> {
    let mut random = SplitMix64::new(seed);
    let count = samples * 18;
    match dtype {
        DType::F16 => (0..count)
            .flat_map(|_| f16::from_f64((random.bits() >> 40) as f64 / f64::from(1 << 21) - 4.0).to_le_bytes())
            .collect(),
        DType::F32 => (0..count).flat_map(|_| (random.bits() as u32).to_le_bytes()).collect(),
    }
}

/// A dataset of shards of these sizes in `dir`; three classes.
pub(super) fn dataset(dir: &Path, schema: &Schema, sizes: &[usize]) -> Arc<Dataset> {
    std::fs::create_dir_all(dir).unwrap();
    let mut entries = Vec::new();
    let mut position = 0;
    for (shard, &samples) in sizes.iter().enumerate() {
        let header = Header::new(schema.clone(), shard as u32, sizes.len() as u32, BTreeMap::new());
        let mut writer = ShardWriter::create(dir.join(format!("shard-{shard:05}.lat")), header).unwrap();
        let columns: Vec<_> = (0..)
            .zip(&schema.columns)
            .map(|(c, column)| values(column.dtype, samples, 100 * shard as u64 + c))
            .collect();
        for start in (0..samples).step_by(64) {
            let end = (start + 64).min(samples);
            let rows: Vec<&[u8]> = columns
                .iter()
                .zip(&schema.columns)
                .map(|(bytes, column)| &bytes[start * column.sample_bytes()..end * column.sample_bytes()])
                .collect();
            let keys: Vec<_> = (start..end).map(|i| format!("a/{}.jpg", position + i)).collect();
            let metas: Vec<_> = (start..end)
                .zip(&keys)
                .map(|(i, key)| SampleMeta {
                    label: ((position + i) % 3) as i32,
                    source_index: (7000 - position - i) as u32,
                    flags: (i % 2) as u8,
                    key,
                })
                .collect();
            writer.write_block(&rows, &metas).unwrap();
        }
        entries.push(writer.finish().unwrap());
        position += samples;
    }
    let mut manifest = Manifest::new(schema.clone(), entries, BTreeMap::new());
    manifest.classes = ["cat", "dog", "fox"].map(str::to_owned).to_vec();
    manifest.save(dir).unwrap();
    Arc::new(Dataset::open(dir, Io::Pread).unwrap())
}
