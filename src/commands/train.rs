//! `pipeline train`: shards in, checkpoints out.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use pipeline::{Flow, Line, Runtime, Slab, Watchdog};
use shards::Dataset;
use stages::data::HostBatch;
use stages::device::{Device, nccl_library, parse_local_devices, parse_precision, share_cpu, training_arithmetic};
use stages::load::feed::Scaling;
use stages::load::inflate::LatentColumns;
use stages::load::plan::{Cursor, Ranks};
use stages::load::synthetic::{self, Synthetic};
use stages::load::{self, LoadConfig, LoadMemory};
use stages::method::config::LatentShape;
use stages::train::checkpoint::{self, CheckpointError, Marks};
use stages::train::config::TrainConfig;
use stages::train::grids::Grids;
use stages::train::run_dir::{Metrics, RunDir, StageFigures};
use stages::train::sink::{Listener, TrainSteps, TrainSummary};
use stages::train::step::Trainer;
use stages::world::meeting::Meeting;

use crate::commands::launching::LaunchArgs;
use crate::commands::reading::ReadingArgs;
use crate::commands::report;
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
    /// What to train: dupa-demo, appendix-f, a row of the paper's tables (table2-nt-xent), or dupa-, dupa-sit-,
    /// dual-path-, ddt-, sit-, dispersive- or delta-fm- with s, b, l or xl and /2, /4 or /8 [default: dupa-xl/2]
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
    /// auto, cpu, cpu:2 for two ranks that share the processor, or cuda:0
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
    #[command(flatten)]
    pub(crate) launching: LaunchArgs,
}

impl TrainArgs {
    /// Whether it says what to train. Without, an existing run goes on with its own configuration.
    fn says_what(&self) -> bool {
        self.preset.is_some() || self.config.is_some() || !self.set.is_empty()
    }
}

pub(crate) fn run(args: &TrainArgs, runtime: &Runtime) -> Result<Ended> {
    let launch = if args.dry_run { None } else { args.launching.launch()? };
    let devices = match parse_local_devices(&args.devices, launch.as_ref().map_or(0, |launch| launch.local)) {
        Ok(devices) => devices,
        Err(error) => {
            // The others wait for this process, which may have to wait for them first.
            if launch.is_some() {
                show::say(&error.to_string());
            }
            if let Some(meeting) = launch.map(|launch| args.launching.meet(Some(launch), 1, runtime.interrupt())) {
                meeting.ok().flatten().inspect(|meeting| meeting.tell_failure(&error.to_string()));
            }
            return Err(error.into());
        }
    };
    let meeting = if args.dry_run { None } else { args.launching.meet(launch, devices.len(), runtime.interrupt())? };
    if devices.len() > 1 && devices[0] == Device::Cpu {
        // Each rank of a processor has its part of it.
        share_cpu(devices.len());
    }
    let Some(meeting) = meeting else { return train(args, &devices, None, runtime) };
    // libtorch's errors come as panics, and the others wait for this process.
    let ended = catch_unwind(AssertUnwindSafe(|| train(args, &devices, Some(&meeting), runtime)));
    match &ended {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => meeting.tell_failure(&format!("{error:#}")),
        Err(_) => meeting.tell_failure("libtorch failed; its own message says how"),
    }
    ended.unwrap_or_else(|payload| resume_unwind(payload))
}

fn train(args: &TrainArgs, devices: &[Device], meeting: Option<&Meeting>, runtime: &Runtime) -> Result<Ended> {
    let data = Data::open(args)?;
    let run_dir = RunDir::at(&args.run);
    let leads = meeting.is_none_or(Meeting::leads);
    let (device, ranks) = (devices[0], meeting.map_or_else(|| Ranks::all(devices.len()), Meeting::ranks));
    let stored = match leads {
        true => run_dir.config()?.map(|text| RunConfig::parse(&text, &args.run)).transpose()?,
        false => None,
    };
    let mut resolved = resolve(args, stored.as_ref(), data.config(&args.data)?)?;
    if let Some(meeting) = meeting {
        match leads {
            true => meeting.tell_config(&resolved.to_toml()?)?,
            // Who says nothing does as rank 0, whose run it may be that goes on.
            false if !args.says_what() => {
                let of_first = RunConfig::parse(&meeting.hear_config()?, &args.run)?;
                let mut train = of_first.train_config();
                train.train.steps = args.steps.unwrap_or(train.train.steps);
                resolved = RunConfig::new(train, data.config(&args.data)?);
            }
            false => {}
        }
    }
    let config = resolved.train_config();
    if let Some(problem) = config.problem(&resolved.data.latent).or_else(|| config.problem_of_ranks(ranks.world)) {
        bail!(problem);
    }
    if let (Data::Shards(dataset), true) = (&data, config.train.flip) {
        let schema = &dataset.manifest.schema;
        let mirrored = LatentColumns::of(schema).and_then(|columns| columns.and_mirrored(schema));
        mirrored.with_context(|| args.data.display().to_string())?;
    }
    let kind = parse_precision(&args.precision, device)?;

    let load_from = |first_batch: u64| {
        args.reading.apply(LoadConfig {
            pool_blocks: config.train.pool_blocks as usize,
            cursor: Cursor { batch: first_batch },
            batches: Some(config.train.steps.saturating_sub(first_batch)),
            ranks: ranks.clone(),
            flip: config.train.flip,
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
        for line in dry_run::lines(&config, &resolved.data.latent, loader, device, kind, ranks.world) {
            println!("# {line}");
        }
        return Ok(Ended::already());
    }

    let steps = config.train.steps;
    // What is rounded otherwise on another processor would drift apart.
    let arithmetic = training_arithmetic(device, kind);
    if let Some(meeting) = meeting {
        if device.is_cuda() {
            nccl_library()?;
        }
        meeting.agree(&resolved.facts(&arithmetic)?)?;
    }
    let arithmetic = if ranks.world > 1 { format!("{arithmetic}, {} ranks", ranks.world) } else { arithmetic };
    let complete = |done: u64| {
        if leads {
            show::result(&format!("{} is complete: it has done {done} steps of {steps}", args.run.display()));
        }
        Ok(Ended::already())
    };
    // The header alone tells: a finished run needs no device.
    let newest = if leads { checkpoint::newest(&run_dir.checkpoints(), checkpoint::config)? } else { None };
    if let Some(done) = newest.map(|newest| newest.step).filter(|done| *done > 0 && *done >= steps) {
        meeting.map_or(Ok(done), |meeting| meeting.start(done))?;
        return complete(done);
    }
    // Before a damaged checkpoint is set aside; of a run that does not exist yet, once nothing can be refused any more.
    let held = if leads && args.run.is_dir() { Some(run_dir.lock()?) } else { None };
    let fresh = |device| Trainer::new(config.clone(), resolved.data.latent, device, kind);
    let mut first = fresh(device)?;
    let restored = match leads {
        true => restore(&mut first, &run_dir, &args.run, &resolved.data.dataset, &arithmetic)?,
        false => 0,
    };
    // What can be refused here is refused before the others are told to start, and leaves no run behind.
    let of_first = if leads { Some(data.batches(&load_from(restored))?) } else { None };
    let _held = if leads && held.is_none() { Some(run_dir.lock()?) } else { held };
    if leads {
        run_dir.begin(&resolved.to_toml()?)?;
        run_dir.rewind_metrics(restored)?;
    }
    let first_batch = meeting.map_or(Ok(restored), |meeting| meeting.start(restored))?;
    if !leads && first_batch >= steps {
        return complete(first_batch);
    }
    let batches = of_first.map_or_else(|| data.batches(&load_from(first_batch)), Ok)?;

    let (mut progress, shown) = (Progress::new("training", steps), config.clone());
    let (interval, position) = (progress.interval(), progress.position());
    let (tell_stages, stages) = mpsc::channel();
    let mut on_metrics: Option<OnMetrics> =
        Some(Box::new(move |metrics| progress.milestone(metrics.step, &show::metrics_line(metrics, &shown))));
    let mut stages = Some(stages);
    let marks = Marks { data: resolved.data.dataset.clone(), arithmetic, config: resolved.to_toml()? };
    let mut trainers = vec![first];
    for device in &devices[1..] {
        trainers.push(fresh(*device)?);
    }
    let ends = trainers.into_iter().enumerate().map(|(index, mut trainer)| {
        let stages = stages.take();
        let listener = Listener {
            on_metrics: on_metrics.take().unwrap_or_else(|| Box::new(|_| {})),
            on_fault: Box::new(|fault| show::say(&format!("skipped, others stand in for its samples: {fault}"))),
            on_note: Box::new(|note| show::say(&format!("note: {note}"))),
            stages: Box::new(move || stages.as_ref().and_then(|stages| stages.try_iter().last())),
        };
        trainer.step = first_batch;
        let (run_dir, interrupt) = (RunDir::at(&args.run), runtime.interrupt().clone());
        let mut end = TrainSteps::new(trainer, data.scaling(), run_dir, marks.clone(), interrupt, listener);
        if leads
            && index == 0
            && let Some(grids) = grids(&config, &resolved.data, &RunDir::at(&args.run))
        {
            end = end.with_grids(grids);
        }
        match meeting {
            Some(meeting) => end.together(meeting.joining(index)),
            None => end,
        }
    });
    let mut watchdog = Watchdog::new(STALL);
    let finished = batches(ends.collect()) //    -> HostBatch   f16 mean, logvar [B, C, h, w]
        .observe(interval, move |report| {
            if leads {
                position(first_batch + report.stages.last().map_or(0, |training| training.items));
            }
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

    if leads {
        show::say(&show::report_lines(&finished.report));
        // An aside, like the grids in it: the run is whole without.
        match report::write_page(&args.run) {
            Ok(page) => show::say(&format!(
                "the curves of the run, and its sample grids if it has any, are in {}",
                page.display()
            )),
            Err(e) => show::say(&format!("warning: the page of the run could not be written: {e:#}")),
        }
    }
    Ok(Ended { outcome: outcome(&finished.output, &args.run, steps, leads), report: Some(finished.report) })
}

/// A flow that still lacks its ends, one for each device.
type Batches = Box<dyn FnOnce(Vec<TrainSteps>) -> Line<TrainSummary>>;

/// What is done with every line of metrics.
type OnMetrics = Box<dyn FnMut(&Metrics) + Send>;

/// Puts the newest readable checkpoint of the run into the trainer, and says what there is to say about it. The steps
/// that it had done; 0 where there is none.
fn restore(trainer: &mut Trainer, run_dir: &RunDir, run: &Path, data: &str, arithmetic: &str) -> Result<u64> {
    let Some(found) = checkpoint::restore(trainer, &run_dir.checkpoints(), data, arithmetic)? else { return Ok(0) };
    for error in &found.passed_over {
        let becomes = match error {
            CheckpointError::Newer { .. } => "it stays, as .newer-1 once this run writes the checkpoint of its step",
            _ => "it is set aside as .bad",
        };
        show::say(&format!("warning: {error}; {becomes}, and the one of step {} is used", found.step));
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

fn outcome(summary: &TrainSummary, run: &Path, steps: u64, leads: bool) -> Outcome {
    if summary.interrupted {
        return Outcome::Interrupted(format!(
            "stopped at step {} of {steps}; a checkpoint is in {}, run the same command to continue",
            summary.step,
            if leads { run.join("checkpoints").display().to_string() } else { "the run of rank 0".to_owned() }
        ));
    }
    let checkpoints = run.join("checkpoints");
    if !leads {
        return Outcome::Done;
    }
    show::result(&format!("trained {} steps; checkpoints are in {}", summary.step, checkpoints.display()));
    Outcome::Done
}

/// What the command asks for, which must be what an existing run was begun with. Without any of --preset, --config,
/// --set an existing run goes on with its own configuration.
fn resolve(args: &TrainArgs, stored: Option<&RunConfig>, data: DataConfig) -> Result<RunConfig> {
    let mut train = match stored {
        Some(stored) if !args.says_what() => stored.train_config(),
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
    fn batches(&self, load: &LoadConfig) -> Result<Batches> {
        Ok(match self {
            Self::Shards(dataset) => {
                let batches = load::batches(dataset, load)?;
                Box::new(move |ends| end_in(batches, ends))
            }
            Self::Synthetic(what) => {
                let batches = synthetic::batches(*what, load)?;
                Box::new(move |ends| end_in(batches, ends))
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

/// One end for each device: batch after batch, each takes the slice of its rank.
fn end_in(batches: Flow<Slab<HostBatch>>, mut ends: Vec<TrainSteps>) -> Line<TrainSummary> {
    if ends.len() == 1 {
        return batches.into(ends.remove(0));
    }
    let (devices, mut rest) = (ends.len(), ends.into_iter());
    let each = move |_, batches: Flow<Slab<HostBatch>>| batches.into(rest.next().expect("one for each branch"));
    batches.split(devices, each).map(|mut summaries| summaries.remove(0))
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
