//! What goes wrong while data are streamed: damaged blocks, shards that are cut short or go away, slow disks, consumers
//! that stop.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Instant;

use pipeline::Runtime;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use shards::{Codec, Io};

use super::fixture::*;
use super::*;

/// Flips a bit of a column of block 0 of a shard: the frames of its columns follow each other.
fn damage(dir: &Path, dataset: &Dataset, shard: usize, column: usize) {
    let path = dir.join(&dataset.manifest.shards[shard].file);
    let mut bytes = fs::read(&path).unwrap();
    let header = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let before: u64 = (0..column).filter_map(|column| dataset.shards[shard].stored_len(0, column)).sum();
    bytes[32 + header + before as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
}

/// Positions of the samples in block 0 of `shard`.
fn in_first_block(dataset: &Dataset, shard: usize) -> BTreeSet<u64> {
    let before: usize = dataset.shards[..shard].iter().map(shards::ShardReader::len).sum();
    (before as u64..(before + dataset.shards[shard].block_len(0)) as u64).collect()
}

/// Checks batches against the plan where the samples `lost` cannot be read.
fn check_skipped(
    got: &[Vec<Copied>],
    wanted: &[(u64, Vec<u64>)],
    lost: &BTreeSet<u64>,
    logvar: bool,
    flips: Option<u64>,
) {
    for (at, (batch, positions)) in wanted.iter().enumerate() {
        for slice in got.iter().map(|slices| &slices[at]) {
            assert_eq!(slice.batch, *batch);
            assert!(is_true(slice, logvar, flips), "every row is a whole sample: {slice:?}");
            let wanted = &positions[slice.rows.clone()];
            for (row, position) in (0..).zip(wanted) {
                let came = slice.positions[row as usize];
                assert_eq!(slice.filled.contains(&row), lost.contains(position), "row {row} of batch {batch}");
                match lost.contains(position) {
                    true => assert!(wanted.contains(&came) && !lost.contains(&came), "a sample of the same slice"),
                    false => assert_eq!(came, *position, "all others are where they would have been"),
                }
            }
        }
    }
}

/// The same where nobody knows which samples are lost: whatever is not filled in is as planned.
fn check_filled(got: &[Vec<Copied>], wanted: &[(u64, Vec<u64>)], flips: Option<u64>) {
    for (at, (_, positions)) in wanted.iter().enumerate() {
        for slice in got.iter().map(|slices| &slices[at]) {
            assert!(is_true(slice, true, flips), "every row is a whole sample: {slice:?}");
            for (row, position) in (0..).zip(&positions[slice.rows.clone()]) {
                let came = slice.positions[row as usize];
                assert!(slice.filled.contains(&row) || came == *position, "row {row} of {slice:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_damaged_block_is_an_error_that_names_shard_block_and_file(
        (case, shard) in cases().prop_flat_map(|case| (0..case.sizes.len()).prop_map(move |shard| (case.clone(), shard))),
        column in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let written = case.dataset(dir.path());
        damage(dir.path(), &written, shard, column.index(written.manifest.schema.columns.len()));
        let file = written.manifest.shards[shard].file.clone();
        drop(written);
        let dataset = Arc::new(Dataset::open(dir.path(), case.io).unwrap());
        let config = LoadConfig { cursor: Cursor::default(), batches: None, ranks: Ranks::all(1), ..case.config };
        let error = batches(&dataset, &config).unwrap().into(Keep::holding(1)).run(&Runtime::default()).unwrap_err();
        let text = error.to_string();
        prop_assert!(text.contains(&format!("shard {shard}, block 0: ")) && text.contains(&file), "{}", text);
        prop_assert!(["Inflate", "Scatter"].contains(&error.stage.as_str()), "{}", error.stage);
    }

    #[test]
    fn skipping_a_damaged_block_counts_and_leaves_the_order_as_it_is(
        (case, shard) in cases().prop_flat_map(|case| (0..case.sizes.len()).prop_map(move |shard| (case.clone(), shard))),
        column in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let written = case.dataset(dir.path());
        damage(dir.path(), &written, shard, column.index(written.manifest.schema.columns.len()));
        let lost = in_first_block(&written, shard);
        drop(written);
        let dataset = Arc::new(Dataset::open(dir.path(), case.io).unwrap());
        let config = LoadConfig { on_bad_block: OnBadBlock::Skip, ..case.config.clone() };
        let wanted = expected(&dataset, &config);
        let is_hopeless = |positions: &[u64]| {
            positions.chunks(config.ranks.slice_rows(config.batch)).any(|slice| slice.iter().all(|p| lost.contains(p)))
        };
        // Workers gather several batches at once, and the one that fails first ends the flow: it may be any of these.
        let hopeless: Vec<u64> = wanted.iter().filter(|(_, at)| is_hopeless(at)).map(|(batch, _)| *batch).collect();
        let line = batches(&dataset, &config).unwrap();
        let ran = line.split(config.ranks.world, |_, branch| branch.into(Keep::holding(0))).run(&Runtime::default());
        match (ran, hopeless.is_empty()) {
            (Err(error), false) => {
                let text = error.to_string();
                prop_assert!(hopeless.iter().any(|at| text.contains(&format!("no sample of batch {at}, rows "))), "{}", text);
            }
            (Ok(finished), true) => {
                let flips = config.flip.then_some(config.seed);
                check_skipped(&finished.output, &wanted, &lost, case.logvar, flips);
                let told = finished.output.iter().flatten().flat_map(|slice| &slice.faults).count();
                let used = wanted.iter().flat_map(|(_, positions)| positions).any(|position| lost.contains(position));
                prop_assert_eq!(told > 0, used);
            }
            (ran, _) => prop_assert!(false, "{:?} where {:?}", ran.map(|_| ()), hopeless),
        }
    }
}

/// A dataset of 4 shards of 64 samples, and what changes it while it is read.
struct Living {
    _dir: tempfile::TempDir,
    root: PathBuf,
    dataset: Arc<Dataset>,
    config: LoadConfig,
}

impl Living {
    fn new(codec: Codec, io: Io) -> Self {
        let dir = tempfile::tempdir().unwrap();
        drop(moments(dir.path(), &[64; 4], 4, true, codec));
        let dataset = Arc::new(Dataset::open(dir.path(), io).unwrap());
        // Few blocks are in flight, so most of an epoch is still to be read when something happens.
        let config = LoadConfig { pool_blocks: 2, batch: 8, batches: Some(32), ..config() };
        Self { root: dir.path().to_owned(), _dir: dir, dataset, config }
    }

    /// Runs, and calls `happens` at the third batch.
    fn run(&self, mut happens: impl FnMut(&Path) + Send + 'static) -> Result<Vec<Copied>, String> {
        let root = self.root.clone();
        let sink = Keep {
            on_batch: Box::new(move |batch| {
                if batch.batch == 2 {
                    happens(&root);
                }
            }),
            ..Keep::holding(0)
        };
        let ran = batches(&self.dataset, &self.config).unwrap().into(sink).run(&Runtime::default());
        ran.map(|finished| finished.output).map_err(|error| error.to_string())
    }
}

fn shard_files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "lat"));
    files
}

const CODECS: [Codec; 2] = [Codec::None, Codec::ShuffleZstd { level: 1 }];

#[test]
fn shards_that_are_deleted_while_they_are_read_are_read_to_the_end() {
    for codec in CODECS {
        for io in [Io::Mmap, Io::Pread, Io::Ram] {
            let living = Living::new(codec, io);
            let delete = |root: &Path| shard_files(root).iter().for_each(|path| fs::remove_file(path).unwrap());
            let got = living.run(delete).unwrap();
            assert_eq!(positions(&got), expected(&living.dataset, &living.config));
        }
    }
}

#[test]
fn shards_that_are_cut_short_while_they_are_read_are_an_error_that_says_so_or_are_skipped() {
    let cut = |root: &Path| {
        for path in shard_files(root) {
            OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap();
        }
    };
    for codec in CODECS {
        for io in [Io::Mmap, Io::Pread] {
            let mut living = Living::new(codec, io);
            let error = living.run(cut).unwrap_err();
            assert!(error.contains("shard-0000") && error.contains("cut short"), "{error}");
            living = Living::new(codec, io);
            living.config.on_bad_block = OnBadBlock::Skip;
            let error = living.run(cut).unwrap_err();
            assert!(error.contains("can be read"), "in the end there is nothing left to stand in: {error}");
        }
        let ram = Living::new(codec, Io::Ram);
        assert_eq!(positions(&ram.run(cut).unwrap()), expected(&ram.dataset, &ram.config));
    }
}

#[test]
fn a_consumer_that_stops_ends_the_flow() {
    struct Stops(u32);
    impl pipeline::Sink for Stops {
        type In = Slab<HostBatch>;
        type Output = u32;
        fn consume(&mut self, _: Slab<HostBatch>) -> Result<std::ops::ControlFlow<()>, pipeline::BoxError> {
            self.0 += 1;
            Ok(if self.0 == 3 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) })
        }
        fn finish(self, _: pipeline::End) -> Result<u32, pipeline::BoxError> {
            Ok(self.0)
        }
    }
    let living = Living::new(CODECS[1], Io::Mmap);
    let endless = LoadConfig { batches: None, ..living.config.clone() };
    let finished = batches(&living.dataset, &endless).unwrap().into(Stops(0)).run(&Runtime::default()).unwrap();
    assert_eq!(finished.output, 3);
}

/// Everything at once, for `SOAK_SECONDS` (`make soak`), else a moment: streams that are stopped at random places and go
/// on with another number of consumers, workers, buffers and another way of reading, over disks that are slow now and
/// then, under consumers that are slow now and then, with a block that is damaged or a file that is deleted.
#[test]
#[expect(clippy::print_stdout, reason = "twenty minutes should end with what was done in them")]
fn soak() {
    let seconds: u64 = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let began = Instant::now();
    let mut seed = [0; 32];
    let (mut rounds, mut streams, mut samples, mut filled) = (0u64, 0u64, 0u64, 0u64);
    while began.elapsed().as_secs() < seconds {
        seed[..8].copy_from_slice(&rounds.to_le_bytes());
        let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
        let mut draw = |strategy: BoxedStrategy<u64>| strategy.new_tree(&mut runner).unwrap().current();
        let mut below = |n: u64| draw((0..n).boxed());
        let codec = CODECS[below(2) as usize];
        let sizes: Vec<u32> = (0..1 + below(4)).map(|_| 1 + below(900) as u32).collect();
        let all: u64 = sizes.iter().map(|&size| u64::from(size)).sum();
        let dir = tempfile::tempdir().unwrap();
        let flip = below(2) == 0;
        let written = moments_of(dir.path(), &sizes, 1 + below(32) as u32, [true, flip], codec);
        let mut lost = BTreeSet::new();
        if below(3) == 0 {
            let shard = below(sizes.len() as u64) as usize;
            let column = below(written.manifest.schema.columns.len() as u64) as usize;
            damage(dir.path(), &written, shard, column);
            lost = in_first_block(&written, shard);
        }
        // Divisible by 1, 2, 3 and 4 consumers, and large enough that something readable is in each slice.
        let batch = 12 * (1 + below(8)) as usize;
        let blocks = written.blocks() as u64;
        let whole = LoadConfig {
            pool_blocks: 1 + below(blocks + 4) as usize,
            on_bad_block: OnBadBlock::Skip,
            flip,
            ..LoadConfig::new(below(u64::MAX), batch)
        };
        let flips = flip.then_some(whole.seed);
        if all < batch as u64 {
            rounds += 1;
            continue;
        }
        let plan = Arc::clone(&Loader::new(&written, &whole).unwrap().plan);
        let end = 2 * plan.batches_per_epoch() + 1;
        let mut at = 0;
        while at < end {
            let now = (1 + below(end)).min(end - at);
            let config = LoadConfig {
                cursor: Cursor { batch: at },
                batches: Some(now),
                ranks: Ranks::all(1 + below(4) as usize),
                workers: 1 + below(4) as usize,
                prefetch: LEAST_PREFETCH + below(4) as usize,
                slow: (below(2) == 0)
                    .then(|| SlowReads { one_in: 1 + below(50), delay: Duration::from_micros(below(3000)) }),
                ..whole.clone()
            };
            let io = [Io::Mmap, Io::Pread, Io::Ram][below(3) as usize];
            let dataset = Arc::new(Dataset::open(dir.path(), io).unwrap());
            let (slow_consumer, last) = (below(4) == 0, at + now == end);
            let (deletes, cuts) = (last && below(4) == 0, last && below(4) == 1);
            let root = dir.path().to_owned();
            let got = batches(&dataset, &config).unwrap().split(config.ranks.world, |rank, branch| {
                let root = root.clone();
                let on_batch = move |batch: &HostBatch| {
                    if slow_consumer && batch.batch.is_multiple_of(3) {
                        std::thread::sleep(Duration::from_micros(500 * (rank as u64 + 1)));
                    }
                    if deletes && rank == 0 {
                        shard_files(&root).iter().for_each(|path| drop(fs::remove_file(path)));
                    }
                    if cuts && rank == 0 {
                        let first = shard_files(&root).into_iter().min();
                        let file = first.map(|path| OpenOptions::new().write(true).open(path));
                        let _ = file.map(|file| file.and_then(|file| file.set_len(100)));
                    }
                };
                branch.into(Keep { on_batch: Box::new(on_batch), ..Keep::holding(0) })
            });
            let wanted = expected_by(&plan, at, now);
            let unreadable = |positions: &Vec<u64>| {
                positions.chunks(config.ranks.slice_rows(batch)).any(|slice| slice.iter().all(|p| lost.contains(p)))
            };
            match got.run(&Runtime::default()) {
                Ok(finished) => {
                    if cuts && io != Io::Ram {
                        check_filled(&finished.output, &wanted, flips);
                    } else {
                        check_skipped(&finished.output, &wanted, &lost, true, flips);
                    }
                    let slices = finished.output.iter().flatten();
                    filled += slices.map(|slice| slice.filled.len() as u64).sum::<u64>();
                    samples += wanted.iter().map(|(_, positions)| positions.len() as u64).sum::<u64>();
                }
                Err(error) => {
                    let expected = cuts || wanted.iter().any(|(_, positions)| unreadable(positions));
                    assert!(expected && error.to_string().contains("can be read"), "round {rounds}: {error}");
                }
            }
            streams += 1;
            at += now;
        }
        rounds += 1;
    }
    println!("{rounds} datasets, {streams} streams, {samples} samples as planned, {filled} of them filled in");
    assert!(samples > 0);
}

fn expected_by(plan: &plan::Plan, from: u64, batches: u64) -> Vec<(u64, Vec<u64>)> {
    let of = |batch| plan.batch(batch).iter().map(|sample| sample.position).collect();
    (from..from + batches).map(|batch| (batch, of(batch))).collect()
}
