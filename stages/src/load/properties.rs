//! The load side as a whole, against the plan: datasets in temporary folders whose values say where they are from.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use pipeline::{BoxError, End, Interrupt, Runtime, Sink, Slab, Slabs, Stop};
use proptest::prelude::*;
use shards::{Codec, Column, DType, Dataset, Header, Io, Manifest, SampleMeta, Schema, Semantics, ShardWriter};

use super::*;
use crate::data::HostBatch;

const SHAPE: [usize; 3] = [2, 2, 2];
const VALUES: usize = 8;

fn column(name: &str, dtype: DType, semantics: Semantics) -> Column {
    Column {
        name: name.to_owned(),
        dtype,
        shape: SHAPE.map(|n| n as u32).to_vec(),
        codec: Codec::ShuffleZstd { level: 1 },
        semantics,
    }
}

fn schema(columns: Vec<Column>, block_samples: u32) -> Schema {
    Schema {
        columns,
        block_samples,
        scaling_factor: 0.18215,
        shift_factor: 0.0,
        scaling_applied: false,
        pixel_range: [-1.0, 1.0],
    }
}

/// A dataset with `sizes` samples in its shards; `bytes(column, position)` are the values of a sample.
fn write(dir: &Path, schema: &Schema, sizes: &[u32], bytes: impl Fn(usize, u64) -> Vec<u8>) -> Arc<Dataset> {
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

fn label(position: u64) -> i64 {
    (position * 5 % 11) as i64
}

/// Bits of value `i` of the mean at `position`: distinct for all of them, as long as they are finite.
fn mean_at(position: u64, i: usize) -> f16 {
    f16::from_bits((position * VALUES as u64) as u16 + i as u16)
}

fn logvar_at(position: u64, i: usize) -> f16 {
    -mean_at(position, i)
}

/// A dataset of means and, if asked, log-variances.
fn moments(dir: &Path, sizes: &[u32], block_samples: u32, logvar: bool) -> Arc<Dataset> {
    let mut columns = vec![column("mean", DType::F16, Semantics::PosteriorMean)];
    if logvar {
        columns.push(column("logvar", DType::F16, Semantics::PosteriorLogvar));
    }
    write(dir, &schema(columns, block_samples), sizes, |column, position| {
        let value = if column == 0 { mean_at } else { logvar_at };
        (0..VALUES).flat_map(|i| value(position, i).to_le_bytes()).collect()
    })
}

/// Keeps copies of the batches, and the last `held` batches themselves.
struct Keep {
    held: usize,
    holding: VecDeque<Slab<HostBatch>>,
    copies: Vec<HostBatch>,
    on_batch: Box<dyn FnMut(&HostBatch) + Send>,
}

impl Keep {
    fn holding(held: usize) -> Self {
        Self { held, holding: VecDeque::new(), copies: Vec::new(), on_batch: Box::new(|_| ()) }
    }
}

impl Sink for Keep {
    type In = Slab<HostBatch>;
    type Output = Vec<HostBatch>;

    fn consume(&mut self, batch: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        (self.on_batch)(&batch);
        self.copies.push(HostBatch::clone(&batch));
        self.holding.push_back(batch);
        if self.holding.len() > self.held {
            self.holding.pop_front();
        }
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Vec<HostBatch>, BoxError> {
        Ok(self.copies)
    }
}

fn config() -> LoadConfig {
    LoadConfig {
        seed: 1,
        batch: 4,
        pool_blocks: 4,
        workers: 1,
        prefetch: 3,
        cursor: Cursor { batch: 0 },
        batches: Some(5),
    }
}

fn run(dataset: &Arc<Dataset>, config: &LoadConfig) -> Vec<HostBatch> {
    batches(dataset, config).unwrap().into(Keep::holding(0)).run(&Runtime::default()).unwrap().output
}

/// What the plan says must come.
fn expected(dataset: &Arc<Dataset>, config: &LoadConfig) -> Vec<(u64, Vec<u64>)> {
    let plan = Loader::new(dataset, config).unwrap().plan;
    (config.cursor.batch..config.cursor.batch + config.batches.unwrap())
        .map(|batch| (batch, plan.batch(batch).iter().map(|sample| sample.position).collect()))
        .collect()
}

fn positions(batches: &[HostBatch]) -> Vec<(u64, Vec<u64>)> {
    batches.iter().map(|batch| (batch.batch, batch.positions.clone())).collect()
}

#[derive(Debug, Clone)]
struct Case {
    sizes: Vec<u32>,
    block_samples: u32,
    logvar: bool,
    config: LoadConfig,
}

prop_compose! {
    fn cases()(
        sizes in prop::collection::vec(1u32..40, 1..5),
        block_samples in 1u32..9,
        logvar in any::<bool>(),
        seed in any::<u64>(),
        batch in any::<prop::sample::Index>(),
        pool_blocks in 1usize..20,
        workers in 1usize..4,
        prefetch in LEAST_PREFETCH..6,
        cursor in 0u64..12,
        batches in 0u64..24,
    ) -> Case {
        let samples = sizes.iter().sum::<u32>() as usize;
        let batch = 1 + batch.index(samples.min(24));
        let config = LoadConfig { seed, batch, pool_blocks, workers, prefetch, cursor: Cursor { batch: cursor }, batches: Some(batches) };
        Case { sizes, block_samples, logvar, config }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_flow_gives_the_batches_of_the_plan_and_the_values_of_their_positions(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = moments(dir.path(), &case.sizes, case.block_samples, case.logvar);
        let got = run(&dataset, &case.config);
        prop_assert_eq!(positions(&got), expected(&dataset, &case.config));
        for batch in &got {
            prop_assert_eq!(batch.shape, [case.config.batch, 2, 2, 2]);
            let all = |value: fn(u64, usize) -> f16| -> Vec<f16> {
                batch.positions.iter().flat_map(|&p| (0..VALUES).map(move |i| value(p, i))).collect()
            };
            prop_assert_eq!(&batch.mean, &all(mean_at));
            prop_assert_eq!(&batch.logvar, &if case.logvar { all(logvar_at) } else { Vec::new() });
            prop_assert_eq!(&batch.labels, &batch.positions.iter().map(|&p| label(p)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_stream_from_a_cursor_is_the_tail_of_the_whole_for_any_workers_and_buffers(case in cases(), other in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = moments(dir.path(), &case.sizes, case.block_samples, case.logvar);
        let skipped = case.config.cursor.batch;
        let whole = LoadConfig {
            workers: other.config.workers,
            prefetch: other.config.prefetch,
            cursor: Cursor::default(),
            batches: case.config.batches.map(|batches| batches + skipped),
            ..case.config.clone()
        };
        let tail = positions(&run(&dataset, &whole)).split_off(skipped as usize);
        prop_assert_eq!(positions(&run(&dataset, &case.config)), tail);
    }

    #[test]
    fn an_epoch_holds_every_sample_at_most_once_and_drops_less_than_a_batch(case in cases(), epoch in 0u64..3) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = moments(dir.path(), &case.sizes, case.block_samples, false);
        let per_epoch = Loader::new(&dataset, &case.config).unwrap().plan.batches_per_epoch();
        let config = LoadConfig { cursor: Cursor { batch: epoch * per_epoch }, batches: Some(per_epoch), ..case.config };
        let mut seen: Vec<u64> = run(&dataset, &config).into_iter().flat_map(|batch| batch.positions).collect();
        let count = seen.len() as u64;
        seen.sort_unstable();
        seen.dedup();
        let samples = u64::from(case.sizes.iter().sum::<u32>());
        prop_assert_eq!(seen.len() as u64, count);
        prop_assert!(seen.iter().all(|&position| position < samples));
        prop_assert!(samples - count < config.batch as u64);
    }

    #[test]
    fn as_many_buffers_as_the_window_has_blocks_suffice_for_progress(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = moments(dir.path(), &case.sizes, case.block_samples, case.logvar);
        let mut loader = Loader::new(&dataset, &case.config).unwrap();
        loader.blocks = Slabs::new(loader.plan.window_blocks(), BlockBuffer::default);
        let got = loader.flow().into(Keep::holding(0)).run(&Runtime::default()).unwrap().output;
        prop_assert_eq!(positions(&got), expected(&dataset, &case.config));
    }

    #[test]
    fn a_consumer_may_keep_one_batch_more_than_the_prefetch(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = moments(dir.path(), &case.sizes, case.block_samples, case.logvar);
        let keep = Keep::holding(case.config.prefetch + 1);
        let got = batches(&dataset, &case.config).unwrap().into(keep).run(&Runtime::default()).unwrap().output;
        prop_assert_eq!(positions(&got), expected(&dataset, &case.config));
    }

    #[test]
    fn every_buffer_comes_back_and_memory_is_within_the_figure(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = moments(dir.path(), &case.sizes, case.block_samples, case.logvar);
        let loader = Loader::new(&dataset, &case.config).unwrap();
        let (memory, blocks, batches) = (loader.memory(), loader.blocks.clone(), loader.batches.clone());
        loader.flow().into(Keep::holding(2)).run(&Runtime::default()).unwrap();
        let (all_blocks, all_batches) = (taken(&blocks), taken(&batches));
        prop_assert_eq!(all_batches.len(), case.config.prefetch + 2);
        let values = |buffers: [&Vec<f16>; 2]| buffers.map(Vec::capacity).iter().sum::<usize>() * 2;
        let held: usize = all_blocks.iter().map(|b| values([&b.mean, &b.logvar]) + b.labels.capacity() * 8).sum();
        prop_assert!(held as u64 <= memory.pool_bytes, "{} bytes of blocks, stated {}", held, memory.pool_bytes);
        let held: usize = all_batches
            .iter()
            .map(|b| values([&b.mean, &b.logvar]) + (b.labels.capacity() + b.positions.capacity()) * 8)
            .sum();
        prop_assert!(held as u64 <= memory.batch_bytes, "{} bytes of batches, stated {}", held, memory.batch_bytes);
    }

    #[test]
    fn a_damaged_block_is_an_error_that_names_shard_block_and_file_and_buffers_come_back(
        (case, shard) in cases().prop_flat_map(|case| (0..case.sizes.len()).prop_map(move |shard| (case.clone(), shard))),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = moments(dir.path(), &case.sizes, case.block_samples, case.logvar);
        let file = dataset.manifest.shards[shard].file.clone();
        drop(dataset);
        // The payload begins at a multiple of 4096 bytes, after the header, with block 0.
        let mut bytes = std::fs::read(dir.path().join(&file)).unwrap();
        let header = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        bytes[32 + header] ^= 1;
        std::fs::write(dir.path().join(&file), bytes).unwrap();
        let dataset = Arc::new(Dataset::open(dir.path(), Io::Pread).unwrap());

        let config = LoadConfig { cursor: Cursor::default(), batches: None, ..case.config };
        let loader = Loader::new(&dataset, &config).unwrap();
        let (blocks, batches) = (loader.blocks.clone(), loader.batches.clone());
        let count = (blocks.available(), batches.available());
        let error = loader.flow().into(Keep::holding(1)).run(&Runtime::default()).unwrap_err();
        let text = error.to_string();
        prop_assert!(text.contains(&format!("shard {shard}, block 0: ")) && text.contains(&file), "{}", text);
        prop_assert_eq!(&error.stage, "Inflate");
        prop_assert_eq!((blocks.available(), batches.available()), count);
    }
}

/// All buffers of `slabs`: every one of them is back.
fn taken<B>(slabs: &Slabs<B>) -> Vec<Slab<B>> {
    (0..slabs.available()).map(|_| slabs.take(&Stop::never()).unwrap()).collect()
}

#[test]
fn two_epochs_differ() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = moments(dir.path(), &[20, 20], 4, false);
    let got = positions(&run(&dataset, &LoadConfig { batches: Some(20), ..config() }));
    assert_ne!(got[..10].iter().map(|b| &b.1).collect::<Vec<_>>(), got[10..].iter().map(|b| &b.1).collect::<Vec<_>>());
}

#[test]
fn an_interrupted_stream_has_a_beginning_of_the_batches() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = moments(dir.path(), &[20, 20], 4, false);
    let interrupt = Interrupt::default();
    let request = interrupt.clone();
    let sink = Keep {
        on_batch: Box::new(move |batch| {
            if batch.batch == 30 {
                request.request();
            }
        }),
        ..Keep::holding(0)
    };
    let endless = LoadConfig { batches: None, ..config() };
    let finished = batches(&dataset, &endless).unwrap().into(sink).run(&Runtime::new(interrupt)).unwrap();
    assert!(finished.interrupted);
    let got = positions(&finished.output);
    assert!(got.len() > 30);
    assert_eq!(got, expected(&dataset, &LoadConfig { batches: Some(got.len() as u64), ..config() }));
}

#[test]
fn f32_columns_are_rounded_and_deviations_become_log_variances() {
    let dir = tempfile::tempdir().unwrap();
    let columns =
        vec![column("mean", DType::F32, Semantics::PosteriorMean), column("std", DType::F32, Semantics::PosteriorStd)];
    let dataset = write(dir.path(), &schema(columns, 4), &[5], |column, position| {
        let value = |i: usize| if column == 0 { position as f32 + i as f32 / 3.0 } else { position as f32 * 0.5 };
        (0..VALUES).flat_map(|i| value(i).to_le_bytes()).collect()
    });
    let batch = &run(&dataset, &LoadConfig { batch: 5, batches: Some(1), ..config() })[0];
    for (row, &position) in batch.positions.iter().enumerate() {
        for i in 0..VALUES {
            let mean = f16::from_f32(position as f32 + i as f32 / 3.0);
            let logvar = if position == 0 { -30.0 } else { 2.0 * (position as f64 * 0.5).ln() };
            assert_eq!(batch.mean[row * VALUES + i], mean);
            assert_eq!(batch.logvar[row * VALUES + i], f16::from_f64(logvar));
        }
    }
}

#[test]
fn drawn_samples_are_loaded_without_log_variances() {
    let dir = tempfile::tempdir().unwrap();
    let columns = vec![column("latent", DType::F16, Semantics::Sample)];
    let dataset = write(dir.path(), &schema(columns, 4), &[8], |_, position| {
        (0..VALUES).flat_map(|i| mean_at(position, i).to_le_bytes()).collect()
    });
    for batch in run(&dataset, &config()) {
        assert!(batch.logvar.is_empty());
        assert_eq!(batch.mean[VALUES], mean_at(batch.positions[1], 0));
    }
}

#[test]
fn a_value_that_f16_cannot_hold_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let columns = vec![column("mean", DType::F32, Semantics::PosteriorMean)];
    let dataset = write(dir.path(), &schema(columns, 4), &[8], |_, position| {
        let value: f32 = if position == 6 { 70_000.0 } else { 1.0 };
        (0..VALUES).flat_map(|_| value.to_le_bytes()).collect()
    });
    let error = batches(&dataset, &config()).unwrap().into(Keep::holding(0)).run(&Runtime::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("shard 0, block 1") && text.contains("column mean holds 70000"), "{text}");
}

#[test]
fn mirrored_columns_are_left_alone() {
    let columns = vec![
        column("mean_flip", DType::F16, Semantics::PosteriorMean),
        column("mean", DType::F16, Semantics::PosteriorMean),
    ];
    assert_eq!(LatentColumns::of(&schema(columns, 4)).unwrap().mean, 1);
}

#[test]
fn columns_that_cannot_be_trained_on_are_errors_that_name_them() {
    let only = schema(vec![column("spread", DType::F16, Semantics::PosteriorLogvar)], 4);
    assert_eq!(
        LatentColumns::of(&only).unwrap_err().to_string(),
        "the dataset has no column of posterior means or drawn samples, only spread (PosteriorLogvar); \
         encode or import it again"
    );
    let mut flat = column("mean", DType::F16, Semantics::PosteriorMean);
    flat.shape = vec![8];
    assert_eq!(
        LatentColumns::of(&schema(vec![flat.clone()], 4)).unwrap_err().to_string(),
        "column mean has shape [8] per sample, expected [channels, height, width]; encode or import the dataset again"
    );
    flat.name = "logvar".to_owned();
    flat.semantics = Semantics::PosteriorLogvar;
    let unequal = vec![column("mean", DType::F16, Semantics::PosteriorMean), flat];
    assert_eq!(
        LatentColumns::of(&schema(unequal, 4)).unwrap_err().to_string(),
        "column logvar has shape [8] per sample, expected that of mean, [2, 2, 2]; encode or import the dataset again"
    );
}

#[test]
fn settings_that_cannot_work_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = moments(dir.path(), &[8], 4, false);
    let refusal = |config: LoadConfig| batches(&dataset, &config).err().map(|error| error.to_string()).unwrap();
    assert_eq!(refusal(LoadConfig { workers: 0, ..config() }), "workers is 0; it must be at least 1");
    assert_eq!(refusal(LoadConfig { prefetch: 2, ..config() }), "prefetch is 2; it must be at least 3");
    assert!(
        refusal(LoadConfig { batch: 9, ..config() }).starts_with("the dataset has 8 samples, less than one batch of 9")
    );
}

#[test]
fn the_memory_figure_counts_the_pool_what_is_in_flight_and_the_batches() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = moments(dir.path(), &[8], 8, true);
    let memory = LoadMemory::of(&dataset, &LoadConfig { pool_blocks: 1, ..config() }).unwrap();
    let sample = VALUES as u64 * 2 * 2;
    assert_eq!(memory.pool_bytes, (1 + 6) * 8 * (sample + 8));
    assert_eq!(memory.batch_bytes, 5 * 4 * (sample + 16));
    assert_eq!(memory.order_bytes, 2 * 8 * 8);
}
