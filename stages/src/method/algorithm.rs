//! Algorithm 1 of the paper, "Dual-Path Condition Alignment Batch Step". Numbers in brackets are its lines.
//!
//! Lines 4 and 5 loop over images and views; here both are one batch of N = K B samples, since nothing but line 11
//! looks at more than one of them. Line 15, the update, is `train::optimiser`. What is weighed by keys of the
//! configuration, and the losses that the paper is compared with, stand behind it in [`Losses::total`].

use tch::Tensor;

use super::network::{Network, Prediction};
use super::objective::config::{Aligned, ObjectiveConfig, Reduction};
use super::objective::features::FeatureFigures;
use super::objective::{alignment, comparators, velocity_loss};
use super::path;
use super::views::Views;
use crate::data::LatentBatch;

/// The losses of a batch, f32 scalars on the device. Only `total` carries a graph.
#[derive(Debug)]
pub struct Losses {
    /// Eq. 8: velocity + lambda alignment, and what else the configuration weighs.
    pub total: Tensor,
    /// Eq. 7, as a mean.
    pub velocity: Tensor,
    /// Eq. 6; 0 without alignment.
    pub alignment: Tensor,
    /// [`comparators::dispersive_loss`]; 0 without.
    pub dispersive: Tensor,
    /// [`comparators::contrastive_distance`]; 0 without.
    pub contrastive: Tensor,
    /// Of the aligned features, where they were asked for and there are two views.
    pub features: Option<FeatureFigures>,
}

/// L(theta, phi) of Algorithm 1 for a batch x_1 .. x_B and its K B views. `look` asks for figures of the features.
pub fn batch_loss(
    network: &Network,
    batch: &LatentBatch,
    views: &Views,
    config: &ObjectiveConfig,
    look: bool,
) -> Losses {
    let (k, b) = (config.views, batch.labels.size()[0]);
    let joined = |x: &Tensor| x.flatten(0, 1); //                            [K, B, ..] -> [K B, ..]
    let apart = |x: &Tensor| x.view([&[k, b], &x.size()[1..]].concat().as_slice());

    // (6) t_j ~ U(0, 1), eps_j ~ N(0, I), x_{t_j} = alpha x + sigma eps
    let (t, noise) = (joined(&views.t), joined(&views.noise));
    let x = joined(&batch.latents.expand_as(&views.noise));
    let x_t = path::interpolate(&x, &noise, &t);
    let labels = joined(&views.labels(&batch.labels, network.null_class()));

    // (7) v_j, z_j = v_theta(x_{t_j}, t_j, y)
    let prediction = network.forward(&x_t, &t, &labels);

    // (9) L += |v_j - (eps_j - x)|^2, as the mean over views, channels and pixels
    let velocity = velocity_loss(&prediction.velocity, &x, &noise);

    // (8) z_j = z_phi(z_j), then (10, 11) L -= 2 lambda / (K (K - 1)) sim(z_k, z_j) over k < j
    let zero = || velocity.zeros_like().detach();
    let aligned = aligned(&prediction, config.aligned);
    let projected = (config.aligns() || look && k > 1).then(|| apart(&network.project(&aligned)));
    let alignment = match &projected {
        Some(projected) if config.aligns() => alignment::alignment_loss(projected, config),
        _ => zero(),
    };

    // Comparators, which are no part of Algorithm 1.
    let dispersive = match config.dispersive > 0.0 {
        true => comparators::dispersive_loss(&prediction.condition, config.dispersive_temperature),
        false => zero(),
    };
    let contrastive = match &views.others {
        Some(others) => {
            let target = apart(&path::velocity_target(&x, &noise));
            comparators::contrastive_distance(&apart(&prediction.velocity), &target, others)
        }
        None => zero(),
    };

    let elements = batch.latents.size()[2..].iter().product::<i64>() as f64;
    let weight = |reduction, count| if reduction == Reduction::Sum { count } else { 1.0 };
    let weight = weight(config.velocity_views, k as f64) * weight(config.velocity_elements, elements);
    let total = weight * (&velocity - config.contrastive * &contrastive)
        + config.lambda * &alignment
        + config.dispersive * &dispersive;

    let features =
        projected.filter(|_| look).map(|projected| FeatureFigures::of(&apart(&aligned), &projected, &views.t));
    let [velocity, alignment, dispersive, contrastive] =
        [velocity, alignment, dispersive, contrastive].map(|loss| loss.detach());
    Losses { total, velocity, alignment, dispersive, contrastive, features }
}

/// What the projector takes: `[K B, T, D]`.
fn aligned(prediction: &Prediction, which: Aligned) -> Tensor {
    match which {
        Aligned::Output => prediction.condition.shallow_clone(),
        Aligned::Modulation => (&prediction.time + &prediction.condition).silu(),
    }
}
