//! CKNNA: how far two networks agree on which images are alike (Huh et al., arXiv:2405.07987).
//!
//! K = A A^T and L = B B^T; M_K marks in row i the k columns other than i with the largest values of K, M_L those of L. With
//! M = M_K M_L element by element, which is not made symmetric,
//!
//! ```text
//! sim(K, L) = HSIC_u(M K, M L)
//! CKNNA     = sim(K, L) / (sqrt(sim(K, K) sim(L, L)) + 1e-6)
//!
//! HSIC_u(K, L) = [ sum_ij K_ij L_ji + sum(K) sum(L) / ((n-1)(n-2)) - 2 sum(K L) / (n-2) ] / (n (n-3))
//! ```
//!
//! which is `metrics.cknna` of platonic-rep, with the unbiased estimate of Song et al. (Eq. 5; diagonals are 0). The formula
//! printed in REPA's Appendix C.1 is another, biased one. Rows are scaled to length 1 first, as that program's
//! `measure_alignment` does: HSIC of unit vectors is of the order of 1e-3 * 1000 / n, beside which 1e-6 is not nothing.
//!
//! All in f64, where the original has f32. Only the n k marked values are kept: sum(K L) is the product of K's column sums and L's
//! row sums.

use tch::{Device, IndexOp, Kind, Tensor, no_grad};

use super::ProbeError;

/// Rows of a kernel that are in memory at once.
const BLOCK: i64 = 1024;
/// In the denominator.
const EPS: f64 = 1e-6;

/// What is done before kernels are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alignment {
    /// k: neighbours of each row, at least 2 and fewer than there are rows. REPA and DUPA have 10.
    pub topk: i64,
    /// Whether rows are scaled to length 1.
    pub normalize: bool,
    /// Values are limited, before that, to the mean over rows of this quantile of a row's absolute values, in 0..=1;
    /// `measure_alignment` has 0.95.
    pub outlier_q: Option<f64>,
}

impl Default for Alignment {
    fn default() -> Self {
        Self { topk: 10, normalize: true, outlier_q: None }
    }
}

/// The nearest rows of each row of features, with their products.
#[derive(Debug)]
pub struct Neighbours {
    topk: usize,
    /// `n * topk`, ascending in each row.
    columns: Vec<u32>,
    /// The values of the kernel there.
    products: Vec<f64>,
}

impl Neighbours {
    /// Of features `[N, D]`, finite, any dtype.
    ///
    /// # Errors
    /// [`ProbeError::TooFew`] with fewer than 4 rows, [`ProbeError::TopK`], [`ProbeError::Quantile`].
    pub fn of(features: &Tensor, settings: &Alignment) -> Result<Self, ProbeError> {
        let rows = features.size()[0];
        let topk = settings.topk;
        if rows < 4 {
            return Err(ProbeError::TooFew { what: "CKNNA", got: rows, least: 4 });
        }
        if !(2..rows).contains(&topk) {
            return Err(ProbeError::TopK { topk, rows });
        }
        no_grad(|| {
            let mut x = features.to_kind(Kind::Double);
            if let Some(q) = settings.outlier_q {
                x = clipped(&x, q)?;
            }
            if settings.normalize {
                x = &x / x.norm_scalaropt_dim(2.0, [1i64], true).clamp_min(1e-12);
            }
            let (mut columns, mut products) = (Vec::new(), Vec::new());
            for start in (0..rows).step_by(BLOCK as usize) {
                let len = BLOCK.min(rows - start);
                let itself = Tensor::arange_start(start, start + len, (Kind::Int64, x.device())).unsqueeze(1);
                let kernel = x.narrow(0, start, len).matmul(&x.transpose(0, 1));
                let others = kernel.scatter_value(1, &itself, f64::NEG_INFINITY);
                let (_, nearest) = others.topk(topk, 1, true, false);
                let (nearest, _) = nearest.sort(1, false);
                let at = kernel.gather(1, &nearest, false);
                columns.extend(flat::<i64>(&nearest).into_iter().map(|column| column as u32));
                products.extend(flat::<f64>(&at));
            }
            Ok(Self { topk: topk as usize, columns, products })
        })
    }

    /// Rows n.
    pub fn len(&self) -> usize {
        self.columns.len() / self.topk
    }

    /// There are at least 4 rows.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// CKNNA with the features of the same images, in the same order, by another network: 1 or less but for sampling error, and
    /// about 0 where nothing agrees. The sides are not quite the same, since masks are directed: `self` is A. `None` where sim(K, K) and sim(L, L) have different signs, so that there is no root: few rows or neighbours can
    /// do that.
    ///
    /// # Panics
    /// If the numbers of rows differ.
    pub fn cknna(&self, other: &Self) -> Option<f64> {
        assert_eq!(self.len(), other.len(), "the same images");
        let scale = self.agreement(self) * other.agreement(other);
        let value = self.agreement(other) / (scale.sqrt() + EPS);
        value.is_finite().then_some(value)
    }

    /// sim of the module's text.
    fn agreement(&self, other: &Self) -> f64 {
        let n = self.len();
        let rows: Vec<Vec<Marked>> = (0..n).map(|row| self.marked(other, row)).collect();
        let (mut mutual, mut total, mut other_total) = (0.0, 0.0, 0.0);
        let (mut column_sums, mut row_sums) = (vec![0.0; n], vec![0.0; n]);
        for (i, row) in rows.iter().enumerate() {
            for entry in row {
                let back = &rows[entry.column as usize];
                if let Ok(at) = back.binary_search_by_key(&(i as u32), |entry| entry.column) {
                    mutual += entry.product * back[at].other;
                }
                total += entry.product;
                other_total += entry.other;
                column_sums[entry.column as usize] += entry.product;
                row_sums[i] += entry.other;
            }
        }
        let chained: f64 = column_sums.iter().zip(&row_sums).map(|(column, row)| column * row).sum();
        let n = n as f64;
        (mutual + total * other_total / ((n - 1.0) * (n - 2.0)) - 2.0 * chained / (n - 2.0)) / (n * (n - 3.0))
    }

    /// What both have in a row, ascending.
    fn marked(&self, other: &Self, row: usize) -> Vec<Marked> {
        let of = |side: &Self| row * side.topk..(row + 1) * side.topk;
        let (mine, theirs) = (&self.columns[of(self)], &other.columns[of(other)]);
        let (mine_products, theirs_products) = (&self.products[of(self)], &other.products[of(other)]);
        let both = mine.iter().zip(mine_products).filter_map(|(column, product)| {
            let at = theirs.binary_search(column).ok()?;
            Some(Marked { column: *column, product: *product, other: theirs_products[at] })
        });
        both.collect()
    }
}

/// A place that both masks mark.
#[derive(Debug)]
struct Marked {
    column: u32,
    product: f64,
    other: f64,
}

fn flat<T: tch::kind::Element>(tensor: &Tensor) -> Vec<T>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    Vec::try_from(tensor.flatten(0, -1).to_device(Device::Cpu)).expect("its dtype is the element's")
}

/// `x` f64 `[N, D]` limited as [`Alignment::outlier_q`] says; quantiles are linear between the values beside them.
fn clipped(x: &Tensor, q: f64) -> Result<Tensor, ProbeError> {
    if !(0.0..=1.0).contains(&q) {
        return Err(ProbeError::Quantile { q });
    }
    let (sorted, _) = x.abs().sort(1, false);
    let last = x.size()[1] - 1;
    let at = q * last as f64;
    let low = at.floor() as i64;
    let (below, above) = (sorted.i((.., low)), sorted.i((.., (low + 1).min(last))));
    let limit = (&below + (above - &below) * (at - low as f64)).mean(Kind::Double).double_value(&[]);
    Ok(x.clamp(-limit, limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random;
    use crate::probe::fixture::golden;

    fn cknna(a: &Tensor, b: &Tensor, settings: &Alignment) -> Option<f64> {
        Neighbours::of(a, settings).unwrap().cknna(&Neighbours::of(b, settings).unwrap())
    }

    #[test]
    fn it_is_that_of_the_formulas_in_every_setting() {
        let golden = golden();
        let (a, b) = (&golden["cknna.a"], &golden["cknna.b"]);
        let unit = Alignment::default();
        let raw = Alignment { normalize: false, ..unit };
        let small = |x: &Tensor| x.to_kind(Kind::Double) * 0.01;
        let cases = [
            ("unit.10", cknna(a, b, &unit)),
            ("unit.3", cknna(a, b, &Alignment { topk: 3, ..unit })),
            ("raw.10", cknna(a, b, &raw)),
            ("clipped.10", cknna(a, b, &Alignment { outlier_q: Some(0.95), ..unit })),
            ("self.5", cknna(a, a, &Alignment { topk: 5, ..unit })),
            ("small.10", cknna(&small(a), &small(b), &raw)),
        ];
        for (name, found) in cases {
            let expected = golden[&format!("cknna.{name}")].double_value(&[]);
            assert!((found.unwrap() - expected).abs() < 1e-10, "{name}: {found:?} for {expected}");
        }
        // Masks are directed, so that the sides are not quite the same: the script gives 0.634050 and 0.633458.
        let sides = [cknna(a, b, &unit), cknna(b, a, &unit)].map(|found| (found.unwrap() * 1e6).round());
        assert_eq!(sides, [634_050.0, 633_458.0]);
    }

    #[test]
    fn blocks_of_rows_give_what_the_dense_formula_gives() {
        let (n, k) = (BLOCK + 70, 7);
        let draw = |seed| random::normal(&[n, 5], Device::Cpu, seed).unwrap().to_kind(Kind::Double);
        let a = draw(3);
        let b = &a * 0.7 + draw(4);
        let settings = Alignment { topk: k, normalize: false, outlier_q: None };
        let kernel = |x: &Tensor| x.matmul(&x.transpose(0, 1));
        let mask = |x: &Tensor| {
            let apart = x.shallow_clone() + Tensor::eye(n, (Kind::Double, Device::Cpu)) * -1e9;
            let (_, nearest) = apart.topk(k, 1, true, true);
            x.zeros_like().scatter_value(1, &nearest, 1.0)
        };
        let hsic = |x: &Tensor, y: &Tensor| {
            let n = n as f64;
            let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
            let first = sum(&(x * y.transpose(0, 1)));
            let third = sum(&x.matmul(y));
            (first + sum(x) * sum(y) / ((n - 1.0) * (n - 2.0)) - 2.0 * third / (n - 2.0)) / (n * (n - 3.0))
        };
        let (x, y) = (kernel(&a), kernel(&b));
        let (mask_x, mask_y) = (mask(&x), mask(&y));
        let both = &mask_x * &mask_y;
        let (x_masked, y_masked) = (&mask_x * &x, &mask_y * &y);
        let scale = hsic(&x_masked, &x_masked) * hsic(&y_masked, &y_masked);
        let expected = hsic(&(&both * &x), &(&both * &y)) / (scale.sqrt() + EPS);
        let found = cknna(&a, &b, &settings).unwrap();
        assert!((found - expected).abs() < 1e-10 && found > 0.01, "{found} for {expected}");
    }

    #[test]
    fn the_same_features_agree_whatever_their_scale_and_others_do_not() {
        let draw = |seed| random::normal(&[400, 32], Device::Cpu, seed).unwrap();
        let a = draw(5);
        let settings = Alignment::default();
        assert!(cknna(&a, &(&a * 50.0), &settings).unwrap() > 0.99);
        assert!(cknna(&a, &draw(6), &settings).unwrap().abs() < 0.1);
    }

    #[test]
    fn too_few_rows_and_impossible_settings_are_sentences() {
        let x = random::normal(&[10, 4], Device::Cpu, 7).unwrap();
        let error = |x: &Tensor, settings: Alignment| Neighbours::of(x, &settings).unwrap_err().to_string();
        let default = Alignment { topk: 4, ..Alignment::default() };
        assert_eq!(error(&x.narrow(0, 0, 3), default), "CKNNA needs at least 4 latents, and has 3");
        for topk in [1, 10] {
            assert_eq!(
                error(&x, Alignment { topk, ..default }),
                format!("--topk {topk} must lie in 2..=9: each of the 10 latents has 9 others")
            );
        }
        let q = Alignment { outlier_q: Some(1.5), ..default };
        assert_eq!(error(&x, q), "--outlier-q 1.5 must lie in 0..=1");
    }
}
