//! What a training run did, as pages show it: the curves of what it logged, and sample grids from its averaged weights.

use askama::Template;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use stages::load::waits::WaitFigures;
use stages::train::run_dir::{FeatureMetrics, Metrics};

use super::chart::{Base, Chart, Series, end_of, number, window};
use super::grouped;
use crate::show::span;

/// The sample grid of one step of training.
#[derive(Debug)]
pub(crate) struct StepGrid {
    pub(crate) step: u64,
    /// A PNG file.
    pub(crate) png: Vec<u8>,
}

/// Curves and grids of one run. Loss terms that are off have no curve.
#[derive(Debug, Template)]
#[template(path = "training.html", config = "src/report/askama.toml")]
pub(crate) struct Training {
    /// Which of several runs it is.
    name: Option<String>,
    plots: Vec<Plot>,
    /// Records that one point of a strong line is the mean of.
    window: usize,
    grids: Vec<ShownGrid>,
}

#[derive(Debug)]
struct ShownGrid {
    step: String,
    /// A data URI.
    picture: String,
}

/// A chart and the sentences below it.
#[derive(Debug)]
struct Plot {
    chart: Chart,
    title: String,
    caption: String,
}

impl Training {
    /// Of a run that logged `metrics`, with grids from the oldest to the newest. `name` tells several runs on a page apart.
    pub(crate) fn of(name: Option<String>, metrics: &[Metrics], grids: &[StepGrid]) -> Self {
        let shown = |StepGrid { step, png }: &StepGrid| ShownGrid {
            step: grouped(*step),
            picture: format!("data:image/png;base64,{}", STANDARD.encode(png)),
        };
        Self { name, plots: plots(metrics), window: window(metrics.len()), grids: grids.iter().map(shown).collect() }
    }
}

fn plots(metrics: &[Metrics]) -> Vec<Plot> {
    if metrics.is_empty() {
        return Vec::new();
    }
    let steps: Vec<_> = metrics.iter().map(|record| record.step).collect();
    let values = |of: fn(&Metrics) -> f64| metrics.iter().map(of).collect::<Vec<_>>();
    let velocity = values(|record| record.velocity_loss);
    let features = |of: fn(&FeatureMetrics) -> f64| -> Vec<f64> {
        metrics.iter().map(|record| record.features.as_ref().map_or(f64::NAN, of)).collect()
    };
    let before = features(|features| features.condition.cosine);
    let after = features(|features| features.projected.cosine);
    let others = features(|features| features.projected.other_cosine);
    let ranks = [features(|features| features.condition.rank), features(|features| features.projected.rank)];
    let has_views = metrics.iter().any(|record| record.features.is_some());
    let dispersive = values(|record| record.dispersive_loss.unwrap_or(f64::NAN));
    let contrastive = values(|record| record.contrastive_distance.unwrap_or(f64::NAN));
    let has = |values: &[f64]| values.iter().any(|value| value.is_finite());
    let (has_dispersive, has_contrastive) = (has(&dispersive), has(&contrastive));
    let rate = values(|record| record.images_per_s);
    let wait = values(|record| 100.0 * record.data_wait);
    let waits = RunWaits::of(metrics);
    let wait_title = match waits {
        Some(RunWaits { figures, .. }) => format!("Wait for data: p99 {}", span(figures.p99_ms / 1e3)),
        None => "Wait for data".to_owned(),
    };
    let captions = [
        format!("Velocity loss (Eq. 7): {}. Lower is better.", course(&velocity)),
        format!(
            "Cosine between the encodings of two noisy views of one image: {} before the projector, {} after it, where \
             the alignment loss (Eq. 6) acts; between views of different images it is {} there.{}",
            course(&before),
            course(&after),
            course(&others),
            match (end_of(&after), end_of(&others)) {
                (Some(end), Some(others)) if end - others < 0.01 => {
                    " They do not differ: the projected features no longer tell images apart, and this loss asks nothing \
                     more of the encoder."
                }
                _ => "",
            }
        ),
        format!(
            "Effective number of directions in which the features of a batch vary: {} before the projector, {} after it. \
             At 1 they are collapsed.",
            course(&ranks[0]),
            course(&ranks[1])
        ),
        format!("Dispersive loss of the features: {}. Lower is further apart.", course(&dispersive)),
        format!(
            "Contrastive flow matching: mean squared distance of the prediction to the targets of other images: {}. Higher is \
             further apart.",
            course(&contrastive)
        ),
        format!("Images trained a second, views not counted; in the mean {}.", mean_of(&rate)),
        format!(
            "Share of the time in which the trainer waited for data, in percent; in the mean {}.{}",
            mean_of(&wait),
            waits.map(|waits| waits.caption()).unwrap_or_default()
        ),
    ];
    let series = |name, values| Series { name, values };
    let drawn = [
        ("Velocity loss", Base::Data, vec![series("velocity loss", velocity)]),
        (
            "Alignment",
            Base::Data,
            vec![series("after the projector", after), series("before it", before), series("other images", others)],
        ),
        ("Rank of the features", Base::Zero, {
            let [before, after] = ranks;
            vec![series("after the projector", after), series("before the projector", before)]
        }),
        ("Dispersive loss", Base::Data, vec![series("dispersive loss", dispersive)]),
        ("Distance to other targets", Base::Data, vec![series("distance", contrastive)]),
        ("Speed", Base::Zero, vec![series("images a second", rate)]),
        (&wait_title, Base::Zero, vec![series("% of the time", wait)]),
    ];
    // With one view there is nothing to align.
    let shown = [true, has_views, has_views, has_dispersive, has_contrastive, true, true];
    let drawn = drawn.into_iter().zip(captions).zip(shown).filter(|(_, shown)| *shown);
    let plots = drawn.map(|(((title, base, series), caption), _)| Plot {
        chart: Chart::new(title, &steps, base, &series),
        title: title.to_owned(),
        caption,
    });
    plots.collect()
}

/// How long single batches were waited for, as the last process of the run that came to its end has told it.
#[derive(Debug, Clone, Copy)]
struct RunWaits {
    figures: WaitFigures,
    first_batch_s: Option<f64>,
}

impl RunWaits {
    fn of(metrics: &[Metrics]) -> Option<Self> {
        let last = metrics.iter().rposition(|record| record.run_wait.is_some())?;
        let first_batch_s = metrics[..=last].iter().rev().find_map(|record| record.first_batch_s);
        Some(Self { figures: metrics[last].run_wait?, first_batch_s })
    }

    /// Follows another sentence.
    fn caption(self) -> String {
        let WaitFigures { count, total_s, p50_ms, p99_ms, p999_ms, max_ms } = self.figures;
        let [p50, p99, p999, max] = [p50_ms, p99_ms, p999_ms, max_ms].map(|ms| span(ms / 1e3));
        let mut text = format!(
            " Waits for one batch: p50 {p50}, p99 {p99}, p99.9 {p999}, at most {max}; all {} together {}.",
            grouped(count),
            span(total_s)
        );
        if let Some(seconds) = self.first_batch_s {
            text += &format!(" The first batch came after {}.", span(seconds));
        }
        text
    }
}

/// From where to where a line goes, in words.
fn course(values: &[f64]) -> String {
    let mean = if window(values.len()) > 1 { "a mean of " } else { "" };
    match (values.iter().find(|value| value.is_finite()), end_of(values)) {
        (Some(first), Some(end)) => format!("from {} to {mean}{}", number(*first), number(end)),
        _ => "nothing was recorded".to_owned(),
    }
}

/// Over all records that hold a number, in words.
fn mean_of(values: &[f64]) -> String {
    let finite: Vec<_> = values.iter().filter(|value| value.is_finite()).collect();
    match finite.len() {
        0 => "unknown".to_owned(),
        count => number(finite.into_iter().sum::<f64>() / count as f64),
    }
}
