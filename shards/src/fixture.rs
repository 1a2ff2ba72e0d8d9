//! Test support: a small shard whose every value follows from a formula; the golden file is this shard.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::{
    Codec, Column, DType, Header, Manifest, SampleMeta, Schema, Semantics, ShardEntry, ShardError, ShardWriter, flags,
};

/// Samples in the golden file: two full blocks and a short one.
pub(crate) const SAMPLES: u32 = 130;

fn column(name: &str, dtype: DType, shape: &[u32], codec: Codec, semantics: Semantics) -> Column {
    Column { name: name.into(), dtype, shape: shape.to_vec(), codec, semantics }
}

/// All dtypes and all codecs.
pub(crate) fn schema(block_samples: u32) -> Schema {
    let zstd = Codec::ShuffleZstd { level: 1 };
    Schema {
        columns: vec![
            column("mean", DType::F16, &[4, 4, 4], zstd, Semantics::PosteriorMean),
            column("logvar", DType::F16, &[4, 2, 2], Codec::None, Semantics::PosteriorLogvar),
            column("sample", DType::F32, &[4, 2], zstd, Semantics::Sample),
        ],
        block_samples,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        scaling_applied: false,
        pixel_range: [-1.0, 1.0],
    }
}

pub(crate) fn header(block_samples: u32) -> Header {
    let provenance = BTreeMap::from([
        ("vae".to_owned(), json!({"id": "none", "revision": "none"})),
        ("source".to_owned(), json!("the formula in shards/src/fixture.rs")),
    ]);
    Header::new(schema(block_samples), 0, 1, provenance)
}

/// Value `index` of sample `sample` in column `column`: `1 + k / 1024`, negative where `sample + index` is odd, with
/// `k = (37 * sample + 11 * index + 101 * column) % 1024`. Exact in f16 and in f32.
pub(crate) fn value(column: usize, sample: u32, index: usize) -> f32 {
    let k = (37 * sample as usize + 11 * index + 101 * column) % 1024;
    let magnitude = 1.0 + k as f32 / 1024.0;
    if (sample as usize + index).is_multiple_of(2) { magnitude } else { -magnitude }
}

/// The f16 bits of such a value: sign, exponent 15, and the upper ten bits of the mantissa.
fn f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits >> 16) & 0x8000) as u16 | 0x3c00 | ((bits >> 13) & 0x03ff) as u16
}

/// Raw bytes of the samples `range` in column number `c`.
pub(crate) fn raw(c: usize, column: &Column, range: std::ops::Range<u32>) -> Vec<u8> {
    let len = column.sample_bytes() / column.dtype.width();
    let values = range.flat_map(|sample| (0..len).map(move |index| value(c, sample, index)));
    match column.dtype {
        DType::F16 => values.flat_map(|value| f16_bits(value).to_le_bytes()).collect(),
        DType::F32 => values.flat_map(f32::to_le_bytes).collect(),
    }
}

pub(crate) fn label(sample: u32) -> i32 {
    (sample * 7 % 10) as i32
}

pub(crate) fn source_index(sample: u32) -> u32 {
    1000 - sample
}

pub(crate) fn flag(sample: u32) -> u8 {
    if sample.is_multiple_of(50) { flags::PNG | flags::GRAY } else { 0 }
}

pub(crate) fn key(sample: u32) -> String {
    match sample % 5 {
        0 => String::new(),
        1 => format!("ключ/{sample}.png"),
        _ => format!("n{:08}/image_{sample}.JPEG", label(sample)),
    }
}

/// Writes samples `0..samples` of the formula.
pub(crate) fn write(path: &Path, header: Header, samples: u32) -> Result<ShardEntry, ShardError> {
    let block_samples = header.schema.block_samples;
    let columns = header.schema.columns.clone();
    let mut writer = ShardWriter::create(path, header)?;
    for start in (0..samples).step_by(block_samples as usize) {
        let range = start..samples.min(start + block_samples);
        let raw: Vec<_> = columns.iter().enumerate().map(|(c, column)| raw(c, column, range.clone())).collect();
        let keys: Vec<_> = range.clone().map(key).collect();
        let meta = range.zip(&keys).map(|(sample, key)| SampleMeta {
            label: label(sample),
            source_index: source_index(sample),
            flags: flag(sample),
            key,
        });
        writer.write_block(&raw.iter().map(Vec::as_slice).collect::<Vec<_>>(), &meta.collect::<Vec<_>>())?;
    }
    writer.finish()
}

/// Writes a dataset of shards with these numbers of samples, 10 classes, 4 samples a block.
pub(crate) fn write_dataset(dir: &Path, samples: &[u32]) -> Result<Manifest, ShardError> {
    let mut entries = Vec::new();
    let shards = samples.len() as u32;
    for (number, &samples) in samples.iter().enumerate() {
        let header = Header { shard: number as u32, shards, ..header(4) };
        entries.push(write(&dir.join(format!("shard-{number:05}.lat")), header, samples)?);
    }
    let mut manifest = Manifest::new(schema(4), entries, BTreeMap::new());
    manifest.classes = (0..10).map(|class| format!("class {class}")).collect();
    manifest.save(dir)?;
    Ok(manifest)
}
