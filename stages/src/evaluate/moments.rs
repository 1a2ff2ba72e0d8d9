//! Mean and covariance of features that come in batches, in f64, the same whatever the batches are.

use tch::{Kind, Tensor, no_grad};

use super::frechet::Gaussian;

/// Rows that are added up together. Sums in floating point depend on their grouping; so it is fixed here, and not by the batches.
const BLOCK: i64 = 256;

/// Sums over the features seen so far.
#[derive(Debug)]
pub struct Moments {
    /// Rows that wait for a whole block, `[n < BLOCK, D]` each, f64.
    waiting: Vec<Tensor>,
    waiting_rows: i64,
    /// Sum of x, f64 `[D]`.
    sum: Tensor,
    /// Sum of x xᵀ, f64 `[D, D]`.
    products: Tensor,
    count: i64,
}

impl Moments {
    /// Of features of `width` values; nothing seen yet.
    pub fn new(width: i64) -> Self {
        let options = (Kind::Double, tch::Device::Cpu);
        Self {
            waiting: Vec::new(),
            waiting_rows: 0,
            sum: Tensor::zeros([width], options),
            products: Tensor::zeros([width, width], options),
            count: 0,
        }
    }

    /// Takes features `[B, D]` in, any dtype and device.
    pub fn push(&mut self, features: &Tensor) {
        no_grad(|| {
            let mut features = features.to_device(tch::Device::Cpu).to_kind(Kind::Double);
            while features.size()[0] > 0 {
                let taken = (BLOCK - self.waiting_rows).min(features.size()[0]);
                self.waiting.push(features.narrow(0, 0, taken).copy());
                self.waiting_rows += taken;
                features = features.narrow(0, taken, features.size()[0] - taken);
                if self.waiting_rows == BLOCK {
                    self.add_up();
                }
            }
        });
    }

    fn add_up(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let block = Tensor::cat(&std::mem::take(&mut self.waiting), 0);
        let _ = self.sum.g_add_(&block.sum_dim_intlist([0i64].as_slice(), false, Kind::Double));
        let _ = self.products.g_add_(&block.transpose(0, 1).matmul(&block));
        self.count += self.waiting_rows;
        self.waiting_rows = 0;
    }

    /// Mean and unbiased covariance, if there were two rows at least.
    pub fn finish(mut self) -> Option<Gaussian> {
        no_grad(|| {
            self.add_up();
            let n = self.count as f64;
            (self.count >= 2).then(|| {
                let mean = &self.sum / n;
                let covariance = (&self.products - mean.outer(&mean) * n) / (n - 1.0);
                Gaussian::new(mean, covariance)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random;

    #[test]
    fn batches_change_no_bit_of_the_moments() {
        let features = random::normal(&[700, 5], tch::Device::Cpu, 3).unwrap() + 4.0;
        let of = |sizes: &[i64]| {
            let mut moments = Moments::new(5);
            let mut from = 0;
            for &size in sizes.iter().cycle() {
                let size = size.min(700 - from);
                moments.push(&features.narrow(0, from, size));
                from += size;
                if from == 700 {
                    break;
                }
            }
            moments.finish().unwrap()
        };
        let whole = of(&[700]);
        for sizes in [&[1][..], &[64], &[7, 300, 2], &[256]] {
            let other = of(sizes);
            assert!(whole.mean().equal(other.mean()) && whole.covariance().equal(other.covariance()), "{sizes:?}");
        }
        let direct = Gaussian::of(&features);
        assert!((whole.covariance() - direct.covariance()).abs().max().double_value(&[]) < 1e-12);
    }

    #[test]
    fn one_row_has_no_covariance() {
        let mut moments = Moments::new(2);
        moments.push(&Tensor::zeros([1, 2], (Kind::Float, tch::Device::Cpu)));
        assert!(moments.finish().is_none());
    }
}
