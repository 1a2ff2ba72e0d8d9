//! The Frechet distance between two sets of features, each taken for a normal distribution.
//!
//! On Inception's features this is FID; on other features it is not, and is never called so. Latents of the autoencoder, averaged
//! over squares, are compared here: it needs no other network, and says whether samples have the data's colours and layout.

use serde::Serialize;
use tch::{Device, Kind, TchError, Tensor, no_grad};

/// Why there is no distance.
#[derive(Debug, thiserror::Error)]
pub enum FrechetError {
    /// A feature is infinite or no number, or there was one row alone, which has no covariance.
    #[error(
        "means and covariances of the features are not finite, so there is no Frechet distance; look for weights that have \
         diverged, or give more samples"
    )]
    NotFinite,
    /// libtorch found none.
    #[error("the eigenvalues of the Frechet distance cannot be computed ({0}); give more samples")]
    Eigenvalues(TchError),
}

/// Mean and covariance of features, f64.
#[derive(Debug)]
pub struct Gaussian {
    mean: Tensor,
    covariance: Tensor,
}

impl Gaussian {
    /// With mean `[D]` and covariance `[D, D]`, any dtype.
    pub fn new(mean: Tensor, covariance: Tensor) -> Self {
        let host = |tensor: Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
        Self { mean: host(mean), covariance: host(covariance) }
    }

    /// Of `features` `[N, D]`, any dtype; N >= 2. The covariance is the unbiased one, as the ADM evaluator has it.
    pub fn of(features: &Tensor) -> Self {
        no_grad(|| {
            let features = features.to_kind(Kind::Double);
            let mean = features.mean_dim([0i64].as_slice(), false, Kind::Double);
            let centred = features - &mean;
            let covariance = centred.transpose(0, 1).matmul(&centred) / (centred.size()[0] - 1) as f64;
            Self::new(mean, covariance)
        })
    }

    /// f64 `[D]`.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// f64 `[D, D]`.
    pub fn covariance(&self) -> &Tensor {
        &self.covariance
    }

    /// |m - n|^2 + tr(C) + tr(D) - 2 tr((C D)^1/2), for covariances of one width.
    ///
    /// The trace of the root is the sum of the roots of the eigenvalues of C D, which are real and not negative but for rounding.
    /// scipy's `sqrtm`, which the ADM evaluator calls, agrees to 1e-9 where there are more samples than features. With fewer, every
    /// way of computing it rounds eigenvalues that should be 0 differently, by up to 1e-5 of the distance; this one then stays
    /// within 1e-6 of `sqrtm`, and it cannot fail on a singular product as that can.
    ///
    /// # Errors
    /// [`FrechetError`]: the features were not finite, or too few.
    pub fn distance(&self, other: &Self) -> Result<f64, FrechetError> {
        no_grad(|| {
            let product = self.covariance.matmul(&other.covariance);
            let finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
            if ![&product, &self.mean, &other.mean].into_iter().all(finite) {
                return Err(FrechetError::NotFinite);
            }
            let roots = product.f_linalg_eigvals().map_err(FrechetError::Eigenvalues)?.sqrt().real();
            let means = (&self.mean - &other.mean).square().sum(Kind::Double);
            let traces = self.covariance.trace() + other.covariance.trace();
            let value = |scalar: Tensor| scalar.double_value(&[]);
            Ok(value(means) + value(traces) - 2.0 * value(roots.sum(Kind::Double)))
        })
    }
}

/// How far sampled latents are from real ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatentDistance {
    /// Frechet distance between samples and all real latents, each averaged to 4 x 4.
    pub samples: f64,
    /// Between two halves of the real ones: what real images give, at half their number.
    pub real_halves: f64,
}

impl LatentDistance {
    /// `samples` and `real` are `[N, C, h, w]` with at least 4 of each, on any device.
    ///
    /// # Errors
    /// Those of [`Gaussian::distance`].
    pub fn of(samples: &Tensor, real: &Tensor) -> Result<Self, FrechetError> {
        let features = |latents: &Tensor| pooled_latents(latents).to_device(Device::Cpu);
        Self::of_features(&features(samples), &features(real))
    }

    /// The same of latents that are averaged already, `[N, D]`.
    ///
    /// # Errors
    /// Those of [`Gaussian::distance`].
    pub fn of_features(samples: &Tensor, real: &Tensor) -> Result<Self, FrechetError> {
        let half = real.size()[0] / 2;
        let part = |from: i64, len: i64| Gaussian::of(&real.narrow(0, from, len));
        Ok(Self {
            samples: Gaussian::of(samples).distance(&part(0, real.size()[0]))?,
            real_halves: part(0, half).distance(&part(half, half))?,
        })
    }
}

/// Rows 0, 2, .. and then 1, 3, ..: the two halves of what is sorted by class are then alike.
pub fn alternating(features: &Tensor) -> Tensor {
    let n = features.size()[0];
    let rows: Vec<i64> = (0..n).step_by(2).chain((1..n).step_by(2)).collect();
    features.index_select(0, &Tensor::from_slice(&rows).to_device(features.device()))
}

/// Side of averaged latents.
const POOLED: i64 = 4;

/// Latents `[N, C, h, w]` averaged over squares to 4 x 4: `[N, 16 C]`.
pub(super) fn pooled_latents(latents: &Tensor) -> Tensor {
    latents.to_kind(Kind::Float).adaptive_avg_pool2d([POOLED, POOLED]).flatten(1, -1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random;

    fn features(n: i64, scale: f64, shift: f64) -> Tensor {
        random::normal(&[n, 4], Device::Cpu, 7).unwrap().to_kind(Kind::Double) * scale + shift
    }

    #[test]
    fn a_set_has_no_distance_to_itself() {
        let gaussian = Gaussian::of(&features(50, 1.0, 0.0));
        assert!(gaussian.distance(&gaussian).unwrap().abs() < 1e-10);
    }

    #[test]
    fn scaled_and_shifted_features_have_the_distance_of_the_formula() {
        // C and 4 C have the root 2 C between them: tr(C) + 4 tr(C) - 4 tr(C). The means move by 2 + mean. With 3 samples of 4
        // features C is singular, and roots of eigenvalues that are 0 but for rounding come in.
        for (samples, tolerance) in [(80, 1e-9), (3, 1e-6)] {
            let (a, b) = (features(samples, 1.0, 0.0), features(samples, 2.0, 2.0));
            let [one, other] = [&a, &b].map(Gaussian::of);
            let trace = one.covariance.trace().double_value(&[]);
            let moved =
                (a.mean_dim([0i64].as_slice(), false, Kind::Double) + 2.0).square().sum(Kind::Double).double_value(&[]);
            let found = one.distance(&other).unwrap();
            assert!((found - (trace + moved)).abs() < tolerance, "{samples}: {found}");
            assert!((found - other.distance(&one).unwrap()).abs() < tolerance, "{samples}");
        }
    }

    #[test]
    fn one_sample_and_features_that_are_no_numbers_have_no_distance() {
        let many = Gaussian::of(&features(40, 1.0, 0.0));
        for wrong in [features(1, 1.0, 0.0), features(9, f64::NAN, 0.0), features(9, f64::INFINITY, 0.0)] {
            let wrong = Gaussian::of(&wrong);
            for found in [wrong.distance(&many), many.distance(&wrong)] {
                assert!(matches!(found, Err(FrechetError::NotFinite)), "{found:?}");
            }
        }
    }

    #[test]
    fn halves_of_sorted_rows_alternate() {
        let rows = alternating(&Tensor::arange(5, (Kind::Float, Device::Cpu)).view([5, 1]));
        assert_eq!(Vec::<f32>::try_from(rows.view(-1)).unwrap(), [0.0, 2.0, 4.0, 1.0, 3.0]);
    }

    #[test]
    fn latents_are_averaged_over_squares() {
        let latents = Tensor::arange(64, (Kind::Float, Device::Cpu)).view([1, 1, 8, 8]);
        let pooled = Vec::<f32>::try_from(pooled_latents(&latents).flatten(0, -1)).unwrap();
        assert_eq!((pooled.len(), &pooled[..2], pooled[15]), (16, &[4.5, 6.5][..], 58.5));
    }
}
