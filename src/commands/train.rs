//! `pipeline train`: shards in, checkpoints out.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use pipeline::{Line, Runtime, Watchdog};
use shards::Dataset;
use stages::device::{parse_devices, parse_precision, training_arithmetic};
use stages::load::feed::Scaling;
use stages::load::inflate::LatentColumns;
use stages::load::plan::Cursor;
use stages::load::synthetic::{self, Synthetic};
use stages::load::{self, LoadConfig, LoadMemory};
use stages::method::config::LatentShape;
use stages::train::checkpoint::{self, Marks};
use stages::train::config::TrainConfig;
use stages::train::grids::Grids;
use stages::train::run_dir::{RunDir, StageFigures};
use stages::train::sink::{Listener, TrainSteps, TrainSummary};
use stages::train::step::Trainer;

use crate::commands::reading::ReadingArgs;
use crate::commands::sample::autoencoder_of_data;
use crate::config::{self, DataConfig, RunConfig};
use crate::exit::{Ended, Outcome};
use crate::show::{self, Progress};

mod dry_run;

/// After so long without a step the run says what holds it up.
const STALL: Duration = Duration::from_secs(60);

/// No step should be longer.
const LONG_STEP: Duration = Duration::from_secs(600);

/// Train a diffusion transformer on an encoded dataset. An existing run continues where it stopped.
#[derive(Debug, Clone, Args)]
pub(crate) struct TrainArgs {
    /// Dataset that `pipeline encode` or `pipeline import` wrote; `synthetic`: noise that costs nothing to load, to see
    /// what loading costs
    #[arg(long, value_name = "DIR|synthetic")]
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
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// auto, f32 or bf16
    #[arg(long, default_value = "auto")]
    pub(crate) precision: String,
    /// Print what would be trained, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(crate) fn run(args: &TrainArgs, runtime: &Runtime) -> Result<Ended> {
    let data = Data::open(args)?;
    let run_dir = RunDir::at(&args.run);
    let stored = match run_dir.config()? {
        Some(text) => Some(RunConfig::parse(&text, &args.run)?),
        None => None,
    };
    let resolved = resolve(args, stored.as_ref(), data.config(&args.data)?)?;
    let config = resolved.train_config();
    if let Some(problem) = config.problem(&resolved.data.latent) {
        bail!(problem);
    }
    let device = match parse_devices(&args.devices)?[..] {
        [device] => device,
        ref several => bail!("--devices {} names {} devices; train takes one", args.devices, several.len()),
    };
    let kind = parse_precision(&args.precision, device)?;

    let load_from = |first_batch: u64| {
        args.reading.apply(LoadConfig {
            pool_blocks: config.train.pool_blocks as usize,
            cursor: Cursor { batch: first_batch },
            batches: Some(config.train.steps.saturating_sub(first_batch)),
            pinned: device.is_cuda(),
            ..LoadConfig::new(config.train.seed, config.train.batch as usize)
        })
    };
    if args.dry_run {
        print!("{}", resolved.to_toml()?);
        let loader = match &data {
            Data::Shards(dataset) => Some((dataset.len() as u64, LoadMemory::of(dataset, &load_from(0))?)),
            Data::Synthetic(_) => None,
        };
        for line in dry_run::lines(&config, &resolved.data.latent, loader, device, kind) {
            println!("# {line}");
        }
        return Ok(Ended::already());
    }

    let steps = config.train.steps;
    // The header alone tells: a finished run needs no device.
    let done = checkpoint::newest(&run_dir.checkpoints(), checkpoint::config)?.map_or(0, |newest| newest.step);
    if done > 0 && done >= steps {
        show::result(&format!("{} is complete: it has done {done} steps of {steps}", args.run.display()));
        return Ok(Ended::already());
    }
    let mut trainer = Trainer::new(config.clone(), resolved.data.latent, device, kind)?;
    let arithmetic = training_arithmetic(device, kind);
    let first_batch = restore(&mut trainer, &run_dir, &args.run, &resolved.data.dataset, &arithmetic)?;
    let batches = data.batches(&load_from(first_batch))?;
    // Nothing that is refused above leaves a run behind.
    run_dir.begin(&resolved.to_toml()?)?;
    run_dir.rewind_metrics(first_batch)?;

    let grids = grids(&config, &resolved.data, &run_dir);
    let mut progress = Progress::new("training", steps);
    let (interval, position) = (progress.interval(), progress.position());
    let (tell_stages, stages) = mpsc::channel();
    let listener = Listener {
        on_metrics: Box::new(move |metrics| progress.milestone(metrics.step, &show::metrics_line(metrics, steps))),
        on_fault: Box::new(|fault| show::say(&format!("skipped, others stand in for its samples: {fault}"))),
        on_note: Box::new(|note| show::say(&format!("note: {note}"))),
        stages: Box::new(move || stages.try_iter().last()),
    };
    let marks = Marks { data: resolved.data.dataset.clone(), arithmetic, config: resolved.to_toml()? };
    let mut steps_done =
        TrainSteps::new(trainer, data.scaling(), run_dir, marks, runtime.interrupt().clone(), listener);
    if let Some(grids) = grids {
        steps_done = steps_done.with_grids(grids);
    }
    let mut watchdog = Watchdog::new(STALL);
    let finished = batches(steps_done) //    -> HostBatch   f16 mean, logvar [B, C, h, w]
        .observe(interval, move |report| {
            position(first_batch + report.stages.last().map_or(0, |training| training.items));
        })
        .observe(Duration::from_secs(1), move |report| {
            // Nobody listens once the trainer is done.
            let _ = tell_stages.send(StageFigures::of(report));
            // A step may be long on a CPU; that loading stands still is worth a word earlier.
            let stall = watchdog.look(report);
            if let Some(stall) = stall.filter(|stall| stall.stage != stall.sink || stall.held > LONG_STEP) {
                show::say(&stall.to_string());
            }
        })
        .run(runtime)?;

    show::say(&show::report_lines(&finished.report));
    Ok(Ended { outcome: outcome(&finished.output, &args.run, steps), report: Some(finished.report) })
}

/// Puts the newest readable checkpoint of the run into the trainer, and says what there is to say about it. The steps that
/// it had done; 0 where there is none.
fn restore(trainer: &mut Trainer, run_dir: &RunDir, run: &Path, data: &str, arithmetic: &str) -> Result<u64> {
    let Some(found) = checkpoint::restore(trainer, &run_dir.checkpoints(), data, arithmetic)? else { return Ok(0) };
    for damaged in &found.damaged {
        show::say(&format!("warning: {damaged}; it is set aside as .bad, and the one before it is used"));
    }
    show::say(&format!("continuing {} at step {}", run.display(), found.step));
    if let Some(other) = found.content {
        show::say(&format!(
            "warning: the run was on {other} and goes on {arithmetic}: results will differ by rounding"
        ));
    }
    Ok(trainer.step)
}

/// What makes sample grids, if the run is to make any and the autoencoder of its data is at hand.
fn grids(config: &TrainConfig, data: &DataConfig, run_dir: &RunDir) -> Option<Grids> {
    if config.train.sample_every == 0 {
        return None;
    }
    match autoencoder_of_data(&data.vae, &data.vae_xxh3) {
        Ok(vae) => {
            // Also of data that are stored scaled: the autoencoder never sees them so.
            let scaling = Scaling { factor: data.scaling_factor, shift: data.shift_factor };
            Some(Grids::new(vae, scaling, run_dir.samples()))
        }
        Err(e) => {
            show::say(&format!("note: no sample grids will be made: {e:#}"));
            None
        }
    }
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

/// What a run is trained on.
enum Data {
    Shards(Arc<Dataset>),
    Synthetic(Synthetic),
}

impl Data {
    fn open(args: &TrainArgs) -> Result<Self> {
        if args.data == Path::new("synthetic") {
            return Ok(Self::Synthetic(Synthetic::IMAGENET));
        }
        Ok(Self::Shards(Arc::new(Dataset::open(&args.data, args.reading.io())?)))
    }

    fn config(&self, place: &Path) -> Result<DataConfig> {
        match self {
            Self::Shards(dataset) => data_config(dataset, place),
            Self::Synthetic(Synthetic { shape, classes }) => {
                let [channels, height, width] = shape.map(|side| side as i64);
                Ok(DataConfig {
                    dataset: "synthetic".to_owned(),
                    latent: LatentShape { channels, height, width, classes: i64::from(*classes) },
                    scaling_factor: self.scaling().factor,
                    shift_factor: self.scaling().shift,
                    vae: String::new(),
                    vae_xxh3: String::new(),
                    class_names: (0..*classes).map(|class| class.to_string()).collect(),
                })
            }
        }
    }

    /// The flow up to where it ends in a trainer.
    fn batches(&self, load: &LoadConfig) -> Result<Box<dyn FnOnce(TrainSteps) -> Line<TrainSummary>>> {
        Ok(match self {
            Self::Shards(dataset) => {
                let batches = load::batches(dataset, load)?;
                Box::new(move |trainer| batches.into(trainer))
            }
            Self::Synthetic(what) => {
                let batches = synthetic::batches(*what, load)?;
                Box::new(move |trainer| batches.into(trainer))
            }
        })
    }

    fn scaling(&self) -> Scaling {
        match self {
            Self::Shards(dataset) => Scaling::of(&dataset.manifest.schema),
            Self::Synthetic(_) => Scaling { factor: 1.0, shift: 0.0 },
        }
    }
}

/// What the loader holds at most, in words.
pub(crate) fn memory_line(memory: LoadMemory) -> String {
    let LoadMemory { pool_bytes, batch_bytes, order_bytes, worker_bytes, index_bytes, stored_bytes } = memory;
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    format!(
        "loader memory: at most {} (shuffle pool {}, batches {}, order {}, workers {}, index {}, shards {})",
        mb(memory.total()),
        mb(pool_bytes),
        mb(batch_bytes),
        mb(order_bytes),
        mb(worker_bytes),
        mb(index_bytes),
        mb(stored_bytes)
    )
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
