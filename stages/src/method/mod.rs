//! The paper's method: "Dual-Path Condition Alignment for Diffusion Transformers" (DUPA).
//!
//! Start here, then read [`algorithm`], which is Algorithm 1 on one screen.
//!
//! | paper | here |
//! |---|---|
//! | section 3.1, interpolant x_t = alpha_t x_* + sigma_t eps | [`path::interpolate`], [`path::velocity_target`] |
//! | Eq. 1, reverse SDE | [`sampler::euler_maruyama`] |
//! | section 3.1, probability-flow ODE | [`sampler::euler`] |
//! | Eq. 3, 7, velocity objective | [`objective::velocity_loss`] |
//! | Eq. 4, z_t = Encoder(x_t, t, y), v_t = Decoder(x_t, t, z_t) | [`network::Network::forward`] |
//! | Eq. 6, condition alignment | [`objective::alignment::alignment_loss`] |
//! | Table 1, dispersive loss, contrastive flow matching | [`objective::comparators`] |
//! | Appendix F, similarity of views | [`objective::features`] |
//! | Eq. 8 and Algorithm 1 | [`algorithm::batch_loss`] |
//! | section 4.1, dual-path sampling | [`views::Views`] |
//! | section 5.1, initialisation of the projector | [`layout`](mod@layout) |
//! | Table 5, model sizes | [`config::ModelConfig`] |
//! | Table 2, resampling, depth, objective, lambda | [`objective::config::ObjectiveConfig`] |
//!
//! What the paper leaves open is decided in one place each, and where the choice departs from the printed text, the
//! line says so. No I/O and no threads here: tensors in, tensors out.

pub mod algorithm;
pub mod config;
pub mod cost;
pub mod ema;
#[cfg(test)]
mod goldens;
pub mod layout;
pub mod network;
pub mod objective;
pub mod parameters;
pub mod path;
pub mod random;
pub mod sampler;
pub mod views;
