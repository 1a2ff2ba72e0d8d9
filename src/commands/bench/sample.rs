//! `pipeline bench sample`: how fast latents are sampled, by a network with random weights.
//!
//! From noise to latents on the host; decoding and writing are not in it.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use stages::device::{parse_devices, parse_precision, precision_name, training_arithmetic};
use stages::load::synthetic::Synthetic;
use stages::method::config::{Backbone, LatentShape};
use stages::method::sampler::{Diffusion, Guidance, Integrator};
use stages::sample::generate::SampleSettings;
use stages::sample::trial::Trial;

use super::{MOST_BATCH, peak_bytes};
use crate::commands::sample::SamplerArg;
use crate::config;
use crate::exit::Outcome;
use crate::show;

/// Measure how fast latents are sampled, by a network with random weights.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchSampleArgs {
    /// As in train
    #[arg(long, value_name = "NAME", default_value = "dupa-s/2")]
    preset: String,
    /// Change one key of the preset; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Images that are sampled together
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: u64,
    /// As in sample, without guidance
    #[arg(long, value_enum, default_value_t = SamplerArg::Sde)]
    sampler: SamplerArg,
    /// Steps of the sampler
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: usize,
    /// As in sample
    #[arg(long, value_name = "N", default_value_t = 1)]
    share_encoder: usize,
    /// auto, f32 or bf16
    #[arg(long, default_value = "auto")]
    precision: String,
    /// auto, cpu or cuda:0
    #[arg(long, default_value = "auto")]
    devices: String,
    /// Batches to measure, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3)]
    batches: usize,
    /// Sample one batch, write what it was made of and what it is to this safetensors file, and stop
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BenchSampleArgs) -> Result<Outcome> {
    if args.batches == 0 || args.steps == 0 || args.batch == 0 || args.share_encoder == 0 {
        bail!("--batches, --steps, --batch and --share-encoder are at least 1");
    }
    if args.batch > MOST_BATCH {
        bail!("--batch {} is more than any device holds; give at most {MOST_BATCH}", args.batch);
    }
    let config = config::resolve(Some(&args.preset), None, &args.set)?;
    let [channels, height, width] = Synthetic::IMAGENET.shape.map(|n| n as i64);
    let data = LatentShape { channels, height, width, classes: Synthetic::IMAGENET.classes.into() };
    if let Some(problem) = config.problem(&data) {
        bail!(problem);
    }
    if args.share_encoder > 1 && config.model.backbone != Backbone::Ddt {
        bail!("--share-encoder {}: only a DDT has an encoder of its own", args.share_encoder);
    }
    let device = match parse_devices(&args.devices)?[..] {
        [device] => device,
        ref several => bail!("--devices {} names {} devices; sampling is timed on one", args.devices, several.len()),
    };
    let kind = parse_precision(&args.precision, device)?;
    let guidance = Guidance { scale: 1.0, low: 0.0, high: 1.0 };
    let (sampler, diffusion) = (Integrator::from(args.sampler), Diffusion::TwoSigma);
    let (steps, share_encoder) = (args.steps, args.share_encoder);
    let settings = SampleSettings { sampler, diffusion, steps, guidance, share_encoder, seed: 0 };
    let failed = |error| anyhow!("{error}");
    let mut trial = Trial::new(config.model, data, settings, args.batch, (device, kind))?;
    if let Some(path) = &args.record {
        trial.record(path).map_err(failed)?;
        show::result(&json!({ "record": path.display().to_string() }).to_string());
        return Ok(Outcome::Done);
    }
    let _ = trial.sample().map_err(failed)?;
    let mut times = Vec::new();
    for _ in 0..args.batches {
        let began = Instant::now();
        let _ = trial.sample().map_err(failed)?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let found = json!({
        "preset": args.preset,
        "batch": args.batch,
        "sampler": settings.sampler,
        "steps": args.steps,
        "share_encoder": share_encoder,
        "precision": precision_name(kind),
        "arithmetic": training_arithmetic(device, kind),
        "images_per_s": args.batch as f64 / median,
        "seconds_a_batch": { "median": median, "least": times[0], "most": times[times.len() - 1] },
        "peak_bytes": peak_bytes()?,
    });
    show::result(&if args.json { found.to_string() } else { line(&found) });
    Ok(Outcome::Done)
}

fn line(found: &Value) -> String {
    let number = |pointer: &str| found.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    format!(
        "{:.3} images/s of {} steps, {:.2} s for {} images ({:.2} to {:.2}); peak memory of the host {:.0} MB; {}",
        number("/images_per_s"),
        found["steps"],
        number("/seconds_a_batch/median"),
        found["batch"],
        number("/seconds_a_batch/least"),
        number("/seconds_a_batch/most"),
        number("/peak_bytes") / 1e6,
        found["arithmetic"].as_str().unwrap_or_default(),
    )
}
