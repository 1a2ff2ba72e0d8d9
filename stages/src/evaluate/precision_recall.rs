//! Improved precision and recall (Kynkäänniemi et al. 2019) with k = 3, as the ADM evaluator computes them.
//!
//! A set's manifold is the union of balls around its features, each as wide as the distance to its third nearest other one.
//! Precision is the share of samples within the manifold of the real images, recall that of real images within the samples'.
//!
//! The ADM evaluator computes squared distances in f16, where those of Inception features have steps of 1/8 to 1/4; ties
//! then count as within, and both numbers come out about 0.001 higher. Its published numbers have that in them, so
//! [`Arithmetic::Half`] is the default, rounded where TensorFlow rounds.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

/// The neighbour at which a ball ends.
pub const NEIGHBOURS: i64 = 3;

/// Side of the blocks of distances in which the ADM evaluator looks for overflow.
const BLOCK: i64 = 10_000;
/// Rows of distances that are held at once.
const ROWS: i64 = 1000;

/// What squared distances are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arithmetic {
    /// f16, as the ADM evaluator; f32 for a block in which something overflows.
    #[serde(rename = "f16")]
    Half,
    /// f32.
    #[serde(rename = "f32")]
    Single,
}

/// Precision and recall, each in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PrecisionRecall {
    /// Share of the samples within the manifold of the reference.
    pub precision: f64,
    /// Share of the reference within the manifold of the samples.
    pub recall: f64,
}

impl PrecisionRecall {
    /// `samples` `[N, D]` and `reference` `[M, D]`, f32 on one device; N and M at least 4, or there is no third neighbour.
    ///
    /// Both numbers come from one matrix of distances, whose rows are the reference and whose columns are the samples. In f16
    /// that matters: |r|^2 - 2 r s is rounded before |s|^2 is added, so the transposed matrix has other roundings.
    pub fn of(samples: &Tensor, reference: &Tensor, arithmetic: Arithmetic) -> Self {
        Self::in_blocks(samples, reference, arithmetic, BLOCK)
    }

    /// [`Self::of`] by blocks of so many rows and columns of the matrix.
    fn in_blocks(samples: &Tensor, reference: &Tensor, arithmetic: Arithmetic, block: i64) -> Self {
        no_grad(|| {
            let [of_samples, of_reference] = [samples, reference].map(|features| radii(features, arithmetic, block));
            let [samples_within, reference_within] = [samples, reference]
                .map(|features| Tensor::zeros([features.size()[0]], (Kind::Bool, features.device())));
            for (rows, row_radii, mut row_within) in blocks_of(reference, &of_reference, &reference_within, block) {
                for (columns, radii, mut within) in blocks_of(samples, &of_samples, &samples_within, block) {
                    let found = for_rows(&rows, &columns, arithmetic, |distances, from| {
                        let row_radii = row_radii.narrow(0, from, distances.size()[0]).unsqueeze(1);
                        [
                            distances.le_tensor(&radii).any_dim(1, false),
                            distances.le_tensor(&row_radii).any_dim(0, false),
                        ]
                    });
                    let (of_rows, of_columns): (Vec<_>, Vec<_>) =
                        found.into_iter().map(|[row, column]| (row, column)).unzip();
                    let _ = row_within.logical_or_(&Tensor::cat(&of_rows, 0));
                    for found in &of_columns {
                        let _ = within.logical_or_(found);
                    }
                }
            }
            let share = |within: &Tensor| within.sum(Kind::Int64).int64_value(&[]) as f64 / within.size()[0] as f64;
            Self { precision: share(&samples_within), recall: share(&reference_within) }
        })
    }
}

/// Squared distance of each of `features` to its third nearest other, f32 `[N]`.
fn radii(features: &Tensor, arithmetic: Arithmetic, block: i64) -> Tensor {
    let of_block = |rows: Tensor| {
        // Itself at distance 0 is among them.
        let mut nearest: Option<Tensor> = None;
        for columns in blocks(features, block) {
            let among = (NEIGHBOURS + 1).min(columns.size()[0]);
            let found = for_rows(&rows, &columns, arithmetic, |distances, _| distances.topk(among, -1, false, true).0);
            let found = Tensor::cat(&found, 0);
            nearest = Some(match nearest.take() {
                None => found,
                Some(before) => Tensor::cat(&[before, found], 1).topk(NEIGHBOURS + 1, -1, false, true).0,
            });
        }
        nearest.expect("features are not empty").select(1, NEIGHBOURS)
    };
    let parts: Vec<Tensor> = blocks(features, block).map(of_block).collect();
    Tensor::cat(&parts, 0)
}

/// The blocks of some features, with their radii and a view of whether each is within a ball; a tie is within.
fn blocks_of(
    features: &Tensor,
    radii: &Tensor,
    within: &Tensor,
    block: i64,
) -> impl Iterator<Item = (Tensor, Tensor, Tensor)> {
    let [features, radii, within] = [features, radii, within].map(|all| blocks(all, block).collect::<Vec<_>>());
    features.into_iter().zip(radii).zip(within).map(|((features, radii), within)| (features, radii, within))
}

fn blocks(tensor: &Tensor, block: i64) -> impl Iterator<Item = Tensor> + '_ {
    let n = tensor.size()[0];
    (0..n).step_by(block as usize).map(move |from| tensor.narrow(0, from, block.min(n - from)))
}

/// What `take` makes of the squared distances of some rows to all `columns`, f32 `[R, M]`, and of the first row's number, until
/// it had all `rows`. In f16 all are done again in f32 if one overflows: `rows` and `columns` are blocks of the ADM evaluator.
fn for_rows<T>(rows: &Tensor, columns: &Tensor, arithmetic: Arithmetic, take: impl Fn(&Tensor, i64) -> T) -> Vec<T> {
    let all = |arithmetic| {
        let mut taken = Vec::new();
        for from in (0..rows.size()[0]).step_by(ROWS as usize) {
            let some = rows.narrow(0, from, ROWS.min(rows.size()[0] - from));
            let distances = match arithmetic {
                Arithmetic::Half => half_distances(&some, columns),
                Arithmetic::Single => Some(single_distances(&some, columns)),
            };
            taken.push(take(&distances?, from));
        }
        Some(taken)
    };
    all(arithmetic).or_else(|| all(Arithmetic::Single)).expect("f32 is taken as it is")
}

fn single_distances(rows: &Tensor, columns: &Tensor) -> Tensor {
    let norm = |x: &Tensor| x.square().sum_dim_intlist([-1].as_slice(), false, Kind::Float);
    let products = rows.matmul(&columns.transpose(0, 1));
    (norm(rows).unsqueeze(1) - products * 2.0 + norm(columns).unsqueeze(0)).clamp_min(0.0)
}

/// `None` if something overflows. Features, squares, norms, products and sums are each rounded to f16, and the norms of the rows
/// are the first to be added.
fn half_distances(rows: &Tensor, columns: &Tensor) -> Option<Tensor> {
    let rounded = |x: &Tensor| x.to_kind(Kind::Half).to_kind(Kind::Float);
    let (rows, columns) = (rounded(rows), rounded(columns));
    let norm = |x: &Tensor| rounded(&rounded(&x.square()).sum_dim_intlist([-1].as_slice(), false, Kind::Float));
    let products = rounded(&rows.matmul(&columns.transpose(0, 1)));
    let distances = rounded(&(norm(&rows).unsqueeze(1) - rounded(&(products * 2.0))));
    let distances = rounded(&(distances + norm(&columns).unsqueeze(0)));
    let finite = distances.isfinite().all().to_device(Device::Cpu).int64_value(&[]) == 1;
    finite.then(|| distances.clamp_min(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random;

    fn noise(n: i64, shift: f64, seed: u64) -> Tensor {
        random::normal(&[n, 8], Device::Cpu, seed).unwrap() + shift
    }

    #[test]
    fn a_set_lies_within_its_own_manifold_and_far_sets_in_none() {
        let (near, far) = (noise(50, 0.0, 0), noise(40, 60.0, 1));
        for arithmetic in [Arithmetic::Half, Arithmetic::Single] {
            let same = PrecisionRecall::of(&near, &near, arithmetic);
            assert_eq!((same.precision, same.recall), (1.0, 1.0));
            let apart = PrecisionRecall::of(&near, &far, arithmetic);
            assert_eq!((apart.precision, apart.recall), (0.0, 0.0));
        }
    }

    #[test]
    fn samples_of_one_mode_are_precise_and_recall_little() {
        let reference = Tensor::cat(&[noise(100, 0.0, 2), noise(100, 30.0, 3)], 0);
        let found = PrecisionRecall::of(&noise(100, 0.0, 4), &reference, Arithmetic::Half);
        assert!(found.precision > 0.6 && found.recall > 0.2 && found.recall <= 0.5, "{found:?}");
    }

    #[test]
    fn parts_of_the_matrix_give_what_the_whole_matrix_gives() {
        let (samples, reference) = (noise(1200, 0.0, 7), noise(2100, 0.4, 8));
        for arithmetic in [Arithmetic::Half, Arithmetic::Single] {
            let distances = |rows: &Tensor, columns: &Tensor| match arithmetic {
                Arithmetic::Half => half_distances(rows, columns).unwrap(),
                Arithmetic::Single => single_distances(rows, columns),
            };
            let radii = |x: &Tensor| distances(x, x).topk(NEIGHBOURS + 1, -1, false, true).0.select(1, NEIGHBOURS);
            let matrix = distances(&reference, &samples);
            let share = |within: Tensor| within.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
            let precision = share(matrix.le_tensor(&radii(&reference).unsqueeze(1)).any_dim(0, false));
            let recall = share(matrix.le_tensor(&radii(&samples)).any_dim(1, false));
            for block in [BLOCK, 500] {
                let found = PrecisionRecall::in_blocks(&samples, &reference, arithmetic, block);
                assert_eq!(found, PrecisionRecall { precision, recall }, "{arithmetic:?}, {block}");
            }
            assert!(precision < 1.0 && recall < 1.0);
        }
    }

    #[test]
    fn what_overflows_in_f16_is_computed_in_f32() {
        let large = |seed| noise(30, 0.0, seed) * 200.0;
        let [half, single] =
            [Arithmetic::Half, Arithmetic::Single].map(|a| PrecisionRecall::of(&large(5), &large(6), a));
        assert_eq!(half, single);
        assert!(half.precision > 0.0);
    }
}
