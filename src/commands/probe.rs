//! `pipeline probe`: what a run has learned, on data that it was not trained on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

mod asked;
mod found;

use anyhow::{Result, bail};
use clap::Args;
use pipeline::{Flow, Runtime};
use shards::Dataset;
use stages::device::{Device, parse_devices, parse_precision};
use stages::evaluate::frechet::LatentDistance;
use stages::load::feed::{Feeder, Scaling};
use stages::load::{self, LoadConfig};
use stages::method::sampler::{Diffusion, Guidance, Integrator};
use stages::probe::collect::{CollectLatents, Latents};
use stages::probe::layers::{self, LayerFeatures};
use stages::probe::{linear, velocity};
use stages::sample::collect::CollectSamples;
use stages::sample::generate::{Generate, SampleSettings};
use stages::sample::request::{Labels, Requests};

use crate::commands::reading::ReadingArgs;
use crate::config::RunConfig;
use crate::exit::Outcome;
use crate::show;
use crate::trained::Trained;
use found::{Found, LatentFrechet, LayerFound};

/// Measure the averaged weights of a run on held-out data: velocity loss by time, linear probe of the aligned features,
/// and a Frechet distance between sampled and real latents.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProbeArgs {
    /// Run directory of `pipeline train`; its newest checkpoint is used
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Dataset that was not trained on, with the classes of the run
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// Dataset that the linear classifier is fitted to [default: half of --data]
    #[arg(long, value_name = "DATA")]
    fit: Option<PathBuf>,
    /// Latents of each dataset that are used, the first in an order of their own
    #[arg(long, value_name = "N", default_value_t = 2048)]
    count: u64,
    /// Blocks whose features are probed, from 1: `all`, or some, as 2,4,6; of a decoupled network the encoder's come first
    /// [default: the one that is aligned]
    #[arg(long, value_name = "L,..", value_parser = asked::layers)]
    layers: Option<asked::Layers>,
    /// Times at which features are taken, 0 is data
    #[arg(long, value_name = "T,..", value_delimiter = ',', default_value = "0")]
    t: Vec<f64>,
    /// Latents to sample for the Frechet distance; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 512)]
    samples: u64,
    /// Euler steps of these samples, which are made without guidance
    #[arg(long, value_name = "N", default_value_t = 50)]
    steps: usize,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Seed of noise, times and samples
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Latents that go through the network together
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: i64,
    /// cpu or cuda:0
    #[arg(long, default_value = "auto")]
    devices: String,
    /// auto, f32 or bf16
    #[arg(long, default_value = "f32")]
    precision: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Latents that the loader puts together.
const READ: usize = 16;

pub(crate) fn run(args: &ProbeArgs, runtime: &Runtime) -> Result<Outcome> {
    let (batch, device) = (args.batch.max(1), parse_devices(&args.devices)?[0]);
    let kind = parse_precision(&args.precision, device)?;
    asked::check_times(&args.t)?;
    let Trained { config, weights, file, step } = Trained::open(&args.run)?;
    let aligned = config.model.encoder_depth;
    let blocks = match &args.layers {
        None => vec![aligned],
        Some(layers) => layers.of(config.model.depth)?,
    };
    let network = weights.network(device, kind);

    let stopped = || Ok(Outcome::Interrupted("stopped; nothing was measured".to_owned()));
    let Some(held_out) = latents(args, &args.data, &config, device, runtime)? else { return stopped() };
    let (fit, test) = match &args.fit {
        Some(place) => {
            let Some(fit) = latents(args, place, &config, device, runtime)? else { return stopped() };
            (fit, held_out.narrow(0, held_out.len()))
        }
        None => {
            let half = held_out.len() / 2;
            (held_out.narrow(0, half), held_out.narrow(half, held_out.len() - half))
        }
    };
    let by_t = velocity::by_time(&network, &held_out, args.seed, batch)?;
    let classes = config.data.latent.classes;
    let mut layers = Vec::new();
    for &t in &args.t {
        let features = |data: &Latents| layers::features(&network, data, &blocks, t, args.seed, batch);
        for (train, test_features) in features(&fit)?.iter().zip(features(&test)?) {
            let LayerFeatures { layer, values, .. } = test_features;
            let linear_probe = linear::accuracy((&train.values, &fit.labels), (&values, &test.labels), classes);
            layers.push(LayerFound { layer, t, linear_probe });
        }
    }

    let latent_frechet = match args.samples {
        0 => None,
        sampled => {
            let guidance = Guidance { scale: 1.0, low: 0.0, high: 1.0 };
            let (sampler, diffusion) = (Integrator::Ode, Diffusion::TwoSigma);
            let settings = SampleSettings { sampler, diffusion, steps: args.steps, guidance, seed: args.seed };
            let classes: Vec<_> = (0..classes).collect();
            let requests = Requests::new(&classes, Labels::Balanced, sampled, batch as u64, args.seed);
            let finished = Flow::from(requests) //                                -> SampleRequest
                .then(Generate::on(weights, settings, vec![device], kind, None)) // -> SampleLatents  f32 [B, C, h, w]
                .into(CollectSamples::default())
                .run(runtime)?;
            let Some(samples) = finished.output.filter(|_| !finished.interrupted) else { return stopped() };
            let distance = LatentDistance::of(&samples, &held_out.latents);
            Some(LatentFrechet { distance, sampled, steps: args.steps })
        }
    };
    let found = Found {
        checkpoint: file.display().to_string(),
        step,
        count: held_out.len(),
        velocity_loss: by_t.iter().sum::<f64>() / by_t.len() as f64,
        velocity_loss_by_t: by_t,
        linear_probe: layers.iter().find(|found| found.layer == aligned).map(|found| found.linear_probe),
        linear_probe_chance: test.most_frequent(classes),
        linear_probe_t: args.t[0],
        aligned_layer: aligned,
        layers,
        latent_frechet,
    };
    match args.json {
        true => show::result(&serde_json::to_string(&found)?),
        false => show::result(&found.table()),
    }
    Ok(Outcome::Done)
}

/// Up to --count latents of a dataset with the shape and classes of the run; `None` if the run was stopped.
fn latents(
    args: &ProbeArgs,
    place: &Path,
    config: &RunConfig,
    device: Device,
    runtime: &Runtime,
) -> Result<Option<Latents>> {
    let dataset = Arc::new(Dataset::open(place, args.reading.io())?);
    let manifest = &dataset.manifest;
    if manifest.classes != config.data.class_names {
        bail!(
            "{} has {} classes, and the run was trained on {} of other names or in another order",
            place.display(),
            manifest.classes.len(),
            config.data.class_names.len()
        );
    }
    let batches = (args.count / READ as u64).min((dataset.len() / READ) as u64);
    if batches < 2 {
        bail!(
            "{} has {} latents, --count is {}; at least {} are needed to measure anything",
            place.display(),
            dataset.len(),
            args.count,
            2 * READ
        );
    }
    let mut load = args.reading.apply(LoadConfig { batches: Some(batches), ..LoadConfig::new(0, READ) });
    load.pinned = device.is_cuda();
    let sink = CollectLatents::new(Feeder::new(device, Scaling::of(&manifest.schema)));
    let finished = load::batches(&dataset, &load)?.into(sink).run(runtime)?;
    let Some(latents) = finished.output.filter(|_| !finished.interrupted) else { return Ok(None) };
    let data = &config.data.latent;
    let (found, expected) = (latents.latents.size()[1..].to_vec(), [data.channels, data.height, data.width]);
    if found != expected {
        bail!("{} has latents {found:?}, and the run was trained on {expected:?}", place.display());
    }
    Ok(Some(latents))
}
