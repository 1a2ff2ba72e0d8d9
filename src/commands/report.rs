//! `pipeline report`: runs and evaluations side by side.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use stages::method::layout::parameter_count;
use stages::train::run_dir::{Metrics, RunDir};

use crate::config::RunConfig;
use crate::exit::Outcome;
use crate::report::chart::{end_of, window};
use crate::report::comparison::{Entry, Line, Part, differing, letter, page};
use crate::show;

/// Put runs and evaluations side by side: tables of what they came to and of the settings in which they differ, and curves.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReportArgs {
    /// Run directories of `pipeline train`, and JSON files of `pipeline evaluate --record`
    #[arg(value_name = "RUN|F.json", required = true)]
    paths: Vec<PathBuf>,
    /// The page to write; tables go to standard output in any case, in Markdown
    #[arg(long, value_name = "F.html")]
    out: Option<PathBuf>,
    /// Setting along which evaluations are drawn [default: guidance, steps of the sampler or of the training, whichever differs]
    #[arg(long, value_name = "KEY")]
    by: Option<String>,
}

/// Figures of an evaluation: key of the record, and what it is called.
const FIGURES: [(&str, &str); 8] = [
    ("fid", "FID"),
    ("sfid", "sFID"),
    ("is", "IS"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("latent_frechet", "latent Frechet"),
    ("count", "samples"),
    ("reference_count", "reference pictures"),
];
/// Of them what is counted, and not drawn.
const COUNTS: [&str; 2] = ["samples", "reference pictures"];
/// What an evaluation is compared along, if it is not said.
const ALONG: [&str; 3] = ["sampling.settings.guidance.scale", "sampling.settings.steps", "sampling.step"];
/// Numbers are comparable only where these are the same.
const MUST_AGREE: [&str; 7] =
    ["inception", "reference", "reference_statistics_stored", "distances", "vae_xxh3", "neighbours", "is_parts"];

pub(crate) fn run(args: &ReportArgs) -> Result<Outcome> {
    let (runs, records): (Vec<_>, Vec<_>) = args.paths.iter().partition(|path| path.is_dir());
    let mut parts = Vec::new();
    if !runs.is_empty() {
        parts.push(of_runs(&runs)?);
    }
    if !records.is_empty() {
        parts.push(of_records(&records, args.by.as_deref())?);
    }
    show::result(&parts.iter().map(Part::markdown).collect::<Vec<_>>().join("\n"));
    if let Some(out) = &args.out {
        let count = |n: usize, what: &str| match n {
            0 => None,
            1 => Some(format!("one {what}")),
            n => Some(format!("{n} {what}s")),
        };
        let counts = [count(runs.len(), "run"), count(records.len(), "evaluation")];
        let lead = format!(
            "{}, side by side, with the settings in which they differ. Letters stand for the rows of a table.",
            counts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
        );
        let page = page("Comparison", &lead, &parts)?;
        fs::write(out, page).with_context(|| format!("cannot write {}", out.display()))?;
        show::say(&format!("wrote {}", out.display()));
    }
    Ok(Outcome::Done)
}

fn of_runs(paths: &[&PathBuf]) -> Result<Part> {
    let mut entries = Vec::new();
    let mut all_metrics = Vec::new();
    for path in paths {
        let run = RunDir::at(path);
        let text = run.config()?.with_context(|| format!("{} holds no run (it has no config.toml)", path.display()))?;
        let config = RunConfig::parse(&text, path)?;
        let metrics = run.read_metrics()?;
        let end = |of: fn(&Metrics) -> f64| end_of(&metrics.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN);
        let last = |of: fn(&Metrics) -> u64| metrics.last().map_or(f64::NAN, |line| of(line) as f64);
        let figures = vec![
            ("steps", last(|line| line.step)),
            ("images", last(|line| line.images)),
            ("parameters", parameter_count(&config.model, &config.data.latent, false) as f64),
            ("velocity loss", end(|line| line.velocity_loss)),
            ("view cosine", end(view_cosine)),
            ("images/s", end(|line| line.images_per_s)),
        ];
        entries.push(Entry { name: name(path), figures, settings: flat(&serde_json::to_value(&config)?) });
        all_metrics.push(metrics);
    }
    let records = all_metrics.iter().map(Vec::len).max().unwrap_or_default();
    let mean = match window(records) {
        1 => String::new(),
        n => format!(" Losses, cosine and speed are means over the last {n} records or fewer."),
    };
    let mut part = Part::new("Runs", &entries, vec![format!("Velocity loss: Eq. 7, on training images.{mean}")]);
    let velocity: fn(&Metrics) -> f64 = |line| line.velocity_loss;
    for (title, of) in [("Velocity loss", velocity), ("Cosine of the projected views", view_cosine)] {
        let line = |(index, metrics): (usize, &Vec<Metrics>)| {
            let points = metrics.iter().map(|line| (line.step as f64, of(line))).filter(|point| point.1.is_finite());
            Line { name: letter(index), points: points.collect() }
        };
        let lines: Vec<_> = all_metrics.iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect();
        if !lines.is_empty() {
            part.chart(title, "step", window(records), &lines);
        }
    }
    Ok(part)
}

fn view_cosine(line: &Metrics) -> f64 {
    line.features.as_ref().map_or(f64::NAN, |features| features.projected.cosine)
}

fn of_records(paths: &[&PathBuf], by: Option<&str>) -> Result<Part> {
    let entries = paths.iter().map(|path| record(path)).collect::<Result<Vec<_>>>()?;
    let differing = differing(&entries);
    let count_differs = |count: &&str| {
        let of = |entry: &Entry| entry.figures.iter().find(|(name, _)| name == count).map(|(_, value)| value.to_bits());
        entries.iter().any(|entry| of(entry) != of(&entries[0]))
    };
    let settings = MUST_AGREE.into_iter().filter(|key| differing.iter().any(|other| other == key));
    let apart: Vec<_> = settings.chain(COUNTS.into_iter().filter(count_differs)).collect();
    let mut notes = Vec::new();
    if !apart.is_empty() {
        notes.push(format!("Not comparable: they differ in {}.", apart.join(", ")));
    }
    let by = match by {
        Some(key) if !entries.iter().any(|entry| place(entry, key).is_some()) => {
            bail!("--by {key}: no evaluation has a number of that name; those that differ are {}", differing.join(", "))
        }
        Some(key) => Some(key.to_owned()),
        None => ALONG.into_iter().find(|key| differing.iter().any(|other| other == key)).map(str::to_owned),
    };
    if let Some(by) = &by {
        notes.push(format!("Curves are along {by}; a line holds the evaluations that are alike otherwise."));
    }
    let mut part = Part::new("Evaluations", &entries, notes);
    let Some(by) = by else { return Ok(part) };
    // What tells lines apart: every other setting in which the evaluations differ, but for names of files.
    // Along the steps of a training the weights differ at every point.
    let weights_alike = |key: &str| by != "sampling.step" || key != "sampling.weights_xxh3";
    let others: Vec<_> =
        differing.iter().filter(|key| **key != by && !is_name(key) && weights_alike(key.as_str())).collect();
    let mut lines: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        // What tells runs apart then is the folder of their checkpoints.
        let checkpoint = entry.settings.get("sampling.checkpoint").and_then(Value::as_str).unwrap_or_default();
        let run = if by == "sampling.step" { Path::new(checkpoint).parent() } else { None };
        let key = others.iter().map(|key| format!("{:?}", entry.settings.get(*key))).collect::<Vec<_>>().join(", ");
        lines.entry(format!("{run:?} {key}")).or_default().push(index);
    }
    for (column, (name, _)) in entries[0].figures.iter().enumerate() {
        let of_group = |group: &Vec<usize>| {
            let point = |&index: &usize| Some((place(&entries[index], &by)?, entries[index].figures[column].1));
            let mut points: Vec<_> = group.iter().filter_map(point).filter(|point| point.1.is_finite()).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Line { name: group.iter().map(|&index| letter(index)).collect(), points }
        };
        let drawn: Vec<_> = lines.values().map(of_group).filter(|line| !line.points.is_empty()).collect();
        if !COUNTS.contains(name) && !drawn.is_empty() {
            part.chart(name, &by, 1, &drawn);
        }
    }
    Ok(part)
}

fn record(path: &Path) -> Result<Entry> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not JSON; give files of `pipeline evaluate --record`", path.display()))?;
    let figure = |key: &str| value[key].as_f64().unwrap_or(f64::NAN);
    let figures: Vec<_> = FIGURES.map(|(key, name)| (name, figure(key))).into();
    if figures.iter().all(|(name, value)| value.is_nan() || COUNTS.contains(name)) {
        bail!("{} holds no figure of an evaluation; give files of `pipeline evaluate --record`", path.display());
    }
    let mut settings = flat(&value);
    FIGURES.iter().for_each(|(key, _)| {
        settings.remove(*key);
    });
    // Another measure of the same reference, and no setting.
    settings.remove("latent_frechet_of_reference_halves");
    Ok(Entry { name: name(path), figures, settings })
}

fn place(entry: &Entry, key: &str) -> Option<f64> {
    entry.settings.get(key).and_then(Value::as_f64)
}

/// Whether a setting says where something lies and not what it is.
fn is_name(key: &str) -> bool {
    ["sampling.checkpoint", "sampling.noise", "sampling.latents", "sampling.vae", "vae"].contains(&key)
}

/// The last two parts of a path tell runs and records apart.
fn name(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// Every value by its dotted key.
fn flat(value: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut open = vec![(String::new(), value)];
    while let Some((key, value)) = open.pop() {
        match value {
            Value::Object(fields) => {
                let name = |field: &String| if key.is_empty() { field.clone() } else { format!("{key}.{field}") };
                open.extend(fields.iter().map(|(field, value)| (name(field), value)));
            }
            other => {
                all.insert(key, other.clone());
            }
        }
    }
    all
}
