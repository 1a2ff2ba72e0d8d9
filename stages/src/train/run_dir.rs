//! The run directory: what a run leaves behind, and what it continues from.
//!
//! ```text
//! RUN/config.toml        the resolved configuration, and what it was trained on
//! RUN/metrics.jsonl      one object a line: step, images, losses, rates
//! RUN/checkpoints/       step-00001000.safetensors ..
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

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
    /// Cosine between views before the projector.
    #[serde(deserialize_with = "null_is_nan")]
    pub condition_cosine: f64,
    /// Norm of the gradients before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub gradient_norm: f64,
    /// Steps of these that were skipped because a gradient was not finite.
    pub skipped: u64,
    /// Learning rate of the last of these steps.
    pub lr: f64,
    /// Images a second.
    pub images_per_s: f64,
    /// Share of the time in which the trainer waited for data.
    pub data_wait: f64,
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

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
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

    /// All lines of `metrics.jsonl`; a run that has logged nothing has none.
    pub fn read_metrics(&self) -> Result<Vec<Metrics>, RunDirError> {
        let path = self.metrics();
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(at(&path))?,
        };
        text.lines().map(|line| serde_json::from_str(line).map_err(|e| at(&path)(e.into()))).collect()
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    let temporary = path.with_extension("tmp");
    File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RunDirError + '_ {
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
            condition_cosine: 0.9,
            gradient_norm: 2.0,
            skipped: 0,
            lr: 1e-4,
            images_per_s: 10.0,
            data_wait: 0.0,
        }
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
