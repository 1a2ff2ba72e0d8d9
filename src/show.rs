//! What a person reads while a flow runs: one line now and then, on stderr.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use pipeline::Report;
use stages::train::run_dir::Metrics;

/// Prints lines of progress: over each other on a terminal, below each other elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    overwrite: bool,
    open: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { overwrite: std::io::stderr().is_terminal(), open: false }
    }

    /// How often a line is worth reading here.
    pub(crate) fn interval(&self) -> Duration {
        if self.overwrite { Duration::from_millis(500) } else { Duration::from_secs(10) }
    }

    pub(crate) fn line(&mut self, text: &str) {
        if self.overwrite {
            // Clear to the end of the line: the one before may have been longer.
            eprint!("\r{text}\x1b[K");
            let _ = std::io::stderr().flush();
            self.open = true;
        } else {
            eprintln!("{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.open {
            eprintln!();
        }
    }
}

/// One line of training.
pub(crate) fn metrics_line(metrics: &Metrics, steps: u64) -> String {
    let Metrics { step, velocity_loss, alignment_loss, images_per_s, .. } = metrics;
    let left = if *images_per_s > 0.0 {
        let per_step = metrics.images as f64 / (*step as f64) / images_per_s;
        format!(", {} left", duration((steps - step) as f64 * per_step))
    } else {
        String::new()
    };
    format!(
        "step {step}/{steps}  velocity {velocity_loss:.4}  alignment {alignment_loss:+.4}  cosine {:.3}  \
         {images_per_s:.1} images/s{left}",
        metrics.condition_cosine
    )
}

/// Seconds as a person says them.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds % 3600 / 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// What each stage did with its time, and which one held the others up.
pub(crate) fn report_lines(report: &Report) -> String {
    let mut text = String::new();
    for stage in &report.stages {
        let share = |part: Duration| {
            let whole = report.wall.as_secs_f64() * stage.workers as f64;
            100.0 * part.as_secs_f64() / whole.max(1e-9)
        };
        text += &format!(
            "  {:<18} {:>2} x  {:>8} items   busy {:>3.0} %   starved {:>3.0} %   blocked {:>3.0} %\n",
            stage.name,
            stage.workers,
            stage.items,
            share(stage.busy),
            share(stage.starved),
            share(stage.blocked)
        );
    }
    if let Some(stage) = report.bottleneck() {
        text += &format!("  held up by: {}\n", stage.name);
    }
    text
}
