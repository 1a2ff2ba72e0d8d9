//! A linear classifier on the network's features: how much of the class can be read from them.
//!
//! Features are standardised as a parameter-free BatchNorm would, and softmax regression with a small L2 term is fitted to
//! the end: it is convex, so that no schedule decides the result.

use tch::{Kind, Tensor, no_grad};

/// Weight of the squared norm of the classifier's weights.
const L2: f64 = 1e-4;
/// Steps of Adam, with the rate falling to 0 as a cosine; many times what it takes.
const STEPS: i64 = 1000;
const RATE: f64 = 0.05;

/// Share of `test` that a classifier fitted to `train` gets right, in 0..=1. Each is features f32 `[N, D]` and labels i64
/// `[N]` below `classes`.
pub fn accuracy(train: (&Tensor, &Tensor), test: (&Tensor, &Tensor), classes: i64) -> f64 {
    let mean = train.0.mean_dim([0i64].as_slice(), true, Kind::Float);
    let deviation = train.0.std_dim([0i64].as_slice(), false, true).clamp_min(1e-6);
    let standardised = |x: &Tensor| (x - &mean) / &deviation;
    let (x, labels) = (standardised(train.0), train.1);
    let width = x.size()[1];
    let mut weights = Tensor::zeros([width + 1, classes], (Kind::Float, x.device())).set_requires_grad(true);
    let logits = |x: &Tensor, weights: &Tensor| x.matmul(&weights.narrow(0, 0, width)) + weights.narrow(0, width, 1);
    let (mut first, mut second) = (weights.zeros_like().detach(), weights.zeros_like().detach());
    for step in 0..STEPS {
        let loss = logits(&x, &weights).cross_entropy_for_logits(labels)
            + L2 * weights.narrow(0, 0, width).square().sum(Kind::Float);
        weights.zero_grad();
        loss.backward();
        let rate = RATE * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / STEPS as f64).cos());
        no_grad(|| {
            let gradient = weights.grad();
            first = &first * 0.9 + &gradient * 0.1;
            second = &second * 0.999 + gradient.square() * 0.001;
            let n = (step + 1) as i32;
            let update = (&first / (1.0 - 0.9f64.powi(n))) / ((&second / (1.0 - 0.999f64.powi(n))).sqrt() + 1e-8);
            let _ = weights.g_sub_(&(update * rate));
        });
    }
    let right = logits(&standardised(test.0), &weights).argmax(-1, false).eq_tensor(test.1);
    right.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::fixture::labelled;

    #[test]
    fn classes_that_features_tell_apart_are_found_at_any_scale() {
        let ((x, y), (held_out, labels)) = (labelled(0, 300), labelled(1, 300));
        assert!(accuracy((&x, &y), (&held_out, &labels), 3) > 0.97);
    }

    #[test]
    fn features_without_the_class_give_chance() {
        let ((x, y), (held_out, labels)) = (labelled(2, 600), labelled(3, 600));
        let noise = |x: &Tensor| x.narrow(1, 2, 6);
        let found = accuracy((&noise(&x), &y), (&noise(&held_out), &labels), 3);
        assert!((found - 1.0 / 3.0).abs() < 0.1, "{found}");
    }
}
