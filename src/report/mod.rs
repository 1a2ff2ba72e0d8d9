//! The page that a demonstration leaves behind: one HTML file that holds everything it shows.
//!
//! It loads nothing (images are data URIs, charts inline SVG, no script, no font), so it can be mailed, archived and
//! printed. The same [`Page`] gives the same bytes: no clock and no host is in it. Templates (`*.html`, `*.svg`,
//! `page.css`) are compiled in by askama, which escapes every text. What the page says is gathered by its caller;
//! reading runs and images from disk is not here.

pub(crate) mod chart;
mod flow;

use anyhow::{Context, Result};
use askama::Template;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use stages::load::waits::WaitFigures;
use stages::train::run_dir::{FeatureMetrics, Metrics};

use crate::show::{duration, span};
use chart::{Base, Chart, Series};
use flow::Drawing;
pub(crate) use flow::{FlowRecord, Shares};

/// More samples than this in a row of the grid continue below.
const COLUMNS: usize = 10;

/// Everything that the page says. Text is plain and escaped here; a section without content is left out.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    pub(crate) title: String,
    /// One paragraph: what this is.
    pub(crate) lead: String,
    /// The figures in large type; five fill a line.
    pub(crate) headline: Vec<Headline>,
    /// In the order in which they were done.
    pub(crate) parts: Vec<Part>,
    /// Of the training run. The alignment loss is minus the cosine of the projected views (Eq. 6).
    pub(crate) metrics: &'a [Metrics],
    /// A row a class. The page says that none was picked.
    pub(crate) samples: Vec<SampleRow>,
    pub(crate) reconstructions: Vec<Reconstruction>,
    /// Of the training run, oldest first.
    pub(crate) grids: Vec<StepGrid>,
    /// How the samples were judged, as a sentence or two above the table.
    pub(crate) judged_how: String,
    pub(crate) judgement: Vec<Verdict>,
    /// The commands that do the same on the user's own folder.
    pub(crate) own_data: Vec<OwnCommand>,
}

/// One figure in large type.
#[derive(Debug)]
pub(crate) struct Headline {
    pub(crate) label: String,
    /// With its unit, a dozen characters at most.
    pub(crate) value: String,
    /// Small print: what it is compared with.
    pub(crate) note: String,
}

/// One part of the work.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// What it does, one sentence.
    pub(crate) what: String,
    /// Wall time.
    pub(crate) seconds: f64,
    /// As a user would type it; empty if there is none.
    pub(crate) command: String,
    /// What its flow did, where it has one.
    pub(crate) flow: Option<FlowRecord>,
}

/// Samples of one class.
#[derive(Debug)]
pub(crate) struct SampleRow {
    pub(crate) class: String,
    pub(crate) images: Vec<RgbImage>,
}

/// An image before and after the autoencoder.
#[derive(Debug)]
pub(crate) struct Reconstruction {
    pub(crate) class: String,
    pub(crate) original: RgbImage,
    pub(crate) decoded: RgbImage,
}

/// The sample grid of one step of training.
#[derive(Debug)]
pub(crate) struct StepGrid {
    pub(crate) step: u64,
    pub(crate) picture: RgbImage,
}

/// A line of the table of judgement.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) value: String,
}

/// A command and what it is for.
#[derive(Debug)]
pub(crate) struct OwnCommand {
    pub(crate) comment: String,
    /// One line of shell.
    pub(crate) command: String,
}

impl Page<'_> {
    /// The whole HTML document.
    ///
    /// # Errors
    ///
    /// An image without pixels, which PNG cannot hold; the error names it.
    pub(crate) fn render(&self) -> Result<String> {
        let samples = self.samples.iter().map(|row| {
            let images = row.images.iter().enumerate();
            let images = images.map(|(index, image)| {
                png_uri(image).with_context(|| format!("sample {} of class {}", index + 1, row.class))
            });
            Ok(ImageRow { class: &row.class, images: images.collect::<Result<_>>()? })
        });
        let reconstructions = self.reconstructions.iter().map(|Reconstruction { class, original, decoded }| {
            Ok(ImagePair {
                class,
                original: png_uri(original).with_context(|| format!("an original of class {class}"))?,
                decoded: png_uri(decoded).with_context(|| format!("a reconstruction of class {class}"))?,
            })
        });
        let grids = self.grids.iter().map(|StepGrid { step, picture }| {
            let picture = png_uri(picture).with_context(|| format!("the sample grid of step {step}"))?;
            Ok(ShownGrid { step: grouped(*step), picture })
        });
        let document = Document {
            page: self,
            columns: self.samples.iter().map(|row| row.images.len()).max().unwrap_or(1).clamp(1, COLUMNS),
            samples: samples.collect::<Result<_>>()?,
            reconstructions: reconstructions.collect::<Result<_>>()?,
            grids: grids.collect::<Result<_>>()?,
            plots: plots(self.metrics),
            window: chart::window(self.metrics.len()),
            flows: self.parts.iter().filter_map(drawn_flow).collect(),
            times: times(&self.parts),
            total: duration(self.parts.iter().map(|part| part.seconds).sum()),
        };
        document.render().context("the report page cannot be filled in")
    }
}

/// What the template reads: the page with images as text and charts laid out.
#[derive(Debug, Template)]
#[template(path = "page.html", config = "src/report/askama.toml")]
struct Document<'a> {
    page: &'a Page<'a>,
    columns: usize,
    samples: Vec<ImageRow<'a>>,
    reconstructions: Vec<ImagePair<'a>>,
    grids: Vec<ShownGrid>,
    plots: Vec<Plot>,
    /// Records that one point of a strong line is the mean of.
    window: usize,
    flows: Vec<DrawnFlow<'a>>,
    times: Vec<Time<'a>>,
    total: String,
}

#[derive(Debug)]
struct ImageRow<'a> {
    class: &'a str,
    images: Vec<String>,
}

#[derive(Debug)]
struct ImagePair<'a> {
    class: &'a str,
    original: String,
    decoded: String,
}

#[derive(Debug)]
struct ShownGrid {
    step: String,
    picture: String,
}

/// A chart and the sentences below it.
#[derive(Debug)]
struct Plot {
    chart: Chart,
    title: String,
    caption: String,
}

#[derive(Debug)]
struct DrawnFlow<'a> {
    name: &'a str,
    drawing: Drawing<'a>,
    wall: String,
    bottleneck: Option<&'a str>,
}

#[derive(Debug)]
struct Time<'a> {
    part: &'a Part,
    time: String,
    /// Of the total, in percent.
    share: String,
    /// In the bar, in percent with one decimal.
    width: String,
}

/// The image as a data URI of a PNG.
fn png_uri(image: &RgbImage) -> Result<String> {
    let (width, height) = image.dimensions();
    anyhow::ensure!(width > 0 && height > 0, "an image of {width} x {height} pixels cannot be shown; leave it out");
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::Adaptive).write_image(
        image.as_raw(),
        width,
        height,
        ExtendedColorType::Rgb8,
    )?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(png)))
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
            match (chart::end_of(&after), chart::end_of(&others)) {
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
            vec![
                series("after the projector", after),
                series("before the projector", before),
                series("after it, different images", others),
            ],
        ),
        ("Rank of the features", Base::Zero, {
            let [before, after] = ranks;
            vec![series("after the projector", after), series("before the projector", before)]
        }),
        ("Speed", Base::Zero, vec![series("images a second", rate)]),
        (&wait_title, Base::Zero, vec![series("% of the time", wait)]),
    ];
    // With one view there is nothing to align.
    let shown = [true, has_views, has_views, true, true];
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
    let mean = if chart::window(values.len()) > 1 { "a mean of " } else { "" };
    match (values.iter().find(|value| value.is_finite()), chart::end_of(values)) {
        (Some(first), Some(end)) => format!("from {} to {mean}{}", chart::number(*first), chart::number(end)),
        _ => "nothing was recorded".to_owned(),
    }
}

/// Over all records that hold a number, in words.
fn mean_of(values: &[f64]) -> String {
    let finite: Vec<_> = values.iter().filter(|value| value.is_finite()).collect();
    match finite.len() {
        0 => "unknown".to_owned(),
        count => chart::number(finite.into_iter().sum::<f64>() / count as f64),
    }
}

fn drawn_flow(part: &Part) -> Option<DrawnFlow<'_>> {
    let flow = part.flow.as_ref()?;
    Some(DrawnFlow {
        name: &part.name,
        drawing: Drawing::of(flow),
        wall: duration(flow.wall_s),
        bottleneck: flow.bottleneck().map(|stage| stage.name.as_str()),
    })
}

fn times(parts: &[Part]) -> Vec<Time<'_>> {
    let total: f64 = parts.iter().map(|part| part.seconds).sum();
    let rows = parts.iter().map(|part| {
        let percent = if total > 0.0 { 100.0 * part.seconds / total } else { 0.0 };
        let (share, width) = (format!("{percent:.0}"), format!("{percent:.1}"));
        Time { part, time: duration(part.seconds), share, width }
    });
    rows.collect()
}

/// An integer with its thousands set apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
