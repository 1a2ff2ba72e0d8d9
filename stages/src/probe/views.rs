//! How alike two noisy views of an image are to the network, by their times.
//!
//! View 1 of each image has one noise, view 2 another, and both come at every time of a grid, without a label. The similarity
//! of two times is the cosine of their conditions z_t, token by token, in the mean over tokens and images: what the method's
//! alignment raises (Eq. 6), there behind the projector. The paper's Figure 5 shows it over the steps of training, where the
//! run's metrics have it; this is where it stands on held-out images, and how it falls with the distance of the times.
//!
//! Beside it is the cosine of views of different images, in the mean over all pairs: where the two are equal, conditions do not
//! tell images apart.

use serde::Serialize;
use tch::{Device, Kind, Tensor, no_grad};

use super::ProbeError;
use super::collect::Latents;
use crate::method::network::Network;
use crate::method::path;
use crate::method::random::{self, Purpose, seed_of};

/// Times of the grid: the middles of so many equal parts of [0, 1].
pub const TIMES: i64 = 10;

/// Cosines of one kind of features by the times of both views.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Similarity {
    /// Of view 1 at time i, a row, and view 2 at time j, a column, of the same image, in -1..=1.
    pub cosine: Vec<Vec<f64>>,
    /// Of different images.
    pub other_cosine: Vec<Vec<f64>>,
    /// By |t_i - t_j|, ascending.
    pub by_gap: Vec<GapSimilarity>,
}

/// The mean over all pairs of times that are so far apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GapSimilarity {
    /// |t_1 - t_2|.
    pub gap: f64,
    /// Of the same image.
    pub cosine: f64,
    /// Of different images.
    pub other_cosine: f64,
}

/// Similarity of views on a grid of times.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ViewSimilarity {
    /// Images.
    pub count: i64,
    /// The times of the grid.
    pub times: Vec<f64>,
    /// Of the conditions z_t.
    pub condition: Similarity,
    /// Behind the projector; none without one.
    pub projected: Option<Similarity>,
}

/// Measures `data`, `batch` latents at once.
///
/// # Errors
/// [`ProbeError::TooFew`] with fewer than two latents; where noise cannot be drawn.
pub fn similarity(network: &Network, data: &Latents, seed: u64, batch: i64) -> Result<ViewSimilarity, ProbeError> {
    let (device, count) = (data.latents.device(), data.len());
    if count < 2 {
        return Err(ProbeError::TooFew { what: "the similarity of views", got: count, least: 2 });
    }
    let times: Vec<f64> = (0..TIMES).map(|i| (i as f64 + 0.5) / TIMES as f64).collect();
    let has_projector = network.model().has_projector();
    no_grad(|| {
        // Far from the numbers of the other draws of noise, which are times in millionths.
        let draw = |view: u64| {
            random::normal(&data.latents.size(), Device::Cpu, seed_of(seed, u64::MAX - view, Purpose::ProbeNoise))
        };
        let noises = [draw(0)?.to_device(device), draw(1)?.to_device(device)];
        let mut sums = [Sums::default(), Sums::default()];
        for start in (0..count).step_by(batch.max(1) as usize) {
            let len = batch.max(1).min(count - start);
            let part = |x: &Tensor| x.narrow(0, start, len);
            let null = Tensor::full([len], network.null_class(), (Kind::Int64, device));
            // Conditions and what the projector makes of them, as unit vectors: [N, T, ..].
            let view = |noise: &Tensor, t: f64| -> Vec<Tensor> {
                let at = Tensor::full([len], t, (Kind::Float, device));
                let x_t = path::interpolate(&part(&data.latents), &part(noise), &at);
                let condition = network.forward(&x_t, &at, &null).condition;
                let projected = has_projector.then(|| network.project(&condition));
                [Some(condition), projected].into_iter().flatten().map(|x| unit(&x)).collect()
            };
            let first: Vec<_> = times.iter().map(|&t| view(&noises[0], t)).collect();
            for (j, &t) in times.iter().enumerate() {
                let second = view(&noises[1], t);
                for (kind, second) in second.iter().enumerate() {
                    for (i, first) in first.iter().enumerate() {
                        sums[kind].add_pair(i, j, &first[kind], second);
                    }
                    sums[kind].add_view(1, j, second);
                }
            }
            for (i, first) in first.iter().enumerate() {
                first.iter().enumerate().for_each(|(kind, first)| sums[kind].add_view(0, i, first));
            }
        }
        let [condition, projected] = sums;
        Ok(ViewSimilarity {
            count,
            condition: condition.finish(&times, count),
            projected: has_projector.then(|| projected.finish(&times, count)),
            times,
        })
    })
}

fn unit(x: &Tensor) -> Tensor {
    let x = x.to_kind(Kind::Float);
    &x / x.norm_scalaropt_dim(2.0, [-1], true).clamp_min(1e-8)
}

/// What is added up over batches, so that the batch size does not matter.
#[derive(Debug)]
struct Sums {
    /// Over images, of cosines in the mean over tokens.
    same: Vec<Vec<f64>>,
    /// By view and time: over images, of unit vectors: f64 `[T, ..]`.
    views: [Vec<Option<Tensor>>; 2],
}

impl Default for Sums {
    fn default() -> Self {
        let none = || (0..TIMES).map(|_| None).collect();
        Self { same: vec![vec![0.0; TIMES as usize]; TIMES as usize], views: [none(), none()] }
    }
}

impl Sums {
    fn add_pair(&mut self, i: usize, j: usize, first: &Tensor, second: &Tensor) {
        let tokens = first.size()[1] as f64;
        self.same[i][j] += (first * second).sum(Kind::Double).double_value(&[]) / tokens;
    }

    fn add_view(&mut self, view: usize, time: usize, unit: &Tensor) {
        let sum = unit.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        let kept = &mut self.views[view][time];
        *kept = Some(match kept.take() {
            Some(before) => before + sum,
            None => sum,
        });
    }

    fn finish(self, times: &[f64], count: i64) -> Similarity {
        let n = count as f64;
        let view =
            |view: usize, time: usize| self.views[view][time].as_ref().expect("every time came with every batch");
        let (mut cosine, mut other_cosine) = (self.same.clone(), self.same.clone());
        for (i, row) in self.same.iter().enumerate() {
            for (j, same) in row.iter().enumerate() {
                // The product of sums has all pairs of images, of which those of an image with itself are taken away.
                let all = (view(0, i) * view(1, j)).sum(Kind::Double).double_value(&[]) / view(0, i).size()[0] as f64;
                cosine[i][j] = same / n;
                other_cosine[i][j] = (all - same) / (n * (n - 1.0));
            }
        }
        let by_gap = (0..times.len()).map(|gap| {
            let far: Vec<_> = (0..times.len())
                .flat_map(|i| (0..times.len()).map(move |j| (i, j)))
                .filter(|(i, j)| i.abs_diff(*j) == gap)
                .collect();
            let mean = |of: &[Vec<f64>]| far.iter().map(|(i, j)| of[*i][*j]).sum::<f64>() / far.len() as f64;
            let (cosine, other_cosine) = (mean(&cosine), mean(&other_cosine));
            GapSimilarity { gap: gap as f64 / times.len() as f64, cosine, other_cosine }
        });
        let by_gap = by_gap.collect();
        Similarity { cosine, other_cosine, by_gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::config::Backbone;
    use crate::probe::fixture::network;

    fn near(a: &Similarity, b: &Similarity) -> bool {
        let flat = |s: &Similarity| [s.cosine.concat(), s.other_cosine.concat()].concat();
        flat(a).iter().zip(flat(b)).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    #[test]
    fn it_is_the_mean_of_cosines_written_with_loops_in_any_batch() {
        network(Backbone::Ddt, |network, data| {
            let found = similarity(network, data, 7, 64).unwrap();
            assert_eq!((found.count, found.times.len()), (11, 10));
            let again = similarity(network, data, 7, 4).unwrap();
            assert!(near(&found.condition, &again.condition));
            assert!(near(found.projected.as_ref().unwrap(), again.projected.as_ref().unwrap()));

            // Times 3 and 8, with the same draws.
            let condition = |view: u64, t: f64| {
                let seed = seed_of(7, u64::MAX - view, Purpose::ProbeNoise);
                let noise = random::normal(&data.latents.size(), Device::Cpu, seed).unwrap();
                let t = Tensor::full([11], t, (Kind::Float, Device::Cpu));
                let null = Tensor::full([11], 3, (Kind::Int64, Device::Cpu));
                no_grad(|| network.forward(&path::interpolate(&data.latents, &noise, &t), &t, &null).condition)
            };
            let (a, b) = (condition(0, 0.35), condition(1, 0.85));
            let cosine = |i: i64, j: i64| {
                let tokens = Tensor::cosine_similarity(&a.get(i), &b.get(j), -1, 1e-8);
                tokens.mean(Kind::Double).double_value(&[])
            };
            let (mut same, mut other) = (0.0, 0.0);
            for i in 0..11 {
                same += cosine(i, i) / 11.0;
                other += (0..11).filter(|j| *j != i).map(|j| cosine(i, j)).sum::<f64>() / 110.0;
            }
            let Similarity { cosine, other_cosine, .. } = &found.condition;
            assert!((cosine[3][8] - same).abs() < 1e-5, "{} for {same}", cosine[3][8]);
            assert!((other_cosine[3][8] - other).abs() < 1e-5, "{} for {other}", other_cosine[3][8]);
            assert!((same - other).abs() > 1e-3, "the case shows nothing");
        });
    }

    #[test]
    fn gaps_hold_the_mean_of_their_pairs() {
        network(Backbone::Sit, |network, data| {
            let found = similarity(network, data, 0, 64).unwrap().condition;
            let gaps: Vec<_> = found.by_gap.iter().map(|gap| (gap.gap * 10.0).round() as u64).collect();
            assert_eq!(gaps, (0..10).collect::<Vec<_>>());
            let far = (found.cosine[0][9] + found.cosine[9][0]) / 2.0;
            assert!((found.by_gap[9].cosine - far).abs() < 1e-12);
            let near = (0..10).map(|i| found.other_cosine[i][i]).sum::<f64>() / 10.0;
            assert!((found.by_gap[0].other_cosine - near).abs() < 1e-12);
        });
    }

    #[test]
    fn one_image_has_no_other() {
        network(Backbone::Ddt, |network, data| {
            let error = similarity(network, &data.narrow(0, 1), 0, 4).unwrap_err().to_string();
            assert_eq!(error, "the similarity of views needs at least 2 latents, and has 1");
        });
    }
}
