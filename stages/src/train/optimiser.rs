//! Line 15 of Algorithm 1: clip, AdamW, over flat buffers.
//!
//! The gradient norm never visits the host: a step whose gradients are not finite is skipped on the device, its
//! count and its average undone, and shows up in the figures that are read back later.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use crate::method::parameters::Parameters;
use crate::native::{AdamWBuffers, AdamWConstants, NativeError, fused_adamw};

/// AdamW (Loshchilov and Hutter 2019; paper Table 7: lr 1e-4 constant, betas 0.9 and 0.999), clipping, and the course of the learning
/// rate.
///
/// With the gradient g of a step, lr from [`Self::lr_at`] and n counting the updates that were not skipped:
///
/// ```text
/// g <- g / max(1, (|g| + 1e-6) / clip)
/// w <- w (1 - lr weight_decay)
/// m <- beta1 m + (1 - beta1) g        v <- beta2 v + (1 - beta2) g^2
/// w <- w - lr m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + eps)
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimiserConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, as a share of `lr`; all parameters have it.
    pub weight_decay: f64,
    /// Global norm to which gradients are clipped, projector included; 0 turns clipping off.
    pub clip: f64,
    /// Steps of linear warm-up from 0.
    pub warmup_steps: u64,
    /// Share of the run, at its end, over which the rate falls linearly to 0.
    pub decay_fraction: f64,
}

impl Default for OptimiserConfig {
    /// The paper's: constant rate, no decay; clip 1.0 as REPA.
    fn default() -> Self {
        Self {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            warmup_steps: 0,
            decay_fraction: 0.0,
        }
    }
}

impl OptimiserConfig {
    /// Learning rate of `step` (from 0) of a run of `steps`: lr min(1, (step + 1) / warmup_steps) min(1, (steps - step) /
    /// (decay_fraction steps)).
    pub fn lr_at(&self, step: u64, steps: u64) -> f64 {
        let warmup = ((step + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        let decay_steps = self.decay_fraction * steps as f64;
        let left = steps.saturating_sub(step) as f64;
        let decay = if decay_steps > 0.0 { (left / decay_steps).min(1.0) } else { 1.0 };
        self.lr * warmup * decay
    }

    /// One sentence that says what is out of range, if anything.
    pub fn problem(&self) -> Option<String> {
        let range = |key: &str, value: f64, range: std::ops::Range<f64>| {
            (!range.contains(&value))
                .then(|| format!("optimiser.{key} = {value} must lie in {}..{} (end excluded)", range.start, range.end))
        };
        range("lr", self.lr, 0.0..f64::INFINITY)
            .or_else(|| range("beta1", self.beta1, 0.0..1.0))
            .or_else(|| range("beta2", self.beta2, 0.0..1.0))
            .or_else(|| range("eps", self.eps, 0.0..1.0))
            .or_else(|| range("weight_decay", self.weight_decay, 0.0..1.0))
            .or_else(|| range("clip", self.clip, 0.0..f64::INFINITY))
            .or_else(|| {
                (!(0.0..=1.0).contains(&self.decay_fraction))
                    .then(|| format!("optimiser.decay_fraction = {} must lie in 0..=1", self.decay_fraction))
            })
    }
}

/// The moments of AdamW: flat f32, in the order of the parameters.
#[derive(Debug)]
pub struct AdamW {
    config: OptimiserConfig,
    /// First moment.
    pub exp_avg: Tensor,
    /// Second moment.
    pub exp_avg_sq: Tensor,
    /// f32 scalar: updates that were not skipped.
    pub count: Tensor,
}

/// What an update reports, as f32 scalars on the device.
#[derive(Debug)]
pub struct UpdateFigures {
    /// Global norm of the gradients before clipping.
    pub gradient_norm: Tensor,
    /// 1 if the update was skipped because the norm was not finite, else 0.
    pub skipped: Tensor,
}

impl AdamW {
    /// Fresh moments for `len` parameters.
    pub fn new(config: OptimiserConfig, len: i64, device: Device) -> Self {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device));
        Self { config, exp_avg: zeros(&[len]), exp_avg_sq: zeros(&[len]), count: zeros(&[]) }
    }

    /// Clips the gradients and updates the master weights with learning rate `lr`, as [`OptimiserConfig`] says; then casts them for
    /// the next pass. Where the norm of the gradients is not finite, weights, moments and count stay as they were.
    ///
    /// # Errors
    /// libtorch's; none are known.
    pub fn update(&mut self, parameters: &mut Parameters, lr: f64) -> Result<UpdateFigures, NativeError> {
        no_grad(|| {
            let gradient_norm = norm(&parameters.gradients);
            let mut skipped = gradient_norm.isfinite().logical_not().to_kind(Kind::Float);
            // The kernel divides by it as it goes along: clipping costs no pass over the gradients of its own. As in
            // torch.nn.utils.clip_grad_norm_, the 1e-6 is part of the norm.
            let mut grad_scale = match self.config.clip > 0.0 {
                true => ((&gradient_norm + 1e-6) / self.config.clip).clamp_min(1.0),
                false => gradient_norm.ones_like(),
            };
            let OptimiserConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
            fused_adamw(
                &mut AdamWBuffers {
                    parameters: &mut parameters.master,
                    gradients: &mut parameters.gradients,
                    exp_avg: &mut self.exp_avg,
                    exp_avg_sq: &mut self.exp_avg_sq,
                    step: &mut self.count,
                    grad_scale: &mut grad_scale,
                    found_inf: &mut skipped,
                },
                AdamWConstants { lr, beta1, beta2, weight_decay, eps },
            )?;
            parameters.refresh();
            Ok(UpdateFigures { gradient_norm, skipped })
        })
    }
}

/// Norm of a flat f32 buffer, an f32 scalar.
///
/// libtorch adds the squares of a whole buffer up in f32, thread by thread: of the 40 million gradients of DUPA-S/2 that
/// loses 0.2 %, because most squares are smaller than the last digit of the sum. So norms of pieces are taken first.
fn norm(flat: &Tensor) -> Tensor {
    const PIECE: i64 = 4096;
    let (len, pieces) = (flat.numel() as i64, flat.numel() as i64 / PIECE);
    let of_pieces = flat.narrow(0, 0, pieces * PIECE).view([pieces, PIECE]).norm_scalaropt_dim(2, 1, false);
    Tensor::cat(&[of_pieces, flat.narrow(0, pieces * PIECE, len - pieces * PIECE)], 0).norm()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::layout::{Init, ParameterSpec};

    #[test]
    fn the_rate_warms_up_stays_and_falls_to_zero() {
        let config = OptimiserConfig { lr: 1.0, warmup_steps: 10, decay_fraction: 0.3, ..Default::default() };
        assert!((config.lr_at(0, 100) - 0.1).abs() < 1e-12);
        assert_eq!(config.lr_at(50, 100), 1.0);
        assert!((config.lr_at(85, 100) - 0.5).abs() < 1e-12);
        assert!(config.lr_at(99, 100) > 0.0);
        assert_eq!(OptimiserConfig::default().lr_at(12345, 20000), 1e-4);
    }

    #[test]
    fn the_norm_of_many_small_gradients_loses_nothing() {
        // One large value and 2^25 + 5 whose squares vanish beside its square one by one: together they are half of it.
        let flat = Tensor::full([(1 << 25) + 5], 2f64.powi(-13), (Kind::Float, Device::Cpu));
        let _ = flat.get(0).fill_(1.0);
        let exact = (1.0 + ((1 << 25) + 4) as f64 * 2f64.powi(-26)).sqrt();
        assert!((norm(&flat).double_value(&[]) / exact - 1.0).abs() < 1e-5);
        assert_eq!(norm(&Tensor::from_slice(&[3.0f32, 4.0])).double_value(&[]), 5.0);
    }

    #[test]
    fn a_step_with_a_gradient_that_is_not_finite_changes_nothing() {
        let spec = ParameterSpec { name: "w".into(), shape: vec![5], init: Init::Normal { std: 1.0 } };
        let mut parameters = Parameters::init(vec![spec], 0, Device::Cpu, Kind::Float).unwrap();
        let mut adamw = AdamW::new(OptimiserConfig::default(), 5, Device::Cpu);
        let _ = parameters.gradients.fill_(1.0);
        adamw.update(&mut parameters, 0.1).unwrap();
        let before = (parameters.master.copy(), adamw.exp_avg.copy(), adamw.exp_avg_sq.copy());
        let _ = parameters.gradients.get(2).fill_(f64::NAN);
        let figures = adamw.update(&mut parameters, 0.1).unwrap();
        assert_eq!(figures.skipped.double_value(&[]), 1.0);
        assert_eq!(adamw.count.double_value(&[]), 1.0);
        assert!(parameters.master.equal(&before.0));
        assert!(adamw.exp_avg.equal(&before.1) && adamw.exp_avg_sq.equal(&before.2));
    }
}
