//! `pipeline report`: runs and evaluations side by side; and the page that a run leaves in its directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use stages::method::layout::parameter_count;
use stages::train::grids;
use stages::train::run_dir::{Metrics, RunDir};

use crate::config::RunConfig;
use crate::exit::Outcome;
use crate::report::chart::{end_of, window};
use crate::report::comparison::{Entry, Line, Part, differing, letter, page};
use crate::report::training::{StepGrid, Training};
use crate::show;

/// Put runs and evaluations side by side: tables of what they came to and of the settings in which they differ, curves, and of
/// each run its sample grids.
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
const FIGURES: [(&str, &str); 9] = [
    ("fid", "FID"),
    ("sfid", "sFID"),
    ("is", "IS"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("latent_frechet", "latent Frechet"),
    ("nearest_neighbour_accuracy", "nearest neighbour accuracy"),
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
    let read = runs.iter().map(|path| Run::read(path)).collect::<Result<Vec<_>>>()?;
    if !read.is_empty() {
        parts.push(of_runs(&read)?);
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
        let named = |(index, run): (usize, &Run)| {
            run.training((read.len() > 1).then(|| format!("{}, {}", letter(index), run.name)))
        };
        let page = page("Comparison", &lead, &parts, &read.iter().enumerate().map(named).collect::<Result<Vec<_>>>()?)?;
        fs::write(out, page).with_context(|| format!("cannot write {}", out.display()))?;
        show::say(&format!("wrote {}", out.display()));
    }
    Ok(Outcome::Done)
}

/// Writes `RUN/report.html`, whole or not at all: curves and sample grids of one run.
pub(crate) fn write_page(run: &Path) -> Result<PathBuf> {
    let read = Run::read(run)?;
    let lead = "What this run logged, and what its averaged weights drew on the way; its settings are in config.toml beside this \
                page, which is written anew whenever the run ends or is stopped.";
    let text =
        page(&format!("Run {}", read.name), lead, &[of_runs(std::slice::from_ref(&read))?], &[read.training(None)?])?;
    let path = RunDir::at(run).report();
    let temporary = path.with_extension("tmp");
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The sample grids that training left behind, or some of them, evenly spread, where there are many.
pub(crate) fn grids(run: &RunDir) -> Result<Vec<StepGrid>> {
    const MOST: usize = 8;
    let all = grids::list(&run.samples()).context("cannot list the sample grids of the run")?;
    let shown = all.len().min(MOST);
    // The last one is always among them.
    let chosen = (1..=shown).map(|n| &all[n * all.len() / shown - 1]);
    let read = |(step, path): &(u64, PathBuf)| {
        let png = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(StepGrid { step: *step, png })
    };
    chosen.map(read).collect()
}

/// What a run directory holds.
struct Run {
    dir: RunDir,
    name: String,
    config: RunConfig,
    metrics: Vec<Metrics>,
}

impl Run {
    fn read(path: &Path) -> Result<Self> {
        let dir = RunDir::at(path);
        let text = dir.config()?.with_context(|| format!("{} holds no run (it has no config.toml)", path.display()))?;
        let (config, metrics) = (RunConfig::parse(&text, path)?, dir.read_metrics()?);
        Ok(Self { dir, name: name(path), config, metrics })
    }

    fn training(&self, name: Option<String>) -> Result<Training> {
        Ok(Training::of(name, &self.metrics, &grids(&self.dir)?))
    }
}

fn of_runs(runs: &[Run]) -> Result<Part> {
    let mut entries = Vec::new();
    for Run { name, config, metrics, .. } in runs {
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
        entries.push(Entry { name: name.clone(), figures, settings: flat(&serde_json::to_value(config)?) });
    }
    let records = runs.iter().map(|run| run.metrics.len()).max().unwrap_or_default();
    let mean = match window(records) {
        1 => String::new(),
        n => format!(" Losses, cosine and speed are means over the last {n} records or fewer."),
    };
    let mut part = Part::new("Runs", &entries, vec![format!("Velocity loss: Eq. 7, on training images.{mean}")]);
    if runs.len() == 1 {
        // It is drawn by itself.
        return Ok(part);
    }
    let velocity: fn(&Metrics) -> f64 = |line| line.velocity_loss;
    for (title, of) in [("Velocity loss", velocity), ("Cosine of the projected views", view_cosine)] {
        let line = |(index, run): (usize, &Run)| {
            let points =
                run.metrics.iter().map(|line| (line.step as f64, of(line))).filter(|point| point.1.is_finite());
            Line { name: letter(index), points: points.collect() }
        };
        let lines: Vec<_> = runs.iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect();
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
    // Other measures of the same pictures, and no settings.
    let measures = ["latent_frechet_of_reference_halves", "chance", "by_class", "train_accuracy", "distance_to_train"];
    settings.retain(|key, _| !measures.contains(&key.split('.').next().unwrap_or_default()));
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
