//! Losses that the paper's Table 1 is compared with and that need no view of their own.

use tch::{Kind, Tensor};

/// Dispersive loss in its squared-L2 form (Wang and He 2025): log of the mean over all pairs of samples, a sample with
/// itself included, of exp(-d / temperature), d being the squared distance of their features divided by the number of these.
/// `features` is `[N, T, D]`, any dtype. At most 0; 0 where all are equal.
pub fn dispersive_loss(features: &Tensor, temperature: f64) -> Tensor {
    let flat = features.flatten(1, -1).to_kind(Kind::Float);
    let [n, width] = flat.size()[..] else { unreachable!("flattened features have two dimensions") };
    let lengths = flat.square().sum_dim_intlist([-1].as_slice(), true, Kind::Float);
    let products = flat.matmul(&flat.transpose(0, 1));
    let squared: Tensor = &lengths + lengths.transpose(0, 1) - 2.0 * products;
    // A sample is as far from itself as rounding has it, which would not be 0.
    let squared = squared.clamp_min(0.0).masked_fill(&Tensor::eye(n, (Kind::Bool, flat.device())), 0.0);
    (squared / -(width as f64 * temperature)).flatten(0, -1).logsumexp([0i64].as_slice(), false) - 2.0 * (n as f64).ln()
}

/// What contrastive flow matching (Stoica et al. 2025) takes off the velocity loss, before its weight: the mean squared
/// distance of v_theta to the targets of other images. `velocity` and `target` are f32 `[K, B, C, h, w]`; `others` i64 `[B]`
/// names the other image of each. At least 0.
pub fn contrastive_distance(velocity: &Tensor, target: &Tensor, others: &Tensor) -> Tensor {
    (velocity - target.index_select(1, others)).square().mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn the_dispersive_loss_equals_a_loop_over_pairs() {
        let features = Tensor::from_slice(&[0.0f32, 1.0, 2.0, -1.0, 0.5, 0.5, 3.0, 0.0]).view([4, 1, 2]);
        let rows: Vec<Vec<f64>> =
            (0..4).map(|i| Vec::try_from(features.get(i).get(0).to_kind(Kind::Double)).unwrap()).collect();
        let mut sum = 0.0;
        for a in &rows {
            for b in &rows {
                let distance: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
                sum += (-distance / 2.0 / 0.7).exp();
            }
        }
        let expected = (sum / 16.0).ln();
        assert!((dispersive_loss(&features, 0.7).double_value(&[]) - expected).abs() < 1e-5);
        assert!(
            dispersive_loss(&Tensor::ones([3, 2, 5], (Kind::Float, Device::Cpu)), 0.5).double_value(&[]).abs() < 1e-6
        );
    }

    #[test]
    fn the_contrast_is_with_the_other_images_targets() {
        let target = Tensor::from_slice(&[1.0f32, 2.0, 4.0]).view([1, 3, 1, 1, 1]);
        let others = Tensor::from_slice(&[1i64, 2, 0]);
        let distance = contrastive_distance(&target, &target, &others).double_value(&[]);
        assert!((distance - (1.0 + 4.0 + 9.0) / 3.0).abs() < 1e-6);
    }
}
