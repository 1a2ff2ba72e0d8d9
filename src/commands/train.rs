//! `pipeline train`: shards in, checkpoints out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use pipeline::Runtime;
use shards::{Dataset, Io};
use stages::device::{parse_devices, parse_precision, training_arithmetic};
use stages::load::feed::Scaling;
use stages::load::inflate::LatentColumns;
use stages::load::plan::Cursor;
use stages::load::{self, LEAST_PREFETCH, LoadConfig, LoadMemory};
use stages::method::config::LatentShape;
use stages::method::layout::parameter_count;
use stages::train::checkpoint::{self, Marks};
use stages::train::run_dir::{Metrics, RunDir};
use stages::train::sink::{TrainSteps, TrainSummary};
use stages::train::step::Trainer;

use crate::config::{self, DataConfig, RunConfig};
use crate::exit::{Ended, Outcome};
use crate::show::{self, Progress};

/// Train a diffusion transformer on an encoded dataset. An existing run continues where it stopped.
#[derive(Debug, Clone, Args)]
pub(crate) struct TrainArgs {
    /// Dataset that `pipeline encode` or `pipeline import` wrote
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Run directory: configuration, metrics and checkpoints; one that exists is continued
    #[arg(long, value_name = "DIR")]
    pub(crate) run: PathBuf,
    /// What to train: dupa-demo, or dupa-, ddt- or sit- with s, b, l or xl and /2, /4 or /8 [default: dupa-xl/2]
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// TOML file with keys to change, and the preset that they change in `preset = ".."`
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Change one key, for example --set train.batch=64; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Steps of the run (the same as --set train.steps=N)
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// auto, cpu or cuda:0
    #[arg(long, default_value = "auto")]
    pub(crate) devices: String,
    /// Threads that read and inflate shards
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) workers: usize,
    /// auto, f32 or bf16
    #[arg(long, default_value = "auto")]
    pub(crate) precision: String,
    /// Print what would be trained, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(crate) fn run(args: &TrainArgs, runtime: &Runtime) -> Result<Ended> {
    let dataset = Arc::new(Dataset::open(&args.data, Io::Auto)?);
    let run_dir = RunDir::at(&args.run);
    let stored = match run_dir.config()? {
        Some(text) => Some(RunConfig::parse(&text, &args.run)?),
        None => None,
    };
    let resolved = resolve(args, stored.as_ref(), data_config(&dataset, &args.data)?)?;
    let config = resolved.train_config();
    if let Some(problem) = config.problem(&resolved.data.latent) {
        bail!(problem);
    }
    let device = match parse_devices(&args.devices)?[..] {
        [device] => device,
        ref several => bail!("--devices {} names {} devices; train takes one", args.devices, several.len()),
    };
    let kind = parse_precision(&args.precision, device)?;

    let newest = checkpoint::list(&run_dir.checkpoints())?.pop();
    let first_batch = newest.as_ref().map_or(0, |(step, _)| *step);
    let load = LoadConfig {
        seed: config.train.seed,
        batch: config.train.batch as usize,
        pool_blocks: config.train.pool_blocks as usize,
        workers: args.workers.max(1),
        prefetch: LEAST_PREFETCH,
        cursor: Cursor { batch: first_batch },
        batches: Some(config.train.steps.saturating_sub(first_batch)),
    };
    if args.dry_run {
        print!("{}", resolved.to_toml()?);
        let parameters = |projector| parameter_count(&config.model, &resolved.data.latent, projector);
        println!("# parameters: {} ({} with the projector)", parameters(false), parameters(true));
        println!("# loader memory: {} bytes", LoadMemory::of(&dataset, &load)?.total());
        println!("# device: {device:?}, computing in {kind:?}");
        return Ok(Ended::already());
    }

    let steps = config.train.steps;
    if first_batch > 0 && first_batch >= steps {
        show::result(&format!("{} is complete: it has done {first_batch} steps of {steps}", args.run.display()));
        return Ok(Ended::already());
    }
    let batches = load::batches(&dataset, &load)?;
    let mut trainer = Trainer::new(config, resolved.data.latent, device, kind)?;
    let arithmetic = training_arithmetic(device, kind);
    if let Some((step, path)) = &newest {
        let other = checkpoint::load(&mut trainer, path, &resolved.data.dataset, &arithmetic)?;
        show::say(&format!("continuing {} at step {step}", args.run.display()));
        if let Some(other) = other {
            show::say(&format!(
                "warning: the run was on {other} and goes on {arithmetic}: results will differ by rounding"
            ));
        }
    }
    // Nothing that is refused above leaves a run behind.
    run_dir.begin(&resolved.to_toml()?)?;
    run_dir.rewind_metrics(first_batch)?;

    let mut progress = Progress::new("training", steps);
    let (interval, position) = (progress.interval(), progress.position());
    let on_metrics =
        Box::new(move |metrics: &Metrics| progress.milestone(metrics.step, &show::metrics_line(metrics, steps)));
    let scaling = Scaling::of(&dataset.manifest.schema);
    let marks = Marks { data: resolved.data.dataset.clone(), arithmetic };
    let finished =
        batches //                                         -> HostBatch   f16 mean, logvar [B, C, h, w]
            .into(TrainSteps::new(trainer, scaling, run_dir, marks, runtime.interrupt().clone(), on_metrics))
            .observe(interval, move |report| {
                position(first_batch + report.stages.last().map_or(0, |training| training.items));
            })
            .run(runtime)?;

    show::say(&show::report_lines(&finished.report));
    Ok(Ended { outcome: outcome(&finished.output, &args.run, steps), report: Some(finished.report) })
}

fn outcome(summary: &TrainSummary, run: &Path, steps: u64) -> Outcome {
    if summary.interrupted {
        return Outcome::Interrupted(format!(
            "stopped at step {} of {steps}; a checkpoint is in {}, run the same command to continue",
            summary.step,
            run.join("checkpoints").display()
        ));
    }
    let checkpoints = run.join("checkpoints");
    show::result(&format!("trained {} steps; checkpoints are in {}", summary.step, checkpoints.display()));
    Outcome::Done
}

/// What the command asks for, which must be what an existing run was begun with. Without any of --preset, --config,
/// --set an existing run goes on with its own configuration.
fn resolve(args: &TrainArgs, stored: Option<&RunConfig>, data: DataConfig) -> Result<RunConfig> {
    let asked = args.preset.is_some() || args.config.is_some() || !args.set.is_empty();
    let mut train = match stored {
        Some(stored) if !asked => stored.train_config(),
        _ => config::resolve(args.preset.as_deref(), args.config.as_deref(), &args.set)?,
    };
    if let Some(steps) = args.steps {
        train.train.steps = steps;
    }
    let resolved = RunConfig::new(train, data);
    if let Some(stored) = stored {
        let mut same_length = stored.clone();
        if resolved.optimiser.decay_fraction == 0.0 {
            // Only then do the steps done not depend on how many follow.
            same_length.train.steps = resolved.train.steps;
        }
        if let Some((key, ours, theirs)) = resolved.first_difference(&same_length)? {
            bail!(
                "{} holds a run with {key} = {theirs}, and this command says {ours}; use the same settings to \
                 continue it, or another --run",
                args.run.display()
            );
        }
    }
    Ok(resolved)
}

fn data_config(dataset: &Dataset, place: &Path) -> Result<DataConfig> {
    let manifest = &dataset.manifest;
    let columns = LatentColumns::of(&manifest.schema).with_context(|| place.display().to_string())?;
    let [channels, height, width] = columns.shape.map(|side| side as i64);
    let of_vae = |key: &str| {
        let value = manifest.provenance.get("vae").and_then(|vae| vae.get(key)?.as_str());
        value.unwrap_or_default().to_owned()
    };
    if manifest.classes.is_empty() {
        bail!("{}: the dataset names no classes, and training is conditioned on them", place.display());
    }
    Ok(DataConfig {
        dataset: format!("{:016x}", dataset.hash()),
        latent: LatentShape { channels, height, width, classes: manifest.classes.len() as i64 },
        scaling_factor: manifest.schema.scaling_factor,
        shift_factor: manifest.schema.shift_factor,
        vae: of_vae("name"),
        vae_xxh3: of_vae("weights_xxh3"),
        class_names: manifest.classes.clone(),
    })
}
