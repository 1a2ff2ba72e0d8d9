//! Algorithm 1 of the paper, "Dual-Path Condition Alignment Batch Step". Numbers in brackets are its lines.
//!
//! Lines 4 and 5 loop over images and views; here both are one batch of N = K B samples, since nothing but line 11
//! looks at more than one of them. Line 15, the update, is `train::optimiser`.

use tch::{Kind, Tensor};

use super::config::ObjectiveConfig;
use super::network::Network;
use super::views::Views;
use super::{objective, path};
use crate::data::LatentBatch;

/// The losses of a batch, f32 scalars on the device. Only `total` carries a graph.
#[derive(Debug)]
pub struct Losses {
    /// Eq. 8: velocity + lambda alignment.
    pub total: Tensor,
    /// Eq. 7.
    pub velocity: Tensor,
    /// Eq. 6; 0 without alignment.
    pub alignment: Tensor,
    /// Mean cosine between views of the conditions before the projector; 0 with one view.
    pub condition_cosine: Tensor,
}

/// L(theta, phi) of Algorithm 1 for a batch x_1 .. x_B and its K B views.
pub fn batch_loss(network: &Network, batch: &LatentBatch, views: &Views, config: &ObjectiveConfig) -> Losses {
    let (k, b) = (config.views, batch.latents.size()[0]);
    let joined = |x: &Tensor| x.flatten(0, 1); //                            [K, B, ..] -> [K B, ..]
    let apart = |x: &Tensor| x.view([&[k, b], &x.size()[1..]].concat().as_slice());

    // (6) t_j ~ U(0, 1), eps_j ~ N(0, I), x_{t_j} = alpha x + sigma eps
    let (t, noise) = (joined(&views.t), joined(&views.noise));
    let x = batch.latents.repeat([k, 1, 1, 1]);
    let x_t = path::interpolate(&x, &noise, &t);
    let labels = joined(&views.labels(&batch.labels, network.null_class()));

    // (7) v_j, z_j = v_theta(x_{t_j}, t_j, y)
    let prediction = network.forward(&x_t, &t, &labels);

    // (9) L += |v_j - (eps_j - x)|^2, as the mean over views where the paper prints the sum
    let velocity = objective::velocity_loss(&prediction.velocity, &x, &noise);

    // (8) z_j = z_phi(z_j), then (10, 11) L -= 2 lambda / (K (K - 1)) sim(z_k, z_j) over k < j
    let conditions = apart(&prediction.condition);
    let alignment = if config.aligns() {
        objective::alignment_loss(&apart(&network.project(&prediction.condition)))
    } else {
        velocity.zeros_like().detach()
    };
    let total = &velocity + config.lambda * &alignment;

    let condition_cosine = if k > 1 {
        tch::no_grad(|| objective::view_cosine(&conditions))
    } else {
        Tensor::zeros([], (Kind::Float, velocity.device()))
    };
    Losses { total, velocity: velocity.detach(), alignment: alignment.detach(), condition_cosine }
}
