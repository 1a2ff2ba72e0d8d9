//! `evaluate --features vae`: a Frechet distance of latents, where there are no Inception weights.

use anyhow::{Result, bail};
use pipeline::Runtime;
use serde::Serialize;
use stages::device::{Device, Kind, parse_devices};
use stages::evaluate::frechet::{LatentDistance, alternating};
use stages::evaluate::latent_features::{CollectLatentFeatures, EncodePictures};
use stages::nets::autoencoder::VaeChoice;

use super::EvaluateArgs;
use super::input::{Input, same_size};
use super::metrics::kind_of;
use super::record::{Circumstances, tell};
use crate::exit::Outcome;
use crate::show::Progress;

/// No FID, and comparable only where autoencoder and size of pictures are the same.
#[derive(Debug, Serialize)]
struct LatentMetrics {
    latent_frechet: f64,
    /// Of two halves of the reference, every other picture: what real images give at half their number.
    latent_frechet_of_reference_halves: f64,
    /// Number of samples.
    count: i64,
    reference_count: i64,
    vae: String,
    /// xxh3 of its weights.
    vae_xxh3: String,
    #[serde(flatten)]
    circumstances: Circumstances,
}

/// Of each set, so that a half of the reference has a covariance.
const LEAST: u64 = 4;

pub(super) fn run(args: &EvaluateArgs, runtime: &Runtime) -> Result<Outcome> {
    let metrics = &args.metrics;
    let [samples, reference] = [("samples", &args.samples, None), ("reference", &args.reference, metrics.crop)]
        .map(|(what, path, crop)| Input::open(what, path, metrics.batch, crop));
    let (samples, reference) = (samples?, reference?);
    for input in [&samples, &reference] {
        if input.size()?.is_none() {
            bail!("{}: holds no pictures; give a folder of them, or an .npz file with arr_0", input.path.display());
        }
        if input.count() < LEAST {
            bail!("{}: {LEAST} pictures at least are needed, and it holds {}", input.path.display(), input.count());
        }
    }
    same_size(&samples, &reference)?;
    let (devices, choice) = (parse_devices(&metrics.devices)?, VaeChoice::parse(&metrics.vae)?);
    let opened = choice.open(Device::Cpu, Kind::Float)?;
    let (vae_xxh3, side) = (format!("{:016x}", opened.identity().weights_xxh3), opened.downsample() as u64);
    if let Some((width, height)) = samples.size()?
        && !(width.is_multiple_of(side) && height.is_multiple_of(side))
    {
        bail!(
            "{}: pictures of {width}x{height} pixels, and the autoencoder takes sides that are multiples of {side}; give others, or \
             measure them with --inception",
            samples.path.display()
        );
    }
    let [identity, of_reference] = [&samples, &reference].map(|input| input.identity.clone());
    let sampling = samples.sampling.clone();

    let features = |input: Input| -> Result<_> {
        let (what, count, batch) = (input.what, input.count(), metrics.batch as u64);
        let network = EncodePictures::on(choice.clone(), devices.clone());
        let mut progress = Progress::new("latents", count);
        #[rustfmt::skip]
        let finished = input.pictures(metrics.batch)?   // -> PictureBatch  u8 [B, H, W, 3]
            .then(network).workers(devices.len())       // -> Tensor        f32 [B, 16 C]
            .into(CollectLatentFeatures::default())
            .observe(progress.interval(), move |report| {
                let done = (report.stages.last().map_or(0, |stage| stage.items) * batch).min(count);
                progress.at(done, &format!("latents of {done}/{count} {what}"));
            })
            .run(runtime)?;
        Ok(finished.output.filter(|_| !finished.interrupted))
    };
    let stopped = || Ok(Outcome::Interrupted("stopped; evaluation leaves nothing behind, run it again".to_owned()));
    let Some(samples) = features(samples)? else { return stopped() };
    let Some(reference) = features(reference)? else { return stopped() };
    let LatentDistance { samples: distance, real_halves } =
        LatentDistance::of_features(&samples, &alternating(&reference))?;
    let found = LatentMetrics {
        latent_frechet: distance,
        latent_frechet_of_reference_halves: real_halves,
        count: samples.size()[0],
        reference_count: reference.size()[0],
        vae: metrics.vae.clone(),
        vae_xxh3,
        circumstances: Circumstances {
            crop: metrics.crop,
            batch: Some(metrics.batch),
            ..Circumstances::of(of_reference.xxh3(), identity.xxh3(), sampling, kind_of(&devices))
        },
    };
    let lines = format!(
        "{} samples against {} reference pictures\nFrechet distance of latents (no FID)  {distance:.4}\n\
         two halves of the reference           {real_halves:.4}\n",
        found.count, found.reference_count
    );
    tell(args, "vae", &found, &lines)?;
    Ok(Outcome::Done)
}
