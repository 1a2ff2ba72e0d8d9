//! What a probe found, drawn: one SVG file, or an HTML file around it.
//!
//! Accuracy and CKNNA by layer with a line for each time, as the paper's Figure 4; the similarity of views over the steps of
//! training, as its Figure 5, from the run's metrics; and by the distance of their times, which is measured here. Only
//! what was measured is drawn. The file loads nothing.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use askama::Template;
use stages::probe::sweep::LayerResult;
use stages::probe::views::{GapSimilarity, Similarity};
use stages::train::run_dir::{FeatureMetrics, Metrics};

use super::found::Found;
use crate::commands::writing;
use crate::report::chart::{Base, Chart, Series};

/// Of a chart, as it is laid out; and the line above it.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 240.0;
const TITLE: f64 = 30.0;
const MARGIN: f64 = 20.0;
/// Colours that can be told apart by most people (Okabe and Ito, 2008), and dashes for the others.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const DASHES: [&str; 6] = ["none", "6 4", "2 4", "9 3 2 3", "none", "6 4"];

/// Before anything is measured.
pub(super) fn check(path: &Path) -> Result<()> {
    match path.extension().and_then(OsStr::to_str) {
        Some("svg" | "html") => writing::possible("--plot", path),
        _ => bail!("--plot {}: the name must end in .svg or .html", path.display()),
    }
}

/// Writes the charts of `found`; `metrics` are those of the run.
pub(super) fn write(path: &Path, found: &Found, metrics: &[Metrics]) -> Result<()> {
    let drawing = drawing(&charts(found, metrics))?;
    let text = match path.extension().and_then(OsStr::to_str) {
        Some("html") => format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>pipeline probe</title></head>\n\
             <body style=\"margin:0\">\n{drawing}</body></html>\n"
        ),
        _ => drawing,
    };
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A title and a chart.
type Titled = (String, Chart);

fn charts(found: &Found, metrics: &[Metrics]) -> Vec<Titled> {
    let mut charts = Vec::new();
    let recipe = found.linear_probe_recipe.name();
    let accuracy = |found: &LayerResult| 100.0 * found.linear_probe;
    charts.push(by_layer(&format!("Linear probe ({recipe}): accuracy in %, by layer"), found, accuracy));
    if found.cknna.is_some() {
        charts.push(by_layer("CKNNA by layer", found, |found| found.cknna.unwrap_or(f64::NAN)));
    }
    if let Some(views) = &found.views {
        charts.push(by_gap("Cosine of the conditions of two views", &views.condition));
        charts.extend(views.projected.iter().map(|projected| by_gap("The same, behind the projector", projected)));
        charts.extend(by_step(metrics));
    }
    charts
}

/// A line for each time.
fn by_layer(title: &str, found: &Found, value: impl Fn(&LayerResult) -> f64) -> Titled {
    let mut times: Vec<f64> = Vec::new();
    for layer in &found.layers {
        if !times.contains(&layer.t) {
            times.push(layer.t);
        }
    }
    // Times have the same layers.
    let places: Vec<f64> = found.layers.iter().filter(|l| l.t == times[0]).map(|l| l.layer as f64).collect();
    let names: Vec<String> = times.iter().map(|t| format!("t = {t}")).collect();
    let lines = times.iter().zip(&names).map(|(t, name)| Series {
        name,
        values: found.layers.iter().filter(|layer| layer.t == *t).map(&value).collect(),
    });
    let chart = Chart::over(title, "layer", &places, 1, Base::Zero, &lines.collect::<Vec<_>>());
    (title.to_owned(), chart)
}

fn by_gap(title: &str, similarity: &Similarity) -> Titled {
    let places: Vec<f64> = similarity.by_gap.iter().map(|gap| gap.gap).collect();
    let series =
        |name, of: fn(&GapSimilarity) -> f64| Series { name, values: similarity.by_gap.iter().map(of).collect() };
    let lines = [series("one image", |gap| gap.cosine), series("different images", |gap| gap.other_cosine)];
    let title = format!("{title}, by |t1 - t2|");
    let chart = Chart::over(&title, "|t1 - t2|", &places, 1, Base::Data, &lines);
    (title, chart)
}

/// None if the run has trained with one view, or kept no metrics.
fn by_step(metrics: &[Metrics]) -> Option<Titled> {
    let recorded: Vec<(u64, &FeatureMetrics)> =
        metrics.iter().filter_map(|record| Some((record.step, record.features.as_ref()?))).collect();
    if recorded.is_empty() {
        return None;
    }
    let steps: Vec<u64> = recorded.iter().map(|(step, _)| *step).collect();
    let series =
        |name, of: fn(&FeatureMetrics) -> f64| Series { name, values: recorded.iter().map(|(_, f)| of(f)).collect() };
    let lines = [
        series("projected", |features| features.projected.cosine),
        series("conditions", |features| features.condition.cosine),
        series("projected, different images", |features| features.projected.other_cosine),
    ];
    let title = "Cosine of two views of a batch, while training";
    Some((title.to_owned(), Chart::new(title, &steps, Base::Data, &lines)))
}

/// Two charts a row.
fn drawing(charts: &[Titled]) -> Result<String> {
    let columns = charts.len().clamp(1, 2) as f64;
    let rows = charts.len().div_ceil(2) as f64;
    let (cell_width, cell_height) = (WIDTH + MARGIN, TITLE + HEIGHT + MARGIN);
    let (width, height) = (MARGIN + columns * cell_width, MARGIN + rows * cell_height);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Arial, sans-serif\" font-size=\"12\">\n"
    );
    text += "<style>\ntext { fill: #596170; } .title { fill: #1a1d23; font-size: 14px; font-weight: 600; } .end { fill: #1a1d23; \
             font-weight: 600; }\n.grid path { stroke: #dfe2e7; fill: none; } .axis { stroke: #6d7686; fill: none; }\n\
             .curve path { fill: none; stroke: var(--line, #0072b2); stroke-linecap: round; stroke-linejoin: round; }\n\
             .curve circle { fill: var(--line, #0072b2); } .curve .raw { stroke-width: 1.2; opacity: .35; } \
             .curve .mean { stroke-width: 2.2; }\n";
    for (index, (colour, dash)) in COLOURS.iter().zip(DASHES).enumerate() {
        let number = index + 1;
        let _ = writeln!(
            text,
            ".curve-{number} {{ --line: {colour}; }} .curve-{number} .mean {{ stroke-dasharray: {dash}; }}"
        );
    }
    let _ = writeln!(text, "</style>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>");
    for (index, (title, chart)) in charts.iter().enumerate() {
        let (column, row) = ((index % 2) as f64, (index / 2) as f64);
        let (x, y) = (MARGIN + column * cell_width, MARGIN + row * cell_height);
        let chart = chart.render().context("a chart cannot be filled in")?;
        let title = title.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            text,
            "<text class=\"title\" x=\"{x}\" y=\"{}\">{title}</text>\n\
             <svg x=\"{x}\" y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\">\n{chart}</svg>",
            y + 14.0,
            y + TITLE,
        );
    }
    text += "</svg>\n";
    Ok(text)
}

#[cfg(test)]
mod tests {
    use stages::probe::cknna::Alignment;
    use stages::probe::views::ViewSimilarity;

    use super::super::found::{CknnaFound, RecipeFound};
    use super::*;

    fn found() -> Found {
        let layer = |t: f64, layer: i64| LayerResult {
            layer,
            t,
            linear_probe: 0.5 + 0.1 * (layer as f64 / 3.0 - t),
            cknna: (layer != 2).then_some(0.3),
        };
        let gap = |n: usize| GapSimilarity { gap: n as f64 / 10.0, cosine: 0.9 - 0.02 * n as f64, other_cosine: 0.2 };
        let similarity =
            || Similarity { cosine: Vec::new(), other_cosine: Vec::new(), by_gap: (0..10).map(gap).collect() };
        Found {
            version: "",
            weights_xxh3: String::new(),
            precision: "f32",
            seed: 0,
            dataset: String::new(),
            fit_dataset: None,
            checkpoint: "c".into(),
            step: 9,
            count: 64,
            held_out: 64,
            velocity_loss: 1.0,
            velocity_loss_by_t: vec![1.0; 10],
            linear_probe: Some(0.5),
            linear_probe_chance: 0.25,
            linear_probe_t: 0.0,
            linear_probe_recipe: RecipeFound::of("mae", None, 32, 32),
            aligned_layer: 2,
            layers: [0.0, 0.25].iter().flat_map(|t| (1..=4).map(|n| layer(*t, n))).collect(),
            cknna: Some(CknnaFound::of("f.npy".into(), None, 0, 64, &Alignment::default())),
            views: Some(ViewSimilarity {
                count: 64,
                times: Vec::new(),
                condition: similarity(),
                projected: Some(similarity()),
            }),
            latent_frechet: None,
        }
    }

    #[test]
    fn every_time_is_a_line_and_what_was_not_measured_is_not_drawn() {
        let mut found = found();
        let titles = |found: &Found| charts(found, &[]).into_iter().map(|(title, _)| title).collect::<Vec<_>>();
        assert_eq!(titles(&found).len(), 4);
        let text = drawing(&charts(&found, &[])).unwrap();
        assert_eq!(text.matches("<svg").count(), 1 + 2 * 4);
        assert_eq!((text.matches(">t = 0<").count(), text.matches(">t = 0.25<").count()), (2, 2));
        assert!(
            text.contains(">layer</text>") && text.contains(">|t1 - t2|</text>") && !text.contains("NaN"),
            "{text}"
        );
        // Accuracies and not shares; a value that is missing is a gap: two dots beside one line of two.
        assert!(text.contains(">63.3<") && text.contains("h0"), "{text}");
        (found.cknna, found.views) = (None, None);
        assert_eq!(titles(&found), ["Linear probe (mae): accuracy in %, by layer"]);
    }

    #[test]
    fn only_drawings_and_pages_are_written() {
        let folder = tempfile::tempdir().unwrap();
        for (name, begin) in [("a.svg", "<svg xmlns"), ("a.html", "<!DOCTYPE html>")] {
            let path = folder.path().join(name);
            check(&path).unwrap();
            write(&path, &found(), &[]).unwrap();
            assert!(fs::read_to_string(path).unwrap().starts_with(begin));
        }
        assert!(check(Path::new("a.png")).unwrap_err().to_string().contains("must end in .svg or .html"));
        let missing = write(&folder.path().join("no/a.svg"), &found(), &[]).unwrap_err().to_string();
        assert!(missing.starts_with("cannot write "), "{missing}");
    }
}
