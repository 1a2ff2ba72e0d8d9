//! Figures of the aligned features that make a collapse visible (compare the paper's Appendix F).
//!
//! Views of one image can agree because their features hold the image, or because they hold next to nothing: only the
//! position, or only the class. So beside the cosine of views stand the cosine of different images, the spread, and the number
//! of directions in use. Measured on steps that are logged, on the first micro-batch of rank 0: with `train.micro_batches` and ranks
//! fewer images stand behind a figure. Nothing here is trained on.

use tch::{Kind, Tensor, no_grad};

use super::alignment::unit;

/// Buckets of |t_i - t_j|, each 1 / 5 wide.
pub const GAPS: i64 = 5;

/// Scalars f32 on the device.
#[derive(Debug)]
pub struct Spread {
    /// Mean cosine between views of the same image, token by token, in [-1, 1].
    pub cosine: Tensor,
    /// The same between a view of one image and another view of the next image of the batch. Near `cosine` where features
    /// do not tell images apart; not a number where the micro-batch has one image.
    pub other_cosine: Tensor,
    /// Effective number of directions: (trace C)^2 / |C|^2 for the covariance C of tokens, from 1 to their width.
    pub rank: Tensor,
    /// Standard deviation of a unit vector's components times the root of their number: 1 where directions are evenly
    /// spread, 0 where all are the same.
    pub deviation: Tensor,
}

/// Figures of one batch.
#[derive(Debug)]
pub struct FeatureFigures {
    /// Of the conditions z_t, before the projector.
    pub condition: Spread,
    /// Behind the projector.
    pub projected: Spread,
    /// Mean cosine of conditions by bucket of |t_i - t_j|, f32 `[GAPS]`; not a number where a bucket is empty.
    pub cosine_by_gap: Tensor,
}

impl FeatureFigures {
    /// `conditions` `[K, B, T, D]`, `projected` `[K, B, T, P]`, any dtype; `t` f32 `[K, B]`; K >= 2.
    pub fn of(conditions: &Tensor, projected: &Tensor, t: &Tensor) -> Self {
        no_grad(|| {
            let condition = unit(&conditions.to_kind(Kind::Float));
            Self {
                condition: Spread::of(&conditions.to_kind(Kind::Float), &condition),
                projected: Spread::of(&projected.to_kind(Kind::Float), &unit(&projected.to_kind(Kind::Float))),
                cosine_by_gap: cosine_by_gap(&condition, t),
            }
        })
    }
}

impl Spread {
    fn of(features: &Tensor, unit: &Tensor) -> Self {
        let (views, images) = (unit.size()[0], unit.size()[1]);
        let with = |shift: i64| {
            let others =
                if shift == 0 { unit.shallow_clone() } else { unit.roll([shift].as_slice(), [1i64].as_slice()) };
            let pairs: Vec<Tensor> = pairs(views)
                .map(|(i, j)| (unit.get(i) * others.get(j)).sum_dim_intlist([-1].as_slice(), false, Kind::Float))
                .collect();
            Tensor::stack(&pairs, 0).mean(Kind::Float)
        };
        let tokens = features.flatten(0, -2);
        let centred = &tokens - tokens.mean_dim([0i64].as_slice(), true, Kind::Float);
        let covariance = centred.transpose(0, 1).matmul(&centred) / tokens.size()[0] as f64;
        let rank = covariance.trace().square() / covariance.square().sum(Kind::Float).clamp_min(1e-30);
        let directions = unit.flatten(0, -2);
        let mean = directions.mean_dim([0i64].as_slice(), false, Kind::Float);
        // Squares of components add up to 1, so that their variances add up to 1 less the mean's square.
        let varied: Tensor = 1.0 - mean.square().sum(Kind::Float);
        let deviation = varied.clamp_min(0.0).sqrt();
        // The next image of one is itself, and would read as a collapse.
        let other_cosine = if images > 1 { with(1) } else { rank.full_like(f64::NAN) };
        Self { cosine: with(0), other_cosine, rank, deviation }
    }
}

fn pairs(views: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..views).flat_map(|j| (0..j).map(move |i| (i, j)))
}

/// `unit` f32 `[K, B, T, D]`, `t` `[K, B]`.
fn cosine_by_gap(unit: &Tensor, t: &Tensor) -> Tensor {
    let (mut cosines, mut gaps) = (Vec::new(), Vec::new());
    for (i, j) in pairs(unit.size()[0]) {
        let tokens = (unit.get(i) * unit.get(j)).sum_dim_intlist([-1].as_slice(), false, Kind::Float);
        cosines.push(tokens.mean_dim([-1i64].as_slice(), false, Kind::Float)); //               [B]
        gaps.push((t.get(i) - t.get(j)).abs());
    }
    let bucket = (Tensor::cat(&gaps, 0) * GAPS as f64).to_kind(Kind::Int64).clamp(0, GAPS - 1);
    // Not one_hot, which looks at the values to check them.
    let buckets = Tensor::arange(GAPS, (Kind::Int64, t.device()));
    let member = bucket.unsqueeze(1).eq_tensor(&buckets).to_kind(Kind::Float); //               [pairs B, GAPS]
    let sums = Tensor::cat(&cosines, 0).unsqueeze(0).matmul(&member).squeeze_dim(0);
    // 0 / 0 says that there was nothing.
    sums / member.sum_dim_intlist([0i64].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random;
    use tch::Device;

    fn value(tensor: &Tensor) -> f64 {
        tensor.double_value(&[])
    }

    fn noise(shape: &[i64], seed: u64) -> Tensor {
        random::normal(shape, Device::Cpu, seed).unwrap()
    }

    fn spread(features: &Tensor) -> Spread {
        Spread::of(features, &unit(features))
    }

    #[test]
    fn features_of_the_image_agree_between_views_and_differ_between_images() {
        let image = noise(&[1, 64, 4, 32], 0).expand([2, 64, 4, 32], false);
        let figures = spread(&image);
        assert!((value(&figures.cosine) - 1.0).abs() < 1e-5);
        assert!(value(&figures.other_cosine).abs() < 0.05);
        assert!(value(&figures.rank) > 20.0 && value(&figures.deviation) > 0.95);
    }

    #[test]
    fn features_of_the_position_alone_agree_everywhere() {
        let position = noise(&[1, 1, 4, 32], 1).expand([2, 64, 4, 32], false);
        let figures = spread(&position);
        assert!((value(&figures.other_cosine) - 1.0).abs() < 1e-5);
        assert!(value(&figures.rank) < 4.0);
    }

    #[test]
    fn a_single_image_has_no_other() {
        let figures = spread(&noise(&[2, 1, 4, 32], 5));
        assert!(value(&figures.other_cosine).is_nan() && value(&figures.cosine).is_finite());
    }

    #[test]
    fn a_single_direction_has_rank_one_and_no_deviation() {
        let one = noise(&[32], 2).view([1, 1, 1, 32]) * noise(&[2, 16, 4, 1], 3).abs();
        let figures = spread(&one);
        assert!((value(&figures.rank) - 1.0).abs() < 1e-3);
        assert!(value(&figures.deviation) < 1e-3);
    }

    #[test]
    fn cosines_are_sorted_by_the_distance_of_their_times() {
        // Image 0 has equal views at |dt| = 0.1, image 1 opposite ones at |dt| = 0.9.
        let view = noise(&[2, 3, 8], 4);
        let sign = Tensor::from_slice(&[1.0f32, -1.0]).view([2, 1, 1]);
        let features = unit(&Tensor::stack(&[&view, &(&view * sign)], 0));
        let t = Tensor::from_slice(&[0.2f32, 0.05, 0.3, 0.95]).view([2, 2]);
        let by_gap: Vec<f32> = Vec::try_from(cosine_by_gap(&features, &t)).unwrap();
        assert!((by_gap[0] - 1.0).abs() < 1e-5 && (by_gap[4] + 1.0).abs() < 1e-5);
        assert!(by_gap[1..4].iter().all(|cosine| cosine.is_nan()));
    }
}
