//! What must be equal, is: splits of a batch, and a run that was stopped and continued.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

use super::checkpoint::{self, Keep, Marks, Snapshot, Writer};
use super::config::{ScheduleConfig, TrainConfig};
use super::optimiser::OptimiserConfig;
use super::step::Trainer;
use crate::data::LatentBatch;
use crate::method::config::{Backbone, LatentShape, ModelConfig};
use crate::method::ema::EmaConfig;
use crate::method::layout::ParameterSpec;
use crate::method::objective::config::{Aligned, ObjectiveConfig, Reduction, Similarity, TimeDistribution};
use crate::method::parameters::views;
use crate::method::random;
use crate::native::reads::reads_during;

pub(super) const DATA: LatentShape = LatentShape { channels: 4, height: 8, width: 8, classes: 3 };

pub(super) fn config(micro_batches: u64) -> TrainConfig {
    TrainConfig {
        model: ModelConfig {
            depth: 4,
            encoder_depth: 2,
            hidden: 32,
            heads: 2,
            projector_hidden: 48,
            projector_out: 24,
            ..ModelConfig::OPEN
        },
        objective: ObjectiveConfig::default(),
        optimiser: OptimiserConfig { lr: 1e-3, ..Default::default() },
        ema: EmaConfig { decay: 0.99, warmup: true },
        train: ScheduleConfig {
            steps: 100,
            batch: 8,
            micro_batches,
            seed: 3,
            pool_blocks: 4,
            flip: false,
            log_every: 1,
            checkpoint_every: 5,
            keep_checkpoints: 2,
            keep_every: 0,
            sample_every: 0,
            sample_steps: 3,
            sample_guidance: 1.5,
        },
    }
}

/// A trainer whose every weight is random: with zero gates most gradients vanish and any split looks equal.
pub(super) fn trainer(micro_batches: u64, kind: Kind) -> Trainer {
    trainer_of(config(micro_batches), kind)
}

pub(super) fn trainer_of(config: TrainConfig, kind: Kind) -> Trainer {
    let mut trainer = Trainer::new(config, DATA, Device::Cpu, kind).unwrap();
    let len = trainer.parameters.master.numel() as i64;
    let noise = random::normal(&[len], Device::Cpu, 17).unwrap() * 0.1;
    let _ = trainer.parameters.master.g_add_(&noise);
    trainer.average.copy_(&trainer.parameters.master);
    trainer.parameters.refresh();
    trainer
}

fn marks() -> Marks {
    Marks { data: "data".to_owned(), arithmetic: "cpu".to_owned(), config: "batch = 8".to_owned() }
}

/// Writes a checkpoint of data "data" and arithmetic "cpu", and keeps two.
pub(super) fn save(trainer: &Trainer, folder: &Path) -> PathBuf {
    let (specs, keep) = (trainer.parameters.specs().to_vec(), Keep { last: 2, every: 0 });
    Writer::new(folder.to_path_buf(), specs, marks(), keep).write(&Snapshot::of(trainer)).unwrap()
}

/// Stands for the loader: batch number g is a function of g.
pub(super) fn batch(g: u64) -> LatentBatch {
    let latents = random::normal(&[1, 8, 4, 8, 8], Device::Cpu, 1000 + g).unwrap();
    LatentBatch { latents, labels: Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2, 0, 1]) }
}

fn train(trainer: &mut Trainer, until: u64) {
    while trainer.step < until {
        let views = trainer.draw_views().unwrap();
        trainer.step(&batch(trainer.step), &views, false).unwrap();
    }
}

/// |found - expected| / |expected|.
pub(super) fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    (found - expected).norm().double_value(&[]) / expected.norm().double_value(&[])
}

/// The weights after 50 steps of plain gradient descent; `gradients` computes those of a step.
pub(super) fn descended(trainer: &mut Trainer, mut gradients: impl FnMut(&mut Trainer)) -> Tensor {
    for _ in 0..50 {
        gradients(trainer);
        let change = &trainer.parameters.gradients * -0.05;
        let _ = no_grad(|| trainer.parameters.master.g_add_(&change));
        trainer.step += 1;
    }
    trainer.parameters.master.copy()
}

/// Weights, their average and both moments after 50 steps of AdamW.
pub(super) fn updated(trainer: &mut Trainer, mut gradients: impl FnMut(&mut Trainer)) -> [Tensor; 4] {
    for _ in 0..50 {
        gradients(trainer);
        let _ = trainer.update().unwrap();
    }
    let Trainer { parameters, average, optimiser, .. } = trainer;
    [&parameters.master, average, &optimiser.exp_avg, &optimiser.exp_avg_sq].map(Tensor::copy)
}

/// Each parameter of two flat buffers by itself: a small one must not hide behind a large one.
#[track_caller]
pub(super) fn assert_equal_by_parameter(
    what: &str,
    specs: &[ParameterSpec],
    found: &Tensor,
    expected: &Tensor,
    tolerance: f64,
) {
    let expected = views(specs, expected);
    for (name, found) in views(specs, found) {
        let error = relative(&found, &expected[&name]);
        assert!(error < tolerance, "{what}, {name}: relative error {error:e}");
    }
}

/// Two views, three, and Eq. 7 summed over them.
fn splittable() -> [ObjectiveConfig; 3] {
    let paper = ObjectiveConfig::default;
    [paper(), ObjectiveConfig { views: 3, ..paper() }, ObjectiveConfig { velocity_views: Reduction::Sum, ..paper() }]
}

/// Of the trainer's next global batch.
fn gradients(trainer: &mut Trainer) {
    let views = trainer.draw_views().unwrap();
    let _ = trainer.compute_gradients(&batch(trainer.step), &views, false).unwrap();
}

#[test]
fn micro_batches_change_no_gradient_of_the_first_step() {
    for objective in splittable() {
        let first = |micro_batches| {
            let mut trainer =
                trainer_of(TrainConfig { objective: objective.clone(), ..config(micro_batches) }, Kind::Float);
            gradients(&mut trainer);
            trainer.parameters
        };
        let whole = first(1);
        for pieces in [2, 4] {
            let what = format!("{pieces} pieces, {objective:?}");
            assert_equal_by_parameter(&what, whole.specs(), &first(pieces).gradients, &whole.gradients, 1e-6);
        }
    }
}

/// 50 steps of plain gradient descent, by parameter, and 50 of AdamW by the flat norm: AdamW divides by the size of a
/// gradient, so that where the true one is 0, rounding is all there is.
#[test]
fn micro_batches_train_as_the_whole_batch_does() {
    for objective in splittable() {
        let begin = |micro_batches| {
            trainer_of(TrainConfig { objective: objective.clone(), ..config(micro_batches) }, Kind::Float)
        };
        let specs = begin(1).parameters.specs().to_vec();
        let whole = (descended(&mut begin(1), gradients), updated(&mut begin(1), gradients));
        for pieces in [2, 4] {
            let what = format!("{pieces} pieces, {objective:?}");
            assert_equal_by_parameter(&what, &specs, &descended(&mut begin(pieces), gradients), &whole.0, 1e-5);
            for (at, (found, expected)) in updated(&mut begin(pieces), gradients).iter().zip(&whole.1).enumerate() {
                let error = relative(found, expected);
                assert!(error < 1e-4, "{what}, buffer {at}: {error:e}");
            }
        }
    }
}

/// Two ranks draw for the global batch, each takes its half, and the mean of their gradients is that of the whole.
#[test]
fn ranks_that_slice_the_global_batch_have_its_gradients_on_average() {
    let rank = |rows: Option<i64>| {
        let mut trainer = trainer(1, Kind::Float);
        let (views, whole) = (trainer.draw_views().unwrap(), batch(0));
        let (start, len) = rows.map_or((0, 8), |start| (start, 4));
        let rows =
            LatentBatch { latents: whole.latents.narrow(1, start, len), labels: whole.labels.narrow(0, start, len) };
        let _ = trainer.compute_gradients(&rows, &views.slice(start, len), false).unwrap();
        trainer.parameters.gradients.copy()
    };
    let (whole, mean) = (rank(None), (rank(Some(0)) + rank(Some(4))) / 2.0);
    let specs = trainer(1, Kind::Float).parameters.specs().to_vec();
    assert_equal_by_parameter("two ranks", &specs, &mean, &whole, 1e-6);
}

/// Every key of the objective at least once: the paper's with one to four views, its variants, and the losses that it
/// is compared with, on `ddt`; and the paper's on `sit`.
fn configs() -> Vec<TrainConfig> {
    let paper = ObjectiveConfig::default;
    let plain = ObjectiveConfig::plain;
    let nt_xent = || ObjectiveConfig { similarity: Similarity::NtXent, ..paper() };
    let objectives = [
        plain(),
        paper(),
        ObjectiveConfig { views: 3, ..paper() },
        ObjectiveConfig { views: 4, ..paper() },
        ObjectiveConfig { lambda: 0.0, ..paper() },
        nt_xent(),
        ObjectiveConfig { pool_tokens: true, ..nt_xent() },
        ObjectiveConfig { aligned: Aligned::Modulation, ..paper() },
        ObjectiveConfig { stop_gradient: true, ..paper() },
        ObjectiveConfig { centre: true, ..paper() },
        ObjectiveConfig { resample_t: false, ..paper() },
        ObjectiveConfig { resample_noise: false, ..paper() },
        ObjectiveConfig { resample_posterior: true, time: TimeDistribution::LogitNormal, ..paper() },
        ObjectiveConfig { share_label_drop: true, ..paper() },
        ObjectiveConfig { velocity_views: Reduction::Sum, velocity_elements: Reduction::Sum, ..paper() },
        ObjectiveConfig { dispersive: 0.5, ..plain() },
        ObjectiveConfig { contrastive: 0.05, ..plain() },
    ];
    let of = |objective: ObjectiveConfig| {
        let pieces = if objective.across_images().is_some() { 1 } else { 2 };
        TrainConfig { objective, ..config(pieces) }
    };
    let mut sit = of(paper());
    sit.model.backbone = Backbone::Sit;
    objectives.into_iter().map(of).chain([sit]).collect()
}

/// Nothing of a step reads a value back, figures of the features included. The one read is in libtorch's AdamW for the
/// CPU, of the count of steps; the one for CUDA looks at it on the device. What a GPU runs in place of the CPU's block
/// is counted in `network::fused`.
#[test]
fn a_step_of_any_objective_reads_nothing_back() {
    for config in configs() {
        let mut trainer = trainer_of(config, Kind::Float);
        let gradients = || {
            let views = trainer.draw_views().unwrap();
            let _ = trainer.compute_gradients(&batch(0), &views, true).unwrap();
        };
        assert_eq!(reads_during(gradients).unwrap().1, 0, "{:?}", trainer.config);
        assert_eq!(reads_during(|| trainer.update().unwrap()).unwrap().1, 1, "{:?}", trainer.config);
    }
}

proptest! {
    // A case is all there is to train, each with stops of its own; a failure names its own, and needs no smaller one.
    #![proptest_config(ProptestConfig { cases: 1, max_shrink_iters: 0, failure_persistence: None, ..Default::default() })]

    /// Wherever it was stopped, and whatever it trains: the last checkpoint has the bytes of that of a run that never
    /// was.
    #[test]
    fn a_run_that_was_stopped_continues_bit_for_bit(
        stops in prop::collection::vec(prop::collection::btree_set(1_u64..7, 2), 2 * configs().len()),
    ) {
        let kinds = |config: TrainConfig| [(config.clone(), Kind::Float), (config, Kind::BFloat16)];
        for ((config, kind), stops) in configs().into_iter().flat_map(kinds).zip(stops) {
            prop_assert_eq!(config.problem(&DATA), None);
            let folder = tempfile::tempdir().unwrap();
            let mut uninterrupted = trainer_of(config.clone(), kind);
            train(&mut uninterrupted, 7);
            let expected = save(&uninterrupted, &folder.path().join("whole"));

            let mut stopped = trainer_of(config.clone(), kind);
            for &stop in &stops {
                train(&mut stopped, stop);
                let path = save(&stopped, folder.path());
                stopped = Trainer::new(config.clone(), DATA, Device::Cpu, kind).unwrap();
                prop_assert_eq!(checkpoint::load(&mut stopped, &path, "data", "cpu").unwrap(), None);
                prop_assert_eq!(stopped.step, stop);
            }
            train(&mut stopped, 7);
            let found = fs::read(save(&stopped, folder.path())).unwrap();
            prop_assert!(found == fs::read(expected).unwrap(), "{:?}, {:?}, {:?}", stops, kind, config);
        }
    }
}

#[test]
fn training_lowers_the_loss_on_a_batch_it_sees_again() {
    let mut config = config(1);
    config.optimiser.lr = 3e-3;
    let mut trainer = Trainer::new(config, DATA, Device::Cpu, Kind::Float).unwrap();
    let batch = batch(0);
    let mut loss = || {
        let views = trainer.draw_views().unwrap();
        trainer.step(&batch, &views, false).unwrap().losses.velocity.double_value(&[])
    };
    let first: f64 = (0..5).map(|_| loss()).sum();
    let last: f64 = (0..100).map(|_| loss()).skip(95).sum();
    // A network that predicts 0 has loss 2; the best that knows nothing of these very images has 1.
    assert!(last < 0.75 * first, "{first} -> {last}");
}
