//! The records that every loader reads, and the two datasets of ours that hold them.
//!
//! A record is what Stable Diffusion's autoencoder gives for a picture of 256 x 256: mean and log-variance, f16
//! [4, 32, 32] each, 16 KiB, and a label of 1,000 classes. The values are random fields with the statistics that decide
//! about compression: amplitudes fall with the spatial frequency as 1/f^0.8; the mean has a deviation of 4.4, as
//! unscaled latents have, the log-variance 1.5 around -14.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde_json::{Value, json};
use shards::{
    Codec, Column, DType, Header, MANIFEST, Manifest, SampleMeta, Schema, Semantics, ShardEntry, ShardError,
    ShardWriter,
};
use xxhash_rust::xxh3::Xxh3;

/// Bytes of one of the two columns of a record.
pub const COLUMN_BYTES: usize = CHANNELS * VALUES * 2;
/// Samples in a block.
pub const BLOCK: usize = 64;
/// Shards of a dataset; 8,192 samples each in the default 131,072.
pub const SHARDS: usize = 16;
/// The datasets below the bench's folder, by codec.
pub const DATASETS: [(&str, Codec); 2] =
    [("shards-zstd", Codec::ShuffleZstd { level: 1 }), ("shards-none", Codec::None)];

const CHANNELS: usize = 4;
const SIDE: usize = 32;
const VALUES: usize = SIDE * SIDE;
const CLASSES: u64 = 1000;

/// Writes the datasets and `expected.json` into `dir`, unless they are there. `count` is a multiple of
/// [`SHARDS`] * [`BLOCK`].
pub fn write(dir: &Path, count: usize) -> Result<(), ShardError> {
    let expected = dir.join("expected.json");
    if expected.exists() {
        return Ok(());
    }
    for (name, _) in DATASETS {
        // What a broken run left.
        let _ = fs::remove_dir_all(dir.join(name));
        fs::create_dir_all(dir.join(name)).expect("the bench's folder can be written");
    }
    let fields = Fields::new();
    let half = SHARDS / 2;
    let parts = std::thread::scope(|scope| {
        let second = scope.spawn(|| shards(dir, &fields, half..SHARDS, count));
        let first = shards(dir, &fields, 0..half, count)?;
        let second = second.join().expect("the other half panicked")?;
        Ok::<_, ShardError>([first, second].concat())
    })?;
    for (at, (name, codec)) in DATASETS.into_iter().enumerate() {
        let entries = parts.iter().map(|(entries, _)| entries[at].clone()).collect();
        Manifest::new(schema(codec), entries, BTreeMap::new()).save(dir.join(name))?;
    }
    let sum = parts.iter().fold(0, |sum: u64, (_, part)| sum.wrapping_add(*part));
    let answer = json!({"ids": count, "distinct": count, "sum": format!("{sum:016x}")});
    fs::write(expected, answer.to_string()).expect("the bench's folder can be written");
    Ok(())
}

/// What a whole epoch has to give: `ids`, `distinct`, `sum`.
pub fn expected(dir: &Path) -> Value {
    let text = fs::read(dir.join("expected.json")).expect("`write` has made it");
    serde_json::from_slice(&text).expect("`write` has made it")
}

/// The manifest of one of the [`DATASETS`].
pub fn manifest(dir: &Path, name: &str) -> Manifest {
    Manifest::load(dir.join(name))
        .unwrap_or_else(|error| panic!("{}: {error}", dir.join(name).join(MANIFEST).display()))
}

/// What the check adds up for a sample.
pub fn digest(id: u64, mean: &[u8], logvar: &[u8], label: i64) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(mean);
    hasher.update(logvar);
    hasher.update(&label.to_le_bytes());
    hasher.digest()
}

/// Writes some of the shards of both datasets: for each its entry in both manifests, and the sum of its digests.
fn shards(
    dir: &Path,
    fields: &Fields,
    numbers: std::ops::Range<usize>,
    count: usize,
) -> Result<Vec<([ShardEntry; 2], u64)>, ShardError> {
    let samples = count / SHARDS;
    let mut columns = [(); 2].map(|()| vec![0; BLOCK * COLUMN_BYTES]);
    let one = |number: usize| {
        let mut sum = 0u64;
        let writer = |(name, codec)| {
            let header = Header::new(schema(codec), number as u32, SHARDS as u32, BTreeMap::new());
            ShardWriter::create(dir.join(name).join(format!("shard-{number:05}.lat")), header)
        };
        let [mut zstd, mut none] = [writer(DATASETS[0])?, writer(DATASETS[1])?];
        for first in (number * samples..(number + 1) * samples).step_by(BLOCK) {
            let labels: Vec<i32> = (first..first + BLOCK).map(|id| label(id as u64)).collect();
            let [mean, logvar] = &mut columns;
            let latents = mean.chunks_exact_mut(COLUMN_BYTES).zip(logvar.chunks_exact_mut(COLUMN_BYTES));
            for (at, (mean, logvar)) in latents.enumerate() {
                let id = (first + at) as u64;
                fields.fill(id, mean, logvar);
                sum = sum.wrapping_add(digest(id, mean, logvar, labels[at].into()));
            }
            let samples: Vec<SampleMeta<'_>> = labels
                .iter()
                .zip(first as u32..)
                .map(|(&label, source_index)| SampleMeta { label, source_index, flags: 0, key: "" })
                .collect();
            for writer in [&mut zstd, &mut none] {
                writer.write_block(&[mean, logvar], &samples)?;
            }
        }
        Ok(([zstd.finish()?, none.finish()?], sum))
    };
    numbers.map(one).collect()
}

fn schema(codec: Codec) -> Schema {
    let column = |name: &str, semantics| Column {
        name: name.to_owned(),
        dtype: DType::F16,
        shape: [CHANNELS, SIDE, SIDE].map(|n| n as u32).to_vec(),
        codec,
        semantics,
    };
    Schema {
        columns: vec![column("mean", Semantics::PosteriorMean), column("logvar", Semantics::PosteriorLogvar)],
        block_samples: BLOCK as u32,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        scaling_applied: false,
        pixel_range: [-1.0, 1.0],
    }
}

fn label(id: u64) -> i32 {
    (SplitMix(!id).next() % CLASSES) as i32
}

/// Random fields of unit deviation, by the inverse cosine transform of random coefficients.
struct Fields {
    /// Row `u` is the cosine of frequency `u`.
    basis: [[f32; SIDE]; SIDE],
    amplitudes: [[f32; SIDE]; SIDE],
}

impl Fields {
    fn new() -> Self {
        let side = SIDE as f64;
        let mut basis = [[0.0; SIDE]; SIDE];
        for (u, row) in basis.iter_mut().enumerate() {
            let norm = if u == 0 { 1.0 / side } else { 2.0 / side }.sqrt();
            for (x, value) in row.iter_mut().enumerate() {
                *value = (norm * (std::f64::consts::PI * (x as f64 + 0.5) * u as f64 / side).cos()) as f32;
            }
        }
        let mut amplitudes = [[0.0; SIDE]; SIDE];
        let mut power = 0.0;
        for (u, row) in amplitudes.iter_mut().enumerate() {
            for (v, value) in row.iter_mut().enumerate() {
                *value = f64::hypot(u as f64, v as f64).max(1.0).powf(-0.8) as f32;
                power += f64::from(*value).powi(2);
            }
        }
        // The transform is orthonormal: the variance of the values is the mean of the coefficients' variances.
        let scale = (VALUES as f64 / power).sqrt() as f32;
        amplitudes.as_flattened_mut().iter_mut().for_each(|value| *value *= scale);
        Self { basis, amplitudes }
    }

    /// The two columns of sample `id`.
    fn fill(&self, id: u64, mean: &mut [u8], logvar: &mut [u8]) {
        let mut random = SplitMix(id);
        for (column, scale, centre) in [(mean, 4.4, 0.0), (logvar, 1.5, -14.0)] {
            for channel in column.chunks_exact_mut(VALUES * 2) {
                let mut values = self.field(&mut random);
                let values = values.as_flattened_mut();
                values.iter_mut().for_each(|value| *value = *value * scale + centre);
                let mut halves = [f16::ZERO; VALUES];
                halves.convert_from_f32_slice(values);
                for (bytes, half) in channel.as_chunks_mut().0.iter_mut().zip(halves) {
                    *bytes = half.to_le_bytes();
                }
            }
        }
    }

    fn field(&self, random: &mut SplitMix) -> [[f32; SIDE]; SIDE] {
        let mut rows = [[0.0; SIDE]; SIDE];
        for (row, amplitudes) in rows.iter_mut().zip(&self.amplitudes) {
            for (amplitude, basis) in amplitudes.iter().zip(&self.basis) {
                add(row, amplitude * random.normal(), basis);
            }
        }
        let mut field = [[0.0; SIDE]; SIDE];
        for (row, basis) in rows.iter().zip(&self.basis) {
            for (to, &cosine) in field.iter_mut().zip(basis) {
                add(to, cosine, row);
            }
        }
        field
    }
}

fn add(to: &mut [f32; SIDE], factor: f32, from: &[f32; SIDE]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal, of unit variance: the sum of four uniform numbers. The transform adds up many of them.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|lane| (bits >> (16 * lane)) & 0xffff).sum();
        // Four uniform numbers of 0..65536 have a deviation of 65536 * sqrt(4 / 12).
        (sum as f32 - 131_070.0) / 37_837.2
    }
}
