//! `pipeline bench step`: how long a whole training step takes on noise, and how much memory.
//!
//! Draws, forward, backward, clip, AdamW and average; no loading, no logging. Every step is waited for, so on a GPU the
//! time includes what the host adds when it cannot run ahead.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use stages::device::{parse_devices, parse_precision, precision_name, training_arithmetic};
use stages::load::synthetic::Synthetic;
use stages::method::config::LatentShape;
use stages::method::cost::ForwardMacs;
use stages::train::trial::Trial;

use super::{MOST_BATCH, peak_bytes};
use crate::config;
use crate::exit::Outcome;
use crate::show;

/// Measure how long a training step takes, on noise, and how much memory.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchStepArgs {
    /// As in train
    #[arg(long, value_name = "NAME", default_value = "dupa-s/2")]
    preset: String,
    /// Change one key of the preset, for example --set objective.views=3; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Images in a batch [default: 8, or train.batch where --set names it]
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// auto, f32 or bf16
    #[arg(long, default_value = "auto")]
    precision: String,
    /// auto, cpu or cuda:0
    #[arg(long, default_value = "auto")]
    devices: String,
    /// Steps to measure
    #[arg(long, value_name = "N", default_value_t = 10)]
    steps: usize,
    /// Steps to do before
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: usize,
    /// What the device does at most at this precision, by its maker, in 10^12 floating-point operations a second: the share of it
    /// that is used (MFU) is told
    #[arg(long, value_name = "X")]
    peak_tflops: Option<f64>,
    /// Do one step, write what it was done with and what it gave to this safetensors file, and stop: for comparison with
    /// another implementation
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BenchStepArgs) -> Result<Outcome> {
    if args.steps == 0 {
        bail!("--steps 0 measures nothing; give at least 1");
    }
    if let Some(peak) = args.peak_tflops.filter(|peak| !(*peak > 0.0 && peak.is_finite())) {
        bail!("--peak-tflops {peak} must be above 0");
    }
    let mut config = config::resolve(Some(&args.preset), None, &args.set)?;
    let names_batch = args.set.iter().any(|setting| setting.split('=').next().map(str::trim) == Some("train.batch"));
    match args.batch {
        Some(batch) if names_batch => bail!("--batch {batch} and --set train.batch say the same thing; give one"),
        Some(batch) => config.train.batch = batch,
        None if names_batch => {}
        None => config.train.batch = 8,
    }
    let batch = config.train.batch;
    if batch > MOST_BATCH {
        bail!("a batch of {batch} images is more than any device holds; give at most {MOST_BATCH}");
    }
    let [channels, height, width] = Synthetic::IMAGENET.shape.map(|n| n as i64);
    let data = LatentShape { channels, height, width, classes: Synthetic::IMAGENET.classes.into() };
    if let Some(problem) = config.problem(&data) {
        bail!(problem);
    }
    let device = match parse_devices(&args.devices)?[..] {
        [device] => device,
        ref several => bail!("--devices {} names {} devices; a step is timed on one", args.devices, several.len()),
    };
    let kind = parse_precision(&args.precision, device)?;
    let flops = ForwardMacs::of(&config.model, &data, &config.objective).training_flop(config.objective.views) as f64;
    let start = peak_bytes()?;
    let mut trial = Trial::new(config, data, device, kind)?;
    if let Some(path) = &args.record {
        let figures = trial.record(path)?;
        let found = json!({
            "velocity_loss": figures.velocity,
            "alignment_loss": figures.alignment,
            "gradient_norm": figures.gradient_norm,
        });
        show::result(&found.to_string());
        return Ok(Outcome::Done);
    }

    let reads = trial.count_reads()?;
    for _ in 0..args.warmup {
        trial.step()?;
    }
    let mut times = Vec::new();
    for _ in 0..args.steps {
        let began = Instant::now();
        trial.step()?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(share * (times.len() - 1) as f64).round() as usize];
    let images_per_s = batch as f64 / at(0.5);
    let found = json!({
        "preset": args.preset,
        "batch": batch,
        "precision": precision_name(kind),
        "arithmetic": training_arithmetic(device, kind),
        "steps": args.steps,
        "images_per_s": images_per_s,
        "ms_per_step": { "median": at(0.5) * 1e3, "p10": at(0.1) * 1e3, "p90": at(0.9) * 1e3 },
        "start_bytes": start,
        "peak_bytes": peak_bytes()?,
        // On a CPU 1: libtorch's AdamW looks at its count of steps.
        "reads_per_step": reads,
        "flops_per_image": flops,
        "gflops_per_s": flops * images_per_s / 1e9,
        "mfu": args.peak_tflops.map(|peak| flops * images_per_s / (peak * 1e12)),
    });
    show::result(&if args.json { found.to_string() } else { table(&found) });
    Ok(Outcome::Done)
}

fn table(found: &Value) -> String {
    let number = |pointer: &str| found.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    format!(
        "{:.3} images/s, {:.0} ms a step ({:.0} to {:.0} for the middle 80 %), {:.1} GFLOP/s of {:.1} GFLOP an image{}\n\
         peak memory of the host {:.0} MB, {:.0} MB of them before the network was made; {}",
        number("/images_per_s"),
        number("/ms_per_step/median"),
        number("/ms_per_step/p10"),
        number("/ms_per_step/p90"),
        number("/gflops_per_s"),
        number("/flops_per_image") / 1e9,
        found["mfu"].as_f64().map_or_else(String::new, |mfu| format!(" (MFU {:.2} %)", 100.0 * mfu)),
        number("/peak_bytes") / 1e6,
        number("/start_bytes") / 1e6,
        found["arithmetic"].as_str().unwrap_or_default(),
    )
}
