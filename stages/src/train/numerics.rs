//! What precision, values that are not finite, and the start of the projector do to a run.

use tch::{Device, Kind, Tensor, no_grad};

use super::equality::{batch, trainer};
use super::step::Trainer;
use crate::method::algorithm::batch_loss;
use crate::method::network::Network;

/// Mean velocity loss of the first ten steps of a run, and of steps 401 to 500.
fn ends_of_500_steps(kind: Kind) -> [f64; 2] {
    let mut trainer = trainer(1, kind);
    let mut losses = Vec::new();
    while trainer.step < 500 {
        let views = trainer.draw_views().unwrap();
        // Sixteen batches again and again: there is something to learn.
        let figures = trainer.step(&batch(trainer.step % 16), &views, false).unwrap();
        losses.push(figures.losses.velocity.double_value(&[]));
    }
    [&losses[..10], &losses[400..]].map(|part| part.iter().sum::<f64>() / part.len() as f64)
}

#[test]
fn bf16_learns_as_f32_does_over_500_steps() {
    let [[start, f32], [_, bf16]] = [Kind::Float, Kind::BFloat16].map(ends_of_500_steps);
    assert!(f32 < 0.85 * start, "next to nothing was learned: {start} to {f32}");
    // Draws are the same, rounding is not.
    assert!((bf16 / f32 - 1.0).abs() < 0.02, "f32 {f32}, bf16 {bf16}");
}

fn state(trainer: &Trainer) -> [Tensor; 5] {
    let Trainer { parameters, average, optimiser, .. } = trainer;
    [&parameters.master, average, &optimiser.exp_avg, &optimiser.exp_avg_sq, &optimiser.count].map(Tensor::copy)
}

#[test]
fn a_batch_that_holds_a_nan_is_skipped_and_the_run_goes_on() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let mut trainer = trainer(2, kind);
        let mut step = |batch| {
            let views = trainer.draw_views().unwrap();
            let figures = trainer.step(&batch, &views, false).unwrap();
            (figures.skipped.double_value(&[]), trainer.step, state(&trainer))
        };
        let (skipped, _, before) = step(batch(0));
        assert_eq!(skipped, 0.0);
        let broken = batch(1);
        let _ = broken.latents.get(0).get(5).get(1).get(2).get(3).fill_(f64::NAN);
        let (skipped, done, after) = step(broken);
        assert_eq!((skipped, done), (1.0, 2));
        assert!(before.iter().zip(&after).all(|(a, b)| a.equal(b)), "{kind:?}");
        let (skipped, done, learned) = step(batch(2));
        assert_eq!((skipped, done), (0.0, 3));
        assert!(after.iter().zip(&learned).all(|(a, b)| !a.equal(b)), "{kind:?}");
        assert!(learned.iter().all(|tensor| tensor.isfinite().all().int64_value(&[]) == 1), "{kind:?}");
    }
}

#[test]
fn what_a_pass_left_that_nobody_collected_is_no_part_of_the_next_step() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let step = |mut trainer: Trainer| {
            let views = trainer.draw_views().unwrap();
            trainer.step(&batch(0), &views, false).unwrap();
            trainer.parameters.master
        };
        let disturbed = trainer(1, kind);
        for leaf in disturbed.parameters.leaves().values() {
            leaf.sum(kind).backward();
        }
        assert!(step(disturbed).equal(&step(trainer(1, kind))), "{kind:?}");
    }
}

/// Section 5.1: with weights and biases of 0 the aligned features "remain 0, leading to shortcut learning".
#[test]
fn the_projector_does_not_start_in_the_shortcut() {
    let alignment_gradients = |trainer: &mut Trainer| {
        let (views, batch) = (trainer.draw_views().unwrap(), batch(0));
        let network = Network::new(&trainer.config.model, &trainer.data, trainer.parameters.leaves());
        let mut objective = trainer.config.objective.clone();
        let mut gradient = |lambda: f64, trainer: &mut Trainer| {
            objective.lambda = lambda;
            let losses = batch_loss(&network, &batch, &views, &objective, true);
            losses.total.backward();
            trainer.parameters.collect_gradients(false).unwrap();
            (losses, trainer.parameters.gradients.copy())
        };
        let (losses, one) = gradient(1.0, trainer);
        let (_, two) = gradient(2.0, trainer);
        let of_alignment = two - one;
        let specs = trainer.parameters.specs();
        let named = crate::method::parameters::views(specs, &of_alignment);
        let norm = |prefix: &str| -> f64 {
            let matching = named.iter().filter(|(name, _)| name.starts_with(prefix));
            matching.map(|(_, gradient)| gradient.square().sum(Kind::Double).double_value(&[])).sum()
        };
        (losses.alignment.double_value(&[]), norm("projectors."), norm("s_embedder."))
    };
    let fresh = || {
        let config = trainer(1, Kind::Float).config;
        Trainer::new(config, super::equality::DATA, Device::Cpu, Kind::Float).unwrap()
    };
    let (loss, projector, encoder) = alignment_gradients(&mut fresh());
    assert!(loss < -0.05 && projector > 0.0 && encoder > 0.0, "{loss}, {projector}, {encoder}");

    let mut zero = fresh();
    let specs = zero.parameters.specs().to_vec();
    for (name, view) in crate::method::parameters::views(&specs, &zero.parameters.master) {
        if name.starts_with("projectors.") {
            let _ = no_grad(|| view.shallow_clone().zero_());
        }
    }
    // The shortcut: nothing is aligned, and nothing will ever change that.
    assert_eq!(alignment_gradients(&mut zero), (0.0, 0.0, 0.0));
}
