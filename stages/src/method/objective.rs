//! The losses of the paper, in f32.

use tch::{Kind, Tensor};

use super::path;

/// Eq. 7 for the views of a batch: mean over views, images, channels and pixels of (v_theta - (eps - x_*))^2.
///
/// The paper prints a sum over K and calls it an average; the mean is the loss of a batch of B K images. Against the
/// printed sum it makes the weight of the alignment K times what lambda says there, and clipping K times as rare. All tensors f32 `[N, C, h, w]`.
pub fn velocity_loss(velocity: &Tensor, x: &Tensor, noise: &Tensor) -> Tensor {
    (velocity - path::velocity_target(x, noise)).square().mean(Kind::Float)
}

/// Eq. 6: minus the mean over images, pairs of views i < j and tokens of the cosine of projected conditions.
/// `projected` is `[K, B, T, P]`, any dtype; K >= 2. Both sides are differentiated, as in Algorithm 1, line 15.
pub fn alignment_loss(projected: &Tensor) -> Tensor {
    -view_cosine(projected)
}

/// Mean cosine of token i of one view with token i of another, over all pairs of views; computed in f32, since half
/// precision overflows in the norm. `features` is `[K, B, T, P]`, K >= 2; the result is a scalar in [-1, 1].
pub fn view_cosine(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let unit = &features / features.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-8);
    let views = unit.unbind(0);
    let mut pairs = Vec::new();
    for (j, second) in views.iter().enumerate() {
        for first in &views[..j] {
            pairs.push((first * second).sum_dim_intlist([-1].as_slice(), false, Kind::Float).mean(Kind::Float));
        }
    }
    Tensor::stack(&pairs, 0).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn equal_views_have_alignment_loss_minus_one_at_any_scale() {
        let view = Tensor::randn([2, 3, 8], (Kind::Float, Device::Cpu));
        let loss = alignment_loss(&Tensor::stack(&[&view, &(&view * 7.0)], 0));
        assert!((loss.double_value(&[]) + 1.0).abs() < 1e-6);
    }

    #[test]
    fn all_pairs_count_once() {
        // Cosines 1, 0 and 0: their mean is a third.
        let (a, b) = (Tensor::from_slice(&[1.0f32, 0.0]), Tensor::from_slice(&[0.0f32, 1.0]));
        let features = Tensor::stack(&[&a, &(&a * 2.0), &b], 0).view([3, 1, 1, 2]);
        assert!((view_cosine(&features).double_value(&[]) - 1.0 / 3.0).abs() < 1e-6);
    }
}
