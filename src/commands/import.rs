//! `pipeline import`: latents that another program made become a dataset.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use pipeline::{Flow, Runtime};
use serde_json::{Value, json};
use shards::{DType, Manifest};
use stages::device::cores;
use stages::encode::gather::Layout;
use stages::encode::list::ListImages;
use stages::encode::write::{Opened, Recipe, WriteShards};
use stages::exchange::import::{ImportShards, RepaFolder};
use stages::world::share::Share;

use crate::exit::{Ended, Outcome};
use crate::show::{self, Progress};

/// Import latents that another program made. An interrupted import continues where it stopped.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImportArgs {
    /// Folder with vae-sd/dataset.json and vae-sd/00000/img-mean-std-00000000.npy ..
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The form that they are in
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) from: FormArg,
    /// Folder for the dataset: new, empty, or that of an interrupted import
    #[arg(long, value_name = "DATA")]
    pub(crate) out: PathBuf,
    /// What to store: every bit of the f32 values, or half the size, rounded to nearest
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = DTypeArg::F32)]
    pub(crate) to: DTypeArg,
    /// Scaling factor of the autoencoder that made the latents [default: what an export of ours says beside them, else
    /// 0.18215]
    #[arg(long, value_name = "X")]
    pub(crate) scaling_factor: Option<f64>,
    /// Threads that read files [default: one for each core]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroUsize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormArg {
    /// What REPA's preprocessing writes: mean and standard deviation of each image in one f32 array
    Repa,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DTypeArg {
    F32,
    F16,
}

pub(crate) fn run(args: &ImportArgs, runtime: &Runtime) -> Result<Ended> {
    let FormArg::Repa = args.from;
    if let Some(factor) = args.scaling_factor
        && !(factor.is_finite() && factor > 0.0)
    {
        bail!("--scaling-factor {factor} must be a positive number");
    }
    let folder = RepaFolder::open(&args.dir)?;
    let scaling_factor = args.scaling_factor.or(folder.scaling_factor()).unwrap_or(0.18215);
    let dtype = match args.to {
        DTypeArg::F32 => DType::F32,
        DTypeArg::F16 => DType::F16,
    };
    let list = folder.list().clone();
    let writer = match WriteShards::open(&args.out, recipe(&folder, dtype, scaling_factor), &list, Share::ALL)? {
        Opened::Complete(manifest) => {
            show::result(&format!("{} is complete already: {} samples", args.out.display(), manifest.samples));
            return Ok(Ended::already());
        }
        Opened::Unfinished(writer) => *writer,
    };
    let (positions, total) = (writer.positions(), list.len() as u64);
    let left: u64 = positions.iter().map(|range| range.end - range.start).sum();
    let first = total - left;
    let classes = list.classes().len();
    if first > 0 {
        show::say(&format!("continuing {}, which holds {first} of {total} samples", args.out.display()));
    }
    let workers = args.workers.map_or(cores(), NonZeroUsize::get);
    let mut progress = Progress::new("importing", total);

    let finished = Flow::from(ListImages::at(list, positions)) //  -> ImageRef
        .then(folder.reader(dtype)) //                                     -> ReadSample   mean, std [C, h, w]
        .workers(workers)
        .depth(64)
        .into(ImportShards::new(writer))
        .observe(progress.interval(), move |report| {
            let done = first + report.stages.last().map_or(0, |stage| stage.items);
            progress.at(done, &format!("imported {done}/{total} samples"));
        })
        .run(runtime)?;

    let written = &finished.output.written;
    if !written.complete {
        let outcome = Outcome::Interrupted(format!(
            "stopped: {} of {total} samples are in {} finished shards of {}; run the same command to continue",
            written.samples,
            written.shards,
            args.out.display()
        ));
        return Ok(Ended { outcome, report: Some(finished.report) });
    }
    show::say(&show::report_lines(&finished.report));
    show::result(&format!(
        "imported {} samples of {classes} classes into {} shards in {}",
        written.samples,
        written.shards,
        args.out.display()
    ));
    let odd: u64 = Manifest::load(&args.out)?.stats.values().flatten().map(|channel| channel.non_finite).sum();
    if odd > 0 {
        show::say(&format!(
            "WARNING: {odd} values are infinite or not numbers; they are kept, and cannot be trained on"
        ));
    }
    if dtype == DType::F16 {
        let some = if first > 0 { format!(" (of the {left} samples that this run took)") } else { String::new() };
        for (column, rounding) in &finished.output.rounding {
            show::result(&format!(
                "largest error of {column} in f16{some}: {:.3e} absolute, {:.3e} relative",
                rounding.absolute, rounding.relative
            ));
        }
    }
    Ok(Ended { outcome: Outcome::Done, report: Some(finished.report) })
}

/// What the dataset records, and what must be equal for an import to be continued.
fn recipe(folder: &RepaFolder, dtype: DType, scaling_factor: f64) -> Recipe {
    let layout = Layout::default();
    let list = folder.list();
    let provenance: BTreeMap<_, _> = BTreeMap::from([
        ("created_by", Value::from(concat!("dualpath ", env!("CARGO_PKG_VERSION")))),
        (
            "import",
            json!({ "from": "repa", "dtype": dtype.name(), "scaling_factor": "of the command, or of the export beside the files" }),
        ),
        (
            "source",
            json!({
                "samples": list.len(), "list_xxh3": format!("{:016x}", list.hash()),
                "order": "source order, not shuffled", "shard_positions": layout.shard,
            }),
        ),
    ]);
    let vae = folder.autoencoder().map(|vae| ("vae".to_owned(), vae.clone()));
    Recipe {
        schema: folder.schema(dtype, scaling_factor),
        layout,
        provenance: provenance.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(vae).collect(),
    }
}
