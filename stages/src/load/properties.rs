//! The load side as a whole, against the plan.

use half::f16;
use pipeline::{Interrupt, Runtime};
use proptest::prelude::*;
use shards::{Codec, DType, Semantics};

use super::fixture::*;
use super::plan::is_mirrored;
use super::*;

const ZSTD: Codec = Codec::ShuffleZstd { level: 1 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_flow_gives_the_batches_of_the_plan_and_the_values_of_their_positions(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = case.dataset(dir.path());
        prop_assert_eq!(run_whole(&dataset, &case.config), expected(&dataset, &case.config));
        for batch in run(&dataset, &case.config).iter().flatten() {
            prop_assert!(is_true(batch, case.logvar, case.config.flip.then_some(case.config.seed)), "{:?}", batch);
            prop_assert!(batch.filled.is_empty() && batch.faults.is_empty());
        }
    }

    #[test]
    fn a_run_that_goes_on_elsewhere_has_the_tail_of_one_that_was_never_stopped(
        case in cases(), other in cases(), world in 1usize..4,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = case.dataset(dir.path());
        let skipped = case.config.cursor.batch;
        let whole = LoadConfig {
            workers: other.config.workers,
            prefetch: other.config.prefetch,
            ranks: Ranks::all(if case.config.batch.is_multiple_of(world) { world } else { 1 }),
            cursor: Cursor::default(),
            batches: case.config.batches.map(|batches| batches + skipped),
            ..case.config.clone()
        };
        let other_io = Arc::new(Dataset::open(dir.path(), other.io).unwrap());
        let tail = run_whole(&other_io, &whole).split_off(skipped as usize);
        prop_assert_eq!(run_whole(&dataset, &case.config), tail);
    }

    #[test]
    fn processes_that_take_some_of_the_ranks_take_the_whole_together(case in cases(), cut in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = case.dataset(dir.path());
        let world = case.config.ranks.world;
        let cut = cut.index(world + 1);
        let parts = [0..cut, cut..world].into_iter().filter(|ranks| !ranks.is_empty());
        let mut together: Vec<(u64, Vec<u64>)> = Vec::new();
        for ranks in parts {
            let part = run_whole(&dataset, &LoadConfig { ranks: Ranks { ranks, world }, ..case.config.clone() });
            if together.is_empty() {
                together = part;
            } else {
                together.iter_mut().zip(part).for_each(|(whole, part)| whole.1.extend(part.1));
            }
        }
        prop_assert_eq!(together, expected(&dataset, &case.config));
    }

    #[test]
    fn an_epoch_holds_every_sample_at_most_once_and_drops_less_than_a_batch(case in cases(), epoch in 0u64..3) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = case.dataset(dir.path());
        let per_epoch = Loader::new(&dataset, &case.config).unwrap().plan.batches_per_epoch();
        let config = LoadConfig { cursor: Cursor { batch: epoch * per_epoch }, batches: Some(per_epoch), ..case.config };
        let mut seen: Vec<u64> = run_whole(&dataset, &config).into_iter().flat_map(|batch| batch.1).collect();
        let count = seen.len() as u64;
        seen.sort_unstable();
        seen.dedup();
        let samples = u64::from(case.sizes.iter().sum::<u32>());
        prop_assert_eq!(seen.len() as u64, count);
        prop_assert!(seen.iter().all(|&position| position < samples));
        prop_assert!(samples - count < config.batch as u64);
    }

    #[test]
    fn one_slice_more_than_consumers_keep_suffices_for_progress(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = case.dataset(dir.path());
        let config = LoadConfig { ranks: Ranks::all(1), ..case.config };
        let mut loader = Loader::new(&dataset, &config).unwrap();
        loader.slices = config.prefetch + 2;
        let keep = Keep::holding(config.prefetch);
        let got = loader.flow().unwrap().into(keep).run(&Runtime::default()).unwrap().output;
        prop_assert_eq!(positions(&got), expected(&dataset, &config));
    }

    #[test]
    fn a_consumer_may_keep_as_many_batches_as_the_prefetch_and_one(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = case.dataset(dir.path());
        let config = LoadConfig { ranks: Ranks::all(1), ..case.config };
        let keep = Keep::holding(config.prefetch);
        let got = batches(&dataset, &config).unwrap().into(keep).run(&Runtime::default()).unwrap().output;
        prop_assert_eq!(positions(&got), expected(&dataset, &config));
    }
}

#[test]
fn two_epochs_differ() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = moments(dir.path(), &[20, 20], 4, false, ZSTD);
    let got = run_whole(&dataset, &LoadConfig { batches: Some(20), ..config() });
    assert_ne!(got[..10].iter().map(|b| &b.1).collect::<Vec<_>>(), got[10..].iter().map(|b| &b.1).collect::<Vec<_>>());
}

#[test]
fn an_interrupted_stream_has_a_beginning_of_the_batches() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = moments(dir.path(), &[20, 20], 4, false, ZSTD);
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
    let columns = vec![
        column("mean", DType::F32, Semantics::PosteriorMean),
        column("std", DType::F32, Semantics::PosteriorStd),
        column("std_flip", DType::F32, Semantics::PosteriorStd),
        column("mean_flip", DType::F32, Semantics::PosteriorMean),
    ];
    // Mirror images have the opposite means, and deviations half as large.
    let mean = |position: u64, i: usize| position as f32 + i as f32 / 3.0;
    let dataset = write(dir.path(), &schema(columns, 4), &[5], |column, position| {
        let value = |i: usize| match column {
            0 => mean(position, i),
            3 => -mean(position, i),
            _ => position as f32 * if column == 1 { 0.5 } else { 0.25 },
        };
        (0..VALUES).flat_map(|i| value(i).to_le_bytes()).collect()
    });
    for flip in [false, true] {
        let config = LoadConfig { batch: 5, batches: Some(1), flip, ..config() };
        let batch = &run(&dataset, &config)[0][0];
        let mut sides = [0; 2];
        for (row, &position) in batch.positions.iter().enumerate() {
            let mirrored = flip && is_mirrored(config.seed, 0, row as u64);
            sides[usize::from(mirrored)] += 1;
            let (sign, deviation) = if mirrored { (-1.0, 0.25) } else { (1.0, 0.5) };
            for i in 0..VALUES {
                let logvar = if position == 0 { -30.0 } else { 2.0 * (position as f64 * deviation).ln() };
                assert_eq!(batch.mean[row * VALUES + i], f16::from_f32(sign * mean(position, i)));
                assert_eq!(batch.logvar[row * VALUES + i], f16::from_f64(logvar));
            }
        }
        assert_eq!(sides.contains(&0), !flip, "{sides:?}");
    }
}

#[test]
fn drawn_samples_are_loaded_without_log_variances() {
    let dir = tempfile::tempdir().unwrap();
    let columns = ["latent", "latent_flip"].map(|name| column(name, DType::F16, Semantics::Sample));
    let dataset = write(dir.path(), &schema(columns.to_vec(), 4), &[8], |column, position| {
        let value = if column == 0 { mean_at } else { mirrored_mean_at };
        (0..VALUES).flat_map(|i| value(position, i).to_le_bytes()).collect()
    });
    for flip in [false, true] {
        let config = LoadConfig { flip, ..config() };
        for batch in &run(&dataset, &config)[0] {
            assert!(is_true(batch, false, flip.then_some(config.seed)), "{batch:?}");
        }
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
fn mirror_images_that_were_not_encoded_are_an_error_that_says_how_to_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = moments(dir.path(), &[8], 4, false, ZSTD);
    let error = batches(&dataset, &LoadConfig { flip: true, ..config() }).err().unwrap().to_string();
    assert_eq!(
        error,
        "the dataset has no latents of mirrored images (no column mean_flip); encode it again with --flip, or train \
         without train.flip"
    );
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
    let dataset = moments(dir.path(), &[8], 4, false, ZSTD);
    let refusal = |config: LoadConfig| batches(&dataset, &config).err().map(|error| error.to_string()).unwrap();
    assert_eq!(refusal(LoadConfig { workers: 0, ..config() }), "workers is 0; it must be at least 1");
    assert_eq!(refusal(LoadConfig { prefetch: 2, ..config() }), "prefetch is 2; it must be at least 3");
    assert!(
        refusal(LoadConfig { batch: 9, ..config() }).starts_with("the dataset has 8 samples, less than one batch of 9")
    );
    let uneven = LoadConfig { ranks: Ranks::all(3), ..config() };
    assert!(refusal(uneven).starts_with("a batch of 4 cannot be cut into 3 equal slices"));
}
