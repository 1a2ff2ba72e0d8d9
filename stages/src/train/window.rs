//! What the steps between two lines of metrics come to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::run_dir::{FeatureMetrics, Metrics, WaitMs};
use super::step::{StepFigures, StepLosses, Trainer};
use super::together::Together;
use crate::load::waits::Waits;
use crate::method::objective::features::FeatureFigures;
use crate::world::WorldError;

/// Figures of the steps since the last line, summed on the device and read back once a line.
#[derive(Debug)]
pub(super) struct Window {
    sums: BTreeMap<&'static str, Tensor>,
    skipped: Tensor,
    /// Of the last step that was looked at.
    features: Option<FeatureFigures>,
    pub(super) steps: u64,
    /// The end of the window before; in the first window of a process, when the first batch came.
    pub(super) began: Instant,
    pub(super) first_batch: Option<Duration>,
    pub(super) waits: Waits,
    /// Rows that were filled in.
    pub(super) bad_samples: u64,
}

impl Window {
    pub(super) fn begin(trainer: &Trainer) -> Self {
        let zero = || Tensor::zeros([], (Kind::Float, trainer.device()));
        let names = ["velocity", "alignment", "dispersive", "contrastive", "norm"];
        let sums = names.into_iter().map(|name| (name, zero())).collect();
        Self {
            sums,
            skipped: zero(),
            features: None,
            steps: 0,
            began: Instant::now(),
            first_batch: None,
            waits: Waits::new(),
            bad_samples: 0,
        }
    }

    pub(super) fn add(&mut self, figures: StepFigures) {
        let StepFigures { losses, features, gradient_norm, skipped } = figures;
        let StepLosses { velocity, alignment, dispersive, contrastive } = losses;
        let values = [
            ("velocity", velocity),
            ("alignment", alignment),
            ("dispersive", dispersive),
            ("contrastive", contrastive),
            ("norm", gradient_norm),
        ];
        // The figures of a skipped step are not finite, and would hide those of all the others.
        let counts = skipped.eq(0.0);
        for (name, value) in values {
            if let Some(sum) = self.sums.get_mut(name) {
                let _ = sum.g_add_(&value.where_self(&counts, &value.zeros_like()));
            }
        }
        let _ = self.skipped.g_add_(&skipped);
        self.features = features.or(self.features.take());
        self.steps += 1;
    }

    /// Those of all ranks, which call it together; waits, features and the time are this one's.
    pub(super) fn read(&self, trainer: &Trainer, together: Option<&Together>) -> Result<Metrics, WorldError> {
        let (schedule, objective) = (&trainer.config.train, &trainer.config.objective);
        let skipped = self.skipped.double_value(&[]);
        let sums: Vec<&Tensor> = self.sums.values().collect();
        let (means, bad_samples) = match together {
            None => (sums.iter().map(|sum| sum.double_value(&[])).collect(), self.bad_samples),
            Some(all) => (all.means(&sums)?, all.peers.sum(&[self.bad_samples as f64])?[0] as u64),
        };
        let means: BTreeMap<&str, f64> = self.sums.keys().copied().zip(means).collect();
        let mean = |name: &str| means[name] / (self.steps as f64 - skipped);
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        Ok(Metrics {
            step: trainer.step,
            images: trainer.step * schedule.batch,
            velocity_loss: mean("velocity"),
            alignment_loss: mean("alignment"),
            dispersive_loss: (objective.dispersive > 0.0).then(|| mean("dispersive")),
            contrastive_distance: (objective.contrastive > 0.0).then(|| mean("contrastive")),
            features: self.features.as_ref().map(FeatureMetrics::of),
            gradient_norm: mean("norm"),
            skipped: skipped.round() as u64,
            lr: trainer.config.optimiser.lr_at(trainer.step - 1, schedule.steps),
            images_per_s: (self.steps * schedule.batch) as f64 / seconds,
            data_wait: self.waits.total().as_secs_f64() / seconds,
            wait_ms: WaitMs::of(&self.waits),
            bad_samples,
            first_batch_s: self.first_batch.map(|wait| wait.as_secs_f64()),
            run_wait: None,
            stages: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_step_does_not_hide_the_figures_of_the_others() {
        let trainer = super::super::equality::trainer(1, Kind::Float);
        let mut window = Window::begin(&trainer);
        let mut add = |value: f64, skipped: f64| {
            let scalar = |value: f64| Tensor::from(value as f32);
            let [velocity, alignment, dispersive, contrastive] = [(); 4].map(|()| scalar(value));
            window.add(StepFigures {
                losses: StepLosses { velocity, alignment, dispersive, contrastive },
                features: None,
                gradient_norm: scalar(value),
                skipped: scalar(skipped),
            });
        };
        add(1.0, 0.0);
        add(f64::NAN, 1.0);
        add(3.0, 0.0);
        let metrics = {
            let mut trainer = trainer;
            trainer.step = 3;
            window.read(&trainer, None).unwrap()
        };
        assert_eq!((metrics.velocity_loss, metrics.gradient_norm, metrics.skipped), (2.0, 2.0, 1));
    }
}
