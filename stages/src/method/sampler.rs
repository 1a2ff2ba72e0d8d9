//! Integration from noise (t = 1) to data (t = 0), with the time grids of REPA. State is f64 throughout.
//!
//! A sampler takes a velocity field, not a network: what a field is called with is the state and a time, and batching is
//! its own business ([`Guidance::velocity`], and `sample::generate`).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How to integrate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrator {
    /// Euler-Maruyama on the reverse SDE (Eq. 1): the papers' default.
    Sde,
    /// Euler on the probability-flow ODE.
    Ode,
    /// Heun on the probability-flow ODE: second order, 2 N - 1 evaluations for N steps.
    Heun,
}

/// w_t of Eq. 1, the diffusion of the reverse SDE. Any w_t >= 0 has the same marginals if the field is exact; with a
/// trained one it decides how much of the network's error is forgotten on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Diffusion {
    /// w_t = 2 sigma_t: what REPA's code computes, SiT's form "sigma", and what the published figures were made with.
    #[default]
    #[serde(rename = "2sigma")]
    TwoSigma,
    /// w_t = sigma_t: what the papers print.
    #[serde(rename = "sigma")]
    Sigma,
}

impl Diffusion {
    /// w_t / sigma_t.
    fn factor(self) -> f64 {
        match self {
            Self::TwoSigma => 2.0,
            Self::Sigma => 1.0,
        }
    }
}

/// Classifier-free guidance: v = v_null + w (v_class - v_null) while `low <= t <= high`, else v_class alone. All channels
/// are guided.
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

    /// The guided velocity of `x` `[N, ..]` with `labels` i64 `[N]`, in the interval or not as `gate`, a time, is.
    ///
    /// `pass(x, labels)` is the velocity of a batch. Inside the interval it is called once with 2 N rows, the second half
    /// of which has `null_class`, and the two are combined in f64, as REPA does: what comes back is f64 then. Outside it is
    /// called once with the N rows given, and what it gives comes back.
    pub fn velocity(
        &self,
        gate: f64,
        x: &Tensor,
        labels: &Tensor,
        null_class: i64,
        pass: impl FnOnce(&Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        if !self.applies_at(gate) {
            return pass(x, labels);
        }
        let null = labels.full_like(null_class);
        let both = pass(&Tensor::cat(&[x, x], 0), &Tensor::cat(&[labels, &null], 0)).to_kind(Kind::Double);
        let halves = both.chunk(2, 0);
        let (class, null) = (&halves[0], &halves[1]);
        null + self.scale * (class - null)
    }
}

/// ODE Euler with `steps` >= 1 equal steps: x += (t_next - t) v(x, t). `x` is noise, f64; what comes back has its shape and dtype.
///
/// # Errors
/// Those of `field`.
pub fn euler<E>(
    x: Tensor,
    steps: usize,
    mut field: impl FnMut(&Tensor, f64) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let grid = linspace(1.0, 0.0, steps + 1);
    grid.windows(2).try_fold(x, |x, t| Ok(&x + field(&x, t[0])?.to_kind(Kind::Double) * (t[1] - t[0])))
}

/// ODE Heun with `steps` >= 1 equal steps: the mean of the velocities at both ends of a step (trapezoid), and Euler in the last,
/// which ends where no network was trained. 2 `steps` - 1 evaluations. `x` is noise, f64.
///
/// `field(x, t, gate)`: `gate` is the time that decides about guidance. For both evaluations of a step it is the time where
/// the step begins, as in REPA, so that a step is guided as a whole or not at all.
///
/// # Errors
/// Those of `field`.
pub fn heun<E>(
    x: Tensor,
    steps: usize,
    mut field: impl FnMut(&Tensor, f64, f64) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let grid = linspace(1.0, 0.0, steps + 1);
    grid.windows(2).enumerate().try_fold(x, |x, (i, t)| {
        let (begin, end) = (t[0], t[1]);
        let first = field(&x, begin, begin)?.to_kind(Kind::Double);
        let ahead = &x + &first * (end - begin);
        if i + 1 == steps {
            return Ok(ahead);
        }
        let second = field(&ahead, end, begin)?.to_kind(Kind::Double);
        Ok(x + (first + second) * (0.5 * (end - begin)))
    })
}

/// Euler-Maruyama on Eq. 1 with w_t = k t, k = 2 or 1 by `diffusion`: `steps` >= 1 evaluations on linspace(1, 0.04, steps) and
/// a last, noiseless step of 0.04 to t = 0, where the score is not defined.
///
/// Eq. 1 is dx = (v - w_t s / 2) dt + sqrt(w_t) dW. With the score s = -((1 - t) v + x) / t of the linear path the t of w_t
/// cancels, and the drift is v + k/2 ((1 - t) v + x): (2 - t) v + x for k = 2, and ((3 - t) v + x) / 2 for k = 1. The noise
/// of a step of length h is sqrt(k t h). `noise(i)` gives the standard normal of step i in `0 .. steps - 1`, f64, of the
/// shape of `x`.
///
/// # Errors
/// Those of `field` and `noise`.
pub fn euler_maruyama<E>(
    x: Tensor,
    steps: usize,
    diffusion: Diffusion,
    mut field: impl FnMut(&Tensor, f64) -> Result<Tensor, E>,
    mut noise: impl FnMut(usize) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    const LAST: f64 = 0.04;
    let k = diffusion.factor();
    let mut drift = |x: &Tensor, t: f64| -> Result<Tensor, E> {
        let v = field(x, t)?.to_kind(Kind::Double);
        Ok(v * (1.0 + 0.5 * k * (1.0 - t)) + x * (0.5 * k))
    };
    let grid = linspace(1.0, LAST, steps);
    let x = grid.windows(2).enumerate().try_fold(x, |x, (i, t)| {
        let dt = t[1] - t[0];
        let step = drift(&x, t[0])? * dt + noise(i)? * (k * t[0] * -dt).sqrt();
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;
    use tch::Device;

    use super::*;
    use crate::method::path;

    const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Velocity of the linear path when the data are N(mu, s^2); its flow takes x(1) to mu + s x(1).
    fn gaussian(mu: f64, s: f64) -> impl Fn(&Tensor, f64) -> Tensor {
        move |x, t| {
            let a = 1.0 - t;
            (x - a * mu) * ((t - a * s * s) / (a * a * s * s + t * t)) - mu
        }
    }

    fn start() -> Tensor {
        Tensor::linspace(-2.0, 2.0, 9, OPTIONS)
    }

    fn farthest(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn halving_the_steps_of_euler_halves_the_error_and_of_heun_quarters_it(mu in -1.0..1.0, s in 0.3..0.9) {
            let (field, answer) = (gaussian(mu, s), mu + s * start());
            let euler = |n| super::euler(start(), n, |x, t| Ok::<_, Infallible>(field(x, t))).unwrap();
            let heun = |n| super::heun(start(), n, |x, t, _| Ok::<_, Infallible>(field(x, t))).unwrap();
            let ratio = |a: Tensor, b: Tensor| farthest(&a, &answer) / farthest(&b, &answer);
            let (first, second) = (ratio(euler(200), euler(400)), ratio(heun(200), heun(400)));
            prop_assert!((1.8..2.2).contains(&first), "{first}");
            prop_assert!((3.5..4.5).contains(&second), "{second}");
        }
    }

    /// Both diffusions end at the data's mean and spread. Affine fields keep a normal normal, so the mean and the variance
    /// of the end are computed exactly: the end is linear in the start and in the noise of each step.
    #[test]
    fn every_diffusion_ends_at_the_distribution_of_the_data() {
        let (mu, s, steps) = (0.7, 0.5, 2000);
        let field = gaussian(mu, s);
        for diffusion in [Diffusion::TwoSigma, Diffusion::Sigma] {
            // Row 0 has no noise at all and shows the mean; the others have one unit of noise each, at the start or at
            // every hundredth step, where its square is weighed with a hundred: a quadrature of the variance.
            let rows = (2 + steps / 100) as i64;
            let unit = |row: i64| {
                let zero = Tensor::zeros([rows], OPTIONS);
                let _ = zero.get(row).fill_(1.0);
                zero
            };
            let noise = |i: usize| {
                Ok::<_, Infallible>(match i % 100 {
                    50 => unit(2 + (i / 100) as i64),
                    _ => Tensor::zeros([rows], OPTIONS),
                })
            };
            let end = euler_maruyama(unit(1), steps, diffusion, |x, t| Ok(field(x, t)), noise).unwrap();
            let mean = end.double_value(&[0]);
            let of = |row: i64| (end.double_value(&[row]) - mean).powi(2);
            let variance = of(1) + (2..rows).map(|row| 100.0 * of(row)).sum::<f64>();
            assert!((mean - mu).abs() < 0.01, "{diffusion:?}: mean {mean}");
            assert!((variance.sqrt() - s).abs() < 0.01, "{diffusion:?}: spread {}", variance.sqrt());
        }
    }

    #[test]
    fn the_drift_is_the_velocity_less_half_of_w_times_the_score() {
        let (x, v) = (start(), start().sin() + 0.3);
        for (diffusion, k) in [(Diffusion::TwoSigma, 2.0), (Diffusion::Sigma, 1.0)] {
            // Two points make the grid 1, 0.04; what the first step adds without noise is its drift times -0.96.
            let mut seen = Vec::new();
            let field = |x: &Tensor, _| {
                seen.push(x.copy());
                Ok::<_, Infallible>(v.copy())
            };
            let end = euler_maruyama(x.copy(), 2, diffusion, field, |_| Ok(x.zeros_like())).unwrap();
            let at = |x: &Tensor, t: f64| &v - path::score(&v, x, t) * (0.5 * k * t);
            assert!(farthest(&seen[1], &(&x - at(&x, 1.0) * 0.96)) < 1e-12, "{diffusion:?}");
            assert!(farthest(&end, &(&seen[1] - at(&seen[1], 0.04) * 0.04)) < 1e-12, "{diffusion:?}");
        }
    }

    #[test]
    fn samplers_evaluate_as_often_as_they_say_and_a_heun_step_is_gated_where_it_begins() {
        let (mut calls, zero) = (Vec::new(), start().zeros_like());
        let count = |_: &Tensor, t, gate| {
            calls.push((t, gate));
            Ok::<_, Infallible>(zero.copy())
        };
        let _ = heun(start(), 4, count).unwrap();
        assert_eq!(calls, [(1.0, 1.0), (0.75, 1.0), (0.75, 0.75), (0.5, 0.75), (0.5, 0.5), (0.25, 0.5), (0.25, 0.25)]);

        for steps in [1, 5] {
            let mut calls = 0;
            let count = |_: &Tensor, _| {
                calls += 1;
                Ok::<_, Infallible>(zero.copy())
            };
            let _ = euler_maruyama(start(), steps, Diffusion::TwoSigma, count, |_| Ok(zero.copy())).unwrap();
            assert_eq!(calls, steps);
        }
    }

    /// f32 would round v_class - v_null and what is made of it; a network's f32 velocities are exact in f64.
    #[test]
    fn guidance_combines_f32_velocities_in_f64() {
        let guidance = Guidance { scale: 1.6, low: 0.0, high: 1.0 };
        let (class, null) = (1.000_000_1_f32, -3.3e-4_f32);
        let (x, labels) = (Tensor::ones([1, 1], OPTIONS), Tensor::from_slice(&[0i64]));
        let v = guidance.velocity(0.5, &x, &labels, 9, |_, _| Tensor::from_slice(&[class, null]).view([2, 1]));
        let exact = f64::from(null) + 1.6 * (f64::from(class) - f64::from(null));
        assert!((v.double_value(&[0, 0]) - exact).abs() < 1e-15, "{}", v.double_value(&[0, 0]));
        let in_f32 = null + 1.6 * (class - null);
        assert!((f64::from(in_f32) - exact).abs() > 1e-9, "the case shows nothing");
    }

    #[test]
    fn guidance_makes_one_pass_of_twice_the_rows_inside_its_interval_and_of_the_rows_outside() {
        let guidance = Guidance { scale: 1.5, low: 0.2, high: 0.6 };
        let (x, labels) = (Tensor::ones([3, 1], OPTIONS), Tensor::from_slice(&[0i64, 1, 2]));
        for (t, rows) in [(0.1, 3), (0.2, 6), (0.6, 6), (0.61, 3)] {
            let mut passes = Vec::new();
            let v = guidance.velocity(t, &x, &labels, 9, |x, labels| {
                passes.push((x.size()[0], labels.size()[0]));
                labels.to_kind(Kind::Double).unsqueeze(1)
            });
            assert_eq!(passes, [(rows, rows)], "{t}");
            // v of class y is y, and the null class is 9.
            let guided = |y: f64| if rows == 6 { 9.0 + 1.5 * (y - 9.0) } else { y };
            assert_eq!(Vec::<f64>::try_from(v.squeeze()).unwrap(), [0.0, 1.0, 2.0].map(guided), "{t}");
        }
    }
}
