//! `pipeline inspect`: what a dataset holds. What is wrong with it, `pipeline verify` says.

mod shuffle;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use pipeline::{Flow, Runtime};
use shards::{Dataset, Io};
use stages::device::parse_devices;
use stages::encode::list::wnids;
use stages::exchange::preview::{LabelledGrid, RandomSamples, stored_scaling};
use stages::load::plan::DEFAULT_POOL_BLOCKS;
use stages::sample::decode::{DecodeLatents, Rounding};

use self::shuffle::ShuffleReport;
use self::summary::{Record, Summary};
use super::sample::autoencoder;
use crate::exit::Outcome;
use crate::show;

/// Pictures on a preview: more are no preview, and all are held in memory.
const MOST_PICTURES: usize = 400;

/// Show what a dataset holds: counts, sizes, where it comes from, classes, statistics.
#[derive(Debug, Clone, Args)]
pub(crate) struct InspectArgs {
    /// Dataset that `pipeline encode` or `pipeline import` wrote
    #[arg(value_name = "DATA")]
    pub(crate) data: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Show sample N of the dataset's order, from 0, too
    #[arg(long, value_name = "N")]
    pub(crate) sample: Option<usize>,
    /// Measure how well training would mix the samples, beside a true permutation
    #[arg(long)]
    pub(crate) shuffle_report: bool,
    /// Samples in a global batch
    #[arg(long, value_name = "N", default_value_t = 256, requires = "shuffle_report")]
    pub(crate) batch: usize,
    /// Blocks that are shuffled together
    #[arg(long, value_name = "N", default_value_t = DEFAULT_POOL_BLOCKS, requires = "shuffle_report")]
    pub(crate) pool_blocks: usize,
    /// Decode random samples to a PNG file, each above the name of its class
    #[arg(long, value_name = "PNG")]
    pub(crate) preview: Option<PathBuf>,
    /// How many samples to decode
    #[arg(long, value_name = "N", default_value_t = 16, requires = "preview")]
    pub(crate) count: usize,
    /// The seed of the choice of samples to decode, or of the order
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Autoencoder that decodes: tiny, or a diffusers directory [default: the one that made the dataset]
    #[arg(long, value_name = "VAE", requires = "preview")]
    pub(crate) vae: Option<String>,
    /// auto, cpu or cuda:0
    #[arg(long, default_value = "auto", requires = "preview")]
    pub(crate) devices: String,
}

pub(crate) fn run(args: &InspectArgs, runtime: &Runtime) -> Result<Outcome> {
    let dataset = Arc::new(Dataset::open(&args.data, Io::Auto)?);
    let mut summary = Summary::of(&dataset);
    if let Some(sample) = args.sample {
        summary.sample = Some(Record::read(&dataset, sample)?);
    }
    let shuffle = match args.shuffle_report {
        true => Some(ShuffleReport::of(&dataset, args.batch, args.pool_blocks, args.seed)?),
        false => None,
    };
    if args.json {
        let mut found = serde_json::to_value(&summary)?;
        if let (Some(shuffle), Some(object)) = (&shuffle, found.as_object_mut()) {
            object.insert("shuffle".to_owned(), shuffle.json());
        }
        show::result(&found.to_string());
    } else {
        show::result(&summary.to_string());
        if let Some(shuffle) = &shuffle {
            show::result(&format!("\n{shuffle}"));
        }
    }
    match &args.preview {
        Some(path) => preview(args, &dataset, path, runtime),
        None => Ok(Outcome::Done),
    }
}

fn preview(args: &InspectArgs, dataset: &Arc<Dataset>, path: &Path, runtime: &Runtime) -> Result<Outcome> {
    if !(1..=MOST_PICTURES).contains(&args.count) {
        bail!("--count {} must be from 1 to {MOST_PICTURES}", args.count);
    }
    let manifest = &dataset.manifest;
    let recorded = |key: &str| {
        let value = manifest.provenance.get("vae").and_then(|vae| vae.get(key)?.as_str());
        value.unwrap_or_default()
    };
    let (vae, _) = autoencoder(args.vae.as_deref(), recorded("name"), recorded("weights_xxh3"))?;
    let devices = parse_devices(&args.devices)?;
    let scaling = stored_scaling(&manifest.schema);

    let names: Vec<String> = manifest.classes.iter().map(|class| wnids::readable(class).to_owned()).collect();
    #[rustfmt::skip]
    let finished = Flow::from(RandomSamples::of(dataset, args.count, args.seed)?) // -> SampleLatents  f32 [1, C, h, w]
        .then(DecodeLatents::on(vae, devices, scaling, Rounding::Repa))           // -> SamplePixels   u8 [1, 3, H, W]
        .into(LabelledGrid::create(path, &names))
        .run(runtime)?;

    if finished.interrupted {
        return Ok(Outcome::Interrupted("stopped; no preview was written, run the same command again".to_owned()));
    }
    show::say(&format!("{} of {} samples are decoded in {}", finished.output, dataset.len(), path.display()));
    Ok(Outcome::Done)
}
