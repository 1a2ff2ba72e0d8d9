//! `pipeline demo`: the whole line in minutes, through the same code as real work.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use pipeline::Runtime;
use serde::Serialize;
use stages::procedural;
use stages::train::run_dir::RunDir;

use super::encode::{self, EncodeArgs};
use super::sample::{self, LabelsArg, SampleArgs, SamplerArg};
use super::train::{self, TrainArgs};
use crate::exit::Outcome;
use crate::show;

/// Make labelled images, encode them, train a small DUPA on them, and sample: minutes on two cores.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// Folder for everything; an interrupted demonstration is continued
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Images of each class
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) per_class: usize,
    /// Training steps [default: those of the preset dupa-demo]
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Samples of each class in the grid
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) samples_per_class: u64,
    /// Evaluations of the velocity for a sample
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) sample_steps: usize,
    /// Seed of the images, of training and of sampling
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// `figures.json`: what the run did, in numbers.
#[derive(Debug, Serialize)]
struct Figures {
    images: usize,
    seconds: Seconds,
    steps: u64,
    velocity_loss: FirstAndLast,
    alignment_loss: FirstAndLast,
    condition_cosine: FirstAndLast,
    train_images_per_s: f64,
    train_data_wait: f64,
}

/// Wall time of each part; a part that an earlier, interrupted demonstration had done counts the rest only.
#[derive(Debug, Serialize)]
struct Seconds {
    draw: f64,
    encode: f64,
    train: f64,
    sample: f64,
}

#[derive(Debug, Serialize)]
struct FirstAndLast {
    first: f64,
    last: f64,
}

pub(crate) fn run(args: &DemoArgs, runtime: &Runtime) -> Result<Outcome> {
    let folder = |name: &str| args.out.join(name);
    let (images, latents, run, samples) = (folder("images"), folder("latents"), folder("run"), folder("samples"));
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut seconds = Seconds { draw: 0.0, encode: 0.0, train: 0.0, sample: 0.0 };

    eprintln!("1/4 drawing labelled images into {}", images.display());
    let count = timed(&mut seconds.draw, || procedural::write_dataset(&images, args.per_class, args.seed))?;

    eprintln!("2/4 encoding {count} images into {}", latents.display());
    let encode = EncodeArgs { shuffle_seed: args.seed, ..EncodeArgs::new(&images, &latents) };
    if let stopped @ Outcome::Interrupted(_) = timed(&mut seconds.encode, || encode::run(&encode, runtime))? {
        return Ok(stopped);
    }

    eprintln!("3/4 training in {}", run.display());
    let train = train_args(args, &latents, &run);
    if let stopped @ Outcome::Interrupted(_) = timed(&mut seconds.train, || train::run(&train, runtime))? {
        return Ok(stopped);
    }

    eprintln!("4/4 sampling into {}", samples.display());
    let sample = sample_args(args, &run, &samples);
    if let stopped @ Outcome::Interrupted(_) = timed(&mut seconds.sample, || sample::run(&sample, runtime))? {
        return Ok(stopped);
    }

    let figures = figures(&run, count, seconds)?;
    let path = folder("figures.json");
    fs::write(&path, serde_json::to_string_pretty(&figures)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    summarise(&figures, args);
    Ok(Outcome::Done)
}

fn train_args(args: &DemoArgs, data: &Path, run: &Path) -> TrainArgs {
    TrainArgs {
        data: data.to_path_buf(),
        run: run.to_path_buf(),
        preset: Some("dupa-demo".to_owned()),
        config: None,
        set: vec![format!("train.seed={}", args.seed)],
        steps: args.steps,
        devices: "auto".to_owned(),
        workers: 1,
        precision: "auto".to_owned(),
        dry_run: false,
    }
}

fn sample_args(args: &DemoArgs, run: &Path, out: &Path) -> SampleArgs {
    SampleArgs {
        run: run.to_path_buf(),
        out: out.to_path_buf(),
        count: args.samples_per_class * procedural::CLASSES.len() as u64,
        classes: Vec::new(),
        labels: LabelsArg::Balanced,
        sampler: SamplerArg::Sde,
        steps: args.sample_steps,
        cfg: 2.0,
        interval: vec![0.0, 1.0],
        vae: None,
        seed: args.seed,
        batch: 64,
        devices: "auto".to_owned(),
        precision: "auto".to_owned(),
    }
}

fn timed<T, E: Into<anyhow::Error>>(seconds: &mut f64, work: impl FnOnce() -> Result<T, E>) -> Result<T> {
    let began = Instant::now();
    let result = work().map_err(Into::into);
    *seconds = began.elapsed().as_secs_f64();
    result
}

fn figures(run: &Path, images: usize, seconds: Seconds) -> Result<Figures> {
    let metrics = RunDir::at(run).read_metrics()?;
    let (Some(first), Some(last)) = (metrics.first(), metrics.last()) else {
        anyhow::bail!("{} has no metrics", run.display());
    };
    Ok(Figures {
        images,
        seconds,
        steps: last.step,
        velocity_loss: FirstAndLast { first: first.velocity_loss, last: last.velocity_loss },
        alignment_loss: FirstAndLast { first: first.alignment_loss, last: last.alignment_loss },
        condition_cosine: FirstAndLast { first: first.condition_cosine, last: last.condition_cosine },
        train_images_per_s: last.images_per_s,
        train_data_wait: last.data_wait,
    })
}

fn summarise(figures: &Figures, args: &DemoArgs) {
    let Seconds { draw, encode, train, sample } = figures.seconds;
    println!("velocity loss {:.3} -> {:.3}", figures.velocity_loss.first, figures.velocity_loss.last);
    println!("view cosine of conditions {:.3} -> {:.3}", figures.condition_cosine.first, figures.condition_cosine.last);
    println!(
        "drew {}, encoded {}, trained {}, sampled {}",
        show::duration(draw),
        show::duration(encode),
        show::duration(train),
        show::duration(sample)
    );
    println!("the grid, a class a row: {}", args.out.join("samples/grid.png").display());
}
