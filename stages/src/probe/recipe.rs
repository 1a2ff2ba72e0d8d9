//! Linear probes as papers train them: parameter-free BatchNorm, a linear layer, and some epochs of gradient descent.
//!
//! - *MAE* (`main_linprobe.py` of facebookresearch/mae): LARS, momentum 0.9, no weight decay, rate 0.1 for each 256 samples
//!   of a batch, 10 epochs of warm-up and half a cosine to 0, batches of 16,384, 90 epochs, BatchNorm with eps 1e-6.
//! - *REPA* (its Appendix C.1, after l-DAE): Adam, rate 0.001, a cosine to 0 without warm-up, the same batches and epochs;
//!   l-DAE itself has the rate 0.0064. Neither names a beta or an eps, so those of PyTorch are taken: 0.9, 0.999, 1e-8, and
//!   1e-5 for BatchNorm. (A snippet in REPA's issue 32 has a BatchNorm with parameters; its paper says "parameter-free".)
//!
//! A step of LARS moves a matrix by about `0.01 rate` of its norm (trust 0.001, and 1 / (1 - 0.9) for the momentum). With ImageNet's
//! 7,000 steps at rates to 6.4 that is plenty; a small set has few steps, and the rule for the rate makes them short.
//!
//! Weights start from N(0, 0.01^2), biases from 0, as MAE has them. What is left of an epoch behind its last full batch is
//! dropped. A batch is the whole set where that is smaller.
//!
//! These are trained on features, not on images: there is no random crop and no flip, which both papers' code (MAE), or its
//! precomputed latents (REPA: none either), would have before the network. Shuffling and first weights depend on the seed
//! alone.

use tch::{Device, Kind, Tensor, no_grad};

use super::ProbeError;
use crate::method::random::{self, Purpose, seed_of};

/// Samples of a batch in either paper.
pub const BATCH: i64 = 16_384;
/// Epochs in either paper.
pub const EPOCHS: i64 = 90;
/// Epochs in which the rate of MAE's recipe rises from 0.
pub const WARM_UP: f64 = 10.0;
/// Rate of MAE's recipe for each 256 samples of a batch.
const MAE_RATE: f64 = 0.1;
/// Rate of REPA's recipe.
const REPA_RATE: f64 = 0.001;
/// LARS: a layer's step is this share of its weights' norm, times the rate.
const TRUST: f64 = 0.001;
/// LARS.
const MOMENTUM: f64 = 0.9;
/// Deviation of the first weights.
const INITIAL: f64 = 0.01;

/// What changes the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimiser {
    /// You et al., arXiv:1708.03888, as MAE has it.
    Lars,
    /// Kingma and Ba, arXiv:1412.6980.
    Adam,
}

/// How a linear classifier is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// What changes the weights.
    pub optimiser: Optimiser,
    /// At least 1.
    pub epochs: i64,
    /// Epochs, of these, in which the rate rises from 0.
    pub warm_up: f64,
    /// Samples of a batch, at least 2; at most the set.
    pub batch: i64,
    /// The highest rate.
    pub rate: f64,
    /// Added to variances by BatchNorm.
    pub eps: f64,
    /// Of the order of samples and the first weights.
    pub seed: u64,
}

impl Recipe {
    /// MAE's, for a set of `samples`. The rate belongs to the batch: 0.1 for each 256 samples.
    pub fn mae(samples: i64, batch: i64, epochs: i64, seed: u64) -> Self {
        let batch = batch.min(samples);
        let rate = MAE_RATE * batch as f64 / 256.0;
        Self { optimiser: Optimiser::Lars, epochs, warm_up: WARM_UP, batch, rate, eps: 1e-6, seed }
    }

    /// REPA's, for a set of `samples`. The rate is the same for any batch.
    pub fn repa(samples: i64, batch: i64, epochs: i64, seed: u64) -> Self {
        let batch = batch.min(samples);
        Self { optimiser: Optimiser::Adam, epochs, warm_up: 0.0, batch, rate: REPA_RATE, eps: 1e-5, seed }
    }

    /// The rate at `epoch`, which counts steps within an epoch as parts of it.
    pub fn rate_at(&self, epoch: f64) -> f64 {
        if epoch < self.warm_up {
            return self.rate * epoch / self.warm_up;
        }
        let done = (epoch - self.warm_up) / (self.epochs as f64 - self.warm_up);
        self.rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }

    /// Share of `test` that a classifier trained on `train` gets right, in 0..=1. Each is features `[N, D]` and labels i64
    /// `[N]` below `classes`.
    ///
    /// # Errors
    /// [`ProbeError::TooFew`]; [`ProbeError::Diverged`]; random numbers cannot be drawn.
    pub fn accuracy(
        &self,
        train: (&Tensor, &Tensor),
        test: (&Tensor, &Tensor),
        classes: i64,
    ) -> Result<f64, ProbeError> {
        let (features, labels) = train;
        let [samples, width] = features.size()[..] else { unreachable!("features have two dimensions") };
        let batch = self.batch.min(samples);
        if batch < 2 {
            return Err(ProbeError::TooFew { what: "a linear probe", got: batch, least: 2 });
        }
        let device = features.device();
        let drawn = random::normal(&[classes, width], Device::Cpu, seed_of(self.seed, 0, Purpose::ProbeWeights))?;
        let mut probe = LinearProbe::new(&(drawn * INITIAL).to_device(device).to_kind(features.kind()), self);
        let steps = samples / batch;
        for epoch in 0..self.epochs {
            let keys = random::uniform(&[samples], Device::Cpu, seed_of(self.seed, epoch as u64, Purpose::ProbeOrder))?;
            let order = keys.argsort_stable(true, 0, false).to_device(device);
            for step in 0..steps {
                let rows = order.narrow(0, step * batch, batch);
                let rate = self.rate_at(epoch as f64 + step as f64 / steps as f64);
                probe.step(&features.index_select(0, &rows), &labels.index_select(0, &rows), rate);
            }
        }
        let logits = probe.logits(test.0);
        if logits.isfinite().all().int64_value(&[]) == 0 {
            return Err(ProbeError::Diverged { rate: self.rate });
        }
        let right = logits.argmax(-1, false).eq_tensor(test.1);
        Ok(right.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]))
    }
}

/// BatchNorm without parameters and a linear layer, with the state of what trains it.
#[derive(Debug)]
struct LinearProbe {
    optimiser: Optimiser,
    eps: f64,
    /// `[D]`, of what came: 0.9 of the old and 0.1 of the new at each step.
    running_mean: Tensor,
    running_variance: Tensor,
    /// `[C, D]`.
    weight: Trained,
    /// `[C]`.
    bias: Trained,
    steps: i32,
}

/// A parameter with its moments.
#[derive(Debug)]
struct Trained {
    value: Tensor,
    first: Tensor,
    second: Tensor,
}

impl Trained {
    fn new(value: Tensor) -> Self {
        Self { first: value.zeros_like(), second: value.zeros_like(), value }
    }

    /// Without weight decay. Only matrices have their gradient scaled: q = trust |w| / |g|, 1 where either is 0.
    fn lars(&mut self, gradient: Tensor, rate: f64) {
        let gradient = if self.value.dim() > 1 {
            let (size, slope) = (self.value.norm(), gradient.norm());
            let ratio = TRUST * &size / &slope;
            let both = size.gt(0.0).logical_and(&slope.gt(0.0));
            gradient * ratio.where_self(&both, &size.ones_like())
        } else {
            gradient
        };
        self.first = &self.first * MOMENTUM + gradient;
        self.value = &self.value - &self.first * rate;
    }

    /// `n` counts steps from 1.
    fn adam(&mut self, gradient: &Tensor, rate: f64, n: i32) {
        self.first = &self.first * 0.9 + gradient * 0.1;
        self.second = &self.second * 0.999 + gradient.square() * 0.001;
        let (first, second) = (&self.first / (1.0 - 0.9f64.powi(n)), &self.second / (1.0 - 0.999f64.powi(n)));
        self.value = &self.value - first / (second.sqrt() + 1e-8) * rate;
    }
}

impl LinearProbe {
    /// With these first weights, `[C, D]`.
    fn new(weight: &Tensor, recipe: &Recipe) -> Self {
        let [classes, width] = weight.size()[..] else { unreachable!("weights have two dimensions") };
        let options = (weight.kind(), weight.device());
        Self {
            optimiser: recipe.optimiser,
            eps: recipe.eps,
            running_mean: Tensor::zeros([width], options),
            running_variance: Tensor::ones([width], options),
            weight: Trained::new(weight.copy()),
            bias: Trained::new(Tensor::zeros([classes], options)),
            steps: 0,
        }
    }

    fn standardised(&self, x: &Tensor, training: bool) -> Tensor {
        let (mean, variance) = (Some(&self.running_mean), Some(&self.running_variance));
        x.batch_norm(None::<&Tensor>, None::<&Tensor>, mean, variance, training, 0.1, self.eps, false)
    }

    /// One step on features `[B, D]`, B >= 2, with labels i64 `[B]`.
    fn step(&mut self, x: &Tensor, labels: &Tensor, rate: f64) {
        no_grad(|| {
            // In training it also moves the running mean and variance.
            let x = self.standardised(x, true);
            let p = x.linear(&self.weight.value, Some(&self.bias.value)).softmax(-1, x.kind());
            let classes = Tensor::arange(self.bias.value.size()[0], (Kind::Int64, x.device()));
            let target = labels.unsqueeze(1).eq_tensor(&classes).to_kind(x.kind());
            // The gradient of the mean cross entropy by the logits, and by what made them.
            let slope = (p - target) / labels.size()[0] as f64;
            let (weight, bias) =
                (slope.transpose(0, 1).matmul(&x), slope.sum_dim_intlist([0i64].as_slice(), false, x.kind()));
            self.steps += 1;
            match self.optimiser {
                Optimiser::Lars => {
                    self.weight.lars(weight, rate);
                    self.bias.lars(bias, rate);
                }
                Optimiser::Adam => {
                    self.weight.adam(&weight, rate, self.steps);
                    self.bias.adam(&bias, rate, self.steps);
                }
            }
        });
    }

    /// `[N, C]` for features `[N, D]`, standardised by what training saw.
    fn logits(&self, x: &Tensor) -> Tensor {
        no_grad(|| self.standardised(x, false).linear(&self.weight.value, Some(&self.bias.value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::fixture::{golden, labelled};

    /// Three epochs of warm-up, seven of cosine, on given rows with given weights.
    #[test]
    fn weights_statistics_and_logits_follow_the_golden_trajectories() {
        let golden = golden();
        let (x, y) = (&golden["probe.features"], &golden["probe.labels"]);
        for (name, optimiser, rate, eps) in
            [("lars", Optimiser::Lars, 2.0, 1e-6), ("adam", Optimiser::Adam, 0.02, 1e-5)]
        {
            let recipe = Recipe { optimiser, epochs: 10, warm_up: 3.0, batch: 8, rate, eps, seed: 0 };
            let recipe = if name == "adam" { Recipe { warm_up: 0.0, ..recipe } } else { recipe };
            let mut probe = LinearProbe::new(&golden["probe.weight"], &recipe);
            let orders = &golden["probe.orders"]; // [10, 20]
            for epoch in 0..10 {
                for step in 0..2 {
                    let rows = orders.get(epoch).narrow(0, 8 * step, 8);
                    let rate = recipe.rate_at(epoch as f64 + step as f64 / 2.0);
                    probe.step(&x.index_select(0, &rows), &y.index_select(0, &rows), rate);
                }
            }
            let found = [
                ("weight", &probe.weight.value),
                ("bias", &probe.bias.value),
                ("running_mean", &probe.running_mean),
                ("running_variance", &probe.running_variance),
                ("logits", &probe.logits(x)),
            ];
            for (key, value) in found {
                let expected = &golden[&format!("{name}.{key}")];
                let error = (value - expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
                assert!(error < 1e-10, "{name} {key}: {error:e}");
            }
        }
    }

    #[test]
    fn the_recipes_have_the_papers_numbers() {
        let mae = Recipe::mae(1_281_167, BATCH, EPOCHS, 0);
        assert_eq!((mae.rate, mae.batch, mae.epochs), (6.4, 16_384, 90));
        assert_eq!((mae.rate_at(0.0), mae.rate_at(5.0), mae.rate_at(10.0)), (0.0, 3.2, 6.4));
        assert!((mae.rate_at(50.0) - 3.2).abs() < 1e-12 && mae.rate_at(90.0) < 1e-12);
        let repa = Recipe::repa(1_281_167, BATCH, EPOCHS, 0);
        assert_eq!((repa.rate_at(0.0), repa.batch), (0.001, 16_384));
        assert!((repa.rate_at(45.0) - 0.0005).abs() < 1e-12);
        // A small set is one batch, and MAE's rate goes with it.
        let small = Recipe::mae(512, BATCH, EPOCHS, 0);
        assert_eq!((small.batch, small.rate), (512, 0.2));
    }

    #[test]
    fn either_recipe_finds_classes_at_any_scale_and_repeats_itself() {
        let ((x, y), (held_out, labels)) = (labelled(0, 300), labelled(1, 300));
        // A step of LARS is a share of the weights' norm, so that few steps need a rate above that of the papers.
        let mae = Recipe { rate: 10.0, ..Recipe::mae(300, 32, 60, 5) };
        for recipe in [mae, Recipe { rate: 0.02, ..Recipe::repa(300, 32, 60, 5) }] {
            let found = |recipe: &Recipe| recipe.accuracy((&x, &y), (&held_out, &labels), 3).unwrap();
            assert!(found(&recipe) > 0.95, "{recipe:?}: {}", found(&recipe));
            assert_eq!(found(&recipe), found(&recipe));
            let noise = |x: &Tensor| x.narrow(1, 2, 6);
            let nothing = recipe.accuracy((&noise(&x), &y), (&noise(&held_out), &labels), 3).unwrap();
            assert!((nothing - 1.0 / 3.0).abs() < 0.12, "{recipe:?}: {nothing}");
        }
    }

    #[test]
    fn one_sample_and_a_rate_that_diverges_are_errors() {
        let (x, y) = labelled(0, 40);
        let one = Recipe::mae(1, 16, 5, 0).accuracy((&x.narrow(0, 0, 1), &y.narrow(0, 0, 1)), (&x, &y), 3);
        assert_eq!(one.unwrap_err().to_string(), "a linear probe needs at least 2 latents, and has 1");
        let wild = Recipe { rate: 1e38, ..Recipe::repa(40, 16, 20, 0) };
        let error = wild.accuracy((&x, &y), (&x, &y), 3).unwrap_err().to_string();
        assert!(error.contains("give a smaller --probe-rate"), "{error}");
    }
}
