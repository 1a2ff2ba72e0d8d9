//! What a person reads while the program works: on stderr a bar on a terminal and lines elsewhere, and the lines in a
//! log file too where a command keeps one.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pipeline::Report;
use stages::train::config::TrainConfig;
use stages::train::run_dir::{FeatureMetrics, Metrics};

use crate::report::{FlowRecord, Shares};

/// Where the lines are kept, and since when their times count.
static LOG: OnceLock<(File, Instant)> = OnceLock::new();

/// How often a line of progress is worth keeping.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// From now on everything said is also appended to the file, each line behind the minutes and seconds since now.
/// Errors too: they are said.
pub(crate) fn keep_log(path: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    // A second log of one program would be a mistake of ours; the first stays.
    let _ = LOG.set((file, Instant::now()));
    Ok(())
}

fn log(text: &str) {
    let Some((file, since)) = LOG.get() else { return };
    let seconds = since.elapsed().as_secs();
    let stamped: String = text
        .trim_matches('\n')
        .lines()
        .map(|line| format!("{:02}:{:02}  {line}\n", seconds / 60, seconds % 60))
        .collect();
    // A log that cannot be written is no reason to stop the work.
    let mut file: &File = file;
    let _ = file.write_all(stamped.as_bytes());
}

/// Tells the user something on stderr.
pub(crate) fn say(text: &str) {
    eprintln!("{}", text.trim_end());
    log(text);
}

/// Prints a result on stdout.
pub(crate) fn result(text: &str) {
    println!("{}", text.trim_end());
    log(text);
}

/// The progress of one piece of work: a bar on a terminal, a line now and then elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    said: Option<(u64, Instant)>,
}

impl Progress {
    /// Of work that has `total` parts; `title` stands before the bar.
    pub(crate) fn new(title: &'static str, total: u64) -> Self {
        let target = if on_terminal() { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{prefix:>9} {bar:16.cyan/dim} {percent:>3} %  {wide_msg}")
            .expect("the template is a constant that indicatif knows")
            .progress_chars("━╸─");
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style).with_prefix(title);
        Self { bar, said: None }
    }

    /// How often it is worth telling how far the work is.
    pub(crate) fn interval(&self) -> Duration {
        if on_terminal() { Duration::from_millis(500) } else { LINE_EVERY }
    }

    /// A second handle on the bar, for another thread that knows how far the work is.
    pub(crate) fn position(&self) -> impl Fn(u64) + use<> {
        let bar = self.bar.clone();
        move |done| advance(&bar, done)
    }

    /// `done` parts are done, about which `text` says more; where there is no bar it is said every ten seconds and at the
    /// end.
    pub(crate) fn at(&mut self, done: u64, text: &str) {
        advance(&self.bar, done);
        self.bar.set_message(text.to_owned());
        let ended = self.bar.length().is_some_and(|total| done >= total);
        let news = self.said.is_none_or(|(said, at)| said != done && (ended || at.elapsed() >= LINE_EVERY));
        if news {
            self.said = Some((done, Instant::now()));
            self.write(text);
        }
    }

    /// The same, and said in any case.
    pub(crate) fn milestone(&mut self, done: u64, text: &str) {
        advance(&self.bar, done);
        self.bar.set_message(text.to_owned());
        self.write(text);
    }

    fn write(&self, text: &str) {
        if !on_terminal() {
            eprintln!("{text}");
        }
        log(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // What comes next says how it ended, and would otherwise stand in the bar's line.
        self.bar.finish_and_clear();
    }
}

/// Never back: what is known of a step may come later than the step.
fn advance(bar: &ProgressBar, done: u64) {
    if done > bar.position() {
        bar.set_position(done);
    }
}

fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// One line of training: of the losses those that the run has.
///
/// The cosine of the views is that before the projector and that behind it, and beside it that of different images: where
/// this one is as high, the features no longer hold the image.
pub(crate) fn metrics_line(metrics: &Metrics, config: &TrainConfig) -> String {
    let Metrics { step, velocity_loss, alignment_loss, images_per_s, .. } = metrics;
    let steps = config.train.steps;
    let left = if *images_per_s > 0.0 {
        let per_step = metrics.images as f64 / (*step as f64) / images_per_s;
        format!("  {} left", duration((steps - step) as f64 * per_step))
    } else {
        String::new()
    };
    // What a narrow terminal cuts off comes last.
    let mut line = format!("step {step}/{steps}{left}  {images_per_s:.1} images/s  velocity {velocity_loss:.4}");
    if config.objective.aligns() {
        line += &format!("  alignment {alignment_loss:+.4}");
    }
    if let Some(loss) = metrics.dispersive_loss {
        line += &format!("  dispersive {loss:+.4}");
    }
    if let Some(distance) = metrics.contrastive_distance {
        line += &format!("  contrastive {distance:.4}");
    }
    if let Some(FeatureMetrics { condition, projected, .. }) = &metrics.features {
        line += &format!("  cosine {:.3}", condition.cosine);
        let mut others = condition.other_cosine;
        if config.objective.aligns() {
            line += &format!(" -> {:.3}", projected.cosine);
            others = projected.other_cosine;
        }
        if !others.is_nan() {
            line += &format!(" (others {others:.3})");
        }
    }
    if metrics.skipped > 0 {
        line += &format!("  {} STEPS SKIPPED (a gradient was not finite)", metrics.skipped);
    }
    if let Some(seconds) = metrics.first_batch_s {
        line += &format!("  first batch after {}", span(seconds));
    }
    if let Some(wait) = metrics.wait_ms {
        line += &format!("  waited {:.2} % (p99 {})", 100.0 * metrics.data_wait, span(wait.p99 / 1e3));
    }
    if metrics.bad_samples > 0 {
        line += &format!("  {} bad samples", metrics.bad_samples);
    }
    line + &format!("  {} images seen", metrics.images)
}

/// A share in 0..=1 as a person reads it.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A short time, given in seconds, in the unit that suits it and with about three digits.
pub(crate) fn span(seconds: f64) -> String {
    let (value, unit) = match seconds {
        0.0 => return "0 s".to_owned(),
        s if s < 1e-3 => (1e6 * s, "µs"),
        s if s < 1.0 => (1e3 * s, "ms"),
        s => (s, "s"),
    };
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
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
    let flow = FlowRecord::of(report);
    let mut text = String::new();
    for stage in &flow.stages {
        let Shares { busy, starved, blocked } = stage.shares(flow.wall_s);
        text += &format!(
            "  {:<18} {:>2} x  {:>8} items   busy {:>3.0} %   starved {:>3.0} %   blocked {:>3.0} %\n",
            stage.name,
            stage.workers,
            stage.items,
            100.0 * busy,
            100.0 * starved,
            100.0 * blocked
        );
    }
    if let Some(stage) = flow.bottleneck() {
        text += &format!("  held up by: {}\n", stage.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use stages::train::run_dir::{SpreadMetrics, WaitMs};

    use super::*;
    use crate::config::resolve;

    #[test]
    fn a_line_of_training_says_how_fast_how_well_and_how_long_still() {
        let mut metrics = Metrics {
            step: 100,
            images: 1600,
            velocity_loss: 0.91234,
            alignment_loss: -0.75,
            dispersive_loss: None,
            contrastive_distance: None,
            features: Some(FeatureMetrics {
                condition: SpreadMetrics { cosine: 0.8, other_cosine: 0.1, rank: 30.0, deviation: 0.9 },
                projected: SpreadMetrics { cosine: 0.75, other_cosine: 0.02, rank: 20.0, deviation: 1.0 },
                cosine_by_gap: vec![Some(0.8); 5],
            }),
            gradient_norm: 1.0,
            skipped: 0,
            lr: 1e-4,
            images_per_s: 32.0,
            data_wait: 0.0125,
            wait_ms: Some(WaitMs { p50: 0.1, p99: 2.0, p999: 3.0, max: 3.0 }),
            bad_samples: 0,
            first_batch_s: None,
            run_wait: None,
            stages: Vec::new(),
        };
        let config = |preset: &str, settings: &[&str]| {
            let settings: Vec<String> =
                settings.iter().chain(&["train.steps=340"]).map(|text| (*text).to_owned()).collect();
            resolve(Some(preset), None, &settings).unwrap()
        };
        let dupa = config("dupa-demo", &[]);
        assert_eq!(
            metrics_line(&metrics, &dupa),
            "step 100/340  2 min 0 s left  32.0 images/s  velocity 0.9123  alignment -0.7500  cosine 0.800 -> 0.750 (others 0.020)  \
             waited 1.25 % (p99 2.00 ms)  1600 images seen"
        );
        // Nothing is aligned: what stands behind the projector says nothing.
        let line = metrics_line(&metrics, &config("dupa-demo", &["objective.lambda=0"]));
        assert!(line.contains("velocity 0.9123  cosine 0.800 (others 0.100)  waited"), "{line}");
        // One image has no others.
        if let Some(features) = &mut metrics.features {
            features.projected.other_cosine = f64::NAN;
        }
        assert!(metrics_line(&metrics, &dupa).contains("cosine 0.800 -> 0.750  waited"));
        (metrics.skipped, metrics.bad_samples) = (3, 2);
        let line = metrics_line(&metrics, &dupa);
        assert!(line.contains("3 STEPS SKIPPED") && line.contains("2 bad samples"), "{line}");

        metrics.features = None;
        (metrics.dispersive_loss, metrics.contrastive_distance) = (Some(-0.5), Some(2.0));
        let line = metrics_line(&metrics, &config("sit-s/2", &[]));
        assert!(line.contains("velocity 0.9123  dispersive -0.5000  contrastive 2.0000  3 STEPS"), "{line}");
    }
}
