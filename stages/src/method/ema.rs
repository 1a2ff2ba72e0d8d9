//! The exponential moving average of the weights, which is what is sampled and evaluated.

use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

/// How the average forgets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaConfig {
    /// Decay of a step: average = decay * average + (1 - decay) * weights.
    pub decay: f64,
    /// Whether early steps forget faster, by min(decay, (1 + n) / (10 + n)) at update n: a short run is then not
    /// dominated by its random start. Off in the paper's presets.
    pub warmup: bool,
}

impl EmaConfig {
    /// Decay of update `n`, counted from 1. `n` is the step, those that were skipped among them: only the device knows which
    /// were, and a few steps more or less make hardly a difference.
    pub fn decay_at(&self, n: u64) -> f64 {
        if self.warmup { self.decay.min((1.0 + n as f64) / (10.0 + n as f64)) } else { self.decay }
    }
}

/// One update of the flat f32 buffer `average`: average <- decay average + (1 - decay) weights. `skipped` is a f32 scalar on the
/// device: 1 leaves the average as it was (the optimiser skipped the step too), without a host synchronisation.
pub fn update(average: &mut Tensor, weights: &Tensor, decay: f64, skipped: &Tensor) {
    no_grad(|| {
        let weight = (1.0 - skipped) * (1.0 - decay);
        let _ = average.lerp_tensor_(weights, &weight);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warm_up_ends_at_the_decay() {
        let ema = EmaConfig { decay: 0.99, warmup: true };
        assert_eq!(ema.decay_at(1), 2.0 / 11.0);
        assert_eq!(ema.decay_at(100_000), 0.99);
        assert_eq!(EmaConfig { decay: 0.99, warmup: false }.decay_at(1), 0.99);
    }

    #[test]
    fn a_skipped_step_leaves_the_average() {
        let mut average = Tensor::from_slice(&[1.0f32, 2.0]);
        let weights = Tensor::from_slice(&[3.0f32, f32::NAN]);
        update(&mut average, &weights.nan_to_num(0.0, None, None), 0.5, &Tensor::from(1.0f32));
        assert_eq!(Vec::<f32>::try_from(&average).unwrap(), [1.0, 2.0]);
        update(&mut average, &Tensor::from_slice(&[3.0f32, 4.0]), 0.5, &Tensor::from(0.0f32));
        assert_eq!(Vec::<f32>::try_from(&average).unwrap(), [2.0, 3.0]);
    }
}
