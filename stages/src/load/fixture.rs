//! Datasets in temporary folders whose values say where they are from, and sinks that keep what came.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use half::f16;
use pipeline::{BoxError, End, Runtime, Sink, Slab};
use proptest::prelude::*;
use shards::{Codec, Column, DType, Dataset, Header, Io, Manifest, SampleMeta, Schema, Semantics, ShardWriter};

use super::plan::{Cursor, Ranks, is_mirrored};
use super::{LEAST_PREFETCH, LoadConfig, Loader, OnBadBlock, batches};
use crate::data::HostBatch;

pub(super) const SHAPE: [usize; 3] = [2, 2, 2];
pub(super) const VALUES: usize = 8;

pub(super) fn column(name: &str, dtype: DType, semantics: Semantics) -> Column {
    Column {
        name: name.to_owned(),
        dtype,
        shape: SHAPE.map(|n| n as u32).to_vec(),
        codec: Codec::ShuffleZstd { level: 1 },
        semantics,
    }
}

pub(super) fn schema(columns: Vec<Column>, block_samples: u32) -> Schema {
    Schema {
        columns,
        block_samples,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        scaling_applied: false,
        pixel_range: [-1.0, 1.0],
    }
}

/// A dataset with `sizes` samples in its shards, mapped; `bytes(column, position)` are the values of a sample.
pub(super) fn write(dir: &Path, schema: &Schema, sizes: &[u32], bytes: impl Fn(usize, u64) -> Vec<u8>) -> Arc<Dataset> {
    let mut position = 0u64;
    let mut entries = Vec::new();
    for (shard, &size) in sizes.iter().enumerate() {
        let header = Header::new(schema.clone(), shard as u32, sizes.len() as u32, BTreeMap::new());
        let mut writer = ShardWriter::create(dir.join(format!("shard-{shard:05}.lat")), header).unwrap();
        let end = position + u64::from(size);
        while position < end {
            let block = position..end.min(position + u64::from(schema.block_samples));
            let payload: Vec<Vec<u8>> = (0..schema.columns.len())
                .map(|column| block.clone().flat_map(|position| bytes(column, position)).collect())
                .collect();
            let payload: Vec<&[u8]> = payload.iter().map(Vec::as_slice).collect();
            let keys: Vec<String> = block.clone().map(|position| position.to_string()).collect();
            let samples: Vec<SampleMeta<'_>> = block
                .clone()
                .zip(&keys)
                .map(|(position, key)| SampleMeta {
                    label: label(position) as i32,
                    source_index: position as u32,
                    flags: 0,
                    key,
                })
                .collect();
            writer.write_block(&payload, &samples).unwrap();
            position = block.end;
        }
        entries.push(writer.finish().unwrap());
    }
    Manifest::new(schema.clone(), entries, BTreeMap::new()).save(dir).unwrap();
    Arc::new(Dataset::open(dir, Io::Auto).unwrap())
}

pub(super) fn label(position: u64) -> i64 {
    (position * 5 % 11) as i64
}

/// Bits of value `i` of the mean at `position`: distinct for all of them, as long as they are finite.
pub(super) fn mean_at(position: u64, i: usize) -> f16 {
    f16::from_bits((position * VALUES as u64) as u16 + i as u16)
}

pub(super) fn logvar_at(position: u64, i: usize) -> f16 {
    -mean_at(position, i)
}

/// Value `i` of the mean of the mirror image: none of [`mean_at`] but for 0.
pub(super) fn mirrored_mean_at(position: u64, i: usize) -> f16 {
    -mean_at(position, i)
}

pub(super) fn mirrored_logvar_at(position: u64, i: usize) -> f16 {
    -mirrored_mean_at(position, i)
}

type ValueAt = fn(u64, usize) -> f16;

/// A dataset of means and, if asked, log-variances.
pub(super) fn moments(dir: &Path, sizes: &[u32], block_samples: u32, logvar: bool, codec: Codec) -> Arc<Dataset> {
    moments_of(dir, sizes, block_samples, [logvar, false], codec)
}

/// The same, with those of mirror images if asked.
pub(super) fn moments_of(
    dir: &Path,
    sizes: &[u32],
    block_samples: u32,
    [logvar, flip]: [bool; 2],
    codec: Codec,
) -> Arc<Dataset> {
    let kinds: [(&str, Semantics, bool, ValueAt); 4] = [
        ("mean", Semantics::PosteriorMean, true, mean_at),
        ("logvar", Semantics::PosteriorLogvar, logvar, logvar_at),
        ("mean_flip", Semantics::PosteriorMean, flip, mirrored_mean_at),
        ("logvar_flip", Semantics::PosteriorLogvar, logvar && flip, mirrored_logvar_at),
    ];
    let kinds: Vec<_> = kinds.into_iter().filter(|(_, _, stored, _)| *stored).collect();
    let columns = kinds.iter().map(|(name, semantics, ..)| Column { codec, ..column(name, DType::F16, *semantics) });
    write(dir, &schema(columns.collect(), block_samples), sizes, |column, position| {
        (0..VALUES).flat_map(|i| kinds[column].3(position, i).to_le_bytes()).collect()
    })
}

/// What a batch held.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Copied {
    pub(super) batch: u64,
    pub(super) rows: Range<usize>,
    pub(super) mean: Vec<f16>,
    pub(super) logvar: Vec<f16>,
    pub(super) labels: Vec<i64>,
    pub(super) positions: Vec<u64>,
    pub(super) filled: Vec<u32>,
    pub(super) faults: Vec<String>,
}

impl Copied {
    pub(super) fn of(batch: &HostBatch) -> Self {
        Self {
            batch: batch.batch,
            rows: batch.rows.clone(),
            mean: batch.mean.to_vec(),
            logvar: batch.logvar.to_vec(),
            labels: batch.labels.to_vec(),
            positions: batch.positions.clone(),
            filled: batch.filled.clone(),
            faults: batch.faults.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Keeps copies of the batches, and the last `held` batches themselves.
pub(super) struct Keep {
    pub(super) held: usize,
    pub(super) holding: VecDeque<Slab<HostBatch>>,
    pub(super) copies: Vec<Copied>,
    pub(super) on_batch: Box<dyn FnMut(&HostBatch) + Send>,
}

impl Keep {
    pub(super) fn holding(held: usize) -> Self {
        Self { held, holding: VecDeque::new(), copies: Vec::new(), on_batch: Box::new(|_| ()) }
    }
}

impl Sink for Keep {
    type In = Slab<HostBatch>;
    type Output = Vec<Copied>;

    fn consume(&mut self, batch: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        (self.on_batch)(&batch);
        self.copies.push(Copied::of(&batch));
        self.holding.push_back(batch);
        if self.holding.len() > self.held {
            self.holding.pop_front();
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Vec<Copied>, BoxError> {
        Ok(self.copies)
    }
}

pub(super) fn config() -> LoadConfig {
    LoadConfig { pool_blocks: 4, workers: 1, prefetch: LEAST_PREFETCH, batches: Some(5), ..LoadConfig::new(1, 4) }
}

/// What one consumer gets, for each rank.
pub(super) fn run(dataset: &Arc<Dataset>, config: &LoadConfig) -> Vec<Vec<Copied>> {
    let ranks = config.ranks.ranks.len();
    let line = batches(dataset, config).unwrap().split(ranks, |_, branch| branch.into(Keep::holding(0)));
    line.run(&Runtime::default()).unwrap().output
}

/// The same, put together to global batches.
pub(super) fn run_whole(dataset: &Arc<Dataset>, config: &LoadConfig) -> Vec<(u64, Vec<u64>)> {
    let of_ranks = run(dataset, config);
    let batches = of_ranks[0].len();
    let whole = |at: usize| {
        let slices: Vec<&Copied> = of_ranks.iter().map(|slices| &slices[at]).collect();
        let mut next = config.ranks.rows(config.batch).start;
        for slice in &slices {
            assert_eq!((slice.batch, slice.rows.start), (slices[0].batch, next), "slices follow each other");
            next = slice.rows.end;
        }
        (slices[0].batch, slices.iter().flat_map(|slice| slice.positions.clone()).collect())
    };
    (0..batches).map(whole).collect()
}

/// What the plan says must come.
pub(super) fn expected(dataset: &Arc<Dataset>, config: &LoadConfig) -> Vec<(u64, Vec<u64>)> {
    let plan = Loader::new(dataset, config).unwrap().plan;
    let rows = config.ranks.rows(config.batch);
    (config.cursor.batch..config.cursor.batch + config.batches.unwrap())
        .map(|batch| (batch, plan.batch(batch)[rows.clone()].iter().map(|sample| sample.position).collect()))
        .collect()
}

pub(super) fn positions(batches: &[Copied]) -> Vec<(u64, Vec<u64>)> {
    batches.iter().map(|batch| (batch.batch, batch.positions.clone())).collect()
}

/// Whether every row holds the values and the label of its position: of the mirror image where the coin of `flips` says
/// so, and where another sample fills in, of either.
pub(super) fn is_true(batch: &Copied, logvar: bool, flips: Option<u64>) -> bool {
    let of_row = |values: &[f16], row: usize| values[row * VALUES..(row + 1) * VALUES].to_vec();
    let all = |value: ValueAt, position: u64| (0..VALUES).map(|i| value(position, i)).collect::<Vec<_>>();
    let is_row = |row: usize, position: u64, mirrored: bool| {
        let values: [ValueAt; 2] = if mirrored { [mirrored_mean_at, mirrored_logvar_at] } else { [mean_at, logvar_at] };
        of_row(&batch.mean, row) == all(values[0], position)
            && (!logvar || of_row(&batch.logvar, row) == all(values[1], position))
    };
    (0..).zip(&batch.positions).all(|(row, &position)| match flips {
        Some(_) if batch.filled.contains(&(row as u32)) => {
            [false, true].iter().any(|&side| is_row(row, position, side))
        }
        Some(seed) => is_row(row, position, is_mirrored(seed, batch.batch, (batch.rows.start + row) as u64)),
        None => is_row(row, position, false),
    }) && batch.mean.len() == batch.positions.len() * VALUES
        && batch.logvar.len() == if logvar { batch.mean.len() } else { 0 }
        && batch.labels == batch.positions.iter().map(|&p| label(p)).collect::<Vec<_>>()
}

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) sizes: Vec<u32>,
    pub(super) block_samples: u32,
    pub(super) logvar: bool,
    pub(super) codec: Codec,
    pub(super) io: Io,
    pub(super) config: LoadConfig,
}

impl Case {
    /// Its dataset, written to `dir`.
    pub(super) fn dataset(&self, dir: &Path) -> Arc<Dataset> {
        moments_of(dir, &self.sizes, self.block_samples, [self.logvar, self.config.flip], self.codec);
        Arc::new(Dataset::open(dir, self.io).unwrap())
    }
}

prop_compose! {
    pub(super) fn cases()(
        sizes in prop::collection::vec(1u32..40, 1..5),
        block_samples in 1u32..9,
        logvar in any::<bool>(),
        codec in prop::sample::select(vec![Codec::None, Codec::Zstd { level: 1 }, Codec::ShuffleZstd { level: 1 }]),
        io in prop::sample::select(vec![Io::Mmap, Io::Pread, Io::Ram]),
        seed in any::<u64>(),
        world in 1usize..4,
        rows in any::<prop::sample::Index>(),
        pool_blocks in 1usize..20,
        workers in 1usize..4,
        prefetch in LEAST_PREFETCH..6,
        cursor in 0u64..12,
        batches in 0u64..24,
        flip in any::<bool>(),
    ) -> Case {
        let samples = sizes.iter().sum::<u32>() as usize;
        let world = world.min(samples);
        let batch = world * (1 + rows.index((samples / world).min(12)));
        let config = LoadConfig {
            pool_blocks, workers, prefetch,
            cursor: Cursor { batch: cursor },
            batches: Some(batches),
            ranks: Ranks::all(world),
            flip,
            on_bad_block: OnBadBlock::Fail,
            ..LoadConfig::new(seed, batch)
        };
        Case { sizes, block_samples, logvar, codec, io, config }
    }
}
