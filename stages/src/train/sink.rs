//! The end of a training flow: every batch that arrives is a step.
//!
//! Two things are told apart. The time until the first batch is that of the loader's start, once a process. A wait is
//! the time from the end of a step until the next batch is here, on the thread that trains: what the loader costs. A GPU
//! that still has work queued loses less.
//!
//! Where several ranks train together, each has such an end of its own, with its slice of every batch. Rank 0 alone writes. Before
//! each step all of them say whether they are to stop, so that they stop at the same one.
//!
//! Checkpoints are copied on the thread that trains and written on one of their own, so a step waits for the copy alone. A
//! second one may be copied while the first is being written, a third waits: two copies of 16 bytes a parameter at most.
//! That one could not be written ends the run, at the step after that. The end of a run, whichever, waits for the disk.

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

use pipeline::{Background, BoxError, End, Interrupt, Sink, Slab};

use super::checkpoint::{Keep, Marks, Snapshot, Writer};
use super::grids::Grids;
use super::optimiser::UpdateFigures;
use super::run_dir::{Metrics, RunDir, StageFigures};
use super::step::{StepFigures, Trainer};
use super::tensorboard::{self, EventLog};
use super::together::Together;
use super::window::Window;
use crate::data::HostBatch;
use crate::load::LoadError;
use crate::load::feed::{Feeder, Scaling};
use crate::load::waits::Waits;
use crate::world::WorldError;
use crate::world::peers::Joining;

/// Who is told what a person should read.
pub struct Listener {
    /// Every line of metrics as it is written.
    pub on_metrics: Box<dyn FnMut(&Metrics) + Send>,
    /// Every block that was skipped because it cannot be read.
    pub on_fault: Box<dyn FnMut(&LoadError) + Send>,
    /// What a person should know and need not act on.
    pub on_note: Box<dyn FnMut(&str) + Send>,
    /// Asked for what the stages of the flow did, if that is news.
    pub stages: Box<dyn FnMut() -> Option<Vec<StageFigures>> + Send>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

/// Trains on batches; writes metrics and checkpoints into the run directory.
///
/// Dropping it unfinished, because the flow failed, still saves the steps that were done.
pub struct TrainSteps {
    trainer: Trainer,
    feeder: Feeder,
    run_dir: RunDir,
    marks: Marks,
    interrupt: Interrupt,
    listener: Listener,
    /// As last known.
    stages: Vec<StageFigures>,
    window: Window,
    /// The step that this process continues from.
    began: u64,
    /// Begun with the first line, so that a run that does nothing leaves nothing.
    events: Option<EventLog>,
    /// The last step whose state was handed to the writer.
    saved: Option<u64>,
    /// Until one fails.
    grids: Option<Grids>,
    /// Begun with the first checkpoint.
    writer: Option<Background<Snapshot>>,
    /// False while a step changes the trainer.
    whole: bool,
    /// The end of the last step; before the first, when the flow was made.
    idle_since: Instant,
    first_batch: Option<Duration>,
    /// Those of all windows that are written.
    waits: Waits,
    /// Steps since the last line with one that was not skipped.
    lost: u64,
    /// How to find the other ranks, until it has found them with the first batch.
    joining: Option<Joining>,
    together: Option<Together>,
    /// Whether this is rank 0, or alone.
    leads: bool,
    /// Whether all ranks know that the run ends here.
    agreed: bool,
}

/// A run ends where so many steps and more were skipped one after the other: the weights are no longer changed, and nothing else
/// will make gradients finite.
const HOPELESS: u64 = 100;

/// What a finished or interrupted run reports.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSummary {
    /// Steps done in all.
    pub step: u64,
    /// Whether the run was interrupted before its last step.
    pub interrupted: bool,
    /// Time from [`TrainSteps::new`] to the first batch; `None` if none came.
    pub first_batch: Option<Duration>,
    /// All waits of this process for a batch, that for the first not among them.
    pub waits: Waits,
}

impl TrainSteps {
    /// `marks` go into every checkpoint. `interrupt` is looked at after every step: the run then ends at
    /// once, with a checkpoint, instead of training on what is still in flight. The time until the first batch counts
    /// from here: the flow should start now.
    pub fn new(
        trainer: Trainer,
        scaling: Scaling,
        run_dir: RunDir,
        marks: Marks,
        interrupt: Interrupt,
        listener: Listener,
    ) -> Self {
        let feeder = Feeder::new(trainer.device(), scaling);
        let window = Window::begin(&trainer);
        let began = trainer.step;
        Self {
            trainer,
            feeder,
            run_dir,
            marks,
            interrupt,
            listener,
            stages: Vec::new(),
            window,
            began,
            events: None,
            saved: (began > 0).then_some(began),
            grids: None,
            writer: None,
            whole: true,
            idle_since: Instant::now(),
            first_batch: None,
            waits: Waits::new(),
            lost: 0,
            joining: None,
            together: None,
            leads: true,
            agreed: false,
        }
    }

    /// Makes sample grids at the cadence of the configuration.
    pub fn with_grids(mut self, grids: Grids) -> Self {
        self.grids = Some(grids);
        self
    }

    /// Makes it one of several ranks, which meet at the first batch. The trainer of rank 0 has the state that the run goes on from.
    pub fn together(mut self, joining: Joining) -> Self {
        self.leads = joining.rank == 0;
        self.joining = Some(joining);
        self
    }

    /// All ranks stop where one is to.
    fn is_to_stop(&mut self) -> Result<bool, WorldError> {
        if let Some(joining) = self.joining.take() {
            let begun = Instant::now();
            self.whole = false;
            self.together = Some(Together::join(&joining, &mut self.trainer)?);
            self.whole = true;
            self.began = self.trainer.step;
            self.window.began += begun.elapsed();
        }
        let Some(together) = &self.together else { return Ok(false) };
        self.agreed = together.peers.any(self.interrupt.requested())?;
        Ok(self.agreed)
    }

    fn arrived(&mut self) {
        let waited = self.idle_since.elapsed();
        if self.first_batch.is_none() {
            self.first_batch = Some(waited);
            self.window.first_batch = Some(waited);
            self.window.began = Instant::now();
        } else {
            self.window.waits.add(waited);
        }
    }

    /// `look` asks for figures of the features.
    fn step(&mut self, host: Slab<HostBatch>, look: bool) -> Result<(), BoxError> {
        self.whole = false;
        let rows = host.rows.start as i64;
        let views = self.trainer.draw_views()?.slice(rows, host.labels.len() as i64);
        let batch = self.feeder.feed(host, Some(&views.posterior_noise))?;
        let computed = self.trainer.compute_gradients(&batch, &views, look);
        // Nothing but the gradients has changed where it failed.
        self.whole = computed.is_err();
        let (losses, features) = computed.map_err(|error| match self.together {
            Some(_) => WorldError::Collective(error),
            None => WorldError::Native(error),
        })?;
        let UpdateFigures { gradient_norm, skipped } = self.trainer.update()?;
        self.window.add(StepFigures { losses, features, gradient_norm, skipped });
        self.whole = true;
        Ok(())
    }

    /// All ranks must still have the same weights; what differs is not saved.
    fn check(&mut self) -> Result<(), WorldError> {
        let Some(together) = &self.together else { return Ok(()) };
        let checked = together.check(&self.trainer);
        self.whole &= !matches!(checked, Err(WorldError::Diverged { .. }));
        checked
    }

    /// Hands the state to the writer, unless it has it already.
    fn save(&mut self) -> Result<(), BoxError> {
        if !self.leads || self.saved == Some(self.trainer.step) {
            return Ok(());
        }
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.begin_writing()?,
        };
        writer.hand_over(|| Snapshot::of(&self.trainer))?;
        self.writer = Some(writer);
        self.saved = Some(self.trainer.step);
        Ok(())
    }

    /// A grid is an aside: that it cannot be made is said once, and the run goes on without any. Its time is none of the
    /// training's.
    fn sample(&mut self) -> Result<(), BoxError> {
        let Some(grids) = &mut self.grids else { return Ok(()) };
        let began = Instant::now();
        // libtorch's errors come as panics, most likely for want of memory on the device.
        let made = catch_unwind(AssertUnwindSafe(|| grids.make(&self.trainer)));
        let made = made.unwrap_or_else(|payload| {
            let text = payload.downcast_ref::<String>().map_or("libtorch failed", String::as_str);
            Err(text.lines().next().unwrap_or_default().into())
        });
        match made {
            Ok(grid) => {
                let step = self.trainer.step;
                self.events()?.append_image(
                    step,
                    SystemTime::now(),
                    "samples",
                    grid.picture.dimensions(),
                    &grid.png,
                )?;
            }
            Err(error) => {
                (self.listener.on_note)(&format!("no more sample grids will be made: {error}"));
                self.grids = None;
            }
        }
        self.window.began += began.elapsed();
        Ok(())
    }

    fn events(&mut self) -> Result<&mut EventLog, BoxError> {
        let events = match self.events.take() {
            Some(events) => events,
            None => EventLog::begin(&self.run_dir.tensorboard(), self.began, SystemTime::now())?,
        };
        Ok(self.events.insert(events))
    }

    fn begin_writing(&self) -> Result<Background<Snapshot>, BoxError> {
        let schedule = &self.trainer.config.train;
        let keep = Keep { last: schedule.keep_checkpoints, every: schedule.keep_every };
        let specs = self.trainer.parameters.specs().to_vec();
        let writer = Writer::new(self.run_dir.checkpoints(), specs, self.marks.clone(), keep);
        let write = move |snapshot: Snapshot| {
            writer.write(&snapshot)?;
            Ok(())
        };
        Ok(Background::start("checkpoint", write)?)
    }

    /// Waits until everything that was handed over is on the disk.
    fn settle(&mut self) -> Result<(), BoxError> {
        let written = self.writer.take().map_or(Ok(()), |mut writer| writer.finish());
        if written.is_err() {
            self.saved = None;
        }
        written
    }

    /// Writes a line for the steps since the one before, if there are any; the last one also says how the whole was.
    fn log(&mut self, last: bool) -> Result<(), BoxError> {
        if self.window.steps == 0 {
            return Ok(());
        }
        self.waits.merge(&self.window.waits);
        let mut metrics = self.window.read(&self.trainer, self.together.as_ref())?;
        self.check()?;
        metrics.run_wait = last.then(|| self.waits.figures());
        if let Some(stages) = (self.listener.stages)() {
            self.stages = stages;
        }
        metrics.stages.clone_from(&self.stages);
        if self.leads {
            self.run_dir.append_metrics(&metrics)?;
        }
        self.lost = if metrics.skipped == self.window.steps { self.lost + metrics.skipped } else { 0 };
        if self.lost >= HOPELESS {
            return Err(format!(
                "the gradients of the last {} steps were not finite, and none of them was done; the weights are as they were: \
                 lower optimiser.lr or set optimiser.warmup_steps, or compute with --precision f32",
                self.lost
            )
            .into());
        }
        if self.leads {
            self.events()?.append(metrics.step, SystemTime::now(), &tensorboard::scalars(&metrics))?;
            (self.listener.on_metrics)(&metrics);
        }
        self.window = Window::begin(&self.trainer);
        Ok(())
    }
}

impl TrainSteps {
    /// A step, and what its number asks for.
    fn take(&mut self, host: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        self.arrived();
        if self.is_to_stop()? {
            self.log(true)?;
            self.save()?;
            return Ok(ControlFlow::Break(()));
        }
        if host.batch != self.trainer.step {
            return Err(format!("batch {} arrived at step {}", host.batch, self.trainer.step).into());
        }
        self.window.bad_samples += host.filled.len() as u64;
        for fault in &host.faults {
            (self.listener.on_fault)(fault);
        }
        let schedule = &self.trainer.config.train;
        let (step, save) = (self.trainer.step + 1, schedule.checkpoint_every);
        let last = step >= schedule.steps;
        // The first step is logged on its own: it shows what the loss starts from.
        let log = step == 1 || step.is_multiple_of(schedule.log_every);
        let sample = schedule.sample_every > 0 && (last || step.is_multiple_of(schedule.sample_every));
        self.step(host, log || last)?;
        // Several ranks ask each other before the next step.
        let stop = last || self.together.is_none() && self.interrupt.requested();
        self.agreed = last;
        if log || stop {
            self.log(stop)?;
        }
        // Before the checkpoint: a run that is killed here and continued makes the grid again.
        if sample {
            self.sample()?;
        }
        if self.writer.as_ref().is_some_and(Background::has_failed) {
            self.settle()?;
        }
        if stop || step.is_multiple_of(save) {
            if !log {
                self.check()?;
            }
            self.save()?;
        }
        self.idle_since = Instant::now();
        Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// The others hear why this rank ends, unless it is they who ended. An error of a collective says little: what became of the other
    /// ranks says more.
    fn told<T>(&mut self, result: Result<T, BoxError>) -> Result<T, BoxError> {
        let Some(together) = &self.together else { return result };
        result.map_err(|error| {
            // Before anything is waited for: who waits for this rank in a backward pass notices by it.
            self.trainer.leave();
            let error = match error.downcast::<WorldError>() {
                Ok(error) => together.peers.blame(*error),
                Err(other) => {
                    together.peers.tell_failure(&other.to_string());
                    return other;
                }
            };
            match &error {
                WorldError::Failed(_) | WorldError::Torn(_) => {}
                // Its store is gone with it.
                WorldError::Lost { whom, .. } if whom == "rank 0" => {}
                _ => together.peers.tell_failure(&error.to_string()),
            }
            error.into()
        })
    }

    fn close(&mut self) -> Result<(), BoxError> {
        // Its batches ended, because it was interrupted; the others do not know, and may wait for it to join them.
        if !self.agreed {
            self.is_to_stop()?;
        }
        self.log(true)?;
        self.save()?;
        self.settle()?;
        // A checkpoint that could not be written is everybody's failure, and rank 0 holds the keys of all.
        self.together.as_ref().map_or(Ok(()), |together| together.peers.wait_for_all())?;
        Ok(())
    }
}

impl Sink for TrainSteps {
    type In = Slab<HostBatch>;
    type Output = TrainSummary;

    fn consume(&mut self, host: Slab<HostBatch>) -> Result<ControlFlow<()>, BoxError> {
        let taken = self.take(host);
        self.told(taken)
    }

    fn finish(mut self, _: End) -> Result<TrainSummary, BoxError> {
        let closed = self.close();
        self.told(closed)?;
        let step = self.trainer.step;
        let interrupted = step < self.trainer.config.train.steps;
        Ok(TrainSummary { step, interrupted, first_batch: self.first_batch, waits: self.waits.clone() })
    }
}

impl Drop for TrainSteps {
    /// A run that fails, because a block cannot be read or a disk is full, keeps the steps that were done.
    fn drop(&mut self) {
        if let Some(together) = self.together.as_ref().filter(|_| std::thread::panicking()) {
            // Other ranks of this process would wait for what only its end tells them.
            self.trainer.leave();
            together.peers.tell_failure("libtorch failed; its own message says how");
        }
        // The failure itself is reported; that a checkpoint failed too changes nothing about it.
        let _ = self.settle();
        if self.whole && self.trainer.step > self.began {
            let _ = self.save().and_then(|()| self.settle());
        }
    }
}

impl fmt::Debug for TrainSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainSteps").field("step", &self.trainer.step).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
