//! `pipeline sample`: a trained run or a file of weights in, pictures out.

mod source;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use pipeline::{Flow, Runtime};
use serde::Serialize;
use stages::device::{Device, Kind, parse_devices, parse_precision};
use stages::method::sampler::{Guidance, Integrator};
use stages::nets::autoencoder::VaeChoice;
use stages::sample::decode::DecodeLatents;
use stages::sample::generate::{Generate, SampleSettings};
use stages::sample::request::{Labels, Requests};
use stages::sample::write::WriteSamples;

use crate::commands::sample::source::Source;
use crate::exit::{Ended, Outcome};
use crate::show::{self, Progress};

/// Sample images from the averaged weights of a run, or from a file of weights, as PNG files and one grid.
#[derive(Debug, Clone, Args)]
pub(crate) struct SampleArgs {
    /// Run directory of `pipeline train`; its newest checkpoint is used
    #[arg(long, value_name = "DIR", required_unless_present = "weights", conflicts_with = "weights")]
    pub(crate) run: Option<PathBuf>,
    /// File of `pipeline import-weights` or `export-weights`; needs --vae
    #[arg(long, value_name = "F.safetensors", requires = "vae")]
    pub(crate) weights: Option<PathBuf>,
    /// What the file should hold, as for `pipeline train`; one of other sizes is refused
    #[arg(long, value_name = "NAME", requires = "weights")]
    pub(crate) preset: Option<String>,
    /// Change one key of the preset; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "preset")]
    pub(crate) set: Vec<String>,
    /// Folder for the images
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How many images
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) count: u64,
    /// Class indices to sample, separated by commas [default: all]
    #[arg(long, value_name = "I,J", value_delimiter = ',')]
    pub(crate) classes: Vec<i64>,
    /// Random classes, or equally many of each in order
    #[arg(long, value_enum, default_value_t = LabelsArg::Random)]
    pub(crate) labels: LabelsArg,
    /// Stochastic (Euler-Maruyama) or deterministic (Euler)
    #[arg(long, value_enum, default_value_t = SamplerArg::Sde)]
    pub(crate) sampler: SamplerArg,
    /// Evaluations of the velocity
    #[arg(long, value_name = "N", default_value_t = 250)]
    pub(crate) steps: usize,
    /// Scale of classifier-free guidance; 1 is none
    #[arg(long, value_name = "W", default_value_t = 1.0)]
    pub(crate) cfg: f64,
    /// Times at which guidance applies (0 is data, 1 is noise)
    #[arg(long, value_name = "LOW,HIGH", value_delimiter = ',', num_args = 1, default_value = "0,0.7")]
    pub(crate) interval: Vec<f64>,
    /// Autoencoder that decodes: tiny, or a diffusers directory [default: the one of the training data]
    #[arg(long, value_name = "VAE")]
    pub(crate) vae: Option<String>,
    /// Seed of noise and random classes
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Images that are sampled together
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) batch: u64,
    /// auto, cpu, cpu:2 or cuda:0,cuda:1
    #[arg(long, default_value = "auto")]
    pub(crate) devices: String,
    /// auto, f32 or bf16
    #[arg(long, default_value = "auto")]
    pub(crate) precision: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LabelsArg {
    Random,
    Balanced,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SamplerArg {
    Sde,
    Ode,
}

/// `samples.json`: everything that changes the images, beside them.
#[derive(Debug, Serialize)]
struct Record {
    /// The file of the weights.
    checkpoint: String,
    /// Steps that were trained; null where a file of weights does not say.
    step: Option<u64>,
    count: u64,
    settings: SampleSettings,
    label_scheme: Labels,
    /// Class indices that were asked for.
    classes: Vec<i64>,
    /// Class index of each image, in the order of the files.
    labels: Vec<i64>,
    /// Name of each class of the run; a class index is an index into them.
    class_names: Vec<String>,
    precision: String,
    vae: String,
    rounding: &'static str,
}

pub(crate) fn run(args: &SampleArgs, runtime: &Runtime) -> Result<Ended> {
    let Source { weights, file, step, scaling, vae, vae_name, class_names } = Source::open(args)?;
    let classes = classes(args, weights.data.classes)?;
    let settings = settings(args)?;
    let devices = parse_devices(&args.devices)?;
    let kind = parse_precision(&args.precision, devices[0])?;
    let labels = match args.labels {
        LabelsArg::Random => Labels::Random,
        LabelsArg::Balanced => Labels::Balanced,
    };
    // A row of the grid is a class where every class has as many images.
    let columns = match args.labels {
        LabelsArg::Balanced if args.count.is_multiple_of(classes.len() as u64) => args.count / classes.len() as u64,
        _ => (args.count as f64).sqrt().ceil() as u64,
    };
    let write = WriteSamples::create(&args.out, args.count, columns as usize)
        .with_context(|| format!("cannot write samples into {}", args.out.display()))?;
    let requests = Requests::new(classes.clone(), labels, args.count, args.batch, args.seed);
    let record = Record {
        checkpoint: file.display().to_string(),
        step,
        count: args.count,
        settings,
        label_scheme: labels,
        classes,
        labels: (0..args.count).map(|index| requests.label(index)).collect(),
        class_names,
        precision: format!("{kind:?}"),
        vae: vae_name,
        rounding: "255 clamp((x + 1) / 2), truncated",
    };
    let (count, n, mut progress) = (args.count, devices.len(), Progress::new("sampling", args.count));
    let batch = args.batch.max(1);

    #[rustfmt::skip]
    let finished = Flow::from(requests)                                          // -> SampleRequest
        .then(Generate::on(weights, settings, devices.clone(), kind)).workers(n) // -> SampleLatents  f32 [B, C, h, w]
        .then(DecodeLatents::on(vae, devices, scaling)).workers(n)               // -> SamplePixels   u8 [B, 3, H, W]
        .into(write)
        .observe(progress.interval(), move |report| {
            let done = report.stages.last().map_or(0, |stage| stage.items * batch).min(count);
            progress.at(done, &format!("sampled {done}/{count} images"));
        })
        .run(runtime)?;

    if finished.interrupted {
        let done = finished.output;
        let outcome = Outcome::Interrupted(format!(
            "stopped after {done} of {count} images; the same command makes them again, to the same pixels"
        ));
        return Ok(Ended { outcome, report: Some(finished.report) });
    }
    let record_path = args.out.join("samples.json");
    std::fs::write(&record_path, serde_json::to_string_pretty(&record)?)
        .with_context(|| format!("cannot write {}", record_path.display()))?;
    show::say(&show::report_lines(&finished.report));
    show::result(&format!("wrote {} images to {}", finished.output, args.out.display()));
    Ok(Ended { outcome: Outcome::Done, report: Some(finished.report) })
}

fn classes(args: &SampleArgs, known: i64) -> Result<Vec<i64>> {
    if args.count == 0 {
        bail!("--count 0 asks for no images");
    }
    if let Some(wrong) = args.classes.iter().find(|class| !(0..known).contains(*class)) {
        bail!("--classes {wrong}: the weights have classes 0 to {}", known - 1);
    }
    Ok(if args.classes.is_empty() { (0..known).collect() } else { args.classes.clone() })
}

/// The autoencoder of --vae, or else the one that made the data ([`autoencoder_of_data`]), and its name.
pub(crate) fn autoencoder(vae: Option<&str>, name: &str, wanted: &str) -> Result<(VaeChoice, String)> {
    match vae {
        Some(name) => Ok((VaeChoice::parse(name)?, name.to_owned())),
        None => {
            Ok((autoencoder_of_data(name, wanted).context("name the right autoencoder with --vae")?, name.to_owned()))
        }
    }
}

/// The autoencoder that made the data, which must be the very same: `name` and `wanted` are what the data record of it, its
/// name and the xxh3 of its weights.
pub(crate) fn autoencoder_of_data(name: &str, wanted: &str) -> Result<VaeChoice> {
    if name.is_empty() {
        bail!("the data do not say which autoencoder made them");
    }
    let choice = VaeChoice::parse(name).context("the autoencoder of the data")?;
    let found = format!("{:016x}", choice.open(Device::Cpu, Kind::Float)?.identity().weights_xxh3);
    if found != wanted {
        bail!("{name} holds other weights ({found}) than made the data ({wanted})");
    }
    Ok(choice)
}

fn settings(args: &SampleArgs) -> Result<SampleSettings> {
    if args.steps == 0 {
        bail!("--steps 0 integrates nothing");
    }
    let [low, high] = args.interval[..] else { bail!("--interval takes two times, for example 0,0.7") };
    if low > high {
        bail!("--interval {low},{high}: the first time must not exceed the second");
    }
    if !(args.cfg >= 1.0 && args.cfg.is_finite()) {
        bail!("--cfg {} must be at least 1, which is no guidance", args.cfg);
    }
    let sampler = match args.sampler {
        SamplerArg::Sde => Integrator::Sde,
        SamplerArg::Ode => Integrator::Ode,
    };
    let guidance = Guidance { scale: args.cfg, low, high };
    Ok(SampleSettings { sampler, steps: args.steps, guidance, seed: args.seed })
}
