//! FID, sFID, Inception Score, precision and recall, as the ADM evaluator computes them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use pipeline::{Flow, Runtime};
use serde::Serialize;
use stages::device::{Device, parse_devices};
use stages::evaluate::features::{CollectFeatures, ExtractFeatures, Keep, Statistics};
use stages::evaluate::precision_recall::{Arithmetic, NEIGHBOURS, PrecisionRecall};
use stages::evaluate::reference::Stored;
use stages::evaluate::stored_features;
use stages::nets::inception::Inception;

use super::EvaluateArgs;
use super::input::{Content, Identity, Input, same_size};
use super::record::{Circumstances, tell};
use crate::exit::Outcome;
use crate::show::{self, Progress};

/// What concerns features of networks.
#[derive(Debug, Clone, Args)]
pub(crate) struct MetricsArgs {
    /// Weights of the Inception network of FID: FID, sFID, IS, precision and recall in place of nearest neighbours;
    /// --samples and --reference may then be .npz files (docs/evaluation.md)
    #[arg(long, value_name = "F.safetensors", group = "network", conflicts_with = "train")]
    pub(crate) inception: Option<PathBuf>,
    /// Without Inception weights: the Frechet distance of latents of the autoencoder, which is no FID
    #[arg(long, value_enum, group = "network", conflicts_with = "train")]
    pub(crate) features: Option<FeaturesArg>,
    /// Autoencoder of --features vae: tiny, or a diffusers directory
    #[arg(long, value_name = "VAE", default_value = "tiny", requires = "features")]
    pub(crate) vae: String,
    /// What distances for precision and recall are computed in: f16 rounds as the ADM evaluator does
    #[arg(long, value_enum, default_value_t = DistancesArg::F16, requires = "inception")]
    distances: DistancesArg,
    /// Keep the samples' features, for --samples or --reference of another time
    #[arg(long, value_name = "F.npz", requires = "inception")]
    pub(super) save_features: Option<PathBuf>,
    /// Crop the pictures of the reference's folder to so many pixels a side, as ADM does
    #[arg(long, value_name = "N", requires = "network")]
    pub(crate) crop: Option<usize>,
    /// auto, cpu or cuda:0
    #[arg(long, default_value = "auto", requires = "network")]
    pub(crate) devices: String,
    /// Pictures that go through the network together
    #[arg(long, value_name = "N", default_value_t = 32, requires = "network")]
    pub(crate) batch: usize,
    /// Keep the numbers, and all that decides them, in this JSON file [default: beside the samples, SAMPLES.inception.json,
    /// SAMPLES.vae.json or SAMPLES.nearest.json, which the next one of its kind replaces]
    #[arg(long, value_name = "F.json")]
    pub(super) record: Option<PathBuf>,
}

#[cfg(test)]
impl Default for MetricsArgs {
    fn default() -> Self {
        Self {
            inception: None,
            features: None,
            vae: "tiny".to_owned(),
            distances: DistancesArg::F16,
            save_features: None,
            crop: None,
            devices: "cpu".to_owned(),
            batch: 32,
            record: None,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FeaturesArg {
    Vae,
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
    #[serde(flatten)]
    circumstances: Circumstances,
}

fn there_are_weights(path: &Path) -> Result<()> {
    if !path.is_file() {
        bail!(
            "{}: no such file; docs/evaluation.md says how Inception's weights are made, and `evaluate --features vae` \
             measures without them",
            path.display()
        );
    }
    Ok(())
}

/// A set through the network, and what identifies it.
pub(crate) struct Measured {
    pub(crate) statistics: Statistics,
    stored: Option<Stored>,
    identity: Identity,
}

pub(super) fn run(args: &EvaluateArgs, inception: &Path, runtime: &Runtime) -> Result<Outcome> {
    let metrics = &args.metrics;
    // All that can be refused is refused before anything long.
    there_are_weights(inception)?;
    let [samples, reference] = [("samples", &args.samples, None), ("reference", &args.reference, metrics.crop)]
        .map(|(what, path, crop)| Input::open(what, path, metrics.batch, crop));
    let (samples, reference) = (samples?, reference?);
    if samples.count() < 2 {
        bail!(
            "{}: holds {} picture, and a distance of distributions needs two at least",
            samples.path.display(),
            samples.count()
        );
    }
    let has_statistics = reference.stored.as_ref().is_some_and(Stored::has_statistics);
    if !has_statistics && reference.count() < 2 {
        bail!(
            "{}: holds {} picture and no mu and sigma; a reference is two pictures at least, or their statistics",
            reference.path.display(),
            reference.count()
        );
    }
    same_size(&samples, &reference)?;
    let network = Network::open(inception, &metrics.devices, metrics.batch)?;
    for input in [&samples, &reference] {
        if let Some(made_with) = input.stored.as_ref().and_then(|stored| stored.made_with.as_ref())
            && *made_with != format!("{:016x}", network.weights)
        {
            bail!(
                "{}: it was made with other Inception weights ({made_with}) than {} ({:016x})",
                input.path.display(),
                inception.display(),
                network.weights
            );
        }
    }

    let stopped = || Ok(Outcome::Interrupted("stopped; evaluation leaves nothing behind, run it again".to_owned()));
    let sampling = samples.sampling.clone();
    let sorted = samples.sorted || sampling["label_scheme"] == "balanced";
    let keep = if metrics.save_features.is_some() { Keep::All } else { Keep::Pooled };
    let Some(samples) = network.measure(samples, keep, runtime)? else { return stopped() };
    if let Some(path) = &metrics.save_features {
        let text = (!sampling.is_null()).then(|| sampling.to_string());
        stored_features::save(path, &samples.statistics, network.weights, text.as_deref())?;
    }
    let Some(reference) = network.measure(reference, Keep::Pooled, runtime)? else { return stopped() };

    if sorted && samples.statistics.score.is_some() {
        show::say(
            "warning: the samples are sorted by class, so each 5,000 that IS is computed of have few of them, and it is a fraction \
             of what it is in random order (`pipeline sample --labels random`)",
        );
    }
    let distances = match metrics.distances {
        DistancesArg::F16 => Arithmetic::Half,
        DistancesArg::F32 => Arithmetic::Single,
    };
    let circumstances = Circumstances {
        crop: metrics.crop,
        batch: Some(metrics.batch),
        ..Circumstances::of(reference.identity.xxh3(), samples.identity.xxh3(), sampling, kind_of(&network.devices))
    };
    let found = of(&samples, &reference, distances, network.weights, circumstances)?;
    tell(args, "inception", &found, &lines(&found))?;
    Ok(Outcome::Done)
}

fn of(
    samples: &Measured,
    reference: &Measured,
    distances: Arithmetic,
    weights: u64,
    circumstances: Circumstances,
) -> Result<Metrics> {
    let (ours, theirs) = (&samples.statistics, &reference.statistics);
    let stored = reference.stored.as_ref().filter(|stored| stored.has_statistics());
    // A file with statistics is taken at its word, also where it lacks those of sFID: its pictures are others.
    let [pool, spatial] = match stored {
        Some(Stored { pool, spatial, .. }) => [pool.as_ref(), spatial.as_ref()],
        None => [theirs.pool.as_ref(), theirs.spatial.as_ref()],
    };
    let enough = |statistics: &Statistics| statistics.count > NEIGHBOURS as u64;
    let manifolds =
        (enough(ours) && enough(theirs)).then(|| PrecisionRecall::of(&ours.features, &theirs.features, distances));
    Ok(Metrics {
        fid: ours.pool.as_ref().zip(pool).map(|(ours, theirs)| ours.distance(theirs)).transpose()?,
        sfid: ours.spatial.as_ref().zip(spatial).map(|(ours, theirs)| ours.distance(theirs)).transpose()?,
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
        circumstances,
    })
}

/// Inception on some devices.
pub(crate) struct Network {
    path: PathBuf,
    devices: Vec<Device>,
    batch: usize,
    /// xxh3 of its weights.
    pub(crate) weights: u64,
}

impl Network {
    /// Reads the weights once, so that wrong ones are refused here.
    pub(crate) fn open(path: &Path, devices: &str, batch: usize) -> Result<Self> {
        there_are_weights(path)?;
        let weights = Inception::open(path, Device::Cpu)?.weights_xxh3();
        Ok(Self { path: path.to_owned(), devices: parse_devices(devices)?, batch, weights })
    }

    /// Statistics, and the features that are to be kept. `None` if an interrupt was requested before the end.
    pub(crate) fn measure(&self, input: Input, keep: Keep, runtime: &Runtime) -> Result<Option<Measured>> {
        let (identity, what, count, batch) = (input.identity.clone(), input.what, input.count(), self.batch as u64);
        let mut input = input;
        let stored = input.stored.take();
        let sink = CollectFeatures::of(count, keep);
        let finished = match input.content {
            Content::Nothing => {
                let statistics = CollectFeatures::nothing();
                return Ok(Some(Measured { statistics, stored, identity }));
            }
            Content::Features(features) => Flow::from(*features).into(sink).run(runtime)?, // FeatureBatch
            Content::Folder(_) | Content::Npz(_) => {
                let network = ExtractFeatures::on(self.path.clone(), self.devices.clone());
                let mut progress = Progress::new("features", count);
                #[rustfmt::skip]
                let finished = input.pictures(self.batch)?          // -> PictureBatch  u8 [B, H, W, 3]
                    .then(network).workers(self.devices.len())      // -> FeatureBatch
                    .into(sink)
                    .observe(progress.interval(), move |report| {
                        let batches = report.stages.last().map_or(0, |stage| stage.items);
                        let done = (batches * batch).min(count);
                        progress.at(done, &format!("features of {done}/{count} {what}"));
                    })
                    .run(runtime)?;
                finished
            }
        };
        Ok((!finished.interrupted).then_some(Measured { statistics: finished.output, stored, identity }))
    }
}

/// `cpu` or `cuda`.
pub(super) fn kind_of(devices: &[Device]) -> &'static str {
    match devices.first() {
        Some(Device::Cuda(_)) => "cuda",
        _ => "cpu",
    }
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
        number(sfid, "unavailable: the samples or the reference have no spatial features, mu_s and sigma_s"),
        number(is, "unavailable: the samples' features have no logits"),
        number(precision, "unavailable: that needs four samples and four reference pictures"),
        number(recall, "unavailable: that needs four samples and four reference pictures"),
    )
}
