//! `pipeline encode`: a folder of labelled images becomes a dataset of latent shards.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use pipeline::{BoxError, Flow, Report, Runtime, Worker};
use serde_json::{Value, json};
use stages::device::{arithmetic, cores, parse_devices};
use stages::encode::crop::{AdmCrop, Resize};
use stages::encode::decode::{self, Decode};
use stages::encode::gather::{Gather, Layout};
use stages::encode::list::{ImageList, ListImages};
use stages::encode::vae::{self, RestoreThreads, VaeEncode};
use stages::encode::write::{Opened, Recipe, Store, WriteShards, Written};
use stages::nets::autoencoder::VaeChoice;

use crate::exit::{Ended, Outcome};
use crate::show::{self, Progress};

/// Images that the autoencoder takes at once on the CPU: an eighth of a block, for an eighth of its memory.
const CPU_BATCH: usize = 8;

/// Encode a folder of labelled images to latent shards. An interrupted encode continues where it stopped.
#[derive(Debug, Clone, Args)]
pub(crate) struct EncodeArgs {
    /// Folder with one folder of images (jpg, jpeg, png) for each class
    #[arg(long, value_name = "DIR")]
    pub(crate) images: PathBuf,
    /// Folder for the dataset: new, empty, or that of an interrupted encode
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Autoencoder: tiny, or a diffusers directory
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
    /// auto, cpu, cpu:2 or cuda:0,cuda:1; auto is a GPU, or the CPU once for each core
    #[arg(long, default_value = "auto")]
    pub(crate) devices: String,
    /// Threads that decode, and as many that crop [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
    /// Images that the autoencoder takes at once, at most 64 [default: 8 on the CPU, 64 on a GPU]
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<NonZeroUsize>,
    /// What to do about a file that cannot be decoded
    #[arg(long, value_enum, default_value_t = OnErrorArg::Fail)]
    pub(crate) on_error: OnErrorArg,
    /// Encode only the first N images of the shuffled list
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Seed of the order in which images are stored
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) shuffle_seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ResizeArg {
    Exact,
    Fast,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum StoreArg {
    Moments,
    Mean,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnErrorArg {
    /// Stop, and name the file
    Fail,
    /// Go on, and list the file in dataset.json
    Skip,
}

/// Larger crops than these are no latents that anything here trains on, and would exhaust memory.
fn size_in_range(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (8..=4096).contains(size));
    size.ok_or_else(|| "must be a number of pixels from 8 to 4096".to_owned())
}

pub(crate) fn run(args: &EncodeArgs, runtime: &Runtime) -> Result<Ended> {
    let list = ImageList::scan(&args.images)?.permuted(args.shuffle_seed);
    let list = match args.limit {
        Some(limit) => list.limited(limit),
        None => list,
    };
    let choice = VaeChoice::parse(&args.vae)?;
    let cores = cores();
    let workers = args.workers.map_or(cores, NonZeroUsize::get);
    let mut devices = parse_devices(&args.devices)?;
    let cuda = devices[0].is_cuda();
    if devices.iter().any(|device| device.is_cuda() != cuda) {
        bail!("--devices {} mixes CPU and GPU, which round differently; give devices of one kind", args.devices);
    }
    if args.devices == "auto" && !cuda {
        devices = vec![devices[0]; cores];
    }
    let layout = Layout::default();
    let batch = args.batch.map_or(if cuda { layout.block } else { CPU_BATCH }, NonZeroUsize::get).min(layout.block);
    let resize = match args.resize {
        ResizeArg::Exact => Resize::Exact,
        ResizeArg::Fast => Resize::Fast,
    };

    let _restore = RestoreThreads::on_drop();
    let recipe = recipe(
        args,
        &list,
        &choice,
        layout,
        resize,
        json!({
            "batch": batch,
            "threads": if cuda { Value::Null } else { vae::INTRA_OP_THREADS.into() },
            "arithmetic": arithmetic(devices[0]),
            "precision": if cuda { "f32, TF32 convolutions where libtorch chooses them" } else { "f32" },
        }),
    )?;
    let writer = match WriteShards::open(&args.out, recipe, &list)? {
        Opened::Complete(manifest) => {
            show::result(&format!("{} is complete already: {} samples", args.out.display(), manifest.samples));
            return Ok(Ended::already());
        }
        Opened::Unfinished(writer) => *writer,
    };
    let (first, total) = (writer.first_position(), list.len() as u64);
    let classes = list.classes().to_vec();
    if first > 0 {
        show::say(&format!("continuing {} at image {first} of {total}", args.out.display()));
    }
    let decoder: fn(Worker) -> Result<Decode, BoxError> = match args.on_error {
        OnErrorArg::Fail => Decode::strict,
        OnErrorArg::Skip => Decode::skipping,
    };

    let mut progress = Progress::new("encoding", total);
    let gpus = devices.len();
    #[rustfmt::skip]
    let finished = Flow::from(ListImages::starting_at(list, first)) //                -> ImageRef
        .then(decoder).workers(workers)                             //                -> Decoded       u8 [H, W, 3]
        .depth(1) // whole pictures: one may wait, beside the one that each worker is at
        .then(AdmCrop::to(args.size, resize)).workers(workers)      //                -> Decoded       u8 [S, S, 3]
        .regroup(Gather::new(layout, args.size))                    //                -> PixelBatch    u8 [B, 3, S, S]
        .then(VaeEncode::on(choice, devices, batch)).workers(gpus)  //                -> MomentsBatch  f16 mean, logvar [B, C, h, w]
        .depth(1)
        .into(writer)
        .observe(progress.interval(), move |report| {
            let done = (first + encoded(report, layout)).min(total);
            progress.at(done, &progress_line(done, first, total, report.wall.as_secs_f64()));
        })
        .run(runtime)?;

    show::say(&show::report_lines(&finished.report));
    Ok(Ended { outcome: outcome(&finished.output, &classes, &args.out, total), report: Some(finished.report) })
}

/// What the dataset records, and what must be equal for an encode to be continued.
fn recipe(
    args: &EncodeArgs,
    list: &ImageList,
    choice: &VaeChoice,
    layout: Layout,
    resize: Resize,
    encoder: Value,
) -> Result<Recipe> {
    let autoencoder = choice.open(parse_devices("cpu")?[0])?;
    let downsample = autoencoder.downsample() as usize;
    if args.size == 0 || !args.size.is_multiple_of(downsample) {
        bail!("--size {}: the autoencoder needs a multiple of {downsample}", args.size);
    }
    let identity = autoencoder.identity();
    let provenance = BTreeMap::from([
        ("created_by", Value::from(concat!("dualpath ", env!("CARGO_PKG_VERSION")))),
        ("vae", json!({ "name": identity.name, "weights_xxh3": format!("{:016x}", identity.weights_xxh3) })),
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
                "images": list.len(), "list_xxh3": format!("{:016x}", list.hash()), "shuffle_seed": args.shuffle_seed,
                "shard_positions": layout.shard,
            }),
        ),
        ("encoder", encoder),
    ]);
    let store = match args.store {
        StoreArg::Moments => Store::Moments,
        StoreArg::Mean => Store::Mean,
    };
    let latent = vae::latent_shape(&autoencoder, args.size);
    Ok(Recipe {
        schema: store.schema(latent, autoencoder.scaling_factor(), autoencoder.shift_factor(), layout),
        layout,
        provenance: provenance.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    })
}

/// Images of the blocks that the autoencoder is done with; the last block may hold fewer than that.
fn encoded(report: &Report, layout: Layout) -> u64 {
    let blocks = report.stages.iter().find(|stage| stage.name == "VaeEncode").map_or(0, |stage| stage.items);
    blocks * layout.block as u64
}

fn progress_line(done: u64, first: u64, total: u64, seconds: f64) -> String {
    let rate = (done - first) as f64 / seconds.max(1e-9);
    let left = match total.saturating_sub(done) {
        left if rate > 0.0 => format!(", {} left", show::duration(left as f64 / rate)),
        _ => String::new(),
    };
    format!("encoded {done}/{total} images  {rate:.1} images/s{left}")
}

fn outcome(written: &Written, classes: &[String], out: &Path, total: u64) -> Outcome {
    let Written { samples, shards, skipped, complete } = written;
    if !complete {
        return Outcome::Interrupted(format!(
            "stopped: {samples} of {total} images are in {shards} finished shards of {}; run the same command to \
             {}",
            out.display(),
            if *shards > 0 { "continue after them" } else { "begin again" }
        ));
    }
    let plural = if *shards == 1 { "" } else { "s" };
    show::result(&format!(
        "encoded {samples} images of {} classes ({}) into {shards} shard{plural} in {}",
        classes.len(),
        match classes {
            [some @ .., _] if classes.len() > 4 => format!("{}, ..", some[..3].join(", ")),
            all => all.join(", "),
        },
        out.display()
    ));
    if *skipped > 0 {
        show::result(&format!("{skipped} files could not be decoded and were skipped; dataset.json lists them"));
    }
    Outcome::Done
}
