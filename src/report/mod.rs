//! The page that a demonstration leaves behind: one HTML file that holds everything it shows.
//!
//! It loads nothing (images are data URIs, charts inline SVG, no script, no font), so it can be mailed, archived and
//! printed. The same [`Page`] gives the same bytes: no clock and no host is in it. Templates (`*.html`, `*.svg`,
//! `page.css`) are compiled in by askama, which escapes every text. What the page says is gathered by its caller;
//! reading runs and images from disk is not here. [`comparison`] is another page, of runs side by side or of one; both show with
//! [`training`] what a run did.

pub(crate) mod chart;
pub(crate) mod comparison;
mod flow;
pub(crate) mod training;

use anyhow::{Context, Result};
use askama::Template;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use stages::train::run_dir::Metrics;

use crate::show::duration;
use flow::Drawing;
pub(crate) use flow::{FlowRecord, Shares};
use training::{StepGrid, Training};

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
        let document = Document {
            page: self,
            columns: self.samples.iter().map(|row| row.images.len()).max().unwrap_or(1).clamp(1, COLUMNS),
            samples: samples.collect::<Result<_>>()?,
            reconstructions: reconstructions.collect::<Result<_>>()?,
            training: Training::of(None, self.metrics, &self.grids),
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
    training: Training,
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
