//! `pipeline sample`: a trained run or a file of weights in, pictures out.

mod record;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use pipeline::{Flow, Runtime};
use stages::device::{Device, Kind, parse_local_devices, parse_precision, precision_name};
use stages::load::feed::Scaling;
use stages::method::config::{Backbone, LatentShape};
use stages::method::sampler::{Diffusion, Guidance, Integrator};
use stages::nets::autoencoder::VaeChoice;
use stages::sample::decode::{DecodeLatents, Rounding};
use stages::sample::generate::{Generate, SampleSettings, Weights};
use stages::sample::noise::NoiseFile;
use stages::sample::npz::NpzImages;
use stages::sample::request::{Labels, Requests};
use stages::sample::write::{WriteSamples, Written};
use stages::world::share::Share;

use crate::commands::bench::MOST_BATCH;
use crate::commands::launching::ShareArgs;
use crate::commands::sample::record::Record;
use crate::commands::sample::source::Source;
use crate::exit::{Ended, Outcome};
use crate::show::{self, Progress};

/// Sample images from the averaged weights of a run, or from a file of weights, as PNG files and one grid, or as one npz
/// file. The same command goes on where it was stopped.
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
    /// Random classes, or equally many of each in order [default: random, or those of --noise]
    #[arg(long, value_enum)]
    pub(crate) labels: Option<LabelsArg>,
    /// Euler-Maruyama on the SDE; or Euler or Heun on the ODE, Heun with 2 N - 1 evaluations for N steps
    #[arg(long, value_enum, default_value_t = SamplerArg::Sde)]
    pub(crate) sampler: SamplerArg,
    /// w_t of the SDE: 2 sigma_t as REPA's code has it, or sigma_t as the papers print it
    #[arg(long, value_enum, default_value_t = DiffusionArg::TwoSigma)]
    pub(crate) diffusion: DiffusionArg,
    /// Steps of the sampler
    #[arg(long, value_name = "N", default_value_t = 250)]
    pub(crate) steps: usize,
    /// Scale of classifier-free guidance; 1 is none. Several, separated by commas, fill a folder each: cfg-1.5, ..
    #[arg(long, value_name = "W", value_delimiter = ',', num_args = 1, default_value = "1")]
    pub(crate) cfg: Vec<f64>,
    /// Times at which guidance applies (0 is data, 1 is noise)
    #[arg(long, value_name = "LOW,HIGH", value_delimiter = ',', num_args = 1, default_value = "0,0.7")]
    pub(crate) interval: Vec<f64>,
    /// Run DDT's encoder at every N-th evaluation only, and share its conditions between these
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) share_encoder: usize,
    /// Autoencoder that decodes: tiny, or a diffusers directory [default: the one of the training data]
    #[arg(long, value_name = "VAE")]
    pub(crate) vae: Option<String>,
    /// samples.npz holds arr_0, u8 [N, H, W, 3], and arr_1, the classes
    #[arg(long, value_enum, default_value_t = FormatArg::Png)]
    pub(crate) format: FormatArg,
    /// How decoded values become levels: 255 clamp((x + 1) / 2) or clamp(127.5 x + 128), both truncated
    #[arg(long, value_enum, default_value_t = RoundingArg::Repa)]
    pub(crate) rounding: RoundingArg,
    /// Start image i from row i of `noise` [N, C, h, w], with class i of `labels` [N] if the file has them
    #[arg(long, value_name = "F.safetensors")]
    pub(crate) noise: Option<PathBuf>,
    /// Write the latents as well: `latents` f32 [N, C, h, w], scaled as the network predicts them
    #[arg(long, value_name = "F.safetensors")]
    pub(crate) save_latents: Option<PathBuf>,
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
    #[command(flatten)]
    pub(crate) sharing: ShareArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LabelsArg {
    Random,
    Balanced,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormatArg {
    Png,
    Npz,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RoundingArg {
    Repa,
    Sit,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SamplerArg {
    Sde,
    Ode,
    Heun,
}

impl From<SamplerArg> for Integrator {
    fn from(sampler: SamplerArg) -> Self {
        match sampler {
            SamplerArg::Sde => Self::Sde,
            SamplerArg::Ode => Self::Ode,
            SamplerArg::Heun => Self::Heun,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DiffusionArg {
    #[value(name = "2sigma")]
    TwoSigma,
    Sigma,
}

/// What all folders of a command have in common.
#[derive(Debug)]
struct Job<'a> {
    args: &'a SampleArgs,
    weights: Arc<Weights>,
    scaling: Scaling,
    vae: VaeChoice,
    /// Rows and columns of a picture.
    size: [u64; 2],
    devices: Vec<Device>,
    share: Share,
    kind: Kind,
    noise: Option<Arc<NoiseFile>>,
    /// As for the first of --cfg.
    record: Record,
}

/// More images of one command are refused: their classes alone would be gigabytes.
const MOST: u64 = 100_000_000;
/// More steps are refused: every sampler has converged long before.
const MOST_STEPS: usize = 1_000_000;

pub(crate) fn run(args: &SampleArgs, runtime: &Runtime) -> Result<Ended> {
    // What the command line alone shows comes before anything is read.
    if !(1..=MOST).contains(&args.count) {
        bail!("--count {}: give 1 to {MOST} images", args.count);
    }
    if !(1..=MOST_BATCH).contains(&args.batch) {
        bail!("--batch {}: give 1 to {MOST_BATCH} images", args.batch);
    }
    let batch = args.batch.min(args.count);
    let all_settings = args.cfg.iter().map(|cfg| settings(args, *cfg)).collect::<Result<Vec<_>>>()?;
    let Source { weights, file, step, scaling, vae, opened, vae_name, class_names } = Source::open(args)?;
    if args.share_encoder == 0 {
        bail!("--share-encoder 0: the encoder runs at every N-th evaluation, N at least 1");
    }
    if args.share_encoder > 1 && weights.model.backbone != Backbone::Ddt {
        bail!(
            "--share-encoder {}: only a DDT has an encoder of its own, and the weights are of a SiT",
            args.share_encoder
        );
    }
    let [first, ..] = all_settings[..] else { bail!("--cfg takes a number, or several separated by commas") };
    if let (Some(file), 2..) = (&args.save_latents, all_settings.len()) {
        bail!("--save-latents {}: one file cannot hold the latents of several --cfg; give one of them", file.display());
    }
    let noise = args.noise.as_ref().map(|path| NoiseFile::open(path, args.count, &weights.data)).transpose()?;
    let classes = classes(args, weights.data.classes)?;
    let (label_scheme, labels) = labels(args, &classes, noise.as_ref())?;
    let (share, local) = args.sharing.share()?;
    if !share.is_all() && !matches!(args.format, FormatArg::Png) {
        bail!("--format npz: one process writes the file; write PNG files in several, or the file in one");
    }
    if let (false, Some(path)) = (share.is_all(), &args.save_latents) {
        bail!("--save-latents {}: one process writes the file; leave it out, or sample in one", path.display());
    }
    let devices = parse_local_devices(&args.devices, local)?;
    let kind = parse_precision(&args.precision, devices[0])?;
    let LatentShape { height, width, .. } = weights.data;
    let record = Record {
        checkpoint: file.display().to_string(),
        weights_xxh3: format!("{:016x}", weights.xxh3()),
        step,
        count: args.count,
        settings: first,
        label_scheme,
        classes,
        labels,
        class_names,
        batch,
        device: if devices[0].is_cuda() { "cuda" } else { "cpu" },
        precision: precision_name(kind),
        vae: vae_name,
        vae_xxh3: format!("{:016x}", opened.identity().weights_xxh3),
        scaling_factor: scaling.factor,
        shift_factor: scaling.shift,
        rounding: match args.rounding {
            RoundingArg::Repa => Rounding::Repa,
            RoundingArg::Sit => Rounding::Sit,
        },
        format: match args.format {
            FormatArg::Png => "png",
            FormatArg::Npz => "npz",
        },
        noise: args.noise.as_ref().map(|path| path.display().to_string()),
        noise_xxh3: noise.as_ref().map(|file| file.xxh3().map(|hash| format!("{hash:016x}"))).transpose()?,
        latents: args.save_latents.as_ref().map(|path| path.display().to_string()),
        version: env!("CARGO_PKG_VERSION"),
    };
    let job = Job {
        args,
        weights: Arc::new(weights),
        scaling,
        vae,
        size: [height, width].map(|side| (side * opened.downsample()) as u64),
        devices,
        share,
        kind,
        noise: noise.map(Arc::new),
        record,
    };
    if let [settings] = all_settings[..] {
        return job.sample(settings, &args.out, runtime);
    }
    let mut ended = Ended::already();
    for settings in all_settings {
        let folder = args.out.join(format!("cfg-{}", settings.guidance.scale));
        show::say(&format!("--cfg {}: {}", settings.guidance.scale, folder.display()));
        let next = job.sample(settings, &folder, runtime)?;
        ended = Ended { outcome: next.outcome, report: next.report.or(ended.report) };
        if let Outcome::Interrupted(_) = ended.outcome {
            break;
        }
    }
    Ok(ended)
}

impl Job<'_> {
    /// Fills one folder, or goes on with it.
    fn sample(&self, settings: SampleSettings, folder: &Path, runtime: &Runtime) -> Result<Ended> {
        let Self { args, ref weights, scaling, ref vae, ref devices, share, kind, ref noise, ref record, .. } = *self;
        let record = Record { settings, ..record.clone() };
        record.claim(folder, share.rank, share.is_all())?;
        let write = self.write(folder).with_context(|| format!("cannot write samples into {}", folder.display()))?;
        let (count, there) = (args.count, write.present().iter().filter(|present| **present).count() as u64);
        if write.is_whole() {
            show::result(&format!("{} holds its {count} images already", folder.display()));
            return Ok(Ended::already());
        }
        if there > 0 {
            show::say(&format!("{there} of {count} images are there already"));
        }
        let batch = record.batch;
        // A share is whole batches: its images then have the bytes that they have in one process.
        let kept: Vec<bool> =
            (0..).zip(write.present()).map(|(index, there)| *there || !share.has(index / batch)).collect();
        let requests = Requests::given(record.labels, batch).without(&kept);
        let (rounding, n) = (record.rounding, devices.len());
        let generate = Generate::on(Arc::clone(weights), settings, devices.clone(), kind, noise.clone());
        let decode = DecodeLatents::on(vae.clone(), devices.clone(), scaling, rounding);
        let mut progress = Progress::new("sampling", count);

        #[rustfmt::skip]
        let finished = Flow::from(requests)  // -> SampleRequest
            .then(generate).workers(n)       // -> SampleLatents  f32 [B, C, h, w]
            .then(decode).workers(n)         // -> SamplePixels   u8 [B, 3, H, W]
            .into(write)
            .observe(progress.interval(), move |report| {
                let done = report.stages.last().map_or(0, |stage| stage.items * batch);
                let done = (there / batch * batch + done).min(count);
                progress.at(done, &format!("sampled {done}/{count} images"));
            })
            .run(runtime)?;

        let Written { there: done, written } = finished.output;
        if finished.interrupted && done < count {
            let sentence = format!("stopped after {done} of {count} images; run the same command to continue");
            return Ok(Ended { outcome: Outcome::Interrupted(sentence), report: Some(finished.report) });
        }
        show::say(&show::report_lines(&finished.report));
        let rest =
            if done < count { format!("; {} of other ranks are not there yet", count - done) } else { String::new() };
        show::result(&format!("wrote {written} images to {}{rest}", folder.display()));
        Ok(Ended { outcome: Outcome::Done, report: Some(finished.report) })
    }

    fn write(&self, folder: &Path) -> Result<WriteSamples> {
        let (args, labels) = (self.args, &self.record.labels);
        let write = match args.format {
            FormatArg::Png => WriteSamples::png(folder, args.count, self.columns(), self.share.rank)?,
            FormatArg::Npz => {
                let [height, width] = self.size;
                WriteSamples::npz(folder, NpzImages { height, width, labels: labels.clone() })?
            }
        };
        match &args.save_latents {
            Some(path) => Ok(write.with_latents(path, &self.weights.data)?),
            None => Ok(write),
        }
    }

    /// A row of the grid is a class where every class has as many images.
    fn columns(&self) -> usize {
        let (count, classes) = (self.args.count, self.record.classes.len() as u64);
        let columns = match self.record.label_scheme {
            Labels::Balanced if count.is_multiple_of(classes) => count / classes,
            _ => (count as f64).sqrt().ceil() as u64,
        };
        columns as usize
    }
}

fn classes(args: &SampleArgs, known: i64) -> Result<Vec<i64>> {
    if let Some(wrong) = args.classes.iter().find(|class| !(0..known).contains(*class)) {
        bail!("--classes {wrong}: the weights have classes 0 to {}", known - 1);
    }
    Ok(if args.classes.is_empty() { (0..known).collect() } else { args.classes.clone() })
}

/// The class of each image, and how it was chosen.
fn labels(args: &SampleArgs, classes: &[i64], noise: Option<&NoiseFile>) -> Result<(Labels, Vec<i64>)> {
    if let Some(given) = noise.and_then(NoiseFile::labels) {
        if args.labels.is_some() || !args.classes.is_empty() {
            bail!("the file of --noise has labels; leave out --labels and --classes");
        }
        return Ok((Labels::Given, given[..args.count as usize].to_vec()));
    }
    let scheme = match args.labels {
        None | Some(LabelsArg::Random) => Labels::Random,
        Some(LabelsArg::Balanced) => Labels::Balanced,
    };
    Ok((scheme, Requests::new(classes, scheme, args.count, args.batch, args.seed).labels().to_vec()))
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

fn settings(args: &SampleArgs, cfg: f64) -> Result<SampleSettings> {
    if !(1..=MOST_STEPS).contains(&args.steps) {
        bail!("--steps {}: give 1 to {MOST_STEPS}", args.steps);
    }
    let [low, high] = args.interval[..] else { bail!("--interval takes two times, for example 0,0.7") };
    if !(low.is_finite() && high.is_finite() && low <= high) {
        bail!("--interval {low},{high}: give two numbers, of which the first does not exceed the second");
    }
    if !(cfg >= 1.0 && cfg.is_finite()) {
        bail!("--cfg {cfg} must be at least 1, which is no guidance");
    }
    let sampler = Integrator::from(args.sampler);
    let diffusion = match args.diffusion {
        DiffusionArg::TwoSigma => Diffusion::TwoSigma,
        DiffusionArg::Sigma => Diffusion::Sigma,
    };
    let guidance = Guidance { scale: cfg, low, high };
    let (steps, share_encoder, seed) = (args.steps, args.share_encoder, args.seed);
    Ok(SampleSettings { sampler, diffusion, steps, guidance, share_encoder, seed })
}
