//! FID, sFID, Inception Score, precision and recall, as the ADM evaluator computes them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use pipeline::{Flow, Runtime};
use serde::Serialize;
use serde_json::Value;
use stages::device::{Device, cores, parse_devices};
use stages::encode::decode::Decode;
use stages::encode::list::ListImages;
use stages::evaluate::features::{CollectFeatures, ExtractFeatures, Statistics};
use stages::evaluate::pictures::{self, GatherPictures, NpzPictures};
use stages::evaluate::precision_recall::{Arithmetic, NEIGHBOURS, PrecisionRecall};
use stages::evaluate::reference::Stored;
use stages::exchange::npz::Npz;
use stages::nets::inception::Inception;

use super::EvaluateArgs;
use crate::exit::Outcome;
use crate::show::{self, Progress};

/// What concerns the metrics on Inception's features.
#[derive(Debug, Clone, Args)]
pub(crate) struct MetricsArgs {
    /// Weights of the Inception network of FID: FID, sFID, IS, precision and recall in place of nearest neighbours;
    /// --samples and --reference may then be .npz files (docs/evaluation.md)
    #[arg(long, value_name = "F.safetensors", conflicts_with = "train")]
    pub(crate) inception: Option<PathBuf>,
    /// What distances for precision and recall are computed in: f16 rounds as the ADM evaluator does
    #[arg(long, value_enum, default_value_t = DistancesArg::F16, requires = "inception")]
    distances: DistancesArg,
    /// auto, cpu or cuda:0
    #[arg(long, default_value = "auto", requires = "inception")]
    devices: String,
    /// Pictures that go through the network together
    #[arg(long, value_name = "N", default_value_t = 32, requires = "inception")]
    batch: usize,
    /// Write the numbers, and all that decides them, to this JSON file as well
    #[arg(long, value_name = "F.json", requires = "inception")]
    record: Option<PathBuf>,
}

#[cfg(test)]
impl Default for MetricsArgs {
    fn default() -> Self {
        let (devices, batch) = ("cpu".to_owned(), 32);
        Self { inception: None, distances: DistancesArg::F16, devices, batch, record: None }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DistancesArg {
    F16,
    F32,
}

/// The five numbers, and everything that changes them. A number is null where the reference does not hold what it needs.
#[derive(Debug, Serialize)]
struct Metrics {
    fid: Option<f64>,
    sfid: Option<f64>,
    is: Option<f64>,
    precision: Option<f64>,
    recall: Option<f64>,
    /// Number of samples.
    count: u64,
    /// Number of reference pictures that went through the network.
    reference_count: u64,
    /// Whether FID's reference statistics were stored in the file, and not computed from its pictures.
    reference_statistics_stored: bool,
    /// Parts of 5,000 samples that IS is the mean of.
    is_parts: usize,
    neighbours: i64,
    distances: Arithmetic,
    /// xxh3 of the Inception weights.
    inception: String,
    /// xxh3 of the reference's arrays, or of the names of its files.
    reference: String,
    /// `samples.json` without the class of each image; null for samples of other origin.
    sampling: Value,
    version: &'static str,
}

/// Pictures of a set through the network, and what identifies the set.
struct Measured {
    statistics: Statistics,
    stored: Option<Stored>,
    identity: u64,
}

pub(super) fn run(args: &EvaluateArgs, inception: &Path, runtime: &Runtime) -> Result<Outcome> {
    let metrics = &args.metrics;
    // Before anything long: wrong weights are refused here.
    let weights = Inception::open(inception, Device::Cpu)?.weights_xxh3();
    let devices = parse_devices(&metrics.devices)?;
    let measure = |what, path| measure(what, path, inception, &devices, metrics.batch, runtime);
    let stopped = || Ok(Outcome::Interrupted("stopped; evaluation leaves nothing behind, run it again".to_owned()));
    let Some(samples) = measure("samples", &args.samples)? else { return stopped() };
    let Some(reference) = measure("reference", &args.reference)? else { return stopped() };

    let sampling = sampling(&args.samples);
    if sampling["label_scheme"] == "balanced" && samples.statistics.count > 1 {
        show::say(
            "the samples are sorted by class (--labels balanced), which makes IS of 5,000 consecutive images small",
        );
    }
    let distances = match metrics.distances {
        DistancesArg::F16 => Arithmetic::Half,
        DistancesArg::F32 => Arithmetic::Single,
    };
    let found = of(&samples, &reference, distances, weights, sampling);
    let json = serde_json::to_string(&found)?;
    if let Some(path) = &metrics.record {
        fs::write(path, &json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    show::result(&if args.json { json } else { lines(&found) });
    Ok(Outcome::Done)
}

fn of(samples: &Measured, reference: &Measured, distances: Arithmetic, weights: u64, sampling: Value) -> Metrics {
    let (ours, theirs) = (&samples.statistics, &reference.statistics);
    let stored = reference.stored.as_ref().filter(|stored| stored.pool.is_some() || stored.spatial.is_some());
    // A file with statistics is taken at its word, also where it lacks those of sFID: its pictures are others.
    let [pool, spatial] = match stored {
        Some(Stored { pool, spatial }) => [pool.as_ref(), spatial.as_ref()],
        None => [theirs.pool.as_ref(), theirs.spatial.as_ref()],
    };
    let enough = |statistics: &Statistics| statistics.count > NEIGHBOURS as u64;
    let manifolds =
        (enough(ours) && enough(theirs)).then(|| PrecisionRecall::of(&ours.features, &theirs.features, distances));
    Metrics {
        fid: ours.pool.as_ref().zip(pool).map(|(ours, theirs)| ours.distance(theirs)),
        sfid: ours.spatial.as_ref().zip(spatial).map(|(ours, theirs)| ours.distance(theirs)),
        is: ours.score.map(|(score, _)| score),
        precision: manifolds.map(|found| found.precision),
        recall: manifolds.map(|found| found.recall),
        count: ours.count,
        reference_count: theirs.count,
        reference_statistics_stored: stored.is_some(),
        is_parts: ours.score.map_or(0, |(_, parts)| parts),
        neighbours: NEIGHBOURS,
        distances,
        inception: format!("{weights:016x}"),
        reference: format!("{:016x}", reference.identity),
        sampling,
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// `None` if an interrupt was requested before the end.
fn measure(
    what: &'static str,
    path: &Path,
    inception: &Path,
    devices: &[Device],
    batch: usize,
    runtime: &Runtime,
) -> Result<Option<Measured>> {
    let network = ExtractFeatures::on(inception.to_owned(), devices.to_vec());
    let n = devices.len();
    let observed = |count: u64| {
        let mut progress = Progress::new("features", count);
        let every = progress.interval();
        (every, move |report: &pipeline::Report| {
            let batches = report.stages.last().map_or(0, |stage| stage.items);
            let done = (batches * batch as u64).min(count);
            progress.at(done, &format!("features of {done}/{count} {what}"));
        })
    };
    let (finished, stored, identity) = if path.is_dir() {
        let list = pictures::list(path)?;
        let (identity, (every, look)) = (list.hash(), observed(list.len() as u64));
        #[rustfmt::skip]
        let finished = Flow::from(ListImages::all(list))        // -> ImageRef
            .then(Decode::skipping).workers(cores())            // -> Decoded       u8 [H, W, 3]
            .regroup(GatherPictures::of(batch))                 // -> PictureBatch  u8 [B, H, W, 3]
            .depth(1)
            .then(network).workers(n)                           // -> FeatureBatch
            .into(CollectFeatures::default())
            .observe(every, look)
            .run(runtime)?;
        (finished, None, identity)
    } else {
        let npz = Npz::open(path)?;
        let stored = Stored::read(&npz)?;
        let identity = npz.identity();
        if !npz.has("arr_0") && (stored.pool.is_some() || stored.spatial.is_some()) {
            let statistics = CollectFeatures::nothing();
            return Ok(Some(Measured { statistics, stored: Some(stored), identity }));
        }
        let source = NpzPictures::open(&npz, batch)?;
        let (every, look) = observed(source.count());
        #[rustfmt::skip]
        let finished = Flow::from(source)                       // -> PictureBatch  u8 [B, H, W, 3]
            .depth(1)
            .then(network).workers(n)                           // -> FeatureBatch
            .into(CollectFeatures::default())
            .observe(every, look)
            .run(runtime)?;
        (finished, Some(stored), identity)
    };
    if finished.interrupted {
        return Ok(None);
    }
    if finished.output.count < 2 && what == "samples" {
        bail!(
            "{}: holds {} picture, and a distance of distributions needs two at least",
            path.display(),
            finished.output.count
        );
    }
    Ok(Some(Measured { statistics: finished.output, stored, identity }))
}

/// The record of `pipeline sample` in or beside the samples, without the class of each image.
fn sampling(samples: &Path) -> Value {
    let folder = if samples.is_dir() { Some(samples) } else { samples.parent() };
    let text = folder.and_then(|folder| fs::read(folder.join("samples.json")).ok()).unwrap_or_default();
    let mut record: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    if let Some(fields) = record.as_object_mut() {
        ["labels", "class_names", "classes"].into_iter().for_each(|long| {
            fields.remove(long);
        });
    }
    record
}

/// What a person reads.
fn lines(metrics: &Metrics) -> String {
    let Metrics { fid, sfid, is, precision, recall, count, reference_count, .. } = metrics;
    let number = |value: &Option<f64>, lacking: &str| value.map_or(lacking.to_owned(), |value| format!("{value:.4}"));
    let of = match metrics.reference_statistics_stored {
        true => "the statistics in the reference file".to_owned(),
        false => format!("{reference_count} reference pictures"),
    };
    format!(
        "{count} samples against {of}\nFID        {}\nsFID       {}\nIS         {}\nprecision  {}\nrecall     {}\n",
        number(fid, "unavailable: the reference has no mu and sigma, and fewer than two pictures"),
        number(sfid, "unavailable: the reference has no mu_s and sigma_s"),
        number(is, "unavailable: there are no samples"),
        number(precision, "unavailable: that needs four samples and four reference pictures"),
        number(recall, "unavailable: that needs four samples and four reference pictures"),
    )
}
