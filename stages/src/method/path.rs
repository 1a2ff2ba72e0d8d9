//! The interpolant between data and noise, and what follows from it (paper section 3.1, Table 7).
//!
//! **Time: t = 0 is data, t = 1 is noise**, here and everywhere in this program. (SiT and the official DDT run the
//! other way: their t is 1 - t here and their velocity has the opposite sign.)
//!
//! Linear path: alpha_t = 1 - t, sigma_t = t, so the derivatives are -1 and +1.

use tch::Tensor;

/// x_t = alpha_t x_* + sigma_t eps. `x` and `noise` are `[N, ..]`, `t` is `[N]` in [0, 1].
pub fn interpolate(x: &Tensor, noise: &Tensor, t: &Tensor) -> Tensor {
    let t = like_samples(t, x);
    (1.0 - &t) * x + t * noise
}

/// v = d/dt x_t = eps - x_*, the target of Eq. 3: the same at every t.
pub fn velocity_target(x: &Tensor, noise: &Tensor) -> Tensor {
    noise - x
}

/// The score s(x, t) that a velocity implies: s = -((1 - t) v + x) / t. Undefined at t = 0.
pub fn score(velocity: &Tensor, x: &Tensor, t: f64) -> Tensor {
    ((1.0 - t) * velocity + x) / -t
}

/// `[N]` as `[N, 1, 1, ..]`, to be multiplied with `[N, ..]`.
fn like_samples(t: &Tensor, x: &Tensor) -> Tensor {
    let mut shape = vec![1; x.dim()];
    shape[0] = x.size()[0];
    t.view(shape.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    use crate::method::random;

    #[test]
    fn time_zero_is_data_and_time_one_is_noise() {
        let x = Tensor::from_slice(&[2.0f32, 2.0]).view([2, 1]);
        let noise = Tensor::from_slice(&[-1.0f32, -1.0]).view([2, 1]);
        let x_t = interpolate(&x, &noise, &Tensor::from_slice(&[0.0f32, 1.0]));
        assert_eq!(Vec::<f32>::try_from(x_t.flatten(0, -1)).unwrap(), [2.0, -1.0]);
    }

    #[test]
    fn the_score_of_the_true_velocity_is_minus_noise_over_t() {
        let options = (Kind::Double, Device::Cpu);
        let draw = |seed| random::normal(&[4, 3], Device::Cpu, seed).unwrap().to_kind(Kind::Double);
        let (x, noise, t) = (draw(0), draw(1), 0.3);
        let x_t = interpolate(&x, &noise, &Tensor::full([4], t, options));
        let difference = score(&velocity_target(&x, &noise), &x_t, t) + &noise / t;
        assert!(difference.abs().max().double_value(&[]) < 1e-12);
    }
}
