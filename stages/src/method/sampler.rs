//! Integration from noise (t = 1) to data (t = 0), with the time grids of REPA. State is f64 throughout.
//!
//! A sampler takes a velocity field, not a network: guidance and batching are the field's business
//! ([`Guidance`], and `velocity` of `sample::generate`).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How to integrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrator {
    /// Euler-Maruyama on the reverse SDE (Eq. 1) with w_t = 2 sigma_t: the papers' default.
    Sde,
    /// Euler on the probability-flow ODE.
    Ode,
}

/// Classifier-free guidance: v = v_null + w (v_class - v_null) while `low <= t <= high`, else v_class alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Guidance {
    /// w; 1 or less turns guidance off.
    pub scale: f64,
    /// First guided time (0 is data).
    pub low: f64,
    /// Last guided time.
    pub high: f64,
}

impl Guidance {
    /// Whether both passes are needed at `t`.
    pub fn applies_at(&self, t: f64) -> bool {
        self.scale > 1.0 && self.low <= t && t <= self.high
    }
}

/// ODE Euler with `steps` equal steps: x += (t_next - t) v(x, t). `x` is noise, f64.
pub fn euler<E>(
    x: Tensor,
    steps: usize,
    mut field: impl FnMut(&Tensor, f64) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let grid = linspace(1.0, 0.0, steps + 1);
    grid.windows(2).try_fold(x, |x, t| Ok(&x + field(&x, t[0])?.to_kind(Kind::Double) * (t[1] - t[0])))
}

/// Euler-Maruyama on Eq. 1 with w_t = 2 t: `steps` evaluations on linspace(1, 0.04, steps) and a last, noiseless
/// step of 0.04 to t = 0, where the score is not defined.
///
/// For the linear path the drift v - w_t s / 2 is (2 - t) v + x. `noise(i)` gives the standard normal of step i in
/// `0 .. steps - 1`, f64, of the shape of `x`.
pub fn euler_maruyama<E>(
    x: Tensor,
    steps: usize,
    mut field: impl FnMut(&Tensor, f64) -> Result<Tensor, E>,
    mut noise: impl FnMut(usize) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    const LAST: f64 = 0.04;
    let mut drift =
        |x: &Tensor, t: f64| -> Result<Tensor, E> { Ok(field(x, t)?.to_kind(Kind::Double) * (2.0 - t) + x) };
    let grid = linspace(1.0, LAST, steps);
    let x = grid.windows(2).enumerate().try_fold(x, |x, (i, t)| {
        let dt = t[1] - t[0];
        let step = drift(&x, t[0])? * dt + noise(i)? * (2.0 * t[0] * -dt).sqrt();
        Ok(x + step)
    })?;
    // One evaluation only: the grid is the single point t = 1, and the last step runs from there.
    let last = grid.last().copied().unwrap_or(1.0);
    Ok(&x - drift(&x, last)? * last)
}

fn linspace(from: f64, to: f64, points: usize) -> Vec<f64> {
    let step = if points > 1 { (to - from) / (points - 1) as f64 } else { 0.0 };
    (0..points).map(|i| if i + 1 == points && points > 1 { to } else { from + step * i as f64 }).collect()
}
