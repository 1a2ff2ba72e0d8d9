//! `pipeline encode`: labelled images become a dataset of latent shards.

mod ending;
mod images;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use pipeline::{BoxError, Finished, Flow, Runtime, Worker};
use serde_json::{Value, json};
use shards::Codec;
use stages::device::{Device, Kind, arithmetic, cores, parse_local_devices, parse_precision};
use stages::encode::crop::{AdmCrop, Resize};
use stages::encode::decode::{self, Decode};
use stages::encode::gather::{Gather, Layout};
use stages::encode::list::ListImages;
use stages::encode::store::Store;
use stages::encode::vae::{self, RestoreThreads, VaeEncode};
use stages::encode::write::{Completed, Opened, Recipe, WriteShards, Written};
use stages::nets::autoencoder::VaeChoice;

use self::ending::{Ending, progress_line};
use self::images::Images;
use crate::commands::launching::ShareArgs;
use crate::exit::Ended;
use crate::show::{self, Progress};

/// Images that the autoencoder takes at once on the CPU: an eighth of a block, for an eighth of its memory.
const CPU_BATCH: usize = 8;

/// Encode labelled images to latent shards. An interrupted encode continues where it stopped.
#[derive(Debug, Clone, Args)]
pub(crate) struct EncodeArgs {
    /// Folder with one folder of images (jpg, jpeg, png) for each class; with --labels a flat folder of images; or
    /// WebDataset tars: their folder, or a pattern such as 'train-{0000..1023}.tar'
    #[arg(long, value_name = "SRC")]
    pub(crate) images: PathBuf,
    /// ImageNet's labels for a flat folder: a file of wnids, of the devkit's numbers, Kaggle's LOC_val_solution.csv, or
    /// `name label` lines with wnids or 0 to 999
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// Number class folders that are ImageNet wnids 0, 1, .. as they sort, instead of by ImageNet's class indices
    #[arg(long)]
    pub(crate) renumber: bool,
    /// Names of the classes of tars, one a line, or `imagenet` [default: their numbers]
    #[arg(long, value_name = "FILE")]
    pub(crate) class_names: Option<PathBuf>,
    /// Folder for the dataset: new, empty, or that of an interrupted encode
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Autoencoder: tiny, a diffusers directory, or a hub id such as stabilityai/sd-vae-ft-ema
    #[arg(long, value_name = "VAE", default_value = "tiny")]
    pub(crate) vae: String,
    /// Side of the square that is cropped from each image, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = size_in_range)]
    pub(crate) size: usize,
    /// Resampling: the very bytes of Pillow 12, or faster
    #[arg(long, value_enum, default_value_t = ResizeArg::Exact)]
    pub(crate) resize: ResizeArg,
    /// Mean and log-variance of each posterior, or the mean alone
    #[arg(long, value_enum, default_value_t = StoreArg::Moments)]
    pub(crate) store: StoreArg,
    /// Store the latents of the mirrored image too, in columns of their own
    #[arg(long)]
    pub(crate) flip: bool,
    /// How the columns are stored: byte planes and zstd, zstd alone, or as they are
    #[arg(long, value_enum, default_value_t = CodecArg::Shuffle)]
    pub(crate) codec: CodecArg,
    /// auto, cpu, cpu:2 or cuda:0,cuda:1; auto is a GPU, or the CPU once for each core
    #[arg(long, default_value = "auto")]
    pub(crate) devices: String,
    /// Threads that decode, and as many that crop [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Images that the autoencoder takes at once, at most 64 [default: 8 on the CPU, 64 on a GPU]
    #[arg(long, value_name = "N", value_parser = batch_in_range)]
    pub(crate) batch: Option<usize>,
    /// What the autoencoder computes in: f32 as published latents were made, or bf16 where the hardware is faster at it;
    /// auto is f32
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) precision: String,
    /// What to do about a file that cannot be decoded
    #[arg(long, value_enum, default_value_t = OnErrorArg::Fail)]
    pub(crate) on_error: OnErrorArg,
    /// Encode only the first N images of the order in which they are stored
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Seed of the order in which files are stored; samples of tars keep theirs
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) shuffle_seed: u64,
    /// Images in a shard, a multiple of 64: what an interrupted encode loses at most
    #[arg(long, value_name = "N", default_value_t = Layout::default().shard, value_parser = shard_in_range)]
    pub(crate) shard_size: u64,
    #[command(flatten)]
    pub(crate) sharing: ShareArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ResizeArg {
    Exact,
    Fast,
}

impl From<ResizeArg> for Resize {
    fn from(arg: ResizeArg) -> Self {
        match arg {
            ResizeArg::Exact => Self::Exact,
            ResizeArg::Fast => Self::Fast,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum StoreArg {
    Moments,
    Mean,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CodecArg {
    /// shuffle2+zstd: smallest, and fastest to read
    Shuffle,
    Zstd,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnErrorArg {
    /// Stop, and name the file
    Fail,
    /// Go on, and list the file in dataset.json
    Skip,
}

/// Larger crops than these are no latents that anything here trains on, and would exhaust memory.
pub(super) fn size_in_range(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (8..=4096).contains(size));
    size.ok_or_else(|| "must be a number of pixels from 8 to 4096".to_owned())
}

/// Batches end where blocks do.
pub(super) fn batch_in_range(text: &str) -> Result<usize, String> {
    let block = Layout::default().block;
    let size = text.parse().ok().filter(|size| (1..=block).contains(size));
    size.ok_or_else(|| format!("must be a number of images from 1 to {block}"))
}

/// A shard holds whole blocks, and at most as many samples as the format allows.
fn shard_in_range(text: &str) -> Result<u64, String> {
    let block = Layout::default().block as u64;
    let size = text
        .parse()
        .ok()
        .filter(|size: &u64| *size > 0 && size.is_multiple_of(block) && *size <= u64::from(shards::MAX_SAMPLES));
    size.ok_or_else(|| format!("must be a multiple of {block} up to {}", shards::MAX_SAMPLES))
}

pub(crate) fn run(args: &EncodeArgs, runtime: &Runtime) -> Result<Ended> {
    Ok(match encode(args, runtime)? {
        Encoded::Already { samples } => {
            show::result(&format!("{} is complete already: {samples} samples", args.out.display()));
            Ended::already()
        }
        Encoded::Unlisted => {
            Ended::interrupted("stopped while the images were listed; run the same command to begin again")
        }
        Encoded::Now { ending, finished, completed } => {
            show::say(&show::report_lines(&finished.report));
            let outcome = match completed {
                None => ending.tell(&finished.output),
                Some(Completed::Here(whole)) => ending.tell(&whole),
                Some(Completed::Missing { shards }) => ending.tell_share(&finished.output, shards),
                Some(Completed::Elsewhere) => ending.tell_share(&finished.output, 0),
            };
            Ended { outcome, report: Some(finished.report) }
        }
    })
}

/// What came of an encode.
pub(crate) enum Encoded {
    /// The dataset was complete.
    Already { samples: u64 },
    /// An interrupt came before the images were listed.
    Unlisted,
    /// A flow ran to its end, or until it was interrupted; and what then became of the dataset, if this is one of several
    /// processes.
    Now { ending: Box<Ending>, finished: Box<Finished<Written>>, completed: Option<Completed> },
}

/// The work of the command, without a word on stdout.
pub(crate) fn encode(args: &EncodeArgs, runtime: &Runtime) -> Result<Encoded> {
    if lies_inside(&args.out, &args.images) {
        bail!(
            "--out {} lies inside --images {}: the next look at the images would take it for a class; give a folder \
             elsewhere",
            args.out.display(),
            args.images.display()
        );
    }
    let choice = VaeChoice::parse(&args.vae)?;
    let cores = cores();
    let workers = args.workers.map_or(cores, NonZeroUsize::get);
    let (share, local) = args.sharing.share()?;
    let devices = devices(&args.devices, local, cores)?;
    let cuda = devices[0].is_cuda();
    let kind = match args.precision.as_str() {
        "auto" => Kind::Float,
        precision => parse_precision(precision, devices[0])?,
    };
    let whole = Layout { shard: args.shard_size, ..Layout::default() };
    let batch = args.batch.unwrap_or(if cuda { whole.block } else { CPU_BATCH });
    let layout = Layout { batch, ..whole };
    let store = Store {
        logvar: matches!(args.store, StoreArg::Moments),
        flip: args.flip,
        codec: match args.codec {
            CodecArg::Shuffle => Codec::ShuffleZstd { level: 1 },
            CodecArg::Zstd => Codec::Zstd { level: 1 },
            CodecArg::None => Codec::None,
        },
    };
    let Some(images) = images::list(args, workers, runtime)? else {
        return Ok(Encoded::Unlisted);
    };

    let _restore = RestoreThreads::on_drop();
    let recipe = recipe(args, &images, &choice, layout, store, &encoder(devices[0], kind, batch))?;
    if args.out.join("shard-00000.lat").exists() {
        show::say(&format!("checking what {} holds", args.out.display()));
    }
    let writer = match WriteShards::open(&args.out, recipe.clone(), &images.list, share)? {
        Opened::Complete(manifest) => return Ok(Encoded::Already { samples: manifest.samples }),
        Opened::Unfinished(writer) => *writer,
    };
    let Images { list, .. } = images;
    let (positions, total) = (writer.positions(), writer.images());
    let left: u64 = positions.iter().map(|range| range.end - range.start).sum();
    let first = total - left;
    let used = list.used_classes();
    let whole = list.len() as u64;
    let ending = Ending { out: args.out.clone(), classes: list.classes().to_vec(), used, whole, total, store };
    let list = Arc::new(list);
    if first > 0 {
        show::say(&format!("continuing {}, which holds {first} of {total} images", args.out.display()));
    }
    let decoder: fn(Worker) -> Result<Decode, BoxError> = match args.on_error {
        OnErrorArg::Fail => Decode::strict,
        OnErrorArg::Skip => Decode::skipping,
    };

    let mut progress = Progress::new("encoding", total);
    let encoders = devices.len();
    #[rustfmt::skip]
    let finished = Flow::from(ListImages::at(Arc::clone(&list), positions))      // -> ImageRef
        .then(decoder).workers(workers)                                          // -> Decoded       u8 [H, W, 3]
        .depth(1) // whole pictures: one may wait, beside the one that each worker is at
        .then(AdmCrop::to(args.size, args.resize.into())).workers(workers)       // -> Decoded       u8 [S, S, 3]
        .regroup(Gather::new(layout, args.size))                                 // -> PixelBatch    u8 [B, 3, S, S]
        .then(VaeEncode::on(choice, devices, kind, store)).workers(encoders)     // -> MomentsBatch  f16 [B, C, h, w] each
        .into(writer)
        .observe(progress.interval(), move |report| {
            let done = (first + ending::encoded(report, layout)).min(total);
            progress.at(done, &progress_line(done, first, total, report.wall.as_secs_f64()));
        })
        .run(runtime)?;

    let completed = match finished.output.complete && !share.is_all() {
        true => Some(WriteShards::complete(&args.out, recipe, &list)?),
        false => None,
    };
    Ok(Encoded::Now { ending: Box::new(ending), finished: Box::new(finished), completed })
}

/// Whether a path, which need not exist, is below a folder.
fn lies_inside(path: &Path, folder: &Path) -> bool {
    let (Ok(path), Ok(folder)) = (std::path::absolute(path), folder.canonicalize()) else { return false };
    // Of a path that does not exist, the part that does.
    path.ancestors().find_map(|part| part.canonicalize().ok()).is_some_and(|real| real.starts_with(&folder))
}

/// The devices that encode: one kind, since CPU and GPU round differently. `auto` on the CPU is one worker for each
/// core; on GPUs that of the `local`-th process.
fn devices(text: &str, local: usize, cores: usize) -> Result<Vec<Device>> {
    let devices = parse_local_devices(text, local)?;
    let cuda = devices[0].is_cuda();
    if devices.iter().any(|device| device.is_cuda() != cuda) {
        bail!("--devices {text} mixes CPU and GPU, which round differently; give devices of one kind");
    }
    Ok(if text == "auto" && !cuda { vec![devices[0]; cores] } else { devices })
}

/// What decides the bits of the latents besides weights and pixels.
fn encoder(device: Device, kind: Kind, batch: usize) -> Value {
    json!({
        "batch": batch,
        "threads": if device.is_cuda() { Value::Null } else { vae::INTRA_OP_THREADS.into() },
        "arithmetic": arithmetic(device, kind),
        "precision": match (kind, device.is_cuda()) {
            (Kind::BFloat16, _) => "bf16",
            (_, true) => "f32, TF32 convolutions where libtorch chooses them",
            (_, false) => "f32",
        },
    })
}

/// What the dataset records, and what must be equal for an encode to be continued.
fn recipe(
    args: &EncodeArgs,
    images: &Images,
    choice: &VaeChoice,
    layout: Layout,
    store: Store,
    encoder: &Value,
) -> Result<Recipe> {
    let autoencoder = choice.open(Device::Cpu, Kind::Float)?;
    let downsample = autoencoder.downsample() as usize;
    if !args.size.is_multiple_of(downsample) {
        bail!("--size {}: the autoencoder needs a multiple of {downsample}", args.size);
    }
    let identity = autoencoder.identity();
    let resize = Resize::from(args.resize);
    let provenance = BTreeMap::from([
        ("created_by", Value::from(concat!("dualpath ", env!("CARGO_PKG_VERSION")))),
        (
            "vae",
            json!({
                "name": identity.name, "weights_xxh3": format!("{:016x}", identity.weights_xxh3),
                "revision": choice.revision(),
            }),
        ),
        (
            "preprocess",
            json!({
                "crop": "adm centre crop", "size": args.size, "resize": resize.name(), "decoders": decode::DECODERS,
                "exif": "ignored",
            }),
        ),
        (
            "source",
            json!({
                "images": images.list.len(), "list_xxh3": format!("{:016x}", images.list.hash()),
                "order": images.order, "labels": images.labels, "shard_positions": layout.shard,
            }),
        ),
        ("encoder", encoder.clone()),
    ]);
    let latent = vae::latent_shape(&autoencoder, args.size);
    Ok(Recipe {
        schema: store.schema(latent, autoencoder.scaling_factor(), autoencoder.shift_factor(), layout),
        layout,
        provenance: provenance.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    })
}
