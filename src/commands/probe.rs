//! `pipeline probe`: what a run has learned, on data that it was not trained on.

mod asked;
mod found;
mod plot;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use pipeline::{Flow, Runtime};
use shards::Dataset;
use stages::device::{Device, parse_devices, parse_precision, precision_name};
use stages::evaluate::frechet::LatentDistance;
use stages::load::feed::{Feeder, Scaling};
use stages::load::{self, LoadConfig};
use stages::method::sampler::{Diffusion, Guidance, Integrator};
use stages::probe::cknna::Neighbours;
use stages::probe::collect::{CollectLatents, Latents};
use stages::probe::files::{self, GivenFeatures};
use stages::probe::sweep::{Split, Sweep};
use stages::probe::{velocity, views};
use stages::sample::collect::CollectSamples;
use stages::sample::generate::{Generate, SampleSettings};
use stages::sample::request::{Labels, Requests};
use stages::train::run_dir::RunDir;

use crate::commands::reading::ReadingArgs;
use crate::commands::writing;
use crate::config::RunConfig;
use crate::exit::Outcome;
use crate::show;
use crate::trained::Trained;
use asked::{AlignmentArgs, RecipeArgs};
use found::{CknnaFound, Found, LatentFrechet, RecipeFound};

/// Measure the averaged weights of a run on held-out data: velocity loss by time, linear probe and CKNNA of its layers,
/// similarity of views, and a Frechet distance between sampled and real latents.
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
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    alignment: AlignmentArgs,
    /// Write the held-out features of these layers and times to a safetensors file, which --cknna of another run reads
    #[arg(long, value_name = "F.safetensors")]
    save_features: Option<PathBuf>,
    /// Held-out images of which two noisy views are compared; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 0)]
    views: i64,
    /// Draw layers and views as a .svg or .html file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Latents to sample for the Frechet distance, at least 4; 0 leaves it out
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
    args.recipe.check()?;
    asked::check_samples(args.samples, args.steps)?;
    if args.views == 1 {
        bail!(
            "--views 1: views of different images are compared too, so two images are needed at least, or 0 for none"
        );
    }
    args.plot.as_deref().map(plot::check).transpose()?;
    args.save_features.iter().try_for_each(|path| writing::free("--save-features", path))?;
    let Trained { config, weights, file, step } = Trained::open(&args.run)?;
    let aligned = config.model.encoder_depth;
    let blocks = match &args.layers {
        None => vec![aligned],
        Some(layers) => layers.of(config.model.depth)?,
    };
    let AlignmentArgs { cknna, cknna_tensor, .. } = &args.alignment;
    let given = cknna.as_deref().map(|path| GivenFeatures::open(path, cknna_tensor.as_deref())).transpose()?;
    let network = weights.network(device, kind);
    let weights_xxh3 = format!("{:016x}", weights.xxh3());

    let stopped = || Ok(Outcome::Interrupted("stopped; nothing was measured".to_owned()));
    let Some(HeldOut { latents: held_out, samples, identity }) = latents(args, &args.data, &config, device, runtime)?
    else {
        return stopped();
    };
    let (fit, fit_dataset) = match &args.fit {
        Some(place) => {
            let Some(fit) = latents(args, place, &config, device, runtime)? else { return stopped() };
            (Some(fit.latents), Some(fit.identity))
        }
        None => (None, None),
    };
    let split = Split { held_out, fit };
    let held_out = &split.held_out;
    let settings = args.alignment.settings();
    let other = match &given {
        Some(given) => {
            let rows = given.rows(&held_out.positions, samples)?.to_device(device);
            Some(Neighbours::of(&rows, &settings)?)
        }
        None => None,
    };
    let by_t = velocity::by_time(&network, held_out, args.seed, batch)?;
    let classes = config.data.latent.classes;
    let recipe = args.recipe.of(split.fit_len(), args.seed);
    let other = other.as_ref().map(|other| (other, &settings));
    let sweep = Sweep { layers: &blocks, times: &args.t, classes, recipe, other, seed: args.seed, batch };
    let mut saved = Vec::new();
    let layers = sweep.run(&network, &split, |features| {
        if args.save_features.is_some() {
            saved.push(features);
        }
    })?;
    if let Some(path) = &args.save_features {
        files::save(path, held_out, &saved)?;
    }
    let views = match args.views {
        ..=0 => None,
        count => {
            let compared = held_out.narrow(0, count.min(held_out.len()));
            Some(views::similarity(&network, &compared, args.seed, batch)?)
        }
    };

    let latent_frechet = match args.samples {
        0 => None,
        sampled => {
            let guidance = Guidance { scale: 1.0, low: 0.0, high: 1.0 };
            let (sampler, diffusion) = (Integrator::Ode, Diffusion::TwoSigma);
            let settings =
                SampleSettings { sampler, diffusion, steps: args.steps, guidance, share_encoder: 1, seed: args.seed };
            let classes: Vec<_> = (0..classes).collect();
            let requests = Requests::new(&classes, Labels::Balanced, sampled, batch as u64, args.seed);
            let finished = Flow::from(requests) //                                -> SampleRequest
                .then(Generate::on(weights, settings, vec![device], kind, None)) // -> SampleLatents  f32 [B, C, h, w]
                .into(CollectSamples::default())
                .run(runtime)?;
            let Some(samples) = finished.output.filter(|_| !finished.interrupted) else { return stopped() };
            let distance = LatentDistance::of(&samples, &held_out.latents)?;
            Some(LatentFrechet { distance, sampled, steps: args.steps })
        }
    };
    let test = split.test();
    let found = Found {
        version: env!("CARGO_PKG_VERSION"),
        weights_xxh3,
        precision: precision_name(kind),
        seed: args.seed,
        dataset: identity,
        fit_dataset,
        checkpoint: file.display().to_string(),
        step,
        count: held_out.len(),
        held_out: samples,
        velocity_loss: by_t.iter().sum::<f64>() / by_t.len() as f64,
        velocity_loss_by_t: by_t,
        linear_probe: layers.iter().find(|found| found.layer == aligned).map(|found| found.linear_probe),
        linear_probe_chance: test.most_frequent(classes),
        linear_probe_t: args.t[0],
        linear_probe_recipe: RecipeFound::of(args.recipe.name(), recipe.as_ref(), split.fit_len(), test.len()),
        aligned_layer: aligned,
        layers,
        cknna: given.zip(cknna.as_ref()).map(|(given, path)| {
            CknnaFound::of(path.display().to_string(), given.name, given.xxh3, held_out.len(), &settings)
        }),
        views,
        latent_frechet,
    };
    match args.json {
        true => show::result(&serde_json::to_string(&found)?),
        false => show::result(&found.table()),
    }
    // Behind the numbers, which a path that cannot be written must not cost.
    if let Some(path) = &args.plot {
        plot::write(path, &found, &RunDir::at(&args.run).read_metrics()?)?;
    }
    Ok(Outcome::Done)
}

/// Latents of a dataset that was not trained on.
struct HeldOut {
    latents: Latents,
    /// How many the dataset has.
    samples: u64,
    /// Its hash.
    identity: String,
}

/// Up to --count latents of a dataset with the shape and classes of the run; `None` if this command was stopped.
fn latents(
    args: &ProbeArgs,
    place: &Path,
    config: &RunConfig,
    device: Device,
    runtime: &Runtime,
) -> Result<Option<HeldOut>> {
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
    let identity = format!("{:016x}", dataset.hash());
    Ok(Some(HeldOut { latents, samples: dataset.len() as u64, identity }))
}
