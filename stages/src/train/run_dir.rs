//! The run directory: what a run leaves behind, and what it continues from.
//!
//! ```text
//! RUN/config.toml        the resolved configuration, and what it was trained on
//! RUN/metrics.jsonl      one object a line: step, images, losses, rates, waits for data
//! RUN/tensorboard/       the same as event files of TensorBoard
//! RUN/checkpoints/       step-00001000.safetensors ..
//! RUN/samples/           step-00001000.png .., if the run makes sample grids
//! RUN/report.html        curves and grids on one page, written when the run ends or is stopped
//! RUN/lock               held by the process that writes all this
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pipeline::{Report, StageReport};
use serde::{Deserialize, Deserializer, Serialize};

use crate::load::waits::{WaitFigures, Waits};
use crate::method::objective::features::{FeatureFigures, GAPS, Spread};

/// A run directory could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct RunDirError {
    path: PathBuf,
    source: io::Error,
}

/// One line of `metrics.jsonl`; losses and norms are means over the steps since the line before that were not
/// skipped, and not a number (`null` in the file) if all of them were.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Optimiser steps done.
    pub step: u64,
    /// Images seen, views not counted.
    pub images: u64,
    /// Eq. 7.
    #[serde(deserialize_with = "null_is_nan")]
    pub velocity_loss: f64,
    /// Eq. 6.
    #[serde(deserialize_with = "null_is_nan")]
    pub alignment_loss: f64,
    /// Dispersive loss; none without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispersive_loss: Option<f64>,
    /// Mean squared distance to the targets of other images; none without contrastive flow matching.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrastive_distance: Option<f64>,
    /// The aligned features in the last of these steps, of the first micro-batch of rank 0; none with one view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<FeatureMetrics>,
    /// Norm of the gradients before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub gradient_norm: f64,
    /// Steps of these that were skipped because a gradient was not finite.
    pub skipped: u64,
    /// Learning rate of the last of these steps.
    pub lr: f64,
    /// Images a second.
    pub images_per_s: f64,
    /// Share of the time in which the trainer waited for data; the time until the first batch does not count.
    pub data_wait: f64,
    /// How long it waited for single batches; none in the line of the first batch alone, and in lines of old programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<WaitMs>,
    /// Samples of these steps whose block could not be read, and which were filled in.
    #[serde(default)]
    pub bad_samples: u64,
    /// In the first line of a process: seconds from the start of the flow to the first batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_batch_s: Option<f64>,
    /// In the last line of a process that came to its end: all its waits for data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_wait: Option<WaitFigures>,
    /// What the stages of the flow did since the process began, as last known; empty in a line that came before that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageFigures>,
}

/// Features of the views of a batch: [`crate::method::objective::features`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureMetrics {
    /// Conditions, before the projector.
    pub condition: SpreadMetrics,
    /// Behind the projector.
    pub projected: SpreadMetrics,
    /// Cosine of conditions by |t_i - t_j| in fifths; none where no pair of views was so far apart.
    pub cosine_by_gap: Vec<Option<f64>>,
}

/// How features of a batch are spread: [`crate::method::objective::features::Spread`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpreadMetrics {
    /// Cosine between views of an image.
    #[serde(deserialize_with = "null_is_nan")]
    pub cosine: f64,
    /// Cosine between views of different images; not a number (`null` in the file) where the micro-batch has one image.
    #[serde(deserialize_with = "null_is_nan")]
    pub other_cosine: f64,
    /// Effective number of directions.
    #[serde(deserialize_with = "null_is_nan")]
    pub rank: f64,
    /// Deviation of unit vectors, from 0 (one direction) to 1.
    #[serde(deserialize_with = "null_is_nan")]
    pub deviation: f64,
}

impl FeatureMetrics {
    /// Reads figures back from the device.
    pub fn of(figures: &FeatureFigures) -> Self {
        let spread = |spread: &Spread| {
            let [cosine, other_cosine, rank, deviation] =
                [&spread.cosine, &spread.other_cosine, &spread.rank, &spread.deviation]
                    .map(|value| value.double_value(&[]));
            SpreadMetrics { cosine, other_cosine, rank, deviation }
        };
        let gaps = (0..GAPS).map(|gap| figures.cosine_by_gap.double_value(&[gap]));
        Self {
            condition: spread(&figures.condition),
            projected: spread(&figures.projected),
            cosine_by_gap: gaps.map(|cosine| (!cosine.is_nan()).then_some(cosine)).collect(),
        }
    }
}

/// What one stage of the training flow did with the time of its threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageFigures {
    /// Its name.
    pub name: String,
    /// Threads.
    pub workers: usize,
    /// Share of their time in which they worked.
    pub busy: f64,
    /// In which they waited for input.
    pub starved: f64,
    /// In which they waited for room downstream or for a free buffer.
    pub blocked: f64,
    /// Items that lay in the queue before it when it took one, in the mean.
    pub queued: f64,
    /// Items that fit into that queue.
    pub room: usize,
    /// How often it found nothing ready, for 1,000 items: no more than that often did its threads wait in the kernel.
    pub waits_per_1000: f64,
}

impl StageFigures {
    /// Those of all stages, in thousandths.
    pub fn of(report: &Report) -> Vec<Self> {
        let of_stage = |stage: &StageReport| {
            let time = (report.wall.as_secs_f64() * stage.workers as f64).max(1e-9);
            let rounded = |value: f64| (value * 1e3).round() / 1e3;
            let share = |part: Duration| rounded(part.as_secs_f64() / time);
            Self {
                name: stage.name.clone(),
                workers: stage.workers,
                busy: share(stage.busy),
                starved: share(stage.starved),
                blocked: share(stage.blocked),
                queued: rounded(stage.queued_mean),
                room: stage.room,
                waits_per_1000: rounded(1e3 * stage.waits as f64 / (stage.items as f64).max(1.0)),
            }
        };
        report.stages.iter().map(of_stage).collect()
    }
}

/// Waits for a batch, in milliseconds; the wait for the first batch of a process is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WaitMs {
    /// Half were not longer (to 1.6 %, like all quantiles).
    pub p50: f64,
    /// 99 of 100 were not longer.
    pub p99: f64,
    /// 999 of 1,000 were not longer: the longest, where a line has fewer steps.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl WaitMs {
    /// The figures of `waits`, or `None` if there was no wait.
    pub fn of(waits: &Waits) -> Option<Self> {
        let WaitFigures { count, p50_ms, p99_ms, p999_ms, max_ms, .. } = waits.figures();
        (count > 0).then_some(Self { p50: p50_ms, p99: p99_ms, p999: p999_ms, max: max_ms })
    }
}

/// JSON has no NaN; serde_json writes it as null.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// An open run directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Names a run directory; nothing is read or made.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Where sample grids are.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// `report.html`.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Where the event files for TensorBoard are.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// The text of `config.toml`, or `None` where no run has begun.
    pub fn config(&self) -> Result<Option<String>, RunDirError> {
        let path = self.root.join("config.toml");
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(at(&path)),
        }
    }

    /// Makes the directory and writes `config.toml`, whole or not at all.
    pub fn begin(&self, config: &str) -> Result<(), RunDirError> {
        fs::create_dir_all(&self.root).map_err(at(&self.root))?;
        replace(&self.root.join("config.toml"), config.as_bytes())
    }

    /// Keeps other processes from writing the run as long as the file is kept; makes the directory where there is none.
    ///
    /// # Errors
    /// Another process keeps it.
    pub fn lock(&self) -> Result<File, RunDirError> {
        let path = self.root.join("lock");
        fs::create_dir_all(&self.root).map_err(at(&self.root))?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(at(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let sentence = "another process trains this run; wait for its end, or use another --run";
                Err(at(&self.root)(io::Error::other(sentence)))
            }
            // A file system without locks.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Drops the lines of `metrics.jsonl` after `step`: a run that continues from a checkpoint writes them again.
    pub fn rewind_metrics(&self, step: u64) -> Result<(), RunDirError> {
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(at(&path))?,
        };
        let kept: String = text
            .split_inclusive('\n')
            .filter(|line| serde_json::from_str::<Metrics>(line).is_ok_and(|metrics| metrics.step <= step))
            .collect();
        if kept != text { replace(&path, kept.as_bytes()) } else { Ok(()) }
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn append_metrics(&self, metrics: &Metrics) -> Result<(), RunDirError> {
        let path = self.metrics();
        let mut line = serde_json::to_vec(metrics).map_err(|e| at(&path)(e.into()))?;
        line.push(b'\n');
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(at(&path))?;
        file.write_all(&line).map_err(at(&path))
    }

    /// All lines of `metrics.jsonl`; a run that has logged nothing has none. Half a line at its end, as a process leaves it
    /// that was killed while it wrote, is none.
    pub fn read_metrics(&self) -> Result<Vec<Metrics>, RunDirError> {
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(at(&path))?,
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole].lines().map(|line| serde_json::from_str(line).map_err(|e| at(&path)(e.into()))).collect()
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    let temporary = path.with_extension("tmp");
    File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> RunDirError + '_ {
    move |source| RunDirError { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Metrics {
        Metrics {
            step,
            images: 8 * step,
            velocity_loss: 1.0,
            alignment_loss: -0.5,
            dispersive_loss: None,
            contrastive_distance: None,
            features: None,
            gradient_norm: 2.0,
            skipped: 0,
            lr: 1e-4,
            images_per_s: 10.0,
            data_wait: 0.0,
            wait_ms: Some(WaitMs { p50: 0.001, p99: 0.002, p999: 0.004, max: 0.004 }),
            bad_samples: 0,
            first_batch_s: None,
            run_wait: None,
            stages: Vec::new(),
        }
    }

    #[test]
    fn lines_of_programs_that_knew_no_waits_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        let old = r#"{"step":10,"images":80,"velocity_loss":1.0,"alignment_loss":-0.5,"condition_cosine":0.9,
            "gradient_norm":2.0,"skipped":0,"lr":0.0001,"images_per_s":10.0,"data_wait":0.0}"#;
        fs::write(run.metrics(), old.replace('\n', "") + "\n").unwrap();
        run.rewind_metrics(10).unwrap();
        assert_eq!(run.read_metrics().unwrap(), [Metrics { wait_ms: None, ..line(10) }]);
    }

    #[test]
    fn what_a_line_does_not_have_is_not_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        let waits = Waits::new().figures();
        let last = Metrics { first_batch_s: Some(0.5), run_wait: Some(waits), bad_samples: 3, ..line(20) };
        run.append_metrics(&Metrics { wait_ms: None, ..line(10) }).unwrap();
        run.append_metrics(&last).unwrap();
        let text = fs::read_to_string(run.metrics()).unwrap();
        let (first, second) = text.split_once('\n').unwrap();
        for key in ["wait_ms", "first_batch_s", "run_wait"] {
            assert!(!first.contains(key) && second.contains(key), "{key}: {text}");
        }
        assert_eq!(run.read_metrics().unwrap(), [Metrics { wait_ms: None, ..line(10) }, last]);
    }

    #[test]
    fn a_line_of_skipped_steps_is_read_back_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        run.append_metrics(&Metrics { velocity_loss: f64::NAN, skipped: 10, ..line(10) }).unwrap();
        run.append_metrics(&line(20)).unwrap();
        run.rewind_metrics(20).unwrap();
        let lines = run.read_metrics().unwrap();
        assert!(lines.len() == 2 && lines[0].velocity_loss.is_nan() && lines[0].skipped == 10);
    }

    #[test]
    fn half_a_line_at_the_end_is_left_out_and_a_wrong_one_before_it_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        let append = |text: &str| {
            let mut file = OpenOptions::new().create(true).append(true).open(run.metrics()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("{\"step\": 4");
        assert_eq!(run.read_metrics().unwrap(), []);
        fs::remove_file(run.metrics()).unwrap();
        run.append_metrics(&line(10)).unwrap();
        append("{\"step\": 4");
        assert_eq!(run.read_metrics().unwrap(), [line(10)]);
        append("\n");
        let error = run.read_metrics().unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl"), "{error}");
    }

    #[test]
    fn rewinding_drops_what_a_continued_run_writes_again_and_half_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        for step in [10, 20, 30] {
            run.append_metrics(&line(step)).unwrap();
        }
        OpenOptions::new().append(true).open(run.metrics()).unwrap().write_all(b"{\"step\": 4").unwrap();
        run.rewind_metrics(20).unwrap();
        assert_eq!(run.read_metrics().unwrap(), [line(10), line(20)]);
    }
}
