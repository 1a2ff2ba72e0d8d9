//! First inputs: small valid files with every feature of the formats, written when a target starts and `FUZZ_SEEDS`
//! names the folder for them (`run.sh` does).

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use crate::anatomy;
use shards::{
    ChannelStats, Codec, Column, DType, Header, Histogram, MANIFEST, Manifest, SampleMeta, Schema, Semantics,
    ShardEntry, ShardWriter, Skipped,
};

/// The committed shard of version 1.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/v1.lat");

/// Calls `write` with the folder that `FUZZ_SEEDS` names.
///
/// # Panics
/// Where the seeds cannot be written: a target without them finds nothing.
pub fn plant(write: fn(&Path) -> Result<(), Box<dyn Error>>) {
    if let Some(dir) = std::env::var_os("FUZZ_SEEDS") {
        let dir = PathBuf::from(dir);
        if let Err(error) = write(&dir) {
            panic!("cannot write seeds to {}: {error}", dir.display());
        }
    }
}

/// The golden shard, and shards of every codec and dtype with 0 to 10 samples.
///
/// # Errors
/// What writing them gives.
pub fn shards(dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut paths = vec![dir.join("golden.lat")];
    fs::copy(GOLDEN, &paths[0])?;
    for (block_samples, samples) in [(1, 0), (1, 3), (4, 10)] {
        let path = dir.join(format!("{block_samples}_{samples}.lat"));
        if !path.exists() {
            shard(&path, Header::new(schema(block_samples), 0, 1, provenance()), samples)?;
        }
        paths.push(path);
    }
    for path in paths {
        let bytes = fs::read(&path)?;
        if anatomy::rebuilt(&bytes).as_ref() != Some(&bytes) {
            return Err(format!("src/anatomy.rs does not put {} together as it was", path.display()).into());
        }
    }
    Ok(())
}

/// A dataset of two shards in `dir`: its manifest lists them with statistics, histograms, classes and skipped files.
///
/// # Errors
/// What writing it gives.
pub fn dataset(dir: &Path) -> Result<Manifest, Box<dyn Error>> {
    let entries = (0..2).map(|number| {
        let header = Header::new(schema(4), number, 2, provenance());
        shard(&dir.join(format!("shard-{number:05}.lat")), header, 5 - number)
    });
    let mut manifest = Manifest::new(schema(4), entries.collect::<Result<_, _>>()?, provenance());
    let channel = ChannelStats { mean: 0.1, std: 1.0, min: -2.5, max: 1e-7, non_finite: 1 };
    manifest.stats = BTreeMap::from([("zstd_f16".to_owned(), vec![channel; 2])]);
    let histogram = Histogram { low: -30.0, width: 0.5, counts: vec![1, 2, 3], below: 1, above: 0 };
    manifest.histograms = BTreeMap::from([("none_f32".to_owned(), histogram)]);
    manifest.classes = (0..10).map(|class| format!("class {class}")).collect();
    manifest.skipped = vec![Skipped { key: "n1/é.jpg".into(), reason: "cut short".into() }];
    manifest.save(dir)?;
    Ok(manifest)
}

/// The manifest of [`dataset`], one without anything, and one of many shards that are not there.
///
/// # Errors
/// What writing them gives.
pub fn manifests(dir: &Path) -> Result<(), Box<dyn Error>> {
    let room = tempfile::tempdir()?;
    let full = dataset(room.path())?;
    let empty = Manifest::new(schema(4), Vec::new(), BTreeMap::new());
    let entry = |number| ShardEntry { file: format!("{number}.lat"), samples: 7, bytes: 5000, xxh3: u64::MAX };
    let many = Manifest::new(schema(1), (0..20).map(entry).collect(), BTreeMap::new());
    for (name, manifest) in [("full", full), ("empty", empty), ("many", many)] {
        manifest.save(room.path())?;
        fs::copy(room.path().join(MANIFEST), dir.join(name))?;
    }
    Ok(())
}

/// Every codec with both dtypes: `[2, 3]` numbers a sample.
fn schema(block_samples: u32) -> Schema {
    let codecs = [Codec::None, Codec::Zstd { level: 3 }, Codec::ShuffleZstd { level: 1 }];
    let columns = [DType::F16, DType::F32].into_iter().flat_map(|dtype| {
        codecs.map(|codec| Column {
            name: format!("{}_{}", codec.name(dtype).replace('+', "_"), dtype.name()),
            dtype,
            shape: vec![2, 3],
            codec,
            semantics: Semantics::PosteriorLogvar,
        })
    });
    Schema {
        columns: columns.collect(),
        block_samples,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        scaling_applied: false,
        pixel_range: [-1.0, 1.0],
    }
}

fn provenance() -> BTreeMap<String, serde_json::Value> {
    BTreeMap::from([("vae".to_owned(), serde_json::json!({"id": "none", "list": [1, -0.5, null, true, "\u{1f600}"]}))])
}

fn shard(path: &Path, header: Header, samples: u32) -> Result<ShardEntry, Box<dyn Error>> {
    let (columns, block_samples) = (header.schema.columns.clone(), header.schema.block_samples);
    let mut writer = ShardWriter::create(path, header)?;
    for start in (0..samples).step_by(block_samples as usize) {
        let range = start..samples.min(start + block_samples);
        let raw: Vec<Vec<u8>> =
            columns.iter().map(|column| (0..column.sample_bytes() * range.len()).map(|i| i as u8).collect()).collect();
        let keys: Vec<String> = range.clone().map(|sample| format!("n{sample}/é{sample}.png")).collect();
        let meta = range.zip(&keys).map(|(sample, key)| SampleMeta {
            label: sample as i32,
            source_index: sample,
            flags: sample as u8,
            key,
        });
        writer.write_block(&raw.iter().map(Vec::as_slice).collect::<Vec<_>>(), &meta.collect::<Vec<_>>())?;
    }
    Ok(writer.finish()?)
}
