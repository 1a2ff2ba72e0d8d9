//! Linear probe and CKNNA of several layers at several times.

use serde::Serialize;
use tch::Tensor;

use super::ProbeError;
use super::cknna::{Alignment, Neighbours};
use super::collect::Latents;
use super::layers::{self, LayerFeatures};
use super::linear;
use super::recipe::Recipe;
use crate::method::network::Network;

/// What is measured.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// Blocks, each in `1..=depth`.
    pub layers: &'a [i64],
    /// In [0, 1].
    pub times: &'a [f64],
    /// Classes of the labels.
    pub classes: i64,
    /// How the linear classifier is trained; softmax regression to its minimum if `None`.
    pub recipe: Option<Recipe>,
    /// Another network's features of the held-out latents, in their order, and how they were treated.
    pub other: Option<(&'a Neighbours, &'a Alignment)>,
    /// Of noise.
    pub seed: u64,
    /// Latents that go through the network together.
    pub batch: i64,
}

/// One layer at one time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerResult {
    /// From 1.
    pub layer: i64,
    /// 0 is data.
    pub t: f64,
    /// Share of held-out latents whose class a linear classifier reads from the features, in 0..=1.
    pub linear_probe: f64,
    /// `None` without another network's features, or where it is not defined.
    pub cknna: Option<f64>,
}

/// Latents to fit classifiers to and to test them on.
#[derive(Debug)]
pub struct Split {
    /// All that were held out; the others may be parts of them.
    pub held_out: Latents,
    /// A set of its own to fit to; the first half of `held_out` if `None`.
    pub fit: Option<Latents>,
}

impl Split {
    /// Number of the first of `held_out` that is tested on.
    fn half(&self) -> i64 {
        if self.fit.is_some() { 0 } else { self.held_out.len() / 2 }
    }

    /// How many are fitted to.
    pub fn fit_len(&self) -> i64 {
        self.fit.as_ref().map_or(self.half(), Latents::len)
    }

    /// Those that are tested on.
    pub fn test(&self) -> Latents {
        self.held_out.narrow(self.half(), self.held_out.len() - self.half())
    }
}

impl Sweep<'_> {
    /// By time, then by layer. `each` is given the features of all held-out latents, layer by layer.
    ///
    /// # Errors
    /// [`ProbeError`], as features, classifiers and CKNNA have them.
    pub fn run(
        &self,
        network: &Network,
        split: &Split,
        mut each: impl FnMut(LayerFeatures),
    ) -> Result<Vec<LayerResult>, ProbeError> {
        let mut results = Vec::new();
        for &t in self.times {
            let features = |data: &Latents| layers::features(network, data, self.layers, t, self.seed, self.batch);
            let mut fit = split.fit.as_ref().map(features).transpose()?.into_iter().flatten();
            for held_out in features(&split.held_out)? {
                let halves = |x: &Tensor| {
                    let half = split.half();
                    (x.narrow(0, 0, half), x.narrow(0, half, x.size()[0] - half))
                };
                let (first, test) = halves(&held_out.values);
                let (first_labels, test_labels) = halves(&split.held_out.labels);
                let fitted = fit.next();
                let train = match (&fitted, &split.fit) {
                    (Some(features), Some(fit)) => (&features.values, &fit.labels),
                    _ => (&first, &first_labels),
                };
                let test = (&test, &test_labels);
                let linear_probe = match &self.recipe {
                    Some(recipe) => recipe.accuracy(train, test, self.classes)?,
                    None => linear::accuracy(train, test, self.classes),
                };
                let cknna = match self.other {
                    Some((other, settings)) => Neighbours::of(&held_out.values, settings)?.cknna(other),
                    None => None,
                };
                results.push(LayerResult { layer: held_out.layer, t, linear_probe, cknna });
                each(held_out);
            }
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::config::Backbone;
    use crate::probe::fixture::network;

    fn sweep<'a>(layers: &'a [i64], times: &'a [f64]) -> Sweep<'a> {
        Sweep { layers, times, classes: 3, recipe: None, other: None, seed: 4, batch: 8 }
    }

    fn with_labels(data: &Latents) -> Latents {
        let labels = Tensor::from_slice(&[0i64, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]);
        Latents { labels, ..data.narrow(0, data.len()) }
    }

    #[test]
    fn classifiers_are_fitted_to_the_first_half_or_to_a_set_of_their_own() {
        network(Backbone::Ddt, |network, data| {
            let half = Split { held_out: with_labels(data), fit: None };
            assert_eq!((half.fit_len(), half.test().len(), half.test().positions[0]), (5, 6, 5));
            let mut seen = Vec::new();
            let found =
                sweep(&[1, 3], &[0.0, 0.5]).run(network, &half, |f| seen.push((f.t, f.layer, f.values))).unwrap();
            let order: Vec<_> = found.iter().map(|result| (result.t, result.layer)).collect();
            assert_eq!(order, [(0.0, 1), (0.0, 3), (0.5, 1), (0.5, 3)]);
            let labels = &half.held_out.labels;
            for (result, (_, _, x)) in found.iter().zip(&seen) {
                let part = |start, len| (x.narrow(0, start, len), labels.narrow(0, start, len));
                let ((a, a_labels), (b, b_labels)) = (part(0, 5), part(5, 6));
                assert_eq!(result.linear_probe, linear::accuracy((&a, &a_labels), (&b, &b_labels), 3));
            }
            // More features than latents: a classifier gets all right that it was fitted to.
            let itself = Split { held_out: with_labels(data), fit: Some(with_labels(data)) };
            assert_eq!((itself.fit_len(), itself.test().len()), (11, 11));
            let found = sweep(&[2], &[0.0]).run(network, &itself, |_| ()).unwrap();
            assert_eq!((found[0].linear_probe, found[0].cknna), (1.0, None));
        });
    }

    #[test]
    fn a_layer_agrees_with_itself_and_others_differ() {
        network(Backbone::Ddt, |network, data| {
            let split = Split { held_out: with_labels(data), fit: None };
            let mut own = Vec::new();
            sweep(&[2], &[0.0]).run(network, &split, |features| own.push(features)).unwrap();
            let settings = Alignment { topk: 3, ..Alignment::default() };
            let other = Neighbours::of(&own[0].values, &settings).unwrap();
            let compared = Sweep { other: Some((&other, &settings)), ..sweep(&[1, 2, 3], &[0.0]) };
            let found = compared.run(network, &split, |_| ()).unwrap();
            assert!(found[1].cknna.is_some_and(|value| value > 0.99), "{found:?}");
            assert!(found[0].cknna != found[1].cknna && found[2].cknna != found[1].cknna, "{found:?}");
        });
    }
}
