//! Eq. 6: conditions of the views of one image, projected, are made similar.

use tch::{Kind, Tensor};

use super::config::{ObjectiveConfig, Similarity};

/// Eq. 6: minus the mean over images, pairs of views i < j and tokens of sim(i, j). `projected` is `[K, B, T, P]`, any
/// dtype, K >= 2.
pub fn alignment_loss(projected: &Tensor, config: &ObjectiveConfig) -> Tensor {
    let features = projected.to_kind(Kind::Float);
    let features = match config.centre {
        true => &features - features.mean_dim([0i64, 1].as_slice(), true, Kind::Float),
        false => features,
    };
    match config.similarity {
        Similarity::Cosine => -mean_cosine(&unit(&features), config.stop_gradient),
        Similarity::NtXent if config.pool_tokens => {
            let pooled = features.mean_dim([2i64].as_slice(), true, Kind::Float);
            nt_xent(&unit(&pooled), config.temperature, config.stop_gradient)
        }
        Similarity::NtXent => nt_xent(&unit(&features), config.temperature, config.stop_gradient),
    }
}

/// Mean cosine of token i of one view with token i of another, over all pairs of views. `features` is `[K, B, T, P]`,
/// K >= 2; the result is a scalar in [-1, 1].
pub fn view_cosine(features: &Tensor) -> Tensor {
    mean_cosine(&unit(&features.to_kind(Kind::Float)), false)
}

/// Vectors of length 1 along the last dimension.
pub(super) fn unit(features: &Tensor) -> Tensor {
    features / features.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-8)
}

fn mean_cosine(unit: &Tensor, stop_gradient: bool) -> Tensor {
    let views = unit.unbind(0);
    let mut pairs = Vec::new();
    for (j, second) in views.iter().enumerate() {
        for first in &views[..j] {
            let first = if stop_gradient { first.detach() } else { first.shallow_clone() };
            pairs.push((first * second).sum_dim_intlist([-1].as_slice(), false, Kind::Float).mean(Kind::Float));
        }
    }
    Tensor::stack(&pairs, 0).mean(Kind::Float)
}

/// NT-Xent (SimCLR, Eq. 1), token by token: every view of an image is the anchor once; another view of it is the positive
/// and, beside that one, all views of all other images at the same position, and the other views of the image itself, are
/// what it is compared with. Mean over anchors, positives and tokens; the log of the number of candidates where all features
/// are equal. `unit` is `[K, B, T, P]`.
fn nt_xent(unit: &Tensor, temperature: f64, stop_gradient: bool) -> Tensor {
    let [k, b, tokens, _] = unit.size()[..] else { unreachable!("projected conditions have four dimensions") };
    let anchors = unit.flatten(0, 1).transpose(0, 1); //                                    [T, K B, P]
    let others = if stop_gradient { anchors.detach() } else { anchors.shallow_clone() };
    let logits = anchors.matmul(&others.transpose(1, 2)) / temperature; //                  [T, K B, K B]
    let itself = Tensor::eye(k * b, (Kind::Bool, unit.device()));
    let log_p = logits.masked_fill(&itself, f64::NEG_INFINITY).log_softmax(-1, Kind::Float);
    // Row (i, b) and column (j, b) with i != j: the positives.
    let blocks = log_p.view([tokens, k, b, k, b]).diagonal(0, 2, 4); //                     [T, K, K, B]
    let mut positives = Vec::new();
    for i in 0..k {
        for j in (0..k).filter(|j| *j != i) {
            positives.push(blocks.select(1, i).select(1, j));
        }
    }
    -Tensor::stack(&positives, 0).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random;
    use tch::Device;

    fn features(k: i64, b: i64, tokens: i64, seed: u64) -> Tensor {
        random::normal(&[k, b, tokens, 6], Device::Cpu, seed).unwrap()
    }

    fn loss(features: &Tensor, config: &ObjectiveConfig) -> f64 {
        alignment_loss(features, config).double_value(&[])
    }

    #[test]
    fn equal_views_have_alignment_loss_minus_one_at_any_scale() {
        let view = features(1, 2, 3, 0).get(0);
        let both = Tensor::stack(&[&view, &(&view * 7.0)], 0);
        assert!((loss(&both, &ObjectiveConfig::default()) + 1.0).abs() < 1e-6);
    }

    #[test]
    fn all_pairs_count_once() {
        // Cosines 1, 0 and 0: their mean is a third.
        let (a, b) = (Tensor::from_slice(&[1.0f32, 0.0]), Tensor::from_slice(&[0.0f32, 1.0]));
        let features = Tensor::stack(&[&a, &(&a * 2.0), &b], 0).view([3, 1, 1, 2]);
        assert!((view_cosine(&features).double_value(&[]) - 1.0 / 3.0).abs() < 1e-6);
    }

    /// NT-Xent written down again with loops over scalars.
    fn nt_xent_by_hand(features: &Tensor, temperature: f64) -> f64 {
        let [k, b, tokens, _] = features.size()[..] else { unreachable!() };
        let vector = |view: i64, image: i64, token: i64| -> Vec<f64> {
            let values: Vec<f64> =
                Vec::try_from(features.get(view).get(image).get(token).to_kind(Kind::Double)).unwrap();
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            values.into_iter().map(|v| v / norm).collect()
        };
        let similarity = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / temperature;
        let (mut sum, mut count) = (0.0, 0);
        for token in 0..tokens {
            let all: Vec<(i64, i64)> = (0..k).flat_map(|v| (0..b).map(move |i| (v, i))).collect();
            for &anchor in &all {
                let a = vector(anchor.0, anchor.1, token);
                let against = all.iter().filter(|other| **other != anchor);
                let denominator: f64 = against.map(|&(v, i)| similarity(&a, &vector(v, i, token)).exp()).sum();
                for view in (0..k).filter(|view| *view != anchor.0) {
                    sum -= similarity(&a, &vector(view, anchor.1, token)) - denominator.ln();
                    count += 1;
                }
            }
        }
        sum / f64::from(count)
    }

    #[test]
    fn nt_xent_equals_loops_over_anchors_and_candidates() {
        for (k, b, tokens) in [(2, 3, 2), (3, 2, 1), (4, 3, 2)] {
            let features = features(k, b, tokens, k.cast_unsigned());
            let config =
                ObjectiveConfig { similarity: Similarity::NtXent, temperature: 0.3, views: k, ..Default::default() };
            let expected = nt_xent_by_hand(&features, 0.3);
            assert!((loss(&features, &config) - expected).abs() < 1e-5, "{k} views");
            let pooled = features.mean_dim([2i64].as_slice(), true, Kind::Float);
            let config = ObjectiveConfig { pool_tokens: true, ..config };
            assert!((loss(&features, &config) - nt_xent_by_hand(&pooled, 0.3)).abs() < 1e-5, "{k} views, pooled");
        }
    }

    #[test]
    fn a_constant_first_view_halves_the_expected_gradient_and_keeps_the_loss() {
        let gradient = |config: &ObjectiveConfig, order: [i64; 2]| {
            let leaf = features(2, 4, 3, 1).set_requires_grad(true);
            let views = leaf.index_select(0, &Tensor::from_slice(&order));
            let loss = alignment_loss(&views, config);
            loss.backward();
            (loss.double_value(&[]), leaf.grad())
        };
        let both = ObjectiveConfig::default();
        let one = ObjectiveConfig { stop_gradient: true, ..Default::default() };
        let (expected_loss, expected) = gradient(&both, [0, 1]);
        let ((loss, a), (_, b)) = (gradient(&one, [0, 1]), gradient(&one, [1, 0]));
        assert_eq!(loss, expected_loss);
        assert_eq!(a.get(0).abs().max().double_value(&[]), 0.0);
        assert!((a + b - expected).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn what_all_images_share_at_a_position_counts_only_without_centring() {
        let own = features(2, 5, 3, 2);
        let shared = 100.0 * features(1, 1, 3, 3);
        let plain = ObjectiveConfig::default();
        let centred = ObjectiveConfig { centre: true, ..Default::default() };
        assert!(loss(&(&own + &shared), &plain) < -0.99);
        assert!((loss(&(&own + &shared), &centred) - loss(&own, &centred)).abs() < 1e-3);
        assert!(loss(&own, &centred) > -0.9);
    }
}
