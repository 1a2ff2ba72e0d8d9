//! The losses of the paper and those it is compared with, in f32; half precision overflows in norms.
//!
//! Eq. 7 is here, Eq. 6 in [`alignment`], the comparators of Table 1 that share the harness in [`comparators`], and what
//! makes a collapse visible in [`features`].

pub mod alignment;
pub mod comparators;
pub mod config;
pub mod features;

use tch::{Kind, Tensor};

use super::path;

/// Eq. 7 as a mean: over views, images, channels and pixels, of (v_theta - (eps - x_*))^2. All tensors f32
/// `[N, C, h, w]`. [`config::ObjectiveConfig`] says what a run weighs it with.
pub fn velocity_loss(velocity: &Tensor, x: &Tensor, noise: &Tensor) -> Tensor {
    (velocity - path::velocity_target(x, noise)).square().mean(Kind::Float)
}
