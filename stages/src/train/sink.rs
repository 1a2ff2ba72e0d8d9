//! The end of a training flow: every batch that arrives is a step.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use pipeline::{BoxError, End, Interrupt, Sink, Slab};
use tch::{Kind, Tensor, no_grad};

use super::checkpoint::{self, Marks};
use super::run_dir::{Metrics, RunDir};
use super::step::{StepFigures, Trainer};
use crate::data::HostBatch;
use crate::load::feed::{Scaling, to_latents};

/// Called with every line of metrics as it is written, for a person to read.
pub type OnMetrics = Box<dyn FnMut(&Metrics) + Send>;

/// Trains on batches; writes metrics and checkpoints into the run directory.
pub struct TrainSteps {
    trainer: Trainer,
    scaling: Scaling,
    run_dir: RunDir,
    marks: Marks,
    interrupt: Interrupt,
    on_metrics: OnMetrics,
    window: Window,
    saved: Option<u64>,
    idle_since: Option<Instant>,
}

/// What a finished or interrupted run reports.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSummary {
    /// Steps done in all.
    pub step: u64,
    /// Whether the run was interrupted before its last step.
    pub interrupted: bool,
}

impl TrainSteps {
    /// `marks` go into every checkpoint. `interrupt` is looked at after every step: the run then ends at
    /// once, with a checkpoint, instead of training on what is still in flight.
    pub fn new(
        trainer: Trainer,
        scaling: Scaling,
        run_dir: RunDir,
        marks: Marks,
        interrupt: Interrupt,
        on_metrics: OnMetrics,
    ) -> Self {
        let window = Window::begin(&trainer);
        let saved = (trainer.step > 0).then_some(trainer.step);
        Self {
            trainer,
            scaling,
            run_dir,
            marks,
            interrupt,
            on_metrics,
            window,
            saved,
            idle_since: Some(Instant::now()),
        }
    }

    fn step(&mut self, host: &HostBatch) -> Result<(), BoxError> {
        let views = self.trainer.draw_views()?;
        let rows = 0..host.shape[0];
        let device = self.trainer.device();
        let batch = no_grad(|| to_latents(host, rows, Some(&views.posterior_noise), self.scaling, device))?;
        let figures = self.trainer.step(&batch, &views)?;
        self.window.add(&figures);
        Ok(())
    }

    fn save(&mut self) -> Result<(), BoxError> {
        if self.saved != Some(self.trainer.step) {
            let keep = self.trainer.config.train.keep_checkpoints;
            checkpoint::save(&self.trainer, &self.run_dir.checkpoints(), &self.marks, keep)?;
            self.saved = Some(self.trainer.step);
        }
        Ok(())
    }

    fn log(&mut self) -> Result<(), BoxError> {
        if self.window.steps == 0 {
            return Ok(());
        }
        let metrics = self.window.read(&self.trainer);
        self.run_dir.append_metrics(&metrics)?;
        (self.on_metrics)(&metrics);
        self.window = Window::begin(&self.trainer);
        Ok(())
    }
}

impl Sink for TrainSteps {
    type In = Slab<HostBatch>;
    type Output = TrainSummary;

    fn consume(&mut self, host: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        if let Some(since) = self.idle_since.take() {
            self.window.waited += since.elapsed();
        }
        if host.batch != self.trainer.step {
            return Err(format!("batch {} arrived at step {}", host.batch, self.trainer.step).into());
        }
        self.step(&host)?;
        drop(host);

        let schedule = &self.trainer.config.train;
        let (step, last) = (self.trainer.step, self.trainer.step >= schedule.steps);
        // The first step is logged on its own: it shows what the loss starts from.
        let (log, save) = (step == 1 || step.is_multiple_of(schedule.log_every), schedule.checkpoint_every);
        let stop = last || self.interrupt.requested();
        if log || stop {
            self.log()?;
        }
        if stop || step.is_multiple_of(save) {
            self.save()?;
        }
        self.idle_since = Some(Instant::now());
        Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn finish(mut self, _: End) -> Result<TrainSummary, BoxError> {
        self.log()?;
        self.save()?;
        let step = self.trainer.step;
        Ok(TrainSummary { step, interrupted: step < self.trainer.config.train.steps })
    }
}

impl fmt::Debug for TrainSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainSteps").field("step", &self.trainer.step).finish_non_exhaustive()
    }
}

/// Figures of the steps since the last line, summed on the device and read back once a line.
struct Window {
    sums: BTreeMap<&'static str, Tensor>,
    skipped: Tensor,
    steps: u64,
    began: Instant,
    waited: Duration,
}

impl Window {
    fn begin(trainer: &Trainer) -> Self {
        let zero = || Tensor::zeros([], (Kind::Float, trainer.device()));
        let names = ["velocity", "alignment", "cosine", "norm"];
        let sums = names.into_iter().map(|name| (name, zero())).collect();
        Self { sums, skipped: zero(), steps: 0, began: Instant::now(), waited: Duration::ZERO }
    }

    fn add(&mut self, figures: &StepFigures) {
        let StepFigures { velocity, alignment, condition_cosine, gradient_norm, skipped } = figures;
        let values =
            [("velocity", velocity), ("alignment", alignment), ("cosine", condition_cosine), ("norm", gradient_norm)];
        // The figures of a skipped step are not finite, and would hide those of all the others.
        let counts = skipped.eq(0.0);
        for (name, value) in values {
            if let Some(sum) = self.sums.get_mut(name) {
                let _ = sum.g_add_(&value.where_self(&counts, &value.zeros_like()));
            }
        }
        let _ = self.skipped.g_add_(skipped);
        self.steps += 1;
    }

    fn read(&self, trainer: &Trainer) -> Metrics {
        let schedule = &trainer.config.train;
        let skipped = self.skipped.double_value(&[]);
        let mean = |name: &str| self.sums[name].double_value(&[]) / (self.steps as f64 - skipped);
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        Metrics {
            step: trainer.step,
            images: trainer.step * schedule.batch,
            velocity_loss: mean("velocity"),
            alignment_loss: mean("alignment"),
            condition_cosine: mean("cosine"),
            gradient_norm: mean("norm"),
            skipped: skipped.round() as u64,
            lr: trainer.config.optimiser.lr_at(trainer.step - 1, schedule.steps),
            images_per_s: (self.steps * schedule.batch) as f64 / seconds,
            data_wait: self.waited.as_secs_f64() / seconds,
        }
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
            window.add(&StepFigures {
                velocity: scalar(value),
                alignment: scalar(value),
                condition_cosine: scalar(value),
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
            window.read(&trainer)
        };
        assert_eq!((metrics.velocity_loss, metrics.gradient_norm, metrics.skipped), (2.0, 2.0, 1));
    }
}
